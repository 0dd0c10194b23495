//! Devices: what nodes offer (slices), classes of them, and claims (KEP-4381).
//!
//! The CEL expressions of selectors are stored as they are: nothing compiles them here.

mod claim;
mod offered;
mod slice;
mod status;

use serde_json::Value;

pub use claim::{ResourceClaim, ResourceClaimTemplate};
pub use slice::ResourceSlice;

use super::common::{self, text};
use super::fields::{Check, count, driver_name, raise_generation};
use super::validation::{Errors, items, label_value, qualified_name};
use super::{Context, Strategy};
use crate::resource::Subresource;
use crate::status::FieldError;

/// Classes of devices.
pub struct DeviceClass;

/// How many items most lists may have, and how long expressions and parameters may be.
const MOST: usize = 32;
const LONGEST: usize = 10 * 1024;

/// Refuses a list with more than `most` items.
fn size(errors: &mut Errors, at: &str, list: &Value, most: usize) {
    if count(list) > most {
        errors.0.push(FieldError::too_many(at, count(list), most));
    }
}

/// Refuses items of a list that have the same key.
fn unique(errors: &mut Errors, at: &str, list: &Value, key: &str) {
    for (index, item) in items(list) {
        if items(list)
            .take(index)
            .any(|(_, other)| other[key] == item[key])
        {
            let at = format!("{at}[{index}]");
            errors.0.push(FieldError::duplicate(at, &item[key]));
        }
    }
}

/// Mistakes in selectors: each must have an expression in CEL.
fn selectors(errors: &mut Errors, at: &str, list: &Value) {
    size(errors, at, list, MOST);
    for (index, selector) in items(list) {
        let at = format!("{at}[{index}].cel");
        let expression = &selector["cel"]["expression"];
        if selector["cel"].is_null() {
            errors.required(at, "");
        } else if text(expression).len() > LONGEST {
            errors.0.push(FieldError::too_long(
                format!("{at}.expression"),
                LONGEST,
                "bytes",
            ));
        }
    }
}

/// Mistakes in configuration that only a driver understands.
fn configuration(errors: &mut Errors, at: &str, configuration: &Value) {
    let (at, opaque) = (format!("{at}.opaque"), &configuration["opaque"]);
    if opaque.is_null() {
        return errors.required(at, "");
    }
    driver_name(errors, &format!("{at}.driver"), &opaque["driver"]);
    let (at, parameters) = (format!("{at}.parameters"), &opaque["parameters"]);
    if parameters.is_null() {
        errors.required(at, "");
    } else if !parameters.is_object() {
        errors.add(at, &"<value omitted>".into(), "must be a valid JSON object");
    } else if parameters.to_string().len() > LONGEST {
        errors.0.push(FieldError::too_long(at, LONGEST, "bytes"));
    }
}

/// Mistakes in a key, value and effect, as taints and tolerations have them.
fn key_and_value(errors: &mut Errors, at: &str, object: &Value) {
    for (field, check) in [
        ("key", qualified_name as Check),
        ("value", label_value as Check),
    ] {
        let value = text(&object[field]);
        if !value.is_empty() {
            errors.invalid(&format!("{at}.{field}"), value, check(value));
        }
    }
}

impl Strategy for DeviceClass {
    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        common::first_generation(object);
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        _: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        let changed = object["spec"] != old["spec"];
        raise_generation(object, old, changed);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &object["spec"];
        selectors(&mut errors, "spec.selectors", &spec["selectors"]);
        size(&mut errors, "spec.config", &spec["config"], MOST);
        for (index, value) in items(&spec["config"]) {
            configuration(&mut errors, &format!("spec.config[{index}]"), value);
        }
        let name = &spec["extendedResourceName"];
        if !name.is_null() && !is_extended(text(name)) {
            errors.add(
                "spec.extendedResourceName",
                name,
                "must be a valid extended resource name",
            );
        }
        errors.0
    }
}

/// Whether a resource is one that Kubernetes does not know itself: `example.com/gpu`.
fn is_extended(name: &str) -> bool {
    let quota = format!("requests.{name}");
    name.split_once('/').is_some_and(|(domain, _)| {
        domain != "kubernetes.io"
            && !domain.ends_with(".kubernetes.io")
            && !name.starts_with("requests.")
    }) && qualified_name(&quota).is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::strategy::fields::tests::check_new;

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_class_selects_and_configures_devices() {
        let good = json!({ "spec": { "selectors": [{ "cel": { "expression": "true" } }],
            "config": [{ "opaque": { "driver": "gpu.example.com", "parameters": { "a": 1 } } }], "extendedResourceName": "example.com/gpu" } });
        check_new(&DeviceClass, &good, &[
            ("/spec/selectors", json!([{}]), &["spec.selectors[0].cel: Required value"]),
            ("/spec/selectors/0/cel/expression", "a".repeat(10241).into(), &["spec.selectors[0].cel.expression: Too long: may not be more than 10240 bytes"]),
            ("/spec/config", json!([{}]), &["spec.config[0].opaque: Required value"]),
            ("/spec/config/0/opaque/driver", Value::Null, &["spec.config[0].opaque.driver: Required value"]),
            ("/spec/config/0/opaque/parameters", json!(1), &["spec.config[0].opaque.parameters: Invalid value: \"<value omitted>\": must be a valid JSON object"]),
            ("/spec/extendedResourceName", json!("cpu"), &["spec.extendedResourceName: Invalid value: \"cpu\": must be a valid extended resource name"]),
        ]);
    }
}
