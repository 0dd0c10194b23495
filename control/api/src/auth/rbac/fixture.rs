//! Roles and bindings in maps, for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Binding, Bindings, GROUP, PolicyRule};

/// Roles and bindings, read from objects.
#[derive(Default)]
pub struct Maps {
    roles: BTreeMap<(String, String), Arc<[PolicyRule]>>,
    bindings: BTreeMap<String, Arc<[Binding]>>,
}

impl Maps {
    /// Reads objects of all four kinds.
    pub fn new(objects: &[Value]) -> Self {
        let mut roles = BTreeMap::new();
        let mut bindings: BTreeMap<String, Vec<Binding>> = BTreeMap::new();
        for object in objects {
            let binding = Binding::parse(object);
            if object["roleRef"].is_null() {
                let rules = PolicyRule::parse_all(&object["rules"]);
                roles.insert((binding.namespace, binding.name), rules.into());
            } else {
                bindings
                    .entry(binding.namespace.clone())
                    .or_default()
                    .push(binding);
            }
        }
        Self {
            roles,
            bindings: bindings
                .into_iter()
                .map(|(namespace, list)| (namespace, list.into()))
                .collect(),
        }
    }
}

impl Bindings for Maps {
    fn cluster_role(&self, name: &str) -> Option<Arc<[PolicyRule]>> {
        self.role("", name)
    }

    fn role(&self, namespace: &str, name: &str) -> Option<Arc<[PolicyRule]>> {
        self.roles
            .get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
    }

    fn cluster_bindings(&self) -> Arc<[Binding]> {
        self.bindings("")
    }

    fn bindings(&self, namespace: &str) -> Arc<[Binding]> {
        self.bindings.get(namespace).cloned().unwrap_or_default()
    }
}

/// A Role, or a ClusterRole if `key` has no namespace: `namespace/name` or `name`. Each rule is `verbs groups resources`.
pub fn role(key: &str, rules: &[&str]) -> Value {
    let list = |word: &str| -> Vec<String> {
        word.split(',')
            .map(|word| word.replace("core", ""))
            .collect()
    };
    let rules: Vec<Value> = rules
        .iter()
        .map(|rule| match rule.split(' ').collect::<Vec<_>>()[..] {
            [verbs, "urls", urls] => json!({ "verbs": list(verbs), "nonResourceURLs": list(urls) }),
            [verbs, groups, resources] => {
                json!({ "verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources) })
            }
            _ => panic!("{rule}"),
        })
        .collect();
    let mut role = json!({ "metadata": metadata(key), "rules": rules });
    role["kind"] = if key.contains('/') {
        "Role"
    } else {
        "ClusterRole"
    }
    .into();
    role
}

/// A binding; its role is `Role NAME` or `ClusterRole NAME`, its subject `User NAME`, `Group NAME` or
/// `ServiceAccount NAMESPACE/NAME`.
pub fn binding(key: &str, role: &str, subject: &str) -> Value {
    let (role_kind, role) = role.split_once(' ').expect("a kind and a name");
    let (kind, name) = subject.split_once(' ').expect("a kind and a name");
    let subject = match name.split_once('/') {
        Some((namespace, name)) => json!({ "kind": kind, "namespace": namespace, "name": name }),
        None => json!({ "kind": kind, "apiGroup": GROUP, "name": name }),
    };
    json!({
        "metadata": metadata(key),
        "roleRef": { "apiGroup": GROUP, "kind": role_kind, "name": role },
        "subjects": [subject],
    })
}

fn metadata(key: &str) -> Value {
    match key.split_once('/') {
        Some((namespace, name)) => json!({ "namespace": namespace, "name": name }),
        None => json!({ "name": key }),
    }
}
