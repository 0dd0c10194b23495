//! Entries and objects that mean harm.

use serde_json::json;

use super::*;
use crate::managed::fields_v1::{FieldSetError, MAX_DEPTH, MAX_ELEMENTS};
use crate::managed::managers::{MAX_ENTRIES, ManagedFieldsError, Managers};

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!({}), |below, _| json!({ "f:a": below }))
}

fn entry(fields: Value) -> Value {
    json!({ "manager": "m", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields })
}

fn wide(count: usize) -> Value {
    Value::Object((0..count).map(|n| (format!("f:{n}"), json!({}))).collect())
}

#[test]
fn deep_fields_are_refused() {
    assert!(FieldSet::parse(&nested(MAX_DEPTH - 1)).is_ok());
    assert!(matches!(
        FieldSet::parse(&nested(MAX_DEPTH + 1)),
        Err(FieldSetError::TooDeep)
    ));
}

#[test]
fn many_fields_are_refused_however_they_are_spread() {
    let err = FieldSet::parse(&wide(MAX_ELEMENTS + 1)).expect_err("too many");
    assert_eq!(
        err.to_string(),
        "managed fields have more than 262144 path elements"
    );
    let half = wide(MAX_ELEMENTS / 2 + 1);
    assert!(FieldSet::parse(&half).is_ok());
    let mut second = entry(half.clone());
    second["manager"] = "n".into();
    assert!(matches!(
        Managers::parse(&json!([entry(half), second])),
        Err(ManagedFieldsError::Fields {
            index: 1,
            source: FieldSetError::TooMany
        })
    ));
}

#[test]
fn a_hundred_thousand_entries_are_refused_before_they_are_read() {
    let list = Value::Array(vec![entry(json!({})); 100_000]);
    let err = Managers::parse(&list).expect_err("too many");
    assert_eq!(
        err.to_string(),
        format!("metadata.managedFields has more than {MAX_ENTRIES} entries")
    );
    let mut world = World::config_map();
    world.update("one", json!({ "data": { "a": "1" } }));
    world.update(
        "two",
        json!({ "metadata": { "managedFields": list }, "data": { "a": "1" } }),
    );
    assert_eq!(world.owns("one"), ".data .data.a");
}

#[test]
fn a_hundred_thousand_fields_are_owned_in_good_time() {
    let mut world = World::config_map();
    let data: serde_json::Map<_, _> = (0..100_000).map(|n| (format!("k{n}"), json!(""))).collect();
    world.update("one", json!({ "data": data }));
    world.apply("two", json!({ "data": data }));
    world.apply("two", json!({}));
    assert_eq!(
        world.object()["data"].as_object().map(serde_json::Map::len),
        Some(100_000)
    );
}

#[test]
fn wrong_types_are_refused_by_name() {
    #[rustfmt::skip] // A table: one row is one line.
    let rows = [
        (json!(1), "fieldsV1 has 1 where an object is expected"),
        (json!({ "f:a": [] }), "fieldsV1 has a list where an object is expected"),
        (json!({ "f:a": { "f:b": "x" } }), "fieldsV1 has \"x\" where an object is expected"),
        (json!({ "a": {} }), "parsing key as path element"),
        (json!({ "k:[]": {} }), "parsing key as path element"),
    ];
    for (fields, message) in rows {
        assert_eq!(
            FieldSet::parse(&fields)
                .expect_err("no FieldsV1")
                .to_string(),
            message
        );
    }
    #[rustfmt::skip]
    let rows = [
        ("operation", json!("Delete"), "operation must be `Apply` or `Update`"),
        ("apiVersion", json!(""), "apiVersion must not be empty"),
        ("fieldsType", json!(null), "missing fieldsType in managed fields entry 0"),
        ("fieldsType", json!("FieldsV2"), "invalid fieldsType \"FieldsV2\" in managed fields entry 0"),
        ("fieldsV1", json!(true), "error decoding the fields of managed fields entry 0"),
    ];
    for (field, value, message) in rows {
        let mut entry = entry(json!({}));
        entry[field] = value;
        assert_eq!(
            Managers::parse(&json!([entry]))
                .expect_err("no entry")
                .to_string(),
            message
        );
    }
    assert!(
        FieldSet::parse(&json!({ "x:later": { "y": {} }, "f:a": null }))
            .is_ok_and(|set| paths(&set) == ".a")
    );
}

#[test]
fn objects_of_the_wrong_shape_have_no_owners_and_do_no_harm() {
    let pod = schema("", "Pod");
    for object in [
        json!(null),
        json!([]),
        json!("x"),
        json!({ "metadata": 1, "spec": { "containers": { "a": 1 }, "volumes": 5 } }),
    ] {
        let mut world = World::pod();
        let mut new = object.clone();
        world.write("one", |write, _| {
            updated(write, Some(&json!({ "spec": [] })), &mut new)
        });
        assert_eq!(new, object);
        assert!(set_of(Some(&pod), &object).is_ok() && compare(Some(&pod), None, &object).is_ok());
    }
}
