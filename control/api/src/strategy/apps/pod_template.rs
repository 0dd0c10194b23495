//! Pod templates that stand alone.

use serde_json::Value;

use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, containers_text, map_text};
use crate::strategy::pod::spec::validate_template;
use crate::strategy::pod::warnings;
use crate::strategy::validation::Errors;
use crate::strategy::workload::default_template;
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Pod templates.
pub struct PodTemplate;

impl Strategy for PodTemplate {
    fn default(&self, object: &mut Value) {
        default_template(object);
    }

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
        let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
        let changed = object["template"] != old["template"];
        object["metadata"]["generation"] = (before + i64::from(changed)).into();
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        validate_template(&mut errors, "template", &object["template"]);
        errors.0
    }

    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = self.validate(object);
        if object["template"] == old["template"] {
            // A template from before a rule may stay as it is.
            errors.retain(|error| !error.field.starts_with("template.spec."));
        }
        errors
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        if old.is_none_or(|old| object["template"] != old["template"]) {
            warnings::of_template(&mut warnings, "template.", &object["template"]);
        }
        warnings
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Containers Images Pod_Labels")
    }

    fn cells(&self, object: &Value, _: jiff::Timestamp) -> Vec<Value> {
        let (names, images) = containers_text(&object["template"]);
        vec![
            table::name(object),
            names.into(),
            images.into(),
            map_text(&object["template"]["metadata"]["labels"]).into(),
        ]
    }
}
