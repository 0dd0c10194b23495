//! The pods of this node: one task each, fed from one watch.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use knarr_engine::types::{ContainerId, ContainerStatus, Event, SandboxId, SandboxStatus};
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use parking_lot::RwLock;
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::ctx::Ctx;
use crate::logs;
use crate::resources;
use crate::runtime::{RuntimeError, chain};
use crate::sandbox::label;
use crate::worker::{Input, Start, Worker};

/// The pods that the node has now, for the HTTP server.
#[derive(Clone, Default)]
pub(crate) struct Pods(Arc<RwLock<HashMap<String, Arc<Pod>>>>);

impl Pods {
    /// All pods, in no order.
    pub(crate) fn list(&self) -> Vec<Arc<Pod>> {
        self.0.read().values().cloned().collect()
    }

    /// One pod by name.
    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        let named = |pod: &&Arc<Pod>| {
            pod.metadata.namespace.as_deref() == Some(namespace)
                && pod.metadata.name.as_deref() == Some(name)
        };
        self.0.read().values().find(named).cloned()
    }

    /// How many pods there are.
    pub(crate) fn count(&self) -> usize {
        self.0.read().len()
    }
}

/// How a pod's task is told of changes, and what the pod adds to the groups above it.
struct Handle {
    input: watch::Sender<Input>,
    burstable_milli_cpu: i64,
}

/// What the runtime already has of one pod.
#[derive(Default)]
struct Existing {
    sandboxes: Vec<SandboxId>,
    containers: Vec<ContainerId>,
}

struct Manager {
    ctx: Arc<Ctx>,
    pods: Pods,
    handles: HashMap<String, Handle>,
    tasks: JoinSet<String>,
    existing: HashMap<String, Existing>,
    /// Pods that are gone from the node, until the API says that their objects are gone too: what it still tells of
    /// them is old, or waits for somebody else's finalizer.
    finished: HashSet<String>,
    /// What the burstable pods ask for together, and what their group was last told.
    burstable_milli_cpu: i64,
    told_milli_cpu: i64,
}

/// Why the node's pods cannot be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManagerError {
    /// The runtime does not say what it has.
    #[error("list what the runtime already has")]
    List { source: RuntimeError },
}

/// Runs the node's pods until stopped.
pub(crate) async fn run(
    ctx: Arc<Ctx>,
    pods: Pods,
    stop: CancellationToken,
) -> Result<(), ManagerError> {
    let mut events = ctx.runtime.events();
    let list = |source| ManagerError::List { source };
    let sandboxes = ctx.runtime.list_sandboxes().await.map_err(list)?;
    let containers = ctx.runtime.list_containers().await.map_err(list)?;
    let orphans = orphans(&sandboxes);
    let mut manager = Manager {
        existing: existing(&sandboxes, &containers),
        ctx: ctx.clone(),
        pods,
        handles: HashMap::new(),
        tasks: JoinSet::new(),
        finished: HashSet::new(),
        burstable_milli_cpu: 0,
        told_milli_cpu: 0,
    };
    drop((sandboxes, containers));
    let config =
        watcher::Config::default().fields(&format!("spec.nodeName={}", ctx.config.node_name));
    let stream = watcher(Api::<Pod>::all(ctx.client.clone()), config).default_backoff();
    let mut stream = std::pin::pin!(stream);
    let mut listed: HashSet<String> = HashSet::new();
    let mut orphans = Some(orphans);
    loop {
        // Each branch takes one message from a queue; the others keep theirs.
        tokio::select! {
            () = stop.cancelled() => break,
            event = stream.next() => match event {
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(pod))) => {
                    listed.insert(pod.metadata.uid.clone().unwrap_or_default());
                    manager.apply(pod);
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    let gone: Vec<String> =
                        manager.handles.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
                    for uid in gone {
                        manager.gone(&uid);
                    }
                    manager.finished.retain(|uid| listed.contains(uid));
                    // Only now is it known which pods the API no longer has.
                    for pod in orphans.take().into_iter().flatten() {
                        if !manager.handles.contains_key(pod.metadata.uid.as_deref().unwrap_or_default()) {
                            tracing::info!(pod = pod.metadata.name, "stopping a pod that is no longer wanted");
                            manager.spawn(pod, true);
                        }
                    }
                    crate::gc::orphaned_directories(&manager.ctx, |uid| manager.handles.contains_key(uid));
                }
                Some(Ok(watcher::Event::Apply(pod))) => manager.apply(pod),
                Some(Ok(watcher::Event::Delete(pod))) => {
                    manager.gone(pod.metadata.uid.as_deref().unwrap_or_default());
                }
                Some(Err(error)) => tracing::warn!(error = chain(&error), "watch of pods interrupted"),
                None => break,
            },
            event = events.recv() => manager.event(event),
            Some(ended) = manager.tasks.join_next(), if !manager.tasks.is_empty() => match ended {
                Ok(uid) => {
                    manager.pods.0.write().remove(&uid);
                    if let Some(handle) = manager.handles.remove(&uid) {
                        manager.burstable_milli_cpu -= handle.burstable_milli_cpu;
                        if !handle.input.borrow().gone {
                            manager.finished.insert(uid);
                        }
                    }
                }
                Err(error) => tracing::error!(%error, "a pod's task failed"),
            },
        }
        manager.tell_group().await;
    }
    manager.tasks.shutdown().await;
    if ctx.config.kill_pods_on_exit {
        kill_all(&ctx).await;
    }
    Ok(())
}

