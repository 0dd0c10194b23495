//! Values of keys and of items of sets, in the order and the form of FieldsV1.
//!
//! Source: structured-merge-diff, `value/value.go`.

use std::cmp::Ordering;
use std::fmt;

use serde_json::Value;

/// A JSON value with the total order of FieldsV1: numbers, strings, booleans, lists, maps, null.
#[derive(Clone, Debug)]
pub struct ItemValue(Value);

impl ItemValue {
    /// The value.
    pub fn as_value(&self) -> &Value {
        &self.0
    }

    /// A copy of the value, with whole numbers as integers: `80.0` is `80`, as Go prints it.
    pub fn new(value: &Value) -> Self {
        const EXACT: f64 = 9_007_199_254_740_992.0;
        match value.as_f64() {
            Some(number) if value.is_f64() && number.fract() == 0.0 && number.abs() < EXACT => {
                #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
                let whole = number as i64;
                Self(whole.into())
            }
            _ => Self(value.clone()),
        }
    }
}

impl fmt::Display for ItemValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        print(&self.0, f)
    }
}

fn print(value: &Value, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match value {
        Value::String(text) => write!(f, "{text:?}"),
        Value::Array(items) => {
            f.write_str("[")?;
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    f.write_str(",")?;
                }
                print(item, f)?;
            }
            f.write_str("]")
        }
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| {
            write!(f, "{name}=")?;
            print(value, f)
        }),
        other => write!(f, "{other}"),
    }
}

impl PartialEq for ItemValue {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for ItemValue {}

impl PartialOrd for ItemValue {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ItemValue {
    fn cmp(&self, other: &Self) -> Ordering {
        compare(&self.0, &other.0)
    }
}

/// Orders two values as FieldsV1 does; numbers are equal if their value is, whether written as integers or not.
pub(super) fn compare(left: &Value, right: &Value) -> Ordering {
    let rank = |value: &Value| match value {
        Value::Number(_) => 0,
        Value::String(_) => 1,
        Value::Bool(_) => 2,
        Value::Array(_) => 3,
        Value::Object(_) => 4,
        Value::Null => 5,
    };
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => match (left.as_i64(), right.as_i64()) {
            (Some(left), Some(right)) => left.cmp(&right),
            _ => {
                let float = |number: &serde_json::Number| number.as_f64().unwrap_or_default();
                float(left).total_cmp(&float(right))
            }
        },
        (Value::String(left), Value::String(right)) => left.cmp(right),
        (Value::Bool(left), Value::Bool(right)) => left.cmp(right),
        (Value::Array(left), Value::Array(right)) => {
            let pairs = left
                .iter()
                .zip(right)
                .map(|(left, right)| compare(left, right));
            first_difference(pairs).then(left.len().cmp(&right.len()))
        }
        (Value::Object(left), Value::Object(right)) => {
            let pairs = left
                .iter()
                .zip(right)
                .map(|((name, value), (other, with))| {
                    name.cmp(other).then_with(|| compare(value, with))
                });
            first_difference(pairs).then(left.len().cmp(&right.len()))
        }
        _ => rank(left).cmp(&rank(right)),
    }
}

fn first_difference(mut pairs: impl Iterator<Item = Ordering>) -> Ordering {
    pairs.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

/// JSON as Go's `encoding/json` writes it: `<`, `>`, `&` and the line separators of Unicode are escaped.
pub(super) fn go_json(value: &Value) -> String {
    let text = value.to_string();
    // These characters stand nowhere in JSON but inside strings.
    let escaped = |c: char| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
    if !text.contains(escaped) {
        return text;
    }
    text.chars()
        .map(|c| {
            if escaped(c) {
                format!("\\u{:04x}", u32::from(c))
            } else {
                c.to_string()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_compare_by_value_and_kinds_in_their_order() {
        let ordered = [
            json!(1),
            json!(1.5),
            json!(2),
            json!("a"),
            json!(false),
            json!([1]),
            json!({}),
            json!(null),
        ];
        assert!(
            ordered
                .windows(2)
                .all(|pair| ItemValue::new(&pair[0]) < ItemValue::new(&pair[1]))
        );
        assert_eq!(ItemValue::new(&json!(80.0)), ItemValue::new(&json!(80)));
    }
}
