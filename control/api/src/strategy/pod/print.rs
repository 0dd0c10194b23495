//! The table of pods (`pkg/printers/internalversion`, printPod).

use serde_json::Value;

use crate::strategy::Column;
use crate::strategy::common::text;
use crate::strategy::validation::items;
use crate::table;

pub fn columns() -> Vec<Column> {
    table::columns("Name Ready Status Restarts Age IP* Node* Nominated_Node* Readiness_Gates*")
}

pub fn cells(pod: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let summary = Summary::of(pod);
    let restarts = match &summary.last_restart {
        Some(time) if summary.restarts != 0 => {
            format!(
                "{} ({} ago)",
                summary.restarts,
                table::since(Some(time), now)
            )
        }
        _ => summary.restarts.to_string(),
    };
    let or_none = |value: &Value| {
        Value::from(if text(value).is_empty() {
            "<none>"
        } else {
            text(value)
        })
    };
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let ip = match items(&status["podIPs"]).next() {
        Some((_, first)) => &first["ip"],
        None => &status["podIP"],
    };
    vec![
        table::name(pod),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        table::age(pod, now),
        or_none(ip),
        or_none(&spec["nodeName"]),
        or_none(&status["nominatedNodeName"]),
        readiness_gates(pod).into(),
    ]
}

fn readiness_gates(pod: &Value) -> String {
    let gates = items(&pod["spec"]["readinessGates"]).count();
    if gates == 0 {
        return "<none>".to_owned();
    }
    let met = items(&pod["spec"]["readinessGates"])
        .filter(|(_, gate)| {
            condition(pod, text(&gate["conditionType"])).is_some_and(|c| c["status"] == "True")
        })
        .count();
    format!("{met}/{gates}")
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    items(&pod["status"]["conditions"])
        .map(|(_, condition)| condition)
        .find(|c| c["type"] == kind)
}

/// What the first columns say.
struct Summary {
    ready: usize,
    total: usize,
    reason: String,
    restarts: i64,
    last_restart: Option<String>,
}

/// Restarts and when the last was.
#[derive(Default)]
struct Restarts {
    count: i64,
    last: Option<String>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += status["restartCount"].as_i64().unwrap_or(0);
        let finished = status["lastState"]["terminated"]["finishedAt"].as_str();
        // Times in one form and zone compare as text.
        if finished > self.last.as_deref() {
            self.last = finished.map(str::to_owned);
        }
    }
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let phase = text(&status["phase"]);
        let mut reason = match text(&status["reason"]) {
            "" => phase.to_owned(),
            reason => reason.to_owned(),
        };
        if condition(pod, "PodScheduled").is_some_and(|c| c["reason"] == "SchedulingGated") {
            "SchedulingGated".clone_into(&mut reason);
        }
        let sidecar = |name: &Value| {
            items(&spec["initContainers"])
                .any(|(_, c)| c["name"] == *name && c["restartPolicy"] == "Always")
        };
        let sidecars = items(&spec["initContainers"])
            .filter(|(_, c)| c["restartPolicy"] == "Always")
            .count();
        let total = items(&spec["containers"]).count() + sidecars;
        let init_total = items(&spec["initContainers"]).count();

        let mut ready = 0;
        let (mut all, mut of_sidecars) = (Restarts::default(), Restarts::default());
        let mut initializing = false;
        for (index, container) in items(&status["initContainerStatuses"]) {
            all.add(container);
            let is_sidecar = sidecar(&container["name"]);
            if is_sidecar {
                of_sidecars.add(container);
            }
            let (terminated, waiting) = (
                &container["state"]["terminated"],
                &container["state"]["waiting"],
            );
            if terminated.is_object() && terminated["exitCode"].as_i64().unwrap_or(0) == 0 {
                continue;
            }
            if is_sidecar && container["started"] == true {
                ready += usize::from(container["ready"] == true);
                continue;
            }
            reason = if terminated.is_object() {
                format!("Init:{}", end_of(terminated))
            } else if !matches!(text(&waiting["reason"]), "" | "PodInitializing") {
                format!("Init:{}", text(&waiting["reason"]))
            } else {
                format!("Init:{index}/{init_total}")
            };
            initializing = true;
            break;
        }

        if !initializing || condition(pod, "Initialized").is_some_and(|c| c["status"] == "True") {
            all = of_sidecars;
            let mut running = false;
            let statuses: Vec<&Value> = items(&status["containerStatuses"])
                .map(|(_, c)| c)
                .collect();
            for container in statuses.into_iter().rev() {
                all.add(container);
                let (terminated, waiting) = (
                    &container["state"]["terminated"],
                    &container["state"]["waiting"],
                );
                if !text(&waiting["reason"]).is_empty() {
                    text(&waiting["reason"]).clone_into(&mut reason);
                } else if terminated.is_object() {
                    reason = end_of(terminated);
                } else if container["ready"] == true && container["state"]["running"].is_object() {
                    running = true;
                    ready += 1;
                }
            }
            if reason == "Completed" && running {
                let is_ready = condition(pod, "Ready").is_some_and(|c| c["status"] == "True");
                reason = if is_ready { "Running" } else { "NotReady" }.to_owned();
            }
        }
        if pod["metadata"]["deletionTimestamp"].is_string() {
            if status["reason"] == "NodeLost" {
                "Unknown".clone_into(&mut reason);
            } else if !matches!(phase, "Succeeded" | "Failed") {
                "Terminating".clone_into(&mut reason);
            }
        }
        Self {
            ready,
            total,
            reason,
            restarts: all.count,
            last_restart: all.last,
        }
    }
}

