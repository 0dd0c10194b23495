//! What can go wrong, one enum per operation; and how a failure inside the container's process reaches its maker.

use std::io;
use std::path::PathBuf;

use crate::cgroup::CgroupError;
use crate::namespace::NamespaceError;
use crate::seccomp::SeccompError;

/// The part of its set-up in which a container's process failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Entering or making namespaces.
    Namespace,
    /// Entering the cgroup.
    Cgroup,
    /// The root file system.
    Rootfs,
    /// One of the mounts.
    Mount,
    /// A device node.
    Device,
    /// Masked and read-only paths.
    Protect,
    /// A kernel parameter.
    Sysctl,
    /// Host and domain name.
    Hostname,
    /// The terminal.
    Terminal,
    /// A hook that runs inside.
    Hook,
    /// Resource limits, priorities, affinity.
    Limits,
    /// User and groups.
    User,
    /// Capabilities and no_new_privs.
    Privileges,
    /// The seccomp filter.
    Seccomp,
    /// Security labels.
    Label,
    /// The working directory.
    WorkingDirectory,
    /// Finding the user's program: errno says why as execve(2) does.
    Command,
    /// Executing it.
    Execute,
    /// Talking to its maker.
    Channel,
}

impl Step {
    const ALL: [Self; 19] = [
        Self::Namespace,
        Self::Cgroup,
        Self::Rootfs,
        Self::Mount,
        Self::Device,
        Self::Protect,
        Self::Sysctl,
        Self::Hostname,
        Self::Terminal,
        Self::Hook,
        Self::Limits,
        Self::User,
        Self::Privileges,
        Self::Seccomp,
        Self::Label,
        Self::WorkingDirectory,
        Self::Command,
        Self::Execute,
        Self::Channel,
    ];

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// What a container's process could not do, as it travels to its maker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Where in the set-up.
    pub step: Step,
    /// The kernel's word, or zero where the reason is in `what`.
    pub errno: i32,
    /// What was tried, on what.
    pub what: String,
}

impl Failure {
    pub(crate) fn new(step: Step, what: impl Into<String>) -> Self {
        Self {
            step,
            errno: 0,
            what: what.into(),
        }
    }

    /// Whether the kernel gave this reason.
    pub(crate) fn is(&self, errno: i32) -> bool {
        self.errno == errno
    }
}

