//! What the engine is asked for and what it reports: the names and meaning of CRI v1
//! (`k8s.io/cri-api`, `runtime/v1/api.proto`), in Rust types.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The id of one pod sandbox: 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SandboxId(pub String);

/// The id of one container: 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContainerId(pub String);

/// Where a namespace of a pod comes from (CRI `NamespaceMode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// Shared by the containers of the pod.
    #[default]
    Pod,
    /// Each container has its own.
    Container,
    /// The host's.
    Node,
}

/// The namespaces of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    /// `Pod`, or `Node` for `hostNetwork`.
    pub network: NamespaceMode,
    /// `Container`, `Pod` for `shareProcessNamespace`, or `Node` for `hostPID`.
    pub pid: NamespaceMode,
    /// `Pod`, or `Node` for `hostIPC`.
    pub ipc: NamespaceMode,
    /// `Node`, or `Pod` for a user namespace of the pod's own (`hostUsers: false`).
    pub user: NamespaceMode,
}

impl Default for Namespaces {
    fn default() -> Self {
        Self {
            network: NamespaceMode::Pod,
            pid: NamespaceMode::Container,
            ipc: NamespaceMode::Pod,
            user: NamespaceMode::Node,
        }
    }
}

/// The content of a pod's `/etc/resolv.conf`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// Addresses of the name servers.
    pub servers: Vec<String>,
    /// Search domains, in order.
    pub searches: Vec<String>,
    /// Resolver options such as `ndots:5`.
    pub options: Vec<String>,
}

/// The transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// One `hostPort` of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port inside the pod.
    pub container_port: u16,
    /// The port on the node.
    pub host_port: u16,
    /// The node's address that the port is on; `None` for all of them.
    pub host_ip: Option<IpAddr>,
}

/// Limits of one cgroup, a pod's or a container's (CRI `LinuxContainerResources`).
///
/// `None` leaves the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinuxResources {
    /// CFS period, in microseconds.
    pub cpu_period: Option<u64>,
    /// CFS quota per period, in microseconds; -1 for no limit.
    pub cpu_quota: Option<i64>,
    /// CPU shares on the cgroup v1 scale (2 to 262144); converted to `cpu.weight` on v2.
    pub cpu_shares: Option<u64>,
    /// Memory limit, in bytes; -1 for no limit.
    pub memory_limit: Option<i64>,
    /// Memory plus swap limit, in bytes (cgroup v1 semantics); -1 for no limit.
    pub memory_swap_limit: Option<i64>,
    /// The container's `oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// Most processes and threads; -1 for no limit.
    pub pids_limit: Option<i64>,
    /// CPUs allowed, as a list such as `0-1,3`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes allowed.
    pub cpuset_mems: Option<String>,
    /// Huge page limits in bytes by page size, such as `2MB`.
    pub hugepage_limits: BTreeMap<String, u64>,
    /// Raw cgroup v2 files and values.
    pub unified: BTreeMap<String, String>,
}

/// What a pod sandbox is to be (CRI `PodSandboxConfig`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxConfig {
    /// The pod's name.
    pub name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's UID.
    pub uid: String,
    /// How many sandboxes this pod had before.
    pub attempt: u32,
    /// The host name inside the pod; empty for the host's own.
    pub hostname: String,
    /// The directory of the containers' logs: `/var/log/pods/<ns>_<name>_<uid>`.
    pub log_directory: PathBuf,
    /// DNS of the pod; `None` leaves the image's or host's file alone.
    pub dns: Option<DnsConfig>,
    /// Host ports.
    pub port_mappings: Vec<PortMapping>,
    /// Labels, kept for listing.
    pub labels: BTreeMap<String, String>,
    /// Annotations, kept for listing.
    pub annotations: BTreeMap<String, String>,
    /// The pod's cgroup, relative to each hierarchy's root: `kubepods/burstable/pod<uid>`.
    ///
    /// The engine makes it with `resources` in `run_sandbox` and removes it in `remove_sandbox`.
    pub cgroup_parent: String,
    /// Limits of the pod's cgroup.
    pub resources: LinuxResources,
    /// Sysctls of the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// The pod's namespaces.
    pub namespaces: Namespaces,
}

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SandboxState {
    /// Its namespaces, network and shim exist.
    Ready,
    /// Stopped, or its shim is gone.
    NotReady,
}

