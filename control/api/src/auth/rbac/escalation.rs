//! Nobody grants more than they have.
//!
//! Who writes a role must have every right that it gives, or the verb `escalate` on roles. Who writes a binding must have
//! every right of the role that it grants, or the verb `bind` on that role. Both hold beside the right to write the object.

use serde_json::Value;

use super::GROUP;
use super::authorizer::{Bindings, aggregate, role_rules, rules_for};
use super::binding::RoleRef;
use super::cover::{describe, uncovered};
use super::rules::{PolicyRule, quoted};
use crate::auth::UserInfo;
use crate::auth::authorize::Attributes;
use crate::status::ApiError;

/// The group whose members may grant everything: nobody else has created the first role.
const PRIVILEGED: &str = "system:masters";

/// The longest list of missing rights in a message, in bytes.
const MAX_TEXT: usize = 16 * 1024;

/// A request that writes a role or a binding.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// `roles`, `clusterroles`, `rolebindings` or `clusterrolebindings`.
    pub resource: &'a str,
    /// The namespace of the request; empty for the kinds of the cluster.
    pub namespace: &'a str,
    /// The name in the request; empty in a creation.
    pub name: &'a str,
    /// The object as it is to be stored.
    pub object: &'a Value,
    /// The object that it replaces, if there is one.
    pub old: Option<&'a Value>,
}

/// Whether `user` may write a role or a binding of this content; `may` answers whether they are authorized to something.
///
/// # Errors
///
/// 403 with the rights that they lack; 404 if a binding names a role that does not exist.
pub fn check(
    bindings: &dyn Bindings,
    may: &dyn Fn(&Attributes<'_>) -> bool,
    user: &UserInfo,
    write: &Write<'_>,
) -> Result<(), ApiError> {
    if user.is_in(PRIVILEGED)
        || write
            .old
            .is_some_and(|old| is_for_collection(write.object, old))
    {
        return Ok(());
    }
    let forbidden = |detail: String| {
        let name = write.object["metadata"]["name"]
            .as_str()
            .unwrap_or_default();
        ApiError::forbidden(GROUP, write.resource, name, &detail)
    };
    let held = || rules_for(bindings, user, write.namespace);
    let with_errors = |message: String, errors: &[String]| {
        forbidden(if errors.is_empty() {
            message
        } else {
            format!("{message}; resolution errors: [{}]", aggregate(errors))
        })
    };
    if matches!(write.resource, "roles" | "clusterroles") {
        if may(&escalate(write)) {
            return Ok(());
        }
        let (rules, errors) = held();
        check_role(user, &rules, write.object).map_err(|text| with_errors(text, &errors))?;
        let aggregates = is_aggregated(write.object) || write.old.is_some_and(is_aggregated);
        if aggregates {
            check_aggregation(&rules).map_err(forbidden)?;
        }
        return Ok(());
    }
    let role = RoleRef::parse(&write.object["roleRef"]);
    if bind(&role, write.namespace).is_some_and(|attributes| may(&attributes)) {
        return Ok(());
    }
    let granted = role_rules(bindings, &role, write.namespace).map_err(|text| match &role {
        RoleRef::ClusterRole(name) => ApiError::not_found(GROUP, "clusterroles", name),
        RoleRef::Role(name) => ApiError::not_found(GROUP, "roles", name),
        RoleRef::Unknown { .. } => forbidden(text),
    })?;
    let (rules, errors) = held();
    check_rules(user, &rules, &granted).map_err(|text| with_errors(text, &errors))
}

/// Whether `user`, who holds these rules, has every right that a role gives.
///
/// # Errors
///
/// The rights that they lack, in Kubernetes' words.
pub fn check_role(user: &UserInfo, held: &[PolicyRule], wanted: &Value) -> Result<(), String> {
    check_rules(user, held, &PolicyRule::parse_all(&wanted["rules"]))
}

/// Whether `user`, who holds these rules, has every right of these others: those of the role that a binding grants.
///
/// # Errors
///
/// The rights that they lack, in Kubernetes' words.
pub fn check_rules(
    user: &UserInfo,
    held: &[PolicyRule],
    wanted: &[PolicyRule],
) -> Result<(), String> {
    let missing = uncovered(held, wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let mut list = describe(&missing).join("\n");
    if list.len() > MAX_TEXT {
        list.truncate(list.floor_char_boundary(MAX_TEXT));
        list.push('…');
    }
    Err(format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{list}",
        user.name,
        quoted(&user.groups)
    ))
}

/// Whether somebody who holds these rules may say which roles another one gathers: it could gather any.
///
/// # Errors
///
/// They may not do everything.
pub fn check_aggregation(held: &[PolicyRule]) -> Result<(), String> {
    let all = || vec!["*".to_owned()];
    let everything = [
        PolicyRule {
            verbs: all(),
            api_groups: all(),
            resources: all(),
            ..PolicyRule::default()
        },
        PolicyRule {
            verbs: all(),
            non_resource_urls: all(),
            ..PolicyRule::default()
        },
    ];
    if uncovered(held, &everything).is_empty() {
        Ok(())
    } else {
        Err("must have cluster-admin privileges to use the aggregationRule".to_owned())
    }
}

/// The request that asks whether somebody may write rights into a role that they lack themselves.
fn escalate<'a>(write: &Write<'a>) -> Attributes<'a> {
    Attributes {
        verb: "escalate",
        group: GROUP,
        resource: write.resource,
        namespace: write.namespace,
        name: write.name,
        ..Attributes::default()
    }
}

