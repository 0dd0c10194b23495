//! Server-side apply: merges a configuration into an object by who owns what.
//!
//! Source: apimachinery `util/managedfields/internal` (`structuredmerge.go`, `skipnonapplied.go`, `lastapplied*.go`),
//! structured-merge-diff `merge/update.go`.

use serde_json::{Map, Value};

use super::claims::Claims;
use super::compare::compare;
use super::conflict::{Conflict, Conflicts};
use super::manager::{Identity, Operation, validate_name};
use super::managers::{self, Entry, ManagedFieldsError, Managers};
use super::prune::prune;
use super::set::FieldSet;
use super::typed::{TypedError, set_of};
use super::update::record;
use super::{Write, last_applied, merge, unowned_fields, validate};
use crate::status::FieldError;

/// The manager of the fields that an object had before anybody applied it.
const BEFORE: &str = "before-first-apply";

/// What an apply makes of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// The object, with its entries in `metadata.managedFields`. Defaults are not filled in.
    pub object: Value,
    /// Whether it differs from the live one in anything but the times of entries.
    pub changed: bool,
}

/// Why an apply fails.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The manager's name: 422, `PatchOptions.meta.k8s.io "" is invalid`.
    #[error("the field manager is invalid")]
    Manager(Vec<FieldError>),
    /// The configuration has entries of its own: 400.
    #[error("metadata.managedFields must be nil")]
    ManagedFields,
    /// The configuration is of another version than the request: 400.
    #[error(
        "Incorrect version specified in apply patch. Specified patch version: {found}, expected: {expected}"
    )]
    Version {
        /// The configuration's.
        found: String,
        /// The request's.
        expected: String,
    },
    /// The live object's entries are broken: 500.
    #[error("failed to decode managed fields")]
    Entries(#[source] ManagedFieldsError),
    /// The configuration does not fit the schema: 500, as kube-apiserver has it.
    #[error("failed to create typed patch object ({object}): {}", join(.errors))]
    Typed {
        /// `default/web; apps/v1, Kind=Deployment`
        object: String,
        /// All mistakes.
        errors: Vec<TypedError>,
    },
    /// Items of the live object or of the result cannot be told apart: 500.
    #[error("failed to merge config: {0}")]
    Merge(TypedError),
    /// Others own what it would change: 409, with the causes of [`Conflicts::causes`].
    #[error("{0}")]
    Conflicts(Conflicts),
}

impl ApplyError {
    /// The code of the answer.
    pub fn code(&self) -> u16 {
        match self {
            Self::Manager(_) => 422,
            Self::ManagedFields | Self::Version { .. } => 400,
            Self::Entries(_) | Self::Typed { .. } | Self::Merge(_) => 500,
            Self::Conflicts(_) => 409,
        }
    }
}

fn join(errors: &[TypedError]) -> String {
    match errors {
        [one] => one.to_string(),
        many => many
            .iter()
            .fold("errors:".to_owned(), |text, err| format!("{text}\n  {err}")),
    }
}

/// Applies `config` to the live object, or creates it.
///
/// The client then owns exactly what the configuration has. What it owned before, and nobody else does, goes. Fields that
/// others own keep their values, or the apply fails with [`ApplyError::Conflicts`]; with `force` it takes them over.
///
/// Costs a copy of the object, one walk to merge, one to compare, and one of the configuration; all entries are parsed and
/// printed. Fields that are applied no longer cost three more copies, and each version of an entry one conversion.
///
/// # Errors
///
/// In kube-apiserver's words; see [`ApplyError`].
pub fn applied(
    write: &Write<'_>,
    live: Option<&Value>,
    config: &Value,
    force: bool,
) -> Result<Applied, ApplyError> {
    let mistakes = validate_name(&write.manager.name, true);
    if !mistakes.is_empty() {
        return Err(ApplyError::Manager(mistakes));
    }
    let version = config
        .get("apiVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if version != write.manager.api_version {
        let (found, expected) = (version.to_owned(), write.manager.api_version.clone());
        return Err(ApplyError::Version { found, expected });
    }
    if managers::of(config).is_some() {
        return Err(ApplyError::ManagedFields);
    }
    validate(write.schema, config).map_err(|errors| ApplyError::Typed {
        object: describe(config),
        errors,
    })?;
    let managers = owners(write, live)?;
    let applied = attempt(write, live, config, &managers, force);
    match (applied, live) {
        (Err(ApplyError::Conflicts(conflicts)), Some(live))
            if write.manager.name == last_applied::KUBECTL =>
        {
            let Some(allowed) = last_applied::owned(write, live) else {
                return Err(ApplyError::Conflicts(conflicts));
            };
            let remaining = |conflict: &Conflict| !allowed.contains(&conflict.path);
            let conflicts: Vec<Conflict> = conflicts.0.into_iter().filter(remaining).collect();
            if conflicts.is_empty() {
                attempt(write, Some(live), config, &managers, true)
            } else {
                Err(ApplyError::Conflicts(Conflicts(conflicts)))
            }
        }
        (applied, _) => applied,
    }
}

