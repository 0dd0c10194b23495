//! Managed fields: which client owns which field of an object, and server-side apply, which merges by ownership.
//!
//! Reading order: `path`, `item_value`, `set` and `fields_v1` (sets of fields and their JSON), `node` (how a schema tells
//! fields and items apart), `typed` (which fields an object has), `compare` (what changed), `merge` (a configuration into an
//! object, and fields out of it), `check` (what a configuration may be), `manager` and `managers` (the entries of
//! `metadata.managedFields`), `claims` (what a write takes from others), `update` (every write but an apply), and `apply` with
//! `prune`, `conflict` and `last_applied`.
//!
//! Everything here takes values and returns values. Sources: apimachinery `util/managedfields` and structured-merge-diff,
//! as of Kubernetes 1.37.

pub mod apply;
mod check;
mod claims;
pub mod compare;
pub mod conflict;
pub mod fields_v1;
pub mod item_value;
mod last_applied;
pub mod manager;
pub mod managers;
mod merge;
mod node;
pub mod path;
mod prune;
pub mod set;
pub mod typed;
pub mod update;

#[cfg(test)]
mod scenarios;

use std::sync::OnceLock;

use serde_json::Value;

pub use apply::{Applied, ApplyError, applied};
pub use check::validate;
pub use compare::{Changes, compare};
pub use conflict::{Conflict, Conflicts};
pub use manager::Manager;
pub use managers::Managers;
pub use merge::{merge, remove};
pub use path::PathElement;
pub use set::FieldSet;
pub use typed::{TypedError, set_of};
pub use update::updated;

use crate::schema::Schema;

/// Brings an object to another API version. `None` if the server does not serve that version any more.
pub type Convert<'a> = dyn Fn(&Value, &str) -> Option<Converted> + 'a;

/// An object in another version.
#[derive(Clone, Debug)]
pub struct Converted {
    /// The object.
    pub object: Value,
    /// The schema of its kind in that version.
    pub schema: Option<Schema>,
}

/// Who writes what, and when: what an update and an apply have in common.
#[derive(Clone, Copy)]
pub struct Write<'a> {
    /// The schema of the object's kind; without one, maps are shared key by key and lists change as a whole.
    pub schema: Option<&'a Schema>,
    /// The subresource through which the request comes.
    pub subresource: Option<&'a str>,
    /// The client.
    pub manager: &'a Manager,
    /// Fields that the request cannot change, and therefore not own: `status` on the main resource, `spec` on `status`.
    pub reset: &'a FieldSet,
    /// The present time, in RFC 3339 and UTC.
    pub now: &'a str,
    /// Whether an update of fields that the client owns already counts as new.
    pub stamp: Stamp,
    /// The other versions of the object.
    pub convert: &'a Convert<'a>,
}

/// When an update changes the time of its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// Whenever it changes a field, as kube-apiserver does.
    EveryChange,
    /// Only when the entry gets other fields than it had: entries of a client that writes the same fields again and again
    /// stay as they are.
    NewFields,
}

/// The fields that the server sets and nobody owns: in the object, and in its metadata.
const UNOWNED: [&str; 2] = ["apiVersion", "kind"];
const UNOWNED_METADATA: [&str; 9] = [
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    "managedFields",
    "resourceVersion",
];

fn is_unowned(parent: node::Place, name: &str) -> bool {
    match parent {
        node::Place::Root => UNOWNED.contains(&name),
        node::Place::Metadata => UNOWNED_METADATA.contains(&name),
        node::Place::Below => false,
    }
}

/// The same as a set, with `metadata` itself.
fn unowned_fields() -> &'static FieldSet {
    static SET: OnceLock<FieldSet> = OnceLock::new();
    SET.get_or_init(|| {
        let mut set = FieldSet::default();
        let metadata = PathElement::field("metadata");
        set.insert(std::slice::from_ref(&metadata));
        for name in UNOWNED {
            set.insert(&[PathElement::field(name)]);
        }
        for name in UNOWNED_METADATA {
            set.insert(&[metadata.clone(), PathElement::field(name)]);
        }
        set
    })
}
