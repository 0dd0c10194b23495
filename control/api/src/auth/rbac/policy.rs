//! The roles and bindings that every cluster has from its start.
//!
//! `policy.txt` lists them; its head explains the notation. The server writes them at every start (`reconcile`), so that a
//! newer version brings its newer rules.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::rules::PolicyRule;
use super::{API_VERSION, GROUP};

/// The annotation by which an object opts out of reconciliation, if its value is `false`.
pub const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

const TABLE: &str = include_str!("policy.txt");
const OWN: &str = include_str!("own.txt");

/// The role whose rules hold for every node, beside what the Node authorizer decides by relationships.
const NODE_ROLE: &str = "system:node";

/// The verbs that `write` stands for.
const WRITE: [&str; 5] = ["create", "delete", "deletecollection", "patch", "update"];

/// The kinds in the order in which [`objects`] returns them: roles come before the bindings that name them.
const KINDS: [&str; 4] = ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];

/// Every default role and binding as a whole object: first the ClusterRoles, then the ClusterRoleBindings, the Roles and the
/// RoleBindings, each in the order of the table.
pub fn objects() -> Vec<Value> {
    let mut objects = read(TABLE).expect("a unit test reads the whole table");
    objects.sort_by_key(|object| KINDS.iter().position(|kind| object["kind"] == *kind));
    objects
}

/// What Knarr adds to them (`own.txt`), roles before the bindings that name them.
pub fn own() -> Vec<Value> {
    let mut objects = read(OWN).expect("a unit test reads the whole table");
    objects.sort_by_key(|object| KINDS.iter().position(|kind| object["kind"] == *kind));
    objects
}

/// The rules of the role `system:node`.
pub fn node_rules() -> &'static [PolicyRule] {
    static RULES: LazyLock<Vec<PolicyRule>> = LazyLock::new(|| {
        let role = objects()
            .into_iter()
            .find(|object| {
                object["kind"] == "ClusterRole" && object["metadata"]["name"] == NODE_ROLE
            })
            .expect("a unit test finds this role in the table");
        PolicyRule::parse_all(&role["rules"])
    });
    &RULES
}

/// The objects of a table; the error names the line that is wrong.
fn read(table: &str) -> Result<Vec<Value>, String> {
    let mut objects: Vec<Value> = Vec::new();
    // A controller's binding stands behind its role, so the role that rules belong to is not always the last object.
    let mut role: Option<usize> = None;
    for (number, line) in table.lines().enumerate() {
        let wrong = |what: &str| format!("line {}: {what}: {line:?}", number + 1);
        let indented = line.starts_with(' ');
        let mut words = line.split_whitespace();
        let Some(first) = words.next().filter(|word| !word.starts_with('#')) else {
            continue;
        };
        if indented {
            let rule = rule(first, words).ok_or_else(|| wrong("no rule"))?;
            let rules = role
                .and_then(|index| objects[index]["rules"].as_array_mut())
                .ok_or_else(|| wrong("a rule without a role"))?;
            rules.push(rule);
            continue;
        }
        let name = words.next().ok_or_else(|| wrong("no name"))?;
        let rest: Vec<&str> = words.collect();
        match first {
            "role" => {
                role = Some(objects.len());
                objects.push(role_object(name, &rest).ok_or_else(|| wrong("no role"))?);
            }
            "controller" if rest.is_empty() => {
                role = Some(objects.len());
                let full = format!("system:controller:{name}");
                let account = format!("kube-system/{name}");
                objects.extend(role_object(&full, &[]));
                objects.extend(binding_object(&full, &["account", &account]));
            }
            "bind" => {
                role = None;
                objects.push(binding_object(name, &rest).ok_or_else(|| wrong("no binding"))?);
            }
            _ => return Err(wrong("an unknown word")),
        }
    }
    Ok(objects)
}

/// A rule; its lists are sorted, as those of Kubernetes are.
fn rule<'a>(verbs: &str, mut words: impl Iterator<Item = &'a str>) -> Option<Value> {
    let list = |word: &str| {
        let mut list: Vec<String> = Vec::new();
        for word in word.split(',') {
            match word {
                "read" => list.extend(["get", "list", "watch"].map(str::to_owned)),
                "write" => list.extend(WRITE.map(str::to_owned)),
                "core" => list.push(String::new()),
                word => list.push(word.to_owned()),
            }
        }
        list.sort_unstable();
        list
    };
    let mut rule = PolicyRule {
        verbs: list(verbs),
        ..PolicyRule::default()
    };
    match words.next()? {
        "urls" => rule.non_resource_urls = list(words.next()?),
        groups => {
            rule.api_groups = list(groups);
            rule.resources = list(words.next()?);
            rule.resource_names = words.next().map(list).unwrap_or_default();
        }
    }
    words.next().is_none().then(|| rule.to_json())
}

