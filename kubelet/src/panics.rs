//! Panics at the edge of a task: what panicked failed, and nothing else.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;

/// How long a task that panicked waits before it starts anew.
const RESTART: Duration = Duration::from_secs(1);

/// Runs work to its end; an error is the message of its panic.
///
/// What the work shared with others must be as good after a panic as before it: locks of `parking_lot` are not poisoned, and
/// the callers throw away what only the work had.
pub(crate) async fn caught<T>(work: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(message)
}

/// Runs a task that is to run as long as the agent, and starts it anew should it panic.
pub(crate) async fn supervised<F: Future<Output = ()>>(what: &'static str, run: impl Fn() -> F) {
    while let Err(message) = caught(run()).await {
        tracing::error!(
            what,
            message,
            "a task of the node agent panicked and starts anew"
        );
        tokio::time::sleep(RESTART).await;
    }
}

fn message(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => match panic.downcast::<&'static str>() {
            Ok(text) => (*text).to_owned(),
            Err(_) => "a panic without a message".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_starts_anew_until_it_ends() {
        let starts = AtomicUsize::new(0);
        supervised("test", || async {
            assert_eq!(starts.fetch_add(1, Ordering::Relaxed), 2, "not yet");
        })
        .await;
        assert_eq!(starts.load(Ordering::Relaxed), 3);
    }
}
