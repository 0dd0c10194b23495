//! Seccomp filters that ask an agent (`SCMP_ACT_NOTIFY`): who gets the filter's listener, and how.
//!
//! The process that installs the filter cannot send the listener itself, for its `sendmsg` may be what the agent is to be
//! asked about. So it says the descriptor's number in one write(2), and its maker, outside of the container, takes a copy
//! (pidfd_getfd(2), Linux 5.6) and gives it to the agent. Only `write` can therefore not be asked about, as with runc.
//!
//! Source: OCI runtime-spec, config-linux.md, "Seccomp" and "The Container Process State".

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::unistd::Pid;
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};
use serde::Serialize;

use super::SeccompError;
use crate::message::send_fd;
use crate::state::{OCI_VERSION, State};
use crate::sys;

/// The listener does not reach the agent.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// The copy of the listener.
    #[error("take the seccomp listener of process {pid}")]
    Take {
        /// Of which process.
        pid: i32,
        /// Why not.
        source: io::Error,
    },
    /// The agent's socket.
    #[error("failed to connect with seccomp agent {path}")]
    Send {
        /// The socket.
        path: String,
        /// Why not.
        source: io::Error,
    },
}

/// Whether a profile has a rule that asks.
pub(super) fn asks(profile: &LinuxSeccomp) -> bool {
    let rules = profile.syscalls().iter().flatten();
    profile.default_action() == LinuxSeccompAction::ScmpActNotify
        || rules
            .map(oci_spec::runtime::LinuxSyscall::action)
            .any(|action| action == LinuxSeccompAction::ScmpActNotify)
}

/// What a profile that asks must have, and must not.
pub(super) fn check(profile: &LinuxSeccomp) -> Result<(), SeccompError> {
    let bad = |what: &str| {
        Err(SeccompError::Invalid {
            what: what.to_owned(),
        })
    };
    if profile.listener_path().is_none() && profile.listener_metadata().is_some() {
        return bad("listenerMetadata without listenerPath");
    }
    if !asks(profile) {
        return Ok(());
    }
    if profile.listener_path().is_none() {
        return bad("SCMP_ACT_NOTIFY without listenerPath");
    }
    if profile.default_action() == LinuxSeccompAction::ScmpActNotify {
        return bad("SCMP_ACT_NOTIFY cannot be the default action");
    }
    let rules = profile.syscalls().iter().flatten();
    let mut asking = rules.filter(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify);
    if asking.any(|rule| rule.names().iter().any(|name| name == "write")) {
        return bad("SCMP_ACT_NOTIFY cannot be used for the write syscall");
    }
    Ok(())
}

/// What the agent is told.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessState<'a> {
    oci_version: &'static str,
    fds: [&'static str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    state: &'a State,
}

/// Takes the listener out of process `pid`, in which it has `number`, and sends it to the profile's agent.
pub(crate) fn hand_over(
    profile: &LinuxSeccomp,
    pid: Pid,
    pidfd: BorrowedFd<'_>,
    number: RawFd,
    state: &State,
) -> Result<(), NotifyError> {
    let pid = pid.as_raw();
    let listener =
        sys::pidfd_getfd(pidfd, number).map_err(|source| NotifyError::Take { pid, source })?;
    let path = profile.listener_path().clone().unwrap_or_default();
    let told = ProcessState {
        oci_version: OCI_VERSION,
        fds: ["seccompFd"],
        pid,
        metadata: profile.listener_metadata().as_deref(),
        state,
    };
    send(&path, listener.as_fd(), &told).map_err(|source| NotifyError::Send {
        path: path.display().to_string(),
        source,
    })
}

/// One state per connection, which is closed after it.
fn send(path: &Path, listener: BorrowedFd<'_>, told: &ProcessState<'_>) -> io::Result<()> {
    let bytes = serde_json::to_vec(told)?;
    let mut socket = UnixStream::connect(path)?;
    let sent = send_fd(socket.as_fd(), listener, &bytes)?;
    socket.write_all(&bytes[sent..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_that_asks_needs_an_agent_and_leaves_write_alone() {
        let verdict = |json: &str| check(&serde_json::from_str::<LinuxSeccomp>(json).unwrap());
        let rule = |name: &str, rest: &str| {
            format!(
                r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{{"names":["{name}"],"action":"SCMP_ACT_NOTIFY"}}]{rest}}}"#
            )
        };
        assert!(verdict(&rule("mkdir", r#","listenerPath":"/a""#)).is_ok());
        assert!(verdict(&rule("mkdir", "")).is_err());
        assert!(verdict(&rule("write", r#","listenerPath":"/a""#)).is_err());
        assert!(verdict(r#"{"defaultAction":"SCMP_ACT_NOTIFY","listenerPath":"/a"}"#).is_err());
        assert!(verdict(r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerMetadata":"x"}"#).is_err());
        // Nobody asks: the path means nothing.
        assert!(verdict(r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/a"}"#).is_ok());
    }
}
