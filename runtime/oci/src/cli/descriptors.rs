//! The descriptors of a new process: its standard streams, and those that our caller has left open for it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use knarr_oci::{Io, ListenFds, Stdio};

use super::Context;

/// As the flags say, and what sd_listen_fds(3) would say to this program.
///
/// Only descriptors that were open when this program started are passed: a number above them may be one that the runtime has
/// opened for itself.
pub(super) fn io(
    context: &Context,
    terminal: bool,
    socket: Option<&Path>,
    detached: bool,
    preserve_fds: u32,
) -> anyhow::Result<Io> {
    if terminal && detached && socket.is_none() {
        bail!("a detached container with a terminal needs --console-socket");
    }
    if !terminal && socket.is_some() {
        bail!("--console-socket without a terminal in the configuration");
    }
    let stdio = match (terminal, socket) {
        (true, None) => Stdio::Copied,
        (true, Some(_)) => Stdio::Terminal,
        (false, _) => Stdio::Inherit,
    };
    let listen = listen_fds(|name| std::env::var_os(name), std::process::id());
    // Those of socket activation come first, as with runc.
    let activated = listen.as_ref().map_or(0, |listen| listen.count);
    let wanted = activated
        .checked_add(preserve_fds)
        .context("more descriptors to preserve than can be")?;
    let closed = context.inherited.saturating_add(3);
    ensure!(
        wanted <= context.inherited,
        "descriptor {closed} is not open: {activated} are to be passed on by LISTEN_FDS, and {preserve_fds} by --preserve-fds"
    );
    Ok(Io {
        stdio,
        preserve_fds,
        listen,
    })
}

/// The descriptors of socket activation, if they are meant for process `own`: callers leave these variables to programs that
/// they were never set for (sd_listen_fds(3); Podman says `LISTEN_PID=1`, and names the descriptors by --preserve-fds).
fn listen_fds(variable: impl Fn(&str) -> Option<OsString>, own: u32) -> Option<ListenFds> {
    let number = |name| variable(name)?.to_str()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(own) {
        return None;
    }
    Some(ListenFds {
        count: number("LISTEN_FDS").filter(|count| *count > 0)?,
        names: variable("LISTEN_FDNAMES").map(OsString::into_vec),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pid: &str, fds: &str, names: Option<&str>) -> Option<ListenFds> {
        let variable = |name: &str| match name {
            "LISTEN_PID" => Some(pid.into()),
            "LISTEN_FDS" => Some(fds.into()),
            "LISTEN_FDNAMES" => names.map(OsString::from),
            _ => None,
        };
        listen_fds(variable, 7)
    }

    #[test]
    fn descriptors_are_passed_on_only_to_the_process_that_they_are_for() {
        let two = |names: Option<&str>| ListenFds {
            count: 2,
            names: names.map(|names| names.as_bytes().to_vec()),
        };
        assert_eq!(read("7", "2", None), Some(two(None)));
        assert_eq!(read("7", "2", Some("a:b")), Some(two(Some("a:b"))));
        for (pid, fds) in [
            ("1", "2"),
            ("", "2"),
            ("x", "2"),
            ("7", ""),
            ("7", "x"),
            ("7", "-1"),
            ("7", "0"),
        ] {
            assert_eq!(
                read(pid, fds, None),
                None,
                "LISTEN_PID={pid} LISTEN_FDS={fds}"
            );
        }
        assert_eq!(listen_fds(|_| None, 7), None);
    }
}
