//! The table of what is served: the resources, their schemas, and the collections that hold their objects.
//!
//! A table is a value. Whoever answers a request takes the table of the moment and keeps it to the end, so that another
//! may take its place meanwhile.

use std::collections::HashMap;
use std::sync::Arc;

use super::collection::Collection;
use crate::kinds::Kinds;
use crate::resource::{Resource, Verb};
use crate::schema::Schemas;

/// A resource and, unless it exists only as a request, its objects.
pub type Found = (Arc<Resource>, Option<Arc<Collection>>);

/// Every resource and where its objects are.
pub struct Table {
    /// The schemas of the resources, and of what is sent to them (`DeleteOptions`, `Scale`).
    pub schemas: Arc<Schemas>,
    /// Counts the tables before this one, so that what was made from one is told from what was made from another.
    pub version: u64,
    resources: Vec<Arc<Resource>>,
    index: HashMap<String, Found>,
    by_prefix: HashMap<String, Arc<Collection>>,
    /// Those that are no kind's.
    plain: Vec<Arc<Collection>>,
}

impl Table {
    /// The first table: `plain` are collections of what is stored and is no kind of the API.
    pub fn first(kinds: Kinds, plain: Vec<Arc<Collection>>) -> Self {
        Self::with(0, kinds, plain, |_| None)
    }

    /// The table that comes after this one: kinds that stay keep their collections.
    pub fn next(&self, kinds: Kinds) -> Self {
        let old = |prefix: &str| self.by_prefix.get(prefix).cloned();
        Self::with(self.version + 1, kinds, self.plain.clone(), old)
    }

    fn with(
        version: u64,
        kinds: Kinds,
        plain: Vec<Arc<Collection>>,
        old: impl Fn(&str) -> Option<Arc<Collection>>,
    ) -> Self {
        let Kinds { resources, schemas } = kinds;
        let mut by_prefix: HashMap<String, Arc<Collection>> = (plain.iter())
            .map(|collection| (collection.prefix.clone(), collection.clone()))
            .collect();
        // The version that is stored comes first, so that the collection knows its fields.
        for resource in resources
            .iter()
            .filter(|r| is_stored(r) && r.storage_version.is_none())
        {
            let prefix = &resource.storage_prefix;
            let strategy = resource.strategy.clone();
            by_prefix.entry(prefix.clone()).or_insert_with(|| {
                old(prefix).unwrap_or_else(|| Arc::new(Collection::new(prefix, strategy)))
            });
        }
        // And of kinds whose stored version is not served.
        for resource in resources.iter().filter(|r| is_stored(r)) {
            let (prefix, strategy) = (&resource.storage_prefix, resource.strategy.clone());
            by_prefix.entry(prefix.clone()).or_insert_with(|| {
                old(prefix).unwrap_or_else(|| Arc::new(Collection::new(prefix, strategy)))
            });
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
        Self {
            schemas,
            version,
            resources,
            index,
            by_prefix,
            plain,
        }
    }

    /// The resources, in the order of discovery.
    pub fn resources(&self) -> &[Arc<Resource>] {
        &self.resources
    }

    /// A resource by its path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Found> {
        self.index.get(&index_key(group, version, plural))
    }

    /// The objects of a storage prefix.
    pub fn collection(&self, prefix: &str) -> Option<&Arc<Collection>> {
        self.by_prefix.get(prefix)
    }

    /// All collections.
    pub fn collections(&self) -> impl Iterator<Item = &Arc<Collection>> {
        self.by_prefix.values()
    }
}

fn is_stored(resource: &Resource) -> bool {
    resource.verbs.contains(&Verb::Get)
}

fn index_key(group: &str, version: &str, plural: &str) -> String {
    format!("{group}/{version}/{plural}")
}
