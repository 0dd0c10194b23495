//! Who owns whom, over all kinds.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::discovery::Resource;
use crate::model;

/// The UID of an object.
pub(crate) type Uid = Arc<str>;

/// The finalizer of a deletion that waits for the dependents.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of a deletion that lets the dependents live.
pub(crate) const ORPHAN: &str = "orphan";

/// An object, as far as ownership goes.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub resource: Arc<Resource>,
    pub namespace: Box<str>,
    pub name: Box<str>,
    pub owners: Box<[Owner]>,
    pub deletion: Deletion,
}

impl Node {
    /// The object of this metadata.
    pub fn of(resource: &Arc<Resource>, meta: &ObjectMeta) -> Self {
        Self {
            resource: resource.clone(),
            namespace: model::namespace(meta).into(),
            name: model::name(meta).into(),
            owners: meta.owner_references.iter().flatten().map(owner).collect(),
            deletion: Deletion::of(meta),
        }
    }
}

/// A reference to an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub uid: Uid,
    /// Whether the owner's deletion in the foreground waits for this object.
    pub blocks: bool,
}

/// How an object is being deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deletion {
    /// Not at all.
    None,
    /// It waits for its dependents.
    Foreground,
    /// Its dependents are let go first.
    Orphan,
    /// It waits for something else.
    Other,
}

impl Deletion {
    /// What the metadata says.
    pub fn of(meta: &ObjectMeta) -> Self {
        let has = |name: &str| {
            meta.finalizers
                .iter()
                .flatten()
                .any(|finalizer| finalizer == name)
        };
        match (model::is_deleting(meta), has(ORPHAN), has(FOREGROUND)) {
            (false, _, _) => Self::None,
            (true, true, _) => Self::Orphan,
            (true, false, true) => Self::Foreground,
            (true, false, false) => Self::Other,
        }
    }
}

/// All objects and their dependents.
#[derive(Default)]
pub(crate) struct Graph {
    nodes: HashMap<Uid, Node>,
    dependents: HashMap<Uid, HashSet<Uid>>,
}

impl Graph {
    /// An object.
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The objects that name this owner.
    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = (&Uid, &Node)> {
        self.dependents
            .get(uid)
            .into_iter()
            .flatten()
            .filter_map(|uid| self.nodes.get_key_value(uid))
    }

    /// The dependents for which the deletion of their owner has to wait.
    pub fn blocking<'a>(&'a self, owner: &'a str) -> impl Iterator<Item = &'a Uid> {
        self.dependents(owner)
            .filter(move |(_, node)| {
                node.owners
                    .iter()
                    .any(|reference| &*reference.uid == owner && reference.blocks)
            })
            .map(|(uid, _)| uid)
    }

    /// Takes an object over; answers which objects have to be looked at.
    pub fn observe(&mut self, resource: &Arc<Resource>, meta: &ObjectMeta) -> Vec<Uid> {
        let uid: Uid = model::uid(meta).into();
        let node = Node::of(resource, meta);
        let (owners, deletion) = (&node.owners, node.deletion);
        let old = self.nodes.remove(&uid);
        let mut affected = Vec::new();
        let old_owners = old
            .as_ref()
            .map(|old| old.owners.clone())
            .unwrap_or_default();
        if old_owners != *owners {
            self.unlink(&uid, &old_owners);
            for owner in owners {
                self.dependents
                    .entry(owner.uid.clone())
                    .or_default()
                    .insert(uid.clone());
            }
            // An owner that waits for its dependents may have lost its last one, and a new owner may not exist.
            affected.extend(
                old_owners
                    .iter()
                    .map(|owner| owner.uid.clone())
                    .filter(|owner| self.waits(owner)),
            );
            if !owners.is_empty() {
                affected.push(uid.clone());
            }
        }
        let old_deletion = old.map_or(Deletion::None, |old| old.deletion);
        if deletion != old_deletion {
            match deletion {
                Deletion::Foreground => {
                    affected.push(uid.clone());
                    affected.extend(self.dependents.get(&uid).into_iter().flatten().cloned());
                    // A dependent in foreground deletion may unblock others.
                    affected.extend(
                        owners
                            .iter()
                            .map(|owner| owner.uid.clone())
                            .filter(|owner| self.waits(owner)),
                    );
                }
                Deletion::Orphan => affected.push(uid.clone()),
                Deletion::None | Deletion::Other => {}
            }
        }
        self.nodes.insert(uid, node);
        affected
    }

    /// Forgets an object that is gone; answers which objects have to be looked at.
    pub fn remove(&mut self, uid: &str) -> Vec<Uid> {
        let Some((uid, node)) = self.nodes.remove_entry(uid) else {
            return Vec::new();
        };
        self.unlink(&uid, &node.owners);
        let mut affected: Vec<Uid> = self
            .dependents
            .get(&uid)
            .into_iter()
            .flatten()
            .cloned()
            .collect();
        affected.extend(
            node.owners
                .iter()
                .map(|owner| owner.uid.clone())
                .filter(|owner| self.waits(owner)),
        );
        affected
    }

    /// The objects of a resource; for a list that was read anew.
    pub fn of_resource<'a>(&'a self, resource: &'a Resource) -> impl Iterator<Item = &'a Uid> {
        self.nodes
            .iter()
            .filter(move |(_, node)| *node.resource == *resource)
            .map(|(uid, _)| uid)
    }

    fn waits(&self, uid: &str) -> bool {
        self.get(uid)
            .is_some_and(|node| node.deletion == Deletion::Foreground)
    }

    fn unlink(&mut self, uid: &Uid, owners: &[Owner]) {
        for owner in owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }
}

fn owner(reference: &OwnerReference) -> Owner {
    Owner {
        uid: reference.uid.as_str().into(),
        blocks: reference.block_owner_deletion == Some(true),
    }
}
