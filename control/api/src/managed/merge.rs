//! An applied configuration into an object, and fields out of it.
//!
//! Source: structured-merge-diff, `typed/merge.go` and `typed/remove.go`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Map, Value};

use super::node::{Items, Kind, TypeAt};
use super::path::PathElement;
use super::set::FieldSet;
use super::typed::{TypedError, identity};
use crate::schema::Schema;

/// The object with everything that the configuration says.
///
/// Maps and structs merge field by field and lists item by item, except those that change as a whole. What the configuration
/// does not name stays. Items keep the object's order, unless the configuration orders them otherwise: then its order wins.
///
/// # Errors
///
/// For items that cannot be told apart, and for two items of one identity in the configuration.
pub fn merge(schema: Option<&Schema>, live: &Value, applied: &Value) -> Result<Value, TypedError> {
    merged(TypeAt::root(schema), Some(live), applied)
}

fn merged(at: TypeAt<'_>, live: Option<&Value>, applied: &Value) -> Result<Value, TypedError> {
    let Some(live) = live else {
        return Ok(applied.clone());
    };
    match (at.kind(Some(applied)), live, applied) {
        (Kind::Fields, Value::Object(live), Value::Object(applied)) => {
            let mut fields = live.clone();
            for (name, value) in applied {
                let value = merged(at.child(name), live.get(name), value)
                    .map_err(|err| err.within(&PathElement::field(name)))?;
                fields.insert(name.clone(), value);
            }
            Ok(Value::Object(fields))
        }
        (Kind::Items(items), Value::Array(live), Value::Array(applied)) if !live.is_empty() => {
            merged_items(items, live, applied).map(Value::Array)
        }
        // Null says nothing about what is inside.
        (Kind::Fields, Value::Object(fields), Value::Null) if !fields.is_empty() => {
            Ok(live.clone())
        }
        (Kind::Items(_), Value::Array(items), Value::Null) if !items.is_empty() => Ok(live.clone()),
        _ => Ok(applied.clone()),
    }
}

/// The items of both, each once, but for duplicates that the object has already and the configuration does not name.
fn merged_items(
    items: Items<'_>,
    live: &[Value],
    applied: &[Value],
) -> Result<Vec<Value>, TypedError> {
    let mut wanted: BTreeMap<PathElement, &Value> = BTreeMap::new();
    let mut order = Vec::with_capacity(applied.len());
    for (index, item) in applied.iter().enumerate() {
        let element = identity(items, index, item)?;
        if wanted.insert(element.clone(), item).is_some() {
            return Err(TypedError::new(format!(
                "duplicate entries for key {element}"
            )));
        }
        order.push(element);
    }
    // None stands for duplicates: the configuration's item takes their place as it is.
    let mut present: BTreeMap<PathElement, Option<&Value>> = BTreeMap::new();
    let mut old_order = Vec::with_capacity(live.len());
    for (index, item) in live.iter().enumerate() {
        let element = identity(items, index, item)?;
        present
            .entry(element.clone())
            .and_modify(|item| *item = None)
            .or_insert(Some(item));
        old_order.push(element);
    }
    let item_of = |element: &PathElement| {
        let live = present.get(element).copied().flatten();
        merged(items.item, live, wanted[element]).map_err(|err| err.within(element))
    };
    // The next item of the configuration that the object has too: shared items wait for their turn.
    let mut shared: VecDeque<&PathElement> = order
        .iter()
        .filter(|element| present.contains_key(element))
        .collect();
    let mut next_shared = shared.pop_front();
    let mut done: BTreeSet<&PathElement> = BTreeSet::new();
    let mut result = Vec::with_capacity(live.len().max(applied.len()));
    let (mut left, mut right) = (0, 0);
    while left < old_order.len() || right < order.len() {
        if let (Some(old), Some(new)) = (old_order.get(left), order.get(right)) {
            if old == new {
                done.insert(new);
                result.push(item_of(new)?);
                (left, right) = (left + 1, right + 1);
                next_shared = shared.pop_front();
                continue;
            }
            if wanted.contains_key(old) && next_shared.is_some_and(|next| next != old) {
                left += 1;
                continue;
            }
        }
        if let Some(old) = old_order.get(left) {
            if !wanted.contains_key(old) {
                result.push(live[left].clone());
                left += 1;
                continue;
            } else if done.contains(old) {
                left += 1;
            }
        }
        if let Some(new) = order.get(right) {
            done.insert(new);
            result.push(item_of(new)?);
            right += 1;
            if next_shared == Some(new) {
                next_shared = shared.pop_front();
            }
        }
    }
    Ok(result)
}

/// Takes the fields and items of a set out of the object, with all that is inside them; containers that become empty go too.
pub fn remove(schema: Option<&Schema>, object: &mut Value, fields: &FieldSet) {
    if !fields.is_empty() && !without(TypeAt::root(schema), object, fields) {
        *object = Value::Object(Map::new());
    }
}

/// Takes the fields out of a value; says whether anything is left.
fn without(at: TypeAt<'_>, value: &mut Value, gone: &FieldSet) -> bool {
    match (at.kind(Some(value)), value) {
        (Kind::Fields, Value::Object(fields)) => {
            fields.retain(|name, value| match gone.node(&PathElement::field(name)) {
                None => true,
                Some(node) => !node.member && without(at.child(name), value, &node.below),
            });
            !fields.is_empty()
        }
        (Kind::Items(items), Value::Array(list)) => {
            list.retain_mut(|item| {
                // An item without an identity is in no set.
                match items
                    .element(item)
                    .ok()
                    .and_then(|element| gone.node(&element))
                {
                    None => true,
                    Some(node) => !node.member && without(items.item, item, &node.below),
                }
            });
            !list.is_empty()
        }
        (Kind::Leaf, Value::Object(_) | Value::Array(_)) => false,
        (Kind::Leaf, _) => true,
        (Kind::Fields | Kind::Items(_), _) => false,
    }
}
