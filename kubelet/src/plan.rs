//! What to do next for one pod: a pure function of what is wanted, what is there and what is remembered.

use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use knarr_engine::types::{ContainerId, ContainerState, ContainerStatus, SandboxId};

use crate::apparmor;
use crate::memory::{Ending, Memory, Observed, Rejection};
use crate::pod::{self, Kind};
use crate::sysctl;

/// For how long `ErrImagePull` stays visible before it becomes `ImagePullBackOff`.
const PULL_ERROR_SHOWN: Duration = Duration::from_secs(3);

/// One step for the pod's task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Mount the volumes, make the sandbox.
    CreateSandbox { attempt: u32 },
    /// Stop a sandbox that is of no more use, so that its network, addresses and ports are free for the next one. With
    /// `remove`, nothing of it is kept: no container that ended in it has a log or a status to show.
    ReleaseSandbox { id: SandboxId, remove: bool },
    /// Pull the image, create the container, start it.
    Start { container: String, attempt: u32 },
    /// The container ended and waits for its next start.
    CrashLoop { container: String, delay: Duration },
    /// The image could not be pulled and waits for its next try.
    PullBackOff { container: String },
    /// Stop one running container.
    Stop {
        id: ContainerId,
        container: String,
        message: String,
        grace: Option<Duration>,
        /// Whether it starts again whatever its restart policy says.
        replaced: bool,
    },
    /// Remove a container that is of no more use.
    Remove { id: ContainerId },
    /// Stop everything for good.
    KillPod { ending: Ending },
    /// Give up what is being pulled or mounted: the pod ends.
    Cancel,
    /// Everything is stopped and the object stays: give back all but the dead containers, for their logs.
    Park,
    /// Everything is stopped and the object goes: give back what the pod used, then delete it.
    CleanUp,
}

/// The steps, and when to look again though nothing happened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) actions: Vec<Action>,
    pub(crate) wake_at: Option<SystemTime>,
}

impl Plan {
    fn wake(&mut self, at: SystemTime) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }
}

/// How one container's end is answered: its own rules first, then its own policy, then the pod's.
pub(crate) fn restarts(spec: &PodSpec, container: &Container, exit_code: i32) -> bool {
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else {
            continue;
        };
        let listed = codes.values.iter().flatten().any(|v| *v == exit_code);
        let matches = if codes.operator == "NotIn" {
            !listed
        } else {
            listed
        };
        if matches && rule.action == "Restart" {
            return true;
        }
    }
    let policy = container
        .restart_policy
        .as_deref()
        .or(spec.restart_policy.as_deref())
        .unwrap_or("Always");
    match policy {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

/// Whether an ended container starts again: its policy says so, or it gave way to a changed one.
fn comes_again(
    spec: &PodSpec,
    container: &Container,
    ended: &ContainerStatus,
    memory: &Memory,
) -> bool {
    let remembered = memory.container(&container.name);
    remembered.is_some_and(|m| m.replaced.as_ref() == Some(&ended.id))
        || restarts(spec, container, ended.exit_code)
}

/// How the pod's containers stand, for its phase and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Something runs or will.
    Open,
    /// All containers ended with success and stay so.
    Succeeded,
    /// All containers ended, one with failure, and none is restarted.
    Failed,
}

/// Whether the pod's containers have done all they ever will.
pub(crate) fn outcome(pod: &Pod, observed: &Observed, memory: &Memory) -> Outcome {
    let spec = pod::spec(pod);
    for (container, kind) in pod::init_containers(spec) {
        let latest = observed.latest(&container.name);
        let failed = latest.is_some_and(|s| {
            s.state == ContainerState::Exited
                && s.exit_code != 0
                && !init_restarts(spec, container, s.exit_code)
        });
        if kind == Kind::Init && failed {
            return Outcome::Failed;
        }
    }
    let mut failed = false;
    for container in &spec.containers {
        match observed.latest(&container.name) {
            Some(s)
                if s.state == ContainerState::Exited
                    && !comes_again(spec, container, s, memory) =>
            {
                failed |= s.exit_code != 0;
            }
            _ => return Outcome::Open,
        }
    }
    if failed {
        Outcome::Failed
    } else {
        Outcome::Succeeded
    }
}

