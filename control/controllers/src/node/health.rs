//! Whether nodes are alive: their conditions and taints.
//!
//! A node gives a sign of life by renewing its lease or by a new heartbeat in its status. What counts is when the sign was seen
//! here, not the time in it, so that clocks need not agree, and a restart gives every node the whole grace again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Error;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api;
use crate::cache::{IndexKey, Key};
use crate::context::Context;
use crate::events::Severity;
use crate::model::{self, Node, Pod, is_deleting};
use crate::queue::{Next, Queue};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";

/// The conditions that a kubelet keeps, and the taint that each means while it holds.
const CONDITIONS: [(&str, Option<&str>); 4] = [
    ("Ready", None),
    ("MemoryPressure", Some("node.kubernetes.io/memory-pressure")),
    ("DiskPressure", Some("node.kubernetes.io/disk-pressure")),
    ("PIDPressure", Some("node.kubernetes.io/pid-pressure")),
];

/// What failed.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error("write the conditions of node {node}")]
    Conditions { node: Arc<str>, source: Error },
    #[error("write the taints of node {node}")]
    Taints { node: Arc<str>, source: Error },
    #[error("mark pod {pod} as not ready")]
    Pod { pod: Key, source: Error },
}

/// When each node was last heard of.
type Seen = Mutex<HashMap<Arc<str>, Instant>>;

/// Registers for changes; the returned future works until stopped.
pub(crate) fn start(ctx: Context) -> impl Future<Output = ()> {
    let queue = Arc::new(Queue::default());
    let seen = Arc::new(Seen::default());
    let (keys, signs) = (queue.clone(), seen.clone());
    ctx.caches.nodes.on_change(move |change| {
        let heartbeat = |node: &Node| {
            node.condition("Ready")
                .and_then(|ready| ready.last_heartbeat_time.clone())
        };
        match (change.old, change.new) {
            (old, Some(node)) => {
                let key = Key::of(&node.metadata);
                if old.is_none_or(|old| heartbeat(old) != heartbeat(node)) {
                    signs.lock().insert(key.name.clone(), Instant::now());
                }
                keys.add(key);
            }
            (Some(node), None) => drop(signs.lock().remove(model::name(&node.metadata))),
            (None, None) => {}
        }
    });
    let signs = seen.clone();
    ctx.caches.leases.on_change(move |change| {
        if let Some(lease) = change.new
            && change
                .old
                .is_none_or(|old| old.spec.renew_time != lease.spec.renew_time)
        {
            // Nothing else has to be done: the node's next look finds the later time. Only a silent node has to be woken, and its
            // own status, which the kubelet writes then, does that.
            if let Some(time) = signs.lock().get_mut(model::name(&lease.metadata)) {
                *time = Instant::now();
            }
        }
    });
    async move {
        let work = ctx.clone();
        queue
            .run("node-lifecycle", 8, ctx.stop.clone(), move |key| {
                let (ctx, seen) = (work.clone(), seen.clone());
                async move { sync(&ctx, &seen, &key).await }
            })
            .await;
    }
}

async fn sync(ctx: &Context, seen: &Seen, key: &Key) -> Result<Next, SyncError> {
    let Some(node) = ctx
        .caches
        .nodes
        .get(key)
        .filter(|node| !is_deleting(&node.metadata))
    else {
        return Ok(Next::OnChange);
    };
    let silent = seen
        .lock()
        .get(&key.name)
        .map_or(Duration::ZERO, Instant::elapsed);
    let grace = ctx.config.node_grace;
    let now = Timestamp::now();
    let is_silent = silent >= grace;
    if is_silent {
        let unknown = unknown_conditions(&node, now);
        if !unknown.is_empty() {
            let body =
                json!({"metadata": {"uid": node.metadata.uid}, "status": {"conditions": unknown}});
            unless_gone(
                api::patch_status_strategic::<Node>(&ctx.client, "", &key.name, &body).await,
            )
            .map_err(|source| SyncError::Conditions {
                node: key.name.clone(),
                source,
            })?;
            let message = format!("Node {} status is now: NodeNotReady", key.name);
            ctx.recorder
                .record(&*node, Severity::Normal, "NodeNotReady", message);
        }
        mark_pods(ctx, key, now).await?;
    }
    if let Some(taints) = taints(&node, is_silent, now) {
        let body = json!({"metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version}, "spec": {"taints": taints}});
        unless_gone(api::patch::<Node>(&ctx.client, "", &key.name, &body).await).map_err(
            |source| SyncError::Taints {
                node: key.name.clone(),
                source,
            },
        )?;
    }
    Ok(if is_silent {
        Next::OnChange
    } else {
        Next::After(grace - silent + Duration::from_millis(100))
    })
}

/// The conditions that a silent node can no longer vouch for; empty if they say so already.
fn unknown_conditions(node: &Node, now: Timestamp) -> Vec<Value> {
    (CONDITIONS.iter())
        .filter_map(|(kind, _)| {
            let (reason, message) = match node.condition(kind) {
                Some(condition) if condition.status == "Unknown" => return None,
                Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
            };
            Some(json!({"type": kind, "status": "Unknown", "reason": reason, "message": message, "lastTransitionTime": Time(now)}))
        })
        .collect()
}

/// The taints that the node should have, if those are others than it has. `is_silent` anticipates the conditions just written.
fn taints(node: &Node, is_silent: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let ready = if is_silent {
        "Unknown"
    } else {
        node.condition("Ready")
            .map_or("Unknown", |ready| ready.status.as_str())
    };
    // A node that never reported is as good as one that is not ready: it has not been reachable yet, rather than no longer.
    let never = node.condition("Ready").is_none() && !is_silent;
    match ready {
        "True" => {}
        "Unknown" if !never => {
            wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")])
        }
        _ => wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
    }
    for (kind, taint) in CONDITIONS {
        if let (Some(taint), Some(condition)) = (taint, node.condition(kind))
            && condition.status == "True"
        {
            wanted.push((taint, "NoSchedule"));
        }
    }
    if node
        .condition("NetworkUnavailable")
        .is_some_and(|condition| condition.status == "True")
    {
        wanted.push(("node.kubernetes.io/network-unavailable", "NoSchedule"));
    }
    if node.spec.unschedulable {
        wanted.push(("node.kubernetes.io/unschedulable", "NoSchedule"));
    }
    let ours = |taint: &Taint| {
        let of_conditions = CONDITIONS
            .iter()
            .any(|(_, known)| *known == Some(taint.key.as_str()));
        let others = [
            NOT_READY,
            UNREACHABLE,
            "node.kubernetes.io/network-unavailable",
            "node.kubernetes.io/unschedulable",
        ];
        of_conditions || others.contains(&taint.key.as_str())
    };
    let mut taints: Vec<Taint> = (node.spec.taints.iter())
        .filter(|taint| {
            !ours(taint) || wanted.contains(&(taint.key.as_str(), taint.effect.as_str()))
        })
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !taints
            .iter()
            .any(|taint| taint.key == key && taint.effect == effect)
        {
            let time_added = (effect == "NoExecute").then_some(Time(now));
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                time_added,
                ..Taint::default()
            });
        }
    }
    (taints != node.spec.taints).then_some(taints)
}

