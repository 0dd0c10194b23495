//! A pod's sandbox: its names, DNS, namespaces and ports.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use knarr_engine::types::{
    DnsConfig, LinuxResources, NamespaceMode, Namespaces, PortMapping, Protocol, SandboxConfig,
};

use crate::config::KubeletConfig;
use crate::pod::{self, PodKey};
use crate::resources;

/// Labels that the runtime keeps for us, so that a restarted agent finds its pods again.
pub(crate) mod label {
    /// The pod's name.
    pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
    /// The pod's namespace.
    pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
    /// The pod's UID.
    pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
    /// The container's name.
    pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
    /// The container's grace period, for a pod whose object is gone.
    pub(crate) const GRACE: &str = "io.kubernetes.pod.terminationGracePeriod";
}

/// The most search domains that resolvers take (kubernetes, pkg/apis/core/validation).
const MAX_SEARCHES: usize = 32;
const MAX_SERVERS: usize = 3;

/// What the sandbox is to be.
pub(crate) fn config(config: &KubeletConfig, pod: &Pod, attempt: u32) -> io::Result<SandboxConfig> {
    let spec = pod::spec(pod);
    let key = PodKey::of(pod);
    let host_network = spec.host_network == Some(true);
    let mut labels: BTreeMap<String, String> = pod.metadata.labels.clone().unwrap_or_default();
    labels.insert(label::POD_NAME.to_owned(), key.name.clone());
    labels.insert(label::POD_NAMESPACE.to_owned(), key.namespace.clone());
    labels.insert(label::POD_UID.to_owned(), key.uid.clone());
    let grace = spec
        .termination_grace_period_seconds
        .unwrap_or(30)
        .to_string();
    let hostname = match (host_network, spec.set_hostname_as_fqdn) {
        (true, _) => String::new(),
        (false, Some(true)) => {
            pod::fqdn(pod, &config.cluster_domain).unwrap_or_else(|| pod::hostname(pod))
        }
        (false, _) => pod::hostname(pod),
    };
    let sysctls = spec
        .security_context
        .iter()
        .flat_map(|s| s.sysctls.iter().flatten())
        .map(|s| (s.name.clone(), s.value.clone()))
        .collect();
    Ok(SandboxConfig {
        name: key.name.clone(),
        namespace: key.namespace.clone(),
        uid: key.uid.clone(),
        attempt,
        hostname,
        log_directory: config.log_dir(&key.namespace, &key.name, &key.uid),
        dns: Some(dns(config, pod)?),
        port_mappings: if host_network {
            Vec::new()
        } else {
            port_mappings(spec)
        },
        labels,
        annotations: BTreeMap::from([(label::GRACE.to_owned(), grace)]),
        cgroup_parent: resources::cgroup_path(pod),
        resources: LinuxResources {
            pids_limit: config.pod_pids_limit.map(i64::from),
            ..resources::pod(pod)
        },
        sysctls,
        namespaces: namespaces(spec),
    })
}

fn namespaces(spec: &PodSpec) -> Namespaces {
    let host = |on: Option<bool>, otherwise: NamespaceMode| {
        if on == Some(true) {
            NamespaceMode::Node
        } else {
            otherwise
        }
    };
    let shared = if spec.share_process_namespace == Some(true) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    Namespaces {
        network: host(spec.host_network, NamespaceMode::Pod),
        pid: host(spec.host_pid, shared),
        ipc: host(spec.host_ipc, NamespaceMode::Pod),
        user: if spec.host_users == Some(false) {
            NamespaceMode::Pod
        } else {
            NamespaceMode::Node
        },
    }
}

fn port_mappings(spec: &PodSpec) -> Vec<PortMapping> {
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|port| {
            let host_port = u16::try_from(port.host_port?).ok().filter(|p| *p > 0)?;
            Some(PortMapping {
                protocol: match port.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
                container_port: u16::try_from(port.container_port).ok()?,
                host_port,
                host_ip: port
                    .host_ip
                    .as_deref()
                    .and_then(|ip| ip.parse::<IpAddr>().ok())
                    .filter(|ip| !ip.is_unspecified()),
            })
        })
        .collect()
}

/// Source: kubernetes, pkg/kubelet/network/dns/dns.go, `GetPodDNS`.
fn dns(config: &KubeletConfig, pod: &Pod) -> io::Result<DnsConfig> {
    let spec = pod::spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let host_network = spec.host_network == Some(true);
    let cluster = match policy {
        "None" => None,
        "ClusterFirst" if host_network => Some(false),
        "ClusterFirst" | "ClusterFirstWithHostNet" => Some(!config.cluster_dns.is_empty()),
        _ => Some(false),
    };
    let mut dns = match cluster {
        None => DnsConfig::default(),
        Some(use_cluster) => {
            let host = parse_resolv_conf(&read_resolv_conf(config)?);
            if use_cluster {
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                let domain = &config.cluster_domain;
                let mut searches = vec![
                    format!("{namespace}.svc.{domain}"),
                    format!("svc.{domain}"),
                    domain.clone(),
                ];
                searches.extend(host.searches.into_iter().filter(|s| s != "."));
                DnsConfig {
                    servers: config.cluster_dns.iter().map(ToString::to_string).collect(),
                    searches,
                    options: vec!["ndots:5".to_owned()],
                }
            } else {
                host
            }
        }
    };
    if let Some(own) = &spec.dns_config {
        extend(&mut dns.servers, own.nameservers.iter().flatten());
        extend(&mut dns.searches, own.searches.iter().flatten());
        for option in own.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            dns.options.retain(|o| o.split(':').next() != Some(name));
            dns.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.to_owned(),
            });
        }
    }
    dns.servers.truncate(MAX_SERVERS);
    dns.searches.truncate(MAX_SEARCHES);
    Ok(dns)
}

