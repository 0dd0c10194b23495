use serde_json::json;

use super::*;

#[test]
fn the_example_of_the_documentation_looks_as_documented() {
    let mut world = World::config_map();
    world.apply("kubectl", json!({ "metadata": { "labels": { "test-label": "test" } }, "data": { "key": "some value" } }));
    let live = world.live.as_ref().expect("created");
    assert_eq!(
        live["metadata"]["managedFields"],
        json!([{
            "manager": "kubectl",
            "operation": "Apply",
            "apiVersion": "v1",
            "time": "2026-01-01T00:00:01Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": { "f:metadata": { "f:labels": { "f:test-label": {} } }, "f:data": { "f:key": {} } },
        }])
    );
}

#[test]
fn applying_twice_changes_nothing() {
    let mut world = World::pod();
    let config =
        containers(json!([{ "name": "a", "image": "x", "ports": [{ "containerPort": 80 }] }]));
    assert!(world.apply("one", config.clone()));
    let before = world.live.clone();
    assert!(!world.apply("one", config.clone()));
    assert_eq!(world.live, before);
    assert!(
        world.apply("two", config),
        "another applier owns the same fields too"
    );
    assert_eq!(
        world.object(),
        containers(json!([{ "name": "a", "image": "x", "ports": [{ "containerPort": 80 }] }]))
    );
    assert_eq!(world.owns("one"), world.owns("two"));
}

#[test]
fn appliers_of_different_items_do_not_meet() {
    let mut world = World::pod();
    world.apply(
        "one",
        containers(json!([{ "name": "a" }, { "name": "b" }, { "name": "c" }])),
    );
    world.apply("two", containers(json!([{ "name": "c" }, { "name": "d" }])));
    world.apply("one", containers(json!([{ "name": "a" }])));
    assert_eq!(
        world.object(),
        containers(json!([{ "name": "a" }, { "name": "c" }, { "name": "d" }]))
    );
    assert_eq!(
        world.owns("one"),
        r#".spec.containers[name="a"] .spec.containers[name="a"].name"#
    );
    assert_eq!(
        world.owns("two"),
        r#".spec.containers[name="c"] .spec.containers[name="d"] .spec.containers[name="c"].name .spec.containers[name="d"].name"#
    );
}

#[test]
fn what_is_applied_no_longer_goes_unless_somebody_else_owns_it() {
    let mut world = World::config_map();
    world.apply("one", json!({ "data": { "a": "1", "b": "1", "c": "1" } }));
    world.apply("two", json!({ "data": { "b": "1" } }));
    world.update("edit", json!({ "data": { "a": "1", "b": "1", "c": "2" } }));
    assert_eq!(world.owns("one"), ".data.a .data.b");
    world.apply("one", json!({}));
    assert_eq!(world.object(), json!({ "data": { "b": "1", "c": "2" } }));
    assert_eq!(
        (world.owns("one"), world.owns("two"), world.owns("edit")),
        ("".into(), ".data.b".into(), ".data.c".into())
    );
}

