//! Carries the store's changes into the collections: one task, one watch of the whole store.
//!
//! One watch for all collections means one revision for all of them: once the feed has passed a revision, every
//! collection shows it. Writes are acknowledged only then, so whoever has seen an answer finds it in every later read.

use std::collections::HashMap;
use std::sync::Arc;

use knarr_store::{Event, Revision, Store, StoreError};
use parking_lot::RwLock;
use tokio::sync::{mpsc, watch};

use super::collection::Collection;

/// Revisions taken in one go, before those who wait are woken.
const BATCH: usize = 256;

type Batch = (Revision, Vec<Event>);

/// The collections by storage prefix, and how far they are.
pub struct Feed {
    store: Arc<dyn Store>,
    collections: RwLock<HashMap<String, Arc<Collection>>>,
    revision: watch::Sender<Revision>,
}

impl Feed {
    /// Loads every collection and starts to follow the store, until the returned value and its clones are dropped.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    pub async fn start(
        store: Arc<dyn Store>,
        collections: Vec<Arc<Collection>>,
    ) -> Result<Arc<Self>, StoreError> {
        let collections = collections
            .into_iter()
            .map(|c| (c.prefix.clone(), c))
            .collect();
        let feed = Arc::new(Self {
            store,
            collections: RwLock::new(collections),
            revision: watch::Sender::new(0),
        });
        let changes = feed.load().await?;
        tokio::spawn(follow(Arc::downgrade(&feed), changes));
        Ok(feed)
    }

    /// The revision that every collection shows.
    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Waits until every collection shows `revision`.
    pub async fn reached(&self, revision: Revision) {
        if self.revision() >= revision {
            return;
        }
        let mut receiver = self.revision.subscribe();
        receiver
            .wait_for(|now| *now >= revision)
            .await
            .expect("the feed, which we borrow, holds the sender");
    }

    async fn load(&self) -> Result<mpsc::Receiver<Batch>, StoreError> {
        let revision = self.store.revision();
        // The watch starts first: what changes while the ranges are read comes again as a change, and does no harm twice.
        let changes = self.store.watch("", revision).await?;
        let collections: Vec<_> = self.collections.read().values().cloned().collect();
        for collection in collections {
            let start = collection.store_key("");
            let mut end = start.clone();
            end.pop();
            end.push('0');
            let removed = self.store.none_removed_since(&start).await?;
            let range = self.store.range(&start, &end, 0).await?;
            let written = range.kvs.iter().map(|kv| kv.mod_revision).max();
            // A watcher that knows this state goes on from it, although its changes are not in our window.
            let unchanged_since = removed.max(written.unwrap_or(0)).min(revision);
            collection.load(&range.kvs, unchanged_since, revision);
        }
        self.revision.send_replace(revision);
        Ok(changes)
    }

    fn apply(&self, revision: Revision, events: &[Event], touched: &mut Vec<Arc<Collection>>) {
        let collections = self.collections.read();
        let mut own: Vec<&Arc<Collection>> = Vec::new();
        for event in events {
            if let Some(collection) = find(&collections, event.key())
                && !own.iter().any(|c| Arc::ptr_eq(c, collection))
            {
                own.push(collection);
            }
        }
        for collection in own {
            collection.apply(revision, events);
            if !touched.iter().any(|c| Arc::ptr_eq(c, collection)) {
                touched.push(collection.clone());
            }
        }
    }
}

/// The collection of a key: its first part after `/registry/`, or its first two (`services/specs`).
fn find<'a>(
    collections: &'a HashMap<String, Arc<Collection>>,
    key: &str,
) -> Option<&'a Arc<Collection>> {
    let rest = key.strip_prefix("/registry/")?;
    let first = rest.find('/')?;
    if let Some(collection) = collections.get(&rest[..first]) {
        return Some(collection);
    }
    let second = first + 1 + rest[first + 1..].find('/')?;
    collections.get(&rest[..second])
}

async fn follow(feed: std::sync::Weak<Feed>, mut changes: mpsc::Receiver<Batch>) {
    let mut batches = Vec::with_capacity(BATCH);
    let mut touched = Vec::new();
    loop {
        let taken = changes.recv_many(&mut batches, BATCH).await;
        let Some(feed) = feed.upgrade() else { return };
        if taken == 0 {
            // We fell behind, or the store is closed.
            match feed.load().await {
                Ok(anew) => changes = anew,
                Err(StoreError::Closed) => return,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "cannot follow the store"
                    );
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
            continue;
        }
        let newest = batches.last().map_or(0, |(revision, _)| *revision);
        for (revision, events) in batches.drain(..) {
            feed.apply(revision, &events, &mut touched);
        }
        feed.revision.send_if_modified(|now| {
            let ahead = newest > *now;
            *now = newest.max(*now);
            ahead
        });
        touched
            .drain(..)
            .for_each(|collection| collection.announce());
    }
}
