//! The API server: every object of the cluster behind the Kubernetes API.
//!
//! One table of resources ([`kinds`]) drives routing, discovery, OpenAPI and storage. Reading order: [`resource`] and
//! [`strategy`] (what a kind is), [`crd`] (kinds that users define), [`schema`], [`patch`] and [`managed`] (its fields),
//! [`registry`] (its objects), [`http`] (requests), [`auth`] (who asks), [`server`] (all of it as one thing), [`pki`] (keys
//! and certificates).

pub mod auth;
pub mod crd;
pub mod discovery;
pub mod http;
pub mod kinds;
pub mod managed;
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

mod supervise;

pub use auth::UserInfo;
pub use server::{ApiServer, ApiServerConfig};

/// The version that the server presents itself as.
pub const VERSION: &str = "v1.37.0+knarr";

/// What the program was built from, for `/version`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// The commit, in hexadecimal digits.
    pub commit: String,
    /// `clean`, or `dirty` with changes that are not committed, or `archive` without a repository.
    pub tree_state: String,
    /// When: the commit's own time, RFC 3339 in UTC.
    pub date: String,
    /// The compiler's version.
    pub compiler: String,
}

impl Default for Build {
    /// Nothing is known.
    fn default() -> Self {
        Self {
            commit: "0".repeat(40),
            tree_state: "archive".to_owned(),
            date: "1970-01-01T00:00:00Z".to_owned(),
            compiler: "rustc".to_owned(),
        }
    }
}
