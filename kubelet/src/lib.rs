//! The node agent: runs the pods that the API assigns to its node.

mod act;
mod bootstrap;
mod config;
mod container_status;
mod ctx;
mod engine;
mod env;
mod events;
mod gc;
mod hooks;
mod http_check;
mod identity;
mod images;
mod kill;
mod logs;
mod manager;
mod memory;
mod node;
mod objects;
mod plan;
mod pod;
mod probe;
mod probes;
mod quantity;
mod resources;
mod run;
mod runtime;
mod sandbox;
mod security;
mod server;
mod services;
mod start;
mod status;
mod termination;
#[cfg(test)]
mod testing;
mod volumes;
mod worker;
mod writer;

pub use bootstrap::{BootstrapError, Join, Joined, bootstrap};
pub use config::KubeletConfig;
pub use identity::{Identity, IdentityError};
pub use run::{RunError, run};