/// The request that asks, in the binding's namespace, whether somebody may bind a role whose rights they lack.
fn bind<'a>(role: &'a RoleRef, namespace: &'a str) -> Option<Attributes<'a>> {
    let (resource, name) = match role {
        RoleRef::ClusterRole(name) => ("clusterroles", name),
        RoleRef::Role(name) => ("roles", name),
        RoleRef::Unknown { .. } => return None,
    };
    Some(Attributes {
        verb: "bind",
        group: GROUP,
        resource,
        namespace,
        name,
        ..Attributes::default()
    })
}

fn is_aggregated(role: &Value) -> bool {
    role["aggregationRule"]["clusterRoleSelectors"]
        .as_array()
        .is_some_and(|list| !list.is_empty())
}

/// Whether an update changes nothing but what garbage collection needs: owners and finalizers.
fn is_for_collection(object: &Value, old: &Value) -> bool {
    let rest = |object: &Value| {
        let mut rest = object.clone();
        if let Some(metadata) = rest["metadata"].as_object_mut() {
            for field in [
                "ownerReferences",
                "finalizers",
                "managedFields",
                "resourceVersion",
            ] {
                metadata.remove(field);
            }
        }
        rest
    };
    object.is_object() && old.is_object() && rest(object) == rest(old)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixture::{Maps, binding, role};
    use super::*;

    fn user(name: &str) -> UserInfo {
        UserInfo::new(name, ["g".to_owned()])
    }

    fn maps() -> Maps {
        Maps::new(&[
            role("cluster-admin", &["* * *", "* urls *"]),
            role("pods", &["get,list core pods"]),
            role("n/own", &["get core pods"]),
            role("n/more", &["get,delete core pods", "get apps deployments"]),
            binding("root", "ClusterRole cluster-admin", "User root"),
            binding("u", "ClusterRole pods", "User u"),
            binding("n/v", "Role own", "User v"),
            binding("n/w", "Role gone", "User w"),
        ])
    }

    fn never(_: &Attributes<'_>) -> bool {
        false
    }

    fn write<'a>(resource: &'a str, object: &'a Value) -> Write<'a> {
        Write {
            resource,
            namespace: if resource.starts_with("cluster") {
                ""
            } else {
                "n"
            },
            name: "",
            object,
            old: None,
        }
    }

    #[test]
    fn a_role_needs_every_right_that_it_gives() {
        let maps = maps();
        let wanted = role("n/x", &["get,list,watch core pods", "get apps deployments"]);
        for (who, missing) in [
            ("root", None),
            (
                "u",
                Some(
                    "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"watch\"]}\n{APIGroups:[\"apps\"], Resources:[\"deployments\"], Verbs:[\"get\"]}",
                ),
            ),
            (
                "v",
                Some(
                    "{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"list\" \"watch\"]}\n{APIGroups:[\"apps\"], Resources:[\"deployments\"], Verbs:[\"get\"]}",
                ),
            ),
        ] {
            let result = check(&maps, &never, &user(who), &write("roles", &wanted));
            let message = missing.map(|missing| format!(
                "roles.rbac.authorization.k8s.io \"x\" is forbidden: user {who:?} (groups=[\"g\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{missing}"
            ));
            assert_eq!(result.err().map(|error| error.message), message, "{who}");
        }
        let masters = UserInfo::new("m", [PRIVILEGED.to_owned()]);
        assert_eq!(
            check(&maps, &never, &masters, &write("roles", &wanted)),
            Ok(())
        );
        let held_only = role("n/x", &["get core pods"]);
        assert_eq!(
            check(&maps, &never, &user("v"), &write("roles", &held_only)),
            Ok(())
        );
        let of_cluster = role("x", &["get core pods"]);
        assert!(
            check(
                &maps,
                &never,
                &user("v"),
                &write("clusterroles", &of_cluster)
            )
            .is_err()
        );
    }

    #[test]
    fn roles_that_do_not_exist_are_named_in_the_refusal() {
        let wanted = role("n/x", &["get core pods"]);
        let error = check(&maps(), &never, &user("w"), &write("roles", &wanted)).unwrap_err();
        assert!(
            error.message.ends_with(
                "; resolution errors: [role.rbac.authorization.k8s.io \"gone\" not found]"
            ),
            "{}",
            error.message
        );
    }

    #[test]
    fn the_verb_escalate_lifts_the_rule() {
        let wanted = role("n/x", &["* * *"]);
        let asked = |attributes: &Attributes<'_>| {
            assert_eq!(
                (
                    attributes.verb,
                    attributes.group,
                    attributes.resource,
                    attributes.namespace,
                    attributes.name
                ),
                ("escalate", GROUP, "roles", "n", "x")
            );
            true
        };
        let update = Write {
            name: "x",
            ..write("roles", &wanted)
        };
        assert_eq!(check(&maps(), &asked, &user("v"), &update), Ok(()));
    }

    #[test]
    fn a_binding_needs_every_right_of_its_role() {
        let maps = maps();
        for (who, reference, allowed) in [
            ("u", "ClusterRole pods", true),
            ("u", "Role own", true),
            ("u", "Role more", false),
            ("u", "ClusterRole cluster-admin", false),
            ("v", "Role own", true),
            ("v", "ClusterRole pods", false),
            ("root", "ClusterRole cluster-admin", true),
        ] {
            let wanted = binding("n/x", reference, "User anybody");
            let result = check(&maps, &never, &user(who), &write("rolebindings", &wanted));
            assert_eq!(result.is_ok(), allowed, "{who} {reference} {result:?}");
            assert!(result.err().is_none_or(|error| error.code == 403));
        }
    }

    #[test]
    fn a_binding_needs_its_role_unless_it_may_be_bound_unseen() {
        let maps = maps();
        for (reference, code, message) in [
            (
                "Role x",
                404,
                "roles.rbac.authorization.k8s.io \"x\" not found",
            ),
            (
                "ClusterRole x",
                404,
                "clusterroles.rbac.authorization.k8s.io \"x\" not found",
            ),
            (
                "Pod x",
                403,
                "rolebindings.rbac.authorization.k8s.io \"b\" is forbidden: unsupported role reference kind: \"Pod\"",
            ),
        ] {
            let wanted = binding("n/b", reference, "User anybody");
            let error = check(
                &maps,
                &never,
                &user("root"),
                &write("rolebindings", &wanted),
            )
            .unwrap_err();
            assert_eq!((error.code, &*error.message), (code, message));
        }
        let wanted = binding("n/b", "ClusterRole x", "User anybody");
        let asked = |attributes: &Attributes<'_>| {
            assert_eq!(
                (
                    attributes.verb,
                    attributes.resource,
                    attributes.namespace,
                    attributes.name
                ),
                ("bind", "clusterroles", "n", "x")
            );
            true
        };
        assert_eq!(
            check(&maps, &asked, &user("v"), &write("rolebindings", &wanted)),
            Ok(())
        );
    }

    #[test]
    fn only_who_may_everything_aggregates() {
        let maps = maps();
        let mut wanted = role("x", &["get core pods"]);
        let plain = wanted.clone();
        wanted["aggregationRule"] = json!({ "clusterRoleSelectors": [{}] });
        let error = check(&maps, &never, &user("u"), &write("clusterroles", &wanted)).unwrap_err();
        assert_eq!(
            error.message,
            "clusterroles.rbac.authorization.k8s.io \"x\" is forbidden: must have cluster-admin privileges to use the aggregationRule"
        );
        let removal = Write {
            old: Some(&wanted),
            ..write("clusterroles", &plain)
        };
        assert!(check(&maps, &never, &user("u"), &removal).is_err());
        assert_eq!(
            check(
                &maps,
                &never,
                &user("root"),
                &write("clusterroles", &wanted)
            ),
            Ok(())
        );
        wanted["aggregationRule"] = json!({ "clusterRoleSelectors": [] });
        assert_eq!(
            check(&maps, &never, &user("u"), &write("clusterroles", &wanted)),
            Ok(())
        );
    }

    #[test]
    fn garbage_collection_changes_objects_that_its_user_could_not_write() {
        let old = role("x", &["* * *"]);
        let mut object = old.clone();
        object["metadata"]["finalizers"] = json!(["foregroundDeletion"]);
        object["metadata"]["resourceVersion"] = json!("5");
        let update = Write {
            old: Some(&old),
            ..write("clusterroles", &object)
        };
        assert_eq!(check(&maps(), &never, &user("v"), &update), Ok(()));
        let mut more = object.clone();
        more["metadata"]["labels"] = json!({ "a": "b" });
        let update = Write {
            old: Some(&old),
            ..write("clusterroles", &more)
        };
        assert!(check(&maps(), &never, &user("v"), &update).is_err());
        for odd in [json!(null), json!([]), json!({ "metadata": 5 })] {
            let update = Write {
                old: Some(&old),
                ..write("clusterroles", &odd)
            };
            assert_eq!(
                check(&maps(), &never, &user("v"), &update),
                Ok(()),
                "it gives nothing"
            );
        }
    }

    #[test]
    fn a_refusal_stays_short() {
        let words: Vec<String> = (0..50_000).map(|number| format!("ö{number}")).collect();
        let wanted =
            json!({ "rules": [{ "verbs": ["get"], "apiGroups": [""], "resources": words }] });
        let text = check_role(&user("v"), &[], &wanted).unwrap_err();
        assert!(
            text.len() < MAX_TEXT + 200 && text.ends_with('…'),
            "{}",
            text.len()
        );
    }
}
