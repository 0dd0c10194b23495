//! DefaultTolerationSeconds: how long a pod stays on a node that is gone (kubernetes, `plugin/pkg/admission/defaulttolerationseconds`).

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Changed, Plugin};
use crate::registry::Registry;
use crate::registry::operation::{Action, Operation};
use crate::status::ApiError;

/// How long a pod stays on a node that is gone, in seconds, if it does not say itself.
const TOLERATION_SECONDS: i64 = 300;

pub struct DefaultTolerationSeconds;

#[async_trait]
impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    fn handles(&self, operation: &Operation) -> bool {
        matches!(operation.action, Action::Create | Action::Update)
            && operation.is_about("", "pods")
    }

    async fn mutate(&self, _: &Registry, operation: &mut Operation) -> Result<Changed, ApiError> {
        // The fields that it sets have no defaults, and nor has anything that depends on them.
        operation.new.as_mut().map(default_tolerations);
        Ok(Changed::No)
    }
}

/// Lets a pod stay for five minutes on a node that is not ready or cannot be reached.
fn default_tolerations(pod: &mut Value) {
    let mut tolerations = pod["spec"]["tolerations"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    for taint in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let tolerated = tolerations.iter().any(|toleration| {
            let key = toleration["key"].as_str().unwrap_or_default();
            let effect = toleration["effect"].as_str().unwrap_or_default();
            (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            tolerations.push(json!({
                "key": taint,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
    pod["spec"]["tolerations"] = tolerations.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_of_the_pods_own_are_kept() {
        let mut pod = json!({ "spec": { "tolerations": [{ "operator": "Exists" }] } });
        default_tolerations(&mut pod);
        assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 1);
        let mut pod = json!({ "spec": {} });
        default_tolerations(&mut pod);
        assert_eq!(
            pod["spec"]["tolerations"][1]["key"],
            "node.kubernetes.io/unreachable"
        );
    }
}