impl Manager {
    fn apply(&mut self, pod: Pod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if self.finished.contains(&uid) {
            return;
        }
        let Some(handle) = self.handles.get(&uid) else {
            self.spawn(pod, false);
            return;
        };
        let pod = Arc::new(pod);
        self.pods.0.write().insert(uid, pod.clone());
        handle.input.send_replace(Input { pod, gone: false });
    }

    fn spawn(&mut self, pod: Pod, gone: bool) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let pod = Arc::new(pod);
        let (input, receiver) = watch::channel(Input {
            pod: pod.clone(),
            gone,
        });
        let Existing {
            sandboxes,
            containers,
        } = self.existing.remove(&uid).unwrap_or_default();
        let worker = Worker::new(Start {
            ctx: self.ctx.clone(),
            input: receiver,
            wake: Arc::new(Notify::new()),
            sandboxes,
            containers,
        });
        self.pods.0.write().insert(uid.clone(), pod.clone());
        let burstable_milli_cpu = if resources::qos(&pod) == resources::Qos::Burstable {
            resources::pod_cpu_request(&pod)
        } else {
            0
        };
        self.burstable_milli_cpu += burstable_milli_cpu;
        self.handles.insert(
            uid.clone(),
            Handle {
                input,
                burstable_milli_cpu,
            },
        );
        self.tasks.spawn(async move {
            worker.run().await;
            uid
        });
    }

    /// Lets the burstable pods' group have as many shares as its pods ask for.
    async fn tell_group(&mut self) {
        if self.burstable_milli_cpu == self.told_milli_cpu {
            return;
        }
        self.told_milli_cpu = self.burstable_milli_cpu;
        let (path, limits) = resources::burstable_group(self.burstable_milli_cpu);
        if let Err(error) = self.ctx.runtime.set_cgroup(path, limits).await {
            tracing::warn!(
                path,
                error = chain(&error),
                "set the shares of the burstable pods"
            );
        }
    }

    fn gone(&mut self, uid: &str) {
        self.finished.remove(uid);
        if let Some(handle) = self.handles.get(uid) {
            handle.input.send_modify(|input| input.gone = true);
        }
    }

    fn event(&self, event: Result<Event, broadcast::error::RecvError>) {
        let uid = match &event {
            Ok(
                Event::ContainerStarted { pod_uid, .. }
                | Event::ContainerExited { pod_uid, .. }
                | Event::SandboxStopped { pod_uid, .. },
            ) => pod_uid,
            // Events were missed: everyone looks for himself.
            Err(_) => {
                for handle in self.handles.values() {
                    handle.input.send_modify(|_| {});
                }
                return;
            }
        };
        if let Some(handle) = self.handles.get(uid) {
            handle.input.send_modify(|_| {});
        }
    }
}

