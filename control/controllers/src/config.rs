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
    /// After how long without a sign of life a node counts as unreachable.
    pub node_grace: Duration,
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
            node_grace: Duration::from_secs(40),
            ended_pods_kept: 12_500,
            certificate_lifetime: Duration::from_secs(365 * 24 * 3600),
        }
    }
}
