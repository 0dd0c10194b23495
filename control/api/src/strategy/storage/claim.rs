//! Claims to persistent volumes.

use serde_json::{Value, json};

use super::{
    CLASS_ANNOTATION, access_modes, annotation_warning, class_name, modes_text, nano, or_unset,
    phase,
};
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, text};
use crate::strategy::fields::{anything, changes, required_text};
use crate::strategy::validation::{Errors, dns_label, label_selector, subdomain};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Claims to persistent volumes.
pub struct PersistentVolumeClaim;

const ATTRIBUTES: &str = "volumeAttributesClassName";

/// Mistakes in the spec of a claim, which templates share.
pub(in crate::strategy) fn validate_spec(errors: &mut Errors, at: &str, spec: &Value) {
    let path = |field: &str| format!("{at}.{field}");
    let detail = "at least 1 access mode is required";
    if spec["accessModes"].as_array().is_none_or(Vec::is_empty) {
        errors.required(path("accessModes"), detail);
    }
    label_selector(errors, &path("selector"), &spec["selector"]);
    if spec["accessModes"]
        .as_array()
        .is_some_and(|modes| !modes.is_empty())
    {
        access_modes(errors, &path("accessModes"), &spec["accessModes"], detail);
    }
    let storage = &spec["resources"]["requests"]["storage"];
    if storage.is_null() {
        errors.required(path("resources[storage]"), "");
    } else if nano(storage) <= 0 {
        errors.add(
            path("resources[storage]"),
            storage,
            "must be greater than zero",
        );
    }
    for class in ["storageClassName", ATTRIBUTES] {
        let name = text(&spec[class]);
        if !name.is_empty() {
            errors.invalid(&path(class), name, subdomain(name));
        }
    }
    if !spec["volumeMode"].is_null() {
        errors.one_of(
            path("volumeMode"),
            &spec["volumeMode"],
            &["Block", "Filesystem"],
        );
    }
    for field in ["dataSource", "dataSourceRef"] {
        data_source(errors, &path(field), &spec[field]);
    }
    let (source, reference) = (&spec["dataSource"], &spec["dataSourceRef"]);
    let namespaced = !text(&reference["namespace"]).is_empty();
    let detail = match (source.is_null(), reference.is_null()) {
        (false, false) if namespaced => {
            "may not be specified when dataSourceRef.namespace is specified"
        }
        (false, false)
            if ["apiGroup", "kind", "name"]
                .iter()
                .any(|f| source[*f] != reference[*f]) =>
        {
            "must match dataSourceRef"
        }
        _ => return,
    };
    errors.add(at, &path("dataSource").into(), detail);
}

fn data_source(errors: &mut Errors, at: &str, source: &Value) {
    if source.is_null() {
        return;
    }
    for field in ["name", "kind"] {
        required_text(errors, &format!("{at}.{field}"), &source[field], anything);
    }
    let (group, namespace) = (text(&source["apiGroup"]), text(&source["namespace"]));
    if group.is_empty() && source["kind"] != "PersistentVolumeClaim" {
        let detail = "must be 'PersistentVolumeClaim' when referencing the default apiGroup";
        errors.add(at, &text(&source["kind"]).into(), detail);
    } else if !group.is_empty() {
        errors.invalid(&format!("{at}.apiGroup"), group, subdomain(group));
    }
    if !namespace.is_empty() {
        errors.invalid(&format!("{at}.namespace"), namespace, dns_label(namespace));
    }
}

/// Fills `dataSource` from `dataSourceRef` or the other way round, as far as both can say the same.
///
/// `dataSource` alone may only name a claim or a snapshot; anything else is dropped, as it always was.
fn normalize(spec: &mut Value, had_source: bool) {
    if let Some(reference) = spec["dataSourceRef"].as_object_mut() {
        // Sources in other namespaces are an alpha feature.
        reference.remove("namespace");
    }
    let (source, reference) = (&spec["dataSource"], &spec["dataSourceRef"]);
    if !source.is_null() && reference.is_null() {
        let known = matches!(
            (text(&source["apiGroup"]), text(&source["kind"])),
            ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
        );
        if known || had_source {
            spec["dataSourceRef"] = source.clone();
        }
    } else if source.is_null() && !reference.is_null() {
        spec["dataSource"] = reference.clone();
        return;
    }
    if let Some(fields) = spec.as_object_mut() {
        fields.retain(|name, value| {
            !(matches!(name.as_str(), "dataSource" | "dataSourceRef") && value.is_null())
        });
        if !fields.contains_key("dataSourceRef") {
            fields.remove("dataSource");
        }
    }
}

