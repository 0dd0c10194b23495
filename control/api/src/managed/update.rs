//! What a create, an update or a patch other than apply does to the owners of fields.
//!
//! Source: apimachinery `util/managedfields/internal` (`fieldmanager.go`, `managedfieldsupdater.go`, `skipnonapplied.go`),
//! structured-merge-diff `merge/update.go`.

use serde_json::{Map, Value};

use super::claims::Claims;
use super::compare::{Changes, compare};
use super::manager::{Identity, Operation};
use super::managers::{self, Entry, Managers};
use super::set::FieldSet;
use super::typed::TypedError;
use super::{Stamp, Write};

/// Sets `metadata.managedFields` of `new`, which takes the place of `old` or is created.
///
/// The client owns what it changed, and those who owned that before own it no longer. Entries that the client sent count
/// if they are valid, except through a subresource; an empty list, or one empty entry, forgets all owners. An object that
/// nobody's fields are tracked of stays so until the first apply.
///
/// An object whose items cannot be told apart keeps the entries that it had: a write never fails for its owners.
///
/// Costs one walk of both objects, which allocates for changed fields only. If the client owns already what it changed, and
/// nobody else does, the entries are neither parsed nor printed: at most one time changes. Otherwise all entries are parsed,
/// and the object is converted once for each other version in which an entry names its fields.
pub fn updated(write: &Write<'_>, old: Option<&Value>, new: &mut Value) {
    let present = old.and_then(managers::of);
    let base = match base(write, present, managers::of(new)) {
        Base::Present => present,
        Base::Sent => return rewrite(write, old, new, managers::of(new).cloned().as_ref()),
        Base::Forgotten => None,
    };
    if old.is_some() && base.is_none_or(|list| list.as_array().is_none_or(Vec::is_empty)) {
        return managers::put(new, None);
    }
    let changes = match compare(write.schema, old, new) {
        Ok(changes) => changes.without(write.reset),
        Err(_) => return keep(new, present),
    };
    if let Some(list) = base
        && let Some(own) = untouched(write, list, &changes)
    {
        keep(new, Some(list));
        if let (Some(own), Stamp::EveryChange) = (own, write.stamp) {
            stamp(new, own, write.now);
        }
        return;
    }
    rewrite_with(write, old, new, base, &changes);
}

/// Which entries an update starts from.
enum Base {
    /// Those of the object.
    Present,
    /// Those that the client sent: they are others, and valid.
    Sent,
    /// None.
    Forgotten,
}

fn base(write: &Write<'_>, present: Option<&Value>, sent: Option<&Value>) -> Base {
    match sent {
        Some(sent) if write.subresource.is_none() && Some(sent) != present => {
            if managers::is_reset(sent) {
                Base::Forgotten
            } else if Managers::parse(sent).is_ok_and(|managers| !managers.entries.is_empty()) {
                Base::Sent
            } else {
                Base::Present
            }
        }
        _ => Base::Present,
    }
}

/// Puts the entries into the object, unless they are there.
fn keep(object: &mut Value, list: Option<&Value>) {
    if managers::of(object) != list {
        managers::put(object, list.cloned());
    }
}

fn stamp(object: &mut Value, own: usize, now: &str) {
    let list = object
        .get_mut("metadata")
        .and_then(|metadata| metadata.get_mut("managedFields"));
    let Some(list) = list.and_then(Value::as_array_mut) else {
        return;
    };
    if let Some(Value::Object(entry)) = list.get_mut(own) {
        entry.insert("time".to_owned(), now.into());
        managers::sort(list);
    }
}

