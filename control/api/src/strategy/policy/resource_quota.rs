//! Resource quotas: what all the objects of a namespace together may use.

use serde_json::{Value, json};

use super::resource_names::{check_amount, check_of_quota, is_of_quotas};
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, text};
use crate::strategy::validation::{Errors, IMMUTABLE, items};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Resource quotas.
pub struct ResourceQuota;

/// What a quota can choose the pods by, and the last one the claims.
const SCOPES: [&str; 7] = [
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];

/// Scopes that no pod is in at once.
const CONFLICTS: [[&str; 2]; 2] = [
    ["BestEffort", "NotBestEffort"],
    ["Terminating", "NotTerminating"],
];

/// What a quota for some pods can bound beside their number.
const OF_PODS: [&str; 6] = [
    "cpu",
    "memory",
    "limits.cpu",
    "limits.memory",
    "requests.cpu",
    "requests.memory",
];

const UNSUPPORTED: &str = "unsupported scope";
const MISAPPLIED: &str = "unsupported scope applied to resource";
const EXISTS_ONLY: &str = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity";

/// Whether a quota of a scope can bound a resource.
fn applies(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => {
            matches!(resource, "persistentvolumeclaims" | "requests.storage")
        }
        known if SCOPES.contains(&known) => resource == "pods" || OF_PODS.contains(&resource),
        _ => true,
    }
}

/// How many of the bounded resources a scope does not apply to.
fn misapplied(spec: &Value, scope: &str) -> usize {
    let hard = spec["hard"].as_object().into_iter().flatten();
    hard.filter(|(name, _)| is_of_quotas(name) && !applies(scope, name))
        .count()
}

fn conflicts(scopes: &[&str]) -> usize {
    let both = |pair: &&[&str; 2]| pair.iter().all(|scope| scopes.contains(scope));
    CONFLICTS.iter().filter(both).count()
}

fn scopes(errors: &mut Errors, spec: &Value) {
    let at = "spec.scopes";
    let value = &spec["scopes"];
    let scopes: Vec<&str> = items(value).map(|(_, scope)| text(scope)).collect();
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            errors.add(at, value, UNSUPPORTED);
        }
        for _ in 0..misapplied(spec, scope) {
            errors.add(at, value, MISAPPLIED);
        }
    }
    for _ in 0..conflicts(&scopes) {
        errors.add(at, value, "conflicting scopes");
    }
}

fn scope_selector(errors: &mut Errors, spec: &Value) {
    let at = "spec.scopeSelector.matchExpressions";
    let selector = &spec["scopeSelector"];
    let mut seen = Vec::new();
    for (_, requirement) in items(&selector["matchExpressions"]) {
        let scope = text(&requirement["scopeName"]);
        let (operator, values) = (&requirement["operator"], &requirement["values"]);
        if !SCOPES.contains(&scope) {
            errors.add(format!("{at}.scopeName"), &scope.into(), UNSUPPORTED);
        }
        for _ in 0..misapplied(spec, scope) {
            errors.add(at, selector, MISAPPLIED);
        }
        let has_values = !matches!(scope, "PriorityClass" | "VolumeAttributesClass");
        if has_values && SCOPES.contains(&scope) && operator != "Exists" {
            errors.add(format!("{at}.operator"), operator, EXISTS_ONLY);
        }
        let none = items(values).next().is_none();
        match text(operator) {
            "In" | "NotIn" if none => errors.required(
                format!("{at}.values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            "Exists" | "DoesNotExist" if !none => errors.add(
                format!("{at}.values"),
                values,
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.add(
                format!("{at}.operator"),
                operator,
                "not a valid selector operator",
            ),
        }
        seen.push(scope);
    }
    for _ in 0..conflicts(&seen) {
        let scopes = if spec["scopes"].is_null() {
            &json!([])
        } else {
            &spec["scopes"]
        };
        errors.add(at, scopes, "conflicting scopes");
    }
}

/// Mistakes in the names and the amounts of a list of resources; `at` is its path.
fn amounts(errors: &mut Errors, at: &str, list: &Value) {
    for (name, amount) in list.as_object().into_iter().flatten() {
        let path = format!("{at}[{name}]");
        check_of_quota(errors, &path, name);
        check_amount(errors, &path, name, amount);
    }
}

/// The two columns of a quota: what of the requests is used, and what of the limits.
fn usage(status: &Value) -> (String, String) {
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (name, hard) in status["hard"].as_object().into_iter().flatten() {
        let used = status["used"][name].as_str().unwrap_or("0");
        let shown = format!("{name}: {used}/{}", text(hard));
        if name.starts_with("limits.") {
            limits.push(shown);
        } else {
            requests.push(shown);
        }
    }
    (requests.join(", "), limits.join(", "))
}

impl Strategy for ResourceQuota {
    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        object["status"] = json!({});
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        common::split_update(sub, object, old, false);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &object["spec"];
        amounts(&mut errors, "spec.hard", &spec["hard"]);
        scopes(&mut errors, spec);
        scope_selector(&mut errors, spec);
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        if sub == Some(Subresource::Status) {
            let mut errors = Errors::default();
            for list in ["hard", "used"] {
                amounts(
                    &mut errors,
                    &format!("status.{list}"),
                    &object["status"][list],
                );
            }
            return errors.0;
        }
        let mut errors = Errors(self.validate(object));
        let sorted = |object: &Value| {
            let scopes = items(&object["spec"]["scopes"]).map(|(_, scope)| text(scope).to_owned());
            scopes.collect::<std::collections::BTreeSet<_>>()
        };
        if sorted(object) != sorted(old) {
            errors.add("spec.scopes", &object["spec"]["scopes"], IMMUTABLE);
        }
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Request Limit Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let (requests, limits) = usage(&object["status"]);
        vec![
            table::name(object),
            requests.into(),
            limits.into(),
            table::age(object, now),
        ]
    }
}
