//! What it takes to bring a cluster's roles and bindings to those of `policy`, and which rules an aggregated role has.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::binding::{RoleRef, Subject};
use super::cover::uncovered;
use super::policy::AUTO_UPDATE;
use super::rules::PolicyRule;
use crate::strategy::validation::selector_matches;

/// What to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Create the wanted object.
    Create,
    /// Update the existing object to this.
    Update(Value),
    /// Delete the existing object and create this one: a binding's role cannot change.
    Replace(Value),
}

/// What brings `existing` to `wanted`; nothing if it is there already, or if it opted out of updates.
///
/// An existing object keeps what it has beyond the wanted one: rules, subjects, selectors, labels and annotations are added
/// and never taken away, and a label or annotation that somebody changed stays as it is.
pub fn reconcile(existing: Option<&Value>, wanted: &Value) -> Option<Change> {
    let Some(existing) = existing else {
        return Some(Change::Create);
    };
    if existing["metadata"]["annotations"][AUTO_UPDATE] == "false" {
        return None;
    }
    let mut updated = existing.clone();
    for field in ["annotations", "labels"] {
        add_entries(&mut updated["metadata"], field, &wanted["metadata"][field]);
    }
    if wanted["roleRef"].is_null() {
        add_rules(&mut updated, wanted);
        add_selectors(&mut updated, wanted);
    } else {
        if RoleRef::parse(&existing["roleRef"]) != RoleRef::parse(&wanted["roleRef"]) {
            return Some(Change::Replace(wanted.clone()));
        }
        add_subjects(&mut updated, wanted);
    }
    (updated != *existing).then_some(Change::Update(updated))
}