/// What a sandbox is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// Its id.
    pub id: SandboxId,
    /// Its configuration, as given to `run_sandbox`.
    pub config: SandboxConfig,
    /// Where it is in its life.
    pub state: SandboxState,
    /// When it was made.
    pub created_at: SystemTime,
    /// Its addresses, the primary one first; empty for a pod on the host's network.
    pub ips: Vec<IpAddr>,
}

/// How mounts propagate between host and container (CRI `MountPropagation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountPropagation {
    /// `rprivate`.
    #[default]
    Private,
    /// `rslave`.
    HostToContainer,
    /// `rshared`.
    Bidirectional,
}

/// One bind mount from the host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The path on the host; it must exist.
    pub host_path: PathBuf,
    /// The path in the container.
    pub container_path: PathBuf,
    /// Whether the container may only read.
    pub readonly: bool,
    /// Whether mounts below are read-only too (`recursiveReadOnly`).
    pub recursive_read_only: bool,
    /// Propagation of later mounts.
    pub propagation: MountPropagation,
}

/// One device node of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// The path on the host.
    pub host_path: PathBuf,
    /// The path in the container.
    pub container_path: PathBuf,
    /// Any of `r`, `w`, `m`.
    pub permissions: String,
}

/// The seccomp profile of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SeccompProfile {
    /// Ours: what containerd and Docker allow by default.
    #[default]
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A profile file on the node.
    Localhost(PathBuf),
}

/// What the container may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityContext {
    /// All capabilities, all devices, no masks, no seccomp.
    pub privileged: bool,
    /// Capabilities added to the default set, without `CAP_`; `ALL` adds all.
    pub add_capabilities: Vec<String>,
    /// Capabilities taken from the default set, without `CAP_`; `ALL` takes all.
    pub drop_capabilities: Vec<String>,
    /// The user; `None` for the image's.
    pub run_as_user: Option<i64>,
    /// The primary group; `None` for that of the user in the image's `/etc/passwd`.
    pub run_as_group: Option<i64>,
    /// Groups beside the primary one.
    pub supplemental_groups: Vec<i64>,
    /// Whether groups of the image's `/etc/group` are left out (`supplementalGroupsPolicy: Strict`).
    pub supplemental_groups_strict: bool,
    /// Whether the root file system is read-only.
    pub readonly_rootfs: bool,
    /// Whether `no_new_privs` is set.
    pub no_new_privs: bool,
    /// Whether the default masked and read-only paths of `/proc` are left open (`procMount: Unmasked`).
    pub unmasked_proc: bool,
    /// The seccomp profile.
    pub seccomp: SeccompProfile,
    /// The AppArmor profile of the host that confines it; `None` for none.
    #[serde(default)]
    pub apparmor: Option<String>,
}

/// What a container is to be (CRI `ContainerConfig`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerConfig {
    /// The container's name in its pod.
    pub name: String,
    /// How many containers of this name the pod had before: the pod's `restartCount`.
    pub attempt: u32,
    /// The image's id, as `image_status` and `pull_image` return it.
    pub image_id: String,
    /// The image as the user wrote it.
    pub image_ref: String,
    /// Replaces the image's entry point; empty for the image's.
    pub command: Vec<String>,
    /// Replaces the image's arguments; empty for the image's (where `command` is empty too).
    pub args: Vec<String>,
    /// The working directory; `None` for the image's.
    pub working_dir: Option<String>,
    /// Environment variables, added to the image's, in order.
    pub env: Vec<(String, String)>,
    /// Bind mounts.
    pub mounts: Vec<Mount>,
    /// Devices.
    pub devices: Vec<Device>,
    /// Labels, kept for listing.
    pub labels: BTreeMap<String, String>,
    /// Annotations, kept for listing.
    pub annotations: BTreeMap<String, String>,
    /// The log file, relative to the sandbox's `log_directory`: `<container>/<attempt>.log`.
    pub log_path: PathBuf,
    /// A running container of the same pod whose processes it is to see (CRI `NamespaceMode_TARGET`).
    #[serde(default)]
    pub pids_of: Option<ContainerId>,
    /// Whether the container has a stdin that `attach` can write to.
    pub stdin: bool,
    /// Whether that stdin closes when its first client leaves.
    pub stdin_once: bool,
    /// Whether the container has a terminal.
    pub tty: bool,
    /// Limits of the container's cgroup.
    pub resources: LinuxResources,
    /// What it may do.
    pub security: SecurityContext,
    /// The signal that asks it to stop, such as `SIGTERM`; `None` for the image's, else SIGTERM.
    pub stop_signal: Option<String>,
}

