//! From one version to the other. v1 has fields for the CPU alone: the other metrics, their values, the conditions and the
//! behavior are JSON in annotations, in the words of v1 (`targetAverageValue` for `target.averageValue`).

use serde_json::{Map, Value, json};

use super::metrics::field_of;
use crate::resource::GroupVersionKind;
use crate::strategy::common::{object_at, text};
use crate::strategy::validation::items;

/// The metrics of the spec that are not the CPU's.
pub(super) const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
/// How fast it scales.
pub(super) const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
/// All the metrics of the status.
pub(super) const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
/// The conditions of the status.
pub(super) const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

/// A metric that aims at a utilization of the CPU, in per cent (v2).
pub(super) fn cpu(utilization: i64) -> Value {
    let target = json!({ "type": "Utilization", "averageUtilization": utilization });
    json!({ "type": "Resource", "resource": { "name": "cpu", "target": target } })
}

/// Converts an autoscaler to the version of `to`; one that is in that version already stays.
///
/// Annotations that cannot be read are dropped.
pub fn convert_hpa(object: &mut Value, to: &GroupVersionKind) {
    if text(&object["apiVersion"]) == to.api_version() {
        return;
    }
    if to.version == "v1" {
        to_v1(object);
    } else {
        to_v2(object);
    }
    object["apiVersion"] = to.api_version().into();
}

/// Removes an annotation, and the map of annotations with the last.
pub(super) fn remove_annotation(object: &mut Value, name: &str) -> Option<Value> {
    let metadata = object.get_mut("metadata")?.as_object_mut()?;
    let annotations = metadata.get_mut("annotations")?.as_object_mut()?;
    let value = annotations.remove(name);
    if annotations.is_empty() {
        metadata.remove("annotations");
    }
    value
}

/// What an annotation holds as JSON.
fn take(object: &mut Value, name: &str) -> Option<Value> {
    let value = remove_annotation(object, name)?;
    let value: Value = serde_json::from_str(text(&value)).ok()?;
    Some(value).filter(|value| !value.is_null())
}

fn put(object: &mut Value, name: &str, value: &Value) {
    object_at(&mut object["metadata"], "annotations")
        .insert(name.to_owned(), value.to_string().into());
}

fn remove(object: &mut Value, part: &str, field: &str) -> Option<Value> {
    let value = object.get_mut(part)?.as_object_mut()?.remove(field)?;
    Some(value).filter(|value| !value.is_null())
}

/// The utilization of the CPU that a metric aims at (`target`) or has (`current`).
fn cpu_utilization<'a>(metric: &'a Value, values: &str) -> Option<&'a Value> {
    let resource = &metric["resource"];
    let utilization = &resource[values]["averageUtilization"];
    (metric["type"] == "Resource" && resource["name"] == "cpu" && !utilization.is_null())
        .then_some(utilization)
}

fn to_v1(object: &mut Value) {
    for name in [METRICS, BEHAVIOR, CURRENT_METRICS, CONDITIONS] {
        remove_annotation(object, name);
    }
    let metrics = remove(object, "spec", "metrics").unwrap_or_default();
    let is_cpu =
        |metric: &Value| metric["type"] == "Resource" && metric["resource"]["name"] == "cpu";
    let first = items(&metrics)
        .map(|(_, metric)| metric)
        .find(|metric| is_cpu(metric));
    if let Some(utilization) = first.and_then(|metric| cpu_utilization(metric, "target")) {
        object["spec"]["targetCPUUtilizationPercentage"] = utilization.clone();
    }
    let others: Vec<Value> = items(&metrics)
        .filter(|(_, metric)| cpu_utilization(metric, "target").is_none())
        .map(|(_, metric)| metric_to_v1(metric, "target"))
        .collect();
    if !others.is_empty() {
        put(object, METRICS, &others.into());
    }
    if let Some(behavior) = remove(object, "spec", "behavior") {
        put(
            object,
            BEHAVIOR,
            &recapitalized(&behavior, char::to_ascii_uppercase),
        );
    }
    let current = remove(object, "status", "currentMetrics").unwrap_or_default();
    let utilization = items(&current).filter_map(|(_, metric)| cpu_utilization(metric, "current"));
    if let Some(utilization) = utilization.last() {
        object["status"]["currentCPUUtilizationPercentage"] = utilization.clone();
    }
    let current: Vec<Value> = items(&current)
        .map(|(_, metric)| metric_to_v1(metric, "current"))
        .collect();
    if !current.is_empty() {
        put(object, CURRENT_METRICS, &current.into());
    }
    if let Some(conditions) = remove(object, "status", "conditions")
        && items(&conditions).next().is_some()
    {
        put(object, CONDITIONS, &conditions);
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        status.entry("currentReplicas").or_insert(0.into());
        status.entry("desiredReplicas").or_insert(0.into());
    }
}