/// The rules of an aggregated role, if they differ from those that it has: the rules of the roles that its selectors match,
/// selector by selector, in the order of the roles' names, and each rule once.
///
/// `all` are the ClusterRoles of the cluster, in any order. Nothing for a role without an aggregation rule.
pub fn aggregated<'a>(role: &Value, all: impl Iterator<Item = &'a Value>) -> Option<Vec<Value>> {
    let rule = role["aggregationRule"].as_object()?;
    let name = |role: &Value| {
        role["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let own = name(role);
    let mut others: Vec<(String, &Value)> = all
        .map(|role| (name(role), role))
        .filter(|(name, _)| *name != own)
        .collect();
    others.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut seen: HashSet<PolicyRule> = HashSet::new();
    let mut rules: Vec<Value> = Vec::new();
    for selector in items(rule.get("clusterRoleSelectors").unwrap_or(&Value::Null)) {
        for (_, role) in &others {
            if !selector_matches(selector, &role["metadata"]["labels"]) {
                continue;
            }
            for rule in items(&role["rules"]).filter_map(PolicyRule::try_parse) {
                if !seen.contains(&rule) {
                    rules.push(rule.to_json());
                    seen.insert(rule);
                }
            }
        }
    }
    let differs = PolicyRule::parse_all(&role["rules"]) != PolicyRule::parse_all(&json!(rules));
    differs.then_some(rules)
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// Adds to a list of an object, which is made where there is none.
fn extend(object: &mut Value, field: &str, more: Vec<Value>) {
    if more.is_empty() {
        return;
    }
    match &mut object[field] {
        Value::Array(list) => list.extend(more),
        other => *other = more.into(),
    }
}

/// Adds the entries of a map that an object does not have.
fn add_entries(object: &mut Value, field: &str, wanted: &Value) {
    let missing: Map<String, Value> = wanted
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| object[field].get(key.as_str()).is_none())
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    if missing.is_empty() {
        return;
    }
    match &mut object[field] {
        Value::Object(map) => map.extend(missing),
        other => *other = missing.into(),
    }
}

fn add_rules(role: &mut Value, wanted: &Value) {
    let owned = PolicyRule::parse_all(&role["rules"]);
    // In a role too large to search everything counts as missing. It must not grow at every start, so a rule that is there
    // word for word is not searched for.
    let mut wanted = PolicyRule::parse_all(&wanted["rules"]);
    wanted.retain(|rule| !owned.contains(rule));
    let missing = uncovered(&owned, &wanted);
    extend(
        role,
        "rules",
        missing.iter().map(PolicyRule::to_json).collect(),
    );
}

/// Adds the selectors of the wanted aggregation; a role that is not to be aggregated loses its own.
fn add_selectors(role: &mut Value, wanted: &Value) {
    const FIELD: &str = "clusterRoleSelectors";
    let wanted = &wanted["aggregationRule"];
    if wanted.is_null() {
        if let Some(fields) = role.as_object_mut() {
            fields.remove("aggregationRule");
        }
        return;
    }
    let missing: Vec<Value> = items(&wanted[FIELD])
        .filter(|selector| !items(&role["aggregationRule"][FIELD]).any(|own| own == *selector))
        .cloned()
        .collect();
    if missing.is_empty() {
        return;
    }
    if !role["aggregationRule"].is_object() {
        role["aggregationRule"] = json!({});
    }
    extend(&mut role["aggregationRule"], FIELD, missing);
}

fn add_subjects(binding: &mut Value, wanted: &Value) {
    let owned: Vec<Subject> = items(&binding["subjects"]).map(Subject::parse).collect();
    let missing: Vec<Value> = items(&wanted["subjects"])
        .filter(|subject| !owned.contains(&Subject::parse(subject)))
        .cloned()
        .collect();
    extend(binding, "subjects", missing);
}

#[cfg(test)]
mod tests {
    use super::super::policy;
    use super::*;

    fn rule(verbs: &[&str]) -> Value {
        json!({ "verbs": verbs, "apiGroups": [""], "resources": ["pods"] })
    }

    fn role(name: &str, labels: Value, rules: Value) -> Value {
        json!({ "kind": "ClusterRole", "metadata": { "name": name, "labels": labels }, "rules": rules })
    }

    fn update(existing: &Value, wanted: &Value) -> Value {
        match reconcile(Some(existing), wanted) {
            Some(Change::Update(updated)) => updated,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_default_policy_needs_nothing_once_it_is_written() {
        for object in policy::objects() {
            assert_eq!(reconcile(None, &object), Some(Change::Create));
            assert_eq!(reconcile(Some(&object), &object), None, "{object}");
        }
    }

    #[test]
    fn missing_rules_are_added_and_others_stay() {
        let wanted = role("a", json!({ "w": "1" }), json!([rule(&["get", "list"])]));
        let existing = role(
            "a",
            json!({ "w": "2", "own": "3" }),
            json!([rule(&["get", "delete"])]),
        );
        let updated = update(&existing, &wanted);
        assert_eq!(
            updated["rules"],
            json!([rule(&["get", "delete"]), rule(&["list"])])
        );
        assert_eq!(
            updated["metadata"]["labels"],
            json!({ "w": "2", "own": "3" })
        );
        assert_eq!(reconcile(Some(&updated), &wanted), None);
        let everything = role(
            "a",
            json!({ "w": "" }),
            json!([{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }]),
        );
        assert_eq!(reconcile(Some(&everything), &wanted), None);
    }

    #[test]
    fn a_role_too_large_to_search_grows_once() {
        let words: Vec<String> = (0..50_000).map(|number| format!("w{number}")).collect();
        let small: Vec<Value> = (0..100)
            .map(|number| json!({ "verbs": ["get"], "apiGroups": [""], "resources": [format!("r{number}")] }))
            .collect();
        let wanted = role("a", json!({}), small.into());
        let huge = json!({ "verbs": words, "apiGroups": words, "resources": words });
        let existing = role("a", json!({}), json!([huge]));
        let updated = update(&existing, &wanted);
        assert_eq!(updated["rules"].as_array().map(Vec::len), Some(101));
        assert_eq!(reconcile(Some(&updated), &wanted), None);
    }

    #[test]
    fn who_opts_out_is_left_alone() {
        let wanted = role("a", json!({}), json!([rule(&["get"])]));
        let mut existing = role("a", json!({}), json!([]));
        existing["metadata"]["annotations"] = json!({ AUTO_UPDATE: "false" });
        assert_eq!(reconcile(Some(&existing), &wanted), None);
        existing["metadata"]["annotations"] = json!({ AUTO_UPDATE: "no" });
        assert_eq!(update(&existing, &wanted)["rules"], json!([rule(&["get"])]));
    }

    #[test]
    fn lists_and_maps_of_another_type_are_replaced() {
        let wanted = role("a", json!({ "w": "1" }), json!([rule(&["get"])]));
        for odd in [json!(null), json!("x"), json!(7)] {
            let updated = update(&role("a", odd.clone(), odd.clone()), &wanted);
            assert_eq!(updated["rules"], wanted["rules"], "{odd}");
            assert_eq!(updated["metadata"]["labels"], json!({ "w": "1" }), "{odd}");
        }
    }

    #[test]
    fn an_aggregation_gains_selectors_and_goes_where_none_is_wanted() {
        let selector = |word: &str| json!({ "matchLabels": { "to": word } });
        let mut wanted = role("a", json!({}), json!([]));
        let plain = wanted.clone();
        wanted["aggregationRule"] = json!({ "clusterRoleSelectors": [selector("a")] });
        let updated = update(&plain, &wanted);
        assert_eq!(updated["aggregationRule"], wanted["aggregationRule"]);
        let mut other = wanted.clone();
        other["aggregationRule"] = json!({ "clusterRoleSelectors": [selector("b")] });
        assert_eq!(
            update(&other, &wanted)["aggregationRule"]["clusterRoleSelectors"],
            json!([selector("b"), selector("a")])
        );
        assert!(update(&wanted, &plain).get("aggregationRule").is_none());
    }

    #[test]
    fn a_binding_gains_subjects_and_is_replaced_if_its_role_differs() {
        let user =
            |name: &str| json!({ "apiGroup": super::super::GROUP, "kind": "User", "name": name });
        let binding = |role: &str, subjects: Value| {
            json!({
                "kind": "RoleBinding",
                "metadata": { "name": "b", "namespace": "n" },
                "roleRef": { "apiGroup": super::super::GROUP, "kind": "Role", "name": role },
                "subjects": subjects,
            })
        };
        let wanted = binding("r", json!([user("a")]));
        let updated = update(&binding("r", json!([user("b")])), &wanted);
        assert_eq!(updated["subjects"], json!([user("b"), user("a")]));
        assert_eq!(
            update(&binding("r", json!(null)), &wanted)["subjects"],
            json!([user("a")])
        );
        let other = binding("other", json!([user("a"), user("b")]));
        assert_eq!(
            reconcile(Some(&other), &wanted),
            Some(Change::Replace(wanted.clone()))
        );
        let mut kept = other;
        kept["metadata"]["annotations"] = json!({ AUTO_UPDATE: "false" });
        assert_eq!(reconcile(Some(&kept), &wanted), None);
    }

    #[test]
    fn an_aggregated_role_has_the_rules_of_those_it_selects() {
        let all = [
            role(
                "z",
                json!({ "to": "view" }),
                json!([rule(&["watch"]), rule(&["get"])]),
            ),
            role(
                "b",
                json!({ "to": "view" }),
                json!([rule(&["get"]), "odd", { "verbs": 5 }]),
            ),
            role("a", json!({ "to": "edit" }), json!([rule(&["delete"])])),
            role("odd", json!({ "to": "view" }), json!({ "0": rule(&["*"]) })),
        ];
        let mut view = role("view", json!({ "to": "view" }), json!([rule(&["*"])]));
        assert_eq!(aggregated(&view, all.iter()), None, "it is not aggregated");
        view["aggregationRule"] = json!({ "clusterRoleSelectors": [
            { "matchLabels": { "to": "view" } },
            { "matchExpressions": [{ "key": "to", "operator": "Exists" }] },
        ] });
        let rules = vec![rule(&["get"]), rule(&["watch"]), rule(&["delete"])];
        let with_itself = || all.iter().chain([&view]);
        assert_eq!(aggregated(&view, with_itself()), Some(rules.clone()));
        let mut done = view.clone();
        done["rules"] = json!(rules);
        assert_eq!(aggregated(&done, with_itself()), None);
        done["aggregationRule"] = json!({});
        assert_eq!(aggregated(&done, with_itself()), Some(Vec::new()));
        done["rules"] = json!(null);
        assert_eq!(aggregated(&done, with_itself()), None);
    }

    #[test]
    fn the_default_admin_may_all_that_view_and_edit_may() {
        let mut roles = policy::objects();
        roles.retain(|role| role["kind"] == "ClusterRole");
        // As a controller does, until nothing changes.
        let mut rounds = 0;
        while let Some((index, rules)) = roles
            .iter()
            .enumerate()
            .find_map(|(index, role)| Some((index, aggregated(role, roles.iter())?)))
        {
            roles[index]["rules"] = rules.into();
            rounds += 1;
            assert!(rounds < 20, "it does not come to rest");
        }
        let count = |name: &str| {
            let role = roles
                .iter()
                .find(|role| role["metadata"]["name"] == name)
                .unwrap();
            PolicyRule::parse_all(&role["rules"]).len()
        };
        assert_eq!((count("view"), count("edit"), count("admin")), (12, 27, 29));
    }
}
