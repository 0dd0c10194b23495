//! After a start: what is still there is taken up, what ended is reported, what was half made is removed.

use std::sync::{Arc, Weak};
use std::time::Duration;

use knarr_shim::protocol;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::container::{delete_state, read_exit};
use crate::engine::{Container, Engine, Inner, Sandbox, end_of, unknown_end};
use crate::error::EngineError;
use crate::record::{self, ContainerRecord, SandboxRecord};
use crate::shim::{Link, Shim, ShimError};
use crate::types::{ContainerId, SandboxId};

/// How long nothing may come from any shim before those that are still silent are left to answer later.
const MEETING: Duration = Duration::from_secs(2);

/// A shim that answered, and its containers.
type Met = (Arc<Shim>, Vec<protocol::Container>);

/// Takes up one sandbox once its shim answers, or removes it if it was only half made.
async fn take_up(inner: Weak<Inner>, id: SandboxId, sandbox: Arc<Sandbox>) {
    let Some(engine) = inner.upgrade().map(|inner| Engine { inner }) else {
        return;
    };
    let (socket, patience) = (
        engine.inner.run_dir(&id).socket(),
        engine.inner.config.patience,
    );
    let notices = engine.inner.notices.clone();
    let complete = sandbox.record.lock().complete;
    if !complete {
        // Nothing runs in it, so nothing needs its shim, which may not answer.
        if let Err(error) = engine.remove_sandbox(&id).await {
            let error = &error as &dyn std::error::Error;
            tracing::error!(
                error,
                sandbox = id.0,
                "a half made sandbox could not be removed"
            );
        }
        return;
    }
    // Not held while the shim is waited for, which may be for ever.
    drop(engine);
    let meet = async {
        let shim = Shim::connect(&socket, id.clone(), notices, patience).await?;
        let listed = shim.first_list().await?;
        Ok((shim, listed))
    };
    let met = meet.await;
    let Some(engine) = inner.upgrade().map(|inner| Engine { inner }) else {
        return;
    };
    engine.met(&id, &sandbox, met).await;
}

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
        let mut meeting = JoinSet::new();
        for (id, sandbox) in sandboxes {
            meeting.spawn(take_up(Arc::downgrade(&self.inner), id, sandbox));
        }
        // As long as one after the other answers. A shim that does not is taken up when it does, and delays nobody meanwhile.
        loop {
            match tokio::time::timeout(MEETING, meeting.join_next()).await {
                Ok(None) => break,
                Ok(Some(Ok(()))) => {}
                Ok(Some(Err(error))) => {
                    if let Ok(panic) = error.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                }
                Err(_) => {
                    let silent = meeting.len();
                    tracing::warn!(silent, "shims do not answer; their pods are taken up later");
                    meeting.detach_all();
                    break;
                }
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
                if let Err(error) = record::remove(&path, "sandbox.json") {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "a sandbox without a record stays");
                }
                continue;
            };
            let sandbox = Sandbox {
                shim: watch::channel(Link::Silent).0,
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
                if let Err(error) = record::remove(&path, "container.json") {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, "a container without a record stays");
                }
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

    async fn met(&self, id: &SandboxId, sandbox: &Sandbox, met: Result<Met, ShimError>) {
        let (shim, listed) = match met {
            Ok(met) => met,
            Err(error) => {
                // After a reboot, or the shim died: what it looked after has ended.
                tracing::info!(%error, sandbox = id.0, "a sandbox has no shim any more");
                if !matches!(sandbox.shim.send_replace(Link::Down), Link::Down) {
                    self.end_all(id, sandbox).await;
                }
                return;
            }
        };
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
        // Known only now, so that nobody acts on what the records said before. One that was given up meanwhile stays so.
        sandbox.shim.send_if_modified(|link| {
            let silent = matches!(link, Link::Silent);
            if silent {
                *link = Link::Up(shim);
            }
            silent
        });
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
                && let Err(error) = self.inner.images.remove_snapshot(&snapshot.key)
            {
                // One that is busy must not keep all others from being looked after; the next start tries again.
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, key = snapshot.key, "a stray snapshot stays");
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
                let run_dir = self.inner.run_dir(&id);
                if let Err(error) = run_dir.unmount().and_then(|()| run_dir.remove()) {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, sandbox = id.0, "a stray run directory stays");
                }
            }
        }
        Ok(())
    }
}
