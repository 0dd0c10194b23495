//! Whether nodes are alive: their conditions and taints.
//!
//! A node gives a sign of life by renewing its lease or by a new heartbeat in its status. What counts is when the sign was seen
//! here, not the time in it, so that clocks need not agree, and a restart gives every node the whole grace again; time in
//! which this process did not run does not count. A node that is not ready gets its `NoSchedule` taint at once, and the
//! `NoExecute` taint, which evicts its pods, no faster than [`super::zones`] allows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Error;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::zones::{Count, Turn, Zone, Zones};
use crate::api;
use crate::cache::{Change, IndexKey, Key};
use crate::context::Context;
use crate::events::Severity;
use crate::model::{self, Node, Pod, is_deleting};
use crate::queue::{Next, Queue};
use crate::supervise::Loop;

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

/// A node that has this label does not count in the mode of its zone.
const EXCLUDED: &str = "node.kubernetes.io/exclude-disruption";
const REGION_LABEL: &str = "topology.kubernetes.io/region";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// What is remembered of a node.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// When it was last heard of, by [`crate::clock`].
    heard: Duration,
    /// Whether it was ready when the zones were last looked at; `None` if it was not there.
    ready: Option<bool>,
    /// Whether its taints are still those of an earlier life of the controller, whose evictions are begun anew.
    inherited: bool,
}

struct Monitor {
    ctx: Context,
    seen: Mutex<HashMap<Arc<str>, Seen>>,
    zones: Mutex<Zones>,
    queue: Arc<Queue<Key>>,
}

/// Registers for changes; what the returned function makes works until stopped.
pub(crate) fn start(ctx: Context) -> Loop {
    let monitor = Arc::new(Monitor {
        seen: Mutex::default(),
        zones: Mutex::new(Zones::new(ctx.config.eviction)),
        queue: Arc::default(),
        ctx: ctx.clone(),
    });
    let own = monitor.clone();
    ctx.caches
        .nodes
        .on_change(move |change| own.note_node(change));
    let own = monitor.clone();
    ctx.caches.leases.on_change(move |change| {
        if let Some(lease) = change.new
            && change
                .old
                .is_none_or(|old| old.spec.renew_time != lease.spec.renew_time)
        {
            // Nothing else has to be done: the node's next look finds the later time. Only a silent node has to be woken, and its
            // own status, which the kubelet writes then, does that.
            let now = own.ctx.clock.now();
            if let Some(seen) = own.seen.lock().get_mut(model::name(&lease.metadata)) {
                seen.heard = now;
            }
        }
    });
    let queue = monitor.queue.clone();
    queue.worker("node-lifecycle", 8, ctx.stop, move |key| {
        let monitor = monitor.clone();
        async move { monitor.sync(&key).await }
    })
}

impl Monitor {
    fn note_node(&self, change: Change<'_, Node>) {
        let heartbeat = |node: &Node| {
            node.condition("Ready")
                .map(|ready| ready.last_heartbeat_time.clone())
        };
        match (change.old, change.new) {
            (old, Some(node)) => {
                let key = Key::of(&node.metadata);
                let now = self.ctx.clock.now();
                let mut all = self.seen.lock();
                let seen = all.entry(key.name.clone()).or_insert(Seen {
                    heard: now,
                    ready: None,
                    inherited: true,
                });
                if old.is_none_or(|old| heartbeat(old) != heartbeat(node)) {
                    seen.heard = now;
                }
                if old.is_some_and(|old| place(old) != place(node)) {
                    // The zones have to be looked at again.
                    seen.ready = None;
                }
                drop(all);
                self.queue.add(key);
            }
            (Some(node), None) => {
                self.seen.lock().remove(model::name(&node.metadata));
                self.look_at_zones();
            }
            (None, None) => {}
        }
    }

