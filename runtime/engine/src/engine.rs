//! The engine itself: what it holds, and how it hears from the shims.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use knarr_image::{ImageStore, StoreConfig};
use knarr_network::{Network, NetworkConfig};
use knarr_oci::cgroup::Layout;
use knarr_shim::protocol::{Exit, Rotation};
use parking_lot::Mutex;
use rand::RngCore;
use tokio::sync::{broadcast, mpsc, watch};

use crate::error::EngineError;
use crate::images::Pulls;
use crate::pins::RunDir;
use crate::record::{self, ContainerRecord, End, SandboxRecord};
use crate::shim::{Link, Notice, Shim, ShimError};
use crate::types::{
    ContainerId, ContainerState, ContainerStatus, Event, SandboxId, SandboxState, SandboxStatus,
};

/// Events that a slow listener may fall behind; it then lists anew.
const EVENTS: usize = 4096;

/// How an engine is to be.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// What must survive a reboot: images, records, what containers write.
    pub data_dir: PathBuf,
    /// What ends with the machine: sockets, namespaces, runtime state.
    pub run_dir: PathBuf,
    /// The program `knarr-shim`.
    pub shim: PathBuf,
    /// When containers' logs are rotated.
    pub rotation: Rotation,
    /// How long a shim may take to answer; four times as long if it is to make something. One that takes longer is given up once
    /// its pod is to be stopped.
    pub patience: Duration,
}

/// Four times this is what the kubelet waits for a container runtime (`runtimeRequestTimeout`, 2 minutes).
const PATIENCE: Duration = Duration::from_secs(30);

impl EngineConfig {
    /// The defaults, in these directories.
    pub fn new(data_dir: PathBuf, run_dir: PathBuf, shim: PathBuf) -> Self {
        Self {
            data_dir,
            run_dir,
            shim,
            rotation: Rotation::default(),
            patience: PATIENCE,
        }
    }
}

/// One sandbox.
pub(crate) struct Sandbox {
    pub(crate) record: Mutex<SandboxRecord>,
    pub(crate) shim: watch::Sender<Link>,
    /// Serialises what makes and removes.
    pub(crate) busy: tokio::sync::Mutex<()>,
}

/// One container.
pub(crate) struct Container {
    pub(crate) record: Mutex<ContainerRecord>,
    /// Turns true when it has ended.
    pub(crate) ended: watch::Sender<bool>,
    /// Serialises what makes and removes.
    pub(crate) busy: tokio::sync::Mutex<()>,
}

pub(crate) struct Inner {
    pub(crate) config: EngineConfig,
    pub(crate) images: ImageStore,
    pub(crate) pulls: Pulls,
    pub(crate) cgroups: Layout,
    pub(crate) network: tokio::sync::RwLock<Option<Network>>,
    pub(crate) sandboxes: Mutex<HashMap<SandboxId, Arc<Sandbox>>>,
    pub(crate) containers: Mutex<BTreeMap<ContainerId, Arc<Container>>>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) notices: mpsc::UnboundedSender<(SandboxId, Notice)>,
}

/// The container engine of one node. Clones share it.
#[derive(Clone)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

impl Engine {
    /// Opens the engine: takes up what runs, reports what ended meanwhile, clears away what a crash left half made.
    ///
    /// # Errors
    ///
    /// If its directories cannot be read or written.
    pub async fn open(config: EngineConfig) -> Result<Self, EngineError> {
        for dir in [
            config.data_dir.join("sandboxes"),
            config.data_dir.join("containers"),
            config.run_dir.join("sandboxes"),
            config.run_dir.join("oci"),
        ] {
            std::fs::create_dir_all(&dir).map_err(|source| EngineError::System {
                what: format!("create {}", dir.display()),
                source,
            })?;
        }
        let images = ImageStore::open(StoreConfig::new(config.data_dir.join("images")))?;
        let cgroups = Layout::detect().map_err(|source| EngineError::Cgroup {
            path: "/".into(),
            source,
        })?;
        let (notices, heard) = mpsc::unbounded_channel();
        let engine = Self {
            inner: Arc::new(Inner {
                images,
                pulls: Pulls::default(),
                cgroups,
                network: tokio::sync::RwLock::new(None),
                sandboxes: Mutex::default(),
                containers: Mutex::default(),
                events: broadcast::channel(EVENTS).0,
                notices,
                config,
            }),
        };
        engine.restore().await?;
        tokio::spawn(hear(Arc::downgrade(&engine.inner), heard));
        Ok(engine)
    }

