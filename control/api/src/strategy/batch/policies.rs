//! Mistakes in the two policies of a job: which failures count, and when it has succeeded.

use serde_json::Value;

use super::indexes;
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::{Errors, items, qualified_name};

const MOST_RULES: usize = 20;
const MOST_EXIT_CODES: usize = 255;
const MOST_PATTERNS: usize = 20;
const LONGEST_INDEXES: usize = 64 * 1024;

const ACTIONS: [&str; 4] = ["Count", "FailIndex", "FailJob", "Ignore"];
const OPERATORS: [&str; 2] = ["In", "NotIn"];
const STATUSES: [&str; 3] = ["False", "True", "Unknown"];

/// Refuses a list with more than `most` items.
fn at_most(errors: &mut Errors, at: &str, list: &Value, most: usize) {
    let count = items(list).count();
    if count > most {
        errors.0.push(FieldError::too_many(at, count, most));
    }
}

/// Refuses a rule as a whole, which is not shown.
fn rule_error(errors: &mut Errors, at: &str, detail: &str) {
    errors.0.push(FieldError {
        reason: "FieldValueInvalid",
        field: at.to_owned(),
        message: format!("Invalid value: {detail}"),
    });
}

/// One of some words; a missing one is told which.
fn word(errors: &mut Errors, at: String, value: &Value, supported: &[&str]) {
    if text(value).is_empty() {
        let list = supported.iter().map(|word| format!("{word:?}"));
        let list = list.collect::<Vec<_>>().join(" ");
        errors.required(at, &format!("valid values: [{list}]"));
    } else {
        errors.one_of(at, value, supported);
    }
}

/// Mistakes in `spec.podFailurePolicy`; `at` is its path.
pub(super) fn pod_failure(errors: &mut Errors, at: &str, spec: &Value) {
    let rules = &spec["podFailurePolicy"]["rules"];
    at_most(errors, &format!("{at}.rules"), rules, MOST_RULES);
    for (index, rule) in items(rules) {
        let path = format!("{at}.rules[{index}]");
        if rule["action"] == "FailIndex" && spec["backoffLimitPerIndex"].is_null() {
            errors.add(
                format!("{path}.action"),
                &rule["action"],
                "requires the backoffLimitPerIndex to be set",
            );
        }
        word(errors, format!("{path}.action"), &rule["action"], &ACTIONS);
        let codes = &rule["onExitCodes"];
        let patterns = &rule["onPodConditions"];
        if !codes.is_null() {
            exit_codes(errors, &format!("{path}.onExitCodes"), codes, spec);
        }
        pod_conditions(errors, &format!("{path}.onPodConditions"), patterns);
        match (codes.is_null(), items(patterns).next().is_none()) {
            (false, false) => rule_error(
                errors,
                &path,
                "specifying both OnExitCodes and OnPodConditions is not supported",
            ),
            (true, true) => rule_error(
                errors,
                &path,
                "specifying one of OnExitCodes and OnPodConditions is required",
            ),
            _ => {}
        }
    }
}

fn pod_conditions(errors: &mut Errors, at: &str, patterns: &Value) {
    at_most(errors, at, patterns, MOST_PATTERNS);
    for (index, pattern) in items(patterns) {
        let path = format!("{at}[{index}]");
        let kind = text(&pattern["type"]);
        errors.invalid(&format!("{path}.type"), kind, qualified_name(kind));
        word(
            errors,
            format!("{path}.status"),
            &pattern["status"],
            &STATUSES,
        );
    }
}

fn exit_codes(errors: &mut Errors, at: &str, requirement: &Value, spec: &Value) {
    let operator = &requirement["operator"];
    word(errors, format!("{at}.operator"), operator, &OPERATORS);
    let name = &requirement["containerName"];
    let pod = &spec["template"]["spec"];
    let known = ["containers", "initContainers"]
        .iter()
        .any(|list| items(&pod[*list]).any(|(_, container)| container["name"] == *name));
    if !name.is_null() && !known {
        errors.add(
            format!("{at}.containerName"),
            name,
            "must be one of the container or initContainer names in the pod template",
        );
    }
    let values = &requirement["values"];
    let path = format!("{at}.values");
    if items(values).next().is_none() {
        let shown = if values.is_null() {
            &Value::Array(Vec::new())
        } else {
            values
        };
        errors.add(&path, shown, "at least one value is required");
    }
    at_most(errors, &path, values, MOST_EXIT_CODES);
    let codes: Vec<i64> = items(values)
        .filter_map(|(_, code)| code.as_i64())
        .collect();
    for (index, code) in codes.iter().enumerate() {
        let path = format!("{path}[{index}]");
        if operator == "In" && *code == 0 {
            errors.add(&path, &0.into(), "must not be 0 for the In operator");
        }
        if codes[..index].contains(code) {
            errors.0.push(FieldError::duplicate(path, &(*code).into()));
        }
    }
    if !codes.is_sorted() {
        errors.add(&path, values, "must be ordered");
    }
}

/// Mistakes in `spec.successPolicy` of an indexed job; `at` is its path.
pub(super) fn success(errors: &mut Errors, at: &str, spec: &Value) {
    let rules = &spec["successPolicy"]["rules"];
    let path = format!("{at}.rules");
    if items(rules).next().is_none() {
        errors.required(
            &path,
            "at least one rules must be specified when the successPolicy is specified",
        );
    }
    at_most(errors, &path, rules, MOST_RULES);
    let completions = spec["completions"].as_i64().unwrap_or(0);
    for (index, rule) in items(rules) {
        success_rule(errors, &format!("{path}[{index}]"), rule, completions);
    }
}

fn success_rule(errors: &mut Errors, at: &str, rule: &Value, completions: i64) {
    let (count, listed) = (&rule["succeededCount"], &rule["succeededIndexes"]);
    if count.is_null() && listed.is_null() {
        errors.required(
            at,
            "at least one of succeededCount or succeededIndexes must be specified",
        );
    }
    let mut total = 0;
    if !listed.is_null() {
        let path = format!("{at}.succeededIndexes");
        if text(listed).len() > LONGEST_INDEXES {
            let error = FieldError::too_long(&path, LONGEST_INDEXES, "bytes");
            errors.0.push(error);
        }
        match indexes::count(text(listed), completions) {
            Ok(number) => total = number,
            Err(wrong) => {
                let detail = format!("error parsing succeededIndexes: {wrong}");
                errors.add(path, listed, &detail);
            }
        }
    }
    let path = format!("{at}.succeededCount");
    errors.not_negative(&path, count);
    let number = count.as_i64().unwrap_or(0);
    if number > completions {
        let detail = format!(
            "must be less than or equal to {completions} (the number of specified completions)"
        );
        errors.add(&path, count, &detail);
    }
    if !listed.is_null() && number > total {
        let detail = format!(
            "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
        );
        errors.add(&path, count, &detail);
    }
}
