//! Creates, updates, and the entries that clients send.

use serde_json::json;

use super::*;
use crate::managed::manager::{self, Operation};
use crate::managed::managers::MAX_UPDATE_ENTRIES;

fn owned_after_create(world: &World) -> Value {
    world.live.as_ref().expect("created")["metadata"]["managedFields"][0]["fieldsV1"].clone()
}

#[test]
fn a_created_deployment_is_owned_as_in_kubernetes() {
    let mut world = World::of("apps", "apps/v1", "Deployment");
    let mut object = json!({
        "metadata": { "labels": { "app": "web" } },
        "spec": {
            "selector": { "matchLabels": { "app": "web" } },
            "template": {
                "metadata": { "labels": { "app": "web" } },
                "spec": { "containers": [{ "name": "nginx", "image": "nginx" }] },
            },
        },
    });
    world
        .schema
        .as_ref()
        .expect("a schema")
        .apply_defaults(&mut object);
    world.update("kubectl-create", object);
    assert_eq!(
        owned_after_create(&world),
        json!({
            "f:metadata": { "f:labels": { ".": {}, "f:app": {} } },
            "f:spec": {
                "f:progressDeadlineSeconds": {}, "f:replicas": {}, "f:revisionHistoryLimit": {}, "f:selector": {},
                "f:strategy": { "f:rollingUpdate": { ".": {}, "f:maxSurge": {}, "f:maxUnavailable": {} }, "f:type": {} },
                "f:template": {
                    "f:metadata": { "f:labels": { ".": {}, "f:app": {} } },
                    "f:spec": {
                        "f:containers": { "k:{\"name\":\"nginx\"}": {
                            ".": {}, "f:image": {}, "f:imagePullPolicy": {}, "f:name": {}, "f:resources": {},
                            "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {},
                        } },
                        "f:dnsPolicy": {}, "f:restartPolicy": {}, "f:schedulerName": {}, "f:securityContext": {},
                        "f:terminationGracePeriodSeconds": {},
                    },
                },
            },
        })
    );
}

#[test]
fn a_created_service_is_owned_as_in_kubernetes() {
    let mut world = World::of("", "v1", "Service");
    let mut object = json!({ "spec": { "ports": [{ "port": 80 }], "selector": { "app": "web" } } });
    world
        .schema
        .as_ref()
        .expect("a schema")
        .apply_defaults(&mut object);
    world.update("kubectl-expose", object);
    let port = json!({ ".": {}, "f:port": {}, "f:protocol": {}, "f:targetPort": {} });
    assert_eq!(
        owned_after_create(&world),
        json!({ "f:spec": {
            "f:ports": { ".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": port },
            "f:selector": {}, "f:sessionAffinity": {}, "f:type": {},
        } })
    );
}

#[test]
fn a_created_custom_object_owns_its_structs_too() {
    let mut world = World::custom();
    world.update(
        "kubectl-create",
        json!({ "metadata": { "finalizers": ["f"] }, "spec": { "x": { "y": 1 } } }),
    );
    assert_eq!(
        owned_after_create(&world),
        json!({
            "f:metadata": { "f:finalizers": { ".": {}, "v:\"f\"": {} } },
            "f:spec": { ".": {}, "f:x": { ".": {}, "f:y": {} } },
        })
    );
}

#[test]
fn an_update_owns_what_it_changed_and_others_lose_it() {
    let mut world = World::config_map();
    world.update("one", json!({ "data": { "a": "1", "b": "1", "c": "1" } }));
    world.update("two", json!({ "data": { "a": "1", "b": "2" } }));
    assert_eq!(
        (world.owns("one").as_str(), world.owns("two").as_str()),
        (".data .data.a", ".data.b")
    );
    let live = world.live.as_ref().expect("an object");
    let order: Vec<_> = live["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(
        (&order[0]["manager"], &order[1]["manager"]),
        (&json!("one"), &json!("two")),
        "the oldest is first"
    );
}

