//! Control groups on v1, hybrid and v2 hosts.
//!
//! [`Layout`] says what is mounted where, [`Group`] is one group in all hierarchies that count, by its path from the
//! hierarchies' roots. Usable without the rest of the crate: for a pod's group, for QoS classes, for events and numbers.
//! A group that we did not make is never removed.
//!
//! * `layout`: what is mounted where
//! * `group`: a group made, limited and removed; `members`: its processes
//! * `file`: control files, and what to write to them
//! * `plan`: from the configuration's resources to writes, pure, one file per version: `v1`, `v2`
//! * `merge`: old limits and new ones, for update
//! * `devices`: the BPF program which takes the place of v1's device files on v2
//! * `systemd`: groups that systemd makes: what to ask it for
//! * `stats`: reading what was used
//! * `events`: waiting for out-of-memory

mod devices;
mod error;
mod events;
mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod group;
mod layout;
mod members;
mod merge;
mod stats;
pub mod systemd;
mod v1;
mod v2;

pub use error::CgroupError;
pub use events::OomEvents;
pub(crate) use file::{Write1, read, write};
use group::make_directories;
pub use group::{Group, GroupRecord};
pub use layout::Layout;
pub(crate) use layout::{mount_point, mount_points};
pub(crate) use merge::to_write;
pub use merge::{ignored, merge};
pub use stats::{BlkioStats, CpuStats, MemoryStats, PidsStats, Stats};
pub(crate) use v1::seen;
