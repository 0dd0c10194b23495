//! The registry: every object of the cluster, and the generic ways to read and write them.
//!
//! Reading order: `table` (what is served), `entry` (one object's bytes), `collection` (the watch cache of one prefix), `feed`
//! (store to collections),
//! `selector`, `list`, `watch` (reading); `operation`, `meta`, `admission`, `views`, `write`, `delete`, `services` (writing);
//! `defaults`, `expiry`.

pub mod admission;
pub mod collection;
pub mod custom;
pub mod defaults;
pub mod delete;
pub mod entry;
pub mod expiry;
pub mod feed;
pub mod lanes;
pub mod list;
pub mod meta;
pub mod names;
pub mod operation;
pub mod ownership;
pub mod policy;
pub mod selector;
pub mod services;
pub mod table;
pub mod views;
pub mod watch;
pub mod write;

mod node_lookup;
use std::ops::RangeInclusive;
use std::sync::{Arc, Weak};

use ipnet::IpNet;
use knarr_store::{Store, StoreError};
use parking_lot::RwLock;

use admission::webhook::Webhooks;
use collection::Collection;
use feed::Feed;
use node_lookup::NodeLookup;
use services::Services;
use table::{Found, Table};

use crate::auth::authorize::{Authorizer, Authorizers};
use crate::auth::rbac::index::Index;
use crate::kinds::Kinds;
use crate::supervise::supervised;

/// How often history that nobody may ask for any more is forgotten.
const COMPACT_EVERY: std::time::Duration = std::time::Duration::from_secs(300);

/// How often kept states of lists are looked at.
const SWEEP_EVERY: std::time::Duration = std::time::Duration::from_secs(60);

/// Every resource and its objects.
pub struct Registry {
    /// The store.
    pub store: Arc<dyn Store>,
    /// How far the collections are.
    pub feed: Arc<Feed>,
    /// Cluster addresses and node ports.
    pub services: Services,
    /// Decides who may do what.
    pub authorizer: Arc<dyn Authorizer>,
    /// The roles and bindings behind it.
    pub rbac: Arc<Index>,
    webhooks: Webhooks,
    table: Arc<RwLock<Arc<Table>>>,
    /// Held while the table changes: one change after the other.
    changing: tokio::sync::Mutex<()>,
    namespaces: Arc<Collection>,
}

impl Registry {
    /// Loads all objects of these resources from the store.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    pub async fn open(
        store: Arc<dyn Store>,
        kinds: Kinds,
        service_range: IpNet,
        node_ports: RangeInclusive<u16>,
    ) -> Result<Self, StoreError> {
        // No kind of the API: the node ports that are taken.
        let ranges = Arc::new(Collection::new("ranges", Arc::new(crate::strategy::Plain)));
        let table = Table::first(kinds, vec![ranges.clone()]);
        let built_in = |prefix| {
            let collection = table.collection(prefix).cloned();
            collection.expect("the kind is built in")
        };
        let (namespaces, addresses) = (built_in("namespaces"), built_in("ipaddresses"));
        let feed = Feed::start(store.clone(), table.collections().cloned().collect()).await?;
        let rbac = Arc::new(Index::new(
            built_in("clusterroles"),
            built_in("roles"),
            built_in("clusterrolebindings"),
            built_in("rolebindings"),
        ));
        let nodes = NodeLookup::new(&table);
        let authorizer = Arc::new(Authorizers::new(Box::new(nodes), rbac.clone()));
        let services = Services::new(service_range, node_ports, addresses, ranges);
        let compacted = Arc::downgrade(&store);
        tokio::spawn(supervised("compaction", move || compact(compacted.clone())));
        let table = Arc::new(RwLock::new(Arc::new(table)));
        let swept = Arc::downgrade(&table);
        tokio::spawn(supervised("states of lists", move || sweep(swept.clone())));
        let registry = Self {
            store,
            feed,
            services,
            authorizer,
            rbac,
            webhooks: Webhooks::default(),
            table,
            changing: tokio::sync::Mutex::default(),
            namespaces,
        };
        // Before the first service is made: what a store from before has must not be given twice. Another server that writes
        // meanwhile has brought it in line itself, or `services::keep` does.
        registry.repair_services().await?;
        Ok(registry)
    }

    /// What is served at this moment.
    pub fn table(&self) -> Arc<Table> {
        self.table.read().clone()
    }

    /// Serves other resources from now on: what `change` makes of those of the moment, and of their schemas.
    ///
    /// Collections of kinds that stay, stay as they are. Those of new kinds are filled before anybody can ask for them; the
    /// watches of kinds that are gone end.
    ///
    /// # Errors
    ///
    /// If the store cannot be read; the table is the old one then.
    pub async fn serve(&self, change: impl FnOnce(&Table) -> Kinds) -> Result<(), StoreError> {
        let _changing = self.changing.lock().await;
        let old = self.table();
        let new = old.next(change(&old));
        let is_in =
            |table: &Table, collection: &Collection| table.collection(&collection.prefix).is_some();
        for collection in new.collections().filter(|new| !is_in(&old, new)) {
            self.feed.add(collection.clone()).await?;
        }
        let gone = old.collections().filter(|old| !is_in(&new, old));
        let gone: Vec<_> = gone.cloned().collect();
        *self.table.write() = Arc::new(new);
        gone.iter()
            .for_each(|collection| self.feed.remove(collection));
        Ok(())
    }

    /// A resource by its path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Found> {
        self.table.read().find(group, version, plural).cloned()
    }

    /// The objects of a storage prefix.
    pub fn collection(&self, prefix: &str) -> Option<Arc<Collection>> {
        self.table.read().collection(prefix).cloned()
    }
}

