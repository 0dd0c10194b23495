//! Walks of objects by their schema: what is shared field by field, item by item, or changes as a whole.

use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::item_value::ItemValue;
use super::path::PathElement;
use crate::resource::GroupVersionKind;
use crate::schema::{Field, FieldDefault, ListType, Schema, Schemas, Shape, Type};

/// The type of one value of an object, as far as ownership needs it.
#[derive(Clone, Copy)]
pub struct TypeAt<'s> {
    schema: Option<&'s Schema>,
    of: Of<'s>,
    /// The field that holds the value, which says whether it changes as a whole.
    field: Option<&'s Field>,
    /// Where in the object it is.
    pub place: Place,
}

/// The parts of an object in which the server owns fields, and the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Root,
    Metadata,
    Below,
}

#[derive(Clone, Copy)]
enum Of<'s> {
    Struct(&'s Type),
    Map(&'s Shape),
    List(&'s Shape),
    Scalar(&'s Shape),
    /// Whatever the value is.
    Any,
}

/// How a value is shared.
#[derive(Clone, Copy)]
pub enum Kind<'s> {
    /// Not at all: it is a leaf.
    Leaf,
    /// Item by item.
    Items(Items<'s>),
    /// Field by field.
    Fields,
}

/// The items of a list that are told apart.
#[derive(Clone, Copy)]
pub struct Items<'s> {
    pub item: TypeAt<'s>,
    /// By which keys; by the value itself if there are none.
    keys: &'s [Arc<str>],
}

impl<'s> TypeAt<'s> {
    /// The type of a whole object.
    pub fn root(schema: Option<&'s Schema>) -> Self {
        let of = schema.map_or(Of::Any, |schema| Of::Struct(schema.root()));
        Self {
            schema,
            of,
            field: None,
            place: Place::Root,
        }
    }

    fn with(self, shape: &'s Shape, field: Option<&'s Field>) -> Self {
        let of = match (shape, self.schema) {
            (Shape::Object(id), Some(schema)) => Of::Struct(schema.get(*id)),
            (Shape::Object(_), None) | (Shape::Any, _) => Of::Any,
            (Shape::List(item), _) => Of::List(item),
            (Shape::Map(value), _) => Of::Map(value),
            (scalar, _) => Of::Scalar(scalar),
        };
        Self {
            of,
            field,
            place: Place::Below,
            ..self
        }
    }

    fn any(self) -> Self {
        Self {
            of: Of::Any,
            field: None,
            place: Place::Below,
            ..self
        }
    }

    /// The type of a field, or of a value of a map.
    pub fn child(self, name: &str) -> Self {
        let is_metadata = self.place == Place::Root && name == "metadata";
        let child = match self.of {
            Of::Struct(kind) => match kind.field(name) {
                Some(field) => self.with(&field.shape, Some(field)),
                None => self.any(),
            },
            Of::Map(value) => self.with(value, None),
            Of::Any if is_metadata => object_meta(),
            _ => self.any(),
        };
        let place = if is_metadata {
            Place::Metadata
        } else {
            Place::Below
        };
        Self { place, ..child }
    }

    /// Whether the schema names the field, so that it needs no owner of its own where something below it has one.
    pub fn declares(self, name: &str) -> bool {
        match self.of {
            Of::Struct(kind) => kind.field(name).is_some(),
            Of::Any => {
                self.place == Place::Root && matches!(name, "apiVersion" | "kind" | "metadata")
            }
            _ => false,
        }
    }

    /// Whether the schema allows the field.
    pub fn allows(self, name: &str) -> bool {
        !matches!(self.of, Of::Struct(_)) || self.declares(name)
    }

    /// Whether the field is there even where JSON leaves it out, with a zero value.
    pub fn has_by_value(self, name: &str) -> bool {
        matches!(self.of, Of::Struct(kind) if kind.field(name).is_some_and(|field| field.by_value))
    }

    /// How a value of this type is shared. Without a schema, the value decides.
    pub fn kind(self, value: Option<&Value>) -> Kind<'s> {
        let whole = self.field.is_some_and(|field| field.atomic);
        match self.of {
            Of::Struct(kind) if kind.atomic || whole => Kind::Leaf,
            Of::Map(_) if whole => Kind::Leaf,
            Of::Struct(_) | Of::Map(_) => Kind::Fields,
            Of::List(item) => {
                let item = self.with(item, None);
                match self.field.map(|field| (field.list, &*field.keys)) {
                    Some((ListType::Set, _)) => Kind::Items(Items { item, keys: &[] }),
                    Some((ListType::Map, keys)) => Kind::Items(Items { item, keys }),
                    Some((ListType::Atomic, _)) | None => Kind::Leaf,
                }
            }
            Of::Scalar(_) => Kind::Leaf,
            Of::Any => match value {
                None | Some(Value::Null | Value::Object(_)) => Kind::Fields,
                Some(_) => Kind::Leaf,
            },
        }
    }

    /// Whether the value is what Go has where JSON leaves a value out.
    pub fn is_zero(self, value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Bool(value) => !value,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(text) => {
                text.is_empty() || text == "0" && matches!(self.of, Of::Scalar(Shape::Quantity))
            }
            Value::Object(fields) => fields.is_empty(),
            Value::Array(_) => false,
        }
    }

    /// What the schema expects and the value is not.
    pub fn mismatch(self, value: &Value) -> Option<String> {
        let expected = match (self.of, value) {
            (_, Value::Null)
            | (Of::Any, _)
            | (Of::Struct(_) | Of::Map(_), Value::Object(_))
            | (Of::List(_), Value::Array(_)) => return None,
            (Of::Struct(_) | Of::Map(_), _) => "map",
            (Of::List(_), _) => "list",
            (Of::Scalar(shape), value) => match (shape, value) {
                (Shape::Int32 | Shape::Int64 | Shape::Number, Value::Number(_))
                | (Shape::Bool, Value::Bool(_))
                | (Shape::IntOrString | Shape::Quantity, Value::Number(_) | Value::String(_)) => {
                    return None;
                }
                (Shape::Int32 | Shape::Int64 | Shape::Number, _) => "numeric (int or float)",
                (Shape::Bool, _) => "boolean",
                (Shape::IntOrString | Shape::Quantity, _) => "any scalar",
                (_, Value::String(_)) => return None,
                _ => "string",
            },
        };
        Some(format!("expected {expected}, got {value}"))
    }

    /// The fields or the items below an owned path, by the path's next element.
    pub fn below(self, element: &PathElement) -> Self {
        match element {
            PathElement::Field(name) => self.child(name),
            PathElement::Key(_) => self.item(),
            PathElement::Value(_) | PathElement::Index(_) => self.any(),
        }
    }

    /// The type of the items of a list.
    pub fn item(self) -> Self {
        match self.of {
            Of::List(item) => self.with(item, None),
            _ => self.any(),
        }
    }

    /// Whether no schema says what the value is.
    pub fn is_any(self) -> bool {
        matches!(self.of, Of::Any)
    }

    /// Whether the schema makes a leaf of a value that could have parts.
    pub fn is_whole(self) -> bool {
        matches!(self.of, Of::Struct(_) | Of::Map(_) | Of::List(_))
            && matches!(self.kind(None), Kind::Leaf)
    }
}

