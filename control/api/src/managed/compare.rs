//! What changed between two objects.
//!
//! Source: structured-merge-diff, `typed/compare.go`.

use serde_json::{Map, Value};

use super::item_value::compare as order;
use super::node::{Items, Kind, Place, TypeAt};
use super::path::PathElement;
use super::set::FieldSet;
use super::typed::{TypedError, grouped};
use crate::schema::Schema;

/// What a write changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What is there now and was not.
    pub added: FieldSet,
    /// What is there as before, with another value.
    pub modified: FieldSet,
    /// What was there.
    pub removed: FieldSet,
}

/// What changed from `old` to `new`, leaving out what nobody owns: `apiVersion`, `kind` and the server's part of `metadata`.
///
/// One walk of both. It allocates for what changed only; lists that are equal are passed over before their items are told
/// apart, so that a list is read once more for each list around it that differs.
///
/// # Errors
///
/// For an item of a changed list that cannot be told apart.
pub fn compare(
    schema: Option<&Schema>,
    old: Option<&Value>,
    new: &Value,
) -> Result<Changes, TypedError> {
    // Before a create there is an empty object of the kind, in which the structs of Kubernetes' types are there already.
    let old = old.map_or(Side::Zero, Side::Value);
    diff(TypeAt::root(schema), old, Side::Value(new)).map(|diff| diff.below)
}

/// One of the two values that are compared.
#[derive(Clone, Copy)]
enum Side<'v> {
    Absent,
    /// Left out in JSON, and zero in Kubernetes' types.
    Zero,
    Value(&'v Value),
}