fn to_v2(object: &mut Value) {
    let others = take(object, METRICS).unwrap_or_default();
    let mut metrics: Vec<Value> = items(&others)
        .map(|(_, metric)| metric_to_v2(metric, "target"))
        .collect();
    if let Some(utilization) = remove(object, "spec", "targetCPUUtilizationPercentage") {
        metrics.push(cpu(utilization.as_i64().unwrap_or(0)));
    }
    if metrics.is_empty() {
        metrics.push(cpu(super::DEFAULT_UTILIZATION));
    }
    object["spec"]["metrics"] = metrics.into();
    if let Some(behavior) = take(object, BEHAVIOR) {
        object["spec"]["behavior"] = recapitalized(&behavior, char::to_ascii_lowercase);
    }
    let utilization = remove(object, "status", "currentCPUUtilizationPercentage");
    let current = match (take(object, CURRENT_METRICS), utilization) {
        // These say more.
        (Some(current), _) => items(&current)
            .map(|(_, metric)| metric_to_v2(metric, "current"))
            .collect(),
        (None, Some(utilization)) => {
            let current = json!({ "averageUtilization": utilization });
            vec![json!({ "type": "Resource", "resource": { "name": "cpu", "current": current } })]
        }
        (None, None) => Vec::new(),
    };
    if !current.is_empty() {
        object["status"]["currentMetrics"] = current.into();
    }
    if let Some(conditions) = take(object, CONDITIONS) {
        object["status"]["conditions"] = conditions;
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut)
        && status.get("currentReplicas") == Some(&json!(0))
    {
        // Go leaves it out in v2.
        status.remove("currentReplicas");
    }
}

/// The JSON of a behavior with other first letters of its fields: Kubernetes writes the names of its Go fields into the
/// annotation, and null for what is not set.
fn recapitalized(value: &Value, to: fn(&char) -> char) -> Value {
    match value {
        Value::Object(fields) => {
            let name = |name: &str| -> String {
                let first = name.chars().take(1).map(|c| to(&c));
                first.chain(name.chars().skip(1)).collect()
            };
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            fields
                .map(|(field, value)| (name(field), recapitalized(value, to)))
                .collect::<Map<_, _>>()
                .into()
        }
        Value::Array(list) => list.iter().map(|value| recapitalized(value, to)).collect(),
        other => other.clone(),
    }
}

/// The fields of a source in v1 for `value`, `averageValue` and `averageUtilization`; `values` is `target` or `current`.
fn value_fields(source: &str, values: &str) -> [(&'static str, String); 3] {
    let average = if source == "object" {
        "averageValue".to_owned()
    } else {
        format!("{values}AverageValue")
    };
    [
        ("value", format!("{values}Value")),
        ("averageValue", average),
        ("averageUtilization", format!("{values}AverageUtilization")),
    ]
}

/// The values that Go's types of v1 always have, `"0"` if there is none.
fn is_always_there(source: &str, values: &str, field: &str) -> bool {
    match (source, field) {
        ("object", "value") | ("pods", "averageValue") => true,
        ("external", "value") => values == "current",
        ("resource" | "containerResource", "averageValue") => values == "current",
        _ => false,
    }
}

fn selector_field(source: &str) -> &'static str {
    if source == "external" {
        "metricSelector"
    } else {
        "selector"
    }
}

fn metric_to_v1(metric: &Value, values: &str) -> Value {
    let Some(name) = field_of(text(&metric["type"])) else {
        return metric.clone();
    };
    let (source, numbers) = (&metric[name], &metric[name][values]);
    let mut out = Map::new();
    let mut copy = |field: &str, value: &Value| {
        if !value.is_null() {
            out.insert(field.to_owned(), value.clone());
        }
    };
    copy("name", &source["name"]);
    copy("container", &source["container"]);
    copy("target", &source["describedObject"]);
    copy("metricName", &source["metric"]["name"]);
    copy(selector_field(name), &source["metric"]["selector"]);
    for (field, old) in value_fields(name, values) {
        if numbers[field].is_null() && is_always_there(name, values, field) {
            copy(&old, &json!("0"));
        } else {
            copy(&old, &numbers[field]);
        }
    }
    json!({ "type": metric["type"], name: out })
}

fn metric_to_v2(metric: &Value, values: &str) -> Value {
    let Some(name) = field_of(text(&metric["type"])) else {
        return metric.clone();
    };
    let source = &metric[name];
    let mut out = json!({ values: {} });
    let mut copy = |path: &[&str], value: &Value| {
        if !value.is_null() {
            let slot = path.iter().fold(&mut out, |at, field| &mut at[*field]);
            *slot = value.clone();
        }
    };
    copy(&["name"], &source["name"]);
    copy(&["container"], &source["container"]);
    copy(&["describedObject"], &source["target"]);
    copy(&["metric", "name"], &source["metricName"]);
    copy(&["metric", "selector"], &source[selector_field(name)]);
    for (field, old) in value_fields(name, values) {
        // The zero of a value that v1 always has stands for none.
        let stands_for_none = source[&old] == "0" && is_always_there(name, values, field);
        if !stands_for_none {
            copy(&[values, field], &source[&old]);
        }
    }
    if values == "target" {
        let set = |field: &str| !out["target"][field].is_null();
        let kind = match name {
            "object" if !set("averageValue") => "Value",
            "external" if set("value") => "Value",
            "resource" | "containerResource" if set("averageUtilization") => "Utilization",
            _ => "AverageValue",
        };
        out["target"]["type"] = kind.into();
    }
    json!({ "type": metric["type"], name: out })
}
