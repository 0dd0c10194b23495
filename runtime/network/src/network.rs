//! The network of one node: what the engine holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ipnet::IpNet;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio_util::task::AbortOnDropHandle;

use crate::attach::{self, AttachError, DetachError};
use crate::ipam::{Pool, PoolError};
use crate::link::{self, LinkError};
use crate::netns;
use crate::records::{Record, RecordError, Records};
use crate::rules::{self, Installed, RulesError};
use crate::sysctl::{self, SysctlError};
use crate::table::TableWatch;

/// How long after a failure, or where it is not known what the kernel has, the table is looked at again.
const REPAIR_AGAIN: Duration = Duration::from_secs(1);

/// What a node's network is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkConfig {
    /// The node's share of the cluster's pod addresses (`Node.spec.podCIDR`).
    pub pod_cidr: IpNet,
    /// All pod addresses of the cluster; traffic from pods to anywhere else leaves with the node's address.
    pub cluster_cidr: IpNet,
    /// The bridge's name.
    pub bridge: String,
    /// Where the records are kept; best on a disk, since addresses are not given again soon even after a restart.
    pub state_dir: PathBuf,
    /// The MTU of the pods' interfaces; `None` for that of the interface with the default route, else 1500.
    pub mtu: Option<u32>,
}

impl NetworkConfig {
    /// The usual network: bridge `knarr0`, MTU of the outside.
    pub fn new(pod_cidr: IpNet, cluster_cidr: IpNet, state_dir: impl Into<PathBuf>) -> Self {
        Self {
            pod_cidr,
            cluster_cidr,
            bridge: "knarr0".to_owned(),
            state_dir: state_dir.into(),
            mtu: None,
        }
    }
}

/// The transport protocol of a host port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// One port of the node that leads to a pod (`hostPort`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port in the pod.
    pub container_port: u16,
    /// The port on the node.
    pub host_port: u16,
    /// The node's address that the port is on; `None` (or the unspecified address) for all of them.
    pub host_ip: Option<IpAddr>,
}

/// What a pod got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNetwork {
    /// Its addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// The path on which its namespace is pinned.
    pub netns: PathBuf,
}

