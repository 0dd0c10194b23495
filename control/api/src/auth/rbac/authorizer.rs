//! From a user to rules: which bindings apply, and what their roles allow.

use std::sync::Arc;

use super::GROUP;
use super::binding::{Binding, RoleRef, Subject, applies};
use super::rules::PolicyRule;
use crate::auth::UserInfo;
use crate::auth::authorize::{Attributes, Decision};

/// Where roles and bindings are looked up. A caller keeps them parsed, so that a decision reads no JSON.
pub trait Bindings: Send + Sync {
    /// The rules of a ClusterRole, if there is one of this name.
    fn cluster_role(&self, name: &str) -> Option<Arc<[PolicyRule]>>;

    /// The rules of a Role, if there is one of this name.
    fn role(&self, namespace: &str, name: &str) -> Option<Arc<[PolicyRule]>>;

    /// Every ClusterRoleBinding.
    fn cluster_bindings(&self) -> Arc<[Binding]>;

    /// Every RoleBinding of a namespace.
    fn bindings(&self, namespace: &str) -> Arc<[Binding]>;
}

/// Whether the bindings allow `user` a request, and by which of them; or which roles were not found.
pub fn authorize(
    bindings: &dyn Bindings,
    user: &UserInfo,
    attributes: &Attributes<'_>,
) -> Decision {
    let mut errors: Vec<String> = Vec::new();
    let allowed = visit(bindings, user, attributes.namespace, |granted| {
        match granted {
            Ok((binding, subject, rules)) => {
                if rules.iter().any(|rule| rule.allows(attributes)) {
                    return Some(binding.describe(subject));
                }
            }
            Err(error) => errors.push(error),
        }
        None
    });
    match allowed {
        Some(by) => Decision {
            allowed: true,
            reason: format!("RBAC: allowed by {by}"),
        },
        None => Decision {
            allowed: false,
            reason: if errors.is_empty() {
                String::new()
            } else {
                format!("RBAC: {}", aggregate(&errors))
            },
        },
    }
}

/// Every rule that `user` has in `namespace`, empty for the whole cluster; and which roles were not found.
pub fn rules_for(
    bindings: &dyn Bindings,
    user: &UserInfo,
    namespace: &str,
) -> (Vec<PolicyRule>, Vec<String>) {
    let mut rules: Vec<PolicyRule> = Vec::new();
    let mut errors: Vec<String> = Vec::new();
    visit(bindings, user, namespace, |granted| {
        match granted {
            Ok((_, _, granted)) => rules.extend_from_slice(granted),
            Err(error) => errors.push(error),
        }
        None::<()>
    });
    (rules, errors)
}

/// Errors as one text: the only one, or all of them in brackets, each once.
pub fn aggregate(errors: &[String]) -> String {
    let mut once: Vec<&str> = Vec::new();
    for error in errors {
        if !once.contains(&error.as_str()) {
            once.push(error);
        }
    }
    match once[..] {
        [error] => error.to_owned(),
        _ => format!("[{}]", once.join(", ")),
    }
}

/// What one binding grants: the binding, the subject that is the user, and the rules.
type Granted<'a> = Result<(&'a Binding, &'a Subject, &'a [PolicyRule]), String>;

