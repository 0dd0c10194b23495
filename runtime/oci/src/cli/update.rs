//! `update`.

use std::io::Read;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use knarr_oci::ContainerId;
use oci_spec::runtime::LinuxResources;
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
    /// Memory limit in bytes.
    #[arg(long, allow_negative_numbers = true)]
    memory: Option<i64>,
    /// Memory that it should be left with under pressure, in bytes.
    #[arg(long, allow_negative_numbers = true)]
    memory_reservation: Option<i64>,
    /// Memory and swap together, in bytes; -1 for no limit.
    #[arg(long, allow_negative_numbers = true)]
    memory_swap: Option<i64>,
    /// Number of processes; -1 for no limit.
    #[arg(long, allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// The container.
    #[arg(value_parser = parse_id)]
    id: ContainerId,
}

/// Changes the limits.
pub(super) fn update(context: &Context, args: &Update) -> anyhow::Result<u8> {
    let resources = match &args.resources {
        Some(path) => {
            let mut text = String::new();
            if path.as_os_str() == "-" {
                std::io::stdin()
                    .read_to_string(&mut text)
                    .context("read standard input")?;
            } else {
                text = std::fs::read_to_string(path)
                    .with_context(|| format!("read {}", path.display()))?;
            }
            serde_json::from_str(&text).context("parse the resources")?
        }
        None => from_flags(args)?,
    };
    let warnings = context.runtime.update(&args.id, &resources)?;
    warnings
        .iter()
        .for_each(|warning| context.log.warn(warning));
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
    serde_json::from_value(all.unwrap_or_else(|| json!({}))).context("make resources of the flags")
}
