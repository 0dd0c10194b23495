//! `NoExecute` taints: pods that do not bear them go, at once or after as long as they said that they would.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Error;
use parking_lot::Mutex;
use serde_json::json;

use crate::api::{self, Delete};
use crate::cache::{IndexKey, Key};
use crate::context::Context;
use crate::events::Severity;
use crate::model::{self, Node, Pod, bears, is_deleting};
use crate::queue::{Next, Queue};
use crate::supervise::Loop;

/// What failed.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error("mark pod {pod} for eviction")]
    Mark { pod: Key, source: Error },
    #[error("delete pod {pod}")]
    Delete { pod: Key, source: Error },
}

/// Since when each pod's time on a tainted node runs, by the pod's UID.
///
/// It counts from when the taint was seen here, by [`crate::clock`]: after a restart, or a time in which this process did not
/// run, a node has the time to be heard of again. Source: kubernetes, pkg/controller/tainteviction, `processPodOnNode`.
type Since = Mutex<HashMap<String, Duration>>;

/// Registers for changes; what the returned function makes works until stopped.
pub(crate) fn start(ctx: Context) -> Loop {
    let queue = Arc::new(Queue::default());
    let since = Arc::new(Since::default());
    let (keys, pods, times) = (queue.clone(), ctx.caches.pods.clone(), since.clone());
    ctx.caches.nodes.on_change(move |change| {
        let of = |node: Option<&Arc<Node>>| {
            node.map(|node| no_execute(node).cloned().collect::<Vec<_>>())
                .unwrap_or_default()
        };
        let (old, new) = (of(change.old), of(change.new));
        let Some(node) = change.versions().last().filter(|_| old != new) else {
            return;
        };
        for pod in pods.find(&IndexKey::Node(
            Key::of(&node.metadata).name.as_ref().into(),
        )) {
            if new.is_empty() {
                times.lock().remove(model::uid(&pod.metadata));
            } else {
                keys.add(Key::of(&pod.metadata));
            }
        }
    });
    let (keys, nodes, times) = (queue.clone(), ctx.caches.nodes.clone(), since.clone());
    ctx.caches.pods.on_change(move |change| {
        let Some(pod) = change.new else {
            if let Some(gone) = change.old {
                times.lock().remove(model::uid(&gone.metadata));
            }
            return;
        };
        let fresh = change.old.is_none_or(|old| {
            old.spec.node_name != pod.spec.node_name || old.spec.tolerations != pod.spec.tolerations
        });
        if fresh
            && let Some(name) = &pod.spec.node_name
            && nodes
                .get(&Key::new("", name))
                .is_some_and(|node| no_execute(&node).next().is_some())
        {
            keys.add(Key::of(&pod.metadata));
        }
    });
    let work = ctx.clone();
    queue.worker("taint-eviction", 16, ctx.stop, move |key| {
        let (ctx, since) = (work.clone(), since.clone());
        async move { sync(&ctx, &since, &key).await }
    })
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    node.spec
        .taints
        .iter()
        .filter(|taint| taint.effect == "NoExecute")
}

async fn sync(ctx: &Context, since: &Since, key: &Key) -> Result<Next, SyncError> {
    let Some(pod) = ctx
        .caches
        .pods
        .get(key)
        .filter(|pod| !is_deleting(&pod.metadata))
    else {
        return Ok(Next::OnChange);
    };
    let Some(node) = pod
        .spec
        .node_name
        .as_deref()
        .and_then(|name| ctx.caches.nodes.get(&Key::new("", name)))
    else {
        return Ok(Next::OnChange);
    };
    let uid = model::uid(&pod.metadata);
    let left = match stay(&pod.spec.tolerations, no_execute(&node)) {
        Stay::ForEver => {
            since.lock().remove(uid);
            return Ok(Next::OnChange);
        }
        Stay::For(time) => {
            let now = ctx.clock.now();
            let mut times = since.lock();
            let since = *times.entry(uid.to_owned()).or_insert(now);
            (since + time).saturating_sub(now)
        }
        Stay::No => Duration::ZERO,
    };
    if !left.is_zero() {
        return Ok(Next::After(left));
    }
    evict(ctx, key, &pod, Timestamp::now()).await?;
    Ok(Next::OnChange)
}

/// How long a pod may stay.
#[derive(Debug, PartialEq, Eq)]
enum Stay {
    ForEver,
    For(Duration),
    No,
}

/// The shortest time that a toleration grants. A taint that none bears grants nothing.
fn stay<'a>(tolerations: &[Toleration], taints: impl Iterator<Item = &'a Taint>) -> Stay {
    let mut shortest: Option<u64> = None;
    for taint in taints {
        let mut bearing = tolerations
            .iter()
            .filter(|toleration| bears(toleration, taint))
            .peekable();
        if bearing.peek().is_none() {
            return Stay::No;
        }
        for seconds in bearing.filter_map(|toleration| toleration.toleration_seconds) {
            let seconds = u64::try_from(seconds).unwrap_or(0);
            shortest = Some(shortest.map_or(seconds, |shortest| shortest.min(seconds)));
        }
    }
    match shortest {
        None => Stay::ForEver,
        Some(0) => Stay::No,
        Some(seconds) => Stay::For(Duration::from_secs(seconds)),
    }
}

async fn evict(ctx: &Context, key: &Key, pod: &Pod, now: Timestamp) -> Result<(), SyncError> {
    let body = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
        "message": "Taint manager: deleting due to NoExecute taint", "lastTransitionTime": Time(now)}]}});
    match api::patch_status_strategic::<Pod>(&ctx.client, &key.namespace, &key.name, &body).await {
        Err(error) if api::is_not_found(&error) => return Ok(()),
        Err(source) => {
            return Err(SyncError::Mark {
                pod: key.clone(),
                source,
            });
        }
        Ok(_) => {}
    }
    ctx.recorder.record(
        pod,
        Severity::Normal,
        "TaintManagerEviction",
        format!("Marking for deletion Pod {key}"),
    );
    api::delete::<Pod>(&ctx.client, &pod.metadata, Delete::default())
        .await
        .map_err(|source| SyncError::Delete {
            pod: key.clone(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn a_pod_stays_for_as_long_as_it_bears_every_taint() {
        let taint = |key: &str| Taint {
            key: key.into(),
            effect: "NoExecute".into(),
            ..Taint::default()
        };
        let bears = |key: &str, seconds: Option<i64>| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
        for (tolerations, taints, expected) in [
            (vec![], vec![taint("a")], Stay::No),
            (vec![], vec![], Stay::ForEver),
            (vec![bears("a", None)], vec![taint("a")], Stay::ForEver),
            (
                vec![bears("a", None)],
                vec![taint("a"), taint("b")],
                Stay::No,
            ),
            (
                vec![bears("a", Some(30))],
                vec![taint("a")],
                Stay::For(Duration::from_secs(30)),
            ),
            (
                vec![bears("a", Some(30)), bears("b", Some(15))],
                vec![taint("a"), taint("b")],
                Stay::For(Duration::from_secs(15)),
            ),
            (vec![bears("a", Some(-5))], vec![taint("a")], Stay::No),
            (vec![bears("a", Some(0))], vec![taint("a")], Stay::No),
        ] {
            let parsed: Vec<Toleration> =
                serde_json::from_value(Value::from(tolerations.clone())).expect("tolerations");
            assert_eq!(stay(&parsed, taints.iter()), expected, "{tolerations:?}");
        }
    }
}