fn existing(
    sandboxes: &[SandboxStatus],
    containers: &[ContainerStatus],
) -> HashMap<String, Existing> {
    let mut map: HashMap<String, Existing> = HashMap::new();
    let mut owners: HashMap<&SandboxId, &str> = HashMap::new();
    for sandbox in sandboxes {
        owners.insert(&sandbox.id, &sandbox.config.uid);
        map.entry(sandbox.config.uid.clone())
            .or_default()
            .sandboxes
            .push(sandbox.id.clone());
    }
    for container in containers {
        let label = container
            .config
            .labels
            .get(label::POD_UID)
            .map(String::as_str);
        if let Some(uid) = label.or(owners.get(&container.sandbox_id).copied()) {
            map.entry(uid.to_owned())
                .or_default()
                .containers
                .push(container.id.clone());
        }
    }
    map
}

/// A stand-in for each pod that the runtime has, in case the API no longer does.
fn orphans(sandboxes: &[SandboxStatus]) -> Vec<Pod> {
    let mut by_uid: BTreeMap<&str, &SandboxStatus> = BTreeMap::new();
    for sandbox in sandboxes {
        by_uid.insert(&sandbox.config.uid, sandbox);
    }
    by_uid
        .into_iter()
        .map(|(uid, sandbox)| {
            let grace = sandbox
                .config
                .annotations
                .get(label::GRACE)
                .and_then(|g| g.parse().ok());
            Pod {
                metadata: ObjectMeta {
                    name: Some(sandbox.config.name.clone()),
                    namespace: Some(sandbox.config.namespace.clone()),
                    uid: Some(uid.to_owned()),
                    deletion_timestamp: Some(crate::status::time(std::time::SystemTime::now())),
                    deletion_grace_period_seconds: grace,
                    ..ObjectMeta::default()
                },
                spec: Some(PodSpec {
                    termination_grace_period_seconds: grace,
                    ..PodSpec::default()
                }),
                status: None,
            }
        })
        .collect()
}

async fn kill_all(ctx: &Ctx) {
    let note = |result: Result<(), RuntimeError>| match result {
        Ok(()) | Err(RuntimeError::NotFound { .. }) => {}
        Err(error) => tracing::warn!(error = chain(&error), "stop a pod"),
    };
    let (Ok(containers), Ok(sandboxes)) = (
        ctx.runtime.list_containers().await,
        ctx.runtime.list_sandboxes().await,
    ) else {
        tracing::error!("the runtime does not list its pods; they go on running");
        return;
    };
    // Short: this is for demonstrations and tests, whose user has pressed Ctrl-C.
    let grace = std::time::Duration::from_secs(2);
    let stops = containers
        .iter()
        .map(|c| ctx.runtime.stop_container(&c.id, grace));
    futures::future::join_all(stops)
        .await
        .into_iter()
        .for_each(note);
    for container in &containers {
        note(ctx.runtime.remove_container(&container.id).await);
        logs::remove(&ctx.config, container);
    }
    for sandbox in &sandboxes {
        note(ctx.runtime.stop_sandbox(&sandbox.id).await);
        note(ctx.runtime.remove_sandbox(&sandbox.id).await);
        let directory = ctx.config.pod_dir(&sandbox.config.uid);
        if let Err(error) = crate::volumes::remove_pod_dir(&directory) {
            tracing::warn!(error = chain(&error), "remove a pod's directory");
        }
        logs::remove_directory(&sandbox.config.log_directory);
    }
    // The groups of the quality of service classes are below the first one.
    if let Err(error) = ctx.runtime.remove_cgroup(resources::QOS_ROOT).await {
        tracing::warn!(error = chain(&error), "remove the pods' cgroups");
    }
}
