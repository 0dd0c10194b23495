//! Addresses for pods: every node gets a part of the cluster's ranges.
//!
//! What is given out stands in the nodes themselves, so nothing is lost with a restart: the first list says what is taken.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::json;

use crate::api;
use crate::cache::Key;
use crate::context::Context;
use crate::events::Severity;
use crate::model::{self, Node};
use crate::node::cidr::Range;
use crate::queue::{Next, Queue};

/// Why a node has no addresses yet.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error("no addresses are left for node {node}")]
    Exhausted { node: Arc<str> },
    #[error("write the addresses of node {node}")]
    Write { node: Arc<str>, source: kube::Error },
}

/// Registers for changes; the returned future works until stopped.
pub(crate) fn start(ctx: Context) -> impl Future<Output = ()> {
    let queue = Arc::new(Queue::default());
    let ranges: Vec<_> = ctx
        .config
        .cluster_cidrs
        .iter()
        .map(|(address, prefix)| Range::new(*address, *prefix))
        .collect();
    let ranges = Arc::new(Mutex::new(ranges));
    let (keys, taken) = (queue.clone(), ranges.clone());
    ctx.caches.nodes.on_change(move |change| {
        let mut ranges = taken.lock();
        for range in ranges.iter_mut() {
            match (change.new, change.old) {
                (Some(node), _) => parts(node).for_each(|part| range.take(part)),
                (None, Some(node)) => parts(node).for_each(|part| range.give_back(part)),
                (None, None) => {}
            }
        }
        if let Some(node) = change.new
            && node.spec.pod_cidr.is_none()
        {
            keys.add(Key::of(&node.metadata));
        }
    });
    async move {
        if ctx.config.cluster_cidrs.is_empty() {
            return;
        }
        let work = ctx.clone();
        queue
            .run("node-ipam", 8, ctx.stop.clone(), move |key| {
                let (ctx, ranges) = (work.clone(), ranges.clone());
                async move { sync(&ctx, &ranges, &key).await }
            })
            .await;
    }
}

fn parts(node: &Node) -> impl Iterator<Item = &str> {
    node.spec
        .pod_cidrs
        .iter()
        .chain(&node.spec.pod_cidr)
        .map(String::as_str)
}

async fn sync(ctx: &Context, ranges: &Mutex<Vec<Range>>, key: &Key) -> Result<Next, SyncError> {
    let Some(node) = ctx
        .caches
        .nodes
        .get(key)
        .filter(|node| node.spec.pod_cidr.is_none() && !model::is_deleting(&node.metadata))
    else {
        return Ok(Next::OnChange);
    };
    let Some(dealt) = deal(&mut ranges.lock()) else {
        let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
        ctx.recorder
            .record(&*node, Severity::Normal, "CIDRNotAvailable", message);
        return Err(SyncError::Exhausted {
            node: key.name.clone(),
        });
    };
    // Conditional on the version, so that nobody's earlier choice is overwritten.
    let body = json!({
        "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
        "spec": {"podCIDR": dealt.first(), "podCIDRs": dealt},
    });
    let result = api::patch::<Node>(&ctx.client, "", &key.name, &body).await;
    match result {
        Ok(_) => Ok(Next::OnChange),
        Err(source) => {
            // Only a clear refusal gives the part back: otherwise the node may have it after all.
            if matches!(source, kube::Error::Api(_)) {
                let mut ranges = ranges.lock();
                for part in &dealt {
                    ranges.iter_mut().for_each(|range| range.give_back(part));
                }
            }
            if api::is_not_found(&source) {
                Ok(Next::OnChange)
            } else {
                Err(SyncError::Write {
                    node: key.name.clone(),
                    source,
                })
            }
        }
    }
}

/// One part of each range, or of none.
fn deal(ranges: &mut [Range]) -> Option<Vec<String>> {
    let dealt: Vec<_> = ranges.iter_mut().map_while(Range::deal).collect();
    if dealt.len() == ranges.len() {
        return Some(dealt);
    }
    for part in &dealt {
        ranges.iter_mut().for_each(|range| range.give_back(part));
    }
    None
}
