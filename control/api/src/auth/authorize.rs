//! Who may do what.
//!
//! Until RBAC is here, the rule is plain: whoever has an identity may do everything, except that the users of bootstrap
//! tokens may only ask for certificates, and that administrators alone may act as somebody else. Users without an identity see health, version and the CA's certificate.

use super::UserInfo;
use super::bootstrap::BOOTSTRAPPERS;
use crate::status::ApiError;

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
}

/// Decides.
pub trait Authorizer: Send + Sync + 'static {
    /// Whether `user` may do this; the reason is for people, and may be empty.
    fn authorize(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Decision;
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

    fn deny() -> Self {
        Self {
            allowed: false,
            reason: String::new(),
        }
    }
}

/// Identity is enough; see the module's documentation.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdentityIsEnough;

impl Authorizer for IdentityIsEnough {
    fn authorize(&self, user: &UserInfo, attributes: &Attributes<'_>) -> Decision {
        if attributes.resource.is_empty() && is_public(attributes.path) && attributes.verb == "get"
        {
            return Decision::allow("the path is public");
        }
        if user.is_in("system:masters") {
            return Decision::allow("");
        }
        if user.is_in(BOOTSTRAPPERS) {
            let requests = attributes.group == "certificates.k8s.io"
                && attributes.resource == "certificatesigningrequests"
                && attributes.subresource.is_empty()
                && matches!(attributes.verb, "create" | "get" | "list" | "watch");
            let discovery = attributes.resource.is_empty() && attributes.verb == "get";
            return if requests || discovery {
                Decision::allow("bootstrap")
            } else {
                Decision::deny()
            };
        }
        if attributes.verb == IMPERSONATE {
            return Decision::deny();
        }
        if user.is_in(super::AUTHENTICATED) {
            return Decision::allow("every user with an identity may, until RBAC decides");
        }
        Decision::deny()
    }
}

/// What anybody may read.
pub fn is_public(path: &str) -> bool {
    ["/healthz", "/livez", "/readyz"].iter().any(|open| {
        path == *open
            || path
                .strip_prefix(open)
                .is_some_and(|rest| rest.starts_with('/'))
    }) || matches!(path, "/version" | "/version/" | "/cacerts")
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
    fn only_identity_opens_more_than_health() {
        let health = Attributes {
            verb: "get",
            path: "/livez/ping",
            ..Attributes::default()
        };
        let pods = Attributes {
            verb: "list",
            resource: "pods",
            namespace: "default",
            ..Attributes::default()
        };
        let csr = Attributes {
            verb: "create",
            group: "certificates.k8s.io",
            resource: "certificatesigningrequests",
            ..Attributes::default()
        };
        let anonymous = UserInfo::anonymous();
        let joining = UserInfo::new("system:bootstrap:abcdef", [BOOTSTRAPPERS.to_owned()]);
        let node = UserInfo::new("system:node:a", ["system:nodes".to_owned()]);
        let becoming = Attributes {
            verb: IMPERSONATE,
            resource: "groups",
            name: "system:masters",
            ..Attributes::default()
        };
        let admin = UserInfo::new("admin", ["system:masters".to_owned()]);
        let allowed = |user: &UserInfo, what| IdentityIsEnough.authorize(user, what).allowed;
        assert!(allowed(&admin, &becoming));
        assert!(!allowed(&node, &becoming) && !allowed(&joining, &becoming));
        assert!(
            allowed(&anonymous, &health)
                && !allowed(&anonymous, &pods)
                && !allowed(&anonymous, &csr)
        );
        assert!(allowed(&joining, &csr) && !allowed(&joining, &pods));
        assert!(allowed(&node, &pods));
        assert_eq!(
            forbidden(&joining, &pods, "").message,
            "pods is forbidden: User \"system:bootstrap:abcdef\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
        );
    }
}
