use serde_json::json;

use super::*;

fn errors(schema: Value, value: Value) -> Vec<String> {
    let schema = Structural::read(&schema, "schema").expect("a schema");
    schema
        .validate(&value)
        .into_iter()
        .map(|error| format!("{}: {}", error.field, error.message))
        .collect()
}

/// The mistakes of `value` as the field `spec.x` with the schema `schema`.
fn of_field(schema: Value, value: Value) -> Vec<String> {
    errors(
        json!({ "type": "object", "properties": { "spec": { "type": "object", "properties": { "x": schema } } } }),
        json!({ "spec": { "x": value } }),
    )
}

#[test]
fn every_rule_speaks_kube_apiservers_words() {
    #[rustfmt::skip] // A table: one rule a line.
    let table = [
        (json!({ "type": "integer", "minimum": 1 }), json!(0), "spec.x: Invalid value: 0: spec.x in body should be greater than or equal to 1"),
        (json!({ "type": "integer", "minimum": 1, "exclusiveMinimum": true }), json!(1), "spec.x: Invalid value: 1: spec.x in body should be greater than 1"),
        (json!({ "type": "number", "maximum": 1.5 }), json!(2), "spec.x: Invalid value: 2: spec.x in body should be less than or equal to 1.5"),
        (json!({ "type": "number", "maximum": 2.0, "exclusiveMaximum": true }), json!(2), "spec.x: Invalid value: 2: spec.x in body should be less than 2"),
        (json!({ "type": "integer", "multipleOf": 3 }), json!(4), "spec.x: Invalid value: 4: spec.x in body should be a multiple of 3"),
        (json!({ "type": "integer" }), json!("a"), "spec.x: Invalid value: \"string\": spec.x in body must be of type integer: \"string\""),
        (json!({ "type": "integer" }), json!(1.5), "spec.x: Invalid value: \"number\": spec.x in body must be of type integer: \"number\""),
        (json!({ "type": "string" }), json!(null), "spec.x: Invalid value: \"null\": spec.x in body must be of type string: \"null\""),
        (json!({ "x-kubernetes-int-or-string": true }), json!(true), "spec.x: Invalid value: \"boolean\": spec.x in body must be of type integer,string: \"boolean\""),
        (json!({ "type": "string", "enum": ["a", "b"] }), json!("c"), "spec.x: Unsupported value: \"c\": supported values: \"a\", \"b\""),
        (json!({ "type": "string", "maxLength": 5 }), json!("abcdef"), "spec.x: Too long: may not be more than 5 bytes"),
        (json!({ "type": "string", "minLength": 2 }), json!("a"), "spec.x: Invalid value: \"a\": spec.x in body should be at least 2 chars long"),
        (json!({ "type": "string", "pattern": "^a+$" }), json!("b"), "spec.x: Invalid value: \"b\": spec.x in body should match '^a+$'"),
        (json!({ "type": "string", "format": "date-time" }), json!("now"), "spec.x: Invalid value: \"now\": spec.x in body must be of type date-time: \"now\""),
        (json!({ "type": "array", "minItems": 1, "items": { "type": "string" } }), json!([]), "spec.x: Invalid value: 0: spec.x in body should have at least 1 items"),
        (json!({ "type": "array", "maxItems": 1, "items": { "type": "string" } }), json!(["a", "b"]), "spec.x: Too many: 2: must have at most 1 items"),
        (json!({ "type": "array", "items": { "type": "object", "required": ["n"] } }), json!([{}]), "spec.x[0].n: Required value"),
        (json!({ "type": "object", "minProperties": 1 }), json!({}), "spec.x: Invalid value: 0: spec.x in body should have at least 1 properties"),
        (json!({ "type": "object", "maxProperties": 0 }), json!({ "a": 1 }), "spec.x: Too many: 1: must have at most 0 items"),
        (json!({ "type": "object", "additionalProperties": { "type": "string" } }), json!({ "k": 1 }), "spec.x.k: Invalid value: \"integer\": spec.x.k in body must be of type string: \"integer\""),
        (json!({ "type": "string", "not": { "enum": ["a"] } }), json!("a"), "<nil>: Invalid value: \"\": \"spec.x\" must not validate the schema (not)"),
        (json!({ "type": "string", "oneOf": [{ "minLength": 1 }, { "maxLength": 3 }] }), json!("ab"), "<nil>: Invalid value: \"\": \"spec.x\" must validate one and only one schema (oneOf). Found 2 valid alternatives"),
    ];
    for (schema, value, expected) in table {
        assert_eq!(of_field(schema.clone(), value), [expected], "{schema}");
    }
}

#[test]
fn a_failed_choice_is_followed_by_the_nearest_branchs_mistakes() {
    let schema =
        json!({ "type": "object", "anyOf": [{ "required": ["a", "b"] }, { "required": ["c"] }] });
    assert_eq!(
        of_field(schema, json!({})),
        [
            "<nil>: Invalid value: \"\": \"spec.x\" must validate at least one schema (anyOf)",
            "spec.x.c: Required value"
        ]
    );
}

#[test]
fn what_fits_passes() {
    for (schema, value) in [
        (json!({ "type": "number" }), json!(1)),
        (json!({ "type": "integer" }), json!(1.0)),
        (json!({ "type": "string", "nullable": true }), json!(null)),
        (json!({ "x-kubernetes-int-or-string": true }), json!("50%")),
        (
            json!({ "x-kubernetes-preserve-unknown-fields": true }),
            json!([1]),
        ),
        (
            json!({ "type": "string", "format": "no-such" }),
            json!("anything"),
        ),
        (json!({ "type": "string", "maxLength": 2 }), json!("éé")),
        (json!({ "type": "number", "enum": [1] }), json!(1.0)),
    ] {
        assert_eq!(of_field(schema.clone(), value), [""; 0], "{schema}");
    }
}

#[test]
fn endless_work_is_cut_short() {
    let branches: Vec<Value> = (0..20_000).map(|n| json!({ "enum": [n] })).collect();
    let schema = json!({ "type": "array", "items": { "type": "integer", "anyOf": branches } });
    let value: Vec<i64> = (0..50_000).map(|_| -1).collect();
    let errors = errors(schema, json!(value));
    let last = errors.last().expect("there are mistakes");
    assert!(last.contains("running out of budget"), "{last}");
}
