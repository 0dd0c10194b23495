//! The API server: every object of the cluster behind the Kubernetes API.
//!
//! One table of resources ([`kinds`]) drives routing, discovery, OpenAPI and storage. Reading order: [`resource`] and
//! [`strategy`] (what a kind is), [`schema`] and [`patch`] (its fields), [`registry`] (its objects), [`http`] (requests),
//! [`auth`] (who asks), [`server`] (all of it as one thing), [`pki`] (keys and certificates).

pub mod auth;
pub mod discovery;
pub mod http;
pub mod kinds;
pub mod openapi;
pub mod patch;
pub mod pki;
pub mod registry;
pub mod resource;
pub mod schema;
pub mod server;
pub mod status;
pub mod strategy;
pub mod table;

pub use auth::UserInfo;
pub use server::{ApiServer, ApiServerConfig};

/// The version that the server presents itself as.
pub const VERSION: &str = "v1.37.0+knarr";
