//! Sandboxes, containers and images behind one asynchronous API, with the names and meaning of CRI v1.
//!
//! ```text
//!  kubelet ──> Engine ──> sandbox: knarr-network (netns, address), pins (ipc, uts, shm), a knarr-shim
//!                    ├──> container: knarr-image (root file system), spec (config.json), the shim (create, start, exec)
//!                    └──> images: knarr-image (pull, import, remove)
//! ```
//!
//! * A sandbox's or container's record is on disk before anything is made for it and until nothing of it is left, so that
//!   [`Engine::open`] after a crash at any moment knows what to take up again and what to clear away.
//! * The containers are the shims' children, not the engine's: they go on when the engine ends. Exits that happened
//!   meanwhile are on disk, written by the shims.
//!
//! Reading order: [`types`], `record`, `pins`, `shim`, `user`, `volumes`, `spec`, `engine`, `sandbox`, `container`, `session`, `restore`, `images`.

mod container;
mod engine;
mod error;
mod images;
mod pins;
mod record;
mod restore;
mod sandbox;
mod session;
mod shim;
mod spec;
mod sys;
pub mod types;
mod user;
mod volumes;

pub use engine::{Engine, EngineConfig};
pub use error::EngineError;
pub use knarr_image::{
    ImageStore, Logins, LoginsError, Reference as ImageReference, StoreConfig, Watermarks,
};
pub use knarr_network::NetworkConfig;
pub use session::{ExecRequest, Session, SessionReader, SessionWriter};
