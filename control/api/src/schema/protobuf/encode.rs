//! Objects and lists, written as bodies in protobuf.
//!
//! Go writes the zero values of fields that are no pointers even if JSON leaves them out. Decoders do not care, so we write
//! what the object has. What protobuf cannot say is lost, as it is with kube-apiserver: empty lists and maps, nulls, and
//! `apiVersion` and `kind` of objects inside of others (the volume claim templates of a StatefulSet).

use std::borrow::Borrow;

use base64::Engine as _;
use serde_json::{Map, Value};

use super::numbers::{self, Message};
use super::wire::{bytes, integer, tag, varint};
use super::{MAGIC, MAX_DEPTH};
use crate::resource::GroupVersionKind;
use crate::schema::{Schema, Shape, TypeId};

/// Why an object has no protobuf encoding.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Its kind is a custom resource, or one without messages.
    #[error("kind {kind} has no protobuf encoding")]
    Kind {
        /// The kind.
        kind: String,
    },
    /// It has a field that is no field of the message, or one whose number we do not know.
    #[error("field {field} of {message} has no number in protobuf")]
    Number {
        /// The type that holds the field.
        message: String,
        /// The field.
        field: String,
    },
    /// It has a value that is not of the field's type.
    #[error("field {field} is not the {shape:?} that its schema says")]
    Type {
        /// The field.
        field: String,
        /// What the schema says.
        shape: Shape,
    },
    /// It is nested too deeply.
    #[error("the object is nested too deeply")]
    Depth,
}

/// Whether objects of a kind can be encoded at all.
pub fn encodes(schema: &Schema) -> bool {
    numbers::message(&schema.root().name).is_some()
}

/// Writes an object of the kind as a body.
///
/// # Errors
///
/// If the kind has no messages, or the object has a field without a number or of another type than the schema's.
pub fn encode(
    schema: Option<&Schema>,
    gvk: &GroupVersionKind,
    object: &Value,
) -> Result<Vec<u8>, EncodeError> {
    let (schema, root) = known(schema, gvk)?;
    body(gvk, |out| {
        content(schema, schema.root, root, object, &gvk.kind, out, 0)
    })
}

/// Writes a list as a body: `gvk` is the list's (`PodList`), `schema` that of its items.
///
/// # Errors
///
/// As [`encode`], of any of the items.
pub fn encode_list(
    schema: Option<&Schema>,
    gvk: &GroupVersionKind,
    list_meta: &Value,
    items: impl IntoIterator<Item = impl Borrow<Value>>,
) -> Result<Vec<u8>, EncodeError> {
    let (schema, root) = known(schema, gvk)?;
    body(gvk, |out| {
        nested(out, 1, |out| super::meta::list_meta(list_meta, out))?;
        for item in items {
            nested(out, 2, |out| {
                content(schema, schema.root, root, item.borrow(), "items", out, 0)
            })?;
        }
        Ok(())
    })
}

fn known<'a>(
    schema: Option<&'a Schema>,
    gvk: &GroupVersionKind,
) -> Result<(&'a Schema, &'static Message), EncodeError> {
    let known = schema.and_then(|schema| Some((schema, numbers::message(&schema.root().name)?)));
    known.ok_or_else(|| EncodeError::Kind {
        kind: gvk.kind.clone(),
    })
}

/// The magic and a `runtime.Unknown`: the kind, and what `raw` writes.
pub(super) fn body(
    gvk: &GroupVersionKind,
    raw: impl FnOnce(&mut Vec<u8>) -> Result<(), EncodeError>,
) -> Result<Vec<u8>, EncodeError> {
    let mut out = MAGIC.to_vec();
    nested(&mut out, 1, |out| {
        bytes(out, 1, gvk.api_version().as_bytes());
        bytes(out, 2, gvk.kind.as_bytes());
        Ok(())
    })?;
    nested(&mut out, 2, raw)?;
    Ok(out)
}

/// Writes what is inside of an object of the type `id`.
pub(super) fn object(
    schema: &Schema,
    id: TypeId,
    value: &Value,
    name: &str,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), EncodeError> {
    let kind = schema.get(id);
    let message = numbers::message(&kind.name).ok_or_else(|| EncodeError::Number {
        message: kind.go_name().to_owned(),
        field: name.to_owned(),
    })?;
    content(schema, id, message, value, name, out, depth)
}

fn content(
    schema: &Schema,
    id: TypeId,
    message: &Message,
    value: &Value,
    name: &str,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), EncodeError> {
    let Value::Object(object) = value else {
        return Err(wrong(name, &Shape::Object(id)));
    };
    let written = fields(schema, id, message, object, out, depth)?;
    let known = |name: &str| {
        let type_meta = matches!(name, "apiVersion" | "kind");
        type_meta || has(message, name) && schema.get(id).field(name).is_some()
    };
    // Counted first: mostly everything was written, and no name needs to be looked for.
    if written < object.len()
        && let Some(field) = object.keys().find(|name| !known(name))
    {
        return Err(EncodeError::Number {
            message: schema.get(id).go_name().to_owned(),
            field: field.clone(),
        });
    }
    Ok(())
}

/// Whether a field is one of the message's, or of a message that stands inline in it.
fn has(message: &Message, name: &str) -> bool {
    message.fields().iter().any(|field| match field.inline() {
        Some(inline) => has(inline, name),
        None => field.name == name,
    })
}

