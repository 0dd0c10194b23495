//! The controllers that bring the cluster to what its objects ask for.
//!
//! All of them are clients of the API and share one cache per kind ([`cache`]). Each is a pure function from what it sees to what is
//! to be done, and a thin shell that does it: a queue of keys ([`queue`]), filled by changes of the cache. What a controller wrote and
//! its cache does not show yet is remembered, so that nothing is done twice.

pub mod api;
pub mod cache;
mod certificates;
mod config;
mod context;
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
mod tokens;

use std::sync::Arc;

use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::Config;

use cache::Caches;
use context::Context;
use events::Recorder;

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

/// Runs every controller until stopped.
///
/// # Errors
///
/// Only if a task panics; a controller that merely fails is started again.
pub async fn run(client: Client, config: Config, stop: CancellationToken) -> Result<(), RunError> {
    let mut tasks = JoinSet::new();
    let (recorder, writing) =
        Recorder::start("kube-controller-manager", client.clone(), stop.clone());
    tasks.spawn(writing);
    let ctx = Context {
        client: client.clone(),
        caches: Caches::default(),
        recorder,
        config: Arc::new(config),
        stop: stop.clone(),
    };
    // Handlers are registered before the first list, so no change is missed.
    let named = |component| Context {
        recorder: ctx.recorder.named(component),
        ..ctx.clone()
    };
    let controllers: Vec<std::pin::Pin<Box<dyn Future<Output = ()> + Send>>> = vec![
        Box::pin(replicaset::start(named("replicaset-controller"))),
        Box::pin(deployment::start(named("deployment-controller"))),
        Box::pin(endpoints::start(named("endpoint-slice-controller"))),
        Box::pin(gc::start(named("garbage-collector"))),
        Box::pin(namespaces::start(named("namespace-controller"))),
        Box::pin(node::ipam::start(named("cidrAllocator"))),
        Box::pin(node::health::start(named("node-controller"))),
        Box::pin(node::eviction::start(named("taint-eviction-controller"))),
        Box::pin(pod_gc::start(named("pod-garbage-collector"))),
        Box::pin(defaults::start(named("serviceaccount-controller"))),
    ];
    tasks.spawn(certificates::run(named("certificate-controller")));
    tasks.spawn(tokens::run(named("token-cleaner")));
    ctx.caches.follow(&client, &mut tasks, &stop);
    for controller in controllers {
        let caches = ctx.caches.clone();
        let stop = stop.clone();
        tasks.spawn(async move {
            // A controller that started on half of the objects would delete what the other half explains.
            tokio::select! {
                () = stop.cancelled() => return,
                () = caches.ready() => {}
            }
            controller.await;
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
