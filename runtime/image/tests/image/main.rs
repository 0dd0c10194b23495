//! The image store on a real kernel (as root) and against a real registry.

mod build;
mod faults;
mod generate;
mod hostile;
mod import;
mod odd;
mod odd_registry;
mod platforms;
mod pull;
mod registry;
mod snapshot;
mod store;
mod trees;
