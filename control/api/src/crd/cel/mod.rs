//! `x-kubernetes-validations`: rules in CEL about the values of a custom resource.
//!
//! The crate `cel` parses; types, evaluation and functions are here, because a rule must be refused when its definition
//! is made if it cannot work, and must end at a bounded cost when it runs. Sources: apiextensions-apiserver,
//! `apiserver/schema/cel/{compilation,validation}.go`. Reading order: this file, `program` (one expression), `run` (the
//! rules of an object), `check`, `eval`, `library`.

mod arithmetic;
mod check;
mod eval;
mod library;
mod loops;
mod program;
mod run;
mod select;
mod signatures;
mod types;
pub mod url;
mod value;

use std::sync::Arc;

use serde_json::{Value, json};

pub use run::validate;

use self::program::Program;
use self::types::Ty;
use super::structural::Structural;
use crate::status::FieldError;

/// One rule of a schema.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The condition.
    pub rule: String,
    /// What to say where it does not hold; empty for the rule itself.
    pub message: String,
    /// An expression for what to say; empty for none.
    pub message_expression: String,
    /// `FieldValueInvalid` and its like; none means the former.
    pub reason: Option<String>,
    /// The field that the mistake is in, from the rule's own.
    pub field_path: String,
    /// Whether the rule runs also where there is no old value, which is optional for it.
    pub optional_old_self: Option<bool>,
    /// The compiled expressions; none before [`compile`].
    program: Option<Arc<Compiled>>,
}

/// The compiled expressions of a rule.
#[derive(Debug)]
struct Compiled {
    rule: Program,
    message: Option<Program>,
    uses_old_self: bool,
}

/// The reasons that a rule may name.
const REASONS: [&str; 4] = [
    "FieldValueDuplicate",
    "FieldValueForbidden",
    "FieldValueInvalid",
    "FieldValueRequired",
];

impl PartialEq for Rule {
    /// The same texts are the same rule, compiled or not.
    fn eq(&self, other: &Self) -> bool {
        self.shown() == other.shown()
    }
}

impl Rule {
    /// Reads a rule; nothing for what is none.
    pub fn read(value: &Value) -> Option<Self> {
        let text = |name: &str| match value.get(name) {
            None | Some(Value::Null) => Some(String::new()),
            Some(Value::String(text)) => Some(text.clone()),
            Some(_) => None,
        };
        let optional_old_self = match value.get("optionalOldSelf") {
            None | Some(Value::Null) => None,
            Some(flag) => Some(flag.as_bool()?),
        };
        value.as_object()?;
        Some(Self {
            rule: text("rule")?,
            message: text("message")?,
            message_expression: text("messageExpression")?,
            reason: text("reason")
                .map(|reason| Some(reason).filter(|reason| !reason.is_empty()))?,
            field_path: text("fieldPath")?,
            optional_old_self,
            program: None,
        })
    }

    /// The rule as an error about it shows it.
    fn shown(&self) -> Value {
        json!({
            "Rule": self.rule,
            "Message": self.message,
            "MessageExpression": self.message_expression,
            "Reason": self.reason,
            "FieldPath": self.field_path,
            "OptionalOldSelf": self.optional_old_self,
        })
    }
}

fn has_newlines(text: &str) -> bool {
    text.contains(['\n', '\r'])
}

/// Mistakes in the texts of a schema's rules, the expressions aside.
pub fn check_texts(schema: &Structural, path: &str, out: &mut Vec<FieldError>) {
    for (index, rule) in schema.rules.iter().enumerate() {
        let at = |field: &str| format!("{path}.x-kubernetes-validations[{index}].{field}");
        let (text, message) = (rule.rule.trim(), rule.message.trim());
        let shown = || Value::from(rule.message.as_str());
        if text.is_empty() {
            out.push(FieldError::required(at("rule"), "rule is not specified"));
        } else if !rule.message.is_empty() && message.is_empty() {
            let detail = "message must be non-empty if specified";
            out.push(FieldError::invalid(at("message"), &shown(), detail));
        } else if has_newlines(message) {
            let detail = "message must not contain line breaks";
            out.push(FieldError::invalid(at("message"), &shown(), detail));
        } else if has_newlines(text) && message.is_empty() {
            let detail = "message must be specified if rule contains line breaks";
            out.push(FieldError::required(at("message"), detail));
        }
        if !rule.message_expression.is_empty() && rule.message_expression.trim().is_empty() {
            let detail = "messageExpression must be non-empty if specified";
            out.push(FieldError::required(at("messageExpression"), detail));
        }
        if let Some(reason) = &rule.reason
            && !REASONS.contains(&reason.as_str())
        {
            let value = reason.as_str().into();
            out.push(FieldError::not_supported(at("reason"), &value, &REASONS));
        }
        let mut wrong_path = |detail: &str| {
            let value = Value::from(rule.field_path.as_str());
            out.push(FieldError::invalid(at("fieldPath"), &value, detail));
        };
        if !rule.field_path.is_empty() && rule.field_path.trim().is_empty() {
            wrong_path("fieldPath must be non-empty if specified");
        }
        if has_newlines(&rule.field_path) {
            wrong_path("fieldPath must not contain line breaks");
        }
        if !rule.field_path.is_empty()
            && super::field_path::resolve(&rule.field_path, schema, true).is_err()
        {
            wrong_path("fieldPath must be a valid path");
        }
    }
}

