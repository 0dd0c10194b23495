//! What an unprivileged container does not see of the machine, and what it sees and cannot change.

use std::path::Path;
use std::sync::LazyLock;

/// Kubernetes' own, as the kubelet gives them to a runtime. Source: kubernetes, pkg/securitycontext, `defaultMaskedPaths`.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    // How much power the machine takes tells what is computed on it (CVE-2020-8694).
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Where each processor counts how often it was throttled, which tells of other containers as well.
const PROCESSORS: &str = "/sys/devices/system/cpu";

/// All masked paths of this machine, whose processors do not change.
pub fn masked() -> &'static [String] {
    static PATHS: LazyLock<Vec<String>> = LazyLock::new(|| {
        let fixed = MASKED.into_iter().map(str::to_owned);
        fixed.chain(throttles(Path::new(PROCESSORS))).collect()
    });
    &PATHS
}

/// The counters of those processors in a directory that have them.
fn throttles(directory: &Path) -> Vec<String> {
    // Without sysfs there is nothing to hide.
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let counters = entries.map(|entry| entry.path().join("thermal_throttle"));
    let mut paths: Vec<String> = counters
        .filter(|path| path.exists())
        .filter_map(|path| Some(path.to_str()?.to_owned()))
        .collect();
    paths.sort();
    paths
}

/// What only the host may change.
pub const READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_power_and_the_heat_of_the_machine_are_hidden() {
        assert!(masked().contains(&"/sys/devices/virtual/powercap".to_owned()));
        let machine = tempfile::tempdir().unwrap();
        for name in [
            "cpu0/thermal_throttle",
            "cpu1/topology",
            "cpu2/thermal_throttle",
            "cpufreq",
        ] {
            std::fs::create_dir_all(machine.path().join(name)).unwrap();
        }
        let counter = |name: &str| machine.path().join(name).to_str().unwrap().to_owned();
        assert_eq!(
            throttles(machine.path()),
            [
                counter("cpu0/thermal_throttle"),
                counter("cpu2/thermal_throttle")
            ]
        );
        assert_eq!(throttles(Path::new("/nowhere")), Vec::<String>::new());
    }
}
