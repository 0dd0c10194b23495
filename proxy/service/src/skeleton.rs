//! The constant part of the table `inet knarr`: chains, maps, and a fixed set of rules.
//!
//! It is written once, by the program `nft` in its own notation (which is also its best documentation), and never grows with the number of
//! services. What `nft` cannot express is added by the kernel module as single rules: the chains `lb…-N`,
//! `remember…-T` and `learned…`. Whether it is still there is read from the kernel (see `constant`).
//!
//! The way of a connection, in the chain `services`:
//! 1. Is it to be masqueraded? Then its packet is marked; `postrouting` looks at the mark.
//! 2. Does the client have an endpoint already (session affinity)? Then there.
//! 3. `services4 : address . protocol . port -> number` says how many endpoints there are, and `lb4 : number -> chain` where
//!    to go on: `lb4-3` picks one of three by looking up `endpoints4 : address . protocol . port . random number`,
//!    and rewrites the destination. If that endpoint went a moment ago, the packet is dropped: sent on as it is, it would pin the whole
//!    connection to an address that is nowhere. On the way the number is in the packet's priority, the one field that nobody
//!    misses: forwarding sets it anew anyway, and `lb4-3` to 0. (Not straight from address to chain: the kernel checks a map
//!    of verdicts for loops by walking all of it whenever one element changes, 1 ms with 10,000 services.)
//! 4. The same for the ports of the node, if the address is one of the node's.
//! 5. A port of a service address that leads nowhere is refused.
//!
//! Before all that, `firewall` drops connections to load balancers whose `loadBalancerSourceRanges` do not have the client.
//!
//! Connections from outside of the cluster then pass `outside`, where services with `externalTrafficPolicy: Local` are found.

use std::fmt::Write as _;

use ipnet::IpNet;

use crate::frontend::{Audience, Family};
use crate::maps::{DROP, Lane, REJECT, digit};

/// The table's name; the family is `inet`.
pub const TABLE: &str = "knarr";

/// Bits of the packet mark, the same that kube-proxy uses: to be masqueraded, and to be refused.
const MASQUERADE: &str = "0x4000";
const REFUSE: &str = "0x8000";

/// What the skeleton depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// The cluster's pod addresses; without, only the node itself counts as inside.
    pub pods: Vec<IpNet>,
    /// The cluster's service addresses.
    pub services: Vec<IpNet>,
}

/// The script that replaces the table, whatever it was.
pub fn script(ranges: &Ranges) -> String {
    let mut text =
        format!("add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
    maps(&mut text);
    chains(&mut text, ranges).expect("a string takes everything");
    text.push_str("}\n");
    text
}

/// The script that replaces the rules of the table, and leaves its maps with all that is in them, as one transaction.
///
/// To be used only on a table that [`script`] made from the same ranges.
pub fn rules_again(ranges: &Ranges) -> String {
    let mut rules = String::new();
    chains(&mut rules, ranges).expect("a string takes everything");
    let names: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("chain ")?.split(' ').next())
        .collect();
    let mut text = format!("table inet {TABLE} {{\n");
    // A chain is jumped to before its own definition comes.
    for name in &names {
        text.push_str(&format!("    chain {name} {{ }}\n"));
    }
    text.push_str("}\n");
    for name in &names {
        text.push_str(&format!("flush chain inet {TABLE} {name}\n"));
    }
    format!("{text}table inet {TABLE} {{\n{rules}}}\n")
}

/// How `nft` names things of a family.
struct Words {
    ip: &'static str,
    address: &'static str,
    nfproto: &'static str,
}

fn words(family: Family) -> Words {
    match family {
        Family::V4 => Words {
            ip: "ip",
            address: "ipv4_addr",
            nfproto: "ipv4",
        },
        Family::V6 => Words {
            ip: "ip6",
            address: "ipv6_addr",
            nfproto: "ipv6",
        },
    }
}

