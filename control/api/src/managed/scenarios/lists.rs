//! How lists and maps merge, and what duplicates and missing keys mean.

use serde_json::json;

use super::*;

#[test]
fn lists_merge_in_the_order_of_kubernetes() {
    let words = |text: &str| -> Vec<String> { text.chars().map(String::from).collect() };
    let of = |text: &str| json!({ "metadata": { "finalizers": words(text) } });
    #[rustfmt::skip] // A table: one row is one line. A word stands for the list of its letters.
    let rows = [
        ("abc", "ab", "abc"),
        ("ab", "abc", "abc"),
        ("abc", "", "abc"),
        ("", "abc", "abc"),
        ("ab", "ba", "ba"),
        ("abc", "def", "abcdef"),
        ("abc", "cdef", "abcdef"),
        ("abcgf", "cdef", "abcgdef"),
        ("cdef", "ace", "acdef"),
        ("abcxyz", "def", "abcxyzdef"),
        ("abcxyz", "defxyz", "abcdefxyz"),
        ("cagf", "cfag", "cfag"),
        ("abcd", "defa", "bcdefa"),
        ("cdefghij", "2h3e4kl", "cdfg2hij3e4kl"),
        ("abcdefghij", "1b2h3e4kl", "a1bcdfg2hij3e4kl"),
        ("t", "f", "tf"),
        // Duplicates that the object has already stay, unless the configuration names them.
        ("aac", "d", "aacd"),
        ("aac", "a", "ac"),
    ];
    for (live, applied, expected) in rows {
        let merged = merge(None, &of(live), &of(applied)).expect("finalizers are strings");
        assert_eq!(merged, of(expected), "{live} and {applied}");
    }
}

#[test]
fn items_with_two_keys_merge_by_both() {
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
        (json!([a1]), json!([a2]), json!([a1, a2])),
        (json!([a1, b1]), json!([a1, a2]), json!([a1, b1, a2])),
        (json!([b2]), json!([a1, b2, c3]), json!([a1, b2, c3])),
        (json!([a1, b2, c3]), json!([c3, b2]), json!([a1, c3, b2])),
        (json!([a1, b2, c3]), json!([c3, a1]), json!([b2, c3, a1])),
    ];
    for (live, applied, expected) in rows {
        let merged = merge(Some(&pod), &of(&live), &of(&applied)).expect("ports have keys");
        assert_eq!(merged, of(&expected), "{live} and {applied}");
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
