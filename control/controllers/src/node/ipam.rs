//! Addresses for pods: every node gets a part of the cluster's ranges.
//!
//! What is given out stands in the nodes themselves, so nothing is lost with a restart: the first list says what is taken.

use std::collections::HashMap;
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
use crate::supervise::Loop;

/// Why a node has no addresses yet.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error("no addresses are left for node {node}")]
    Exhausted { node: Arc<str> },
    #[error("write the addresses of node {node}")]
    Write { node: Arc<str>, source: kube::Error },
}

/// The ranges, and what was dealt to nodes that do not show it yet.
struct State {
    ranges: Vec<Range>,
    /// A node gets the same parts at the next try, whatever became of the first.
    pending: HashMap<Arc<str>, Vec<String>>,
}

impl State {
    fn give_back(&mut self, part: &str) {
        self.ranges
            .iter_mut()
            .for_each(|range| range.give_back(part));
    }
}

/// Registers for changes; what the returned function makes works until stopped.
pub(crate) fn start(ctx: Context) -> Loop {
    let queue = Arc::new(Queue::default());
    let ranges = ctx
        .config
        .cluster_cidrs
        .iter()
        .map(|(address, prefix)| Range::new(*address, *prefix))
        .collect();
    let state = Arc::new(Mutex::new(State {
        ranges,
        pending: HashMap::new(),
    }));
    let (keys, shared) = (queue.clone(), state.clone());
    ctx.caches.nodes.on_change(move |change| {
        let mut state = shared.lock();
        match (change.old, change.new) {
            (_, Some(node)) => parts(node)
                .for_each(|part| state.ranges.iter_mut().for_each(|range| range.take(part))),
            (Some(node), None) => {
                let pending = state
                    .pending
                    .remove(model::name(&node.metadata))
                    .unwrap_or_default();
                parts(node).for_each(|part| state.give_back(part));
                pending.iter().for_each(|part| state.give_back(part));
            }
            (None, None) => {}
        }
        if let Some(node) = change.new
            && (node.spec.pod_cidr.is_none()
                || state.pending.contains_key(model::name(&node.metadata)))
        {
            keys.add(Key::of(&node.metadata));
        }
    });
    let work = ctx.clone();
    queue.worker("node-ipam", 8, ctx.stop.clone(), move |key| {
        let (ctx, state) = (work.clone(), state.clone());
        async move { sync(&ctx, &state, &key).await }
    })
}

fn parts(node: &Node) -> impl Iterator<Item = &str> {
    node.spec
        .pod_cidrs
        .iter()
        .chain(&node.spec.pod_cidr)
        .map(String::as_str)
}

async fn sync(ctx: &Context, state: &Mutex<State>, key: &Key) -> Result<Next, SyncError> {
    let known = ctx
        .caches
        .nodes
        .get(key)
        .filter(|node| !model::is_deleting(&node.metadata));
    let Some(node) = known else {
        return Ok(Next::OnChange);
    };
    if let Some(shown) = &node.spec.pod_cidr {
        // Somebody else may have been first: what was meant for the node is free again, unless it is what the node got.
        let mut state = state.lock();
        for part in state.pending.remove(&key.name).unwrap_or_default() {
            if part != *shown && !node.spec.pod_cidrs.contains(&part) {
                state.give_back(&part);
            }
        }
        return Ok(Next::OnChange);
    }
    let dealt = {
        let mut state = state.lock();
        match state.pending.get(&key.name) {
            Some(pending) => Some(pending.clone()),
            None => deal(&mut state.ranges),
        }
    };
    let Some(dealt) = dealt else {
        let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
        ctx.recorder
            .record(&*node, Severity::Normal, "CIDRNotAvailable", message);
        return Err(SyncError::Exhausted {
            node: key.name.clone(),
        });
    };
    state.lock().pending.insert(key.name.clone(), dealt.clone());
    // Conditional on the version, so that nobody's earlier choice is overwritten.
    let body = json!({
        "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
        "spec": {"podCIDR": dealt.first(), "podCIDRs": dealt},
    });
    match api::patch::<Node>(&ctx.client, "", &key.name, &body).await {
        Err(error) if api::is_not_found(&error) => Ok(Next::OnChange),
        Err(source) => Err(SyncError::Write {
            node: key.name.clone(),
            source,
        }),
        Ok(_) => Ok(Next::OnChange),
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
