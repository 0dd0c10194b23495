//! Who may do what: the authorizers in their order, as kubeadm has them (`--authorization-mode=Node,RBAC`).
//!
//! Administrators (`system:masters`) may do everything. Health and the CA's certificate are open to everybody.

use std::sync::Arc;

use super::node::Lookup;
use super::rbac::index::Index;
use super::rbac::{self, PolicyRule};
use super::{UserInfo, node};
use crate::status::ApiError;

/// The group of those who may do everything.
pub const MASTERS: &str = "system:masters";

/// The verb of acting as somebody else, which is a right of its own.
pub const IMPERSONATE: &str = "impersonate";

/// What a request wants to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attributes<'a> {
    /// `get`, `list`, `create`, …; for paths that are no resource the lower-case method.
    pub verb: &'a str,
    /// The API group.
    pub group: &'a str,
    /// The plural name; empty for paths that are no resource.
    pub resource: &'a str,
    /// The subresource.
    pub subresource: &'a str,
    /// The namespace.
    pub namespace: &'a str,
    /// The object's name.
    pub name: &'a str,
    /// The path, for what is no resource.
    pub path: &'a str,
    /// The fields that must have one value to be listed or watched, as the field selector says.
    pub fields: &'a [(&'a str, &'a str)],
}

/// Decides.
pub trait Authorizer: Send + Sync + 'static {
    /// Whether `user` may do this; the reason is for people, and may be empty.
    fn authorize(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Decision;

    /// What `user` may do in a namespace.
    fn rules(&self, _user: &UserInfo, _namespace: &str) -> Rules {
        Rules::default()
    }
}

/// A decision and its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why.
    pub reason: String,
}

impl Decision {
    fn allow(reason: &str) -> Self {
        Self {
            allowed: true,
            reason: reason.to_owned(),
        }
    }
}

/// The rules by which somebody may do what they may.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// The rules.
    pub rules: Vec<PolicyRule>,
    /// Why there may be more.
    pub errors: Vec<String>,
}

/// The authorizers of the server, of which one has to allow a request: that of nodes, and roles and their bindings.
pub struct Authorizers {
    nodes: Box<dyn Lookup>,
    rbac: Arc<Index>,
}

impl Authorizers {
    /// Asks both.
    pub fn new(nodes: Box<dyn Lookup>, rbac: Arc<Index>) -> Self {
        Self { nodes, rbac }
    }
}

impl Authorizer for Authorizers {
    fn authorize(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Decision {
        if user.is_in(MASTERS) {
            return Decision::allow("");
        }
        if attributes.resource.is_empty() && is_public(attributes.path) && attributes.verb == "get"
        {
            return Decision::allow("the path is public");
        }
        let of_node = node::authorize(&*self.nodes, user, attributes);
        if of_node.allowed {
            return of_node;
        }
        self.rbac.catch_up();
        let of_role = rbac::authorizer::authorize(&*self.rbac, user, attributes);
        if of_role.allowed || of_node.reason.is_empty() {
            return of_role;
        }
        let reasons = [of_node.reason, of_role.reason];
        let reasons: Vec<_> = reasons.into_iter().filter(|r| !r.is_empty()).collect();
        Decision {
            allowed: false,
            reason: reasons.join(", "),
        }
    }

    fn rules(&self, user: &UserInfo, namespace: &str) -> Rules {
        self.rbac.catch_up();
        let (rules, mut errors) = rbac::authorizer::rules_for(&*self.rbac, user, namespace);
        if node::node_of(user).is_some() {
            errors.push("node authorizer does not support user rule resolution".to_owned());
        }
        Rules { rules, errors }
    }
}

/// What anybody may read.
pub fn is_public(path: &str) -> bool {
    ["/healthz", "/livez", "/readyz"].iter().any(|open| {
        path == *open
            || path
                .strip_prefix(open)
                .is_some_and(|rest| rest.starts_with('/'))
    }) || path == "/cacerts"
}

/// 403 in the words of kube-apiserver (apiserver, `endpoints/handlers/responsewriters/errors.go`).
pub fn forbidden(user: &UserInfo, attributes: &Attributes<'_>, reason: &str) -> ApiError {
    let who = &user.name;
    let suffix = if reason.is_empty() {
        String::new()
    } else {
        format!(": {reason}")
    };
    if attributes.resource.is_empty() {
        let message = format!(
            "forbidden: User {who:?} cannot {} path {:?}{suffix}",
            attributes.verb, attributes.path
        );
        return ApiError {
            details: serde_json::json!({}),
            ..ApiError::new(403, "Forbidden", message)
        };
    }
    let resource = if attributes.subresource.is_empty() {
        attributes.resource.to_owned()
    } else {
        format!("{}/{}", attributes.resource, attributes.subresource)
    };
    let place = if attributes.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", attributes.namespace)
    };
    ApiError::forbidden(
        attributes.group,
        attributes.resource,
        attributes.name,
        &format!(
            "User {who:?} cannot {} resource {resource:?} in API group {:?} {place}{suffix}",
            attributes.verb, attributes.group
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_who_may_not_do_what_where() {
        let joe = UserInfo::new("joe", []);
        let pods = Attributes {
            verb: "list",
            resource: "pods",
            namespace: "default",
            ..Attributes::default()
        };
        assert_eq!(
            forbidden(&joe, &pods, "").message,
            "pods is forbidden: User \"joe\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
        );
        let path = Attributes {
            verb: "get",
            path: "/metrics",
            ..Attributes::default()
        };
        assert_eq!(
            forbidden(&joe, &path, "no").message,
            "forbidden: User \"joe\" cannot get path \"/metrics\": no"
        );
    }

    #[test]
    fn health_and_the_certificate_are_open_to_everybody() {
        let open = ["/healthz", "/livez", "/readyz/etcd", "/cacerts"];
        assert!(open.iter().all(|path| is_public(path)));
        let closed = [
            "/",
            "/api",
            "/version",
            "/healthzz",
            "/metrics",
            "/cacerts/x",
        ];
        assert!(!closed.iter().any(|path| is_public(path)));
    }
}
