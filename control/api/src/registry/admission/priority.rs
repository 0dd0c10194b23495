//! Priority: the number of a pod's priority class (kubernetes, `plugin/pkg/admission/priority`).

use async_trait::async_trait;
use serde_json::Value;

use super::{Changed, Plugin};
use crate::registry::operation::{Action, Operation};
use crate::registry::{Registry, meta};
use crate::status::ApiError;

/// The priority classes that always exist.
const SYSTEM_CLASSES: [(&str, i64); 2] = [
    ("system-cluster-critical", 2_000_000_000),
    ("system-node-critical", 2_000_001_000),
];

pub struct Priority;

#[async_trait]
impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, operation: &Operation) -> bool {
        matches!(operation.action, Action::Create | Action::Update)
            && operation.is_about("", "pods")
    }

    async fn mutate(
        &self,
        registry: &Registry,
        operation: &mut Operation,
    ) -> Result<Changed, ApiError> {
        match (&mut operation.new, &operation.old) {
            // Who sends a pod without what was filled in does not want to change it.
            (Some(pod), Some(old)) => {
                for field in ["priority", "preemptionPolicy"] {
                    if pod["spec"][field].is_null()
                        && let Some(had) = old["spec"].get(field)
                    {
                        pod["spec"][field] = had.clone();
                    }
                }
            }
            (Some(pod), None) => compute(registry, pod)?,
            (None, _) => {}
        }
        // Neither has a default.
        Ok(Changed::No)
    }
}

fn compute(registry: &Registry, pod: &mut Value) -> Result<(), ApiError> {
    let class = pod["spec"]["priorityClassName"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let mut policy = Value::from("PreemptLowerPriority");
    let priority = if class.is_empty() {
        let default = default_class(registry);
        if let Some(default) = &default {
            pod["spec"]["priorityClassName"] = default["metadata"]["name"].clone();
        }
        default.map_or(0, |class| class["value"].as_i64().unwrap_or(0))
    } else if let Some((_, value)) = SYSTEM_CLASSES.iter().find(|(name, _)| *name == class) {
        *value
    } else if let Some(entry) = registry
        .collection("priorityclasses")
        .and_then(|c| c.get(&class))
    {
        let class = entry.parse();
        if let Some(own) = class.get("preemptionPolicy") {
            policy = own.clone();
        }
        class["value"].as_i64().unwrap_or(0)
    } else {
        let detail = format!("no PriorityClass with name {class} was found");
        return Err(ApiError::forbidden(
            "",
            "pods",
            meta::text(pod, "name"),
            &detail,
        ));
    };
    if pod["spec"]["priority"]
        .as_i64()
        .is_some_and(|own| own != priority)
    {
        return Err(ApiError::forbidden(
            "",
            "pods",
            meta::text(pod, "name"),
            &format!(
                "the integer value of priority ({}) must not be provided in pod spec; priority admission controller \
             computed {priority} from the given PriorityClass name",
                pod["spec"]["priority"]
            ),
        ));
    }
    pod["spec"]["priority"] = priority.into();
    if pod["spec"]["preemptionPolicy"].is_null() {
        pod["spec"]["preemptionPolicy"] = policy;
    }
    Ok(())
}

fn default_class(registry: &Registry) -> Option<Value> {
    let classes = registry.collection("priorityclasses")?;
    if classes.is_empty() {
        return None;
    }
    let snapshot = classes.snapshot("", "");
    snapshot
        .entries
        .iter()
        .map(|e| e.parse())
        .find(|class| class["globalDefault"] == true)
}
