//! The scope of a container that is being made, when systemd makes the groups.
//!
//! systemd removes a scope without processes, and there is none yet. So a helper, a copy of this process, asks for the
//! scope with itself inside, and stays until the container is in it. The bus is talked to in the helper only: whatever
//! threads that takes, this process has one when it makes the container.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::cgroup::systemd::{Property, Systemd, SystemdError, Unit};
use crate::error::chain;
use crate::sys::{self, Fork};

use super::birth::Newborn;

/// More than the bus is given for one call.
const PATIENCE: Duration = Duration::from_secs(40);

/// Holds a scope until it is dropped.
pub(super) struct Holder {
    _process: Newborn,
    /// Its other end is the helper's, which ends with this one.
    _lifeline: UnixStream,
    /// The group of the scope.
    pub group: PathBuf,
}

impl Holder {
    /// Has the scope made, and waits until it is there.
    pub fn start(systemd: &dyn Systemd, unit: &Unit) -> Result<Self, SystemdError> {
        let helper = |what: &str, error: std::io::Error| SystemdError::Helper {
            what: format!("{what}: {error}"),
        };
        let (mut ours, theirs) =
            UnixStream::pair().map_err(|error| helper("make a socket pair", error))?;
        ours.set_read_timeout(Some(PATIENCE))
            .map_err(|error| helper("set a timeout", error))?;
        let forked = sys::clone3(0, None).map_err(|error| helper("make the helper", error))?;
        let process = match forked {
            Fork::Child => {
                drop(ours);
                sys::never_return(|| hold(systemd, unit, theirs))
            }
            Fork::Parent { pid, pidfd } => Newborn {
                pid,
                pidfd: Some(pidfd),
            },
        };
        drop(theirs);
        let mut answer = Vec::new();
        loop {
            let mut byte = [0];
            match ours.read(&mut byte) {
                Ok(0) => {
                    return Err(SystemdError::Helper {
                        what: "the helper that asks systemd for a scope ended".to_owned(),
                    });
                }
                Ok(_) if byte == [0] => break,
                Ok(_) => answer.push(byte[0]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(helper("wait for systemd to start the scope", error)),
            }
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        match answer.strip_prefix('/') {
            Some(_) => Ok(Self {
                _process: process,
                _lifeline: ours,
                group: unit.group(answer.as_ref()),
            }),
            None => Err(SystemdError::Helper { what: answer }),
        }
    }
}

/// In the helper: asks, answers with a path or with what went wrong, and stays until the other side goes.
fn hold(systemd: &dyn Systemd, unit: &Unit, mut channel: UnixStream) -> ! {
    let mut unit = unit.clone();
    let own = Property::Numbers(vec![std::process::id()]);
    unit.properties.push(("PIDs".to_owned(), own));
    let mut answer = match systemd.start(&unit) {
        Ok(manager) => manager.to_string_lossy().into_owned(),
        Err(error) => chain(&error),
    };
    answer.push('\0');
    if channel.write_all(answer.as_bytes()).is_ok() {
        // Nothing comes but the end.
        let _end = channel.read(&mut [0]);
    }
    sys::exit_now(0)
}
