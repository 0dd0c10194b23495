//! cgroup v2: one hierarchy for all controllers.
//!
//! Source of files and values: Linux, Documentation/admin-guide/cgroup-v2.rst.

use std::path::Path;

use oci_spec::runtime::{LinuxRdma, LinuxResources};

use super::{CgroupError, GroupRecord, Write1, make_directories, read, write};

/// Makes the group, and enables every available controller in its parents, because limits may be set later.
pub(super) fn create(
    record: &mut GroupRecord,
    root: &Path,
    relative: &Path,
) -> Result<(), CgroupError> {
    enable_controllers(root)?;
    let leaf = make_directories(
        root,
        relative,
        &mut record.made,
        &mut |directory, is_leaf| {
            if is_leaf {
                Ok(())
            } else {
                enable_controllers(directory)
            }
        },
    )?;
    record.directories.insert(String::new(), leaf);
    Ok(())
}

fn enable_controllers(directory: &Path) -> Result<(), CgroupError> {
    let available = read(&directory.join("cgroup.controllers"))?;
    let control = directory.join("cgroup.subtree_control");
    let enabled = read(&control)?;
    for controller in available.split_whitespace() {
        if !enabled.split_whitespace().any(|name| name == controller) {
            // One by one: a controller that cannot be enabled here (cpu beside real-time processes) must not keep the
            // others away. If a limit needs it, its missing file says so.
            let _refused = write(&control, &format!("+{controller}"));
        }
    }
    Ok(())
}

/// From resources to writes.
pub(super) fn plan(resources: &LinuxResources) -> Result<Vec<Write1>, CgroupError> {
    let mut writes = Vec::new();
    memory(resources, &mut writes)?;
    cpu(resources, &mut writes)?;
    if let Some(pids) = resources.pids().as_ref().filter(|pids| pids.limit() != 0) {
        writes.push(Write1::new(
            "pids",
            "pids.max",
            max(pids.limit()),
            "linux.resources.pids.limit",
        ));
    }
    io(resources, &mut writes);
    hugetlb(resources, "max", &mut writes)?;
    for (device, limits) in resources.rdma().iter().flatten() {
        writes.push(Write1::new(
            "rdma",
            "rdma.max",
            rdma(device, limits),
            "linux.resources.rdma",
        ));
    }
    if resources.network().as_ref().is_some_and(|network| {
        network.class_id().is_some_and(|id| id != 0)
            || network
                .priorities()
                .as_ref()
                .is_some_and(|list| !list.is_empty())
    }) {
        return Err(CgroupError::WrongVersion {
            what: "linux.resources.network".into(),
            version: "v2",
        });
    }
    for (file, value) in resources.unified().iter().flatten() {
        // Of the core's own files only those that are limits.
        let core = file.starts_with("cgroup.") && !file.starts_with("cgroup.max.");
        if file.contains('/') || core {
            return Err(CgroupError::WrongVersion {
                what: format!("linux.resources.unified {file:?}"),
                version: "v2",
            });
        }
        // Several lines are several writes, as with io.max.
        for line in value.lines() {
            writes.push(Write1::new(
                "unified",
                file,
                line,
                "linux.resources.unified",
            ));
        }
    }
    Ok(writes)
}

/// Pages in use, and pages set aside (`rsvd`, which a program that maps too many learns of by an error rather than by
/// SIGBUS); not every kernel has the second.
///
/// The page's size becomes part of a file's name, so it can only be what the specification's schema lets through: a number
/// and `KB`, `MB` or `GB`.
pub(super) fn hugetlb(
    resources: &LinuxResources,
    suffix: &str,
    writes: &mut Vec<Write1>,
) -> Result<(), CgroupError> {
    for limit in resources.hugepage_limits().as_deref().unwrap_or_default() {
        let size = limit.page_size();
        let number = ["KB", "MB", "GB"]
            .iter()
            .find_map(|unit| size.strip_suffix(unit));
        if !number.is_some_and(|number| {
            number.starts_with(|first| matches!(first, '1'..='9'))
                && number.bytes().all(|byte| byte.is_ascii_digit())
        }) {
            return Err(CgroupError::Invalid {
                what: format!("linux.resources.hugepageLimits.pageSize {size:?}"),
            });
        }
        for (part, optional) in [("", false), ("rsvd.", true)] {
            let file = format!("hugetlb.{size}.{part}{suffix}");
            writes.push(Write1 {
                optional,
                ..Write1::new(
                    "hugetlb",
                    file,
                    limit.limit(),
                    "linux.resources.hugepageLimits",
                )
            });
        }
    }
    Ok(())
}

