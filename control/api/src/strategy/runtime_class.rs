//! Classes of container runtimes.

use serde_json::{Value, json};

use super::common::text;
use super::pod::{resources, tolerations};
use super::validation::{Errors, dns_label, items, labels};
use super::{Column, Strategy};
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::table;

/// Classes of container runtimes: how the pods that name one run.
pub struct RuntimeClass;

impl Strategy for RuntimeClass {
    fn require_resource_version(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let handler = text(&object["handler"]);
        errors.invalid("handler", handler, dns_label(handler));
        let overhead = &object["overhead"];
        if !overhead.is_null() {
            let amounts = json!({ "limits": overhead["podFixed"] });
            resources(&mut errors, "overhead", &amounts, &[]);
        }
        let scheduling = &object["scheduling"];
        labels(
            &mut errors,
            "scheduling.nodeSelector",
            &scheduling["nodeSelector"],
        );
        let list = &scheduling["tolerations"];
        tolerations(&mut errors, "scheduling.tolerations", list);
        for (index, toleration) in items(list) {
            if items(list)
                .take(index)
                .any(|(_, other)| other == toleration)
            {
                let at = format!("scheduling.tolerations[{index}]");
                errors.0.push(FieldError::duplicate(at, toleration));
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
        let mut errors = Errors(self.validate(object));
        errors.immutable("handler", &object["handler"], &old["handler"]);
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Handler Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        vec![
            table::name(object),
            text(&object["handler"]).into(),
            table::age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::fields::tests::{check_new, check_update};

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_class_names_a_handler_that_stays() {
        let good = json!({ "handler": "runsc", "overhead": { "podFixed": { "cpu": "10m" } } });
        let toleration = json!({ "key": "a", "operator": "Exists" });
        check_new(&RuntimeClass, &good, &[
            ("/overhead/podFixed/cpu", json!("-1"), &["overhead.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0"]),
            ("/overhead/podFixed", json!({ "pods": "1" }), &["overhead.limits[pods]: Invalid value: \"pods\": must be a standard resource for containers"]),
            ("/scheduling", json!({ "tolerations": [toleration, toleration] }), &["scheduling.tolerations[1]: Duplicate value: {\"key\":\"a\",\"operator\":\"Exists\"}"]),
            ("/scheduling", json!({ "tolerations": [{}] }), &["scheduling.tolerations[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\""]),
        ]);
        check_update(&RuntimeClass, &good, &[
            ("/overhead/podFixed/cpu", json!("20m"), &[]),
            ("/handler", json!("runc"), &["handler: Invalid value: \"runc\": field is immutable"]),
        ]);
    }
}
