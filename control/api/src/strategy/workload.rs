//! Deployments and ReplicaSets.

use serde_json::{Value, json};

use super::common::{self, containers_text, selector_text, text};
use super::pod::spec::{default_pod_spec, validate_template};
use super::pod::warnings;
use super::validation::{Errors, items, label_selector, selector_matches};
use super::{Column, Context, Strategy};
use crate::resource::Subresource;
use crate::status::{ApiError, FieldError};
use crate::table;

/// Deployments.
pub struct Deployment;

/// ReplicaSets.
pub struct ReplicaSet;

/// Mistakes of the selector and the template, which every workload has; `kind` as in Kubernetes' messages.
pub(super) fn selector_and_template(errors: &mut Errors, spec: &Value, kind: &str) {
    let selector = &spec["selector"];
    let empty = |value: &Value| value.as_object().is_none_or(serde_json::Map::is_empty);
    if selector.is_null() {
        errors.required("spec.selector", "");
    } else {
        label_selector(errors, "spec.selector", selector);
        if empty(&selector["matchLabels"]) && items(&selector["matchExpressions"]).next().is_none()
        {
            errors.add(
                "spec.selector",
                selector,
                &format!("empty selector is invalid for {kind}"),
            );
        }
    }
    let template = &spec["template"];
    let template_labels = &template["metadata"]["labels"];
    if !empty(selector) && !selector_matches(selector, template_labels) {
        let shown = if template_labels.is_null() {
            json!({})
        } else {
            template_labels.clone()
        };
        errors.add(
            "spec.template.metadata.labels",
            &shown,
            "`selector` does not match template `labels`",
        );
    }
    validate_template(errors, "spec.template", template);
    if !matches!(text(&template["spec"]["restartPolicy"]), "" | "Always") {
        let value = &template["spec"]["restartPolicy"];
        errors.0.push(FieldError::not_supported(
            "spec.template.spec.restartPolicy",
            value,
            &["Always"],
        ));
    }
    if !template["spec"]["activeDeadlineSeconds"].is_null() {
        let shown = match kind {
            "daemonset" => "DaemonSet",
            "statefulset" => "StatefulSet",
            "replicationcontroller" => "ReplicationController",
            _ => "ReplicaSet",
        };
        errors.0.push(FieldError::forbidden(
            "spec.template.spec.activeDeadlineSeconds",
            &format!("activeDeadlineSeconds in {shown} is not Supported"),
        ));
    }
}

/// An integer or a percentage; the resolved number of a hundred, for comparisons with zero.
pub(super) fn int_or_percent(errors: &mut Errors, at: &str, value: &Value) -> Option<i64> {
    match value {
        Value::Number(_) => {
            errors.not_negative(at, value);
            value.as_i64()
        }
        Value::String(text) => match text
            .strip_suffix('%')
            .and_then(|digits| digits.parse::<i64>().ok())
        {
            Some(percent) if percent >= 0 => Some(percent),
            _ => {
                errors.add(at, value, "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')");
                None
            }
        },
        _ => Some(0),
    }
}

