//! Carrying out the steps of a plan: the quick ones at once, the others as jobs beside the pod's task.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use knarr_engine::types::{ContainerId, ContainerState, SandboxId};
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use tokio_util::sync::CancellationToken;

use crate::ctx::Ctx;
use crate::events::Severity;
use crate::hooks;
use crate::images::ImageError;
use crate::kill;
use crate::logs;
use crate::memory::{Backoff, Condemned, Observed, PullFailure, Waiting};
use crate::plan::Action;
use crate::pod::{self, PodKey};
use crate::runtime::{RuntimeError, chain};
use crate::sandbox;
use crate::start::{self, StartError};
use crate::volumes::{self, MountError};
use crate::worker::Worker;
use crate::writer::{Written, is_gone};

/// How long a pod whose sandbox or volumes failed waits for its next try.
const SANDBOX_RETRY: Duration = Duration::from_secs(2);
/// How long a status write may take before the pod goes on without it.
const LAST_WRITE: Duration = Duration::from_secs(5);
/// How long a container that could not be configured or made waits, if nothing that it refers to changes.
const CREATE_RETRY: Duration = Duration::from_secs(10);

/// A job's end.
pub(crate) enum Done {
    Sandbox(Result<(SandboxId, Option<SystemTime>), SandboxError>),
    Started {
        container: String,
        dead: Option<SystemTime>,
        result: Result<ContainerId, StartError>,
    },
    PostStart {
        container: String,
        id: ContainerId,
        result: Result<(), String>,
    },
    Stopped {
        id: ContainerId,
        result: Result<(), RuntimeError>,
    },
    /// `None`: given up for a shorter grace period.
    Killed(Option<Result<(), RuntimeError>>),
    Renewed(Result<Option<SystemTime>, MountError>),
    Status(Written),
}

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    /// A volume is not there.
    #[error("{0}")]
    Mount(MountError),
    /// The runtime could not make it.
    #[error("{message}")]
    Runtime { message: String },
    /// The pod ends before its volumes were there.
    #[error("the pod is being stopped")]
    Cancelled,
}

impl Worker {
    /// Carries out one step; returns whether the pod must be looked at again at once.
    pub(crate) async fn act(&mut self, action: Action, observed: &Observed) -> bool {
        match action {
            Action::CreateSandbox { attempt } => {
                self.memory.creating_sandbox = true;
                let (ctx, pod, wake) = (self.ctx.clone(), self.pod.clone(), self.wake.clone());
                let cancel = self.cancel.clone();
                self.jobs.spawn(async move {
                    Done::Sandbox(create_sandbox(&ctx, &pod, attempt, &wake, &cancel).await)
                });
                false
            }
            Action::Start { container, attempt } => self.start(&container, attempt, observed),
            Action::CrashLoop { container, delay } => {
                let waiting = Waiting {
                    reason: "CrashLoopBackOff".to_owned(),
                    message: format!(
                        "back-off {} restarting failed container={container} pod={}",
                        go_duration(delay),
                        self.key
                    ),
                };
                self.back_off(
                    &container,
                    waiting,
                    format!(
                        "Back-off restarting failed container {container} in pod {}",
                        self.key
                    ),
                );
                false
            }
            Action::PullBackOff { container } => {
                let image = pod::find_container(pod::spec(&self.pod), &container)
                    .and_then(|(c, _)| c.image)
                    .unwrap_or_default();
                let cause = self
                    .memory
                    .container(&container)
                    .and_then(|m| m.pull.as_ref())
                    .map(|p| p.message.clone());
                let message = format!(
                    "Back-off pulling image \"{image}\": ErrImagePull: {}",
                    cause.unwrap_or_default()
                );
                let waiting = Waiting {
                    reason: "ImagePullBackOff".to_owned(),
                    message,
                };
                self.back_off(
                    &container,
                    waiting,
                    format!("Back-off pulling image \"{image}\""),
                );
                false
            }
            Action::Stop {
                id,
                container,
                message,
                grace,
            } => {
                self.stop(&id, &container, message, grace, observed);
                false
            }
            Action::Remove { id } => {
                if let Err(error) = self.ctx.runtime.remove_container(&id).await {
                    tracing::warn!(pod = %self.key, error = chain(&error), "remove a dead container");
                }
                if let Some(status) = observed.containers.iter().find(|c| c.id == id) {
                    logs::remove(&self.ctx.config, status);
                }
                self.containers.retain(|known| *known != id);
                false
            }
            Action::Cancel => {
                self.cancel.cancel();
                false
            }
            Action::KillPod { ending } => {
                self.memory.ending = Some(ending);
                self.memory.killing = true;
                let grace = pod::grace_period(&self.pod);
                let token = CancellationToken::new();
                self.killing = Some((grace, token.clone()));
                let (ctx, pod, observed) = (self.ctx.clone(), self.pod.clone(), observed.clone());
                self.jobs.spawn(async move {
                    let stop = kill::pod(&ctx, &pod, &observed, grace);
                    let result = token.run_until_cancelled(stop).await;
                    if matches!(result, Some(Err(_))) {
                        // What failed is tried again, but not at once.
                        tokio::time::sleep(SANDBOX_RETRY).await;
                    }
                    Done::Killed(result)
                });
                false
            }
            Action::Park => {
                self.release_volumes().await;
                self.memory.parked = true;
                true
            }
            Action::CleanUp => {
                self.clean_up(observed).await;
                false
            }
        }
    }

