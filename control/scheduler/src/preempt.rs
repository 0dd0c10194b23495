//! Preemption: which pods of less priority must go so that a pod finds a place.
//!
//! As kube-scheduler's `DefaultPreemption`: on each node that other pods made refuse, take all pods of less priority away; if
//! the pod fits then, put them back one by one, the dearest first, as long as it still does. Of the nodes left the one is taken
//! whose victims are missed the least. There are no disruption budgets yet that could be violated.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use crate::filter::{Refusals, Rules, counted};
use crate::interpod::PodRules;
use crate::pod::PodInfo;
use crate::snapshot::{NodeId, Snapshot};
use crate::spread::SpreadRules;

/// How many nodes with victims are enough to choose from, as in `decide`.
const ENOUGH: usize = 100;

/// Whose place a pod takes.
#[derive(Debug, PartialEq)]
pub(crate) struct Preemption {
    pub node: Arc<str>,
    /// The dearest first.
    pub victims: Vec<Arc<PodInfo>>,
}

/// Finds the pods that must go, or says in kube-scheduler's words why that would not help.
pub(crate) fn preempt(
    pod: &PodInfo,
    snapshot: &mut Snapshot,
    refusals: &Refusals,
) -> Result<Preemption, String> {
    let spec = pod.spec.as_deref();
    if spec.is_some_and(|spec| spec.preemption_policy.as_deref() == Some("Never")) {
        return Err("not eligible due to preemptionPolicy=Never.".into());
    }
    let ends = |other: &Arc<PodInfo>| other.terminating && other.priority < pod.priority;
    let nominated = snapshot.nomination(&pod.uid);
    if (nominated.and_then(|id| snapshot.node(id))).is_some_and(|node| node.pods.iter().any(ends)) {
        return Err("not eligible due to a terminating pod on the nominated node.".into());
    }
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let hopeless = refusals.nodes - refusals.helpable.len();
    if hopeless > 0 {
        reasons.insert("Preemption is not helpful for scheduling".into(), hopeless);
    }
    let mut candidates = Vec::new();
    for id in &refusals.helpable {
        match victims(pod, snapshot, *id) {
            Ok(victims) => candidates.push((*id, victims)),
            Err(why) => {
                for reason in why {
                    *reasons.entry(reason).or_insert(0) += 1;
                }
            }
        }
        if candidates.len() >= ENOUGH {
            break;
        }
    }
    let (id, victims) = (candidates.into_iter())
        .min_by_key(|(_, victims)| cost(victims))
        .ok_or_else(|| {
            let nodes = refusals.nodes;
            format!("0/{nodes} nodes are available: {}.", counted(&reasons))
        })?;
    let node = snapshot.node(id).expect("its pods were just looked at");
    Ok(Preemption {
        node: node.name.clone(),
        victims,
    })
}

/// How much victims are missed: by the dearest, the sum of priorities, how many, and for how long the dearest runs already.
fn cost(victims: &[Arc<PodInfo>]) -> (i32, i64, usize, Reverse<i64>) {
    let dearest = victims.first().map_or(i32::MIN, |pod| pod.priority);
    // Shifted to above zero, so that many pods of less than no priority do not look cheap.
    let sum = (victims.iter())
        .map(|pod| i64::from(pod.priority) - i64::from(i32::MIN))
        .sum();
    let earliest = (victims.iter())
        .filter(|pod| pod.priority == dearest)
        .map(|pod| pod.started)
        .min();
    (
        dearest,
        sum,
        victims.len(),
        Reverse(earliest.unwrap_or(i64::MAX)),
    )
}

