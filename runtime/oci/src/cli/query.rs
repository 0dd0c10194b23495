//! Verbs that only look.

use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use knarr_oci::cgroup::{Group, Stats};
use knarr_oci::{ContainerId, RdtStats, State};
use nix::unistd::Pid;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Context, container, parse_id};

/// Table or JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Json,
}

/// Listing containers.
#[derive(Debug, Args)]
pub(super) struct List {
    /// Output format.
    #[arg(long, short, value_enum, default_value = "table")]
    format: Format,
    /// Print ids only.
    #[arg(long, short)]
    quiet: bool,
}

/// Listing processes.
#[derive(Debug, Args)]
pub(super) struct Ps {
    /// Output format.
    #[arg(long, short, value_enum, default_value = "table")]
    format: Format,
    /// The container.
    #[arg(value_parser = parse_id)]
    id: ContainerId,
    /// Options of ps(1), `-ef` by default; its output must have a column PID.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// Watching what a container uses.
#[derive(Debug, Args)]
pub(super) struct Events {
    /// Time between two reports: `5s`, `500ms`, `1m`.
    #[arg(long, default_value = "5s", value_parser = parse_interval)]
    interval: Duration,
    /// Print one report and end.
    #[arg(long)]
    stats: bool,
    /// The container.
    #[arg(value_parser = parse_id)]
    id: ContainerId,
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is no duration");
    let (mut interval, mut rest) = (Duration::ZERO, text);
    // As Go writes them: `1m30s`, `1.5h`.
    while !rest.is_empty() {
        let digits = |c: char| c.is_ascii_digit() || c == '.';
        let (number, after) = rest.split_at(rest.find(|c| !digits(c)).unwrap_or(rest.len()));
        let (unit, after) = after.split_at(after.find(digits).unwrap_or(after.len()));
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" | "" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        let number: f64 = number.parse().map_err(|_| bad())?;
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())?;
        interval = interval.checked_add(part).ok_or_else(bad)?;
        rest = after;
    }
    if interval.is_zero() {
        Err("an interval of nothing".into())
    } else {
        Ok(interval)
    }
}

/// `state`.
pub(super) fn state(context: &Context, args: &container::Id) -> anyhow::Result<u8> {
    println!(
        "{}",
        serde_json::to_string_pretty(&context.runtime.state(&args.id)?)?
    );
    Ok(0)
}

/// `list`.
pub(super) fn list(context: &Context, args: &List) -> anyhow::Result<u8> {
    let states = context.runtime.list()?;
    let mut out = std::io::stdout().lock();
    if args.quiet {
        for state in &states {
            writeln!(out, "{}", state.id)?;
        }
        return Ok(0);
    }
    if args.format == Format::Json {
        writeln!(out, "{}", serde_json::to_string(&states)?)?;
        return Ok(0);
    }
    let width = |of: fn(&State) -> usize, least: usize| {
        states.iter().map(of).max().unwrap_or(0).max(least) + 4
    };
    let id = width(|state| state.id.len(), 2);
    let bundle = width(|state| state.bundle.as_os_str().len(), 6);
    writeln!(
        out,
        "{:id$}{:12}{:12}{:bundle$}{:34}OWNER",
        "ID", "PID", "STATUS", "BUNDLE", "CREATED"
    )?;
    for state in &states {
        let (path, status) = (state.bundle.display().to_string(), state.status.to_string());
        writeln!(
            out,
            "{:id$}{:<12}{status:12}{path:bundle$}{:34}{}",
            state.id,
            state.pid,
            state.created,
            owner(&context.runtime.root().join(&state.id))
        )?;
    }
    Ok(0)
}

/// Who has made it; without a look into the host's user database, which a static program cannot take.
fn owner(directory: &std::path::Path) -> String {
    use std::os::unix::fs::MetadataExt;
    match fs::metadata(directory).map(|metadata| metadata.uid()) {
        Ok(0) => "root".to_owned(),
        Ok(uid) => format!("#{uid}"),
        // It has been deleted since.
        Err(_) => String::new(),
    }
}

