//! The registry: every object of the cluster, and the generic ways to read and write them.
//!
//! Reading order: `entry` (one object's bytes), `collection` (the watch cache of one prefix), `feed` (store to collections),
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
pub mod selector;
pub mod services;
pub mod views;
pub mod watch;
pub mod write;

mod admission;

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ipnet::IpNet;
use knarr_store::{Store, StoreError};

use collection::Collection;
use feed::Feed;
use services::Services;

use crate::resource::Resource;
use crate::supervise::supervised;

/// How often history that nobody may ask for any more is forgotten.
const COMPACT_EVERY: std::time::Duration = std::time::Duration::from_secs(300);

/// How often kept states of lists are looked at.
const SWEEP_EVERY: std::time::Duration = std::time::Duration::from_secs(60);

/// A resource and, unless it exists only as a request, its objects.
pub type Found = (Arc<Resource>, Option<Arc<Collection>>);

/// Every resource and its objects.
pub struct Registry {
    /// The store.
    pub store: Arc<dyn Store>,
    /// How far the collections are.
    pub feed: Arc<Feed>,
    /// Cluster addresses and node ports.
    pub services: Services,
    resources: Vec<Arc<Resource>>,
    index: HashMap<String, Found>,
    by_prefix: HashMap<String, Arc<Collection>>,
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
        resources: Vec<Arc<Resource>>,
        service_range: IpNet,
        node_ports: RangeInclusive<u16>,
    ) -> Result<Self, StoreError> {
        let mut by_prefix: HashMap<String, Arc<Collection>> = HashMap::new();
        // The version that is stored comes first, so that the collection knows its fields.
        for resource in resources
            .iter()
            .filter(|r| is_stored(r) && r.storage_version.is_none())
        {
            let prefix = &resource.storage_prefix;
            let strategy = resource.strategy.clone();
            by_prefix
                .entry(prefix.clone())
                .or_insert_with(|| Arc::new(Collection::new(prefix, strategy)));
        }
        let index = resources
            .iter()
            .map(|resource| {
                let collection = is_stored(resource)
                    .then(|| by_prefix.get(&resource.storage_prefix).cloned())
                    .flatten();
                let gvk = &resource.gvk;
                (
                    index_key(&gvk.group, &gvk.version, &resource.plural),
                    (resource.clone(), collection),
                )
            })
            .collect();
        // No kind of the API: the node ports that are taken.
        let plain = Arc::new(crate::strategy::Plain);
        let ranges = Arc::new(Collection::new("ranges", plain));
        by_prefix.insert("ranges".to_owned(), ranges.clone());
        let namespaces = by_prefix
            .get("namespaces")
            .cloned()
            .expect("namespaces are built in");
        let feed = Feed::start(store.clone(), by_prefix.values().cloned().collect()).await?;
        let addresses = by_prefix
            .get("ipaddresses")
            .cloned()
            .expect("addresses are built in");
        let services = Services::new(service_range, node_ports, addresses, ranges);
        let compacted = Arc::downgrade(&store);
        tokio::spawn(supervised("compaction", move || compact(compacted.clone())));
        let swept: Vec<_> = by_prefix.values().map(Arc::downgrade).collect();
        tokio::spawn(supervised("states of lists", move || sweep(swept.clone())));
        let registry = Self {
            store,
            feed,
            services,
            resources,
            index,
            by_prefix,
            namespaces,
        };
        // Before the first service is made: what a store from before has must not be given twice. Another server that writes
        // meanwhile has brought it in line itself, or `services::keep` does.
        registry.repair_services().await?;
        Ok(registry)
    }

    /// The resources, in the order of discovery.
    pub fn resources(&self) -> &[Arc<Resource>] {
        &self.resources
    }

    /// A resource by its path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Found> {
        self.index.get(&index_key(group, version, plural)).cloned()
    }

    /// The objects of a storage prefix.
    pub fn collection(&self, prefix: &str) -> Option<&Arc<Collection>> {
        self.by_prefix.get(prefix)
    }

    /// The collections with their resources' names, for metrics.
    pub fn collections(&self) -> impl Iterator<Item = &Arc<Collection>> {
        self.by_prefix.values()
    }
}

fn is_stored(resource: &Resource) -> bool {
    resource.verbs.contains(&crate::resource::Verb::Get)
}

fn index_key(group: &str, version: &str, plural: &str) -> String {
    format!("{group}/{version}/{plural}")
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
