//! `update`.

use std::io::Read;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use knarr_oci::ContainerId;
use oci_spec::runtime::{LinuxIntelRdt, LinuxResources};
use serde_json::{Map, Value, json};

use super::{Context, parse_id};

/// New limits; what is not given stays.
#[derive(Debug, Args)]
pub(super) struct Update {
    /// File with the limits as JSON (`linux.resources`), or `-`; the other flags are ignored then.
    #[arg(long, short, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Weight for block devices.
    #[arg(long)]
    blkio_weight: Option<u16>,
    /// Period of the processor quota, in microseconds.
    #[arg(long)]
    cpu_period: Option<u64>,
    /// Processor time per period, in microseconds.
    #[arg(long, allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// Processor time that may be saved up, in microseconds.
    #[arg(long)]
    cpu_burst: Option<u64>,
    /// Relative weight of processor time.
    #[arg(long = "cpu-share", alias = "cpu-shares")]
    cpu_shares: Option<u64>,
    /// Period of real-time scheduling, in microseconds.
    #[arg(long)]
    cpu_rt_period: Option<u64>,
    /// Real-time processor time per period, in microseconds.
    #[arg(long, allow_negative_numbers = true)]
    cpu_rt_runtime: Option<i64>,
    /// Processors to use.
    #[arg(long)]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use.
    #[arg(long)]
    cpuset_mems: Option<String>,
    /// 1 to run only when nobody else wants to.
    #[arg(long)]
    cpu_idle: Option<i64>,
    /// Memory limit: bytes, or with a unit (`64m`, `1g`).
    #[arg(long, allow_hyphen_values = true, value_parser = parse_size)]
    memory: Option<i64>,
    /// Memory that it should be left with under pressure.
    #[arg(long, allow_hyphen_values = true, value_parser = parse_size)]
    memory_reservation: Option<i64>,
    /// Memory and swap together; -1 for no limit.
    #[arg(long, allow_hyphen_values = true, value_parser = parse_size)]
    memory_swap: Option<i64>,
    /// No longer has an effect, as with runc.
    #[arg(long, hide = true)]
    kernel_memory: Option<String>,
    /// No longer has an effect, as with runc.
    #[arg(long, hide = true)]
    kernel_memory_tcp: Option<String>,
    /// Share of the L3 cache (Intel RDT), such as `L3:0=f0`.
    #[arg(long)]
    l3_cache_schema: Option<String>,
    /// Share of memory bandwidth (Intel RDT), such as `MB:0=20`.
    #[arg(long)]
    mem_bw_schema: Option<String>,
    /// Number of processes; -1 for no limit.
    #[arg(long, allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// The container.
    #[arg(value_parser = parse_id)]
    id: ContainerId,
}

/// Bytes, with one of the units that runc knows: powers of 1024.
fn parse_size(text: &str) -> Result<i64, String> {
    let bad = || format!("{text:?} is no size");
    if text == "-1" {
        return Ok(-1);
    }
    let lower = text.trim().to_ascii_lowercase();
    let split = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(split);
    let power = match unit.trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(bad()),
    };
    let factor = 1024_i64.pow(power);
    match number.parse::<i64>() {
        Ok(whole) => whole.checked_mul(factor).ok_or_else(bad),
        Err(_) => number
            .parse::<f64>()
            .map(|number| (number * factor as f64) as i64)
            .map_err(|_| bad()),
    }
}

/// Changes the limits.
pub(super) fn update(context: &Context, args: &Update) -> anyhow::Result<u8> {
    if args.kernel_memory.is_some() || args.kernel_memory_tcp.is_some() {
        context.log.warn("limits of kernel memory have no effect");
    }
    let resources = match &args.resources {
        Some(path) => {
            let mut text = Vec::new();
            if path.as_os_str() == "-" {
                std::io::stdin()
                    .read_to_end(&mut text)
                    .context("read standard input")?;
            } else {
                text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
            }
            knarr_oci::spec::parse_resources(&text).context("parse the resources")?
        }
        None => from_flags(args)?,
    };
    let warnings = context.runtime.update(&args.id, &resources)?;
    warnings
        .iter()
        .for_each(|warning| context.log.warn(warning));
    if args.l3_cache_schema.is_some() || args.mem_bw_schema.is_some() {
        let mut wanted = LinuxIntelRdt::default();
        wanted.set_l3_cache_schema(args.l3_cache_schema.clone());
        wanted.set_mem_bw_schema(args.mem_bw_schema.clone());
        context.runtime.update_rdt(&args.id, &wanted)?;
    }
    Ok(0)
}

fn from_flags(args: &Update) -> anyhow::Result<LinuxResources> {
    let section = |fields: &[(&str, Value)]| -> Option<Value> {
        let given: Map<String, Value> = fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| ((*name).into(), value.clone()))
            .collect();
        (!given.is_empty()).then_some(Value::Object(given))
    };
    let cpu = section(&[
        ("period", json!(args.cpu_period)),
        ("quota", json!(args.cpu_quota)),
        ("burst", json!(args.cpu_burst)),
        ("shares", json!(args.cpu_shares)),
        ("realtimePeriod", json!(args.cpu_rt_period)),
        ("realtimeRuntime", json!(args.cpu_rt_runtime)),
        ("cpus", json!(args.cpuset_cpus)),
        ("mems", json!(args.cpuset_mems)),
        ("idle", json!(args.cpu_idle)),
    ]);
    let memory = section(&[
        ("limit", json!(args.memory)),
        ("reservation", json!(args.memory_reservation)),
        ("swap", json!(args.memory_swap)),
    ]);
    let pids = section(&[("limit", json!(args.pids_limit))]);
    let block_io = section(&[("weight", json!(args.blkio_weight))]);
    let all = section(&[
        ("cpu", json!(cpu)),
        ("memory", json!(memory)),
        ("pids", json!(pids)),
        ("blockIO", json!(block_io)),
    ]);
    knarr_oci::spec::retype(&all.unwrap_or_else(|| json!({})))
        .context("make resources of the flags")
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("-1"), Ok(-1));
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64M"), Ok(64 << 20));
        assert_eq!(parse_size("1.5g"), Ok(3 << 29));
        assert!(parse_size("-2").is_err());
        assert!(parse_size("much").is_err());
        assert!(parse_size("9999999p").is_err());
    }
}