/// With `checkBeforeUpdate`: v2 would not refuse a limit below what is used, but kill.
pub(super) fn check_usage(directory: &Path, resources: &LinuxResources) -> Result<(), CgroupError> {
    let Some(memory) = resources
        .memory()
        .filter(|memory| memory.check_before_update() == Some(true))
    else {
        return Ok(());
    };
    let limits = [memory.limit(), memory.swap()];
    let Some(limit) = limits
        .into_iter()
        .flatten()
        .filter(|limit| *limit > 0)
        .min()
    else {
        return Ok(());
    };
    let path = directory.join("memory.current");
    let usage: i64 = read(&path)?.trim().parse().map_err(|_| CgroupError::Read {
        path,
        source: std::io::ErrorKind::InvalidData.into(),
    })?;
    if limit <= usage {
        return Err(CgroupError::BelowUsage { limit, usage });
    }
    Ok(())
}

fn max(value: i64) -> String {
    if value < 0 {
        "max".into()
    } else {
        value.to_string()
    }
}

fn memory(resources: &LinuxResources, writes: &mut Vec<Write1>) -> Result<(), CgroupError> {
    let Some(memory) = resources.memory() else {
        return Ok(());
    };
    let limit = memory.limit().filter(|value| *value != 0);
    // OCI's swap is memory plus swap, the kernel's is swap alone.
    let swap = memory.swap().filter(|value| *value != 0);
    // No limit of memory means none of swap, as on v1, unless one is given.
    let swap = swap.or((limit == Some(-1)).then_some(-1));
    if let Some(swap) = swap {
        let swap_only = match (swap, limit) {
            (-1, _) => -1,
            (swap, Some(limit)) if limit > 0 && swap >= limit => swap - limit,
            _ => {
                let what = format!("linux.resources.memory.swap {swap} with limit {limit:?}");
                return Err(CgroupError::WrongVersion {
                    what,
                    version: "v2",
                });
            }
        };
        let mut order = Write1::new(
            "memory",
            "memory.swap.max",
            max(swap_only),
            "linux.resources.memory.swap",
        );
        // Kernels without swap have no such file, and no swap either.
        order.optional = swap_only <= 0;
        writes.push(order);
    }
    if let Some(limit) = limit {
        writes.push(Write1::new(
            "memory",
            "memory.max",
            max(limit),
            "linux.resources.memory.limit",
        ));
    }
    if let Some(reservation) = memory.reservation().filter(|value| *value != 0) {
        writes.push(Write1::new(
            "memory",
            "memory.low",
            max(reservation),
            "linux.resources.memory.reservation",
        ));
    }
    Ok(())
}

fn cpu(resources: &LinuxResources, writes: &mut Vec<Write1>) -> Result<(), CgroupError> {
    let Some(cpu) = resources.cpu() else {
        return Ok(());
    };
    let realtime = [
        cpu.realtime_runtime().map(|value| value != 0),
        cpu.realtime_period().map(|value| value != 0),
    ];
    if realtime.contains(&Some(true)) {
        return Err(CgroupError::WrongVersion {
            what: "linux.resources.cpu.realtimeRuntime or realtimePeriod".into(),
            version: "v2",
        });
    }
    if let Some(idle) = cpu.idle() {
        writes.push(Write1::new(
            "cpu",
            "cpu.idle",
            idle,
            "linux.resources.cpu.idle",
        ));
    }
    if let Some(shares) = cpu
        .shares()
        .filter(|shares| *shares != 0 && cpu.idle() != Some(1))
    {
        writes.push(Write1::new(
            "cpu",
            "cpu.weight",
            weight(shares),
            "linux.resources.cpu.shares",
        ));
    }
    let burst = cpu
        .burst()
        .map(|burst| Write1::new("cpu", "cpu.max.burst", burst, "linux.resources.cpu.burst"));
    // The burst must never be above the quota.
    writes.extend(burst.iter().map(Write1::first_try));
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let value = format!("{} {}", max(quota.unwrap_or(-1)), period.unwrap_or(100_000));
        writes.push(Write1::new(
            "cpu",
            "cpu.max",
            value,
            "linux.resources.cpu.quota",
        ));
    }
    writes.extend(burst);
    if let Some(cpus) = cpu.cpus().as_deref().filter(|cpus| !cpus.is_empty()) {
        writes.push(Write1::new(
            "cpuset",
            "cpuset.cpus",
            cpus,
            "linux.resources.cpu.cpus",
        ));
    }
    if let Some(mems) = cpu.mems().as_deref().filter(|mems| !mems.is_empty()) {
        writes.push(Write1::new(
            "cpuset",
            "cpuset.mems",
            mems,
            "linux.resources.cpu.mems",
        ));
    }
    Ok(())
}

