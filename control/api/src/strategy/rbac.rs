//! Roles and their bindings (`rbac.authorization.k8s.io`).
//!
//! Who may write them is another question, which `auth::rbac::escalation` answers.

use serde_json::{Value, json};

use super::common::text;
use super::validation::{Errors, items, label_selector, subdomain};
use super::{Column, Strategy};
use crate::auth::rbac::GROUP;
use crate::registry::names;
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::table;

/// Rules for one namespace.
pub struct Role;

/// Rules for every namespace, or for what is in none.
pub struct ClusterRole;

/// Who has the rules of a role in one namespace.
pub struct RoleBinding;

/// Who has the rules of a role everywhere.
pub struct ClusterRoleBinding;

impl Strategy for Role {
    fn check_name(&self, name: &str) -> Result<(), String> {
        names::path_segment(name)
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        rules(&mut errors, object, true);
        errors.0
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn columns(&self) -> Vec<Column> {
        role_columns()
    }

    fn cells(&self, object: &Value, _: jiff::Timestamp) -> Vec<Value> {
        role_cells(object)
    }
}

impl Strategy for ClusterRole {
    fn check_name(&self, name: &str) -> Result<(), String> {
        names::path_segment(name)
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        rules(&mut errors, object, false);
        aggregation(&mut errors, &object["aggregationRule"]);
        errors.0
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn columns(&self) -> Vec<Column> {
        role_columns()
    }

    fn cells(&self, object: &Value, _: jiff::Timestamp) -> Vec<Value> {
        role_cells(object)
    }
}

impl Strategy for RoleBinding {
    fn check_name(&self, name: &str) -> Result<(), String> {
        names::path_segment(name)
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        binding(object, &["Role", "ClusterRole"])
    }

    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        with_same_role(self.validate(object), object, old)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Role Age Users* Groups* ServiceAccounts*")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        binding_cells(object, now)
    }
}

impl Strategy for ClusterRoleBinding {
    fn check_name(&self, name: &str) -> Result<(), String> {
        names::path_segment(name)
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        binding(object, &["ClusterRole"])
    }

    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        with_same_role(self.validate(object), object, old)
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Role Age Users* Groups* ServiceAccounts*")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        binding_cells(object, now)
    }
}

fn is_empty(list: &Value) -> bool {
    list.as_array().is_none_or(Vec::is_empty)
}

fn rules(errors: &mut Errors, role: &Value, namespaced: bool) {
    for (index, rule) in items(&role["rules"]) {
        let at = |field: &str| format!("rules[{index}].{field}");
        if is_empty(&rule["verbs"]) {
            errors.required(at("verbs"), "verbs must contain at least one value");
        }
        let (groups, resources) = (&rule["apiGroups"], &rule["resources"]);
        let urls = &rule["nonResourceURLs"];
        if !is_empty(urls) {
            if namespaced {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                errors.add(at("nonResourceURLs"), urls, detail);
            }
            if !is_empty(groups) || !is_empty(resources) || !is_empty(&rule["resourceNames"]) {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                errors.add(at("nonResourceURLs"), urls, detail);
            }
            continue;
        }
        if is_empty(groups) {
            let detail = "resource rules must supply at least one api group";
            errors.required(at("apiGroups"), detail);
        }
        if is_empty(resources) {
            let detail = "resource rules must supply at least one resource";
            errors.required(at("resources"), detail);
        }
    }
}

fn aggregation(errors: &mut Errors, rule: &Value) {
    if rule.is_null() {
        return;
    }
    let at = "aggregationRule.clusterRoleSelectors";
    if is_empty(&rule["clusterRoleSelectors"]) {
        errors.required(
            at,
            "at least one clusterRoleSelector required if aggregationRule is non-nil",
        );
    }
    for (index, selector) in items(&rule["clusterRoleSelectors"]) {
        label_selector(errors, &format!("{at}[{index}]"), selector);
    }
}

