//! Which fields an object has.
//!
//! Source: structured-merge-diff, `typed/tofieldset.go`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::node::{Items, Kind, TypeAt};
use super::path::PathElement;
use super::set::FieldSet;
use crate::schema::Schema;

/// What is wrong with an object whose items should be told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypedError {
    /// Where: `.spec.containers`.
    pub path: String,
    /// What, in kube-apiserver's words.
    pub message: String,
}

impl TypedError {
    pub(super) fn new(message: String) -> Self {
        Self {
            path: String::new(),
            message,
        }
    }

    /// The same error, seen from one step above.
    pub(super) fn within(mut self, element: &PathElement) -> Self {
        self.path.insert_str(0, &element.to_string());
        self
    }
}

impl std::fmt::Display for TypedError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

impl std::error::Error for TypedError {}

/// The fields and items that an object has: every leaf, every item, and every value of a map.
///
/// # Errors
///
/// For an item of a list that cannot be told apart.
pub fn set_of(schema: Option<&Schema>, object: &Value) -> Result<FieldSet, TypedError> {
    fields_of(TypeAt::root(schema), object).map(|(set, _)| set)
}

/// What lies below a value, and whether the value is itself a leaf.
fn fields_of(at: TypeAt<'_>, value: &Value) -> Result<(FieldSet, bool), TypedError> {
    let mut set = FieldSet::default();
    match (at.kind(Some(value)), value) {
        (Kind::Leaf, _) => return Ok((set, true)),
        (Kind::Fields, Value::Object(fields)) => {
            for (name, value) in fields {
                let element = PathElement::field(name);
                let (below, leaf) =
                    fields_of(at.child(name), value).map_err(|err| err.within(&element))?;
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                set.add(element, leaf || empty || !at.declares(name), below);
            }
        }
        (Kind::Items(items), Value::Array(list)) => {
            for (element, values) in &grouped(items, list)? {
                let below = match values.as_slice() {
                    [one] => {
                        fields_of(items.item, one)
                            .map_err(|err| err.within(element))?
                            .0
                    }
                    _ => FieldSet::default(), // Of duplicates only the identity is owned.
                };
                set.add(element.clone(), true, below);
            }
        }
        (Kind::Fields | Kind::Items(_), _) => {}
    }
    Ok((set, false))
}

/// The items of a list by their path elements; more than one where the list has duplicates.
pub(super) fn grouped<'v>(
    items: Items<'_>,
    list: &'v [Value],
) -> Result<BTreeMap<PathElement, Vec<&'v Value>>, TypedError> {
    let mut groups: BTreeMap<PathElement, Vec<&Value>> = BTreeMap::new();
    for (index, item) in list.iter().enumerate() {
        let element = identity(items, index, item)?;
        groups.entry(element).or_default().push(item);
    }
    Ok(groups)
}

/// The path element of the item at `index`.
pub(super) fn identity(
    items: Items<'_>,
    index: usize,
    item: &Value,
) -> Result<PathElement, TypedError> {
    items
        .element(item)
        .map_err(|message| TypedError::new(format!("element {index}: {message}")))
}
