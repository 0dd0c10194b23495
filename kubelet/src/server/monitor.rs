//! What monitoring asks for: pods, statistics, metrics.

use std::fmt::Write as _;
use std::time::SystemTime;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use knarr_engine::types::{ContainerState, ContainerStatus, SandboxState, SandboxStatus, Stats};
use serde_json::{Value, json};

use super::{Refusal, Server};
use crate::node::info;
use crate::runtime::{RuntimeError, chain};
use crate::sandbox::label;
use crate::status::time;

/// `GET /pods`: a PodList of the node's pods.
pub(super) async fn pods(State(server): State<Server>) -> Json<Value> {
    let pods = server.pods.list();
    let items: Vec<&k8s_openapi::api::core::v1::Pod> = pods.iter().map(AsRef::as_ref).collect();
    Json(json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
}

/// `GET /configz`: the settings, as far as there are any.
pub(super) async fn configz(State(server): State<Server>) -> Json<Value> {
    let config = &server.ctx.config;
    Json(json!({"kubeletconfig": {
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "clusterDomain": config.cluster_domain,
        "clusterDNS": config.cluster_dns.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "maxPods": config.max_pods,
        "nodeStatusReportFrequency": format!("{}s", config.status_interval.as_secs()),
        "nodeLeaseDurationSeconds": config.lease_interval.as_secs() * 4,
    }}))
}

/// One pod and the use of its containers.
struct Usage {
    sandbox: SandboxStatus,
    stats: Stats,
    containers: Vec<(ContainerStatus, Stats)>,
}

async fn usage(server: &Server) -> Result<Vec<Usage>, Refusal> {
    let failed = |e: RuntimeError| Refusal(StatusCode::INTERNAL_SERVER_ERROR, chain(&e));
    let runtime = &server.ctx.runtime;
    let sandboxes = runtime.list_sandboxes().await.map_err(failed)?;
    let containers = runtime.list_containers().await.map_err(failed)?;
    let mut usage = Vec::new();
    for sandbox in sandboxes
        .into_iter()
        .filter(|s| s.state == SandboxState::Ready)
    {
        // What stops in between has no use any more.
        let Ok(stats) = runtime.sandbox_stats(&sandbox.id).await else {
            continue;
        };
        let mut own = Vec::new();
        for container in &containers {
            if container.sandbox_id == sandbox.id
                && container.state == ContainerState::Running
                && let Ok(stats) = runtime.container_stats(&container.id).await
            {
                own.push((container.clone(), stats));
            }
        }
        usage.push(Usage {
            sandbox,
            stats,
            containers: own,
        });
    }
    Ok(usage)
}

/// `GET /stats/summary`.
pub(super) async fn summary(State(server): State<Server>) -> Result<Json<Value>, Refusal> {
    let now = time(SystemTime::now());
    let cpu = |s: &Stats| json!({"time": now, "usageCoreNanoSeconds": s.cpu_usage_ns});
    let memory = |s: &Stats| {
        json!({
            "time": now,
            "usageBytes": s.memory_usage,
            "workingSetBytes": s.memory_working_set,
            "rssBytes": s.memory_rss,
            "pageFaults": s.page_faults,
            "majorPageFaults": s.major_page_faults,
        })
    };
    let pods: Vec<Value> = usage(&server)
        .await?
        .iter()
        .map(|usage| {
            let containers: Vec<Value> = usage
                .containers
                .iter()
                .map(|(c, s)| {
                    json!({
                        "name": c.config.name,
                        "startTime": c.started_at.map(time),
                        "cpu": cpu(s),
                        "memory": memory(s),
                    })
                })
                .collect();
            let config = &usage.sandbox.config;
            json!({
                "podRef": {"name": config.name, "namespace": config.namespace, "uid": config.uid},
                "startTime": time(usage.sandbox.created_at),
                "containers": containers,
                "cpu": cpu(&usage.stats),
                "memory": memory(&usage.stats),
                "process_stats": {"process_count": usage.stats.pids},
            })
        })
        .collect();
    let machine = server.ctx.machine;
    let (total, free) = info::disk(&server.ctx.config.node_dir);
    let available = info::memory_available();
    let (processes, most) = info::processes();
    Ok(Json(json!({
        "node": {
            "nodeName": server.ctx.config.node_name,
            "cpu": {"time": now, "usageCoreNanoSeconds": info::cpu_ns()},
            "memory": {
                "time": now,
                "availableBytes": available,
                "usageBytes": machine.memory_bytes.saturating_sub(available),
                "workingSetBytes": machine.memory_bytes.saturating_sub(available),
            },
            "fs": {"time": now, "availableBytes": free, "capacityBytes": total, "usedBytes": total - free},
            "rlimit": {"time": now, "maxpid": most, "curproc": processes},
        },
        "pods": pods,
    })))
}

fn text(body: String) -> Response {
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        body,
    )
        .into_response()
}

