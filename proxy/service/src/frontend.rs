//! What the addresses of one Service lead to. Values in, values out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::objects::{Protocol, Service, Slice, TrafficPolicy};

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// Where a connection arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// On one address.
    Address(IpAddr),
    /// On any address of the node.
    Node(Family),
}

impl Place {
    /// The family of the address.
    pub fn family(self) -> Family {
        match self {
            Self::Address(ip) => Family::of(ip),
            Self::Node(family) => family,
        }
    }
}

/// Who connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Audience {
    /// Everyone for whom there is no other rule.
    Everyone,
    /// Clients which are neither pods of the cluster nor this node.
    Outside,
}

/// What a connection is addressed to: the key of everything in the kernel's maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// Where.
    pub place: Place,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its port.
    pub port: u16,
    /// Who.
    pub audience: Audience,
}

/// One address and port that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    /// Its address.
    pub ip: IpAddr,
    /// Its port.
    pub port: u16,
}

/// What becomes of connections when there is no endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Otherwise {
    /// They are refused.
    #[default]
    Reject,
    /// They are dropped: there are endpoints on other nodes, which the client may yet find.
    Drop,
}

/// What a frontend leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// The endpoints.
    pub endpoints: BTreeSet<Endpoint>,
    /// What happens without any.
    pub otherwise: Otherwise,
    /// Whether the client's address is hidden behind the node's, so that replies come back through here.
    pub masquerade: bool,
    /// How long, in seconds, a client keeps its endpoint.
    pub affinity: Option<u32>,
    /// Which clients may connect, from address to address, disjoint; `None` if all may.
    pub sources: Option<BTreeSet<(IpAddr, IpAddr)>>,
}

/// What one Service asks of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Its frontends.
    pub frontends: BTreeMap<Frontend, Target>,
    /// Addresses of its endpoints on this node: those that may reach themselves through the service.
    pub local_ips: BTreeSet<IpAddr>,
}

/// What depends on the node.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Its name, by which its endpoints are known.
    pub name: String,
    /// Service addresses that the node answers itself (the cluster DNS).
    pub own_addresses: BTreeSet<IpAddr>,
}

/// The plan of one Service and its slices.
pub fn plan<'a>(
    node: &Node,
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
) -> Plan {
    let mut plan = Plan::default();
    if service.headless || service.external_name.is_some() || service.foreign_proxy {
        return plan;
    }
    for port in &service.ports {
        let mut add = |place: Place, audience, policy, masquerade, sources| {
            let frontend = Frontend {
                place,
                protocol: port.protocol,
                port: match place {
                    Place::Address(_) => port.port,
                    Place::Node(_) => port.node_port.unwrap_or(port.port),
                },
                audience,
            };
            let reachable = Reachable::find(
                node,
                slices.clone(),
                &port.name,
                port.protocol,
                place.family(),
            );
            let (endpoints, otherwise) = reachable.choose(policy);
            plan.local_ips.extend(reachable.local_ips());
            plan.frontends.entry(frontend).or_insert(Target {
                endpoints,
                otherwise,
                masquerade,
                affinity: service.affinity,
                sources,
            });
        };
        for ip in &service.cluster_ips {
            if !node.own_addresses.contains(ip) {
                add(
                    Place::Address(*ip),
                    Audience::Everyone,
                    service.internal_policy,
                    false,
                    None,
                );
            }
        }
        // The address families of the service, of which its node ports are.
        let families: BTreeSet<Family> = service
            .cluster_ips
            .iter()
            .map(|ip| Family::of(*ip))
            .collect();
        // Only a load balancer's addresses are closed to clients from elsewhere, as with kube-proxy. They come first: an address
        // may be listed as an external one too.
        let balancers = (service.load_balancer_ips.iter())
            .map(|ip| (Place::Address(*ip), sources(service, Family::of(*ip))));
        let external = (service.external_ips.iter()).map(|ip| (Place::Address(*ip), None));
        let nodes = (families.into_iter())
            .filter(|_| port.node_port.is_some())
            .map(|family| (Place::Node(family), None));
        for (place, sources) in balancers.chain(external).chain(nodes) {
            match service.external_policy {
                TrafficPolicy::Cluster => {
                    let policy = TrafficPolicy::Cluster;
                    add(place, Audience::Everyone, policy, true, sources);
                }
                TrafficPolicy::Local => {
                    add(place, Audience::Outside, TrafficPolicy::Local, false, None);
                    // From inside, it is a short cut to the service.
                    let policy = TrafficPolicy::Cluster;
                    add(place, Audience::Everyone, policy, false, sources);
                }
            }
        }
    }
    plan
}

/// The clients of a family that may use the service's load balancer; `None` if it names none of that family.
fn sources(service: &Service, family: Family) -> Option<BTreeSet<(IpAddr, IpAddr)>> {
    let of_family = (service.source_ranges.iter())
        .filter(|range| Family::of(range.addr()) == family)
        .map(IpNet::trunc);
    // The kernel takes no ranges that overlap.
    let ranges = IpNet::aggregate(&of_family.collect());
    let bounds = (ranges.iter()).map(|range| (range.network(), range.broadcast()));
    (!ranges.is_empty()).then(|| bounds.collect())
}

