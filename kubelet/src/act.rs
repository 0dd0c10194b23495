//! Carrying out the steps of a plan: the quick ones at once, the others as jobs beside the pod's task.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use knarr_engine::types::{ContainerId, ContainerState, SandboxId};
use tokio_util::sync::CancellationToken;

use crate::ctx::Ctx;
use crate::done::{Done, SandboxError};
use crate::events::Severity;
use crate::go;
use crate::jobs::Job;
use crate::kill;
use crate::logs;
use crate::memory::{Ending, Observed, Waiting};
use crate::plan::Action;
use crate::pod::{self, PodKey};
use crate::runtime::chain;
use crate::sandbox;
use crate::start;
use crate::volumes;
use crate::worker::Worker;

/// How long a pod that could not be stopped waits for the next try.
const KILL_RETRY: Duration = Duration::from_secs(2);

impl Worker {
    /// Carries out one step; returns whether the pod must be looked at again at once.
    pub(crate) async fn act(&mut self, action: Action, observed: &Observed) -> bool {
        match action {
            Action::CreateSandbox { attempt } => {
                self.memory.creating_sandbox = true;
                let (ctx, pod, wake) = (self.ctx.clone(), self.pod.clone(), self.wake.clone());
                let cancel = self.cancel.clone();
                let volumes_failed = self.memory.volumes_failed;
                if attempt > 0 && self.memory.sandbox_retry_at.is_none() {
                    let message = "Pod sandbox changed, it will be killed and re-created.";
                    self.ctx.events.pod(
                        &self.pod,
                        None,
                        Severity::Normal,
                        "SandboxChanged",
                        message.to_owned(),
                    );
                }
                self.run_job(Job::Sandbox, async move {
                    let made =
                        create_sandbox(&ctx, &pod, attempt, volumes_failed, &wake, &cancel).await;
                    Done::Sandbox(made)
                });
                false
            }
            Action::ReleaseSandbox { id, remove } => {
                self.memory.releasing.insert(id.clone());
                let ctx = self.ctx.clone();
                self.run_job(Job::Release { id: id.clone() }, async move {
                    let result = kill::release(&ctx, &id, remove).await;
                    Done::Released { id, result }
                });
                false
            }
            Action::Start { container, attempt } => self.start(&container, attempt, observed),
            Action::CrashLoop { container, delay } => {
                let waiting = Waiting {
                    reason: "CrashLoopBackOff".to_owned(),
                    message: format!(
                        "back-off {} restarting failed container={container} pod={}",
                        go::duration(delay),
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
                replaced,
            } => {
                if replaced {
                    self.memory.container_mut(&container).replaced = Some(id.clone());
                }
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
                self.tell_ending(&ending);
                self.memory.ending = Some(ending);
                self.memory.killing = true;
                let grace = pod::grace_period(&self.pod);
                let token = CancellationToken::new();
                self.killing = Some((grace, token.clone()));
                let (ctx, pod, observed) = (self.ctx.clone(), self.pod.clone(), observed.clone());
                let pre_stops = self.pre_stops.clone();
                self.run_job(Job::Kill, async move {
                    let stop = kill::pod(&ctx, &pod, &pre_stops, &observed, grace);
                    let result = token.run_until_cancelled(stop).await;
                    if matches!(result, Some(Err(_))) {
                        // What failed is tried again, but not at once.
                        tokio::time::sleep(KILL_RETRY).await;
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
        let remembered = self.memory.container_mut(name);
        if remembered.image != container.image {
            // What happened with another image delays this one no more.
            if remembered.image.is_some() {
                remembered.backoff = None;
                remembered.pull = None;
                remembered.waiting = None;
            }
            remembered.image.clone_from(&container.image);
        }
        let replaced = remembered.replaced.clone();
        let dead = observed
            .latest(name)
            .filter(|s| s.state == ContainerState::Exited && replaced.as_ref() != Some(&s.id))
            .map(|s| s.finished_at.unwrap_or(s.created_at));
        let (ctx, pod, wake) = (self.ctx.clone(), self.pod.clone(), self.wake.clone());
        let cancel = self.cancel.clone();
        let job = Job::Start {
            container: name.to_owned(),
        };
        self.run_job(job, async move {
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

    /// The event of a pod that the node ends. A kill that failed is tried again, but told once.
    fn tell_ending(&self, ending: &Ending) {
        if self.memory.ending.is_some() {
            return;
        }
        let events = &self.ctx.events;
        match ending {
            Ending::Failed { reason, message } => {
                events.pod(&self.pod, None, Severity::Normal, *reason, message.clone());
            }
            Ending::Rejected(why) => {
                let (reason, message) = (why.reason.clone(), why.message.clone());
                events.pod(&self.pod, None, Severity::Warning, reason, message);
            }
            Ending::Deleted | Ending::Completed => {}
        }
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
        let own = observed.sandboxes.first().map_or(&[][..], |s| &s.ips);
        let ip = pod::address(&self.pod, &self.ctx.config, own);
        let id = id.clone();
        let pre_stops = self.pre_stops.clone();
        self.run_job(Job::Stop { id: id.clone() }, async move {
            let stop = kill::container(&ctx, &pod, &pre_stops, &status, ip, message, grace);
            let result = stop.await;
            if result.is_err() {
                // What failed is tried again, but not at once.
                tokio::time::sleep(KILL_RETRY).await;
            }
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
        self.run_job(Job::Renew, async move {
            Done::Renewed(volumes::set_up(&ctx, &pod, &ips, &wake).await)
        });
    }
}

/// Makes the pod's volumes and its sandbox, side by side.
///
/// A pod whose volumes failed before waits for them first, so that no sandbox is made and removed with each try.
async fn create_sandbox(
    ctx: &Arc<Ctx>,
    pod: &k8s_openapi::api::core::v1::Pod,
    attempt: u32,
    volumes_failed: bool,
    wake: &Arc<tokio::sync::Notify>,
    cancel: &CancellationToken,
) -> Result<(SandboxId, Option<SystemTime>), SandboxError> {
    let config = sandbox::config(&ctx.config, pod, attempt).map_err(|e| SandboxError::Runtime {
        message: format!("read {}: {e}", ctx.config.resolv_conf.display()),
    })?;
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    volumes::private_directories(&ctx.config.pod_dir(uid))
        .map_err(|message| SandboxError::Runtime { message })?;
    let logs = &config.log_directory;
    std::fs::create_dir_all(logs).map_err(|e| SandboxError::Runtime {
        message: format!("make {}: {e}", logs.display()),
    })?;
    let begun = Instant::now();
    // Waiting for volumes may be given up; making the sandbox may not, or it would be left behind.
    let volumes = async {
        let made = cancel
            .run_until_cancelled(volumes::set_up(ctx, pod, &[], wake))
            .await;
        let mounted = begun.elapsed();
        match made {
            Some(made) => made
                .map(|renew_at| (renew_at, mounted))
                .map_err(|error| SandboxError::Mount { error, left: None }),
            None => Err(SandboxError::Cancelled { left: None }),
        }
    };
    let run = async {
        let made = ctx.runtime.run_sandbox(config).await;
        made.map_err(|e| SandboxError::Runtime { message: chain(&e) })
    };
    let (volumes, id) = if volumes_failed {
        (Ok(volumes.await?), run.await)
    } else {
        tokio::join!(volumes, run)
    };
    let id = id?;
    let (renew_at, mounted) = match volumes {
        Ok(made) => made,
        Err(mut error) => {
            if let Err(undo) = ctx.runtime.remove_sandbox(&id).await {
                tracing::warn!(pod = %PodKey::of(pod), error = chain(&undo), "remove the sandbox of a pod without its volumes");
                // Stopped at least; it is removed with the pod.
                if let SandboxError::Mount { left, .. } | SandboxError::Cancelled { left } =
                    &mut error
                {
                    *left = Some(id);
                }
            }
            return Err(error);
        }
    };
    tracing::debug!(pod = %PodKey::of(pod), ?mounted, whole = ?begun.elapsed(), "volumes and sandbox are there");
    Ok((id, renew_at))
}
