//! The loop: changes come in, pods go out to their nodes.
//!
//! One task owns the snapshot and the queue. A pod that got a node counts as running there at once; the binding is written meanwhile, many
//! at a time, and taken back if it fails.

use std::collections::HashSet;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use knarr_controllers::supervise;
use kube::runtime::watcher::Event;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bind::Writer;
use crate::decide::decide;
use crate::filter::Refusals;
use crate::model::{Namespace, Node, Pod};
use crate::pod::{PodInfo, Uid};
use crate::preempt::{Preemption, preempt};
use crate::queue::{Change, Queue};
use crate::snapshot::{NodeId, Snapshot};

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
    result: Result<(), String>,
}

/// What could not be told to the API server.
enum Untold {
    /// Why this pod has no node.
    Explanation(Uid),
    /// That this victim has to leave its node for the pod.
    Eviction {
        pod: Uid,
        victim: Arc<PodInfo>,
        node: Arc<str>,
    },
}

type Decide = fn(&PodInfo, &mut Snapshot, &mut SmallRng) -> Result<NodeId, Refusals>;

/// The scheduler's state.
pub(crate) struct Scheduler {
    name: String,
    writer: Writer,
    snapshot: Snapshot,
    queue: Queue,
    decide: Decide,
    bindings: JoinSet<Bound>,
    /// Explanations and evictions under way.
    tellings: JoinSet<Vec<Untold>>,
    /// Pods whose binding is being written.
    assumed: HashSet<Uid>,
    rng: SmallRng,
    pods_listed: Listed<Uid>,
    nodes_listed: Listed<Arc<str>>,
    namespaces_listed: Listed<String>,
}

/// What a list has not named yet, and whether it is complete.
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

impl<T: Eq + Hash> Listed<T> {
    fn begin(&mut self, known: impl Iterator<Item = T>) {
        self.done = false;
        self.missing = known.collect();
    }