/// The spec as it may be compared with the old one: with the old values of all that may change.
fn comparable(object: &Value, old: &Value) -> Value {
    let mut spec = object["spec"].clone();
    let before = &old["spec"];
    let mut take = |field: &str| common::keep(&mut spec, before, field);
    take(ATTRIBUTES);
    if text(&before["volumeName"]).is_empty() {
        take("volumeName");
    }
    // The class may be filled in later, if it is the one that the annotation names.
    let annotated = old["metadata"]["annotations"].get(CLASS_ANNOTATION);
    let class = &object["spec"]["storageClassName"];
    if before["storageClassName"].is_null() && annotated.is_none_or(|annotated| annotated == class)
    {
        take("storageClassName");
    }
    if object["status"]["phase"] == "Bound"
        && before["resources"]["requests"]["storage"].is_string()
    {
        spec["resources"]["requests"]["storage"] =
            before["resources"]["requests"]["storage"].clone();
    }
    spec
}

impl Strategy for PersistentVolumeClaim {
    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        object["status"] = json!({ "phase": "Pending" });
        if object["spec"].is_object() {
            normalize(&mut object["spec"], false);
        }
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        common::split_update(sub, object, old, false);
        if sub != Some(Subresource::Status) && object["spec"].is_object() {
            normalize(&mut object["spec"], !old["spec"]["dataSource"].is_null());
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        validate_spec(&mut errors, "spec", &object["spec"]);
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        if sub == Some(Subresource::Status) {
            return validate_status(object);
        }
        let mut errors = Errors(self.validate(object));
        let (spec, before) = (&object["spec"], &old["spec"]);
        let compared = comparable(object, old);
        if compared != *before {
            let detail = format!(
                "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n{}",
                changes(before, &compared)
            );
            errors.0.push(FieldError::forbidden("spec", &detail));
        }
        let size = |spec: &Value| nano(&spec["resources"]["requests"]["storage"]);
        if size(spec) < size(before) && size(spec) <= nano(&old["status"]["capacity"]["storage"]) {
            let detail = "field can not be less than status.capacity";
            errors.0.push(FieldError::forbidden(
                "spec.resources.requests.storage",
                detail,
            ));
        }
        errors.immutable("volumeMode", &spec["volumeMode"], &before["volumeMode"]);
        let lost = match spec[ATTRIBUTES].as_str() {
            None => Some("update from non-nil value to nil is forbidden"),
            Some("") => Some("update from non-nil value to an empty string is forbidden"),
            Some(_) => None,
        };
        if let Some(detail) =
            lost.filter(|_| !before[ATTRIBUTES].is_null() && before[ATTRIBUTES] != spec[ATTRIBUTES])
        {
            errors
                .0
                .push(FieldError::forbidden(format!("spec.{ATTRIBUTES}"), detail));
        }
        errors.0
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::from_iter(annotation_warning(object));
        let storage = &object["spec"]["resources"]["requests"]["storage"];
        if nano(storage) % 1_000_000_000 != 0 {
            warnings.push(format!(
                "spec.resources.requests[storage]: fractional byte value {storage} is invalid, must be an integer"
            ));
        }
        warnings
    }

    fn columns(&self) -> Vec<Column> {
        table::columns(
            "Name Status Volume Capacity Access_Modes StorageClass VolumeAttributesClass Age VolumeMode*",
        )
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let volume = text(&spec["volumeName"]);
        let (capacity, modes) = if volume.is_empty() {
            ("", String::new())
        } else {
            (
                status["capacity"]["storage"].as_str().unwrap_or("0"),
                modes_text(&status["accessModes"]),
            )
        };
        vec![
            table::name(object),
            phase(object).into(),
            volume.into(),
            capacity.into(),
            modes.into(),
            class_name(object).into(),
            or_unset(&spec[ATTRIBUTES]).into(),
            table::age(object, now),
            or_unset(&spec["volumeMode"]).into(),
        ]
    }
}

