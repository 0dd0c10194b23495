//! The roles of the program: control plane, node, or both; how they start and how they end.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::FutureExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::node::{self, Join};
use crate::server;

/// How long the parts have to come to rest after a signal. Stopping every pod (`--kill-pods-on-exit`) has to fit in.
const GRACE: Duration = Duration::from_secs(45);

/// The pause before a part that panicked starts again: doubled each time, up to a minute …
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 1000 });
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// … and as short as at first once the part has run for so long.
const CALM: Duration = Duration::from_secs(300);

/// What this program is to be.
pub enum Role {
    /// Control plane and node in one.
    Up,
    /// The control plane.
    Server,
    /// A node of a cluster elsewhere.
    Node(Join),
}

/// The running parts of one half, server or node.
///
/// An error that a part returns ends the program: it is said what is wrong, and whoever started us decides. A panic is a
/// fault of ours: it ends the program only for parts whose state must not be guessed at ([`Parts::spawn`]); those that make
/// their state anew from the API start again ([`Parts::restart`]).
pub struct Parts {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    stop: CancellationToken,
}

impl Parts {
    fn new() -> Self {
        Self {
            tasks: JoinSet::new(),
            stop: CancellationToken::new(),
        }
    }

    /// The token whose cancellation ends a part.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Adds a part that takes the program with it when it panics.
    pub fn spawn<E>(
        &mut self,
        name: &'static str,
        part: impl Future<Output = Result<(), E>> + Send + 'static,
    ) where
        E: Into<anyhow::Error> + Send + 'static,
    {
        self.tasks
            .spawn(async move { (name, part.await.map_err(Into::into)) });
    }

    /// Adds a part that starts again after a panic, its own or one of a task of its own. It gets a token of its own, so that
    /// what it stops is only itself.
    pub fn restart<E, F>(
        &mut self,
        name: &'static str,
        mut part: impl FnMut(CancellationToken) -> F + Send + 'static,
    ) where
        E: Into<anyhow::Error> + Send + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
    {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let mut pause = PAUSE;
            loop {
                let started = Instant::now();
                // Whatever the panic left half done belonged to the part's future, which is gone.
                match AssertUnwindSafe(part(stop.child_token()))
                    .catch_unwind()
                    .await
                {
                    Ok(Err(error)) => {
                        let error = error.into();
                        if !is_panic(&error) {
                            return (name, Err(error));
                        }
                    }
                    Ok(Ok(())) => return (name, Ok(())),
                    // The hook has logged it.
                    Err(_) => {}
                }
                if started.elapsed() > CALM {
                    pause = PAUSE;
                }
                tracing::error!(part = name, ?pause, "a part panicked and starts again");
                tokio::select! {
                    // Nothing runs.
                    () = stop.cancelled() => return (name, Ok(())),
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (2 * pause).min(LONGEST_PAUSE);
            }
        });
    }

    /// Ends the parts and waits until they have.
    async fn end(&mut self, outcome: &mut anyhow::Result<()>) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            let ended = describe_stopped(ended);
            if outcome.is_ok() {
                *outcome = ended;
            } else if let Err(error) = ended {
                tracing::error!(error = format!("{error:#}"), "while stopping");
            }
        }
    }
}

/// Waits for a signal or the end of a part, then ends all: the node's parts first, which have something to tell the server.
async fn run_to_end(mut server: Parts, mut node: Parts) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;
    // No branch holds anything that its drop would lose: signals stay pending, tasks stay in their set.
    let first = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        Some(ended) = server.tasks.join_next() => Some(ended),
        Some(ended) = node.tasks.join_next() => Some(ended),
    };
    let mut outcome = Ok(());
    match first {
        None => tracing::info!("stopping"),
        Some(ended) => outcome = describe(ended),
    }
    let rest = async {
        node.end(&mut outcome).await;
        server.end(&mut outcome).await;
    };
    let late = tokio::select! {
        () = rest => None,
        () = tokio::time::sleep(GRACE) => Some(anyhow::anyhow!("not every part came to rest within {} s", GRACE.as_secs())),
        _ = interrupt.recv() => Some(anyhow::anyhow!("interrupted twice")),
    };
    match (outcome, late) {
        (Ok(()), Some(late)) => Err(late),
        (Err(first), Some(late)) => {
            // What began it is what the caller has to know.
            tracing::error!(error = format!("{late:#}"), "while stopping");
            Err(first)
        }
        (outcome, None) => outcome,
    }
}