/// Init containers know two policies: again, or the pod fails.
fn init_restarts(spec: &PodSpec, container: &Container, exit_code: i32) -> bool {
    restarts(spec, container, exit_code)
}

/// Decides the next steps.
///
/// At most one container is being started at a time; stops run beside it. Calling it again with the same state
/// gives the same steps; with everything as wanted it gives none.
pub(crate) fn plan(pod: &Pod, observed: &Observed, memory: &Memory, now: SystemTime) -> Plan {
    let mut plan = Plan::default();
    if let Some(ending) = ending(pod, observed, memory, now, &mut plan) {
        if memory.killed {
            if ending == Ending::Deleted || pod.metadata.deletion_timestamp.is_some() {
                plan.actions.push(Action::CleanUp);
            } else if !memory.parked {
                plan.actions.push(Action::Park);
            }
        } else if memory.starting.is_some() || memory.creating_sandbox {
            plan.actions.push(Action::Cancel);
        } else if !memory.killing {
            plan.actions.push(Action::KillPod { ending });
        }
        return plan;
    }
    let spec = pod::spec(pod);
    prune(spec, observed, &mut plan);
    let all_released = release_stale(observed, memory, now, &mut plan);
    let Some(sandbox) = observed.ready_sandbox() else {
        if memory.creating_sandbox || !all_released {
            return plan;
        }
        if let Some(at) = memory.sandbox_retry_at.filter(|at| *at > now) {
            plan.wake(at);
            return plan;
        }
        let attempt = observed
            .sandboxes
            .first()
            .map_or(0, |s| s.config.attempt + 1);
        plan.actions.push(Action::CreateSandbox { attempt });
        return plan;
    };
    let mut ctx = Containers {
        observed,
        memory,
        now,
        may_start: memory.starting.is_none()
            && !memory.containers.values().any(|c| c.post_start_running),
        plan,
    };
    for container in pod::ephemeral_containers(spec) {
        if observed.latest(&container.name).is_none() {
            ctx.start(&container, None);
        }
    }
    // Init containers of an earlier sandbox do not count: a new network may need them again.
    let here = |name: &str| observed.latest(name).filter(|s| s.sandbox_id == sandbox.id);
    let begun = spec.containers.iter().any(|c| here(&c.name).is_some());
    let mut initialised = true;
    for (container, kind) in pod::init_containers(spec) {
        if !initialised {
            break;
        }
        initialised = ctx.init_container(spec, container, kind, here(&container.name), begun);
    }
    if initialised || begun {
        for container in &spec.containers {
            ctx.regular_container(spec, container, observed.latest(&container.name));
        }
    }
    ctx.plan
}

/// Why the pod is to end, if it is.
fn ending(
    pod: &Pod,
    observed: &Observed,
    memory: &Memory,
    now: SystemTime,
    plan: &mut Plan,
) -> Option<Ending> {
    if let Some(ending) = &memory.ending {
        return Some(ending.clone());
    }
    if let Some(rejection) = &memory.rejected {
        return Some(Ending::Rejected(rejection.clone()));
    }
    if pod.metadata.deletion_timestamp.is_some() {
        return Some(Ending::Deleted);
    }
    if pod::is_terminal(pod) || outcome(pod, observed, memory) != Outcome::Open {
        return Some(Ending::Completed);
    }
    if let Some(message) = sysctl::forbidden(pod::spec(pod)) {
        return Some(Ending::Rejected(Rejection {
            reason: sysctl::FORBIDDEN.to_owned(),
            message,
        }));
    }
    if let Some(message) = apparmor::refusal(pod, apparmor::is_enabled()) {
        return Some(Ending::Rejected(Rejection {
            reason: apparmor::REASON.to_owned(),
            message,
        }));
    }
    let seconds = pod::spec(pod).active_deadline_seconds?;
    let deadline = memory.start_time? + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    if now >= deadline {
        return Some(Ending::Failed {
            reason: "DeadlineExceeded",
            message: "Pod was active on the node longer than the specified deadline".to_owned(),
        });
    }
    plan.wake(deadline);
    None
}

