//! Which requests a webhook wants to see: tables.

use std::sync::Arc;

use serde_json::{Value, json};

use super::pod;
use crate::registry::admission::webhook::config::{self, Hook};
use crate::registry::admission::webhook::matching::{invocation, is_exempt};
use crate::registry::operation::{Action, Operation};
use crate::resource::{Resource, Subresource};
use crate::strategy::Context;

fn hook(more: Value) -> Hook {
    let mut webhook = json!({
        "name": "x",
        "clientConfig": { "url": "https://x.example" },
        "rules": [{ "operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"] }],
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        webhook[field] = value.clone();
    }
    let parsed = config::parse("c", &json!({ "webhooks": [webhook] }));
    parsed.expect("a configuration").remove(0)
}

fn resources() -> Vec<Arc<Resource>> {
    crate::kinds::builtin().resources
}

fn resource(group: &str, plural: &str) -> Arc<Resource> {
    let mut all = resources().into_iter();
    let found = all.find(|known| known.gvk.group == group && known.plural == plural);
    found.expect("it is built in")
}

/// An operation on `default/p`, or on `p` where there are no namespaces.
fn operation(group: &str, plural: &str, action: Action, part: Option<Subresource>) -> Operation {
    let resource = resource(group, plural);
    let namespaced = resource.scope == crate::resource::Scope::Namespaced;
    Operation {
        context: Context::component("somebody"),
        action,
        kind: resource.gvk.clone(),
        resource,
        subresource: part,
        namespace: if namespaced { "default" } else { "" }.to_owned(),
        name: "p".to_owned(),
        old: None,
        new: Some(pod()),
        options: None,
        warnings: Vec::new(),
        rounds: Default::default(),
    }
}

/// The group and version as which the webhook sees the operation.
fn seen(hook: &Hook, operation: &Operation) -> Option<String> {
    let namespace = |name: &str| (name == "default").then(|| json!({ "team": "a" }));
    let seen = invocation(hook, operation, &resources(), &namespace).expect("no error");
    seen.map(|seen| seen.resource.gvk.api_version())
}

