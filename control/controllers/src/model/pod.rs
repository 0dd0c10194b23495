//! Pods.

use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Deserialize;

use super::{controller_of, is_deleting, resource};
use crate::cache::{Cached, IndexKey, index_labels};

/// The annotation that says how dear a pod is when a replica set shrinks.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// A pod.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Pod {
    /// Its metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is wanted.
    #[serde(default)]
    pub spec: PodSpec,
    /// What is.
    #[serde(default)]
    pub status: PodStatus,
}
resource!(Pod, "", "v1", "Pod", "pods", NamespaceResourceScope);

/// What is wanted of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// The node it is bound to.
    pub node_name: Option<Box<str>>,
    /// Its host name, if it chose one.
    pub hostname: Option<Box<str>>,
    /// The headless service that names it.
    pub subdomain: Option<Box<str>>,
    /// Containers; only what endpoints need.
    pub containers: Vec<Container>,
    /// Init containers; only sidecars among them can have ports.
    pub init_containers: Vec<Container>,
    /// Which taints it bears.
    pub tolerations: Vec<Toleration>,
    /// `Always`, `OnFailure` or `Never`.
    pub restart_policy: Option<Box<str>>,
}

/// A container of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// The ports that it names.
    pub ports: Vec<ContainerPort>,
    /// `Always` makes an init container a sidecar.
    pub restart_policy: Option<Box<str>>,
}

/// A port of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// Its name.
    pub name: Option<Box<str>>,
    /// Its number.
    pub container_port: i32,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Option<Box<str>>,
}

/// What is known of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: Option<Box<str>>,
    /// Its first address.
    #[serde(rename = "podIP")]
    pub pod_ip: Option<Box<str>>,
    /// All its addresses.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    /// Conditions.
    pub conditions: Vec<PodCondition>,
    /// Containers' states; only restarts are kept.
    pub container_statuses: Vec<ContainerStatus>,
}

/// An address of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// The address.
    pub ip: Box<str>,
}

/// A condition of a pod.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodCondition {
    /// Its type.
    #[serde(rename = "type")]
    pub type_: Box<str>,
    /// `True`, `False` or `Unknown`.
    pub status: Box<str>,
    /// Since when.
    pub last_transition_time: Option<Time>,
}

/// The state of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    /// How often it was started again.
    pub restart_count: i32,
}

impl Pod {
    /// The phase; `Pending` where none is set.
    pub fn phase(&self) -> &str {
        self.status.phase.as_deref().unwrap_or("Pending")
    }

    /// Whether all containers have ended for good.
    pub fn is_terminal(&self) -> bool {
        matches!(self.phase(), "Succeeded" | "Failed")
    }

    /// Whether it counts as a replica: neither ended nor being deleted.
    pub fn is_active(&self) -> bool {
        !self.is_terminal() && !is_deleting(&self.metadata)
    }

    /// The condition of a type.
    pub fn condition(&self, kind: &str) -> Option<&PodCondition> {
        self.status
            .conditions
            .iter()
            .find(|condition| &*condition.type_ == kind)
    }

    /// Since when it has been ready; `None` if it is not.
    pub fn ready_since(&self) -> Option<jiff::Timestamp> {
        let ready = self
            .condition("Ready")
            .filter(|ready| &*ready.status == "True")?;
        Some(
            ready
                .last_transition_time
                .as_ref()
                .map_or(jiff::Timestamp::MIN, |time| time.0),
        )
    }

    /// Whether it is ready.
    pub fn is_ready(&self) -> bool {
        self.ready_since().is_some()
    }

    /// Whether it has been ready for `min_ready` seconds.
    pub fn is_available(&self, min_ready: i32, now: jiff::Timestamp) -> bool {
        self.ready_since().is_some_and(|since| {
            min_ready <= 0
                || since
                    .saturating_add(jiff::SignedDuration::from_secs(min_ready.into()))
                    .is_ok_and(|at| at <= now)
        })
    }

    /// How often its containers were started again, all together.
    pub fn restarts(&self) -> i32 {
        self.status
            .container_statuses
            .iter()
            .map(|status| status.restart_count)
            .sum()
    }

    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        let single = self
            .status
            .pod_ip
            .as_deref()
            .filter(|_| self.status.pod_ips.is_empty());
        self.status
            .pod_ips
            .iter()
            .map(|ip| &*ip.ip)
            .chain(single)
            .filter(|ip| !ip.is_empty())
    }

    /// The number of the port that is called `name` with this protocol.
    pub fn named_port(&self, name: &str, protocol: &str) -> Option<i32> {
        let sidecars = self
            .spec
            .init_containers
            .iter()
            .filter(|init| init.restart_policy.as_deref() == Some("Always"));
        (self.spec.containers.iter().chain(sidecars))
            .flat_map(|container| &container.ports)
            .find(|port| {
                port.name.as_deref() == Some(name)
                    && port.protocol.as_deref().unwrap_or("TCP") == protocol
            })
            .map(|port| port.container_port)
    }
}

impl Cached for Pod {
    fn trim(&mut self) {
        self.metadata.managed_fields = None;
        if let Some(annotations) = &mut self.metadata.annotations {
            annotations.retain(|key, _| key == DELETION_COST);
        }
    }

    fn index(&self, add: &mut dyn FnMut(IndexKey)) {
        index_labels(&self.metadata, add);
        match controller_of(&self.metadata) {
            Some(owner) => add(IndexKey::Owner(owner.uid.as_str().into())),
            None => add(IndexKey::Orphan(super::namespace(&self.metadata).into())),
        }
        add(IndexKey::Namespace(super::namespace(&self.metadata).into()));
        if self.is_terminal() {
            add(IndexKey::Ended);
        }
        if let Some(node) = &self.spec.node_name {
            add(IndexKey::Node((&**node).into()));
        }
    }
}