/// Stops the sandboxes that are of no more use; returns whether nothing of theirs is in the way of a new one.
///
/// The new one would not get the host ports, and a static address, that an old one still holds.
fn release_stale(observed: &Observed, memory: &Memory, now: SystemTime, plan: &mut Plan) -> bool {
    // While one is being made, what is seen may be it, half done.
    if memory.creating_sandbox {
        return true;
    }
    let waits = memory.release_retry_at.filter(|at| *at > now);
    let mut all_released = true;
    for sandbox in observed.stale_sandboxes() {
        let used = |c: &ContainerStatus| c.sandbox_id == sandbox.id;
        let remove = !observed.containers.iter().any(used);
        let released = memory.released.contains(&sandbox.id);
        all_released &= released;
        // The newest one stays as a record of the attempts until there is the next one.
        let kept = !remove
            || observed
                .sandboxes
                .first()
                .is_some_and(|s| s.id == sandbox.id);
        if memory.releasing.contains(&sandbox.id) || (released && kept) {
            continue;
        }
        match waits {
            Some(at) => plan.wake(at),
            None => plan.actions.push(Action::ReleaseSandbox {
                id: sandbox.id.clone(),
                remove: !kept,
            }),
        }
    }
    all_released
}

/// Keeps, per container, the newest one and the one before it (for `logs --previous`).
fn prune(spec: &PodSpec, observed: &Observed, plan: &mut Plan) {
    for (container, _) in pod::all_containers(spec) {
        for old in observed.history(&container.name).skip(2) {
            if old.state == ContainerState::Exited {
                plan.actions.push(Action::Remove { id: old.id.clone() });
            }
        }
    }
}

struct Containers<'a> {
    observed: &'a Observed,
    memory: &'a Memory,
    now: SystemTime,
    may_start: bool,
    plan: Plan,
}

