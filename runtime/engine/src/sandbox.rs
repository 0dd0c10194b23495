//! The life of a sandbox.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use knarr_network::{PortMapping, Protocol as NetworkProtocol};
use knarr_oci::cgroup::{Group, Layout};
use knarr_shim::protocol::{Call, SharePids};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::container::KILL_PATIENCE;
use crate::engine::{Engine, Sandbox, new_id};
use crate::error::EngineError;
use crate::pins::RunDir;
use crate::record::{self, SandboxRecord};
use crate::shim::{self, Link, Shim, ShimError};
use crate::spec::{SpecError, resources};
use crate::types::{Event, LinuxResources, NamespaceMode, Protocol, SandboxConfig, SandboxId};

impl Engine {
    /// Makes a sandbox: its cgroup, namespaces, network and shim.
    ///
    /// # Errors
    ///
    /// What could not be made; the rest of it is removed again.
    pub async fn run_sandbox(&self, config: SandboxConfig) -> Result<SandboxId, EngineError> {
        let namespaces = config.namespaces;
        if namespaces.user == NamespaceMode::Pod {
            return Err(SpecError::Unsupported {
                what: "a user namespace of the pod's own (hostUsers: false)",
            }
            .into());
        }
        let id = SandboxId(new_id());
        let sandbox = Arc::new(Sandbox {
            record: Mutex::new(SandboxRecord {
                id: id.clone(),
                config: config.clone(),
                created_at: SystemTime::now(),
                ips: Vec::new(),
                complete: false,
                stopped: false,
            }),
            shim: watch::channel(Link::Down).0,
            busy: tokio::sync::Mutex::new(()),
        });
        let busy = sandbox.busy.lock().await;
        self.inner.save_sandbox(&sandbox)?;
        self.inner
            .sandboxes
            .lock()
            .insert(id.clone(), sandbox.clone());
        let made = self.make_sandbox(&id, &sandbox, config).await;
        drop(busy);
        match made {
            Ok(()) => Ok(id),
            Err(error) => {
                if let Err(undo) = self.remove_sandbox(&id).await {
                    // Its record stays, so the kubelet's cleaning or the next start tries again.
                    let undo = &undo as &dyn std::error::Error;
                    tracing::error!(
                        undo,
                        sandbox = id.0,
                        "a sandbox that failed could not be removed"
                    );
                }
                Err(error)
            }
        }
    }

    async fn make_sandbox(
        &self,
        id: &SandboxId,
        sandbox: &Sandbox,
        config: SandboxConfig,
    ) -> Result<(), EngineError> {
        let run_dir = self.inner.run_dir(id);
        let system = |what: &str, source| EngineError::System {
            what: what.to_owned(),
            source,
        };
        std::fs::create_dir_all(&run_dir.0)
            .map_err(|source| system("create the sandbox's directory", source))?;
        std::fs::create_dir_all(&config.log_directory)
            .map_err(|source| system("create the log directory", source))?;

        // The shim starts up while the namespaces and the network are made.
        shim::start(
            &self.inner.config.shim,
            &run_dir.socket(),
            &self.inner.oci_dir(),
            &run_dir.shim_log(),
        )?;
        let cgroups = self.set_cgroup(&config.cgroup_parent, config.resources.clone());
        let pins = {
            let (run_dir, config) = (run_dir.clone(), config.clone());
            async move {
                blocking(move || run_dir.make(&config))
                    .await
                    .map_err(EngineError::from)
            }
        };
        let network = self.attach_network(id, &run_dir, &config);
        let socket = run_dir.socket();
        let patience = self.inner.config.patience;
        let connect = async {
            let notices = self.inner.notices.clone();
            let shim = Shim::connect(&socket, id.clone(), notices, patience);
            let met = tokio::time::timeout(patience, shim).await;
            met.unwrap_or(Err(ShimError::Silent { after: patience }))
        };
        let (cgroups, pins, network, shim) = tokio::join!(cgroups, pins, network, connect);
        // All four have ended, so that what failed leaves nothing in flight behind.
        sandbox.shim.send_replace(Link::Up(shim?));
        cgroups?;
        pins?;
        let ips = network?;
        if config.namespaces.pid == NamespaceMode::Pod {
            self.share_pids(id, &run_dir, &config).await?;
        }
        {
            let mut record = sandbox.record.lock();
            record.ips = ips;
            record.complete = true;
        }
        self.inner.save_sandbox(sandbox)
    }

