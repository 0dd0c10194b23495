//! Which requests belong together, and to which priority level.

use serde_json::{Value, json};

use super::conditions;
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::fields::{anything, count, has_wildcard, required_text};
use crate::strategy::validation::{Errors, dns_label, items, subdomain};
use crate::strategy::{Column, Strategy};
use crate::table;

/// Which requests belong together, and to which priority level.
pub struct FlowSchema;

const VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "proxy",
    "update",
    "watch",
];

/// The largest `matchingPrecedence`; the smallest of all is the first to match.
const LAST: i64 = 10_000;

/// The spec that a schema of this name must have, for the two that the server relies on.
fn mandatory_schema(name: &str) -> Option<Value> {
    let (precedence, groups, method) = match name {
        "exempt" => (1, vec!["system:masters"], None),
        "catch-all" => (
            LAST,
            vec!["system:unauthenticated", "system:authenticated"],
            Some("ByUser"),
        ),
        _ => return None,
    };
    let subjects: Value = groups
        .iter()
        .map(|group| json!({ "kind": "Group", "group": { "name": group } }))
        .collect();
    let mut spec = json!({
        "priorityLevelConfiguration": { "name": name },
        "matchingPrecedence": precedence,
        "rules": [{
            "subjects": subjects,
            "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "clusterScope": true, "namespaces": ["*"] }],
            "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
        }],
    });
    if let Some(method) = method {
        spec["distinguisherMethod"] = json!({ "type": method });
    }
    Some(spec)
}

impl Strategy for FlowSchema {
    fn has_status(&self) -> bool {
        true
    }

    fn require_resource_version(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let (name, spec) = (text(&object["metadata"]["name"]), &object["spec"]);
        let precedence = spec["matchingPrecedence"].as_i64().unwrap_or(0);
        let detail = match precedence {
            ..=0 => Some("must be a positive value"),
            1 if name != "exempt" => {
                Some("only the schema named 'exempt' may have matchingPrecedence 1")
            }
            1..=LAST => None,
            _ => Some("must not be greater than 10000"),
        };
        if let Some(detail) = detail {
            errors.add("spec.matchingPrecedence", &precedence.into(), detail);
        }
        let method = &spec["distinguisherMethod"];
        if !method.is_null() && !matches!(text(&method["type"]), "ByNamespace" | "ByUser") {
            let methods = &["ByNamespace", "ByUser"];
            let error = FieldError::not_supported("spec.distinguisherMethod.type", method, methods);
            errors.0.push(error);
        }
        let (at, level) = (
            "spec.priorityLevelConfiguration.name",
            &spec["priorityLevelConfiguration"]["name"],
        );
        match text(level) {
            "" => errors.required(at, "must reference a priority level"),
            level => errors.invalid(at, level, subdomain(level)),
        }
        for (index, rule) in items(&spec["rules"]) {
            rule_of(&mut errors, &format!("spec.rules[{index}]"), rule);
        }
        if mandatory_schema(name).is_some_and(|fixed| fixed != *spec) {
            errors.add(
                "spec",
                spec,
                &format!("spec of '{name}' must equal the fixed value"),
            );
        }
        conditions(&mut errors, object);
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        _: &Value,
    ) -> Vec<FieldError> {
        if sub != Some(Subresource::Status) {
            return self.validate(object);
        }
        let mut errors = Errors::default();
        conditions(&mut errors, object);
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name PriorityLevel MatchingPrecedence DistinguisherMethod Age MissingPL")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        let mut states =
            items(&object["status"]["conditions"]).filter(|(_, c)| c["type"] == "Dangling");
        vec![
            table::name(object),
            text(&spec["priorityLevelConfiguration"]["name"]).into(),
            spec["matchingPrecedence"].as_i64().unwrap_or(0).into(),
            spec["distinguisherMethod"]["type"]
                .as_str()
                .unwrap_or("<none>")
                .into(),
            table::age(object, now),
            states
                .next()
                .map_or("?", |(_, state)| text(&state["status"]))
                .into(),
        ]
    }
}

