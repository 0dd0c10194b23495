//! The table of autoscalers.

use serde_json::Value;

use super::metrics::field_of;
use crate::strategy::Column;
use crate::strategy::common::text;
use crate::strategy::validation::items;
use crate::table;

/// How many metrics are shown.
const SHOWN: usize = 2;

pub(super) fn columns() -> Vec<Column> {
    table::columns("Name Reference Targets MinPods MaxPods Replicas Age")
}

pub(super) fn cells(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let target = &spec["scaleTargetRef"];
    let least = spec["minReplicas"].as_i64();
    vec![
        table::name(object),
        format!("{}/{}", text(&target["kind"]), text(&target["name"])).into(),
        metrics(&spec["metrics"], &status["currentMetrics"]).into(),
        least.map_or("<unset>".to_owned(), |n| n.to_string()).into(),
        spec["maxReplicas"].as_i64().unwrap_or(0).into(),
        status["currentReplicas"].as_i64().unwrap_or(0).into(),
        table::age(object, now),
    ]
}

/// `cpu: 20%/80%, 5/10 (avg) + 1 more...`
fn metrics(specs: &Value, statuses: &Value) -> String {
    let list: Vec<String> = items(specs)
        .map(|(index, spec)| metric(spec, &statuses[index]))
        .collect();
    let shown = list[..list.len().min(SHOWN)].join(", ");
    match list.len() {
        0 => "<none>".to_owned(),
        count if count > SHOWN => format!("{shown} + {} more...", count - SHOWN),
        _ => shown,
    }
}

/// What a metric is, and what it shall be.
fn metric(spec: &Value, status: &Value) -> String {
    let Some(field) = field_of(text(&spec["type"])) else {
        return "<unknown type>".to_owned();
    };
    let (target, current) = (&spec[field]["target"], &status[field]["current"]);
    let average = !target["averageValue"].is_null();
    let quantity = |name: &str| {
        let current = current[name].as_str().unwrap_or("<unknown>");
        format!("{current}/{}", text(&target[name]))
    };
    let name = text(&spec[field]["name"]);
    match field {
        "pods" => quantity("averageValue"),
        "resource" | "containerResource" if average => {
            format!("{name}: {}", quantity("averageValue"))
        }
        "resource" | "containerResource" => {
            let percent = |value: &Value, none: &str| {
                let value = value["averageUtilization"].as_i64();
                value.map_or(none.to_owned(), |value| format!("{value}%"))
            };
            let current = percent(current, "<unknown>");
            format!("{name}: {current}/{}", percent(target, "<auto>"))
        }
        _ if average => format!("{} (avg)", quantity("averageValue")),
        _ => quantity("value"),
    }
}
