//! Garbage collection: what has lost its owners goes; what is deleted in the foreground waits for what it owns; what is deleted
//! with `Orphan` lets its dependents go first.
//!
//! The graph is fed by the shared caches where there is one, and by a watch of metadata for every other kind of the server.

mod decide;
mod graph;
mod kinds;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use futures::{FutureExt as _, StreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, ObjectMeta, OwnerReference};
use kube::api::{
    DeleteParams, DynamicObject, GetParams, ListParams, Patch, PatchParams, Preconditions,
    PropagationPolicy,
};
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Error};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::api;
use crate::cache::{Cache, Cached, Caches};
use crate::context::Context;
use crate::discovery::{Resource, discover};
use crate::model::{self, Written};
use crate::queue::{Next, Queue, backoff};
use crate::supervise::Loop;
use decide::{Action, Dependents, OwnerState, Policy, decide};
use graph::{Deletion, FOREGROUND, Graph, Node, ORPHAN, Uid};
use kinds::{Kinds, Watches};

/// How many objects are worked on at a time.
const WORKERS: usize = 32;
/// What holds the collector up is logged each time that this has passed.
const IMPATIENCE: Duration = Duration::from_secs(30);

/// Why a run ended early; the object comes back after a while.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error("read {what}")]
    Read { what: String, source: Error },
    #[error("discover the server's resources")]
    Discover(#[source] Error),
    #[error("list {what}")]
    List { what: String, source: Error },
    #[error("change {what}")]
    Change { what: String, source: Error },
    #[error("delete {what}")]
    Delete { what: String, source: Error },
    #[error("{what} names an owner of unknown kind {kind}")]
    UnknownKind { what: String, kind: String },
}

/// How many objects are listed at a time.
const PAGE: u32 = 500;

/// A page of a list, as far as ownership goes.
#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    metadata: ListMeta,
    #[serde(default)]
    items: Vec<Written>,
}

/// What the watches share with the worker.
#[derive(Default)]
struct Shared {
    graph: Mutex<Graph>,
    queue: Arc<Queue<Uid>>,
    /// Told when a definition of custom resources comes, changes or goes.
    definitions: Notify,
}

impl Shared {
    fn observe(&self, resource: &Arc<Resource>, meta: &ObjectMeta) {
        for uid in self.graph.lock().observe(resource, meta) {
            self.queue.add(uid);
        }
    }

    fn remove(&self, uid: &str) {
        for uid in self.graph.lock().remove(uid) {
            self.queue.add(uid);
        }
    }
}

#[derive(Clone)]
struct Collector {
    client: Client,
    shared: Arc<Shared>,
    kinds: Arc<Kinds>,
}

/// Registers with the caches; what the returned function makes works until stopped, once the caches are ready.
pub(crate) fn start(ctx: Context) -> Loop {
    let shared = Arc::new(Shared::default());
    let covered = Arc::new(cover(&ctx.caches, &shared));
    Box::new(move || {
        let (ctx, shared, covered) = (ctx.clone(), shared.clone(), covered.clone());
        async move { run(&ctx, shared, &covered).await }.boxed()
    })
}

async fn run(ctx: &Context, shared: Arc<Shared>, covered: &HashSet<(String, String)>) {
    let Some(resources) = discover_until(&ctx.client, &ctx.stop).await else {
        return;
    };
    // Dropped with this future, and the watches with it.
    let mut watches = Watches::new(ctx, &shared, covered);
    watches.set(resources.clone()).await;
    // Whom an object owns is known only once every kind was listed: before, a deletion in the foreground would not wait for its
    // dependents, and one that orphans would forget them, and they would be collected later.
    tokio::select! {
        () = ctx.stop.cancelled() => return,
        () = watches.unlisted.none() => {}
    }
    let collector = Collector {
        client: ctx.client.clone(),
        shared: shared.clone(),
        kinds: watches.kinds.clone(),
    };
    let queue = shared.queue.clone();
    let work = queue.run("garbage-collector", WORKERS, ctx.stop.clone(), move |uid| {
        let collector = collector.clone();
        async move { collector.sync(&uid).await }
    });
    // Both end when stopped, and not before.
    tokio::join!(work, watches.keep_up(resources));
}

