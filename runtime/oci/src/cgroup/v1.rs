//! cgroup v1: one hierarchy per controller, each with a group of the same path.
//!
//! Source of files and values: Linux, Documentation/admin-guide/cgroup-v1/.

use std::path::Path;

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources, Spec};

use super::layout::Layout;
use super::{CgroupError, GroupRecord, Write1, make_directories, read, write};

/// The hierarchies in which every container gets a group, where the host has them: for isolation (devices), for
/// accounting, and for the freezer. The others only if the configuration asks for something of theirs, or lets the container
/// look at them ([`seen`]); cpuset in particular rebuilds the scheduler's domains at every write.
const ALWAYS: [&str; 7] = [
    "devices", "memory", "cpu", "cpuacct", "pids", "blkio", "freezer",
];

/// The hierarchies besides in which a container has a group because it sees groups: cpuset, without which a Java machine
/// takes no notice of any limit (OpenJDK, cgroupSubsystem_linux.cpp); and, where it may write to what it sees, systemd's own,
/// so that a systemd inside does not find itself at the root of the host's.
pub(crate) fn seen(spec: &Spec) -> &'static [&'static str] {
    let mounts = spec.mounts().iter().flatten();
    let seen = mounts.filter(|mount| mount.destination().starts_with("/sys/fs/cgroup"));
    let writable = seen.map(|mount| !mount.options().iter().flatten().any(|word| word == "ro"));
    match writable.max() {
        None => &[],
        Some(false) => &["cpuset"],
        Some(true) => &["cpuset", "name=systemd"],
    }
}

/// Makes the group in all of [`controllers`].
pub(super) fn create(
    record: &mut GroupRecord,
    layout: &Layout,
    relative: &Path,
    resources: Option<&LinuxResources>,
    more: &[&'static str],
) -> Result<(), CgroupError> {
    for controller in controllers(layout, resources, more)? {
        enter(record, layout, relative, controller)?;
    }
    Ok(())
}

/// Those of [`ALWAYS`] and of `more` that the host has, and those that `resources` needs.
pub(super) fn controllers(
    layout: &Layout,
    resources: Option<&LinuxResources>,
    more: &[&'static str],
) -> Result<Vec<&'static str>, CgroupError> {
    let mut wanted: Vec<_> = ALWAYS
        .iter()
        .chain(more)
        .copied()
        .filter(|controller| layout.v1_root(controller).is_some())
        .collect();
    let Some(resources) = resources else {
        return Ok(wanted);
    };
    for write in plan(resources, &|_| None)? {
        if !wanted.contains(&write.controller) {
            if layout.v1_root(write.controller).is_none() {
                return Err(missing(&write));
            }
            wanted.push(write.controller);
        }
    }
    Ok(wanted)
}

/// Makes the group in one more hierarchy, for a limit that is set later, and moves its processes there.
pub(super) fn add(
    record: &mut GroupRecord,
    layout: &Layout,
    order: &Write1,
) -> Result<(), CgroupError> {
    if layout.v1_root(order.controller).is_none() {
        return Err(missing(order));
    }
    let members = super::Group::from_record(record.clone()).processes()?;
    let relative = record
        .path
        .strip_prefix("/")
        .unwrap_or(&record.path)
        .to_owned();
    enter(record, layout, &relative, order.controller)?;
    let procs = record.directories[order.controller].join("cgroup.procs");
    for pid in members {
        match write(&procs, &pid.to_string()) {
            // It ended meanwhile.
            Err(CgroupError::Write { source, .. })
                if source.raw_os_error() == Some(libc::ESRCH) => {}
            done => done?,
        }
    }
    Ok(())
}

fn missing(order: &Write1) -> CgroupError {
    CgroupError::NoController {
        controller: order.controller.to_owned(),
        wanted_by: order.wanted_by.to_owned(),
    }
}

fn enter(
    record: &mut GroupRecord,
    layout: &Layout,
    relative: &Path,
    controller: &str,
) -> Result<(), CgroupError> {
    let Some(root) = layout.v1_root(controller) else {
        return Ok(());
    };
    let leaf = make_directories(root, relative, &mut record.made, &mut |directory, _| {
        if controller == "cpuset" {
            inherit_cpuset(directory)
        } else {
            Ok(())
        }
    })?;
    record.directories.insert(controller.to_owned(), leaf);
    Ok(())
}

/// A new cpuset is empty, and refuses processes until it has processors and memory nodes.
fn inherit_cpuset(directory: &Path) -> Result<(), CgroupError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let own = directory.join(file);
        if read(&own)?.trim().is_empty()
            && let Some(parent) = directory.parent()
        {
            write(&own, read(&parent.join(file))?.trim())?;
        }
    }
    Ok(())
}