    fn start(&mut self, name: &str, attempt: u32, observed: &Observed) -> bool {
        let found = pod::find_container(pod::spec(&self.pod), name);
        let (Some((container, _)), Some(sandbox)) = (found, observed.ready_sandbox().cloned())
        else {
            return false;
        };
        self.memory.starting = Some(name.to_owned());
        let dead = observed
            .latest(name)
            .filter(|s| s.state == ContainerState::Exited)
            .map(|s| s.finished_at.unwrap_or(s.created_at));
        let (ctx, pod, wake) = (self.ctx.clone(), self.pod.clone(), self.wake.clone());
        let cancel = self.cancel.clone();
        self.jobs.spawn(async move {
            let result =
                start::start(&ctx, &pod, &container, &sandbox, attempt, &wake, &cancel).await;
            Done::Started {
                container: container.name,
                dead,
                result,
            }
        });
        false
    }

    fn back_off(&mut self, container: &str, waiting: Waiting, event: String) {
        let remembered = self.memory.container_mut(container);
        if remembered.waiting.as_ref() != Some(&waiting) {
            if waiting.reason == "ImagePullBackOff" {
                let message = format!("Error: {}", waiting.reason);
                self.ctx.events.pod(
                    &self.pod,
                    Some(container),
                    Severity::Warning,
                    "Failed",
                    message,
                );
            }
            remembered.waiting = Some(waiting);
            self.ctx.events.pod(
                &self.pod,
                Some(container),
                Severity::Warning,
                "BackOff",
                event,
            );
        }
    }

    fn stop(
        &mut self,
        id: &ContainerId,
        name: &str,
        message: String,
        grace: Option<Duration>,
        observed: &Observed,
    ) {
        let Some(status) = observed.latest(name).filter(|s| s.id == *id).cloned() else {
            return;
        };
        self.memory.stopping.insert(id.clone());
        let grace = grace.unwrap_or_else(|| pod::grace_period(&self.pod));
        let (ctx, pod) = (self.ctx.clone(), self.pod.clone());
        let ip = observed
            .sandboxes
            .first()
            .and_then(|s| s.ips.first().copied());
        let id = id.clone();
        self.jobs.spawn(async move {
            let result = kill::container(&ctx, &pod, &status, ip, message, grace).await;
            Done::Stopped { id, result }
        });
    }

    pub(crate) fn renew_volumes(&mut self, observed: &Observed) {
        self.renewing = true;
        self.renew_at = None;
        let ips = observed
            .sandboxes
            .first()
            .map(|s| s.ips.clone())
            .unwrap_or_default();
        let (ctx, pod, wake) = (self.ctx.clone(), self.pod.clone(), self.wake.clone());
        self.jobs
            .spawn(async move { Done::Renewed(volumes::set_up(&ctx, &pod, &ips, &wake).await) });
    }

