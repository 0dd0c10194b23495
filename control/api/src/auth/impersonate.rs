//! Acting as somebody else, by headers (apiserver, `endpoints/filters/impersonation`).
//!
//! `Impersonate-User`, `-Group`, `-Uid` and `-Extra-<key>` name who to be; each is a right of its own, the verb `impersonate` on
//! users, service accounts, groups, uids and extra values.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;

use super::authorize::{Attributes, Authorizer, IMPERSONATE, forbidden};
use super::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, UserInfo};
use crate::http::query::decode;
use crate::status::ApiError;

/// How our headers begin.
const OURS: &str = "impersonate-";
const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
const AUTHENTICATION: &str = "authentication.k8s.io";
/// How the name of a service account's user begins: its namespace and name follow.
const ACCOUNT: &str = "system:serviceaccount:";

/// Who the request is to be carried out as; the headers are taken off, so that nobody behind us heeds them.
///
/// # Errors
///
/// 403 if `user` may not act as all that is named, 500 as kube-apiserver if no user is.
pub fn impersonate(
    authorizer: &dyn Authorizer,
    user: Arc<UserInfo>,
    headers: &mut HeaderMap,
) -> Result<Arc<UserInfo>, ApiError> {
    if !headers.keys().any(|name| name.as_str().starts_with(OURS)) {
        return Ok(user);
    }
    let wanted = Wanted::take(headers);
    if wanted == Wanted::default() {
        return Ok(user);
    }
    if wanted.user.is_empty() {
        let message = "requested impersonation without impersonating a user";
        return Err(ApiError::new(
            500,
            "InternalError",
            format!("Internal error occurred: {message}"),
        ));
    }
    let may = |attributes: Attributes<'_>| {
        let attributes = Attributes {
            verb: IMPERSONATE,
            ..attributes
        };
        let decision = authorizer.authorize(&user, &attributes);
        match decision.allowed {
            true => Ok(()),
            false => Err(forbidden(&user, &attributes, &decision.reason)),
        }
    };
    let account = wanted.user.strip_prefix(ACCOUNT);
    let account = account.and_then(|account| account.split_once(':'));
    may(match account {
        Some((namespace, name)) => Attributes {
            resource: "serviceaccounts",
            namespace,
            name,
            ..Attributes::default()
        },
        None => Attributes {
            resource: "users",
            name: &wanted.user,
            ..Attributes::default()
        },
    })?;
    for name in &wanted.groups {
        may(Attributes {
            resource: "groups",
            name,
            ..Attributes::default()
        })?;
    }
    let extra = wanted.extra.iter();
    for (key, name) in extra.flat_map(|(key, values)| values.iter().map(move |value| (key, value)))
    {
        may(Attributes {
            group: AUTHENTICATION,
            resource: "userextras",
            subresource: key,
            name,
            ..Attributes::default()
        })?;
    }
    if !wanted.uid.is_empty() {
        may(Attributes {
            group: AUTHENTICATION,
            resource: "uids",
            name: &wanted.uid,
            ..Attributes::default()
        })?;
    }
    let namespace = account.map(|(namespace, _)| namespace.to_owned());
    let became = wanted.became(namespace.as_deref());
    tracing::debug!(user = user.name, acts_as = became.name, "impersonation");
    Ok(Arc::new(became))
}

/// What the headers name.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    user: String,
    groups: Vec<String>,
    uid: String,
    extra: BTreeMap<String, Vec<String>>,
}

impl Wanted {
    fn take(headers: &mut HeaderMap) -> Self {
        let all = |name: &str| -> Vec<String> {
            let values = headers.get_all(name).iter();
            let values = values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            values.collect()
        };
        let first = |name: &str| all(name).into_iter().next().unwrap_or_default();
        let keys = headers.keys().map(http::HeaderName::as_str);
        let extra = keys.filter_map(|name| {
            let key = decode(name.strip_prefix(EXTRA)?, false);
            Some((key.to_lowercase(), all(name)))
        });
        let wanted = Self {
            user: first(USER),
            groups: all(GROUP),
            uid: first(UID),
            extra: extra.collect(),
        };
        let ours = headers.keys().filter(|name| {
            let name = name.as_str();
            matches!(name, USER | GROUP | UID) || name.starts_with(EXTRA)
        });
        for name in ours.cloned().collect::<Vec<_>>() {
            headers.remove(name);
        }
        wanted
    }

