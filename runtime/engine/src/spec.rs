//! The OCI specification of a container, from what the pod asks and what the image says.
//!
//! The defaults (mounts, capabilities, masked paths) are containerd's. Source: containerd, `oci/spec.go` and `oci/mounts.go`;
//! OCI runtime-spec 1.3, config.md and config-linux.md.

mod hidden;

use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use serde_json::{Value, json};

use crate::types::{
    ContainerConfig, LinuxResources, Mount, MountPropagation, NamespaceMode, SandboxConfig,
    SeccompProfile,
};
use crate::user::Identity;
use crate::volumes::ImageVolume;

/// The capabilities of a container that asks for none. Source: containerd, `defaultUnixCaps`.
const CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// All capabilities of Linux 5.9 and newer. Source: capabilities(7).
const ALL_CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a container gets from its pod, by path.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The pinned network namespace; `None` on the host's network.
    pub network: Option<PathBuf>,
    /// The pinned IPC namespace; `None` for the host's.
    pub ipc: Option<PathBuf>,
    /// The pinned UTS namespace; `None` for the host's.
    pub uts: Option<PathBuf>,
    /// The pinned PID namespace; `None` for the host's, or one of each container's own.
    pub pid: Option<PathBuf>,
    /// `/dev/shm` of the pod.
    pub shm: PathBuf,
    /// `/etc/resolv.conf` of the pod; `None` to leave the image's.
    pub resolv_conf: Option<PathBuf>,
    /// `/etc/hostname` of the pod.
    pub hostname: PathBuf,
}

/// Why there is no specification.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Neither the pod nor the image says what to run.
    #[error("no command specified")]
    NoCommand,
    /// A capability that does not exist.
    #[error("unknown capability {name:?}")]
    Capability {
        /// Its name.
        name: String,
    },
    /// A seccomp profile that cannot be read.
    #[error("seccomp profile {path}", path = path.display())]
    Seccomp {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A device that cannot be examined.
    #[error("device {path}", path = path.display())]
    Device {
        /// The path.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// An annotation of the pod's that this engine cannot honour.
    #[error("{what} is not supported")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
}

/// Everything that a specification is made from.
pub struct Input<'a> {
    /// The container's id.
    pub id: &'a str,
    /// The pod.
    pub sandbox: &'a SandboxConfig,
    /// The container.
    pub container: &'a ContainerConfig,
    /// The image.
    pub image: &'a ImageConfiguration,
    /// Who it runs as.
    pub identity: &'a Identity,
    /// The root file system.
    pub rootfs: &'a Path,
    /// What it gets from its pod.
    pub surroundings: &'a Surroundings,
    /// The directories for the image's volumes.
    pub volumes: &'a [ImageVolume],
}

/// The `config.json` of a container.
///
/// # Errors
///
/// If what is asked for makes no sense.
pub fn build(input: &Input<'_>) -> Result<Value, SpecError> {
    let container = input.container;
    let security = &container.security;
    let privileged = security.privileged;
    let mut linux = json!({
        "cgroupsPath": format!("/{}/{}", input.sandbox.cgroup_parent.trim_matches('/'), input.id),
        "namespaces": namespaces(input.sandbox, input.surroundings),
        "resources": resources(&container.resources, devices_allowed(container)?),
        "devices": devices(container)?,
    });
    if !privileged && !security.unmasked_proc {
        linux["maskedPaths"] = json!(hidden::masked());
        linux["readonlyPaths"] = json!(hidden::READONLY);
    }
    if !privileged && let Some(seccomp) = seccomp(&security.seccomp, &capabilities(container)?)? {
        linux["seccomp"] = seccomp;
    }
    if !input.sandbox.sysctls.is_empty() {
        // They belong to the pod's namespaces, which the container joins: writing them again changes nothing.
        linux["sysctl"] = json!(input.sandbox.sysctls);
    }
    Ok(json!({
        "ociVersion": "1.2.0",
        "root": { "path": input.rootfs, "readonly": security.readonly_rootfs },
        "process": process(input)?,
        "mounts": mounts(input),
        "linux": linux,
        "annotations": container.annotations,
    }))
}