/// Turns results of system calls into [`Failure`]s.
pub(crate) trait OrFail<T> {
    /// Names what was tried.
    fn or_fail<W: Into<String>>(self, step: Step, what: impl FnOnce() -> W) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> OrFail<T> for Result<T, E> {
    fn or_fail<W: Into<String>>(self, step: Step, what: impl FnOnce() -> W) -> Result<T, Failure> {
        self.map_err(|error| {
            let error = error.into();
            match error.raw_os_error() {
                Some(errno) => Failure {
                    step,
                    errno,
                    what: what().into(),
                },
                None => Failure {
                    step,
                    errno: 0,
                    what: format!("{}: {error}", what().into()),
                },
            }
        })
    }
}

/// A container cannot be made, or a process not added to it.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The configuration cannot be followed.
    #[error("invalid configuration: {what}")]
    InvalidSpec {
        /// What is wrong with it.
        what: String,
    },
    /// This kernel, or this program, has not what the configuration asks for.
    #[error("not supported: {what}")]
    Unsupported {
        /// What.
        what: String,
    },
    /// The id is taken.
    #[error("container {id} exists already")]
    Exists {
        /// The id.
        id: String,
    },
    /// The container's own files.
    #[error("{what} {path}", path = path.display())]
    StateFile {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Namespaces.
    #[error("namespaces of the container")]
    Namespace(#[source] NamespaceError),
    /// The cgroup.
    #[error("cgroup of the container")]
    Cgroup(#[source] CgroupError),
    /// The class for caches and memory bandwidth.
    #[error("Intel RDT class of the container")]
    Rdt(#[source] crate::rdt::RdtError),
    /// The agent of a seccomp profile that asks one.
    #[error("seccomp agent of the container")]
    SeccompAgent(#[source] crate::seccomp::NotifyError),
    /// A scope of systemd's.
    #[error("cgroup of the container through systemd")]
    Systemd(#[source] crate::cgroup::systemd::SystemdError),
    /// The seccomp profile.
    #[error("seccomp profile of the container")]
    Seccomp(#[source] SeccompError),
    /// A system call of the maker.
    #[error("{what}")]
    System {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// A hook of the maker's side failed.
    #[error("hook")]
    Hook(#[source] crate::hooks::HookError),
    /// The container's process failed in its set-up.
    #[error("{step:?}: {what}")]
    Setup {
        /// In which part.
        step: Step,
        /// What was tried.
        what: String,
        /// Why not, if the kernel said so.
        source: Option<io::Error>,
    },
    /// The user's program cannot be found; `cause` keeps execve's errno (`ENOENT`, `EACCES`…). The message tells it in
    /// runc's words, so it is no source, which would tell it again.
    #[error("exec: {command:?}: {}", command_reason(command, cause))]
    Command {
        /// Its name, as the configuration gives it.
        command: String,
        /// Why not.
        cause: io::Error,
    },
    /// The user's program is there but cannot be executed: its interpreter is missing (`ENOENT`), or its format is unknown
    /// (`ENOEXEC`). In runc's words, too.
    #[error("exec {command}: {}", execute_reason(cause))]
    Execute {
        /// Its name, as the configuration gives it.
        command: String,
        /// Why not.
        cause: io::Error,
    },
    /// The memory limit is too small even for the set-up: the kernel killed the process.
    #[error(
        "the container's process was killed for lack of memory during its set-up: the limit {limit:?} is too small"
    )]
    OutOfMemory {
        /// In bytes.
        limit: Option<u64>,
    },
    /// The container's process died without a word (killed, or out of memory).
    #[error("the container's process ended during its set-up ({status})")]
    Died {
        /// How it ended.
        status: String,
    },
    /// The container to add to is paused, in words of runc's.
    #[error("cannot exec in a paused container (use --ignore-paused to override)")]
    Paused,
    /// The container to add to is not there or not running.
    #[error("the container does not run")]
    NotRunning(#[source] StateError),
}

/// The words runc uses, which its callers look for.
fn command_reason(command: &str, source: &io::Error) -> String {
    match source.raw_os_error() {
        Some(libc::ENOENT) if !command.contains('/') => "executable file not found in $PATH".into(),
        Some(libc::ENOENT) => format!("stat {command}: no such file or directory"),
        Some(libc::EACCES) => "permission denied".into(),
        Some(libc::ENOEXEC) => "exec format error".into(),
        Some(libc::EISDIR) => "is a directory: permission denied".into(),
        _ => source.to_string(),
    }
}

/// What the kernel says, as runc writes it.
fn execute_reason(cause: &io::Error) -> String {
    let reason = cause.to_string().to_lowercase();
    reason
        .split(" (os error")
        .next()
        .unwrap_or_default()
        .to_owned()
}

impl CreateError {
    /// From what the process reported; `command` is the program that it was to execute.
    pub(crate) fn from_failure(failure: Failure, command: &str) -> Self {
        let source = (failure.errno != 0).then(|| io::Error::from_raw_os_error(failure.errno));
        match (failure.step, source) {
            (Step::Command, Some(cause)) => Self::Command {
                command: command.to_owned(),
                cause,
            },
            (Step::Execute, Some(cause)) => Self::Execute {
                command: command.to_owned(),
                cause,
            },
            (step, source) => Self::Setup {
                step,
                what: failure.what,
                source,
            },
        }
    }

    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Self::InvalidSpec { what: what.into() }
    }

    /// Whether a hook failed, on either side.
    pub(crate) fn is_hook(&self) -> bool {
        matches!(
            self,
            Self::Hook(_)
                | Self::Setup {
                    step: Step::Hook,
                    ..
                }
        )
    }

    /// The errno with which the user's program could not be executed, if that is the reason.
    pub fn command_errno(&self) -> Option<i32> {
        match self {
            Self::Command { cause, .. } | Self::Execute { cause, .. } => cause.raw_os_error(),
            _ => None,
        }
    }
}

/// A process cannot be added to a container: the same reasons as for making one.
pub type ExecError = CreateError;

/// A created container cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is none, or its state cannot be read.
    #[error("state of the container")]
    State(#[source] StateError),
    /// It was started before, or has ended.
    #[error("cannot start a container that is {status}")]
    WrongStatus {
        /// What it is.
        status: crate::state::Status,
    },
    /// Talking to its process failed.
    #[error("talk to the container's process")]
    Channel(#[source] io::Error),
    /// The process failed between start and exec; a [`CreateError::Execute`] keeps execve's errno.
    #[error(transparent)]
    Process(CreateError),
    /// A poststart hook failed. The container has been destroyed.
    #[error("hook")]
    Hook(#[source] crate::hooks::HookError),
    /// The configuration names no process. The container has been stopped.
    #[error("the configuration has no process to start")]
    NoProcess,
    /// After a failure it could not be destroyed.
    #[error("destroy the container after its start failed")]
    Destroy(#[source] ControlError),
}

/// The state of a container cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// No container of this id.
    #[error("container does not exist: {id}")]
    NotFound {
        /// The id.
        id: String,
    },
    /// Its state file.
    #[error("read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Its state file holds something else.
    #[error("parse {path}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: serde_json::Error,
    },
    /// It has no process (any more).
    #[error("container {id} is {status}")]
    WrongStatus {
        /// The id.
        id: String,
        /// What it is.
        status: crate::state::Status,
    },
}

/// A container cannot be signalled, frozen, changed, looked into or deleted.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is none, or it is in the wrong state.
    #[error("state of the container")]
    State(#[source] StateError),
    /// Not while it is in this state.
    #[error("cannot {verb} a container that is {status}{}", not_running(*status))]
    WrongStatus {
        /// What was asked.
        verb: &'static str,
        /// What it is.
        status: crate::state::Status,
    },
    /// Its process.
    #[error("{what}")]
    System {
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// Its cgroup.
    #[error("cgroup of the container")]
    Cgroup(#[source] CgroupError),
    /// Its class for caches and memory bandwidth.
    #[error("Intel RDT class of the container")]
    Rdt(#[source] crate::rdt::RdtError),
    /// Its scope, which systemd keeps.
    #[error("cgroup of the container through systemd")]
    Systemd(#[source] crate::cgroup::systemd::SystemdError),
}

/// An error with all its causes, on one line, as the edge prints it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// containerd takes "already gone" from these words of runc's.
fn not_running(status: crate::state::Status) -> &'static str {
    match status {
        crate::state::Status::Stopped => ": container not running",
        _ => "",
    }
}
