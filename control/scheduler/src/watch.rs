//! The watches that feed the scheduler.

use std::time::Duration;

use futures::StreamExt;
use knarr_controllers::queue::backoff;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Sends the changes of a kind until stopped; a lost watch is taken up again.
pub(crate) async fn feed<K, T>(
    api: Api<K>,
    sender: mpsc::Sender<T>,
    wrap: fn(Event<K>) -> T,
    stop: CancellationToken,
) where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + 'static,
    T: Send,
{
    let mut events = std::pin::pin!(watcher::watcher(api, watcher::Config::default()));
    let mut failures = 0;
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            Some(Ok(event)) => {
                failures = 0;
                if sender.send(wrap(event)).await.is_err() {
                    return;
                }
            }
            Some(Err(error)) => {
                let wait = backoff(Duration::from_millis(50), Duration::from_secs(10), failures);
                failures = failures.saturating_add(1);
                tracing::warn!(kind = %K::kind(&()), %error, retry_in = ?wait, "watch failed");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
            }
            None => return,
        }
    }
}
