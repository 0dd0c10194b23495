//! Lifecycle hooks: `postStart` and `preStop`.

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use knarr_engine::types::ContainerId;

use crate::ctx::Ctx;
use crate::http_check;
use crate::runtime::chain;

/// Runs one hook; an error is the message of its `Failed…Hook` event.
pub(crate) async fn run(
    ctx: &Ctx,
    container: &Container,
    id: &ContainerId,
    pod_ip: Option<IpAddr>,
    hook: &LifecycleHandler,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let text = command.join(" ");
        let output = ctx
            .runtime
            .exec_sync(id, command, None)
            .await
            .map_err(|e| format!("Exec lifecycle hook ({text}) failed - error: {}", chain(&e)))?;
        if output.exit_code != 0 {
            let mut said = output.stdout;
            said.extend(output.stderr);
            return Err(format!(
                "Exec lifecycle hook ({text}) for Container \"{}\" failed - error: command '{text}' exited with {}: {}",
                container.name,
                output.exit_code,
                String::from_utf8_lossy(&said),
            ));
        }
    } else if let Some(get) = &hook.http_get {
        let target = http_check::target(get, container, pod_ip)?;
        // Only a refused connection counts; whatever the server answers is fine.
        http_check::get(&target, Duration::from_secs(30))
            .await
            .map_err(|e| {
                format!(
                    "HTTP lifecycle hook ({}) for Container \"{}\" failed - error: {e}",
                    target.path, container.name
                )
            })?;
    } else if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(
            u64::try_from(sleep.seconds).unwrap_or(0),
        ))
        .await;
    }
    Ok(())
}
