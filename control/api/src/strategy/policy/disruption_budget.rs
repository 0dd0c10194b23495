//! Pod disruption budgets.

use serde_json::{Value, json};

use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, text};
use crate::strategy::validation::{Errors, items, label_selector, qualified_name};
use crate::strategy::workload::{at_most_all, int_or_percent};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Pod disruption budgets.
pub struct PodDisruptionBudget;

const LONGEST_REASON: usize = 1024;
const LONGEST_MESSAGE: usize = 32 * 1024;
const REASON: &str = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or 'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')";

fn is_reason(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.ends_with(word)
        && text.chars().all(|c| word(c) || matches!(c, ',' | ':'))
}

/// Mistakes in conditions as `meta/v1` has them; `at` is the path of the list.
fn conditions(errors: &mut Errors, at: &str, list: &Value) {
    for (index, condition) in items(list) {
        let path = |field: &str| format!("{at}[{index}].{field}");
        let kind = text(&condition["type"]);
        errors.invalid(&path("type"), kind, qualified_name(kind));
        let known = ["False", "True", "Unknown"];
        errors.one_of(path("status"), &condition["status"], &known);
        let generation = &condition["observedGeneration"];
        if generation.as_i64().is_some_and(|n| n < 0) {
            let detail = "must be greater than or equal to zero";
            errors.add(path("observedGeneration"), generation, detail);
        }
        if condition["lastTransitionTime"].is_null() {
            errors.required(path("lastTransitionTime"), "must be set");
        }
        let reason = text(&condition["reason"]);
        if reason.is_empty() {
            errors.required(path("reason"), "must be set");
        } else if !is_reason(reason) {
            errors.add(path("reason"), &condition["reason"], REASON);
        }
        for (field, most) in [("reason", LONGEST_REASON), ("message", LONGEST_MESSAGE)] {
            if text(&condition[field]).len() > most {
                let error = FieldError::too_long(path(field), most, "bytes");
                errors.0.push(error);
            }
        }
        if items(list)
            .take(index)
            .any(|(_, other)| other["type"] == kind)
        {
            let error = FieldError::duplicate(path("type"), &condition["type"]);
            errors.0.push(error);
        }
    }
}

impl Strategy for PodDisruptionBudget {
    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        object["status"] = json!({
            "currentHealthy": 0,
            "desiredHealthy": 0,
            "disruptionsAllowed": 0,
            "expectedPods": 0,
        });
        common::first_generation(object);
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        common::split_update(sub, object, old, true);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &object["spec"];
        if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
            errors.add(
                "spec",
                spec,
                "minAvailable and maxUnavailable cannot be both set",
            );
        }
        for field in ["minAvailable", "maxUnavailable"] {
            let path = format!("spec.{field}");
            int_or_percent(&mut errors, &path, &spec[field]);
            at_most_all(&mut errors, &path, &spec[field]);
        }
        label_selector(&mut errors, "spec.selector", &spec["selector"]);
        let unhealthy = &spec["unhealthyPodEvictionPolicy"];
        if !unhealthy.is_null() {
            let known = ["AlwaysAllow", "IfHealthyBudget"];
            errors.one_of("spec.unhealthyPodEvictionPolicy", unhealthy, &known);
        }
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        _: &Value,
    ) -> Vec<FieldError> {
        if sub != Some(Subresource::Status) {
            return self.validate(object);
        }
        let mut errors = Errors::default();
        let status = &object["status"];
        conditions(&mut errors, "status.conditions", &status["conditions"]);
        for field in [
            "disruptionsAllowed",
            "currentHealthy",
            "desiredHealthy",
            "expectedPods",
        ] {
            errors.not_negative(format!("status.{field}"), &status[field]);
        }
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Min_Available Max_Unavailable Allowed_Disruptions# Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let number = |field: &str| -> Value {
            match &object["spec"][field] {
                Value::Null => "N/A".into(),
                Value::String(percent) => percent.as_str().into(),
                number => number.to_string().into(),
            }
        };
        let allowed = &object["status"]["disruptionsAllowed"];
        vec![
            table::name(object),
            number("minAvailable"),
            number("maxUnavailable"),
            allowed.as_i64().unwrap_or(0).into(),
            table::age(object, now),
        ]
    }
}