/// Why a node's network could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Only IPv4 pod networks are there yet.
    #[error("pod CIDR {cidr} is not IPv4")]
    Family {
        /// The CIDR.
        cidr: IpNet,
    },
    /// The pod CIDR cannot hold a bridge and a pod.
    #[error("set up the pool of addresses")]
    Pool(#[source] PoolError),
    /// The records could not be read.
    #[error("read the records of pods")]
    Records(#[source] RecordError),
    /// A kernel parameter could not be set.
    #[error("set kernel parameters")]
    Sysctl(#[source] SysctlError),
    /// The bridge could not be set up.
    #[error("set up the bridge {bridge}")]
    Bridge {
        /// Its name.
        bridge: String,
        /// The cause.
        source: LinkError,
    },
    /// The nftables could not be set up.
    #[error("set up nftables")]
    Rules(#[source] RulesError),
    /// The thread that does the work could not run.
    #[error("run the network's thread")]
    Thread(#[source] netns::NetnsError),
}

/// What changes while pods come and go.
pub(crate) struct State {
    pub(crate) rules: Installed,
    pub(crate) pool: Pool,
    pub(crate) sandboxes: BTreeMap<String, Record>,
}

pub(crate) struct Inner {
    pub(crate) config: NetworkConfig,
    pub(crate) gateway: IpAddr,
    pub(crate) bridge: link::Bridge,
    pub(crate) records: Records,
    pub(crate) state: Mutex<State>,
}

/// The network of one node. Clones share it.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
    /// Repairs the table; ends with the last clone.
    _keeper: Arc<AbortOnDropHandle<()>>,
}

impl Network {
    /// Sets up the node's side (bridge, kernel parameters, nftables) and reads what pods there are.
    ///
    /// Nothing that works already is interrupted: the bridge is kept, and the table is replaced in one transaction.
    ///
    /// # Errors
    ///
    /// What could not be set up; the same call may be tried again.
    pub async fn open(config: NetworkConfig) -> Result<Self, OpenError> {
        let inner = netns::on_thread("network-open", move || open(config))
            .await
            .map_err(OpenError::Thread)??;
        let inner = Arc::new(inner);
        let watch = TableWatch::open(rules::TABLE, None).map_err(RulesError::Watch);
        let keeper = keep(Arc::downgrade(&inner), watch.map_err(OpenError::Rules)?);
        Ok(Self {
            inner,
            _keeper: Arc::new(AbortOnDropHandle::new(tokio::spawn(keeper))),
        })
    }

    /// Makes a network namespace with an address of its own, pinned on the path `netns`.
    ///
    /// If the future is dropped, the work goes on to its end; [`detach`](Self::detach) undoes it.
    ///
    /// # Errors
    ///
    /// What failed; whatever was made up to then is undone.
    pub async fn attach(
        &self,
        sandbox: &str,
        netns: &Path,
        ports: &[PortMapping],
    ) -> Result<PodNetwork, AttachError> {
        let inner = Arc::clone(&self.inner);
        let id = sandbox.to_owned();
        let pin = netns.to_owned();
        let ports = ports.to_vec();
        let (record, built) = netns::on_thread("network-attach", move || {
            let record = attach::reserve(&inner, &id, &pin, ports)?;
            let built = attach::build(&inner, &record);
            Ok((record, built))
        })
        .await
        .map_err(AttachError::Thread)??;
        let Err(err) = built else {
            return Ok(record.pod_network());
        };
        if let Err(undo) = self.detach(sandbox).await {
            // The record stays, and `gc` or another `detach` tries again.
            let error = &undo as &dyn std::error::Error;
            tracing::warn!(sandbox, error, "a failed attach left something behind");
        }
        Err(err)
    }

    /// Removes all that `attach` made for a sandbox; nothing to do is success.
    ///
    /// # Errors
    ///
    /// What failed; the record stays, so that it can be tried again.
    pub async fn detach(&self, sandbox: &str) -> Result<(), DetachError> {
        let inner = Arc::clone(&self.inner);
        let sandbox = sandbox.to_owned();
        netns::on_thread("network-detach", move || attach::detach(&inner, &sandbox))
            .await
            .map_err(DetachError::Thread)?
    }

    /// Removes the networks of all sandboxes but `keep`, and interfaces on the bridge that belong to nobody.
    ///
    /// Returns the sandboxes removed. To be called after a start, before the first `attach`.
    ///
    /// # Errors
    ///
    /// The first failure, after the others were tried.
    pub async fn gc(&self, keep: &BTreeSet<String>) -> Result<Vec<String>, DetachError> {
        let inner = Arc::clone(&self.inner);
        let keep = keep.clone();
        netns::on_thread("network-gc", move || attach::gc(&inner, &keep))
            .await
            .map_err(DetachError::Thread)?
    }

    /// What a sandbox got, if it is attached.
    pub fn get(&self, sandbox: &str) -> Option<PodNetwork> {
        let state = self.inner.state.lock();
        state.sandboxes.get(sandbox).map(Record::pod_network)
    }

    /// The bridge's address in the pod CIDR: every pod's gateway.
    pub fn gateway(&self) -> IpAddr {
        self.inner.gateway
    }

    /// Stops keeping the node's side as it is, for [`cleanup`].
    pub fn release(&self) {
        self.inner.state.lock().rules.release();
    }

    /// How this network is configured.
    pub fn config(&self) -> &NetworkConfig {
        &self.inner.config
    }
}

/// Removes the bridge and the table, which stay otherwise. For when the pods have gone, too.
///
/// # Errors
///
/// What could not be removed.
pub async fn cleanup(bridge: &str) -> Result<(), DetachError> {
    let bridge = bridge.to_owned();
    netns::on_thread("network-cleanup", move || attach::remove_node(&bridge))
        .await
        .map_err(DetachError::Thread)?
}

fn report(error: &(dyn std::error::Error + 'static)) -> bool {
    tracing::error!(error, "masquerading and host ports may not work");
    true
}

/// Writes the table again whenever somebody else changed it.
async fn keep(inner: Weak<Inner>, mut watch: TableWatch) {
    loop {
        // Our own changes wake this too: those are as they should be.
        let Some(inner) = inner.upgrade() else { return };
        let repair = move || {
            let rules = &mut inner.state.lock().rules;
            let repaired = rules.repair()?;
            Ok::<_, RulesError>((repaired, rules.is_known()))
        };
        let outcome = netns::on_thread("network-repair", repair).await;
        let failed = match &outcome {
            Ok(Ok((repaired, known))) => {
                if *repaired {
                    let table = rules::TABLE;
                    tracing::warn!(table, "somebody changed the table; it is written again");
                }
                // Where others change the ruleset all the time, it is not written all the time.
                !known
            }
            Ok(Err(error)) => report(error),
            Err(error) => report(error),
        };
        if failed {
            tokio::time::sleep(REPAIR_AGAIN).await;
            continue;
        }
        let followed = watch.changed().await;
        if let Err(error) = &followed {
            let error = error as &dyn std::error::Error;
            tracing::error!(error, "changes of nftables are noticed late");
        }
        if followed.is_err() {
            tokio::time::sleep(REPAIR_AGAIN).await;
        }
    }
}

fn open(config: NetworkConfig) -> Result<Inner, OpenError> {
    let IpNet::V4(_) = config.pod_cidr else {
        return Err(OpenError::Family {
            cidr: config.pod_cidr,
        });
    };
    let (records, found) = Records::open(&config.state_dir).map_err(OpenError::Records)?;
    let mut pool = Pool::new(config.pod_cidr, found.last).map_err(OpenError::Pool)?;
    for record in found.sandboxes.values() {
        for ip in &record.ips {
            pool.hold(*ip);
        }
    }
    let gateway = pool.gateway();
    sysctl::prepare_node().map_err(OpenError::Sysctl)?;
    let bridge = link::prepare_bridge(&config, gateway).map_err(|source| OpenError::Bridge {
        bridge: config.bridge.clone(),
        source,
    })?;
    sysctl::prepare_bridge(&config.bridge).map_err(OpenError::Sysctl)?;
    let rules = Installed::new(&config, found.sandboxes.values()).map_err(OpenError::Rules)?;
    Ok(Inner {
        gateway,
        bridge,
        records,
        state: Mutex::new(State {
            rules,
            pool,
            sandboxes: found.sandboxes,
        }),
        config,
    })
}
