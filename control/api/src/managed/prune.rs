//! What goes from an object because its applier does not apply it any more.
//!
//! Source: structured-merge-diff, `merge/update.go`, `prune`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::check::{reconcile, with_named};
use super::manager::{Identity, Operation};
use super::managers::{Entry, Managers};
use super::set::FieldSet;
use super::typed::{TypedError, set_of};
use super::{Write, remove};
use crate::schema::Schema;

/// An object in one of its versions.
struct Versioned {
    version: String,
    object: Value,
    schema: Option<Schema>,
}

impl Versioned {
    /// The same object in another version, if the server serves that.
    fn to(&self, write: &Write<'_>, version: &str) -> Option<Self> {
        let (object, schema) = if version == self.version {
            (self.object.clone(), self.schema.clone())
        } else {
            let converted = (write.convert)(&self.object, version)?;
            let is_current = version == write.manager.api_version;
            let schema = if is_current {
                write.schema.cloned()
            } else {
                converted.schema
            };
            (converted.object, schema)
        };
        Some(Self {
            version: version.to_owned(),
            object,
            schema,
        })
    }

    /// Its fields, with the structs around them.
    fn fields(&self) -> Result<FieldSet, TypedError> {
        set_of(self.schema.as_ref(), &self.object).map(|set| with_named(self.schema.as_ref(), set))
    }

    fn without(&self, fields: &FieldSet) -> Self {
        let mut object = self.object.clone();
        remove(self.schema.as_ref(), &mut object, fields);
        Self {
            object,
            version: self.version.clone(),
            schema: self.schema.clone(),
        }
    }
}

/// Takes out of the merged object what the client applied the last time, does not apply now, and nobody else owns.
///
/// Removing an item removes what is inside it; what others own inside comes back, and with it the item.
pub fn prune(
    write: &Write<'_>,
    merged: Value,
    managers: &Managers,
    last: &Entry,
) -> Result<Value, TypedError> {
    let current = &write.manager.api_version;
    let applied_now = |entry: &Entry| {
        entry.api_version == last.api_version && last.set.difference(&entry.set).is_empty()
    };
    let identity = Identity::new(write.manager, Operation::Apply, write.subresource);
    if last.set.is_empty() || managers.entries.get(&identity).is_some_and(applied_now) {
        return Ok(merged);
    }
    let merged = Versioned {
        version: current.clone(),
        object: merged,
        schema: write.schema.cloned(),
    };
    let Some(whole) = merged.to(write, &last.api_version) else {
        return Ok(merged.object);
    };
    let mut last_set = last.set.clone();
    reconcile(whole.schema.as_ref(), &mut last_set);
    let last_set = with_named(whole.schema.as_ref(), last_set);
    let mut pruned = whole.without(&last_set);

    let mut managed: BTreeMap<&str, FieldSet> = BTreeMap::new();
    for entry in managers.entries.values() {
        let of_version = managed.entry(&entry.api_version).or_default();
        *of_version = of_version.union(&entry.set);
    }
    // The last version first: what is missing there may be needed to convert.
    let mut versions: Vec<(&str, FieldSet)> = managed.into_iter().collect();
    versions.sort_by_key(|(version, _)| *version != last.api_version);
    for (version, mut managed) in versions {
        let (Some(whole), Some(part)) = (whole.to(write, version), pruned.to(write, version))
        else {
            continue;
        };
        reconcile(whole.schema.as_ref(), &mut managed);
        let kept = part
            .fields()?
            .union(&with_named(whole.schema.as_ref(), managed));
        pruned = whole.without(&whole.fields()?.difference(&kept));
    }

    // Whatever else went along, unowned or owned by updates, comes back too.
    let Some(part) = pruned.to(write, &last.api_version) else {
        return Ok(merged.object);
    };
    let gone = whole
        .fields()?
        .difference(&part.fields()?)
        .intersection(&last_set);
    let result = whole.without(&gone).to(write, current);
    Ok(result.map_or(merged.object, |result| result.object))
}
