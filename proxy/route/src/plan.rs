//! Which routes there are to be. Values in, values out.

use std::collections::BTreeMap;
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
        Self {
            pod_cidrs: cidrs
                .into_iter()
                .filter_map(|cidr| cidr.parse().ok())
                .collect(),
            ips: internal.filter_map(|a| a.address.parse().ok()).collect(),
        }
    }
}

/// The routes to all nodes but `own`: ranges, and through whom.
pub fn wanted(own: &str, nodes: &BTreeMap<String, NodeInfo>) -> BTreeMap<IpNet, IpAddr> {
    let others = nodes.iter().filter(|(name, _)| name.as_str() != own);
    let routes = others.flat_map(|(_, node)| {
        node.pod_cidrs.iter().filter_map(|cidr| {
            let same_family = |ip: &&IpAddr| ip.is_ipv4() == cidr.addr().is_ipv4();
            Some((cidr.trunc(), *node.ips.iter().find(same_family)?))
        })
    });
    routes.collect()
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
        assert_eq!(
            wanted("a", &nodes),
            routes(&[("10.42.1.0/24", "192.168.7.2")])
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
                    gateway: "192.168.7.9".parse().unwrap()
                },
            ]
        );
        assert!(plan(&wanted, &wanted).is_empty());
    }
}
