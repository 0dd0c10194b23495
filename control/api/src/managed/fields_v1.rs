//! FieldsV1: sets of fields as JSON, in `metadata.managedFields`.
//!
//! Source: structured-merge-diff, `fieldpath/serialize.go`.

use serde_json::{Map, Value};

use super::path::{PathElement, PathElementError};
use super::set::FieldSet;

/// How deep FieldsV1 may nest. Objects nest at most 128 deep when parsed.
pub const MAX_DEPTH: usize = 128;

/// How many path elements the entries of one object may have in all.
///
/// An element takes 9 bytes of JSON or more, so that an object of 1.5 MiB, etcd's limit, never has as many.
pub const MAX_ELEMENTS: usize = 1 << 18;

/// The key of FieldsV1 that says that a field is owned itself, and not only what is below it.
const ITSELF: &str = ".";

/// Why FieldsV1 is no set of fields.
#[derive(Debug, thiserror::Error)]
pub enum FieldSetError {
    /// A key is no step of a path.
    #[error("parsing key as path element")]
    Element(#[source] PathElementError),
    /// A value is something else than an object.
    #[error("fieldsV1 has {found} where an object is expected")]
    NoObject {
        /// What it is.
        found: String,
    },
    /// It nests too deep.
    #[error("fieldsV1 is nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
    /// It has too many elements.
    #[error("managed fields have more than {MAX_ELEMENTS} path elements")]
    TooMany,
}

impl FieldSet {
    /// Reads FieldsV1.
    ///
    /// # Errors
    ///
    /// For what is no FieldsV1, and beyond [`MAX_DEPTH`] and [`MAX_ELEMENTS`].
    pub fn parse(fields: &Value) -> Result<Self, FieldSetError> {
        let mut left = MAX_ELEMENTS;
        Self::parse_within(fields, &mut left)
    }

    /// As [`FieldSet::parse`], for one of several sets that share a limit: `left` is what remains of it.
    pub(super) fn parse_within(fields: &Value, left: &mut usize) -> Result<Self, FieldSetError> {
        read(fields, MAX_DEPTH, left).map(|(set, _)| set)
    }

    /// The set as FieldsV1.
    ///
    /// The keys of the value are in the order of their bytes; [`FieldSet::print`] has the order of Kubernetes.
    pub fn to_value(&self) -> Value {
        Value::Object(self.to_map(false))
    }

    fn to_map(&self, itself: bool) -> Map<String, Value> {
        let own =
            (itself && !self.is_empty()).then(|| (ITSELF.to_owned(), Value::Object(Map::new())));
        let below = self.nodes().iter().map(|node| {
            (
                node.element.to_key(),
                Value::Object(node.below.to_map(node.member)),
            )
        });
        own.into_iter().chain(below).collect()
    }

    /// The text of FieldsV1 as Kubernetes prints it, byte for byte.
    pub fn print(&self) -> String {
        let mut out = String::new();
        self.print_into(false, &mut out);
        out
    }

    fn print_into(&self, itself: bool, out: &mut String) {
        out.push('{');
        if itself && !self.is_empty() {
            out.push_str("\".\":{}");
        }
        for node in self.nodes() {
            if !out.ends_with('{') {
                out.push(',');
            }
            out.push_str(&Value::from(node.element.to_key()).to_string());
            out.push(':');
            node.below.print_into(node.member, out);
        }
        out.push('}');
    }
}

/// What lies below one element, and whether the element itself is a member: it is if it says so or if nothing lies below.
fn read(fields: &Value, depth: usize, left: &mut usize) -> Result<(FieldSet, bool), FieldSetError> {
    let empty = Map::new();
    let fields = match fields {
        Value::Object(fields) => fields,
        Value::Null => &empty,
        other => {
            let found = match other {
                Value::Array(_) => "a list".to_owned(),
                other => other.to_string().chars().take(40).collect(),
            };
            return Err(FieldSetError::NoObject { found });
        }
    };
    let depth = depth.checked_sub(1).ok_or(FieldSetError::TooDeep)?;
    let mut set = FieldSet::default();
    for (key, value) in fields.iter().filter(|(key, _)| *key != ITSELF) {
        *left = left.checked_sub(1).ok_or(FieldSetError::TooMany)?;
        if let Some(element) = PathElement::parse(key).map_err(FieldSetError::Element)? {
            let (below, member) = read(value, depth, left)?;
            set.add(element, member, below);
        }
    }
    let member = set.is_empty() || fields.contains_key(ITSELF);
    Ok((set, member))
}