fn process(input: &Input<'_>) -> Result<Value, SpecError> {
    let container = input.container;
    let image = input.image.config().clone().unwrap_or_default();
    let args = arguments(container, &image)?;
    let capabilities = capabilities(container)?;
    let cwd = container
        .working_dir
        .clone()
        .filter(|dir| !dir.is_empty())
        .or_else(|| image.working_dir().clone().filter(|dir| !dir.is_empty()))
        .unwrap_or_else(|| "/".to_owned());
    let mut process = json!({
        "terminal": container.tty,
        "user": {
            "uid": input.identity.uid,
            "gid": input.identity.gid,
            "additionalGids": input.identity.groups,
        },
        "args": args,
        "env": environment(container, image.env().as_deref().unwrap_or_default(), input),
        "cwd": cwd,
        "noNewPrivileges": container.security.no_new_privs,
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities,
            "permitted": capabilities,
            "inheritable": [],
            "ambient": [],
        },
    });
    if let Some(profile) = &container.security.apparmor {
        process["apparmorProfile"] = json!(profile);
    }
    if let Some(score) = container.resources.oom_score_adj {
        process["oomScoreAdj"] = score.into();
    }
    Ok(process)
}

fn arguments(
    container: &ContainerConfig,
    image: &oci_spec::image::Config,
) -> Result<Vec<String>, SpecError> {
    let mut args = container.command.clone();
    if args.is_empty() {
        args = image.entrypoint().clone().unwrap_or_default();
        if container.args.is_empty() {
            args.extend(image.cmd().clone().unwrap_or_default());
        }
    }
    args.extend(container.args.iter().cloned());
    if args.is_empty() {
        Err(SpecError::NoCommand)
    } else {
        Ok(args)
    }
}

/// The image's variables, then the pod's; a later one of the same name replaces an earlier one in its place.
fn environment(container: &ContainerConfig, image: &[String], input: &Input<'_>) -> Vec<String> {
    let mut variables: Vec<(String, String)> = Vec::new();
    let mut set =
        |name: &str, value: &str| match variables.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => value.clone_into(known),
            None => variables.push((name.to_owned(), value.to_owned())),
        };
    for text in std::iter::once(DEFAULT_PATH).chain(image.iter().map(String::as_str)) {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        set(name, value);
    }
    if !input.sandbox.hostname.is_empty() {
        set("HOSTNAME", &input.sandbox.hostname);
    }
    if container.tty {
        set("TERM", "xterm");
    }
    for (name, value) in &container.env {
        set(name, value);
    }
    if !variables.iter().any(|(name, _)| name == "HOME") {
        variables.push(("HOME".to_owned(), input.identity.home.clone()));
    }
    variables
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

fn capabilities(container: &ContainerConfig) -> Result<Vec<String>, SpecError> {
    let security = &container.security;
    if security.privileged {
        return Ok(ALL_CAPABILITIES
            .iter()
            .map(|name| format!("CAP_{name}"))
            .collect());
    }
    let known = |name: &String| -> Result<Vec<&'static str>, SpecError> {
        let upper = name.to_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if short == "ALL" {
            return Ok(ALL_CAPABILITIES.to_vec());
        }
        let found = ALL_CAPABILITIES.iter().find(|one| **one == short);
        found
            .map(|one| vec![*one])
            .ok_or_else(|| SpecError::Capability { name: name.clone() })
    };
    let list = |names: &[String]| -> Result<Vec<&'static str>, SpecError> {
        Ok(names
            .iter()
            .map(known)
            .collect::<Result<Vec<_>, _>>()?
            .concat())
    };
    let (add, drop) = (
        list(&security.add_capabilities)?,
        list(&security.drop_capabilities)?,
    );
    let all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    // "ALL" is taken first, so that single names can be taken out or put back. Source: containerd, WithCapabilities.
    let mut set: Vec<&str> = CAPABILITIES.to_vec();
    if all(&security.add_capabilities) {
        set = ALL_CAPABILITIES.to_vec();
    }
    if all(&security.drop_capabilities) {
        set.clear();
    }
    if !all(&security.add_capabilities) {
        set.extend(
            add.into_iter()
                .filter(|name| !CAPABILITIES.contains(name) || all(&security.drop_capabilities)),
        );
    }
    if !all(&security.drop_capabilities) {
        set.retain(|name| !drop.contains(name));
    }
    Ok(set.into_iter().map(|name| format!("CAP_{name}")).collect())
}

