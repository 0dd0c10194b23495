//! What becomes of an object, given its owners and dependents.
//!
//! Source of the rules: kubernetes/pkg/controller/garbagecollector/garbagecollector.go, `attemptToDeleteItem`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::graph::{Deletion, FOREGROUND, ORPHAN};

/// The state of an owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnerState {
    /// It exists.
    Solid,
    /// It is being deleted and waits for its dependents.
    Waiting,
    /// There is no such object.
    Absent,
}

/// What is known of the dependents of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Dependents {
    /// Whether there is any.
    pub any: bool,
    /// Whether its deletion has to wait for one of them.
    pub blocking: bool,
    /// Whether one of them is itself being deleted in the foreground.
    pub deleting: bool,
}

/// How to delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Background,
    Foreground,
    Orphan,
}

/// What to do with the object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Nothing.
    Keep,
    /// Look at the dependents that keep it from going.
    PushDependents,
    /// Let every dependent go, then drop the finalizer.
    OrphanDependents,
    /// Drop the finalizer of the deletion in the foreground.
    Finish,
    /// Keep only the references to these owners' UIDs.
    KeepOwners(Vec<String>),
    /// Delete it; `unblock` first lets its owners no longer wait for it, which breaks circles.
    Delete { policy: Policy, unblock: bool },
}

/// Decides on an object as the server has it now.
pub(crate) fn decide(
    meta: &ObjectMeta,
    state: impl Fn(&OwnerReference) -> OwnerState,
    dependents: Dependents,
) -> Action {
    match Deletion::of(meta) {
        Deletion::Orphan => return Action::OrphanDependents,
        Deletion::Foreground if dependents.blocking => return Action::PushDependents,
        Deletion::Foreground => return Action::Finish,
        Deletion::Other => return Action::Keep,
        Deletion::None => {}
    }
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    if owners.is_empty() {
        return Action::Keep;
    }
    let states: Vec<_> = owners.iter().map(|owner| (owner, state(owner))).collect();
    let solid: Vec<_> = states
        .iter()
        .filter(|(_, state)| *state == OwnerState::Solid)
        .map(|(owner, _)| owner.uid.clone())
        .collect();
    if solid.len() == owners.len() {
        return Action::Keep;
    }
    if !solid.is_empty() {
        return Action::KeepOwners(solid);
    }
    if dependents.any
        && states
            .iter()
            .any(|(_, state)| *state == OwnerState::Waiting)
    {
        return Action::Delete {
            policy: Policy::Foreground,
            unblock: dependents.deleting,
        };
    }
    let has = |name: &str| {
        meta.finalizers
            .iter()
            .flatten()
            .any(|finalizer| finalizer == name)
    };
    let policy = if has(ORPHAN) {
        Policy::Orphan
    } else if has(FOREGROUND) {
        Policy::Foreground
    } else {
        Policy::Background
    };
    Action::Delete {
        policy,
        unblock: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn meta(value: Value) -> ObjectMeta {
        serde_json::from_value(value).expect("metadata")
    }

    fn owned(by: &[&str]) -> ObjectMeta {
        let owners: Vec<_> = by
            .iter()
            .map(|uid| json!({"apiVersion": "v1", "kind": "X", "name": uid, "uid": uid}))
            .collect();
        meta(json!({"name": "a", "ownerReferences": owners}))
    }

    fn state(owner: &OwnerReference) -> OwnerState {
        match owner.uid.as_str() {
            "gone" => OwnerState::Absent,
            "waiting" => OwnerState::Waiting,
            _ => OwnerState::Solid,
        }
    }

    #[test]
    fn an_object_lives_as_long_as_one_owner_does() {
        let none = Dependents::default();
        let some = Dependents { any: true, ..none };
        let circle = Dependents {
            any: true,
            deleting: true,
            ..none
        };
        let delete = |policy, unblock| Action::Delete { policy, unblock };
        for (owners, dependents, expected) in [
            (&[][..], none, Action::Keep),
            (&["solid"], none, Action::Keep),
            (&["gone"], none, delete(Policy::Background, false)),
            (
                &["gone", "solid"],
                none,
                Action::KeepOwners(vec!["solid".into()]),
            ),
            (
                &["waiting", "solid"],
                none,
                Action::KeepOwners(vec!["solid".into()]),
            ),
            (&["waiting"], none, delete(Policy::Background, false)),
            (&["waiting"], some, delete(Policy::Foreground, false)),
            (&["waiting"], circle, delete(Policy::Foreground, true)),
        ] {
            assert_eq!(
                decide(&owned(owners), state, dependents),
                expected,
                "{owners:?} {dependents:?}"
            );
        }
    }

    #[test]
    fn a_deletion_goes_on_as_its_finalizers_say() {
        let deleted = |finalizers: &[&str]| {
            meta(
                json!({"name": "a", "deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": finalizers}),
            )
        };
        let blocked = Dependents {
            any: true,
            blocking: true,
            deleting: false,
        };
        for (finalizers, dependents, expected) in [
            (&[FOREGROUND][..], blocked, Action::PushDependents),
            (&[FOREGROUND], Dependents::default(), Action::Finish),
            (&[ORPHAN], blocked, Action::OrphanDependents),
            (&["example.com/other"], Dependents::default(), Action::Keep),
        ] {
            assert_eq!(
                decide(&deleted(finalizers), state, dependents),
                expected,
                "{finalizers:?}"
            );
        }
    }
}
