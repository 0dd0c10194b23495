//! Keeps one cache current: list, then watch, for ever.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::Api;
use kube::runtime::watcher::{self, Event};
use tokio_util::sync::CancellationToken;

use super::{Cache, Cached, Key};
use crate::model;
use crate::queue::backoff;

/// The wait after the first failed list or watch; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Follows a kind until stopped.
///
/// A lost watch is taken up where it broke off; if the server no longer has that point the kind is listed anew, and what
/// the new list lacks is reported as removed.
pub async fn follow<K>(
    api: Api<K>,
    fields: Option<&str>,
    cache: Arc<Cache<K>>,
    stop: CancellationToken,
) where
    K: Cached,
{
    let config = watcher::Config {
        field_selector: fields.map(str::to_owned),
        ..watcher::Config::default()
    };
    let mut events = std::pin::pin!(watcher::watcher(api, config));
    let mut failures = 0;
    let mut missing = HashSet::new();
    loop {
        // Dropping the stream midway loses only a connection: the next start lists anew.
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            Some(Ok(event)) => {
                failures = 0;
                take(&cache, event, &mut missing);
            }
            Some(Err(error)) => {
                let wait = backoff(FIRST_WAIT, LONGEST_WAIT, failures);
                failures = failures.saturating_add(1);
                tracing::warn!(kind = %K::kind(&()), error = %error, retry_in = ?wait, "watch failed");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
            }
            None => return,
        }
    }
}

fn take<K: Cached>(cache: &Cache<K>, event: Event<K>, missing: &mut HashSet<Key>) {
    match event {
        Event::Init => *missing = cache.keys().into_iter().collect(),
        Event::InitApply(object) => {
            missing.remove(&Key::of(object.meta()));
            cache.apply(object);
        }
        Event::InitDone => {
            for key in missing.drain() {
                cache.remove(&key, 0);
            }
            missing.shrink_to_fit();
            cache.mark_ready();
        }
        Event::Apply(object) => cache.apply(object),
        Event::Delete(object) => {
            cache.remove(&Key::of(object.meta()), model::version(object.meta()))
        }
    }
}