#[test]
fn a_struct_goes_with_its_last_field_and_stays_with_the_fields_of_others() {
    let mut world = World::of("apps", "apps/v1", "Deployment");
    world.apply(
        "one",
        json!({ "spec": { "strategy": { "rollingUpdate": { "maxSurge": 1 } }, "paused": true } }),
    );
    world.apply("one", json!({ "spec": { "paused": true } }));
    assert_eq!(world.object(), json!({ "spec": { "paused": true } }));

    world.apply(
        "one",
        json!({ "spec": { "strategy": { "rollingUpdate": { "maxSurge": 1 } } } }),
    );
    world.update("edit", json!({ "spec": { "strategy": { "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 2 } } } }));
    world.apply("one", json!({}));
    assert_eq!(
        world.object(),
        json!({ "spec": { "strategy": { "rollingUpdate": { "maxUnavailable": 2 } } } })
    );
}

#[test]
fn an_item_with_fields_of_others_survives_its_applier() {
    let mut world = World::pod();
    world.apply(
        "one",
        containers(json!([{ "name": "a" }, { "name": "b", "image": "x", "args": ["1"] }])),
    );
    world.force("two", containers(json!([{ "name": "b", "image": "y" }])));
    world.apply("one", containers(json!([{ "name": "a" }])));
    assert_eq!(
        world.object(),
        containers(json!([{ "name": "a" }, { "name": "b", "image": "y" }]))
    );
}

#[test]
fn a_conflict_names_the_owner_and_the_field() {
    let mut world = World::of("apps", "apps/v1", "Deployment");
    world.update(
        "kubectl-client-side-apply",
        json!({ "spec": { "replicas": 1, "paused": true } }),
    );
    let err = world.try_apply("flux", json!({ "spec": { "replicas": 3 } }), false);
    assert_eq!(
        err.expect_err("somebody else's"),
        r#"Apply failed with 1 conflict: conflict with "kubectl-client-side-apply" using apps/v1: .spec.replicas"#
    );
    world.force("flux", json!({ "spec": { "replicas": 3 } }));
    assert_eq!(
        (
            world.owns("flux").as_str(),
            world.owns("kubectl-client-side-apply").as_str()
        ),
        (".spec.replicas", ".spec.paused")
    );

    world.subresource = Some("scale");
    world.update("hpa", json!({ "spec": { "replicas": 5, "paused": true } }));
    world.subresource = None;
    let err = world.try_apply(
        "argo",
        json!({ "spec": { "replicas": 1, "paused": false } }),
        false,
    );
    assert_eq!(
        err.expect_err("two owners"),
        "Apply failed with 2 conflicts: conflicts with \"hpa\" with subresource \"scale\" using apps/v1:\n- .spec.replicas\n\
         conflicts with \"kubectl-client-side-apply\" using apps/v1:\n- .spec.paused"
    );
}

#[test]
fn the_causes_of_conflicts_are_listed() {
    let mut world = World::config_map();
    world.apply("one", json!({ "data": { "a": "1", "b": "1" } }));
    let config = world.whole(json!({ "data": { "a": "2", "b": "2" } }));
    let err = world
        .write("two", |write, live| applied(write, live, &config, false))
        .expect_err("conflicts");
    let ApplyError::Conflicts(conflicts) = &err else {
        panic!("{err}")
    };
    let cause = |field: &str| conflict::Cause {
        reason: "FieldManagerConflict",
        message: r#"conflict with "one""#.into(),
        field: field.into(),
    };
    assert_eq!(
        (conflicts.causes(), err.code()),
        (vec![cause(".data.a"), cause(".data.b")], 409)
    );
}

#[test]
fn the_same_value_is_no_conflict() {
    let mut world = World::config_map();
    world.update("edit", json!({ "data": { "a": "1" } }));
    world.apply("one", json!({ "data": { "a": "1" } }));
    assert_eq!(
        (world.owns("edit").as_str(), world.owns("one").as_str()),
        (".data .data.a", ".data.a")
    );
}

#[test]
fn what_changes_as_a_whole_has_one_owner() {
    let mut world = World::pod();
    world.apply(
        "one",
        json!({ "spec": { "nodeSelector": { "a": "1" }, "tolerations": [{ "key": "a" }] } }),
    );
    assert_eq!(world.owns("one"), ".spec.nodeSelector .spec.tolerations");
    let other =
        json!({ "spec": { "nodeSelector": { "b": "1" }, "tolerations": [{ "key": "b" }] } });
    let err = world
        .try_apply("two", other.clone(), false)
        .expect_err("both are taken");
    assert!(
        err.ends_with("conflicts with \"one\":\n- .spec.nodeSelector\n- .spec.tolerations"),
        "{err}"
    );
    world.force("two", other.clone());
    assert_eq!((world.object(), world.owns("one").as_str()), (other, ""));
}

#[test]
fn a_reference_changes_as_a_whole() {
    let mut world = World::pod();
    let volume = |source| json!({ "spec": { "containers": [{ "name": "a", "env": [{ "name": "E", "valueFrom": source }] }] } });
    world.apply(
        "one",
        volume(json!({ "secretKeyRef": { "name": "s", "key": "k" } })),
    );
    assert!(
        world
            .owns("one")
            .ends_with(r#".env[name="E"].valueFrom.secretKeyRef"#),
        "{}",
        world.owns("one")
    );
    world.apply("one", volume(json!({ "secretKeyRef": { "name": "t" } })));
    assert_eq!(
        world.object(),
        volume(json!({ "secretKeyRef": { "name": "t" } })),
        "the key went with the old reference"
    );
}

#[test]
fn lists_merge_in_the_order_of_kubernetes() {
    let pod = schema("", "Pod");
    let port =
        |number: i64, protocol: &str| json!({ "containerPort": number, "protocol": protocol });
    let (a1, a2, b1, b2, c3) = (
        port(1, "A"),
        port(2, "A"),
        port(1, "B"),
        port(2, "B"),
        port(3, "C"),
    );
    let of = |list: &Value| containers(json!([{ "name": "x", "ports": list }]));
    #[rustfmt::skip] // A table: one row is one line.
    let rows = [
        (json!([a1]), json!([a1]), json!([a1])),
        (json!([a1]), json!([a2]), json!([a2, a1])),
        (json!([a1, b1]), json!([a1, a2]), json!([a1, a2, b1])),
        (json!([b2]), json!([a1, b2, c3]), json!([a1, b2, c3])),
        (json!([a1, b1]), json!([]), json!([a1, b1])),
        (json!([]), json!([b1, a1]), json!([b1, a1])),
        (json!([a1, a2, b1, b2]), json!([a1, b2, b1, a2]), json!([a1, b2, b1, a2])),
        (json!([a1, a2, b1, b2]), json!([b2, a1]), json!([a2, b1, b2, a1])),
    ];
    for (live, applied, expected) in rows {
        let merged = merge(Some(&pod), &of(&live), &of(&applied)).expect("ports have keys");
        assert_eq!(merged, of(&expected), "{live} and {applied}");
    }
    let of = |list: Value| json!({ "metadata": { "finalizers": list } });
    #[rustfmt::skip]
    let rows = [
        (json!(["a", "b", "c"]), json!(["a", "b"]), json!(["a", "b", "c"])),
        (json!(["a", "b"]), json!(["a", "b", "c"]), json!(["a", "b", "c"])),
        (json!(["t"]), json!(["f"]), json!(["f", "t"])),
        (json!(["a", "a", "c"]), json!(["d"]), json!(["d", "a", "a", "c"])),
        (json!(["a", "a", "c"]), json!(["a"]), json!(["a", "c"])),
    ];
    for (live, applied, expected) in rows {
        let merged = merge(None, &of(live), &of(applied)).expect("finalizers are strings");
        assert_eq!(merged, of(expected));
    }
}

#[test]
fn null_and_empty_say_nothing_about_what_is_inside() {
    let config_map = schema("", "ConfigMap");
    #[rustfmt::skip]
    let rows = [
        (json!({}), json!({ "data": {} }), json!({ "data": {} })),
        (json!({ "data": null }), json!({ "data": {} }), json!({ "data": {} })),
        (json!({ "data": {} }), json!({ "data": null }), json!({ "data": null })),
        (json!({ "data": { "a": "1" } }), json!({ "data": null }), json!({ "data": { "a": "1" } })),
        (json!({ "data": { "a": "1" } }), json!({ "data": {} }), json!({ "data": { "a": "1" } })),
        (json!({ "immutable": true }), json!({ "immutable": null }), json!({ "immutable": null })),
    ];
    for (live, applied, expected) in rows {
        assert_eq!(
            merge(Some(&config_map), &live, &applied).expect("maps"),
            expected,
            "{live} and {applied}"
        );
    }
}

#[test]
fn a_missing_key_has_its_default_and_another_is_missed() {
    let mut world = World::pod();
    let ports = |list: Value| containers(json!([{ "name": "a", "ports": list }]));
    world.apply(
        "one",
        ports(json!([{ "containerPort": 80 }, { "containerPort": 80, "protocol": "UDP" }])),
    );
    assert!(
        world
            .owns("one")
            .contains(r#"[containerPort=80,protocol="TCP"].containerPort"#),
        "{}",
        world.owns("one")
    );
    world.apply(
        "two",
        ports(json!([{ "containerPort": 80, "protocol": "TCP", "name": "web" }])),
    );
    let expected = ports(
        json!([{ "containerPort": 80, "protocol": "TCP", "name": "web" }, { "containerPort": 80, "protocol": "UDP" }]),
    );
    assert_eq!(world.object(), expected);

    let spread = json!({ "spec": { "hostAliases": ["x"] } });
    let err = world
        .try_apply("one", spread, false)
        .expect_err("a string has no key");
    assert_eq!(
        err,
        "failed to create typed patch object (default/one; v1, Kind=Pod): .spec.hostAliases: element 0: associative list \
         with keys may not have non-map elements"
    );
}

#[test]
fn duplicates_are_refused_in_a_configuration_and_owned_by_identity_in_an_object() {
    let mut world = World::pod();
    let volumes = |list: Value| json!({ "spec": { "volumes": list } });
    let twice = volumes(json!([{ "name": "a", "emptyDir": {} }, { "name": "a" }]));
    let err = world
        .try_apply("one", twice.clone(), false)
        .expect_err("duplicates");
    assert!(
        err.ends_with(r#".spec.volumes: duplicate entries for key [name="a"]"#),
        "{err}"
    );

    world.update(
        "edit",
        volumes(json!([{ "name": "a", "emptyDir": {} }, { "name": "a" }, { "name": "b" }])),
    );
    assert_eq!(
        world.owns("edit"),
        r#".spec.volumes .spec.volumes[name="a"] .spec.volumes[name="b"] .spec.volumes[name="b"].name"#
    );
    let err = world.try_apply(
        "one",
        volumes(json!([{ "name": "a", "emptyDir": {} }])),
        false,
    );
    assert!(
        err.expect_err("owned")
            .ends_with(r#".spec.volumes[name="a"]"#)
    );
    world.force("one", volumes(json!([{ "name": "a", "emptyDir": {} }])));
    assert_eq!(
        world.object(),
        volumes(json!([{ "name": "a", "emptyDir": {} }, { "name": "b" }]))
    );
    assert!(
        !world.owns("edit").contains(r#"name="a""#),
        "{}",
        world.owns("edit")
    );
}

#[test]
fn duplicates_that_an_update_makes_are_its_own_and_the_applier_leaves_them() {
    let mut world = World::pod();
    let volumes = |list: Value| json!({ "spec": { "volumes": list } });
    let (a, b) = (
        json!({ "name": "a", "emptyDir": {} }),
        json!({ "name": "b", "emptyDir": {} }),
    );
    world.apply("one", volumes(json!([a, b])));
    world.update("edit", volumes(json!([a, { "name": "a" }, b])));
    world.apply("one", volumes(json!([b])));
    assert_eq!(world.object(), volumes(json!([a, { "name": "a" }, b])));
    assert_eq!(world.owns("edit"), r#".spec.volumes[name="a"]"#);
}

#[test]
fn without_a_schema_maps_are_shared_and_lists_are_not() {
    let mut world = World::custom();
    world.apply("one", json!({ "metadata": { "labels": { "a": "1" } }, "spec": { "list": [1, 2], "deep": { "x": 1 } } }));
    assert_eq!(
        world.owns("one"),
        ".spec .metadata.labels.a .spec.deep .spec.list .spec.deep.x"
    );
    world.apply("two", json!({ "spec": { "deep": { "y": 2 } } }));
    let err = world
        .try_apply("two", json!({ "spec": { "list": [3] } }), false)
        .expect_err("atomic");
    assert!(err.ends_with(r#"conflict with "one": .spec.list"#), "{err}");
    world.apply("one", json!({ "spec": { "deep": { "x": 1 } } }));
    assert_eq!(
        world.object(),
        json!({ "spec": { "deep": { "x": 1, "y": 2 } } })
    );
    world.apply("one", json!({}));
    assert_eq!(world.object(), json!({ "spec": { "deep": { "y": 2 } } }));
    world.force("two", json!({ "spec": { "deep": "leaf" } }));
    assert_eq!(world.object(), json!({ "spec": { "deep": "leaf" } }));
}

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
