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
    cpu(resources, &mut writes);
    if let Some(pids) = resources.pids().as_ref().filter(|pids| pids.limit() != 0) {
        writes.push(Write1::new(
            "pids",
            "pids.max",
            max(pids.limit()),
            "linux.resources.pids.limit",
        ));
    }
    io(resources, &mut writes);
    for limit in resources.hugepage_limits().as_deref().unwrap_or_default() {
        let file = format!("hugetlb.{}.max", limit.page_size());
        writes.push(Write1::new(
            "hugetlb",
            file,
            limit.limit(),
            "linux.resources.hugepageLimits",
        ));
    }
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
        if file.contains('/') || file.starts_with("cgroup.") && file != "cgroup.max.depth" {
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
    if let Some(swap) = memory.swap().filter(|value| *value != 0) {
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

fn cpu(resources: &LinuxResources, writes: &mut Vec<Write1>) {
    let Some(cpu) = resources.cpu() else { return };
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
    if let Some(burst) = cpu.burst() {
        writes.push(Write1::new(
            "cpu",
            "cpu.max.burst",
            burst,
            "linux.resources.cpu.burst",
        ));
    }
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
}

/// Shares (2 to 262144) to a weight (1 to 10000), linearly, as Kubernetes and the runtimes agreed.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// blkio's weight (10 to 1000) to io's (1 to 10000), linearly, as the runtimes agreed.
fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.clamp(10, 1000) - 10) * 9999 / 990
}

fn io(resources: &LinuxResources, writes: &mut Vec<Write1>) {
    let Some(io) = resources.block_io() else {
        return;
    };
    let mut set = |file: &str, value: String| {
        writes.push(Write1::new("io", file, value, "linux.resources.blockIO"));
    };
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        set("io.bfq.weight", weight.to_string());
    }
    for device in io.weight_device().as_deref().unwrap_or_default() {
        if let Some(weight) = device.weight() {
            set(
                "io.weight",
                format!(
                    "{}:{} {}",
                    device.major(),
                    device.minor(),
                    io_weight(weight)
                ),
            );
        }
    }
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
        assert_eq!(writes(r#"{"cpu":{"shares":1024}}"#), ["cpu.weight=39"]);
        assert_eq!(writes(r#"{"pids":{"limit":-1}}"#), ["pids.max=max"]);
        assert_eq!((weight(2), weight(262_144)), (1, 10_000));
    }

    #[test]
    fn swap_below_memory_is_refused() {
        let resources: LinuxResources =
            serde_json::from_str(r#"{"memory":{"limit":100,"swap":50}}"#).unwrap();
        assert!(plan(&resources).is_err());
    }
}