#[test]
fn duplicates_in_a_set_have_one_owner() {
    let mut world = World::config_map();
    let of = |list: Value| json!({ "metadata": { "finalizers": list } });
    world.update("one", of(json!(["a", "c", "d"])));
    world.update("two", of(json!(["a", "a", "c", "d"])));
    let rest = r#".metadata.finalizers .metadata.finalizers[="c"] .metadata.finalizers[="d"]"#;
    assert_eq!(
        (world.owns("one").as_str(), world.owns("two").as_str()),
        (rest, r#".metadata.finalizers[="a"]"#)
    );
    world.update("three", of(json!(["a", "c", "d"])));
    assert_eq!(
        (world.owns("two").as_str(), world.owns("three").as_str()),
        ("", r#".metadata.finalizers[="a"]"#)
    );
}

#[test]
fn a_client_that_writes_its_own_fields_again_leaves_the_entries_as_they_are() {
    let mut world = World::config_map();
    world.update("one", json!({ "data": { "a": "1" } }));
    world.update("two", json!({ "data": { "a": "1", "b": "1" } }));
    let before = world.live.clone().expect("an object")["metadata"]["managedFields"].clone();
    world.update("one", json!({ "data": { "a": "2", "b": "1" } }));
    world.update("one", json!({ "data": { "a": "2", "b": "1" } }));
    assert_eq!(
        world.live.as_ref().expect("an object")["metadata"]["managedFields"],
        before
    );

    world.stamp = Stamp::EveryChange;
    world.update("one", json!({ "data": { "a": "2", "b": "1" } }));
    assert_eq!(
        world.time("one").as_deref(),
        Some("2026-01-01T00:00:01Z"),
        "nothing changed"
    );
    world.update("one", json!({ "data": { "a": "3", "b": "1" } }));
    assert_eq!(world.time("one").as_deref(), Some("2026-01-01T00:00:06Z"));
    let live = world.live.as_ref().expect("an object");
    assert_eq!(
        live["metadata"]["managedFields"][1]["manager"], "one",
        "the newest is last"
    );
}

#[test]
fn the_same_client_has_an_entry_for_each_subresource() {
    let mut world = World::pod();
    world.reset = set(json!({ "f:status": {} }));
    world.update(
        "kubelet",
        json!({ "spec": { "nodeName": "n" }, "status": { "phase": "Pending" } }),
    );
    assert_eq!(
        world.owns("kubelet"),
        ".spec.nodeName",
        "what is reset is not owned"
    );
    (world.subresource, world.reset) = (
        Some("status"),
        set(json!({ "f:spec": {}, "f:metadata": {} })),
    );
    let ips = json!([{ "ip": "10.0.0.1" }]);
    world.update(
        "kubelet",
        json!({ "spec": {}, "status": { "phase": "Running", "podIPs": ips } }),
    );
    assert_eq!(
        world.owns("kubelet"),
        r#".spec.nodeName | .status.phase .status.podIPs .status.podIPs[ip="10.0.0.1"] .status.podIPs[ip="10.0.0.1"].ip"#
    );
}

#[test]
fn entries_that_a_client_sends_count_if_they_are_valid() {
    let mut world = World::config_map();
    world.update("one", json!({ "data": { "a": "1" } }));
    let entry = |operation: &str| {
        json!({ "manager": "own", "operation": operation, "apiVersion": "v1", "fieldsType": "FieldsV1",
            "fieldsV1": { "f:data": { "f:a": {} } } })
    };
    let with = |list: Value| json!({ "metadata": { "managedFields": list }, "data": { "a": "1" } });
    for bad in [
        json!([entry("Delete")]),
        json!("x"),
        json!([1]),
        json!([{ "operation": "Update" }]),
    ] {
        world.update("two", with(bad.clone()));
        assert_eq!(world.owns("one"), ".data .data.a", "{bad}");
    }
    world.subresource = Some("status");
    world.update("two", with(json!([entry("Apply")])));
    assert_eq!(world.owns("own"), "", "not through a subresource");
    world.subresource = None;
    world.update("two", with(json!([entry("Apply")])));
    assert_eq!(
        (world.owns("one").as_str(), world.owns("own").as_str()),
        ("", ".data.a")
    );
    world.update("two", with(json!([])));
    assert!(
        world.managers().entries.is_empty(),
        "an empty list forgets all owners"
    );
    world.update("two", json!({ "data": { "a": "9" } }));
    assert!(
        world.managers().entries.is_empty(),
        "and nobody is tracked until the first apply"
    );
    world.apply("one", json!({ "data": { "a": "9" } }));
    world.update("two", with(json!([{}])));
    assert!(
        world.managers().entries.is_empty(),
        "so does one empty entry"
    );
}

#[test]
fn an_object_keeps_its_entries_when_items_cannot_be_told_apart() {
    let mut world = World::pod();
    world.update("one", containers(json!([{ "name": "a" }])));
    world.update("two", containers(json!(["a"])));
    assert!(world.owns("one").contains(r#"[name="a"].name"#) && world.owns("two").is_empty());
}

#[test]
fn the_oldest_updates_become_one_entry() {
    let mut world = World::config_map();
    let mut data = serde_json::Map::new();
    for number in 0..15 {
        data.insert(format!("k{number:02}"), "1".into());
        world.update(&format!("m{number:02}"), json!({ "data": data }));
    }
    let managers = world.managers();
    assert_eq!(managers.entries.len(), MAX_UPDATE_ENTRIES);
    assert_eq!(
        world.owns("ancient-changes"),
        ".data .data.k00 .data.k01 .data.k02 .data.k03 .data.k04 .data.k05"
    );
    assert_eq!(
        world.time("ancient-changes").as_deref(),
        Some("2026-01-01T00:00:06Z")
    );
    assert!(
        managers
            .entries
            .keys()
            .all(|identity| identity.operation == Operation::Update)
    );
}

#[test]
fn a_map_that_becomes_atomic_belongs_to_the_owners_of_its_parts() {
    let mut world = World::pod();
    world.update(
        "one",
        json!({ "spec": { "nodeName": "n", "nodeSelector": { "a": "1" } } }),
    );
    let live = world.live.as_mut().expect("an object");
    live["metadata"]["managedFields"][0]["fieldsV1"]["f:spec"]["f:nodeSelector"] =
        json!({ ".": {}, "f:a": {} });
    world.update(
        "two",
        json!({ "spec": { "nodeName": "m", "nodeSelector": { "a": "1" } } }),
    );
    assert_eq!(
        (world.owns("one").as_str(), world.owns("two").as_str()),
        (".spec.nodeSelector", ".spec.nodeName")
    );
}

#[test]
fn clients_are_named_by_their_parameter_or_their_program() {
    #[rustfmt::skip] // A table: one row is one line.
    let rows = [
        ("mine", "kubectl/v1.37", "mine"),
        ("", "kubectl/v1.37 (linux/amd64)", "kubectl"),
        ("", "na\u{7}me\u{200b} with\u{a0}é\u{301}'\"\\", "name withé\u{301}'\"\\"),
        ("", "", "unknown"),
    ];
    for (parameter, agent, expected) in rows {
        assert_eq!(Manager::new(parameter, agent, "v1").name, expected);
    }
    assert_eq!(Manager::new("", &"é".repeat(100), "v1").name.len(), 128);
    let errors = manager::validate_name("a\u{7}", false);
    assert_eq!(
        errors[0].message,
        "Invalid value: \"a\\u0007\": invalid character U+0007 (at position 1)"
    );
    assert!(manager::validate_name("", false).is_empty());
    assert_eq!(
        manager::validate_name("", true)[0].message,
        "Required value: is required for apply patch"
    );
}