/// One family of the Prometheus text format.
fn family(
    out: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    samples: impl IntoIterator<Item = (String, String)>,
) {
    // Writing to a string cannot fail.
    let _infallible = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        let _infallible = writeln!(out, "{name}{labels} {value}");
    }
}

fn seconds(ns: u64) -> String {
    format!("{:.6}", ns as f64 / 1e9)
}

fn pod_labels(usage: &Usage) -> String {
    let config = &usage.sandbox.config;
    format!(
        "{{namespace=\"{}\",pod=\"{}\"}}",
        config.namespace, config.name
    )
}

fn container_labels(usage: &Usage, container: &ContainerStatus) -> String {
    let config = &usage.sandbox.config;
    format!(
        "{{container=\"{}\",namespace=\"{}\",pod=\"{}\"}}",
        container.config.name, config.namespace, config.name
    )
}

/// `GET /metrics/resource`: what the metrics server reads.
pub(super) async fn resource_metrics(State(server): State<Server>) -> Result<Response, Refusal> {
    let usage = usage(&server).await?;
    let containers = || {
        usage.iter().flat_map(|u| {
            u.containers
                .iter()
                .map(move |(c, s)| (container_labels(u, c), c, s))
        })
    };
    let mut out = String::new();
    family(
        &mut out,
        "container_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        containers().map(|(l, _, s)| (l, seconds(s.cpu_usage_ns))),
    );
    family(
        &mut out,
        "container_memory_working_set_bytes",
        "gauge",
        "[STABLE] Current working set of the container in bytes",
        containers().map(|(l, _, s)| (l, s.memory_working_set.to_string())),
    );
    let start = |at: SystemTime| {
        let since = at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        format!("{:.3}", since.as_secs_f64())
    };
    family(
        &mut out,
        "container_start_time_seconds",
        "gauge",
        "[STABLE] Start time of the container since unix epoch in seconds",
        containers().filter_map(|(l, c, _)| Some((l, start(c.started_at?)))),
    );
    let node = |value: String| [(String::new(), value)];
    family(
        &mut out,
        "node_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
        node(seconds(info::cpu_ns())),
    );
    let used = server
        .ctx
        .machine
        .memory_bytes
        .saturating_sub(info::memory_available());
    family(
        &mut out,
        "node_memory_working_set_bytes",
        "gauge",
        "[STABLE] Current working set of the node in bytes",
        node(used.to_string()),
    );
    family(
        &mut out,
        "pod_cpu_usage_seconds_total",
        "counter",
        "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
        usage
            .iter()
            .map(|u| (pod_labels(u), seconds(u.stats.cpu_usage_ns))),
    );
    family(
        &mut out,
        "pod_memory_working_set_bytes",
        "gauge",
        "[STABLE] Current working set of the pod in bytes",
        usage
            .iter()
            .map(|u| (pod_labels(u), u.stats.memory_working_set.to_string())),
    );
    family(
        &mut out,
        "resource_scrape_error",
        "gauge",
        "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
        node("0".to_owned()),
    );
    Ok(text(out))
}