    /// Has the shim make the PID namespace that the containers share, and pins it.
    async fn share_pids(
        &self,
        id: &SandboxId,
        run_dir: &RunDir,
        config: &SandboxConfig,
    ) -> Result<(), EngineError> {
        let around = run_dir.surroundings(config);
        let wanted = SharePids {
            network: around.network,
            ipc: around.ipc,
            uts: around.uts,
            cgroup: Path::new(&config.cgroup_parent).join(&id.0),
        };
        let shim = self.shim_of(id).await?;
        let (_, mut fds) = shim.call_with(Call::SharePids(wanted), &[]).await?;
        let namespace = fds.pop().ok_or(ShimError::Answer)?;
        Ok(run_dir.pin_pids(&namespace)?)
    }

    async fn attach_network(
        &self,
        id: &SandboxId,
        run_dir: &RunDir,
        config: &SandboxConfig,
    ) -> Result<crate::engine::Addresses, EngineError> {
        if config.namespaces.network == NamespaceMode::Node {
            return Ok(Vec::new());
        }
        let network = self
            .inner
            .network
            .read()
            .await
            .clone()
            .ok_or(EngineError::NetworkNotReady)?;
        let ports: Vec<PortMapping> = config
            .port_mappings
            .iter()
            .map(|mapping| PortMapping {
                protocol: match mapping.protocol {
                    Protocol::Tcp => NetworkProtocol::Tcp,
                    Protocol::Udp => NetworkProtocol::Udp,
                    Protocol::Sctp => NetworkProtocol::Sctp,
                },
                container_port: mapping.container_port,
                host_port: mapping.host_port,
                host_ip: mapping.host_ip,
            })
            .collect();
        let attached = network.attach(&id.0, &run_dir.netns(), &ports).await;
        Ok(attached
            .map_err(|source| EngineError::Attach {
                id: id.0.clone(),
                source,
            })?
            .ips)
    }

    /// Stops a sandbox: kills what runs in it and takes its network away. Stopping twice is fine.
    ///
    /// # Errors
    ///
    /// `NotFound`, or what could not be stopped.
    pub async fn stop_sandbox(&self, id: &SandboxId) -> Result<(), EngineError> {
        let sandbox = self.sandbox(id)?;
        let _busy = sandbox.busy.lock().await;
        self.stop_made_sandbox(id, &sandbox).await
    }

    async fn stop_made_sandbox(
        &self,
        id: &SandboxId,
        sandbox: &Sandbox,
    ) -> Result<(), EngineError> {
        let was_stopped = std::mem::replace(&mut sandbox.record.lock().stopped, true);
        self.inner.save_sandbox(sandbox)?;
        for container in self.containers_of(id) {
            let container = container.record.lock().id.clone();
            self.stop_container(&container, Duration::ZERO).await?;
        }
        let host_network = sandbox.record.lock().config.namespaces.network == NamespaceMode::Node;
        if !host_network && let Some(network) = self.inner.network.read().await.clone() {
            network
                .detach(&id.0)
                .await
                .map_err(|source| EngineError::Detach {
                    id: id.0.clone(),
                    source,
                })?;
        }
        if !was_stopped {
            let pod_uid = sandbox.record.lock().config.uid.clone();
            // Nobody listening is fine.
            let _ = self.inner.events.send(Event::SandboxStopped {
                sandbox_id: id.clone(),
                pod_uid,
            });
        }
        Ok(())
    }

    /// Removes a sandbox with its containers, its cgroup and all that was made for it. One that is not there is fine.
    ///
    /// # Errors
    ///
    /// What could not be removed; its record stays, so that it can be tried again.
    pub async fn remove_sandbox(&self, id: &SandboxId) -> Result<(), EngineError> {
        let Ok(sandbox) = self.sandbox(id) else {
            return Ok(());
        };
        let _busy = sandbox.busy.lock().await;
        self.stop_made_sandbox(id, &sandbox).await?;
        for container in self.containers_of(id) {
            let container = container.record.lock().id.clone();
            self.remove_container(&container).await?;
        }
        let link = sandbox.shim.send_replace(Link::Down);
        let over = match link {
            Link::Up(shim) => match shim.call(Call::Shutdown).await {
                Ok(_) | Err(ShimError::Gone) => true,
                Err(ShimError::Send { .. } | ShimError::Silent { .. }) => false,
                Err(error) => {
                    // It refuses while something runs; whoever tries again finds it as it was.
                    sandbox.shim.send_replace(Link::Up(shim));
                    return Err(error.into());
                }
            },
            Link::Silent | Link::Down => false,
        };
        let run_dir = self.inner.run_dir(id);
        if !over {
            // One that does not end when it is told to, or was never reached, is not left behind.
            self.kill_shim(id).await?;
        }
        let cgroup = sandbox.record.lock().config.cgroup_parent.clone();
        let inner = self.inner.clone();
        let shared = self.has_other_sandbox_in(&cgroup, id);
        blocking(move || -> Result<(), EngineError> {
            run_dir.unmount()?;
            if !cgroup.is_empty() && !shared {
                remove_group(&inner.cgroups, &cgroup)?;
            }
            Ok(run_dir.remove()?)
        })
        .await?;
        record::remove(&self.inner.sandbox_dir(id), "sandbox.json")?;
        self.inner.sandboxes.lock().remove(id);
        Ok(())
    }

