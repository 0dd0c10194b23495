//! The Node's status and its conditions.

use std::time::SystemTime;

use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeCondition, NodeDaemonEndpoints, NodeStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{addresses, info};
use crate::ctx::Ctx;
use crate::runtime::chain;
use crate::status::time;

/// The most images that a node reports, as in Kubernetes.
const MAX_IMAGES: usize = 50;
/// Less available memory than this is pressure, in bytes (the kubelet's `memory.available`).
const MEMORY_PRESSURE: u64 = 100 << 20;
/// Less free disk than this share is pressure, in percent (`nodefs.available`).
const DISK_PRESSURE_PERCENT: u64 = 10;

/// Computes the status; `problems` say why the node is not ready.
pub(super) async fn build(
    ctx: &Ctx,
    previous: Option<&NodeStatus>,
    problems: &[String],
) -> NodeStatus {
    let capacity = info::capacity(&ctx.config, ctx.machine);
    NodeStatus {
        addresses: Some(addresses(&ctx.config.node_name, &ctx.config.node_ips)),
        allocatable: Some(capacity.clone()),
        capacity: Some(capacity),
        conditions: Some(conditions(ctx, previous, problems, SystemTime::now())),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(ctx.config.listen.port()),
            }),
        }),
        images: Some(images(ctx).await),
        node_info: Some(info::system()),
        ..NodeStatus::default()
    }
}

async fn images(ctx: &Ctx) -> Vec<ContainerImage> {
    let mut list = match ctx.runtime.list_images().await {
        Ok(list) => list,
        Err(error) => {
            tracing::warn!(error = chain(&error), "list images");
            Vec::new()
        }
    };
    list.sort_by_key(|i| std::cmp::Reverse(i.size));
    list.into_iter()
        .take(MAX_IMAGES)
        .map(|i| ContainerImage {
            names: Some(i.repo_digests.into_iter().chain(i.repo_tags).collect()),
            size_bytes: i64::try_from(i.size).ok(),
        })
        .collect()
}

fn conditions(
    ctx: &Ctx,
    previous: Option<&NodeStatus>,
    problems: &[String],
    now: SystemTime,
) -> Vec<NodeCondition> {
    let memory = info::memory_available() < MEMORY_PRESSURE;
    let (total, free) = info::disk(&ctx.config.node_dir);
    let disk = total > 0 && free * 100 / total < DISK_PRESSURE_PERCENT;
    let (running, most) = info::processes();
    let pids = running * 100 / most.max(1) > 95;
    let pressure = |on: bool, what: &str, subject: &str| {
        let (reason, message) = if on {
            (
                format!("KubeletHas{what}"),
                format!("kubelet has {subject}"),
            )
        } else {
            let none = what
                .replace("Insufficient", "Sufficient")
                .replace("DiskPressure", "NoDiskPressure");
            (
                format!("KubeletHas{none}"),
                format!("kubelet has {}", no(subject)),
            )
        };
        (on, reason, message)
    };
    let ready = if problems.is_empty() {
        (
            true,
            "KubeletReady".to_owned(),
            "kubelet is posting ready status".to_owned(),
        )
    } else {
        (false, "KubeletNotReady".to_owned(), problems.join(", "))
    };
    let all = [
        (
            "MemoryPressure",
            pressure(
                memory,
                "InsufficientMemory",
                "insufficient memory available",
            ),
        ),
        (
            "DiskPressure",
            pressure(disk, "DiskPressure", "disk pressure"),
        ),
        (
            "PIDPressure",
            pressure(pids, "InsufficientPID", "insufficient PID available"),
        ),
        ("Ready", ready),
    ];
    all.into_iter()
        .map(|(kind, (on, reason, message))| {
            let status = if on { "True" } else { "False" };
            let since = previous
                .and_then(|p| p.conditions.as_ref())
                .into_iter()
                .flatten()
                .find(|c| c.type_ == kind && c.status == status)
                .and_then(|c| c.last_transition_time.clone());
            NodeCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: Some(reason),
                message: Some(message),
                last_heartbeat_time: Some(time(now)),
                last_transition_time: Some(since.unwrap_or_else(|| time(now))),
            }
        })
        .collect()
}

fn no(subject: &str) -> String {
    match subject {
        "disk pressure" => "no disk pressure".to_owned(),
        other => other.replace("insufficient", "sufficient"),
    }
}

/// Whether somebody else has changed a condition that was written here: a node that was silent for a while has conditions
/// that say `Unknown`.
pub(super) fn is_overruled(written: &NodeStatus, node: &Node) -> bool {
    let there = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref());
    let there = there.unwrap_or_default();
    written.conditions.iter().flatten().any(|condition| {
        let other = there.iter().find(|other| other.type_ == condition.type_);
        other.is_none_or(|other| other.status != condition.status)
    })
}

/// Whether two statuses differ in more than the time they were made.
pub(super) fn differs(old: &NodeStatus, new: &NodeStatus) -> bool {
    let plain = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None::<Time>;
        }
        status
    };
    plain(old) != plain(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_somebody_else_changed_is_written_again() {
        let conditions = |ready: &str, disk: &str| {
            let of = |kind: &str, status: &str| NodeCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                ..NodeCondition::default()
            };
            let foreign = of("NetworkUnavailable", "False");
            Some(vec![foreign, of("DiskPressure", disk), of("Ready", ready)])
        };
        let mut written = NodeStatus {
            conditions: conditions("True", "False"),
            ..NodeStatus::default()
        };
        // Another's own condition is no concern of the kubelet.
        written
            .conditions
            .iter_mut()
            .for_each(|all| drop(all.remove(0)));
        for (there, expected) in [
            (conditions("True", "False"), false),
            (conditions("Unknown", "Unknown"), true),
            (conditions("True", "Unknown"), true),
            (None, true),
        ] {
            let node = Node {
                status: Some(NodeStatus {
                    conditions: there,
                    ..NodeStatus::default()
                }),
                ..Node::default()
            };
            assert_eq!(is_overruled(&written, &node), expected, "{node:?}");
        }
    }
}