/// `GET /metrics/cadvisor`: the families that dashboards use most.
pub(super) async fn cadvisor(State(server): State<Server>) -> Result<Response, Refusal> {
    let usage = usage(&server).await?;
    let samples = |value: fn(&Stats) -> String| -> Vec<(String, String)> {
        usage
            .iter()
            .flat_map(|u| {
                u.containers.iter().map(move |(c, s)| {
                    let config = &u.sandbox.config;
                    let labels = format!(
                        "{{container=\"{}\",id=\"/{}/{}\",image=\"{}\",name=\"{}\",namespace=\"{}\",pod=\"{}\"}}",
                        c.config.name,
                        config.cgroup_parent,
                        c.id.0,
                        c.config.image_ref,
                        c.id.0,
                        config.namespace,
                        config.name
                    );
                    (labels, value(s))
                })
            })
            .collect()
    };
    let mut out = String::new();
    family(
        &mut out,
        "container_cpu_usage_seconds_total",
        "counter",
        "Cumulative cpu time consumed in seconds.",
        samples(|s| seconds(s.cpu_usage_ns)),
    );
    family(
        &mut out,
        "container_memory_usage_bytes",
        "gauge",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        samples(|s| s.memory_usage.to_string()),
    );
    family(
        &mut out,
        "container_memory_working_set_bytes",
        "gauge",
        "Current working set in bytes.",
        samples(|s| s.memory_working_set.to_string()),
    );
    family(
        &mut out,
        "container_memory_rss",
        "gauge",
        "Size of RSS in bytes.",
        samples(|s| s.memory_rss.to_string()),
    );
    family(
        &mut out,
        "container_processes",
        "gauge",
        "Number of processes running inside the container.",
        samples(|s| s.pids.to_string()),
    );
    Ok(text(out))
}

/// `GET /metrics`: the agent itself.
pub(super) async fn metrics(State(server): State<Server>) -> Result<Response, Refusal> {
    let failed = |e: RuntimeError| Refusal(StatusCode::INTERNAL_SERVER_ERROR, chain(&e));
    let containers = server.ctx.runtime.list_containers().await.map_err(failed)?;
    let mut out = String::new();
    let count = |state| {
        containers
            .iter()
            .filter(|c| c.state == state)
            .count()
            .to_string()
    };
    family(
        &mut out,
        "kubelet_running_containers",
        "gauge",
        "[ALPHA] Number of containers currently running",
        [
            (
                "{container_state=\"created\"}".to_owned(),
                count(ContainerState::Created),
            ),
            (
                "{container_state=\"exited\"}".to_owned(),
                count(ContainerState::Exited),
            ),
            (
                "{container_state=\"running\"}".to_owned(),
                count(ContainerState::Running),
            ),
        ],
    );
    let running: std::collections::HashSet<&str> = containers
        .iter()
        .filter(|c| c.state == ContainerState::Running)
        .filter_map(|c| c.config.labels.get(label::POD_UID).map(String::as_str))
        .collect();
    family(
        &mut out,
        "kubelet_running_pods",
        "gauge",
        "[ALPHA] Number of pods that have a running pod sandbox",
        [(String::new(), running.len().to_string())],
    );
    family(
        &mut out,
        "kubelet_active_pods",
        "gauge",
        "[ALPHA] The number of pods the kubelet considers active and which are being considered when admitting new pods.",
        [("{static=\"\"}".to_owned(), server.pods.count().to_string())],
    );
    family(
        &mut out,
        "kubelet_node_name",
        "gauge",
        "[ALPHA] The node's name. The count is always 1.",
        [(
            format!("{{node=\"{}\"}}", server.ctx.config.node_name),
            "1".to_owned(),
        )],
    );
    let (rss, cpu, fds) = info::own();
    let own = |value: String| [(String::new(), value)];
    family(
        &mut out,
        "process_resident_memory_bytes",
        "gauge",
        "Resident memory size in bytes.",
        own(rss.to_string()),
    );
    family(
        &mut out,
        "process_cpu_seconds_total",
        "counter",
        "Total user and system CPU time spent in seconds.",
        own(format!("{cpu:.2}")),
    );
    family(
        &mut out,
        "process_open_fds",
        "gauge",
        "Number of open file descriptors.",
        own(fds.to_string()),
    );
    Ok(text(out))
}
