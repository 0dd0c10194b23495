//! The loop: what changed in the API, put into the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use knarr_network::table::TableWatch;
use tokio_util::sync::CancellationToken;

use crate::feed::Feed;
use crate::frontend::{self, Node, Plan};
use crate::health::{Listeners, health};
use crate::kernel::{Kernel, KernelError, Opened};
use crate::objects::ServiceKey;
use crate::route;
use crate::ruleset::{Changes, Ruleset};
use crate::skeleton::{Ranges, TABLE};

/// How long after the second failure in a row, and each that follows, it is tried again; after the first at once.
const RETRY: Duration = Duration::from_secs(1);

/// How often the table is looked at though nobody said that it changed: a safety net. Services that the kernel refused are tried
/// again then, too.
const CHECK: Duration = Duration::from_secs(60);

/// The shortest time between two repairs, for somebody who changes the table without end.
const REPAIR_PAUSE: Duration = Duration::from_millis(100);

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

/// Why the table could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The table could not be removed.
    #[error("remove the service table")]
    Cleanup(#[source] KernelError),
    /// The work panicked.
    #[error("the proxy's work ended early")]
    Ended(#[source] tokio::task::JoinError),
}

/// What is to be done next.
enum Work {
    /// Read all of the table, and bring it to what the feed says.
    Reopen,
    /// Bring these services to what the feed says.
    Update(BTreeSet<ServiceKey>),
    /// Look whether somebody else changed anything.
    Check,
}

/// Keeps the kernel's table true to `feed` until stopped. The table stays: containers go on running.
///
/// Whatever fails is logged and tried again: without the proxy the rest of the node goes on, and a table that cannot be
/// written now (`nft` is not installed yet, no memory) may be writable later.
pub async fn run(feed: Feed, config: ProxyConfig, stop: CancellationToken) {
    let mut changes = feed.subscribe();
    tokio::select! {
        // Nothing is begun yet.
        () = stop.cancelled() => return,
        () = feed.synced() => {}
    }
    let mut proxy = Proxy::<Kernel>::new(feed.clone(), config.clone());
    let mut listeners = Listeners::default();
    // Not before the kernel sends connections where they are promised to be served.
    let mut untold: BTreeSet<ServiceKey> = feed
        .services()
        .iter()
        .map(|service| service.key.clone())
        .collect();
    let mut watch: Option<(u32, TableWatch)> = None;
    let mut work = Work::Reopen;
    let mut failures = 0;
    loop {
        if !matches!(work, Work::Update(_)) {
            ensure_route(&config).await;
        }
        if let Work::Update(keys) = &work {
            untold.extend(keys.iter().cloned());
        }
        let done = tokio::task::spawn_blocking(move || {
            let outcome = proxy.work(work);
            (proxy, outcome)
        });
        let outcome = match done.await {
            Ok((back, outcome)) => {
                proxy = back;
                outcome.inspect_err(warn)
            }
            Err(error) => {
                proxy = Proxy::new(feed.clone(), config.clone());
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "the service proxy begins anew");
                // Not at once: it would panic as fast as it can.
                failures += 1;
                Err(KernelError::Panicked)
            }
        };
        if outcome.is_err() {
            work = Work::Reopen;
            failures += 1;
            if failures > 1 && pause(&stop, RETRY).await {
                return;
            }
            continue;
        }
        failures = 0;
        for key in std::mem::take(&mut untold) {
            tell_health(&feed, &config.node_name, &key, &mut listeners).await;
        }
        if proxy.port() != watch.as_ref().map(|(port, _)| *port) {
            watch = follow(proxy.port());
            // For what happened before.
            work = Work::Check;
            continue;
        }
        work = tokio::select! {
            // Waiting is all that is dropped.
            () = stop.cancelled() => return,
            dirty = changes.next() => Work::Update(dirty),
            () = touched(&mut watch) => Work::Reopen,
            () = tokio::time::sleep(CHECK) => Work::Check,
        };
        if matches!(work, Work::Reopen) && pause(&stop, REPAIR_PAUSE).await {
            return;
        }
    }
}

/// Waits; whether it is to stop instead.
async fn pause(stop: &CancellationToken, time: Duration) -> bool {
    tokio::time::timeout(time, stop.cancelled()).await.is_ok()
}

fn follow(port: Option<u32>) -> Option<(u32, TableWatch)> {
    let port = port?;
    match TableWatch::open(TABLE, Some(port)) {
        Ok(watch) => Some((port, watch)),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(
                error,
                "changes of the service table by others are noticed late"
            );
            None
        }
    }
}

/// Waits until somebody else changed the table.
async fn touched(watch: &mut Option<(u32, TableWatch)>) {
    if let Some((_, table)) = watch {
        match table.changed().await {
            Ok(()) => return,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "the watch of the service table begins anew");
                *watch = None;
                return;
            }
        }
    }
    std::future::pending().await
}

