//! The jobs of a pod's task: what takes its time runs beside the task.
//!
//! A job that panics ends as one that failed, so that the pod goes on, and can be deleted.

use std::time::Duration;

use knarr_engine::types::{ContainerId, SandboxId};

use crate::done::{Done, SandboxError};
use crate::events::Severity;
use crate::panics;
use crate::runtime::RuntimeError;
use crate::start::StartError;
use crate::volumes::MountError;
use crate::worker::Worker;
use crate::writer::Written;

/// How long what panicked waits for its next try.
const PANIC_RETRY: Duration = Duration::from_secs(2);

/// What a job is to do.
#[derive(Debug)]
pub(crate) enum Job {
    Sandbox,
    Release { id: SandboxId },
    Start { container: String },
    PostStart { container: String, id: ContainerId },
    Stop { id: ContainerId },
    Kill,
    Renew,
    Status,
}

impl Job {
    /// The end of this job as one that failed.
    fn failed(self, message: String) -> Done {
        let message = format!("internal error: {message}");
        let runtime = |message| RuntimeError::Failed { message };
        match self {
            Self::Sandbox => Done::Sandbox(Err(SandboxError::Runtime { message })),
            Self::Release { id } => Done::Released {
                id,
                result: Err(runtime(message)),
            },
            Self::Start { container } => Done::Started {
                container,
                dead: None,
                result: Err(StartError::Create { message }),
            },
            Self::PostStart { container, id } => Done::PostStart {
                container,
                id,
                result: Err(message),
            },
            Self::Stop { id } => Done::Stopped {
                id,
                result: Err(runtime(message)),
            },
            Self::Kill => Done::Killed(Some(Err(runtime(message)))),
            Self::Renew => Done::Renewed(Err(MountError {
                volume: "*".to_owned(),
                message,
            })),
            Self::Status => Done::Status(Written::Failed),
        }
    }
}

impl Worker {
    /// Runs a job beside the pod's task.
    pub(crate) fn run_job(&mut self, job: Job, work: impl Future<Output = Done> + Send + 'static) {
        self.jobs.spawn(async move {
            match panics::caught(work).await {
                Ok(done) => done,
                Err(message) => {
                    tokio::time::sleep(PANIC_RETRY).await;
                    Done::Panicked { job, message }
                }
            }
        });
    }

    /// Reports a job's panic, and goes on as after any other failure.
    pub(crate) fn job_panicked(&mut self, job: Job, message: String) {
        tracing::error!(pod = %self.key, ?job, message, "a job of the pod panicked");
        self.ctx.events.pod(
            &self.pod,
            None,
            Severity::Warning,
            "FailedSync",
            format!("error syncing pod, retrying: internal error: {message}"),
        );
        // What it made before it panicked, nobody was told of.
        self.relist = true;
        self.finish(job.failed(message));
    }
}
