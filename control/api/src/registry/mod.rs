//! The registry: every object of the cluster, and the generic ways to read and write them.
//!
//! Reading order: `table` (what is served), `entry` (one object's bytes), `collection` (the watch cache of one prefix), `feed`
//! (store to collections),
//! `selector`, `list`, `watch` (reading); `operation`, `meta`, `admission`, `views`, `write`, `delete`, `services` (writing);
//! `defaults`, `expiry`.

pub mod collection;
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
pub mod policy;
pub mod selector;
pub mod services;
pub mod table;
pub mod views;
pub mod watch;
pub mod write;

mod admission;
mod node_lookup;

use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use knarr_store::{Store, StoreError};
use parking_lot::RwLock;

use collection::Collection;
use feed::Feed;
use node_lookup::NodeLookup;
use services::Services;
use table::{Found, Table};

use crate::auth::authorize::{Authorizer, Authorizers};
use crate::auth::rbac::index::Index;
use crate::kinds::Builtin;
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
    table: RwLock<Arc<Table>>,
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
        kinds: Builtin,
        service_range: IpNet,
        node_ports: RangeInclusive<u16>,
    ) -> Result<Self, StoreError> {
        // No kind of the API: the node ports that are taken.
        let ranges = Arc::new(Collection::new("ranges", Arc::new(crate::strategy::Plain)));
        let table = Table::new(0, kinds.resources, kinds.schemas, [ranges.clone()]);
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
        let swept: Vec<_> = table.collections().map(Arc::downgrade).collect();
        tokio::spawn(supervised("states of lists", move || sweep(swept.clone())));
        let registry = Self {
            store,
            feed,
            services,
            authorizer,
            rbac,
            table: RwLock::new(Arc::new(table)),
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
async fn sweep(collections: Vec<std::sync::Weak<Collection>>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        for collection in &collections {
            let Some(collection) = collection.upgrade() else {
                return;
            };
            collection.sweep();
        }
    }
}

/// Forgets, every five minutes in which something was written, what was history five minutes before.
async fn compact(store: std::sync::Weak<dyn Store>) {
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
