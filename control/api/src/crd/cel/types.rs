//! The types that expressions have, as far as the schema tells them.
//!
//! Where the schema says nothing (preserved fields, integers or strings) the type is `dyn`, and what does not fit shows
//! only when the rule runs.

use crate::crd::structural::{Kind, Structural};

/// The type of an expression.
#[derive(Clone, Debug)]
pub enum Ty<'s> {
    /// Not known before the rule runs.
    Dyn,
    /// A type without parts, by its name.
    Plain(&'static str),
    /// A list.
    List(Box<Ty<'s>>),
    /// A map; of the keys only strings are told apart.
    Map(Box<Ty<'s>>),
    /// An optional value.
    Optional(Box<Ty<'s>>),
    /// An object with fields; `true` for a resource, which has `apiVersion`, `kind` and `metadata` too.
    Object(&'s Structural, bool),
    /// The metadata of a resource.
    Metadata,
}

/// The type of a condition.
pub const BOOL: Ty<'static> = Ty::Plain("bool");
/// The type of a text.
pub const STRING: Ty<'static> = Ty::Plain("string");

impl<'s> Ty<'s> {
    /// The type of the values of a schema.
    pub fn of(schema: &'s Structural, resource: bool) -> Self {
        if schema.int_or_string {
            return Self::Dyn;
        }
        match schema.kind {
            None => Self::Dyn,
            Some(Kind::Boolean) => BOOL,
            Some(Kind::Integer) => Self::Plain("int"),
            Some(Kind::Number) => Self::Plain("double"),
            Some(Kind::String) => Self::Plain(match schema.values.format.as_str() {
                "byte" => "bytes",
                "duration" => "duration",
                "date" | "date-time" => "timestamp",
                _ => "string",
            }),
            Some(Kind::Array) => match &schema.items {
                Some(items) => Self::List(Box::new(Self::of(items, items.embedded))),
                None => Self::List(Box::new(Self::Dyn)),
            },
            Some(Kind::Object) => {
                if let Some(values) = schema.values_schema() {
                    Self::Map(Box::new(Self::of(values, values.embedded)))
                } else if schema.additional.is_some() {
                    Self::Map(Box::new(Self::Dyn))
                } else {
                    Self::Object(schema, resource || schema.embedded)
                }
            }
        }
    }

    /// The type of a field; an error in cel-go's words where there is none.
    pub fn field(&self, name: &str) -> Result<Ty<'s>, String> {
        let undefined = || Err(format!("undefined field '{name}'"));
        match self {
            Self::Dyn => Ok(Ty::Dyn),
            Self::Map(of) => Ok((**of).clone()),
            Self::Optional(of) => Ok(Ty::Optional(Box::new(of.field(name)?))),
            Self::Metadata => match name {
                "name" | "generateName" => Ok(STRING),
                _ => undefined(),
            },
            Self::Object(schema, resource) => {
                if *resource {
                    match name {
                        "apiVersion" | "kind" => return Ok(STRING),
                        "metadata" => return Ok(Ty::Metadata),
                        _ => {}
                    }
                }
                let found = schema
                    .properties
                    .iter()
                    .find(|(field, _)| super::value::escape(field).as_deref() == Some(name));
                match found {
                    Some((_, field)) => Ok(Ty::of(field, field.embedded)),
                    None if schema.preserves() => Ok(Ty::Dyn),
                    None => undefined(),
                }
            }
            Self::Plain(_) | Self::List(_) => {
                Err(format!("type '{self}' does not support field selection"))
            }
        }
    }

    /// What a macro's variable is, over this range.
    pub fn item(&self) -> Option<Ty<'s>> {
        match self {
            Self::List(of) => Some((**of).clone()),
            // A macro over a map is one over its keys.
            Self::Map(_) | Self::Object(..) | Self::Metadata => Some(Ty::Dyn),
            Self::Dyn => Some(Ty::Dyn),
            _ => None,
        }
    }

    /// Whether a value of this type may stand where `wanted` is asked for; `wanted` is a word of a signature.
    pub fn fits(&self, wanted: &str) -> bool {
        match (self, wanted) {
            (Self::Dyn, _) | (_, "dyn" | "T") => true,
            (Self::Plain("null_type"), _) => true,
            (Self::Plain(name), wanted) => *name == wanted,
            (Self::List(of), wanted) => {
                wanted == "list" || wanted.strip_prefix("list:").is_some_and(|of_| of.fits(of_))
            }
            (Self::Map(_) | Self::Object(..) | Self::Metadata, wanted) => wanted == "map",
            (Self::Optional(_), wanted) => wanted == "optional",
        }
    }

    /// The type for a word of a signature; `T` is the item of the first argument.
    pub fn result(word: &str, first: Option<&Ty<'s>>) -> Self {
        const NAMES: [&str; 15] = [
            "bool",
            "int",
            "uint",
            "double",
            "string",
            "bytes",
            "duration",
            "timestamp",
            "type",
            "quantity",
            "url",
            "ip",
            "cidr",
            "format",
            "null_type",
        ];
        if let Some(of) = word.strip_prefix("list:") {
            return Self::List(Box::new(Self::result(of, first)));
        }
        if let Some(of) = word.strip_prefix("map:") {
            return Self::Map(Box::new(Self::result(of, first)));
        }
        if let Some(of) = word.strip_prefix("optional:") {
            return Self::Optional(Box::new(Self::result(of, first)));
        }
        match (word, first) {
            ("T", Some(Self::List(of) | Self::Optional(of))) => (**of).clone(),
            ("A", Some(first)) => first.clone(),
            _ => NAMES
                .iter()
                .find(|name| **name == word)
                .map_or(Self::Dyn, |name| Self::Plain(name)),
        }
    }

    /// Whether two values can be equal at all.
    pub fn comparable(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dyn, _) | (_, Self::Dyn) => true,
            (Self::Plain("null_type"), _) | (_, Self::Plain("null_type")) => true,
            (Self::Plain(a), Self::Plain(b)) => a == b,
            (Self::List(a), Self::List(b))
            | (Self::Map(a), Self::Map(b))
            | (Self::Optional(a), Self::Optional(b)) => a.comparable(b),
            (a, b) => {
                let fields =
                    |ty: &Self| matches!(ty, Self::Map(_) | Self::Object(..) | Self::Metadata);
                fields(a) && fields(b)
            }
        }
    }
}

impl std::fmt::Display for Ty<'_> {
    /// As cel-go shows types.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dyn => f.write_str("dyn"),
            Self::Plain(name) => f.write_str(match *name {
                "null_type" => "null",
                "duration" => "google.protobuf.Duration",
                "timestamp" => "google.protobuf.Timestamp",
                "quantity" => "kubernetes.Quantity",
                "url" => "kubernetes.URL",
                "ip" => "net.IP",
                "cidr" => "net.CIDR",
                "format" => "kubernetes.NamedFormat",
                name => name,
            }),
            Self::List(of) => write!(f, "list({of})"),
            Self::Map(of) => write!(f, "map(string, {of})"),
            Self::Optional(of) => write!(f, "optional_type({of})"),
            Self::Object(..) => f.write_str("object"),
            Self::Metadata => f.write_str("object"),
        }
    }
}