/// Where a container is in its life (CRI `ContainerState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    /// Made, not started.
    Created,
    /// Its first process runs.
    Running,
    /// Its first process ended, or could not be started.
    Exited,
}

/// What a container is now (CRI `ContainerStatus`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// Its id.
    pub id: ContainerId,
    /// Its sandbox.
    pub sandbox_id: SandboxId,
    /// Its configuration, as given to `create_container`.
    pub config: ContainerConfig,
    /// Where it is in its life.
    pub state: ContainerState,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it was started.
    pub started_at: Option<SystemTime>,
    /// When it ended.
    pub finished_at: Option<SystemTime>,
    /// Its exit code, 128 + the signal's number for a signal; meaningful once it ended.
    pub exit_code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `StartError` (exit code 128) or `ContainerStatusUnknown` (137).
    pub reason: String,
    /// More about the reason, for people.
    pub message: String,
    /// `<repository>@<digest>` of its image where known, else the image id.
    pub image_digest_ref: String,
    /// The host's process id of its first process while it runs.
    pub pid: Option<i32>,
    /// The absolute path of its log.
    pub log_path: PathBuf,
}

/// What an image in the store is (CRI `Image`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    /// The digest of its configuration: `sha256:…`.
    pub id: String,
    /// Tags: `docker.io/library/busybox:latest`.
    pub repo_tags: Vec<String>,
    /// Digests: `docker.io/library/busybox@sha256:…`.
    pub repo_digests: Vec<String>,
    /// Bytes on disk.
    pub size: u64,
    /// The configuration's `User`, as it stands: a name or `uid[:gid]`; empty for root.
    pub user: String,
}

/// Credentials for a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistryAuth {
    /// The user name.
    pub username: String,
    /// The password or token.
    pub password: String,
}

/// One finished `exec_sync`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOutput {
    /// What it wrote to stdout, at most 16 MiB.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr, at most 16 MiB.
    pub stderr: Vec<u8>,
    /// Its exit code, 128 + the signal's number for a signal.
    pub exit_code: i32,
}

/// A terminal's size, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// Resource use of one container or pod, from its cgroup.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// CPU time used, in nanoseconds.
    pub cpu_usage_ns: u64,
    /// Memory charged, in bytes.
    pub memory_usage: u64,
    /// Memory charged less inactive file cache, in bytes.
    pub memory_working_set: u64,
    /// Anonymous memory, in bytes.
    pub memory_rss: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Major page faults.
    pub major_page_faults: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// A change that the engine noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A container's first process runs.
    ContainerStarted {
        /// Its sandbox.
        sandbox_id: SandboxId,
        /// The container.
        container_id: ContainerId,
        /// The UID of its pod.
        pod_uid: String,
    },
    /// A container's first process ended; its status already says so.
    ContainerExited {
        /// Its sandbox.
        sandbox_id: SandboxId,
        /// The container.
        container_id: ContainerId,
        /// The UID of its pod.
        pod_uid: String,
    },
    /// A sandbox stopped, or its shim died.
    SandboxStopped {
        /// The sandbox.
        sandbox_id: SandboxId,
        /// The UID of its pod.
        pod_uid: String,
    },
}
