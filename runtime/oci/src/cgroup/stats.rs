//! What a group has used.

use std::fs;

use serde::Serialize;

use super::{CgroupError, Group};

/// Numbers of one group. What the host does not count is zero; no limit is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: CpuStats,
    /// Memory.
    pub memory: MemoryStats,
    /// Number of tasks.
    pub pids: PidsStats,
    /// Block devices.
    pub blkio: BlkioStats,
}

/// Processor time, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuStats {
    /// All.
    pub usage_ns: u64,
    /// In user space.
    pub user_ns: u64,
    /// In the kernel.
    pub system_ns: u64,
    /// Periods that have passed with a quota.
    pub periods: u64,
    /// Periods in which the quota ran out.
    pub throttled_periods: u64,
    /// Time spent waiting for the next period.
    pub throttled_ns: u64,
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryStats {
    /// All, page cache included.
    pub usage: u64,
    /// Usage without page cache that could be dropped at once: what Kubernetes calls the working set.
    pub working_set: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Page cache.
    pub cache: u64,
    /// Swap in use.
    pub swap: u64,
    /// The limit.
    pub limit: Option<u64>,
    /// Highest usage seen.
    pub peak: u64,
    /// Minor and major page faults.
    pub page_faults: u64,
    /// Major page faults.
    pub major_page_faults: u64,
    /// Processes killed for lack of memory.
    pub oom_kills: u64,
}

/// Tasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PidsStats {
    /// Now.
    pub current: u64,
    /// The limit.
    pub limit: Option<u64>,
}

/// Block devices, in bytes and operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BlkioStats {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
}

/// v1's "no limit" is the largest page-aligned number that fits.
const V1_UNLIMITED: u64 = 0x7fff_ffff_ffff_f000;

pub(super) fn read(group: &Group) -> Result<Stats, CgroupError> {
    let files = |controller: &str, file: &str| {
        let directory = group.directory(controller)?;
        // A file that the kernel has not, or a group that has just gone, counts nothing.
        fs::read_to_string(directory.join(file)).ok()
    };
    Ok(if group.is_unified() {
        unified(&files)
    } else {
        legacy(&files)
    })
}

/// The text of a controller's file, if there is such a file.
type Files<'a> = &'a dyn Fn(&str, &str) -> Option<String>;

fn number(files: Files<'_>, controller: &str, file: &str) -> Option<u64> {
    files(controller, file)?.trim().parse().ok()
}

/// The kernel's microseconds as nanoseconds. No clock gets near the end of the range (584 years), so a larger number can
/// only be a mistake; it is shown as the largest there is rather than as a small one.
fn nanoseconds(microseconds: u64) -> u64 {
    microseconds.saturating_mul(1000)
}

/// A file of `name number` lines.
struct Table(String);

impl Table {
    fn read(files: Files<'_>, controller: &str, file: &str) -> Self {
        Self(files(controller, file).unwrap_or_default())
    }

    fn get(&self, name: &str) -> u64 {
        let mut lines = self.0.lines().filter_map(|line| line.split_once(' '));
        lines
            .find(|(key, _)| *key == name)
            .and_then(|(_, value)| value.trim().parse().ok())
            .unwrap_or(0)
    }
}

/// Counters of several devices in one: saturating for the reason given at [`nanoseconds`].
fn add(sum: &mut u64, value: u64) {
    *sum = sum.saturating_add(value);
}