/// Writes the object's fields that the message has, in order of number; returns how many they are.
fn fields(
    schema: &Schema,
    id: TypeId,
    message: &Message,
    object: &Map<String, Value>,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<usize, EncodeError> {
    if depth > MAX_DEPTH {
        return Err(EncodeError::Depth);
    }
    let kind = schema.get(id);
    let mut written = 0;
    for numbered in message.fields() {
        if let Some(inline) = numbered.inline() {
            let mut inside = 0;
            let start = out.len();
            nested(out, numbered.number, |out| {
                inside = fields(schema, id, inline, object, out, depth + 1)?;
                Ok(())
            })?;
            if inside == 0 {
                out.truncate(start);
            }
            written += inside;
        } else if let Some(value) = object.get(numbered.name)
            && let Some(field) = kind.field(numbered.name)
        {
            field_value(
                schema,
                &field.shape,
                numbered.number,
                value,
                &field.name,
                out,
                depth,
            )?;
            written += 1;
        }
    }
    Ok(written)
}

/// Writes a field: nothing for null, all items of a list, all entries of a map.
fn field_value(
    schema: &Schema,
    shape: &Shape,
    number: u64,
    value: &Value,
    name: &str,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), EncodeError> {
    match (shape, value) {
        (_, Value::Null) => Ok(()),
        (Shape::List(item), Value::Array(list)) => list
            .iter()
            .try_for_each(|value| single(schema, item, number, value, name, out, depth)),
        (Shape::Map(item), Value::Object(map)) => map.iter().try_for_each(|(key, value)| {
            nested(out, number, |out| {
                bytes(out, 1, key.as_bytes());
                single(schema, item, 2, value, name, out, depth)
            })
        }),
        _ => single(schema, shape, number, value, name, out, depth),
    }
}

/// Writes one value under a number.
fn single(
    schema: &Schema,
    shape: &Shape,
    number: u64,
    value: &Value,
    name: &str,
    out: &mut Vec<u8>,
    depth: usize,
) -> Result<(), EncodeError> {
    let wrong = || wrong(name, shape);
    match (shape, value) {
        (Shape::String, Value::String(text)) => bytes(out, number, text.as_bytes()),
        (Shape::Bytes, Value::String(text)) => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(text);
            bytes(out, number, &decoded.map_err(|_| wrong())?);
        }
        (Shape::Int32 | Shape::Int64, Value::Number(value)) => {
            integer(out, number, value.as_i64().ok_or_else(wrong)?);
        }
        (Shape::Bool, Value::Bool(set)) => integer(out, number, i64::from(*set)),
        (Shape::Number, Value::Number(value)) => {
            tag(out, number, 1);
            let value = value.as_f64().ok_or_else(wrong)?;
            out.extend_from_slice(&value.to_bits().to_le_bytes());
        }
        (Shape::Time | Shape::MicroTime, Value::String(text)) => {
            let time: jiff::Timestamp = text.parse().map_err(|_| wrong())?;
            nested(out, number, |out| {
                integer(out, 1, time.as_second());
                // A Time has whole seconds only.
                if *shape == Shape::MicroTime {
                    integer(out, 2, time.subsec_nanosecond().into());
                }
                Ok(())
            })?;
        }
        (Shape::Quantity, Value::String(text)) => {
            nested(out, number, |out| {
                bytes(out, 1, text.as_bytes());
                Ok(())
            })?;
        }
        (Shape::IntOrString, Value::Number(value)) => {
            let value = value.as_i64().ok_or_else(wrong)?;
            nested(out, number, |out| {
                integer(out, 1, 0);
                integer(out, 2, value);
                Ok(())
            })?;
        }
        (Shape::IntOrString, Value::String(text)) => {
            nested(out, number, |out| {
                integer(out, 1, 1);
                bytes(out, 3, text.as_bytes());
                Ok(())
            })?;
        }
        // RawExtension, FieldsV1, JSON: the text of a JSON value.
        (Shape::Any, value) => {
            nested(out, number, |out| {
                bytes(out, 1, value.to_string().as_bytes());
                Ok(())
            })?;
        }
        (Shape::Object(id), value) => {
            nested(out, number, |out| {
                object(schema, *id, value, name, out, depth + 1)
            })?;
        }
        // A list as a map's value is a message of its own: ExtraValue.
        (Shape::List(item), Value::Array(list)) => {
            nested(out, number, |out| {
                list.iter()
                    .try_for_each(|value| single(schema, item, 1, value, name, out, depth))
            })?;
        }
        _ => return Err(wrong()),
    }
    Ok(())
}

fn wrong(name: &str, shape: &Shape) -> EncodeError {
    EncodeError::Type {
        field: name.to_owned(),
        shape: shape.clone(),
    }
}

/// Writes a field that is a message. Its length is known only at its end: one byte is kept free, and mostly suffices.
pub(super) fn nested(
    out: &mut Vec<u8>,
    number: u64,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), EncodeError>,
) -> Result<(), EncodeError> {
    tag(out, number, 2);
    let start = out.len();
    out.push(0);
    write(out)?;
    let length = out.len() - start - 1;
    let mut digits = Vec::new();
    if let Ok(length @ ..0x80) = u8::try_from(length) {
        out[start] = length;
    } else {
        varint(&mut digits, length as u64);
        out.splice(start..=start, digits);
    }
    Ok(())
}
