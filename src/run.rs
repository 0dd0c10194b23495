//! The roles of the program: control plane, node, or both; how they start and how they end.

use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::node::{self, Join};
use crate::server;

/// How long the parts have to come to rest after a signal. Stopping every pod (`--kill-pods-on-exit`) has to fit in.
const GRACE: Duration = Duration::from_secs(45);

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

    /// Adds a part.
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
    tokio::select! {
        () = rest => {}
        () = tokio::time::sleep(GRACE) => anyhow::bail!("not every part came to rest within {} s", GRACE.as_secs()),
        _ = interrupt.recv() => anyhow::bail!("interrupted twice"),
    }
    outcome
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
