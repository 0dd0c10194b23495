//! Bodies in protobuf, read as objects.
//!
//! Go writes the zero values of fields that are no pointers; JSON leaves them out, and so do we where the table says so.

use base64::Engine as _;
use serde_json::{Map, Value};

use super::numbers::{self, Message, Numbered};
use super::wire::{Reader, Wire};
use super::{MAGIC, MAX_DEPTH};
use crate::resource::GroupVersionKind;
use crate::schema::{Field, Schema, Shape, TypeId};
use crate::status::ApiError;

/// Reads a body as an object of the kind, with `apiVersion` and `kind` as the body says.
///
/// # Errors
///
/// 400 for what is no such message, 415 for a kind without messages (a custom resource).
pub fn decode(
    schema: Option<&Schema>,
    gvk: &GroupVersionKind,
    body: &[u8],
) -> Result<Value, ApiError> {
    let refused = |detail: &str| {
        ApiError::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: protobuf: {detail}",
            gvk.kind, gvk.version, gvk.kind
        ))
    };
    let root = schema.and_then(|schema| Some((schema, numbers::message(&schema.root().name)?)));
    let Some((schema, root)) = root else {
        return Err(ApiError::unsupported_media_type(&[
            "application/json",
            "application/yaml",
        ]));
    };
    let unknown = body.strip_prefix(MAGIC).ok_or_else(|| {
        refused("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
    })?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut envelope = Reader(unknown);
    while let Some((number, wire)) = envelope.next().map_err(refused)? {
        match (number, wire) {
            (1, Wire::Bytes(meta)) => {
                let mut meta = Reader(meta);
                while let Some((number, wire)) = meta.next().map_err(refused)? {
                    match (number, wire) {
                        (1, Wire::Bytes(bytes)) => api_version = text(bytes).map_err(refused)?,
                        (2, Wire::Bytes(bytes)) => kind = text(bytes).map_err(refused)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let mut object = Map::new();
    message(schema, schema.root, root, raw, &mut object, 0).map_err(refused)?;
    for (name, value) in [("apiVersion", api_version), ("kind", kind)] {
        if !value.is_empty() {
            object.insert(name.to_owned(), value.into());
        }
    }
    Ok(object.into())
}

/// Reads a message into `object`, whose type is `id`; an inline message is read into the object around it.
fn message(
    schema: &Schema,
    id: TypeId,
    message: &Message,
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), &'static str> {
    if depth > MAX_DEPTH {
        return Err("nested too deeply");
    }
    let kind = schema.get(id);
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        // A field that is newer than our schemas is dropped, as an older kube-apiserver does.
        let Some(numbered) = message.field(number) else {
            continue;
        };
        match (numbered.inline(), wire) {
            (Some(inline), Wire::Bytes(bytes)) => {
                self::message(schema, id, inline, bytes, object, depth + 1)?;
            }
            (Some(_), _) => return Err("wrong wire type"),
            (None, wire) => {
                if let Some(field) = kind.field(numbered.name) {
                    put(schema, field, numbered, wire, object, depth)?;
                }
            }
        }
    }
    Ok(())
}

fn put(
    schema: &Schema,
    field: &Field,
    numbered: &Numbered,
    wire: Wire<'_>,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), &'static str> {
    match &field.shape {
        Shape::List(item) => {
            let list = object
                .entry(&*field.name)
                .or_insert_with(|| Value::Array(Vec::new()));
            let Some(list) = list.as_array_mut() else {
                return Ok(());
            };
            let packed = matches!(**item, Shape::Int32 | Shape::Int64 | Shape::Bool);
            match wire {
                Wire::Bytes(bytes) if packed => {
                    let mut reader = Reader(bytes);
                    while !reader.0.is_empty() {
                        let number = Wire::Varint(reader.varint()?);
                        list.push(value(schema, item, number, depth)?);
                    }
                }
                wire => list.push(value(schema, item, wire, depth)?),
            }
        }
        Shape::Map(item) => {
            let Wire::Bytes(bytes) = wire else {
                return Err("a map entry that is no message");
            };
            let (mut key, mut entry) = (String::new(), None);
            let mut reader = Reader(bytes);
            while let Some((number, wire)) = reader.next()? {
                match (number, wire) {
                    (1, Wire::Bytes(bytes)) => key = text(bytes)?,
                    (2, wire) => entry = Some(value(schema, item, wire, depth)?),
                    _ => {}
                }
            }
            let map = object
                .entry(&*field.name)
                .or_insert_with(|| Value::Object(Map::new()));
            if let Some(map) = map.as_object_mut() {
                map.insert(key, entry.unwrap_or_else(|| zero(item)));
            }
        }
        shape => {
            let value = value(schema, shape, wire, depth)?;
            let absent = match &value {
                Value::Null => true,
                Value::String(text) => numbered.zero_is_absent && text.is_empty(),
                Value::Bool(set) => numbered.zero_is_absent && !set,
                Value::Number(number) => numbered.zero_is_absent && number.as_i64() == Some(0),
                Value::Array(_) | Value::Object(_) => false,
            };
            if !absent {
                object.insert(field.name.to_string(), value);
            }
        }
    }
    Ok(())
}

/// What a map's value is when its message leaves it out.
fn zero(shape: &Shape) -> Value {
    match shape {
        Shape::List(_) => Value::Array(Vec::new()),
        Shape::Object(_) => Value::Object(Map::new()),
        Shape::Quantity => "0".into(),
        _ => "".into(),
    }
}

fn value(
    schema: &Schema,
    shape: &Shape,
    wire: Wire<'_>,
    depth: usize,
) -> Result<Value, &'static str> {
    Ok(match (shape, wire) {
        (Shape::String, Wire::Bytes(bytes)) => text(bytes)?.into(),
        (Shape::Bytes, Wire::Bytes(bytes)) => base64::engine::general_purpose::STANDARD
            .encode(bytes)
            .into(),
        (Shape::Int32 | Shape::Int64, Wire::Varint(number)) => number.cast_signed().into(),
        (Shape::Bool, Wire::Varint(number)) => (number != 0).into(),
        (Shape::Number, Wire::Fixed64(bits)) => f64::from_bits(bits).into(),
        (Shape::Number, Wire::Varint(number)) => number.cast_signed().into(),
        (Shape::Time, Wire::Bytes(bytes)) => time(bytes, false)?,
        (Shape::MicroTime, Wire::Bytes(bytes)) => time(bytes, true)?,
        (Shape::Quantity, Wire::Bytes(bytes)) => match field(bytes, 1)? {
            Some(Wire::Bytes(bytes)) if !bytes.is_empty() => text(bytes)?.into(),
            _ => "0".into(),
        },
        (Shape::IntOrString, Wire::Bytes(bytes)) => {
            match (field(bytes, 1)?, field(bytes, 2)?, field(bytes, 3)?) {
                (Some(Wire::Varint(1)), _, Some(Wire::Bytes(bytes))) => text(bytes)?.into(),
                (_, Some(Wire::Varint(number)), _) => number.cast_signed().into(),
                _ => 0.into(),
            }
        }
        // RawExtension, FieldsV1, JSON: the text of a JSON value.
        (Shape::Any, Wire::Bytes(bytes)) => match field(bytes, 1)? {
            Some(Wire::Bytes(json)) if !json.is_empty() => {
                serde_json::from_slice(json).map_err(|_| "an embedded object that is not JSON")?
            }
            _ => Value::Null,
        },
        (Shape::Object(id), Wire::Bytes(bytes)) => {
            let mut object = Map::new();
            let nested = numbers::message(&schema.get(*id).name);
            let nested = nested.ok_or("a message whose fields are not known")?;
            message(schema, *id, nested, bytes, &mut object, depth + 1)?;
            object.into()
        }
        // A list as a map's value is a message of its own: ExtraValue.
        (Shape::List(item), Wire::Bytes(bytes)) => {
            let mut list = Vec::new();
            let mut reader = Reader(bytes);
            while let Some((number, wire)) = reader.next()? {
                if number == 1 {
                    list.push(value(schema, item, wire, depth)?);
                }
            }
            list.into()
        }
        _ => return Err("wrong wire type"),
    })
}

/// `Time` is seconds and nanoseconds; an empty one is no time.
fn time(bytes: &[u8], micro: bool) -> Result<Value, &'static str> {
    let number = |of| {
        Ok::<_, &'static str>(match field(bytes, of)? {
            Some(Wire::Varint(number)) => number.cast_signed(),
            _ => 0,
        })
    };
    let (seconds, nanos) = (number(1)?, number(2)?);
    // Go's zero time, year 1, is written as an empty message or with these seconds.
    if bytes.is_empty() || (seconds == -62_135_596_800 && nanos == 0) {
        return Ok(Value::Null);
    }
    let nanos = i32::try_from(nanos).map_err(|_| "a time out of range")?;
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|_| "a time out of range")?;
    let format = if micro {
        "%Y-%m-%dT%H:%M:%S.%6fZ"
    } else {
        "%Y-%m-%dT%H:%M:%SZ"
    };
    Ok(time.strftime(format).to_string().into())
}