impl Strategy for Deployment {
    fn default(&self, object: &mut Value) {
        default_template(&mut object["spec"]);
    }

    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        object["status"] = json!({});
        common::first_generation(object);
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        if sub == Some(Subresource::Status) {
            drop_zero_counts(object, &["replicas"]);
            common::keep(object, old, "spec");
            object["metadata"]["labels"] = old["metadata"]["labels"].clone();
            if object["metadata"]["labels"].is_null() {
                object["metadata"]
                    .as_object_mut()
                    .map(|meta| meta.remove("labels"));
            }
            object["metadata"]["generation"] = old["metadata"]["generation"].clone();
            return;
        }
        common::keep(object, old, "status");
        let annotations = |o: &Value| o["metadata"]["annotations"].clone();
        let changed = object["spec"] != old["spec"] || annotations(object) != annotations(old);
        let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
        object["metadata"]["generation"] = (before + i64::from(changed)).into();
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &object["spec"];
        for field in [
            "replicas",
            "minReadySeconds",
            "revisionHistoryLimit",
            "progressDeadlineSeconds",
        ] {
            errors.not_negative(format!("spec.{field}"), &spec[field]);
        }
        selector_and_template(&mut errors, spec, "deployment");
        let strategy = &spec["strategy"];
        errors.one_of(
            "spec.strategy.type",
            &strategy["type"],
            &["Recreate", "RollingUpdate"],
        );
        let rolling = &strategy["rollingUpdate"];
        if strategy["type"] == "Recreate" && !rolling.is_null() {
            errors.0.push(FieldError::forbidden(
                "spec.strategy.rollingUpdate",
                "may not be specified when strategy `type` is 'Recreate'",
            ));
        } else if strategy["type"] == "RollingUpdate" {
            let base = "spec.strategy.rollingUpdate";
            let unavailable = int_or_percent(
                &mut errors,
                &format!("{base}.maxUnavailable"),
                &rolling["maxUnavailable"],
            );
            let surge = int_or_percent(
                &mut errors,
                &format!("{base}.maxSurge"),
                &rolling["maxSurge"],
            );
            if unavailable == Some(0) && surge == Some(0) {
                errors.add(
                    format!("{base}.maxUnavailable"),
                    &rolling["maxUnavailable"],
                    "may not be 0 when `maxSurge` is 0",
                );
            }
            if rolling["maxUnavailable"].is_string()
                && unavailable.is_some_and(|percent| percent > 100)
            {
                errors.add(
                    format!("{base}.maxUnavailable"),
                    &rolling["maxUnavailable"],
                    "must not be greater than 100%",
                );
            }
        }
        let seconds = |field: &str| spec[field].as_i64();
        if let (Some(deadline), ready) = (
            seconds("progressDeadlineSeconds"),
            seconds("minReadySeconds").unwrap_or(0),
        ) && deadline <= ready
        {
            errors.add(
                "spec.progressDeadlineSeconds",
                &deadline.into(),
                "must be greater than minReadySeconds",
            );
        }
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        match sub {
            Some(Subresource::Status) => validate_counts(&object["status"]),
            _ => with_the_same_selector(self.validate(object), object, old),
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        warnings::of_workload(object, old)
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Ready Up-to-date# Available# Age Containers* Images* Selector*")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let count = |value: &Value| value.as_i64().unwrap_or(0);
        let (names, images) = containers_text(&spec["template"]);
        vec![
            table::name(object),
            format!(
                "{}/{}",
                count(&status["readyReplicas"]),
                count(&spec["replicas"])
            )
            .into(),
            count(&status["updatedReplicas"]).into(),
            count(&status["availableReplicas"]).into(),
            table::age(object, now),
            names.into(),
            images.into(),
            selector_text(&spec["selector"]).into(),
        ]
    }

    fn scale(&self, object: &Value) -> Option<Value> {
        Some(scale_of(object))
    }

    fn set_scale(&self, object: &mut Value, scale: &Value) -> Result<(), ApiError> {
        set_scale(object, scale)
    }
}

/// Leaves out the counts that Go leaves out when they are zero: those of every workload, and `more`.
pub(super) fn drop_zero_counts(object: &mut Value, more: &[&str]) {
    let Some(status) = object["status"].as_object_mut() else {
        return;
    };
    let counts = [
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "fullyLabeledReplicas",
    ];
    for field in counts.iter().chain(more) {
        if status.get(*field) == Some(&json!(0)) {
            status.remove(*field);
        }
    }
}

/// The errors, and one more if the selector changed: it cannot. A template from before a rule may stay as it is.
pub(super) fn with_the_same_selector(
    errors: Vec<FieldError>,
    object: &Value,
    old: &Value,
) -> Vec<FieldError> {
    let mut errors = Errors(errors);
    if object["spec"]["template"] == old["spec"]["template"] {
        errors
            .0
            .retain(|error| !error.field.starts_with("spec.template.spec."));
    }
    errors.immutable(
        "spec.selector",
        &object["spec"]["selector"],
        &old["spec"]["selector"],
    );
    errors.0
}

