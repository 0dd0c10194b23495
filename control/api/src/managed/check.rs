//! What an applied configuration may be, and sets of fields in the light of a schema.
//!
//! Source: structured-merge-diff, `typed/validate.go`, `typed/reconcile_schema.go` and `Set.EnsureNamedFieldsAreMembers`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::node::{Kind, TypeAt};
use super::path::PathElement;
use super::set::FieldSet;
use super::typed::{TypedError, identity};
use crate::schema::Schema;

/// Whether a configuration has only fields that the schema knows, values of their types, and items that are told apart.
///
/// # Errors
///
/// Every mistake, in kube-apiserver's words.
pub fn validate(schema: Option<&Schema>, config: &Value) -> Result<(), Vec<TypedError>> {
    let mut errors = Vec::new();
    check(TypeAt::root(schema), config, &mut Vec::new(), &mut errors);
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

fn check(at: TypeAt<'_>, value: &Value, path: &mut Vec<PathElement>, errors: &mut Vec<TypedError>) {
    let mistake = |path: &[PathElement], message: String| TypedError {
        path: super::set::print_path(path),
        message,
    };
    if let Some(message) = at.mismatch(value) {
        errors.push(mistake(path, message));
        return;
    }
    match (at.kind(Some(value)), value) {
        (Kind::Items(items), Value::Array(list)) => {
            let mut seen = BTreeSet::new();
            for (index, item) in list.iter().enumerate() {
                let element = match identity(items, index, item) {
                    Ok(element) => element,
                    Err(err) => {
                        errors.push(mistake(path, err.message));
                        return;
                    }
                };
                path.push(element.clone());
                check(items.item, item, path, errors);
                path.pop();
                let shown = element.to_string();
                if !seen.insert(element) {
                    errors.push(mistake(path, format!("duplicate entries for key {shown}")));
                }
            }
        }
        (_, Value::Array(list)) => {
            for (index, item) in list.iter().enumerate() {
                let element = PathElement::Index(i64::try_from(index).unwrap_or(i64::MAX));
                path.push(element);
                check(at.item(), item, path, errors);
                path.pop();
            }
        }
        (_, Value::Object(fields)) => {
            for (name, value) in fields {
                path.push(PathElement::field(name));
                if at.allows(name) {
                    check(at.child(name), value, path, errors);
                } else {
                    errors.push(mistake(path, "field not declared in schema".into()));
                }
                path.pop();
            }
        }
        _ => {}
    }
}

/// Adds the fields that the schema names and that have something of the set below them.
///
/// An applier owns `spec.replicas` without owning `spec`; when it stops applying both, `spec` counts as its own.
pub(super) fn with_named(schema: Option<&Schema>, mut set: FieldSet) -> FieldSet {
    add_named(TypeAt::root(schema), &mut set);
    set
}

fn add_named(at: TypeAt<'_>, set: &mut FieldSet) {
    set.for_each_node(|node| {
        if !node.below.is_empty() {
            let named = matches!(&node.element, PathElement::Field(name) if at.declares(name));
            node.member |= named;
            add_named(at.below(&node.element), &mut node.below);
        }
    });
}

/// Brings a set to a schema in which something changes as a whole that once was shared: who owned a part of it owns it.
pub(super) fn reconcile(schema: Option<&Schema>, set: &mut FieldSet) {
    make_whole(TypeAt::root(schema), set);
}

fn make_whole(at: TypeAt<'_>, set: &mut FieldSet) {
    set.for_each_node(|node| {
        if node.below.is_empty() {
            return;
        }
        let inner = at.below(&node.element);
        if inner.is_whole() {
            node.member = true;
            node.below = FieldSet::default();
        } else if !inner.is_any() {
            make_whole(inner, &mut node.below);
        }
    });
}
