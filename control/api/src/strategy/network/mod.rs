//! Ingresses, network policies, and the addresses of services.

mod address;
mod class;
mod ingress;
mod policy;
mod range;

pub use address::IpAddress;
pub use class::IngressClass;
pub use ingress::Ingress;
pub use policy::NetworkPolicy;
pub use range::ServiceCidr;
