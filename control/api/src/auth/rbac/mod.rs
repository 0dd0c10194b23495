//! Role-based access control: whom roles and bindings allow what.
//!
//! Everything here decides and nothing here acts: the functions take objects and return decisions; `registry::policy` writes
//! what they say.
//!
//! - `rules` reads the rules of a role and says what they allow; `cover` finds what one set of rules lacks of another.
//! - `binding` reads bindings; `authorizer` follows them from a user to rules; `index` keeps both parsed.
//! - `escalation` keeps people from granting more than they have.
//! - `policy` has the roles and bindings of every cluster, `reconcile` says how to bring a cluster to them, and which rules
//!   an aggregated role has.

pub mod authorizer;
pub mod binding;
pub mod cover;
pub mod escalation;
pub mod index;
pub mod policy;
pub mod reconcile;
pub mod rules;

#[cfg(test)]
mod fixture;

pub use authorizer::Bindings;
pub use binding::{Binding, RoleRef, Subject};
pub use rules::PolicyRule;

/// The API group of roles and bindings.
pub const GROUP: &str = "rbac.authorization.k8s.io";

/// The `apiVersion` of roles and bindings.
pub const API_VERSION: &str = "rbac.authorization.k8s.io/v1";
