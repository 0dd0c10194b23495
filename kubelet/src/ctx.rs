//! What every pod's task shares.

use std::net::IpAddr;
use std::sync::Arc;

use kube::Client;

use crate::config::KubeletConfig;
use crate::env::{Allocatable, Surroundings};
use crate::events::Events;
use crate::node;
use crate::objects::Objects;
use crate::runtime::Runtime;
use crate::services::Services;
use crate::volumes::TokenCache;

/// The agent's shared parts.
pub(crate) struct Ctx {
    pub(crate) config: KubeletConfig,
    pub(crate) client: Client,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) events: Events,
    pub(crate) objects: Objects,
    pub(crate) services: Services,
    pub(crate) tokens: TokenCache,
    pub(crate) machine: Machine,
}

/// The size of the node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Machine {
    pub(crate) cpus: u64,
    pub(crate) memory_bytes: u64,
}

impl Ctx {
    /// What references in a pod's environment and files may look at.
    pub(crate) fn surroundings<'a>(&'a self, pod_ips: &'a [IpAddr]) -> Surroundings<'a> {
        Surroundings {
            node_name: &self.config.node_name,
            node_ips: &self.config.node_ips,
            pod_ips,
            allocatable: Allocatable {
                milli_cpu: i64::try_from(self.machine.cpus * 1000).unwrap_or(i64::MAX),
                memory_bytes: i64::try_from(self.machine.memory_bytes).unwrap_or(i64::MAX),
                disk_bytes: i64::try_from(node::info::disk_bytes(&self.config)).unwrap_or(i64::MAX),
            },
        }
    }
}