fn role_object(name: &str, words: &[&str]) -> Option<Value> {
    let mut role = object("Role", name);
    role["rules"] = json!([]);
    for pair in words.chunks(2) {
        let [key, value] = pair else { return None };
        match *key {
            "in" => role["metadata"]["namespace"] = (*value).into(),
            "to" => role["metadata"]["labels"][aggregation_label(value)] = "true".into(),
            "aggregates" => {
                role["aggregationRule"] = json!({
                    "clusterRoleSelectors": [{ "matchLabels": { aggregation_label(value): "true" } }],
                });
            }
            _ => return None,
        }
    }
    Some(with_scope(role))
}

fn binding_object(name: &str, words: &[&str]) -> Option<Value> {
    let mut binding = object("RoleBinding", name);
    let mut role = name;
    let mut subjects: Vec<Value> = Vec::new();
    for pair in words.chunks(2) {
        let [key, value] = pair else { return None };
        match *key {
            "in" => binding["metadata"]["namespace"] = (*value).into(),
            "of" => role = value,
            "user" => subjects.push(json!({ "apiGroup": GROUP, "kind": "User", "name": value })),
            "group" => subjects.push(json!({ "apiGroup": GROUP, "kind": "Group", "name": value })),
            "account" => {
                let (namespace, name) = value.split_once('/')?;
                subjects.push(
                    json!({ "kind": "ServiceAccount", "name": name, "namespace": namespace }),
                );
            }
            _ => return None,
        }
    }
    // A binding in a namespace grants a Role of that namespace; only the kinds of the table need to be told apart.
    let kind = if binding["metadata"]["namespace"].is_null() {
        "ClusterRole"
    } else {
        "Role"
    };
    binding["roleRef"] = json!({ "apiGroup": GROUP, "kind": kind, "name": role });
    if !subjects.is_empty() {
        binding["subjects"] = subjects.into();
    }
    Some(with_scope(binding))
}

fn object(kind: &str, name: &str) -> Value {
    json!({
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {
            "name": name,
            "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" },
            "annotations": { AUTO_UPDATE: "true" },
        },
    })
}

/// The kind of an object without a namespace is the one that holds in the whole cluster.
fn with_scope(mut object: Value) -> Value {
    if object["metadata"]["namespace"].is_null() {
        let kind = format!("Cluster{}", object["kind"].as_str().unwrap_or_default());
        object["kind"] = kind.into();
    }
    object
}

