//! The node agent: runs the pods that the API assigns to its node.

mod act;
mod config;
mod container_status;
mod ctx;
mod env;
mod events;
mod gc;
mod hooks;
mod http_check;
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
mod volumes;
mod worker;
mod writer;

pub use config::{KubeletConfig, ServingIdentity};
pub use run::RunError;
