//! The loop: changes come in, pods go out to their nodes.
//!
//! One task owns the snapshot and the queue. A pod that got a node counts as running there at once; the binding is written meanwhile, many
//! at a time, and taken back if it fails.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::runtime::watcher::Event;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bind::Writer;
use crate::decide::decide;
use crate::model::{Namespace, Node, Pod};
use crate::pod::{PodInfo, Uid};
use crate::preempt::{Preemption, preempt};
use crate::queue::{Change, Queue};
use crate::snapshot::Snapshot;

/// How many bindings are written at a time.
const IN_FLIGHT: usize = 128;
/// How many changes are taken before the next pod is tried.
const CHANGES_AT_ONCE: usize = 256;
/// The same trouble is told again after this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// A change that concerns the scheduler.
#[expect(
    clippy::large_enum_variant,
    reason = "most inputs are pods, which are the largest"
)]
pub(crate) enum Input {
    Pod(Event<Pod>),
    Node(Event<Node>),
    Namespace(Event<Namespace>),
}

/// The end of a binding.
struct Bound {
    uid: Uid,
    result: Result<(), kube::Error>,
}

/// The scheduler's state.
pub(crate) struct Scheduler {
    name: String,
    writer: Writer,
    snapshot: Snapshot,
    queue: Queue,
    bindings: JoinSet<Bound>,
    /// Pods whose binding is being written.
    assumed: HashSet<Uid>,
    rng: SmallRng,
    pods_listed: Listed<Uid>,
    nodes_listed: Listed<Arc<str>>,
}

/// What a list has not named yet, and whether there was one.
struct Listed<T> {
    missing: HashSet<T>,
    done: bool,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self {
            missing: HashSet::new(),
            done: false,
        }
    }
}

impl Scheduler {
    /// A scheduler that knows nothing yet; it works for pods that name it.
    pub fn new(name: String, writer: Writer) -> Self {
        Self {
            name,
            writer,
            snapshot: Snapshot::default(),
            queue: Queue::default(),
            bindings: JoinSet::new(),
            assumed: HashSet::new(),
            rng: SmallRng::from_os_rng(),
            pods_listed: Listed::default(),
            nodes_listed: Listed::default(),
        }
    }

