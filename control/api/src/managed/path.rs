//! One step of a path into an object: a field, an item by its keys, by its value or by its index.
//!
//! Source: structured-merge-diff, `fieldpath` (the order, the form in FieldsV1, the form in messages).

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

use super::item_value::{ItemValue, go_json};

/// One step of a path. The order is FieldsV1's: fields, then keys, then values, then indices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathElement {
    /// A field of an object: `f:name`.
    Field(Arc<str>),
    /// An item of a list of type map, by its keys in the order of their names: `k:{"name":"web"}`.
    Key(Arc<[(Arc<str>, ItemValue)]>),
    /// An item of a list of type set, by its value: `v:"web"`.
    Value(Arc<ItemValue>),
    /// An item of any list, by its place: `i:0`.
    Index(i64),
}

/// Why a key of FieldsV1 is no step of a path.
#[derive(Debug, thiserror::Error)]
pub enum PathElementError {
    /// Shorter than the letter and the colon.
    #[error("key must be 2 characters long")]
    TooShort,
    /// No colon after the letter.
    #[error("missing colon: {text}")]
    NoColon {
        /// The key.
        text: String,
    },
    /// What follows the colon is not what the letter promises.
    #[error("{text:?} is no path element")]
    Content {
        /// The key.
        text: String,
    },
}

impl PathElement {
    /// The step into the field `name`.
    pub fn field(name: &str) -> Self {
        Self::Field(name.into())
    }

    /// The step to the item with these keys, in any order.
    pub fn key(mut keys: Vec<(Arc<str>, ItemValue)>) -> Self {
        keys.sort_by(|left, right| left.0.cmp(&right.0));
        Self::Key(keys.into())
    }

    /// The step to the item with this value.
    pub fn value(value: &Value) -> Self {
        Self::Value(Arc::new(ItemValue::new(value)))
    }

    /// Reads the form in FieldsV1. `Ok(None)` is a step of a kind that only a later version knows.
    ///
    /// # Errors
    ///
    /// For a text without a kind, or with a content that the kind does not allow.
    pub fn parse(text: &str) -> Result<Option<Self>, PathElementError> {
        let bad = || PathElementError::Content { text: text.into() };
        let bytes = text.as_bytes();
        if bytes.len() < 2 {
            return Err(PathElementError::TooShort);
        }
        if bytes[1] != b':' {
            return Err(PathElementError::NoColon { text: text.into() });
        }
        // Both bytes are ASCII only if the first one is; a longer character has no `:` as its second byte.
        let content = &text[2..];
        let element = match bytes[0] {
            b'f' => Self::field(content),
            b'v' => Self::value(&serde_json::from_str(content).map_err(|_| bad())?),
            b'k' => {
                let Ok(Value::Object(keys)) = serde_json::from_str(content) else {
                    return Err(bad());
                };
                let keys = keys
                    .iter()
                    .map(|(name, v)| (name.as_str().into(), ItemValue::new(v)));
                Self::key(keys.collect())
            }
            b'i' => Self::Index(content.parse().map_err(|_| bad())?),
            _ => return Ok(None),
        };
        Ok(Some(element))
    }

    /// The form in FieldsV1.
    pub fn to_key(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(keys) => {
                let keys: Vec<String> = keys
                    .iter()
                    .map(|(name, value)| {
                        format!(
                            "{}:{}",
                            go_json(&Value::from(&**name)),
                            go_json(value.as_value())
                        )
                    })
                    .collect();
                format!("k:{{{}}}", keys.join(","))
            }
            Self::Value(value) => format!("v:{}", go_json(value.as_value())),
            Self::Index(index) => format!("i:{index}"),
        }
    }
}

/// The form in messages: `.name`, `[name="web"]`, `[="web"]`, `[0]`.
impl fmt::Display for PathElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, ".{name}"),
            Self::Key(keys) => {
                let keys: Vec<String> =
                    keys.iter().map(|(name, v)| format!("{name}={v}")).collect();
                write!(f, "[{}]", keys.join(","))
            }
            Self::Value(value) => write!(f, "[={value}]"),
            Self::Index(index) => write!(f, "[{index}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_have_the_forms_of_kubernetes() {
        #[rustfmt::skip] // A table: one row is one line.
        let rows = [
            ("f:replicas", ".replicas"),
            ("f:app.kubernetes.io/name", ".app.kubernetes.io/name"),
            (r#"k:{"containerPort":80,"protocol":"TCP"}"#, r#"[containerPort=80,protocol="TCP"]"#),
            (r#"v:"a\u003cb""#, r#"[="a<b"]"#),
            ("v:3.5", "[=3.5]"),
            ("i:-1", "[-1]"),
        ];
        for (key, message) in rows {
            let element = PathElement::parse(key).expect(key).expect("a known kind");
            assert_eq!(
                (element.to_key().as_str(), element.to_string().as_str()),
                (key, message)
            );
        }
        let unsorted = PathElement::parse(r#"k:{"b":1.0,"a":null}"#).expect("keys");
        assert_eq!(unsorted.expect("keys").to_key(), r#"k:{"a":null,"b":1}"#);
    }

    #[test]
    fn keys_that_are_no_elements_are_refused_and_later_kinds_passed_over() {
        assert!(
            PathElement::parse("x:what")
                .expect("a later kind")
                .is_none()
        );
        for key in [
            "",
            "f",
            "fx",
            "é:",
            "k:[]",
            "k:{",
            "v:",
            "v:nope",
            "i:one",
            "i:99999999999999999999",
        ] {
            assert!(PathElement::parse(key).is_err(), "{key}");
        }
    }
}
