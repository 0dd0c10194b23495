//! JSONPath as printer columns use it: fields, indices, slices, wildcards, `..`, unions and filters.
//!
//! Of client-go's template language (`util/jsonpath`) this is what stands inside one pair of braces; a missing key is
//! no mistake, it selects nothing.

mod parse;

use std::cmp::Ordering;

use serde_json::Value;

/// How many values one path may select: `..` and `*` multiply.
const MAX_FOUND: usize = 10_000;

/// A compiled path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    /// `from:to:by`; an index `n` is `n:n+1`.
    Slice(Option<i64>, Option<i64>, Option<i64>),
    Index(i64),
    Wildcard,
    Recursive,
    Union(Vec<Step>),
    Filter(Operand, Option<(Operator, Operand)>),
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    /// A path from the item at hand.
    Path(JsonPath),
    Literal(Value),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl JsonPath {
    /// Parses a path such as `.status.conditions[?(@.type=="Ready")].status`.
    ///
    /// # Errors
    ///
    /// What the path breaks off at.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = parse::Parser { rest: text };
        let steps = parser.steps(0)?;
        if parser.rest.is_empty() {
            Ok(Self(steps))
        } else {
            Err(format!("unrecognized text {:?} in {text:?}", parser.rest))
        }
    }

    /// The values that the path selects.
    pub fn find<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        let mut found = vec![value];
        for step in &self.0 {
            let mut next = Vec::new();
            for value in found {
                step.select(value, &mut next);
                if next.len() > MAX_FOUND {
                    next.truncate(MAX_FOUND);
                    break;
                }
            }
            found = next;
        }
        found
    }
}

impl Step {
    fn select<'a>(&self, value: &'a Value, out: &mut Vec<&'a Value>) {
        match (self, value) {
            (Self::Field(name), Value::Object(fields)) => out.extend(fields.get(name)),
            (Self::Index(index), Value::Array(items)) => out.extend(at(items, *index)),
            (Self::Slice(from, to, by), Value::Array(items)) => {
                let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
                let place = |n: i64| if n < 0 { n + length } else { n }.clamp(0, length);
                let (from, to) = (place(from.unwrap_or(0)), place(to.unwrap_or(length)));
                let by = usize::try_from(by.unwrap_or(1).max(1)).unwrap_or(usize::MAX);
                let range = (from..to.max(from)).step_by(by);
                out.extend(range.filter_map(|n| items.get(usize::try_from(n).ok()?)));
            }
            (Self::Wildcard, Value::Array(items)) => out.extend(items),
            (Self::Wildcard, Value::Object(fields)) => out.extend(fields.values()),
            (Self::Recursive, value) => descend(value, out),
            (Self::Union(steps), value) => steps.iter().for_each(|step| step.select(value, out)),
            (Self::Filter(left, test), Value::Array(items)) => {
                out.extend(
                    items
                        .iter()
                        .filter(|item| passes(left, test.as_ref(), item)),
                );
            }
            _ => {}
        }
    }
}

fn at(items: &[Value], index: i64) -> Option<&Value> {
    let index = match u64::try_from(index) {
        Ok(index) => usize::try_from(index).ok()?,
        Err(_) => items
            .len()
            .checked_sub(usize::try_from(index.unsigned_abs()).ok()?)?,
    };
    items.get(index)
}

/// A value and everything inside it.
fn descend<'a>(value: &'a Value, out: &mut Vec<&'a Value>) {
    if out.len() > MAX_FOUND {
        return;
    }
    out.push(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| descend(item, out)),
        Value::Object(fields) => fields.values().for_each(|value| descend(value, out)),
        _ => {}
    }
}

fn passes(left: &Operand, test: Option<&(Operator, Operand)>, item: &Value) -> bool {
    let Some(left) = left.value(item) else {
        return false;
    };
    let Some((operator, right)) = test else {
        return true;
    };
    let Some(right) = right.value(item) else {
        return false;
    };
    let order = match (left, right) {
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (a, b) if a == b => Some(Ordering::Equal),
        _ => None,
    };
    match (operator, order) {
        (Operator::NotEqual, order) => order != Some(Ordering::Equal),
        (_, None) => false,
        (Operator::Equal, Some(order)) => order.is_eq(),
        (Operator::Less, Some(order)) => order.is_lt(),
        (Operator::LessOrEqual, Some(order)) => order.is_le(),
        (Operator::Greater, Some(order)) => order.is_gt(),
        (Operator::GreaterOrEqual, Some(order)) => order.is_ge(),
    }
}

impl Operand {
    fn value<'a>(&'a self, item: &'a Value) -> Option<&'a Value> {
        match self {
            Self::Path(path) => path.find(item).first().copied(),
            Self::Literal(value) => Some(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_select_what_client_go_selects() {
        let value = json!({
            "spec": { "replicas": 3, "a.b": "dot", "list": [1, 2, 3, 4] },
            "status": { "conditions": [
                { "type": "Ready", "status": "True", "n": 1 }, { "type": "Other", "status": "False", "n": 2 } ] },
        });
        for (path, expected) in [
            (".spec.replicas", json!([3])),
            ("$.spec.replicas", json!([3])),
            (".spec['a.b']", json!(["dot"])),
            (r".spec.a\.b", json!(["dot"])),
            (".spec.list[0]", json!([1])),
            (".spec.list[-1]", json!([4])),
            (".spec.list[-1:]", json!([4])),
            (".spec.list[0:2]", json!([1, 2])),
            (".spec.list[::2]", json!([1, 3])),
            (".spec.list[0,2]", json!([1, 3])),
            (".spec.list[*]", json!([1, 2, 3, 4])),
            (".spec.list[9]", json!([])),
            (".no.such", json!([])),
            (
                r#".status.conditions[?(@.type=="Ready")].status"#,
                json!(["True"]),
            ),
            (
                ".status.conditions[?(@.type == 'Other')].status",
                json!(["False"]),
            ),
            (".status.conditions[?(@.n>1)].type", json!(["Other"])),
            (".status.conditions[?(@.none)].type", json!([])),
            ("..type", json!(["Ready", "Other"])),
            (".", json!([value])),
        ] {
            let parsed = JsonPath::parse(path).unwrap_or_else(|e| panic!("{path}: {e}"));
            assert_eq!(json!(parsed.find(&value)), expected, "{path}");
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for path in [".a[", ".a[x]", ".a[?(@.b", "a", ".a['b", ".a..", ".a]"] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
        let deep = "[?(@".repeat(5000);
        assert!(JsonPath::parse(&deep).is_err());
    }

    #[test]
    fn a_path_that_selects_everything_again_and_again_ends() {
        let mut value = json!(1);
        for _ in 0..10 {
            value = json!([value.clone(), value]);
        }
        let path = JsonPath::parse("..[*]..[*]..[*]").expect("a path");
        assert!(path.find(&value).len() <= MAX_FOUND);
    }
}
