//! The process's one watch of Services and EndpointSlices, kept in memory, with wake-ups for those who follow it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::objects::{Service, ServiceKey, Slice};

/// Why the watch ended.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// A watch stream ended, which it never should.
    #[error("the watch of {what} ended")]
    Ended {
        /// What was watched.
        what: &'static str,
    },
}

/// Services and their EndpointSlices as they are now. Clones share them.
#[derive(Clone)]
pub struct Feed {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    synced: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    services: BTreeMap<ServiceKey, Arc<Service>>,
    slices: BTreeMap<ServiceKey, BTreeMap<String, Arc<Slice>>>,
    /// The service of each slice (by namespace and name): a slice may change hands.
    owners: HashMap<(String, String), ServiceKey>,
    followers: Vec<Weak<Follower>>,
}

#[derive(Default)]
struct Follower {
    changed: Mutex<BTreeSet<ServiceKey>>,
    wake: Notify,
}

impl Default for Feed {
    fn default() -> Self {
        Self::new()
    }
}

impl Feed {
    /// A feed without content, which [`run`](Self::run) or the `set_…` methods fill.
    pub fn new() -> Self {
        Self {
            inner: Arc::new(Inner {
                state: Mutex::default(),
                synced: watch::Sender::new(false),
            }),
        }
    }

    /// Follows the API until stopped. Failures are retried, with backoff; meanwhile what is known stays.
    ///
    /// # Errors
    ///
    /// Only if a watch ends for good.
    pub async fn run(&self, client: Client, stop: CancellationToken) -> Result<(), FeedError> {
        let config = watcher::Config::default();
        let services = watcher(Api::<core::Service>::all(client.clone()), config.clone());
        let slices = watcher(Api::<discovery::EndpointSlice>::all(client), config);
        let (services_done, slices_done) = (Notify::new(), Notify::new());
        let mark_synced = async {
            services_done.notified().await;
            slices_done.notified().await;
            self.set_synced();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            // Dropping a branch midway loses nothing: the watch starts over from a list.
            () = stop.cancelled() => Ok(()),
            () = self.follow_services(services, &services_done) => {
                Err(FeedError::Ended { what: "Services" })
            }
            () = self.follow_slices(slices, &slices_done) => {
                Err(FeedError::Ended { what: "EndpointSlices" })
            }
            () = mark_synced => Ok(()),
        }
    }

