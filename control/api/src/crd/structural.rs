//! Structural schemas: the model of the `openAPIV3Schema` of a custom resource's version.
//!
//! [`Structural::read`] makes one; what a schema may not say is for `checks`. Source: apiextensions-apiserver,
//! `apiserver/schema`.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Number, Value};

use super::cel::Rule;
use super::pattern::Pattern;

/// A schema, with the fields and items that it specifies.
///
/// The same type holds the schemas inside `allOf`, `anyOf`, `oneOf` and `not`, of which only some keywords are allowed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Structural {
    /// `type`; none for an integer or string, and for what is preserved.
    pub kind: Option<Kind>,
    /// `title` or `description` is there; the words matter to nobody here.
    pub described: bool,
    /// `externalDocs` is there.
    pub external_docs: bool,
    /// `default`.
    pub default: Option<Value>,
    /// `nullable`: whether `null` is a value.
    pub nullable: bool,
    /// `properties`.
    pub properties: BTreeMap<String, Structural>,
    /// `additionalProperties`.
    pub additional: Option<Additional>,
    /// `items`.
    pub items: Option<Box<Structural>>,
    /// `x-kubernetes-preserve-unknown-fields`, as written.
    pub preserve: Option<bool>,
    /// `x-kubernetes-embedded-resource`.
    pub embedded: bool,
    /// `x-kubernetes-int-or-string`.
    pub int_or_string: bool,
    /// `x-kubernetes-list-type`, as written.
    pub list_type: Option<String>,
    /// `x-kubernetes-list-map-keys`.
    pub list_map_keys: Vec<String>,
    /// `x-kubernetes-map-type`, as written.
    pub map_type: Option<String>,
    /// `x-kubernetes-validations`.
    pub rules: Vec<Rule>,
    /// What a value must satisfy beyond its type.
    pub values: Values,
    /// Whether there is a rule here or inside; only after [`super::cel::compile`].
    pub has_rules: bool,
    /// Keywords that are there and that no custom resource may use.
    pub unsupported: Vec<&'static str>,
}

/// What a value must satisfy beyond its type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Values {
    /// `format`; empty for none.
    pub format: String,
    /// `minimum`.
    pub minimum: Option<Number>,
    /// Whether the minimum itself is excluded.
    pub exclusive_minimum: bool,
    /// `maximum`.
    pub maximum: Option<Number>,
    /// Whether the maximum itself is excluded.
    pub exclusive_maximum: bool,
    /// `multipleOf`.
    pub multiple_of: Option<Number>,
    /// `minLength`, in characters.
    pub min_length: Option<i64>,
    /// `maxLength`, in characters.
    pub max_length: Option<i64>,
    /// `pattern`.
    pub pattern: Option<Arc<Pattern>>,
    /// `minItems`.
    pub min_items: Option<i64>,
    /// `maxItems`.
    pub max_items: Option<i64>,
    /// `uniqueItems`.
    pub unique_items: bool,
    /// `minProperties`.
    pub min_properties: Option<i64>,
    /// `maxProperties`.
    pub max_properties: Option<i64>,
    /// `required`.
    pub required: Vec<String>,
    /// `enum`.
    pub allowed: Vec<Value>,
    /// `allOf`.
    pub all_of: Vec<Structural>,
    /// `anyOf`.
    pub any_of: Vec<Structural>,
    /// `oneOf`.
    pub one_of: Vec<Structural>,
    /// `not`.
    pub not: Option<Box<Structural>>,
}

/// `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `array`
    Array,
    /// `boolean`
    Boolean,
    /// `integer`
    Integer,
    /// `number`
    Number,
    /// `object`
    Object,
    /// `string`
    String,
}

/// `additionalProperties`.
#[derive(Clone, Debug, PartialEq)]
pub enum Additional {
    /// `true` or `false`.
    Allowed(bool),
    /// The values have this schema.
    Schema(Box<Structural>),
}

impl Kind {
    /// Every type, in the order in which messages list them.
    pub const NAMES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];

    /// The word in a schema.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Array => "array",
            Self::Boolean => "boolean",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Object => "object",
            Self::String => "string",
        }
    }

    /// The type by its word.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "array" => Self::Array,
            "boolean" => Self::Boolean,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "object" => Self::Object,
            "string" => Self::String,
            _ => return None,
        })
    }
}

impl Structural {
    /// The word of the type; empty for none.
    pub fn type_name(&self) -> &'static str {
        self.kind.map_or("", Kind::as_str)
    }

    /// Whether unknown fields are kept.
    pub fn preserves(&self) -> bool {
        self.preserve == Some(true)
    }

    /// The schema of the values of a map.
    pub fn values_schema(&self) -> Option<&Structural> {
        match &self.additional {
            Some(Additional::Schema(schema)) => Some(schema),
            _ => None,
        }
    }

    /// The schema of a field, or of a map's value.
    pub fn field(&self, name: &str) -> Option<&Structural> {
        (self.properties.get(name)).or_else(|| self.values_schema())
    }

    /// Whether items are told apart by their keys.
    pub fn is_list_map(&self) -> bool {
        self.list_type.as_deref() == Some("map")
    }
}