/// Whether objects of this resource go with their owners; events go by themselves.
fn is_collected(resource: &Resource) -> bool {
    resource.kind != "Event"
}

/// Whether a change of an object of this resource may bring or take kinds.
fn defines_kinds(resource: &Resource) -> bool {
    resource.qualified() == "customresourcedefinitions.apiextensions.k8s.io"
}

/// The resources whose first list is still to come.
#[derive(Clone, Default)]
struct Unlisted(Arc<watch::Sender<BTreeSet<String>>>);

impl Unlisted {
    fn add(&self, resource: &Resource) {
        self.0
            .send_if_modified(|names| names.insert(resource.qualified()));
    }

    fn listed(&self, resource: &Resource) {
        let name = resource.qualified();
        self.0.send_if_modified(|names| names.remove(&name));
    }

    /// Waits for the last list; says now and then what is missing.
    async fn none(&self) {
        let mut names = self.0.subscribe();
        loop {
            // The sender lives in `self`, so the wait cannot fail.
            let done = names.wait_for(BTreeSet::is_empty);
            if tokio::time::timeout(IMPATIENCE, done).await.is_ok() {
                return;
            }
            let missing = self
                .0
                .borrow()
                .iter()
                .cloned()
                .collect::<Vec<_>>()
                .join(", ");
            tracing::warn!(
                missing,
                "nothing is collected before every resource was listed"
            );
        }
    }
}

