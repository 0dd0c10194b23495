//! The pods of this node: one task each, fed from one watch.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use knarr_engine::types::{Event, SandboxStatus};
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use parking_lot::RwLock;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admission;
use crate::ctx::Ctx;
use crate::existing::{self, Existing};
use crate::logs;
use crate::memory::Rejection;
use crate::pod::{self, PodKey};
use crate::pod_task;
use crate::resources;
use crate::runtime::{RuntimeError, chain};
use crate::sandbox::label;
use crate::worker::Input;

/// How long the reading of the node waits for its next try.
const NODE_RETRY: Duration = Duration::from_millis(200);
/// How long the API server may take to tell of the node while other pods wait.
const NODE_PATIENCE: Duration = Duration::from_secs(5);

/// The pods that the node has now, for the HTTP server, by UID.
#[derive(Clone, Default)]
pub(crate) struct Pods(Arc<RwLock<HashMap<String, Known>>>);

struct Known {
    pod: Arc<Pod>,
    /// The API no longer has it; its containers are being stopped.
    gone: bool,
}

impl Pods {
    /// All pods that the API has, in no order.
    pub(crate) fn list(&self) -> Vec<Arc<Pod>> {
        let known = self.0.read();
        let here = known.values().filter(|known| !known.gone);
        here.map(|known| known.pod.clone()).collect()
    }

    /// One pod by name and, if given, by UID.
    ///
    /// There can be several of one name, of which the API has at most one: the others were deleted by force, or that is not
    /// known here yet. The newest is meant.
    pub(crate) fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<Arc<Pod>> {
        let known = self.0.read();
        let named = |known: &&Known| {
            let of = &known.pod.metadata;
            !known.gone
                && of.namespace.as_deref() == Some(namespace)
                && of.name.as_deref() == Some(name)
                && uid.is_none_or(|uid| of.uid.as_deref() == Some(uid))
        };
        let newest = known.values().filter(named).max_by_key(|known| {
            let of = &known.pod.metadata;
            let created = of.creation_timestamp.as_ref().map(|time| time.0);
            (of.deletion_timestamp.is_none(), created)
        });
        newest.map(|known| known.pod.clone())
    }

    /// These pods, for tests.
    #[cfg(test)]
    pub(crate) fn of(pods: impl IntoIterator<Item = Pod>) -> Self {
        let pods = pods.into_iter().map(|pod| {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let pod = Arc::new(pod);
            (uid, Known { pod, gone: false })
        });
        Self(Arc::new(RwLock::new(pods.collect())))
    }

    /// How many pods there are.
    pub(crate) fn count(&self) -> usize {
        self.0.read().len()
    }

    fn insert(&self, uid: &str, pod: Arc<Pod>, gone: bool) {
        self.0.write().insert(uid.to_owned(), Known { pod, gone });
    }
}

/// How a pod's task is told of changes, and what the pod adds to the groups above it.
struct Handle {
    input: watch::Sender<Input>,
    burstable_milli_cpu: i64,
    /// Whether the node did not take the pod: it uses nothing.
    rejected: bool,
}

