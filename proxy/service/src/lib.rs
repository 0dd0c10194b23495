//! Services and EndpointSlices to nftables.
//!
//! ```text
//!  API ── watch ──> feed ──> frontend ──> ruleset ──> kernel
//!                  objects   what each    what must   nfnetlink batches into
//!                            address      change      the maps of `skeleton`
//!                            leads to
//! ```
//!
//! The ruleset of the kernel is constant; all state is in its maps (see `skeleton`). One change of one Service or EndpointSlice
//! costs the elements of that service, in one atomic batch, whatever the number of services.
//!
//! * [`Feed`] is the process's one watch of Services and EndpointSlices; the cluster DNS uses it too.
//! * `frontend`, `maps` and `ruleset` are pure: objects in, changes out. Most tests are theirs.
//! * `kernel`, `constant`, `conntrack` and `route` are the thin shell; `batch` and `rule` are its words.
//! * `health` answers load balancers that ask whether this node has endpoints of a service.
//! * After a restart the kernel's rules and elements are read back and adopted; traffic never stops. The same is done at once when
//!   somebody else changes the table. Only the table `inet knarr` is ever touched.
//!
//! Absent on purpose: pod networks and host ports (knarr-network), routes between nodes (knarr-route), NetworkPolicy.

mod batch;
mod conntrack;
mod constant;
mod feed;
pub mod frontend;
mod health;
mod kernel;
pub mod maps;
pub mod objects;
mod route;
mod rule;
pub mod ruleset;
mod run;
mod skeleton;

pub use feed::{Changes, Feed, FeedError};
pub use kernel::{Kernel, KernelError};
pub use run::{ProxyConfig, ProxyError, cleanup, run};
pub use skeleton::Ranges;
