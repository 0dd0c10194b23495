//! What the machine is: its size, its system, its identity.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::{NodeSwapStatus, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::config::KubeletConfig;
use crate::ctx::Machine;

/// The version that the node presents itself with.
pub(crate) const VERSION: &str = "v1.37.0+knarr";
/// The runtime's name and version.
pub(crate) const RUNTIME_VERSION: &str = concat!("knarr://", env!("CARGO_PKG_VERSION"));

/// Reads the machine's size.
pub(crate) fn machine() -> Machine {
    let meminfo = read("/proc/meminfo");
    let total = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemTotal:"))
        .and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or(0);
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    Machine {
        cpus,
        memory_bytes: total * 1024,
    }
}

/// Memory that is not available right now, in bytes, over all; for `stats/summary` and conditions.
pub(crate) fn memory_available() -> u64 {
    read("/proc/meminfo")
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))
        .and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn first_line(path: &str) -> String {
    read(path)
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The architecture as Go names it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `status.nodeInfo`.
pub(crate) fn system() -> NodeSystemInfo {
    let os_release = read("/etc/os-release");
    let os_image = os_release
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .map_or_else(|| "Linux".to_owned(), |v| v.trim_matches('"').to_owned());
    let machine_id = [
        first_line("/etc/machine-id"),
        first_line("/var/lib/dbus/machine-id"),
    ]
    .into_iter()
    .find(|id| !id.is_empty())
    .unwrap_or_default();
    let system_uuid = Some(first_line("/sys/class/dmi/id/product_uuid"))
        .filter(|id| !id.is_empty())
        .unwrap_or_else(|| machine_id.clone());
    let swap = read("/proc/meminfo")
        .lines()
        .find_map(|l| l.strip_prefix("SwapTotal:"))
        .and_then(|l| l.trim().trim_end_matches(" kB").parse::<i64>().ok())
        .map(|kib| NodeSwapStatus {
            capacity: Some(kib * 1024),
        });
    NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: first_line("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: RUNTIME_VERSION.to_owned(),
        kernel_version: first_line("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: VERSION.to_owned(),
        machine_id,
        operating_system: "linux".to_owned(),
        os_image,
        system_uuid,
        swap,
        ..NodeSystemInfo::default()
    }
}

/// `status.capacity`.
pub(crate) fn capacity(config: &KubeletConfig, machine: Machine) -> BTreeMap<String, Quantity> {
    let mut map = BTreeMap::from([
        ("cpu".to_owned(), Quantity(machine.cpus.to_string())),
        (
            "memory".to_owned(),
            Quantity(format!("{}Ki", machine.memory_bytes / 1024)),
        ),
        ("pods".to_owned(), Quantity(config.max_pods.to_string())),
        (
            "ephemeral-storage".to_owned(),
            Quantity(format!("{}Ki", disk_bytes(config) / 1024)),
        ),
    ]);
    let pages = fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .flatten();
    for entry in pages {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name
            .trim_start_matches("hugepages-")
            .trim_end_matches("kB")
            .parse::<u64>()
            .ok();
        let count = read(entry.path().join("nr_hugepages"))
            .trim()
            .parse::<u64>()
            .ok();
        let (Some(size), Some(count)) = (size, count) else {
            continue;
        };
        let suffix = if size % (1 << 20) == 0 {
            format!("{}Gi", size >> 20)
        } else {
            format!("{}Mi", size >> 10)
        };
        let amount = size * count;
        let value = if amount == 0 {
            "0".to_owned()
        } else {
            format!("{amount}Ki")
        };
        map.insert(format!("hugepages-{suffix}"), Quantity(value));
    }
    map
}

/// The node's ephemeral storage, in bytes: whole KiB, as the Node's status shows it.
pub(crate) fn disk_bytes(config: &KubeletConfig) -> u64 {
    disk(&config.node_dir).0 / 1024 * 1024
}

/// Size and free space of the disk that a directory is on, in bytes.
pub(crate) fn disk(path: &Path) -> (u64, u64) {
    let existing = path
        .ancestors()
        .find(|p| p.exists())
        .unwrap_or(Path::new("/"));
    nix::sys::statvfs::statvfs(existing).map_or((0, 0), |s| {
        let unit = s.fragment_size();
        (s.blocks() * unit, s.blocks_available() * unit)
    })
}

/// Processes and threads now, and the most that there may be.
pub(crate) fn processes() -> (u64, u64) {
    // `/proc/loadavg`: "0.1 0.2 0.3 running/all last".
    let loadavg = read("/proc/loadavg");
    let all = loadavg
        .split(' ')
        .nth(3)
        .and_then(|f| f.split('/').nth(1))
        .and_then(|n| n.parse().ok());
    let max = |path: &str| first_line(path).parse::<u64>().unwrap_or(u64::MAX);
    let most = max("/proc/sys/kernel/pid_max").min(max("/proc/sys/kernel/threads-max"));
    (all.unwrap_or(0), most)
}

/// CPU time that the whole machine used since its start, in nanoseconds.
pub(crate) fn cpu_ns() -> u64 {
    // `/proc/stat`: "cpu user nice system idle iowait irq softirq steal …", in ticks of 10 ms.
    let stat = read("/proc/stat");
    let fields: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|f| f.parse().ok())
        .collect();
    let idle = fields.get(3).copied().unwrap_or(0) + fields.get(4).copied().unwrap_or(0);
    (fields.iter().sum::<u64>() - idle) * 10_000_000
}

/// This process: resident bytes, CPU seconds, open descriptors.
pub(crate) fn own() -> (u64, f64, usize) {
    let page = 4096;
    let resident = read("/proc/self/statm")
        .split(' ')
        .nth(1)
        .and_then(|v| v.parse::<u64>().ok())
        .unwrap_or(0);
    let stat = read("/proc/self/stat");
    // The second field is the program's name in brackets, which may hold spaces.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|f| f.parse::<u64>().ok())
        .sum();
    let descriptors = fs::read_dir("/proc/self/fd").map_or(0, |d| d.count().saturating_sub(1));
    (resident * page, ticks as f64 / 100.0, descriptors)
}