/// `Error`, `OOMKilled`, `ExitCode:3`, `Signal:9`.
fn end_of(terminated: &Value) -> String {
    match (
        text(&terminated["reason"]),
        terminated["signal"].as_i64().unwrap_or(0),
    ) {
        ("", 0) => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(pod: &Value) -> Vec<String> {
        let now = "2026-01-01T01:00:00Z".parse().expect("a time");
        cells(pod, now)
            .iter()
            .map(|cell| text(cell).to_owned())
            .collect()
    }

    #[test]
    fn the_status_column_tells_what_happens() {
        let running = json!({ "restartCount": 2, "ready": true, "state": { "running": {} },
            "lastState": { "terminated": { "finishedAt": "2026-01-01T00:55:00Z" } } });
        let pod = json!({ "metadata": { "name": "p", "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "containers": [{}, {}] },
            "status": { "phase": "Running", "podIP": "10.0.0.1", "containerStatuses": [running,
                { "state": { "waiting": { "reason": "CrashLoopBackOff" } } }] } });
        assert_eq!(
            row(&pod)[..6],
            [
                "p",
                "1/2",
                "CrashLoopBackOff",
                "2 (5m ago)",
                "60m",
                "10.0.0.1"
            ]
        );

        let mut gone = pod.clone();
        gone["metadata"]["deletionTimestamp"] = "2026-01-01T00:59:00Z".into();
        assert_eq!(row(&gone)[2], "Terminating");

        let init = json!({ "spec": { "containers": [{}], "initContainers": [{ "name": "a" }, { "name": "b" }] },
            "status": { "phase": "Pending", "initContainerStatuses": [
                { "name": "a", "state": { "terminated": { "exitCode": 0 } } },
                { "name": "b", "state": { "waiting": { "reason": "PodInitializing" } } }] } });
        assert_eq!(row(&init)[1..3], ["0/1", "Init:1/2"]);

        let done = json!({ "spec": { "containers": [{}] }, "status": { "phase": "Succeeded",
            "containerStatuses": [{ "state": { "terminated": { "exitCode": 0, "reason": "Completed" } } }] } });
        assert_eq!(row(&done)[1..4], ["0/1", "Completed", "0"]);
    }
}
