//! Which routes there are to be. Values in, values out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;

/// What routes need to know of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeInfo {
    /// Its pods' addresses.
    pub pod_cidrs: Vec<IpNet>,
    /// Its own addresses.
    pub ips: Vec<IpAddr>,
    /// Which was there first when two claim the same addresses: Unix seconds.
    pub created: i64,
    /// What it says of its pods' addresses and is no CIDR.
    pub unreadable: Vec<String>,
}

impl NodeInfo {
    /// What a Node says; what is not there yet comes later.
    pub fn parse(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let several = spec
            .and_then(|spec| spec.pod_cidrs.as_deref())
            .unwrap_or_default();
        let one = spec.and_then(|spec| spec.pod_cidr.as_ref());
        let cidrs: Vec<&String> = if several.is_empty() {
            one.into_iter().collect()
        } else {
            several.iter().collect()
        };
        let addresses = node
            .status
            .as_ref()
            .and_then(|status| status.addresses.as_ref());
        let internal = addresses
            .into_iter()
            .flatten()
            .filter(|a| a.type_ == "InternalIP");
        let created = node.metadata.creation_timestamp.as_ref();
        let (mut pod_cidrs, mut unreadable) = (Vec::new(), Vec::new());
        for cidr in cidrs {
            match cidr.parse::<IpNet>() {
                Ok(cidr) => pod_cidrs.push(cidr),
                Err(_) => unreadable.push(cidr.clone()),
            }
        }
        Self {
            pod_cidrs,
            ips: internal.filter_map(|a| a.address.parse().ok()).collect(),
            created: created.map_or(0, |time| time.0.as_second()),
            unreadable,
        }
    }
}

/// A pod CIDR of a node that gets no route, because the route would take addresses that are not the node's pods'.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refused {
    /// The node.
    pub node: String,
    /// What it claims.
    pub cidr: String,
    /// Why it does not get it.
    pub why: Why,
}

/// Why a pod CIDR gets no route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// It is no CIDR.
    Unreadable,
    /// It is not within the cluster's pod addresses.
    Outside,
    /// It has an address of this node.
    NodeAddress(String),
    /// Another node has it, or a part of it, for longer; or it is this node's.
    Claimed(String),
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable => write!(f, "it is no CIDR"),
            Self::Outside => write!(f, "it is not within the cluster's pod addresses"),
            Self::NodeAddress(node) => write!(f, "it has an address of node {node}"),
            Self::Claimed(node) => write!(f, "node {node} has addresses of it"),
        }
    }
}

/// The routes to all nodes but `own`: ranges, and through whom; and the ranges that get none.
///
/// Whoever may write a Node could otherwise have the traffic to anywhere: only ranges within `cluster` (all pod addresses; any range if it is
/// empty) are routed, none that has an address of a node, and of two that overlap only that of the older node.
pub fn wanted(
    own: &str,
    cluster: &[IpNet],
    nodes: &BTreeMap<String, NodeInfo>,
) -> (BTreeMap<IpNet, IpAddr>, BTreeSet<Refused>) {
    let (mut routes, mut refused) = (BTreeMap::new(), BTreeSet::new());
    let mut by_age: Vec<_> = nodes.iter().collect();
    by_age.sort_by_key(|(name, node)| (name.as_str() != own, node.created, name.as_str()));
    let mut claimed: Vec<(IpNet, &str)> = Vec::new();
    for (name, node) in by_age {
        let mut refuse = |cidr: String, why| {
            refused.insert(Refused {
                node: name.clone(),
                cidr,
                why,
            });
        };
        for cidr in &node.unreadable {
            refuse(cidr.clone(), Why::Unreadable);
        }
        for cidr in &node.pod_cidrs {
            let cidr = cidr.trunc();
            if name == own {
                claimed.push((cidr, name));
                continue;
            }
            if !cluster.is_empty() && !cluster.iter().any(|net| net.contains(&cidr)) {
                refuse(cidr.to_string(), Why::Outside);
                continue;
            }
            let holds = |ips: &[IpAddr]| ips.iter().any(|ip| cidr.contains(ip));
            if let Some((of, _)) = nodes.iter().find(|(_, other)| holds(&other.ips)) {
                refuse(cidr.to_string(), Why::NodeAddress(of.clone()));
                continue;
            }
            let overlap = |(net, _): &&(IpNet, &str)| net.contains(&cidr) || cidr.contains(net);
            if let Some((_, holder)) = claimed.iter().find(overlap) {
                refuse(cidr.to_string(), Why::Claimed((*holder).to_owned()));
                continue;
            }
            claimed.push((cidr, name));
            let same_family = |ip: &&IpAddr| ip.is_ipv4() == cidr.addr().is_ipv4();
            if let Some(gateway) = node.ips.iter().find(same_family) {
                routes.insert(cidr, *gateway);
            }
        }
    }
    (routes, refused)
}

/// One change of the routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Make or replace the route to a range.
    Set {
        /// The range.
        to: IpNet,
        /// Through whom.
        gateway: IpAddr,
        /// Through whom ours leads now, if there is one.
        had: Option<IpAddr>,
    },
    /// Remove the route to a range.
    Remove {
        /// The range.
        to: IpNet,
        /// Through whom it led.
        gateway: IpAddr,
    },
}

