//! The image store on a real kernel (as root) and against a real registry.

mod build;
mod faults;
mod hostile;
mod import;
mod pull;
mod registry;
mod snapshot;
mod store;
