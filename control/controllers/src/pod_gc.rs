//! Pods that nobody else will remove: those of nodes that are gone, those that never got one, and ended ones beyond a number.

use std::sync::Arc;
use std::time::Duration;

use kube::Error;
use serde_json::json;

use crate::api::{self, Delete};
use crate::cache::{IndexKey, Key};
use crate::context::Context;
use crate::model::{Node, Pod, Written, is_deleting};
use crate::queue::{Next, Queue};
use crate::supervise::Loop;

/// A node may come back under its name within this time. Source: kubernetes, podgc, `quarantineTime`.
const QUARANTINE: Duration = Duration::from_secs(40);

/// What failed.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error("look whether the node of pod {pod} exists")]
    Node { pod: Key, source: Error },
    #[error("mark pod {pod} as failed")]
    Mark { pod: Key, source: Error },
    #[error("delete pod {pod}")]
    Delete { pod: Key, source: Error },
}

/// Registers for changes; what the returned function makes works until stopped.
pub(crate) fn start(ctx: Context) -> Loop {
    let queue = Arc::new(Queue::default());
    let (keys, pods) = (queue.clone(), ctx.caches.pods.clone());
    ctx.caches.nodes.on_change(move |change| {
        if let (Some(node), None) = (change.old, change.new) {
            for pod in pods.find(&IndexKey::Node(
                Key::of(&node.metadata).name.as_ref().into(),
            )) {
                keys.add_after(Key::of(&pod.metadata), QUARANTINE);
            }
        }
    });
    let (keys, nodes, pods) = (
        queue.clone(),
        ctx.caches.nodes.clone(),
        ctx.caches.pods.clone(),
    );
    let most = ctx.config.ended_pods_kept;
    ctx.caches.pods.on_change(move |change| {
        let Some(pod) = change.new else { return };
        match &pod.spec.node_name {
            None if is_deleting(&pod.metadata) => keys.add(Key::of(&pod.metadata)),
            Some(name) if change.old.is_none() && nodes.get(&Key::new("", name)).is_none() => {
                keys.add_after(Key::of(&pod.metadata), QUARANTINE);
            }
            _ => {}
        }
        let just_ended = pod.is_terminal() && change.old.is_none_or(|old| !old.is_terminal());
        if just_ended {
            let surplus = pods.count(&IndexKey::Ended).saturating_sub(most);
            if surplus > 0 {
                for pod in oldest(pods.find(&IndexKey::Ended), surplus) {
                    keys.add(Key::of(&pod.metadata));
                }
            }
        }
    });
    let work = ctx.clone();
    queue.worker("pod-gc", 8, ctx.stop.clone(), move |key| {
        let ctx = work.clone();
        async move { sync(&ctx, &key).await }
    })
}

/// The oldest of these pods; that some are on their way out already makes no others go.
fn oldest(mut pods: Vec<Arc<Pod>>, count: usize) -> impl Iterator<Item = Arc<Pod>> {
    pods.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
    pods.into_iter().take(count)
}

async fn sync(ctx: &Context, key: &Key) -> Result<Next, SyncError> {
    let Some(pod) = ctx.caches.pods.get(key) else {
        return Ok(Next::OnChange);
    };
    let goes = match &pod.spec.node_name {
        None => is_deleting(&pod.metadata),
        Some(name) => is_orphan(ctx, key, name).await? && mark(ctx, key, &pod).await?,
    };
    let surplus =
        (ctx.caches.pods.count(&IndexKey::Ended)).saturating_sub(ctx.config.ended_pods_kept);
    let is_surplus = pod.is_terminal()
        && surplus > 0
        && oldest(ctx.caches.pods.find(&IndexKey::Ended), surplus)
            .any(|other| other.metadata.uid == pod.metadata.uid);
    if goes || is_surplus {
        let now = Delete {
            grace: Some(0),
            propagation: None,
        };
        api::delete::<Pod>(&ctx.client, &pod.metadata, now)
            .await
            .map_err(|source| SyncError::Delete {
                pod: key.clone(),
                source,
            })?;
    }
    Ok(Next::OnChange)
}

/// Whether the pod's node is gone; asked of the server, since a cache may be behind.
async fn is_orphan(ctx: &Context, key: &Key, node: &str) -> Result<bool, SyncError> {
    if ctx.caches.nodes.get(&Key::new("", node)).is_some() {
        return Ok(false);
    }
    match api::get::<Node, Written>(&ctx.client, "", node).await {
        Ok(_) => Ok(false),
        Err(error) if api::is_not_found(&error) => Ok(true),
        Err(source) => Err(SyncError::Node {
            pod: key.clone(),
            source,
        }),
    }
}

/// Says on the pod why it ends; answers whether it is still there.
async fn mark(ctx: &Context, key: &Key, pod: &Pod) -> Result<bool, SyncError> {
    if pod.is_terminal() {
        return Ok(true);
    }
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::now());
    let body = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"phase": "Failed", "conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC", "message": "PodGC: node no longer exists", "lastTransitionTime": now}]}});
    match api::patch_status_strategic::<Pod>(&ctx.client, &key.namespace, &key.name, &body).await {
        Ok(_) => Ok(true),
        Err(error) if api::is_not_found(&error) => Ok(false),
        Err(source) => Err(SyncError::Mark {
            pod: key.clone(),
            source,
        }),
    }
}