    /// Works until stopped.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>, stop: CancellationToken) {
        let mut changes = Vec::with_capacity(CHANGES_AT_ONCE);
        loop {
            let may_try =
                self.pods_listed.done && self.nodes_listed.done && self.bindings.len() < IN_FLIGHT;
            let due = self.queue.due().filter(|_| may_try);
            let timer = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            // Changes come first: a decision on yesterday's news is only undone later. `recv_many` and `join_next` lose nothing when
            // another branch is first.
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                count = inputs.recv_many(&mut changes, CHANGES_AT_ONCE) => {
                    if count == 0 {
                        return;
                    }
                    for change in changes.drain(..) {
                        self.take(change);
                    }
                }
                Some(ended) = self.bindings.join_next() => match ended {
                    Ok(bound) => self.bound(bound),
                    Err(error) => tracing::error!(%error, "a binding broke down"),
                },
                () = timer => self.try_next(),
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Pod(event) => self.take_pod(event),
            Input::Node(event) => self.take_node(event),
            Input::Namespace(Event::Apply(namespace) | Event::InitApply(namespace)) => {
                let (name, labels) = (
                    namespace.metadata.name.unwrap_or_default(),
                    namespace.metadata.labels.unwrap_or_default(),
                );
                self.snapshot.namespaces.insert(name, labels);
            }
            Input::Namespace(Event::Delete(namespace)) => {
                self.snapshot
                    .namespaces
                    .remove(&namespace.metadata.name.unwrap_or_default());
            }
            Input::Namespace(Event::Init | Event::InitDone) => {}
        }
    }

    fn take_pod(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => {
                self.pods_listed.missing = self
                    .snapshot
                    .uids()
                    .chain(self.queue.uids())
                    .cloned()
                    .collect();
            }
            Event::InitApply(pod) => {
                self.pods_listed
                    .missing
                    .remove(pod.metadata.uid.as_deref().unwrap_or_default());
                self.set_pod(pod);
            }
            Event::InitDone => {
                for uid in std::mem::take(&mut self.pods_listed.missing) {
                    self.remove_pod(&uid);
                }
                self.pods_listed.done = true;
            }
            Event::Apply(pod) => self.set_pod(pod),
            Event::Delete(pod) => self.remove_pod(pod.metadata.uid.as_deref().unwrap_or_default()),
        }
    }

    fn set_pod(&mut self, mut pod: Pod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            self.remove_pod(&uid);
            return;
        }
        if let Some(node) = pod.spec.node_name.clone().filter(|name| !name.is_empty()) {
            self.queue.remove(&uid);
            self.assumed.remove(&*uid);
            self.snapshot.forget_nomination(&uid);
            self.snapshot.add_pod(Arc::new(PodInfo::of(pod)), &node);
            if self.snapshot.pods_with_terms().next().is_some() {
                self.queue.change(Change::Pods, Instant::now());
            }
            return;
        }
        pod.spec.node_name = None;
        let ours = pod
            .spec
            .scheduler_name
            .as_deref()
            .unwrap_or("default-scheduler")
            == self.name;
        if !ours
            || pod.metadata.deletion_timestamp.is_some()
            || !pod.spec.scheduling_gates.is_empty()
        {
            self.queue.remove(&uid);
            self.snapshot.forget_nomination(&uid);
            return;
        }
        let nominated = pod.status.nominated_node_name.take();
        if !self.assumed.contains(&*uid) {
            self.queue.set(PodInfo::of(pod));
            // Told by an earlier life of the scheduler; what this one decided it knows already.
            if let Some(node) = nominated.filter(|node| !node.is_empty())
                && self.snapshot.nomination(&uid).is_none()
                && let Some(waiting) = self.queue.get_mut(&uid)
            {
                self.snapshot.nominate(waiting.pod.clone(), &node);
            }
        }
    }

    fn remove_pod(&mut self, uid: &str) {
        self.queue.remove(uid);
        self.assumed.remove(uid);
        self.snapshot.forget_nomination(uid);
        if self.snapshot.remove_pod(uid).is_some() {
            self.queue.change(Change::Pods, Instant::now());
        }
    }

    fn take_node(&mut self, event: Event<Node>) {
        match event {
            Event::Init => self.nodes_listed.missing = self.snapshot.names().cloned().collect(),
            Event::InitApply(node) => {
                self.nodes_listed
                    .missing
                    .remove(node.metadata.name.as_deref().unwrap_or_default());
                self.set_node(node);
            }
            Event::InitDone => {
                for name in std::mem::take(&mut self.nodes_listed.missing) {
                    self.snapshot.remove_node(&name);
                }
                self.nodes_listed.done = true;
            }
            Event::Apply(node) => self.set_node(node),
            Event::Delete(node) => self
                .snapshot
                .remove_node(node.metadata.name.as_deref().unwrap_or_default()),
        }
    }

    fn set_node(&mut self, node: Node) {
        if self.snapshot.set_node(node) {
            self.queue.change(Change::Node, Instant::now());
        }
    }

    fn try_next(&mut self) {
        let now = Instant::now();
        let Some(pod) = self.queue.pop(now) else {
            return;
        };
        match decide(&pod, &mut self.snapshot, &mut self.rng) {
            Ok(id) => {
                let Some(node) = self.snapshot.node(id).map(|node| node.name.clone()) else {
                    return;
                };
                self.snapshot.add_pod(Arc::new(pod.bound()), &node);
                self.snapshot.forget_nomination(&pod.uid);
                self.assumed.insert(pod.uid.clone());
                let writer = self.writer.clone();
                self.bindings.spawn(async move {
                    let result = writer.bind(&pod, &node).await;
                    Bound {
                        uid: pod.uid.clone(),
                        result,
                    }
                });
            }
            Err(refusals) => {
                self.queue
                    .unschedulable(&pod.uid, refusals.depends_on_pods(), now);
                match preempt(&pod, &mut self.snapshot, &refusals) {
                    Ok(preemption) => {
                        let node = preemption.node.to_string();
                        self.preempt(&pod, preemption);
                        self.explain(&pod, refusals.message(None), Some(node), now);
                    }
                    Err(why) => self.explain(&pod, refusals.message(Some(&why)), None, now),
                }
            }
        }
    }

    /// Sends the victims away; the pod is tried again when they are gone.
    fn preempt(&mut self, pod: &Arc<PodInfo>, Preemption { node, victims }: Preemption) {
        let others: Vec<_> = (self.snapshot.id(&node))
            .and_then(|id| self.snapshot.node(id))
            .into_iter()
            .flat_map(|info| info.nominated.clone())
            .filter(|other| other.priority < pod.priority)
            .collect();
        for other in &others {
            // Its room goes to somebody dearer: it looks for another place.
            self.snapshot.forget_nomination(&other.uid);
        }
        self.snapshot.nominate(pod.clone(), &node);
        for victim in &victims {
            // Until the watch tells so: the pod waits for them, and nobody takes them twice.
            let ending = PodInfo {
                terminating: true,
                ..victim.bound()
            };
            self.snapshot.add_pod(Arc::new(ending), &node);
        }
        let (writer, pod, by) = (self.writer.clone(), pod.clone(), self.name.clone());
        tokio::spawn(async move {
            for other in others {
                writer.take_nomination(&other).await;
            }
            for victim in victims {
                writer.preempt(&victim, &pod, &node, &by).await;
            }
        });
    }

    /// Writes the condition where it changes, and an event now and then.
    fn explain(
        &mut self,
        pod: &Arc<PodInfo>,
        message: String,
        nominated: Option<String>,
        now: Instant,
    ) {
        let Some(waiting) = self.queue.get_mut(&pod.uid) else {
            return;
        };
        let (is_new, is_old) = match &waiting.told {
            Some((told, at)) => (*told != message, now - *at > TELL_AGAIN),
            None => (true, true),
        };
        if is_new || is_old {
            waiting.told = Some((message.clone(), now));
            self.writer.tell(pod, message.clone());
        }
        if is_new || nominated.is_some() {
            let (writer, pod) = (self.writer.clone(), pod.clone());
            tokio::spawn(async move { writer.explain(pod, message, nominated).await });
        }
    }

    fn bound(&mut self, Bound { uid, result }: Bound) {
        match result {
            Ok(()) => self.queue.remove(&uid),
            Err(error) => {
                // The watch may have told meanwhile that it has a node after all, or is gone.
                if !self.assumed.remove(&uid) {
                    return;
                }
                self.snapshot.remove_pod(&uid);
                tracing::warn!(%error, pod = &*uid, "binding failed");
                self.queue.failed(&uid, Instant::now());
            }
        }
    }
}
