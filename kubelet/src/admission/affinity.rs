//! A pod's node selector and required node affinity.
//!
//! Source: kubernetes, component-helpers/scheduling/corev1/nodeaffinity.

use k8s_openapi::api::core::v1::{Node, NodeSelectorRequirement, NodeSelectorTerm, Pod};

use crate::pod;

/// Whether the node is one that the pod may run on.
pub(super) fn matches(node: &Node, pod: &Pod) -> bool {
    let spec = pod::spec(pod);
    let label = |key: &str| {
        let labels = node.metadata.labels.as_ref()?;
        labels.get(key).map(String::as_str)
    };
    let mut selector = spec.node_selector.iter().flatten();
    if !selector.all(|(key, value)| label(key) == Some(value)) {
        return false;
    }
    let required = spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    required.is_none_or(|required| {
        let mut terms = required.node_selector_terms.iter();
        terms.any(|term| term_matches(term, node, &label))
    })
}

/// A term without requirements matches nothing.
fn term_matches<'a>(
    term: &NodeSelectorTerm,
    node: &'a Node,
    label: &impl Fn(&str) -> Option<&'a str>,
) -> bool {
    let field = |key: &str| match key {
        "metadata.name" => node.metadata.name.as_deref(),
        _ => None,
    };
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let all_labels = labels.iter().all(|r| requirement_matches(r, label(&r.key)));
    let all_fields = fields.iter().all(|r| requirement_matches(r, field(&r.key)));
    !(labels.is_empty() && fields.is_empty()) && all_labels && all_fields
}

fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |value: &str| values.iter().any(|v| v == value);
    match requirement.operator.as_str() {
        "In" => value.is_some_and(listed),
        "NotIn" => !value.is_some_and(listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        operator @ ("Gt" | "Lt") => {
            let limit = values.first().and_then(|v| v.parse::<i64>().ok());
            match (value.and_then(|v| v.parse::<i64>().ok()), limit) {
                (Some(value), Some(limit)) if operator == "Gt" => value > limit,
                (Some(value), Some(limit)) => value < limit,
                _ => false,
            }
        }
        _ => false,
    }
}