    async fn follow_services(
        &self,
        events: impl Stream<Item = watcher::Result<Event<core::Service>>>,
        done: &Notify,
    ) {
        let mut events = std::pin::pin!(events.default_backoff());
        let mut listed = BTreeSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => {
                    let service = Service::parse(&object);
                    listed.insert(service.key.clone());
                    self.set_service(service);
                }
                Ok(Event::InitDone) => {
                    let gone: Vec<ServiceKey> = {
                        let state = self.inner.state.lock();
                        let keys = state.services.keys();
                        keys.filter(|key| !listed.contains(*key)).cloned().collect()
                    };
                    for key in gone {
                        self.remove_service(&key);
                    }
                    listed.clear();
                    done.notify_one();
                }
                Ok(Event::Apply(object)) => self.set_service(Service::parse(&object)),
                Ok(Event::Delete(object)) => self.remove_service(&Service::parse(&object).key),
                Err(error) => warn("Services", &error),
            }
        }
    }

    async fn follow_slices(
        &self,
        events: impl Stream<Item = watcher::Result<Event<discovery::EndpointSlice>>>,
        done: &Notify,
    ) {
        let mut events = std::pin::pin!(events.default_backoff());
        let mut listed = BTreeSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => {
                    listed.insert(names(&object));
                    self.set_or_remove_slice(&object);
                }
                Ok(Event::InitDone) => {
                    let gone: Vec<_> = {
                        let state = self.inner.state.lock();
                        let names = state.owners.keys();
                        names
                            .filter(|name| !listed.contains(*name))
                            .cloned()
                            .collect()
                    };
                    for (namespace, name) in gone {
                        self.remove_slice(&namespace, &name);
                    }
                    listed.clear();
                    done.notify_one();
                }
                Ok(Event::Apply(object)) => self.set_or_remove_slice(&object),
                Ok(Event::Delete(object)) => {
                    let (namespace, name) = names(&object);
                    self.remove_slice(&namespace, &name);
                }
                Err(error) => warn("EndpointSlices", &error),
            }
        }
    }

    /// Says that the first complete picture is there.
    pub fn set_synced(&self) {
        self.inner.synced.send_replace(true);
    }

    /// Waits for the first complete picture.
    pub async fn synced(&self) {
        let mut synced = self.inner.synced.subscribe();
        // The sender lives as long as we do.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Adds or replaces a Service.
    pub fn set_service(&self, service: Service) {
        let mut state = self.inner.state.lock();
        if state
            .services
            .get(&service.key)
            .is_some_and(|old| **old == service)
        {
            // Only something changed that we do not look at.
            return;
        }
        let key = service.key.clone();
        state.services.insert(key.clone(), Arc::new(service));
        state.wake(&key);
    }

    /// Removes a Service.
    pub fn remove_service(&self, key: &ServiceKey) {
        let mut state = self.inner.state.lock();
        if state.services.remove(key).is_some() {
            state.wake(key);
        }
    }

    fn set_or_remove_slice(&self, object: &discovery::EndpointSlice) {
        match Slice::parse(object) {
            Some(slice) => self.set_slice(slice),
            None => {
                let (namespace, name) = names(object);
                self.remove_slice(&namespace, &name);
            }
        }
    }

    /// Adds or replaces an EndpointSlice.
    pub fn set_slice(&self, slice: Slice) {
        let mut state = self.inner.state.lock();
        let id = (slice.service.namespace.clone(), slice.name.clone());
        let owner = slice.service.clone();
        if let Some(old) = state.owners.insert(id, owner.clone())
            && old != owner
        {
            state.forget_slice(&old, &slice.name);
        }
        let of_service = state.slices.entry(owner.clone()).or_default();
        if of_service
            .get(&slice.name)
            .is_some_and(|old| **old == slice)
        {
            return;
        }
        of_service.insert(slice.name.clone(), Arc::new(slice));
        state.wake(&owner);
    }

    /// Removes an EndpointSlice.
    pub fn remove_slice(&self, namespace: &str, name: &str) {
        let mut state = self.inner.state.lock();
        let id = (namespace.to_owned(), name.to_owned());
        if let Some(owner) = state.owners.remove(&id) {
            state.forget_slice(&owner, name);
        }
    }

    /// One Service.
    pub fn service(&self, key: &ServiceKey) -> Option<Arc<Service>> {
        self.inner.state.lock().services.get(key).cloned()
    }

    /// The EndpointSlices of one Service, in the order of their names.
    pub fn slices(&self, key: &ServiceKey) -> Vec<Arc<Slice>> {
        let state = self.inner.state.lock();
        let slices = state.slices.get(key).into_iter().flat_map(BTreeMap::values);
        slices.cloned().collect()
    }

    /// All Services.
    pub fn services(&self) -> Vec<Arc<Service>> {
        self.inner.state.lock().services.values().cloned().collect()
    }

    /// Whether a namespace has any Service.
    pub fn has_services_in(&self, namespace: &str) -> bool {
        let state = self.inner.state.lock();
        let first = ServiceKey::new(namespace, "");
        let next = state.services.range(first..).next();
        next.is_some_and(|(key, _)| key.namespace == namespace)
    }

    /// Follows changes from now on.
    pub fn subscribe(&self) -> Changes {
        let follower = Arc::new(Follower::default());
        let mut state = self.inner.state.lock();
        state.followers.push(Arc::downgrade(&follower));
        Changes(follower)
    }
}

impl State {
    fn wake(&mut self, key: &ServiceKey) {
        self.followers.retain(|follower| {
            let Some(follower) = follower.upgrade() else {
                return false;
            };
            follower.changed.lock().insert(key.clone());
            follower.wake.notify_one();
            true
        });
    }

    fn forget_slice(&mut self, owner: &ServiceKey, name: &str) {
        if let Some(of_service) = self.slices.get_mut(owner) {
            of_service.remove(name);
            if of_service.is_empty() {
                self.slices.remove(owner);
            }
        }
        self.wake(owner);
    }
}

/// The services that changed since one last looked.
pub struct Changes(Arc<Follower>);

impl Changes {
    /// Waits for changes. Several of one service count once. Dropping the future loses none.
    pub async fn next(&mut self) -> BTreeSet<ServiceKey> {
        loop {
            let changed = std::mem::take(&mut *self.0.changed.lock());
            if !changed.is_empty() {
                return changed;
            }
            self.0.wake.notified().await;
        }
    }
}

fn names(object: &discovery::EndpointSlice) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn warn(what: &str, error: &watcher::Error) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(what, error, "a watch failed and is tried again");
}
