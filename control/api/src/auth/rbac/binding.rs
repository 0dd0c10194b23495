//! A binding: what it grants, and to whom.

use serde_json::Value;

use super::GROUP;
use crate::auth::UserInfo;

/// The role that a binding grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoleRef {
    /// A ClusterRole, by its name.
    ClusterRole(String),
    /// A Role of the binding's namespace, by its name.
    Role(String),
    /// What is no role of this API: it grants nothing.
    Unknown {
        /// The kind that stands there.
        kind: String,
        /// The name that stands there.
        name: String,
    },
}

impl RoleRef {
    /// Reads a `roleRef`.
    pub fn parse(reference: &Value) -> Self {
        let name = text(&reference["name"]);
        match text(&reference["kind"]).as_str() {
            _ if !matches!(text(&reference["apiGroup"]).as_str(), "" | GROUP) => Self::Unknown {
                kind: text(&reference["kind"]),
                name,
            },
            "ClusterRole" => Self::ClusterRole(name),
            "Role" => Self::Role(name),
            kind => Self::Unknown {
                kind: kind.to_owned(),
                name,
            },
        }
    }

    /// The kind that stands there.
    pub fn kind(&self) -> &str {
        match self {
            Self::ClusterRole(_) => "ClusterRole",
            Self::Role(_) => "Role",
            Self::Unknown { kind, .. } => kind,
        }
    }

    /// The name that stands there.
    pub fn name(&self) -> &str {
        match self {
            Self::ClusterRole(name) | Self::Role(name) | Self::Unknown { name, .. } => name,
        }
    }
}

/// Whom a binding grants its role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The user of this name.
    User(String),
    /// Every user in the group of this name.
    Group(String),
    /// A service account.
    ServiceAccount {
        /// Its namespace; empty for that of the binding.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// What is none of these: nobody.
    Unknown,
}

impl Subject {
    /// Reads one of a binding's `subjects`.
    pub fn parse(subject: &Value) -> Self {
        // A subject without a name would stand for the user without one.
        let Some(name) = subject["name"].as_str().map(str::to_owned) else {
            return Self::Unknown;
        };
        match subject["kind"].as_str() {
            Some("User") => Self::User(name),
            Some("Group") => Self::Group(name),
            Some("ServiceAccount") => Self::ServiceAccount {
                namespace: text(&subject["namespace"]),
                name,
            },
            _ => Self::Unknown,
        }
    }
}

/// A RoleBinding, or a ClusterRoleBinding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The name.
    pub name: String,
    /// The namespace; empty for a ClusterRoleBinding.
    pub namespace: String,
    /// What it grants.
    pub role: RoleRef,
    /// To whom.
    pub subjects: Vec<Subject>,
}

impl Binding {
    /// Reads a binding.
    pub fn parse(object: &Value) -> Self {
        Self {
            name: text(&object["metadata"]["name"]),
            namespace: text(&object["metadata"]["namespace"]),
            role: RoleRef::parse(&object["roleRef"]),
            subjects: object["subjects"]
                .as_array()
                .into_iter()
                .flatten()
                .map(Subject::parse)
                .collect(),
        }
    }

    /// For people: `RoleBinding "b/n" of Role "r" to User "u"`; the order of name and namespace is Kubernetes'.
    pub fn describe(&self, subject: &Subject) -> String {
        let to = match subject {
            Subject::User(name) => format!("User {name:?}"),
            Subject::Group(name) => format!("Group {name:?}"),
            Subject::ServiceAccount { namespace, name } => {
                let namespace = if namespace.is_empty() {
                    &self.namespace
                } else {
                    namespace
                };
                format!("ServiceAccount {:?}", format!("{name}/{namespace}"))
            }
            Subject::Unknown => "nobody".to_owned(),
        };
        let role = format!("{} {:?}", self.role.kind(), self.role.name());
        if self.namespace.is_empty() {
            format!("ClusterRoleBinding {:?} of {role} to {to}", self.name)
        } else {
            let name = format!("{}/{}", self.name, self.namespace);
            format!("RoleBinding {name:?} of {role} to {to}")
        }
    }
}

