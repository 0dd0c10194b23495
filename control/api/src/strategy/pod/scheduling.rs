//! Validation of what decides on which node a pod runs: affinity, spread, tolerations, gates.

use serde_json::Value;

use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::{
    Errors, dns_label, items, label_selector, label_value, qualified_name, subdomain,
};

const NOT_POSITIVE: &str = "must be greater than zero";
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Mistakes in the parts of a pod's spec that the scheduler reads; `at` is the spec's path.
pub fn validate(errors: &mut Errors, at: &str, spec: &Value) {
    let affinity = &spec["affinity"];
    node_affinity(
        errors,
        &format!("{at}.affinity.nodeAffinity"),
        &affinity["nodeAffinity"],
    );
    for kind in ["podAffinity", "podAntiAffinity"] {
        pod_affinity(errors, &format!("{at}.affinity.{kind}"), &affinity[kind]);
    }
    gates(
        errors,
        &format!("{at}.schedulingGates"),
        &spec["schedulingGates"],
    );
    spread(
        errors,
        &format!("{at}.topologySpreadConstraints"),
        &spec["topologySpreadConstraints"],
    );
    tolerations(errors, &format!("{at}.tolerations"), &spec["tolerations"]);
}

fn weight(errors: &mut Errors, at: &str, term: &Value) {
    let weight = term["weight"].as_i64().unwrap_or(0);
    if !(1..=100).contains(&weight) {
        errors.add(
            format!("{at}.weight"),
            &weight.into(),
            "must be in the range 1-100",
        );
    }
}

fn node_affinity(errors: &mut Errors, at: &str, affinity: &Value) {
    let required = &affinity[REQUIRED];
    if !required.is_null() {
        node_selector(errors, &format!("{at}.{REQUIRED}"), required);
    }
    for (index, term) in items(&affinity[PREFERRED]) {
        let path = format!("{at}.{PREFERRED}[{index}]");
        weight(errors, &path, term);
        // A preference may name values that no node can have.
        node_term(
            errors,
            &format!("{path}.preference"),
            &term["preference"],
            false,
        );
    }
}

/// Mistakes in a NodeSelector.
pub fn node_selector(errors: &mut Errors, at: &str, selector: &Value) {
    let terms = &selector["nodeSelectorTerms"];
    let at = format!("{at}.nodeSelectorTerms");
    if items(terms).next().is_none() {
        errors.required(at, "must have at least one node selector term");
        return;
    }
    for (index, term) in items(terms) {
        node_term(errors, &format!("{at}[{index}]"), term, true);
    }
}