fn binding(object: &Value, kinds: &[&str]) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let role = &object["roleRef"];
    let or_empty = |value: &Value| Value::from(text(value));
    errors.one_of("roleRef.apiGroup", &or_empty(&role["apiGroup"]), &[GROUP]);
    errors.one_of("roleRef.kind", &or_empty(&role["kind"]), kinds);
    match text(&role["name"]) {
        "" => errors.required("roleRef.name", ""),
        name => {
            if let Err(detail) = names::path_segment(name) {
                errors.add("roleRef.name", &role["name"], &detail);
            }
        }
    }
    let namespaced = kinds.contains(&"Role");
    for (index, subject) in items(&object["subjects"]) {
        let at = |field: &str| format!("subjects[{index}].{field}");
        let (name, group) = (text(&subject["name"]), or_empty(&subject["apiGroup"]));
        if name.is_empty() {
            errors.required(at("name"), "");
        }
        match text(&subject["kind"]) {
            "ServiceAccount" => {
                if !name.is_empty() {
                    errors.invalid(&at("name"), name, subdomain(name));
                }
                if group != "" {
                    errors.one_of(at("apiGroup"), &group, &[""]);
                }
                if !namespaced && text(&subject["namespace"]).is_empty() {
                    errors.required(at("namespace"), "");
                }
            }
            kind @ ("User" | "Group") => {
                if name.is_empty() {
                    let detail = format!("{} name cannot be empty", kind.to_lowercase());
                    errors.add(at("name"), &name.into(), &detail);
                }
                errors.one_of(at("apiGroup"), &group, &[GROUP]);
            }
            kind => errors.one_of(
                at("kind"),
                &kind.into(),
                &["ServiceAccount", "User", "Group"],
            ),
        }
    }
    errors.0
}

/// A binding's role never changes: who may add subjects could otherwise give them another role.
fn with_same_role(errors: Vec<FieldError>, object: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors(errors);
    // The names of the fields are those of Kubernetes' internal type, which its message shows.
    let role = |object: &Value| {
        let role = &object["roleRef"];
        json!({ "APIGroup": text(&role["apiGroup"]), "Kind": text(&role["kind"]), "Name": text(&role["name"]) })
    };
    let new = role(object);
    if new != role(old) {
        errors.add("roleRef", &new, "cannot change roleRef");
    }
    errors.0
}

fn role_columns() -> Vec<Column> {
    vec![
        table::column("Name", "string", 0),
        table::column("Created At", "date", 0),
    ]
}

fn role_cells(object: &Value) -> Vec<Value> {
    let created = object["metadata"]["creationTimestamp"]
        .as_str()
        .unwrap_or("0001-01-01T00:00:00Z");
    vec![table::name(object), created.into()]
}

