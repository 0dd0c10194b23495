//! The controllers that bring the cluster to what its objects ask for.
//!
//! All of them are clients of the API and share one cache per kind ([`cache`]). Each is a pure function from what it sees to what is
//! to be done, and a thin shell that does it: a queue of keys ([`queue`]), filled by changes of the cache. What a controller wrote and
//! its cache does not show yet is remembered, so that nothing is done twice. No loop ends before the process does: one that
//! panics is started again ([`mod@supervise`]).

pub mod api;
pub mod cache;
mod certificates;
mod clock;
mod config;
mod context;
mod credentials;
mod defaults;
mod deployment;
mod discovery;
mod endpoints;
pub mod events;
mod expect;
mod gc;
pub mod model;
mod namespaces;
mod node;
mod pod_gc;
pub mod queue;
mod replicaset;
pub mod supervise;
mod tokens;

use std::sync::Arc;

use futures::FutureExt as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::{Config, EvictionLimits};
pub use credentials::Credentials;

use cache::Caches;
use context::Context;
use events::Recorder;
use supervise::{Health, Loop, supervise};

/// Why the controllers ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// One of the tasks broke down.
    #[error("a controller's task broke down")]
    Task {
        /// How.
        source: tokio::task::JoinError,
    },
}

/// Runs every controller until stopped. `health` tells how their loops do.
///
/// What all of them see is read as the manager; each writes with the rights of its own service account.
///
/// # Errors
///
/// Only if what starts the loops anew panics itself.
pub async fn run(
    credentials: Credentials,
    config: Config,
    health: Health,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let mut tasks = JoinSet::new();
    let client = credentials.manager().clone();
    let (recorder, writing) =
        Recorder::start("kube-controller-manager", client.clone(), stop.clone());
    let ctx = Context {
        client: client.clone(),
        caches: Caches::default(),
        recorder,
        config: Arc::new(config),
        health: health.clone(),
        clock: Arc::default(),
        stop: stop.clone(),
    };
    // By the name in events and, where that is another, the name of the service account.
    let acting = |component, account| Context {
        client: credentials.controller(account),
        recorder: ctx.recorder.named(component),
        ..ctx.clone()
    };
    let named = |component| acting(component, component);
    // Handlers are registered before the first list, so no change is missed.
    let mut controllers: Vec<(&str, Loop)> = vec![
        (
            "replicaset-controller",
            replicaset::start(named("replicaset-controller")),
        ),
        (
            "deployment-controller",
            deployment::start(named("deployment-controller")),
        ),
        (
            "endpointslice-controller",
            endpoints::start(
                acting("endpoint-slice-controller", "endpointslice-controller"),
                credentials.controller("endpoint-controller"),
            ),
        ),
        (
            "garbage-collector-controller",
            gc::start(acting("garbage-collector", "generic-garbage-collector")),
        ),
        (
            "namespace-controller",
            namespaces::start(named("namespace-controller")),
        ),
        (
            "node-lifecycle-controller",
            node::health::start(named("node-controller")),
        ),
        (
            "taint-eviction-controller",
            node::eviction::start(acting("taint-eviction-controller", "node-controller")),
        ),
        (
            "pod-garbage-collector-controller",
            pod_gc::start(named("pod-garbage-collector")),
        ),
        (
            "serviceaccount-controller",
            defaults::start(
                acting("serviceaccount-controller", "service-account-controller"),
                credentials.controller("root-ca-cert-publisher"),
            ),
        ),
    ];
    if !ctx.config.cluster_cidrs.is_empty() {
        controllers.push((
            "node-ipam-controller",
            node::ipam::start(acting("cidrAllocator", "node-controller")),
        ));
    }
    let (clock, ending) = (ctx.clock.clone(), stop.clone());
    let winding: Loop = Box::new(move || {
        let (clock, stop) = (clock.clone(), ending.clone());
        async move { clock.run(&stop).await }.boxed()
    });
    let mut alone: Vec<(&str, Loop)> = vec![
        ("clock", winding),
        ("event-recorder", writing),
        (
            "token-cleaner-controller",
            tokens::start(named("token-cleaner")),
        ),
    ];
    if let Some(signing) = certificates::start(named("certificate-controller")) {
        alone.push(("certificatesigningrequest-controller", signing));
    }
    ctx.caches.follow(&client, &mut tasks, &health, &stop);
    for (name, start) in alone {
        let (health, stop) = (health.clone(), stop.clone());
        tasks.spawn(async move { supervise(name, &health, &stop, start).await });
    }
    for (name, start) in controllers {
        let (caches, health, stop) = (ctx.caches.clone(), health.clone(), stop.clone());
        tasks.spawn(async move {
            // A controller that started on half of the objects would delete what the other half explains.
            tokio::select! {
                () = stop.cancelled() => return,
                () = caches.ready() => {}
            }
            supervise(name, &health, &stop, start).await;
        });
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(source) = ended {
            stop.cancel();
            return Err(RunError::Task { source });
        }
    }
    Ok(())
}
