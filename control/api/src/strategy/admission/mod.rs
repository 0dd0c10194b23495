//! Webhooks and policies that admit requests: here the rules by which both choose requests.
//!
//! The CEL expressions of policies and match conditions are stored as they are: nothing compiles them here.

mod binding;
mod policy;
mod webhook;

use serde_json::Value;

pub use binding::AdmissionPolicyBinding;
pub use policy::AdmissionPolicy;
pub use webhook::WebhookConfiguration;

use super::common::text;
use super::fields::{anything, count, has_wildcard, path_segment, required_text};
use super::validation::{Errors, items, label_selector, qualified_name};
use crate::status::FieldError;

const FAILURE_POLICIES: &[&str] = &["Fail", "Ignore"];
const MATCH_POLICIES: &[&str] = &["Equivalent", "Exact"];
const REINVOCATION_POLICIES: &[&str] = &["IfNeeded", "Never"];

/// How many match conditions there may be.
const MOST_CONDITIONS: usize = 64;

/// Mistakes in a rule: which operations on which resources it is about.
fn rule(errors: &mut Errors, at: &str, rule: &Value) {
    const OPERATIONS: &[&str] = &["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
    lone_wildcard(
        errors,
        &format!("{at}.operations"),
        &rule["operations"],
        "operations",
    );
    for (index, operation) in items(&rule["operations"]) {
        errors.one_of(format!("{at}.operations[{index}]"), operation, OPERATIONS);
    }
    lone_wildcard(
        errors,
        &format!("{at}.apiGroups"),
        &rule["apiGroups"],
        "API groups",
    );
    lone_wildcard(
        errors,
        &format!("{at}.apiVersions"),
        &rule["apiVersions"],
        "API versions",
    );
    for (index, version) in items(&rule["apiVersions"]) {
        required_text(
            errors,
            &format!("{at}.apiVersions[{index}]"),
            version,
            anything,
        );
    }
    resources(errors, &format!("{at}.resources"), &rule["resources"]);
    if !rule["scope"].is_null() {
        errors.one_of(
            format!("{at}.scope"),
            &rule["scope"],
            &["*", "Cluster", "Namespaced"],
        );
    }
}

/// Requires a list, in which `*` stands alone.
fn lone_wildcard(errors: &mut Errors, at: &str, list: &Value, what: &str) {
    match count(list) {
        0 => errors.required(at, ""),
        1 => {}
        _ if has_wildcard(list) => {
            errors.add(
                at,
                list,
                &format!("if '*' is present, must not specify other {what}"),
            );
        }
        _ => {}
    }
}

/// Resources, `*` among them, and subresources: `pods/log`, `pods/*`, `*/scale`. No entry may repeat what another covers.
fn resources(errors: &mut Errors, at: &str, list: &Value) {
    if count(list) == 0 {
        errors.required(at, "");
    }
    let mut plain = false;
    for (index, entry) in items(list) {
        let at = format!("{at}[{index}]");
        let name = text(entry);
        let Some((resource, sub)) = name.split_once('/') else {
            required_text(errors, &at, entry, anything);
            // As in kube-apiserver, the last one counts.
            plain = if name.is_empty() { plain } else { name != "*" };
            continue;
        };
        let before = |wanted: String| items(list).take(index).any(|(_, other)| *other == wanted);
        for cover in [format!("{resource}/*"), format!("*/{sub}")] {
            if before(cover.clone()) {
                let detail = format!("if '{cover}' is present, must not specify {name}");
                errors.add(&at, entry, &detail);
            }
        }
    }
    let has = |name: &str| items(list).any(|(_, entry)| entry == name);
    if count(list) > 1 && has("*/*") {
        errors.add(
            at,
            list,
            "if '*/*' is present, must not specify other resources",
        );
    }
    if has("*") && plain {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errors.add(at, list, detail);
    }
}

/// Mistakes in the names of match conditions, and missing expressions.
fn match_conditions(errors: &mut Errors, at: &str, list: &Value) {
    if count(list) > MOST_CONDITIONS {
        errors
            .0
            .push(FieldError::too_many(at, count(list), MOST_CONDITIONS));
    }
    for (index, condition) in items(list) {
        let at = format!("{at}[{index}]");
        if text(&condition["expression"]).trim().is_empty() {
            errors.required(format!("{at}.expression"), "");
        }
        let name = &condition["name"];
        required_text(errors, &format!("{at}.name"), name, qualified_name);
        if !text(name).is_empty()
            && items(list)
                .take(index)
                .any(|(_, other)| other["name"] == *name)
        {
            errors
                .0
                .push(FieldError::duplicate(format!("{at}.name"), name));
        }
    }
}

/// Mistakes in what a policy or binding is about.
fn match_resources(errors: &mut Errors, at: &str, matched: &Value) {
    match &matched["matchPolicy"] {
        Value::Null => errors.required(format!("{at}.matchPolicy"), ""),
        policy => errors.one_of(format!("{at}.matchPolicy"), policy, MATCH_POLICIES),
    }
    for field in ["namespaceSelector", "objectSelector"] {
        if matched[field].is_null() {
            errors.required(format!("{at}.{field}"), "");
        }
        label_selector(errors, &format!("{at}.{field}"), &matched[field]);
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for (index, named) in items(&matched[field]) {
            let at = format!("{at}.{field}[{index}]");
            for (number, name) in items(&named["resourceNames"]) {
                let at = format!("{at}.resourceNames[{number}]");
                errors.invalid(&at, text(name), path_segment(text(name)));
                if items(&named["resourceNames"])
                    .take(number)
                    .any(|(_, other)| other == name)
                {
                    errors.0.push(FieldError::duplicate(at, name));
                }
            }
            rule(errors, &at, named);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::strategy::fields::tests::shown;

    #[test]
    #[rustfmt::skip] // One list of resources a line.
    fn a_rule_names_each_resource_once() {
        for (list, wanted) in [
            (json!(["pods", "pods/log", "*/scale"]), vec![]),
            (json!([]), vec!["resources: Required value"]),
            (json!([""]), vec!["resources[0]: Required value"]),
            (json!(["pods/*", "pods/log"]), vec!["resources[1]: Invalid value: \"pods/log\": if 'pods/*' is present, must not specify pods/log"]),
            (json!(["*/scale", "a/scale"]), vec!["resources[1]: Invalid value: \"a/scale\": if '*/scale' is present, must not specify a/scale"]),
            (json!(["*/*", "pods"]), vec!["resources: Invalid value: [\"*/*\",\"pods\"]: if '*/*' is present, must not specify other resources"]),
            (json!(["*", "pods"]), vec!["resources: Invalid value: [\"*\",\"pods\"]: if '*' is present, must not specify other resources without subresources"]),
        ] {
            let mut errors = Errors::default();
            resources(&mut errors, "resources", &list);
            assert_eq!(shown(&errors.0), wanted, "{list}");
        }
    }
}