/// `ps`.
pub(super) fn ps(context: &Context, args: &Ps) -> anyhow::Result<u8> {
    let pids = context.runtime.pids(&args.id)?;
    let mut out = std::io::stdout().lock();
    if args.format == Format::Json {
        let numbers: Vec<i32> = pids.iter().map(|pid| pid.as_raw()).collect();
        writeln!(out, "{}", serde_json::to_string(&numbers)?)?;
        return Ok(0);
    }
    let options = match args.rest.is_empty() {
        true => &["-ef".to_owned()],
        false => &args.rest[..],
    };
    match std::process::Command::new("ps").args(options).output() {
        // A host without ps(1) has the table below, unless another one is wanted.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && args.rest.is_empty() => {}
        ran => {
            let output = ran.context("run ps")?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                anyhow::bail!("ps {}: {}", options.join(" "), said.trim());
            }
            for line in only(&String::from_utf8_lossy(&output.stdout), &pids)? {
                writeln!(out, "{line}")?;
            }
            return Ok(0);
        }
    }
    writeln!(out, "{:<10}{:<10}{:<10}CMD", "UID", "PID", "PPID")?;
    for pid in pids {
        // One that has ended since is no longer in the list.
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
            continue;
        };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next())
                .unwrap_or("?")
                .to_owned()
        };
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command)
            .trim_end_matches('\0')
            .replace('\0', " ");
        let command = if command.is_empty() {
            format!("[{}]", field("Name:"))
        } else {
            command
        };
        writeln!(
            out,
            "{:<10}{pid:<10}{:<10}{command}",
            field("Uid:"),
            field("PPid:")
        )?;
    }
    Ok(0)
}

/// The title of a table from ps(1), and the lines of these processes.
fn only<'a>(table: &'a str, pids: &[Pid]) -> anyhow::Result<Vec<&'a str>> {
    let mut lines = table.lines();
    let title = lines.next().unwrap_or_default();
    let column = title
        .split_whitespace()
        .position(|name| name == "PID")
        .context("the output of ps has no column PID")?;
    let ours = |line: &&str| {
        let word = line.split_whitespace().nth(column);
        word.and_then(|word| word.parse().ok())
            .is_some_and(|pid| pids.contains(&Pid::from_raw(pid)))
    };
    Ok(std::iter::once(title).chain(lines.filter(ours)).collect())
}

/// `events`: a report, or one per interval, and each out-of-memory kill when it happens.
pub(super) fn events(context: &Context, args: &Events) -> anyhow::Result<u8> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let print = |kind: &str, data: Option<Value>| {
        let id = args.id.as_str();
        let line = serde_json::to_string(&Event { kind, id, data })?;
        writeln!(std::io::stdout(), "{line}")
    };
    let details = context.runtime.details(&args.id)?;
    let report = || -> anyhow::Result<()> {
        let stats = context.runtime.stats(&args.id)?;
        let rdt = context.runtime.rdt_stats(&args.id)?.unwrap_or_default();
        Ok(print(
            "stats",
            Some(document(&stats, &rdt, &details.cgroup)),
        )?)
    };
    if details.state.pid == 0 {
        anyhow::bail!("container {} is not running", args.id);
    }
    if args.stats {
        report()?;
        return Ok(0);
    }
    let ended = knarr_oci::sys::pidfd_open(nix::unistd::Pid::from_raw(details.state.pid))?;
    let oom = details.cgroup.oom_events()?;
    let mut kills = oom.kills();
    let mut due = Instant::now() + args.interval;
    let mut looks = 0;
    loop {
        let mut fds = [
            PollFd::new(ended.as_fd(), PollFlags::POLLIN),
            PollFd::new(oom.as_fd(), PollFlags::POLLIN),
        ];
        let left = due.saturating_duration_since(Instant::now());
        let left = if looks > 0 { left.min(LOOK) } else { left };
        // Rounded up: with less than a millisecond left, zero would spin.
        let left = left + Duration::from_millis(1);
        match poll(
            &mut fds,
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
        ) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let (gone, woken) = (fds[0].any() == Some(true), fds[1].any() == Some(true));
        let now = oom.kills();
        if now > kills {
            print("oom", None)?;
            (kills, looks) = (now, 0);
        } else if woken {
            looks = LOOKS;
        } else {
            looks = looks.saturating_sub(1);
        }
        if gone {
            return Ok(0);
        }
        if Instant::now() >= due {
            report()?;
            due = Instant::now() + args.interval;
        }
    }
}