/// Shares (2 to 262144, by default 1024) to a weight (1 to 10000, by default 100).
///
/// A curve through all three points, as crun and runc have it now; the line through the ends, which was used before, made
/// the default share a weight of 39.
pub(super) fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

/// blkio's weight (10 to 1000) to io's (1 to 10000), linearly, as the runtimes agreed.
pub(super) fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.clamp(10, 1000) - 10) * 9999 / 990
}

fn io(resources: &LinuxResources, writes: &mut Vec<Write1>) {
    let Some(io) = resources.block_io() else {
        return;
    };
    // BFQ takes the numbers as they are; where another scheduler serves the disks, iocost's file takes the weight.
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        let order = Write1::new(
            "io",
            "io.bfq.weight",
            weight,
            "linux.resources.blockIO.weight",
        );
        writes.push(order.or("io.weight", io_weight(weight)));
    }
    for device in io.weight_device().as_deref().unwrap_or_default() {
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            let (major, minor) = (device.major(), device.minor());
            let order = Write1::new(
                "io",
                "io.bfq.weight",
                format!("{major}:{minor} {weight}"),
                "linux.resources.blockIO.weightDevice",
            );
            writes.push(order.or(
                "io.weight",
                format!("{major}:{minor} {}", io_weight(weight)),
            ));
        }
    }
    let mut set = |file: &str, value: String| {
        writes.push(Write1::new("io", file, value, "linux.resources.blockIO"));
    };
    let throttles = [
        ("rbps", io.throttle_read_bps_device()),
        ("wbps", io.throttle_write_bps_device()),
        ("riops", io.throttle_read_iops_device()),
        ("wiops", io.throttle_write_iops_device()),
    ];
    for (key, devices) in throttles {
        for device in devices.as_deref().unwrap_or_default() {
            set(
                "io.max",
                format!(
                    "{}:{} {key}={}",
                    device.major(),
                    device.minor(),
                    device.rate()
                ),
            );
        }
    }
}