/// Whether the changes leave all entries as they are, because the client owns alone what it wrote.
///
/// `Some(Some(index))` is then the client's entry, `Some(None)` says that it wrote nothing that could be owned.
fn untouched(write: &Write<'_>, list: &Value, changes: &Changes) -> Option<Option<usize>> {
    let (written, removed) = (changes.written(), &changes.removed);
    if changes.is_empty() {
        return Some(None);
    }
    let none = Map::new();
    let mut own = None;
    for (index, entry) in list.as_array()?.iter().enumerate() {
        if managers::text(entry, "apiVersion") != write.manager.api_version {
            return None; // Its fields may have other names.
        }
        let fields = entry
            .get("fieldsV1")
            .and_then(Value::as_object)
            .unwrap_or(&none);
        let is_own = managers::text(entry, "operation") == Operation::Update.as_str()
            && managers::text(entry, "manager") == write.manager.name
            && managers::text(entry, "subresource") == write.subresource.unwrap_or_default();
        let affected = if is_own {
            own = Some(index);
            !has_all(fields, &written)
        } else {
            has_any(fields, &written)
        };
        if affected || has_any(fields, removed) {
            return None;
        }
    }
    if written.is_empty() {
        Some(None)
    } else {
        own.map(Some)
    }
}

/// Whether FieldsV1 has any of the paths. It has to be as this server writes it.
fn has_any(fields: &Map<String, Value>, set: &FieldSet) -> bool {
    set.nodes().iter().any(|node| {
        let below = fields
            .get(&node.element.to_key())
            .and_then(Value::as_object);
        below.is_some_and(|below| node.member && is_member(below) || has_any(below, &node.below))
    })
}

/// Whether FieldsV1 has all of the paths.
fn has_all(fields: &Map<String, Value>, set: &FieldSet) -> bool {
    set.nodes().iter().all(|node| {
        let below = fields
            .get(&node.element.to_key())
            .and_then(Value::as_object);
        below.is_some_and(|below| (!node.member || is_member(below)) && has_all(below, &node.below))
    })
}

fn is_member(below: &Map<String, Value>) -> bool {
    below.is_empty() || below.contains_key(".")
}

/// The long way: parses the entries of `list`, and prints what becomes of them.
pub(super) fn rewrite(
    write: &Write<'_>,
    old: Option<&Value>,
    new: &mut Value,
    list: Option<&Value>,
) {
    match compare(write.schema, old, new) {
        Ok(changes) => rewrite_with(write, old, new, list, &changes.without(write.reset)),
        Err(_) => keep(new, old.and_then(managers::of)),
    }
}

fn rewrite_with(
    write: &Write<'_>,
    old: Option<&Value>,
    new: &mut Value,
    list: Option<&Value>,
    changes: &Changes,
) {
    // Entries that nobody can read are none.
    let mut managers = list
        .and_then(|list| Managers::parse(list).ok())
        .unwrap_or_default();
    if old.is_some() && managers.entries.is_empty() {
        return managers::put(new, None);
    }
    match record(write, &mut managers, &write.manager.name, old, new, changes) {
        Ok(()) => managers::put(new, managers.to_value()),
        Err(_) => keep(new, old.and_then(managers::of)),
    }
}

/// Gives what changed to the manager `name`, and takes it from all others.
pub(super) fn record(
    write: &Write<'_>,
    managers: &mut Managers,
    name: &str,
    old: Option<&Value>,
    new: &Value,
    changes: &Changes,
) -> Result<(), TypedError> {
    let manager = super::Manager {
        name: name.to_owned(),
        ..write.manager.clone()
    };
    let identity = Identity::new(&manager, Operation::Update, write.subresource);
    let before = managers.entries.get(&identity).cloned();
    Claims::of(write, managers, None, old, new, changes)?.settle(managers);
    let written = changes.written();
    if !written.is_empty() {
        let set = match managers.entries.get(&identity) {
            Some(entry) => written.union(&entry.set),
            None => written,
        };
        let same = before.filter(|entry| write.stamp == Stamp::NewFields && entry.set == set);
        let time = same.map_or_else(|| Some(write.now.to_owned()), |entry| entry.time);
        let api_version = manager.api_version;
        managers.entries.insert(
            identity,
            Entry {
                api_version,
                time,
                set,
            },
        );
    }
    managers.cap();
    Ok(())
}