pub(super) fn unified(files: Files<'_>) -> Stats {
    let table = |file: &str| Table::read(files, "", file);
    let number = |file: &str| number(files, "", file);
    let cpu = table("cpu.stat");
    let memory = table("memory.stat");
    let usage = number("memory.current").unwrap_or(0);
    let mut stats = Stats {
        cpu: CpuStats {
            usage_ns: nanoseconds(cpu.get("usage_usec")),
            user_ns: nanoseconds(cpu.get("user_usec")),
            system_ns: nanoseconds(cpu.get("system_usec")),
            periods: cpu.get("nr_periods"),
            throttled_periods: cpu.get("nr_throttled"),
            throttled_ns: nanoseconds(cpu.get("throttled_usec")),
        },
        memory: MemoryStats {
            usage,
            working_set: usage.saturating_sub(memory.get("inactive_file")),
            rss: memory.get("anon"),
            cache: memory.get("file"),
            swap: number("memory.swap.current").unwrap_or(0),
            limit: number("memory.max"),
            peak: number("memory.peak").unwrap_or(0),
            page_faults: memory.get("pgfault"),
            major_page_faults: memory.get("pgmajfault"),
            oom_kills: table("memory.events").get("oom_kill"),
        },
        pids: PidsStats {
            current: number("pids.current").unwrap_or(0),
            limit: number("pids.max"),
        },
        blkio: BlkioStats::default(),
    };
    for field in table("io.stat").0.split_ascii_whitespace() {
        let Some((key, Ok(value))) = field
            .split_once('=')
            .map(|(key, value)| (key, value.parse::<u64>()))
        else {
            continue;
        };
        match key {
            "rbytes" => add(&mut stats.blkio.read_bytes, value),
            "wbytes" => add(&mut stats.blkio.write_bytes, value),
            "rios" => add(&mut stats.blkio.reads, value),
            "wios" => add(&mut stats.blkio.writes, value),
            _ => {}
        }
    }
    stats
}

pub(super) fn legacy(files: Files<'_>) -> Stats {
    let table = |controller: &str, file: &str| Table::read(files, controller, file);
    let number = |controller: &str, file: &str| number(files, controller, file);
    let cpu = table("cpu", "cpu.stat");
    let memory = table("memory", "memory.stat");
    let usage = number("memory", "memory.usage_in_bytes").unwrap_or(0);
    let sum = |file: &str, kind: &str| -> u64 {
        let table = table("blkio", file);
        let mut all = 0;
        for line in table.0.lines() {
            let mut fields = line.split(' ').skip(1);
            let value = (fields.next() == Some(kind))
                .then(|| fields.next()?.parse().ok())
                .flatten();
            add(&mut all, value.unwrap_or(0));
        }
        all
    };
    Stats {
        cpu: CpuStats {
            usage_ns: number("cpuacct", "cpuacct.usage").unwrap_or(0),
            user_ns: number("cpuacct", "cpuacct.usage_user").unwrap_or(0),
            system_ns: number("cpuacct", "cpuacct.usage_sys").unwrap_or(0),
            periods: cpu.get("nr_periods"),
            throttled_periods: cpu.get("nr_throttled"),
            throttled_ns: cpu.get("throttled_time"),
        },
        memory: MemoryStats {
            usage,
            working_set: usage.saturating_sub(memory.get("total_inactive_file")),
            rss: memory.get("total_rss"),
            cache: memory.get("total_cache"),
            swap: memory.get("total_swap"),
            limit: number("memory", "memory.limit_in_bytes").filter(|limit| *limit < V1_UNLIMITED),
            peak: number("memory", "memory.max_usage_in_bytes").unwrap_or(0),
            page_faults: memory.get("total_pgfault"),
            major_page_faults: memory.get("total_pgmajfault"),
            oom_kills: table("memory", "memory.oom_control").get("oom_kill"),
        },
        pids: PidsStats {
            current: number("pids", "pids.current").unwrap_or(0),
            limit: number("pids", "pids.max"),
        },
        blkio: BlkioStats {
            read_bytes: sum("blkio.throttle.io_service_bytes_recursive", "Read"),
            write_bytes: sum("blkio.throttle.io_service_bytes_recursive", "Write"),
            reads: sum("blkio.throttle.io_serviced_recursive", "Read"),
            writes: sum("blkio.throttle.io_serviced_recursive", "Write"),
        },
    }
}