fn aggregation_label(word: &str) -> String {
    format!("rbac.authorization.k8s.io/aggregate-to-{word}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn find(kind: &str, name: &str) -> Value {
        objects()
            .into_iter()
            .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
            .unwrap_or_else(|| panic!("no {kind} {name}"))
    }

    fn rules(name: &str) -> Vec<String> {
        PolicyRule::parse_all(&find("ClusterRole", name)["rules"])
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn the_table_has_as_many_objects_as_kubernetes() {
        let objects = objects();
        let count = |kind: &str| objects.iter().filter(|o| o["kind"] == kind).count();
        let counts = KINDS.map(|kind| (kind, count(kind)));
        assert_eq!(
            counts,
            [
                ("ClusterRole", 73),
                ("ClusterRoleBinding", 54),
                ("Role", 7),
                ("RoleBinding", 7)
            ]
        );
        let keys: BTreeSet<String> = objects
            .iter()
            .map(|o| {
                format!(
                    "{} {} {}",
                    o["kind"], o["metadata"]["namespace"], o["metadata"]["name"]
                )
            })
            .collect();
        assert_eq!(keys.len(), objects.len(), "two objects have one name");
        let kinds: Vec<usize> = objects
            .iter()
            .map(|o| KINDS.iter().position(|kind| o["kind"] == *kind).unwrap())
            .collect();
        assert!(kinds.is_sorted(), "{kinds:?}");
    }

    #[test]
    fn our_own_objects_stand_beside_those_of_kubernetes() {
        let theirs = objects();
        for object in own() {
            let same =
                |o: &&Value| o["kind"] == object["kind"] && o["metadata"] == object["metadata"];
            assert_eq!(theirs.iter().find(same), None);
            if let Some(role) = object["roleRef"]["name"].as_str() {
                let all = [objects(), own()].concat();
                let found = all
                    .iter()
                    .any(|o| o["kind"] == "ClusterRole" && o["metadata"]["name"] == role);
                assert!(found, "{role}");
            }
        }
    }

    #[test]
    fn a_role_is_a_whole_object() {
        assert_eq!(
            find("ClusterRole", "cluster-admin"),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRole",
                "metadata": {
                    "name": "cluster-admin",
                    "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" },
                    "annotations": { "rbac.authorization.kubernetes.io/autoupdate": "true" },
                },
                "rules": [
                    { "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] },
                    { "verbs": ["*"], "nonResourceURLs": ["*"] },
                ],
            })
        );
        let edit = find("ClusterRole", "edit");
        assert_eq!(
            edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-admin"],
            "true"
        );
        assert_eq!(
            edit["aggregationRule"]["clusterRoleSelectors"],
            json!([{ "matchLabels": { "rbac.authorization.k8s.io/aggregate-to-edit": "true" } }])
        );
        let signer = find("Role", "system:controller:bootstrap-signer");
        assert_eq!(signer["metadata"]["namespace"], "kube-system");
    }

    #[test]
    fn bindings_name_roles_of_the_table() {
        let objects = objects();
        for binding in objects.iter().filter(|o| !o["roleRef"].is_null()) {
            let role = objects.iter().find(|role| {
                role["kind"] == binding["roleRef"]["kind"]
                    && role["metadata"]["name"] == binding["roleRef"]["name"]
                    && role["metadata"]["namespace"] == binding["metadata"]["namespace"]
            });
            assert!(role.is_some(), "{binding}");
        }
        assert_eq!(
            find("ClusterRoleBinding", "system:public-info-viewer")["subjects"],
            json!([
                { "apiGroup": GROUP, "kind": "Group", "name": "system:authenticated" },
                { "apiGroup": GROUP, "kind": "Group", "name": "system:unauthenticated" },
            ])
        );
        assert_eq!(
            find("ClusterRoleBinding", "system:controller:job-controller")["subjects"],
            json!([{ "kind": "ServiceAccount", "name": "job-controller", "namespace": "kube-system" }])
        );
        assert_eq!(
            find(
                "RoleBinding",
                "system::extension-apiserver-authentication-reader"
            )["roleRef"],
            json!({ "apiGroup": GROUP, "kind": "Role", "name": "extension-apiserver-authentication-reader" })
        );
        assert!(
            find("ClusterRoleBinding", "system:node")
                .get("subjects")
                .is_none()
        );
    }

    #[test]
    #[rustfmt::skip] // One rule a line, so that the eye compares them.
    fn rules_are_those_of_kubernetes() {
        assert_eq!(rules("system:basic-user"), [
            r#"{APIGroups:["authorization.k8s.io"], Resources:["selfsubjectaccessreviews" "selfsubjectrulesreviews"], Verbs:["create"]}"#,
            r#"{APIGroups:["authentication.k8s.io"], Resources:["selfsubjectreviews"], Verbs:["create"]}"#,
        ]);
        assert_eq!(rules("system:public-info-viewer"), [
            r#"{NonResourceURLs:["/healthz" "/livez" "/readyz" "/version" "/version/"], Verbs:["get"]}"#,
        ]);
        assert_eq!(rules("system:discovery"), [
            r#"{NonResourceURLs:["/api" "/api/*" "/apis" "/apis/*" "/healthz" "/livez" "/openapi" "/openapi/*" "/readyz" "/version" "/version/"], Verbs:["get"]}"#,
        ]);
        assert_eq!(rules("system:node-bootstrapper"), [
            r#"{APIGroups:["certificates.k8s.io"], Resources:["certificatesigningrequests"], Verbs:["create" "get" "list" "watch"]}"#,
        ]);
        assert_eq!(rules("system:controller:disruption-controller")[7],
            r#"{APIGroups:["*"], Resources:["*/scale"], Verbs:["get"]}"#);
        assert_eq!(rules("system:kube-controller-manager")[2],
            r#"{APIGroups:["coordination.k8s.io"], Resources:["leases"], ResourceNames:["kube-controller-manager"], Verbs:["get" "update"]}"#);
        assert_eq!(rules("system:kube-scheduler")[3],
            r#"{APIGroups:["coordination.k8s.io"], Resources:["leasecandidates"], Verbs:["create" "delete" "deletecollection" "get" "list" "patch" "update" "watch"]}"#);
        assert_eq!(rules("system:kube-scheduler")[0],
            r#"{APIGroups:["" "events.k8s.io"], Resources:["events"], Verbs:["create" "patch" "update"]}"#);
        for (role, count) in [
            ("admin", 0), ("edit", 0), ("view", 0), ("system:aggregate-to-admin", 2), ("system:aggregate-to-edit", 15),
            ("system:aggregate-to-view", 12), ("system:kube-scheduler", 28), ("system:kube-controller-manager", 11),
            ("system:node", 27), ("system:kubelet-api-admin", 4), ("system:controller:statefulset-controller", 10),
        ] {
            assert_eq!(rules(role).len(), count, "{role}");
        }
        assert_eq!(node_rules().len(), 27);
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (table, message) in [
            (
                "  get core pods",
                "line 1: a rule without a role: \"  get core pods\"",
            ),
            ("role a\n  get core", "line 2: no rule: \"  get core\""),
            (
                "role a\n  get core pods x y",
                "line 2: no rule: \"  get core pods x y\"",
            ),
            (
                "role a\nbind b\n  get core pods",
                "line 3: a rule without a role: \"  get core pods\"",
            ),
            ("role a in", "line 1: no role: \"role a in\""),
            (
                "bind a account b",
                "line 1: no binding: \"bind a account b\"",
            ),
            ("rule a", "line 1: an unknown word: \"rule a\""),
            ("role", "line 1: no name: \"role\""),
        ] {
            assert_eq!(read(table), Err(message.to_owned()), "{table}");
        }
    }
}
