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
        if pod
            .ports
            .iter()
            .any(|port| node.ports.iter().any(|taken| taken.conflicts(port)))
        {
            return Err(vec![Refusal::Ports]);
        }
        let lacking = lacking(&pod.requests, node);
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
pub(crate) fn lacking(requests: &Resources, node: &NodeInfo) -> Vec<Refusal> {
    let (have, used) = (&node.allocatable, &node.used);
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
    helpable: usize,
}

impl Refusals {
    /// Counts one node's refusals.
    pub fn add(&mut self, refusals: &[Refusal]) {
        self.nodes += 1;
        self.helpable += usize::from(refusals.iter().all(Refusal::can_be_helped));
        for refusal in refusals {
            *self.counts.entry(refusal.clone()).or_insert(0) += 1;
        }
    }

    /// Whether a change among other pods could let this one in.
    pub fn depends_on_pods(&self) -> bool {
        self.helpable > 0 || self.counts.contains_key(&Refusal::PodAffinity)
    }

    /// The message of the event and the condition. Source: kubernetes, `framework.FitError`.
    pub fn message(&self, preempts: bool) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let list = |counts: &mut dyn Iterator<Item = (String, usize)>| {
            let mut texts: Vec<_> = counts
                .map(|(reason, count)| format!("{count} {reason}"))
                .collect();
            texts.sort();
            texts.join(", ")
        };
        let nodes = self.nodes;
        let reasons = list(
            &mut self
                .counts
                .iter()
                .map(|(refusal, count)| (refusal.text(), *count)),
        );
        if !preempts {
            return format!(
                "0/{nodes} nodes are available: {reasons}. preemption: not eligible due to preemptionPolicy=Never."
            );
        }
        let hopeless = nodes - self.helpable;
        let preemption = list(
            &mut [
                (
                    "No preemption victims found for incoming pod".to_owned(),
                    self.helpable,
                ),
                (
                    "Preemption is not helpful for scheduling".to_owned(),
                    hopeless,
                ),
            ]
            .into_iter()
            .filter(|(_, count)| *count > 0),
        );
        format!(
            "0/{nodes} nodes are available: {reasons}. preemption: 0/{nodes} nodes are available: {preemption}."
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_kube_schedulers() {
        let mut refusals = Refusals::default();
        refusals.add(&[Refusal::Taints]);
        refusals.add(&[Refusal::Insufficient("cpu".into())]);
        refusals.add(&[Refusal::Taints]);
        assert_eq!(
            refusals.message(true),
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s). \
             preemption: 0/3 nodes are available: 1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling."
        );
        assert_eq!(
            Refusals::default().message(true),
            "no nodes available to schedule pods"
        );
    }
}
