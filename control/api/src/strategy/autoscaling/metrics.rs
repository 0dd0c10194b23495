//! Mistakes in the metrics of an autoscaler (v2): each has one source, and one value to aim at.

use knarr_quantity::Quantity;
use serde_json::Value;

use super::validation::{ApiVersion, api_version, reference};
use crate::registry::names;
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::{Errors, dns_label, items, qualified_name};

/// The types of metrics, sorted as kube-apiserver lists them.
const TYPES: [&str; 5] = [
    "ContainerResource",
    "External",
    "Object",
    "Pods",
    "Resource",
];
/// The fields of their sources, in the order in which they are looked at.
const SOURCES: [&str; 5] = [
    "object",
    "external",
    "pods",
    "resource",
    "containerResource",
];

const BOTH: &str = "may not set both a target raw value and a target utilization";
const NEITHER: &str = "must set either a target raw value or a target utilization";

/// The sign of a quantity, if there is one.
pub(super) fn sign(value: &Value) -> Option<i8> {
    let quantity: Quantity = value.as_str()?.parse().ok()?;
    i8::try_from(quantity.nano().signum()).ok()
}

/// Mistakes in the metrics of a spec that is new, or replaces `old`.
pub(super) fn validate(errors: &mut Errors, spec: &Value, old: Option<&Value>) {
    // References from before the rule about them stay as they are.
    let bad = |(_, metric): (usize, &Value)| {
        let object = &metric["object"]["describedObject"]["apiVersion"];
        metric["type"] == "Object" && api_version(text(object), ApiVersion::Valid).is_some()
    };
    let version = if old.is_some_and(|old| items(&old["metrics"]).any(bad)) {
        ApiVersion::Any
    } else {
        ApiVersion::Valid
    };
    for (index, metric) in items(&spec["metrics"]) {
        one(errors, &format!("spec.metrics[{index}]"), metric, version);
    }
    let outside =
        |(_, metric): (usize, &Value)| matches!(text(&metric["type"]), "Object" | "External");
    if spec["minReplicas"] == 0 && !items(&spec["metrics"]).any(outside) {
        errors.0.push(FieldError::forbidden(
            "spec.metrics",
            "must specify at least one Object or External metric to support scaling to zero replicas",
        ));
    }
}

/// The field of the source of a type: `containerResource` of `ContainerResource`.
pub(super) fn field_of(kind: &str) -> Option<&'static str> {
    let field = |source: &&&str| source.eq_ignore_ascii_case(kind);
    SOURCES
        .iter()
        .find(field)
        .copied()
        .filter(|_| TYPES.contains(&kind))
}

fn one(errors: &mut Errors, at: &str, metric: &Value, version: ApiVersion) {
    let kind = text(&metric["type"]);
    let expected = field_of(kind);
    if kind.is_empty() {
        errors.required(format!("{at}.type"), "must specify a metric source type");
    }
    if expected.is_none() {
        let error = FieldError::not_supported(format!("{at}.type"), &kind.into(), &TYPES);
        errors.0.push(error);
    }
    let present = || {
        SOURCES
            .into_iter()
            .filter(|field| !metric[*field].is_null())
    };
    if let Some(first) = present().next() {
        source(
            errors,
            &format!("{at}.{first}"),
            first,
            &metric[first],
            version,
        );
    }
    if let Some(field) = expected.filter(|field| metric[*field].is_null()) {
        errors.required(
            format!("{at}.{field}"),
            "must populate information for the given metric source",
        );
    }
    if present().count() != 1 {
        for field in present().filter(|field| Some(*field) != expected) {
            errors.0.push(FieldError::forbidden(
                format!("{at}.{field}"),
                "must populate the given metric source only",
            ));
        }
    }
}

/// Mistakes in the source `field`, which is at `at`.
fn source(errors: &mut Errors, at: &str, field: &str, source: &Value, version: ApiVersion) {
    let goal = &source["target"];
    let set = |field: &str| !goal[field].is_null();
    let (value, average) = (set("value"), set("averageValue"));
    match field {
        "object" => {
            let object = &source["describedObject"];
            reference(errors, &format!("{at}.describedObject"), object, version);
            identifier(errors, at, source);
        }
        "external" | "pods" => identifier(errors, at, source),
        _ => resource(errors, at, field, source),
    }
    target(errors, &format!("{at}.target"), goal);
    let missing = match field {
        "object" if !value && !average => Some("must set either a target value or averageValue"),
        "external" if !value && !average => {
            Some("must set either a target value for metric or a per-pod target")
        }
        "pods" if !average => Some("must specify a positive target averageValue"),
        _ => None,
    };
    if let Some(detail) = missing {
        errors.required(format!("{at}.target.averageValue"), detail);
    }
    if field == "external" && value && average {
        errors.0.push(FieldError::forbidden(
            format!("{at}.target.value"),
            "may not set both a target value for metric and a per-pod target",
        ));
    }
    if matches!(field, "resource" | "containerResource") {
        match (set("averageUtilization"), average) {
            (false, false) => errors.required(format!("{at}.target.averageUtilization"), NEITHER),
            (true, true) => {
                let error = FieldError::forbidden(format!("{at}.target.averageValue"), BOTH);
                errors.0.push(error);
            }
            _ => {}
        }
    }
}

fn identifier(errors: &mut Errors, at: &str, source: &Value) {
    let name = &source["metric"]["name"];
    let at = format!("{at}.metric.name");
    if text(name).is_empty() {
        errors.required(at, "must specify a metric name");
    } else if let Err(wrong) = names::path_segment(text(name)) {
        errors.add(at, name, &wrong);
    }
}

/// The name of a resource of pods, or of one of their containers.
fn resource(errors: &mut Errors, at: &str, field: &str, source: &Value) {
    let name = text(&source["name"]);
    let path = format!("{at}.name");
    if name.is_empty() {
        errors.required(&path, "must specify a resource name");
    }
    if field == "resource" {
        return;
    }
    if !name.is_empty() {
        let native = matches!(name, "cpu" | "memory" | "ephemeral-storage")
            || name.starts_with("hugepages-");
        errors.invalid(&path, name, qualified_name(name));
        if !name.contains('/') && !native {
            errors.add(
                &path,
                &name.into(),
                "must be a standard resource for containers",
            );
        }
    }
    let container = text(&source["container"]);
    let path = format!("{at}.container");
    if container.is_empty() {
        errors.required(path, "must specify a container");
    } else {
        errors.invalid(&path, container, dns_label(container));
    }
}

fn target(errors: &mut Errors, at: &str, target: &Value) {
    let kind = text(&target["type"]);
    if kind.is_empty() {
        errors.required(format!("{at}.type"), "must specify a metric target type");
    }
    if !matches!(kind, "Utilization" | "Value" | "AverageValue") {
        errors.add(
            format!("{at}.type"),
            &kind.into(),
            "must be either Utilization, Value, or AverageValue",
        );
    }
    for field in ["value", "averageValue"] {
        if sign(&target[field]).is_some_and(|sign| sign < 1) {
            errors.add(format!("{at}.{field}"), &target[field], "must be positive");
        }
    }
    let utilization = &target["averageUtilization"];
    if utilization.as_i64().is_some_and(|n| n < 1) {
        errors.add(
            format!("{at}.averageUtilization"),
            utilization,
            "must be greater than 0",
        );
    }
}