fn binding_cells(object: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let role = &object["roleRef"];
    let subjects = |kind: &str| {
        let names: Vec<String> = items(&object["subjects"])
            .filter(|(_, subject)| subject["kind"] == kind)
            .map(|(_, subject)| match kind {
                "ServiceAccount" => {
                    format!("{}/{}", text(&subject["namespace"]), text(&subject["name"]))
                }
                _ => text(&subject["name"]).to_owned(),
            })
            .collect();
        Value::from(names.join(", "))
    };
    vec![
        table::name(object),
        format!("{}/{}", text(&role["kind"]), text(&role["name"])).into(),
        table::age(object, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(errors: &[FieldError]) -> Vec<String> {
        errors
            .iter()
            .map(|error| format!("{}: {}", error.field, error.message))
            .collect()
    }

    #[test]
    #[rustfmt::skip] // One case a line.
    fn mistakes_in_rules_are_named() {
        let verbs = "rules[0].verbs: Required value: verbs must contain at least one value";
        let groups = "rules[0].apiGroups: Required value: resource rules must supply at least one api group";
        let resources = "rules[0].resources: Required value: resource rules must supply at least one resource";
        let namespaced = r#"rules[0].nonResourceURLs: Invalid value: ["/a"]: namespaced rules cannot apply to non-resource URLs"#;
        let both = r#"rules[0].nonResourceURLs: Invalid value: ["/a"]: rules cannot apply to both regular resources and non-resource URLs"#;
        for (rule, role, cluster_role) in [
            (json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"] }), vec![], vec![]),
            (json!({ "verbs": ["get"], "apiGroups": [""], "resources": ["a", "b"], "resourceNames": ["x"] }), vec![], vec![]),
            (json!({}), vec![verbs, groups, resources], vec![verbs, groups, resources]),
            (json!({ "verbs": null, "apiGroups": [], "resources": null }), vec![verbs, groups, resources], vec![verbs, groups, resources]),
            (json!({ "verbs": ["get"], "nonResourceURLs": ["/a"] }), vec![namespaced], vec![]),
            (json!({ "nonResourceURLs": ["/a"], "resources": ["x"] }), vec![verbs, namespaced, both], vec![verbs, both]),
            (json!({ "verbs": ["get"], "nonResourceURLs": ["/a"], "resourceNames": ["x"] }), vec![namespaced, both], vec![both]),
        ] {
            let object = json!({ "rules": [rule] });
            assert_eq!(lines(&Role.validate(&object)), role, "{object}");
            assert_eq!(lines(&ClusterRole.validate(&object)), cluster_role, "{object}");
        }
        for object in [json!({}), json!({ "rules": null }), json!({ "rules": [] })] {
            assert!(Role.validate(&object).is_empty() && ClusterRole.validate(&object).is_empty());
        }
    }

    #[test]
    fn an_aggregation_selects_by_valid_labels() {
        for (rule, expected) in [
            (json!(null), ""),
            (
                json!({ "clusterRoleSelectors": [{ "matchLabels": { "a": "b" } }, {}] }),
                "",
            ),
            (
                json!({}),
                "aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if aggregationRule is non-nil",
            ),
            (
                json!({ "clusterRoleSelectors": [{}, { "matchExpressions": [{ "key": "a", "operator": "In" }] }] }),
                "aggregationRule.clusterRoleSelectors[1].matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
            ),
        ] {
            let errors = lines(&ClusterRole.validate(&json!({ "aggregationRule": rule })));
            assert_eq!(errors.join("\n"), expected, "{rule}");
        }
    }

    #[test]
    #[rustfmt::skip] // One case a line.
    fn mistakes_in_bindings_are_named() {
        let good = json!({ "apiGroup": GROUP, "kind": "ClusterRole", "name": "system:a" });
        let cases = [
            (json!({ "roleRef": good }), vec![], vec![]),
            (json!({ "roleRef": { "apiGroup": GROUP, "kind": "Role", "name": "a" } }), vec![], vec![r#"roleRef.kind: Unsupported value: "Role": supported values: "ClusterRole""#]),
            (json!({ "roleRef": { "apiGroup": "x", "kind": "ClusterRole", "name": "a/b" } }),
                vec![r#"roleRef.apiGroup: Unsupported value: "x": supported values: "rbac.authorization.k8s.io""#, r#"roleRef.name: Invalid value: "a/b": may not contain '/'"#],
                vec![r#"roleRef.apiGroup: Unsupported value: "x": supported values: "rbac.authorization.k8s.io""#, r#"roleRef.name: Invalid value: "a/b": may not contain '/'"#]),
            (json!({ "roleRef": { "apiGroup": GROUP, "kind": "ClusterRole" } }), vec!["roleRef.name: Required value"], vec!["roleRef.name: Required value"]),
            (json!({ "roleRef": good, "subjects": [
                { "kind": "User", "apiGroup": GROUP, "name": "u" },
                { "kind": "Group", "apiGroup": GROUP, "name": "system:g" },
                { "kind": "ServiceAccount", "name": "s", "namespace": "n" },
            ] }), vec![], vec![]),
            (json!({ "roleRef": good, "subjects": [{ "kind": "ServiceAccount", "name": "s" }] }), vec![], vec!["subjects[0].namespace: Required value"]),
            (json!({ "roleRef": good, "subjects": [{ "kind": "User", "apiGroup": GROUP, "name": "" }] }),
                vec!["subjects[0].name: Required value", r#"subjects[0].name: Invalid value: "": user name cannot be empty"#],
                vec!["subjects[0].name: Required value", r#"subjects[0].name: Invalid value: "": user name cannot be empty"#]),
            (json!({ "roleRef": good, "subjects": [{ "kind": "Group", "apiGroup": "", "name": "g" }] }),
                vec![r#"subjects[0].apiGroup: Unsupported value: "": supported values: "rbac.authorization.k8s.io""#],
                vec![r#"subjects[0].apiGroup: Unsupported value: "": supported values: "rbac.authorization.k8s.io""#]),
            (json!({ "roleRef": good, "subjects": [{ "kind": "ServiceAccount", "apiGroup": GROUP, "name": "s", "namespace": "n" }] }),
                vec![r#"subjects[0].apiGroup: Unsupported value: "rbac.authorization.k8s.io": supported values: """#],
                vec![r#"subjects[0].apiGroup: Unsupported value: "rbac.authorization.k8s.io": supported values: """#]),
            (json!({ "roleRef": good, "subjects": [{ "kind": "Robot", "name": "r" }] }),
                vec![r#"subjects[0].kind: Unsupported value: "Robot": supported values: "ServiceAccount", "User", "Group""#],
                vec![r#"subjects[0].kind: Unsupported value: "Robot": supported values: "ServiceAccount", "User", "Group""#]),
        ];
        for (object, role_binding, cluster_role_binding) in cases {
            assert_eq!(lines(&RoleBinding.validate(&object)), role_binding, "{object}");
            assert_eq!(lines(&ClusterRoleBinding.validate(&object)), cluster_role_binding, "{object}");
        }
        for odd in [json!(null), json!({}), json!({ "roleRef": [], "subjects": [null, 5, []] })] {
            assert!(!RoleBinding.validate(&odd).is_empty(), "{odd}");
        }
    }

    #[test]
    fn the_role_of_a_binding_never_changes() {
        let binding = |name: &str| json!({ "roleRef": { "apiGroup": GROUP, "kind": "ClusterRole", "name": name } });
        let (a, b) = (binding("a"), binding("b"));
        assert!(RoleBinding.validate_update(None, &a, &a).is_empty());
        for errors in [
            RoleBinding.validate_update(None, &b, &a),
            ClusterRoleBinding.validate_update(None, &b, &a),
        ] {
            assert_eq!(
                lines(&errors),
                [
                    r#"roleRef: Invalid value: {"APIGroup":"rbac.authorization.k8s.io","Kind":"ClusterRole","Name":"b"}: cannot change roleRef"#
                ]
            );
        }
    }

    #[test]
    fn names_only_have_to_fit_into_a_path() {
        for strategy in [
            &Role as &dyn Strategy,
            &ClusterRole,
            &RoleBinding,
            &ClusterRoleBinding,
        ] {
            assert!(strategy.check_name("system:controller:A_b").is_ok());
            for name in ["a/b", "..", "a%b"] {
                assert!(strategy.check_name(name).is_err(), "{name}");
            }
        }
    }

    #[test]
    fn tables_show_what_kubectl_shows() {
        let now = "2026-01-02T00:00:00Z".parse().unwrap();
        let role =
            json!({ "metadata": { "name": "a", "creationTimestamp": "2026-01-01T00:00:00Z" } });
        assert_eq!(
            Role.cells(&role, now),
            [json!("a"), json!("2026-01-01T00:00:00Z")]
        );
        let columns: Vec<_> = Role
            .columns()
            .into_iter()
            .map(|c| (c.name, c.kind, c.format))
            .collect();
        assert_eq!(
            columns,
            [("Name", "string", "name"), ("Created At", "date", "")].map(|(a, b, c)| (
                a.to_owned(),
                b.to_owned(),
                c.to_owned()
            ))
        );
        let binding = json!({
            "metadata": { "name": "b", "creationTimestamp": "2026-01-01T00:00:00Z" },
            "roleRef": { "kind": "ClusterRole", "name": "view" },
            "subjects": [
                { "kind": "User", "name": "u" },
                { "kind": "Group", "name": "g" },
                { "kind": "User", "name": "v" },
                { "kind": "ServiceAccount", "namespace": "n", "name": "s" },
                { "kind": "Robot", "name": "r" },
            ],
        });
        assert_eq!(
            RoleBinding.cells(&binding, now),
            ["b", "ClusterRole/view", "24h", "u, v", "g", "n/s"].map(Value::from)
        );
        let wide: Vec<i32> = ClusterRoleBinding
            .columns()
            .iter()
            .map(|c| c.priority)
            .collect();
        assert_eq!(wide, [0, 0, 0, 1, 1, 1]);
    }
}
