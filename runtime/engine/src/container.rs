//! The life of a container.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use knarr_oci::{ContainerId as OciId, Runtime, RuntimeOptions};
use knarr_shim::protocol::{Call, Create, Exit, Reply};
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::engine::{Container, Engine, end_of, new_id, start_error, unknown_end};
use crate::error::EngineError;
use crate::record::{self, ContainerRecord};
use crate::sandbox::blocking;
use crate::shim::ShimError;
use crate::spec::{self, Input};
use crate::types::{ContainerConfig, ContainerId, Event, LinuxResources, SandboxId, Stats};
use crate::user;
use crate::volumes;

/// How long a killed container may take to die: a process in an uninterruptible sleep can take its time.
pub(crate) const KILL_PATIENCE: Duration = Duration::from_secs(60);

impl Engine {
    /// Makes a container in a sandbox; it waits to be started.
    ///
    /// What the runtime could not make as it was specified (a command that is not there, a root that cannot be mounted) is told
    /// by [`start_container`](Self::start_container), where containerd makes the process.
    ///
    /// # Errors
    ///
    /// What could not be made; the rest of it is removed again.
    pub async fn create_container(
        &self,
        sandbox_id: &SandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, EngineError> {
        let sandbox = self.sandbox(sandbox_id)?;
        if sandbox.record.lock().stopped {
            return Err(EngineError::State {
                what: "sandbox",
                id: sandbox_id.0.clone(),
                state: "stopped",
            });
        }
        let id = ContainerId(new_id());
        let container = Arc::new(Container {
            record: Mutex::new(ContainerRecord {
                id: id.clone(),
                sandbox_id: sandbox_id.clone(),
                config: config.clone(),
                image_digest_ref: String::new(),
                created_at: SystemTime::now(),
                created: false,
                start_failure: None,
                stop_signal: Signal::SIGTERM as i32,
                started_at: None,
                end: None,
                pid: None,
            }),
            ended: watch::channel(false).0,
            busy: tokio::sync::Mutex::new(()),
        });
        self.inner.save_container(&container)?;
        let made = self
            .make_container(&id, &container, sandbox_id, config)
            .await;
        if let Err(error) = made {
            self.inner.containers.lock().insert(id.clone(), container);
            if let Err(undo) = self.remove_container(&id).await {
                let undo = &undo as &dyn std::error::Error;
                tracing::error!(
                    undo,
                    container = id.0,
                    "a container that failed could not be removed"
                );
            }
            return Err(error);
        }
        self.inner.save_container(&container)?;
        self.inner.containers.lock().insert(id.clone(), container);
        Ok(id)
    }

    async fn make_container(
        &self,
        id: &ContainerId,
        container: &Container,
        sandbox_id: &SandboxId,
        config: ContainerConfig,
    ) -> Result<(), EngineError> {
        let sandbox = self.sandbox(sandbox_id)?.record.lock().config.clone();
        let shim = self.shim_of(sandbox_id).await?;
        let dir = self.inner.container_dir(id);
        let log = sandbox.log_directory.join(&config.log_path);
        let surroundings = self.inner.run_dir(sandbox_id).surroundings(&sandbox);
        let create = Create {
            container: id.0.clone(),
            bundle: dir.clone(),
            log: log.clone(),
            rotation: self.inner.config.rotation,
            pids_of: config.pids_of.as_ref().map(|target| target.0.clone()),
            stdin: config.stdin,
            terminal: config.tty,
        };
        let inner = self.inner.clone();
        let key = id.0.clone();
        let (image_digest_ref, stop_signal) =
            blocking(move || -> Result<_, EngineError> {
                let image = inner.images.resolve(&config.image_id)?.ok_or_else(|| {
                    EngineError::NotFound {
                        what: "image",
                        id: config.image_id.clone(),
                    }
                })?;
                let rootfs = inner
                    .images
                    .prepare(&key, &image.id, &dir)
                    .map_err(|source| EngineError::Snapshot {
                        id: key.clone(),
                        source,
                    })?;
                let of_image = image.config.config().clone().unwrap_or_default();
                let user = of_image.user().clone().unwrap_or_default();
                let identity = user::resolve(&rootfs.path, &user, &config.security)?;
                let volumes = volumes::plan(&image.config, &config.mounts, &dir);
                volumes::make(&volumes, &rootfs.path)?;
                let spec = spec::build(&Input {
                    id: &key,
                    sandbox: &sandbox,
                    container: &config,
                    image: &image.config,
                    identity: &identity,
                    rootfs: &rootfs.path,
                    surroundings: &surroundings,
                    volumes: &volumes,
                })?;
                record::write(&dir, "config.json", &spec)?;
                if let Some(parent) = log.parent() {
                    std::fs::create_dir_all(parent).map_err(|source| EngineError::System {
                        what: format!("create {}", parent.display()),
                        source,
                    })?;
                }
                let name = image
                    .digests
                    .first()
                    .cloned()
                    .unwrap_or_else(|| image.id.to_string());
                let signal = config
                    .stop_signal
                    .clone()
                    .or_else(|| of_image.stop_signal().clone());
                Ok((name, parse_signal(signal.as_deref())))
            })
            .await?;
        let (pid, start_failure) = match shim.call(Call::Create(create)).await {
            Ok(Reply::Created { pid }) => (Some(pid), None),
            Ok(_) => return Err(ShimError::Answer.into()),
            Err(ShimError::Refused(failure)) if failure.task => (None, Some(failure.message)),
            Err(error) => return Err(error.into()),
        };
        let mut record = container.record.lock();
        record.image_digest_ref = image_digest_ref;
        record.stop_signal = stop_signal;
        record.pid = pid;
        record.start_failure = start_failure;
        record.created = true;
        Ok(())
    }

    /// Starts a container.
    ///
    /// # Errors
    ///
    /// If its command cannot be executed; the container has then ended with reason `StartError` and exit code 128.
    pub async fn start_container(&self, id: &ContainerId) -> Result<(), EngineError> {
        let container = self.container(id)?;
        let _busy = container.busy.lock().await;
        let (sandbox_id, failure, state) = {
            let record = container.record.lock();
            let state = match (&record.end, record.started_at) {
                (Some(_), _) => Some("exited"),
                (None, Some(_)) => Some("running"),
                (None, None) => None,
            };
            (
                record.sandbox_id.clone(),
                record.start_failure.clone(),
                state,
            )
        };
        if let Some(state) = state {
            return Err(EngineError::State {
                what: "container",
                id: id.0.clone(),
                state,
            });
        }
        if let Some(message) = failure {
            let end = start_error(SystemTime::now(), message.clone());
            self.inner.ended(id, end);
            return Err(EngineError::Start { message });
        }
        let shim = self.shim_of(&sandbox_id).await?;
        container.record.lock().started_at = Some(SystemTime::now());
        // Written first: a container that runs must not look like one that was never started.
        self.inner.save_container(&container)?;
        if let Err(error) = shim
            .call(Call::Start {
                container: id.0.clone(),
            })
            .await
        {
            let message = match error {
                ShimError::Refused(failure) => failure.message,
                other => other.to_string(),
            };
            let end = start_error(SystemTime::now(), message.clone());
            self.inner.ended(id, end);
            return Err(EngineError::Start { message });
        }
        let pod_uid = self.inner.pod_uid(&sandbox_id);
        let _ = self.inner.events.send(Event::ContainerStarted {
            sandbox_id,
            container_id: id.clone(),
            pod_uid,
        });
        Ok(())
    }

    /// Asks a container to stop and, when the grace period is over, kills all of its processes.
    ///
    /// # Errors
    ///
    /// `NotFound`, or the kernel does not let it die.
    pub async fn stop_container(
        &self,
        id: &ContainerId,
        grace: Duration,
    ) -> Result<(), EngineError> {
        let container = self.container(id)?;
        let (sandbox_id, signal, running) = {
            let record = container.record.lock();
            (
                record.sandbox_id.clone(),
                record.stop_signal,
                record.created && record.start_failure.is_none() && record.end.is_none(),
            )
        };
        if !running {
            return Ok(());
        }
        let started = container.record.lock().started_at.is_some();
        let mut ended = container.ended.subscribe();
        let told = match self.shim_of(&sandbox_id).await {
            Ok(shim) => {
                if started && !grace.is_zero() {
                    self.tell(&shim, id, signal, grace).await
                } else {
                    let kill = Signal::SIGKILL as i32;
                    self.signal(&shim, id, kill, true).await
                }
            }
            Err(EngineError::State { .. } | EngineError::NotFound { .. }) => {
                self.end_abandoned(id).await;
                return Ok(());
            }
            Err(error) => Err(error),
        };
        match told {
            // Nobody else can end its containers, and ended they must be.
            Err(EngineError::Shim(ShimError::Silent { .. })) => self.give_up(&sandbox_id).await?,
            told => told?,
        }
        match tokio::time::timeout(KILL_PATIENCE, ended.wait_for(|ended| *ended)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(EngineError::State {
                what: "container",
                id: id.0.clone(),
                state: "not dying of SIGKILL",
            }),
        }
    }

    /// Sends a container the signal that asks it to end, and kills it if it has not done so after the grace period.
    async fn tell(
        &self,
        shim: &crate::shim::Shim,
        id: &ContainerId,
        signal: i32,
        grace: Duration,
    ) -> Result<(), EngineError> {
        let mut ended = self.container(id)?.ended.subscribe();
        self.signal(shim, id, signal, false).await?;
        // Dropping the wait midway loses nothing: the channel keeps its value.
        if tokio::time::timeout(grace, ended.wait_for(|ended| *ended))
            .await
            .is_ok()
        {
            return Ok(());
        }
        self.signal(shim, id, Signal::SIGKILL as i32, true).await
    }

    async fn signal(
        &self,
        shim: &crate::shim::Shim,
        id: &ContainerId,
        signal: i32,
        all: bool,
    ) -> Result<(), EngineError> {
        match shim
            .call(Call::Signal {
                container: id.0.clone(),
                signal,
                all,
            })
            .await
        {
            Ok(_) => Ok(()),
            Err(ShimError::Refused(failure)) if failure.not_found => {
                self.inner.ended(id, unknown_end());
                Ok(())
            }
            // The shim's end ends its containers; whoever waits hears of it.
            Err(ShimError::Gone) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a container; a running one is killed first. One that is not there is fine.
    ///
    /// # Errors
    ///
    /// What could not be removed; its record stays, so that it can be tried again.
    pub async fn remove_container(&self, id: &ContainerId) -> Result<(), EngineError> {
        let Ok(container) = self.container(id) else {
            return Ok(());
        };
        let _busy = container.busy.lock().await;
        self.stop_container(id, Duration::ZERO).await?;
        let sandbox_id = container.record.lock().sandbox_id.clone();
        let call = Call::Delete {
            container: id.0.clone(),
        };
        let deleted = match self.shim_of(&sandbox_id).await {
            Ok(shim) => shim.call(call).await.map_err(EngineError::from),
            Err(error) => Err(error),
        };
        let deleted = match deleted {
            Ok(_) => true,
            Err(EngineError::Shim(ShimError::Refused(failure))) if failure.not_found => false,
            Err(EngineError::Shim(ShimError::Gone)) => false,
            Err(EngineError::State { .. } | EngineError::NotFound { .. }) => false,
            Err(EngineError::Shim(ShimError::Silent { .. })) => {
                self.give_up(&sandbox_id).await?;
                false
            }
            Err(error) => return Err(error),
        };
        let inner = self.inner.clone();
        let key = id.0.clone();
        blocking(move || -> Result<(), EngineError> {
            if !deleted {
                delete_state(&inner.oci_dir(), &key)?;
            }
            inner
                .images
                .remove_snapshot(&key)
                .map_err(|source| EngineError::Snapshot {
                    id: key.clone(),
                    source,
                })
        })
        .await?;
        record::remove(&self.inner.container_dir(id), "container.json")?;
        self.inner.containers.lock().remove(id);
        Ok(())
    }

    /// Ends a container whose shim is gone: kills what is left of it, and notes how it ended if that is known.
    pub(crate) async fn end_abandoned(&self, id: &ContainerId) {
        let dir = self.inner.container_dir(id);
        let oci = self.inner.oci_dir();
        let key = id.0.clone();
        let exit = blocking(move || {
            if let Err(error) = delete_state(&oci, &key) {
                let error = &error as &dyn std::error::Error;
                tracing::error!(
                    error,
                    container = key,
                    "what is left of a container could not be killed"
                );
            }
            read_exit(&dir)
        })
        .await;
        let is_made = self
            .container(id)
            .is_ok_and(|container| container.record.lock().created);
        if is_made || exit.is_some() {
            self.inner
                .ended(id, exit.as_ref().map_or_else(unknown_end, end_of));
        }
    }

    /// Changes a running container's limits.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub async fn update_container_resources(
        &self,
        id: &ContainerId,
        limits: LinuxResources,
    ) -> Result<(), EngineError> {
        let container = self.container(id)?;
        let path = self.cgroup_of(&container)?;
        self.set_cgroup(&path, limits.clone()).await?;
        container.record.lock().config.resources = limits;
        self.inner.save_container(&container)
    }

    fn cgroup_of(&self, container: &Container) -> Result<String, EngineError> {
        let record = container.record.lock();
        let parent = self
            .sandbox(&record.sandbox_id)?
            .record
            .lock()
            .config
            .cgroup_parent
            .clone();
        Ok(format!("{}/{}", parent.trim_end_matches('/'), record.id.0))
    }

    /// What a container uses.
    ///
    /// # Errors
    ///
    /// `NotFound`, or its group cannot be read.
    pub async fn container_stats(&self, id: &ContainerId) -> Result<Stats, EngineError> {
        let path = self.cgroup_of(&*self.container(id)?)?;
        self.cgroup_stats(path).await
    }

    /// What a sandbox uses in all.
    ///
    /// # Errors
    ///
    /// As [`Engine::container_stats`].
    pub async fn sandbox_stats(&self, id: &SandboxId) -> Result<Stats, EngineError> {
        let path = self.sandbox(id)?.record.lock().config.cgroup_parent.clone();
        self.cgroup_stats(path).await
    }

    async fn cgroup_stats(&self, path: String) -> Result<Stats, EngineError> {
        let inner = self.inner.clone();
        blocking(move || {
            let failed = |source| EngineError::Cgroup {
                path: path.clone(),
                source,
            };
            let group =
                knarr_oci::cgroup::Group::open(&inner.cgroups, Path::new(&path)).map_err(failed)?;
            Ok(stats(&group.stats().map_err(failed)?))
        })
        .await
    }

    /// Opens a container's log file anew, after it was moved.
    ///
    /// # Errors
    ///
    /// If the container is not running or the file cannot be opened.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<(), EngineError> {
        let sandbox_id = self.container(id)?.record.lock().sandbox_id.clone();
        self.shim_of(&sandbox_id)
            .await?
            .call(Call::ReopenLog {
                container: id.0.clone(),
            })
            .await?;
        Ok(())
    }
}

/// Removes what the runtime knows of a container, killing what runs; nothing there is fine.
pub(crate) fn delete_state(oci_dir: &Path, id: &str) -> Result<(), EngineError> {
    let Ok(parsed) = OciId::parse(id) else {
        return Ok(());
    };
    let runtime = Runtime::new(oci_dir.to_owned(), RuntimeOptions::default());
    let failures = runtime
        .delete(&parsed, true)
        .map_err(|error| EngineError::System {
            what: format!("remove what is left of container {id}"),
            source: std::io::Error::other(error),
        })?;
    for failure in failures {
        let error = &failure as &dyn std::error::Error;
        tracing::warn!(
            error,
            container = id,
            "a hook failed after the container ended"
        );
    }
    Ok(())
}

pub(crate) fn read_exit(bundle: &Path) -> Option<Exit> {
    Exit::read(bundle).unwrap_or_else(|error| {
        tracing::error!(%error, bundle = %bundle.display(), "the record of an exit makes no sense");
        None
    })
}

/// A signal by name or number, as images write it; SIGTERM where there is none or it does not exist.
fn parse_signal(text: Option<&str>) -> i32 {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Signal::SIGTERM as i32;
    };
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=64).contains(&number) {
            number
        } else {
            Signal::SIGTERM as i32
        };
    }
    let upper = text.to_uppercase();
    let name = if upper.starts_with("SIG") {
        upper
    } else {
        format!("SIG{upper}")
    };
    if let Some(offset) = name
        .strip_prefix("SIGRTMIN+")
        .and_then(|offset| offset.parse::<i32>().ok())
    {
        return 34 + offset.clamp(0, 30);
    }
    Signal::from_str(&name).map_or(Signal::SIGTERM as i32, |signal| signal as i32)
}

fn stats(of: &knarr_oci::cgroup::Stats) -> Stats {
    Stats {
        cpu_usage_ns: of.cpu.usage_ns,
        memory_usage: of.memory.usage,
        memory_working_set: of.memory.working_set,
        memory_rss: of.memory.rss,
        page_faults: of.memory.page_faults,
        major_page_faults: of.memory.major_page_faults,
        pids: of.pids.current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_as_images_write_them() {
        for (text, number) in [
            (None, 15),
            (Some(""), 15),
            (Some("SIGQUIT"), 3),
            (Some("quit"), 3),
            (Some("9"), 9),
            (Some("SIGRTMIN+3"), 37),
            (Some("999"), 15),
            (Some("NONSENSE"), 15),
        ] {
            assert_eq!(parse_signal(text), number, "{text:?}");
        }
    }
}
