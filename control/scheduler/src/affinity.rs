//! Labels against selectors: which nodes and which pods a term means.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm};
use knarr_controllers::model::Selector;
pub(crate) use knarr_controllers::model::tolerates;

use crate::pod::PodInfo;
use crate::snapshot::NodeInfo;

/// Whether a node matches what the pod requires of node labels and names.
pub(crate) fn node_matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    if let Some(selector) = pod.node_selector()
        && !selector
            .iter()
            .all(|(key, value)| node.labels.get(key) == Some(value))
    {
        return false;
    }
    pod.required_nodes()
        .is_none_or(|terms| terms.iter().any(|term| term_matches(term, node)))
}

/// Whether a node matches a term: all its expressions and fields, and at least one of them.
pub(crate) fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    expressions
        .iter()
        .all(|rule| fulfils(rule, node.labels.get(&rule.key).map(String::as_str)))
        && fields
            .iter()
            .all(|rule| rule.key == "metadata.name" && fulfils(rule, Some(&node.name)))
}

fn fulfils(rule: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = rule.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|value| values.iter().any(|one| one == value));
    let compare = |wanted: fn(&i64, &i64) -> bool| match (
        value.and_then(|value| value.parse().ok()),
        values.first().and_then(|value| value.parse().ok()),
    ) {
        (Some(left), Some(right)) => wanted(&left, &right),
        _ => false,
    };
    match rule.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare(i64::gt),
        "Lt" => compare(i64::lt),
        _ => false,
    }
}

/// Whether a term of `from` means the pod `other`.
pub(crate) fn means(
    term: &PodAffinityTerm,
    from: &PodInfo,
    other: &PodInfo,
    namespaces: &std::collections::HashMap<String, BTreeMap<String, String>>,
) -> bool {
    let listed = term.namespaces.as_deref().unwrap_or_default();
    let in_namespace = match &term.namespace_selector {
        Some(selector) => {
            listed.contains(&other.namespace)
                || Selector(selector).is_empty()
                || namespaces
                    .get(&other.namespace)
                    .is_some_and(|labels| Selector(selector).matches(Some(labels)))
        }
        None if listed.is_empty() => other.namespace == from.namespace,
        None => listed.contains(&other.namespace),
    };
    in_namespace
        && term
            .label_selector
            .as_ref()
            .is_some_and(|selector| Selector(selector).matches(Some(&other.labels)))
        && term.match_label_keys.iter().flatten().all(|key| {
            from.labels
                .get(key)
                .is_none_or(|value| other.labels.get(key) == Some(value))
        })
        && term.mismatch_label_keys.iter().flatten().all(|key| {
            from.labels
                .get(key)
                .is_none_or(|value| other.labels.get(key) != Some(value))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn node_terms_match_labels_numbers_and_names() {
        let node = NodeInfo {
            name: "n1".into(),
            labels: BTreeMap::from([("cores".into(), "8".into())]),
            ..NodeInfo::default()
        };
        for (term, expected) in [
            (json!({}), false),
            (
                json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["4"]}]}),
                true,
            ),
            (
                json!({"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["4"]}]}),
                false,
            ),
            (
                json!({"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}),
                true,
            ),
            (
                json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}),
                true,
            ),
            (
                json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}),
                false,
            ),
        ] {
            let parsed = serde_json::from_value(term.clone()).expect("a term");
            assert_eq!(term_matches(&parsed, &node), expected, "{term}");
        }
    }
}
