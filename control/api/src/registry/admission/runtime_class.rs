//! RuntimeClass: what a pod's runtime costs beside its containers, and on which nodes it is (kubernetes,
//! `plugin/pkg/admission/runtimeclass`).

use async_trait::async_trait;
use serde_json::Value;

use super::{Changed, Plugin, amounts};
use crate::registry::Registry;
use crate::registry::operation::{Action, Operation};
use crate::status::ApiError;
use crate::strategy::validation::items;

const OTHER_OVERHEAD: &str =
    "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";
const STRAY_OVERHEAD: &str =
    "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead";

/// Gives new pods the overhead and the scheduling of their runtime class.
pub struct RuntimeClass;

#[async_trait]
impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, operation: &Operation) -> bool {
        operation.action == Action::Create && operation.is_about("", "pods")
    }

    async fn mutate(
        &self,
        registry: &Registry,
        operation: &mut Operation,
    ) -> Result<Changed, ApiError> {
        let name = operation.name.clone();
        let forbidden = |detail: String| ApiError::forbidden("", "pods", &name, &detail);
        if let Some(pod) = &mut operation.new
            && let Some(class) = class_of(registry, pod).map_err(forbidden)?
        {
            fill(pod, &class).map_err(forbidden)?;
        }
        Ok(Changed::No)
    }

    async fn validate(&self, registry: &Registry, operation: &Operation) -> Result<(), ApiError> {
        let forbidden = |detail: String| ApiError::forbidden("", "pods", &operation.name, &detail);
        let Some(pod) = &operation.new else {
            return Ok(());
        };
        // Without such a kind, no pod names a class.
        if registry.collection("runtimeclasses").is_none() {
            return Ok(());
        }
        let class = class_of(registry, pod).map_err(forbidden)?;
        check_overhead(pod, class.as_ref())
            .map_err(str::to_owned)
            .map_err(forbidden)
    }
}

fn class_of(registry: &Registry, pod: &Value) -> Result<Option<Value>, String> {
    let Some(name) = pod["spec"]["runtimeClassName"].as_str() else {
        return Ok(None);
    };
    let Some(classes) = registry.collection("runtimeclasses") else {
        return Ok(None);
    };
    match classes.get(name) {
        Some(entry) => Ok(Some(entry.parse())),
        None => Err(format!("pod rejected: RuntimeClass {name:?} not found")),
    }
}

/// Whether two lists of amounts say the same; an empty list is as none.
fn same_amounts(one: &Value, other: &Value) -> bool {
    let nano = |list: &Value| {
        let amounts = amounts::read(list).into_iter();
        amounts
            .map(|(name, amount)| (name, amount.nano()))
            .collect::<Vec<_>>()
    };
    nano(one) == nano(other)
}

fn check_overhead(pod: &Value, class: Option<&Value>) -> Result<(), &'static str> {
    let own = &pod["spec"]["overhead"];
    let of_class = class.map_or(&Value::Null, |class| &class["overhead"]);
    match (of_class.is_null(), own.is_null()) {
        (true, false) => Err(STRAY_OVERHEAD),
        (false, _) if !same_amounts(&of_class["podFixed"], own) => Err(OTHER_OVERHEAD),
        _ => Ok(()),
    }
}

fn fill(pod: &mut Value, class: &Value) -> Result<(), String> {
    let overhead = &class["overhead"];
    if !overhead.is_null() {
        let own = &pod["spec"]["overhead"];
        if !own.is_null() && !same_amounts(own, &overhead["podFixed"]) {
            return Err(OTHER_OVERHEAD.to_owned());
        }
        if !overhead["podFixed"].is_null() {
            pod["spec"]["overhead"] = overhead["podFixed"].clone();
        }
    }
    let scheduling = &class["scheduling"];
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        let slot = &mut pod["spec"]["nodeSelector"][key];
        if !slot.is_null() && slot != value {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (own, value) = (text(slot), text(value));
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; pod.spec.nodeSelector[{key}] = {own}"
            ));
        }
        *slot = value.clone();
    }
    if items(&scheduling["tolerations"]).next().is_some() {
        let own = items(&pod["spec"]["tolerations"]);
        let all: Vec<Value> = own
            .chain(items(&scheduling["tolerations"]))
            .map(|(_, toleration)| toleration.clone())
            .collect();
        pod["spec"]["tolerations"] = merged(&all).into();
    }
    Ok(())
}

/// The tolerations, without those that another one includes; of equal ones the first.
fn merged(all: &[Value]) -> Vec<Value> {
    let mut merged: Vec<Value> = Vec::new();
    for (index, toleration) in all.iter().enumerate() {
        let included = merged.iter().any(|kept| includes(kept, toleration))
            || all[index + 1..]
                .iter()
                .any(|later| later != toleration && includes(later, toleration));
        if !included {
            merged.push(toleration.clone());
        }
    }
    merged
}

