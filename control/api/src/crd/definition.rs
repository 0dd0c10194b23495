//! What is special about CustomResourceDefinition.
//!
//! Source: apiextensions-apiserver, `registry/customresourcedefinition/strategy.go` and
//! `apis/apiextensions/v1/defaults.go`.

use serde_json::{Value, json};

use super::{names, spec};
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, text};
use crate::strategy::validation::{Errors, items};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Keeps a definition until its objects are gone.
pub const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// The kind CustomResourceDefinition.
pub struct CustomResourceDefinition;

/// The name of the version in which objects are stored.
pub fn storage_version(crd: &Value) -> Option<&str> {
    items(&crd["spec"]["versions"])
        .map(|(_, version)| version)
        .find(|version| version["storage"] == true)
        .and_then(|version| version["name"].as_str())
}

/// Lists the storage version among those in which objects may be stored.
fn store(crd: &mut Value) {
    let Some(name) = storage_version(crd).map(str::to_owned) else {
        return;
    };
    let stored = &mut crd["status"]["storedVersions"];
    if !stored.is_array() {
        *stored = json!([]);
    }
    let list = stored.as_array_mut().expect("it was just made one");
    if !list.iter().any(|version| *version == name) {
        list.push(name.into());
    }
}

impl Strategy for CustomResourceDefinition {
    fn has_plain_finalizers(&self) -> bool {
        true
    }

    fn default(&self, crd: &mut Value) {
        if !crd["spec"].is_object() {
            return;
        }
        let names = &crd["spec"]["names"];
        let kind = text(&names["kind"]).to_owned();
        for (field, value) in [
            ("singular", kind.to_lowercase()),
            ("listKind", format!("{kind}List")),
        ] {
            if !kind.is_empty() && text(&crd["spec"]["names"][field]).is_empty() {
                crd["spec"]["names"][field] = value.into();
            }
        }
        let conversion = &mut crd["spec"]["conversion"];
        if conversion.is_null() {
            *conversion = json!({ "strategy": "None" });
        }
        let service = conversion.pointer_mut("/webhook/clientConfig/service");
        if let Some(service) = service.and_then(Value::as_object_mut) {
            service.entry("port").or_insert_with(|| 443.into());
        }
    }

    fn prepare_for_create(&self, _: &Context, crd: &mut Value) {
        crd["status"] = json!({ "acceptedNames": { "kind": "", "plural": "" }, "conditions": [] });
        store(crd);
        common::first_generation(crd);
        let finalizers = &mut crd["metadata"]["finalizers"];
        if !finalizers.is_array() {
            *finalizers = json!([]);
        }
        let list = finalizers.as_array_mut().expect("it was just made one");
        if !list.iter().any(|name| name == CLEANUP_FINALIZER) {
            list.push(CLEANUP_FINALIZER.into());
        }
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        subresource: Option<Subresource>,
        crd: &mut Value,
        old: &Value,
    ) {
        common::split_update(subresource, crd, old, true);
        if subresource.is_none() {
            store(crd);
        }
    }

    fn validate(&self, crd: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &crd["spec"];
        let name = text(&crd["metadata"]["name"]);
        let wanted = format!(
            "{}.{}",
            text(&spec["names"]["plural"]),
            text(&spec["group"])
        );
        if name != wanted {
            let detail = "must be spec.names.plural+\".\"+spec.group";
            errors.add("metadata.name", &name.into(), detail);
        }
        spec::check(spec, &mut errors);
        check_status(crd, &mut errors);
        stored_versions(crd, &mut errors);
        spec::check_approval(crd, &mut errors);
        errors.0
    }

    fn validate_update(
        &self,
        subresource: Option<Subresource>,
        crd: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        if subresource == Some(Subresource::Status) {
            let mut errors = Errors::default();
            check_status(crd, &mut errors);
            return errors.0;
        }
        let mut errors = Errors(self.validate(crd));
        let (new, old_spec) = (&crd["spec"], &old["spec"]);
        if names::is_established(old) {
            errors.immutable("spec.scope", &new["scope"], &old_spec["scope"]);
            let kind = |spec: &Value| spec["names"]["kind"].clone();
            errors.immutable("spec.names.kind", &kind(new), &kind(old_spec));
        }
        errors.immutable("spec.group", &new["group"], &old_spec["group"]);
        let plural = |spec: &Value| spec["names"]["plural"].clone();
        errors.immutable("spec.names.plural", &plural(new), &plural(old_spec));
        errors.0
    }

    fn warnings(&self, crd: &Value, old: Option<&Value>) -> Vec<String> {
        let known = old.map(spec::unknown_formats).unwrap_or_default();
        let mut formats = spec::unknown_formats(crd);
        formats.retain(|format| !known.contains(format));
        formats
            .iter()
            .map(|format| format!("unrecognized format {format:?}"))
            .collect()
    }

    fn require_resource_version(&self) -> bool {
        true
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns = table::columns("Name Group Scope Versions");
        columns.push(table::column("Created At", "date", 0));
        columns
    }

    fn cells(&self, crd: &Value, _: jiff::Timestamp) -> Vec<Value> {
        let spec = &crd["spec"];
        let versions: Vec<&str> = items(&spec["versions"])
            .map(|(_, version)| text(&version["name"]))
            .collect();
        vec![
            table::name(crd),
            text(&spec["group"]).into(),
            text(&spec["scope"]).into(),
            versions.join(",").into(),
            text(&crd["metadata"]["creationTimestamp"]).into(),
        ]
    }
}

fn check_status(crd: &Value, errors: &mut Errors) {
    let names = &crd["status"]["acceptedNames"];
    spec::check_names(names, "status.acceptedNames", errors);
}

fn stored_versions(crd: &Value, errors: &mut Errors) {
    const AT: &str = "status.storedVersions";
    let stored = &crd["status"]["storedVersions"];
    if stored.as_array().is_none_or(Vec::is_empty) {
        let list = json!([]);
        errors.add(AT, &list, "must have at least one stored version");
        return;
    }
    let has = |name: &str| items(stored).any(|(_, version)| version == name);
    if let Some(name) = storage_version(crd)
        && !has(name)
    {
        let detail = format!("must have the storage version {name}");
        errors.add(AT, stored, &detail);
    }
    for (index, version) in items(stored) {
        let name = text(version);
        let there = items(&crd["spec"]["versions"]).any(|(_, version)| version["name"] == name);
        if !there {
            let detail = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
            );
            errors.add(format!("{AT}[{index}]"), version, &detail);
        }
    }
}

#[cfg(test)]
mod tests;