    /// Takes a job's end into the pod's memory.
    pub(crate) fn finish(&mut self, done: Done) {
        match done {
            Done::Sandbox(result) => self.sandbox_made(result),
            Done::Started {
                container,
                dead,
                result,
            } => self.started(&container, dead, result),
            Done::PostStart {
                container,
                id,
                result,
            } => {
                let remembered = self.memory.container_mut(&container);
                remembered.post_start_running = false;
                if let Err(message) = result {
                    remembered.condemned = Some(Condemned {
                        message: "FailedPostStartHook".to_owned(),
                        grace: None,
                    });
                    tracing::info!(pod = %self.key, container = id.0, "postStart hook failed");
                    self.ctx.events.pod(
                        &self.pod,
                        Some(&container),
                        Severity::Warning,
                        "FailedPostStartHook",
                        format!("PostStartHook failed: {message}"),
                    );
                }
            }
            Done::Stopped { id, result } => {
                self.memory.stopping.remove(&id);
                if let Err(error) = result {
                    tracing::warn!(pod = %self.key, error = chain(&error), "stop a container");
                }
            }
            Done::Killed(result) => {
                self.killing = None;
                self.memory.killing = false;
                match result {
                    Some(Ok(())) => self.memory.killed = true,
                    Some(Err(error)) => {
                        self.ctx.events.pod(
                            &self.pod,
                            None,
                            Severity::Warning,
                            "FailedKillPod",
                            format!("error killing pod: {}", chain(&error)),
                        );
                    }
                    None => {}
                }
            }
            Done::Renewed(result) => {
                self.renewing = false;
                match result {
                    Ok(at) => self.renew_at = self.renew_at.or(at),
                    Err(error) => {
                        self.ctx.events.pod(
                            &self.pod,
                            None,
                            Severity::Warning,
                            "FailedMount",
                            error.to_string(),
                        );
                        self.renew_at = Some(SystemTime::now() + CREATE_RETRY);
                    }
                }
            }
            Done::Status(written) => self.writer.done(&written),
        }
    }

    fn sandbox_made(&mut self, result: Result<(SandboxId, Option<SystemTime>), SandboxError>) {
        self.memory.creating_sandbox = false;
        let error = match result {
            Ok((id, renew_at)) => {
                self.sandboxes.push(id);
                self.renew_at = renew_at;
                return;
            }
            Err(error) => error,
        };
        let (reason, message) = match &error {
            SandboxError::Mount(_) => ("FailedMount", error.to_string()),
            SandboxError::Runtime { message } => (
                "FailedCreatePodSandBox",
                format!("Failed to create pod sandbox: {message}"),
            ),
            SandboxError::Cancelled => return,
        };
        self.ctx
            .events
            .pod(&self.pod, None, Severity::Warning, reason, message);
        self.memory.sandbox_retry_at = Some(SystemTime::now() + SANDBOX_RETRY);
    }

    fn started(
        &mut self,
        name: &str,
        dead: Option<SystemTime>,
        result: Result<ContainerId, StartError>,
    ) {
        let now = SystemTime::now();
        self.memory.starting = None;
        let remembered = self.memory.container_mut(name);
        let created = matches!(result, Ok(_) | Err(StartError::Run { .. }));
        if created {
            remembered.pull = None;
            remembered.retry_at = None;
            // Each start after an end makes the next one wait longer.
            if let Some(ended) = dead {
                remembered.backoff = Some(Backoff::next(remembered.backoff, ended, now));
            }
        }
        match result {
            Ok(id) => {
                remembered.waiting = None;
                remembered.started = false;
                remembered.ready = false;
                self.containers.push(id.clone());
                self.post_start(name, id);
            }
            Err(StartError::Cancelled) => {}
            Err(error) => {
                remembered.waiting = Some(Waiting {
                    reason: error.reason().to_owned(),
                    message: error.to_string(),
                });
                match error {
                    StartError::Run { id, .. } => self.containers.push(id),
                    StartError::Image(ImageError::Pull { message, .. }) => {
                        let previous = remembered.pull.as_ref().map(|p| p.backoff);
                        let backoff = Backoff::next(previous, now, now);
                        remembered.pull = Some(PullFailure {
                            message,
                            at: now,
                            backoff,
                        });
                    }
                    _ => remembered.retry_at = Some(now + CREATE_RETRY),
                }
            }
        }
    }

    fn post_start(&mut self, name: &str, id: ContainerId) {
        let Some((container, _)) = pod::find_container(pod::spec(&self.pod), name) else {
            return;
        };
        let Some(hook) = container
            .lifecycle
            .as_ref()
            .and_then(|l| l.post_start.clone())
        else {
            return;
        };
        self.memory.container_mut(name).post_start_running = true;
        let ctx = self.ctx.clone();
        let sandbox = self.sandboxes.last().cloned();
        self.jobs.spawn(async move {
            let ip = match sandbox {
                Some(sandbox) => ctx
                    .runtime
                    .sandbox_status(&sandbox)
                    .await
                    .ok()
                    .and_then(|s| s.ips.first().copied()),
                None => None,
            };
            let result = hooks::run(&ctx, &container, &id, ip, &hook).await;
            Done::PostStart {
                container: container.name,
                id,
                result,
            }
        });
    }