/// Whether a toleration tolerates all that another does.
fn includes(larger: &Value, smaller: &Value) -> bool {
    let text = |toleration: &Value, field: &str| {
        let text = toleration[field].as_str();
        text.unwrap_or_default().to_owned()
    };
    let same = |field: &str| text(larger, field) == text(smaller, field);
    let exists = larger["operator"] == "Exists";
    let any_key = text(larger, "key").is_empty() && exists;
    let any_effect = text(larger, "effect").is_empty();
    if larger == smaller {
        return true;
    }
    if !same("key") && !any_key || !same("effect") && !any_effect {
        return false;
    }
    if larger["effect"] == "NoExecute"
        && let Some(longest) = larger["tolerationSeconds"].as_i64()
        && smaller["tolerationSeconds"]
            .as_i64()
            .is_none_or(|seconds| seconds > longest)
    {
        return false;
    }
    match larger["operator"].as_str().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => same("operator") && same("value"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing;
    use super::*;
    use crate::resource::Scope;

    #[test]
    fn a_pod_gets_the_overhead_and_the_scheduling_of_its_class() {
        let class = json!({
            "overhead": { "podFixed": { "cpu": "100m" } },
            "scheduling": {
                "nodeSelector": { "runtime": "sandbox" },
                "tolerations": [{ "key": "sandbox", "operator": "Exists" }],
            },
        });
        let mut pod = json!({ "spec": { "nodeSelector": { "disk": "ssd" }, "tolerations": [
            { "key": "sandbox", "operator": "Equal", "value": "a", "effect": "NoSchedule" },
            { "key": "own", "operator": "Exists" },
        ] } });
        assert_eq!(fill(&mut pod, &class), Ok(()));
        let expected = json!({ "spec": {
            "nodeSelector": { "disk": "ssd", "runtime": "sandbox" },
            "overhead": { "cpu": "100m" },
            "tolerations": [{ "key": "own", "operator": "Exists" }, { "key": "sandbox", "operator": "Exists" }],
        } });
        assert_eq!(pod, expected);
        assert_eq!(fill(&mut pod, &class), Ok(()));
        assert_eq!(pod, expected, "a second time changes nothing");
    }

    #[test]
    fn pods_that_contradict_their_class_are_refused_in_kubernetes_words() {
        let class = json!({ "overhead": { "podFixed": { "cpu": "100m" } },
            "scheduling": { "nodeSelector": { "runtime": "sandbox" } } });
        let mut pod = json!({ "spec": { "nodeSelector": { "runtime": "plain" } } });
        assert_eq!(
            fill(&mut pod, &class).unwrap_err(),
            "conflict: runtimeClass.scheduling.nodeSelector[runtime] = sandbox; pod.spec.nodeSelector[runtime] = plain"
        );
        let mut pod = json!({ "spec": { "overhead": { "cpu": "200m" } } });
        assert_eq!(fill(&mut pod, &class).unwrap_err(), OTHER_OVERHEAD);
        for (overhead, class, expected) in [
            (json!({ "cpu": "0.1" }), Some(&class), Ok(())),
            (Value::Null, Some(&class), Err(OTHER_OVERHEAD)),
            (Value::Null, None, Ok(())),
            (json!({ "cpu": "1" }), None, Err(STRAY_OVERHEAD)),
        ] {
            let pod = json!({ "spec": { "overhead": overhead } });
            assert_eq!(check_overhead(&pod, class), expected, "{pod}");
        }
    }

    #[test]
    fn a_toleration_for_a_shorter_time_is_included_in_one_for_longer() {
        let for_seconds = |seconds: Value| json!({ "key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds });
        let (short, long, ever) = (
            for_seconds(json!(5)),
            for_seconds(json!(60)),
            for_seconds(Value::Null),
        );
        assert!(includes(&long, &short) && !includes(&short, &long));
        assert!(includes(&ever, &long) && !includes(&long, &ever));
        assert_eq!(merged(&[short, long.clone(), long.clone()]), [long]);
    }

    #[tokio::test]
    async fn a_class_that_does_not_exist_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let kind = (
            "node.k8s.io/v1",
            "RuntimeClass",
            "runtimeclasses",
            Scope::Cluster,
        );
        let registry = testing::registry(&directory, &[kind]).await;
        let pod = json!({ "metadata": { "name": "p" }, "spec": { "runtimeClassName": "sandbox" } });
        let mut operation = testing::creation(&registry, "pods", "shop", pod);
        let refused = RuntimeClass.mutate(&registry, &mut operation).await;
        assert_eq!(
            refused.unwrap_err().message,
            "pods \"p\" is forbidden: pod rejected: RuntimeClass \"sandbox\" not found"
        );
        let class = json!({ "metadata": { "name": "sandbox" }, "overhead": { "podFixed": { "cpu": "1" } } });
        testing::create(&registry, "runtimeclasses", "", class).await;
        let filled = RuntimeClass.mutate(&registry, &mut operation).await;
        filled.expect("the class exists");
        let admitted = RuntimeClass.validate(&registry, &operation).await;
        assert_eq!(admitted, Ok(()), "{:?}", operation.new);
    }
}
