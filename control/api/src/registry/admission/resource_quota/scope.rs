//! Which objects a quota counts: those that are in all of its scopes.

use serde_json::Value;

use super::measure::Measure;
use super::used::attributes_classes;
use crate::strategy::qos_class;
use crate::strategy::validation::items;

/// Whether an object is in every scope of a quota.
pub(super) fn covers(quota: &Value, measure: &Measure, object: &Value) -> bool {
    let spec = &quota["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    items(&spec["scopes"])
        .all(|(_, scope)| is_in(measure, object, &text(scope), "Exists", &Value::Null))
        && items(&spec["scopeSelector"]["matchExpressions"]).all(|(_, requirement)| {
            let (scope, operator) = (&requirement["scopeName"], &requirement["operator"]);
            let values = &requirement["values"];
            is_in(measure, object, &text(scope), &text(operator), values)
        })
}

fn is_in(measure: &Measure, object: &Value, scope: &str, operator: &str, values: &Value) -> bool {
    let spec = &object["spec"];
    match (measure, scope) {
        (Measure::Pods, "Terminating") => ends(spec),
        (Measure::Pods, "NotTerminating") => !ends(spec),
        (Measure::Pods, "BestEffort") => qos_class(spec) == "BestEffort",
        (Measure::Pods, "NotBestEffort") => qos_class(spec) != "BestEffort",
        (Measure::Pods, "PriorityClass") => {
            let class = spec["priorityClassName"].as_str();
            let classes: Vec<&str> = class.into_iter().filter(|name| !name.is_empty()).collect();
            selects(operator, values, &classes)
        }
        (Measure::Pods, "CrossNamespacePodAffinity") => looks_into_other_namespaces(spec),
        (Measure::Claims, "VolumeAttributesClass") => {
            let classes: Vec<&str> = attributes_classes(object).collect();
            selects(operator, values, &classes)
        }
        _ => false,
    }
}

/// Whether a pod is to end by itself.
fn ends(spec: &Value) -> bool {
    spec["activeDeadlineSeconds"]
        .as_i64()
        .is_some_and(|seconds| seconds >= 0)
}

/// Whether an operator chooses one of the names.
fn selects(operator: &str, values: &Value, names: &[&str]) -> bool {
    let listed = |name: &&str| items(values).any(|(_, value)| value == *name);
    match operator {
        "In" => names.iter().any(listed),
        "NotIn" => names.is_empty() || !names.iter().all(listed),
        "Exists" => !names.is_empty(),
        "DoesNotExist" => names.is_empty(),
        _ => false,
    }
}

fn looks_into_other_namespaces(spec: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = &spec["affinity"][*kind];
        let required = items(&affinity["requiredDuringSchedulingIgnoredDuringExecution"]);
        let preferred = items(&affinity["preferredDuringSchedulingIgnoredDuringExecution"]);
        required
            .map(|(_, term)| term)
            .chain(preferred.map(|(_, preference)| &preference["podAffinityTerm"]))
            .any(|term| {
                items(&term["namespaces"]).next().is_some() || term["namespaceSelector"].is_object()
            })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_are_in_scopes_by_their_spec() {
        let term = json!({ "namespaces": ["other"], "topologyKey": "zone" });
        let bounded = json!({ "containers": [{ "resources": { "requests": { "cpu": "1" } } }] });
        let with = |values: Value| json!({ "spec": { "scopeSelector": { "matchExpressions": [values] } } });
        let only = |scope: &str| json!({ "spec": { "scopes": [scope] } });
        let class = |operator: &str, values: Value| {
            with(json!({ "scopeName": "PriorityClass", "operator": operator, "values": values }))
        };
        let high = json!({ "priorityClassName": "high" });
        #[rustfmt::skip] // The columns are compared.
        let table = [
            (only("Terminating"), json!({ "activeDeadlineSeconds": 5 }), true),
            (only("Terminating"), json!({}), false),
            (only("NotTerminating"), json!({}), true),
            (only("BestEffort"), json!({}), true),
            (only("BestEffort"), bounded.clone(), false),
            (only("NotBestEffort"), bounded, true),
            (only("PriorityClass"), high.clone(), true),
            (only("PriorityClass"), json!({}), false),
            (class("In", json!(["high", "low"])), high.clone(), true),
            (class("In", json!(["low"])), high.clone(), false),
            (class("NotIn", json!(["low"])), high.clone(), true),
            (class("NotIn", json!(["low"])), json!({}), true),
            (class("NotIn", json!(["high"])), high.clone(), false),
            (class("DoesNotExist", Value::Null), json!({}), true),
            (class("DoesNotExist", Value::Null), high, false),
            (only("CrossNamespacePodAffinity"), json!({ "affinity": { "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [{ "podAffinityTerm": term }] } } }), true),
            (only("CrossNamespacePodAffinity"), json!({ "affinity": {} }), false),
            (only("VolumeAttributesClass"), json!({}), false),
        ];
        for (quota, spec, expected) in table {
            let pod = json!({ "spec": spec });
            assert_eq!(
                covers(&quota, &Measure::Pods, &pod),
                expected,
                "{quota} {pod}"
            );
        }
    }

    #[test]
    fn claims_are_in_the_scope_of_any_class_they_have_to_do_with() {
        let quota = json!({ "spec": { "scopeSelector": { "matchExpressions": [
            { "scopeName": "VolumeAttributesClass", "operator": "In", "values": ["gold"] },
        ] } } });
        for (claim, expected) in [
            (
                json!({ "spec": { "volumeAttributesClassName": "gold" } }),
                true,
            ),
            (
                json!({ "spec": {}, "status": { "currentVolumeAttributesClassName": "gold" } }),
                true,
            ),
            (
                json!({ "spec": { "volumeAttributesClassName": "iron" } }),
                false,
            ),
            (json!({ "spec": {} }), false),
        ] {
            assert_eq!(
                covers(&quota, &Measure::Claims, &claim),
                expected,
                "{claim}"
            );
        }
    }

    #[test]
    fn a_quota_with_scopes_counts_nothing_else() {
        let quota = json!({ "spec": { "scopes": ["BestEffort"] } });
        assert!(!covers(&quota, &Measure::Services, &json!({})));
        assert!(covers(
            &json!({ "spec": {} }),
            &Measure::Services,
            &json!({})
        ));
    }
}
