//! Daemon sets.

use serde_json::{Value, json};

use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, containers_text, map_text, object_at, selector_text, text};
use crate::strategy::pod::warnings;
use crate::strategy::validation::Errors;
use crate::strategy::workload::{
    at_most_all, collisions, default_template, int_or_percent, selector_and_template,
    with_the_same_selector,
};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Daemon sets.
pub struct DaemonSet;

/// Where `apps/v1` keeps the field that older versions call `spec.templateGeneration`: it counts the templates.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// The counts of a status that Go leaves out when they are zero.
const OPTIONAL_COUNTS: [&str; 3] = [
    "updatedNumberScheduled",
    "numberAvailable",
    "numberUnavailable",
];

fn template_generation(object: &Value) -> i64 {
    let annotation = &object["metadata"]["annotations"][TEMPLATE_GENERATION];
    text(annotation).parse().unwrap_or(0)
}

fn set_template_generation(object: &mut Value, generation: i64) {
    object_at(&mut object["metadata"], "annotations").insert(
        TEMPLATE_GENERATION.to_owned(),
        generation.to_string().into(),
    );
}

/// Mistakes in `spec.updateStrategy`: exactly one of the two numbers of a rolling update is not zero.
fn update_strategy(errors: &mut Errors, strategy: &Value) {
    let at = "spec.updateStrategy.rollingUpdate";
    let rolling = &strategy["rollingUpdate"];
    match text(&strategy["type"]) {
        "OnDelete" => {}
        "RollingUpdate" if rolling.is_null() => errors.required(at, ""),
        "RollingUpdate" => {
            let mut number = |field: &str| {
                let path = format!("{at}.{field}");
                let number = int_or_percent(errors, &path, &rolling[field]);
                at_most_all(errors, &path, &rolling[field]);
                number.unwrap_or(0)
            };
            match (number("maxUnavailable"), number("maxSurge")) {
                (0, 0) => errors.required(
                    format!("{at}.maxUnavailable"),
                    "cannot be 0 when maxSurge is 0",
                ),
                (0, _) | (_, 0) => {}
                _ => errors.add(
                    format!("{at}.maxSurge"),
                    &rolling["maxSurge"],
                    "may not be set when maxUnavailable is non-zero",
                ),
            }
        }
        _ => errors.0.push(FieldError::not_supported(
            "spec.updateStrategy",
            strategy,
            &["RollingUpdate", "OnDelete"],
        )),
    }
}

impl Strategy for DaemonSet {
    fn default(&self, object: &mut Value) {
        default_template(&mut object["spec"]);
    }

    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        object["status"] = json!({
            "currentNumberScheduled": 0,
            "desiredNumberScheduled": 0,
            "numberMisscheduled": 0,
            "numberReady": 0,
        });
        common::first_generation(object);
        let generation = template_generation(object).max(1);
        set_template_generation(object, generation);
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        common::split_update(sub, object, old, true);
        if sub == Some(Subresource::Status)
            && let Some(status) = object["status"].as_object_mut()
        {
            status.retain(|field, value| *value != 0 || !OPTIONAL_COUNTS.contains(&field.as_str()));
        }
        let changed = object["spec"]["template"] != old["spec"]["template"];
        set_template_generation(object, template_generation(old) + i64::from(changed));
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &object["spec"];
        selector_and_template(&mut errors, spec, "daemonset");
        for field in ["minReadySeconds", "revisionHistoryLimit"] {
            errors.not_negative(format!("spec.{field}"), &spec[field]);
        }
        update_strategy(&mut errors, &spec["updateStrategy"]);
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        if sub != Some(Subresource::Status) {
            return with_the_same_selector(self.validate(object), object, old);
        }
        let mut errors = Errors::default();
        for field in [
            "currentNumberScheduled",
            "numberMisscheduled",
            "desiredNumberScheduled",
            "numberReady",
            "observedGeneration",
            "updatedNumberScheduled",
            "numberAvailable",
            "numberUnavailable",
            "collisionCount",
        ] {
            errors.not_negative(format!("status.{field}"), &object["status"][field]);
        }
        collisions(&mut errors, object, old);
        errors.0
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        let generation = |object: &Value| object["metadata"]["generation"].clone();
        if old.is_none_or(|old| generation(old) != generation(object)) {
            warnings::of_template(&mut warnings, "spec.template.", &object["spec"]["template"]);
        }
        warnings
    }

    fn columns(&self) -> Vec<Column> {
        table::columns(
            "Name Desired# Current# Ready# Up-to-date# Available# Node_Selector Age Containers* Images* Selector*",
        )
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let count = |field: &str| Value::from(status[field].as_i64().unwrap_or(0));
        let (names, images) = containers_text(&spec["template"]);
        vec![
            table::name(object),
            count("desiredNumberScheduled"),
            count("currentNumberScheduled"),
            count("numberReady"),
            count("updatedNumberScheduled"),
            count("numberAvailable"),
            map_text(&spec["template"]["spec"]["nodeSelector"]).into(),
            table::age(object, now),
            names.into(),
            images.into(),
            selector_text(&spec["selector"]).into(),
        ]
    }
}