fn node_term(errors: &mut Errors, at: &str, term: &Value, check_values: bool) {
    for (index, requirement) in items(&term["matchExpressions"]) {
        let path = format!("{at}.matchExpressions[{index}]");
        let count = items(&requirement["values"]).count();
        match text(&requirement["operator"]) {
            "In" | "NotIn" if count == 0 => errors.required(
                format!("{path}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            ),
            "Exists" | "DoesNotExist" if count > 0 => errors.0.push(FieldError::forbidden(
                format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "Gt" | "Lt" if count != 1 => errors.required(
                format!("{path}.values"),
                "must be specified single value when `operator` is 'Lt' or 'Gt'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            operator => errors.add(
                format!("{path}.operator"),
                &operator.into(),
                "not a valid selector operator",
            ),
        }
        let key = text(&requirement["key"]);
        errors.invalid(&format!("{path}.key"), key, qualified_name(key));
        for (number, value) in items(&requirement["values"]).filter(|_| check_values) {
            let value = text(value);
            errors.invalid(
                &format!("{path}.values[{number}]"),
                value,
                label_value(value),
            );
        }
    }
    for (index, requirement) in items(&term["matchFields"]) {
        let path = format!("{at}.matchFields[{index}]");
        match text(&requirement["operator"]) {
            "In" | "NotIn" if items(&requirement["values"]).count() != 1 => errors.required(
                format!("{path}.values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ),
            "In" | "NotIn" => {}
            operator => errors.add(
                format!("{path}.operator"),
                &operator.into(),
                "not a valid selector operator",
            ),
        }
        if requirement["key"] != "metadata.name" {
            errors.add(
                format!("{path}.key"),
                &text(&requirement["key"]).into(),
                "not a valid field selector key",
            );
            continue;
        }
        for (number, value) in items(&requirement["values"]) {
            let value = text(value);
            errors.invalid(&format!("{path}.values[{number}]"), value, subdomain(value));
        }
    }
}

fn pod_affinity(errors: &mut Errors, at: &str, affinity: &Value) {
    for (index, term) in items(&affinity[REQUIRED]) {
        pod_term(errors, &format!("{at}.{REQUIRED}[{index}]"), term);
    }
    for (index, term) in items(&affinity[PREFERRED]) {
        let path = format!("{at}.{PREFERRED}[{index}]");
        weight(errors, &path, term);
        pod_term(
            errors,
            &format!("{path}.podAffinityTerm"),
            &term["podAffinityTerm"],
        );
    }
}

fn pod_term(errors: &mut Errors, at: &str, term: &Value) {
    for field in ["labelSelector", "namespaceSelector"] {
        label_selector(errors, &format!("{at}.{field}"), &term[field]);
    }
    for (_, namespace) in items(&term["namespaces"]) {
        let namespace = text(namespace);
        errors.invalid(&format!("{at}.namespace"), namespace, dns_label(namespace));
    }
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = &term[field];
        if items(keys).next().is_none() {
            continue;
        }
        if term["labelSelector"].is_null() {
            errors.0.push(FieldError::forbidden(
                format!("{at}.{field}"),
                "must not be specified when labelSelector is not set",
            ));
            continue;
        }
        for (index, key) in items(keys) {
            let key = text(key);
            errors.invalid(&format!("{at}.{field}[{index}]"), key, qualified_name(key));
        }
    }
    for (index, key) in items(&term["matchLabelKeys"]) {
        if items(&term["mismatchLabelKeys"]).any(|(_, other)| other == key) {
            errors.add(
                format!("{at}.matchLabelKeys[{index}]"),
                key,
                "exists in both matchLabelKeys and mismatchLabelKeys",
            );
        }
    }
    let key = text(&term["topologyKey"]);
    if key.is_empty() {
        errors.required(format!("{at}.topologyKey"), "can not be empty");
    }
    errors.invalid(&format!("{at}.topologyKey"), key, qualified_name(key));
}

fn gates(errors: &mut Errors, at: &str, gates: &Value) {
    for (index, gate) in items(gates) {
        let path = format!("{at}[{index}]");
        let name = text(&gate["name"]);
        errors.invalid(&path, name, qualified_name(name));
        if items(gates)
            .take(index)
            .any(|(_, other)| other["name"] == gate["name"])
        {
            errors.0.push(FieldError::duplicate(path, &name.into()));
        }
    }
}

fn spread(errors: &mut Errors, at: &str, constraints: &Value) {
    for (index, constraint) in items(constraints) {
        let path = format!("{at}[{index}]");
        let skew = constraint["maxSkew"].as_i64().unwrap_or(0);
        if skew <= 0 {
            errors.add(format!("{path}.maxSkew"), &skew.into(), NOT_POSITIVE);
        }
        let (key, action) = (
            text(&constraint["topologyKey"]),
            text(&constraint["whenUnsatisfiable"]),
        );
        if key.is_empty() {
            errors.required(format!("{path}.topologyKey"), "can not be empty");
        }
        errors.one_of(
            format!("{path}.whenUnsatisfiable"),
            &action.into(),
            &["DoNotSchedule", "ScheduleAnyway"],
        );
        let repeated = |(_, other): (usize, &Value)| {
            text(&other["topologyKey"]) == key && text(&other["whenUnsatisfiable"]) == action
        };
        if items(constraints).skip(index + 1).any(repeated) {
            errors.0.push(FieldError::duplicate(
                format!("{path}.{{topologyKey, whenUnsatisfiable}}"),
                &format!("{{{key}, {action}}}").into(),
            ));
        }
        let domains = &constraint["minDomains"];
        if domains.as_i64().is_some_and(|n| n <= 0) {
            errors.add(format!("{path}.minDomains"), domains, NOT_POSITIVE);
        }
        if !domains.is_null() && action != "DoNotSchedule" {
            errors.add(
                format!("{path}.minDomains"),
                domains,
                &format!(
                    "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {action}"
                ),
            );
        }
        for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            if !constraint[field].is_null() {
                errors.one_of(
                    format!("{path}.{field}"),
                    &constraint[field],
                    &["Honor", "Ignore"],
                );
            }
        }
        spread_keys(errors, &path, constraint);
        label_selector(
            errors,
            &format!("{path}.labelSelector"),
            &constraint["labelSelector"],
        );
    }
}

fn spread_keys(errors: &mut Errors, at: &str, constraint: &Value) {
    let (keys, selector) = (&constraint["matchLabelKeys"], &constraint["labelSelector"]);
    if items(keys).next().is_none() {
        return;
    }
    if selector.is_null() {
        errors.0.push(FieldError::forbidden(
            format!("{at}.matchLabelKeys"),
            "must not be specified when labelSelector is not set",
        ));
    }
    for (index, key) in items(keys) {
        let path = format!("{at}.matchLabelKeys[{index}]");
        errors.invalid(&path, text(key), qualified_name(text(key)));
        if selector["matchLabels"].get(text(key)).is_some()
            || items(&selector["matchExpressions"]).any(|(_, other)| other["key"] == *key)
        {
            errors.add(path, key, "exists in both matchLabelKeys and labelSelector");
        }
    }
}

/// Mistakes in tolerations.
pub fn tolerations(errors: &mut Errors, at: &str, list: &Value) {
    for (index, toleration) in items(list) {
        let path = format!("{at}[{index}]");
        let (key, operator, value) = (
            text(&toleration["key"]),
            text(&toleration["operator"]),
            text(&toleration["value"]),
        );
        if !key.is_empty() {
            errors.invalid(&format!("{path}.key"), key, qualified_name(key));
        } else if operator != "Exists" {
            errors.add(
                format!("{path}.operator"),
                &operator.into(),
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        let effect = text(&toleration["effect"]);
        if !toleration["tolerationSeconds"].is_null() && effect != "NoExecute" {
            errors.add(
                format!("{path}.effect"),
                &effect.into(),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
        match operator {
            "" | "Equal" => {
                let wrong = label_value(value);
                if !wrong.is_empty() {
                    errors.add(format!("{path}.operator"), &value.into(), &wrong.join(";"));
                }
            }
            "Exists" if !value.is_empty() => errors.add(
                format!("{path}.operator"),
                &value.into(),
                "value must be empty when `operator` is 'Exists'",
            ),
            _ => errors.one_of(
                format!("{path}.operator"),
                &operator.into(),
                &["Equal", "Exists"],
            ),
        }
        if !effect.is_empty() {
            errors.one_of(
                format!("{path}.effect"),
                &toleration["effect"],
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            );
        }
    }
}
