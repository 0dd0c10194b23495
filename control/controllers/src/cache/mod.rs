//! What the process knows of the cluster: one copy of every kind, kept current by one watch each.
//!
//! Controllers read a [`Cache`] and are told of changes by a callback that runs in the watch's own task; the callback only
//! puts keys into queues. Everything a controller asks for is found by an index, so an event costs work for what it
//! touches, whatever the size of the cluster.

mod caches;
mod informer;

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::{model, supervise};

pub use caches::Caches;
pub use informer::follow;

/// Namespace and name of an object; the namespace is empty for objects of the cluster.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl Key {
    /// A key of its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of an object.
    pub fn of(meta: &ObjectMeta) -> Self {
        Self::new(model::namespace(meta), model::name(meta))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// By what else than its key an object is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IndexKey {
    /// The namespace that it is in.
    Namespace(Box<str>),
    /// The UID of its controller.
    Owner(Box<str>),
    /// The namespace of an object that has no controller.
    Orphan(Box<str>),
    /// A pod that has ended.
    Ended,
    /// The node that it is bound to.
    Node(Box<str>),
    /// A namespace and a label (or a pair of a selector) as `key=value`.
    Label(Box<str>, Box<str>),
    /// The namespace of a workload whose selector has no pairs, only expressions.
    Expressions(Box<str>),
    /// The namespace and name of the service that it belongs to.
    Service(Box<str>, Box<str>),
}

impl IndexKey {
    /// A label in a namespace.
    pub fn label(namespace: &str, key: &str, value: &str) -> Self {
        Self::Label(namespace.into(), format!("{key}={value}").into())
    }
}

/// Indexes an object by each of its labels.
pub fn index_labels(meta: &ObjectMeta, add: &mut dyn FnMut(IndexKey)) {
    for (key, value) in meta.labels.iter().flatten() {
        add(IndexKey::label(model::namespace(meta), key, value));
    }
}

/// A kind that can be cached.
pub trait Cached:
    kube::Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static
{
    /// Drops what nobody reads, before the object is kept.
    fn trim(&mut self) {}

    /// Names the index entries under which the object is found.
    fn index(&self, _add: &mut dyn FnMut(IndexKey)) {}
}

/// A change of one object: what was known before and what is known now.
pub struct Change<'a, K> {
    /// The object before; `None` if it is new.
    pub old: Option<&'a Arc<K>>,
    /// The object now; `None` if it is gone.
    pub new: Option<&'a Arc<K>>,
}

impl<K> Clone for Change<'_, K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for Change<'_, K> {}

impl<'a, K> Change<'a, K> {
    /// Both versions, as far as they exist.
    pub fn versions(self) -> impl Iterator<Item = &'a Arc<K>> {
        self.old.into_iter().chain(self.new)
    }
}