    /// Sets up the node's side of the pod network and removes networks of pods that are gone; until then only pods on
    /// the host's network can run.
    ///
    /// # Errors
    ///
    /// What could not be set up.
    pub async fn configure_network(&self, config: NetworkConfig) -> Result<(), EngineError> {
        let mut slot = self.inner.network.write().await;
        if let Some(before) = &*slot {
            before.release();
        }
        let network = Network::open(config).await?;
        let keep = self
            .inner
            .sandboxes
            .lock()
            .keys()
            .map(|id| id.0.clone())
            .collect();
        if let Err(error) = network.gc(&keep).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(error, "networks of pods that are gone could not be removed");
        }
        *slot = Some(network);
        Ok(())
    }

    /// Leaves the node's side of the pod network to [`knarr_network::cleanup`].
    pub async fn release_network(&self) {
        if let Some(network) = &*self.inner.network.read().await {
            network.release();
        }
    }

    /// Changes as they happen. A receiver that lags has missed some and must list.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    /// The image store.
    pub fn image_store(&self) -> &ImageStore {
        &self.inner.images
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> Result<Arc<Sandbox>, EngineError> {
        let found = self.inner.sandboxes.lock().get(id).cloned();
        found.ok_or_else(|| EngineError::NotFound {
            what: "sandbox",
            id: id.0.clone(),
        })
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Result<Arc<Container>, EngineError> {
        let found = self.inner.containers.lock().get(id).cloned();
        found.ok_or_else(|| EngineError::NotFound {
            what: "container",
            id: id.0.clone(),
        })
    }

    /// The shim that a container lives under. One that has not answered yet since this program started is waited for.
    pub(crate) async fn shim_of(&self, id: &SandboxId) -> Result<Arc<Shim>, EngineError> {
        let sandbox = self.sandbox(id)?;
        let mut link = sandbox.shim.subscribe();
        let known = link.wait_for(|link| !matches!(link, Link::Silent));
        let after = self.inner.config.patience;
        match tokio::time::timeout(after, known).await {
            Err(_) => Err(ShimError::Silent { after }.into()),
            Ok(link) => match link.as_deref() {
                Ok(Link::Up(shim)) => Ok(shim.clone()),
                _ => Err(EngineError::State {
                    what: "sandbox",
                    id: id.0.clone(),
                    state: "not ready",
                }),
            },
        }
    }

    pub(crate) fn containers_of(&self, sandbox: &SandboxId) -> Vec<Arc<Container>> {
        let all = self.inner.containers.lock();
        all.values()
            .filter(|container| container.record.lock().sandbox_id == *sandbox)
            .cloned()
            .collect()
    }

    /// What a sandbox is now.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub async fn sandbox_status(&self, id: &SandboxId) -> Result<SandboxStatus, EngineError> {
        Ok(self.sandbox(id)?.status())
    }

    /// All sandboxes.
    pub async fn list_sandboxes(&self) -> Vec<SandboxStatus> {
        let all: Vec<_> = self.inner.sandboxes.lock().values().cloned().collect();
        all.iter().map(|sandbox| sandbox.status()).collect()
    }

    /// What a container is now.
    ///
    /// # Errors
    ///
    /// `NotFound`.
    pub async fn container_status(&self, id: &ContainerId) -> Result<ContainerStatus, EngineError> {
        let container = self.container(id)?;
        Ok(self.status_of(&container.record.lock()))
    }

    /// All containers, by id.
    pub async fn list_containers(&self) -> Vec<ContainerStatus> {
        let all: Vec<_> = self.inner.containers.lock().values().cloned().collect();
        all.iter()
            .map(|container| self.status_of(&container.record.lock()))
            .collect()
    }

    fn status_of(&self, record: &ContainerRecord) -> ContainerStatus {
        let log_directory = self
            .inner
            .sandboxes
            .lock()
            .get(&record.sandbox_id)
            .map(|sandbox| sandbox.record.lock().config.log_directory.clone())
            .unwrap_or_default();
        let state = match (&record.end, &record.started_at) {
            (Some(_), _) => ContainerState::Exited,
            (None, Some(_)) => ContainerState::Running,
            (None, None) => ContainerState::Created,
        };
        let end = record.end.as_ref();
        ContainerStatus {
            id: record.id.clone(),
            sandbox_id: record.sandbox_id.clone(),
            config: record.config.clone(),
            state,
            created_at: record.created_at,
            started_at: record.started_at,
            finished_at: end.map(|end| end.at),
            exit_code: end.map_or(0, |end| end.code),
            reason: end.map(|end| end.reason.clone()).unwrap_or_default(),
            message: end.map(|end| end.message.clone()).unwrap_or_default(),
            image_digest_ref: record.image_digest_ref.clone(),
            pid: record.pid.filter(|_| state == ContainerState::Running),
            log_path: log_directory.join(&record.config.log_path),
        }
    }
}

