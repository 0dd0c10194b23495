//! Classes of storage, and of what volumes can be changed to.

use serde_json::Value;

use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::fields::{forbid_updates, required_text};
use crate::strategy::validation::{Errors, items, qualified_name};
use crate::strategy::{Column, Strategy};
use crate::table;

/// Classes of storage.
pub struct StorageClass;

/// Classes of what volumes can be changed to.
pub struct VolumeAttributesClass;

const DEFAULT_CLASS: &[&str] = &[
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];
const DEFAULT_ATTRIBUTES: &[&str] = &["volumeattributesclass.alpha.kubernetes.io/is-default-class"];

/// How many parameters a class may have, and how long they may be together.
const MOST_PARAMETERS: usize = 512;
const LONGEST_PARAMETERS: usize = 256 * 1024;

fn provisioner(errors: &mut Errors, at: &str, name: &Value) {
    required_text(errors, at, name, |name| {
        qualified_name(&name.to_lowercase())
    });
}

fn parameters(errors: &mut Errors, parameters: &Value, required: bool) {
    let at = "parameters";
    let list = || parameters.as_object().into_iter().flatten();
    if list().count() > MOST_PARAMETERS {
        return errors
            .0
            .push(FieldError::too_long(at, MOST_PARAMETERS, "bytes"));
    }
    for (key, _) in list().filter(|(key, _)| key.is_empty()) {
        errors.add(at, &key.as_str().into(), "field can not be empty.");
    }
    let size: usize = list()
        .map(|(key, value)| key.len() + text(value).len())
        .sum();
    if size > LONGEST_PARAMETERS {
        errors
            .0
            .push(FieldError::too_long(at, LONGEST_PARAMETERS, "bytes"));
    }
    if required && list().count() == 0 {
        errors.required(at, "must contain at least one key/value pair");
    }
}

/// The name in a table; the class that claims get which name none is marked.
fn marked_name(object: &Value, annotations: &[&str]) -> Value {
    let is_default = annotations
        .iter()
        .any(|name| object["metadata"]["annotations"][*name] == "true");
    let mark = if is_default { " (default)" } else { "" };
    format!("{}{mark}", text(&object["metadata"]["name"])).into()
}

fn topologies(errors: &mut Errors, list: &Value) {
    for (index, term) in items(list) {
        let at = format!("allowedTopologies[{index}].matchLabelExpressions");
        let expressions = &term["matchLabelExpressions"];
        for (number, requirement) in items(expressions) {
            let at = format!("{at}[{number}]");
            let values = &requirement["values"];
            if items(values).next().is_none() {
                errors.required(format!("{at}.values"), "");
            }
            for (place, value) in items(values) {
                if items(values).take(place).any(|(_, other)| other == value) {
                    errors.0.push(FieldError::duplicate(
                        format!("{at}.values[{place}]"),
                        value,
                    ));
                }
            }
            let key = text(&requirement["key"]);
            errors.invalid(&format!("{at}.key"), key, qualified_name(key));
            if items(expressions)
                .take(number)
                .any(|(_, other)| other["key"] == key)
            {
                errors
                    .0
                    .push(FieldError::duplicate(format!("{at}.key"), &key.into()));
            }
        }
        if items(list).take(index).any(|(_, other)| other == term) {
            errors.0.push(FieldError::duplicate(at, &"".into()));
        }
    }
}

impl Strategy for StorageClass {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        provisioner(&mut errors, "provisioner", &object["provisioner"]);
        parameters(&mut errors, &object["parameters"], false);
        if !text(&object["reclaimPolicy"]).is_empty() {
            errors.one_of(
                "reclaimPolicy",
                &object["reclaimPolicy"],
                &["Delete", "Retain"],
            );
        }
        match &object["volumeBindingMode"] {
            Value::Null => errors.required("volumeBindingMode", ""),
            mode => errors.one_of(
                "volumeBindingMode",
                mode,
                &["Immediate", "WaitForFirstConsumer"],
            ),
        }
        topologies(&mut errors, &object["allowedTopologies"]);
        errors.0
    }

    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors(self.validate(object));
        forbid_updates(
            &mut errors,
            object,
            old,
            &["parameters", "provisioner", "reclaimPolicy"],
        );
        let mode = "volumeBindingMode";
        errors.immutable(mode, &object[mode], &old[mode]);
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Provisioner ReclaimPolicy VolumeBindingMode AllowVolumeExpansion Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        vec![
            marked_name(object, DEFAULT_CLASS),
            text(&object["provisioner"]).into(),
            object["reclaimPolicy"].as_str().unwrap_or("Delete").into(),
            object["volumeBindingMode"]
                .as_str()
                .unwrap_or("Immediate")
                .into(),
            (object["allowVolumeExpansion"] == true).into(),
            table::age(object, now),
        ]
    }
}

