//! Label and field selectors (apimachinery, `labels/selector.go` and `fields/selector.go`).

use serde_json::Value;

use super::entry::Entry;
use crate::resource::{Resource, Scope};
use crate::status::ApiError;

/// What a list or watch asks of objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<FieldTerm>,
}

/// One requirement of a label selector.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct FieldTerm {
    field: String,
    value: String,
    equal: bool,
}

impl Selector {
    /// The selector of the query parameters `labelSelector` and `fieldSelector`.
    ///
    /// # Errors
    ///
    /// 400 for a selector that cannot be read, or a field that the kind does not select by.
    pub fn parse(resource: &Resource, labels: &str, fields: &str) -> Result<Self, ApiError> {
        let labels = parse_labels(labels).map_err(|detail| {
            ApiError::bad_request(format!("unable to parse requirement: {detail}"))
        })?;
        let fields = parse_fields(fields).map_err(ApiError::bad_request)?;
        for term in &fields {
            let known = term.field == "metadata.name"
                || (term.field == "metadata.namespace" && resource.scope == Scope::Namespaced)
                || resource
                    .strategy
                    .selectable_field_names()
                    .contains(&&*term.field);
            if !known {
                let message = if resource.strategy.selectable_field_names().is_empty() {
                    format!(
                        "{:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                        term.field
                    )
                } else {
                    format!("field label not supported: {}", term.field)
                };
                return Err(ApiError::bad_request(message));
            }
        }
        Ok(Self { labels, fields })
    }

    /// Whether everything matches.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The one name that `metadata.name` must have, if the selector says so.
    pub fn name(&self) -> Option<&str> {
        self.exactly("metadata.name")
    }

    /// The one namespace that `metadata.namespace` must be, if the selector says so.
    pub fn namespace(&self) -> Option<&str> {
        self.exactly("metadata.namespace")
    }

    /// The one value that a field must have, if the selector says so.
    pub fn exactly(&self, field: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|term| term.equal && term.field == field)
            .map(|term| &*term.value)
    }

    /// Whether an object matches, by what the cache knows of it.
    pub fn matches(&self, entry: &Entry) -> bool {
        self.labels.iter().all(|requirement| {
            let at = entry
                .labels
                .binary_search_by(|(key, _)| (**key).cmp(&requirement.key));
            requirement.matches(at.ok().map(|at| &*entry.labels[at].1))
        }) && self.fields.iter().all(|term| {
            let value = match &*term.field {
                "metadata.name" => entry.name(),
                "metadata.namespace" => entry.namespace(),
                name => entry.field(name),
            };
            (value == term.value) == term.equal
        })
    }

    /// Whether an object matches that is served in another version than it is stored in, by its fields there.
    pub fn matches_converted(&self, entry: &Entry, object: &Value, resource: &Resource) -> bool {
        let fields = resource.strategy.selectable_fields(object);
        let (own, others): (Vec<_>, Vec<_>) = self
            .fields
            .iter()
            .cloned()
            .partition(|term| fields.iter().any(|(name, _)| *name == term.field));
        let rest = Self {
            labels: self.labels.clone(),
            fields: others,
        };
        rest.matches(entry)
            && own.iter().all(|term| {
                fields.iter().any(|(name, value)| {
                    *name == term.field && (*value == term.value) == term.equal
                })
            })
    }
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|value| values.iter().any(|v| v == value)),
            Operator::NotIn(values) => {
                !value.is_some_and(|value| values.iter().any(|v| v == value))
            }
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan(than) => number().is_some_and(|number| number > *than),
            Operator::LessThan(than) => number().is_some_and(|number| number < *than),
        }
    }
}

/// The fields that must have one value for a field selector to match: authorization may look at them. None of a text that is no
/// selector.
pub fn equalities(fields: &str) -> Vec<(String, String)> {
    let terms = parse_fields(fields).unwrap_or_default().into_iter();
    terms
        .filter(|term| term.equal)
        .map(|term| (term.field, term.value))
        .collect()
}