/// Calls `visitor` for every binding that applies to `user`, those of the cluster first, until it returns something.
fn visit<T>(
    bindings: &dyn Bindings,
    user: &UserInfo,
    namespace: &str,
    mut visitor: impl FnMut(Granted<'_>) -> Option<T>,
) -> Option<T> {
    let of_cluster = bindings.cluster_bindings();
    let of_namespace = (!namespace.is_empty()).then(|| bindings.bindings(namespace));
    let in_cluster = of_cluster.iter().map(|binding| ("", binding));
    let in_namespace = of_namespace
        .iter()
        .flat_map(|list| list.iter())
        .map(|binding| (namespace, binding));
    for (namespace, binding) in in_cluster.chain(in_namespace) {
        let subject = binding
            .subjects
            .iter()
            .find(|subject| applies(subject, user, namespace));
        let Some(subject) = subject else { continue };
        let found = match role_rules(bindings, &binding.role, namespace) {
            Ok(rules) => visitor(Ok((binding, subject, &rules))),
            Err(error) => visitor(Err(error)),
        };
        if found.is_some() {
            return found;
        }
    }
    None
}

/// The rules of the role that a binding in `namespace` names.
///
/// # Errors
///
/// There is no such role, or no such kind of role.
pub fn role_rules(
    bindings: &dyn Bindings,
    role: &RoleRef,
    namespace: &str,
) -> Result<Arc<[PolicyRule]>, String> {
    match role {
        RoleRef::ClusterRole(name) => bindings
            .cluster_role(name)
            .ok_or_else(|| format!("clusterrole.{GROUP} {name:?} not found")),
        RoleRef::Role(name) => bindings
            .role(namespace, name)
            .ok_or_else(|| format!("role.{GROUP} {name:?} not found")),
        RoleRef::Unknown { kind, .. } => Err(format!("unsupported role reference kind: {kind:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Maps, binding, role};
    use super::super::policy;
    use super::*;

    fn user(name: &str, groups: &[&str]) -> UserInfo {
        UserInfo::new(name, groups.iter().map(|group| (*group).to_owned()))
    }

    fn list_pods(namespace: &str) -> Attributes<'_> {
        Attributes {
            verb: "list",
            resource: "pods",
            namespace,
            ..Attributes::default()
        }
    }

    #[test]
    fn a_decision_names_the_binding() {
        let maps = Maps::new(&[
            role("reader", &["list core pods"]),
            role("n/own", &["list core pods"]),
            role("m/own", &["get core pods"]),
            binding("all", "ClusterRole reader", "User everywhere"),
            binding("sa", "ClusterRole reader", "ServiceAccount n/robot"),
            binding("n/some", "ClusterRole reader", "Group team"),
            binding("n/local", "Role own", "User local"),
            binding("m/local", "Role own", "User local"),
        ]);
        for (user, namespace, reason) in [
            (
                user("everywhere", &[]),
                "",
                r#"ClusterRoleBinding "all" of ClusterRole "reader" to User "everywhere""#,
            ),
            (
                user("everywhere", &[]),
                "m",
                r#"ClusterRoleBinding "all" of ClusterRole "reader" to User "everywhere""#,
            ),
            (
                user("x", &["team"]),
                "n",
                r#"RoleBinding "some/n" of ClusterRole "reader" to Group "team""#,
            ),
            (
                user("local", &[]),
                "n",
                r#"RoleBinding "local/n" of Role "own" to User "local""#,
            ),
            (
                user("system:serviceaccount:n:robot", &[]),
                "q",
                r#"ClusterRoleBinding "sa" of ClusterRole "reader" to ServiceAccount "robot/n""#,
            ),
            (user("x", &["team"]), "", ""),
            (user("x", &["team"]), "m", ""),
            (user("local", &[]), "m", ""),
            (user("local", &[]), "", ""),
            (user("nobody", &[]), "n", ""),
        ] {
            let decision = authorize(&maps, &user, &list_pods(namespace));
            let expected = if reason.is_empty() {
                String::new()
            } else {
                format!("RBAC: allowed by {reason}")
            };
            assert_eq!(decision.reason, expected, "{user:?} in {namespace:?}");
            assert_eq!(decision.allowed, !reason.is_empty());
        }
    }

    #[test]
    fn roles_that_do_not_exist_are_reported_unless_another_allows() {
        let mut objects = vec![
            binding("a", "ClusterRole gone", "User u"),
            binding("b", "ClusterRole gone", "User u"),
            binding("n/c", "Role lost", "User u"),
            binding("n/d", "Pod x", "User u"),
        ];
        let decision = authorize(&Maps::new(&objects), &user("u", &[]), &list_pods("n"));
        assert_eq!(
            decision.reason,
            "RBAC: [clusterrole.rbac.authorization.k8s.io \"gone\" not found, role.rbac.authorization.k8s.io \"lost\" not found, unsupported role reference kind: \"Pod\"]"
        );
        let decision = authorize(&Maps::new(&objects), &user("u", &[]), &list_pods("m"));
        assert_eq!(
            (decision.allowed, &*decision.reason),
            (
                false,
                "RBAC: clusterrole.rbac.authorization.k8s.io \"gone\" not found"
            )
        );
        objects.extend([
            role("r", &["list core pods"]),
            binding("e", "ClusterRole r", "User u"),
        ]);
        assert!(authorize(&Maps::new(&objects), &user("u", &[]), &list_pods("n")).allowed);
    }

    #[test]
    fn the_rules_of_a_user_are_those_of_all_bindings() {
        let maps = Maps::new(&[
            role("reader", &["list core pods", "get urls /x"]),
            role("n/own", &["delete core pods"]),
            binding("all", "ClusterRole reader", "User u"),
            binding("n/b", "Role own", "User u"),
            binding("n/c", "Role gone", "User u"),
        ]);
        let (rules, errors) = rules_for(&maps, &user("u", &[]), "n");
        assert_eq!(rules.len(), 3);
        assert_eq!(
            errors,
            ["role.rbac.authorization.k8s.io \"gone\" not found"]
        );
        let (rules, errors) = rules_for(&maps, &user("u", &[]), "");
        assert_eq!((rules.len(), errors.len()), (2, 0));
        assert_eq!(
            rules_for(&maps, &user("v", &[]), "n"),
            (Vec::new(), Vec::new())
        );
    }

    #[test]
    fn the_default_policy_opens_what_everybody_needs() {
        let maps = Maps::new(&policy::objects());
        let may = |user: &UserInfo, verb, group, resource, path| {
            let attributes = Attributes {
                verb,
                group,
                resource,
                path,
                ..Attributes::default()
            };
            authorize(&maps, user, &attributes).allowed
        };
        let (anonymous, someone) = (UserInfo::anonymous(), user("someone", &[]));
        let admin = user("admin", &["system:masters"]);
        let node = user("system:node:a", &["system:nodes"]);
        let scheduler = user("system:kube-scheduler", &[]);
        assert!(
            may(&anonymous, "get", "", "", "/livez") && !may(&anonymous, "get", "", "", "/api")
        );
        assert!(
            may(&someone, "get", "", "", "/apis/apps/v1")
                && !may(&someone, "get", "", "", "/metrics")
        );
        assert!(may(
            &someone,
            "create",
            "authorization.k8s.io",
            "selfsubjectaccessreviews",
            ""
        ));
        assert!(!may(&someone, "list", "", "pods", "") && !may(&node, "list", "", "pods", ""));
        assert!(may(&admin, "escalate", "a", "b", "") && may(&admin, "delete", "", "", "/x"));
        assert!(
            may(&scheduler, "list", "", "persistentvolumes", "")
                && !may(&scheduler, "get", "", "secrets", "")
        );
        let robot = user("system:serviceaccount:kube-system:job-controller", &[]);
        assert!(
            may(&robot, "update", "batch", "jobs", "")
                && !may(&robot, "update", "apps", "jobs", "")
        );
    }
}