/// Pods of a silent node are taken out of their services.
async fn mark_pods(ctx: &Context, node: &Key, now: Timestamp) -> Result<(), SyncError> {
    for pod in ctx
        .caches
        .pods
        .find(&IndexKey::Node((&*node.name).into()))
        .iter()
        .filter(|pod| pod.is_ready())
    {
        let key = Key::of(&pod.metadata);
        let body = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [
            {"type": "Ready", "status": "False", "lastTransitionTime": Time(now)}]}});
        unless_gone(
            api::patch_status_strategic::<Pod>(&ctx.client, &key.namespace, &key.name, &body).await,
        )
        .map_err(|source| SyncError::Pod { pod: key, source })?;
        ctx.recorder.record(
            &**pod,
            Severity::Warning,
            "NodeNotReady",
            "Node is not ready",
        );
    }
    Ok(())
}

/// That the object is gone is no failure; a conflict is one, and is tried again on the newer version.
fn unless_gone(result: Result<model::Written, Error>) -> Result<(), Error> {
    match result {
        Err(error) if api::is_not_found(&error) => Ok(()),
        other => other.map(|_| ()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: Option<&str>, taints: Value) -> Node {
        let conditions: Vec<_> = ready
            .map(|status| json!({"type": "Ready", "status": status}))
            .into_iter()
            .collect();
        serde_json::from_value(json!({"metadata": {"name": "n"}, "spec": {"taints": taints}, "status": {"conditions": conditions}})).expect("a node")
    }

    fn keys(taints: &Option<Vec<Taint>>) -> Option<Vec<(&str, &str)>> {
        taints.as_ref().map(|taints| {
            taints
                .iter()
                .map(|taint| (taint.key.as_str(), taint.effect.as_str()))
                .collect()
        })
    }

    #[test]
    fn taints_follow_the_ready_condition_and_leave_others_alone() {
        let own = json!({"key": "mine", "effect": "NoSchedule"});
        let not_ready = [(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")];
        let unreachable = [(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")];
        for (node, is_silent, expected) in [
            (node(Some("True"), json!([])), false, None),
            (node(Some("True"), json!([own])), false, None),
            (
                node(Some("False"), json!([])),
                false,
                Some(not_ready.to_vec()),
            ),
            (node(None, json!([])), false, Some(not_ready.to_vec())),
            (
                node(Some("True"), json!([])),
                true,
                Some(unreachable.to_vec()),
            ),
            (
                node(Some("Unknown"), json!([])),
                false,
                Some(unreachable.to_vec()),
            ),
            (
                node(
                    Some("True"),
                    json!([own, {"key": NOT_READY, "effect": "NoSchedule"}]),
                ),
                false,
                Some(vec![("mine", "NoSchedule")]),
            ),
        ] {
            assert_eq!(
                keys(&taints(&node, is_silent, Timestamp::UNIX_EPOCH)),
                expected,
                "{node:?} {is_silent}"
            );
        }
    }

    #[test]
    fn a_silent_node_loses_its_conditions_once() {
        let silent = node(Some("True"), json!([]));
        assert_eq!(
            unknown_conditions(&silent, Timestamp::UNIX_EPOCH).len(),
            CONDITIONS.len()
        );
        let conditions: Vec<_> = CONDITIONS
            .iter()
            .map(|(kind, _)| json!({"type": kind, "status": "Unknown"}))
            .collect();
        let known: Node =
            serde_json::from_value(json!({"status": {"conditions": conditions}})).expect("a node");
        assert_eq!(
            unknown_conditions(&known, Timestamp::UNIX_EPOCH),
            Vec::<Value>::new()
        );
    }
}