impl Sandbox {
    pub(crate) fn status(&self) -> SandboxStatus {
        let record = self.record.lock();
        // A shim that has not answered yet may well look after containers that run.
        let has_shim = !matches!(*self.shim.borrow(), Link::Down);
        let ready = record.complete && !record.stopped && has_shim;
        SandboxStatus {
            id: record.id.clone(),
            config: record.config.clone(),
            state: if ready {
                SandboxState::Ready
            } else {
                SandboxState::NotReady
            },
            created_at: record.created_at,
            ips: record.ips.clone(),
        }
    }
}

impl Inner {
    pub(crate) fn sandbox_dir(&self, id: &SandboxId) -> PathBuf {
        self.config.data_dir.join("sandboxes").join(&id.0)
    }

    pub(crate) fn container_dir(&self, id: &ContainerId) -> PathBuf {
        self.config.data_dir.join("containers").join(&id.0)
    }

    pub(crate) fn run_dir(&self, id: &SandboxId) -> RunDir {
        RunDir(self.config.run_dir.join("sandboxes").join(&id.0))
    }

    pub(crate) fn oci_dir(&self) -> PathBuf {
        self.config.run_dir.join("oci")
    }

    pub(crate) fn save_sandbox(&self, sandbox: &Sandbox) -> Result<(), EngineError> {
        let record = sandbox.record.lock();
        Ok(record::write(
            &self.sandbox_dir(&record.id),
            "sandbox.json",
            &*record,
        )?)
    }

    pub(crate) fn save_container(&self, container: &Container) -> Result<(), EngineError> {
        let record = container.record.lock();
        Ok(record::write(
            &self.container_dir(&record.id),
            "container.json",
            &*record,
        )?)
    }

    /// Takes note that a container ended; only the first end counts.
    pub(crate) fn ended(&self, id: &ContainerId, end: End) {
        let Some(container) = self.containers.lock().get(id).cloned() else {
            return;
        };
        let sandbox_id = {
            let mut record = container.record.lock();
            if record.end.is_some() {
                return;
            }
            if end.reason == START_ERROR {
                record.started_at = None;
            }
            record.end = Some(end);
            record.sandbox_id.clone()
        };
        if let Err(error) = self.save_container(&container) {
            // The shim's own record of the exit is still there for the next start.
            let error = &error as &dyn std::error::Error;
            tracing::error!(
                error,
                container = id.0,
                "the end of a container could not be written down"
            );
        }
        container.ended.send_replace(true);
        let pod_uid = self.pod_uid(&sandbox_id);
        // Nobody listening is fine: who comes later lists.
        let _ = self.events.send(Event::ContainerExited {
            sandbox_id,
            container_id: id.clone(),
            pod_uid,
        });
    }

    pub(crate) fn pod_uid(&self, sandbox: &SandboxId) -> String {
        let sandbox = self.sandboxes.lock().get(sandbox).cloned();
        sandbox
            .map(|sandbox| sandbox.record.lock().config.uid.clone())
            .unwrap_or_default()
    }
}

/// The reason of a container that ended because it could not be started.
const START_ERROR: &str = "StartError";

/// How a container ended that could not be started, as the kubelet shows it with containerd.
pub(crate) fn start_error(at: SystemTime, message: String) -> End {
    End {
        at,
        code: 128,
        reason: START_ERROR.to_owned(),
        message,
    }
}

/// How a container ended, from what its shim recorded.
pub(crate) fn end_of(exit: &Exit) -> End {
    if let Some(message) = &exit.start_error {
        return start_error(exit.at, message.clone());
    }
    let reason = if exit.oom_killed {
        "OOMKilled"
    } else if exit.code == 0 {
        "Completed"
    } else {
        "Error"
    };
    End {
        at: exit.at,
        code: exit.code,
        reason: reason.to_owned(),
        message: String::new(),
    }
}

/// How a container ended that nobody saw end.
pub(crate) fn unknown_end() -> End {
    End {
        at: SystemTime::now(),
        code: 137,
        reason: "ContainerStatusUnknown".to_owned(),
        message: "The container could not be located when the pod was terminated".to_owned(),
    }
}

/// A new id: 64 hexadecimal digits.
pub(crate) fn new_id() -> String {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    hex::encode(bytes)
}

/// Passes on what the shims tell.
async fn hear(
    inner: std::sync::Weak<Inner>,
    mut notices: mpsc::UnboundedReceiver<(SandboxId, Notice)>,
) {
    while let Some((sandbox_id, notice)) = notices.recv().await {
        let Some(inner) = inner.upgrade() else { return };
        match notice {
            Notice::Exited(container, exit) => inner.ended(&ContainerId(container), end_of(&exit)),
            Notice::Gone => {
                let engine = Engine { inner };
                // Ending what the shim leaves behind takes its time, in which other shims are heard.
                tokio::spawn(async move { engine.lost_shim(&sandbox_id).await });
            }
        }
    }
}

/// The primary address and the rest, as Kubernetes lists them.
pub(crate) type Addresses = Vec<IpAddr>;
