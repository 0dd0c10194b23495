//! Which nodes a pod can run on, and why not on the others.

use std::collections::BTreeMap;

use crate::affinity::{node_matches, tolerates};
use crate::interpod::PodRules;
use crate::pod::PodInfo;
use crate::resources::Resources;
use crate::snapshot::{NodeId, NodeInfo};
use crate::spread::SpreadRules;

/// Why a node refuses a pod, in kube-scheduler's words.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Refusal {
    Cordoned,
    Taints,
    Affinity,
    Ports,
    Pods,
    Insufficient(Box<str>),
    Spread,
    SpreadLabel,
    PodAffinity,
    PodAntiAffinity,
    OthersAntiAffinity,
}

impl Refusal {
    /// The text that users see.
    pub fn text(&self) -> String {
        match self {
            Self::Cordoned => "node(s) were unschedulable",
            Self::Taints => "node(s) had untolerated taint(s)",
            Self::Affinity => "node(s) didn't match Pod's node affinity/selector",
            Self::Ports => "node(s) didn't have free ports for the requested pod ports",
            Self::Pods => "Too many pods",
            Self::Insufficient(resource) => return format!("Insufficient {resource}"),
            Self::Spread => "node(s) didn't match pod topology spread constraints",
            Self::SpreadLabel => {
                "node(s) didn't match pod topology spread constraints (missing required label)"
            }
            Self::PodAffinity => "node(s) didn't match pod affinity rules",
            Self::PodAntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Self::OthersAntiAffinity => "node(s) didn't satisfy existing pods anti-affinity rules",
        }
        .to_owned()
    }

    /// Whether removing other pods from the node could ever help.
    pub fn can_be_helped(&self) -> bool {
        !matches!(
            self,
            Self::Cordoned | Self::Taints | Self::Affinity | Self::SpreadLabel | Self::PodAffinity
        )
    }
}

/// The rules of one pod, prepared once for all nodes.
pub(crate) struct Rules<'a> {
    pub pod: &'a PodInfo,
    pub pods: Option<PodRules>,
    pub spread: Option<SpreadRules>,
}

/// The taint that cordoning means.
fn cordon() -> k8s_openapi::api::core::v1::Taint {
    k8s_openapi::api::core::v1::Taint {
        key: "node.kubernetes.io/unschedulable".into(),
        effect: "NoSchedule".into(),
        ..Default::default()
    }
}

impl Rules<'_> {
    /// Refuses a node for the first reason found; only of resources all that lack are named, as kube-scheduler does.
    pub fn check(&self, id: NodeId, node: &NodeInfo) -> Result<(), Vec<Refusal>> {
        let pod = self.pod;
        let tolerations = pod
            .spec
            .as_deref()
            .map(|spec| spec.tolerations.as_slice())
            .unwrap_or_default();
        if node.unschedulable && !tolerates(tolerations, &cordon()) {
            return Err(vec![Refusal::Cordoned]);
        }
        let blocks = |effect: &str| effect == "NoSchedule" || effect == "NoExecute";
        if node
            .taints
            .iter()
            .any(|taint| blocks(&taint.effect) && !tolerates(tolerations, taint))
        {
            return Err(vec![Refusal::Taints]);
        }
        if !node_matches(pod, node) {
            return Err(vec![Refusal::Affinity]);
        }
        // Room that was made for others is theirs, unless this one has more priority.
        let promised = || {
            (node.nominated.iter())
                .filter(|other| other.priority >= pod.priority && other.uid != pod.uid)
        };
        let mut taken = (node.ports.iter()).chain(promised().flat_map(|other| &other.ports));
        if taken.any(|taken| pod.ports.iter().any(|port| taken.conflicts(port))) {
            return Err(vec![Refusal::Ports]);
        }
        let lacking = match promised().next() {
            None => lacking(&pod.requests, &node.allocatable, &node.used),
            Some(_) => {
                let mut used = node.used.clone();
                promised().for_each(|other| used.add(&other.requests, 1));
                lacking(&pod.requests, &node.allocatable, &used)
            }
        };
        if !lacking.is_empty() {
            return Err(lacking);
        }
        if let Some(spread) = &self.spread {
            spread.check(node).map_err(|refusal| vec![refusal])?;
        }
        if let Some(pods) = &self.pods {
            pods.check(id, node).map_err(|refusal| vec![refusal])?;
        }
        Ok(())
    }
}

/// What the node has too little of.
fn lacking(requests: &Resources, have: &Resources, used: &Resources) -> Vec<Refusal> {
    let mut refusals = Vec::new();
    if used.pods + 1 > have.pods {
        refusals.push(Refusal::Pods);
    }
    let mut need = |name: &str, wanted: i64, have: i64, used: i64| {
        if wanted > 0 && wanted > have - used {
            refusals.push(Refusal::Insufficient(name.into()));
        }
    };
    need("cpu", requests.cpu, have.cpu, used.cpu);
    need("memory", requests.memory, have.memory, used.memory);
    need(
        "ephemeral-storage",
        requests.ephemeral,
        have.ephemeral,
        used.ephemeral,
    );
    for (name, wanted) in &requests.others {
        need(name, *wanted, have.other(name), used.other(name));
    }
    refusals
}

/// How many nodes refused a pod for which reasons.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refusals {
    pub nodes: usize,
    counts: BTreeMap<Refusal, usize>,
    /// The nodes that could let the pod in if others went.
    pub helpable: Vec<NodeId>,
}

impl Refusals {
    /// Counts one node's refusals.
    pub fn add(&mut self, id: NodeId, refusals: &[Refusal]) {
        self.nodes += 1;
        if refusals.iter().all(Refusal::can_be_helped) {
            self.helpable.push(id);
        }
        for refusal in refusals {
            *self.counts.entry(refusal.clone()).or_insert(0) += 1;
        }
    }

    /// Whether a change among other pods could let this one in.
    pub fn depends_on_pods(&self) -> bool {
        !self.helpable.is_empty() || self.counts.contains_key(&Refusal::PodAffinity)
    }

    /// The message of the event and the condition; `preemption` says why no others had to go. Source: kubernetes,
    /// `framework.FitError`.
    pub fn message(&self, preemption: Option<&str>) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let texts = (self.counts.iter()).map(|(refusal, count)| (refusal.text(), *count));
        let reasons = counted(&texts.collect());
        let nodes = self.nodes;
        let preemption = preemption.map(|why| format!(" preemption: {why}"));
        format!(
            "0/{nodes} nodes are available: {reasons}.{}",
            preemption.unwrap_or_default()
        )
    }
}

/// Reasons with their counts, in the order of the text.
pub(crate) fn counted(reasons: &BTreeMap<String, usize>) -> String {
    let texts = (reasons.iter()).map(|(reason, count)| format!("{count} {reason}"));
    let mut texts: Vec<_> = texts.collect();
    texts.sort();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_kube_schedulers() {
        let mut refusals = Refusals::default();
        refusals.add(0, &[Refusal::Taints]);
        refusals.add(1, &[Refusal::Insufficient("cpu".into())]);
        refusals.add(2, &[Refusal::Taints]);
        let reasons =
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s).";
        assert_eq!(refusals.message(None), reasons);
        assert_eq!(
            refusals.message(Some("for a reason.")),
            format!("{reasons} preemption: for a reason.")
        );
        assert_eq!(refusals.helpable, [1]);
        assert_eq!(
            Refusals::default().message(Some("none")),
            "no nodes available to schedule pods"
        );
    }
}
