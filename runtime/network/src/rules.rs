//! The table `inet knarr_network`: masquerading and host ports.
//!
//! It is written by the program `nft`, in its own notation, once at the start and then when a pod with
//! host ports comes or goes. Each time the whole table is replaced in one transaction: it has a few fixed
//! rules and one element for each host port. What the kernel then has of it is remembered, so that whoever flushes it
//! (a firewall that starts anew, say) is noticed, and the table written again.

use std::io;
use std::net::IpAddr;

use crate::nfnl::{self, INET, Netfilter, SUBSYS_NFTABLES};
use crate::nft::NftError;
use crate::records::Record;
use crate::table::{Digest, consistent, structure, undisturbed};
use crate::{NetworkConfig, Protocol};

/// The table's name; the family is `inet`.
pub(crate) const TABLE: &str = "knarr_network";

/// Its maps and sets.
const MAPS: [&str; 3] = ["ports", "ports_of", "hairpin"];

const GETSETELEM: u16 = 13;

/// The table could not be written.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The program `nft` did not do it.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// The kernel could not be asked what it has.
    #[error("read the table {TABLE}")]
    Read(#[source] io::Error),
    /// The kernel does not tell of changes.
    #[error("watch the table {TABLE}")]
    Watch(#[source] io::Error),
}

/// The table as it was written last.
pub(crate) struct Installed {
    script: String,
    /// What the kernel made of it; `None` if others change the ruleset so often that it is not known, or removed the table at once.
    content: Option<u64>,
    /// Whether it is to be left alone, since somebody is about to remove it.
    released: bool,
}

impl Installed {
    /// Writes the table with the host ports of `pods`.
    pub(crate) fn new<'a>(
        config: &NetworkConfig,
        pods: impl Iterator<Item = &'a Record>,
    ) -> Result<Self, RulesError> {
        Self::write(render(config, pods))
    }

    fn write(script: String) -> Result<Self, RulesError> {
        let netfilter = Netfilter::open().map_err(RulesError::Read)?;
        // The script is one transaction.
        let content = undisturbed(&netfilter, 1, RulesError::Read, || {
            nft(&script)?;
            content(&netfilter).map_err(RulesError::Read)
        })?;
        Ok(Self {
            script,
            content: content.flatten(),
            released: false,
        })
    }

    /// Whether it is known how the kernel's table should look; if not, [`repair`](Self::repair) writes it again.
    pub(crate) fn is_known(&self) -> bool {
        self.released || self.content.is_some()
    }

    /// Leaves the table to whoever removes it.
    pub(crate) fn release(&mut self) {
        self.released = true;
    }

    /// Writes the table again if the kernel has it no longer as it was written, or if that is not known. Returns whether somebody had
    /// changed it.
    pub(crate) fn repair(&mut self) -> Result<bool, RulesError> {
        if self.released {
            return Ok(false);
        }
        let netfilter = Netfilter::open().map_err(RulesError::Read)?;
        let known = self.content.is_some();
        if known && content(&netfilter).map_err(RulesError::Read)? == self.content {
            return Ok(false);
        }
        *self = Self::write(self.script.clone())?;
        Ok(known)
    }
}

/// A digest of the table in the kernel, elements included; `None` if there is none.
fn content(netfilter: &Netfilter) -> io::Result<Option<u64>> {
    consistent(|| {
        let Some(structure) = structure(netfilter, TABLE)? else {
            return Ok(None);
        };
        let mut digest = Digest::default();
        digest.add(&structure.digest(|_| true).to_ne_bytes());
        for map in MAPS {
            let mut elements = Vec::new();
            let read = netfilter.dump(
                SUBSYS_NFTABLES,
                GETSETELEM,
                INET,
                |message| {
                    message.text(1, TABLE).text(2, map);
                },
                |message| {
                    let list = nfnl::attribute(message, 3).unwrap_or(&[]);
                    elements.extend(nfnl::attributes(list).map(|(_, element)| element.to_vec()));
                },
            );
            match read {
                // Somebody removed it: another content.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            }
            // The kernel keeps them in no order that lasts.
            elements.sort();
            digest.add(map.as_bytes());
            elements.iter().for_each(|element| digest.add(element));
        }
        Ok(Some(digest.0))
    })
}

/// Removes the table.
pub(crate) fn remove() -> Result<(), RulesError> {
    nft("add table inet knarr_network\ndelete table inet knarr_network\n")
}

/// The whole table as a script, which replaces an older one.
fn render<'a>(config: &NetworkConfig, pods: impl Iterator<Item = &'a Record>) -> String {
    let mut any = Vec::new();
    let mut one = Vec::new();
    let mut hairpin = Vec::new();
    for record in pods {
        let Some(pod) = record.ips.iter().find(|ip| ip.is_ipv4()) else {
            continue;
        };
        for port in &record.ports {
            let protocol = match port.protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Sctp => "sctp",
            };
            let from = format!("{protocol} . {}", port.host_port);
            let to = format!("{pod} . {}", port.container_port);
            match port.host_ip {
                Some(IpAddr::V4(ip)) if !ip.is_unspecified() => {
                    one.push(format!("{ip} . {from} : {to}"));
                }
                // A port on an IPv6 address leads nowhere as long as pods have none.
                Some(IpAddr::V6(ip)) if !ip.is_unspecified() => {}
                _ => any.push(format!("{from} : {to}")),
            }
        }
        if !record.ports.is_empty() {
            hairpin.push(format!("{pod} . {pod}"));
        }
    }
    let (any, one, hairpin) = (elements(&any), elements(&one), elements(&hairpin));
    let NetworkConfig {
        pod_cidr,
        cluster_cidr,
        bridge,
        ..
    } = config;
    format!(
        r#"add table inet knarr_network
delete table inet knarr_network
table inet knarr_network {{
    # Host ports on all addresses of the node, and on one of them.
    map ports {{ type inet_proto . inet_service : ipv4_addr . inet_service; {any}}}
    map ports_of {{ type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; {one}}}
    # Pods that may reach themselves through a port of the node.
    set hairpin {{ type ipv4_addr . ipv4_addr; {hairpin}}}

    # The bridge's route_localnet must not open the node's 127.0.0.1 to pods.
    chain guard {{
        type filter hook prerouting priority raw; policy accept;
        iifname "{bridge}" ip daddr 127.0.0.0/8 drop
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local jump host_ports
    }}
    chain output {{
        type nat hook output priority -100; policy accept;
        fib daddr type local jump host_ports
    }}
    chain host_ports {{
        dnat ip to ip daddr . meta l4proto . th dport map @ports_of
        dnat ip to meta l4proto . th dport map @ports
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 127.0.0.0/8 oifname "{bridge}" masquerade
        ct status dnat ip saddr . ip daddr @hairpin masquerade
        ip saddr {pod_cidr} ip daddr != {{ {cluster_cidr}, 224.0.0.0/4, 255.255.255.255 }} masquerade fully-random
    }}
}}
"#
    )
}

/// The elements of a set as part of its definition; an empty list is no valid one.
fn elements(list: &[String]) -> String {
    if list.is_empty() {
        return String::new();
    }
    format!("elements = {{ {} }}; ", list.join(", "))
}

fn nft(script: &str) -> Result<(), RulesError> {
    Ok(crate::nft::run(script)?)
}
