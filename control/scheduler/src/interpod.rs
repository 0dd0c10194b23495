//! Affinity between pods: which topologies other pods make necessary, forbidden or better.

use std::collections::{HashMap, HashSet};

use crate::affinity::means;
use crate::filter::Refusal;
use crate::pod::{PodInfo, PodTerms};
use crate::snapshot::{NodeId, NodeInfo, Snapshot};

/// A topology: a node label and its value.
type Topology = (Box<str>, Box<str>);

/// Values of a node label.
type Values = HashSet<Box<str>>;

/// What other pods mean for one pod.
#[derive(Debug, Default)]
pub(crate) struct PodRules {
    /// Topologies where a pod is that does not want this one.
    forbidden_by_others: HashSet<Topology>,
    /// Topologies where a pod is that this one does not want.
    forbidden: HashSet<Topology>,
    /// Per required term: its label, and the values where a pod is that it means. `None`: nobody is meant and the pod itself
    /// would be, so the first of a group may go anywhere that has the label.
    required: Vec<(Box<str>, Option<Values>)>,
    scores: HashMap<Topology, i64>,
}

/// The weight of another pod's required affinity in scores. Source: kubernetes, `HardPodAffinityWeight`.
const HARD_WEIGHT: i64 = 1;

impl PodRules {
    /// Collects the rules; `None` if there are none.
    pub fn of(pod: &PodInfo, snapshot: &Snapshot) -> Option<Self> {
        let mut rules = Self::default();
        for (id, other) in snapshot.pods_with_terms() {
            if let (Some(node), Some(terms)) = (snapshot.node(id), &other.terms) {
                rules.others(pod, other, terms, node, snapshot);
            }
        }
        if let Some(terms) = &pod.terms {
            rules.own(pod, terms, snapshot);
        }
        let empty = rules.forbidden_by_others.is_empty()
            && rules.forbidden.is_empty()
            && rules.required.is_empty()
            && rules.scores.is_empty();
        (!empty).then_some(rules)
    }

    fn others(
        &mut self,
        pod: &PodInfo,
        other: &PodInfo,
        terms: &PodTerms,
        node: &NodeInfo,
        snapshot: &Snapshot,
    ) {
        for term in &terms.anti_affinity {
            if means(term, other, pod, &snapshot.namespaces) {
                self.forbidden_by_others
                    .extend(topology(&term.topology_key, node));
            }
        }
        let hard = terms.affinity.iter().map(|term| (term, HARD_WEIGHT));
        let soft = terms
            .preferred
            .iter()
            .map(|term| (&term.pod_affinity_term, i64::from(term.weight)));
        let anti = terms
            .anti_preferred
            .iter()
            .map(|term| (&term.pod_affinity_term, -i64::from(term.weight)));
        for (term, weight) in hard.chain(soft).chain(anti) {
            if means(term, other, pod, &snapshot.namespaces) {
                self.score(&term.topology_key, node, weight);
            }
        }
    }

    fn own(&mut self, pod: &PodInfo, terms: &PodTerms, snapshot: &Snapshot) {
        let mut found = vec![HashSet::new(); terms.affinity.len()];
        for (_, node) in snapshot.nodes() {
            for other in &node.pods {
                let meant = |term| means(term, pod, other, &snapshot.namespaces);
                for (term, values) in terms.affinity.iter().zip(&mut found) {
                    if let Some((_, value)) = topology(&term.topology_key, node)
                        && meant(term)
                    {
                        values.insert(value);
                    }
                }
                for term in &terms.anti_affinity {
                    if meant(term) {
                        self.forbidden.extend(topology(&term.topology_key, node));
                    }
                }
                for term in &terms.preferred {
                    if meant(&term.pod_affinity_term) {
                        self.score(
                            &term.pod_affinity_term.topology_key,
                            node,
                            term.weight.into(),
                        );
                    }
                }
                for term in &terms.anti_preferred {
                    if meant(&term.pod_affinity_term) {
                        self.score(
                            &term.pod_affinity_term.topology_key,
                            node,
                            -i64::from(term.weight),
                        );
                    }
                }
            }
        }
        let first = found.iter().all(HashSet::is_empty)
            && terms
                .affinity
                .iter()
                .all(|term| means(term, pod, pod, &snapshot.namespaces));
        self.required = (terms.affinity.iter().zip(found))
            .map(|(term, values)| {
                (
                    term.topology_key.as_str().into(),
                    (!first).then_some(values),
                )
            })
            .collect();
    }

    fn score(&mut self, key: &str, node: &NodeInfo, weight: i64) {
        if let Some(topology) = topology(key, node) {
            *self.scores.entry(topology).or_insert(0) += weight;
        }
    }

    /// Refuses a node in a topology that is forbidden, or not in one that is required.
    pub fn check(&self, _id: NodeId, node: &NodeInfo) -> Result<(), Refusal> {
        for (key, values) in &self.required {
            let allowed = match (node.labels.get(&**key), values) {
                (None, _) => false,
                (Some(_), None) => true,
                (Some(value), Some(values)) => values.contains(value.as_str()),
            };
            if !allowed {
                return Err(Refusal::PodAffinity);
            }
        }
        let within = |forbidden: &HashSet<Topology>| {
            forbidden
                .iter()
                .any(|(key, value)| node.labels.get(&**key).is_some_and(|own| **own == **value))
        };
        if within(&self.forbidden) {
            return Err(Refusal::PodAntiAffinity);
        }
        if within(&self.forbidden_by_others) {
            return Err(Refusal::OthersAntiAffinity);
        }
        Ok(())
    }

    /// How much other pods speak for a node.
    pub fn weight(&self, node: &NodeInfo) -> i64 {
        self.scores
            .iter()
            .filter(|((key, value), _)| node.labels.get(&**key).is_some_and(|own| **own == **value))
            .map(|(_, weight)| weight)
            .sum()
    }
}

fn topology(key: &str, node: &NodeInfo) -> Option<Topology> {
    node.labels
        .get(key)
        .map(|value| (key.into(), value.as_str().into()))
}
