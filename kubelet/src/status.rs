//! A pod's status, computed from what the runtime has: a pure function.

use std::net::IpAddr;
use std::time::SystemTime;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState as ApiState, ContainerStateTerminated, ContainerStatus, HostIP, Pod,
    PodCondition, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use knarr_engine::types::{ContainerState, SandboxState};

use crate::container_status::{self, Facts};
use crate::memory::{Ending, Memory, Observed, Rejection};
use crate::plan::{self, Outcome};
use crate::pod::{self, Kind};

/// A time as the API writes it, in whole seconds.
pub(crate) fn time(at: SystemTime) -> Time {
    Time(Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Computes the status that the API should show.
///
/// `previous` is what was last written, for the conditions' transition times and for what other writers own.
pub(crate) fn build(
    pod: &Pod,
    observed: &Observed,
    memory: &Memory,
    previous: Option<&PodStatus>,
    node_ips: &[IpAddr],
    facts: &Facts<'_>,
    now: SystemTime,
) -> PodStatus {
    let spec = pod::spec(pod);
    let sandbox = observed.sandboxes.first();
    let init = container_status::list(pod, observed, memory, facts, &[Kind::Init, Kind::Sidecar]);
    let regular = container_status::list(pod, observed, memory, facts, &[Kind::Regular]);
    let ephemeral = container_status::list(pod, observed, memory, facts, &[Kind::Ephemeral]);
    let (phase, reason, message) = end_of(pod, observed, memory);
    let mut status = PodStatus {
        phase: Some(phase.to_owned()),
        reason,
        message,
        start_time: memory.start_time.map(time),
        observed_generation: pod.metadata.generation,
        host_ip: node_ips.first().map(ToString::to_string),
        host_ips: (!node_ips.is_empty()).then(|| {
            node_ips
                .iter()
                .map(|ip| HostIP { ip: ip.to_string() })
                .collect()
        }),
        container_statuses: (!regular.is_empty()).then_some(regular),
        init_container_statuses: (!init.is_empty()).then_some(init),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        qos_class: pod.status.as_ref().and_then(|s| s.qos_class.clone()),
        ..PodStatus::default()
    };
    let ips = if spec.host_network == Some(true) {
        // The host's addresses are there before the pod is.
        node_ips.to_vec()
    } else {
        sandbox.map(|s| s.ips.clone()).unwrap_or_default()
    };
    if let Some(ip) = ips.first() {
        status.pod_ip = Some(ip.to_string());
        status.pod_ips = Some(ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect());
    }
    if matches!(memory.ending, Some(Ending::Rejected(_))) {
        // As in Kubernetes, a pod that the node never took has no containers to show.
        status.container_statuses = None;
        status.init_container_statuses = None;
        status.ephemeral_container_statuses = None;
    } else if memory.killed && initialised(spec, &status, phase).ok {
        terminate(status.container_statuses.as_deref_mut().unwrap_or_default());
    }
    status.conditions = Some(conditions(pod, observed, &status, previous, now));
    status
}

/// The phase, with the reason and the message of an end that the node brought about.
///
/// A phase is terminal only when nothing of the pod runs any more and its network is given back: others take it as leave to
/// use what the pod used. Source: kubernetes, pkg/kubelet/status, `mergePodStatus`.
fn end_of(
    pod: &Pod,
    observed: &Observed,
    memory: &Memory,
) -> (&'static str, Option<String>, Option<String>) {
    if let Some(status) = pod.status.as_ref().filter(|_| pod::is_terminal(pod)) {
        // A terminal phase is never left.
        let phase = match status.phase.as_deref() {
            Some("Succeeded") => "Succeeded",
            _ => "Failed",
        };
        return (phase, status.reason.clone(), status.message.clone());
    }
    if !memory.killed {
        return (open_phase(pod, observed), None, None);
    }
    match &memory.ending {
        Some(Ending::Failed { reason, message }) => {
            ("Failed", Some((*reason).to_owned()), Some(message.clone()))
        }
        Some(Ending::Rejected(Rejection { reason, message })) => (
            "Failed",
            Some(reason.clone()),
            Some(format!("Pod was rejected: {message}")),
        ),
        _ => (closed_phase(pod, observed, memory), None, None),
    }
}

/// The phase of a pod that may still do something. Source: kubernetes, pkg/kubelet/kubelet_pods.go, `getPhase`.
fn open_phase(pod: &Pod, observed: &Observed) -> &'static str {
    let all_began = pod::spec(pod).containers.iter().all(|container| {
        let mut history = observed.history(&container.name);
        history.any(|s| s.state != ContainerState::Created)
    });
    if all_began { "Running" } else { "Pending" }
}

/// The phase of a pod whose containers were stopped for good: what would have been restarted is not any more.
fn closed_phase(pod: &Pod, observed: &Observed, memory: &Memory) -> &'static str {
    match plan::outcome(pod, observed, memory) {
        Outcome::Succeeded => return "Succeeded",
        Outcome::Failed => return "Failed",
        Outcome::Open => {}
    }
    let all_succeeded = pod::spec(pod).containers.iter().all(|container| {
        let latest = observed.latest(&container.name);
        latest.is_some_and(|s| s.state == ContainerState::Exited && s.exit_code == 0)
    });
    if all_succeeded { "Succeeded" } else { "Failed" }
}

/// Shows every regular container of a pod that ended as ended.
///
/// One that the runtime has no end of counts as failed. Source: kubernetes, pkg/kubelet/status, `TerminatePod`.
fn terminate(statuses: &mut [ContainerStatus]) {
    for status in statuses {
        let state = status.state.get_or_insert_default();
        if state.terminated.is_some() {
            continue;
        }
        *state = ApiState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".to_owned()),
                message: Some(
                    "The container could not be located when the pod was terminated".to_owned(),
                ),
                ..ContainerStateTerminated::default()
            }),
            ..ApiState::default()
        };
        status.ready = false;
        status.started = Some(false);
    }
}

