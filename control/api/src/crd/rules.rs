//! Whether a custom resource satisfies its schema, in kube-apiserver's words.
//!
//! Sources: kube-openapi `validation/validate` and `validation/errors` for the checks and words; apiextensions-apiserver
//! `apiserver/validation` for how they become errors of fields.

use std::collections::HashSet;

use serde_json::{Map, Number, Value};

use super::formats;
use super::lists::{key_of, old_items};
use super::numbers::{compare, go_number, is_integer, is_multiple, same};
use super::structural::{Kind, Structural, Values};
use crate::schema::join;
use crate::status::FieldError;

/// How much work one object may cause: a step is one check of one value by one schema.
const MAX_STEPS: usize = 2_000_000;

/// How many mistakes of one object are told.
const MAX_MISTAKES: usize = 1000;

impl Structural {
    /// Mistakes of an object in what the schema says about its values, CEL rules and the uniqueness of list items aside.
    pub fn validate(&self, object: &Value) -> Vec<FieldError> {
        self.validate_at(object, "")
    }

    /// As [`Structural::validate`], of an object that replaces `old`: what did not change is not judged again, so that a
    /// definition may tighten its rules.
    pub fn validate_update(&self, object: &Value, old: &Value) -> Vec<FieldError> {
        self.run(object, Some(old), "")
    }

    /// As [`Structural::validate`], of the value at a path.
    pub fn validate_at(&self, value: &Value, path: &str) -> Vec<FieldError> {
        self.run(value, None, path)
    }

    fn run(&self, value: &Value, old: Option<&Value>, path: &str) -> Vec<FieldError> {
        let mut check = Check { steps: 0 };
        let mut outcome = Vec::new();
        check.changed(self, value, old, path, &mut outcome);
        if check.steps > MAX_STEPS || outcome.len() > MAX_MISTAKES {
            let detail =
                "validation failed due to running out of budget, no further checks will be run";
            outcome.push(FieldError::invalid(
                shown(path),
                &type_of(value).into(),
                detail,
            ));
        }
        outcome
    }
}

/// The type of a value in a schema's words.
pub fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if is_integer(number) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A field's path in an error; Go shows a missing one as `<nil>`.
fn shown(path: &str) -> &str {
    if path.is_empty() { "<nil>" } else { path }
}

/// One validation: how much of its budget is used.
struct Check {
    steps: usize,
}

type Outcome = Vec<FieldError>;

impl Check {
    /// Checks a new value, whatever was there before.
    fn value(&mut self, schema: &Structural, value: &Value, path: &str, out: &mut Outcome) {
        self.changed(schema, value, None, path, out);
    }