/// Compiles the rules of a schema and of all inside it.
///
/// # Errors
///
/// The expressions that cannot work, in kube-apiserver's words.
pub fn compile(schema: &mut Structural, path: &str) -> Result<(), Vec<FieldError>> {
    let mut errors = Vec::new();
    // The parser recurses deeply, and is not ours: on a thread of its own neither its stack nor a panic of it matters.
    let walked = std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("cel".to_owned())
            .stack_size(STACK)
            .spawn_scoped(scope, || compile_at(schema, true, path, None, &mut errors))
            .map(|thread| thread.join())
    });
    match walked {
        Ok(Ok(_)) if errors.is_empty() => Ok(()),
        Ok(Ok(_)) => Err(errors),
        Ok(Err(_)) => {
            let detail = "the parser of CEL failed on a rule";
            Err(vec![FieldError::invalid(path, &"".into(), detail)])
        }
        Err(error) => {
            let detail = format!("compiling the rules: {error}");
            Err(vec![FieldError::invalid(path, &"".into(), &detail)])
        }
    }
}

/// The stack of the thread that parses: the parser needs a few KiB for each bracket in a bracket.
const STACK: usize = 64 << 20;

/// Compiles what is inside first; returns whether there is any rule.
fn compile_at(
    schema: &mut Structural,
    resource: bool,
    path: &str,
    uncorrelatable: Option<&str>,
    out: &mut Vec<FieldError>,
) -> bool {
    let mut found = !schema.rules.is_empty();
    let inside = match uncorrelatable {
        None if schema.map_type.as_deref() == Some("atomic") => Some(path),
        known => known,
    };
    for (name, field) in &mut schema.properties {
        let at = format!("{path}.properties[{name}]");
        found |= compile_at(field, field.embedded, &at, inside, out);
    }
    if let Some(super::structural::Additional::Schema(values)) = &mut schema.additional {
        let at = format!("{path}.additionalProperties");
        found |= compile_at(values, values.embedded, &at, uncorrelatable, out);
    }
    let inside = match uncorrelatable {
        None if !schema.is_list_map() => Some(path),
        known => known,
    };
    if let Some(items) = &mut schema.items {
        let at = format!("{path}.items");
        found |= compile_at(items, items.embedded, &at, inside, out);
    }
    let rules = std::mem::take(&mut schema.rules);
    schema.rules = rules
        .into_iter()
        .enumerate()
        .map(|(index, rule)| {
            let at = format!("{path}.x-kubernetes-validations[{index}]");
            compile_rule(rule, schema, resource, &at, uncorrelatable, out)
        })
        .collect();
    schema.has_rules = found;
    found
}

fn compile_rule(
    mut rule: Rule,
    schema: &Structural,
    resource: bool,
    at: &str,
    uncorrelatable: Option<&str>,
    out: &mut Vec<FieldError>,
) -> Rule {
    let own = Ty::of(schema, resource);
    let old = if rule.optional_old_self == Some(true) {
        Ty::Optional(Box::new(own.clone()))
    } else {
        own.clone()
    };
    let variables = || vec![("self", own.clone()), ("oldSelf", old.clone())];
    let condition = Program::compile(&rule.rule, variables(), program::Wanted::Condition);
    let message = match rule.message_expression.trim() {
        "" => None,
        text => Some(Program::compile(
            text,
            variables(),
            program::Wanted::Message,
        )),
    };
    let message = match message.transpose() {
        Ok(message) => message,
        Err(detail) => {
            let at = format!("{at}.messageExpression");
            out.push(FieldError::invalid(at, &rule.shown(), &detail));
            None
        }
    };
    match condition {
        Ok(condition) => {
            let uses_old_self = condition.uses_old_self;
            let at = |field: &str| format!("{at}.{field}");
            if let (true, Some(within)) = (uses_old_self, uncorrelatable) {
                let detail = format!(
                    "oldSelf cannot be used on the uncorrelatable portion of the schema within {within}"
                );
                let value = rule.rule.as_str().into();
                out.push(FieldError::invalid(at("rule"), &value, &detail));
            }
            if let (false, Some(flag)) = (uses_old_self, rule.optional_old_self) {
                let detail = "may not be set if oldSelf is not used in rule";
                out.push(FieldError::invalid(
                    at("optionalOldSelf"),
                    &flag.into(),
                    detail,
                ));
            }
            rule.program = Some(Arc::new(Compiled {
                rule: condition,
                message,
                uses_old_self,
            }));
        }
        Err(detail) => {
            let at = format!("{at}.rule");
            out.push(FieldError::invalid(at, &rule.shown(), &detail));
        }
    }
    rule
}

/// A message with its place in a text, as cel-go draws it.
fn at_place(source: &str, offset: usize, message: &str) -> String {
    // The parser counts characters.
    let before: Vec<char> = source.chars().take(offset).collect();
    let line = before.iter().filter(|c| **c == '\n').count();
    let column = before.iter().rev().take_while(|c| **c != '\n').count();
    let text = source.lines().nth(line).unwrap_or_default();
    format!(
        "ERROR: <input>:{}:{}: {message}\n | {text}\n | {}^",
        line + 1,
        column + 1,
        ".".repeat(column)
    )
}

#[cfg(test)]
mod tests;
