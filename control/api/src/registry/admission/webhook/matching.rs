//! Whether a webhook wants to see a request (apiserver, `plugin/webhook/{generic/webhook,predicates/…}.go`).

use std::sync::Arc;

use serde_json::Value;

use super::config::{Hook, MatchPolicy, Rule, RuleScope};
use crate::registry::operation::{Action, Operation};
use crate::resource::{GroupVersionKind, Resource};
use crate::status::ApiError;
use crate::strategy::validation::selector_matches;

/// The kinds that decide about admission: a webhook that refused their changes could not be got rid of.
const OF_ADMISSION: [&str; 6] = [
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "MutatingWebhookConfiguration",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
];

/// What is asked of the server itself, by group and plural: a webhook that refused these could lock everybody out
/// (kubernetes, `pkg/kubeapiserver/admission/exclusion`; since 1.37 for webhooks too).
#[rustfmt::skip] // A table.
const OF_AUTHORIZATION: [(&str, &str); 6] = [
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io",  "localsubjectaccessreviews"),
    ("authorization.k8s.io",  "selfsubjectaccessreviews"),
    ("authorization.k8s.io",  "selfsubjectrulesreviews"),
    ("authorization.k8s.io",  "subjectaccessreviews"),
];

/// Whether no webhook ever sees such a request.
pub fn is_exempt(operation: &Operation) -> bool {
    let (kind, resource) = (&operation.kind, &operation.resource);
    (kind.group == "admissionregistration.k8s.io" && OF_ADMISSION.contains(&&*kind.kind))
        || OF_AUTHORIZATION.contains(&(&*resource.gvk.group, &*resource.plural))
}

/// The namespace of a request as admission sees it: that of a namespace object is its own name.
pub fn namespace_of(operation: &Operation) -> &str {
    if is_namespaces(&operation.resource) {
        &operation.name
    } else {
        &operation.namespace
    }
}

fn is_namespaces(resource: &Resource) -> bool {
    resource.gvk.group.is_empty() && resource.plural == "namespaces"
}

/// How a webhook sees a request: as one to the version of the resource that its rules name.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The resource.
    pub resource: Arc<Resource>,
    /// The kind of the objects.
    pub kind: GroupVersionKind,
}

/// How the webhook sees the request, if it wants to.
///
/// `resources` are all that are served; `namespace` gives the labels of a namespace, if it exists. A selector that cannot be
/// applied is an error only for a webhook whose rules match.
///
/// # Errors
///
/// 404 for a namespace that does not exist.
pub fn invocation(
    hook: &Hook,
    operation: &Operation,
    resources: &[Arc<Resource>],
    namespace: &dyn Fn(&str) -> Option<Value>,
) -> Result<Option<Invocation>, ApiError> {
    let in_namespace = selects_namespace(&hook.namespace_selector, operation, namespace);
    if let Ok(false) = in_namespace {
        return Ok(None);
    }
    if !selects_object(&hook.object_selector, operation) {
        return Ok(None);
    }
    let Some(resource) = resource_of(hook, operation, resources) else {
        return Ok(None);
    };
    in_namespace?;
    // What a subresource is sent (`Scale`, `Binding`) is of the same kind in every version of the resource.
    let kind = match operation.is_whole() {
        true => resource.gvk.clone(),
        false => operation.kind.clone(),
    };
    Ok(Some(Invocation { resource, kind }))
}

/// The resource of the request, or else its first equivalent, that a rule names.
fn resource_of(
    hook: &Hook,
    operation: &Operation,
    resources: &[Arc<Resource>],
) -> Option<Arc<Resource>> {
    let own = &operation.resource;
    if hook.rules.iter().any(|rule| names(rule, operation, own)) {
        return Some(own.clone());
    }
    if hook.match_policy == MatchPolicy::Exact {
        return None;
    }
    // Versions of a kind, in whatever group, are stored in one place.
    let is_equivalent = |other: &&Arc<Resource>| {
        let subresource = operation.subresource;
        other.storage_prefix == own.storage_prefix
            && (&other.gvk, &other.plural) != (&own.gvk, &own.plural)
            && subresource.is_none_or(|part| other.subresources.contains(&part))
    };
    hook.rules.iter().find_map(|rule| {
        let mut equivalents = resources.iter().filter(is_equivalent);
        equivalents
            .find(|other| names(rule, operation, other))
            .cloned()
    })
}

/// Whether a rule means the request, were it one to `resource`.
fn names(rule: &Rule, operation: &Operation, resource: &Resource) -> bool {
    let listed = |list: &[String], word: &str| list.iter().any(|item| item == "*" || item == word);
    let in_cluster = is_namespaces(resource) || operation.namespace.is_empty();
    let in_scope = match rule.scope {
        RuleScope::All => true,
        RuleScope::Cluster => in_cluster,
        RuleScope::Namespaced => !in_cluster,
    };
    let part = operation.subresource.map_or("", |part| part.name());
    in_scope
        && listed(&rule.operations, word(operation.action))
        && listed(&rule.api_groups, &resource.gvk.group)
        && listed(&rule.api_versions, &resource.gvk.version)
        && rule.resources.iter().any(|named| {
            let (plural, named_part) = named.split_once('/').unwrap_or((named, ""));
            (plural == "*" || plural == resource.plural)
                && (named_part == "*" || named_part == part)
        })
}

/// An action, as rules and reviews write it.
pub fn word(action: Action) -> &'static str {
    match action {
        Action::Create => "CREATE",
        Action::Update => "UPDATE",
        Action::Delete => "DELETE",
        Action::Connect => "CONNECT",
    }
}

fn is_empty(selector: &Value) -> bool {
    let none = |field: &str| match &selector[field] {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => true,
    };
    none("matchLabels") && none("matchExpressions")
}

/// Requests for objects of the cluster are in no namespace that could be exempted; a namespace is selected by its own labels.
fn selects_namespace(
    selector: &Value,
    operation: &Operation,
    namespace: &dyn Fn(&str) -> Option<Value>,
) -> Result<bool, ApiError> {
    let is_namespace = is_namespaces(&operation.resource);
    if is_empty(selector) || (operation.namespace.is_empty() && !is_namespace) {
        return Ok(true);
    }
    let written = matches!(operation.action, Action::Create | Action::Update);
    if is_namespace && operation.subresource.is_none() && written {
        // Nobody else knows what it is about to be.
        let new = operation.new.as_ref().unwrap_or(&Value::Null);
        return Ok(selector_matches(selector, &new["metadata"]["labels"]));
    }
    let name = namespace_of(operation);
    let labels = namespace(name).ok_or_else(|| ApiError::not_found("", "namespaces", name))?;
    Ok(selector_matches(selector, &labels))
}

/// Either state of the object may match; what has no metadata (the options of a connection) matches only an empty selector.
fn selects_object(selector: &Value, operation: &Operation) -> bool {
    if is_empty(selector) {
        return true;
    }
    let mut states = operation.new.iter().chain(&operation.old);
    states.any(|object| {
        object["metadata"].is_object() && selector_matches(selector, &object["metadata"]["labels"])
    })
}
