//! The controllers' settings.

use std::net::IpAddr;
use std::time::Duration;

/// The settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The certificate of the cluster's CA, as PEM: what `kube-root-ca.crt` shows, and whose key signs for nodes.
    pub ca_certificate_pem: String,
    /// The key of the cluster's CA, as PEM (PKCS #8); without it no certificate is signed here.
    pub ca_key_pem: Option<String>,
    /// The ranges of all pods' addresses, at most one per family, of which every node gets a part: a /24 of IPv4, a /64 of IPv6.
    /// Empty: nodes get theirs from somebody else.
    pub cluster_cidrs: Vec<(IpAddr, u8)>,
    /// After how long without a sign of life a node counts as unreachable (`--node-monitor-grace-period`).
    pub node_grace: Duration,
    /// The same for a node that has never reported (`--node-startup-grace-period`).
    pub node_startup_grace: Duration,
    /// How fast nodes that are not ready lose their pods.
    pub eviction: EvictionLimits,
    /// How many ended pods are kept before the oldest are removed.
    pub ended_pods_kept: usize,
    /// For how long a certificate for a node is valid.
    pub certificate_lifetime: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            ca_certificate_pem: String::new(),
            ca_key_pem: None,
            cluster_cidrs: Vec::new(),
            node_grace: Duration::from_secs(50),
            node_startup_grace: Duration::from_secs(60),
            eviction: EvictionLimits::default(),
            ended_pods_kept: 12_500,
            certificate_lifetime: Duration::from_secs(365 * 24 * 3600),
        }
    }
}

/// How fast nodes that are not ready lose their pods: kube-controller-manager's settings of the same names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvictionLimits {
    /// Nodes per second, in a zone of which at most a few nodes are not ready.
    pub node_eviction_rate: f64,
    /// Nodes per second, in a large zone of which many nodes are not ready.
    pub secondary_node_eviction_rate: f64,
    /// Which part of a zone's nodes counts as many.
    pub unhealthy_zone_threshold: f64,
    /// How many nodes a zone may have and still be small: such a zone evicts nobody while many of its nodes are not ready.
    pub large_cluster_size_threshold: usize,
}

impl Default for EvictionLimits {
    fn default() -> Self {
        Self {
            node_eviction_rate: 0.1,
            secondary_node_eviction_rate: 0.01,
            unhealthy_zone_threshold: 0.55,
            large_cluster_size_threshold: 50,
        }
    }
}
