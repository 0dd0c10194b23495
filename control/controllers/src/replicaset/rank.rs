//! Which pods go first when a replica set shrinks.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::model::{self, Pod};

/// Puts the pods that should go first in front.
///
/// `related` are the active pods of all replica sets of the same owner: of two pods, the one whose node has more of them goes
/// first. Source: kubernetes/pkg/controller/controller_utils.go, `ActivePodsWithRanks`.
pub(crate) fn rank(pods: &mut [Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) {
    let mut crowd: HashMap<&str, usize> = HashMap::new();
    for pod in related {
        if let Some(node) = &pod.spec.node_name {
            *crowd.entry(node).or_default() += 1;
        }
    }
    let crowd_of = |pod: &Pod| {
        pod.spec
            .node_name
            .as_deref()
            .and_then(|node| crowd.get(node))
            .copied()
            .unwrap_or(0)
    };
    pods.sort_by(|left, right| {
        (left
            .spec
            .node_name
            .is_some()
            .cmp(&right.spec.node_name.is_some()))
        .then_with(|| phase_rank(left).cmp(&phase_rank(right)))
        .then_with(|| left.is_ready().cmp(&right.is_ready()))
        .then_with(|| deletion_cost(left).cmp(&deletion_cost(right)))
        .then_with(|| crowd_of(right).cmp(&crowd_of(left)))
        .then_with(|| younger_first(left.ready_since(), right.ready_since(), now, left, right))
        .then_with(|| right.restarts().cmp(&left.restarts()))
        .then_with(|| younger_first(created(left), created(right), now, left, right))
    });
}

fn phase_rank(pod: &Pod) -> u8 {
    match pod.phase() {
        "Pending" => 0,
        "Running" => 2,
        _ => 1,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    model::annotation(&pod.metadata, model::DELETION_COST)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

/// Ages count by their logarithm, and the UID decides among equals, so that a scale-down does not always hit the
/// pods of one moment.
fn younger_first(
    left: Option<Timestamp>,
    right: Option<Timestamp>,
    now: Timestamp,
    a: &Pod,
    b: &Pod,
) -> Ordering {
    if left == right {
        return Ordering::Equal;
    }
    bucket(left, now)
        .cmp(&bucket(right, now))
        .then_with(|| model::uid(&a.metadata).cmp(model::uid(&b.metadata)))
}

fn bucket(time: Option<Timestamp>, now: Timestamp) -> i32 {
    match time {
        None => -1,
        Some(time) => {
            let seconds = now.as_second().saturating_sub(time.as_second()).max(1);
            i32::try_from(seconds.ilog2()).unwrap_or(i32::MAX)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, rest: Value) -> Arc<Pod> {
        let mut value = json!({"metadata": {"name": name, "uid": name}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
        fn merge(into: &mut Value, from: Value) {
            match (into, from) {
                (Value::Object(into), Value::Object(from)) => {
                    for (key, value) in from {
                        merge(into.entry(key).or_insert(Value::Null), value);
                    }
                }
                (into, from) => *into = from,
            }
        }
        merge(&mut value, rest);
        Arc::new(serde_json::from_value(value).expect("a pod"))
    }

    fn ready(since: &str) -> Value {
        json!({"status": {"conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": since}]}})
    }

    #[test]
    fn the_least_useful_pod_goes_first() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a time");
        let ordered = [
            pod("unassigned", json!({"spec": {"nodeName": null}})),
            pod("pending", json!({"status": {"phase": "Pending"}})),
            pod("unready", json!({})),
            pod("cheap", {
                let mut v = ready("2026-01-01T08:00:00Z");
                v["metadata"] = json!({"annotations": {model::DELETION_COST: "-5"}});
                v
            }),
            pod("young", ready("2026-01-01T11:59:00Z")),
            pod("old", ready("2026-01-01T01:00:00Z")),
            pod("dear", {
                let mut v = ready("2026-01-01T11:59:59Z");
                v["metadata"] = json!({"annotations": {model::DELETION_COST: "10"}});
                v
            }),
        ];
        let mut shuffled: Vec<_> = ordered.iter().rev().cloned().collect();
        rank(&mut shuffled, &[], now);
        let names: Vec<_> = shuffled
            .iter()
            .map(|pod| model::name(&pod.metadata).to_owned())
            .collect();
        assert_eq!(
            names,
            [
                "unassigned",
                "pending",
                "unready",
                "cheap",
                "young",
                "old",
                "dear"
            ]
        );
    }

    #[test]
    fn the_pod_on_the_fuller_node_goes_first() {
        let now = Timestamp::UNIX_EPOCH;
        let mut pods = [
            pod("a", json!({})),
            pod("b", json!({"spec": {"nodeName": "m"}})),
            pod("c", json!({"spec": {"nodeName": "m"}})),
        ];
        let related = pods.clone();
        rank(&mut pods, &related, now);
        assert_eq!(model::name(&pods[2].metadata), "a");
    }
}
