//! The API server.

pub mod resource;
pub mod status;
pub mod strategy;
pub mod table;
