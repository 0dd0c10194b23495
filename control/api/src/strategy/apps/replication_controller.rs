//! Replication controllers: the predecessors of replica sets, whose selector is a map of labels.

use serde_json::{Value, json};

use crate::resource::Subresource;
use crate::status::{ApiError, FieldError};
use crate::strategy::common::{self, containers_text, map_text, text};
use crate::strategy::pod::spec::validate_template;
use crate::strategy::pod::warnings;
use crate::strategy::validation::{Errors, selector_matches};
use crate::strategy::workload::{
    default_template, drop_zero_counts, labels_from_template, scale_of, set_scale, validate_counts,
};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Replication controllers.
pub struct ReplicationController;

fn is_empty(map: &Value) -> bool {
    map.as_object().is_none_or(serde_json::Map::is_empty)
}

/// Mistakes in the template, which has to match the selector.
fn template(errors: &mut Errors, spec: &Value) {
    let template = &spec["template"];
    if template.is_null() {
        errors.required("spec.template", "");
        return;
    }
    let labels = &template["metadata"]["labels"];
    let selector = json!({ "matchLabels": spec["selector"] });
    if !is_empty(&spec["selector"]) && !selector_matches(&selector, labels) {
        let shown = if labels.is_null() { &json!({}) } else { labels };
        errors.add(
            "spec.template.metadata.labels",
            shown,
            "`selector` does not match template `labels`",
        );
    }
    validate_template(errors, "spec.template", template);
    if !matches!(text(&template["spec"]["restartPolicy"]), "" | "Always") {
        errors.one_of(
            "spec.template.spec.restartPolicy",
            &template["spec"]["restartPolicy"],
            &["Always"],
        );
    }
    if !template["spec"]["activeDeadlineSeconds"].is_null() {
        errors.0.push(FieldError::forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            "activeDeadlineSeconds in ReplicationController is not Supported",
        ));
    }
}

impl Strategy for ReplicationController {
    fn default(&self, object: &mut Value) {
        let labels = object["spec"]["template"]["metadata"]["labels"].clone();
        if is_empty(&object["spec"]["selector"]) && labels.is_object() {
            object["spec"]["selector"] = labels;
        }
        labels_from_template(object);
        default_template(&mut object["spec"]);
    }

    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        object["status"] = json!({ "replicas": 0 });
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
        if sub == Some(Subresource::Status) {
            drop_zero_counts(object, &[]);
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &object["spec"];
        errors.not_negative("spec.minReadySeconds", &spec["minReadySeconds"]);
        if is_empty(&spec["selector"]) {
            errors.required("spec.selector", "");
        }
        errors.not_negative("spec.replicas", &spec["replicas"]);
        template(&mut errors, spec);
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        if sub == Some(Subresource::Status) {
            return validate_counts(&object["status"]);
        }
        let mut errors = self.validate(object);
        if object["spec"]["template"] == old["spec"]["template"] {
            // A template from before a rule may stay as it is.
            errors.retain(|error| !error.field.starts_with("spec.template.spec."));
        }
        errors
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        warnings::of_workload(object, old)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let replicas = object["status"]["replicas"].as_i64().unwrap_or(0);
        vec![("status.replicas", replicas.to_string())]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Desired# Current# Ready# Age Containers* Images* Selector*")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let count = |value: &Value| Value::from(value.as_i64().unwrap_or(0));
        let (names, images) = containers_text(&spec["template"]);
        vec![
            table::name(object),
            count(&spec["replicas"]),
            count(&status["replicas"]),
            count(&status["readyReplicas"]),
            table::age(object, now),
            names.into(),
            images.into(),
            map_text(&spec["selector"]).into(),
        ]
    }

    fn scale(&self, object: &Value) -> Option<Value> {
        let mut object = object.clone();
        object["spec"]["selector"] = json!({ "matchLabels": object["spec"]["selector"] });
        Some(scale_of(&object))
    }

    fn set_scale(&self, object: &mut Value, scale: &Value) -> Result<(), ApiError> {
        set_scale(object, scale)
    }
}