/// Discovery may fail while the server starts; nothing can be collected before.
async fn discover_until(client: &Client, stop: &CancellationToken) -> Option<Vec<Arc<Resource>>> {
    let mut failures = 0;
    loop {
        match discover(client).await {
            Ok(resources) => return Some(resources),
            Err(error) => {
                let wait = backoff(Duration::from_millis(50), Duration::from_secs(10), failures);
                failures += 1;
                tracing::warn!(%error, retry_in = ?wait, "discovery failed");
                tokio::select! {
                    () = stop.cancelled() => return None,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
}

/// Feeds the graph from the caches that hold all objects of their kind; answers which kinds those are.
fn cover(caches: &Caches, shared: &Arc<Shared>) -> HashSet<(String, String)> {
    let mut covered = HashSet::new();
    cover_one(&caches.pods, true, shared, &mut covered);
    cover_one(&caches.replica_sets, true, shared, &mut covered);
    cover_one(&caches.deployments, true, shared, &mut covered);
    cover_one(&caches.services, true, shared, &mut covered);
    cover_one(&caches.endpoint_slices, true, shared, &mut covered);
    cover_one(&caches.endpoints, true, shared, &mut covered);
    cover_one(&caches.nodes, false, shared, &mut covered);
    cover_one(&caches.namespaces, false, shared, &mut covered);
    covered
}

fn cover_one<K: Cached>(
    cache: &Cache<K>,
    namespaced: bool,
    shared: &Arc<Shared>,
    covered: &mut HashSet<(String, String)>,
) {
    let resource = Arc::new(Resource {
        group: K::group(&()).into_owned(),
        version: K::version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        plural: K::plural(&()).into_owned(),
        namespaced,
        verbs: Vec::new(),
    });
    covered.insert((resource.group.clone(), resource.kind.clone()));
    let shared = shared.clone();
    cache.on_change(move |change| {
        if let Some(old) = change.old
            && change
                .new
                .is_none_or(|new| new.meta().uid != old.meta().uid)
        {
            shared.remove(model::uid(old.meta()));
        }
        if let Some(new) = change.new {
            shared.observe(&resource, new.meta());
        }
    });
}

/// Follows the metadata of a kind.
async fn follow(
    client: Client,
    resource: Arc<Resource>,
    shared: Arc<Shared>,
    unlisted: Unlisted,
    stop: CancellationToken,
) {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &resource.to_api());
    let mut events = std::pin::pin!(watcher::watcher(api, watcher::Config::default()));
    let defines = defines_kinds(&resource);
    let mut missing: HashSet<Uid> = HashSet::new();
    let mut failures = 0;
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            None => return,
            Some(Ok(event)) => {
                failures = 0;
                if defines && !matches!(event, Event::Init | Event::InitDone) {
                    shared.definitions.notify_one();
                }
                match event {
                    Event::Init => {
                        missing = shared
                            .graph
                            .lock()
                            .of_resource(&resource)
                            .cloned()
                            .collect()
                    }
                    Event::InitApply(object) => {
                        missing.remove(model::uid(&object.metadata));
                        shared.observe(&resource, &object.metadata);
                    }
                    Event::InitDone => {
                        missing.drain().for_each(|uid| shared.remove(&uid));
                        unlisted.listed(&resource);
                    }
                    Event::Apply(object) => shared.observe(&resource, &object.metadata),
                    Event::Delete(object) => shared.remove(model::uid(&object.metadata)),
                }
            }
            Some(Err(error)) => {
                let wait = backoff(Duration::from_millis(50), Duration::from_secs(10), failures);
                failures += 1;
                tracing::warn!(kind = resource.kind, %error, retry_in = ?wait, "watch of metadata failed");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }
}

impl Collector {
    async fn sync(&self, uid: &Uid) -> Result<Next, SyncError> {
        let Some(node) = self.shared.graph.lock().get(uid).cloned() else {
            return Ok(Next::OnChange);
        };
        // The decision is made on what the server has now: the graph may be behind.
        let Some(meta) = self
            .read(&node.resource, &node.namespace, &node.name)
            .await?
        else {
            return Ok(Next::OnChange);
        };
        if model::uid(&meta) != &**uid {
            return Ok(Next::OnChange);
        }
        let mut states = Vec::new();
        if Deletion::of(&meta) == Deletion::None {
            for owner in meta.owner_references.iter().flatten() {
                match self.state(&node, owner).await? {
                    Some(state) => states.push((owner.uid.clone(), state)),
                    None => return Ok(Next::OnChange),
                }
            }
        }
        let state = |owner: &OwnerReference| {
            states
                .iter()
                .find(|(uid, _)| *uid == owner.uid)
                .map_or(OwnerState::Solid, |(_, state)| *state)
        };
        match decide(&meta, state, self.dependents(uid)) {
            Action::Keep => {}
            Action::PushDependents => {
                let graph = self.shared.graph.lock();
                for dependent in graph.blocking(uid).filter(|uid| {
                    graph
                        .get(uid)
                        .is_some_and(|node| node.deletion == Deletion::None)
                }) {
                    self.shared.queue.add(dependent.clone());
                }
            }
            Action::OrphanDependents => self.orphan(uid, &node, &meta).await?,
            Action::Finish => self.drop_finalizer(&node, &meta, FOREGROUND).await?,
            Action::KeepOwners(uids) => {
                let owners: Vec<_> = meta
                    .owner_references
                    .iter()
                    .flatten()
                    .filter(|owner| uids.contains(&owner.uid))
                    .collect();
                self.change(&node, &meta, json!({"ownerReferences": owners}))
                    .await?;
            }
            Action::Delete { policy, unblock } => {
                let mut owners = meta.owner_references.clone().unwrap_or_default();
                let blocks = |owner: &OwnerReference| owner.block_owner_deletion != Some(false);
                if unblock && owners.iter().any(blocks) {
                    owners
                        .iter_mut()
                        .for_each(|owner| owner.block_owner_deletion = Some(false));
                    // Then it is another version, on which all is decided anew.
                    return self
                        .change(&node, &meta, json!({"ownerReferences": owners}))
                        .await
                        .map(|()| Next::After(Duration::ZERO));
                }
                self.delete(&node, &meta, policy).await?;
            }
        }
        Ok(Next::OnChange)
    }

    fn dependents(&self, uid: &Uid) -> Dependents {
        let graph = self.shared.graph.lock();
        Dependents {
            any: graph.dependents(uid).next().is_some(),
            blocking: graph.blocking(uid).next().is_some(),
            deleting: graph
                .dependents(uid)
                .any(|(_, node)| node.deletion == Deletion::Foreground),
        }
    }

    /// The state of an owner; `None` if the reference cannot be right and so says nothing: an object of the cluster that is owned by one of a
    /// namespace.
    async fn state(
        &self,
        node: &Node,
        owner: &OwnerReference,
    ) -> Result<Option<OwnerState>, SyncError> {
        let known = self
            .shared
            .graph
            .lock()
            .get(&owner.uid)
            .map(|owner| (owner.namespace.clone(), owner.deletion));
        if let Some((namespace, deletion)) = known {
            return Ok(match (namespace.is_empty(), node.namespace.is_empty()) {
                (false, true) => None,
                (false, false) if namespace != node.namespace => Some(OwnerState::Absent),
                _ if deletion == Deletion::Foreground => Some(OwnerState::Waiting),
                _ => Some(OwnerState::Solid),
            });
        }
        let group = owner
            .api_version
            .rsplit_once('/')
            .map_or("", |(group, _)| group);
        let resource = self.kinds.find(group, &owner.kind);
        let Some(resource) = resource else {
            return Err(SyncError::UnknownKind {
                what: describe(node),
                kind: format!("{}/{}", owner.api_version, owner.kind),
            });
        };
        if resource.namespaced && node.namespace.is_empty() {
            return Ok(None);
        }
        let namespace = if resource.namespaced {
            &*node.namespace
        } else {
            ""
        };
        let found = self.read(&resource, namespace, &owner.name).await?;
        Ok(Some(
            match found.filter(|found| found.uid.as_deref() == Some(owner.uid.as_str())) {
                None => OwnerState::Absent,
                Some(found) if Deletion::of(&found) == Deletion::Foreground => OwnerState::Waiting,
                Some(_) => OwnerState::Solid,
            },
        ))
    }

    async fn read(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<ObjectMeta>, SyncError> {
        let fail = |source| SyncError::Read {
            what: format!("{} {namespace}/{name}", resource.kind),
            source,
        };
        let request = resource
            .requests(namespace)
            .get(name, &GetParams::default())
            .map_err(Error::BuildRequest)
            .map_err(fail)?;
        match self.client.request::<Written>(request).await {
            Ok(object) => Ok(Some(object.metadata)),
            Err(error) if api::is_not_found(&error) => Ok(None),
            Err(source) => Err(fail(source)),
        }
    }

    /// Lets every dependent go, then the object itself.
    ///
    /// Dependents are those that the server has: one that the graph does not know yet, because its watch is behind, would be
    /// collected once its owner is gone. Deletions that orphan are rare enough for lists.
    async fn orphan(&self, uid: &Uid, node: &Node, meta: &ObjectMeta) -> Result<(), SyncError> {
        let mut dependents: HashMap<Uid, Node> = self
            .shared
            .graph
            .lock()
            .dependents(uid)
            .map(|(uid, node)| (uid.clone(), node.clone()))
            .collect();
        // The server is asked which kinds there are: one that came just now may have dependents, too.
        let resources = discover(&self.client).await.map_err(SyncError::Discover)?;
        let possible = resources.iter().filter(|resource| {
            // What is in a namespace owns only what is in the same.
            is_collected(resource) && (node.namespace.is_empty() || resource.namespaced)
        });
        let listed =
            join_all(possible.map(|resource| self.dependents_in(uid, resource, &node.namespace)))
                .await;
        for found in listed {
            dependents.extend(found?);
        }
        let dependents: Vec<Node> = dependents.into_values().collect();
        let released = join_all(dependents.iter().map(|dependent| async {
            let Some(meta) = self
                .read(&dependent.resource, &dependent.namespace, &dependent.name)
                .await?
            else {
                return Ok(());
            };
            let owners = meta.owner_references.as_deref().unwrap_or_default();
            let left: Vec<_> = owners.iter().filter(|owner| owner.uid != **uid).collect();
            if left.len() == owners.len() {
                return Ok(());
            }
            self.change(dependent, &meta, json!({"ownerReferences": left}))
                .await
        }))
        .await;
        released.into_iter().collect::<Result<(), SyncError>>()?;
        self.drop_finalizer(node, meta, ORPHAN).await
    }

    /// The objects of a resource, in this namespace or, if that is empty, everywhere, that name this owner.
    async fn dependents_in(
        &self,
        owner: &Uid,
        resource: &Arc<Resource>,
        namespace: &str,
    ) -> Result<Vec<(Uid, Node)>, SyncError> {
        let fail = |source| SyncError::List {
            what: resource.qualified(),
            source,
        };
        let mut params = ListParams::default().limit(PAGE);
        let mut found = Vec::new();
        loop {
            let request = resource
                .requests(namespace)
                .list_metadata(&params)
                .map_err(Error::BuildRequest)
                .map_err(fail)?;
            let page: Listed = self.client.request(request).await.map_err(fail)?;
            for Written { metadata } in page.items {
                if metadata
                    .owner_references
                    .iter()
                    .flatten()
                    .any(|reference| reference.uid == **owner)
                {
                    found.push((model::uid(&metadata).into(), Node::of(resource, &metadata)));
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(found),
            }
        }
    }

    async fn drop_finalizer(
        &self,
        node: &Node,
        meta: &ObjectMeta,
        finalizer: &str,
    ) -> Result<(), SyncError> {
        let left: Vec<_> = meta
            .finalizers
            .iter()
            .flatten()
            .filter(|known| *known != finalizer)
            .collect();
        self.change(node, meta, json!({"finalizers": left})).await
    }

    /// Changes metadata, on the condition that nobody else has meanwhile.
    async fn change(
        &self,
        node: &Node,
        meta: &ObjectMeta,
        mut change: Value,
    ) -> Result<(), SyncError> {
        change["uid"] = json!(meta.uid);
        change["resourceVersion"] = json!(meta.resource_version);
        let fail = |source| SyncError::Change {
            what: describe(node),
            source,
        };
        let patch = Patch::Merge(json!({"metadata": change}));
        let request = node.resource.requests(&node.namespace).patch(
            &node.name,
            &PatchParams::default(),
            &patch,
        );
        match self
            .client
            .request::<Written>(request.map_err(Error::BuildRequest).map_err(fail)?)
            .await
        {
            Err(error) if api::is_not_found(&error) => Ok(()),
            Err(source) => Err(fail(source)),
            Ok(_) => Ok(()),
        }
    }

    /// Deletes an object as it was when that was decided: somebody may have taken it over meanwhile, and then it is decided anew.
    async fn delete(
        &self,
        node: &Node,
        meta: &ObjectMeta,
        policy: Policy,
    ) -> Result<(), SyncError> {
        let params = DeleteParams {
            propagation_policy: Some(match policy {
                Policy::Background => PropagationPolicy::Background,
                Policy::Foreground => PropagationPolicy::Foreground,
                Policy::Orphan => PropagationPolicy::Orphan,
            }),
            preconditions: Some(Preconditions {
                uid: meta.uid.clone(),
                resource_version: meta.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        let fail = |source| SyncError::Delete {
            what: describe(node),
            source,
        };
        let request = node
            .resource
            .requests(&node.namespace)
            .delete(&node.name, &params);
        match self
            .client
            .request::<Written>(request.map_err(Error::BuildRequest).map_err(fail)?)
            .await
        {
            Err(error) if api::is_not_found(&error) => Ok(()),
            Err(source) => Err(fail(source)),
            Ok(_) => Ok(()),
        }
    }
}

fn describe(node: &Node) -> String {
    format!("{} {}/{}", node.resource.kind, node.namespace, node.name)
}
