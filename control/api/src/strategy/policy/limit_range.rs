//! Limit ranges: what one pod, container or claim may use, and what it gets where it asks for nothing.

use std::collections::BTreeSet;

use serde_json::Value;

use super::resource_names::{check, check_of_container, may_be_overcommitted, quantity};
use crate::status::FieldError;
use crate::strategy::common::{object_at, text};
use crate::strategy::validation::{Errors, items, qualified_name};
use crate::strategy::{Column, Strategy};
use crate::table;

/// Limit ranges.
pub struct LimitRange;

const TYPES: [&str; 3] = ["Pod", "Container", "PersistentVolumeClaim"];
/// The lists of amounts of a limit; a pod has no defaults.
const LISTS: [&str; 5] = [
    "max",
    "min",
    "default",
    "defaultRequest",
    "maxLimitRequestRatio",
];

/// The largest number of units that can be counted in thousandths.
const MAX_MILLI: i64 = i64::MAX / 1000;

/// Copies the amounts of `from` that `to` leaves out.
fn fill(limit: &mut Value, to: &str, from: &str) {
    let Some(amounts) = limit[from].as_object().cloned() else {
        return;
    };
    let to = object_at(limit, to);
    for (name, amount) in amounts {
        to.entry(name).or_insert(amount);
    }
}

/// Mistakes in the type and in the names of resources; `at` is the path of the limit.
fn names(errors: &mut Errors, at: &str, limit: &Value) {
    let kind = text(&limit["type"]);
    let path = format!("{at}.type");
    let wrong = qualified_name(kind);
    if wrong.is_empty() && !kind.contains('/') && !TYPES.contains(&kind) {
        errors.add(
            &path,
            &limit["type"],
            "must be a standard limit type or fully qualified",
        );
    }
    errors.invalid(&path, kind, wrong);
    for list in LISTS {
        let amounts = limit[list]
            .as_object()
            .filter(|amounts| !amounts.is_empty());
        if kind == "Pod" && matches!(list, "default" | "defaultRequest") {
            if amounts.is_some() {
                errors.0.push(FieldError::forbidden(
                    format!("{at}.{list}"),
                    "may not be specified when `type` is 'Pod'",
                ));
            }
            continue;
        }
        for (name, _) in amounts.into_iter().flatten() {
            let path = format!("{at}.{list}[{name}]");
            if matches!(kind, "Pod" | "Container") {
                check_of_container(errors, &path, name);
            } else {
                check(errors, &path, name);
            }
        }
    }
    let storage = |list: &str| !limit[list]["storage"].is_null();
    if kind == "PersistentVolumeClaim" && !storage("min") && !storage("max") {
        errors.required(
            format!("{at}.limits"),
            "either minimum or maximum storage value is required, but neither was provided",
        );
    }
}

/// Mistakes in the amounts of one resource, which have to be in order.
fn amounts(errors: &mut Errors, at: &str, limit: &Value, name: &str) {
    let pod = limit["type"] == "Pod";
    let amount = |list: &str| {
        let hidden = pod && matches!(list, "default" | "defaultRequest");
        if hidden {
            None
        } else {
            quantity(&limit[list][name])
        }
    };
    // The list and the value that an error is about, then what is not greater than what, with their names.
    for (list, shown, (low, low_name), (high, high_name)) in [
        ("min", "min", ("min", "min"), ("max", "max")),
        (
            "defaultRequest",
            "defaultRequest",
            ("min", "min"),
            ("defaultRequest", "default request"),
        ),
        (
            "defaultRequest",
            "defaultRequest",
            ("defaultRequest", "default request"),
            ("max", "max"),
        ),
        (
            "defaultRequest",
            "defaultRequest",
            ("defaultRequest", "default request"),
            ("default", "default limit"),
        ),
        ("default", "min", ("min", "min"), ("default", "default")),
        ("default", "max", ("default", "default"), ("max", "max")),
    ] {
        if let (Some(low), Some(high)) = (amount(low), amount(high))
            && low.nano() > high.nano()
        {
            let detail = format!("{low_name} value {low} is greater than {high_name} value {high}");
            errors.add(format!("{at}.{list}[{name}]"), &limit[shown][name], &detail);
        }
    }
    ratio(errors, at, limit, name);
    if let (Some(default), Some(request)) = (amount("default"), amount("defaultRequest"))
        && default.nano() != request.nano()
        && !may_be_overcommitted(name)
    {
        let detail = format!(
            "default value {default} must equal to defaultRequest value {request} in {name}"
        );
        let value = &limit["defaultRequest"][name];
        errors.add(format!("{at}.defaultRequest[{name}]"), value, &detail);
    }
}

/// A limit may be at most so many times a request: never less than once, nor more than the bounds allow.
#[expect(
    clippy::cast_precision_loss,
    reason = "kube-apiserver divides floating-point numbers too"
)]
fn ratio(errors: &mut Errors, at: &str, limit: &Value, name: &str) {
    let value = &limit["maxLimitRequestRatio"][name];
    let path = format!("{at}.maxLimitRequestRatio[{name}]");
    let Some(ratio) = quantity(value) else {
        return;
    };
    if ratio.nano() < 1_000_000_000 {
        errors.add(&path, value, &format!("ratio {ratio} is less than 1"));
    }
    let (Some(min), Some(max)) = (quantity(&limit["min"][name]), quantity(&limit["max"][name]))
    else {
        return;
    };
    let fine = [ratio, min, max]
        .iter()
        .all(|quantity| quantity.units() < MAX_MILLI);
    let (wanted, most) = if fine {
        (
            ratio.milli() as f64 / 1000.0,
            max.milli() as f64 / min.milli() as f64,
        )
    } else {
        (
            ratio.units() as f64,
            max.units() as f64 / min.units() as f64,
        )
    };
    if wanted > most {
        let detail = format!("ratio {ratio} is greater than max/min = {most:.6}");
        errors.add(&path, value, &detail);
    }
}

impl Strategy for LimitRange {
    fn default(&self, object: &mut Value) {
        let limits = object
            .get_mut("spec")
            .and_then(|spec| spec.get_mut("limits"));
        for limit in limits.and_then(Value::as_array_mut).into_iter().flatten() {
            if limit["type"] == "Container" {
                fill(limit, "default", "max");
                fill(limit, "defaultRequest", "default");
                fill(limit, "defaultRequest", "min");
            }
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let limits = &object["spec"]["limits"];
        for (index, limit) in items(limits) {
            let at = format!("spec.limits[{index}]");
            names(&mut errors, &at, limit);
            if items(limits)
                .take(index)
                .any(|(_, other)| other["type"] == limit["type"])
            {
                let error = FieldError::duplicate(format!("{at}.type"), &limit["type"]);
                errors.0.push(error);
            }
            let resources: BTreeSet<&String> = LISTS
                .iter()
                .filter_map(|list| limit[*list].as_object())
                .flat_map(serde_json::Map::keys)
                .collect();
            for name in resources {
                amounts(&mut errors, &at, limit, name);
            }
        }
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            table::column("Name", "string", 0),
            table::column("Created At", "date", 0),
        ]
    }

    fn cells(&self, object: &Value, _: jiff::Timestamp) -> Vec<Value> {
        let created = text(&object["metadata"]["creationTimestamp"]);
        vec![table::name(object), created.into()]
    }
}