fn field(bytes: &[u8], wanted: u64) -> Result<Option<Wire<'_>>, &'static str> {
    let mut reader = Reader(bytes);
    let mut found = None;
    while let Some((number, wire)) = reader.next()? {
        if number == wanted {
            found = Some(wire);
        }
    }
    Ok(found)
}

fn text(bytes: &[u8]) -> Result<String, &'static str> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a string that is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schemas;
    use serde_json::json;

    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        [
            &[number << 3 | 2, u8::try_from(content.len()).unwrap()],
            content,
        ]
        .concat()
    }

    #[test]
    fn a_pod_is_read_with_inlined_messages_and_without_zero_values() {
        let empty_dir = bytes(2, &bytes(2, &[]));
        let volume = [bytes(1, b"v"), empty_dir].concat();
        let container = [
            bytes(1, b"c"),
            bytes(2, b"nginx"),
            bytes(5, b""),
            vec![0x80, 0x01, 0],
        ]
        .concat();
        let spec = [bytes(1, &volume), bytes(2, &container), bytes(8, b"")].concat();
        let metadata = [
            bytes(1, b"p"),
            bytes(3, b""),
            bytes(8, &[]),
            bytes(11, &[bytes(1, b"k"), bytes(2, b"v")].concat()),
        ]
        .concat();
        let pod = [bytes(1, &metadata), bytes(2, &spec)].concat();
        let meta = [bytes(1, b"v1"), bytes(2, b"Pod")].concat();
        let body = [MAGIC, &bytes(1, &meta), &bytes(2, &pod)].concat();
        let gvk = crate::kinds::gvk("v1", "Pod");
        let object = decode(Schemas::builtin().find(&gvk), &gvk, &body).unwrap();
        assert_eq!(
            object["metadata"],
            json!({ "name": "p", "labels": { "k": "v" } })
        );
        assert_eq!(
            object["spec"]["volumes"],
            json!([{ "name": "v", "emptyDir": {} }])
        );
        assert_eq!(object["spec"]["containers"][0]["image"], "nginx");
        assert_eq!(
            (&object["apiVersion"], &object["kind"]),
            (&json!("v1"), &json!("Pod"))
        );
    }

    #[test]
    fn broken_messages_are_refused() {
        let gvk = crate::kinds::gvk("v1", "Pod");
        for body in [
            &b"{}"[..],
            b"k8s\0\x0a\xff",
            b"k8s\0\x07",
            b"k8s\0\x12\x03\x0a\x05a",
        ] {
            assert_eq!(
                decode(Schemas::builtin().find(&gvk), &gvk, body)
                    .unwrap_err()
                    .code,
                400
            );
        }
    }
}
