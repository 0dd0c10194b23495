//! One pod's network: namespace, veth pair, bridge and addresses.
//!
//! ```text
//!  pod's namespace                      the namespace the program runs in
//!  ┌───────────────────┐                ┌──────────────────────────────────────┐
//!  │ eth0 10.42.0.5/32 ├── veth pair ───┤ port of knarr0, 10.42.0.1/24         │── routes, nftables ── outside
//!  │ default via …0.1  │                │                                      │
//!  └───────────────────┘                └──────────────────────────────────────┘
//! ```
//!
//! * A pod's address is a `/32`: even its neighbours on the same bridge are reached through the node's
//!   routing. So both directions of every connection pass the node's connection tracking, and a service
//!   address that leads to a pod of the same node works whether or not the kernel has `br_netfilter`,
//!   with the client's address kept.
//! * [`Network`] owns the addresses of the node's pod CIDR. A record of each sandbox is on disk before
//!   its address is used and until nothing uses it any more, so a crash at any moment leaves nothing
//!   that [`Network::gc`] does not find.
//! * A namespace is made on a thread of its own, which ends with it: no thread of the caller
//!   ever changes its network namespace. Such threads also do all waiting on the kernel.
//! * nftables are touched only in a table of our own, `inet knarr_network`.
//!
//! Absent on purpose: services (knarr-proxy), routes to other nodes (knarr-route).
//!
//! Reading order: [`Network`], `attach` (one pod), `ipam` (who has which address), `records` (the same on disk),
//! `link` (interfaces), `netns` (namespaces), `rules` (nftables), `nft` (the program that writes them), `sysctl`. [`table`] and
//! [`nfnl`] (nf_tables over netlink) serve `knarr-proxy` too.

mod attach;
mod ipam;
mod link;
mod netns;
mod network;
pub mod nfnl;
pub mod nft;
mod records;
mod rules;
mod sysctl;
pub mod table;

pub use attach::{AttachError, DetachError};
pub use ipam::PoolError;
pub use link::LinkError;
pub use netns::{NetnsError, run_in};
pub use network::{Network, NetworkConfig, OpenError, PodNetwork, PortMapping, Protocol, cleanup};
pub use nft::NftError;
pub use records::RecordError;
pub use rules::RulesError;
pub use sysctl::SysctlError;
