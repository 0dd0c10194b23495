//! Pull, content store, unpacking, snapshots and garbage collection of images.
//!
//! ```text
//! registry --pull--> partial --verify--> blobs --unpack, verify--> layers --overlayfs--> a container's rootfs
//! file -----import-----------------------^                         index: names -> image
//! ```
//!
//! Everything is in one directory ([`StoreConfig::dir`]) that several processes may have open at once: changes of the index
//! happen under a lock, content gets its name only once it is whole and verified, and what is being written is locked by
//! its writer, so that the next opener can tell a crashed writer's leavings from work in progress.
//!
//! Reading order: [`digest`](Digest) and [`reference`](Reference), `layout` (what is where), `content` (blobs), `archive`
//! and `unpack` (hostile archives), `layers`, `index`, `store` ([`ImageStore`]), `manifest`, `platform` and `search` (which image is for this machine), `import`, `logins`,
//! `registry` and `pull`, `snapshot` (on `inherit` and `overlay`), `gc`.

#![forbid(unsafe_code)]

mod archive;
mod content;
mod digest;
mod error;
mod files;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod gc;
mod import;
mod index;
mod inherit;
mod layers;
mod layout;
mod logins;
mod manifest;
mod overlay;
mod platform;
mod pull;
mod reference;
mod registry;
mod search;
mod snapshot;
mod store;
mod unpack;
mod volume;

pub use content::ContentError;
pub use digest::{Digest, DigestError};
pub use error::FileError;
pub use gc::{Collected, Watermarks};
pub use import::ImportError;
pub use index::IndexError;
pub use layers::LayerError;
pub use logins::{Login, Logins, LoginsError};
pub use manifest::ManifestError;
pub use pull::{Auth, PullError};
pub use reference::{InvalidName, InvalidReference, Reference};
pub use registry::RegistryError;
pub use snapshot::{Rootfs, Snapshot, SnapshotError};
pub use store::{Image, ImageStore, OpenError, ReadError, RemoveError, Removed, StoreConfig};
pub use unpack::{UnpackError, UnpackLimits};
pub use volume::copy_directory;
