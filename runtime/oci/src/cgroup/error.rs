//! What can fail on a cgroup.

use std::io;
use std::path::PathBuf;

/// Something on a cgroup failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The path of a group is none.
    #[error("invalid cgroup path {path:?}: it may not hold `..`")]
    InvalidPath {
        /// The path.
        path: PathBuf,
    },
    /// What is mounted cannot be told.
    #[error("read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A group cannot be made.
    #[error("create cgroup {path}", path = path.display())]
    Create {
        /// Its directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A value was refused.
    #[error("write {value:?} to {path}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The value.
        value: String,
        /// Why not.
        source: io::Error,
    },
    /// A group cannot be removed.
    #[error("remove cgroup {path}", path = path.display())]
    Remove {
        /// Its directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The host has no such controller, and it was asked for.
    #[error("this host has no cgroup controller {controller:?}, which {wanted_by} needs")]
    NoController {
        /// Its name.
        controller: String,
        /// The field of the configuration.
        wanted_by: String,
    },
    /// The field makes sense on another version only.
    #[error("invalid configuration: {what} is not possible on cgroup {version}")]
    WrongVersion {
        /// The field.
        what: String,
        /// `v1` or `v2`.
        version: &'static str,
    },
    /// The field holds what cannot be.
    #[error("invalid {what}")]
    Invalid {
        /// The field, and its value.
        what: String,
    },
    /// `checkBeforeUpdate` was asked for, and the limit is below what is used.
    #[error("memory limit {limit} is not above the {usage} bytes that are used now")]
    BelowUsage {
        /// The limit, of memory or of memory and swap.
        limit: i64,
        /// `memory.current`.
        usage: i64,
    },
    /// Two sets of limits cannot be made one.
    #[error("merge the new limits with the old ones")]
    Merge {
        /// Why not.
        source: serde_json::Error,
    },
    /// Device rules of v2.
    #[error("load the device rules into the kernel")]
    DeviceProgram {
        /// Why not.
        source: io::Error,
    },
    /// Others live in the group already: it could not be frozen, killed or removed without them. In words of runc's.
    #[error("container's cgroup is not empty: {count} process(es) found in {path}", path = path.display())]
    NotEmpty {
        /// The group.
        path: PathBuf,
        /// How many.
        count: usize,
    },
    /// A process that enters it would never do anything. In words of runc's.
    #[error("container's cgroup unexpectedly frozen: {path}", path = path.display())]
    Frozen {
        /// The group.
        path: PathBuf,
    },
    /// Waiting for the freezer or for processes to end took too long.
    #[error("{what} took too long in {path}", path = path.display())]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// The group.
        path: PathBuf,
    },
}

impl CgroupError {
    /// Whether it is for lack of rights, or because the hierarchy is mounted read-only.
    pub fn is_denied(&self) -> bool {
        let (Self::Read { source, .. }
        | Self::Create { source, .. }
        | Self::Write { source, .. }
        | Self::DeviceProgram { source }) = self
        else {
            return false;
        };
        matches!(
            source.kind(),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
        )
    }
}