struct Manager {
    ctx: Arc<Ctx>,
    pods: Pods,
    /// The node as the API has it, for whether it can take a pod.
    node: Node,
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
    let Some(node) = stop.run_until_cancelled(wait_for_node(&ctx)).await else {
        return end(&ctx).await;
    };
    let mut manager = Manager {
        existing: existing::by_pod(&sandboxes, &containers),
        ctx: ctx.clone(),
        pods,
        node,
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
    let config =
        watcher::Config::default().fields(&format!("metadata.name={}", ctx.config.node_name));
    let nodes = watcher(Api::<Node>::all(ctx.client.clone()), config).default_backoff();
    let mut nodes = std::pin::pin!(nodes);
    let mut listed: HashSet<String> = HashSet::new();
    // Whether there is room for a new pod is known only when all of a list is.
    let mut fresh: Vec<Pod> = Vec::new();
    let mut orphans = Some(orphans);
    let mut orphans_left = false;
    let mut orphans_again = tokio::time::interval(crate::gc::ORPHANS_INTERVAL);
    orphans_again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // Each branch takes one message from a queue; the others keep theirs.
        tokio::select! {
            () = stop.cancelled() => break,
            _ = orphans_again.tick(), if orphans_left => orphans_left = !manager.remove_orphans(),
            event = stream.next() => match event {
                Some(Ok(watcher::Event::Init)) => {
                    listed.clear();
                    fresh.clear();
                }
                Some(Ok(watcher::Event::InitApply(pod))) => {
                    listed.insert(pod.metadata.uid.clone().unwrap_or_default());
                    fresh.push(pod);
                }
                Some(Ok(watcher::Event::InitDone)) => {
                    let gone: Vec<String> =
                        manager.handles.keys().filter(|uid| !listed.contains(*uid)).cloned().collect();
                    for uid in gone {
                        manager.gone(&uid);
                    }
                    manager.finished.retain(|uid| listed.contains(uid));
                    fresh.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
                    let (known, new): (Vec<Pod>, Vec<Pod>) =
                        fresh.drain(..).partition(|pod| manager.knows(pod));
                    for pod in known.into_iter().chain(new) {
                        manager.apply(pod).await;
                    }
                    // Only now is it known which pods the API no longer has.
                    for pod in orphans.take().into_iter().flatten() {
                        if !manager.handles.contains_key(pod.metadata.uid.as_deref().unwrap_or_default()) {
                            tracing::info!(pod = pod.metadata.name, "stopping a pod that is no longer wanted");
                            manager.spawn(pod, true, None);
                        }
                    }
                    orphans_left = !manager.remove_orphans();
                }
                Some(Ok(watcher::Event::Apply(pod))) => manager.apply(pod).await,
                Some(Ok(watcher::Event::Delete(pod))) => {
                    manager.gone(pod.metadata.uid.as_deref().unwrap_or_default());
                }
                Some(Err(error)) => tracing::warn!(error = chain(&error), "watch of pods interrupted"),
                None => break,
            },
            event = nodes.next() => match event {
                Some(Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node))) => {
                    manager.node = node;
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => tracing::warn!(error = chain(&error), "watch of the node interrupted"),
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
    end(&ctx).await
}

/// What is left to do when the agent was told to stop.
async fn end(ctx: &Ctx) -> Result<(), ManagerError> {
    if ctx.config.kill_pods_on_exit {
        kill_all(ctx).await;
    }
    Ok(())
}

/// The node's object; the agent has registered it.
async fn wait_for_node(ctx: &Ctx) -> Node {
    loop {
        match read_node(ctx).await {
            Ok(node) => return node,
            Err(error) => {
                tracing::warn!(error = chain(&error), "read the node");
                tokio::time::sleep(NODE_RETRY).await;
            }
        }
    }
}

async fn read_node(ctx: &Ctx) -> Result<Node, kube::Error> {
    let api: Api<Node> = Api::all(ctx.client.clone());
    api.get(&ctx.config.node_name).await
}

impl Manager {
    fn knows(&self, pod: &Pod) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.handles.contains_key(uid)
    }

    async fn apply(&mut self, pod: Pod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if self.finished.contains(&uid) {
            return;
        }
        let Some(handle) = self.handles.get(&uid) else {
            let rejected = self.admit(&pod).await.err();
            self.spawn(pod, false, rejected);
            return;
        };
        let pod = Arc::new(pod);
        self.pods.insert(&uid, pod.clone(), false);
        handle.input.send_replace(Input { pod, gone: false });
    }

    /// Whether the node takes a pod that it did not have yet.
    async fn admit(&mut self, pod: &Pod) -> Result<(), Rejection> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        // What this node has taken once it keeps, whatever has changed since.
        let started = pod.status.as_ref().is_some_and(|s| s.start_time.is_some());
        let ends = pod.metadata.deletion_timestamp.is_some() || pod::is_terminal(pod);
        if started || ends || self.existing.contains_key(uid) {
            return Ok(());
        }
        let others = self.pods.list();
        let uses = |other: &&Arc<Pod>| {
            let uid = other.metadata.uid.as_deref().unwrap_or_default();
            let rejected = self.handles.get(uid).is_some_and(|handle| handle.rejected);
            !rejected && !pod::is_terminal(other)
        };
        let others: Vec<&Pod> = others.iter().filter(uses).map(AsRef::as_ref).collect();
        let Err(rejection) = admission::check(&self.node, &others, pod) else {
            return Ok(());
        };
        // Labels, taints and resources may be newer than what the watch has told.
        match tokio::time::timeout(NODE_PATIENCE, read_node(&self.ctx)).await {
            Ok(Ok(node)) => {
                let checked = admission::check(&node, &others, pod);
                self.node = node;
                checked
            }
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), "read the node");
                Err(rejection)
            }
            Err(_) => {
                tracing::warn!("the API server takes too long to answer for the node");
                Err(rejection)
            }
        }
    }

    fn spawn(&mut self, pod: Pod, gone: bool, rejected: Option<Rejection>) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let pod = Arc::new(pod);
        let (input, receiver) = watch::channel(Input {
            pod: pod.clone(),
            gone,
        });
        let existing = self.existing.remove(&uid).unwrap_or_default();
        self.pods.insert(&uid, pod.clone(), gone);
        let is_rejected = rejected.is_some();
        let task = pod_task::run(self.ctx.clone(), receiver, existing, rejected);
        let burstable = resources::qos(&pod) == resources::Qos::Burstable;
        let burstable_milli_cpu = if burstable && !is_rejected {
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
                rejected: is_rejected,
            },
        );
        self.tasks.spawn(async move {
            task.await;
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

    /// Removes what pods that nobody looks after have left; returns whether nothing is left.
    fn remove_orphans(&self) -> bool {
        crate::gc::orphaned_directories(&self.ctx, |uid| self.handles.contains_key(uid))
    }

    fn gone(&mut self, uid: &str) {
        self.finished.remove(uid);
        if let Some(known) = self.pods.0.write().get_mut(uid) {
            known.gone = true;
        }
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
            let key = PodKey {
                namespace: sandbox.config.namespace.clone(),
                name: sandbox.config.name.clone(),
                uid: uid.to_owned(),
            };
            pod_task::stand_in(key, grace)
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
    let grace = Duration::from_secs(2);
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_pods_of_one_name_the_one_that_the_api_has_is_meant() {
        let pod = |uid: &str, created: &str, deleted: bool| {
            let mut value = json!({"metadata": {
                "name": "p", "namespace": "ns", "uid": uid, "creationTimestamp": created,
            }});
            if deleted {
                value["metadata"]["deletionTimestamp"] = json!("2026-11-30T12:00:00Z");
            }
            Arc::new(serde_json::from_value::<Pod>(value).expect("a pod"))
        };
        let (early, late) = ("2026-11-30T10:00:00Z", "2026-11-30T11:00:00Z");
        for (rows, by_name, by_old) in [
            // Uid, creation, terminating, gone from the API.
            (
                vec![("old", early, false, false), ("new", late, false, false)],
                Some("new"),
                Some("old"),
            ),
            (
                vec![("old", early, true, false), ("new", late, false, false)],
                Some("new"),
                Some("old"),
            ),
            (
                vec![("old", late, true, false), ("new", late, false, false)],
                Some("new"),
                Some("old"),
            ),
            (
                vec![("old", early, true, true), ("new", late, true, false)],
                Some("new"),
                None,
            ),
            (vec![("old", early, true, true)], None, None),
            (vec![("old", early, true, false)], Some("old"), Some("old")),
        ] {
            let pods = Pods::default();
            for (uid, created, deleted, gone) in &rows {
                pods.insert(uid, pod(uid, created, *deleted), *gone);
            }
            let found = |uid| {
                let found = pods.find("ns", "p", uid)?;
                found.metadata.uid.clone()
            };
            assert_eq!(found(None).as_deref(), by_name, "{rows:?}");
            assert_eq!(found(Some("old")).as_deref(), by_old, "{rows:?}");
            assert_eq!(pods.find("other", "p", None), None);
        }
    }
}
