//! Stopping containers: hooks, grace, signals.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use knarr_engine::types::{ContainerState, ContainerStatus, SandboxId};
use tokio::time::Instant;

use crate::ctx::Ctx;
use crate::events::Severity;
use crate::hooks::{PreStop, PreStops};
use crate::memory::Observed;
use crate::pod::{self, Kind};
use crate::runtime::{RuntimeError, chain};

/// What a container gets after its preStop hook, however long that took.
const MIN_GRACE_AFTER_HOOK: Duration = Duration::from_secs(2);

/// Stops one container: preStop hook, then its stop signal, then SIGKILL when `grace` is over.
pub(crate) async fn container(
    ctx: &Arc<Ctx>,
    pod: &Arc<Pod>,
    pre_stops: &PreStops,
    status: &ContainerStatus,
    pod_ip: Option<IpAddr>,
    message: String,
    grace: Duration,
) -> Result<(), RuntimeError> {
    let name = &status.config.name;
    ctx.events
        .pod(pod, Some(name), Severity::Normal, "Killing", message);
    let mut left = grace;
    let spec = pod::find_container(pod::spec(pod), name).map(|(c, _)| c);
    let hook = spec.and_then(|c| {
        let hook = c.lifecycle.as_ref()?.pre_stop.clone()?;
        Some((c, hook))
    });
    if let Some((container, hook)) = hook {
        let start = Instant::now();
        let hook = PreStop {
            ctx: ctx.clone(),
            pod: pod.clone(),
            container,
            id: status.id.clone(),
            pod_ip,
            hook,
            grace,
        };
        pre_stops.run(hook).await;
        left = grace
            .saturating_sub(start.elapsed())
            .max(MIN_GRACE_AFTER_HOOK);
    }
    match ctx.runtime.stop_container(&status.id, left).await {
        Err(RuntimeError::NotFound { .. }) => Ok(()),
        other => other,
    }
}

/// Stops all containers of the pod, then its sandboxes.
///
/// Sidecars outlive the others and stop in the reverse of their order, within the same grace period. What cannot be stopped
/// keeps nothing else from being stopped; the first failure is the answer.
pub(crate) async fn pod(
    ctx: &Arc<Ctx>,
    pod: &Arc<Pod>,
    pre_stops: &PreStops,
    observed: &Observed,
    grace: Duration,
) -> Result<(), RuntimeError> {
    let mut outcome = Ok(());
    let deadline = Instant::now() + grace;
    let own = observed.sandboxes.first().map_or(&[][..], |s| &s.ips);
    let pod_ip = pod::address(pod, &ctx.config, own);
    let spec = pod::spec(pod);
    let sidecars: Vec<&str> = pod::init_containers(spec)
        .filter(|(_, kind)| *kind == Kind::Sidecar)
        .map(|(c, _)| c.name.as_str())
        .collect();
    let running = |status: &&ContainerStatus| status.state == ContainerState::Running;
    let stop = |status: ContainerStatus| async move {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_secs(1));
        let message = format!("Stopping container {}", status.config.name);
        let left = left.min(grace);
        container(ctx, pod, pre_stops, &status, pod_ip, message, left).await
    };
    let others = observed.containers.iter().filter(running);
    let others = others.filter(|c| !sidecars.contains(&c.config.name.as_str()));
    for result in join_all(others.cloned().map(stop)).await {
        outcome = outcome.and(result);
    }
    for name in sidecars.iter().rev() {
        for status in observed.history(name).filter(running) {
            outcome = outcome.and(stop(status.clone()).await);
        }
    }
    for sandbox in &observed.sandboxes {
        outcome = outcome.and(stop_sandbox(ctx, &sandbox.id).await);
    }
    outcome
}

/// Stops a sandbox that is of no more use, and removes it if nothing of it is to be kept.
pub(crate) async fn release(ctx: &Ctx, id: &SandboxId, remove: bool) -> Result<(), RuntimeError> {
    stop_sandbox(ctx, id).await?;
    if !remove {
        return Ok(());
    }
    match ctx.runtime.remove_sandbox(id).await {
        Err(RuntimeError::NotFound { .. }) => Ok(()),
        other => other,
    }
}

async fn stop_sandbox(ctx: &Ctx, id: &SandboxId) -> Result<(), RuntimeError> {
    match ctx.runtime.stop_sandbox(id).await {
        Err(RuntimeError::NotFound { .. }) => Ok(()),
        other => other,
    }
}

/// Removes what is left of the pod in the runtime; logs and says whether all of it went.
pub(crate) async fn remove(ctx: &Ctx, observed: &Observed) -> bool {
    let mut clean = true;
    let mut note = |what: &str, result: Result<(), RuntimeError>| match result {
        Ok(()) | Err(RuntimeError::NotFound { .. }) => {}
        Err(error) => {
            clean = false;
            tracing::warn!(what, error = chain(&error), "remove");
        }
    };
    for container in &observed.containers {
        note(
            "container",
            ctx.runtime.remove_container(&container.id).await,
        );
    }
    for sandbox in &observed.sandboxes {
        note("sandbox", ctx.runtime.remove_sandbox(&sandbox.id).await);
    }
    clean
}