fn namespaces(sandbox: &SandboxConfig, surroundings: &Surroundings) -> Vec<Value> {
    let mut list = vec![json!({ "type": "mount" }), json!({ "type": "cgroup" })];
    if sandbox.namespaces.pid == NamespaceMode::Container {
        list.push(json!({ "type": "pid" }));
    }
    for (kind, pin) in [
        ("pid", &surroundings.pid),
        ("network", &surroundings.network),
        ("ipc", &surroundings.ipc),
        ("uts", &surroundings.uts),
    ] {
        if let Some(path) = pin {
            list.push(json!({ "type": kind, "path": path }));
        }
    }
    list
}

fn mounts(input: &Input<'_>) -> Vec<Value> {
    let privileged = input.container.security.privileged;
    let access = if privileged { "rw" } else { "ro" };
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| {
        json!({
            "destination": destination, "type": kind, "source": source, "options": options,
        })
    };
    let bind = |destination: &str, source: &Path, options: &[&str]| {
        json!({
            "destination": destination, "type": "bind", "source": source, "options": options,
        })
    };
    let mut list = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", access],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        ),
        bind(
            "/dev/shm",
            &input.surroundings.shm,
            &["rbind", "rprivate", "rw", "nosuid", "noexec", "nodev"],
        ),
    ];
    // Read-only roots may not hide that these two are the pod's; a mount of the pod's own at the same place wins.
    let of_pod = [
        (
            "/etc/resolv.conf",
            input.surroundings.resolv_conf.as_deref(),
        ),
        ("/etc/hostname", Some(input.surroundings.hostname.as_path())),
    ];
    let own = |destination: &str| {
        input
            .container
            .mounts
            .iter()
            .any(|mount| mount.container_path == Path::new(destination))
    };
    for (destination, source) in of_pod {
        if let Some(source) = source
            && !own(destination)
        {
            let access = if input.container.security.readonly_rootfs {
                "ro"
            } else {
                "rw"
            };
            list.push(bind(destination, source, &["rbind", "rprivate", access]));
        }
    }
    list.retain(|mount| !mount["destination"].as_str().is_some_and(own));
    // Parents first, so that a mount is not hidden by one above it.
    let of_image = input.volumes.iter().map(|volume| Mount {
        host_path: volume.source.clone(),
        container_path: volume.destination.clone(),
        ..Default::default()
    });
    let mut mounts: Vec<_> = (input.container.mounts.iter().cloned())
        .chain(of_image)
        .collect();
    mounts.sort_by_key(|mount| mount.container_path.components().count());
    for mount in mounts {
        let propagation = match mount.propagation {
            MountPropagation::Private => "rprivate",
            MountPropagation::HostToContainer => "rslave",
            MountPropagation::Bidirectional => "rshared",
        };
        let access = match (mount.readonly, mount.recursive_read_only) {
            (true, true) => "rro",
            (true, false) => "ro",
            (false, _) => "rw",
        };
        let destination = Path::new("/").join(&mount.container_path);
        list.push(json!({
            "destination": destination,
            "type": "bind",
            "source": mount.host_path,
            "options": ["rbind", propagation, access],
        }));
    }
    list
}

fn seccomp(profile: &SeccompProfile, capabilities: &[String]) -> Result<Option<Value>, SpecError> {
    match profile {
        SeccompProfile::Unconfined => Ok(None),
        SeccompProfile::RuntimeDefault => {
            // A capability that the specification's types do not know unlocks no system call either.
            let allowed: Vec<_> = capabilities
                .iter()
                .filter_map(|name| serde_json::from_value(json!(name)).ok())
                .collect();
            let profile = knarr_oci::seccomp::default_profile(&allowed);
            Ok(Some(
                serde_json::to_value(profile).expect("a profile always serialises"),
            ))
        }
        SeccompProfile::Localhost(path) => {
            let failed = |source: std::io::Error| SpecError::Seccomp {
                path: path.clone(),
                source,
            };
            let text = std::fs::read(path).map_err(failed)?;
            serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| failed(error.into()))
        }
    }
}

