//! Keeps one cache current: list, then watch, for ever.

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
/// A lost watch is taken up where it broke off; if the server no longer has that point the kind is listed anew, and the
/// whole list takes the place of what was known. A list comes in the order of names and in pages: shown object by object,
/// one with a new version would say that all that is older is there too.
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
    let mut list = Vec::new();
    loop {
        // Dropping the stream midway loses only a connection: the next start lists anew.
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            Some(Ok(event)) => {
                failures = 0;
                take(&cache, event, &mut list);
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

fn take<K: Cached>(cache: &Cache<K>, event: Event<K>, list: &mut Vec<K>) {
    match event {
        Event::Init => list.clear(),
        Event::InitApply(mut object) => {
            object.trim();
            list.push(object);
        }
        Event::InitDone => {
            cache.replace(std::mem::take(list));
            cache.mark_ready();
        }
        Event::Apply(object) => cache.apply(object),
        Event::Delete(object) => {
            cache.remove(&Key::of(object.meta()), model::version(object.meta()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Pod;

    fn pod(name: &str, version: u64) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "resourceVersion": version.to_string()},
        }))
        .expect("a pod")
    }

    /// What expectations rest on: at a version, all that is older shows.
    #[test]
    fn no_version_of_a_list_shows_before_the_whole_list() {
        let cache = Cache::<Pod>::default();
        let mut list = Vec::new();
        take(&cache, Event::Apply(pod("known", 3)), &mut list);
        // The watch is lost; meanwhile "z" was made, then "a".
        take(&cache, Event::Init, &mut list);
        take(&cache, Event::InitApply(pod("a", 6)), &mut list);
        assert_eq!((cache.version(), cache.len()), (3, 1));
        take(&cache, Event::InitApply(pod("z", 5)), &mut list);
        take(&cache, Event::InitDone, &mut list);
        assert_eq!((cache.version(), cache.len()), (6, 2));
        assert!(cache.get(&Key::new("ns", "known")).is_none());
    }

    #[test]
    fn a_list_that_broke_off_leaves_nothing() {
        let cache = Cache::<Pod>::default();
        let mut list = Vec::new();
        take(&cache, Event::Init, &mut list);
        take(&cache, Event::InitApply(pod("gone-since", 1)), &mut list);
        take(&cache, Event::Init, &mut list);
        take(&cache, Event::InitDone, &mut list);
        assert!(cache.is_empty());
    }
}
