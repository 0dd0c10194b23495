//! Routes to the pods of other nodes.
//!
//! Every node owns a range of pod addresses (`Node.spec.podCIDRs`); this crate keeps one route to each of the other ranges, through
//! the address of its node (`InternalIP`). The nodes must be neighbours on one network segment.
//!
//! * `plan` is pure: nodes and routes in, changes out.
//! * `kernel` reads and writes the routes; ours carry a protocol number of their own, and no others are touched.
//! * `run` follows the nodes.
//!
//! Absent on purpose: tunnels for nodes that are no neighbours, and the node's own range (knarr-network's bridge has it).

mod kernel;
mod plan;
mod run;

pub use kernel::{Kernel, KernelError};
pub use plan::{Change, NodeInfo, Refused, Why, plan, wanted};
pub use run::{RouteConfig, RouteError, run};