/// From resources to writes, in an order that the kernel takes; `current` reads a number from the memory group.
pub(super) fn plan(
    resources: &LinuxResources,
    current: &dyn Fn(&str) -> Option<i64>,
) -> Result<Vec<Write1>, CgroupError> {
    let mut writes = Vec::new();
    if let Some(rules) = resources
        .devices()
        .as_deref()
        .filter(|rules| !rules.is_empty())
    {
        writes.extend(device_writes(rules));
    }
    memory(resources, current, &mut writes);
    cpu(resources, &mut writes);
    if let Some(pids) = resources.pids().as_ref().filter(|pids| pids.limit() != 0) {
        let value = if pids.limit() > 0 {
            pids.limit().to_string()
        } else {
            "max".into()
        };
        writes.push(Write1::new(
            "pids",
            "pids.max",
            value,
            "linux.resources.pids.limit",
        ));
    }
    block_io(resources, &mut writes);
    super::v2::hugetlb(resources, "limit_in_bytes", &mut writes)?;
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id() {
            writes.push(Write1::new(
                "net_cls",
                "net_cls.classid",
                class,
                "linux.resources.network.classID",
            ));
        }
        for priority in network.priorities().as_deref().unwrap_or_default() {
            let value = format!("{} {}", priority.name(), priority.priority());
            writes.push(Write1::new(
                "net_prio",
                "net_prio.ifpriomap",
                value,
                "linux.resources.network.priorities",
            ));
        }
    }
    for (device, limits) in resources.rdma().iter().flatten() {
        let value = super::v2::rdma(device, limits);
        writes.push(Write1::new(
            "rdma",
            "rdma.max",
            value,
            "linux.resources.rdma",
        ));
    }
    if resources
        .unified()
        .as_ref()
        .is_some_and(|unified| !unified.is_empty())
    {
        return Err(CgroupError::WrongVersion {
            what: "linux.resources.unified".into(),
            version: "v1",
        });
    }
    Ok(writes)
}

fn memory(
    resources: &LinuxResources,
    current: &dyn Fn(&str) -> Option<i64>,
    writes: &mut Vec<Write1>,
) {
    const LIMIT: &str = "memory.limit_in_bytes";
    const SWAP: &str = "memory.memsw.limit_in_bytes";
    let Some(memory) = resources.memory() else {
        return;
    };
    let at = |field: &'static str| field;
    let limit = memory.limit().filter(|limit| *limit != 0);
    // Lifting the limit of memory and leaving the one of both would be refused.
    let swap = memory
        .swap()
        .filter(|swap| *swap != 0)
        .or(if limit == Some(-1) { Some(-1) } else { None });
    let mut set_limit =
        limit.map(|limit| Write1::new("memory", LIMIT, limit, at("linux.resources.memory.limit")));
    let mut set_swap = swap.map(|swap| {
        let mut order = Write1::new("memory", SWAP, swap, at("linux.resources.memory.swap"));
        // Without swap accounting in the kernel, "no swap" and "no limit" hold anyway.
        order.optional = swap == -1 || limit == Some(swap);
        order
    });
    // memory <= memory+swap must hold after each write: raise the sum first, or lower the memory first.
    let raise = match (swap, current(LIMIT)) {
        (Some(-1), _) => true,
        (Some(swap), Some(now)) => swap > now,
        _ => false,
    };
    if raise {
        writes.extend(set_swap.take());
        writes.extend(set_limit.take());
    } else {
        writes.extend(set_limit.take());
        writes.extend(set_swap.take());
    }
    if let Some(reservation) = memory.reservation().filter(|value| *value != 0) {
        writes.push(Write1::new(
            "memory",
            "memory.soft_limit_in_bytes",
            reservation,
            "linux.resources.memory.reservation",
        ));
    }
    if let Some(tcp) = memory.kernel_tcp().filter(|value| *value != 0) {
        let mut order = Write1::new(
            "memory",
            "memory.kmem.tcp.limit_in_bytes",
            tcp,
            "linux.resources.memory.kernelTCP",
        );
        // Going away: kernels without it ignore it, as runc does everywhere.
        order.optional = true;
        writes.push(order);
    }
    if let Some(swappiness) = memory.swappiness() {
        writes.push(Write1::new(
            "memory",
            "memory.swappiness",
            swappiness,
            "linux.resources.memory.swappiness",
        ));
    }
    if memory.disable_oom_killer() == Some(true) {
        writes.push(Write1::new(
            "memory",
            "memory.oom_control",
            1,
            "linux.resources.memory.disableOOMKiller",
        ));
    }
    if memory.use_hierarchy() == Some(true) {
        let mut order = Write1::new(
            "memory",
            "memory.use_hierarchy",
            1,
            "linux.resources.memory.useHierarchy",
        );
        // Since Linux 5.11 it is always so, and writing may be refused.
        order.optional = true;
        writes.push(order);
    }
}