/// Lets go, every minute, of the states of lists that nobody may ask for any more.
async fn sweep(table: Weak<RwLock<Arc<Table>>>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(table) = table.upgrade() else {
            return;
        };
        let table = table.read().clone();
        table
            .collections()
            .for_each(|collection| collection.sweep());
    }
}

/// Forgets, every five minutes in which something was written, what was history five minutes before.
async fn compact(store: Weak<dyn Store>) {
    let Some(revision) = store.upgrade().map(|store| store.revision()) else {
        return;
    };
    let (mut before, mut compacted) = (revision, revision);
    loop {
        tokio::time::sleep(COMPACT_EVERY).await;
        let Some(store) = store.upgrade() else { return };
        if before > compacted {
            if let Err(error) = store.compact(before).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot compact the store"
                );
            }
            compacted = before;
        }
        before = store.revision();
    }
}

#[cfg(test)]
mod tests {
    use knarr_store::{Durability, Op, RedbStore};
    use lanes::View;

    use super::*;
    use crate::kinds;
    use crate::resource::Resource;

    /// ConfigMaps by another name.
    fn things(kinds: &Kinds) -> Arc<Resource> {
        let maps = kinds.resources.iter().find(|r| r.plural == "configmaps");
        let maps = maps.expect("config maps are built in");
        Arc::new(Resource {
            gvk: kinds::gvk("example.com/v1", "Thing"),
            plural: "things".to_owned(),
            storage_prefix: "example.com/things".to_owned(),
            ..(**maps).clone()
        })
    }

    #[tokio::test]
    async fn a_kind_comes_and_goes_while_the_server_runs() {
        let dir = tempfile::tempdir().expect("a directory");
        let store: Arc<dyn Store> =
            Arc::new(RedbStore::open(&dir.path().join("s.redb")).expect("a store"));
        let put = async |name: &str| {
            let key = format!("/registry/example.com/things/a/{name}");
            let value = serde_json::json!({ "metadata": { "namespace": "a", "name": name } });
            let op = Op::Put(key, value.to_string().into());
            let done = store.txn(Vec::new(), vec![op], Durability::Immediate).await;
            done.expect("a commit")
        };
        put("before").await;
        let range = "10.96.0.0/16".parse().expect("a range");
        let registry = Registry::open(store.clone(), kinds::builtin(), range, 30000..=32767);
        let registry = registry.await.expect("a registry");
        let pods = registry.collection("pods").expect("pods");
        assert!(registry.find("example.com", "v1", "things").is_none());
        for round in 0..3 {
            let with = |table: &Table| {
                let mut kinds = kinds::builtin();
                kinds.resources = table.resources().to_vec();
                let things = things(&kinds);
                kinds.resources.push(things);
                kinds
            };
            registry.serve(with).await.expect("it is served");
            let found = registry.find("example.com", "v1", "things");
            let (_, Some(things)) = found.expect("it is there") else {
                panic!("it has objects");
            };
            assert!(things.get("a/before").is_some());
            let mut cursor = things.snapshot_and_follow(&View::Whole, "").1;
            let name = format!("after-{round}");
            put(&name).await;
            registry.feed.reached(store.revision()).await;
            assert!(things.get(&format!("a/{name}")).is_some());
            assert_eq!(things.read(&mut cursor, 9).expect("changes").len(), 1);
            let same = registry.collection("pods").expect("pods");
            assert!(
                Arc::ptr_eq(&same, &pods),
                "kinds that stay keep their objects"
            );
            registry
                .serve(|_| kinds::builtin())
                .await
                .expect("it is gone");
            assert!(registry.find("example.com", "v1", "things").is_none());
            assert!(things.read(&mut cursor, 9).is_err(), "its watches end");
            assert!(things.is_empty());
        }
    }
}
