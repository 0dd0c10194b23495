//! The probes of one pod's running containers, and what their verdicts mean.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use knarr_engine::types::{ContainerId, ContainerState};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::container_status::container_id;
use crate::ctx::Ctx;
use crate::memory::{Condemned, Memory, Observed};
use crate::pod::{self, Kind};
use crate::probe::{Purpose, Subject, Verdict};

struct Running {
    id: ContainerId,
    tasks: HashMap<Purpose, AbortOnDropHandle<()>>,
}

/// The probes of one pod; dropping it ends them.
pub(crate) struct Probes {
    sender: mpsc::Sender<Verdict>,
    running: HashMap<String, Running>,
}

impl Probes {
    /// Verdicts arrive at the other end of `sender`.
    pub(crate) fn new(sender: mpsc::Sender<Verdict>) -> Self {
        Self {
            sender,
            running: HashMap::new(),
        }
    }

    /// Starts the probes of containers that run, ends those of containers that do not.
    pub(crate) fn follow(
        &mut self,
        ctx: &Arc<Ctx>,
        pod: &Arc<Pod>,
        observed: &Observed,
        memory: &mut Memory,
    ) {
        let own = observed.sandboxes.first().map_or(&[][..], |s| &s.ips);
        let pod_ip = pod::address(pod, &ctx.config, own);
        let spec = pod::spec(pod);
        for (container, _) in pod::all_containers(spec) {
            let name = container.name.clone();
            let latest = observed
                .latest(&name)
                .filter(|s| s.state == ContainerState::Running);
            // A pod that goes is not probed any more: its containers are stopped anyway.
            let Some(status) = latest.filter(|_| !memory.killing && !memory.killed) else {
                self.running.remove(&name);
                continue;
            };
            if self.running.get(&name).is_none_or(|r| r.id != status.id) {
                let (started, ready) = before(pod, status);
                let remembered = memory.container_mut(&name);
                remembered.started = started || container.startup_probe.is_none();
                remembered.ready = ready || container.readiness_probe.is_none();
                remembered.condemned = None;
                self.running.insert(
                    name.clone(),
                    Running {
                        id: status.id.clone(),
                        tasks: HashMap::new(),
                    },
                );
            }
            let (started, ready) = memory
                .container(&name)
                .map_or((false, false), |m| (m.started, m.ready));
            let Some(running) = self.running.get_mut(&name) else {
                continue;
            };
            for purpose in [Purpose::Startup, Purpose::Readiness, Purpose::Liveness] {
                let due = (purpose == Purpose::Startup) != started;
                if !due || purpose.of(&container).is_none() || running.tasks.contains_key(&purpose)
                {
                    continue;
                }
                let subject = Subject {
                    ctx: ctx.clone(),
                    pod: pod.clone(),
                    container: container.clone(),
                    id: status.id.clone(),
                    pod_ip,
                    started_at: status.started_at.unwrap_or_else(SystemTime::now),
                    purpose,
                    initial: match purpose {
                        Purpose::Startup => None,
                        Purpose::Readiness => Some(ready),
                        Purpose::Liveness => Some(true),
                    },
                };
                let task = tokio::spawn(subject.run(self.sender.clone()));
                running.tasks.insert(purpose, AbortOnDropHandle::new(task));
            }
        }
    }

    /// Notes a verdict in the pod's memory.
    pub(crate) fn take(&mut self, ctx: &Ctx, pod: &Pod, verdict: Verdict, memory: &mut Memory) {
        let current = self
            .running
            .get(&verdict.container)
            .is_some_and(|r| r.id == verdict.id);
        if !current {
            return;
        }
        let Some((container, kind)) = pod::find_container(pod::spec(pod), &verdict.container)
        else {
            return;
        };
        let remembered = memory.container_mut(&verdict.container);
        match (verdict.purpose, verdict.passed) {
            (Purpose::Startup, true) => remembered.started = true,
            (Purpose::Readiness, passed) => remembered.ready = passed,
            (Purpose::Liveness, true) => {}
            (purpose, false) => {
                let spec = pod::spec(pod);
                let restarts =
                    kind == Kind::Sidecar || spec.restart_policy.as_deref() != Some("Never");
                let probe = purpose.of(&container);
                let grace = probe
                    .and_then(|p| p.termination_grace_period_seconds)
                    .map(|s| Duration::from_secs(u64::try_from(s).unwrap_or(0).max(1)));
                tracing::info!(
                    node = ctx.config.node_name,
                    container = verdict.container,
                    "probe failed, restarting"
                );
                remembered.condemned = Some(Condemned {
                    message: format!(
                        "Container {} failed {} probe{}",
                        verdict.container,
                        purpose.name().to_lowercase(),
                        if restarts { ", will be restarted" } else { "" },
                    ),
                    grace,
                });
            }
        }
    }
}

/// What the API already says of this very container, from before the agent's restart.
fn before(pod: &Pod, status: &knarr_engine::types::ContainerStatus) -> (bool, bool) {
    let id = container_id(status);
    let known = pod.status.as_ref().and_then(|s| {
        s.container_statuses
            .iter()
            .chain(&s.init_container_statuses)
            .flatten()
            .find(|c| c.container_id.as_deref() == Some(id.as_str()))
    });
    known.map_or((false, false), |c| (c.started == Some(true), c.ready))
}
