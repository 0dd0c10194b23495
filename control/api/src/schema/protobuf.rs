//! Objects in Kubernetes' protobuf encoding, as clients since 1.32 send them by default.
//!
//! A body is the magic `k8s\0` and a `runtime.Unknown`, which holds the object's own message. The schemas know the fields'
//! names and types; `protobuf.txt` adds their numbers. Go writes the zero values of fields that are no pointers; JSON leaves
//! them out, and so do we where the field is known to be none. Answers are never protobuf: clients accept JSON as well.

use std::collections::HashMap;
use std::sync::OnceLock;

use base64::Engine as _;
use serde_json::{Map, Value};

use super::{Field, Schema, Shape, TypeId};
use crate::resource::GroupVersionKind;
use crate::status::ApiError;

static NUMBERS: &str = include_str!("protobuf.txt");

/// What every body starts with.
const MAGIC: &[u8] = b"k8s\0";
/// Deeper messages are refused, so that nobody exhausts the stack.
const MAX_DEPTH: usize = 64;

/// Fields whose zero value means that they are absent: they are no pointers in Go.
const NO_POINTERS: &[&str] = &[
    "availableReplicas",
    "count",
    "failureThreshold",
    "fullyLabeledReplicas",
    "generation",
    "healthCheckNodePort",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostPort",
    "initialDelaySeconds",
    "minReadySeconds",
    "nodePort",
    "observedGeneration",
    "paused",
    "periodSeconds",
    "publishNotReadyAddresses",
    "readOnly",
    "readyReplicas",
    "signal",
    "stdin",
    "stdinOnce",
    "successThreshold",
    "timeoutSeconds",
    "tty",
    "unavailableReplicas",
    "unschedulable",
    "updatedReplicas",
];
/// Strings whose empty value means something: they are pointers in Go.
const STRING_POINTERS: &[&str] = &["storageClassName", "volumeAttributesClassName"];

/// Reads a body as an object of the kind, with `apiVersion` and `kind` as the body says.
///
/// # Errors
///
/// 400 for what is no such message.
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
    if let Some(schema) = schema {
        message(schema, schema.root, None, raw, &mut object, 0).map_err(refused)?;
    }
    for (name, value) in [("apiVersion", api_version), ("kind", kind)] {
        if !value.is_empty() {
            object.insert(name.to_owned(), value.into());
        }
    }
    Ok(object.into())
}

/// The lines of `protobuf.txt` by message.
fn numbers() -> &'static HashMap<&'static str, &'static str> {
    static LINES: OnceLock<HashMap<&'static str, &'static str>> = OnceLock::new();
    LINES.get_or_init(|| {
        NUMBERS
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(' '))
            .collect()
    })
}

/// The name of a field in lower case, and the message that it stands for if it is none in JSON.
fn name_of(message: &str, number: u64) -> Option<(&'static str, Option<&'static str>)> {
    let line = numbers().get(message)?;
    line.split(' ').find_map(|word| {
        let digits = word.find(|c: char| !c.is_ascii_digit())?;
        (word[..digits].parse::<u64>() == Ok(number)).then(|| {
            match word[digits..].split_once('>') {
                Some((name, inline)) => (name, Some(inline)),
                None => (&word[digits..], None),
            }
        })
    })
}

/// Reads a message of the type `id` into `object`; `inline` is its name where it is none of the schemas'.
fn message(
    schema: &Schema,
    id: TypeId,
    inline: Option<&str>,
    bytes: &[u8],
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), &'static str> {
    if depth > MAX_DEPTH {
        return Err("nested too deeply");
    }
    let kind = schema.get(id);
    let own = kind.name.to_lowercase();
    let name = match (inline, own.rsplit_once('.')) {
        (Some(inline), Some((package, _))) => format!("{package}.{inline}"),
        _ => own,
    };
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        let Some((field_name, inlined)) = name_of(&name, number) else {
            continue;
        };
        let field = kind
            .fields
            .iter()
            .find(|field| field.name.eq_ignore_ascii_case(field_name));
        match (field, inlined, wire) {
            (Some(field), _, wire) => put(schema, field, wire, object, depth)?,
            (None, Some(inlined), Wire::Bytes(bytes)) => {
                message(schema, id, Some(inlined), bytes, object, depth + 1)?;
            }
            // A field that is newer than our schemas: dropped, as an older kube-apiserver does.
            _ => {}
        }
    }
    Ok(())
}

fn put(
    schema: &Schema,
    field: &Field,
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
                Value::String(text) => {
                    text.is_empty() && !field.required && !STRING_POINTERS.contains(&&*field.name)
                }
                Value::Bool(false) => NO_POINTERS.contains(&&*field.name),
                Value::Number(number) => {
                    number.as_i64() == Some(0) && NO_POINTERS.contains(&&*field.name)
                }
                _ => false,
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
            message(schema, *id, None, bytes, &mut object, depth + 1)?;
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

/// A field's value as it stands in the bytes.
#[derive(Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32,
    Bytes(&'a [u8]),
}

/// The bytes that are left.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next field's number and value.
    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, &'static str> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                let bytes: [u8; 8] = self.take(8)?.try_into().map_err(|_| "unexpected end")?;
                Wire::Fixed64(u64::from_le_bytes(bytes))
            }
            2 => {
                let length =
                    usize::try_from(self.varint()?).map_err(|_| "a length out of range")?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                self.take(4)?;
                Wire::Fixed32
            }
            _ => return Err("unknown wire type"),
        };
        Ok(Some((tag >> 3, wire)))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], &'static str> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or("unexpected end")?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, &'static str> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("a number that is too long")
    }
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