impl Containers<'_> {
    /// Returns whether the next init container may start.
    fn init_container(
        &mut self,
        spec: &PodSpec,
        container: &Container,
        kind: Kind,
        latest: Option<&ContainerStatus>,
        begun: bool,
    ) -> bool {
        let sidecar = kind == Kind::Sidecar;
        match latest {
            // An init container that is gone though the regular ones began was removed; it is not run again.
            None if begun && !sidecar => true,
            None => {
                self.start(container, self.observed.latest(&container.name));
                false
            }
            Some(status) => match status.state {
                ContainerState::Created => {
                    self.replace(container, status);
                    false
                }
                ContainerState::Running => {
                    let remembered = self.memory.container(&container.name);
                    // As in Kubernetes, an init container runs to its end with the image that it began with.
                    if sidecar {
                        self.stop_if_changed(container, status);
                    } else {
                        self.stop_if_condemned(status);
                    }
                    sidecar && remembered.is_some_and(|m| m.started && !m.post_start_running)
                }
                ContainerState::Exited if sidecar => {
                    self.start(container, Some(status));
                    begun
                }
                ContainerState::Exited if status.exit_code == 0 => true,
                ContainerState::Exited => {
                    if init_restarts(spec, container, status.exit_code) {
                        self.start(container, Some(status));
                    }
                    false
                }
            },
        }
    }

    fn regular_container(
        &mut self,
        spec: &PodSpec,
        container: &Container,
        latest: Option<&ContainerStatus>,
    ) {
        match latest {
            None => self.start(container, None),
            Some(status) => match status.state {
                ContainerState::Created => self.replace(container, status),
                ContainerState::Running => self.stop_if_changed(container, status),
                ContainerState::Exited => {
                    if comes_again(spec, container, status, self.memory) {
                        self.start(container, Some(status));
                    }
                }
            },
        }
    }

    /// A container that was made but never started belongs to an agent that stopped in between.
    fn replace(&mut self, container: &Container, status: &ContainerStatus) {
        if self.memory.starting.as_deref() == Some(container.name.as_str()) {
            return;
        }
        self.plan.actions.push(Action::Remove {
            id: status.id.clone(),
        });
        if self.may_start {
            self.may_start = false;
            self.plan.actions.push(Action::Start {
                container: container.name.clone(),
                attempt: status.config.attempt,
            });
        }
    }

    fn stop_if_condemned(&mut self, status: &ContainerStatus) {
        let Some(condemned) = self
            .memory
            .container(&status.config.name)
            .and_then(|m| m.condemned.as_ref())
        else {
            return;
        };
        if !self.memory.stopping.contains(&status.id) {
            self.plan.actions.push(Action::Stop {
                id: status.id.clone(),
                container: status.config.name.clone(),
                message: condemned.message.clone(),
                grace: condemned.grace,
                replaced: false,
            });
        }
    }

    /// A container with another image than it is to have gives way to a new one.
    ///
    /// Source: kubernetes, pkg/kubelet/kuberuntime, `containerChanged`: of all that a container is made from, only the image
    /// of a running pod can change.
    fn stop_if_changed(&mut self, container: &Container, status: &ContainerStatus) {
        let image = container.image.as_ref();
        if image.is_none_or(|image| *image == status.config.image_ref) {
            self.stop_if_condemned(status);
        } else if !self.memory.stopping.contains(&status.id) {
            self.plan.actions.push(Action::Stop {
                id: status.id.clone(),
                container: container.name.clone(),
                message: format!(
                    "Container {} definition changed, will be restarted",
                    container.name
                ),
                grace: None,
                replaced: true,
            });
        }
    }

    /// Starts the container, unless it or its image has to wait.
    fn start(&mut self, container: &Container, dead: Option<&ContainerStatus>) {
        let name = &container.name;
        if self.memory.starting.as_ref() == Some(name) {
            return;
        }
        // With another image, what happened before says nothing.
        let remembered = self
            .memory
            .container(name)
            .filter(|m| m.image.is_none() || m.image == container.image);
        if let Some((ended, backoff)) = dead
            .and_then(|d| d.finished_at.or(Some(d.created_at)))
            .zip(remembered.and_then(|m| m.backoff))
        {
            let until = backoff.until(ended);
            if until > self.now {
                self.plan.wake(until);
                self.plan.actions.push(Action::CrashLoop {
                    container: name.clone(),
                    delay: backoff.delay,
                });
                return;
            }
        }
        if let Some(pull) = remembered.and_then(|m| m.pull.as_ref()) {
            let until = pull.backoff.until(pull.at);
            let shown = pull.at + PULL_ERROR_SHOWN;
            if until > self.now {
                if shown > self.now {
                    self.plan.wake(shown);
                } else {
                    self.plan.wake(until);
                    self.plan.actions.push(Action::PullBackOff {
                        container: name.clone(),
                    });
                }
                return;
            }
        }
        if let Some(at) = remembered
            .and_then(|m| m.retry_at)
            .filter(|at| *at > self.now)
        {
            self.plan.wake(at);
            return;
        }
        if self.may_start {
            self.may_start = false;
            let attempt = self
                .observed
                .latest(name)
                .map_or(0, |s| s.config.attempt + 1);
            self.plan.actions.push(Action::Start {
                container: name.clone(),
                attempt,
            });
        }
    }
}

#[cfg(test)]
mod tests;