type Handler<K> = Box<dyn Fn(Change<'_, K>) + Send + Sync>;

/// All objects of one kind.
pub struct Cache<K> {
    content: RwLock<Content<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    version: AtomicU64,
    ready: watch::Sender<bool>,
}

struct Content<K> {
    objects: HashMap<Key, Arc<K>>,
    index: HashMap<IndexKey, HashMap<Key, Arc<K>>>,
}

impl<K: Cached> Default for Cache<K> {
    fn default() -> Self {
        Self {
            content: RwLock::new(Content {
                objects: HashMap::new(),
                index: HashMap::new(),
            }),
            handlers: RwLock::new(Vec::new()),
            version: AtomicU64::new(0),
            ready: watch::Sender::new(false),
        }
    }
}

impl<K: Cached> Cache<K> {
    /// The object with this key.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.content.read().objects.get(key).cloned()
    }

    /// The objects that an index entry leads to.
    pub fn find(&self, index: &IndexKey) -> Vec<Arc<K>> {
        self.content
            .read()
            .index
            .get(index)
            .map(|found| found.values().cloned().collect())
            .unwrap_or_default()
    }

    /// How many objects an index entry leads to.
    pub fn count(&self, index: &IndexKey) -> usize {
        self.content.read().index.get(index).map_or(0, HashMap::len)
    }

    /// Every object; for work that is done once, such as at start-up.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.content.read().objects.values().cloned().collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.content.read().objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The newest resource version that was seen of this kind.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Calls `handler` for every later change, after the cache shows it.
    pub fn on_change(&self, handler: impl Fn(Change<'_, K>) + Send + Sync + 'static) {
        self.handlers.write().push(Box::new(handler));
    }

    /// Waits until the first list is in.
    pub async fn ready(&self) {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// Takes an object over. An older version than the known one, as a list may bring, is ignored.
    pub fn apply(&self, mut object: K) {
        object.trim();
        let version = model::version(object.meta());
        let key = Key::of(object.meta());
        let new = Arc::new(object);
        let old = {
            let mut content = self.content.write();
            if content.objects.get(&key).is_some_and(|old| {
                model::version(old.meta()) > version && old.meta().uid == new.meta().uid
            }) {
                return;
            }
            let old = content.objects.insert(key.clone(), new.clone());
            content.reindex(&key, old.as_ref(), Some(&new));
            old
        };
        self.version.fetch_max(version, Ordering::AcqRel);
        self.tell(old.as_ref(), Some(&new));
    }

    /// Takes a complete list in the place of all that was known.
    ///
    /// It is one step: whoever sees the list's newest version in [`Self::version`] sees the whole list, and what the list
    /// lacks is gone. An object that the list has as it was known is no change.
    pub fn replace(&self, list: Vec<K>) {
        let mut newest = 0;
        let mut changes = Vec::new();
        {
            let mut content = self.content.write();
            let mut known = std::mem::take(&mut content.objects);
            content.objects.reserve(list.len());
            for mut object in list {
                object.trim();
                let key = Key::of(object.meta());
                newest = newest.max(model::version(object.meta()));
                let old = known.remove(&key);
                if let Some(old) = &old
                    && old.meta().uid == object.meta().uid
                    && model::version(old.meta()) >= model::version(object.meta())
                {
                    content.objects.insert(key, old.clone());
                    continue;
                }
                let new = Arc::new(object);
                content.objects.insert(key.clone(), new.clone());
                content.reindex(&key, old.as_ref(), Some(&new));
                changes.push((old, Some(new)));
            }
            for (key, old) in known {
                content.reindex(&key, Some(&old), None);
                changes.push((Some(old), None));
            }
        }
        self.version.fetch_max(newest, Ordering::AcqRel);
        for (old, new) in &changes {
            self.tell(old.as_ref(), new.as_ref());
        }
    }

    /// Forgets an object; `version` is the revision at which it went.
    pub fn remove(&self, key: &Key, version: u64) {
        let old = {
            let mut content = self.content.write();
            let old = content.objects.remove(key);
            content.reindex(key, old.as_ref(), None);
            old
        };
        self.version.fetch_max(version, Ordering::AcqRel);
        if old.is_some() {
            self.tell(old.as_ref(), None);
        }
    }

    /// Says that the first list is in.
    pub fn mark_ready(&self) {
        self.ready.send_replace(true);
    }

    /// Calls the handlers. Another object under the old one's name is two changes: one went, one came.
    fn tell(&self, old: Option<&Arc<K>>, new: Option<&Arc<K>>) {
        if let (Some(gone), Some(came)) = (old, new)
            && gone.meta().uid != came.meta().uid
        {
            self.tell(old, None);
            self.tell(None, new);
            return;
        }
        for handler in self.handlers.read().iter() {
            // A handler that panics costs itself one change, not the cache its watch.
            let call = || handler(Change { old, new });
            if let Err(panic) = catch_unwind(AssertUnwindSafe(call)) {
                let object = old.or(new).map(|object| Key::of(object.meta()));
                let error = supervise::message(&*panic);
                tracing::error!(kind = %K::kind(&()), ?object, error, "a handler of changes panicked");
            }
        }
    }
}

impl<K: Cached> Content<K> {
    fn reindex(&mut self, key: &Key, old: Option<&Arc<K>>, new: Option<&Arc<K>>) {
        if let Some(old) = old {
            old.index(&mut |entry| {
                if let Some(found) = self.index.get_mut(&entry) {
                    found.remove(key);
                    if found.is_empty() {
                        self.index.remove(&entry);
                    }
                }
            });
        }
        if let Some(new) = new {
            new.index(&mut |entry| {
                self.index
                    .entry(entry)
                    .or_default()
                    .insert(key.clone(), new.clone());
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Pod;

    fn pod(name: &str, version: u64, label: &str) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": version.to_string(), "labels": {"app": label}},
        }))
        .expect("a pod")
    }

    #[test]
    fn an_index_follows_its_objects() {
        let cache = Cache::<Pod>::default();
        cache.apply(pod("a", 1, "web"));
        cache.apply(pod("b", 2, "web"));
        assert_eq!(cache.count(&IndexKey::label("ns", "app", "web")), 2);
        cache.apply(pod("a", 3, "db"));
        assert_eq!(cache.count(&IndexKey::label("ns", "app", "web")), 1);
        cache.remove(&Key::new("ns", "b"), 4);
        assert_eq!(cache.count(&IndexKey::label("ns", "app", "web")), 0);
        assert_eq!(cache.count(&IndexKey::label("ns", "app", "db")), 1);
        assert_eq!(cache.version(), 4);
    }

    #[test]
    fn a_list_takes_the_place_of_all_that_was_known_in_one_step() {
        let cache = Arc::new(Cache::<Pod>::default());
        for (name, version, label) in [("same", 1, "web"), ("newer", 2, "web"), ("gone", 3, "web")]
        {
            cache.apply(pod(name, version, label));
        }
        let mut reborn = pod("reborn", 4, "web");
        cache.apply(reborn.clone());
        reborn.metadata.uid = Some("other".into());
        reborn.metadata.resource_version = Some("9".into());
        let changes = Arc::new(parking_lot::Mutex::new(Vec::new()));
        let (told, seen) = (changes.clone(), cache.clone());
        cache.on_change(move |change| {
            assert_eq!(
                (seen.version(), seen.len()),
                (12, 4),
                "a part of the list shows"
            );
            let of = |pod: Option<&Arc<Pod>>| pod.and_then(|pod| pod.metadata.uid.clone());
            told.lock().push((of(change.old), of(change.new)));
        });
        let list = vec![
            pod("new", 12, "web"),
            pod("newer", 8, "db"),
            reborn,
            pod("same", 1, "web"),
        ];
        cache.replace(list);
        assert_eq!(cache.count(&IndexKey::label("ns", "app", "web")), 3);
        assert_eq!(cache.count(&IndexKey::label("ns", "app", "db")), 1);
        let mut changes = std::mem::take(&mut *changes.lock());
        changes.sort();
        let some = |uid: &str| Some(uid.to_owned());
        let expected = [
            (None, some("new")),
            (None, some("other")),
            (some("gone"), None),
            (some("newer"), some("newer")),
            (some("reborn"), None),
        ];
        assert_eq!(changes, expected);
    }

    #[test]
    fn a_handler_that_panics_costs_the_others_nothing() {
        let cache = Cache::<Pod>::default();
        let told = Arc::new(AtomicU64::new(0));
        cache.on_change(|_| panic!("on purpose"));
        let count = told.clone();
        cache.on_change(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        cache.apply(pod("a", 1, "web"));
        cache.apply(pod("a", 2, "web"));
        assert_eq!((told.load(Ordering::Relaxed), cache.len()), (2, 1));
    }

    #[test]
    fn an_older_version_changes_nothing() {
        let cache = Cache::<Pod>::default();
        cache.apply(pod("a", 5, "new"));
        cache.apply(pod("a", 4, "old"));
        assert_eq!(cache.count(&IndexKey::label("ns", "app", "new")), 1);
    }
}
