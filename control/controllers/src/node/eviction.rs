//! `NoExecute` taints: pods that do not bear them go, at once or after as long as they said that they would.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Error;
use serde_json::json;

use crate::api::{self, Delete};
use crate::cache::{IndexKey, Key};
use crate::context::Context;
use crate::events::Severity;
use crate::model::{Node, Pod, bears, is_deleting};
use crate::queue::{Next, Queue};

/// What failed.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error("mark pod {pod} for eviction")]
    Mark { pod: Key, source: Error },
    #[error("delete pod {pod}")]
    Delete { pod: Key, source: Error },
}

/// Registers for changes; the returned future works until stopped.
pub(crate) fn start(ctx: Context) -> impl Future<Output = ()> {
    let queue = Arc::new(Queue::default());
    let (keys, pods) = (queue.clone(), ctx.caches.pods.clone());
    ctx.caches.nodes.on_change(move |change| {
        let Some(node) = change.new else { return };
        if change
            .old
            .is_none_or(|old| old.spec.taints != node.spec.taints)
            && no_execute(node).next().is_some()
        {
            for pod in pods.find(&IndexKey::Node(
                Key::of(&node.metadata).name.as_ref().into(),
            )) {
                keys.add(Key::of(&pod.metadata));
            }
        }
    });
    let (keys, nodes) = (queue.clone(), ctx.caches.nodes.clone());
    ctx.caches.pods.on_change(move |change| {
        let Some(pod) = change.new else { return };
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
    async move {
        let work = ctx.clone();
        queue
            .run("taint-eviction", 16, ctx.stop.clone(), move |key| {
                let ctx = work.clone();
                async move { sync(&ctx, &key).await }
            })
            .await;
    }
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    node.spec
        .taints
        .iter()
        .filter(|taint| taint.effect == "NoExecute")
}

async fn sync(ctx: &Context, key: &Key) -> Result<Next, SyncError> {
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
    let now = Timestamp::now();
    match stay(&pod.spec.tolerations, no_execute(&node), now) {
        Stay::ForEver => Ok(Next::OnChange),
        Stay::For(wait) => Ok(Next::After(wait)),
        Stay::No => evict(ctx, key, &pod, now).await.map(|()| Next::OnChange),
    }
}

/// How long a pod may stay.
#[derive(Debug, PartialEq, Eq)]
enum Stay {
    ForEver,
    For(Duration),
    No,
}

/// The shortest time that a toleration grants, counted from when its taint came. A taint that none bears grants nothing.
fn stay<'a>(
    tolerations: &[Toleration],
    taints: impl Iterator<Item = &'a Taint>,
    now: Timestamp,
) -> Stay {
    let mut until: Option<Timestamp> = None;
    for taint in taints {
        let mut bearing = tolerations
            .iter()
            .filter(|toleration| bears(toleration, taint))
            .peekable();
        if bearing.peek().is_none() {
            return Stay::No;
        }
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        for seconds in bearing.filter_map(|toleration| toleration.toleration_seconds) {
            if seconds <= 0 {
                return Stay::No;
            }
            let end = since
                .saturating_add(SignedDuration::from_secs(seconds))
                .unwrap_or(Timestamp::MAX);
            until = Some(until.map_or(end, |until| until.min(end)));
        }
    }
    match until {
        None => Stay::ForEver,
        Some(until) if until <= now => Stay::No,
        Some(until) => Stay::For(Duration::try_from(until.duration_since(now)).unwrap_or_default()),
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
        let now = Timestamp::from_second(100).expect("a time");
        let taint = |key: &str| Taint {
            key: key.into(),
            effect: "NoExecute".into(),
            time_added: Some(Time(Timestamp::from_second(90).expect("a time"))),
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
                Stay::For(Duration::from_secs(20)),
            ),
            (
                vec![bears("a", Some(30)), bears("b", Some(15))],
                vec![taint("a"), taint("b")],
                Stay::For(Duration::from_secs(5)),
            ),
            (vec![bears("a", Some(5))], vec![taint("a")], Stay::No),
            (vec![bears("a", Some(0))], vec![taint("a")], Stay::No),
        ] {
            let parsed: Vec<Toleration> =
                serde_json::from_value(Value::from(tolerations.clone())).expect("tolerations");
            assert_eq!(
                stay(&parsed, taints.iter(), now),
                expected,
                "{tolerations:?}"
            );
        }
    }
}
