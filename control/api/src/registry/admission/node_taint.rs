//! TaintNodesByCondition: a new node takes no pods until it has said that it is ready (kubernetes, `plugin/pkg/admission/nodetaint`).
//! The node controller takes the taint off.

use async_trait::async_trait;
use serde_json::{Value, json};

use super::{Changed, Plugin};
use crate::registry::Registry;
use crate::registry::operation::{Action, Operation};
use crate::status::ApiError;

const TAINT: &str = "node.kubernetes.io/not-ready";
const EFFECT: &str = "NoSchedule";

/// Taints new nodes as not ready.
pub struct TaintNodesByCondition;

#[async_trait]
impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }

    fn handles(&self, operation: &Operation) -> bool {
        operation.action == Action::Create && operation.is_about("", "nodes")
    }

    async fn mutate(&self, _: &Registry, operation: &mut Operation) -> Result<Changed, ApiError> {
        operation.new.as_mut().map(taint);
        Ok(Changed::No)
    }
}

fn taint(node: &mut Value) {
    let mut taints = node["spec"]["taints"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let present = taints
        .iter()
        .any(|taint| taint["key"] == TAINT && taint["effect"] == EFFECT);
    if !present {
        taints.push(json!({ "key": TAINT, "effect": EFFECT }));
        node["spec"]["taints"] = taints.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_node_has_the_taint_once_beside_its_own() {
        let mut node = json!({ "spec": { "taints": [
            { "key": TAINT, "effect": "NoExecute" }, { "key": "own", "effect": EFFECT },
        ] } });
        taint(&mut node);
        taint(&mut node);
        let taints = node["spec"]["taints"].as_array().expect("taints");
        assert_eq!(taints.len(), 3, "{node}");
        assert_eq!(taints[2], json!({ "key": TAINT, "effect": EFFECT }));
        let mut bare = json!({});
        taint(&mut bare);
        assert_eq!(bare["spec"]["taints"][0]["key"], TAINT);
    }
}
