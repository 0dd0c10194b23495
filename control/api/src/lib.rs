//! The API server.

pub mod pki;
pub mod resource;
pub mod status;
pub mod strategy;
pub mod table;
pub mod discovery;
pub mod kinds;
pub mod openapi;
pub mod patch;
pub mod schema;
