//! All webhooks of one kind of configuration, as the requests find them.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use knarr_store::Revision;
use parking_lot::RwLock;

use super::config::{self, Hook};
use crate::registry::Registry;
use crate::registry::collection::Collection;
use crate::registry::entry::Entry;

/// The webhooks of all configurations, by the configurations' names, then in each one's order.
pub type Hooks = Arc<[Arc<Hook>]>;

/// All webhooks of one kind of configuration.
///
/// A request costs one look at the collection while there is no configuration, and one comparison of revisions while none
/// changes. A configuration that did not change keeps its parsed webhooks, and with them their connections.
pub struct Source {
    prefix: &'static str,
    collection: OnceLock<Arc<Collection>>,
    known: RwLock<Known>,
}

#[derive(Default)]
struct Known {
    newest: Revision,
    configurations: HashMap<Box<str>, (Revision, Hooks)>,
    hooks: Option<Hooks>,
}

impl Source {
    /// The configurations below a storage prefix.
    pub fn new(prefix: &'static str) -> Self {
        Self {
            prefix,
            collection: OnceLock::new(),
            known: RwLock::default(),
        }
    }

    /// The webhooks as of now; none if there is no configuration.
    ///
    /// A configuration that cannot be read has none. The API does not let one in, so that it comes from a store that something
    /// else wrote; the log says so.
    pub fn hooks(&self, registry: &Registry) -> Option<Hooks> {
        let collection = match self.collection.get() {
            Some(collection) => collection,
            // The collection of a built-in kind stays the same for the life of the registry.
            None => {
                let found = registry.collection(self.prefix)?;
                self.collection.get_or_init(|| found)
            }
        };
        if collection.is_empty() {
            return None;
        }
        let now = collection.freeze();
        {
            let known = self.known.read();
            if known.newest == now.newest
                && let Some(hooks) = &known.hooks
            {
                return Some(hooks.clone());
            }
        }
        let mut known = self.known.write();
        let mut configurations = HashMap::with_capacity(now.count());
        let mut all = Vec::new();
        for entry in now.range("", "") {
            let before = known.configurations.get(&entry.key);
            let hooks = match before.filter(|(revision, _)| *revision == entry.revision) {
                Some((_, hooks)) => hooks.clone(),
                None => read(entry),
            };
            all.extend(hooks.iter().cloned());
            configurations.insert(entry.key.clone(), (entry.revision, hooks));
        }
        let hooks: Hooks = all.into();
        // Another request may have seen a later state already; it is not to be put back.
        if known.newest <= now.newest {
            *known = Known {
                newest: now.newest,
                configurations,
                hooks: Some(hooks.clone()),
            };
        }
        Some(hooks)
    }
}

fn read(entry: &Entry) -> Hooks {
    match config::parse(entry.name(), &entry.parse()) {
        Ok(hooks) => hooks.into_iter().map(Arc::new).collect(),
        Err(error) => {
            tracing::error!(
                configuration = entry.name(),
                error = &error as &dyn std::error::Error,
                "none of the webhooks of this configuration is called"
            );
            Hooks::default()
        }
    }
}
