//! The decision: one pod, all nodes, the best of those that will do.

use rand::Rng;

use crate::affinity::{term_matches, tolerates};
use crate::filter::{Refusals, Rules};
use crate::interpod::PodRules;
use crate::pod::PodInfo;
use crate::snapshot::{NodeId, NodeInfo, Snapshot};
use crate::spread::SpreadRules;

/// How many nodes that will do are enough to choose from. kube-scheduler takes a share of all nodes but never
/// fewer than 100; a fixed number keeps the cost flat however many nodes there are.
const ENOUGH: usize = 100;

/// Chooses a node, or says why there is none.
pub(crate) fn decide(
    pod: &PodInfo,
    snapshot: &mut Snapshot,
    rng: &mut impl Rng,
) -> Result<NodeId, Refusals> {
    let rules = Rules {
        pod,
        pods: PodRules::of(pod, snapshot),
        spread: SpreadRules::of(pod, snapshot),
    };
    // Where room was made for the pod, it goes if it can.
    if let Some(id) = snapshot.nomination(&pod.uid)
        && (snapshot.node(id)).is_some_and(|node| rules.check(id, node).is_ok())
    {
        return Ok(id);
    }
    let mut refusals = Refusals::default();
    let mut candidates = Vec::new();
    let places = snapshot.places();
    let mut looked = 0;
    while looked < places && candidates.len() < ENOUGH {
        let id = (snapshot.start + looked) % places;
        looked += 1;
        let Some(node) = snapshot.node(id) else {
            continue;
        };
        match rules.check(id, node) {
            Ok(()) => candidates.push(id),
            Err(reasons) => refusals.add(id, &reasons),
        }
    }
    // The next search goes on where this one ended, so that all nodes get their turn.
    snapshot.start = (snapshot.start + looked).checked_rem(places).unwrap_or(0);
    best(&rules, snapshot, &candidates, rng).ok_or(refusals)
}

fn best(
    rules: &Rules<'_>,
    snapshot: &Snapshot,
    candidates: &[NodeId],
    rng: &mut impl Rng,
) -> Option<NodeId> {
    if let [only] = candidates {
        return Some(*only);
    }
    let scores = score(rules, snapshot, candidates);
    let top = scores.iter().copied().max()?;
    let equals: Vec<_> = candidates
        .iter()
        .zip(&scores)
        .filter(|(_, score)| **score == top)
        .map(|(id, _)| *id)
        .collect();
    equals.get(rng.random_range(0..equals.len())).copied()
}

/// Scores of 0 to 100 each, weighted as kube-scheduler does by default.
fn score(rules: &Rules<'_>, snapshot: &Snapshot, candidates: &[NodeId]) -> Vec<i64> {
    let pod = rules.pod;
    let nodes: Vec<&NodeInfo> = candidates
        .iter()
        .filter_map(|id| snapshot.node(*id))
        .collect();
    let mut totals: Vec<i64> = nodes
        .iter()
        .map(|node| least_allocated(pod, node) + balanced(pod, node))
        .collect();
    let mut add = |weight: i64, values: Vec<i64>| {
        for (total, value) in totals.iter_mut().zip(values) {
            *total += weight * value;
        }
    };
    if nodes.iter().any(|node| {
        node.taints
            .iter()
            .any(|taint| taint.effect == "PreferNoSchedule")
    }) {
        add(
            3,
            falling(
                nodes
                    .iter()
                    .map(|node| unwanted_taints(pod, node))
                    .collect(),
            ),
        );
    }
    if !pod.preferred_nodes().is_empty() {
        add(
            2,
            rising(nodes.iter().map(|node| preference(pod, node)).collect()),
        );
    }
    if let Some(pods) = &rules.pods {
        add(
            2,
            rising(nodes.iter().map(|node| pods.weight(node)).collect()),
        );
    }
    if let Some(spread) = &rules.spread {
        add(
            2,
            falling(nodes.iter().map(|node| spread.crowd(node)).collect()),
        );
    }
    if let Some(siblings) = pod
        .owner
        .as_deref()
        .and_then(|owner| snapshot.siblings(owner))
    {
        add(
            2,
            falling(
                candidates
                    .iter()
                    .map(|id| siblings.get(id).copied().unwrap_or(0).into())
                    .collect(),
            ),
        );
    }
    totals
}