/// v1 tells of a lack of memory before it has killed and counted: who is told looks at the number again for a while.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS: u32 = 100;

/// One line of `events`, with its fields in runc's order: it is searched as text, too.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Value>,
}

/// In the shape of runc's, as far as its callers read it.
fn document(stats: &Stats, rdt: &RdtStats, group: &Group) -> Value {
    // v1 counts pages, and this is as many of them as fit.
    let unlimited = if group.is_unified() {
        u64::MAX
    } else {
        0x7fff_ffff_ffff_f000
    };
    let limit = |limit: Option<u64>| limit.unwrap_or(unlimited);
    let number = |controller: &str, file: &str| -> Option<u64> {
        group.text(controller, file)?.trim().parse().ok()
    };
    let raw = table(&group.text("memory", "memory.stat").unwrap_or_default());
    let per_processor: Vec<u64> = group
        .text("cpuacct", "cpuacct.usage_percpu")
        .iter()
        .flat_map(|text| text.split_whitespace())
        .filter_map(|word| word.parse().ok())
        .collect();
    // Of v1 with swap accounting: both together, as the limit is.
    let (swap, swap_limit) = if group.is_unified() {
        (Some(stats.memory.swap), number("memory", "memory.swap.max"))
    } else {
        (
            number("memory", "memory.memsw.usage_in_bytes"),
            number("memory", "memory.memsw.limit_in_bytes"),
        )
    };
    json!({
        "cpu": {
            "usage": {
                "total": stats.cpu.usage_ns,
                "percpu": per_processor,
                "kernel": stats.cpu.system_ns,
                "user": stats.cpu.user_ns,
            },
            "throttling": {
                "periods": stats.cpu.periods,
                "throttledPeriods": stats.cpu.throttled_periods,
                "throttledTime": stats.cpu.throttled_ns,
            },
        },
        "memory": {
            "cache": stats.memory.cache,
            "usage": {
                "limit": limit(stats.memory.limit),
                "usage": stats.memory.usage,
                "max": stats.memory.peak,
                "failcnt": number("memory", "memory.failcnt").unwrap_or(0),
            },
            "swap": {
                "limit": limit(swap_limit),
                "usage": swap.unwrap_or(stats.memory.swap),
                "failcnt": number("memory", "memory.memsw.failcnt").unwrap_or(0),
            },
            "kernel": {
                "usage": number("memory", "memory.kmem.usage_in_bytes").unwrap_or(0),
                "failcnt": number("memory", "memory.kmem.failcnt").unwrap_or(0),
            },
            "raw": raw,
        },
        "pids": { "current": stats.pids.current, "limit": stats.pids.limit.unwrap_or(0) },
        "blkio": {
            "ioServiceBytesRecursive": [
                { "op": "Read", "value": stats.blkio.read_bytes },
                { "op": "Write", "value": stats.blkio.write_bytes },
            ],
            "ioServicedRecursive": [
                { "op": "Read", "value": stats.blkio.reads },
                { "op": "Write", "value": stats.blkio.writes },
            ],
        },
        "intel_rdt": rdt,
    })
}

/// The lines `name number` of a group's file.
fn table(text: &str) -> serde_json::Map<String, Value> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    let numbers = lines
        .filter_map(|(name, value)| Some((name.to_owned(), value.trim().parse::<u64>().ok()?)));
    numbers.map(|(name, value)| (name, value.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_written_as_in_go() {
        let interval = |text| parse_interval(text).map(|interval| interval.as_millis());
        assert_eq!(interval("5s"), Ok(5000));
        assert_eq!(interval("1m30s"), Ok(90_000));
        assert_eq!(interval("1.5s"), Ok(1500));
        assert_eq!(interval("250ms"), Ok(250));
        for bad in [
            "",
            "0s",
            "x",
            "5y",
            "s",
            "18000000000000000000s18000000000000000000s",
        ] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_table_of_processes_keeps_its_title() {
        let table = "UID PID CMD\n0 1 init\n0 12 sh\n";
        let lines = only(table, &[Pid::from_raw(12)]).unwrap();
        assert_eq!(lines, ["UID PID CMD", "0 12 sh"]);
        assert!(only("a b\n", &[]).is_err());
    }
}