/// Whether an error says that a task of a part panicked.
fn is_panic(error: &anyhow::Error) -> bool {
    let mut causes = error.chain();
    causes.any(|cause| {
        let ended = cause.downcast_ref::<tokio::task::JoinError>();
        ended.is_some_and(tokio::task::JoinError::is_panic)
    })
}

type Ended = Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>;

/// A part that ended though nothing told it to.
fn describe(ended: Ended) -> anyhow::Result<()> {
    match ended {
        Ok((name, Ok(()))) => anyhow::bail!("the {name} ended by itself"),
        Ok((name, Err(error))) => Err(error.context(format!("the {name} failed"))),
        Err(error) => Err(anyhow::Error::new(error).context("a part panicked")),
    }
}

fn describe_stopped(ended: Ended) -> anyhow::Result<()> {
    match ended {
        Ok((_, Ok(()))) => Ok(()),
        other => describe(other),
    }
}

/// Runs a role until a signal ends it.
///
/// # Errors
///
/// If a part could not start, or failed.
pub async fn run(config: &Config, role: Role) -> anyhow::Result<()> {
    let (mut server, mut node) = (Parts::new(), Parts::new());
    match role {
        Role::Up => {
            let started = server::start(config, &mut server).await?;
            let identity = started.node_identity(config)?;
            node::start(config, identity, &mut node).await?;
        }
        Role::Server => {
            server::start(config, &mut server).await?;
        }
        Role::Node(join) => {
            let identity = node::join(config, join).await?;
            node::start(config, identity, &mut node).await?;
        }
    }
    run_to_end(server, node).await
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_part_that_panics_starts_again_and_stops_with_the_rest() {
        let mut parts = Parts::new();
        let lives = Arc::new(AtomicU32::new(0));
        let (alive, mut told) = tokio::sync::mpsc::channel(1);
        let count = lives.clone();
        parts.restart("fragile part", move |stop| {
            let (alive, life) = (alive.clone(), count.fetch_add(1, Ordering::SeqCst));
            async move {
                match life {
                    0 => panic!("its first life"),
                    1 => {
                        // As the scheduler does when one of its tasks panics.
                        let task = tokio::spawn(async { panic!("a task of its second life") });
                        stop.cancel();
                        let ended = task.await.expect_err("it panics");
                        return Err(anyhow::Error::new(ended).context("a task ended"));
                    }
                    _ => alive.send(()).await.expect("the test waits"),
                }
                stop.cancelled().await;
                Ok(())
            }
        });
        told.recv().await.expect("the third life");
        let mut outcome = Ok(());
        parts.end(&mut outcome).await;
        outcome.expect("a part that was stopped is no failure");
        assert_eq!(lives.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn a_part_that_fails_or_must_not_panic_ends_the_program() {
        let mut parts = Parts::new();
        parts.restart("part", |_| async { anyhow::bail!("no such port") });
        let ended = parts.tasks.join_next().await.expect("it has ended");
        let error = format!("{:#}", describe(ended).expect_err("it failed"));
        assert_eq!(error, "the part failed: no such port");
        parts.spawn("state", async {
            if true {
                panic!("who knows what it holds");
            }
            anyhow::Ok(())
        });
        let ended = parts.tasks.join_next().await.expect("it has ended");
        let error = format!("{:#}", describe(ended).expect_err("it panicked"));
        assert!(error.starts_with("a part panicked: "), "{error}");
        assert!(error.contains("who knows what it holds"), "{error}");
    }
}
