//! The table `inet knarr_network`: masquerading and host ports.
//!
//! It is written by the program `nft`, in its own notation, once at the start and then when a pod with
//! host ports comes or goes. Each time the whole table is replaced in one transaction: it has a few fixed
//! rules and one element for each host port.

use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use crate::records::Record;
use crate::{NetworkConfig, Protocol};

/// The table could not be written.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The program `nft` could not be run.
    #[error("run nft (package nftables)")]
    Run(#[source] io::Error),
    /// It refused the ruleset.
    #[error("nft refused the ruleset: {output}")]
    Refused {
        /// What it said.
        output: String,
    },
}

/// Writes the table.
pub(crate) fn install<'a>(
    config: &NetworkConfig,
    pods: impl Iterator<Item = &'a Record>,
) -> Result<(), RulesError> {
    nft(&render(config, pods))
}

/// Brings the host ports to those of `pods`.
pub(crate) fn set_host_ports<'a>(
    config: &NetworkConfig,
    pods: impl Iterator<Item = &'a Record>,
) -> Result<(), RulesError> {
    install(config, pods)
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
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(RulesError::Run)?;
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    // A refusal can close the pipe early; then its words matter more than the broken pipe.
    let sent = stdin.write_all(script.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(RulesError::Run)?;
    if !output.status.success() {
        return Err(RulesError::Refused {
            output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    sent.map_err(RulesError::Run)
}
