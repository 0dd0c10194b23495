//! Events go after an hour, as with kube-apiserver's `--event-ttl`.
//!
//! A queue in the order of their last change: one event costs one entry, and the task sleeps until the first is due. After a
//! restart the hour starts anew.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use knarr_store::{Compare, Op, Revision};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Registry;
use super::collection::{Collection, Cursor};
use super::lanes::View;

/// Changes taken from the window, and events removed, in one go.
const BATCH: usize = 256;

/// An event as of its last change.
struct Due {
    at: Instant,
    key: Box<str>,
    revision: Revision,
}

/// Removes the objects of a collection once they have not changed for `ttl`, until `stop` or the end of the registry.
pub async fn run(
    registry: Weak<Registry>,
    collection: Arc<Collection>,
    ttl: Duration,
    stop: CancellationToken,
) {
    let mut queue = VecDeque::new();
    let mut cursor = start(&collection, ttl, &mut queue);
    loop {
        loop {
            match collection.read(&mut cursor, BATCH) {
                // The window has moved on: look at everything once.
                Err(_) => {
                    queue.clear();
                    cursor = start(&collection, ttl, &mut queue);
                }
                Ok(changes) if changes.is_empty() => break,
                Ok(changes) => {
                    let entries = changes.iter().filter_map(|change| change.current.as_ref());
                    let at = Instant::now() + ttl;
                    queue.extend(entries.map(|e| Due {
                        at,
                        key: e.key.clone(),
                        revision: e.revision,
                    }));
                }
            }
        }
        // Whichever branch wins, the queue and the cursor stay as they are.
        tokio::select! {
            () = cursor.changed() => {}
            () = until(queue.front()) => {
                let Some(registry) = registry.upgrade() else { return };
                remove_due(&registry, &collection, &mut queue).await;
            }
            () = stop.cancelled() => return,
        }
    }
}

fn start(collection: &Collection, ttl: Duration, queue: &mut VecDeque<Due>) -> Cursor {
    let (snapshot, cursor) = collection.snapshot_and_follow(&View::Whole, "");
    let at = Instant::now() + ttl;
    queue.extend(snapshot.entries.iter().map(|e| Due {
        at,
        key: e.key.clone(),
        revision: e.revision,
    }));
    cursor
}

async fn until(due: Option<&Due>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.at).await,
        None => std::future::pending().await,
    }
}

async fn remove_due(registry: &Registry, collection: &Collection, queue: &mut VecDeque<Due>) {
    let now = Instant::now();
    let mut removals = Vec::new();
    while removals.len() < BATCH
        && let Some(due) = queue.pop_front_if(|due| due.at <= now)
    {
        // Changed since: it stands further back in the queue as well.
        if collection
            .get(&due.key)
            .is_none_or(|entry| entry.revision != due.revision)
        {
            continue;
        }
        let key = collection.store_key(&due.key);
        let compares = vec![Compare::ModRevision(key.clone(), due.revision)];
        removals.push(registry.commit(compares, vec![Op::Delete(key)]));
    }
    for result in futures::future::join_all(removals).await {
        if let Err(error) = result {
            tracing::warn!(%error, "cannot remove an old event");
        }
    }
}
