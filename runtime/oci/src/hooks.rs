//! Hooks: programs that run at points of a container's life, with its state on their standard input.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use oci_spec::runtime::Hook;

use crate::state::{State, Status};
use crate::sys;

/// A hook did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// It could not be started.
    #[error("start {path}", path = path.display())]
    Start {
        /// Its program.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Waiting for it failed.
    #[error("wait for {path}", path = path.display())]
    Wait {
        /// Its program.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended badly.
    #[error("{path} ended with {status}", path = path.display())]
    Status {
        /// Its program.
        path: PathBuf,
        /// How it ended.
        status: String,
    },
    /// It took longer than its timeout, and was killed.
    #[error("{path} did not end within {seconds} s", path = path.display())]
    Timeout {
        /// Its program.
        path: PathBuf,
        /// Its timeout.
        seconds: i64,
    },
}

/// Runs the hooks in order; the first that fails ends it.
///
/// # Errors
///
/// See [`HookError`].
pub fn run_all(hooks: &[Hook], state: &State) -> Result<(), HookError> {
    if hooks.is_empty() {
        return Ok(());
    }
    hooks.iter().try_for_each(|hook| run(hook, state))
}

/// The state that a hook is told.
pub(crate) fn state_for(record: &crate::state::Record, pid: i32, status: Status) -> State {
    State {
        oci_version: record.oci_version.clone(),
        id: record.id.clone(),
        pid,
        status,
        bundle: record.bundle.clone(),
        rootfs: record.rootfs.clone(),
        created: record.created.clone(),
        owner: String::new(),
        annotations: record.annotations.clone(),
    }
}

/// The state as a file: nobody has to wait until the hook has read it, or dies (`SIGPIPE`) because it does not.
fn input(state: &State) -> io::Result<File> {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let mut file = File::from(nix::sys::memfd::memfd_create(c"state", flags)?);
    file.write_all(&serde_json::to_vec(state)?)?;
    file.rewind()?;
    Ok(file)
}

fn run(hook: &Hook, state: &State) -> Result<(), HookError> {
    use std::os::unix::process::CommandExt;
    let path = hook.path().clone();
    let start = |source| HookError::Start {
        path: path.clone(),
        source,
    };
    if !path.is_absolute() {
        return Err(start(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the path of a hook is absolute",
        )));
    }
    let mut command = Command::new(&path);
    if let Some((name, args)) = hook.args().as_deref().unwrap_or_default().split_first() {
        command.arg0(name).args(args);
    }
    let env: BTreeMap<&str, &str> = hook
        .env()
        .as_deref()
        .unwrap_or_default()
        .iter()
        .filter_map(|pair| pair.split_once('='))
        .collect();
    command
        .env_clear()
        .envs(env)
        .stdin(input(state).map_err(start)?);
    let mut child = command.spawn().map_err(start)?;
    let wait = |source| HookError::Wait {
        path: path.clone(),
        source,
    };
    if let Some(seconds) = hook.timeout().filter(|seconds| *seconds > 0) {
        let pidfd = sys::pidfd_open(Pid::from_raw(child.id() as i32)).map_err(wait)?;
        let limit = Duration::from_secs(seconds.unsigned_abs());
        if !wait_readable(pidfd.as_fd(), limit).map_err(wait)? {
            child.kill().map_err(wait)?;
            child.wait().map_err(wait)?;
            return Err(HookError::Timeout { path, seconds });
        }
    }
    let status = child.wait().map_err(wait)?;
    if !status.success() {
        return Err(HookError::Status {
            path,
            status: status.to_string(),
        });
    }
    Ok(())
}

/// When `limit` is over, counted from now; `None` if no clock will ever get there: `timeout` is any number of seconds.
pub(crate) fn deadline(limit: Duration) -> Option<Instant> {
    Instant::now().checked_add(limit)
}

/// Waits until `fd` is readable (a pidfd: until its process has ended); false if that takes longer than `limit`.
pub(crate) fn wait_readable(fd: std::os::fd::BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let deadline = deadline(limit);
    loop {
        let left = deadline.map_or(Duration::MAX, |deadline| {
            deadline.saturating_duration_since(Instant::now())
        });
        // Rounded up: with less than a millisecond left, zero would spin.
        let millis = i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
        let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(nix::Error::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The hooks that run in the runtime's namespaces before pivot_root, in their order, with the status that they are told.
///
/// The old kind, prestart, was part of start once, and its users still expect a container that is created.
pub(crate) fn before_pivot(
    hooks: &oci_spec::runtime::Hooks,
) -> impl Iterator<Item = (&Hook, Status)> {
    let old = hooks.prestart().iter().flatten();
    let new = hooks.create_runtime().iter().flatten();
    old.map(|hook| (hook, Status::Created))
        .chain(new.map(|hook| (hook, Status::Creating)))
}

/// Runs the hooks that come after a container's end. One that fails does not keep the next one from running.
pub(crate) fn after_end(
    spec: &oci_spec::runtime::Spec,
    record: &crate::state::Record,
) -> Vec<HookError> {
    let state = state_for(record, 0, Status::Stopped);
    let hooks = spec.hooks().as_ref();
    hooks
        .and_then(|hooks| hooks.poststop().as_deref())
        .unwrap_or_default()
        .iter()
        .filter_map(|hook| run(hook, &state).err())
        .collect()
}
