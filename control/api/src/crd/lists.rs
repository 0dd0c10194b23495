//! Lists and maps whose items are told apart: what a schema must say about them, and whether an object's items differ.
//!
//! Source: apiextensions-apiserver, `apis/apiextensions/validation` and `apiserver/schema/listtype`.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::checks::required_or_invalid;
use super::structural::{Kind, Structural};
use crate::schema::join;
use crate::status::FieldError;

/// Mistakes in the list type, the map type and the keys of one schema.
pub fn check(schema: &Structural, path: &str, out: &mut Vec<FieldError>) {
    let at = |field: &str| format!("{path}.{field}");
    let type_name = schema.type_name();
    if let Some(word) = &schema.map_type {
        if schema.kind != Some(Kind::Object) {
            let detail = "must be object if x-kubernetes-map-type is specified";
            out.push(required_or_invalid(&at("type"), type_name, detail));
        }
        if !matches!(word.as_str(), "atomic" | "granular") {
            let (at, value) = (at("x-kubernetes-map-type"), word.as_str().into());
            out.push(FieldError::not_supported(
                at,
                &value,
                &["atomic", "granular"],
            ));
        }
    }
    if let Some(word) = &schema.list_type {
        if schema.kind != Some(Kind::Array) {
            let detail = "must be array if x-kubernetes-list-type is specified";
            out.push(required_or_invalid(&at("type"), type_name, detail));
        } else if word == "set" {
            set_items(schema, path, out);
        }
        if !matches!(word.as_str(), "atomic" | "set" | "map") {
            let (at, value) = (at("x-kubernetes-list-type"), word.as_str().into());
            let words = ["atomic", "set", "map"];
            out.push(FieldError::not_supported(at, &value, &words));
        }
    }
    if !schema.list_map_keys.is_empty() && !schema.is_list_map() {
        let word = schema.list_type.as_deref().unwrap_or_default();
        let detail = "must be map if x-kubernetes-list-map-keys is non-empty";
        let at = at("x-kubernetes-list-type");
        out.push(required_or_invalid(&at, word, detail));
    }
    if schema.is_list_map() {
        map_items(schema, path, out);
    }
    if let Some(word @ ("set" | "map")) = schema.list_type.as_deref()
        && schema.items.as_ref().is_some_and(|items| items.nullable)
    {
        let detail = format!("cannot be nullable when x-kubernetes-list-type is {word}");
        out.push(FieldError::forbidden(at("items.nullable"), &detail));
    }
}

/// The items of a set are scalars, or lists and maps that change as a whole.
fn set_items(schema: &Structural, path: &str, out: &mut Vec<FieldError>) {
    let Some(items) = &schema.items else { return };
    let (word, keyword) = match items.kind {
        Some(Kind::Array) => (
            items.list_type.as_deref().unwrap_or("atomic"),
            "x-kubernetes-list-type",
        ),
        Some(Kind::Object) => (
            items.map_type.as_deref().unwrap_or_default(),
            "x-kubernetes-map-type",
        ),
        _ => return,
    };
    if word != "atomic" {
        let detail = "must be atomic as item of a list with x-kubernetes-list-type=set";
        let at = format!("{path}.items.{keyword}");
        let value = items.list_type.clone().map_or(Value::Null, Value::String);
        out.push(FieldError::invalid(at, &value, detail));
    }
}

/// The items of a map have the keys that tell them apart.
fn map_items(schema: &Structural, path: &str, out: &mut Vec<FieldError>) {
    let at = |field: &str| format!("{path}.{field}");
    let keys_at = at("x-kubernetes-list-map-keys");
    if schema.list_map_keys.is_empty() {
        let detail = "must not be empty if x-kubernetes-list-type is map";
        out.push(FieldError::required(&keys_at, detail));
    }
    let Some(items) = &schema.items else {
        let detail = "must have a schema if x-kubernetes-list-type is map";
        out.push(FieldError::required(at("items"), detail));
        return;
    };
    if items.kind != Some(Kind::Object) {
        let detail = "must be object if parent array's x-kubernetes-list-type is map";
        let value = items.type_name().into();
        out.push(FieldError::invalid(at("items.type"), &value, detail));
        return;
    }
    let list = Value::from(schema.list_map_keys.clone());
    let mut seen = HashSet::new();
    for key in &schema.list_map_keys {
        if !seen.insert(key) {
            let detail = "must not contain duplicate entries";
            out.push(FieldError::invalid(&keys_at, &list, detail));
        }
        let Some(field) = items.properties.get(key) else {
            let detail = "entries must all be names of item properties";
            out.push(FieldError::invalid(&keys_at, &list, detail));
            continue;
        };
        let at = |field: &str| format!("{path}.items.properties[{key}].{field}");
        if matches!(field.kind, Some(Kind::Array | Kind::Object)) {
            let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
            let value = items.type_name().into();
            out.push(FieldError::invalid(at("type"), &value, detail));
        }
        if !items.values.required.contains(key) && field.default.is_none() {
            let detail = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
            out.push(FieldError::required(at("default"), detail));
        }
        if field.nullable {
            let detail = "this property is in x-kubernetes-list-map-keys, so it cannot be nullable";
            out.push(FieldError::forbidden(at("nullable"), detail));
        }
    }
}

/// Items of an object's sets and maps that are there twice.
pub fn duplicates(schema: &Structural, value: &Value, path: &str, out: &mut Vec<FieldError>) {
    match value {
        Value::Array(items) => {
            match schema.list_type.as_deref() {
                Some("set") => twice(items, path, Value::clone, out),
                Some("map") => {
                    let keys = |item: &Value| key_of(item, &schema.list_map_keys);
                    twice(items, path, keys, out);
                }
                _ => {}
            }
            if let Some(item) = &schema.items {
                for (index, value) in items.iter().enumerate() {
                    duplicates(item, value, &format!("{path}[{index}]"), out);
                }
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                if let Some(field) = schema.field(name) {
                    let at = match schema.properties.contains_key(name) {
                        true => join(path, name),
                        false => format!("{path}[{name}]"),
                    };
                    duplicates(field, value, &at, out);
                }
            }
        }
        _ => {}
    }
}

fn twice(
    items: &[Value],
    path: &str,
    identity: impl Fn(&Value) -> Value,
    out: &mut Vec<FieldError>,
) {
    let mut seen = HashSet::new();
    for (index, item) in items.iter().enumerate() {
        let identity = identity(item);
        if !seen.insert(identity.to_string()) {
            out.push(FieldError::duplicate(format!("{path}[{index}]"), &identity));
        }
    }
}

/// The fields that tell an item from the others of its list.
pub fn key_of(item: &Value, keys: &[String]) -> Value {
    let keys = keys
        .iter()
        .filter_map(|key| Some((key.clone(), item.get(key)?.clone())));
    Value::Object(keys.collect::<Map<_, _>>())
}

/// The old items of a list by their keys, where keys tell items apart.
pub fn old_items<'v>(schema: &Structural, old: Option<&'v Value>) -> HashMap<String, &'v Value> {
    let old = old.and_then(Value::as_array);
    let Some(items) = old.filter(|_| schema.is_list_map()) else {
        return HashMap::new();
    };
    items
        .iter()
        .map(|item| (key_of(item, &schema.list_map_keys).to_string(), item))
        .collect()
}