impl<'v> Side<'v> {
    fn value(self) -> Option<&'v Value> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Zero => None,
        }
    }

    fn is_absent(self) -> bool {
        matches!(self, Self::Absent)
    }

    fn child(self, at: TypeAt<'_>, name: &str) -> Self {
        let own = match self {
            Self::Absent => return Self::Absent,
            Self::Zero => None,
            Self::Value(Value::Object(fields)) => fields.get(name),
            Self::Value(_) => return Self::Absent,
        };
        match own {
            Some(value) => Self::Value(value),
            None if at.has_by_value(name) => Self::Zero,
            None => Self::Absent,
        }
    }

    fn fields(self) -> impl Iterator<Item = &'v String> {
        let fields = self.value().and_then(Value::as_object);
        fields.into_iter().flat_map(Map::keys)
    }

    fn items(self) -> &'v [Value] {
        self.value()
            .and_then(Value::as_array)
            .map_or(&[], Vec::as_slice)
    }

    /// Whether the value has no parts.
    fn is_empty(self) -> bool {
        match self.value() {
            Some(Value::Object(fields)) => fields.is_empty(),
            Some(Value::Array(items)) => items.is_empty(),
            _ => true,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Added,
    Modified,
    Removed,
}

/// What changed at a value, and below it.
#[derive(Default)]
struct Diff {
    own: Option<Mark>,
    below: Changes,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    /// What was added or modified.
    pub fn written(&self) -> FieldSet {
        self.added.union(&self.modified)
    }

    /// The changes without those at and below the paths of a set.
    #[must_use]
    pub fn without(self, reset: &FieldSet) -> Self {
        if reset.is_empty() {
            return self;
        }
        Self {
            added: self.added.recursive_difference(reset),
            modified: self.modified.recursive_difference(reset),
            removed: self.removed.recursive_difference(reset),
        }
    }

    fn add(&mut self, element: PathElement, diff: Diff) {
        let is = |mark| diff.own == Some(mark);
        self.added
            .add(element.clone(), is(Mark::Added), diff.below.added);
        self.modified
            .add(element.clone(), is(Mark::Modified), diff.below.modified);
        self.removed
            .add(element, is(Mark::Removed), diff.below.removed);
    }
}

impl Diff {
    fn is_empty(&self) -> bool {
        self.own.is_none() && self.below.is_empty()
    }
}

fn diff(at: TypeAt<'_>, old: Side<'_>, new: Side<'_>) -> Result<Diff, TypedError> {
    let (before, after) = (at.kind(old.value()), at.kind(new.value()));
    if new.is_absent() {
        return diff_as(at, before, old, new);
    }
    let mut found = diff_as(at, after, old, new)?;
    let other = std::mem::discriminant(&before) != std::mem::discriminant(&after);
    if other && !old.is_absent() {
        // Without a schema, a map became a leaf or the other way round: the leaf changed, and the map's fields came or went.
        let lost = diff_as(at, before, old, new)?;
        found.own = found.own.or(lost.own);
        found.below.added = found.below.added.union(&lost.below.added);
        found.below.modified = found.below.modified.union(&lost.below.modified);
        found.below.removed = found.below.removed.union(&lost.below.removed);
    }
    Ok(found)
}

fn diff_as(
    at: TypeAt<'_>,
    kind: Kind<'_>,
    old: Side<'_>,
    new: Side<'_>,
) -> Result<Diff, TypedError> {
    let presence = match (old, new) {
        (Side::Absent, Side::Absent) => None,
        (Side::Absent, _) => Some(Mark::Added),
        (_, Side::Absent) => Some(Mark::Removed),
        _ => None,
    };
    // Two empty values are leaves, so that null and empty are told apart.
    if matches!(kind, Kind::Leaf) || old.is_empty() && new.is_empty() {
        let changed = presence.is_none() && !is_same(at, old, new);
        let own = presence.or(changed.then_some(Mark::Modified));
        return Ok(Diff {
            own,
            ..Diff::default()
        });
    }
    let below = match kind {
        Kind::Items(items) => diff_items(items, old, new)?,
        Kind::Fields | Kind::Leaf => diff_fields(at, old, new)?,
    };
    Ok(Diff {
        own: presence,
        below,
    })
}

fn is_same(at: TypeAt<'_>, old: Side<'_>, new: Side<'_>) -> bool {
    match (old, new) {
        (Side::Value(old), Side::Value(new)) => order(old, new).is_eq(),
        (Side::Value(value), _) | (_, Side::Value(value)) => at.is_zero(value),
        _ => true,
    }
}

fn diff_fields(at: TypeAt<'_>, old: Side<'_>, new: Side<'_>) -> Result<Changes, TypedError> {
    let mut changes = Changes::default();
    let only_old = old.fields().filter(|name| {
        new.value()
            .is_none_or(|new| new.get(name.as_str()).is_none())
    });
    for name in new.fields().chain(only_old) {
        if super::is_unowned(at.place, name) {
            continue;
        }
        let mut found = diff(at.child(name), old.child(at, name), new.child(at, name))
            .map_err(|err| err.within(&PathElement::field(name)))?;
        if at.child(name).place == Place::Metadata {
            found.own = None;
        }
        if !found.is_empty() {
            changes.add(PathElement::field(name), found);
        }
    }
    Ok(changes)
}

fn diff_items(items: Items<'_>, old: Side<'_>, new: Side<'_>) -> Result<Changes, TypedError> {
    let mut changes = Changes::default();
    if let (Side::Value(old), Side::Value(new)) = (old, new)
        && order(old, new).is_eq()
    {
        return Ok(changes);
    }
    let mut before = grouped(items, old.items())?;
    let after = grouped(items, new.items())?;
    for (element, new) in after {
        let old = before.remove(&element).unwrap_or_default();
        add_item(&mut changes, items.item, element, &old, &new)?;
    }
    for (element, old) in before {
        add_item(&mut changes, items.item, element, &old, &[])?;
    }
    Ok(changes)
}

/// What changed at the items of one identity. Duplicates are compared as a whole, and owned by identity only.
fn add_item(
    changes: &mut Changes,
    at: TypeAt<'_>,
    element: PathElement,
    old: &[&Value],
    new: &[&Value],
) -> Result<(), TypedError> {
    let compared =
        |old: Side<'_>, new: Side<'_>| diff(at, old, new).map_err(|err| err.within(&element));
    let found = match (old, new) {
        ([], []) => return Ok(()),
        ([old], [new]) => compared(Side::Value(old), Side::Value(new))?,
        ([], [new]) => compared(Side::Absent, Side::Value(new))?,
        ([old], []) => compared(Side::Value(old), Side::Absent)?,
        ([_, _, ..], [_, _, ..]) => {
            let same = old.len() == new.len()
                && old
                    .iter()
                    .zip(new)
                    .all(|(old, new)| order(old, new).is_eq());
            Diff {
                own: (!same).then_some(Mark::Modified),
                ..Diff::default()
            }
        }
        ([_, _, ..], new) => {
            let added = new
                .first()
                .map(|new| compared(Side::Absent, Side::Value(new)))
                .transpose()?;
            changes
                .removed
                .add(element.clone(), true, FieldSet::default());
            added.unwrap_or_default()
        }
        (old, [_, _, ..]) => {
            let removed = old
                .first()
                .map(|old| compared(Side::Value(old), Side::Absent))
                .transpose()?;
            changes
                .added
                .add(element.clone(), true, FieldSet::default());
            removed.unwrap_or_default()
        }
    };
    if !found.is_empty() {
        changes.add(element, found);
    }
    Ok(())
}
