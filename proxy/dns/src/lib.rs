//! Cluster DNS on every node.
//!
//! Each node answers on the cluster's DNS address itself: the address is on its own loopback interface, so a pod's question
//! never leaves the node, and there is no DNS pod that must run first. Names of the cluster are answered from the same memory of
//! Services and EndpointSlices as the service proxy's ([`knarr_proxy::Feed`]); everything else goes to the node's own name servers.
//!
//! * `zone`: names and addresses of the cluster to records, as "Kubernetes DNS-Based Service Discovery" (schema version 1.1.0) says.
//!   Objects in, records out.
//! * `forward`: questions for others.
//! * `serve`: one question, one answer.
//! * `run`: sockets, and the address.
//!
//! Absent on purpose: a cache (the node's name servers have one), zone transfers, DNSSEC.

mod forward;
mod run;
mod serve;
mod zone;

pub use run::{DnsConfig, DnsError, cleanup, run};
