//! Priority and fairness: which requests belong together, and how many of them may run.

mod level;
mod schema;

use serde_json::Value;

pub use level::PriorityLevelConfiguration;
pub use schema::FlowSchema;

use super::common::text;
use super::validation::{Errors, items};
use crate::status::FieldError;

/// Mistakes in the conditions of a status: each has a type, and no two the same.
fn conditions(errors: &mut Errors, object: &Value) {
    let list = &object["status"]["conditions"];
    for (index, condition) in items(list) {
        let (at, kind) = (
            format!("status.conditions[{index}].type"),
            &condition["type"],
        );
        if items(list)
            .take(index)
            .any(|(_, other)| other["type"] == *kind)
        {
            errors.0.push(FieldError::duplicate(&at, kind));
        }
        if text(kind).is_empty() {
            errors.required(at, "must not be empty");
        }
    }
}