fn cpu(resources: &LinuxResources, writes: &mut Vec<Write1>) {
    let Some(cpu) = resources.cpu() else { return };
    let mut set = |controller, file: &str, value: Option<String>, wanted_by| {
        if let Some(value) = value {
            writes.push(Write1::new(controller, file, value, wanted_by));
        }
    };
    let text = |value: Option<u64>| {
        value
            .filter(|value| *value != 0)
            .map(|value| value.to_string())
    };
    let signed = |value: Option<i64>| {
        value
            .filter(|value| *value != 0)
            .map(|value| value.to_string())
    };
    set(
        "cpu",
        "cpu.idle",
        cpu.idle().map(|value| value.to_string()),
        "linux.resources.cpu.idle",
    );
    // An idle group has no shares to set.
    if cpu.idle() != Some(1) {
        set(
            "cpu",
            "cpu.shares",
            text(cpu.shares()),
            "linux.resources.cpu.shares",
        );
    }
    // A shorter period may need a smaller quota first, and the other way round; and the burst is at most the quota. So the
    // first ones are tried, and repeated in the end.
    let period = text(cpu.period()).filter(|_| cpu.quota().is_some());
    let burst = cpu.burst().map(|value| value.to_string());
    let early = [
        ("cpu.cfs_burst_us", &burst, "linux.resources.cpu.burst"),
        ("cpu.cfs_period_us", &period, "linux.resources.cpu.period"),
    ];
    for (file, value, wanted_by) in early {
        let order = value
            .as_ref()
            .map(|value| Write1::new("cpu", file, value, wanted_by).first_try());
        writes.extend(order);
    }
    let mut set = |controller, file: &str, value: Option<String>, wanted_by| {
        if let Some(value) = value {
            writes.push(Write1::new(controller, file, value, wanted_by));
        }
    };
    set(
        "cpu",
        "cpu.cfs_quota_us",
        signed(cpu.quota()),
        "linux.resources.cpu.quota",
    );
    set(
        "cpu",
        "cpu.cfs_period_us",
        text(cpu.period()),
        "linux.resources.cpu.period",
    );
    set(
        "cpu",
        "cpu.cfs_burst_us",
        burst,
        "linux.resources.cpu.burst",
    );
    // Shorter than the runtime that is in force, a period is refused; and a runtime that is longer than the period is, too.
    if cpu.realtime_period().is_some() {
        let runtime = signed(cpu.realtime_runtime());
        let wanted_by = "linux.resources.cpu.realtimeRuntime";
        let early = runtime
            .map(|value| Write1::new("cpu", "cpu.rt_runtime_us", value, wanted_by).first_try());
        writes.extend(early);
    }
    let mut set = |controller, file: &str, value: Option<String>, wanted_by| {
        if let Some(value) = value {
            writes.push(Write1::new(controller, file, value, wanted_by));
        }
    };
    set(
        "cpu",
        "cpu.rt_period_us",
        text(cpu.realtime_period()),
        "linux.resources.cpu.realtimePeriod",
    );
    set(
        "cpu",
        "cpu.rt_runtime_us",
        signed(cpu.realtime_runtime()),
        "linux.resources.cpu.realtimeRuntime",
    );
    let list = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
    set(
        "cpuset",
        "cpuset.cpus",
        list(cpu.cpus()),
        "linux.resources.cpu.cpus",
    );
    set(
        "cpuset",
        "cpuset.mems",
        list(cpu.mems()),
        "linux.resources.cpu.mems",
    );
}

fn block_io(resources: &LinuxResources, writes: &mut Vec<Write1>) {
    let Some(io) = resources.block_io() else {
        return;
    };
    // BFQ's files, or those of CFQ, which kernels before 5.0 had.
    let number = |value: Option<u16>| value.filter(|value| *value != 0);
    if let Some(weight) = number(io.weight()) {
        let order = Write1::new(
            "blkio",
            "blkio.bfq.weight",
            weight,
            "linux.resources.blockIO.weight",
        );
        writes.push(order.or("blkio.weight", weight));
    }
    if let Some(weight) = number(io.leaf_weight()) {
        writes.push(Write1::new(
            "blkio",
            "blkio.leaf_weight",
            weight,
            "linux.resources.blockIO.leafWeight",
        ));
    }
    for device in io.weight_device().as_deref().unwrap_or_default() {
        let value = |weight| format!("{}:{} {weight}", device.major(), device.minor());
        if let Some(weight) = number(device.weight()) {
            let order = Write1::new(
                "blkio",
                "blkio.bfq.weight_device",
                value(weight),
                "linux.resources.blockIO.weightDevice",
            );
            writes.push(order.or("blkio.weight_device", value(weight)));
        }
        if let Some(weight) = number(device.leaf_weight()) {
            writes.push(Write1::new(
                "blkio",
                "blkio.leaf_weight_device",
                value(weight),
                "linux.resources.blockIO.weightDevice",
            ));
        }
    }
    let mut set = |file: &str, value: String| {
        writes.push(Write1::new("blkio", file, value, "linux.resources.blockIO"));
    };
    let throttles = [
        (
            "blkio.throttle.read_bps_device",
            io.throttle_read_bps_device(),
        ),
        (
            "blkio.throttle.write_bps_device",
            io.throttle_write_bps_device(),
        ),
        (
            "blkio.throttle.read_iops_device",
            io.throttle_read_iops_device(),
        ),
        (
            "blkio.throttle.write_iops_device",
            io.throttle_write_iops_device(),
        ),
    ];
    for (file, devices) in throttles {
        for device in devices.as_deref().unwrap_or_default() {
            set(
                file,
                format!("{}:{} {}", device.major(), device.minor(), device.rate()),
            );
        }
    }
}