fn describe(object: &Value) -> String {
    let text = |path: &str| {
        object
            .pointer(path)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
    format!(
        "{namespace}/{name}; {}, Kind={}",
        text("/apiVersion"),
        text("/kind")
    )
}

/// The entries of the live object. If it has none, all that it has belongs to [`BEFORE`].
fn owners(write: &Write<'_>, live: Option<&Value>) -> Result<Managers, ApplyError> {
    let Some(live) = live else {
        return Ok(Managers::default());
    };
    let list = managers::of(live).map(Managers::parse).transpose();
    let mut managers = list.map_err(ApplyError::Entries)?.unwrap_or_default();
    if managers.entries.is_empty() {
        let changes = compare(write.schema, None, live).map_err(ApplyError::Merge)?;
        record(
            write,
            &mut managers,
            BEFORE,
            None,
            live,
            &changes.without(write.reset),
        )
        .map_err(ApplyError::Merge)?;
    }
    Ok(managers)
}

fn attempt(
    write: &Write<'_>,
    live: Option<&Value>,
    config: &Value,
    present: &Managers,
    force: bool,
) -> Result<Applied, ApplyError> {
    let mut managers = present.clone();
    let identity = Identity::new(write.manager, Operation::Apply, write.subresource);
    let nothing = Value::Object(Map::new());
    let merged =
        merge(write.schema, live.unwrap_or(&nothing), config).map_err(ApplyError::Merge)?;
    let set = set_of(write.schema, config).map_err(ApplyError::Merge)?;
    let set = set.recursive_difference(write.reset);
    let api_version = write.manager.api_version.clone();
    let last = managers.entries.remove(&identity);
    let entry = Entry {
        api_version,
        time: last.as_ref().and_then(|last| last.time.clone()),
        set,
    };
    managers.entries.insert(identity.clone(), entry);
    let mut object = match &last {
        Some(last) => prune(write, merged, &managers, last).map_err(ApplyError::Merge)?,
        None => merged,
    };

    let changes = compare(write.schema, live, &object).map_err(ApplyError::Merge)?;
    let claims = Claims::of(
        write,
        &mut managers,
        Some(&identity),
        live,
        &object,
        &changes.without(write.reset),
    )
    .map_err(ApplyError::Merge)?;
    if !force && !claims.taken.is_empty() {
        let of = |(owner, fields): &(Identity, FieldSet)| -> Vec<Conflict> {
            let conflict = |path| Conflict {
                owner: owner.clone(),
                path,
            };
            fields.paths().into_iter().map(conflict).collect()
        };
        return Err(ApplyError::Conflicts(Conflicts(
            claims.taken.iter().flat_map(of).collect(),
        )));
    }
    claims.settle(&mut managers);
    let rewritten = live != Some(&object);
    if let Some(entry) = managers.entries.get_mut(&identity) {
        entry.set = entry.set.difference(unowned_fields());
        if rewritten || last.is_none() {
            entry.time = Some(write.now.to_owned());
        }
    }
    managers.drop_empty();
    if write.manager.name == last_applied::KUBECTL {
        last_applied::refresh(&mut object, config);
    }
    let is_tracked = live
        .and_then(managers::of)
        .and_then(Value::as_array)
        .is_some_and(|list| !list.is_empty());
    let changed = live != Some(&object) || !is_tracked || !managers.is_same_but_times(present);
    if changed {
        if object.get("metadata").is_none()
            && let Some(fields) = object.as_object_mut()
        {
            fields.insert("metadata".to_owned(), Value::Object(Map::new()));
        }
        managers::put(&mut object, managers.to_value());
    }
    Ok(Applied { object, changed })
}