fn validate_status(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    for list in ["capacity", "allocatedResources"] {
        for (name, amount) in object["status"][list].as_object().into_iter().flatten() {
            if nano(amount) < 0 {
                errors.add(
                    format!("status.{list}[{name}]"),
                    amount,
                    "must be a valid resource quantity",
                );
            }
        }
    }
    errors.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::fields::tests::{check_new, check_update, shown};

    fn claim() -> Value {
        json!({ "metadata": { "name": "data" }, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "2Gi" } },
            "storageClassName": "fast", "volumeMode": "Filesystem" }, "status": { "phase": "Pending" } })
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_claim_asks_for_a_size_and_access_modes() {
        check_new(&PersistentVolumeClaim, &claim(), &[
            ("/spec/accessModes", Value::Null, &["spec.accessModes: Required value: at least 1 access mode is required"]),
            ("/spec/accessModes", json!(["ReadOnlyMany", "ReadWriteOncePod"]), &["spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes"]),
            ("/spec/resources", Value::Null, &["spec.resources[storage]: Required value"]),
            ("/spec/resources/requests/storage", json!("-1"), &["spec.resources[storage]: Invalid value: \"-1\": must be greater than zero"]),
            ("/spec/volumeMode", json!("Tape"), &["spec.volumeMode: Unsupported value: \"Tape\": supported values: \"Block\", \"Filesystem\""]),
            ("/spec/dataSource", json!({ "kind": "Tape", "name": "a" }), &["spec.dataSource: Invalid value: \"Tape\": must be 'PersistentVolumeClaim' when referencing the default apiGroup"]),
            ("/spec/dataSourceRef", json!({ "apiGroup": "example.com", "kind": "Tape" }), &["spec.dataSourceRef.name: Required value"]),
        ]);
    }

    #[test]
    #[rustfmt::skip] // One change a line.
    fn a_claim_stays_but_for_its_size_and_volume() {
        let fixed = "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n";
        check_update(&PersistentVolumeClaim, &claim(), &[
            ("/spec/volumeName", json!("pv"), &[]),
            ("/spec/volumeAttributesClassName", json!("gold"), &[]),
            ("/spec/storageClassName", json!("slow"), &[&format!("{fixed}- storageClassName: \"fast\"\n+ storageClassName: \"slow\"\n")]),
            ("/spec/resources/requests/storage", json!("3Gi"), &[&format!("{fixed}- resources: {{\"requests\":{{\"storage\":\"2Gi\"}}}}\n+ resources: {{\"requests\":{{\"storage\":\"3Gi\"}}}}\n")]),
        ]);
        let mut bound = claim();
        bound["spec"]["volumeName"] = "pv".into();
        bound["spec"]["volumeAttributesClassName"] = "gold".into();
        bound["status"] = json!({ "phase": "Bound", "capacity": { "storage": "1Gi" } });
        check_update(&PersistentVolumeClaim, &bound, &[
            ("/spec/resources/requests/storage", json!("3Gi"), &[]),
            ("/spec/resources/requests/storage", json!("1536Mi"), &[]),
            ("/spec/resources/requests/storage", json!("1Gi"), &["spec.resources.requests.storage: Forbidden: field can not be less than status.capacity"]),
            ("/spec/volumeName", json!("other"), &[&format!("{fixed}- volumeName: \"pv\"\n+ volumeName: \"other\"\n")]),
            ("/spec/volumeAttributesClassName", json!(""), &["spec.volumeAttributesClassName: Forbidden: update from non-nil value to an empty string is forbidden"]),
            ("/spec/volumeAttributesClassName", Value::Null, &["spec.volumeAttributesClassName: Forbidden: update from non-nil value to nil is forbidden"]),
        ]);
    }

    #[test]
    fn the_class_may_be_filled_in_later() {
        let mut old = claim();
        old["spec"]
            .as_object_mut()
            .unwrap()
            .remove("storageClassName");
        let errors = PersistentVolumeClaim.validate_update(None, &claim(), &old);
        assert_eq!(shown(&errors), [""; 0]);
    }

    #[test]
    fn both_data_sources_say_the_same() {
        let source = json!({ "kind": "PersistentVolumeClaim", "name": "a" });
        let strange = json!({ "apiGroup": "example.com", "kind": "Tape", "name": "a" });
        for (given, wanted) in [
            (
                json!({ "dataSource": source }),
                json!({ "dataSource": source, "dataSourceRef": source }),
            ),
            (
                json!({ "dataSourceRef": strange }),
                json!({ "dataSource": strange, "dataSourceRef": strange }),
            ),
            (json!({ "dataSource": strange }), json!({})),
            (json!({}), json!({})),
        ] {
            let mut claim = json!({ "spec": given });
            PersistentVolumeClaim.prepare_for_create(&Context::component("test"), &mut claim);
            assert_eq!(claim["spec"], wanted);
        }
    }
}
