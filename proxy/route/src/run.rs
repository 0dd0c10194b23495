//! The loop: nodes come and go, and their routes with them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;

use crate::kernel::{Kernel, KernelError};
use crate::plan::{NodeInfo, Refused, plan, wanted};

/// How often the routing table is looked at: an interface that goes down takes its routes with it, without a word.
const LOOK: Duration = Duration::from_secs(30);

/// What the routes of one node depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// The node's own name.
    pub node_name: String,
    /// The cluster's pod addresses: no route leads elsewhere. Empty if they are not known.
    pub cluster_cidrs: Vec<IpNet>,
}

/// Why the routes are no longer kept.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// There is no netlink.
    #[error("reach the routing table")]
    Kernel(#[source] KernelError),
    /// The watch of nodes ended, which it never should.
    #[error("the watch of Nodes ended")]
    WatchEnded,
}

/// Keeps a route to the pods of every other node, until stopped. The routes stay.
///
/// # Errors
///
/// If there is no netlink at all. What else fails is logged and tried again.
pub async fn run(
    client: Client,
    config: RouteConfig,
    stop: CancellationToken,
) -> Result<(), RouteError> {
    let mut routes = Routes {
        kernel: Kernel::open().map_err(RouteError::Kernel)?,
        config,
        nodes: BTreeMap::new(),
        complete: false,
        failed: BTreeMap::new(),
        refused: BTreeSet::new(),
    };
    let watch = watcher(Api::<Node>::all(client), watcher::Config::default());
    let mut events = std::pin::pin!(watch.default_backoff());
    let mut look = tokio::time::interval(LOOK);
    let mut listed = BTreeSet::new();
    loop {
        tokio::select! {
            // Waiting is all that is dropped.
            () = stop.cancelled() => return Ok(()),
            _ = look.tick() => {}
            event = events.next() => match event.ok_or(RouteError::WatchEnded)? {
                Ok(event) => {
                    if !routes.note(event, &mut listed) {
                        continue;
                    }
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "the watch of Nodes failed and is tried again");
                    continue;
                }
            },
        }
        if routes.complete {
            routes.reconcile().await;
        }
    }
}

struct Routes {
    kernel: Kernel,
    config: RouteConfig,
    nodes: BTreeMap<String, NodeInfo>,
    /// Whether all nodes were listed once: no route is removed before.
    complete: bool,
    /// Routes that failed, each told once.
    failed: BTreeMap<IpNet, IpAddr>,
    /// Ranges that get no route, each told once.
    refused: BTreeSet<Refused>,
}

impl Routes {
    /// Takes in an event; returns whether anything that matters changed.
    fn note(&mut self, event: Event<Node>, listed: &mut BTreeSet<String>) -> bool {
        match event {
            Event::Init => {
                listed.clear();
                false
            }
            Event::InitApply(node) => {
                listed.insert(node.name_any());
                self.nodes.insert(node.name_any(), NodeInfo::parse(&node));
                false
            }
            Event::InitDone => {
                self.nodes.retain(|name, _| listed.contains(name));
                self.complete = true;
                true
            }
            Event::Apply(node) => {
                let info = NodeInfo::parse(&node);
                self.nodes.insert(node.name_any(), info.clone()) != Some(info)
            }
            Event::Delete(node) => self.nodes.remove(&node.name_any()).is_some(),
        }
    }

    async fn reconcile(&mut self) {
        let actual = match self.kernel.list().await {
            Ok(actual) => actual,
            Err(error) => return warn(&error),
        };
        let config = &self.config;
        let (wanted, refused) = wanted(&config.node_name, &config.cluster_cidrs, &self.nodes);
        for Refused { node, cidr, why } in refused.difference(&self.refused) {
            tracing::warn!(node, cidr, %why, "no route to a pod CIDR");
        }
        self.refused = refused;
        self.failed
            .retain(|to, gateway| wanted.get(to) == Some(gateway));
        for change in plan(&actual, &wanted) {
            match self.kernel.apply(change).await {
                Ok(()) => tracing::debug!(?change, "routes"),
                Err(error) => {
                    if let KernelError::Set { to, gateway, .. } | KernelError::Taken { to, gateway } =
                        error
                        && self.failed.insert(to, gateway) == Some(gateway)
                    {
                        continue;
                    }
                    warn(&error);
                }
            }
        }
    }
}

fn warn(error: &KernelError) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(error, "the routing table is not as it should be");
}
