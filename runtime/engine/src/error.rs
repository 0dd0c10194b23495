//! Why the engine did not do what it was asked.

use std::io;

use crate::pins::PinError;
use crate::record::RecordError;
use crate::shim::ShimError;
use crate::spec::SpecError;
use crate::user::UserError;

/// Why the engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no such sandbox, container or image.
    #[error("{what} {id:?} not found")]
    NotFound {
        /// `sandbox`, `container` or `image`.
        what: &'static str,
        /// Its id or name.
        id: String,
    },
    /// It is not in a state in which this can be done.
    #[error("{what} {id:?} is {state}")]
    State {
        /// `sandbox` or `container`.
        what: &'static str,
        /// Its id.
        id: String,
        /// The state it is in.
        state: &'static str,
    },
    /// The node's network is not configured yet.
    #[error("the node's pod network is not ready")]
    NetworkNotReady,
    /// A record on disk.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A namespace or shared directory of a sandbox.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// A sandbox's shim.
    #[error(transparent)]
    Shim(#[from] ShimError),
    /// The container's specification.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The container's user.
    #[error(transparent)]
    User(#[from] UserError),
    /// The node's network could not be set up.
    #[error("set up the node's network")]
    Network(#[from] knarr_network::OpenError),
    /// A pod's network could not be set up.
    #[error("set up the network of sandbox {id}")]
    Attach {
        /// The sandbox.
        id: String,
        /// Why.
        source: knarr_network::AttachError,
    },
    /// A pod's network could not be removed.
    #[error("remove the network of sandbox {id}")]
    Detach {
        /// The sandbox.
        id: String,
        /// Why.
        source: knarr_network::DetachError,
    },
    /// A root file system.
    #[error("the root file system of container {id}")]
    Snapshot {
        /// The container.
        id: String,
        /// Why.
        source: knarr_image::SnapshotError,
    },
    /// A volume of the image.
    #[error("the image's volume {path}", path = path.display())]
    Volume {
        /// Where it is in the container.
        path: std::path::PathBuf,
        /// Why.
        source: knarr_image::FileError,
    },
    /// The image store could not be opened.
    #[error(transparent)]
    OpenImages(#[from] knarr_image::OpenError),
    /// Images could not be read.
    #[error(transparent)]
    Images(#[from] knarr_image::ReadError),
    /// An image could not be removed.
    #[error(transparent)]
    RemoveImage(#[from] knarr_image::RemoveError),
    /// An image could not be pulled.
    #[error("pull {reference}")]
    Pull {
        /// The image's name.
        reference: String,
        /// Why.
        source: Box<knarr_image::PullError>,
    },
    /// The name of an image is none.
    #[error(transparent)]
    Reference(#[from] knarr_image::InvalidReference),
    /// A cgroup.
    #[error("cgroup {path}")]
    Cgroup {
        /// Its path.
        path: String,
        /// Why.
        source: knarr_oci::cgroup::CgroupError,
    },
    /// Something of the system's.
    #[error("{what}")]
    System {
        /// What was tried.
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// The runtime could not make the container's process or execute its program: the container has ended with
    /// reason `StartError`.
    #[error("{message}")]
    Start {
        /// The whole reason.
        message: String,
    },
    /// A command did not end in time and was killed.
    #[error("command {command:?} timed out")]
    Timeout {
        /// The command.
        command: Vec<String>,
    },
}

impl EngineError {
    /// Whether what was asked for does not exist (any more).
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}