    fn changed(
        &mut self,
        schema: &Structural,
        value: &Value,
        old: Option<&Value>,
        path: &str,
        out: &mut Outcome,
    ) {
        self.steps += 1;
        if self.steps > MAX_STEPS || out.len() > MAX_MISTAKES || old == Some(value) {
            return;
        }
        self.kind(schema, value, path, out);
        self.allowed(&schema.values, value, path, out);
        if value.is_null() {
            return;
        }
        self.junctors(&schema.values, value, path, out);
        match value {
            Value::String(text) => self.string(&schema.values, text, path, out),
            Value::Number(number) => self.number(&schema.values, number, path, out),
            Value::Array(items) => self.array(schema, items, old, path, out),
            Value::Object(fields) => self.object(schema, fields, old, path, out),
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn kind(&self, schema: &Structural, value: &Value, path: &str, out: &mut Outcome) {
        let (found, wanted) = (type_of(value), schema.type_name());
        let fits = match value {
            Value::Null => schema.nullable || (wanted.is_empty() && !schema.int_or_string),
            _ if schema.int_or_string => matches!(found, "integer" | "string"),
            _ => match schema.kind {
                None => true,
                Some(Kind::Number) => value.is_number(),
                Some(kind) => found == kind.as_str(),
            },
        };
        if !fits {
            let wanted = if schema.int_or_string {
                "integer,string"
            } else {
                wanted
            };
            out.push(wrong_type(path, wanted, found));
        }
    }

    fn allowed(&mut self, values: &Values, value: &Value, path: &str, out: &mut Outcome) {
        self.steps += values.allowed.len() / 8;
        if values.allowed.is_empty() || values.allowed.iter().any(|allowed| same(allowed, value)) {
            return;
        }
        let words: Vec<String> = (values.allowed.iter())
            .map(|allowed| match allowed {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            })
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        out.push(FieldError::not_supported(shown(path), value, &words));
    }

    fn string(&mut self, values: &Values, text: &str, path: &str, out: &mut Outcome) {
        let length = || i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
        if let Some(max) = values.max_length.filter(|max| length() > *max) {
            let max = usize::try_from(max).unwrap_or_default();
            out.push(FieldError::too_long(shown(path), max, "bytes"));
        }
        if let Some(min) = values.min_length.filter(|min| length() < *min) {
            let detail = format!("should be at least {min} chars long");
            out.push(in_body(path, &text.into(), &detail));
        }
        if let Some(pattern) = &values.pattern {
            self.steps += text.len() / 16;
            if !pattern.is_match(text) {
                let detail = format!("should match '{}'", pattern.source());
                out.push(in_body(path, &text.into(), &detail));
            }
        }
        if formats::check(&values.format, text) == Some(false) {
            let detail = format!("must be of type {}: {text:?}", values.format);
            let error = in_body(path, &text.into(), &detail);
            out.push(FieldError {
                reason: "FieldValueTypeInvalid",
                ..error
            });
        }
    }

    fn number(&self, values: &Values, number: &Number, path: &str, out: &mut Outcome) {
        let value = Value::Number(number.clone());
        let mut wrong = |detail: String| out.push(in_body(path, &value, &detail));
        if let Some(unit) = &values.multiple_of
            && !is_multiple(number, unit)
        {
            wrong(format!("should be a multiple of {}", go_number(unit)));
        }
        if let Some(max) = &values.maximum {
            let order = compare(number, max);
            if order.is_gt() || (values.exclusive_maximum && order.is_eq()) {
                let equal = if values.exclusive_maximum {
                    ""
                } else {
                    " or equal to"
                };
                wrong(format!("should be less than{equal} {}", go_number(max)));
            }
        }
        if let Some(min) = &values.minimum {
            let order = compare(number, min);
            if order.is_lt() || (values.exclusive_minimum && order.is_eq()) {
                let equal = if values.exclusive_minimum {
                    ""
                } else {
                    " or equal to"
                };
                wrong(format!("should be greater than{equal} {}", go_number(min)));
            }
        }
    }

    fn array(
        &mut self,
        schema: &Structural,
        items: &[Value],
        old: Option<&Value>,
        path: &str,
        out: &mut Outcome,
    ) {
        let values = &schema.values;
        let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
        if let Some(min) = values.min_items.filter(|min| count < *min) {
            let detail = format!("should have at least {min} items");
            out.push(in_body(path, &items.len().into(), &detail));
        }
        if let Some(max) = values.max_items.filter(|max| count > *max) {
            let max = usize::try_from(max).unwrap_or_default();
            out.push(FieldError::too_many(shown(path), items.len(), max));
        }
        if values.unique_items {
            let mut seen = HashSet::new();
            self.steps += items.len();
            if !items.iter().all(|item| seen.insert(item.to_string())) {
                let detail = "shouldn't contain duplicates";
                out.push(in_body(path, &"array".into(), detail));
            }
        }
        if let Some(item) = &schema.items {
            let before = old_items(schema, old);
            for (index, value) in items.iter().enumerate() {
                let key = || key_of(value, &schema.list_map_keys).to_string();
                let old = (!before.is_empty()).then(|| before.get(&key()).copied());
                let path = format!("{path}[{index}]");
                self.changed(item, value, old.flatten(), &path, out);
            }
        }
    }

    fn object(
        &mut self,
        schema: &Structural,
        fields: &Map<String, Value>,
        old: Option<&Value>,
        path: &str,
        out: &mut Outcome,
    ) {
        let values = &schema.values;
        let count = i64::try_from(fields.len()).unwrap_or(i64::MAX);
        if let Some(min) = values.min_properties.filter(|min| count < *min) {
            let detail = format!("should have at least {min} properties");
            out.push(in_body(path, &fields.len().into(), &detail));
        }
        if let Some(max) = values.max_properties.filter(|max| count > *max) {
            let max = usize::try_from(max).unwrap_or_default();
            out.push(FieldError::too_many(shown(path), fields.len(), max));
        }
        self.steps += values.required.len();
        for name in &values.required {
            if !fields.contains_key(name) {
                out.push(FieldError::required(join(path, name), ""));
            }
        }
        if schema.properties.is_empty() && schema.values_schema().is_none() {
            return;
        }
        for (name, value) in fields {
            if let Some(field) = schema.field(name) {
                let old = old.and_then(|old| old.get(name));
                self.changed(field, value, old, &join(path, name), out);
            }
        }
    }

    fn junctors(&mut self, values: &Values, value: &Value, path: &str, out: &mut Outcome) {
        if !values.any_of.is_empty() {
            let (valid, best) = self.branches(&values.any_of, value, path);
            if valid == 0 {
                out.push(junctor(
                    path,
                    "must validate at least one schema (anyOf)".to_owned(),
                ));
                out.extend(best);
            }
        }
        if !values.one_of.is_empty() {
            let (valid, best) = self.branches(&values.one_of, value, path);
            if valid != 1 {
                let found = match valid {
                    0 => "Found none valid".to_owned(),
                    several => format!("Found {several} valid alternatives"),
                };
                let words = format!("must validate one and only one schema (oneOf). {found}");
                out.push(junctor(path, words));
                if valid == 0 {
                    out.extend(best);
                }
            }
        }
        if !values.all_of.is_empty() {
            let before = out.len();
            let mut valid = 0;
            let mut mistakes = Vec::new();
            for schema in &values.all_of {
                let length = mistakes.len();
                self.value(schema, value, path, &mut mistakes);
                valid += usize::from(mistakes.len() == length);
            }
            if valid < values.all_of.len() {
                let none = if valid == 0 { ". None validated" } else { "" };
                out.push(junctor(
                    path,
                    format!("must validate all the schemas (allOf){none}"),
                ));
            }
            out.splice(before..before, mistakes);
        }
        if let Some(schema) = &values.not {
            let mut mistakes = Vec::new();
            self.value(schema, value, path, &mut mistakes);
            if mistakes.is_empty() {
                out.push(junctor(
                    path,
                    "must not validate the schema (not)".to_owned(),
                ));
            }
        }
    }

    /// How many schemas the value satisfies, and the mistakes in the sight of the one that it comes nearest to.
    fn branches(
        &mut self,
        schemas: &[Structural],
        value: &Value,
        path: &str,
    ) -> (usize, Vec<FieldError>) {
        let mut best: Option<Vec<FieldError>> = None;
        let mut valid = 0;
        for schema in schemas {
            let mut mistakes = Vec::new();
            self.value(schema, value, path, &mut mistakes);
            // A mistake costs more than a check: it is written down.
            self.steps += mistakes.len() * 4;
            if mistakes.is_empty() {
                valid += 1;
            } else if best.as_ref().is_none_or(|b| mistakes.len() < b.len()) {
                best = Some(mistakes);
            }
        }
        (valid, best.unwrap_or_default())
    }
}

/// `Invalid value: 0: spec.x in body should be …`
fn in_body(path: &str, value: &Value, detail: &str) -> FieldError {
    FieldError::invalid(shown(path), value, &format!("{path} in body {detail}"))
}

fn wrong_type(path: &str, wanted: &str, found: &str) -> FieldError {
    FieldError {
        reason: "FieldValueTypeInvalid",
        ..in_body(
            path,
            &found.into(),
            &format!("must be of type {wanted}: {found:?}"),
        )
    }
}

/// What is wrong with a whole value: upstream knows no field for it, only a name in quotes.
fn junctor(path: &str, words: String) -> FieldError {
    FieldError::invalid("<nil>", &"".into(), &format!("{path:?} {words}"))
}

#[cfg(test)]
mod tests;
