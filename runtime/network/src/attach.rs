//! One pod's network, made and removed. Runs on threads that may wait (see `netns`).

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::ipam::PoolError;
use crate::link::{self, LinkError, Netlink};
use crate::netns::{self, NetnsError};
use crate::network::{Inner, PortMapping};
use crate::records::{Record, RecordError};
use crate::rules::{self, Installed, RulesError};
use crate::sysctl::{self, SysctlError};

/// Why a pod got no network.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The id cannot be a file name.
    #[error("sandbox id {sandbox:?} is not made of letters, digits, '-', '_' and '.'")]
    BadId {
        /// The id.
        sandbox: String,
    },
    /// The sandbox has a network already.
    #[error("sandbox {sandbox} is attached already")]
    Twice {
        /// The sandbox.
        sandbox: String,
    },
    /// There is no address left.
    #[error("allocate an address")]
    Pool(#[source] PoolError),
    /// The record could not be written.
    #[error("record the allocation")]
    Record(#[source] RecordError),
    /// The namespace could not be made.
    #[error("make the pod's network namespace")]
    Netns(#[source] NetnsError),
    /// The new namespace could not be opened.
    #[error("open {path}")]
    OpenPin {
        /// Its pin.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A kernel parameter of the pod could not be set.
    #[error("set the pod's kernel parameters")]
    Sysctl(#[source] SysctlError),
    /// An interface, address or route could not be made.
    #[error("set up the pod's interfaces")]
    Link(#[source] LinkError),
    /// The host ports could not be opened.
    #[error("open the host ports")]
    Rules(#[source] RulesError),
    /// The thread that does the work could not run.
    #[error("run the thread")]
    Thread(#[source] NetnsError),
}

/// Why a pod's network could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// The host ports could not be closed.
    #[error("close the host ports")]
    Rules(#[source] RulesError),
    /// The interface could not be removed.
    #[error("remove the pod's interface")]
    Link(#[source] LinkError),
    /// The pin could not be removed.
    #[error("remove the pod's network namespace")]
    Netns(#[source] NetnsError),
    /// The record could not be removed.
    #[error("remove the record")]
    Record(#[source] RecordError),
    /// The thread that does the work could not run.
    #[error("run the thread")]
    Thread(#[source] NetnsError),
}

/// The first step of [`crate::Network::attach`]: takes an address and writes the record, before anything is made.
pub(crate) fn reserve(
    inner: &Inner,
    sandbox: &str,
    pin: &Path,
    ports: Vec<PortMapping>,
) -> Result<Record, AttachError> {
    if !is_file_name(sandbox) {
        return Err(AttachError::BadId {
            sandbox: sandbox.to_owned(),
        });
    }
    let mut state = inner.state.lock();
    if state.sandboxes.contains_key(sandbox) {
        return Err(AttachError::Twice {
            sandbox: sandbox.to_owned(),
        });
    }
    let ip = state.pool.take().map_err(AttachError::Pool)?;
    let record = Record {
        ips: vec![ip],
        netns: pin.to_owned(),
        interface: interface_name(sandbox),
        ports,
    };
    if let Err(err) = inner.records.write(sandbox, &record) {
        state.pool.release(ip);
        return Err(AttachError::Record(err));
    }
    state.sandboxes.insert(sandbox.to_owned(), record.clone());
    Ok(record)
}

/// The second step of [`crate::Network::attach`]. It leaves the calling thread in the pod's namespace, whatever comes of it,
/// so what fails here must be undone on another thread.
pub(crate) fn build(inner: &Inner, record: &Record) -> Result<(), AttachError> {
    let ip = *record.ips.first().expect("reserve gives an address");
    if !record.ports.is_empty() {
        // The table is a function of all records, so concurrent changes must not overtake each other.
        let mut state = inner.state.lock();
        state.rules =
            Installed::new(&inner.config, state.sandboxes.values()).map_err(AttachError::Rules)?;
    }
    let netlink = Netlink::new().map_err(AttachError::Link)?;
    let host = netlink.socket().map_err(AttachError::Link)?;
    netns::unshare_pinned(&record.netns).map_err(AttachError::Netns)?;
    // From here on, new sockets, programs and /proc/sys/net are the pod's.
    sysctl::prepare_pod().map_err(AttachError::Sysctl)?;
    let inside = netlink.socket().map_err(AttachError::Link)?;
    let pod = File::open(&record.netns).map_err(|source| AttachError::OpenPin {
        path: record.netns.clone(),
        source,
    })?;
    netlink
        .run(async {
            link::add_pair(&host, inner.bridge, &record.interface, ip, pod.as_fd()).await?;
            link::configure_pod(&inside, ip, inner.gateway).await
        })
        .map_err(AttachError::Link)
}

/// See [`crate::Network::detach`].
pub(crate) fn detach(inner: &Inner, sandbox: &str) -> Result<(), DetachError> {
    let Some(record) = inner.state.lock().sandboxes.get(sandbox).cloned() else {
        return Ok(());
    };
    if !record.ports.is_empty() {
        let state = &mut *inner.state.lock();
        let others = state
            .sandboxes
            .iter()
            .filter(|(id, _)| id.as_str() != sandbox)
            .map(|(_, record)| record);
        state.rules = Installed::new(&inner.config, others).map_err(DetachError::Rules)?;
        // Whoever writes the table next must not bring the ports back.
        if let Some(record) = state.sandboxes.get_mut(sandbox) {
            record.ports.clear();
        }
    }
    let netlink = Netlink::new().map_err(DetachError::Link)?;
    let host = netlink.socket().map_err(DetachError::Link)?;
    // Explicitly, not only with its namespace: a process left over in there would keep it.
    netlink
        .run(link::remove(&host, &record.interface))
        .map_err(DetachError::Link)?;
    netns::unpin(&record.netns).map_err(DetachError::Netns)?;
    let mut state = inner.state.lock();
    inner.records.remove(sandbox).map_err(DetachError::Record)?;
    state.sandboxes.remove(sandbox);
    for ip in record.ips {
        state.pool.release(ip);
    }
    Ok(())
}

/// See [`crate::Network::gc`].
pub(crate) fn gc(inner: &Inner, keep: &BTreeSet<String>) -> Result<Vec<String>, DetachError> {
    let stale: Vec<String> = {
        let state = inner.state.lock();
        let all = state.sandboxes.keys();
        all.filter(|id| !keep.contains(*id)).cloned().collect()
    };
    let mut failed = None;
    let mut removed = Vec::new();
    for sandbox in stale {
        match detach(inner, &sandbox) {
            Ok(()) => removed.push(sandbox),
            Err(err) => failed = failed.or(Some(err)),
        }
    }
    let netlink = Netlink::new().map_err(DetachError::Link)?;
    let host = netlink.socket().map_err(DetachError::Link)?;
    let ports = netlink
        .run(link::ports(&host, inner.bridge))
        .map_err(DetachError::Link)?;
    for name in ports {
        let known = {
            let state = inner.state.lock();
            state
                .sandboxes
                .values()
                .any(|record| record.interface == name)
        };
        if !known {
            netlink
                .run(link::remove(&host, &name))
                .map_err(DetachError::Link)?;
        }
    }
    failed.map_or(Ok(removed), Err)
}

/// See [`crate::cleanup`].
pub(crate) fn remove_node(bridge: &str) -> Result<(), DetachError> {
    rules::remove().map_err(DetachError::Rules)?;
    let netlink = Netlink::new().map_err(DetachError::Link)?;
    let host = netlink.socket().map_err(DetachError::Link)?;
    netlink
        .run(link::remove(&host, bridge))
        .map_err(DetachError::Link)
}

fn is_file_name(id: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !id.is_empty() && id.len() <= 128 && !id.starts_with('.') && id.chars().all(plain)
}

/// A name of 15 characters, the most an interface may have, from 44 bits of a hash (FNV-1a) of the sandbox id.
fn interface_name(sandbox: &str) -> String {
    let hash = sandbox
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("veth{:011x}", hash >> 20)
}
