//! Tasks in the background that a panic must not end.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt as _;

/// The pause before a task starts again: doubled each time, up to a minute.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Runs a task until it ends by itself; after a panic it starts again, with a state made anew.
pub(crate) async fn supervised<F: Future<Output = ()>>(
    name: &'static str,
    mut task: impl FnMut() -> F,
) {
    let mut pause = PAUSE;
    while AssertUnwindSafe(task()).catch_unwind().await.is_err() {
        // What happened, and where, was logged by the panic's hook.
        tracing::error!(task = name, ?pause, "a task panicked and starts again");
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}
