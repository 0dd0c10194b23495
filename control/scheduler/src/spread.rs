//! Topology spread constraints.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use knarr_controllers::model::Selector;

use crate::affinity::{node_matches, tolerates};
use crate::filter::Refusal;
use crate::pod::PodInfo;
use crate::snapshot::{NodeInfo, Snapshot};

/// The constraints of one pod with the present counts.
#[derive(Debug)]
pub(crate) struct SpreadRules {
    constraints: Vec<Counted>,
}

#[derive(Debug)]
struct Counted {
    key: Box<str>,
    hard: bool,
    max_skew: i64,
    /// 1 if the pod would count itself.
    own: i64,
    least: i64,
    counts: HashMap<Box<str>, i64>,
}

impl SpreadRules {
    /// Counts the pods that the constraints mean, over the nodes that count; `None` without constraints.
    pub fn of(pod: &PodInfo, snapshot: &Snapshot) -> Option<Self> {
        let constraints = &pod.spec.as_deref()?.topology_spread_constraints;
        if constraints.is_empty() {
            return None;
        }
        let constraints = constraints
            .iter()
            .map(|constraint| Counted::of(constraint, pod, snapshot))
            .collect();
        Some(Self { constraints })
    }

    /// Refuses a node whose topology would get too far ahead of the emptiest.
    pub fn check(&self, node: &NodeInfo) -> Result<(), Refusal> {
        for constraint in self.constraints.iter().filter(|constraint| constraint.hard) {
            let Some(value) = node.labels.get(&*constraint.key) else {
                return Err(Refusal::SpreadLabel);
            };
            let count = constraint.counts.get(value.as_str()).copied().unwrap_or(0);
            if count + constraint.own - constraint.least > constraint.max_skew {
                return Err(Refusal::Spread);
            }
        }
        Ok(())
    }

    /// How crowded the node's topologies are, for the soft constraints: less is better.
    pub fn crowd(&self, node: &NodeInfo) -> i64 {
        (self
            .constraints
            .iter()
            .filter(|constraint| !constraint.hard))
        .filter_map(|constraint| {
            Some(
                constraint
                    .counts
                    .get(node.labels.get(&*constraint.key)?.as_str())
                    .copied()
                    .unwrap_or(0),
            )
        })
        .sum()
    }
}

impl Counted {
    fn of(constraint: &TopologySpreadConstraint, pod: &PodInfo, snapshot: &Snapshot) -> Self {
        let selects = |other: &PodInfo| {
            other.namespace == pod.namespace
                && constraint
                    .label_selector
                    .as_ref()
                    .is_some_and(|selector| Selector(selector).matches(Some(&other.labels)))
                && (constraint.match_label_keys.iter().flatten()).all(|key| {
                    pod.labels
                        .get(key)
                        .is_none_or(|value| other.labels.get(key) == Some(value))
                })
        };
        let tolerations = pod
            .spec
            .as_deref()
            .map(|spec| spec.tolerations.as_slice())
            .unwrap_or_default();
        let honours_taints = constraint.node_taints_policy.as_deref() == Some("Honor");
        let honours_affinity = constraint.node_affinity_policy.as_deref() != Some("Ignore");
        let mut counts: HashMap<Box<str>, i64> = HashMap::new();
        for (_, node) in snapshot.nodes() {
            let Some(value) = node.labels.get(&constraint.topology_key) else {
                continue;
            };
            if honours_affinity && !node_matches(pod, node) {
                continue;
            }
            if honours_taints
                && node.taints.iter().any(|taint| {
                    taint.effect != "PreferNoSchedule" && !tolerates(tolerations, taint)
                })
            {
                continue;
            }
            let here = node.pods.iter().filter(|other| selects(other)).count();
            *counts.entry(value.as_str().into()).or_insert(0) +=
                i64::try_from(here).unwrap_or(i64::MAX);
        }
        let too_few = i64::try_from(counts.len()).unwrap_or(i64::MAX)
            < constraint.min_domains.unwrap_or(1).into();
        Self {
            key: constraint.topology_key.as_str().into(),
            hard: constraint.when_unsatisfiable == "DoNotSchedule",
            max_skew: constraint.max_skew.into(),
            own: selects(pod).into(),
            least: if too_few {
                0
            } else {
                counts.values().copied().min().unwrap_or(0)
            },
            counts,
        }
    }
}
