//! Applies: who owns what, and what conflicts.

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
