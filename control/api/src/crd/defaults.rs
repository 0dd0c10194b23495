//! Defaults of custom resources: at any level, for what is missing, and for nulls where null is no value.
//!
//! Sources: apiextensions-apiserver, `apiserver/schema/defaulting`, `…/pruning`, `…/objectmeta`.

use serde_json::Value;

use super::structural::{Additional, Structural};
use crate::schema::join;
use crate::status::FieldError;

/// Fills in the defaults of an object, then drops the nulls that are no values and have no default.
pub fn apply(schema: &Structural, object: &mut Value) {
    fill(schema, object);
    drop_nulls(schema, object);
}

fn is_missing(value: &Value, schema: &Structural) -> bool {
    value.is_null() && !schema.nullable
}

fn fill(schema: &Structural, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in &schema.properties {
                let Some(default) = &field.default else {
                    continue;
                };
                if fields
                    .get(name)
                    .is_none_or(|value| is_missing(value, field))
                {
                    fields.insert(name.clone(), default.clone());
                }
            }
            for (name, value) in fields.iter_mut() {
                if let Some(field) = schema.properties.get(name) {
                    fill(field, value);
                } else if let Some(of) = schema.values_schema() {
                    fill_missing(of, value);
                }
            }
        }
        Value::Array(items) => {
            if let Some(of) = &schema.items {
                items.iter_mut().for_each(|item| fill_missing(of, item));
            }
        }
        _ => {}
    }
}

fn fill_missing(schema: &Structural, value: &mut Value) {
    if let (true, Some(default)) = (is_missing(value, schema), &schema.default) {
        *value = default.clone();
    }
    fill(schema, value);
}

fn drop_nulls(schema: &Structural, value: &mut Value) {
    match value {
        Value::Object(fields) => fields.retain(|name, value| {
            let Some(field) = schema.field(name) else {
                return true;
            };
            if is_missing(value, field) && field.default.is_none() {
                return false;
            }
            drop_nulls(field, value);
            true
        }),
        Value::Array(items) => {
            if let Some(of) = &schema.items {
                items.iter_mut().for_each(|item| drop_nulls(of, item));
            }
        }
        _ => {}
    }
}

/// Drops the fields that a schema does not know; `resource` for one with its own `apiVersion`, `kind` and `metadata`.
pub fn prune(schema: &Structural, value: &mut Value, resource: bool) {
    match value {
        Value::Object(fields) => fields.retain(|name, value| {
            if resource && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") {
                return true;
            }
            if let Some(field) = schema.field(name) {
                prune(field, value, field.embedded);
                return true;
            }
            schema.preserves() || matches!(schema.additional, Some(Additional::Allowed(true)))
        }),
        Value::Array(items) => {
            if let Some(of) = &schema.items {
                items
                    .iter_mut()
                    .for_each(|item| prune(of, item, of.embedded));
            }
        }
        _ => {}
    }
}

/// Mistakes in the defaults of a schema: unknown fields, and values that the schema itself refuses.
pub fn check(schema: &Structural, path: &str, out: &mut Vec<FieldError>) {
    if let Some(default) = &schema.default {
        let at = format!("{path}.default");
        let mut pruned = default.clone();
        prune(schema, &mut pruned, schema.embedded);
        if pruned != *default {
            out.push(FieldError::invalid(
                &at,
                default,
                "must not have unknown fields",
            ));
        }
        for mistake in schema.validate_at(default, "") {
            // The value's own path comes behind that of the default.
            let field = match mistake.field.as_str() {
                "<nil>" => at.clone(),
                inner => format!("{at}.{inner}"),
            };
            out.push(FieldError { field, ..mistake });
        }
    }
    if let Some(items) = &schema.items {
        check(items, &format!("{path}.items"), out);
    }
    for (name, field) in &schema.properties {
        check(field, &format!("{path}.properties[{name}]"), out);
    }
}

/// Mistakes in the objects that stand inside a custom resource: each says what it is.
pub fn check_embedded(schema: &Structural, value: &Value, path: &str, out: &mut Vec<FieldError>) {
    match value {
        Value::Object(fields) => {
            if schema.embedded {
                for name in ["apiVersion", "kind"] {
                    let missing = fields.get(name).and_then(Value::as_str).unwrap_or("");
                    if missing.is_empty() {
                        out.push(FieldError::required(join(path, name), "must not be empty"));
                    }
                }
            }
            for (name, value) in fields {
                if let Some(field) = schema.field(name) {
                    check_embedded(field, value, &join(path, name), out);
                }
            }
        }
        Value::Array(items) => {
            if let Some(of) = &schema.items {
                for (index, item) in items.iter().enumerate() {
                    check_embedded(of, item, &format!("{path}[{index}]"), out);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema(schema: Value) -> Structural {
        Structural::read(&schema, "schema").expect("a schema")
    }

    #[test]
    fn defaults_reach_every_level_and_null_is_missing_unless_it_is_a_value() {
        let schema = schema(json!({ "type": "object", "properties": {
            "spec": { "type": "object", "default": {}, "properties": {
                "replicas": { "type": "integer", "default": 3 },
                "mode": { "type": "string", "nullable": true, "default": "a" },
                "size": { "type": "string" },
                "list": { "type": "array", "items": { "type": "object", "properties": { "port": { "type": "integer", "default": 80 } } } },
                "map": { "type": "object", "additionalProperties": { "type": "object", "properties": { "x": { "type": "string", "default": "y" } } } },
            } },
        } }));
        let mut object = json!({});
        apply(&schema, &mut object);
        assert_eq!(object, json!({ "spec": { "replicas": 3, "mode": "a" } }));
        let mut object = json!({ "spec": { "replicas": null, "mode": null, "size": null, "list": [{}], "map": { "k": {} } } });
        apply(&schema, &mut object);
        assert_eq!(
            object,
            json!({ "spec": { "replicas": 3, "mode": null, "list": [{ "port": 80 }], "map": { "k": { "x": "y" } } } })
        );
    }

    #[test]
    fn defaults_must_be_what_the_schema_allows() {
        let schema = schema(json!({ "type": "object", "properties": {
            "a": { "type": "integer", "default": "x" },
            "b": { "type": "object", "default": { "c": 1 }, "properties": {} },
        } }));
        let mut errors = Vec::new();
        check(&schema, "s", &mut errors);
        let lines: Vec<String> = errors
            .iter()
            .map(|error| format!("{}: {}", error.field, error.message))
            .collect();
        assert_eq!(
            lines,
            [
                "s.properties[a].default: Invalid value: \"string\":  in body must be of type integer: \"string\"",
                "s.properties[b].default: Invalid value: {\"c\":1}: must not have unknown fields",
            ]
        );
    }
}