/// Maps values to 0 to 100, the largest to 100.
fn rising(values: Vec<i64>) -> Vec<i64> {
    let (least, most) = (
        values.iter().copied().min().unwrap_or(0).min(0),
        values.iter().copied().max().unwrap_or(0),
    );
    values
        .into_iter()
        .map(|value| {
            if most == least {
                0
            } else {
                100 * (value - least) / (most - least)
            }
        })
        .collect()
}

/// Maps values to 0 to 100, zero to 100.
fn falling(values: Vec<i64>) -> Vec<i64> {
    let most = values.iter().copied().max().unwrap_or(0);
    values
        .into_iter()
        .map(|value| {
            if most == 0 {
                100
            } else {
                100 * (most - value) / most
            }
        })
        .collect()
}

fn preference(pod: &PodInfo, node: &NodeInfo) -> i64 {
    pod.preferred_nodes()
        .iter()
        .filter(|term| term_matches(&term.preference, node))
        .map(|term| i64::from(term.weight))
        .sum()
}

fn unwanted_taints(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let tolerations = pod
        .spec
        .as_deref()
        .map(|spec| spec.tolerations.as_slice())
        .unwrap_or_default();
    let count = node
        .taints
        .iter()
        .filter(|taint| taint.effect == "PreferNoSchedule" && !tolerates(tolerations, taint))
        .count();
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// How much of CPU and memory would stay free, in percent. Source: kubernetes, `leastResourceScorer`.
fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let free = |wanted: i64, have: i64| {
        if have <= 0 || wanted > have {
            0
        } else {
            (have - wanted) * 100 / have
        }
    };
    let (cpu, memory) = wanted(pod, node);
    i64::midpoint(
        free(cpu, node.allocatable.cpu),
        free(memory, node.allocatable.memory),
    )
}

/// How evenly CPU and memory would be used, in percent. Source: kubernetes, `balancedResourceScorer`.
fn balanced(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let share = |wanted: i64, have: i64| {
        if have <= 0 {
            1.0
        } else {
            (wanted as f64 / have as f64).min(1.0)
        }
    };
    let (cpu, memory) = wanted(pod, node);
    let deviation =
        (share(cpu, node.allocatable.cpu) - share(memory, node.allocatable.memory)).abs() / 2.0;
    ((1.0 - deviation) * 100.0) as i64
}

