//! What the engine and a shim say to each other.
//!
//! They talk over a Unix socket of type `SOCK_SEQPACKET`, so that each message is one packet, with the descriptors it carries: a
//! JSON [`Request`] one way; a JSON [`Message`] the other: the reply with the request's number, or a notice of an exit. Exits are on
//! disk ([`Exit::read`]) before they are announced, and [`Call::List`] tells what is there now, so an engine that reconnects
//! misses nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// Raised when a change makes an older peer misunderstand.
pub const VERSION: u32 = 1;

/// The largest message, in bytes; what can grow (a specification, an environment) goes through a file.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// A call, with a number that its reply carries.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// The number.
    pub number: u64,
    /// The call.
    pub call: Call,
}

/// What the engine may ask.
#[derive(Debug, Serialize, Deserialize)]
pub enum Call {
    /// The first call on each connection.
    Hello {
        /// The engine's [`VERSION`].
        version: u32,
    },
    /// Makes the PID namespace that the pod's containers share, with a process as its first that does nothing but reap. The
    /// namespace comes with the reply. The shim ends when that process does, and the process when the shim does.
    SharePids(SharePids),
    /// Makes a container from the bundle's `config.json`; answered with [`Reply::Created`].
    Create(Create),
    /// Lets a container's first process run.
    Start {
        /// The container.
        container: String,
    },
    /// Runs a process in a container. With the request come its stdin, stdout and stderr, unless it gets a terminal, whose master
    /// comes with the reply. Answered with [`Reply::Process`]; its end is announced by [`Message::ProcessExited`].
    Exec {
        /// A name for the process, unique in this shim.
        exec: String,
        /// The container.
        container: String,
        /// A file with the OCI `process` as JSON.
        process: PathBuf,
        /// Whether it gets a terminal.
        terminal: bool,
    },
    /// Sends a signal to an exec's process.
    SignalExec {
        /// The exec.
        exec: String,
        /// The signal's number.
        signal: i32,
    },
    /// Sends a signal to a container.
    Signal {
        /// The container.
        container: String,
        /// The signal's number.
        signal: i32,
        /// Whether every process of the container gets it.
        all: bool,
    },
    /// Copies the container's output from now on to the two sockets that come with the request (stdout, stderr), at the pace at
    /// which they are read; the reply brings the writing end of its stdin, if it has one that is still open.
    Attach {
        /// The container.
        container: String,
        /// Whether the shim keeps no writing end of stdin for itself, unless it is a terminal: the container then sees the end of
        /// its input when the caller closes what it got, or dies.
        #[serde(default)]
        take_stdin: bool,
    },
    /// Tells a container's terminal its size.
    Resize {
        /// The container.
        container: String,
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// Closes the shim's end of a container's stdin.
    CloseStdin {
        /// The container.
        container: String,
    },
    /// Opens the log files anew, after somebody moved them.
    ReopenLog {
        /// The container.
        container: String,
    },
    /// Removes a container that ended, with its group and state.
    Delete {
        /// The container.
        container: String,
    },
    /// All containers; answered with [`Reply::Containers`].
    List,
    /// Ends the shim; refused while a container runs.
    Shutdown,
}

/// Where the first process of a shared PID namespace lives.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SharePids {
    /// The pod's network namespace; `None` for the host's.
    pub network: Option<PathBuf>,
    /// The pod's IPC namespace; `None` for the host's.
    pub ipc: Option<PathBuf>,
    /// The pod's UTS namespace; `None` for the host's.
    pub uts: Option<PathBuf>,
    /// Its cgroup, relative to each hierarchy's root.
    pub cgroup: PathBuf,
}

/// What a container needs to be made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Create {
    /// The container's id.
    pub container: String,
    /// The bundle: `config.json` is there, `exit.json` will be.
    pub bundle: PathBuf,
    /// The log file; its directory exists.
    pub log: PathBuf,
    /// When the log is rotated.
    pub rotation: Rotation,
    /// A running container of this shim whose PID namespace it is to be in.
    #[serde(default)]
    pub pids_of: Option<String>,
    /// Whether stdin can be attached to.
    pub stdin: bool,
    /// Whether the container has a terminal.
    pub terminal: bool,
}

/// When a log is rotated (the kubelet's `containerLogMaxSize` and `containerLogMaxFiles`).
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Rotation {
    /// Bytes from which on a file is full.
    pub max_size: u64,
    /// Files kept, the current one included.
    pub max_files: u32,
}

impl Default for Rotation {
    fn default() -> Self {
        Self {
            max_size: 10 << 20,
            max_files: 5,
        }
    }
}

/// What a shim says.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// The answer to a request.
    Reply {
        /// The request's number.
        number: u64,
        /// What came of it.
        result: Result<Reply, Failure>,
    },
    /// A container's first process ended; its record is on disk.
    Exited {
        /// The container.
        container: String,
        /// How it ended.
        exit: Exit,
    },
    /// An exec's process ended.
    ProcessExited {
        /// The exec.
        exec: String,
        /// Its exit code, 128 + the signal's number for a signal.
        code: i32,
    },
}

/// What came of a call that went well.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Nothing to tell.
    Done,
    /// The shim's version.
    Hello {
        /// Its [`VERSION`].
        version: u32,
    },
    /// The container waits to be started.
    Created {
        /// Its first process.
        pid: i32,
    },
    /// The process runs.
    Process {
        /// Its id.
        pid: i32,
    },
    /// All containers.
    Containers(Vec<Container>),
}

/// One container of a shim.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its first process.
    pub pid: i32,
    /// Whether it was started.
    pub started: bool,
    /// How it ended, if it did.
    pub exit: Option<Exit>,
}

/// Why a call failed.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Whether there is no such container or exec.
    pub not_found: bool,
    /// Whether the runtime could not make the container as it was specified: whoever starts it is to hear of that.
    #[serde(default)]
    pub task: bool,
    /// The whole reason.
    pub message: String,
}

/// How a container's first process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Its exit code, 128 + the signal's number for a signal.
    pub code: i32,
    /// Whether the kernel killed a process of the container for lack of memory.
    pub oom_killed: bool,
    /// When.
    pub at: SystemTime,
    /// Why its program could not be executed, if that is how it ended.
    #[serde(default)]
    pub start_error: Option<String>,
}

impl Exit {
    /// The name of the record in the bundle.
    pub const FILE: &'static str = "exit.json";

    /// The record of a bundle; `None` while there is none.
    ///
    /// # Errors
    ///
    /// If it cannot be read, or is no record.
    pub fn read(bundle: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(bundle.join(Self::FILE)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
