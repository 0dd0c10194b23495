//! Kernel parameters of the namespace the program runs in, and of a pod's.

use std::fs;
use std::io;
use std::path::PathBuf;

/// A parameter could not be set.
#[derive(Debug, thiserror::Error)]
#[error("write {value:?} to {path}")]
pub struct SysctlError {
    /// Its file.
    path: PathBuf,
    /// What it was to become.
    value: &'static str,
    /// The cause.
    source: io::Error,
}

/// Lets the node route for its pods.
pub(crate) fn prepare_node() -> Result<(), SysctlError> {
    set("ipv4/ip_forward", "1")?;
    // A redirect would tell a pod to go past the node's connection tracking. The kernel sends them
    // if either `all` or the interface says so; every other interface keeps its own setting.
    set("ipv4/conf/all/send_redirects", "0")
}

/// Sets the parameters of the bridge.
pub(crate) fn prepare_bridge(bridge: &str) -> Result<(), SysctlError> {
    set(&format!("ipv4/conf/{bridge}/send_redirects"), "0")?;
    // For connections of the node itself to 127.0.0.1:<host port>; the table keeps pods from abusing it.
    set(&format!("ipv4/conf/{bridge}/route_localnet"), "1")
}

/// Sets the parameters of the pod whose namespace the calling thread is in.
pub(crate) fn prepare_pod() -> Result<(), SysctlError> {
    set("ipv4/conf/all/accept_redirects", "0")?;
    set("ipv4/conf/default/accept_redirects", "0")
}

/// Writes only what differs: `/proc/sys` may be read-only, with the right values in it.
fn set(name: &str, value: &'static str) -> Result<(), SysctlError> {
    let path = PathBuf::from("/proc/sys/net").join(name);
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(|source| SysctlError {
        path,
        value,
        source,
    })
}
