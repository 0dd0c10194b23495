//! One tiny process per pod, parent of its containers.
//!
//! The shim is all that a pod needs to go on while `knarr` is away: it is the subreaper and parent of the pod's containers, reads
//! their output and writes their logs, gives execs their terminals, and records exit codes on disk before it announces them.
//! It has one thread, one epoll set, and bounded buffers.
//!
//! ```text
//!  engine ──listener──> accept ──Call──> containers ──knarr-oci──> the kernel
//!     ^                                     │  stdout, stderr, terminal ──> log, attached sockets
//!     └──────────── Message ────────────────┴── SIGCHLD: exit.json, then Exited
//! ```
//!
//! Reading order: [`protocol`], [`socket`], [`log`](mod@log), `attached`, `container`, `words`, [`pause`], `server`.

mod attached;
mod container;
pub mod log;
pub mod pause;
pub mod protocol;
mod server;
pub mod socket;
mod words;

pub use server::{ServeError, serve};