    async fn sync(&self, key: &Key) -> Result<Next, SyncError> {
        let ctx = &self.ctx;
        let Some(node) = ctx
            .caches
            .nodes
            .get(key)
            .filter(|node| !is_deleting(&node.metadata))
        else {
            return Ok(Next::OnChange);
        };
        let clock = ctx.clock.now();
        let silent = self.silence(&key.name, clock);
        let grace = self.grace(&node);
        let is_silent = silent >= grace;
        let now = Timestamp::now();
        if is_silent {
            let unknown = unknown_conditions(&node, now);
            if !unknown.is_empty() {
                let body = json!({"metadata": {"uid": node.metadata.uid}, "status": {"conditions": unknown}});
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
                mark_pods(ctx, key, now).await?;
                // The taints are changed on the version that was just written: its event brings the key back.
                return Ok(Next::OnChange);
            }
            mark_pods(ctx, key, now).await?;
        }
        let ready = ready(&node, is_silent);
        let (was_ready, inherited) = self
            .seen
            .lock()
            .get(&key.name)
            .map_or((None, false), |seen| (seen.ready, seen.inherited));
        if was_ready != Some(ready == Ready::True) {
            self.look_at_zones();
        }
        let mut next = if is_silent {
            Next::OnChange
        } else {
            Next::After(grace - silent + Duration::from_millis(100))
        };
        let execute = match executing(&node, ready) {
            Executing::Settled(_) if ready != Ready::True && (inherited || self.all_silent()) => {
                Execute::None
            }
            Executing::Settled(execute) => execute,
            Executing::Asks(_) if inherited || self.all_silent() => Execute::None,
            Executing::Asks(execute) => match self.take(&node, clock) {
                Ok(()) => execute,
                Err(wait) => {
                    // Without a time, the zone's next mode brings the node back.
                    if let Some(wait) = wait {
                        next = sooner(next, wait);
                    }
                    Execute::None
                }
            },
        };
        if let Some(taints) = taints(&node, ready, execute, now) {
            let body = json!({"metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version}, "spec": {"taints": taints}});
            unless_gone(api::patch::<Node>(&ctx.client, "", &key.name, &body).await).map_err(
                |source| SyncError::Taints {
                    node: key.name.clone(),
                    source,
                },
            )?;
        }
        if inherited {
            if let Some(seen) = self.seen.lock().get_mut(&key.name) {
                seen.inherited = false;
            }
            if ready != Ready::True {
                next = Next::After(Duration::ZERO);
            }
        }
        Ok(next)
    }

    fn silence(&self, node: &str, now: Duration) -> Duration {
        let heard = self.seen.lock().get(node).map_or(now, |seen| seen.heard);
        now.saturating_sub(heard)
    }

    fn grace(&self, node: &Node) -> Duration {
        if node.condition("Ready").is_some() {
            self.ctx.config.node_grace
        } else {
            self.ctx.config.node_startup_grace
        }
    }

    fn all_silent(&self) -> bool {
        self.zones.lock().all_silent()
    }

    /// Asks to evict the pods of a node. The nodes are looked at first: those that fell silent at the same time count, though
    /// their turn to say so has not come yet.
    fn take(&self, node: &Node, now: Duration) -> Result<(), Option<Duration>> {
        self.look_at_zones();
        self.zones.lock().take(&zone(node), now)
    }

    /// Counts which nodes are ready, and looks at them again where that changes what may be evicted.
    fn look_at_zones(&self) {
        let now = self.ctx.clock.now();
        let nodes = self.ctx.caches.nodes.all();
        let mut counts: BTreeMap<Zone, Count> = BTreeMap::new();
        for node in &nodes {
            let name = model::name(&node.metadata);
            let is_silent = self.silence(name, now) >= self.grace(node);
            let is_ready = ready(node, is_silent) == Ready::True;
            if let Some(seen) = self.seen.lock().get_mut(name) {
                seen.ready = Some(is_ready);
            }
            if model::label(&node.metadata, EXCLUDED).is_some() {
                continue;
            }
            let count = counts.entry(zone(node)).or_default();
            *(if is_ready {
                &mut count.ready
            } else {
                &mut count.not_ready
            }) += 1;
        }
        let turn = self.zones.lock().observe(&counts, now);
        match turn {
            Turn::None => return,
            Turn::Rates => {}
            Turn::AllSilent => {
                tracing::warn!(nodes = nodes.len(), "no node is ready: no pods are evicted");
            }
            Turn::HeardAgain => {
                tracing::info!("a node is ready again: silent nodes have their whole grace again");
                let mut seen = self.seen.lock();
                seen.values_mut().for_each(|seen| seen.heard = now);
            }
        }
        for node in &nodes {
            self.queue.add(Key::of(&node.metadata));
        }
    }
}

fn sooner(next: Next, wait: Duration) -> Next {
    match next {
        Next::After(other) if other < wait => next,
        _ => Next::After(wait),
    }
}

/// The zone of a node. Source: kubernetes, component-helpers, `GetZoneKey`.
fn zone(node: &Node) -> Zone {
    let label = |key| model::label(&node.metadata, key).unwrap_or_default();
    format!("{}:{}", label(REGION_LABEL), label(ZONE_LABEL))
}

/// Where a node counts.
fn place(node: &Node) -> (Zone, bool) {
    let excluded = model::label(&node.metadata, EXCLUDED).is_some();
    (zone(node), excluded)
}

/// Whether a node is ready, as far as taints go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ready {
    True,
    /// It says that it is not, or has never said anything.
    False,
    /// It is no longer heard of.
    Unknown,
}

/// `is_silent` anticipates the conditions that a silent node is about to get.
fn ready(node: &Node, is_silent: bool) -> Ready {
    if is_silent {
        return Ready::Unknown;
    }
    match node.condition("Ready").map(|ready| &*ready.status) {
        Some("True") => Ready::True,
        // A node that never reported is as good as one that is not ready: it has not been reachable yet, rather than no longer.
        None | Some("False") => Ready::False,
        Some(_) => Ready::Unknown,
    }
}

/// Which taint makes pods leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Execute {
    None,
    NotReady,
    Unreachable,
}

