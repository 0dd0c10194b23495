//! The statuses of a pod's containers, as the API shows them: a pure function.

use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus as ApiStatus, Pod, ResourceRequirements,
    VolumeMountStatus,
};
use knarr_engine::types::{ContainerState, ContainerStatus};

use crate::memory::{Memory, Observed};
use crate::pod::{self, Kind};
use crate::status::time;

/// What the runtime does not know about containers.
pub(crate) struct Facts<'a> {
    /// The termination message of an ended container.
    pub(crate) termination_message: &'a dyn Fn(&ContainerStatus) -> Option<String>,
}

/// The container id as the API writes it.
pub(crate) fn container_id(status: &ContainerStatus) -> String {
    format!("knarr://{}", status.id.0)
}

/// The statuses of the containers of some kinds, in the order of the specification.
pub(crate) fn list(
    pod: &Pod,
    observed: &Observed,
    memory: &Memory,
    facts: &Facts<'_>,
    kinds: &[Kind],
) -> Vec<ApiStatus> {
    let spec = pod::spec(pod);
    let initialising = spec.init_containers.as_ref().is_some_and(|c| !c.is_empty());
    pod::all_containers(spec)
        .into_iter()
        .filter(|(_, kind)| kinds.contains(kind))
        .map(|(container, kind)| one(pod, &container, kind, observed, memory, facts, initialising))
        .collect()
}

fn one(
    pod: &Pod,
    container: &Container,
    kind: Kind,
    observed: &Observed,
    memory: &Memory,
    facts: &Facts<'_>,
    initialising: bool,
) -> ApiStatus {
    let name = &container.name;
    let mut history = observed.history(name);
    let latest = history.next();
    let previous = history.next();
    let remembered = memory.container(name);
    let waiting = |reason: &str, message: Option<String>| ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message,
        }),
        ..ApiState::default()
    };
    let default_reason = if initialising && kind != Kind::Ephemeral {
        "PodInitializing"
    } else {
        "ContainerCreating"
    };
    let mut status = ApiStatus {
        name: name.clone(),
        image: container.image.clone().unwrap_or_default(),
        last_state: Some(ApiState::default()),
        volume_mounts: volume_mounts(container),
        ..ApiStatus::default()
    };
    let not_started = |s: &&ContainerStatus| s.state == ContainerState::Created;
    match latest.filter(|s| !not_started(s)) {
        None => {
            let waiting_for = remembered.and_then(|m| m.waiting.as_ref());
            status.state = Some(match waiting_for {
                Some(w) => waiting(&w.reason, Some(w.message.clone())),
                None => waiting(default_reason, None),
            });
            if let Some(created) = latest {
                status.restart_count = i32::try_from(created.config.attempt).unwrap_or(i32::MAX);
            }
        }
        Some(current) => {
            status.container_id = Some(container_id(current));
            status.image.clone_from(&current.config.image_ref);
            status.image_id.clone_from(&current.image_digest_ref);
            status.restart_count = i32::try_from(current.config.attempt).unwrap_or(i32::MAX);
            status.state = Some(state(current, facts));
            if let Some(previous) = previous {
                status.last_state = Some(state(previous, facts));
            }
            let will_restart = current.state == ContainerState::Exited && memory.ending.is_none();
            if let Some(w) = remembered
                .and_then(|m| m.waiting.as_ref())
                .filter(|_| will_restart)
            {
                status.last_state = status.state.take();
                status.state = Some(waiting(&w.reason, Some(w.message.clone())));
            }
            if current.state == ContainerState::Running {
                let (started, ready) = remembered.map_or((false, false), |m| (m.started, m.ready));
                status.started = Some(started);
                status.ready = match kind {
                    Kind::Ephemeral | Kind::Init => false,
                    Kind::Regular | Kind::Sidecar => started && ready,
                };
                status.resources = resources(container);
                status.allocated_resources = container
                    .resources
                    .as_ref()
                    .and_then(|r| r.requests.clone());
            } else if kind == Kind::Init {
                status.ready = current.state == ContainerState::Exited && current.exit_code == 0;
            }
        }
    }
    if kind != Kind::Ephemeral && status.started.is_none() {
        status.started = Some(false);
    }
    if kind == Kind::Init {
        status.started = Some(false);
    }
    if pod.metadata.deletion_timestamp.is_some() && kind != Kind::Init {
        // A pod that goes takes no more traffic, once its containers have ended.
        status.ready &= latest.is_some_and(|s| s.state == ContainerState::Running);
    }
    status
}

fn state(status: &ContainerStatus, facts: &Facts<'_>) -> ApiState {
    match status.state {
        ContainerState::Created => ApiState {
            waiting: Some(ContainerStateWaiting::default()),
            ..ApiState::default()
        },
        ContainerState::Running => ApiState {
            running: Some(ContainerStateRunning {
                started_at: status.started_at.map(time),
            }),
            ..ApiState::default()
        },
        ContainerState::Exited => {
            let mut message = status.message.clone();
            if let Some(own) = (facts.termination_message)(status) {
                if !message.is_empty() {
                    message.push_str(": ");
                }
                message.push_str(&own);
            }
            ApiState {
                terminated: Some(ContainerStateTerminated {
                    exit_code: status.exit_code,
                    reason: Some(status.reason.clone()),
                    message: (!message.is_empty()).then_some(message),
                    started_at: Some(time(status.started_at.unwrap_or(std::time::UNIX_EPOCH))),
                    finished_at: status.finished_at.map(time),
                    container_id: Some(container_id(status)),
                    signal: None,
                }),
                ..ApiState::default()
            }
        }
    }
}

fn resources(container: &Container) -> Option<ResourceRequirements> {
    Some(container.resources.clone().unwrap_or_default())
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts: Vec<VolumeMountStatus> = container
        .volume_mounts
        .iter()
        .flatten()
        .map(|m| {
            let read_only = m.read_only == Some(true);
            VolumeMountStatus {
                name: m.name.clone(),
                mount_path: m.mount_path.clone(),
                read_only: read_only.then_some(true),
                recursive_read_only: read_only.then(|| match m.recursive_read_only.as_deref() {
                    Some("Enabled" | "IfPossible") => "Enabled".to_owned(),
                    _ => "Disabled".to_owned(),
                }),
                ..VolumeMountStatus::default()
            }
        })
        .collect();
    (!mounts.is_empty()).then_some(mounts)
}