/// The access rules of the devices cgroup, after "nothing": what every container needs is added by the runtime.
fn devices_allowed(container: &ContainerConfig) -> Result<Vec<Value>, SpecError> {
    if container.security.privileged {
        return Ok(vec![json!({ "allow": true, "access": "rwm" })]);
    }
    let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
    for device in &container.devices {
        let node = node(&device.host_path)?;
        rules.push(json!({
            "allow": true, "type": node.kind, "major": node.major, "minor": node.minor, "access": device.permissions,
        }));
    }
    Ok(rules)
}

fn devices(container: &ContainerConfig) -> Result<Vec<Value>, SpecError> {
    let mut list = Vec::new();
    if container.security.privileged {
        for path in host_devices(Path::new("/dev"))? {
            match node(&path) {
                Ok(node) => list.push(node.describe(&path)),
                // A device that goes away while we look is none of the container's.
                Err(SpecError::Device { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    for device in &container.devices {
        list.push(node(&device.host_path)?.describe(&device.container_path));
    }
    Ok(list)
}

/// The device nodes below `directory`, the host's `/dev`, without those that every container has of its own.
///
/// Links are no devices: followed, they would give one device under each of its names. What containers mount for themselves is
/// skipped, and what LXC and old udev keep there. Source: containerd, pkg/oci/utils_unix.go, `HostDevices`.
///
/// # Errors
///
/// A directory cannot be read.
fn host_devices(directory: &Path) -> Result<Vec<PathBuf>, SpecError> {
    use std::os::unix::fs::FileTypeExt;
    let own = ["null", "zero", "full", "random", "urandom", "tty", "ptmx"];
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(at) = pending.pop() {
        let failed = |source| SpecError::Device {
            path: at.clone(),
            source,
        };
        let entries = match std::fs::read_dir(&at) {
            Ok(entries) => entries,
            // Unplugged while we look.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(failed(error)),
        };
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let kind = match entry.file_type() {
                Ok(kind) => kind,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed(error)),
            };
            let name = entry.file_name();
            let is_one_of = |names: &[&str]| names.iter().any(|one| name == *one);
            if kind.is_dir() {
                if !is_one_of(&["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"]) {
                    pending.push(entry.path());
                }
            } else if (kind.is_char_device() || kind.is_block_device())
                && name != "console"
                // A specification is JSON, which has no other names.
                && name.to_str().is_some()
                && !(at == directory && is_one_of(&own))
            {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

struct Node {
    kind: &'static str,
    major: u32,
    minor: u32,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Node {
    fn describe(&self, path: &Path) -> Value {
        json!({
            "path": path, "type": self.kind, "major": self.major, "minor": self.minor,
            "fileMode": self.mode, "uid": self.uid, "gid": self.gid,
        })
    }
}

fn node(path: &Path) -> Result<Node, SpecError> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let failed = |source: std::io::Error| SpecError::Device {
        path: path.to_owned(),
        source,
    };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    let kind = if metadata.file_type().is_char_device() {
        "c"
    } else if metadata.file_type().is_block_device() {
        "b"
    } else {
        return Err(failed(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "not a device node",
        )));
    };
    Ok(Node {
        kind,
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

/// The `linux.resources` of a specification.
pub fn resources(of: &LinuxResources, devices: Vec<Value>) -> Value {
    let mut value = json!({ "devices": devices });
    let mut set = |section: &str, key: &str, number: Option<Value>| {
        if let Some(number) = number {
            value[section][key] = number;
        }
    };
    set("cpu", "period", of.cpu_period.map(Into::into));
    set("cpu", "quota", of.cpu_quota.map(Into::into));
    set("cpu", "shares", of.cpu_shares.map(Into::into));
    set(
        "cpu",
        "cpus",
        of.cpuset_cpus
            .clone()
            .filter(|cpus| !cpus.is_empty())
            .map(Into::into),
    );
    set(
        "cpu",
        "mems",
        of.cpuset_mems
            .clone()
            .filter(|mems| !mems.is_empty())
            .map(Into::into),
    );
    set("memory", "limit", of.memory_limit.map(Into::into));
    set("memory", "swap", of.memory_swap_limit.map(Into::into));
    set("pids", "limit", of.pids_limit.map(Into::into));
    if !of.hugepage_limits.is_empty() {
        value["hugepageLimits"] = of
            .hugepage_limits
            .iter()
            .map(|(size, limit)| json!({ "pageSize": size, "limit": limit }))
            .collect();
    }
    if !of.unified.is_empty() {
        value["unified"] = json!(of.unified);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SecurityContext;

    fn surroundings() -> Surroundings {
        Surroundings {
            network: Some("/run/net".into()),
            ipc: None,
            uts: Some("/run/uts".into()),
            pid: None,
            shm: "/run/shm".into(),
            resolv_conf: Some("/run/resolv.conf".into()),
            hostname: "/run/hostname".into(),
        }
    }

    fn built(container: &ContainerConfig, image: &str) -> Result<Value, SpecError> {
        let image: ImageConfiguration = serde_json::from_str(image).unwrap();
        let sandbox = SandboxConfig {
            hostname: "pod".into(),
            cgroup_parent: "kubepods/pod1".into(),
            ..Default::default()
        };
        build(&Input {
            id: "c1",
            sandbox: &sandbox,
            container,
            image: &image,
            identity: &Identity {
                home: "/root".into(),
                ..Default::default()
            },
            rootfs: Path::new("/rootfs"),
            surroundings: &surroundings(),
            volumes: &[ImageVolume {
                source: "/c/volumes/0".into(),
                destination: "/data".into(),
            }],
        })
    }

    const IMAGE: &str = r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},
        "config":{"Entrypoint":["/entry"],"Cmd":["default"],"Env":["PATH=/bin","A=image"],"WorkingDir":"/work"}}"#;

    #[test]
    fn command_and_arguments_replace_the_images_as_kubernetes_says() {
        let args = |command: &[&str], args: &[&str]| {
            let container = ContainerConfig {
                command: command.iter().map(|s| (*s).to_owned()).collect(),
                args: args.iter().map(|s| (*s).to_owned()).collect(),
                ..Default::default()
            };
            built(&container, IMAGE).unwrap()["process"]["args"].clone()
        };
        assert_eq!(args(&[], &[]), json!(["/entry", "default"]));
        assert_eq!(args(&[], &["x"]), json!(["/entry", "x"]));
        assert_eq!(args(&["/c"], &[]), json!(["/c"]));
        assert_eq!(args(&["/c"], &["x"]), json!(["/c", "x"]));
        let empty =
            r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        assert!(matches!(
            built(&ContainerConfig::default(), empty),
            Err(SpecError::NoCommand)
        ));
    }

    #[test]
    fn the_pods_environment_wins_over_the_images() {
        let container = ContainerConfig {
            env: vec![("A".into(), "pod".into())],
            ..Default::default()
        };
        let spec = built(&container, IMAGE).unwrap();
        assert_eq!(
            spec["process"]["env"],
            json!(["PATH=/bin", "A=pod", "HOSTNAME=pod", "HOME=/root"])
        );
        assert_eq!(spec["process"]["cwd"], "/work");
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let of = |add: &[&str], drop: &[&str]| {
            let list = |names: &[&str]| names.iter().map(|s| (*s).to_owned()).collect();
            let security = SecurityContext {
                add_capabilities: list(add),
                drop_capabilities: list(drop),
                ..Default::default()
            };
            capabilities(&ContainerConfig {
                security,
                ..Default::default()
            })
        };
        assert_eq!(of(&[], &[]).unwrap().len(), 14);
        assert_eq!(of(&[], &["ALL"]).unwrap(), Vec::<String>::new());
        assert_eq!(
            of(&["NET_BIND_SERVICE"], &["ALL"]).unwrap(),
            ["CAP_NET_BIND_SERVICE"]
        );
        assert_eq!(of(&["ALL"], &["SYS_ADMIN"]).unwrap().len(), 40);
        assert!(
            of(&["sys_time"], &[])
                .unwrap()
                .contains(&"CAP_SYS_TIME".to_owned())
        );
        assert!(matches!(
            of(&["NONSENSE"], &[]),
            Err(SpecError::Capability { .. })
        ));
    }

    #[test]
    fn a_mount_of_the_pods_replaces_a_default_one() {
        let mount = Mount {
            host_path: "/host".into(),
            container_path: "/dev/shm".into(),
            ..Default::default()
        };
        let spec = built(
            &ContainerConfig {
                mounts: vec![mount],
                ..Default::default()
            },
            IMAGE,
        )
        .unwrap();
        let shm: Vec<_> = spec["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|m| m["destination"] == "/dev/shm")
            .collect();
        assert_eq!(shm.len(), 1);
        assert_eq!(shm[0]["source"], "/host");
    }

    #[test]
    fn volumes_of_the_image_are_mounted_writable_below_the_pods_mounts() {
        let mount = |path: &str| Mount {
            host_path: "/host".into(),
            container_path: path.into(),
            ..Default::default()
        };
        let security = SecurityContext {
            readonly_rootfs: true,
            ..Default::default()
        };
        let container = ContainerConfig {
            mounts: vec![mount("/data/below"), mount("/x")],
            security,
            ..Default::default()
        };
        let spec = built(&container, IMAGE).unwrap();
        let mounts = spec["mounts"].as_array().unwrap();
        let at = |path: &str| {
            mounts
                .iter()
                .position(|m| m["destination"] == path)
                .unwrap()
        };
        assert!(at("/data") < at("/data/below"));
        let volume = &mounts[at("/data")];
        assert_eq!(volume["source"], "/c/volumes/0");
        assert_eq!(volume["options"], json!(["rbind", "rprivate", "rw"]));
    }

    #[test]
    fn a_privileged_container_is_not_confined() {
        let security = SecurityContext {
            privileged: true,
            ..Default::default()
        };
        let spec = built(
            &ContainerConfig {
                security,
                ..Default::default()
            },
            IMAGE,
        )
        .unwrap();
        assert_eq!(spec["linux"].get("maskedPaths"), None);
        assert_eq!(spec["linux"].get("seccomp"), None);
        assert_eq!(
            spec["linux"]["resources"]["devices"],
            json!([{ "allow": true, "access": "rwm" }])
        );
    }

    #[test]
    fn host_devices_are_found_in_directories_and_links_are_none() {
        use nix::sys::stat::{Mode, SFlag, makedev, mknod};
        let dir = tempfile::tempdir().unwrap();
        let dev = dir.path();
        for sub in [
            "net",
            "snd/by-path",
            "pts",
            "shm",
            "fd",
            "mqueue",
            ".lxc",
            ".lxd-mounts",
            ".udev/x",
        ] {
            std::fs::create_dir_all(dev.join(sub)).unwrap();
        }
        let make = |name: &str, kind| {
            let mode = Mode::from_bits_truncate(0o600);
            mknod(&dev.join(name), kind, mode, makedev(1, 3)).unwrap();
        };
        for name in [
            "net/tun",
            "snd/timer",
            "kmsg",
            "null",
            "tty",
            "ptmx",
            "console",
            "snd/console",
            "snd/null",
            "pts/0",
            "shm/d",
            "fd/d",
            "mqueue/d",
            ".lxc/d",
            ".lxd-mounts/d",
            ".udev/x/d",
        ] {
            make(name, SFlag::S_IFCHR);
        }
        make("sda", SFlag::S_IFBLK);
        make("initctl", SFlag::S_IFIFO);
        std::fs::write(dev.join("file"), "").unwrap();
        for (link, target) in [
            ("stdin", "kmsg"),
            ("snd/by-path/card", "../timer"),
            ("loop", "."),
        ] {
            std::os::unix::fs::symlink(target, dev.join(link)).unwrap();
        }
        let found: Vec<_> = host_devices(dev)
            .unwrap()
            .iter()
            .map(|path| path.strip_prefix(dev).unwrap().display().to_string())
            .collect();
        assert_eq!(found, ["kmsg", "net/tun", "sda", "snd/null", "snd/timer"]);
    }
}