fn wanted(pod: &PodInfo, node: &NodeInfo) -> (i64, i64) {
    (node.weight.0 + pod.weight.0, node.weight.1 + pod.weight.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn cluster(nodes: Vec<Value>) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for mut node in nodes {
            if node["status"].is_null() {
                node["status"] =
                    json!({"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}});
            }
            snapshot.set_node(serde_json::from_value(node).expect("a node"));
        }
        snapshot
    }

    fn pod(uid: &str, spec: Value) -> PodInfo {
        let pod = json!({"metadata": {"uid": uid, "name": uid, "namespace": "ns", "labels": {"app": "web"}}, "spec": spec});
        PodInfo::of(serde_json::from_value(pod).expect("a pod"))
    }

    fn chosen(snapshot: &mut Snapshot, pod: &PodInfo) -> Result<String, String> {
        let mut rng = rand::rngs::StdRng::seed_from_u64(7);
        decide(pod, snapshot, &mut rng)
            .map(|id| {
                snapshot
                    .node(id)
                    .map(|node| node.name.to_string())
                    .unwrap_or_default()
            })
            .map_err(|refusals| refusals.message(None).trim_end_matches('.').to_owned())
    }

    #[test]
    fn each_filter_refuses_with_its_own_words() {
        let small = json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "1"}}});
        let tainted = json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
        let cordoned = json!({"metadata": {"name": "n"}, "spec": {"unschedulable": true}});
        let requests = |cpu: &str, memory: &str| json!({"containers": [{"resources": {"requests": {"cpu": cpu, "memory": memory}}}]});
        for (node, spec, expected) in [
            (
                small.clone(),
                requests("2", "1Mi"),
                Err("0/1 nodes are available: 1 Insufficient cpu"),
            ),
            (
                small.clone(),
                requests("2", "2Gi"),
                Err("0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory"),
            ),
            (small.clone(), requests("1", "1Gi"), Ok("n")),
            (
                small.clone(),
                json!({"containers": [{"resources": {"requests": {"gpu": "1"}}}]}),
                Err("0/1 nodes are available: 1 Insufficient gpu"),
            ),
            (
                tainted.clone(),
                json!({}),
                Err("0/1 nodes are available: 1 node(s) had untolerated taint(s)"),
            ),
            (
                tainted,
                json!({"tolerations": [{"key": "k", "operator": "Exists"}]}),
                Ok("n"),
            ),
            (
                cordoned,
                json!({}),
                Err("0/1 nodes are available: 1 node(s) were unschedulable"),
            ),
            (
                small,
                json!({"nodeSelector": {"disk": "ssd"}}),
                Err("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector"),
            ),
        ] {
            let mut snapshot = cluster(vec![node]);
            assert_eq!(
                chosen(&mut snapshot, &pod("p", spec.clone()))
                    .as_deref()
                    .map_err(String::as_str),
                expected,
                "{spec}"
            );
        }
    }

    #[test]
    fn a_host_port_is_given_once() {
        let mut snapshot = cluster(vec![json!({"metadata": {"name": "n"}})]);
        let spec = json!({"containers": [{"ports": [{"hostPort": 80}]}]});
        snapshot.add_pod(Arc::new(pod("a", spec.clone())), "n");
        assert_eq!(
            chosen(&mut snapshot, &pod("b", spec)),
            Err("0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports".into())
        );
    }

    #[test]
    fn the_emptier_node_is_better() {
        let mut snapshot = cluster(vec![
            json!({"metadata": {"name": "full"}}),
            json!({"metadata": {"name": "empty"}}),
        ]);
        let spec =
            json!({"containers": [{"resources": {"requests": {"cpu": "1", "memory": "2Gi"}}}]});
        snapshot.add_pod(Arc::new(pod("a", spec.clone())), "full");
        assert_eq!(chosen(&mut snapshot, &pod("b", spec)), Ok("empty".into()));
    }

    #[test]
    fn pods_that_avoid_each_other_get_different_nodes() {
        let node = |name: &str| json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
        let mut snapshot = cluster(vec![node("a"), node("b")]);
        let spec = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"}]}}});
        let first = pod("1", spec.clone());
        let place = chosen(&mut snapshot, &first).expect("a node");
        snapshot.add_pod(Arc::new(first.bound()), &place);
        let second = pod("2", spec.clone());
        let other = chosen(&mut snapshot, &second).expect("a node");
        assert_ne!(place, other);
        snapshot.add_pod(Arc::new(second.bound()), &other);
        assert_eq!(
            chosen(&mut snapshot, &pod("3", spec)),
            Err("0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules".into())
        );
        assert_eq!(
            chosen(&mut snapshot, &pod("4", json!({}))),
            Err("0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules".into())
        );
    }

    #[test]
    fn the_first_of_a_group_that_wants_to_be_together_goes_anywhere_and_the_rest_follow() {
        let node =
            |name: &str, zone: &str| json!({"metadata": {"name": name, "labels": {"zone": zone}}});
        let mut snapshot = cluster(vec![node("a", "1"), node("b", "2"), node("c", "2")]);
        let spec = json!({"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "zone"}]}}});
        let first = pod("1", spec.clone());
        assert!(chosen(&mut snapshot, &first).is_ok());
        snapshot.add_pod(Arc::new(first.bound()), "a");
        assert_eq!(chosen(&mut snapshot, &pod("2", spec)), Ok("a".into()));
    }

    #[test]
    fn a_spread_constraint_keeps_zones_level() {
        let node =
            |name: &str, zone: &str| json!({"metadata": {"name": name, "labels": {"zone": zone}}});
        let mut snapshot = cluster(vec![node("a", "1"), node("b", "2")]);
        let spec = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}}}]});
        snapshot.add_pod(Arc::new(pod("1", spec.clone()).bound()), "a");
        assert_eq!(chosen(&mut snapshot, &pod("2", spec)), Ok("b".into()));
    }

    #[test]
    fn among_many_nodes_a_hundred_that_will_do_are_enough() {
        let mut snapshot = cluster(
            (0..500)
                .map(|n| json!({"metadata": {"name": format!("n{n}")}}))
                .collect(),
        );
        let mut rng = rand::rngs::StdRng::seed_from_u64(7);
        decide(&pod("p", json!({})), &mut snapshot, &mut rng).expect("a node");
        assert_eq!(snapshot.start, ENOUGH);
    }
}
