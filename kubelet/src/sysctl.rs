//! Which kernel parameters a pod may set.
//!
//! Only those that are safe: they belong to the pod's own namespaces and do no harm to others on the node.
//! Source: kubernetes, pkg/kubelet/sysctl, `SafeSysctlAllowlist` and `validateSysctl`.

use k8s_openapi::api::core::v1::PodSpec;

/// The reason of a pod that asks for another one.
pub(crate) const FORBIDDEN: &str = "SysctlForbidden";

/// The only safe one of the IPC namespace.
const SAFE_IPC: &str = "kernel.shm_rmid_forced";

/// The safe ones of the network namespace.
const SAFE_NETWORK: [&str; 11] = [
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// Why the pod may not run on this node, if it asks for a parameter that is not safe.
pub(crate) fn forbidden(spec: &PodSpec) -> Option<String> {
    let wanted = spec
        .security_context
        .iter()
        .flat_map(|context| context.sysctls.iter().flatten());
    wanted
        .map(|sysctl| sysctl.name.replace('/', "."))
        .find_map(|name| {
            let network = SAFE_NETWORK.contains(&name.as_str());
            let why = if !network && name != SAFE_IPC {
                "not allowlisted"
            } else if network && spec.host_network == Some(true) {
                "not allowed with host net enabled"
            } else if !network && spec.host_ipc == Some(true) {
                "not allowed with host ipc enabled"
            } else {
                return None;
            };
            Some(format!("forbidden sysctl: {name:?} {why}"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_safe_parameters_of_the_pods_own_namespaces_are_allowed() {
        for (name, host, expected) in [
            ("net.ipv4.tcp_syncookies", "", None),
            ("net/ipv4/tcp_syncookies", "", None),
            ("kernel.shm_rmid_forced", "hostNetwork", None),
            (
                "kernel.msgmax",
                "",
                Some("forbidden sysctl: \"kernel.msgmax\" not allowlisted"),
            ),
            (
                "net.ipv4.tcp_syncookies",
                "hostNetwork",
                Some(
                    "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host net enabled",
                ),
            ),
            (
                "kernel.shm_rmid_forced",
                "hostIPC",
                Some(
                    "forbidden sysctl: \"kernel.shm_rmid_forced\" not allowed with host ipc enabled",
                ),
            ),
        ] {
            let mut value = serde_json::json!({
                "containers": [],
                "securityContext": {"sysctls": [{"name": name, "value": "1"}]},
            });
            if !host.is_empty() {
                value[host] = true.into();
            }
            let spec: PodSpec = serde_json::from_value(value).expect("a specification");
            assert_eq!(forbidden(&spec).as_deref(), expected, "{name} {host}");
        }
    }
}
