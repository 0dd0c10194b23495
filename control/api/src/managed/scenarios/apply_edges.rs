//! Applies to objects of others, of before, of other versions, and applies that fail.

use serde_json::json;

use super::*;

#[test]
fn what_was_there_before_the_first_apply_has_an_owner_too() {
    let mut world = World::config_map();
    world.live = Some(world.whole(json!({ "data": { "a": "1", "b": "1" } })));
    let err = world
        .try_apply("one", json!({ "data": { "a": "2" } }), false)
        .expect_err("owned");
    assert_eq!(
        err,
        r#"Apply failed with 1 conflict: conflict with "before-first-apply" using v1: .data.a"#
    );
    world.force("one", json!({ "data": { "a": "2" } }));
    assert_eq!(
        (
            world.owns("one").as_str(),
            world.owns("before-first-apply").as_str()
        ),
        (".data.a", ".data .data.b")
    );
}

#[test]
fn kubectl_takes_over_what_it_applied_from_the_client_side() {
    let mut world = World::config_map();
    let last = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"one","namespace":"default"},"data":{"a":"1","b":"1"}}"#;
    let annotations = json!({ "kubectl.kubernetes.io/last-applied-configuration": last });
    world.update(
        "kubectl-client-side-apply",
        json!({ "metadata": { "annotations": annotations }, "data": { "a": "1", "b": "1" } }),
    );
    world.update(
        "edit",
        json!({ "metadata": { "annotations": annotations }, "data": { "a": "1", "b": "2" } }),
    );
    let err = world
        .try_apply("flux", json!({ "data": { "a": "3" } }), false)
        .expect_err("flux did not apply it");
    assert!(err.contains("kubectl-client-side-apply"), "{err}");
    let err = world
        .try_apply("kubectl", json!({ "data": { "a": "3", "b": "3" } }), false)
        .expect_err("b was edited");
    assert_eq!(
        err,
        r#"Apply failed with 1 conflict: conflict with "edit" using v1: .data.b"#
    );
    world.apply("kubectl", json!({ "data": { "a": "3<" } }));
    let live = world.live.as_ref().expect("an object");
    assert_eq!(
        live["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"],
        "{\"apiVersion\":\"v1\",\"data\":{\"a\":\"3\\u003c\"},\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"one\",\"namespace\":\"default\"}}\n"
    );
}

#[test]
fn a_configuration_that_cannot_be_applied_says_why() {
    let mut world = World::config_map();
    world.update("edit", json!({ "data": { "a": "1" } }));
    let sent = json!({ "metadata": { "managedFields": [] } });
    assert_eq!(
        world.try_apply("one", sent, true),
        Err("metadata.managedFields must be nil".into())
    );
    let typed = "failed to create typed patch object (default/one; v1, Kind=ConfigMap): ";
    #[rustfmt::skip]
    let rows = [
        (json!({ "nope": 1 }), ".nope: field not declared in schema"),
        (json!({ "data": [] }), ".data: expected map, got []"),
        (json!({ "data": { "a": 1 }, "immutable": "yes" }), "errors:\n  .data.a: expected string, got 1\n  .immutable: expected boolean, got \"yes\""),
    ];
    for (config, message) in rows {
        assert_eq!(
            world.try_apply("one", config, true),
            Err(format!("{typed}{message}"))
        );
    }
    let mut config = world.whole(json!({}));
    config["apiVersion"] = "v2".into();
    let err = world
        .write("one", |write, live| applied(write, live, &config, true))
        .expect_err("another version");
    assert_eq!(
        err.to_string(),
        "Incorrect version specified in apply patch. Specified patch version: v2, expected: v1"
    );
    for name in ["", "a\nb", &"x".repeat(129)] {
        let config = world.whole(json!({}));
        let err = world
            .write(name, |write, live| applied(write, live, &config, true))
            .expect_err("a bad name");
        assert!(
            matches!(&err, ApplyError::Manager(errors) if errors.len() == 1),
            "{name:?}: {err}"
        );
    }
}

#[test]
fn entries_of_other_versions_are_converted_and_those_of_versions_that_are_gone_dropped() {
    let mut world = World::custom();
    world.apply("one", json!({ "spec": { "size": 1 } }));
    let live = world.live.as_mut().expect("created");
    let entry = |name: &str, version: &str, field: &str| {
        json!({ "manager": name, "operation": "Apply", "apiVersion": version, "fieldsType": "FieldsV1",
            "fieldsV1": { "f:spec": { field: {} } } })
    };
    let list = live["metadata"]["managedFields"]
        .as_array_mut()
        .expect("entries");
    list.push(entry("old", "example.org/v0", "f:length"));
    list.push(entry("gone", "example.org/alpha", "f:x"));
    // In v0 the size is a length.
    let convert = |object: &Value, version: &str| {
        let (from, to) = match version {
            "example.org/v0" => ("size", "length"),
            "example.org/v1" => ("length", "size"),
            _ => return None,
        };
        let mut object = object.clone();
        if let Some(value) = object["spec"]
            .as_object_mut()
            .and_then(|spec| spec.remove(from))
        {
            object["spec"][to] = value;
        }
        object["apiVersion"] = version.into();
        Some(Converted {
            object,
            schema: None,
        })
    };
    let apply = |world: &World, size: Option<i64>, force: bool| {
        let spec = size.map_or_else(|| json!({ "other": 1 }), |size| json!({ "size": size }));
        let config = world.whole(json!({ "spec": spec }));
        let manager = Manager {
            name: "one".into(),
            api_version: world.api_version.into(),
        };
        let write = Write {
            schema: None,
            subresource: None,
            manager: &manager,
            reset: &FieldSet::default(),
            now: "2026-01-01T00:01:00Z",
            stamp: Stamp::EveryChange,
            convert: &convert,
        };
        applied(&write, world.live.as_ref(), &config, force)
    };
    let err = apply(&world, Some(2), false).expect_err("v0's length is v1's size");
    assert_eq!(
        err.to_string(),
        r#"Apply failed with 1 conflict: conflict with "old": .spec.length"#
    );
    let dropped = apply(&world, None, false).expect("nothing of others changes");
    assert_eq!(
        dropped.object["spec"],
        json!({ "size": 1, "other": 1 }),
        "the other owner keeps the size"
    );
    world.live = Some(dropped.object);
    assert_eq!(
        (world.owns("gone").as_str(), world.owns("old").as_str()),
        ("", ".spec.length")
    );
    world.live = Some(apply(&world, Some(2), true).expect("forced").object);
    assert_eq!(
        (world.object(), world.owns("old").as_str()),
        (json!({ "spec": { "size": 2 } }), "")
    );
}

#[test]
fn the_time_of_an_entry_is_that_of_the_last_apply_that_changed_something() {
    let mut world = World::config_map();
    world.apply("one", json!({ "data": { "a": "1" } }));
    world.apply("one", json!({ "data": { "a": "1" } }));
    assert_eq!(world.time("one").as_deref(), Some("2026-01-01T00:00:01Z"));
    world.apply("one", json!({ "data": { "a": "2" } }));
    assert_eq!(world.time("one").as_deref(), Some("2026-01-01T00:00:03Z"));
}
