//! Putting the agent's parts together.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use knarr_engine::Engine;
use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::KubeletConfig;
use crate::ctx::Ctx;
use crate::engine::EngineRuntime;
use crate::events::{Events, Severity};
use crate::gc;
use crate::manager::{self, ManagerError, Pods};
use crate::node;
use crate::objects::Objects;
use crate::panics;
use crate::resources;
use crate::runtime::{Runtime, RuntimeError};
use crate::server::{self, ServeError};
use crate::services::Services;
use crate::volumes::TokenCache;

/// Why the agent ended though it was not stopped, or did not begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A directory of the agent cannot be made.
    #[error("make {path:?}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The HTTPS server does not run.
    #[error("start the node's server")]
    Server {
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The runtime failed where the agent cannot go on without it.
    #[error("{what}")]
    Runtime {
        /// What was asked of it.
        what: &'static str,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl From<ServeError> for RunError {
    fn from(source: ServeError) -> Self {
        Self::Server {
            source: Box::new(source),
        }
    }
}

impl From<ManagerError> for RunError {
    fn from(source: ManagerError) -> Self {
        Self::Runtime {
            what: "take over the node's pods",
            source: Box::new(source),
        }
    }
}

/// Runs the agent until it is stopped; its pods go on running, unless the settings say otherwise.
///
/// `client` acts as `system:node:<name>` of the group `system:nodes`.
///
/// # Errors
///
/// If it cannot begin, or the runtime fails where the agent cannot do without. What the API server refuses is tried
/// again and logged.
pub async fn run(
    config: KubeletConfig,
    client: Client,
    engine: Engine,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let runtime = EngineRuntime {
        engine,
        cluster_cidr: config.cluster_cidr,
        network_dir: config.node_dir.join("network"),
    };
    run_on(config, client, Arc::new(runtime), stop).await
}

/// Runs the agent on any runtime, until it is stopped.
pub(crate) async fn run_on(
    config: KubeletConfig,
    client: Client,
    runtime: Arc<dyn Runtime>,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let directories = config.node_dir.join("pods");
    for path in [
        &directories,
        &config.log_root.join("pods"),
        &config.log_root.join("containers"),
    ] {
        let failed = |source| RunError::Directory {
            path: path.clone(),
            source,
        };
        std::fs::create_dir_all(path).map_err(failed)?;
    }
    // Volumes that everyone may write to, and secrets that everyone in the pod may read, are nothing for the node's users.
    let private = std::fs::Permissions::from_mode(0o750);
    std::fs::set_permissions(&directories, private).map_err(|source| RunError::Directory {
        path: directories,
        source,
    })?;
    let (events, write_events) = Events::new(client.clone(), config.node_name.clone());
    let ctx = Arc::new(Ctx {
        machine: node::info::machine(),
        objects: Objects::new(client.clone()),
        services: Services::new(),
        tokens: TokenCache::default(),
        config,
        client,
        runtime,
        events,
    });
    let pods = Pods::default();
    let server = server::bind(ctx.clone(), pods.clone()).await?;
    // Dropping the set at the end stops whatever does not stop by itself.
    let mut tasks = JoinSet::new();
    tasks.spawn(write_events);
    tasks.spawn(server.run(stop.clone()));
    tasks.spawn({
        let ctx = ctx.clone();
        async move {
            let follow = || ctx.services.follow(ctx.client.clone());
            panics::supervised("services", follow).await;
        }
    });
    let work = async {
        let milli_cpus = i64::try_from(ctx.machine.cpus * 1000).unwrap_or(i64::MAX);
        for (path, limits) in resources::qos_groups(milli_cpus) {
            let failed = |source: RuntimeError| RunError::Runtime {
                what: "make the cgroups of the quality of service classes",
                source: Box::new(source),
            };
            ctx.runtime.set_cgroup(path, limits).await.map_err(failed)?;
        }
        let uid = node::register(&ctx).await;
        ctx.events.node(
            &ctx.config.node_name,
            Severity::Normal,
            "Starting",
            "Starting kubelet.".to_owned(),
        );
        tasks.spawn({
            let ctx = ctx.clone();
            async move {
                let lease = || node::lease(ctx.clone(), uid.clone());
                panics::supervised("lease", lease).await;
            }
        });
        let (network_ready, ready) = watch::channel(false);
        tasks.spawn({
            let ctx = ctx.clone();
            async move {
                let report = || node::report(ctx.clone(), ready.clone());
                panics::supervised("node status", report).await;
            }
        });
        let cidr = node::pod_cidr(ctx.client.clone(), &ctx.config.node_name).await;
        ctx.runtime
            .configure_network(cidr)
            .await
            .map_err(|source| RunError::Runtime {
                what: "set up the pods' network",
                source: Box::new(source),
            })?;
        network_ready.send_replace(true);
        tracing::info!(%cidr, "the node's network is ready");
        tasks.spawn({
            let ctx = ctx.clone();
            async move { panics::supervised("image collection", || gc::images(ctx.clone())).await }
        });
        manager::run(ctx.clone(), pods, stop.clone()).await?;
        Ok(())
    };
    // Before the pods' tasks run there is nothing that must be ended in order; afterwards `manager` ends by itself.
    let mut work = std::pin::pin!(work);
    let result = tokio::select! {
        result = &mut work => result,
        () = stop.cancelled() => {
            match tokio::time::timeout(std::time::Duration::from_secs(20), work).await {
                Ok(result) => result,
                // It was still waiting for the API server.
                Err(_) => Ok(()),
            }
        }
    };
    result
}
