//! The ends of a pod's jobs, taken into its memory.

use std::time::{Duration, SystemTime};

use knarr_engine::types::{ContainerId, SandboxId};

use crate::events::Severity;
use crate::hooks;
use crate::images::ImageError;
use crate::jobs::Job;
use crate::memory::{Backoff, Condemned, PullFailure, Waiting};
use crate::pod;
use crate::runtime::{RuntimeError, chain};
use crate::start::StartError;
use crate::volumes::MountError;
use crate::worker::Worker;
use crate::writer::Written;

/// How long a pod whose sandbox or volumes failed waits for its next try.
const SANDBOX_RETRY: Duration = Duration::from_secs(2);
/// How long a container that could not be configured or made waits, if nothing that it refers to changes.
const CREATE_RETRY: Duration = Duration::from_secs(10);

/// A job's end.
pub(crate) enum Done {
    Sandbox(Result<(SandboxId, Option<SystemTime>), SandboxError>),
    Released {
        id: SandboxId,
        result: Result<(), RuntimeError>,
    },
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
    Panicked {
        job: Job,
        message: String,
    },
}

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SandboxError {
    /// A volume is not there.
    #[error("{error}")]
    Mount {
        error: MountError,
        /// A sandbox that was made meanwhile and could not be removed.
        left: Option<SandboxId>,
    },
    /// The runtime could not make it.
    #[error("{message}")]
    Runtime { message: String },
    /// The pod ends before its volumes were there.
    #[error("the pod is being stopped")]
    Cancelled {
        /// A sandbox that was made meanwhile and could not be removed.
        left: Option<SandboxId>,
    },
}

impl Worker {
    /// Takes a job's end into the pod's memory.
    pub(crate) fn finish(&mut self, done: Done) {
        match done {
            Done::Sandbox(result) => self.sandbox_made(result),
            Done::Released { id, result } => {
                self.memory.releasing.remove(&id);
                match result {
                    Ok(()) => {
                        self.memory.released.insert(id);
                    }
                    Err(error) => {
                        let message =
                            format!("Failed to kill pod sandbox {}: {}", id.0, chain(&error));
                        self.ctx.events.pod(
                            &self.pod,
                            None,
                            Severity::Warning,
                            "FailedKillPod",
                            message,
                        );
                        self.memory.release_retry_at = Some(SystemTime::now() + SANDBOX_RETRY);
                    }
                }
            }
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
            Done::Panicked { job, message } => self.job_panicked(job, message),
        }
    }

    fn sandbox_made(&mut self, result: Result<(SandboxId, Option<SystemTime>), SandboxError>) {
        self.memory.creating_sandbox = false;
        let mut error = match result {
            Ok((id, renew_at)) => {
                self.sandboxes.push(id);
                self.memory.sandbox_retry_at = None;
                self.renew_at = self.renew_at.or(renew_at);
                self.memory.volumes_failed = false;
                return;
            }
            Err(error) => error,
        };
        if let SandboxError::Mount { left, .. } | SandboxError::Cancelled { left } = &mut error {
            self.sandboxes.extend(left.take());
        }
        self.memory.volumes_failed = matches!(error, SandboxError::Mount { .. });
        let (reason, message) = match &error {
            SandboxError::Mount { .. } => ("FailedMount", error.to_string()),
            SandboxError::Runtime { message } => (
                "FailedCreatePodSandBox",
                format!("Failed to create pod sandbox: {message}"),
            ),
            SandboxError::Cancelled { .. } => return,
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
                remembered.replaced = None;
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
        let (ctx, pod) = (self.ctx.clone(), self.pod.clone());
        let sandbox = self.sandboxes.last().cloned();
        let job = Job::PostStart {
            container: name.to_owned(),
            id: id.clone(),
        };
        self.run_job(job, async move {
            let own = match sandbox {
                Some(sandbox) => ctx.runtime.sandbox_status(&sandbox).await.ok(),
                None => None,
            };
            let ip = pod::address(&pod, &ctx.config, own.as_ref().map_or(&[], |s| &s.ips));
            let result = hooks::run(&ctx, &container, &id, ip, &hook).await;
            Done::PostStart {
                container: container.name,
                id,
                result,
            }
        });
    }
}
