//! OCI runtime library: the life cycle of containers on Linux, for one thread, with no knowledge of Kubernetes.
//!
//! ```text
//! create ──► created ──start──► running ◄──pause/resume──► paused
//!   │          │                  │ exec: one more process
//!   │          └──────kill────────┴──► stopped ──delete──► (gone)
//!   └─ one clone3; the child builds its world and waits at a socket
//! ```
//!
//! Never opens a network connection (but netlink to the kernel), starts no thread, runs no helper (but the hooks that the
//! configuration names, and criu for checkpoint and restore).
//!
//! Modules in reading order:
//! * [`id`], [`state`]: what a container is called, and what is kept of it on disk
//! * `runtime`: the operations, as methods of [`Runtime`]
//! * `init`: the container's first process, from clone3 to exec; `message`: what it tells its maker
//! * [`namespace`], [`mount`], `idmap`, `netdev`, `rootfs`: its world
//! * `process`, `capability`, `label`, [`seccomp`]: its rights
//! * [`cgroup`]: its limits; usable alone; `rdt`: its share of caches
//! * [`hooks`], [`error`], [`protect`]
//! * [`spec`]: reading configurations
//! * [`sys`]: system calls

mod capability;
pub mod cgroup;
pub mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod hooks;
pub mod id;
mod idmap;
mod init;
mod label;
mod message;
pub mod mount;
pub mod namespace;
mod netdev;
mod process;
pub mod protect;
mod rdt;
mod rootfs;
mod runtime;
pub mod seccomp;
pub mod spec;
pub mod state;
#[expect(unsafe_code, reason = "the one module that makes raw system calls")]
pub mod sys;

pub use error::{ControlError, CreateError, ExecError, StartError, StateError};
pub use id::ContainerId;
pub use message::send_fd;
pub use process::Stdio;
pub use rdt::{Bandwidth, L3CacheInfo, MemBwInfo, Occupancy, RdtError, RdtStats};
pub use runtime::{
    CgroupManager, CgroupsMode, CheckpointError, CheckpointOptions, Created, CriuError,
    CriuOptions, Details, ExecOptions, Io, ListenFds, PageServer, RestoreError, RestoreOptions,
    Runtime, RuntimeOptions, SubGroup,
};
pub use state::{State, Status};
