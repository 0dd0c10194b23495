//! Daemon sets, stateful sets and what they keep: revisions, templates; and replication controllers, older than them all.
//!
//! Deployments and replica sets are in `workload`, with what all of them share.

mod controller_revision;
mod daemonset;
mod pod_template;
mod replication_controller;
mod statefulset;
mod volume_claim;

pub use controller_revision::ControllerRevision;
pub use daemonset::DaemonSet;
pub use pod_template::PodTemplate;
pub use replication_controller::ReplicationController;
pub use statefulset::StatefulSet;

#[cfg(test)]
mod tests;