/// Whether the taint that makes pods leave may be set at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Executing {
    /// At once: there is none to set, or there is one already, of this kind or the other.
    Settled(Execute),
    /// The zone has to be asked.
    Asks(Execute),
}

fn executing(node: &Node, ready: Ready) -> Executing {
    let wanted = match ready {
        Ready::True => return Executing::Settled(Execute::None),
        Ready::False => Execute::NotReady,
        Ready::Unknown => Execute::Unreachable,
    };
    let has_one = node.spec.taints.iter().any(|taint| {
        taint.effect == "NoExecute" && (taint.key == NOT_READY || taint.key == UNREACHABLE)
    });
    if has_one {
        Executing::Settled(wanted)
    } else {
        Executing::Asks(wanted)
    }
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

/// The taints that the node should have, if those are others than it has.
fn taints(node: &Node, ready: Ready, execute: Execute, now: Timestamp) -> Option<Vec<Taint>> {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match ready {
        Ready::True => {}
        Ready::False => wanted.push((NOT_READY, "NoSchedule")),
        Ready::Unknown => wanted.push((UNREACHABLE, "NoSchedule")),
    }
    match execute {
        Execute::None => {}
        Execute::NotReady => wanted.push((NOT_READY, "NoExecute")),
        Execute::Unreachable => wanted.push((UNREACHABLE, "NoExecute")),
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
        let executes = |key: &str| json!({"key": key, "effect": "NoExecute"});
        #[rustfmt::skip] // A table.
        let rows = [
            (node(Some("True"), json!([])), false, Execute::None, None),
            (node(Some("True"), json!([own])), false, Execute::None, None),
            (node(Some("False"), json!([])), false, Execute::None, Some(vec![(NOT_READY, "NoSchedule")])),
            (node(Some("False"), json!([])), false, Execute::NotReady, Some(vec![(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")])),
            (node(None, json!([])), false, Execute::None, Some(vec![(NOT_READY, "NoSchedule")])),
            (node(Some("True"), json!([])), true, Execute::Unreachable, Some(vec![(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")])),
            (node(Some("Unknown"), json!([])), false, Execute::None, Some(vec![(UNREACHABLE, "NoSchedule")])),
            // Taken back, when all nodes are silent.
            (node(Some("Unknown"), json!([own, executes(UNREACHABLE)])), false, Execute::None, Some(vec![("mine", "NoSchedule"), (UNREACHABLE, "NoSchedule")])),
            // One takes the other's place.
            (node(Some("Unknown"), json!([executes(NOT_READY)])), false, Execute::Unreachable, Some(vec![(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")])),
            (node(Some("True"), json!([own, executes(NOT_READY)])), false, Execute::None, Some(vec![("mine", "NoSchedule")])),
        ];
        for (node, is_silent, execute, expected) in rows {
            let taints = taints(
                &node,
                ready(&node, is_silent),
                execute,
                Timestamp::UNIX_EPOCH,
            );
            assert_eq!(keys(&taints), expected, "{node:?} {is_silent}");
        }
    }

    #[test]
    fn a_taint_that_evicts_is_asked_for_once() {
        let executes = |key: &str| json!([{"key": key, "effect": "NoExecute"}]);
        for (ready, taints, expected) in [
            ("True", json!([]), Executing::Settled(Execute::None)),
            (
                "True",
                executes(NOT_READY),
                Executing::Settled(Execute::None),
            ),
            ("False", json!([]), Executing::Asks(Execute::NotReady)),
            (
                "False",
                executes(UNREACHABLE),
                Executing::Settled(Execute::NotReady),
            ),
            ("Unknown", json!([]), Executing::Asks(Execute::Unreachable)),
            (
                "Unknown",
                executes("mine"),
                Executing::Asks(Execute::Unreachable),
            ),
            (
                "Unknown",
                executes(NOT_READY),
                Executing::Settled(Execute::Unreachable),
            ),
            (
                "Unknown",
                executes(UNREACHABLE),
                Executing::Settled(Execute::Unreachable),
            ),
        ] {
            let node = node(Some(ready), taints);
            assert_eq!(
                executing(&node, super::ready(&node, false)),
                expected,
                "{node:?}"
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
