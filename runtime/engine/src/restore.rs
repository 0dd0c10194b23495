//! After a start: what is still there is taken up, what ended is reported, what was half made is removed.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::container::{delete_state, read_exit};
use crate::engine::{Container, Engine, Sandbox, end_of, unknown_end};
use crate::error::EngineError;
use crate::record::{self, ContainerRecord, SandboxRecord};
use crate::shim::Shim;
use crate::types::{ContainerId, SandboxId};

impl Engine {
    pub(crate) async fn restore(&self) -> Result<(), EngineError> {
        self.load()?;
        let sandboxes: Vec<_> = self
            .inner
            .sandboxes
            .lock()
            .iter()
            .map(|(id, s)| (id.clone(), s.clone()))
            .collect();
        for (id, sandbox) in &sandboxes {
            self.reconnect(id, sandbox).await;
        }
        for (id, sandbox) in &sandboxes {
            let complete = sandbox.record.lock().complete;
            if !complete && let Err(error) = self.remove_sandbox(id).await {
                let error = &error as &dyn std::error::Error;
                tracing::error!(
                    error,
                    sandbox = id.0,
                    "a half made sandbox could not be removed"
                );
            }
        }
        self.remove_strays()
    }

    fn load(&self) -> Result<(), EngineError> {
        let data = &self.inner.config.data_dir;
        for (path, record) in
            record::read_all::<SandboxRecord>(&data.join("sandboxes"), "sandbox.json")?
        {
            let Some(record) = record else {
                record::remove(&path)?;
                continue;
            };
            let sandbox = Sandbox {
                shim: Mutex::new(None),
                busy: tokio::sync::Mutex::new(()),
                record: Mutex::new(record.clone()),
            };
            self.inner
                .sandboxes
                .lock()
                .insert(record.id, Arc::new(sandbox));
        }
        for (path, record) in
            record::read_all::<ContainerRecord>(&data.join("containers"), "container.json")?
        {
            let known = record
                .filter(|record| self.inner.sandboxes.lock().contains_key(&record.sandbox_id));
            let Some(record) = known else {
                let name = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                delete_state(&self.inner.oci_dir(), &name)?;
                self.inner.images.remove_snapshot(&name).map_err(|source| {
                    EngineError::Snapshot {
                        id: name.clone(),
                        source,
                    }
                })?;
                record::remove(&path)?;
                continue;
            };
            let container = Container {
                ended: watch::channel(record.end.is_some()).0,
                busy: tokio::sync::Mutex::new(()),
                record: Mutex::new(record.clone()),
            };
            self.inner
                .containers
                .lock()
                .insert(record.id, Arc::new(container));
        }
        Ok(())
    }

    async fn reconnect(&self, id: &SandboxId, sandbox: &Arc<Sandbox>) {
        let socket = self.inner.run_dir(id).socket();
        let connected = Shim::connect(&socket, id.clone(), self.inner.notices.clone()).await;
        let listed = match &connected {
            Ok(shim) => shim.list().await.ok(),
            Err(_) => None,
        };
        let (Ok(shim), Some(listed)) = (connected, listed) else {
            // After a reboot, or the shim died: what it looked after has ended.
            tracing::info!(sandbox = id.0, "a sandbox has no shim any more");
            for container in self.containers_of(id) {
                let id = container.record.lock().id.clone();
                self.end_abandoned(&id).await;
            }
            return;
        };
        *sandbox.shim.lock() = Some(shim);
        for container in self.containers_of(id) {
            let id = container.record.lock().id.clone();
            let Some(found) = listed.iter().find(|one| one.id == id.0) else {
                self.forgotten(&id, &container);
                continue;
            };
            {
                let mut record = container.record.lock();
                record.created = true;
                record.pid = Some(found.pid);
                // The crash came between the mark and the start.
                if !found.started && found.exit.is_none() {
                    record.started_at = None;
                }
            }
            if let Some(exit) = &found.exit {
                self.inner.ended(&id, end_of(exit));
            }
        }
        let known: Vec<ContainerId> = self
            .containers_of(id)
            .iter()
            .map(|container| container.record.lock().id.clone())
            .collect();
        for stray in listed
            .iter()
            .filter(|one| !known.contains(&ContainerId(one.id.clone())))
        {
            tracing::error!(
                container = stray.id,
                sandbox = id.0,
                "the shim has a container without a record"
            );
        }
    }

    /// A container with a record that its shim does not know: never made, or deleted just before the crash.
    fn forgotten(&self, id: &ContainerId, container: &Container) {
        if container.record.lock().start_failure.is_some() {
            // The runtime could not make it, so no shim knows it; whoever starts it is told why.
            return;
        }
        let created = container.record.lock().created;
        let exit = read_exit(&self.inner.container_dir(id));
        if created || exit.is_some() {
            self.inner
                .ended(id, exit.as_ref().map_or_else(unknown_end, end_of));
            return;
        }
        container.record.lock().created = true;
        self.inner.ended(id, unknown_end());
    }

    /// Snapshots and run directories without a record.
    fn remove_strays(&self) -> Result<(), EngineError> {
        let snapshots = self
            .inner
            .images
            .snapshots()
            .map_err(|error| EngineError::System {
                what: "list the snapshots".to_owned(),
                source: std::io::Error::other(error),
            })?;
        for snapshot in snapshots {
            if !self
                .inner
                .containers
                .lock()
                .contains_key(&ContainerId(snapshot.key.clone()))
            {
                self.inner
                    .images
                    .remove_snapshot(&snapshot.key)
                    .map_err(|source| EngineError::Snapshot {
                        id: snapshot.key.clone(),
                        source,
                    })?;
            }
        }
        let run = self.inner.config.run_dir.join("sandboxes");
        let entries = std::fs::read_dir(&run).map_err(|source| EngineError::System {
            what: format!("list {}", run.display()),
            source,
        })?;
        for entry in entries.flatten() {
            let id = SandboxId(entry.file_name().to_string_lossy().into_owned());
            if !self.inner.sandboxes.lock().contains_key(&id) {
                self.inner.run_dir(&id).unmount()?;
                record::remove(&entry.path())?;
            }
        }
        Ok(())
    }
}
