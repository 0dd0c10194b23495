//! The checks of the level baseline: nothing that is known to lead out of a container.

use std::collections::BTreeSet;

use super::checks::{Pod, Violation, containers, quoted, text};
use crate::strategy::validation::items;

/// What containers have anyway.
const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Kernel parameters that belong to the pod alone, and since which minor version they count as safe.
const SYSCTLS: [(&str, u32); 14] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
    ("net.ipv4.tcp_slow_start_after_idle", 37),
    ("net.ipv4.tcp_notsent_lowat", 37),
];

/// Whether a table has a name since a minor version.
pub(super) fn is_listed(table: &[(&str, u32)], name: &str, minor: u32) -> bool {
    table
        .iter()
        .any(|(known, since)| *known == name && *since <= minor)
}

pub(super) fn capabilities(pod: Pod<'_>, _: u32) -> Option<Violation> {
    let mut bad = BTreeSet::new();
    let names = pod.where_container(|container| {
        let added = items(&container["securityContext"]["capabilities"]["add"]);
        let beyond: Vec<&str> = added
            .map(|(_, name)| text(name))
            .filter(|name| !CAPABILITIES.contains(name))
            .collect();
        bad.extend(beyond.iter().copied());
        !beyond.is_empty()
    });
    (!names.is_empty()).then(|| Violation {
        reason: "non-default capabilities",
        detail: format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&names),
            quoted(&bad)
        ),
    })
}

pub(super) fn privileged(pod: Pod<'_>, _: u32) -> Option<Violation> {
    let names = pod.where_container(|container| container["securityContext"]["privileged"] == true);
    (!names.is_empty()).then(|| Violation {
        reason: "privileged",
        detail: format!(
            "{} must not set securityContext.privileged=true",
            containers(&names)
        ),
    })
}

pub(super) fn proc_mount(pod: Pod<'_>, minor: u32) -> Option<Violation> {
    if minor >= 35 && pod.has_own_users() {
        return None;
    }
    unmasked(pod)
}

/// What is more of `/proc` than a container sees by default.
pub(super) fn unmasked(pod: Pod<'_>) -> Option<Violation> {
    let mut kinds = BTreeSet::new();
    let names = pod.where_container(|container| {
        let kind = container["securityContext"]["procMount"].as_str();
        let unmasked = kind.filter(|kind| *kind != "Default");
        kinds.extend(unmasked);
        unmasked.is_some()
    });
    (!names.is_empty()).then(|| Violation {
        reason: "procMount",
        detail: format!(
            "{} must not set securityContext.procMount to {}",
            containers(&names),
            quoted(&kinds)
        ),
    })
}

pub(super) fn sysctls(pod: Pod<'_>, minor: u32) -> Option<Violation> {
    let bad: Vec<&str> = items(&pod.spec["securityContext"]["sysctls"])
        .map(|(_, sysctl)| text(&sysctl["name"]))
        .filter(|name| !is_listed(&SYSCTLS, name, minor))
        .collect();
    (!bad.is_empty()).then(|| Violation {
        reason: "forbidden sysctls",
        detail: bad.join(", "),
    })
}
