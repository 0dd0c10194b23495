//! Runs the rules of a schema on an object.
//!
//! A rule that looks at `oldSelf` runs only where the old value is known: fields, values of maps and items of lists with
//! keys correspond, other items do not. A rule that fails on a value that did not change is passed over, so that a
//! definition may tighten its rules.

use std::sync::Arc;

use serde_json::Value;

use super::eval::{Failure, Scope};
use super::value::Val;
use super::{Compiled, Rule};
use crate::crd::lists::{key_of, old_items};
use crate::crd::structural::Structural;
use crate::schema::join;
use crate::status::FieldError;

/// The cost that one rule may have on one value.
const RULE_LIMIT: u64 = 1_000_000;

/// The cost that all rules may have on one object.
const OBJECT_LIMIT: u64 = 10_000_000;

/// How long the result of a messageExpression may be, in bytes.
const MAX_MESSAGE: usize = 5 * 1024;

/// The rules that an object breaks; `old` is the object that it replaces.
pub fn validate(schema: &Structural, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut run = Run {
        left: OBJECT_LIMIT,
        ended: false,
        errors: Vec::new(),
    };
    run.value(schema, object, old, false, "", true);
    run.errors
}

struct Run {
    left: u64,
    /// Whether the limit was reached, so that no further rule runs.
    ended: bool,
    errors: Vec<FieldError>,
}

impl Run {
    fn value(
        &mut self,
        schema: &Structural,
        value: &Value,
        old: Option<&Value>,
        around_unchanged: bool,
        path: &str,
        resource: bool,
    ) {
        if self.ended || !schema.has_rules || value.is_null() {
            return;
        }
        let old = old.filter(|old| !old.is_null());
        let unchanged = old.map_or(around_unchanged, |old| old == value);
        if !schema.rules.is_empty() {
            self.rules(schema, value, old, unchanged, path, resource);
        }
        match value {
            Value::Object(fields) => {
                // Where a map changes as a whole its fields do not correspond.
                let atomic = schema.map_type.as_deref() == Some("atomic");
                for (name, value) in fields {
                    let Some(field) = schema.field(name) else {
                        continue;
                    };
                    let old = old.filter(|_| !atomic).and_then(|old| old.get(name));
                    let at = if schema.properties.contains_key(name) {
                        join(path, name)
                    } else {
                        format!("{path}[{name}]")
                    };
                    self.value(field, value, old, unchanged, &at, field.embedded);
                }
            }
            Value::Array(items) => {
                let Some(of) = &schema.items else { return };
                let before = old_items(schema, old);
                for (index, value) in items.iter().enumerate() {
                    let key = schema
                        .is_list_map()
                        .then(|| key_of(value, &schema.list_map_keys));
                    let old = key.and_then(|key| before.get(&key.to_string()).copied());
                    self.value(
                        of,
                        value,
                        old,
                        unchanged,
                        &format!("{path}[{index}]"),
                        of.embedded,
                    );
                }
            }
            _ => {}
        }
    }

    fn rules(
        &mut self,
        schema: &Structural,
        value: &Value,
        old: Option<&Value>,
        unchanged: bool,
        path: &str,
        resource: bool,
    ) {
        let shown = Value::from(schema.type_name());
        let path = if path.is_empty() { "<nil>" } else { path };
        let own = Val::of(value, Some(schema), resource);
        let before = old
            .map(|old| Val::of(old, Some(schema), resource))
            .transpose();
        let (own, before) = match (own, before) {
            (Ok(own), Ok(before)) => (own, before),
            (Err(reason), _) | (_, Err(reason)) => {
                self.errors.push(FieldError::invalid(path, &shown, &reason));
                return;
            }
        };
        for rule in &schema.rules {
            let Some(compiled) = &rule.program else {
                let detail = "rule compile error: the rule was not compiled";
                self.errors.push(FieldError::invalid(path, &shown, detail));
                continue;
            };
            let optional = rule.optional_old_self == Some(true);
            if compiled.uses_old_self && before.is_none() && !optional {
                continue;
            }
            if unchanged && !compiled.uses_old_self {
                continue;
            }
            let old_self = match (&before, optional) {
                (before, true) => Val::Optional(before.clone().map(Arc::new)),
                (Some(before), false) => before.clone(),
                // No rule that gets here looks at it.
                (None, false) => Val::Null,
            };
            let outer = Scope::new("oldSelf", &old_self, None);
            let scope = Scope::new("self", &own, Some(&outer));
            self.rule(rule, compiled, &scope, path, &shown);
            if self.ended {
                return;
            }
        }
    }

    fn rule(
        &mut self,
        rule: &Rule,
        compiled: &Compiled,
        scope: &Scope<'_>,
        path: &str,
        shown: &Value,
    ) {
        let limit = RULE_LIMIT.min(self.left);
        let (outcome, left) = compiled.rule.run(scope, limit);
        self.left -= limit - left;
        let text = match rule.message.trim() {
            "" => rule.rule.trim(),
            message => message,
        };
        let detail = match outcome {
            Ok(Val::Bool(true)) => return,
            Ok(Val::Bool(false)) => None,
            Ok(_) => Some(format!(
                "'no such overload': call arguments did not match a supported operator, function or macro signature for rule: {text}"
            )),
            Err(Failure::Cost) => {
                self.ended = true;
                Some(if limit < RULE_LIMIT {
                    "validation failed due to running out of cost budget, no further validation rules will be run".to_owned()
                } else {
                    format!(
                        "'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: {text}"
                    )
                })
            }
            Err(Failure::Error(words)) if words.starts_with("no such overload") => Some(format!(
                "'{words}': call arguments did not match a supported operator, function or macro signature for rule: {text}"
            )),
            Err(Failure::Error(words)) => Some(format!("{words} evaluating rule: {text}")),
        };
        if let Some(detail) = detail {
            self.errors.push(FieldError::invalid(path, shown, &detail));
            return;
        }
        let said = compiled.message.as_ref().and_then(|message| {
            let limit = RULE_LIMIT.min(self.left);
            let (outcome, left) = message.run(scope, limit);
            self.left -= limit - left;
            match outcome {
                // What cannot be said is said by the rule's own message, as upstream does.
                Ok(Val::String(said)) => Some(said.trim().to_owned()).filter(|said| {
                    !said.is_empty() && said.len() <= MAX_MESSAGE && !said.contains('\n')
                }),
                _ => None,
            }
        });
        let detail = said.unwrap_or_else(|| match rule.message.trim() {
            "" => format!("failed rule: {}", rule.rule.trim()),
            message => message.to_owned(),
        });
        let at = match rule.field_path.as_str() {
            "" => path.to_owned(),
            inner if path == "<nil>" => inner.trim_start_matches('.').to_owned(),
            inner => format!("{path}{inner}"),
        };
        self.errors.push(match rule.reason.as_deref() {
            Some("FieldValueForbidden") => FieldError::forbidden(at, &detail),
            Some("FieldValueRequired") => FieldError::required(at, &detail),
            Some("FieldValueDuplicate") => FieldError::duplicate(at, shown),
            _ => FieldError::invalid(at, shown, &detail),
        });
    }
}
