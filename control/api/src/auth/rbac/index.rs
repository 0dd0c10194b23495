//! Roles and bindings as decisions read them: parsed once, in step with the watch cache.
//!
//! A decision first looks whether something has changed; mostly nothing has. A change costs the work for its object and, for a
//! binding, the list of its namespace.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;
use serde_json::Value;

use super::{Binding, Bindings, PolicyRule};
use crate::registry::collection::{Collection, Cursor};
use crate::registry::entry::Entry;
use crate::registry::lanes::View;

/// How many changes are read at a time.
const BATCH: usize = 256;

/// Every role and binding.
pub struct Index {
    cluster_roles: Arc<Collection>,
    roles: Arc<Collection>,
    cluster_bindings: Arc<Collection>,
    bindings: Arc<Collection>,
    state: RwLock<State>,
}

struct State {
    cluster_roles: Followed<Arc<[PolicyRule]>>,
    roles: Followed<Arc<[PolicyRule]>>,
    cluster_bindings: Followed<Binding>,
    bindings: Followed<Binding>,
    /// The bindings of each namespace, those of the cluster under the empty one.
    lists: HashMap<String, Arc<[Binding]>>,
}

/// The objects of one collection, parsed, as of its cursor.
struct Followed<T> {
    cursor: Cursor,
    objects: BTreeMap<Box<str>, T>,
}

impl<T> Followed<T> {
    fn start(collection: &Collection, parse: &impl Fn(&Value) -> T) -> Self {
        let (snapshot, cursor) = collection.snapshot_and_follow(&View::Whole, "");
        let parsed = |entry: &Arc<Entry>| (entry.key.clone(), parse(&entry.parse()));
        Self {
            cursor,
            objects: snapshot.entries.iter().map(parsed).collect(),
        }
    }

    /// Takes over what has changed; says whose keys, or nothing after everything was read anew.
    fn catch_up(
        &mut self,
        collection: &Collection,
        parse: &impl Fn(&Value) -> T,
    ) -> Option<Vec<Box<str>>> {
        let mut touched = Vec::new();
        loop {
            let Ok(changes) = collection.read(&mut self.cursor, BATCH) else {
                *self = Self::start(collection, parse);
                return None;
            };
            if changes.is_empty() {
                return Some(touched);
            }
            for change in changes {
                let key: Box<str> = change.key().into();
                match &change.current {
                    Some(entry) => self.objects.insert(key.clone(), parse(&entry.parse())),
                    None => self.objects.remove(&key),
                };
                touched.push(key);
            }
        }
    }
}

fn rules(role: &Value) -> Arc<[PolicyRule]> {
    PolicyRule::parse_all(&role["rules"]).into()
}

impl Index {
    /// Follows these collections.
    pub fn new(
        cluster_roles: Arc<Collection>,
        roles: Arc<Collection>,
        cluster_bindings: Arc<Collection>,
        bindings: Arc<Collection>,
    ) -> Self {
        let mut state = State {
            cluster_roles: Followed::start(&cluster_roles, &rules),
            roles: Followed::start(&roles, &rules),
            cluster_bindings: Followed::start(&cluster_bindings, &Binding::parse),
            bindings: Followed::start(&bindings, &Binding::parse),
            lists: HashMap::new(),
        };
        state.list_all();
        Self {
            cluster_roles,
            roles,
            cluster_bindings,
            bindings,
            state: RwLock::new(state),
        }
    }

    /// Takes over what has changed since the last decision.
    pub fn catch_up(&self) {
        let state = self.state.read();
        let current = self.cluster_roles.is_at_end(&state.cluster_roles.cursor)
            && self.roles.is_at_end(&state.roles.cursor)
            && self
                .cluster_bindings
                .is_at_end(&state.cluster_bindings.cursor)
            && self.bindings.is_at_end(&state.bindings.cursor);
        drop(state);
        if current {
            return;
        }
        let state = &mut *self.state.write();
        state.cluster_roles.catch_up(&self.cluster_roles, &rules);
        state.roles.catch_up(&self.roles, &rules);
        let cluster = (state.cluster_bindings).catch_up(&self.cluster_bindings, &Binding::parse);
        let namespaced = state.bindings.catch_up(&self.bindings, &Binding::parse);
        let (Some(cluster), Some(namespaced)) = (cluster, namespaced) else {
            return state.list_all();
        };
        if !cluster.is_empty() {
            state.list_cluster();
        }
        let mut namespaces: Vec<&str> = namespaced.iter().map(|key| namespace_of(key)).collect();
        namespaces.sort_unstable();
        namespaces.dedup();
        for namespace in namespaces {
            state.list_namespace(namespace);
        }
    }
}

fn namespace_of(key: &str) -> &str {
    key.split_once('/').map_or("", |(namespace, _)| namespace)
}

impl State {
    fn list_all(&mut self) {
        self.lists.clear();
        self.list_cluster();
        let mut by_namespace: HashMap<&str, Vec<Binding>> = HashMap::new();
        for (key, binding) in &self.bindings.objects {
            let list = by_namespace.entry(namespace_of(key)).or_default();
            list.push(binding.clone());
        }
        let lists = by_namespace.into_iter();
        self.lists
            .extend(lists.map(|(namespace, list)| (namespace.to_owned(), list.into())));
    }

    fn list_cluster(&mut self) {
        let all = self.cluster_bindings.objects.values().cloned().collect();
        self.lists.insert(String::new(), all);
    }

    fn list_namespace(&mut self, namespace: &str) {
        let scope = format!("{namespace}/");
        let from = std::ops::Bound::Included(&*scope);
        let of_namespace = (self.bindings.objects)
            .range::<str, _>((from, std::ops::Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(&scope));
        let list: Arc<[Binding]> = of_namespace.map(|(_, binding)| binding.clone()).collect();
        match list.is_empty() {
            true => self.lists.remove(namespace),
            false => self.lists.insert(namespace.to_owned(), list),
        };
    }
}

impl Bindings for Index {
    fn cluster_role(&self, name: &str) -> Option<Arc<[PolicyRule]>> {
        self.state.read().cluster_roles.objects.get(name).cloned()
    }

    fn role(&self, namespace: &str, name: &str) -> Option<Arc<[PolicyRule]>> {
        let key = format!("{namespace}/{name}");
        self.state.read().roles.objects.get(&*key).cloned()
    }

    fn cluster_bindings(&self) -> Arc<[Binding]> {
        self.bindings("")
    }

    fn bindings(&self, namespace: &str) -> Arc<[Binding]> {
        let lists = &self.state.read().lists;
        lists.get(namespace).cloned().unwrap_or_default()
    }
}
