//! Who asks, and whether they may.
//!
//! `token` signs and checks service account tokens, `secrets` keeps those that live in secrets, `bootstrap` knows the tokens
//! with which nodes join, `impersonate` lets somebody act as somebody else, `authorize` decides, with `node` for kubelets and
//! `rbac` for all others.

pub mod authorize;
pub mod bootstrap;
pub mod impersonate;
pub mod node;
pub mod rbac;
pub mod secrets;
pub mod token;

mod cache;
mod jwt;

use std::collections::BTreeMap;
use std::sync::Arc;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::registry::Registry;
use crate::status::ApiError;

/// Every user with an identity.
pub const AUTHENTICATED: &str = "system:authenticated";
/// Every user without one.
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
/// The user without an identity.
pub const ANONYMOUS: &str = "system:anonymous";

/// A user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// The name.
    pub name: String,
    /// The uid, for users that have one.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// What else is known.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user with an identity.
    pub fn new(name: impl Into<String>, groups: impl IntoIterator<Item = String>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().collect();
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        Self {
            name: name.into(),
            groups,
            ..Self::default()
        }
    }

    /// A part of the control plane, such as `system:kube-scheduler`.
    pub fn component(name: &str) -> Self {
        let groups = if name == "system:apiserver" {
            vec![authorize::MASTERS.to_owned()]
        } else {
            Vec::new()
        };
        Self::new(name, groups)
    }

    /// A service account.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        Self::new(
            format!("system:serviceaccount:{namespace}:{name}"),
            [
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
            ],
        )
    }

    /// The user without an identity.
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// The user that a client certificate names: CN and O of its subject.
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let subject = certificate.subject();
        let name = subject
            .iter_common_name()
            .find_map(|name| name.as_str().ok())?;
        let groups = subject
            .iter_organization()
            .filter_map(|group| group.as_str().ok());
        (!name.is_empty()).then(|| Self::new(name, groups.map(str::to_owned)))
    }

    /// Whether the user is in a group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|own| own == group)
    }

    /// `authentication.k8s.io/v1` UserInfo.
    pub fn to_json(&self) -> Value {
        let mut user = json!({ "username": self.name, "groups": self.groups });
        if !self.uid.is_empty() {
            user["uid"] = (&*self.uid).into();
        }
        if !self.extra.is_empty() {
            user["extra"] = json!(self.extra);
        }
        user
    }
}

/// The user of a request: by its bearer token if it has one, else by the connection's certificate, else anonymous.
///
/// # Errors
///
/// 401 for a token that is not valid.
pub fn authenticate(
    registry: &Registry,
    tokens: &token::Tokens,
    certificate: Option<&Arc<UserInfo>>,
    headers: &HeaderMap,
) -> Result<Arc<UserInfo>, ApiError> {
    if let Some(user) = certificate {
        return Ok(user.clone());
    }
    let Some(value) = headers.get(AUTHORIZATION) else {
        return Ok(Arc::new(UserInfo::anonymous()));
    };
    let bearer = value.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let Some(bearer) = bearer.filter(|token| !token.is_empty()) else {
        return Err(ApiError::unauthorized());
    };
    let user = if is_jwt(bearer) {
        tokens.user(registry, bearer)
    } else {
        bootstrap::user(registry, bearer).map(Arc::new)
    };
    user.ok_or_else(ApiError::unauthorized)
}

fn is_jwt(bearer: &str) -> bool {
    bearer.bytes().filter(|byte| *byte == b'.').count() == 2
}

/// The user of a bearer token and the audiences for which it is good; `audiences` are those that are asked for, none for the API's.
pub fn by_token(
    registry: &Registry,
    tokens: &token::Tokens,
    bearer: &str,
    audiences: &[String],
) -> Option<(Arc<UserInfo>, Vec<String>)> {
    if is_jwt(bearer) {
        return tokens.verify(registry, bearer, audiences);
    }
    let user = bootstrap::user(registry, bearer)?;
    Some((Arc::new(user), tokens.audiences_or_default(audiences)))
}
