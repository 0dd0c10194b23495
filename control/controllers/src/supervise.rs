//! Loops that outlive a panic: each is started again after a while, and says meanwhile that it is down.
//!
//! A panic costs the loop that it happens in. Within a loop that works on a queue it costs even less: the run of one key,
//! which counts as failed (see [`crate::queue`]).

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::queue::backoff;

/// The wait before a loop's first restart; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(200);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A loop that has run for this long is well again: its next failure is a first one.
const RECOVERED: Duration = Duration::from_secs(300);

/// A loop that can be started any number of times, one after another.
pub type Loop = Box<dyn Fn() -> BoxFuture<'static, ()> + Send + Sync>;

/// How each loop does, by name. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<String, Option<String>>>>);

impl Health {
    /// Every loop in the order of names, and for one that is down, why.
    pub fn checks(&self) -> Vec<(String, Result<(), String>)> {
        let loops = self.0.lock();
        let check = |(name, trouble): (&String, &Option<String>)| {
            (name.clone(), trouble.clone().map_or(Ok(()), Err))
        };
        loops.iter().map(check).collect()
    }

    /// A loop that is no longer wanted is not down.
    pub(crate) fn forget(&self, name: &str) {
        self.0.lock().remove(name);
    }

    fn set(&self, name: &str, trouble: Option<String>) {
        self.0.lock().insert(name.to_owned(), trouble);
    }
}

/// Runs what `start` makes until stopped: if it panics, or ends by itself, it is made anew after a while.
pub async fn supervise<F, Fut>(name: &str, health: &Health, stop: &CancellationToken, mut start: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = ()>,
{
    let mut failures = 0;
    while !stop.is_cancelled() {
        health.set(name, None);
        let began = Instant::now();
        // What a panic leaves behind is either dropped with the future or guarded by locks, whose holders leave it consistent.
        let ended = AssertUnwindSafe(async { start().await })
            .catch_unwind()
            .await;
        if stop.is_cancelled() {
            return;
        }
        let error = match ended {
            Ok(()) => "ended by itself".to_owned(),
            Err(panic) => format!("panicked: {}", message(&*panic)),
        };
        if began.elapsed() >= RECOVERED {
            failures = 0;
        }
        let wait = backoff(FIRST_WAIT, LONGEST_WAIT, failures);
        failures = failures.saturating_add(1);
        tracing::error!(name, error, failures, retry_in = ?wait, "a loop broke down and is started again");
        health.set(name, Some(error));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// What a panic said.
pub fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_panics_or_ends_is_started_again_and_says_so_meanwhile() {
        let (health, stop) = (Health::default(), CancellationToken::new());
        let starts = Cell::new(0);
        let run = supervise("one", &health, &stop, || {
            starts.set(starts.get() + 1);
            let start = starts.get();
            async move {
                match start {
                    1 => panic!("on purpose"),
                    2 => {}
                    _ => std::future::pending().await,
                }
            }
        });
        let look = async {
            // `None` until the loop was started once.
            let trouble = || {
                health
                    .checks()
                    .into_iter()
                    .next()
                    .map(|(_, trouble)| trouble)
            };
            for expected in [
                Err("panicked: on purpose".to_owned()),
                Err("ended by itself".to_owned()),
                Ok(()),
            ] {
                let start = Instant::now();
                while trouble().as_ref() != Some(&expected) {
                    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", trouble());
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            stop.cancel();
        };
        // The third start waits for ever: the token alone does not end it, its own `select!` does.
        tokio::select! { () = run => {} () = look => {} }
        assert_eq!(starts.get(), 3);
    }
}
