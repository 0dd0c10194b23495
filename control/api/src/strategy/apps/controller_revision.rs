//! Controller revisions: the templates that a daemon set or a stateful set had, for rolling back.

use serde_json::Value;

use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::{Errors, items};
use crate::strategy::{Column, Strategy};
use crate::table;

/// Controller revisions. What one holds never changes.
pub struct ControllerRevision;

/// `kind.group/name` of the controller that owns an object, in lower case but for the name; `<none>` without one.
fn controller(object: &Value) -> String {
    let owners = &object["metadata"]["ownerReferences"];
    let Some((_, owner)) = items(owners).find(|(_, owner)| owner["controller"] == true) else {
        return "<none>".to_owned();
    };
    let kind = text(&owner["kind"]);
    let group = text(&owner["apiVersion"]).split_once('/');
    let kind = group.map_or(kind.to_owned(), |(group, _)| format!("{kind}.{group}"));
    format!("{}/{}", kind.to_lowercase(), text(&owner["name"]))
}

impl Strategy for ControllerRevision {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        errors.not_negative("revision", &object["revision"]);
        match &object["data"] {
            Value::Object(_) => {}
            Value::Null => errors.required("data", "data is mandatory"),
            _ => errors.required("data", "data must be a valid JSON object"),
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
        errors.not_negative("revision", &object["revision"]);
        errors.immutable("data", &object["data"], &old["data"]);
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Controller Revision Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        vec![
            table::name(object),
            controller(object).into(),
            object["revision"].as_i64().unwrap_or(0).into(),
            table::age(object, now),
        ]
    }
}