/// The pods that must leave a node; the snapshot is as before afterwards, even after a panic.
fn victims(
    pod: &PodInfo,
    snapshot: &mut Snapshot,
    id: NodeId,
) -> Result<Vec<Arc<PodInfo>>, Vec<String>> {
    let none = || vec!["No preemption victims found for incoming pod".to_owned()];
    let node = snapshot.node(id).ok_or_else(none)?;
    let name = node.name.clone();
    let mut lesser: Vec<_> = (node.pods.iter())
        .filter(|other| other.priority < pod.priority)
        .cloned()
        .collect();
    if lesser.is_empty() {
        return Err(none());
    }
    lesser.sort_by_key(|other| (Reverse(other.priority), other.started, other.uid.clone()));
    for other in &lesser {
        snapshot.remove_pod(&other.uid);
    }
    let choose = AssertUnwindSafe(|| {
        let refused = refusals(pod, snapshot, id);
        let mut victims = Vec::new();
        for other in &lesser {
            snapshot.add_pod(other.clone(), &name);
            if refused.is_empty() && !refusals(pod, snapshot, id).is_empty() {
                snapshot.remove_pod(&other.uid);
                victims.push(other.clone());
            }
        }
        (refused, victims)
    });
    let (refused, victims) = match catch_unwind(choose) {
        Ok(chosen) => chosen,
        Err(panic) => {
            for other in &lesser {
                snapshot.add_pod(other.clone(), &name);
            }
            resume_unwind(panic);
        }
    };
    for victim in &victims {
        snapshot.add_pod(victim.clone(), &name);
    }
    if refused.is_empty() {
        Ok(victims)
    } else {
        Err(refused)
    }
}

