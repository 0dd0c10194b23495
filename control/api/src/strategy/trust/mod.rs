//! Bundles of trust anchors, and requests of certificates for pods.

mod bundle;
mod pod_certificate;

pub use bundle::ClusterTrustBundle;
pub use pod_certificate::PodCertificateRequest;