pub(super) fn validate_counts(status: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let total = status["replicas"].as_i64().unwrap_or(0);
    for field in [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "fullyLabeledReplicas",
        "collisionCount",
    ] {
        errors.not_negative(format!("status.{field}"), &status[field]);
    }
    for field in [
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "fullyLabeledReplicas",
    ] {
        if status[field].as_i64().is_some_and(|n| n > total) {
            errors.add(
                format!("status.{field}"),
                &status[field],
                "cannot be greater than status.replicas",
            );
        }
    }
    let ready = status["readyReplicas"].as_i64().unwrap_or(0);
    if status["availableReplicas"]
        .as_i64()
        .is_some_and(|n| n > ready)
    {
        errors.add(
            "status.availableReplicas",
            &status["availableReplicas"],
            "cannot be greater than readyReplicas",
        );
    }
    errors.0
}

/// Refuses a percentage above 100.
pub(super) fn at_most_all(errors: &mut Errors, at: &str, value: &Value) {
    let percent = value.as_str().and_then(|text| text.strip_suffix('%'));
    if percent
        .and_then(|digits| digits.parse::<i64>().ok())
        .is_some_and(|n| n > 100)
    {
        errors.add(at, value, "must not be greater than 100%");
    }
}

/// Refuses a count of collisions that is lower than before.
pub(super) fn collisions(errors: &mut Errors, object: &Value, old: &Value) {
    let count = |object: &Value| object["status"]["collisionCount"].as_i64().unwrap_or(0);
    if count(object) < count(old) {
        errors.add(
            "status.collisionCount",
            &count(object).into(),
            "cannot be decremented",
        );
    }
}

/// The defaults of the pod template in `owner`, where it has one.
pub(super) fn default_template(owner: &mut Value) {
    if let Some(spec) = owner
        .get_mut("template")
        .and_then(|template| template.get_mut("spec"))
    {
        default_pod_spec(spec);
    }
}

/// A template's labels are those of its owner, where the owner has none.
pub(super) fn labels_from_template(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    let has_none = object["metadata"]["labels"]
        .as_object()
        .is_none_or(serde_json::Map::is_empty);
    if labels.is_object() && has_none {
        object["metadata"]["labels"] = labels;
    }
}

/// An object with `spec.replicas` and a selector as an `autoscaling/v1` Scale.
pub(super) fn scale_of(object: &Value) -> Value {
    let meta = &object["metadata"];
    let mut scale_meta = json!({});
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if !meta[field].is_null() {
            scale_meta[field] = meta[field].clone();
        }
    }
    let selector = selector_text(&object["spec"]["selector"]);
    let mut spec = json!({});
    if object["spec"]["replicas"].as_i64().unwrap_or(0) != 0 {
        spec["replicas"] = object["spec"]["replicas"].clone();
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": scale_meta,
        "spec": spec,
        "status": {
            "replicas": object["status"]["replicas"].as_i64().unwrap_or(0),
            "selector": if selector == "<none>" { "" } else { &selector },
        },
    })
}

/// Writes a Scale's replicas into the object.
pub(super) fn set_scale(object: &mut Value, scale: &Value) -> Result<(), ApiError> {
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if replicas < 0 {
        let error = FieldError::invalid(
            "spec.replicas",
            &replicas.into(),
            "must be greater than or equal to 0",
        );
        let name = text(&object["metadata"]["name"]);
        return Err(ApiError::invalid("autoscaling", "Scale", name, &[error]));
    }
    object["spec"]["replicas"] = replicas.into();
    Ok(())
}