fn rule_of(errors: &mut Errors, at: &str, rule: &Value) {
    if count(&rule["subjects"]) == 0 {
        errors.required(
            format!("{at}.subjects"),
            "subjects must contain at least one value",
        );
    }
    for (index, value) in items(&rule["subjects"]) {
        subject(errors, &format!("{at}.subjects[{index}]"), value);
    }
    if count(&rule["resourceRules"]) + count(&rule["nonResourceRules"]) == 0 {
        let detail = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.required(at, detail);
    }
    for (index, value) in items(&rule["resourceRules"]) {
        resource_rule(errors, &format!("{at}.resourceRules[{index}]"), value);
    }
    for (index, value) in items(&rule["nonResourceRules"]) {
        let at = format!("{at}.nonResourceRules[{index}]");
        verbs(errors, &at, value);
        let (at, urls) = (format!("{at}.nonResourceURLs"), &value["nonResourceURLs"]);
        if wildcard_or_some(
            errors,
            &at,
            urls,
            "nonResourceURLs must contain at least one value",
            "non-resource URLs",
        ) {
            continue;
        }
        for (number, url) in items(urls) {
            if let Some(detail) = path_mistake(text(url)) {
                errors.add(format!("{at}[{number}]"), url, detail);
            }
        }
    }
}

fn subject(errors: &mut Errors, at: &str, subject: &Value) {
    const KINDS: &[(&str, &str)] = &[
        ("Group", "group"),
        ("ServiceAccount", "serviceAccount"),
        ("User", "user"),
    ];
    let kind = text(&subject["kind"]);
    let Some((_, field)) = KINDS.iter().find(|(name, _)| *name == kind) else {
        let kinds = &["Group", "ServiceAccount", "User"];
        return errors.one_of(format!("{at}.kind"), &subject["kind"], kinds);
    };
    let (place, named) = (format!("{at}.{field}"), &subject[*field]);
    if named.is_null() {
        errors.required(
            &place,
            &format!("{field} is required when subject kind is '{kind}'"),
        );
    } else {
        let is_account = kind == "ServiceAccount" && named["name"] != "*";
        let check = if is_account { subdomain } else { anything };
        required_text(errors, &format!("{place}.name"), &named["name"], check);
        if kind == "ServiceAccount" {
            match text(&named["namespace"]) {
                "" => errors.required(
                    format!("{place}.namespace"),
                    "must specify namespace for service account",
                ),
                name => errors.invalid(&format!("{place}.namespace"), name, dns_label(name)),
            }
        }
    }
    for (other, field) in KINDS
        .iter()
        .filter(|(name, field)| *name != kind && !subject[*field].is_null())
    {
        let detail = format!("{field} is forbidden when subject kind is not '{other}'");
        errors
            .0
            .push(FieldError::forbidden(format!("{at}.{field}"), &detail));
    }
}

/// Requires a list; returns whether it is empty or has the wildcard, which then must stand alone.
fn wildcard_or_some(
    errors: &mut Errors,
    at: &str,
    list: &Value,
    missing: &str,
    what: &str,
) -> bool {
    if count(list) == 0 {
        errors.required(at, missing);
    } else if has_wildcard(list) && count(list) > 1 {
        errors.add(
            at,
            list,
            &format!("if '*' is present, must not specify other {what}"),
        );
    }
    count(list) == 0 || has_wildcard(list)
}

fn verbs(errors: &mut Errors, at: &str, rule: &Value) {
    let (at, list) = (format!("{at}.verbs"), &rule["verbs"]);
    if !wildcard_or_some(
        errors,
        &at,
        list,
        "verbs must contain at least one value",
        "verbs",
    ) && !items(list).all(|(_, verb)| VERBS.contains(&text(verb)))
    {
        errors.0.push(FieldError::not_supported(at, list, VERBS));
    }
}

fn resource_rule(errors: &mut Errors, at: &str, rule: &Value) {
    verbs(errors, at, rule);
    let missing = "resource rules must supply at least one api group";
    wildcard_or_some(
        errors,
        &format!("{at}.apiGroups"),
        &rule["apiGroups"],
        missing,
        "api groups",
    );
    let missing = "resource rules must supply at least one resource";
    wildcard_or_some(
        errors,
        &format!("{at}.resources"),
        &rule["resources"],
        missing,
        "resources",
    );
    let (at, list) = (format!("{at}.namespaces"), &rule["namespaces"]);
    if count(list) == 0 && rule["clusterScope"] == true {
        return;
    }
    let missing = "resource rules that are not cluster scoped must supply at least one namespace";
    if wildcard_or_some(errors, &at, list, missing, "namespaces") {
        return;
    }
    for (index, namespace) in items(list) {
        for detail in dns_label(text(namespace)) {
            let detail =
                format!("each member of this list must be '*' or a DNS-1123 label; {detail}");
            errors.add(format!("{at}[{index}]"), namespace, &detail);
        }
    }
}