/// The one object that a selector is about, if it says so: authorization knows such a list as one of this name.
pub fn only_name<'a>(equalities: &[(&'a str, &'a str)]) -> Option<&'a str> {
    let (_, name) = equalities
        .iter()
        .find(|(field, _)| *field == "metadata.name")?;
    (!name.is_empty() && super::names::path_segment(name).is_ok()).then_some(name)
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, String> {
    let mut requirements = Vec::new();
    for part in split_outside_parentheses(text) {
        let part = part.trim();
        if part.is_empty() {
            if text.trim().is_empty() {
                continue;
            }
            return Err(format!(
                "found '{}', expected: identifier",
                if text.ends_with(',') { "" } else { "," }
            ));
        }
        requirements.push(parse_requirement(part)?);
    }
    Ok(requirements)
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0_i32, 0);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' => depth += 1,
            b')' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_requirement(text: &str) -> Result<Requirement, String> {
    let requirement = |key: &str, operator| {
        let key = key.trim();
        super::names::label_key(key)
            .map_err(|detail| format!("key: Invalid value: {key:?}: {detail}"))?;
        Ok(Requirement {
            key: key.to_owned(),
            operator,
        })
    };
    if let Some(key) = text.strip_prefix('!')
        && !key.contains('=')
    {
        return requirement(key, Operator::DoesNotExist);
    }
    if let Some((head, values)) = text.split_once('(') {
        let values = values
            .trim_end()
            .strip_suffix(')')
            .ok_or_else(|| format!("found '', expected: ',' or ')' in {text:?}"))?;
        let values = values.split(',').map(|v| v.trim().to_owned()).collect();
        return match head.split_whitespace().collect::<Vec<_>>()[..] {
            [key, "in"] => requirement(key, Operator::In(checked(key, values)?)),
            [key, "notin"] => requirement(key, Operator::NotIn(checked(key, values)?)),
            [_, operator] => Err(format!(
                "found '{operator}', expected: in, notin, =, ==, !=, gt, lt"
            )),
            _ => Err(format!("found '{}', expected: identifier", head.trim())),
        };
    }
    if let Some((key, value)) = text.split_once("!=") {
        return requirement(
            key,
            Operator::NotIn(checked(key, vec![value.trim().to_owned()])?),
        );
    }
    if let Some((key, value)) = text.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value).trim();
        return requirement(key, Operator::In(checked(key, vec![value.to_owned()])?));
    }
    for (sign, make) in [
        ('>', Operator::GreaterThan as fn(i64) -> Operator),
        ('<', Operator::LessThan as fn(i64) -> Operator),
    ] {
        if let Some((key, value)) = text.split_once(sign) {
            let number = value.trim().parse().map_err(|_| {
                format!("values[0][{}]: Invalid value: {:?}: for 'Gt', 'Lt' operators, the value must be an integer", key.trim(), value.trim())
            })?;
            return requirement(key, make(number));
        }
    }
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        [key] => requirement(key, Operator::Exists),
        [_, second, ..] => Err(format!(
            "found '{second}', expected: in, notin, =, ==, !=, gt, lt"
        )),
        [] => Err("found '', expected: identifier".to_owned()),
    }
}

fn checked(key: &str, values: Vec<String>) -> Result<Vec<String>, String> {
    for (index, value) in values.iter().enumerate() {
        super::names::label_value(value).map_err(|detail| {
            format!(
                "values[{index}][{}]: Invalid value: {value:?}: {detail}",
                key.trim()
            )
        })?;
    }
    Ok(values)
}

fn parse_fields(text: &str) -> Result<Vec<FieldTerm>, String> {
    let mut terms = Vec::new();
    for part in split_unescaped(text) {
        if part.is_empty() {
            continue;
        }
        let (field, value, equal) = if let Some((field, value)) = part.split_once("!=") {
            (field, value, false)
        } else if let Some((field, value)) = part.split_once("==") {
            (field, value, true)
        } else if let Some((field, value)) = part.split_once('=') {
            (field, value, true)
        } else {
            return Err(format!(
                "invalid selector: '{text}'; can't understand '{part}'"
            ));
        };
        terms.push(FieldTerm {
            field: field.to_owned(),
            value: unescape(value),
            equal,
        });
    }
    Ok(terms)
}

/// Splits at commas that no backslash stands before.
fn split_unescaped(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b',' => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    let mut escaped = false;
    for c in value.chars() {
        if c == '\\' && !escaped {
            escaped = true;
        } else {
            out.push(c);
            escaped = false;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(selector: &str, labels: &[(&str, &str)]) -> bool {
        parse_labels(selector).unwrap().iter().all(|requirement| {
            let value = labels
                .iter()
                .find(|(key, _)| *key == requirement.key)
                .map(|(_, value)| *value);
            requirement.matches(value)
        })
    }

    #[test]
    fn label_selectors_match_as_in_kubernetes() {
        let labels = [("app", "web"), ("tier", "front"), ("n", "5")];
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (web, db),tier notin (back)", true),
            ("app in (db)", false),
            ("absent notin (x)", true),
            ("absent!=x", true),
            ("app", true),
            ("!app", false),
            ("!absent", true),
            ("n>4", true),
            ("n<4", false),
            ("example.com/part=1", false),
        ] {
            assert_eq!(matches(selector, &labels), expected, "{selector}");
        }
    }

    #[test]
    fn unreadable_selectors_are_refused() {
        for selector in ["a,", "a in b", "a in (b", "a=b=c", "a b", "-x=y", "a=-"] {
            assert!(parse_labels(selector).is_err(), "{selector}");
        }
        assert!(parse_fields("metadata.name").is_err());
    }
}