/// An endpoint with what decides whether it is used.
struct Candidate {
    endpoint: Endpoint,
    ready: bool,
    /// Ends soon, but still answers.
    last_resort: bool,
    local: bool,
}

struct Reachable(Vec<Candidate>);

impl Reachable {
    fn find<'a>(
        node: &Node,
        slices: impl Iterator<Item = &'a Slice>,
        port_name: &str,
        protocol: Protocol,
        family: Family,
    ) -> Self {
        let mut candidates = Vec::new();
        for slice in slices {
            let Some(port) = slice
                .ports
                .iter()
                .find(|port| port.name == port_name && port.protocol == protocol)
            else {
                continue;
            };
            for endpoint in &slice.endpoints {
                if Family::of(endpoint.ip) != family {
                    continue;
                }
                candidates.push(Candidate {
                    endpoint: Endpoint {
                        ip: endpoint.ip,
                        port: port.port,
                    },
                    ready: endpoint.ready,
                    last_resort: endpoint.serving && endpoint.terminating,
                    local: endpoint.node.as_deref() == Some(node.name.as_str()),
                });
            }
        }
        Self(candidates)
    }

    /// The ready endpoints, or (if there are none) those which still serve while they terminate.
    fn choose(&self, policy: TrafficPolicy) -> (BTreeSet<Endpoint>, Otherwise) {
        let allowed = |candidate: &&Candidate| policy == TrafficPolicy::Cluster || candidate.local;
        let ready: BTreeSet<Endpoint> = self
            .0
            .iter()
            .filter(allowed)
            .filter(|c| c.ready)
            .map(|c| c.endpoint)
            .collect();
        let endpoints = if ready.is_empty() {
            let ending = self.0.iter().filter(allowed).filter(|c| c.last_resort);
            ending.map(|c| c.endpoint).collect()
        } else {
            ready
        };
        let elsewhere = self.0.iter().any(|c| c.ready || c.last_resort);
        let otherwise = if policy == TrafficPolicy::Local && elsewhere {
            Otherwise::Drop
        } else {
            Otherwise::Reject
        };
        (endpoints, otherwise)
    }

    fn local_ips(&self) -> impl Iterator<Item = IpAddr> {
        let used = self
            .0
            .iter()
            .filter(|c| c.local && (c.ready || c.last_resort));
        used.map(|c| c.endpoint.ip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{ServiceKey, ServicePort, SliceEndpoint, SlicePort};

    fn service() -> Service {
        Service {
            key: ServiceKey::new("default", "web"),
            cluster_ips: vec!["10.43.0.5".parse().unwrap()],
            ports: vec![ServicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
            }],
            ..Service::default()
        }
    }

    fn endpoint(ip: &str, node: &str) -> SliceEndpoint {
        SliceEndpoint {
            ip: ip.parse().unwrap(),
            ready: true,
            serving: true,
            terminating: false,
            hostname: None,
            node: Some(node.to_owned()),
        }
    }

    fn slice(endpoints: Vec<SliceEndpoint>) -> Slice {
        Slice {
            service: ServiceKey::new("default", "web"),
            name: "web-1".to_owned(),
            ports: vec![SlicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: 8080,
            }],
            endpoints,
        }
    }

    fn node() -> Node {
        Node {
            name: "here".to_owned(),
            own_addresses: BTreeSet::new(),
        }
    }

    fn ips(plan: &Plan, place: Place, audience: Audience) -> (Vec<String>, Otherwise) {
        let (_, target) = plan
            .frontends
            .iter()
            .find(|(f, _)| f.place == place && f.audience == audience)
            .unwrap_or_else(|| panic!("{place:?} {audience:?} is not in {plan:?}"));
        let ips = target.endpoints.iter().map(|e| e.ip.to_string()).collect();
        (ips, target.otherwise)
    }

    const CLUSTER: Place = Place::Address(IpAddr::V4(std::net::Ipv4Addr::new(10, 43, 0, 5)));

    #[test]
    fn only_ready_endpoints_or_else_those_that_serve_to_the_end() {
        let mut ending = endpoint("10.42.0.3", "here");
        (ending.ready, ending.terminating) = (false, true);
        let mut broken = endpoint("10.42.0.4", "here");
        (broken.ready, broken.serving) = (false, false);
        let slices = [slice(vec![
            endpoint("10.42.0.2", "here"),
            ending.clone(),
            broken.clone(),
        ])];
        let plan_all = plan(&node(), &service(), slices.iter());
        assert_eq!(ips(&plan_all, CLUSTER, Audience::Everyone).0, ["10.42.0.2"]);
        let slices = [slice(vec![ending, broken])];
        let plan_end = plan(&node(), &service(), slices.iter());
        assert_eq!(ips(&plan_end, CLUSTER, Audience::Everyone).0, ["10.42.0.3"]);
        let plan_none = plan(&node(), &service(), [].iter());
        assert_eq!(
            ips(&plan_none, CLUSTER, Audience::Everyone),
            (vec![], Otherwise::Reject)
        );
    }

    #[test]
    fn a_local_policy_keeps_to_this_node_and_drops_if_it_has_none() {
        let mut service = service();
        service.internal_policy = TrafficPolicy::Local;
        let both = [slice(vec![
            endpoint("10.42.0.2", "here"),
            endpoint("10.42.1.2", "there"),
        ])];
        let plan_both = plan(&node(), &service, both.iter());
        assert_eq!(
            ips(&plan_both, CLUSTER, Audience::Everyone).0,
            ["10.42.0.2"]
        );
        assert_eq!(
            plan_both.local_ips,
            BTreeSet::from(["10.42.0.2".parse().unwrap()])
        );
        let there = [slice(vec![endpoint("10.42.1.2", "there")])];
        let plan_there = plan(&node(), &service, there.iter());
        assert_eq!(
            ips(&plan_there, CLUSTER, Audience::Everyone),
            (vec![], Otherwise::Drop)
        );
    }

    #[test]
    fn node_ports_hide_the_client_unless_they_are_local() {
        let mut service = service();
        service.ports[0].node_port = Some(30080);
        let both = [slice(vec![
            endpoint("10.42.0.2", "here"),
            endpoint("10.42.1.2", "there"),
        ])];
        let place = Place::Node(Family::V4);
        let cluster = plan(&node(), &service, both.iter());
        assert_eq!(ips(&cluster, place, Audience::Everyone).0.len(), 2);
        let hidden: Vec<_> = cluster
            .frontends
            .iter()
            .map(|(f, t)| (f.port, t.masquerade))
            .collect();
        assert_eq!(hidden, [(80, false), (30080, true)]);

        service.external_policy = TrafficPolicy::Local;
        let local = plan(&node(), &service, both.iter());
        assert_eq!(ips(&local, place, Audience::Outside).0, ["10.42.0.2"]);
        assert_eq!(ips(&local, place, Audience::Everyone).0.len(), 2);
        assert!(local.frontends.values().all(|target| !target.masquerade));
    }

    #[test]
    fn source_ranges_close_the_load_balancers_addresses_only() {
        let mut service = service();
        service.ports[0].node_port = Some(30080);
        service.external_ips = vec!["192.0.2.1".parse().unwrap()];
        let balancer: IpAddr = "192.0.2.2".parse().unwrap();
        service.load_balancer_ips = vec![balancer, "2001:db8::1".parse().unwrap()];
        let ranges = [
            "10.1.2.3/8",
            "10.9.0.0/16",
            "192.0.2.128/25",
            "192.0.2.0/25",
        ];
        service.source_ranges = ranges.map(|range| range.parse().unwrap()).to_vec();
        let closed = |plan: &Plan| -> Vec<_> {
            (plan.frontends.iter())
                .filter_map(|(f, t)| Some((f.place, f.audience, t.sources.clone()?)))
                .collect()
        };
        let range = |first: &str, last: &str| (first.parse().unwrap(), last.parse().unwrap());
        let merged = BTreeSet::from([
            range("10.0.0.0", "10.255.255.255"),
            range("192.0.2.0", "192.0.2.255"),
        ]);
        let expected = [(Place::Address(balancer), Audience::Everyone, merged)];
        for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
            service.external_policy = policy;
            assert_eq!(closed(&plan(&node(), &service, [].iter())), expected);
        }
        service.source_ranges.clear();
        assert_eq!(closed(&plan(&node(), &service, [].iter())), []);
    }

    #[test]
    fn headless_external_and_foreign_services_and_own_addresses_are_left_alone() {
        let slices = [slice(vec![endpoint("10.42.0.2", "here")])];
        let mut headless = service();
        headless.headless = true;
        let mut foreign = service();
        foreign.foreign_proxy = true;
        let mut alias = service();
        alias.external_name = Some("example.org".to_owned());
        for service in [headless, foreign, alias] {
            assert_eq!(plan(&node(), &service, slices.iter()), Plan::default());
        }
        let mut node = node();
        node.own_addresses.insert("10.43.0.5".parse().unwrap());
        assert!(plan(&node, &service(), slices.iter()).frontends.is_empty());
    }

    #[test]
    fn ports_are_matched_by_name_and_endpoints_of_all_slices_count_once() {
        let mut service = service();
        service.ports[0].name = "http".to_owned();
        let mut one = slice(vec![endpoint("10.42.0.2", "here")]);
        one.ports[0].name = "http".to_owned();
        let mut two = one.clone();
        two.endpoints.push(endpoint("10.42.0.3", "here"));
        let mut other = slice(vec![endpoint("10.42.0.9", "here")]);
        other.ports[0].name = "metrics".to_owned();
        let slices = [one, two, other];
        let plan = plan(&node(), &service, slices.iter());
        assert_eq!(
            ips(&plan, CLUSTER, Audience::Everyone).0,
            ["10.42.0.2", "10.42.0.3"]
        );
    }
}