fn conditions(
    pod: &Pod,
    observed: &Observed,
    status: &PodStatus,
    previous: Option<&PodStatus>,
    now: SystemTime,
) -> Vec<PodCondition> {
    let spec = pod::spec(pod);
    let phase = status.phase.as_deref().unwrap_or_default();
    let sandbox_ready = observed.sandboxes.first().is_some_and(|s| {
        s.state == SandboxState::Ready && (!s.ips.is_empty() || spec.host_network == Some(true))
    });
    let containers = containers_ready(spec, status, phase);
    let ready = match &containers {
        Verdict { ok: true, .. } => gates_ready(spec, pod, previous),
        other => other.clone(),
    };
    let verdicts = [
        ("PodReadyToStartContainers", Verdict::plain(sandbox_ready)),
        ("Initialized", initialised(spec, status, phase)),
        ("Ready", ready),
        ("ContainersReady", containers),
        ("PodScheduled", Verdict::plain(true)),
    ];
    let known = previous
        .or(pod.status.as_ref())
        .and_then(|s| s.conditions.as_ref());
    verdicts
        .into_iter()
        .map(|(kind, verdict)| {
            let value = if verdict.ok { "True" } else { "False" };
            let unchanged = known
                .into_iter()
                .flatten()
                .find(|c| c.type_ == kind && c.status == value)
                .and_then(|c| c.last_transition_time.clone());
            PodCondition {
                type_: kind.to_owned(),
                status: value.to_owned(),
                reason: verdict.reason,
                message: verdict.message,
                last_transition_time: Some(unchanged.unwrap_or_else(|| time(now))),
                observed_generation: pod.metadata.generation,
                ..PodCondition::default()
            }
        })
        .collect()
}

/// One condition's value and why.
#[derive(Clone)]
struct Verdict {
    ok: bool,
    reason: Option<String>,
    message: Option<String>,
}

impl Verdict {
    fn plain(ok: bool) -> Self {
        Self {
            ok,
            reason: None,
            message: None,
        }
    }

    fn no(reason: &str, message: Option<String>) -> Self {
        Self {
            ok: false,
            reason: Some(reason.to_owned()),
            message,
        }
    }
}

fn names(list: &[&str]) -> String {
    format!("[{}]", list.join(" "))
}

fn initialised(spec: &PodSpec, status: &PodStatus, phase: &str) -> Verdict {
    if phase == "Succeeded" {
        return Verdict {
            ok: true,
            reason: Some("PodCompleted".to_owned()),
            message: None,
        };
    }
    let mut incomplete = Vec::new();
    for (container, kind) in pod::init_containers(spec) {
        let done = status
            .init_container_statuses
            .iter()
            .flatten()
            .find(|s| s.name == container.name)
            .is_some_and(|s| match kind {
                Kind::Sidecar => s.started == Some(true),
                _ => s.ready,
            });
        if !done {
            incomplete.push(container.name.as_str());
        }
    }
    // Once a regular container ran, initialisation is over, whatever became of a sidecar since.
    let begun = status
        .container_statuses
        .iter()
        .flatten()
        .any(|s| s.container_id.is_some());
    if incomplete.is_empty() || begun {
        return Verdict::plain(true);
    }
    Verdict::no(
        "ContainersNotInitialized",
        Some(format!(
            "containers with incomplete status: {}",
            names(&incomplete)
        )),
    )
}

fn containers_ready(spec: &PodSpec, status: &PodStatus, phase: &str) -> Verdict {
    match phase {
        "Succeeded" => return Verdict::no("PodCompleted", None),
        "Failed" => return Verdict::no("PodFailed", None),
        _ => {}
    }
    let sidecars: Vec<&str> = pod::init_containers(spec)
        .filter(|(_, kind)| *kind == Kind::Sidecar)
        .map(|(c, _)| c.name.as_str())
        .collect();
    let unready: Vec<&str> = status
        .init_container_statuses
        .iter()
        .flatten()
        .filter(|s| sidecars.contains(&s.name.as_str()))
        .chain(status.container_statuses.iter().flatten())
        .filter(|s| !s.ready)
        .map(|s| s.name.as_str())
        .collect();
    if unready.is_empty() {
        return Verdict::plain(true);
    }
    Verdict::no(
        "ContainersNotReady",
        Some(format!(
            "containers with unready status: {}",
            names(&unready)
        )),
    )
}

fn gates_ready(spec: &PodSpec, pod: &Pod, previous: Option<&PodStatus>) -> Verdict {
    let mut messages = Vec::new();
    for gate in spec.readiness_gates.iter().flatten() {
        let kind = &gate.condition_type;
        let find = |status: Option<&PodStatus>| {
            status
                .and_then(|s| s.conditions.as_ref())
                .into_iter()
                .flatten()
                .find(|c| c.type_ == *kind)
                .map(|c| c.status.clone())
        };
        match find(pod.status.as_ref()).or_else(|| find(previous)) {
            Some(value) if value == "True" => {}
            Some(value) => messages.push(format!(
                "the status of pod readiness gate \"{kind}\" is not \"True\", but {value}"
            )),
            None => messages.push(format!(
                "corresponding condition of pod readiness gate \"{kind}\" does not exist."
            )),
        }
    }
    if messages.is_empty() {
        Verdict::plain(true)
    } else {
        Verdict::no("ReadinessGatesNotReady", Some(messages.join(", ")))
    }
}

#[cfg(test)]
mod tests;
