//! Services and EndpointSlices, parsed once into what the node's data plane needs of them.
//!
//! They are a tenth of the API's objects in size, and every field means what it says: no strings
//! that are numbers, no `None` that means a default.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

/// The name of a Service in its namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ServiceKey {
    /// The key of `namespace`/`name`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The transport protocol of a port, with its IP protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
    /// SCTP.
    Sctp = 132,
}

impl Protocol {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    /// The protocol with this IP protocol number.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }

    /// Its name in DNS and in logs: lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Which endpoints a connection may be sent to (`internalTrafficPolicy`, `externalTrafficPolicy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TrafficPolicy {
    /// All of the cluster.
    #[default]
    Cluster,
    /// Those of this node.
    Local,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; empty if it has none.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port on the service's addresses.
    pub port: u16,
    /// The port on every node.
    pub node_port: Option<u16>,
}

/// One Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Its namespace and name.
    pub key: ServiceKey,
    /// Its cluster addresses; empty for a headless or external one.
    pub cluster_ips: Vec<IpAddr>,
    /// Whether its `clusterIP` is `None`.
    pub headless: bool,
    /// The name it is an alias of (type ExternalName).
    pub external_name: Option<String>,
    /// Its `externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// The addresses a load balancer gave it (`status.loadBalancer.ingress`, mode `VIP`).
    pub load_balancer_ips: Vec<IpAddr>,
    /// The clients that may use those (`loadBalancerSourceRanges`); empty for all.
    pub source_ranges: Vec<IpNet>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// How long, in seconds, a client keeps its endpoint (`sessionAffinity: ClientIP`).
    pub affinity: Option<u32>,
    /// `internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// Where load balancers ask whether the node has endpoints (`healthCheckNodePort`).
    pub health_port: Option<u16>,
    /// Whether endpoints are published before they are ready.
    pub publish_not_ready: bool,
    /// Whether another proxy serves it (label `service.kubernetes.io/service-proxy-name`).
    pub foreign_proxy: bool,
}

impl Service {
    /// What a Service says. What cannot be understood (an address that is none) is left out: the API server has validated it.
    pub fn parse(object: &core::Service) -> Self {
        let meta = &object.metadata;
        let empty = core::ServiceSpec::default();
        let spec = object.spec.as_ref().unwrap_or(&empty);
        let external = spec.type_.as_deref() == Some("ExternalName");
        let first = spec.cluster_ip.as_deref().unwrap_or("");
        let headless = first == "None" && !external;
        let cluster_ips = match &spec.cluster_ips {
            Some(ips) if !ips.is_empty() => addresses(ips),
            _ => first.parse().into_iter().collect(),
        };
        let policy = |policy: &Option<String>| match policy.as_deref() {
            Some("Local") => TrafficPolicy::Local,
            _ => TrafficPolicy::Cluster,
        };
        let is_load_balancer = spec.type_.as_deref() == Some("LoadBalancer");
        let ingress = object
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref())
            .and_then(|balancer| balancer.ingress.as_ref())
            .filter(|_| is_load_balancer);
        Self {
            key: ServiceKey::new(
                meta.namespace.clone().unwrap_or_default(),
                meta.name.clone().unwrap_or_default(),
            ),
            cluster_ips: if external { Vec::new() } else { cluster_ips },
            headless,
            external_name: spec.external_name.clone().filter(|_| external),
            external_ips: addresses(spec.external_ips.as_deref().unwrap_or_default()),
            load_balancer_ips: ingress
                .into_iter()
                .flatten()
                // Mode `Proxy`: the load balancer is to be passed through even from inside.
                .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
                .filter_map(|ingress| ingress.ip.as_deref()?.parse().ok())
                .collect(),
            source_ranges: (spec.load_balancer_source_ranges.iter().flatten())
                .filter(|_| is_load_balancer)
                .filter_map(|range| range.trim().parse().ok())
                .collect(),
            ports: spec.ports.iter().flatten().filter_map(port).collect(),
            affinity: (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
                let config = spec.session_affinity_config.as_ref();
                let client_ip = config.and_then(|config| config.client_ip.as_ref());
                let seconds = client_ip.and_then(|client_ip| client_ip.timeout_seconds);
                // Three hours is the API's default.
                seconds
                    .and_then(|s| u32::try_from(s).ok())
                    .unwrap_or(10_800)
            }),
            internal_policy: policy(&spec.internal_traffic_policy),
            external_policy: policy(&spec.external_traffic_policy),
            health_port: (spec.health_check_node_port)
                .and_then(|port| u16::try_from(port).ok())
                .filter(|port| *port != 0 && is_load_balancer),
            publish_not_ready: spec.publish_not_ready_addresses == Some(true),
            foreign_proxy: meta
                .labels
                .as_ref()
                .is_some_and(|l| l.contains_key("service.kubernetes.io/service-proxy-name")),
        }
    }
}

fn port(port: &core::ServicePort) -> Option<ServicePort> {
    Some(ServicePort {
        name: port.name.clone().unwrap_or_default(),
        protocol: Protocol::parse(port.protocol.as_deref())?,
        port: u16::try_from(port.port).ok()?,
        node_port: port
            .node_port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port != 0),
    })
}

fn addresses(list: &[String]) -> Vec<IpAddr> {
    list.iter().filter_map(|ip| ip.parse().ok()).collect()
}

/// One port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Its name; empty if it has none.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port on the endpoints.
    pub port: u16,
}

/// One endpoint of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address. (A slice may list several; they are fungible, and consumers use the first.)
    pub ip: IpAddr,
    /// Whether it takes new connections.
    pub ready: bool,
    /// Whether it would be ready, were it not terminating.
    pub serving: bool,
    /// Whether it is about to end.
    pub terminating: bool,
    /// Its host name in the service's domain.
    pub hostname: Option<String>,
    /// The node that it runs on.
    pub node: Option<String>,
}

/// One EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The service it belongs to.
    pub service: ServiceKey,
    /// Its own name.
    pub name: String,
    /// Its ports.
    pub ports: Vec<SlicePort>,
    /// Its endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

impl Slice {
    /// What an EndpointSlice says; `None` if it belongs to no Service or its addresses are names.
    pub fn parse(object: &discovery::EndpointSlice) -> Option<Self> {
        let meta = &object.metadata;
        let service = meta.labels.as_ref()?.get("kubernetes.io/service-name")?;
        if object.address_type == "FQDN" {
            return None;
        }
        let ports = object.ports.iter().flatten().filter_map(|port| {
            Some(SlicePort {
                name: port.name.clone().unwrap_or_default(),
                protocol: Protocol::parse(port.protocol.as_deref())?,
                port: u16::try_from(port.port?).ok()?,
            })
        });
        let endpoints = object.endpoints.iter().flatten().filter_map(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            // `None` is "unknown", which the API says to take as ready.
            let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            Some(SliceEndpoint {
                ip: endpoint.addresses.first()?.parse().ok()?,
                ready,
                serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
                terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
                hostname: endpoint.hostname.clone(),
                node: endpoint.node_name.clone(),
            })
        });
        Some(Self {
            service: ServiceKey::new(meta.namespace.clone()?, service.clone()),
            name: meta.name.clone()?,
            ports: ports.collect(),
            endpoints: endpoints.collect(),
        })
    }
}