    /// What was known before and is gone.
    fn end(&mut self) -> HashSet<T> {
        self.done = true;
        std::mem::take(&mut self.missing)
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
            decide,
            bindings: JoinSet::new(),
            tellings: JoinSet::new(),
            assumed: HashSet::new(),
            rng: SmallRng::from_os_rng(),
            pods_listed: Listed::default(),
            nodes_listed: Listed::default(),
            namespaces_listed: Listed::default(),
        }
    }

    /// The client that it writes with.
    pub fn client(&self) -> kube::Client {
        self.writer.client.clone()
    }

    /// Whether all is listed: half of a list would be half of what is on the nodes, or of what a pod wants to be near.
    fn is_listed(&self) -> bool {
        self.pods_listed.done && self.nodes_listed.done && self.namespaces_listed.done
    }

    /// Works until stopped.
    pub async fn run(mut self, mut inputs: mpsc::Receiver<Input>, stop: CancellationToken) {
        let mut changes = Vec::with_capacity(CHANGES_AT_ONCE);
        loop {
            let may_try = self.is_listed() && self.bindings.len() < IN_FLIGHT;
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
                        // One object that cannot be taken in must not keep the others out.
                        if let Err(error) = caught(|| self.take(change)) {
                            tracing::error!(error, "taking in a change panicked");
                        }
                    }
                }
                Some(ended) = self.bindings.join_next() => match ended {
                    Ok(bound) => self.bound(bound),
                    Err(error) => tracing::error!(%error, "a binding broke down"),
                },
                Some(ended) = self.tellings.join_next() => match ended {
                    Ok(untold) => untold.into_iter().for_each(|one| self.untold(one)),
                    Err(error) => tracing::error!(%error, "an explanation or eviction broke down"),
                },
                () = timer => self.try_next(),
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Pod(event) => self.take_pod(event),
            Input::Node(event) => self.take_node(event),
            Input::Namespace(event) => self.take_namespace(event),
        }
    }

    fn take_namespace(&mut self, event: Event<Namespace>) {
        match event {
            Event::Init => {
                let known = self.snapshot.namespaces.keys().cloned();
                self.namespaces_listed.begin(known);
            }
            Event::InitApply(namespace) => {
                let name = namespace.metadata.name.as_deref().unwrap_or_default();
                self.namespaces_listed.missing.remove(name);
                self.set_namespace(namespace);
            }
            Event::InitDone => {
                for name in self.namespaces_listed.end() {
                    self.snapshot.namespaces.remove(&name);
                }
            }
            Event::Apply(namespace) => self.set_namespace(namespace),
            Event::Delete(namespace) => {
                self.snapshot
                    .namespaces
                    .remove(&namespace.metadata.name.unwrap_or_default());
            }
        }
    }

    fn set_namespace(&mut self, namespace: Namespace) {
        let (name, labels) = (
            namespace.metadata.name.unwrap_or_default(),
            namespace.metadata.labels.unwrap_or_default(),
        );
        self.snapshot.namespaces.insert(name, labels);
    }

    fn take_pod(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => {
                let known = self.snapshot.uids().chain(self.queue.uids());
                self.pods_listed.begin(known.cloned());
            }
            Event::InitApply(pod) => {
                self.pods_listed
                    .missing
                    .remove(pod.metadata.uid.as_deref().unwrap_or_default());
                self.set_pod(pod);
            }
            Event::InitDone => {
                for uid in self.pods_listed.end() {
                    self.remove_pod(&uid);
                }
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
            Event::Init => self.nodes_listed.begin(self.snapshot.names().cloned()),
            Event::InitApply(node) => {
                self.nodes_listed
                    .missing
                    .remove(node.metadata.name.as_deref().unwrap_or_default());
                self.set_node(node);
            }
            Event::InitDone => {
                for name in self.nodes_listed.end() {
                    self.snapshot.remove_node(&name);
                }
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
        let decided = caught(|| (self.decide)(&pod, &mut self.snapshot, &mut self.rng));
        match decided {
            Err(panic) => self.give_up(&pod, &panic, now),
            Ok(Ok(id)) => {
                let Some(node) = self.snapshot.node(id).map(|node| node.name.clone()) else {
                    return;
                };
                self.snapshot.add_pod(Arc::new(pod.bound()), &node);
                self.snapshot.forget_nomination(&pod.uid);
                self.assumed.insert(pod.uid.clone());
                let writer = self.writer.clone();
                self.bindings.spawn(async move {
                    let bind = AssertUnwindSafe(writer.bind(&pod, &node)).catch_unwind();
                    let result = match bind.await {
                        Ok(result) => result.map_err(|error| error.to_string()),
                        Err(panic) => Err(supervise::message(&*panic).to_owned()),
                    };
                    Bound {
                        uid: pod.uid.clone(),
                        result,
                    }
                });
            }
            Ok(Err(refusals)) => {
                self.queue
                    .unschedulable(&pod.uid, refusals.depends_on_pods(), now);
                match caught(|| preempt(&pod, &mut self.snapshot, &refusals)) {
                    Err(panic) => self.give_up(&pod, &panic, now),
                    Ok(Ok(preemption)) => {
                        let node = preemption.node.to_string();
                        self.preempt(&pod, preemption);
                        self.explain(&pod, refusals.message(None), Some(node), now);
                    }
                    Ok(Err(why)) => self.explain(&pod, refusals.message(Some(&why)), None, now),
                }
            }
        }
    }

    /// The decision on a pod panicked: it waits longer each time, and the others do not notice.
    fn give_up(&mut self, pod: &PodInfo, panic: &str, now: Instant) {
        let (namespace, name) = (&*pod.namespace, &*pod.name);
        tracing::error!(namespace, name, error = panic, "scheduling a pod panicked");
        self.queue.failed(&pod.uid, now);
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
        self.tellings.spawn(async move {
            for other in others {
                writer.take_nomination(&other).await;
            }
            let mut untold = Vec::new();
            for victim in victims {
                if !writer.preempt(&victim, &pod, &node, &by).await {
                    untold.push(Untold::Eviction {
                        pod: pod.uid.clone(),
                        victim,
                        node: node.clone(),
                    });
                }
            }
            untold
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
            self.tellings.spawn(async move {
                let told = writer.explain(&pod, message, nominated).await;
                (!told)
                    .then(|| Untold::Explanation(pod.uid.clone()))
                    .into_iter()
                    .collect()
            });
        }
    }

    /// What was not told is tried again with the pod.
    fn untold(&mut self, untold: Untold) {
        let now = Instant::now();
        match untold {
            Untold::Explanation(uid) => {
                if let Some(waiting) = self.queue.get_mut(&uid) {
                    waiting.told = None;
                    self.queue.retry(&uid, now);
                }
            }
            Untold::Eviction { pod, victim, node } => {
                // It is still there and does not leave yet, unless the watch told otherwise meanwhile.
                if self.snapshot.uids().any(|uid| *uid == victim.uid) {
                    self.snapshot.add_pod(Arc::new(victim.bound()), &node);
                }
                self.queue.retry(&pod, now);
            }
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

/// What `decide` answers, or what it said when it panicked. It leaves the snapshot as it was.
fn caught<T>(decide: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(decide)).map_err(|panic| supervise::message(&*panic).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use knarr_controllers::events::Recorder;
    use kube::client::Body;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    /// A scheduler whose server never answers.
    fn scheduler() -> Scheduler {
        let service = tower::service_fn(|_: http::Request<Body>| {
            std::future::pending::<Result<http::Response<Body>, std::io::Error>>()
        });
        let client = kube::Client::new(service, "default");
        let (recorder, _) = Recorder::start("test", client.clone(), CancellationToken::new());
        Scheduler::new("default-scheduler".into(), Writer { client, recorder })
    }

    fn list<K: DeserializeOwned>(
        scheduler: &mut Scheduler,
        wrap: fn(Event<K>) -> Input,
        objects: &[Value],
    ) {
        scheduler.take(wrap(Event::Init));
        for object in objects {
            let object = serde_json::from_value(object.clone()).expect("an object");
            scheduler.take(wrap(Event::InitApply(object)));
        }
        scheduler.take(wrap(Event::InitDone));
    }

    fn named(name: &str) -> Value {
        json!({"metadata": {"name": name, "uid": name}})
    }

    #[tokio::test]
    async fn a_decision_that_panics_costs_its_pod_a_wait_and_the_others_nothing() {
        let mut scheduler = scheduler();
        scheduler.decide = |pod, snapshot, rng| {
            assert!(pod.name != "bad", "on purpose");
            decide(pod, snapshot, rng)
        };
        let node = json!({"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "10"}}});
        list(&mut scheduler, Input::Node, &[node]);
        list(&mut scheduler, Input::Namespace, &[]);
        list(&mut scheduler, Input::Pod, &[named("bad"), named("good")]);
        let start = Instant::now();
        scheduler.try_next();
        scheduler.try_next();
        assert_eq!(scheduler.bindings.len(), 1);
        assert!(scheduler.assumed.contains("good"));
        assert!(scheduler.queue.pop(start).is_none(), "it waits");
        assert!(scheduler.queue.uids().any(|uid| **uid == *"bad"));
    }

    #[tokio::test]
    async fn nothing_is_tried_while_a_list_is_incomplete() {
        let mut scheduler = scheduler();
        list(&mut scheduler, Input::Node, &[named("n")]);
        list(&mut scheduler, Input::Pod, &[named("p")]);
        assert!(!scheduler.is_listed(), "namespaces are missing");
        list(&mut scheduler, Input::Namespace, &[named("old")]);
        assert!(scheduler.is_listed());
        scheduler.take(Input::Pod(Event::Init));
        assert!(!scheduler.is_listed(), "pods are listed anew");
        scheduler.take(Input::Pod(Event::InitDone));
        list(&mut scheduler, Input::Namespace, &[named("new")]);
        assert!(scheduler.is_listed());
        assert_eq!(
            scheduler.snapshot.namespaces.keys().collect::<Vec<_>>(),
            ["new"]
        );
        assert_eq!(scheduler.queue.uids().count(), 0);
    }

    #[tokio::test]
    async fn what_could_not_be_told_is_tried_again() {
        let mut scheduler = scheduler();
        list(&mut scheduler, Input::Node, &[]);
        list(&mut scheduler, Input::Namespace, &[]);
        list(&mut scheduler, Input::Pod, &[named("p")]);
        scheduler.try_next();
        let uid = scheduler.queue.uids().next().cloned().expect("it waits");
        let soon = Instant::now() + Duration::from_secs(30);
        assert!(
            scheduler.queue.due().is_some_and(|due| due > soon),
            "for a change"
        );
        scheduler.untold(Untold::Explanation(uid.clone()));
        assert!(scheduler.queue.due().is_some_and(|due| due < soon));
        let waiting = scheduler.queue.get_mut(&uid).expect("it waits");
        assert!(waiting.told.is_none());
    }
}
