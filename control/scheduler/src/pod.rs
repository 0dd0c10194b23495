//! A pod, digested for scheduling.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    NodeSelectorTerm, PodAffinityTerm, PreferredSchedulingTerm, WeightedPodAffinityTerm,
};

use crate::model::{Pod, PodSpec};
use crate::resources::{DEFAULT_CPU, DEFAULT_MEMORY, Resources};

/// The UID of a pod.
pub(crate) type Uid = Arc<str>;

/// What the scheduler keeps of a pod.
#[derive(Debug, PartialEq)]
pub(crate) struct PodInfo {
    pub uid: Uid,
    pub namespace: String,
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// The UID of its controller: pods of one controller are spread over the nodes.
    pub owner: Option<Arc<str>>,
    pub requests: Resources,
    /// CPU and memory as they count in scores, where nobody asks for nothing.
    pub weight: (i64, i64),
    pub ports: Vec<HostPort>,
    pub priority: i32,
    /// When it was started, in seconds since 1970; far in the future while it was not.
    pub started: i64,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// What only matters until it is bound; dropped afterwards. Affinity terms that bind others stay in `terms`.
    pub spec: Option<Box<PodSpec>>,
    pub terms: Option<Box<PodTerms>>,
}

/// A port that a pod takes on its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostPort {
    pub ip: Box<str>,
    pub protocol: Box<str>,
    pub port: u16,
}

impl HostPort {
    /// Whether both cannot be on one node: the wildcard address takes the port on all addresses.
    pub fn conflicts(&self, other: &Self) -> bool {
        let wildcard = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || wildcard(&self.ip) || wildcard(&other.ip))
    }
}

/// The affinity of a pod to other pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PodTerms {
    pub affinity: Vec<PodAffinityTerm>,
    pub anti_affinity: Vec<PodAffinityTerm>,
    pub preferred: Vec<WeightedPodAffinityTerm>,
    pub anti_preferred: Vec<WeightedPodAffinityTerm>,
}

impl PodInfo {
    /// Digests a pod.
    pub fn of(pod: Pod) -> Self {
        let spec = pod.spec;
        let requests = Resources::of_pod(&spec);
        let weight = (
            if requests.cpu == 0 {
                DEFAULT_CPU
            } else {
                requests.cpu
            },
            if requests.memory == 0 {
                DEFAULT_MEMORY
            } else {
                requests.memory
            },
        );
        let ports = host_ports(&spec);
        let owners = pod.metadata.owner_references.unwrap_or_default();
        let owner = owners
            .into_iter()
            .find(|owner| owner.controller == Some(true))
            .map(|owner| owner.uid.into());
        let terms = PodTerms::of(&spec).map(Box::new);
        Self {
            uid: pod.metadata.uid.unwrap_or_default().into(),
            namespace: pod.metadata.namespace.unwrap_or_default(),
            name: pod.metadata.name.unwrap_or_default(),
            labels: pod.metadata.labels.unwrap_or_default(),
            owner,
            requests,
            weight,
            ports,
            priority: spec.priority,
            started: (pod.status.start_time).map_or(i64::MAX, |time| time.0.as_second()),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            terms,
            spec: spec.node_name.is_none().then(|| Box::new(spec)),
        }
    }

    /// What stays of a pod once it has a node.
    pub fn bound(&self) -> Self {
        Self {
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            labels: self.labels.clone(),
            owner: self.owner.clone(),
            requests: self.requests.clone(),
            weight: self.weight,
            ports: self.ports.clone(),
            priority: self.priority,
            started: self.started,
            terminating: self.terminating,
            terms: self.terms.clone(),
            spec: None,
        }
    }

    /// The node selector.
    pub fn node_selector(&self) -> Option<&BTreeMap<String, String>> {
        self.spec
            .as_deref()
            .map(|spec| &spec.node_selector)
            .filter(|selector| !selector.is_empty())
    }

    /// The terms of which a node has to match one.
    pub fn required_nodes(&self) -> Option<&[NodeSelectorTerm]> {
        let affinity = self
            .spec
            .as_deref()?
            .affinity
            .as_deref()?
            .node_affinity
            .as_ref()?;
        Some(
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()?
                .node_selector_terms
                .as_slice(),
        )
    }

    /// The terms that make a node better.
    pub fn preferred_nodes(&self) -> &[PreferredSchedulingTerm] {
        let affinity = self
            .spec
            .as_deref()
            .and_then(|spec| spec.affinity.as_deref()?.node_affinity.as_ref());
        affinity
            .and_then(|affinity| {
                affinity
                    .preferred_during_scheduling_ignored_during_execution
                    .as_deref()
            })
            .unwrap_or_default()
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec
        .init_containers
        .iter()
        .filter(|init| init.restart_policy.as_deref() == Some("Always"));
    (spec.containers.iter().chain(sidecars))
        .flat_map(|container| &container.ports)
        .filter(|port| port.host_port > 0)
        .map(|port| HostPort {
            ip: port.host_ip.as_deref().unwrap_or_default().into(),
            protocol: port.protocol.as_deref().unwrap_or("TCP").into(),
            port: port.host_port,
        })
        .collect()
}

impl PodTerms {
    fn of(spec: &PodSpec) -> Option<Self> {
        let affinity = spec.affinity.as_deref()?;
        let mut terms = Self::default();
        if let Some(with) = &affinity.pod_affinity {
            terms.affinity = with
                .required_during_scheduling_ignored_during_execution
                .clone()
                .unwrap_or_default();
            terms.preferred = with
                .preferred_during_scheduling_ignored_during_execution
                .clone()
                .unwrap_or_default();
        }
        if let Some(without) = &affinity.pod_anti_affinity {
            terms.anti_affinity = without
                .required_during_scheduling_ignored_during_execution
                .clone()
                .unwrap_or_default();
            terms.anti_preferred = without
                .preferred_during_scheduling_ignored_during_execution
                .clone()
                .unwrap_or_default();
        }
        (terms != Self::default()).then_some(terms)
    }
}
