//! The loop: what changed in the API, put into the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

use crate::feed::Feed;
use crate::frontend::{self, Node, Plan};
use crate::health::{Listeners, health};
use crate::kernel::{Kernel, KernelError};
use crate::objects::ServiceKey;
use crate::route;
use crate::ruleset::Changes;
use crate::skeleton::Ranges;

/// How long after a failure it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often it is checked that nobody removed the table: a safety net, for `nft flush ruleset`.
const CHECK: Duration = Duration::from_secs(60);

/// What the proxy of one node needs to know.
#[derive(Clone, Debug, Default)]
pub struct ProxyConfig {
    /// The node's name, by which its own endpoints are known.
    pub node_name: String,
    /// The cluster's pod addresses. What comes from elsewhere is "external" traffic.
    pub cluster_cidrs: Vec<IpNet>,
    /// The cluster's service addresses. Ports in there which lead nowhere are refused.
    pub service_cidrs: Vec<IpNet>,
    /// Service addresses that the node answers itself (the cluster DNS).
    pub own_addresses: Vec<IpAddr>,
}

/// Why the proxy ended.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The table could not be made.
    #[error("set up the service table")]
    Setup(#[source] KernelError),
    /// The table could not be removed.
    #[error("remove the service table")]
    Cleanup(#[source] KernelError),
    /// The work panicked.
    #[error("the proxy's work ended early")]
    Ended(#[source] tokio::task::JoinError),
}

/// Keeps the kernel's table true to `feed` until stopped. The table stays: containers go on running.
///
/// # Errors
///
/// If the table cannot be made at the start. Later failures are logged and tried again.
pub async fn run(
    feed: Feed,
    config: ProxyConfig,
    stop: CancellationToken,
) -> Result<(), ProxyError> {
    let mut changes = feed.subscribe();
    tokio::select! {
        // Nothing is begun yet.
        () = stop.cancelled() => return Ok(()),
        () = feed.synced() => {}
    }
    ensure_route(&config).await;
    let ranges = config.clone();
    let mut proxy = Proxy::new(feed, config);
    proxy = blocking(proxy, Proxy::open_all)
        .await?
        .map_err(ProxyError::Setup)?;
    let mut listeners = Listeners::default();
    let services = proxy.feed.services();
    let all = services.iter().map(|service| service.key.clone());
    proxy.tell_health(all.collect(), &mut listeners).await;
    loop {
        let dirty = tokio::select! {
            // Waiting is all that is dropped.
            () = stop.cancelled() => return Ok(()),
            dirty = changes.next() => dirty,
            () = tokio::time::sleep(CHECK) => BTreeSet::new(),
        };
        if dirty.is_empty() {
            ensure_route(&ranges).await;
        }
        let asked = dirty.clone();
        let (back, outcome) = blocking(proxy, |mut proxy| {
            let outcome = if dirty.is_empty() {
                proxy.check()
            } else {
                proxy.update(dirty)
            };
            (proxy, outcome)
        })
        .await?;
        proxy = back;
        let mut outcome = outcome;
        while let Err(error) = outcome {
            warn(&error);
            tokio::select! {
                // The table is behind, and will be completed at the next start.
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(RETRY) => {}
            }
            (proxy, outcome) = blocking(proxy, |mut proxy| {
                let outcome = proxy.reopen();
                (proxy, outcome)
            })
            .await?;
        }
        // Not before the kernel sends connections where they are promised to be served.
        proxy.tell_health(asked, &mut listeners).await;
    }
}

/// Removes the table, when the containers are to go too.
///
/// # Errors
///
/// If `nft` refuses.
pub async fn cleanup() -> Result<(), ProxyError> {
    blocking((), |()| Kernel::remove())
        .await?
        .map_err(ProxyError::Cleanup)
}

/// Without such a route only the node itself is cut off, so that it is no reason to end.
async fn ensure_route(config: &ProxyConfig) {
    if let Err(error) = route::ensure(&config.service_cidrs).await {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(error, "the node itself may not reach services");
    }
}

fn warn(error: &KernelError) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(error, "the service table is read back and completed");
}

/// The kernel may take a while: off the threads that others need.
async fn blocking<A: Send + 'static, T: Send + 'static>(
    argument: A,
    work: impl FnOnce(A) -> T + Send + 'static,
) -> Result<T, ProxyError> {
    tokio::task::spawn_blocking(move || work(argument))
        .await
        .map_err(ProxyError::Ended)
}

struct Proxy {
    feed: Feed,
    node: Node,
    ranges: Ranges,
    /// `None` until it was opened.
    kernel: Option<Kernel>,
}

impl Proxy {
    fn new(feed: Feed, config: ProxyConfig) -> Self {
        Self {
            feed,
            node: Node {
                name: config.node_name,
                own_addresses: config.own_addresses.into_iter().collect(),
            },
            ranges: Ranges {
                pods: config.cluster_cidrs,
                services: config.service_cidrs,
            },
            kernel: None,
        }
    }

    fn open_all(mut self) -> Result<Self, KernelError> {
        self.reopen()?;
        Ok(self)
    }

    /// Reads the table back and brings all of it to what the feed says.
    fn reopen(&mut self) -> Result<(), KernelError> {
        let mut kernel = Kernel::open(&self.ranges)?;
        let mut changes = Changes::default();
        // Endpoints may have gone since.
        changes.stale_memories = true;
        for service in self.feed.services() {
            self.plan_and_update(&mut kernel, &service.key, &mut changes);
        }
        kernel.ruleset.remove_unclaimed(&mut changes);
        kernel.apply(&changes)?;
        self.kernel = Some(kernel);
        Ok(())
    }

    fn update(&mut self, mut dirty: BTreeSet<ServiceKey>) -> Result<(), KernelError> {
        let Some(mut kernel) = self.kernel.take() else {
            return self.reopen();
        };
        let mut changes = Changes::default();
        while let Some(key) = dirty.pop_first() {
            dirty.extend(self.plan_and_update(&mut kernel, &key, &mut changes));
        }
        kernel.apply(&changes)?;
        self.kernel = Some(kernel);
        Ok(())
    }

    fn check(&mut self) -> Result<(), KernelError> {
        if Kernel::is_there(&self.ranges)?
            && let Some(kernel) = &mut self.kernel
        {
            // A connection that was on its way while its endpoint went may have been remembered after the sweep.
            let mut changes = Changes::default();
            changes.stale_memories = true;
            return kernel.apply(&changes);
        }
        tracing::warn!("somebody removed the service table");
        self.reopen()
    }

    async fn tell_health(&self, keys: BTreeSet<ServiceKey>, listeners: &mut Listeners) {
        for key in keys {
            let health = self.feed.service(&key).and_then(|service| {
                let slices = self.feed.slices(&key);
                health(&self.node.name, &service, slices.iter().map(AsRef::as_ref))
            });
            listeners.set(&key, health).await;
        }
    }

    fn plan_and_update(
        &self,
        kernel: &mut Kernel,
        key: &ServiceKey,
        changes: &mut Changes,
    ) -> Vec<ServiceKey> {
        let plan = match self.feed.service(key) {
            Some(service) => {
                let slices = self.feed.slices(key);
                frontend::plan(&self.node, &service, slices.iter().map(AsRef::as_ref))
            }
            None => Plan::default(),
        };
        kernel.ruleset.update(key, plan, changes)
    }
}