fn path_mistake(path: &str) -> Option<&'static str> {
    let stars = path.matches('*').count();
    match path {
        "" => Some("must not be empty"),
        "/" => None,
        _ if !path.starts_with('/') => Some("must start with slash"),
        _ if path.contains(' ') => Some("must not contain white-space"),
        _ if path.contains("//") => Some("must not contain double slash"),
        _ if stars > 1 || stars == 1 && !path.ends_with("/*") => {
            Some("wildcard can only do suffix matching")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::fields::tests::check_new;

    fn schema() -> Value {
        json!({ "metadata": { "name": "a" }, "spec": { "priorityLevelConfiguration": { "name": "b" }, "matchingPrecedence": 1000,
            "rules": [{ "subjects": [{ "kind": "User", "user": { "name": "c" } }],
                "resourceRules": [{ "verbs": ["get"], "apiGroups": ["*"], "resources": ["pods"], "namespaces": ["d"] }],
                "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["/healthz/*"] }] }] } })
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_schema_says_whose_requests_it_is_about() {
        let (rule, at) = ("/spec/rules/0", "spec.rules[0]");
        check_new(&FlowSchema, &schema(), &[
            ("/spec/matchingPrecedence", json!(-1), &["spec.matchingPrecedence: Invalid value: -1: must be a positive value"]),
            ("/spec/matchingPrecedence", json!(1), &["spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1"]),
            ("/spec/matchingPrecedence", json!(10001), &["spec.matchingPrecedence: Invalid value: 10001: must not be greater than 10000"]),
            ("/spec/distinguisherMethod", json!({ "type": "ByPod" }), &["spec.distinguisherMethod.type: Unsupported value: {\"type\":\"ByPod\"}: supported values: \"ByNamespace\", \"ByUser\""]),
            ("/spec/priorityLevelConfiguration/name", Value::Null, &["spec.priorityLevelConfiguration.name: Required value: must reference a priority level"]),
            (&format!("{rule}/subjects"), json!([]), &[&format!("{at}.subjects: Required value: subjects must contain at least one value")]),
            (&format!("{rule}/subjects/0/kind"), json!("Robot"), &[&format!("{at}.subjects[0].kind: Unsupported value: \"Robot\": supported values: \"Group\", \"ServiceAccount\", \"User\"")]),
            (&format!("{rule}/subjects/0/user"), Value::Null, &[&format!("{at}.subjects[0].user: Required value: user is required when subject kind is 'User'")]),
            (&format!("{rule}/subjects/0/group"), json!({ "name": "g" }), &[&format!("{at}.subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'")]),
            (&format!("{rule}/resourceRules/0/verbs"), json!(["look"]), &[&format!("{at}.resourceRules[0].verbs: Unsupported value: [\"look\"]: supported values: \"create\", \"delete\", \"deletecollection\", \"get\", \"list\", \"patch\", \"proxy\", \"update\", \"watch\"")]),
            (&format!("{rule}/resourceRules/0/apiGroups"), json!(["*", "a"]), &[&format!("{at}.resourceRules[0].apiGroups: Invalid value: [\"*\",\"a\"]: if '*' is present, must not specify other api groups")]),
            (&format!("{rule}/resourceRules/0/namespaces"), json!([]), &[&format!("{at}.resourceRules[0].namespaces: Required value: resource rules that are not cluster scoped must supply at least one namespace")]),
            (&format!("{rule}/nonResourceRules/0/nonResourceURLs"), json!(["a"]), &[&format!("{at}.nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"a\": must start with slash")]),
            (&format!("{rule}/nonResourceRules/0/nonResourceURLs"), json!(["/*/a"]), &[&format!("{at}.nonResourceRules[0].nonResourceURLs[0]: Invalid value: \"/*/a\": wildcard can only do suffix matching")]),
        ]);
        let mandatory = json!({ "metadata": { "name": "exempt" }, "spec": mandatory_schema("exempt") });
        assert!(FlowSchema.validate(&mandatory).is_empty());
        let mut other = mandatory;
        other["spec"]["rules"] = json!([]);
        assert!(FlowSchema.validate(&other)[0].message.ends_with("spec of 'exempt' must equal the fixed value"));
    }
}