    /// Unmounts and removes the pod's directory on the node.
    async fn release_volumes(&self) -> bool {
        let directory = self.ctx.config.pod_dir(&self.key.uid);
        self.ctx.objects.forget(&self.key.uid);
        self.ctx.tokens.forget(&self.key.uid);
        // The termination messages go with it; the status has them already.
        match tokio::task::spawn_blocking(move || volumes::remove_pod_dir(&directory)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(pod = %self.key, error = chain(&error), "remove the pod's directory");
                false
            }
            Err(error) => {
                tracing::error!(pod = %self.key, %error, "remove the pod's directory");
                false
            }
        }
    }

    /// Publishes the last status, gives everything back, deletes the object.
    async fn clean_up(&mut self, observed: &Observed) {
        // A status that is being written must not overtake the last one; hooks and the like need no waiting for.
        let rest = async {
            while self.writer.writing() {
                match self.jobs.join_next().await {
                    Some(Ok(done)) => self.finish(done),
                    Some(Err(error)) => {
                        tracing::error!(pod = %self.key, %error, "a job of the pod failed")
                    }
                    None => break,
                }
            }
        };
        let _late = tokio::time::timeout(LAST_WRITE, rest).await;
        self.jobs.shutdown().await;
        self.writer.abandon();
        if !self.gone && !pod::is_terminal(&self.pod) {
            let status = self.status(observed);
            self.writer.want(status, true);
            if let Some(write) = self.writer.next(&self.pod) {
                let written = write.send(self.ctx.client.clone(), &self.key).await;
                self.writer.done(&written);
            }
        }
        let removed = kill::remove(&self.ctx, observed).await;
        // The pod's own directory goes last: as long as it is there, a restarted agent finds what is left to remove.
        for container in &observed.containers {
            logs::remove(&self.ctx.config, container);
        }
        let key = &self.key;
        logs::remove_directory(&self.ctx.config.log_dir(&key.namespace, &key.name, &key.uid));
        if !(removed && self.release_volumes().await) {
            self.clean_up_failed().await;
            return;
        }
        if self.gone || delete_object(&self.ctx, &self.key).await {
            self.finished = true;
        } else {
            self.clean_up_failed().await;
        }
    }

    async fn clean_up_failed(&self) {
        tokio::time::sleep(SANDBOX_RETRY).await;
        self.wake.notify_one();
    }
}

async fn create_sandbox(
    ctx: &Arc<Ctx>,
    pod: &k8s_openapi::api::core::v1::Pod,
    attempt: u32,
    wake: &Arc<tokio::sync::Notify>,
    cancel: &CancellationToken,
) -> Result<(SandboxId, Option<SystemTime>), SandboxError> {
    let config = sandbox::config(&ctx.config, pod, attempt).map_err(|e| SandboxError::Runtime {
        message: format!("read {}: {e}", ctx.config.resolv_conf.display()),
    })?;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    for directory in [ctx.config.pod_dir(uid), config.log_directory.clone()] {
        std::fs::create_dir_all(&directory).map_err(|e| SandboxError::Runtime {
            message: format!("make {}: {e}", directory.display()),
        })?;
    }
    // Waiting for volumes may be given up; making the sandbox may not, or it would be left behind.
    let begun = Instant::now();
    let renew_at = cancel
        .run_until_cancelled(volumes::set_up(ctx, pod, &[], wake))
        .await
        .ok_or(SandboxError::Cancelled)?
        .map_err(SandboxError::Mount)?;
    let mounted = begun.elapsed();
    let id = ctx
        .runtime
        .run_sandbox(config)
        .await
        .map_err(|e| SandboxError::Runtime { message: chain(&e) })?;
    tracing::debug!(pod = %PodKey::of(pod), ?mounted, whole = ?begun.elapsed(), "volumes and sandbox are there");
    Ok((id, renew_at))
}

/// Deletes the object, if it still is this very pod; returns whether it is gone.
async fn delete_object(ctx: &Ctx, key: &PodKey) -> bool {
    let api: Api<k8s_openapi::api::core::v1::Pod> =
        Api::namespaced(ctx.client.clone(), &key.namespace);
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: Some(key.uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(&key.name, &parameters).await {
        Ok(_) => true,
        Err(error) if is_gone(&error) => true,
        Err(error) => {
            tracing::warn!(pod = %key, error = chain(&error), "delete the pod's object");
            false
        }
    }
}

/// A duration as Go writes it: `10s`, `1m20s`, `5m0s`.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 {
        format!("{seconds}s")
    } else {
        format!("{}m{}s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        let text: Vec<String> = [10, 80, 300]
            .map(|s| go_duration(Duration::from_secs(s)))
            .to_vec();
        assert_eq!(text, ["10s", "1m20s", "5m0s"]);
    }
}