/// Why a node refuses a pod now; nothing if it does not.
fn refusals(pod: &PodInfo, snapshot: &Snapshot, id: NodeId) -> Vec<String> {
    let Some(node) = snapshot.node(id) else {
        return Vec::new();
    };
    let rules = Rules {
        pod,
        pods: PodRules::of(pod, snapshot),
        spread: SpreadRules::of(pod, snapshot),
    };
    let refused = rules.check(id, node).err().unwrap_or_default();
    refused.iter().map(crate::filter::Refusal::text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::decide;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use serde_json::{Value, json};

    fn cluster(names: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for name in names {
            let node = json!({ "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
                "status": { "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "10" } } });
            snapshot.set_node(serde_json::from_value(node).expect("a node"));
        }
        snapshot
    }

    fn pod(name: &str, priority: i32, cpu: &str, more: &Value) -> PodInfo {
        let mut pod = json!({
            "metadata": { "uid": name, "name": name, "namespace": "ns", "labels": { "app": name } },
            "spec": { "priority": priority, "containers": [{ "resources": { "requests": { "cpu": cpu } } }] },
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            pod["spec"][key] = value.clone();
        }
        PodInfo::of(serde_json::from_value(pod).expect("a pod"))
    }

    fn runs(snapshot: &mut Snapshot, node: &str, name: &str, priority: i32, cpu: &str) {
        let pod = pod(name, priority, cpu, &Value::Null).bound();
        snapshot.add_pod(Arc::new(pod), node);
    }

    /// The node and the victims, or the whole message.
    fn outcome(snapshot: &mut Snapshot, pod: &PodInfo) -> Result<(String, Vec<String>), String> {
        let refusals = decide(pod, snapshot, &mut StdRng::seed_from_u64(7)).expect_err("no room");
        match preempt(pod, snapshot, &refusals) {
            Ok(found) => Ok((
                found.node.to_string(),
                found.victims.iter().map(|pod| pod.name.clone()).collect(),
            )),
            Err(why) => Err(refusals.message(Some(&why))),
        }
    }

    fn found(node: &str, victims: &[&str]) -> Result<(String, Vec<String>), String> {
        Ok((node.into(), victims.iter().map(|&v| v.into()).collect()))
    }

    #[test]
    fn as_few_and_as_cheap_pods_go_as_will_do() {
        let mut snapshot = cluster(&["n"]);
        for (name, priority, cpu) in [("cheap", 0, "1"), ("dear", 5, "1"), ("mid", 2, "2")] {
            runs(&mut snapshot, "n", name, priority, cpu);
        }
        let wants = |cpu| pod("new", 10, cpu, &Value::Null);
        assert_eq!(outcome(&mut snapshot, &wants("1")), found("n", &["cheap"]));
        assert_eq!(outcome(&mut snapshot, &wants("2")), found("n", &["mid"]));
        assert_eq!(
            outcome(&mut snapshot, &wants("3")),
            found("n", &["mid", "cheap"])
        );
        // Looking changed nothing.
        let node = snapshot.node(0).expect("the node");
        assert_eq!((node.used.cpu, node.pods.len()), (4000, 3));
    }

    #[test]
    fn the_node_whose_victims_are_missed_least_is_taken() {
        let mut snapshot = cluster(&["dear", "many", "one"]);
        runs(&mut snapshot, "dear", "d", 5, "4");
        runs(&mut snapshot, "many", "m1", 1, "2");
        runs(&mut snapshot, "many", "m2", 1, "2");
        runs(&mut snapshot, "one", "o", 1, "4");
        let new = pod("new", 10, "4", &Value::Null);
        assert_eq!(outcome(&mut snapshot, &new), found("one", &["o"]));
    }

    #[test]
    fn what_does_not_help_is_told_in_kube_schedulers_words() {
        let mut snapshot = cluster(&["n"]);
        runs(&mut snapshot, "n", "equal", 0, "4");
        let message = |rest: &str| {
            Err(format!(
                "0/1 nodes are available: 1 Insufficient cpu. preemption: {rest}"
            ))
        };
        assert_eq!(
            outcome(&mut snapshot, &pod("new", 0, "1", &Value::Null)),
            message("0/1 nodes are available: 1 No preemption victims found for incoming pod.")
        );
        assert_eq!(
            outcome(&mut snapshot, &pod("large", 1, "5", &Value::Null)),
            message("0/1 nodes are available: 1 Insufficient cpu.")
        );
        let never = json!({ "preemptionPolicy": "Never" });
        assert_eq!(
            outcome(&mut snapshot, &pod("meek", 1, "1", &never)),
            message("not eligible due to preemptionPolicy=Never.")
        );
        let elsewhere = json!({ "nodeSelector": { "disk": "ssd" } });
        assert_eq!(
            outcome(&mut snapshot, &pod("picky", 1, "1", &elsewhere)),
            Err(
                "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. \
                 preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling."
                    .into()
            )
        );
    }

    #[test]
    fn a_pod_that_keeps_others_away_goes_too() {
        let mut snapshot = cluster(&["n"]);
        let away = json!({ "affinity": { "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
            { "labelSelector": { "matchLabels": { "app": "new" } }, "topologyKey": "kubernetes.io/hostname" }] } } });
        snapshot.add_pod(Arc::new(pod("loner", 0, "1", &away).bound()), "n");
        runs(&mut snapshot, "n", "bystander", 0, "1");
        let new = pod("new", 1, "1", &Value::Null);
        assert_eq!(outcome(&mut snapshot, &new), found("n", &["loner"]));
    }

    #[test]
    fn a_place_that_was_made_is_kept_and_waited_for() {
        let mut snapshot = cluster(&["n"]);
        runs(&mut snapshot, "n", "old", 0, "4");
        let new = Arc::new(pod("new", 5, "4", &Value::Null));
        assert_eq!(outcome(&mut snapshot, &new), found("n", &["old"]));
        snapshot.nominate(new.clone(), "n");
        let ending = PodInfo {
            terminating: true,
            ..pod("old", 0, "4", &Value::Null).bound()
        };
        snapshot.add_pod(Arc::new(ending), "n");
        assert_eq!(
            outcome(&mut snapshot, &new),
            Err("0/1 nodes are available: 1 Insufficient cpu. \
                 preemption: not eligible due to a terminating pod on the nominated node."
                .into())
        );
        snapshot.remove_pod("old");
        let mut rng = StdRng::seed_from_u64(7);
        // Others of less priority do not take it meanwhile, those of more do.
        assert!(decide(&pod("thief", 0, "1", &Value::Null), &mut snapshot, &mut rng).is_err());
        assert!(decide(&pod("boss", 6, "1", &Value::Null), &mut snapshot, &mut rng).is_ok());
        assert!(decide(&new, &mut snapshot, &mut rng).is_ok());
        snapshot.forget_nomination("new");
        assert!(decide(&pod("late", 0, "1", &Value::Null), &mut snapshot, &mut rng).is_ok());
    }
}
