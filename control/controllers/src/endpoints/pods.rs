//! From a service and its pods to endpoints.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::model::{self, Node, Pod, Service, ServicePort, is_deleting};

/// The family of addresses, as slices call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// The value of `addressType`.
    pub fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Whether an address is of this family.
    pub fn has(self, address: &str) -> bool {
        address.contains(':') == (self == Self::V6)
    }
}

/// The ports of an endpoint as a key: pods whose named ports differ go into different slices.
pub(crate) type Ports = Vec<PortKey>;

/// One port; the fields in the order in which slices are sorted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortKey {
    pub name: String,
    pub port: i32,
    pub protocol: String,
    pub app_protocol: Option<String>,
}

impl PortKey {
    /// As a slice writes it.
    pub fn to_api(&self) -> EndpointPort {
        EndpointPort {
            name: Some(self.name.clone()),
            port: Some(self.port),
            protocol: Some(self.protocol.clone()),
            app_protocol: self.app_protocol.clone(),
        }
    }

    /// As a slice has it.
    pub fn of_api(port: &EndpointPort) -> Self {
        Self {
            name: port.name.clone().unwrap_or_default(),
            port: port.port.unwrap_or(0),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            app_protocol: port.app_protocol.clone(),
        }
    }
}

/// The families of a service's addresses.
pub(crate) fn families(service: &Service) -> Vec<Family> {
    let mut families: Vec<_> = (service.spec.ip_families.iter())
        .filter_map(|name| match name.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        })
        .collect();
    if families.is_empty() {
        families.push(Family::V4);
    }
    families
}

/// The ports of the service on this pod; those whose name the pod does not know are left out.
pub(crate) fn ports(service: &Service, pod: &Pod) -> Ports {
    let mut ports: Ports = service
        .spec
        .ports
        .iter()
        .filter_map(|port| {
            Some(PortKey {
                port: target(port, pod)?,
                ..key(port)
            })
        })
        .collect();
    ports.sort();
    ports
}

fn key(port: &ServicePort) -> PortKey {
    PortKey {
        name: port.name.clone().unwrap_or_default(),
        port: port.port,
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        app_protocol: port.app_protocol.clone(),
    }
}

fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => Some(port.port),
        Some(IntOrString::String(name)) => {
            pod.named_port(name, port.protocol.as_deref().unwrap_or("TCP"))
        }
    }
}

/// The endpoint of a pod in a family; `None` if the pod has no such address or has ended.
pub(crate) fn endpoint(
    service: &Service,
    pod: &Pod,
    node: Option<&Node>,
    family: Family,
) -> Option<Endpoint> {
    if pod.is_terminal() {
        return None;
    }
    let addresses: Vec<_> = pod
        .addresses()
        .filter(|address| family.has(address))
        .map(str::to_owned)
        .collect();
    if addresses.is_empty() {
        return None;
    }
    let serving = pod.is_ready();
    let terminating = is_deleting(&pod.metadata);
    Some(Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(service.spec.publish_not_ready_addresses || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        node_name: pod.spec.node_name.as_deref().map(str::to_owned),
        target_ref: Some(target_ref(pod)),
        zone: node
            .and_then(|node| model::label(&node.metadata, "topology.kubernetes.io/zone"))
            .map(str::to_owned),
        ..Endpoint::default()
    })
}

/// The host name of a pod that is named by this service.
pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let named = pod.spec.subdomain.as_deref() == service.metadata.name.as_deref();
    pod.spec
        .hostname
        .as_deref()
        .filter(|hostname| named && !hostname.is_empty())
        .map(str::to_owned)
}

/// The reference from an endpoint to its pod.
pub(crate) fn target_ref(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// All endpoints of a family, by their ports and in the order of the pods' names.
pub(crate) fn by_ports(
    service: &Service,
    pods: &[Arc<Pod>],
    node: impl Fn(&str) -> Option<Arc<Node>>,
    family: Family,
) -> BTreeMap<Ports, Vec<Endpoint>> {
    let mut sorted: Vec<_> = pods.iter().collect();
    sorted.sort_by(|left, right| left.metadata.name.cmp(&right.metadata.name));
    let mut groups: BTreeMap<Ports, Vec<Endpoint>> = BTreeMap::new();
    for pod in sorted {
        let host = pod.spec.node_name.as_deref().and_then(&node);
        if let Some(endpoint) = endpoint(service, pod, host.as_deref(), family) {
            groups
                .entry(ports(service, pod))
                .or_default()
                .push(endpoint);
        }
    }
    groups
}