/// One device's line of `rdma.max`, the same on both versions.
pub(super) fn rdma(device: &str, limits: &LinuxRdma) -> String {
    let field = |value: Option<u32>| value.map_or("max".to_owned(), |value| value.to_string());
    format!(
        "{device} hca_handle={} hca_object={}",
        field(limits.hca_handles()),
        field(limits.hca_objects())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(json: &str) -> Vec<String> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        plan(&resources)
            .unwrap()
            .iter()
            .map(|write| format!("{}={}", write.file, write.value))
            .collect()
    }

    #[test]
    fn limits_are_translated_to_the_units_of_v2() {
        assert_eq!(
            writes(r#"{"memory":{"limit":100,"swap":150}}"#),
            ["memory.swap.max=50", "memory.max=100"]
        );
        assert_eq!(
            writes(r#"{"memory":{"limit":-1,"swap":-1}}"#),
            ["memory.swap.max=max", "memory.max=max"]
        );
        assert_eq!(
            writes(r#"{"cpu":{"quota":50000}}"#),
            ["cpu.max=50000 100000"]
        );
        assert_eq!(writes(r#"{"cpu":{"shares":1024}}"#), ["cpu.weight=100"]);
        assert_eq!(writes(r#"{"pids":{"limit":-1}}"#), ["pids.max=max"]);
        assert_eq!((weight(2), weight(262_144)), (1, 10_000));
        assert_eq!(
            writes(r#"{"memory":{"limit":-1}}"#),
            ["memory.swap.max=max", "memory.max=max"]
        );
        assert_eq!(
            writes(r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#),
            ["hugetlb.2MB.max=4194304", "hugetlb.2MB.rsvd.max=4194304"]
        );
    }

    #[test]
    fn a_limit_below_what_is_used_is_refused_if_that_is_wanted() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("memory.current"), "1000\n").unwrap();
        let check = |json: &str| {
            let resources: LinuxResources = serde_json::from_str(json).unwrap();
            check_usage(directory.path(), &resources)
        };
        assert!(check(r#"{"memory":{"limit":1001,"checkBeforeUpdate":true}}"#).is_ok());
        assert!(check(r#"{"memory":{"limit":-1,"checkBeforeUpdate":true}}"#).is_ok());
        assert!(check(r#"{"memory":{"limit":5}}"#).is_ok());
        let refused = check(r#"{"memory":{"limit":999,"checkBeforeUpdate":true}}"#);
        assert!(matches!(
            refused,
            Err(CgroupError::BelowUsage {
                limit: 999,
                usage: 1000
            })
        ));
    }

    #[test]
    fn weights_grow_with_shares() {
        let all: Vec<u64> = (2..=262_144).step_by(7).map(weight).collect();
        assert!(all.is_sorted());
        assert!(all.iter().all(|weight| (1..=10_000).contains(weight)));
        assert_eq!((io_weight(10), io_weight(1000)), (1, 10_000));
    }

    #[test]
    fn a_burst_is_tried_before_the_quota_and_demanded_after_it() {
        let resources: LinuxResources =
            serde_json::from_str(r#"{"cpu":{"quota":20000,"burst":10000}}"#).unwrap();
        let plan = plan(&resources).unwrap();
        let seen: Vec<_> = plan
            .iter()
            .map(|write| (write.file.as_str(), write.optional))
            .collect();
        assert_eq!(
            seen,
            [
                ("cpu.max.burst", true),
                ("cpu.max", false),
                ("cpu.max.burst", false)
            ]
        );
    }

    #[test]
    fn what_v2_has_not_is_an_error_and_limits_of_the_core_are_not() {
        let check = |json: &str| {
            let resources: LinuxResources = serde_json::from_str(json).unwrap();
            plan(&resources)
        };
        assert!(check(r#"{"cpu":{"realtimeRuntime":1000}}"#).is_err());
        assert!(check(r#"{"network":{"classID":1}}"#).is_err());
        assert!(check(r#"{"unified":{"cgroup.procs":"1"}}"#).is_err());
        assert!(check(r#"{"unified":{"../memory.max":"1"}}"#).is_err());
        assert!(check(r#"{"unified":{"cgroup.max.descendants":"5"}}"#).is_ok());
        for size in ["", "2", "MB", "/../../x2MB", "02MB", "2TB"] {
            let json = format!(r#"{{"hugepageLimits":[{{"pageSize":"{size}","limit":1}}]}}"#);
            assert!(check(&json).is_err(), "{size}");
        }
    }

    #[test]
    fn a_weight_goes_to_bfq_or_else_to_iocost() {
        let resources: LinuxResources = serde_json::from_str(
            r#"{"blockIO":{"weight":500,"weightDevice":[{"major":8,"minor":0,"weight":10}]}}"#,
        )
        .unwrap();
        let plan = plan(&resources).unwrap();
        assert_eq!(
            (plan[0].file.as_str(), plan[0].value.as_str()),
            ("io.bfq.weight", "500")
        );
        assert_eq!(plan[0].otherwise, Some(("io.weight".into(), "4950".into())));
        assert_eq!(plan[1].value, "8:0 10");
        assert_eq!(
            plan[1].otherwise,
            Some(("io.weight".into(), "8:0 1".into()))
        );
    }

    #[test]
    fn swap_below_memory_is_refused() {
        let resources: LinuxResources =
            serde_json::from_str(r#"{"memory":{"limit":100,"swap":50}}"#).unwrap();
        assert!(plan(&resources).is_err());
    }
}