    /// Whether another sandbox of the same pod uses its cgroup: one that took the place of this one.
    fn has_other_sandbox_in(&self, cgroup: &str, id: &SandboxId) -> bool {
        let sandboxes = self.inner.sandboxes.lock();
        let mut others = sandboxes.iter().filter(|(other, _)| *other != id);
        others.any(|(_, other)| other.record.lock().config.cgroup_parent == cgroup)
    }

    /// Makes a cgroup with these limits, or gives it these limits: a pod's, or one of the kubelet's QoS groups.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub async fn set_cgroup(&self, path: &str, limits: LinuxResources) -> Result<(), EngineError> {
        if path.is_empty() {
            return Ok(());
        }
        let path = path.to_owned();
        let inner = self.inner.clone();
        blocking(move || {
            let limits = serde_json::from_value(resources(&limits, Vec::new()))
                .expect("limits are always a valid part of a specification");
            Group::create(&inner.cgroups, Path::new(&path), Some(&limits))
                .and_then(|mut group| group.apply(&inner.cgroups, &limits))
                .map_err(|source| EngineError::Cgroup { path, source })
        })
        .await
    }

    /// Removes a cgroup that [`set_cgroup`](Self::set_cgroup) made, with the empty ones below it. One that is not there is fine.
    ///
    /// # Errors
    ///
    /// If a process is still in it after ten seconds.
    pub async fn remove_cgroup(&self, path: &str) -> Result<(), EngineError> {
        let path = path.to_owned();
        let inner = self.inner.clone();
        blocking(move || remove_group(&inner.cgroups, &path)).await
    }

    /// Gives up a shim that does not answer: kills it, and ends what it looked after, as if it had died.
    ///
    /// # Errors
    ///
    /// If it does not die.
    pub(crate) async fn give_up(&self, id: &SandboxId) -> Result<(), EngineError> {
        tracing::error!(sandbox = id.0, "the shim does not answer; it is killed");
        self.kill_shim(id).await?;
        self.lost_shim(id).await;
        Ok(())
    }

    async fn kill_shim(&self, id: &SandboxId) -> Result<(), EngineError> {
        let log = self.inner.run_dir(id).shim_log();
        blocking(move || shim::kill(&log, KILL_PATIENCE))
            .await
            .map_err(|source| EngineError::System {
                what: format!("kill the shim of sandbox {}", id.0),
                source,
            })
    }

    /// A sandbox's shim ended though nobody told it to.
    pub(crate) async fn lost_shim(&self, id: &SandboxId) {
        let Ok(sandbox) = self.sandbox(id) else {
            return;
        };
        // Whoever removes the sandbox has taken the shim out already.
        if matches!(sandbox.shim.send_replace(Link::Down), Link::Down) {
            return;
        }
        tracing::error!(sandbox = id.0, "the shim is gone; its containers are ended");
        self.end_all(id, &sandbox).await;
    }

    /// Ends what a shim has left behind.
    pub(crate) async fn end_all(&self, id: &SandboxId, sandbox: &Sandbox) {
        for container in self.containers_of(id) {
            let id = container.record.lock().id.clone();
            self.end_abandoned(&id).await;
        }
        let pod_uid = sandbox.record.lock().config.uid.clone();
        let _ = self.inner.events.send(Event::SandboxStopped {
            sandbox_id: id.clone(),
            pod_uid,
        });
    }
}

fn remove_group(layout: &Layout, path: &str) -> Result<(), EngineError> {
    let failed = |source| EngineError::Cgroup {
        path: path.to_owned(),
        source,
    };
    let group = Group::open(layout, Path::new(path)).map_err(failed)?;
    // All of it is ours to remove, though an earlier start of this program may have made it.
    let mut record = group.record().clone();
    record.made = record.directories.values().cloned().collect();
    Group::from_record(record).remove().map_err(failed)
}

/// Runs what blocks on a thread of its own kind.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