/// Whether a subject of a binding in `namespace` is `user`; the namespace of a ClusterRoleBinding is empty.
pub fn applies(subject: &Subject, user: &UserInfo, namespace: &str) -> bool {
    match subject {
        Subject::User(name) => *name == user.name,
        Subject::Group(name) => user.is_in(name),
        Subject::ServiceAccount {
            namespace: own,
            name,
        } => {
            let namespace = if own.is_empty() { namespace } else { own };
            !namespace.is_empty()
                && user
                    .name
                    .strip_prefix("system:serviceaccount:")
                    .and_then(|rest| rest.strip_prefix(namespace))
                    .and_then(|rest| rest.strip_prefix(':'))
                    == Some(name)
        }
        Subject::Unknown => false,
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn user(name: &str, groups: &[&str]) -> UserInfo {
        UserInfo::new(name, groups.iter().map(|group| (*group).to_owned()))
    }

    #[test]
    fn subjects_are_users_groups_and_service_accounts() {
        let account = "system:serviceaccount:n:a";
        let people = [user("u", &["g"]), user(account, &[]), user("", &[])];
        for (subject, namespace, whom) in [
            (
                json!({ "kind": "User", "name": "u" }),
                "",
                [true, false, false],
            ),
            (
                json!({ "kind": "Group", "name": "g" }),
                "",
                [true, false, false],
            ),
            (
                json!({ "kind": "Group", "name": "system:authenticated" }),
                "",
                [true; 3],
            ),
            (
                json!({ "kind": "User", "name": account }),
                "",
                [false, true, false],
            ),
            (
                json!({ "kind": "ServiceAccount", "name": "a", "namespace": "n" }),
                "",
                [false, true, false],
            ),
            (
                json!({ "kind": "ServiceAccount", "name": "a", "namespace": "n" }),
                "m",
                [false, true, false],
            ),
            (
                json!({ "kind": "ServiceAccount", "name": "a" }),
                "n",
                [false, true, false],
            ),
            (
                json!({ "kind": "ServiceAccount", "name": "a" }),
                "",
                [false; 3],
            ),
            (
                json!({ "kind": "ServiceAccount", "name": "a", "namespace": "m" }),
                "n",
                [false; 3],
            ),
            (
                json!({ "kind": "ServiceAccount", "name": "", "namespace": "n:a" }),
                "",
                [false; 3],
            ),
            (
                json!({ "kind": "ServiceAccount", "name": "n:a", "namespace": "" }),
                "",
                [false; 3],
            ),
            (json!({ "kind": "user", "name": "u" }), "", [false; 3]),
            (json!({ "kind": "User" }), "", [false; 3]),
            (json!({ "kind": "User", "name": null }), "", [false; 3]),
            (json!({ "kind": "User", "name": ["u"] }), "", [false; 3]),
            (json!({ "kind": 5, "name": "u" }), "", [false; 3]),
            (json!(null), "n", [false; 3]),
            (json!("u"), "n", [false; 3]),
        ] {
            let parsed = Subject::parse(&subject);
            let found = [0, 1, 2].map(|index| applies(&parsed, &people[index], namespace));
            assert_eq!(found, whom, "{subject} in {namespace:?}");
        }
    }

    #[test]
    fn odd_objects_bind_nobody() {
        for object in [
            json!(null),
            json!([]),
            json!({ "metadata": 5, "roleRef": "x", "subjects": {} }),
            json!({ "subjects": [null, 5, "u", [], {}] }),
        ] {
            let binding = Binding::parse(&object);
            assert!(
                binding.subjects.iter().all(|s| *s == Subject::Unknown),
                "{object}"
            );
            assert_eq!(
                binding.role,
                RoleRef::Unknown {
                    kind: String::new(),
                    name: String::new()
                },
                "{object}"
            );
        }
        let foreign =
            json!({ "apiGroup": "example.com", "kind": "ClusterRole", "name": "cluster-admin" });
        assert!(matches!(RoleRef::parse(&foreign), RoleRef::Unknown { .. }));
    }
}