/// The configuration's rules in their order, then what every container may use.
fn device_writes(rules: &[LinuxDeviceCgroup]) -> Vec<Write1> {
    let mut writes = Vec::with_capacity(rules.len() + super::devices::DEFAULT_RULES.len());
    for rule in rules {
        let file = if rule.allow() {
            "devices.allow"
        } else {
            "devices.deny"
        };
        writes.push(Write1::new(
            "devices",
            file,
            super::devices::v1_rule(rule),
            "linux.resources.devices",
        ));
    }
    // Where all is allowed still, the defaults are too.
    if rules.iter().any(|rule| !rule.allow()) {
        for rule in super::devices::DEFAULT_RULES {
            writes.push(Write1::new(
                "devices",
                "devices.allow",
                rule,
                "default devices",
            ));
        }
    }
    writes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writes(json: &str, now: Option<i64>) -> Vec<String> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        let plan = plan(&resources, &|_| now).unwrap();
        plan.iter()
            .map(|write| format!("{}={}", write.file, write.value))
            .collect()
    }

    #[test]
    fn memory_and_swap_are_written_in_an_order_the_kernel_takes() {
        let raised = writes(r#"{"memory":{"limit":200,"swap":400}}"#, Some(100));
        assert_eq!(
            raised,
            [
                "memory.memsw.limit_in_bytes=400",
                "memory.limit_in_bytes=200"
            ]
        );
        let fresh = writes(r#"{"memory":{"limit":200,"swap":400}}"#, Some(i64::MAX));
        assert_eq!(
            fresh,
            [
                "memory.limit_in_bytes=200",
                "memory.memsw.limit_in_bytes=400"
            ]
        );
        let lifted = writes(r#"{"memory":{"limit":-1}}"#, Some(100));
        assert_eq!(
            lifted,
            ["memory.memsw.limit_in_bytes=-1", "memory.limit_in_bytes=-1"]
        );
    }

    #[test]
    fn device_rules_keep_their_order_and_the_defaults_come_last() {
        let rules = writes(
            r#"{"devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"access":"r"}]}"#,
            None,
        );
        assert_eq!(rules[0], "devices.deny=a *:* rwm");
        assert_eq!(rules[1], "devices.allow=c 10:* r");
        assert!(rules.contains(&"devices.allow=c 1:3 rwm".to_owned()));
    }

    #[test]
    fn every_controller_has_its_files() {
        assert_eq!(
            writes(
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":1}],"network":{"classID":7,"priorities":[{"name":"lo","priority":3}]},"rdma":{"mlx5_1":{"hcaHandles":3}}}"#,
                None
            ),
            [
                "hugetlb.2MB.limit_in_bytes=1",
                "hugetlb.2MB.rsvd.limit_in_bytes=1",
                "net_cls.classid=7",
                "net_prio.ifpriomap=lo 3",
                "rdma.max=mlx5_1 hca_handle=3 hca_object=max",
            ]
        );
        assert_eq!(
            writes(r#"{"cpu":{"period":1000,"quota":500,"burst":5}}"#, None),
            [
                "cpu.cfs_burst_us=5",
                "cpu.cfs_period_us=1000",
                "cpu.cfs_quota_us=500",
                "cpu.cfs_period_us=1000",
                "cpu.cfs_burst_us=5",
            ]
        );
    }

    #[test]
    fn zero_and_minus_one_mean_what_they_mean_for_runc() {
        assert_eq!(writes(r#"{"pids":{"limit":-1}}"#, None), ["pids.max=max"]);
        assert!(
            writes(
                r#"{"pids":{"limit":0},"cpu":{"shares":0},"memory":{"limit":0}}"#,
                None
            )
            .is_empty()
        );
    }
}
