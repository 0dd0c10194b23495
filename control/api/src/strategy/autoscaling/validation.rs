//! Mistakes in the spec of an autoscaler (v2): its bounds, its target, how fast it scales. The metrics are in `metrics`.

use serde_json::Value;

use super::metrics;
use crate::registry::names;
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::{Errors, items};

const LONGEST_PERIOD: i64 = 1800;
const LONGEST_STABILIZATION: i64 = 3600;

/// What the `apiVersion` of a reference may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ApiVersion {
    /// Anything: an old reference stays as it is.
    Any,
    /// One with or without a group.
    Valid,
    /// One with a group, which everything that scales has, but for replication controllers.
    Grouped,
}

/// Mistakes in a spec that is new, or replaces `old`.
pub(super) fn validate(errors: &mut Errors, spec: &Value, old: Option<&Value>) {
    let (least, most) = (&spec["minReplicas"], &spec["maxReplicas"]);
    errors.not_negative("spec.minReplicas", least);
    let replicas = most.as_i64().unwrap_or(0);
    if replicas < 1 {
        errors.add(
            "spec.maxReplicas",
            &replicas.into(),
            "must be greater than 0",
        );
    }
    if least.as_i64().is_some_and(|least| replicas < least) {
        errors.add(
            "spec.maxReplicas",
            &replicas.into(),
            "must be greater than or equal to `minReplicas`",
        );
    }
    let target = &spec["scaleTargetRef"];
    let same = |field: &str| old.is_some_and(|old| old["scaleTargetRef"][field] == target[field]);
    let version = if same("apiVersion") && same("kind") {
        ApiVersion::Any
    } else if target["kind"] == "ReplicationController" {
        ApiVersion::Valid
    } else {
        ApiVersion::Grouped
    };
    reference(errors, "spec.scaleTargetRef", target, version);
    metrics::validate(errors, spec, old);
    for direction in ["scaleUp", "scaleDown"] {
        let rules = &spec["behavior"][direction];
        if !rules.is_null() {
            scaling_rules(errors, &format!("spec.behavior.{direction}"), rules);
        }
    }
}

/// What is wrong with the `apiVersion` of a reference.
pub(super) fn api_version(version: &str, allowed: ApiVersion) -> Option<String> {
    let slashes = version.matches('/').count();
    match allowed {
        ApiVersion::Any => None,
        _ if slashes > 1 => Some(format!("unexpected GroupVersion string: {version}")),
        ApiVersion::Grouped if slashes == 0 || version.starts_with('/') => {
            Some("apiVersion must specify API group".to_owned())
        }
        ApiVersion::Grouped | ApiVersion::Valid => None,
    }
}

/// Mistakes in a reference to another object; `at` is its path.
pub(super) fn reference(errors: &mut Errors, at: &str, object: &Value, version: ApiVersion) {
    for field in ["kind", "name"] {
        let name = text(&object[field]);
        if name.is_empty() {
            errors.required(format!("{at}.{field}"), "");
        } else if let Err(wrong) = names::path_segment(name) {
            errors.add(format!("{at}.{field}"), &object[field], &wrong);
        }
    }
    let shown = text(&object["apiVersion"]);
    if let Some(wrong) = api_version(shown, version) {
        errors.add(format!("{at}.apiVersion"), &shown.into(), &wrong);
    }
}

/// Mistakes in how an autoscaler may scale in one direction; `at` is its path.
fn scaling_rules(errors: &mut Errors, at: &str, rules: &Value) {
    let window = &rules["stabilizationWindowSeconds"];
    let path = format!("{at}.stabilizationWindowSeconds");
    match window.as_i64().unwrap_or(0) {
        ..0 => errors.add(path, window, "must be greater than or equal to zero"),
        0..=LONGEST_STABILIZATION => {}
        _ => errors.add(
            path,
            window,
            &format!("must be less than or equal to {LONGEST_STABILIZATION}"),
        ),
    }
    if !rules["selectPolicy"].is_null() {
        let known = ["Disabled", "Max", "Min"];
        errors.one_of(format!("{at}.selectPolicy"), &rules["selectPolicy"], &known);
    }
    if metrics::sign(&rules["tolerance"]) == Some(-1) {
        errors.add(
            format!("{at}.tolerance"),
            &rules["tolerance"],
            "must be greater or equal to zero",
        );
    }
    if items(&rules["policies"]).next().is_none() {
        errors.required(format!("{at}.policies"), "must specify at least one Policy");
    }
    for (index, policy) in items(&rules["policies"]) {
        let path = format!("{at}.policies[{index}]");
        let known = ["Percent", "Pods"];
        if !known.contains(&text(&policy["type"])) {
            let kind = text(&policy["type"]).into();
            let error = FieldError::not_supported(format!("{path}.type"), &kind, &known);
            errors.0.push(error);
        }
        for field in ["value", "periodSeconds"] {
            let number = policy[field].as_i64().unwrap_or(0);
            let path = format!("{path}.{field}");
            if number <= 0 {
                errors.add(&path, &number.into(), "must be greater than zero");
            }
            if field == "periodSeconds" && number > LONGEST_PERIOD {
                let detail = format!("must be less than or equal to {LONGEST_PERIOD}");
                errors.add(&path, &number.into(), &detail);
            }
        }
    }
}
