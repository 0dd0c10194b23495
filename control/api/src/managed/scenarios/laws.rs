//! Laws that hold for all sets and all configurations.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn element() -> impl Strategy<Value = PathElement> {
    prop_oneof![
        "[a-c]|a/b|\"|é".prop_map(|name| PathElement::field(&name)),
        (0..3_i64, "[xy]").prop_map(|(port, name)| {
            let keys = [("port", json!(port)), ("name", json!(name))];
            PathElement::key(
                keys.map(|(name, value)| (name.into(), item_value::ItemValue::new(&value)))
                    .into(),
            )
        }),
        prop_oneof![
            Just(json!(true)),
            Just(json!("<a>")),
            Just(json!(1.5)),
            Just(json!(7)),
            Just(json!(null))
        ]
        .prop_map(|value| PathElement::value(&value)),
        (0..3_i64).prop_map(PathElement::Index),
    ]
}

fn sets() -> impl Strategy<Value = FieldSet> {
    vec(vec(element(), 1..4), 0..12).prop_map(|paths| {
        let mut set = FieldSet::default();
        paths.iter().for_each(|path| set.insert(path));
        set
    })
}

/// A pod's configuration: maps, atomic maps, a set, lists by one key and by two.
fn configs() -> impl Strategy<Value = Value> {
    let labels = btree_map("[a-c]", "[xy]", 0..3);
    let finalizers = proptest::sample::subsequence(vec!["a", "b", "c"], 0..=3).prop_shuffle();
    let ports = proptest::sample::subsequence(vec![(80, "TCP"), (80, "UDP"), (81, "TCP")], 0..=3)
        .prop_shuffle();
    let ports = ports.prop_map(|ports| {
        let port = |(number, protocol)| match protocol {
            "TCP" => json!({ "containerPort": number }),
            protocol => json!({ "containerPort": number, "protocol": protocol }),
        };
        ports.into_iter().map(port).collect::<Vec<_>>()
    });
    let container =
        ("[xyz]", ports).prop_map(|(image, ports)| json!({ "image": image, "ports": ports }));
    let items = btree_map("[a-c]", container, 0..3).prop_map(|items| {
        let named = |(name, mut item): (String, Value)| {
            item["name"] = name.into();
            item
        };
        items.into_iter().map(named).collect::<Vec<_>>()
    });
    let selector = proptest::option::of(btree_map("[ab]", "[xy]", 1..3));
    (labels, finalizers, items, selector).prop_map(|(labels, finalizers, items, selector)| {
        let mut config = json!({
            "metadata": { "labels": labels, "finalizers": finalizers },
            "spec": { "containers": items },
        });
        if let Some(selector) = selector {
            config["spec"]["nodeSelector"] = json!(selector);
        }
        config
    })
}

proptest! {
    #[test]
    fn parsing_what_was_printed_gives_the_same_set(set in sets()) {
        let printed = set.print();
        let parsed: Value = serde_json::from_str(&printed).expect("JSON");
        prop_assert_eq!(&parsed, &set.to_value());
        let again = FieldSet::parse(&parsed).expect("FieldsV1");
        prop_assert_eq!(&again, &set);
        prop_assert_eq!(again.print(), printed);
    }

    #[test]
    fn sets_obey_the_laws_of_sets(a in sets(), b in sets(), c in sets()) {
        prop_assert_eq!(a.union(&b), b.union(&a));
        prop_assert_eq!(a.union(&a), a.clone());
        prop_assert_eq!(a.union(&b).union(&c), a.union(&b.union(&c)));
        prop_assert_eq!(a.intersection(&b), b.intersection(&a));
        prop_assert!(a.difference(&b).intersection(&b).is_empty());
        prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
        prop_assert_eq!(a.difference(&b.union(&c)), a.difference(&b).difference(&c));
        prop_assert!(a.recursive_difference(&b).difference(&a.difference(&b)).is_empty());
        prop_assert!(a.difference(&a).is_empty() && a.union(&FieldSet::default()) == a);
        for path in a.paths() {
            prop_assert!(a.contains(&path) && a.union(&b).contains(&path));
            prop_assert_eq!(a.difference(&b).contains(&path), !b.contains(&path));
        }
    }

    #[test]
    fn applying_the_same_configuration_twice_changes_nothing(first in configs(), second in configs()) {
        let mut world = World::pod();
        world.force("one", first.clone());
        world.force("two", second);
        world.force("one", first.clone());
        let before = world.live.clone();
        prop_assert!(!world.force("one", first));
        prop_assert_eq!(world.live, before);
    }

    #[test]
    fn a_forced_configuration_is_in_the_object_and_owned(before in configs(), config in configs()) {
        let mut world = World::pod();
        world.update("edit", before);
        world.force("one", config.clone());
        let whole = world.whole(config);
        let live = world.live.clone().expect("an object");
        let pod = schema("", "Pod");
        let merged = merge(Some(&pod), &live, &whole).expect("items have keys");
        prop_assert_eq!(&merged, &live);
        let wanted = set_of(Some(&pod), &whole).expect("items have keys").difference(unowned_fields());
        let managers = world.managers();
        let owned = managers.entries.iter().find(|(identity, _)| identity.manager == "one").map(|(_, entry)| &entry.set);
        prop_assert_eq!(owned.cloned().unwrap_or_default(), wanted);
    }

    #[test]
    fn an_applier_that_leaves_takes_with_it_what_only_it_owned(config in configs()) {
        let mut world = World::pod();
        world.apply("keep", json!({ "metadata": { "annotations": { "k": "v" } } }));
        let before = world.live.clone();
        world.apply("one", config);
        world.apply("one", json!({}));
        let pod = schema("", "Pod");
        let left = |live: &Option<Value>| set_of(Some(&pod), live.as_ref().expect("an object")).expect("items have keys");
        let extra = left(&world.live).difference(&left(&before));
        // An empty struct that nobody owns may stay, no value does.
        prop_assert!(extra.is_empty(), "{}", paths(&extra));
    }

    #[test]
    fn updates_take_the_short_way_only_where_it_leads_to_the_same_entries(
        updates in vec((0..3_usize, configs()), 1..6),
        every in any::<bool>(),
    ) {
        let mut world = World::pod();
        world.stamp = if every { Stamp::EveryChange } else { Stamp::NewFields };
        for (client, object) in updates {
            let name = ["one", "two", "three"][client];
            let mut expected = world.whole(object.clone());
            expected["metadata"]["uid"] = "u-1".into();
            let mut other = World { live: world.live.clone(), schema: world.schema.clone(), ..World::pod() };
            (other.second, other.stamp) = (world.second, world.stamp);
            let present = world.live.as_ref().and_then(managers::of).cloned();
            other.write(name, |write, live| crate::managed::update::rewrite(write, live, &mut expected, present.as_ref()));
            world.update(name, object);
            prop_assert_eq!(world.live.as_ref(), Some(&expected));
        }
    }

    #[test]
    fn nothing_changes_between_equal_objects_and_all_that_differs_is_reported(a in configs(), b in configs()) {
        let pod = schema("", "Pod");
        let same = compare(Some(&pod), Some(&a), &a).expect("items have keys");
        prop_assert!(same.is_empty());
        let (there, back) = (compare(Some(&pod), Some(&a), &b).expect("keys"), compare(Some(&pod), Some(&b), &a).expect("keys"));
        prop_assert_eq!(&there.added, &back.removed);
        prop_assert_eq!(&there.removed, &back.added);
        prop_assert_eq!(&there.modified, &back.modified);
    }
}