fn extend<'a>(list: &mut Vec<String>, more: impl Iterator<Item = &'a String>) {
    for item in more {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
}

fn read_resolv_conf(config: &KubeletConfig) -> io::Result<String> {
    match fs::read_to_string(&config.resolv_conf) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other,
    }
}

fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace().map(str::to_owned);
        match words.next().as_deref() {
            Some("nameserver") => dns.servers.extend(words.next()),
            // The last of several lines counts (resolv.conf(5)).
            Some("search" | "domain") => dns.searches = words.collect(),
            Some("options") => dns.options = words.collect(),
            _ => {}
        }
    }
    dns
}

/// The content of a pod's `/etc/hosts`.
///
/// Source: kubernetes, pkg/kubelet/kubelet_pods.go, `managedHostsFileContent`.
pub(crate) fn hosts(config: &KubeletConfig, pod: &Pod, ips: &[IpAddr]) -> String {
    let spec = pod::spec(pod);
    let mut text;
    if spec.host_network == Some(true) {
        text = "# Kubernetes-managed hosts file (host network).\n".to_owned();
        text.push_str(&fs::read_to_string("/etc/hosts").unwrap_or_default());
    } else {
        text = "# Kubernetes-managed hosts file.\n\
                127.0.0.1\tlocalhost\n\
                ::1\tlocalhost ip6-localhost ip6-loopback\n\
                fe00::0\tip6-localnet\n\
                fe00::0\tip6-mcastprefix\n\
                fe00::1\tip6-allnodes\n\
                fe00::2\tip6-allrouters\n"
            .to_owned();
        let host = pod::hostname(pod);
        for ip in ips {
            match pod::fqdn(pod, &config.cluster_domain) {
                Some(fqdn) => text.push_str(&format!("{ip}\t{fqdn}\t{host}\n")),
                None => text.push_str(&format!("{ip}\t{host}\n")),
            }
        }
    }
    let mut aliases = spec.host_aliases.iter().flatten().peekable();
    if aliases.peek().is_some() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    fn settings(resolv_conf: &std::path::Path) -> KubeletConfig {
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::default()
            .self_signed(&key)
            .expect("a certificate");
        let serving =
            Identity::from_pem(&certificate.pem(), &key.serialize_pem()).expect("an identity");
        let mut config = KubeletConfig::new(
            "n".into(),
            [10, 0, 0, 1].into(),
            "/x".into(),
            serving,
            String::new(),
        );
        config.cluster_dns = vec![[10, 43, 0, 10].into()];
        config.resolv_conf = resolv_conf.to_owned();
        config
    }

    fn pod_with(spec: serde_json::Value) -> Pod {
        serde_json::from_value(
            serde_json::json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec}),
        )
        .expect("a pod")
    }

    #[test]
    fn dns_follows_the_policy() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("resolv.conf");
        fs::write(&file, "nameserver 9.9.9.9\nsearch lan\noptions edns0\n").expect("written");
        let config = settings(&file);
        let cluster = [
            "ns.svc.cluster.local",
            "svc.cluster.local",
            "cluster.local",
            "lan",
        ];
        for (spec, servers, searches, options) in [
            (
                serde_json::json!({}),
                vec!["10.43.0.10"],
                cluster.to_vec(),
                vec!["ndots:5"],
            ),
            (
                serde_json::json!({"dnsPolicy": "Default"}),
                vec!["9.9.9.9"],
                vec!["lan"],
                vec!["edns0"],
            ),
            (
                serde_json::json!({"hostNetwork": true}),
                vec!["9.9.9.9"],
                vec!["lan"],
                vec!["edns0"],
            ),
            (
                serde_json::json!({"dnsPolicy": "None", "dnsConfig":
                    {"nameservers": ["1.1.1.1"], "searches": ["a"], "options": [{"name": "ndots", "value": "2"}]}}),
                vec!["1.1.1.1"],
                vec!["a"],
                vec!["ndots:2"],
            ),
            (
                serde_json::json!({"dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}}),
                vec!["10.43.0.10"],
                cluster.to_vec(),
                vec!["ndots:2"],
            ),
        ] {
            let got = dns(&config, &pod_with(spec.clone())).expect("dns");
            assert_eq!(
                (got.servers, got.searches, got.options),
                (
                    servers.into_iter().map(str::to_owned).collect(),
                    searches.into_iter().map(str::to_owned).collect(),
                    options.into_iter().map(str::to_owned).collect(),
                ),
                "{spec}"
            );
        }
    }

    #[test]
    fn hosts_file_names_the_pod_and_its_aliases() {
        let config = settings(std::path::Path::new("/dev/null"));
        let pod = pod_with(
            serde_json::json!({"subdomain": "s", "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}),
        );
        let text = hosts(&config, &pod, &[[10, 42, 0, 5].into()]);
        assert!(text.ends_with(
            "10.42.0.5\tp.s.ns.svc.cluster.local\tp\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"
        ), "{text}");
    }
}