#[test]
fn rules_name_operations_groups_versions_resources_and_scopes() {
    use Action::{Connect, Create, Delete, Update};
    let status = Some(Subresource::Status);
    #[rustfmt::skip] // A table.
    let cases = [
        (json!({ "operations": ["CREATE"] }),             "",     "pods",        Create,  None,    true),
        (json!({ "operations": ["CREATE"] }),             "",     "pods",        Update,  None,    false),
        (json!({ "operations": ["UPDATE", "DELETE"] }),   "",     "pods",        Delete,  None,    true),
        (json!({ "operations": ["CONNECT"] }),            "",     "pods",        Connect, Some(Subresource::Exec), true),
        (json!({ "apiGroups": [""] }),                    "",     "pods",        Create,  None,    true),
        (json!({ "apiGroups": ["apps"] }),                "",     "pods",        Create,  None,    false),
        (json!({ "apiGroups": ["batch", "apps"] }),       "apps", "deployments", Create,  None,    true),
        (json!({ "apiVersions": ["v1"] }),                "apps", "deployments", Create,  None,    true),
        (json!({ "apiVersions": ["v1beta1"] }),           "apps", "deployments", Create,  None,    false),
        (json!({ "resources": ["pods"] }),                "",     "pods",        Create,  None,    true),
        (json!({ "resources": ["pods"] }),                "",     "pods",        Update,  status,  false),
        (json!({ "resources": ["pods/status"] }),         "",     "pods",        Update,  status,  true),
        (json!({ "resources": ["pods/status"] }),         "",     "pods",        Update,  None,    false),
        (json!({ "resources": ["pods/*"] }),              "",     "pods",        Update,  status,  true),
        (json!({ "resources": ["pods/*"] }),              "",     "pods",        Update,  None,    true),
        (json!({ "resources": ["*"] }),                   "",     "pods",        Update,  None,    true),
        (json!({ "resources": ["*"] }),                   "",     "pods",        Update,  status,  false),
        (json!({ "resources": ["*/status"] }),            "apps", "deployments", Update,  status,  true),
        (json!({ "resources": ["*/*"] }),                 "apps", "deployments", Update,  status,  true),
        (json!({ "resources": ["services"] }),            "",     "pods",        Create,  None,    false),
        (json!({ "scope": "*" }),                         "",     "pods",        Create,  None,    true),
        (json!({ "scope": "Namespaced" }),                "",     "pods",        Create,  None,    true),
        (json!({ "scope": "Cluster" }),                   "",     "pods",        Create,  None,    false),
        (json!({ "scope": "Namespaced" }),                "",     "nodes",       Create,  None,    false),
        (json!({ "scope": "Cluster" }),                   "",     "nodes",       Create,  None,    true),
        (json!({ "scope": "Namespaced" }),                "",     "namespaces",  Create,  None,    false),
        (json!({ "scope": "Cluster" }),                   "",     "namespaces",  Create,  None,    true),
    ];
    for (more, group, plural, action, part, expected) in cases {
        let mut rule = json!({ "operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"] });
        for (field, value) in more.as_object().into_iter().flatten() {
            rule[field] = value.clone();
        }
        let never = json!({ "operations": [], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"] });
        let hook = hook(json!({ "rules": [never, rule] }));
        let operation = operation(group, plural, action, part);
        let wanted = seen(&hook, &operation).is_some();
        assert_eq!(wanted, expected, "{more} {plural} {action:?} {part:?}");
    }
}

#[test]
fn a_rule_means_other_versions_too_unless_it_is_exact() {
    let rule = |group: &str| json!([{ "operations": ["*"], "apiGroups": [group], "apiVersions": ["v1"], "resources": ["events"] }]);
    #[rustfmt::skip] // A table.
    let cases = [
        ("",              json!("Equivalent"), "events.k8s.io", Some("v1")),
        ("events.k8s.io", json!("Equivalent"), "",              Some("events.k8s.io/v1")),
        ("events.k8s.io", json!("Equivalent"), "events.k8s.io", Some("events.k8s.io/v1")),
        ("",              json!("Exact"),      "events.k8s.io", None),
        ("",              json!("Exact"),      "",              Some("v1")),
        ("apps",          json!("Equivalent"), "",              None),
    ];
    for (named, policy, group, expected) in cases {
        let hook = hook(json!({ "rules": rule(named), "matchPolicy": policy }));
        let operation = operation(group, "events", Action::Create, None);
        assert_eq!(
            seen(&hook, &operation).as_deref(),
            expected,
            "{named} {group}"
        );
    }
    let default = hook(json!({ "rules": rule("") }));
    let operation = operation("events.k8s.io", "events", Action::Create, None);
    assert!(
        seen(&default, &operation).is_some(),
        "Equivalent is the default"
    );
}

#[test]
fn selectors_look_at_the_namespace_and_at_both_states_of_the_object() {
    let labels = |name: &str, value: &str| json!({ "matchLabels": { name: value } });
    let pods = |action| operation("", "pods", action, None);
    let mut old = pods(Action::Update);
    old.old = Some(pod());
    old.new = Some(json!({ "metadata": {} }));
    let mut deletion = pods(Action::Delete);
    (deletion.old, deletion.new) = (deletion.new.take(), None);
    let mut options = pods(Action::Connect);
    options.new = Some(json!({ "kind": "PodExecOptions" }));
    let node = || operation("", "nodes", Action::Create, None);
    let mut namespace = operation("", "namespaces", Action::Create, None);
    namespace.new = Some(json!({ "metadata": { "name": "p", "labels": { "team": "new" } } }));
    let mut stored = operation("", "namespaces", Action::Delete, None);
    (stored.new, stored.name) = (None, "default".to_owned());
    let not =
        json!({ "matchExpressions": [{ "key": "team", "operator": "NotIn", "values": ["a"] }] });
    #[rustfmt::skip] // A table.
    let cases = [
        ("namespaceSelector", labels("team", "a"),   pods(Action::Create), true),
        ("namespaceSelector", labels("team", "b"),   pods(Action::Create), false),
        ("namespaceSelector", not,                   pods(Action::Create), false),
        ("namespaceSelector", json!({}),             pods(Action::Create), true),
        ("namespaceSelector", labels("team", "b"),   node(),               true),
        ("namespaceSelector", labels("team", "new"), namespace.clone(),    true),
        ("namespaceSelector", labels("team", "a"),   namespace,            false),
        ("namespaceSelector", labels("team", "a"),   stored,               true),
        ("objectSelector",    labels("app", "web"),  pods(Action::Create), true),
        ("objectSelector",    labels("app", "db"),   pods(Action::Create), false),
        ("objectSelector",    labels("app", "web"),  old,                  true),
        ("objectSelector",    labels("app", "web"),  deletion,             true),
        ("objectSelector",    labels("app", "web"),  options.clone(),      false),
        ("objectSelector",    json!({}),             options,              true),
    ];
    for (field, selector, operation, expected) in cases {
        let hook = hook(json!({ field: selector }));
        let wanted = seen(&hook, &operation).is_some();
        assert_eq!(
            wanted, expected,
            "{selector} {:?} {}",
            operation.action, operation.resource.plural
        );
    }
}

#[test]
fn a_namespace_that_does_not_exist_is_an_error_only_where_the_rules_match() {
    let selector = json!({ "matchLabels": { "team": "a" } });
    let operation = operation("", "pods", Action::Create, None);
    let ask = |hook: &Hook| invocation(hook, &operation, &resources(), &|_| None);
    let missing = ask(&hook(json!({ "namespaceSelector": selector })));
    let missing = missing.expect_err("no namespace");
    assert_eq!(
        (missing.code, &*missing.message),
        (404, "namespaces \"default\" not found")
    );
    let other = hook(json!({ "namespaceSelector": selector, "rules": [] }));
    assert!(ask(&other).expect("no error").is_none());
}

#[test]
fn what_decides_about_admission_and_authorization_is_exempt() {
    let reviews = [
        "localsubjectaccessreviews",
        "selfsubjectaccessreviews",
        "subjectaccessreviews",
    ];
    for plural in reviews {
        assert!(is_exempt(&operation(
            "authorization.k8s.io",
            plural,
            Action::Create,
            None
        )));
    }
    for plural in ["selfsubjectreviews", "tokenreviews"] {
        assert!(is_exempt(&operation(
            "authentication.k8s.io",
            plural,
            Action::Create,
            None
        )));
    }
    let mut configuration = operation("", "pods", Action::Create, None);
    assert!(!is_exempt(&configuration));
    configuration.kind = crate::kinds::gvk(
        "admissionregistration.k8s.io/v1",
        "ValidatingWebhookConfiguration",
    );
    assert!(is_exempt(&configuration));
    let token = operation(
        "",
        "serviceaccounts",
        Action::Create,
        Some(Subresource::Token),
    );
    assert!(!is_exempt(&token), "tokens of service accounts are not");
}

#[test]
fn a_webhook_whose_address_or_bundle_is_wrong_can_never_be_called() {
    #[rustfmt::skip] // A table.
    let cases = [
        (json!({}),                                     "use the address"),
        (json!({ "url": "http://x" }),                  "use the address"),
        (json!({ "url": "https://x", "caBundle": "?" }), "decode the caBundle"),
        (json!({ "url": "https://x", "caBundle": "eA==" }), "unable to load root certificates"),
    ];
    for (client, expected) in cases {
        let hook = hook(json!({ "clientConfig": client }));
        let error = hook.client.err().expect("unusable");
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn configurations_get_the_defaults_of_the_api() {
    let hook = hook(json!({}));
    assert_eq!(hook.id, "c/x/0");
    assert_eq!(hook.failure_policy, config::FailurePolicy::Fail);
    assert_eq!(hook.match_policy, config::MatchPolicy::Equivalent);
    assert_eq!(hook.reinvocation_policy, config::ReinvocationPolicy::Never);
    assert_eq!(hook.timeout.as_secs(), 10);
    assert_eq!(hook.rules[0].scope, config::RuleScope::All);
}

#[test]
fn a_configuration_that_cannot_be_read_says_why() {
    #[rustfmt::skip] // A table.
    let cases = [
        (json!({ "failurePolicy": "Perhaps" }),                           "read the webhooks"),
        (json!({ "objectSelector": { "matchExpressions": [{ "key": "k", "operator": "Like" }] } }),
                                                                          "\"Like\" in the objectSelector of webhook \"x\" is not a valid label selector operator"),
    ];
    for (more, expected) in cases {
        let mut webhook = json!({ "name": "x", "clientConfig": { "url": "https://x" } });
        for (field, value) in more.as_object().into_iter().flatten() {
            webhook[field] = value.clone();
        }
        let parsed = config::parse("c", &json!({ "webhooks": [webhook] }));
        let error = parsed.err().expect("unreadable");
        assert_eq!(error.to_string(), expected);
    }
}
