//! What the runtime already has of the node's pods.

use std::collections::HashMap;

use knarr_engine::types::{ContainerId, ContainerStatus, SandboxId, SandboxStatus};

use crate::ctx::Ctx;
use crate::runtime::RuntimeError;
use crate::sandbox::label;

/// What the runtime has of one pod.
#[derive(Default)]
pub(crate) struct Existing {
    pub(crate) sandboxes: Vec<SandboxId>,
    pub(crate) containers: Vec<ContainerId>,
}

impl Existing {
    /// Asks the runtime what it has of this pod now.
    pub(crate) async fn of_pod(ctx: &Ctx, uid: &str) -> Result<Self, RuntimeError> {
        let sandboxes = ctx.runtime.list_sandboxes().await?;
        let containers = ctx.runtime.list_containers().await?;
        let mut all = by_pod(&sandboxes, &containers);
        Ok(all.remove(uid).unwrap_or_default())
    }
}

/// Sorts what the runtime has by the UIDs of the pods.
pub(crate) fn by_pod(
    sandboxes: &[SandboxStatus],
    containers: &[ContainerStatus],
) -> HashMap<String, Existing> {
    let mut map: HashMap<String, Existing> = HashMap::new();
    let mut owners: HashMap<&SandboxId, &str> = HashMap::new();
    for sandbox in sandboxes {
        owners.insert(&sandbox.id, &sandbox.config.uid);
        map.entry(sandbox.config.uid.clone())
            .or_default()
            .sandboxes
            .push(sandbox.id.clone());
    }
    for container in containers {
        let label = container
            .config
            .labels
            .get(label::POD_UID)
            .map(String::as_str);
        if let Some(uid) = label.or(owners.get(&container.sandbox_id).copied()) {
            map.entry(uid.to_owned())
                .or_default()
                .containers
                .push(container.id.clone());
        }
    }
    map
}
