//! Lifecycle hooks: `postStart` and `preStop`.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use knarr_engine::types::ContainerId;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::ctx::Ctx;
use crate::events::Severity;
use crate::http_check;
use crate::panics;
use crate::runtime::chain;

/// The preStop hooks of one pod: each runs once for its container.
///
/// A container is stopped more than once where a probe condemns it and the pod is then deleted, where a deletion is repeated
/// with less time, where a stop fails, and where the agent starts anew in between. A file per container in the pod's
/// directory says that its hook began, and then that it is over.
#[derive(Default)]
pub(crate) struct PreStops(Mutex<HashMap<ContainerId, Begun>>);

struct Begun {
    over: watch::Receiver<bool>,
    _task: AbortOnDropHandle<()>,
}

/// One container's hook, and what it acts on.
pub(crate) struct PreStop {
    pub(crate) ctx: Arc<Ctx>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) container: Container,
    pub(crate) id: ContainerId,
    pub(crate) pod_ip: Option<IpAddr>,
    pub(crate) hook: LifecycleHandler,
    /// The most time that it has.
    pub(crate) grace: Duration,
}

impl PreStops {
    /// Runs the hook unless it has begun already; returns when it is over or has used up its time.
    pub(crate) async fn run(&self, hook: PreStop) {
        let grace = hook.grace;
        let name = hook.container.name.clone();
        let mut over = {
            let mut begun = self.0.lock();
            let entry = begun.entry(hook.id.clone()).or_insert_with(|| {
                let (sender, over) = watch::channel(false);
                let task = tokio::spawn(async move {
                    hook.run_once().await;
                    sender.send_replace(true);
                });
                Begun {
                    over,
                    _task: AbortOnDropHandle::new(task),
                }
            });
            entry.over.clone()
        };
        let ended = over.wait_for(|over| *over);
        if tokio::time::timeout(grace, ended).await.is_err() {
            tracing::info!(
                container = name,
                "preStop hook did not end within the grace period"
            );
        }
    }
}

/// What is known of a hook from before.
#[derive(Debug, PartialEq, Eq)]
enum Mark {
    Absent,
    /// It began at this time; its process goes on without the agent that started it.
    Begun(SystemTime),
    Over,
}

impl Mark {
    const OVER: &str = "over";

    fn read(path: &Path) -> io::Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Absent),
            Err(error) => return Err(error),
        };
        // An empty file is one whose writer was killed, before its hook ran.
        Ok(match text.parse() {
            Ok(seconds) => Self::Begun(UNIX_EPOCH + Duration::from_secs(seconds)),
            Err(_) if text == Self::OVER => Self::Over,
            Err(_) => Self::Absent,
        })
    }

    fn write(path: &Path, text: &str) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, text)
    }
}

impl PreStop {
    fn mark_path(&self) -> PathBuf {
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        let directory = self.ctx.config.pod_dir(uid).join("pre-stop");
        directory.join(&self.id.0)
    }

    async fn run_once(&self) {
        let path = self.mark_path();
        let note = |result: io::Result<()>| {
            if let Err(error) = result {
                // The hook still runs once for this agent.
                tracing::warn!(%error, path = %path.display(), "note that a preStop hook ran");
            }
        };
        let mark = Mark::read(&path).unwrap_or_else(|error| {
            note(Err(error));
            Mark::Absent
        });
        let now = SystemTime::now();
        match mark {
            Mark::Over => return,
            Mark::Begun(at) => {
                // Nobody tells when it ends, so it has the rest of its time.
                let used = now.duration_since(at).unwrap_or_default();
                tokio::time::sleep(self.grace.saturating_sub(used)).await;
                return;
            }
            Mark::Absent => {}
        }
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        note(Mark::write(&path, &seconds.to_string()));
        let work = run(
            &self.ctx,
            &self.container,
            &self.id,
            self.pod_ip,
            &self.hook,
        );
        let result = panics::caught(work).await.flatten();
        note(Mark::write(&path, Mark::OVER));
        if let Err(message) = result {
            self.ctx.events.pod(
                &self.pod,
                Some(&self.container.name),
                Severity::Warning,
                "FailedPreStopHook",
                format!("PreStopHook failed: {message}"),
            );
        }
    }
}

/// Runs one hook; an error is the message of its `Failed…Hook` event.
pub(crate) async fn run(
    ctx: &Ctx,
    container: &Container,
    id: &ContainerId,
    pod_ip: Option<IpAddr>,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let text = command.join(" ");
        let output = ctx
            .runtime
            .exec_sync(id, command, None)
            .await
            .map_err(|e| format!("Exec lifecycle hook ({text}) failed - error: {}", chain(&e)))?;
        if output.exit_code != 0 {
            let mut said = output.stdout;
            said.extend(output.stderr);
            return Err(format!(
                "Exec lifecycle hook ({text}) for Container \"{}\" failed - error: command '{text}' exited with {}: {}",
                container.name,
                output.exit_code,
                String::from_utf8_lossy(&said),
            ));
        }
    } else if let Some(get) = &hook.http_get {
        let target = http_check::target(get, container, pod_ip)?;
        // Only a refused connection counts; whatever the server answers is fine.
        http_check::get(&target, Duration::from_secs(30))
            .await
            .map_err(|e| {
                format!(
                    "HTTP lifecycle hook ({}) for Container \"{}\" failed - error: {e}",
                    target.path, container.name
                )
            })?;
    } else if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(
            u64::try_from(sleep.seconds).unwrap_or(0),
        ))
        .await;
    }
    Ok(())
}