/// Removes the table, when the containers are to go too.
///
/// # Errors
///
/// If `nft` refuses.
pub async fn cleanup() -> Result<(), ProxyError> {
    tokio::task::spawn_blocking(Kernel::remove)
        .await
        .map_err(ProxyError::Ended)?
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

async fn tell_health(feed: &Feed, node: &str, key: &ServiceKey, listeners: &mut Listeners) {
    let health = feed.service(key).and_then(|service| {
        let slices = feed.slices(key);
        health(node, &service, slices.iter().map(AsRef::as_ref))
    });
    listeners.set(key, health).await;
}

/// The table that the loop works on: the kernel's, or a test's.
trait Table: Sized {
    /// Takes the table over, or makes it.
    fn open(ranges: &Ranges, before: Option<Self>) -> Result<Opened<Self>, KernelError>;
    /// What is in it.
    fn ruleset(&mut self) -> &mut Ruleset;
    /// See [`Kernel::apply`].
    fn apply(&mut self, changes: &Changes) -> Result<(), KernelError>;
    /// Whether somebody else changed any table since it was opened.
    fn is_untouched(&self) -> Result<bool, KernelError>;
}

impl Table for Kernel {
    fn open(ranges: &Ranges, before: Option<Self>) -> Result<Opened<Self>, KernelError> {
        Self::reopen(ranges, before)
    }

    fn ruleset(&mut self) -> &mut Ruleset {
        &mut self.ruleset
    }

    fn apply(&mut self, changes: &Changes) -> Result<(), KernelError> {
        Self::apply(self, changes)
    }

    fn is_untouched(&self) -> Result<bool, KernelError> {
        Self::is_untouched(self)
    }
}

struct Proxy<T> {
    feed: Feed,
    node: Node,
    ranges: Ranges,
    /// `None` until it was opened, and after a failure.
    table: Option<T>,
    /// Services that the kernel refused, each with its words; what they had is removed.
    refused: BTreeMap<ServiceKey, String>,
}

impl Proxy<Kernel> {
    fn port(&self) -> Option<u32> {
        self.table.as_ref().map(Kernel::port)
    }
}

impl<T: Table> Proxy<T> {
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
            table: None,
            refused: BTreeMap::new(),
        }
    }

    fn work(&mut self, work: Work) -> Result<(), KernelError> {
        match work {
            Work::Reopen => self.reopen(),
            Work::Update(dirty) => self.update(dirty),
            Work::Check => self.check(),
        }
    }

    /// Reads the table back and brings all of it to what the feed says.
    fn reopen(&mut self) -> Result<(), KernelError> {
        let known = self.table.is_some();
        let Opened {
            mut table,
            repaired,
        } = T::open(&self.ranges, self.table.take())?;
        let mut changes = Changes::default();
        for service in self.feed.services() {
            self.plan_and_update(&mut table, &service.key, &mut changes);
        }
        table.ruleset().remove_unclaimed(&mut changes);
        if known && (repaired || !changes.is_empty()) {
            tracing::warn!("somebody changed the service table; it is as it should be again");
        }
        // Endpoints may have gone since.
        changes.stale_memories = true;
        match table.apply(&changes) {
            Ok(()) => self.refused.clear(),
            Err(error @ KernelError::Refused { .. }) => {
                warn(&error);
                table = self.one_by_one()?;
            }
            Err(error) => return Err(error),
        }
        self.table = Some(table);
        Ok(())
    }

    /// Programs each service in a transaction of its own, after the kernel refused to have all in one: what is wrong with one of them
    /// must not cost the others.
    fn one_by_one(&mut self) -> Result<T, KernelError> {
        let mut refused = BTreeMap::new();
        'anew: loop {
            let mut table = T::open(&self.ranges, None)?.table;
            for service in self.feed.services() {
                if refused.contains_key(&service.key) {
                    continue;
                }
                let mut changes = Changes::default();
                self.plan_and_update(&mut table, &service.key, &mut changes);
                match table.apply(&changes) {
                    Ok(()) => {}
                    Err(error @ KernelError::Refused { .. }) => {
                        self.report_refusal(&service.key, &error);
                        refused.insert(service.key.clone(), error.to_string());
                        // The table in memory has what the kernel has not.
                        continue 'anew;
                    }
                    Err(error) => return Err(error),
                }
            }
            let mut changes = Changes::default();
            table.ruleset().remove_unclaimed(&mut changes);
            changes.stale_memories = true;
            table.apply(&changes)?;
            self.refused = refused;
            return Ok(table);
        }
    }

    /// Once for each reason, not with every try.
    fn report_refusal(&self, key: &ServiceKey, error: &KernelError) {
        if self.refused.get(key) != Some(&error.to_string()) {
            let error = error as &dyn std::error::Error;
            tracing::error!(service = %key, error, "the kernel refuses this service; the others are served");
        }
    }

    fn update(&mut self, mut dirty: BTreeSet<ServiceKey>) -> Result<(), KernelError> {
        let Some(mut table) = self.table.take() else {
            return self.reopen();
        };
        for key in &dirty {
            self.refused.remove(key);
        }
        let mut changes = Changes::default();
        while let Some(key) = dirty.pop_first() {
            let freed = self.plan_and_update(&mut table, &key, &mut changes);
            dirty.extend(
                freed
                    .into_iter()
                    .filter(|key| !self.refused.contains_key(key)),
            );
        }
        table.apply(&changes)?;
        self.table = Some(table);
        Ok(())
    }

    fn check(&mut self) -> Result<(), KernelError> {
        match &mut self.table {
            Some(table) if self.refused.is_empty() && table.is_untouched()? => {
                // A connection that was on its way while its endpoint went may have been remembered after the sweep.
                let mut changes = Changes::default();
                changes.stale_memories = true;
                table.apply(&changes)
            }
            _ => self.reopen(),
        }
    }

    fn plan_and_update(
        &self,
        table: &mut T,
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
        table.ruleset().update(key, plan, changes)
    }
}

#[cfg(test)]
mod tests;
