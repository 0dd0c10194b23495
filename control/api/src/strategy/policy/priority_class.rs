//! Priority classes.

use serde_json::Value;

use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, text};
use crate::strategy::validation::Errors;
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Priority classes. What one is worth never changes: pods have it in their specs.
pub struct PriorityClass;

/// The highest priority of a class that is not Kubernetes' own.
const HIGHEST: i64 = 1_000_000_000;
const SYSTEM_PREFIX: &str = "system-";
/// Kubernetes' own classes with their priorities.
const SYSTEM: [(&str, i64); 2] = [
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];

/// Why a class with the prefix of Kubernetes' own is none of them.
fn is_no_system_class(object: &Value) -> Option<String> {
    let name = text(&object["metadata"]["name"]);
    let value = object["value"].as_i64().unwrap_or(0);
    match SYSTEM.iter().find(|(system, _)| *system == name) {
        None => Some(format!("{name} is not a known system priority class")),
        Some((_, known)) if *known != value => {
            Some(format!("value of {name} PriorityClass must be {known}"))
        }
        Some(_) if object["globalDefault"] == true => Some(format!(
            "globalDefault of {name} PriorityClass must be false"
        )),
        Some(_) => None,
    }
}

impl Strategy for PriorityClass {
    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        common::first_generation(object);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if text(&object["metadata"]["name"]).starts_with(SYSTEM_PREFIX) {
            if let Some(wrong) = is_no_system_class(object) {
                let detail = format!(
                    "priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use only. error: {wrong}"
                );
                errors
                    .0
                    .push(FieldError::forbidden("metadata.name", &detail));
            }
        } else if object["value"]
            .as_i64()
            .is_some_and(|value| value > HIGHEST)
        {
            let detail = format!("maximum allowed value of a user defined priority is {HIGHEST}");
            errors.0.push(FieldError::forbidden("value", &detail));
        }
        match &object["preemptionPolicy"] {
            Value::Null => {}
            Value::String(policy) if policy.is_empty() => errors.required("preemptionPolicy", ""),
            policy => {
                let known = ["PreemptLowerPriority", "Never"];
                errors.one_of("preemptionPolicy", policy, &known);
            }
        }
        errors.0
    }

    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let value = |object: &Value| object["value"].as_i64().unwrap_or(0);
        if value(object) != value(old) {
            let error = FieldError::forbidden("value", "may not be changed in an update.");
            errors.0.push(error);
        }
        let field = "preemptionPolicy";
        errors.immutable(field, &object[field], &old[field]);
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        let mut columns = table::columns("Name Value# Global-Default Age PreemptionPolicy*");
        columns[2].kind = "boolean".to_owned();
        columns
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        vec![
            table::name(object),
            object["value"].as_i64().unwrap_or(0).into(),
            (object["globalDefault"] == true).into(),
            table::age(object, now),
            text(&object["preemptionPolicy"]).into(),
        ]
    }
}
