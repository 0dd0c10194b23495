//! Nodes, their leases, and namespaces.

use k8s_openapi::api::core::v1::{NamespaceCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use serde::Deserialize;

use super::resource;
use crate::cache::Cached;

/// A node.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Node {
    /// Its metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is wanted.
    #[serde(default)]
    pub spec: NodeSpec,
    /// What is.
    #[serde(default)]
    pub status: NodeStatus,
}
resource!(Node, "", "v1", "Node", "nodes", ClusterResourceScope);

/// What is wanted of a node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// The range of its pods' addresses.
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
    /// The ranges of its pods' addresses, one per family.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<String>,
    /// Taints.
    pub taints: Vec<Taint>,
    /// Whether new pods are kept away.
    pub unschedulable: bool,
}

/// What is known of a node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// Conditions.
    pub conditions: Vec<NodeCondition>,
}

/// A condition of a node.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeCondition {
    /// Its type.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// When the kubelet last said so.
    pub last_heartbeat_time: Option<Time>,
    /// Since when.
    pub last_transition_time: Option<Time>,
}

impl Node {
    /// The status of a condition.
    pub fn condition(&self, kind: &str) -> Option<&NodeCondition> {
        self.status
            .conditions
            .iter()
            .find(|condition| condition.type_ == kind)
    }
}

impl Cached for Node {
    fn trim(&mut self) {
        self.metadata.managed_fields = None;
        self.metadata.annotations = None;
    }
}

/// A lease.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Lease {
    /// Its metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Who holds it, since when.
    #[serde(default)]
    pub spec: LeaseSpec,
}
resource!(
    Lease,
    "coordination.k8s.io",
    "v1",
    "Lease",
    "leases",
    NamespaceResourceScope
);

/// Who holds a lease.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeaseSpec {
    /// When it was last renewed.
    pub renew_time: Option<MicroTime>,
}

impl Cached for Lease {
    fn trim(&mut self) {
        self.metadata.managed_fields = None;
        self.metadata.annotations = None;
        self.metadata.owner_references = None;
    }
}

/// A namespace.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Namespace {
    /// Its metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Its finalizers.
    #[serde(default)]
    pub spec: NamespaceSpec,
    /// Its phase.
    #[serde(default)]
    pub status: NamespaceStatus,
}
resource!(
    Namespace,
    "",
    "v1",
    "Namespace",
    "namespaces",
    ClusterResourceScope
);

/// The finalizers of a namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NamespaceSpec {
    /// Who has to clean up before it may go.
    pub finalizers: Vec<String>,
}

/// The state of a namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NamespaceStatus {
    /// `Active` or `Terminating`.
    pub phase: Option<String>,
    /// How its deletion goes.
    pub conditions: Vec<NamespaceCondition>,
}

impl Cached for Namespace {
    fn trim(&mut self) {
        self.metadata.managed_fields = None;
        self.metadata.annotations = None;
    }
}
