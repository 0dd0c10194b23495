//! Carries the store's changes into the collections: one task, one watch of the whole store.
//!
//! One watch for all collections means one revision for all of them: once the feed has passed a revision, every
//! collection shows it. Writes are acknowledged only then, so whoever has seen an answer finds it in every later read.

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt as _;
use knarr_store::{Event, Revision, Store, StoreError};
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot, watch};

use super::collection::Collection;

/// Revisions taken in one go, before those who wait are woken.
const BATCH: usize = 256;

/// The pause before the store is read anew after a failure: doubled each time, up to half a minute.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

type Batch = (Revision, Vec<Event>);

/// A collection that is to be followed, too, and who waits for it.
type Addition = (Arc<Collection>, oneshot::Sender<Result<(), StoreError>>);

/// The collections by storage prefix, and how far they are.
pub struct Feed {
    store: Arc<dyn Store>,
    collections: RwLock<HashMap<String, Arc<Collection>>>,
    revision: watch::Sender<Revision>,
    /// Whether every collection follows the store.
    following: AtomicBool,
    additions: mpsc::UnboundedSender<Addition>,
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
        let (additions, asked) = mpsc::unbounded_channel();
        let feed = Arc::new(Self {
            additions,
            store,
            collections: RwLock::new(collections),
            revision: watch::Sender::new(0),
            following: AtomicBool::new(false),
        });
        let changes = feed.load().await?;
        tokio::spawn(keep_following(Arc::downgrade(&feed), changes, asked));
        Ok(feed)
    }

    /// Follows another collection, too: it is filled when this returns.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    pub async fn add(&self, collection: Arc<Collection>) -> Result<(), StoreError> {
        let (done, filled) = oneshot::channel();
        let asked = self.additions.send((collection, done));
        asked.map_err(|_| StoreError::Closed)?;
        filled.await.map_err(|_| StoreError::Closed)?
    }

    /// Stops following a collection, and ends its watches.
    pub fn remove(&self, collection: &Collection) {
        self.collections.write().remove(&collection.prefix);
        collection.close();
    }

    /// The revision that every collection shows.
    pub fn revision(&self) -> Revision {
        *self.revision.borrow()
    }

    /// Whether every collection follows the store; not while it is read anew after a failure.
    pub fn is_following(&self) -> bool {
        self.following.load(Ordering::Acquire)
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
            self.fill(&collection, revision).await?;
        }
        self.revision.send_replace(revision);
        self.following.store(true, Ordering::Release);
        Ok(changes)
    }

    /// Reads a collection, which shows at least `revision` afterwards.
    async fn fill(&self, collection: &Collection, revision: Revision) -> Result<(), StoreError> {
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
        Ok(())
    }

    /// Takes in a collection between two batches: what is written while it is read comes as a change afterwards.
    async fn take_in(&self, (collection, done): Addition) {
        let filled = self.fill(&collection, self.revision()).await;
        if filled.is_ok() {
            let mut collections = self.collections.write();
            collections.insert(collection.prefix.clone(), collection);
        }
        // Nobody waits any more: then nobody serves it, and following it costs little.
        drop(done.send(filled));
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

/// Follows the store until the feed is dropped or the store is closed.
///
/// A panic may leave a collection half changed, so they are all read anew, as after a watch that was lost: watchers start
/// over, and those who wait for their write to show go on waiting until it does.
async fn keep_following(
    feed: Weak<Feed>,
    changes: mpsc::Receiver<Batch>,
    mut additions: mpsc::UnboundedReceiver<Addition>,
) {
    let mut changes = Some(changes);
    let mut pause = PAUSE;
    loop {
        if let Some(changes) = changes.take() {
            let followed = AssertUnwindSafe(follow(&feed, changes, &mut additions))
                .catch_unwind()
                .await;
            let Some(feed) = feed.upgrade() else { return };
            feed.following.store(false, Ordering::Release);
            match followed {
                Ok(()) => tracing::info!("the watch of the store ended; its objects are read anew"),
                Err(_) => tracing::error!("the feed panicked; the store's objects are read anew"),
            }
        }
        let Some(upgraded) = feed.upgrade() else {
            return;
        };
        let loaded = AssertUnwindSafe(upgraded.load()).catch_unwind().await;
        drop(upgraded);
        match loaded {
            Ok(Ok(anew)) => {
                changes = Some(anew);
                pause = PAUSE;
                continue;
            }
            Ok(Err(StoreError::Closed)) => return,
            Ok(Err(error)) => tracing::error!(
                error = &error as &dyn std::error::Error,
                ?pause,
                "cannot read the store; it is tried again"
            ),
            Err(_) => tracing::error!(?pause, "reading the store panicked; it is tried again"),
        }
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

/// Returns when the watch ends: we fell behind, or the store is closed. Or when the feed is dropped.
async fn follow(
    feed: &Weak<Feed>,
    mut changes: mpsc::Receiver<Batch>,
    additions: &mut mpsc::UnboundedReceiver<Addition>,
) {
    let mut batches = Vec::with_capacity(BATCH);
    let mut touched = Vec::new();
    loop {
        // Both only take from their channels, so losing the race loses nothing.
        let taken = tokio::select! {
            taken = changes.recv_many(&mut batches, BATCH) => taken,
            Some(addition) = additions.recv() => {
                let Some(feed) = feed.upgrade() else { return };
                feed.take_in(addition).await;
                continue;
            }
        };
        let Some(feed) = feed.upgrade() else { return };
        if taken == 0 {
            return;
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

#[cfg(test)]
mod tests {
    use knarr_store::{Durability, Op, RedbStore};
    use serde_json::Value;

    use super::*;
    use crate::strategy::Strategy;

    /// Blows when it looks at an object, once.
    struct Fuse(AtomicBool);

    impl Strategy for Fuse {
        fn selectable_field_names(&self) -> &'static [&'static str] {
            &["spec.fuse"]
        }

        fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
            let blows = object["spec"]["fuse"] == true;
            assert!(
                !(blows && self.0.swap(false, Ordering::SeqCst)),
                "the fuse blows"
            );
            Vec::new()
        }
    }

    #[tokio::test]
    async fn a_panic_of_the_feed_loses_no_change_and_holds_up_nobody() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = RedbStore::open(&dir.path().join("state.redb")).expect("a store");
        let store: Arc<dyn Store> = Arc::new(store);
        let fuse = Arc::new(Fuse(AtomicBool::new(true)));
        let collection = Arc::new(Collection::new("fuses", fuse.clone()));
        let other = Arc::new(Collection::new("others", fuse));
        let feed = Feed::start(store.clone(), vec![collection.clone(), other.clone()])
            .await
            .expect("a feed");
        assert!(feed.is_following());
        for (key, object) in [
            ("others/a", r#"{"metadata":{}}"#),
            ("fuses/a", r#"{"metadata":{},"spec":{"fuse":true}}"#),
            ("others/b", r#"{"metadata":{}}"#),
        ] {
            let put = Op::Put(format!("/registry/{key}"), object.into());
            let outcome = store.txn(vec![], vec![put], Durability::Immediate).await;
            let revision = store.revision();
            outcome.expect("a commit");
            tokio::time::timeout(Duration::from_secs(10), feed.reached(revision))
                .await
                .expect("the feed goes on");
        }
        assert!(collection.get("a").is_some());
        assert!(other.get("a").is_some() && other.get("b").is_some());
        assert!(feed.is_following());
    }
}
