//! `spec`: an example configuration to start from.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use knarr_oci::cgroup::Layout;
use serde_json::{Value, json};

/// Writing an example configuration.
#[derive(Debug, Args)]
pub(super) struct Spec {
    /// The directory to write config.json to.
    #[arg(long, short, default_value = ".", value_name = "DIR")]
    bundle: PathBuf,
    /// For an ordinary user.
    #[arg(long)]
    rootless: bool,
}

/// Writes `config.json`; never over one that is there.
pub(super) fn write(args: &Spec) -> anyhow::Result<u8> {
    let path = args.bundle.join("config.json");
    let what = || format!("write {}", path.display());
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(what)?;
    let unified = Layout::detect()?.is_unified();
    let text = serde_json::to_string_pretty(&document(args.rootless, unified))?;
    writeln!(file, "{text}").with_context(what)?;
    Ok(0)
}

/// `unified`: for a host with cgroup v2 only.
fn document(rootless: bool, unified: bool) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let mount = |destination: &str, typ: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": typ, "source": source, "options": options });
    let hardened = ["nosuid", "noexec", "nodev"];
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &[]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &hardened),
    ];
    let mut pts = vec![
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
    ];
    if rootless {
        mounts.push(mount(
            "/sys",
            "none",
            "/sys",
            &["rbind", "nosuid", "noexec", "nodev", "ro"],
        ));
    } else {
        pts.push("gid=5");
        mounts.push(mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", "ro"],
        ));
        let options = ["nosuid", "noexec", "nodev", "relatime", "ro"];
        mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &options));
    }
    mounts.insert(2, mount("/dev/pts", "devpts", "devpts", &pts));
    let mut kinds = vec!["pid", "ipc", "uts", "mount"];
    kinds.push(if rootless { "user" } else { "network" });
    if unified {
        // On v1 nobody expects one, and a configuration that adds it would have it twice.
        kinds.push("cgroup");
    }
    let namespaces: Vec<Value> = kinds.iter().map(|kind| json!({ "type": kind })).collect();
    let mut linux = json!({
        "namespaces": namespaces,
        "maskedPaths": [
            "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
            "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/sys/devices/virtual/powercap", "/proc/scsi",
        ],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    });
    if rootless {
        let map = |id: u32| json!([{ "containerID": 0, "hostID": id, "size": 1 }]);
        linux["uidMappings"] = map(nix::unistd::geteuid().as_raw());
        linux["gidMappings"] = map(nix::unistd::getegid().as_raw());
    } else {
        linux["resources"] = json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    }
    json!({
        "ociVersion": knarr_oci::state::OCI_VERSION,
        "process": {
            "terminal": true,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "knarr",
        "mounts": mounts,
        "linux": linux,
    })
}

#[cfg(test)]
mod tests {
    use super::document;

    #[test]
    fn the_example_is_a_configuration() {
        for (rootless, unified) in [(false, false), (true, false), (false, true)] {
            let document = document(rootless, unified);
            let spec: oci_spec::runtime::Spec = serde_json::from_value(document).unwrap();
            assert!(spec.process().is_some());
            let text = format!("{:?}", spec.linux());
            assert_eq!(text.contains("typ: Cgroup"), unified, "{text}");
        }
    }
}
