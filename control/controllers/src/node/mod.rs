//! Nodes: their pods' addresses, their health, and what happens to the pods of sick ones.

mod cidr;
pub(crate) mod eviction;
pub(crate) mod health;
pub(crate) mod ipam;
mod zones;