impl Items<'_> {
    /// The path element of an item.
    ///
    /// # Errors
    ///
    /// In kube-apiserver's words, for an item that has no identity: without a key that has no default, or in a set without
    /// being a scalar.
    pub fn element(&self, item: &Value) -> Result<PathElement, String> {
        if self.keys.is_empty() {
            return match item {
                Value::Object(_) => {
                    Err("associative list without keys has an element that's a map type".into())
                }
                Value::Array(_) => {
                    Err("not supported: associative list with lists as elements".into())
                }
                Value::Null => Err(
                    "associative list without keys has an element that's an explicit null".into(),
                ),
                scalar => Ok(PathElement::value(scalar)),
            };
        }
        match item {
            Value::Object(fields) => {
                let key = |name: &Arc<str>| match fields.get(&**name) {
                    Some(value) => Ok((name.clone(), ItemValue::new(value))),
                    None => Ok((name.clone(), ItemValue::new(&self.default(name)?))),
                };
                self.keys
                    .iter()
                    .map(key)
                    .collect::<Result<_, String>>()
                    .map(PathElement::key)
            }
            Value::Null => Err("associative list with keys may not have a null element".into()),
            _ => Err("associative list with keys may not have non-map elements".into()),
        }
    }

    /// The value of a key that an item leaves out.
    fn default(&self, key: &str) -> Result<Value, String> {
        let field = match self.item.of {
            Of::Struct(kind) => kind.field(key),
            _ => None,
        };
        let zero = |field: &Field| match field.shape {
            Shape::String if field.by_value => Some("".into()),
            Shape::Int32 | Shape::Int64 if field.by_value => Some(0.into()),
            _ => None,
        };
        field
            .and_then(|field| match &field.default {
                FieldDefault::Missing(value) | FieldDefault::Zero(value) => Some(value.clone()),
                FieldDefault::None | FieldDefault::Rule(_) => zero(field),
            })
            .ok_or_else(|| {
                format!(
                    "associative list with keys has an element that omits key field {key:?} (and doesn't have default value)"
                )
            })
    }
}

/// The type of `metadata` in an object without a schema: every object has the same.
fn object_meta() -> TypeAt<'static> {
    static POD: OnceLock<Schema> = OnceLock::new();
    let pod = POD.get_or_init(|| {
        let gvk = GroupVersionKind {
            group: String::new(),
            version: "v1".into(),
            kind: "Pod".into(),
        };
        Schemas::builtin()
            .find(&gvk)
            .expect("pods have a schema")
            .clone()
    });
    TypeAt::root(Some(pod)).child("metadata")
}
