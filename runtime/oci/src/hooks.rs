//! Hooks: programs that run at points of a container's life, with its state on their standard input.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
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
    /// It ended badly. What it printed is told with it, because it goes nowhere else.
    #[error("{path} ended with {status}{said}", path = path.display())]
    Status {
        /// Its program.
        path: PathBuf,
        /// How it ended.
        status: String,
        /// What it printed: empty, or `, stdout: …, stderr: …`.
        said: String,
    },
    /// Which one it was, in words of runc's.
    #[error("error running {kind} hook #{index}")]
    Failed {
        /// Its list.
        kind: &'static str,
        /// Its place there, from 0.
        index: usize,
        /// What it did not do.
        source: Box<HookError>,
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

/// Where a hook runs.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The environment of a hook that names none: the specification leaves it open, and programs need their `PATH`.
    pub env: Env<'a>,
    /// Its working directory; ours if there is none.
    pub directory: Option<BorrowedFd<'a>>,
}

/// The environment of a hook that names none. As with runc.
#[derive(Clone, Copy, Debug)]
pub enum Env<'a> {
    /// The runtime's, for hooks on the host.
    Ours,
    /// Nothing of the host is for a hook in the container's namespaces.
    Empty,
    /// That of the container's process.
    These(&'a [CString]),
}

/// A hook of the host.
pub(crate) const ON_HOST: Surroundings<'static> = Surroundings {
    env: Env::Ours,
    directory: None,
};

/// A hook of a list, for those that tell of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listed<'a> {
    pub hook: &'a Hook,
    /// Its list, as the specification names it.
    pub kind: &'static str,
    /// Its place there.
    pub index: usize,
    /// What it is told about the container.
    pub status: Status,
}

impl Listed<'_> {
    /// Runs it on the host.
    pub fn run(&self, state: &State) -> Result<(), HookError> {
        run(self.hook, state, &ON_HOST).map_err(self.failed())
    }

    fn failed(&self) -> impl FnOnce(HookError) -> HookError + use<> {
        let (kind, index) = (self.kind, self.index);
        move |source| HookError::Failed {
            kind,
            index,
            source: Box::new(source),
        }
    }
}

/// Runs the hooks of the list `kind` in order; the first that fails ends it.
///
/// # Errors
///
/// See [`HookError`].
pub fn run_all(
    kind: &'static str,
    hooks: &[Hook],
    state: &State,
    surroundings: &Surroundings<'_>,
) -> Result<(), HookError> {
    for (index, hook) in hooks.iter().enumerate() {
        run(hook, state, surroundings).map_err(|source| HookError::Failed {
            kind,
            index,
            source: Box::new(source),
        })?;
    }
    Ok(())
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
    let mut file = File::from(memfd_create(c"state", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&serde_json::to_vec(state)?)?;
    file.rewind()?;
    Ok(file)
}

/// The most that a hook prints; memory is used only for what it does print.
const OUTPUT: u64 = 1 << 20;

/// How much of that an error tells: it has to fit into a message.
const TOLD: usize = 1000;

/// What a hook prints, which is not for the container's output. A file, because a hook may leave a process behind that
/// keeps it open; and one that cannot grow, because such a process may print for ever.
fn output(name: &CStr) -> io::Result<File> {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(name, flags)?);
    file.set_len(OUTPUT)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW))?;
    Ok(file)
}

/// The text in such a file, up to where the hook has written.
fn printed(file: &mut File) -> io::Result<String> {
    let length = usize::try_from(file.stream_position()?).unwrap_or(TOLD);
    let mut bytes = vec![0; length.min(TOLD)];
    file.rewind()?;
    file.read_exact(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

fn said(out: &mut File, err: &mut File) -> io::Result<String> {
    let (out, err) = (printed(out)?, printed(err)?);
    Ok(match out.is_empty() && err.is_empty() {
        true => String::new(),
        false => format!(", stdout: {out}, stderr: {err}"),
    })
}

fn run(hook: &Hook, state: &State, surroundings: &Surroundings<'_>) -> Result<(), HookError> {
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
    let named = hook.env().as_deref().unwrap_or_default();
    match surroundings.env {
        Env::Ours if named.is_empty() => {}
        Env::These(env) if named.is_empty() => {
            let pairs = env.iter().filter_map(|pair| {
                let bytes = pair.as_bytes();
                let middle = bytes.iter().position(|byte| *byte == b'=')?;
                Some((&bytes[..middle], &bytes[middle + 1..]))
            });
            let pairs =
                pairs.map(|(name, value)| (OsStr::from_bytes(name), OsStr::from_bytes(value)));
            command.env_clear().envs(pairs);
        }
        _ => {
            let pairs = named.iter().filter_map(|pair| pair.split_once('='));
            command.env_clear().envs(pairs.collect::<BTreeMap<_, _>>());
        }
    }
    if let Some(directory) = surroundings.directory {
        // By descriptor: its path may not be for this process to walk.
        command.current_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()));
    }
    let mut out = output(c"stdout").map_err(start)?;
    let mut err = output(c"stderr").map_err(start)?;
    command
        .stdin(input(state).map_err(start)?)
        .stdout(out.try_clone().map_err(start)?)
        .stderr(err.try_clone().map_err(start)?);
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
        let said = said(&mut out, &mut err).map_err(wait)?;
        let status = status.to_string();
        return Err(HookError::Status { path, status, said });
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
pub(crate) fn before_pivot(hooks: &oci_spec::runtime::Hooks) -> impl Iterator<Item = Listed<'_>> {
    let old = listed("prestart", Status::Created, hooks.prestart().as_deref());
    let new = hooks.create_runtime().as_deref();
    old.chain(listed("createRuntime", Status::Creating, new))
}

fn listed<'a>(
    kind: &'static str,
    status: Status,
    list: Option<&'a [Hook]>,
) -> impl Iterator<Item = Listed<'a>> {
    let list = list.unwrap_or_default().iter().enumerate();
    list.map(move |(index, hook)| Listed {
        hook,
        kind,
        index,
        status,
    })
}

/// Runs the hooks that come after a container's end. One that fails does not keep the next one from running.
pub(crate) fn after_end(
    spec: &oci_spec::runtime::Spec,
    record: &crate::state::Record,
) -> Vec<HookError> {
    let state = state_for(record, 0, Status::Stopped);
    let hooks = spec.hooks().as_ref();
    let list = hooks.and_then(|hooks| hooks.poststop().as_deref());
    listed("poststop", Status::Stopped, list)
        .filter_map(|place| place.run(&state).err())
        .collect()
}