    /// The user; of a service account's the namespace is known.
    fn became(self, namespace: Option<&str>) -> UserInfo {
        let mut groups = self.groups;
        if let Some(namespace) = namespace
            && groups.is_empty()
        {
            groups.push("system:serviceaccounts".to_owned());
            groups.push(format!("system:serviceaccounts:{namespace}"));
        }
        let own = if self.user == ANONYMOUS {
            UNAUTHENTICATED
        } else {
            AUTHENTICATED
        };
        let is_either = |group: &String| matches!(&**group, AUTHENTICATED | UNAUTHENTICATED);
        if !groups.iter().any(is_either) {
            groups.push(own.to_owned());
        }
        UserInfo {
            name: self.user,
            uid: self.uid,
            groups,
            extra: self.extra,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::authorize::Decision;

    /// Grants what it lists, as `resource/subresource/namespace/name`, to `boss`.
    struct Only(&'static [&'static str]);

    impl Authorizer for Only {
        fn authorize(&self, user: &UserInfo, a: &Attributes<'_>) -> Decision {
            let asked = format!(
                "{}/{}/{}/{}",
                a.resource, a.subresource, a.namespace, a.name
            );
            let allowed = user.name == "boss" && a.verb == IMPERSONATE && self.0.contains(&&*asked);
            Decision {
                allowed,
                reason: String::new(),
            }
        }
    }

    fn acting(
        rights: &'static [&'static str],
        headers: &[(&'static str, &str)],
    ) -> Result<Arc<UserInfo>, ApiError> {
        let mut map = HeaderMap::new();
        map.insert("accept", http::HeaderValue::from_static("x/y"));
        for (name, value) in headers {
            map.append(*name, value.parse().expect("a value"));
        }
        let boss = Arc::new(UserInfo::new("boss", []));
        let became = impersonate(&Only(rights), boss, &mut map);
        assert_eq!(map.len(), 1, "the headers are gone: {map:?}");
        became
    }

    #[test]
    fn each_part_is_a_right_of_its_own() {
        assert_eq!(acting(&[], &[]).expect("itself").name, "boss");
        let all: &[(&str, &str)] = &[
            ("impersonate-user", "jane"),
            ("impersonate-group", "devs"),
            ("impersonate-group", "ops"),
            ("impersonate-uid", "u-1"),
            ("impersonate-extra-example.com%2fscope", "read"),
        ];
        let jane = acting(
            &[
                "users///jane",
                "groups///devs",
                "groups///ops",
                "uids///u-1",
                "userextras/example.com/scope//read",
            ],
            all,
        )
        .expect("all are granted");
        assert_eq!((&*jane.name, &*jane.uid), ("jane", "u-1"));
        assert_eq!(jane.groups, ["devs", "ops", AUTHENTICATED]);
        assert_eq!(jane.extra["example.com/scope"], ["read"]);
        for rights in [
            &["groups///devs", "groups///ops"][..],
            &["users///jane", "groups///devs"],
            &["users///jane", "groups///devs", "groups///ops"],
        ] {
            assert_eq!(acting(rights, all).expect_err("refused").code, 403);
        }
        let error = acting(&["users///jane"], &[("impersonate-group", "devs")]);
        assert_eq!(error.expect_err("no user").code, 500);
    }

    #[test]
    fn a_service_account_comes_with_its_groups_and_the_anonymous_user_with_none() {
        let account: &[(&str, &str)] = &[("impersonate-user", "system:serviceaccount:a:b")];
        let became = acting(&["serviceaccounts//a/b"], account).expect("granted");
        assert_eq!(
            became.groups,
            [
                "system:serviceaccounts",
                "system:serviceaccounts:a",
                AUTHENTICATED
            ]
        );
        assert!(acting(&["users///system:serviceaccount:a:b"], account).is_err());
        let anonymous = &[("impersonate-user", ANONYMOUS)];
        let became = acting(&["users///system:anonymous"], anonymous).expect("granted");
        assert_eq!(became.groups, [UNAUTHENTICATED]);
    }
}