impl Strategy for VolumeAttributesClass {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        provisioner(&mut errors, "driverName", &object["driverName"]);
        parameters(&mut errors, &object["parameters"], true);
        errors.0
    }

    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors::default();
        forbid_updates(&mut errors, object, old, &["driverName", "parameters"]);
        errors.0.extend(self.validate(object));
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name DriverName Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let name = marked_name(object, DEFAULT_ATTRIBUTES);
        vec![
            name,
            text(&object["driverName"]).into(),
            table::age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::strategy::fields::tests::{check_new, check_update};

    fn class() -> Value {
        json!({ "metadata": { "name": "fast" }, "provisioner": "Example.com/disks", "parameters": { "type": "ssd" },
            "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate" })
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_class_names_what_makes_its_volumes() {
        check_new(&StorageClass, &class(), &[
            ("/provisioner", Value::Null, &["provisioner: Required value"]),
            ("/provisioner", json!("/b"), &["provisioner: Invalid value: \"/b\": prefix part must be non-empty"]),
            ("/parameters", json!({ "": "a" }), &["parameters: Invalid value: \"\": field can not be empty."]),
            ("/parameters/long", "a".repeat(LONGEST_PARAMETERS).into(), &["parameters: Too long: may not be more than 262144 bytes"]),
            ("/reclaimPolicy", json!("Recycle"), &["reclaimPolicy: Unsupported value: \"Recycle\": supported values: \"Delete\", \"Retain\""]),
            ("/volumeBindingMode", json!("Late"), &["volumeBindingMode: Unsupported value: \"Late\": supported values: \"Immediate\", \"WaitForFirstConsumer\""]),
            ("/allowedTopologies", json!([{ "matchLabelExpressions": [{ "key": "zone", "values": ["a", "a"] }] }]), &["allowedTopologies[0].matchLabelExpressions[0].values[1]: Duplicate value: \"a\""]),
            ("/allowedTopologies", json!([{ "matchLabelExpressions": [{ "key": "zone" }] }]), &["allowedTopologies[0].matchLabelExpressions[0].values: Required value"]),
        ]);
        check_new(&VolumeAttributesClass, &json!({ "driverName": "example.com", "parameters": { "a": "b" } }), &[
            ("/driverName", Value::Null, &["driverName: Required value"]),
            ("/parameters", Value::Null, &["parameters: Required value: must contain at least one key/value pair"]),
        ]);
    }

    #[test]
    #[rustfmt::skip] // One change a line.
    fn a_class_stays_as_it_is() {
        check_update(&StorageClass, &class(), &[
            ("/allowVolumeExpansion", json!(true), &[]),
            ("/provisioner", json!("other"), &["provisioner: Forbidden: updates to provisioner are forbidden."]),
            ("/parameters/type", json!("hdd"), &["parameters: Forbidden: updates to parameters are forbidden."]),
            ("/reclaimPolicy", json!("Retain"), &["reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden."]),
            ("/volumeBindingMode", json!("WaitForFirstConsumer"), &["volumeBindingMode: Invalid value: \"WaitForFirstConsumer\": field is immutable"]),
        ]);
        check_update(&VolumeAttributesClass, &json!({ "driverName": "a", "parameters": { "a": "b" } }), &[
            ("/driverName", json!("b"), &["driverName: Forbidden: updates to driverName are forbidden."]),
            ("/parameters/a", json!("c"), &["parameters: Forbidden: updates to parameters are forbidden."]),
        ]);
    }

    #[test]
    fn the_default_class_is_marked() {
        let mut class = class();
        class["metadata"]["annotations"] = json!({ DEFAULT_CLASS[0]: "true" });
        assert_eq!(
            StorageClass.cells(&class, jiff::Timestamp::UNIX_EPOCH)[0],
            "fast (default)"
        );
    }
}
