//! Removal of directory trees that never leaves them.
//!
//! A pod's directory holds bind mounts of the host's own directories, and containers write to it while it is removed. So what is
//! removed is found by descriptor, never by path ([`remove`]), and a mount point ends the removal with an error: what is behind
//! it belongs to somebody else. Bind mounts of the same file system have the same device number as what they cover, so only the
//! kernel's own knowledge of mounts tells them apart.
//!
//! [`unmount_below`] takes away what is mounted in a directory, without taking it away elsewhere.

#![forbid(unsafe_code)]

mod mounts;
mod remove;

pub use mounts::{UnmountError, is_mount_point, unmount, unmount_below};
pub use remove::{RemoveError, remove, remove_at, remove_with_last};
