//! A request on its way through the pipeline, as every stage of it sees it.
//!
//! Whatever asks for something goes the same way: its body is decoded and gets its defaults; admission plugins change it, with
//! defaults anew after each change; the strategy prepares the object and judges it, plugins judge it last; then it is committed,
//! or, for what is not stored (a connection, a review, a token), carried out. `write` and `delete` are the ways of what is stored.

use std::sync::Arc;

use serde_json::Value;

use super::admission::webhook::Rounds;
use super::write::Target;
use crate::resource::{GroupVersionKind, Resource, Subresource};
use crate::strategy::Context;

/// What is to be done, in the words of admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Something is made: an object, a binding, an eviction, a token, a review.
    Create,
    /// An object, or a part of it, changes.
    Update,
    /// An object goes.
    Delete,
    /// A connection is opened: exec, attach, port-forward, proxy.
    Connect,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Who asks, when, and whether it only asks what would be.
    pub context: Context,
    /// What is to be done.
    pub action: Action,
    /// The resource.
    pub resource: Arc<Resource>,
    /// The part of it that is spoken to.
    pub subresource: Option<Subresource>,
    /// The namespace; empty for objects of the cluster.
    pub namespace: String,
    /// The name; empty for a creation whose object has not got one yet.
    pub name: String,
    /// The kind of `old` and `new`: the resource's own, or that of the subresource (`Scale`, `Binding`, `PodExecOptions`).
    pub kind: GroupVersionKind,
    /// What is there; none for a creation.
    pub old: Option<Value>,
    /// What was sent, and what became of it on the way; none for a deletion.
    pub new: Option<Value>,
    /// The `CreateOptions`, `UpdateOptions` or `DeleteOptions`, as far as they are known; `dryRun` is in the context.
    pub options: Option<Value>,
    /// For `Warning` headers.
    pub warnings: Vec<String>,
    /// Which webhooks have been asked, and which are asked again.
    pub rounds: Rounds,
}

impl Operation {
    /// An operation on the target's object, of the resource's own kind.
    pub fn new(action: Action, target: &Target, context: &Context) -> Self {
        Self {
            context: context.clone(),
            action,
            resource: target.resource.clone(),
            subresource: None,
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            kind: target.resource.gvk.clone(),
            old: None,
            new: None,
            options: None,
            warnings: Vec::new(),
            rounds: Rounds::default(),
        }
    }

    /// The same, on a part of it, with what was sent to that.
    pub fn on(mut self, subresource: Subresource, kind: GroupVersionKind, new: Value) -> Self {
        self.subresource = Some(subresource);
        self.kind = kind;
        self.new = Some(new);
        self
    }

    /// Whether it is about objects of this resource themselves, not about a part of them.
    pub fn is_about(&self, group: &str, plural: &str) -> bool {
        self.subresource.is_none()
            && self.resource.gvk.group == group
            && self.resource.plural == plural
    }

    /// Whether `new` has the shape of the resource's own objects.
    pub fn is_whole(&self) -> bool {
        self.kind == self.resource.gvk
    }
}
