//! Reading pods: names, kinds of container, quality of service.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::config::KubeletConfig;

/// What names a pod everywhere in the agent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl PodKey {
    pub(crate) fn of(pod: &Pod) -> Self {
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for PodKey {
    /// `<name>_<namespace>(<uid>)`, as the kubelet's messages name a pod.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_{}({})", self.name, self.namespace, self.uid)
    }
}

/// The role of a container in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: starts in order, then runs along.
    Sidecar,
    /// One of `spec.containers`.
    Regular,
    /// Added to a running pod (`kubectl debug`).
    Ephemeral,
}

/// A pod's specification; the API server admits no pod without one.
pub(crate) fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::OnceLock<PodSpec> = std::sync::OnceLock::new();
    pod.spec
        .as_ref()
        .unwrap_or_else(|| EMPTY.get_or_init(PodSpec::default))
}

/// The init containers in order, with their kinds.
pub(crate) fn init_containers(spec: &PodSpec) -> impl Iterator<Item = (&Container, Kind)> {
    spec.init_containers.iter().flatten().map(|container| {
        let kind = if container.restart_policy.as_deref() == Some("Always") {
            Kind::Sidecar
        } else {
            Kind::Init
        };
        (container, kind)
    })
}

/// The ephemeral containers, in the shape of ordinary ones.
pub(crate) fn ephemeral_containers(spec: &PodSpec) -> Vec<Container> {
    spec.ephemeral_containers
        .iter()
        .flatten()
        .map(|e| Container {
            args: e.args.clone(),
            command: e.command.clone(),
            env: e.env.clone(),
            env_from: e.env_from.clone(),
            image: e.image.clone(),
            image_pull_policy: e.image_pull_policy.clone(),
            name: e.name.clone(),
            resources: e.resources.clone(),
            security_context: e.security_context.clone(),
            stdin: e.stdin,
            stdin_once: e.stdin_once,
            termination_message_path: e.termination_message_path.clone(),
            termination_message_policy: e.termination_message_policy.clone(),
            tty: e.tty,
            volume_mounts: e.volume_mounts.clone(),
            working_dir: e.working_dir.clone(),
            ..Container::default()
        })
        .collect()
}

/// All containers of the pod, with their kinds.
pub(crate) fn all_containers(spec: &PodSpec) -> Vec<(Container, Kind)> {
    init_containers(spec)
        .map(|(c, k)| (c.clone(), k))
        .chain(spec.containers.iter().map(|c| (c.clone(), Kind::Regular)))
        .chain(
            ephemeral_containers(spec)
                .into_iter()
                .map(|c| (c, Kind::Ephemeral)),
        )
        .collect()
}

/// One container of the pod by name.
pub(crate) fn find_container(spec: &PodSpec, name: &str) -> Option<(Container, Kind)> {
    all_containers(spec)
        .into_iter()
        .find(|(c, _)| c.name == name)
}

/// How a container's events name it: `spec.containers{name}`.
pub(crate) fn field_path(name: &str, kind: Kind) -> String {
    match kind {
        Kind::Init | Kind::Sidecar => format!("spec.initContainers{{{name}}}"),
        Kind::Regular => format!("spec.containers{{{name}}}"),
        Kind::Ephemeral => format!("spec.ephemeralContainers{{{name}}}"),
    }
}

/// The time that the pod's containers have to end: that of the deletion if there is one.
pub(crate) fn grace_period(pod: &Pod) -> Duration {
    let seconds = pod
        .metadata
        .deletion_grace_period_seconds
        .or(spec(pod).termination_grace_period_seconds)
        .unwrap_or(30);
    // A forced deletion still gives one second, as the kubelet does.
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1))
}

/// The address at which probes and hooks find the pod: the node's, if it is on the node's network.
pub(crate) fn address(pod: &Pod, config: &KubeletConfig, own: &[IpAddr]) -> Option<IpAddr> {
    if spec(pod).host_network == Some(true) {
        config.node_ips.first().copied()
    } else {
        own.first().copied()
    }
}

/// Whether the pod reached a phase that it cannot leave.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Whether the API still shows a container of the pod as running.
pub(crate) fn shows_running(pod: &Pod) -> bool {
    let Some(status) = &pod.status else {
        return false;
    };
    let lists = [
        &status.init_container_statuses,
        &status.container_statuses,
        &status.ephemeral_container_statuses,
    ];
    lists
        .into_iter()
        .flatten()
        .flatten()
        .any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()))
}

/// The host name inside the pod: `spec.hostname`, else the pod's name, at most 63 characters.
pub(crate) fn hostname(pod: &Pod) -> String {
    let spec = spec(pod);
    if let Some(name) = spec.hostname_override.as_deref().filter(|h| !h.is_empty()) {
        return name.to_owned();
    }
    let name = spec
        .hostname
        .as_deref()
        .filter(|h| !h.is_empty())
        .or(pod.metadata.name.as_deref())
        .unwrap_or_default();
    let mut name = name.to_owned();
    name.truncate(63);
    name.trim_end_matches(['-', '.']).to_owned()
}

/// The pod's own DNS name, if it has a subdomain: `<host>.<subdomain>.<namespace>.svc.<domain>`.
pub(crate) fn fqdn(pod: &Pod, cluster_domain: &str) -> Option<String> {
    let subdomain = spec(pod).subdomain.as_deref().filter(|s| !s.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!(
        "{}.{subdomain}.{namespace}.svc.{cluster_domain}",
        hostname(pod)
    ))
}