/// What must change.
pub fn plan(actual: &BTreeMap<IpNet, IpAddr>, wanted: &BTreeMap<IpNet, IpAddr>) -> Vec<Change> {
    let gone = actual.iter().filter(|(to, _)| !wanted.contains_key(*to));
    let removed = gone.map(|(to, gateway)| Change::Remove {
        to: *to,
        gateway: *gateway,
    });
    let new = wanted
        .iter()
        .filter(|(to, gateway)| actual.get(*to) != Some(*gateway));
    let set = new.map(|(to, gateway)| Change::Set {
        to: *to,
        gateway: *gateway,
        had: actual.get(to).copied(),
    });
    removed.chain(set).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(cidr: &str, ip: &str) -> NodeInfo {
        NodeInfo {
            pod_cidrs: vec![cidr.parse().unwrap()],
            ips: vec!["fd00::1".parse().unwrap(), ip.parse().unwrap()],
            ..NodeInfo::default()
        }
    }

    fn routes(list: &[(&str, &str)]) -> BTreeMap<IpNet, IpAddr> {
        let parse = |(to, gateway): &(&str, &str)| (to.parse().unwrap(), gateway.parse().unwrap());
        list.iter().map(parse).collect()
    }

    #[test]
    fn a_route_to_every_other_node_of_the_right_family() {
        let mut bare = NodeInfo::default();
        bare.ips.push("192.168.7.9".parse().unwrap());
        let nodes = BTreeMap::from([
            ("a".to_owned(), node("10.42.0.0/24", "192.168.7.1")),
            ("b".to_owned(), node("10.42.1.0/24", "192.168.7.2")),
            ("new".to_owned(), bare),
        ]);
        let cluster = ["10.42.0.0/16".parse().unwrap()];
        let routed = routes(&[("10.42.1.0/24", "192.168.7.2")]);
        assert_eq!(wanted("a", &cluster, &nodes), (routed, BTreeSet::new()));
    }

    #[test]
    fn a_node_gets_no_traffic_that_is_not_its_pods() {
        let aged = |cidr: &str, ip: &str, created| NodeInfo {
            created,
            ..node(cidr, ip)
        };
        let mut odd = aged("10.42.9.0/24", "192.168.7.9", 1);
        odd.unreadable = vec!["10.42.0.0".to_owned()];
        let nodes = BTreeMap::from([
            ("own".to_owned(), aged("10.42.0.0/24", "192.168.7.1", 50)),
            ("everything".to_owned(), aged("0.0.0.0/0", "192.168.7.2", 1)),
            ("foreign".to_owned(), aged("10.0.0.0/24", "192.168.7.3", 1)),
            ("mine".to_owned(), aged("10.42.0.128/25", "192.168.7.4", 1)),
            ("older".to_owned(), aged("10.42.2.0/24", "192.168.7.5", 7)),
            ("copy".to_owned(), aged("10.42.2.0/24", "192.168.7.6", 8)),
            ("wide".to_owned(), aged("10.42.2.0/23", "192.168.7.7", 9)),
            ("in".to_owned(), aged("10.42.5.0/24", "10.42.6.1", 1)),
            ("over".to_owned(), aged("10.42.6.0/24", "192.168.7.8", 1)),
            ("odd".to_owned(), odd),
        ]);
        let (got, refused) = wanted("own", &["10.42.0.0/16".parse().unwrap()], &nodes);
        let routed = [
            ("10.42.2.0/24", "192.168.7.5"),
            ("10.42.5.0/24", "10.42.6.1"),
            ("10.42.9.0/24", "192.168.7.9"),
        ];
        assert_eq!(got, routes(&routed));
        let why: BTreeMap<&str, &Why> = refused.iter().map(|r| (r.node.as_str(), &r.why)).collect();
        let claimed = |by: &str| Why::Claimed(by.to_owned());
        assert_eq!(
            why,
            BTreeMap::from([
                ("everything", &Why::Outside),
                ("foreign", &Why::Outside),
                ("mine", &claimed("own")),
                ("copy", &claimed("older")),
                ("wide", &claimed("older")),
                ("over", &Why::NodeAddress("in".to_owned())),
                ("odd", &Why::Unreadable),
            ])
        );
    }

    #[test]
    fn only_what_differs_changes() {
        let actual = routes(&[
            ("10.42.1.0/24", "192.168.7.2"),
            ("10.42.2.0/24", "192.168.7.3"),
            ("10.42.3.0/24", "192.168.7.4"),
        ]);
        let wanted = routes(&[
            ("10.42.1.0/24", "192.168.7.2"),
            ("10.42.2.0/24", "192.168.7.9"),
        ]);
        let changes = plan(&actual, &wanted);
        assert_eq!(
            changes,
            [
                Change::Remove {
                    to: "10.42.3.0/24".parse().unwrap(),
                    gateway: "192.168.7.4".parse().unwrap()
                },
                Change::Set {
                    to: "10.42.2.0/24".parse().unwrap(),
                    gateway: "192.168.7.9".parse().unwrap(),
                    had: Some("192.168.7.3".parse().unwrap()),
                },
            ]
        );
        assert!(plan(&wanted, &wanted).is_empty());
    }
}