impl Strategy for ReplicaSet {
    fn default(&self, object: &mut Value) {
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
        errors.not_negative("spec.replicas", &spec["replicas"]);
        errors.not_negative("spec.minReadySeconds", &spec["minReadySeconds"]);
        selector_and_template(&mut errors, spec, "replicaset");
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        match sub {
            Some(Subresource::Status) => validate_counts(&object["status"]),
            _ => with_the_same_selector(self.validate(object), object, old),
        }
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let replicas = object["status"]["replicas"].as_i64().unwrap_or(0);
        vec![("status.replicas", replicas.to_string())]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["status.replicas"]
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        warnings::of_workload(object, old)
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Desired# Current# Ready# Age Containers* Images* Selector*")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let count = |value: &Value| value.as_i64().unwrap_or(0);
        let (names, images) = containers_text(&spec["template"]);
        vec![
            table::name(object),
            count(&spec["replicas"]).into(),
            count(&status["replicas"]).into(),
            count(&status["readyReplicas"]).into(),
            table::age(object, now),
            names.into(),
            images.into(),
            selector_text(&spec["selector"]).into(),
        ]
    }

    fn scale(&self, object: &Value) -> Option<Value> {
        Some(scale_of(object))
    }

    fn set_scale(&self, object: &mut Value, scale: &Value) -> Result<(), ApiError> {
        set_scale(object, scale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(selector: Value, labels: Value) -> Value {
        json!({ "spec": { "replicas": 1, "selector": selector, "strategy": { "type": "Recreate" }, "template": {
            "metadata": { "labels": labels },
            "spec": { "containers": [{ "name": "a", "image": "b", "imagePullPolicy": "Always", "terminationMessagePolicy": "File" }],
                      "restartPolicy": "Always", "dnsPolicy": "ClusterFirst" } } } })
    }

    #[test]
    fn the_selector_must_match_the_template_and_never_changes() {
        let good = deployment(json!({ "matchLabels": { "a": "b" } }), json!({ "a": "b" }));
        assert_eq!(Deployment.validate(&good), []);
        let bad = deployment(json!({ "matchLabels": { "a": "b" } }), json!({ "a": "c" }));
        let errors = Deployment.validate(&bad);
        assert_eq!(errors[0].field, "spec.template.metadata.labels");
        assert_eq!(
            errors[0].message,
            r#"Invalid value: {"a":"c"}: `selector` does not match template `labels`"#
        );
        let other = deployment(json!({ "matchLabels": { "c": "d" } }), json!({ "c": "d" }));
        let errors = Deployment.validate_update(None, &other, &good);
        assert_eq!(
            errors[0].message,
            r#"Invalid value: {"matchLabels":{"c":"d"}}: field is immutable"#
        );
    }

    #[test]
    fn a_template_from_before_a_rule_can_still_be_scaled() {
        let mut old = deployment(json!({ "matchLabels": { "a": "b" } }), json!({ "a": "b" }));
        old["spec"]["template"]["spec"]["tolerations"] = json!([{ "operator": "Equal" }]);
        assert_ne!(Deployment.validate(&old), []);
        let mut scaled = old.clone();
        scaled["spec"]["replicas"] = 3.into();
        assert_eq!(Deployment.validate_update(None, &scaled, &old), []);
        scaled["spec"]["template"]["spec"]["containers"][0]["image"] = "c".into();
        assert_ne!(Deployment.validate_update(None, &scaled, &old), []);
    }

    #[test]
    fn scaling_goes_through_the_spec() {
        let mut object = deployment(json!({ "matchLabels": { "a": "b" } }), json!({ "a": "b" }));
        let mut scale = Deployment.scale(&object).expect("a scale");
        assert_eq!(scale["status"]["selector"], "a=b");
        scale["spec"]["replicas"] = 5.into();
        Deployment
            .set_scale(&mut object, &scale)
            .expect("five is fine");
        assert_eq!(object["spec"]["replicas"], 5);
        scale["spec"]["replicas"] = (-1).into();
        assert_eq!(
            Deployment
                .set_scale(&mut object, &scale)
                .expect_err("negative")
                .code,
            422
        );
    }
}
