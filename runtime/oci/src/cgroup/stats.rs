//! What a group has used.

use std::fs;
use std::path::Path;

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
    Ok(if group.is_unified() {
        unified(group)
    } else {
        legacy(group)
    })
}

fn number(directory: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(directory.join(file))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// A file of `name number` lines.
struct Table(String);

impl Table {
    fn read(directory: &Path, file: &str) -> Self {
        // A file that the kernel has not, or a group that has just gone, counts nothing.
        Self(fs::read_to_string(directory.join(file)).unwrap_or_default())
    }

    fn get(&self, name: &str) -> u64 {
        let mut lines = self.0.lines().filter_map(|line| line.split_once(' '));
        lines
            .find(|(key, _)| *key == name)
            .and_then(|(_, value)| value.trim().parse().ok())
            .unwrap_or(0)
    }
}

fn unified(group: &Group) -> Stats {
    let Some(directory) = group.directory("") else {
        return Stats::default();
    };
    let cpu = Table::read(directory, "cpu.stat");
    let memory = Table::read(directory, "memory.stat");
    let usage = number(directory, "memory.current").unwrap_or(0);
    let mut stats = Stats {
        cpu: CpuStats {
            usage_ns: cpu.get("usage_usec") * 1000,
            user_ns: cpu.get("user_usec") * 1000,
            system_ns: cpu.get("system_usec") * 1000,
            periods: cpu.get("nr_periods"),
            throttled_periods: cpu.get("nr_throttled"),
            throttled_ns: cpu.get("throttled_usec") * 1000,
        },
        memory: MemoryStats {
            usage,
            working_set: usage.saturating_sub(memory.get("inactive_file")),
            rss: memory.get("anon"),
            cache: memory.get("file"),
            swap: number(directory, "memory.swap.current").unwrap_or(0),
            limit: number(directory, "memory.max"),
            peak: number(directory, "memory.peak").unwrap_or(0),
            page_faults: memory.get("pgfault"),
            major_page_faults: memory.get("pgmajfault"),
            oom_kills: Table::read(directory, "memory.events").get("oom_kill"),
        },
        pids: PidsStats {
            current: number(directory, "pids.current").unwrap_or(0),
            limit: number(directory, "pids.max"),
        },
        blkio: BlkioStats::default(),
    };
    for field in Table::read(directory, "io.stat").0.split_ascii_whitespace() {
        let Some((key, Ok(value))) = field
            .split_once('=')
            .map(|(key, value)| (key, value.parse::<u64>()))
        else {
            continue;
        };
        match key {
            "rbytes" => stats.blkio.read_bytes += value,
            "wbytes" => stats.blkio.write_bytes += value,
            "rios" => stats.blkio.reads += value,
            "wios" => stats.blkio.writes += value,
            _ => {}
        }
    }
    stats
}

fn legacy(group: &Group) -> Stats {
    let mut stats = Stats::default();
    if let Some(directory) = group.directory("cpuacct") {
        stats.cpu.usage_ns = number(directory, "cpuacct.usage").unwrap_or(0);
        stats.cpu.user_ns = number(directory, "cpuacct.usage_user").unwrap_or(0);
        stats.cpu.system_ns = number(directory, "cpuacct.usage_sys").unwrap_or(0);
    }
    if let Some(directory) = group.directory("cpu") {
        let table = Table::read(directory, "cpu.stat");
        stats.cpu.periods = table.get("nr_periods");
        stats.cpu.throttled_periods = table.get("nr_throttled");
        stats.cpu.throttled_ns = table.get("throttled_time");
    }
    if let Some(directory) = group.directory("memory") {
        let table = Table::read(directory, "memory.stat");
        let usage = number(directory, "memory.usage_in_bytes").unwrap_or(0);
        stats.memory = MemoryStats {
            usage,
            working_set: usage.saturating_sub(table.get("total_inactive_file")),
            rss: table.get("total_rss"),
            cache: table.get("total_cache"),
            swap: table.get("total_swap"),
            limit: number(directory, "memory.limit_in_bytes").filter(|limit| *limit < V1_UNLIMITED),
            peak: number(directory, "memory.max_usage_in_bytes").unwrap_or(0),
            page_faults: table.get("total_pgfault"),
            major_page_faults: table.get("total_pgmajfault"),
            oom_kills: Table::read(directory, "memory.oom_control").get("oom_kill"),
        };
    }
    if let Some(directory) = group.directory("pids") {
        stats.pids.current = number(directory, "pids.current").unwrap_or(0);
        stats.pids.limit = number(directory, "pids.max");
    }
    if let Some(directory) = group.directory("blkio") {
        let sum = |file: &str, kind: &str| -> u64 {
            let table = Table::read(directory, file);
            let lines = table.0.lines().filter_map(|line| {
                let mut fields = line.split(' ').skip(1);
                (fields.next()? == kind).then(|| fields.next()?.parse::<u64>().ok())?
            });
            lines.sum()
        };
        stats.blkio = BlkioStats {
            read_bytes: sum("blkio.throttle.io_service_bytes_recursive", "Read"),
            write_bytes: sum("blkio.throttle.io_service_bytes_recursive", "Write"),
            reads: sum("blkio.throttle.io_serviced_recursive", "Read"),
            writes: sum("blkio.throttle.io_serviced_recursive", "Write"),
        };
    }
    stats
}