fn maps(text: &mut String) {
    for lane in Lane::all() {
        let Words { ip, address, .. } = words(lane.family);
        let suffix = lane.suffix();
        let (key, key_of) = if lane.on_node {
            (
                "inet_proto . inet_service".to_owned(),
                "meta l4proto . th dport".to_owned(),
            )
        } else {
            (
                format!("{address} . inet_proto . inet_service"),
                format!("{ip} daddr . meta l4proto . th dport"),
            )
        };
        text.push_str(&format!(
            "    map services{suffix} {{ type {key} : classid; }}
    map {} {{ type classid : verdict; elements = {{ {REJECT:#x} : goto refuse, {DROP:#x} : drop }}; }}
    map endpoints{suffix} {{ typeof {key_of} . numgen random mod 2 : {ip} daddr . th dport; }}\n",
            lane.balancers()
        ));
        if lane.audience == Audience::Everyone {
            text.push_str(&format!(
                "    set external{suffix} {{ type {key}; }}
    map affine{suffix} {{ type {key} : verdict; }}\n"
            ));
        }
    }
    for family in [Family::V4, Family::V6] {
        let Words { address, .. } = words(family);
        let f = digit(family);
        text.push_str(&format!(
            "    map affinity{f} {{ type {address} . {address} . inet_proto . inet_service : {address} . inet_service; flags dynamic, timeout; size 262144; }}
    set hairpin{f} {{ type {address} . {address}; }}
    set firewalled{f} {{ type {address} . inet_proto . inet_service; }}
    set admitted{f} {{ type {address} . inet_proto . inet_service . {address}; flags interval; }}\n"
        ));
    }
}

fn chains(text: &mut String, ranges: &Ranges) -> std::fmt::Result {
    let list = |nets: &[IpNet], family: Family| -> Option<String> {
        let of_family = nets.iter().filter(|net| Family::of(net.addr()) == family);
        let list: Vec<String> = of_family.map(ToString::to_string).collect();
        (!list.is_empty()).then(|| list.join(", "))
    };
    let both = [Family::V4, Family::V6];
    writeln!(
        text,
        "    chain refuse {{ meta mark set meta mark or {REFUSE}; }}"
    )?;

    writeln!(text, "    chain outside {{")?;
    for family in both {
        if let Some(pods) = list(&ranges.pods, family) {
            writeln!(
                text,
                "        {} saddr {{ {pods} }} return",
                words(family).ip
            )?;
        }
    }
    writeln!(text, "        fib saddr type local return")?;
    for family in both {
        let Words { ip, nfproto, .. } = words(family);
        let f = digit(family);
        if let Some(services) = list(&ranges.services, family) {
            writeln!(
                text,
                "        {ip} daddr {{ {services} }} meta mark set meta mark or {MASQUERADE}"
            )?;
        }
        writeln!(
            text,
            "        dnat {ip} to {ip} saddr . {ip} daddr . meta l4proto . th dport map @affinity{f}
        meta priority set {ip} daddr . meta l4proto . th dport map @services_outside{f} meta priority vmap @lb_outside{f}
        fib daddr type local meta nfproto {nfproto} meta priority set meta l4proto . th dport map @services_outside_port{f} meta priority vmap @lb_outside_port{f}"
        )?;
    }
    writeln!(text, "    }}")?;

    writeln!(text, "    chain services {{")?;
    for family in both {
        let Words { ip, nfproto, .. } = words(family);
        let f = digit(family);
        writeln!(
            text,
            "        {ip} daddr . meta l4proto . th dport @external{f} meta mark set meta mark or {MASQUERADE}
        fib daddr type local meta nfproto {nfproto} meta l4proto . th dport @external_port{f} meta mark set meta mark or {MASQUERADE}
        dnat {ip} to {ip} saddr . {ip} daddr . meta l4proto . th dport map @affinity{f}
        meta priority set {ip} daddr . meta l4proto . th dport map @services{f} meta priority vmap @lb{f}
        fib daddr type local meta nfproto {nfproto} meta priority set meta l4proto . th dport map @services_port{f} meta priority vmap @lb_port{f}"
        )?;
        if let Some(services) = list(&ranges.services, family) {
            writeln!(
                text,
                "        {ip} daddr {{ {services} }} meta l4proto {{ tcp, udp, sctp }} fib daddr type != local goto refuse"
            )?;
        }
    }
    writeln!(text, "    }}")?;

    writeln!(text, "    chain firewall {{")?;
    for family in both {
        let Words { ip, .. } = words(family);
        let f = digit(family);
        writeln!(
            text,
            "        {ip} daddr . meta l4proto . th dport @firewalled{f} {ip} daddr . meta l4proto . th dport . {ip} saddr != @admitted{f} drop"
        )?;
    }
    writeln!(text, "    }}")?;

    text.push_str(
        "    chain prerouting {
        type nat hook prerouting priority dstnat; policy accept;
        jump firewall
        jump outside
        jump services
    }
    chain output {
        type nat hook output priority -100; policy accept;
        jump firewall
        jump services
    }
",
    );
    for hook in ["prerouting", "output"] {
        // Here, since a nat chain cannot reject; and not after routing, since a service address may have no route.
        writeln!(
            text,
            "    chain refused_{hook} {{
        type filter hook {hook} priority -99; policy accept;
        meta mark and {REFUSE} == {REFUSE} meta l4proto tcp reject with tcp reset
        meta mark and {REFUSE} == {REFUSE} reject with icmpx port-unreachable
    }}"
        )?;
    }
    writeln!(
        text,
        "    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ct status dnat ip saddr . ip daddr @hairpin4 masquerade
        ct status dnat ip6 saddr . ip6 daddr @hairpin6 masquerade
        ct status dnat meta mark and {MASQUERADE} == {MASQUERADE} meta mark set meta mark xor {MASQUERADE} masquerade fully-random
    }}"
    )?;
    // Once the destination is known, and before the source is rewritten; endpoints on the node itself are not routed on.
    writeln!(
        text,
        "    chain learned {{ }}\n    chain learned_port {{ }}"
    )?;
    for (hook, priority) in [("postrouting", 99), ("input", 99)] {
        writeln!(
            text,
            "    chain learn_{hook} {{\n        type filter hook {hook} priority {priority}; policy accept;"
        )?;
        writeln!(text, "        ct state new ct status dnat jump learned")?;
        let mut not_services = String::new();
        for family in both {
            if let Some(services) = list(&ranges.services, family) {
                write!(
                    not_services,
                    "ct original {} daddr != {{ {services} }} ",
                    words(family).ip
                )?;
                writeln!(
                    text,
                    "        ct state new ct status dnat {not_services}jump learned_port"
                )?;
                not_services.clear();
            }
        }
        if ranges.services.is_empty() {
            writeln!(
                text,
                "        ct state new ct status dnat jump learned_port"
            )?;
        }
        writeln!(text, "    }}")?;
    }
    Ok(())
}
