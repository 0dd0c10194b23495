//! Values of CEL, and how those of a custom resource become such.
//!
//! The schema decides: an integer in a `number` field is a double, a `date-time` a timestamp. Source: apiextensions-apiserver,
//! `apiserver/schema/cel/values.go`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use ipnet::IpNet;
use jiff::Timestamp;
use knarr_quantity::Quantity;
use serde_json::Value;

use super::library::format::Named;
use super::url::Url;
use crate::crd::formats;
use crate::crd::structural::{Kind, Structural};

/// A value.
#[derive(Clone, Debug)]
pub enum Val {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Arc<str>),
    Bytes(Arc<[u8]>),
    List(Arc<Vec<Val>>),
    Map(Arc<BTreeMap<Key, Val>>),
    /// Nanoseconds.
    Duration(i64),
    Timestamp(Timestamp),
    Optional(Option<Arc<Val>>),
    /// The type of a value, by its name.
    Type(&'static str),
    Quantity(Quantity),
    Url(Arc<Url>),
    Ip(IpAddr),
    Cidr(IpNet),
    Format(Named),
}

/// The key of a map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Bool(bool),
    Int(i64),
    Uint(u64),
    String(Arc<str>),
}

impl From<&str> for Val {
    fn from(text: &str) -> Self {
        Self::String(text.into())
    }
}

impl From<String> for Val {
    fn from(text: String) -> Self {
        Self::String(text.into())
    }
}

impl From<bool> for Val {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Val {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<usize> for Val {
    /// Sizes; none is beyond 64 bits with a sign.
    fn from(value: usize) -> Self {
        Self::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }
}

impl FromIterator<Val> for Val {
    fn from_iter<I: IntoIterator<Item = Val>>(items: I) -> Self {
        Self::List(Arc::new(items.into_iter().collect()))
    }
}

impl Val {
    /// The name of its type, as `type()` and error messages show it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::String(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Map(_) => "map",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Optional(_) => "optional_type",
            Self::Type(_) => "type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Url(_) => "kubernetes.URL",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Format(_) => "kubernetes.NamedFormat",
        }
    }

    /// A number as a double, for what compares and adds across the types of numbers.
    pub fn as_double(&self) -> Option<f64> {
        match self {
            Self::Int(n) => Some(*n as f64),
            Self::Uint(n) => Some(*n as f64),
            Self::Double(n) => Some(*n),
            _ => None,
        }
    }

    /// As the key of a map; a double without a fraction is one.
    pub fn key(&self) -> Option<Key> {
        match self {
            Self::Bool(value) => Some(Key::Bool(*value)),
            Self::Int(n) => Some(Key::Int(*n)),
            Self::Uint(n) => Some(i64::try_from(*n).map_or(Key::Uint(*n), Key::Int)),
            Self::Double(n) if n.fract() == 0.0 && n.abs() < 9e15 => Some(Key::Int(*n as i64)),
            Self::String(text) => Some(Key::String(text.clone())),
            _ => None,
        }
    }

    /// How large it is in memory, roughly: what a copy of its outermost part costs.
    pub fn size(&self) -> usize {
        match self {
            Self::String(text) => text.len() / 10,
            Self::Bytes(bytes) => bytes.len() / 10,
            Self::List(items) => items.len(),
            Self::Map(fields) => fields.len(),
            _ => 0,
        }
    }

    /// The value of a field of a resource; nothing where no value fits the schema.
    pub fn of(value: &Value, schema: Option<&Structural>, resource: bool) -> Result<Self, String> {
        Ok(match value {
            Value::Null => Self::Null,
            Value::Bool(value) => Self::Bool(*value),
            Value::Number(number) => {
                let double = schema.is_some_and(|s| s.kind == Some(Kind::Number));
                match number.as_i64().filter(|_| !double) {
                    Some(number) => Self::Int(number),
                    None => {
                        let number = number.as_f64().unwrap_or_default();
                        if schema.is_some_and(|s| s.kind == Some(Kind::Integer)) {
                            Self::Int(number as i64)
                        } else {
                            Self::Double(number)
                        }
                    }
                }
            }
            Value::String(text) => match schema {
                Some(schema) if !schema.int_or_string => of_text(text, &schema.values.format)?,
                _ => text.as_str().into(),
            },
            Value::Array(items) => {
                let of = schema.and_then(|s| s.items.as_deref());
                let items = items
                    .iter()
                    .map(|item| Self::of(item, of, of.is_some_and(|s| s.embedded)));
                items.collect::<Result<_, _>>()?
            }
            Value::Object(fields) => {
                let mut map = BTreeMap::new();
                for (name, value) in fields {
                    let field = schema.and_then(|s| s.field(name));
                    let known = schema.is_some_and(|s| s.properties.contains_key(name));
                    let key = if known || resource {
                        escape(name)
                    } else {
                        Some(name.clone())
                    };
                    // A field whose name cannot be written in CEL does not exist for it.
                    let Some(key) = key else { continue };
                    let embedded = field.is_some_and(|s| s.embedded);
                    let value = Self::of(value, field, embedded)?;
                    map.insert(Key::String(key.into()), value);
                }
                Self::Map(Arc::new(map))
            }
        })
    }
}

fn of_text(text: &str, format: &str) -> Result<Val, String> {
    let wrong = || format!("invalid value {text:?} for format {format}");
    Ok(match format {
        "byte" => Val::Bytes(
            base64::engine::general_purpose::STANDARD
                .decode(text)
                .map_err(|_| wrong())?
                .into(),
        ),
        "duration" => Val::Duration(formats::duration(text).ok_or_else(wrong)?),
        "date" => Val::Timestamp(format!("{text}T00:00:00Z").parse().map_err(|_| wrong())?),
        "date-time" => Val::Timestamp(formats::timestamp(text).ok_or_else(wrong)?),
        _ => text.into(),
    })
}

/// The name of a field in CEL: `a-b` is `a__dash__b`, a keyword stands between underscores. Nothing for a name that has
/// none. Source: apiserver, `pkg/cel/escaping.go`.
pub fn escape(name: &str) -> Option<String> {
    const KEYWORDS: [&str; 18] = [
        "true",
        "false",
        "null",
        "in",
        "as",
        "break",
        "const",
        "continue",
        "else",
        "for",
        "function",
        "if",
        "import",
        "let",
        "loop",
        "package",
        "namespace",
        "return",
    ];
    if KEYWORDS.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let starts = |c: char| c.is_ascii_alphabetic() || matches!(c, '_' | '.' | '-' | '/');
    let inside = |c: char| starts(c) || c.is_ascii_digit();
    if !name.starts_with(starts) || !name.chars().all(inside) {
        return None;
    }
    let escaped = name
        .replace("__", "__underscores__")
        .replace('.', "__dot__")
        .replace('-', "__dash__")
        .replace('/', "__slash__");
    Some(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_fields_are_written_so_that_cel_can_read_them() {
        for (name, escaped) in [
            ("a", Some("a")),
            ("a-b.c/d", Some("a__dash__b__dot__c__slash__d")),
            ("a__b", Some("a__underscores__b")),
            ("namespace", Some("__namespace__")),
            ("1a", None),
            ("a b", None),
        ] {
            assert_eq!(escape(name).as_deref(), escaped, "{name}");
        }
    }
}
