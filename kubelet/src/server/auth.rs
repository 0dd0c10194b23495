//! Who calls, and whether they may: client certificates, tokens, access reviews.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::time::Instant;

use super::Server;
use crate::config::KubeletConfig;
use crate::ctx::Ctx;
use crate::runtime::chain;

/// How long a token's or an access review's answer is believed (the kubelet's defaults).
const TOKEN_TTL: Duration = Duration::from_secs(120);
const ALLOWED_TTL: Duration = Duration::from_secs(300);
const DENIED_TTL: Duration = Duration::from_secs(30);
/// The most answers that are remembered.
const REMEMBERED: usize = 1024;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("read the {what} (PEM)")]
    Pem {
        what: &'static str,
        source: rustls_pki_types::pem::Error,
    },
    #[error("use the client certificate authority")]
    Authority { source: rustls::Error },
    #[error("check client certificates")]
    Verifier {
        source: rustls::server::VerifierBuilderError,
    },
    #[error("use TLS 1.2 and 1.3")]
    Versions { source: rustls::Error },
}

/// The server's side of TLS; clients may, but need not, have a certificate.
pub(super) fn tls(config: &KubeletConfig) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let pem = |what| move |source| TlsError::Pem { what, source };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(config.client_ca.as_bytes()) {
        let certificate = certificate.map_err(pem("client certificate authority"))?;
        roots
            .add(certificate)
            .map_err(|source| TlsError::Authority { source })?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|source| TlsError::Verifier { source })?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| TlsError::Versions { source })?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(config.serving.clone()));
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(tls))
}

/// A user as certificates and tokens name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct User {
    name: String,
    groups: Vec<String>,
    uid: Option<String>,
}

/// The user of the connection's client certificate, which TLS has verified.
pub(super) fn peer(connection: &rustls::ServerConnection) -> Option<User> {
    let certificate = connection.peer_certificates()?.first()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject
        .iter_organization()
        .filter_map(|o| o.as_str().ok())
        .map(str::to_owned)
        .collect();
    Some(User {
        name,
        groups,
        uid: None,
    })
}

/// Answers of the API server, and until when they are believed.
type Remembered<K, V> = Mutex<HashMap<K, (Instant, V)>>;

/// Asks the API server who somebody is and what they may do.
pub(super) struct Authority {
    client: Client,
    node: String,
    api_server_user: String,
    tokens: Remembered<String, Option<User>>,
    answers: Remembered<(User, &'static str, &'static str), bool>,
}

impl Authority {
    pub(super) fn new(ctx: &Ctx) -> Self {
        Self {
            client: ctx.client.clone(),
            node: ctx.config.node_name.clone(),
            api_server_user: ctx.config.api_server_user.clone(),
            tokens: Mutex::default(),
            answers: Mutex::default(),
        }
    }

    async fn user_of(&self, token: &str) -> Result<Option<User>, kube::Error> {
        if let Some(user) = recall(&self.tokens, &token.to_owned()) {
            return Ok(user);
        }
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                ..TokenReviewSpec::default()
            },
            ..TokenReview::default()
        };
        let status = api
            .create(&PostParams::default(), &review)
            .await?
            .status
            .unwrap_or_default();
        let user = status
            .user
            .filter(|_| status.authenticated == Some(true))
            .map(|user| User {
                name: user.username.unwrap_or_default(),
                groups: user.groups.unwrap_or_default(),
                uid: user.uid,
            });
        remember(&self.tokens, token.to_owned(), user.clone(), TOKEN_TTL);
        Ok(user)
    }

    async fn allows(
        &self,
        user: &User,
        verb: &'static str,
        subresource: &'static str,
    ) -> Result<bool, kube::Error> {
        // The API server has asked for itself before it calls us.
        if user.name == self.api_server_user {
            return Ok(true);
        }
        let key = (user.clone(), verb, subresource);
        if let Some(allowed) = recall(&self.answers, &key) {
            return Ok(allowed);
        }
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                groups: Some(user.groups.clone()),
                uid: user.uid.clone(),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.to_owned()),
                    version: Some("v1".to_owned()),
                    resource: Some("nodes".to_owned()),
                    subresource: Some(subresource.to_owned()),
                    name: Some(self.node.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let allowed = api
            .create(&PostParams::default(), &review)
            .await?
            .status
            .is_some_and(|s| s.allowed);
        remember(
            &self.answers,
            key,
            allowed,
            if allowed { ALLOWED_TTL } else { DENIED_TTL },
        );
        Ok(allowed)
    }
}

fn recall<K: std::hash::Hash + Eq, V: Clone>(memory: &Remembered<K, V>, key: &K) -> Option<V> {
    let memory = memory.lock();
    memory
        .get(key)
        .filter(|(until, _)| *until > Instant::now())
        .map(|(_, value)| value.clone())
}

fn remember<K: std::hash::Hash + Eq, V>(
    memory: &Remembered<K, V>,
    key: K,
    value: V,
    ttl: Duration,
) {
    let mut memory = memory.lock();
    let now = Instant::now();
    if memory.len() >= REMEMBERED {
        memory.retain(|_, (until, _)| *until > now);
    }
    if memory.len() < REMEMBERED {
        memory.insert(key, (now + ttl, value));
    }
}

/// What a request is in terms of the API: a verb on one of these subresources of this node, of which one is enough.
///
/// Source: kubernetes, pkg/kubelet/server/auth.go, with `KubeletFineGrainedAuthz`.
fn attributes(method: &Method, path: &str) -> (&'static str, &'static [&'static str]) {
    let verb = match *method {
        Method::POST => "create",
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    };
    let under = |prefix: &str| {
        path == prefix
            || path
                .strip_prefix(prefix)
                .is_some_and(|r| r.starts_with('/'))
    };
    #[rustfmt::skip] // A table: one place a line.
    let table: [(&str, &[&str]); 10] = [
        ("/stats",       &["stats"]),
        ("/metrics",     &["metrics"]),
        ("/logs",        &["log"]),
        ("/checkpoint",  &["checkpoint"]),
        ("/statusz",     &["statusz"]),
        ("/flagz",       &["flagz"]),
        ("/pods",        &["pods", "proxy"]),
        ("/runningpods", &["pods", "proxy"]),
        ("/healthz",     &["healthz", "proxy"]),
        ("/configz",     &["configz", "proxy"]),
    ];
    let found = table.iter().find(|(place, _)| under(place));
    (
        verb,
        found.map_or(&["proxy"], |(_, subresources)| subresources),
    )
}

/// Lets a request pass, or refuses it.
pub(super) async fn check(
    State(server): State<Server>,
    Extension(peer): Extension<Option<User>>,
    request: Request,
    next: Next,
) -> Response {
    let unavailable = |error: kube::Error| {
        tracing::warn!(error = chain(&error), "ask the API server about a caller");
        (StatusCode::INTERNAL_SERVER_ERROR, "Authorization error").into_response()
    };
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.strip_prefix("Bearer "))
        .map(|t| t.trim().to_owned());
    let user = match (peer, token) {
        (Some(user), _) => Some(user),
        (None, Some(token)) => match server.auth.user_of(&token).await {
            Ok(user) => user,
            Err(error) => return unavailable(error),
        },
        (None, None) => None,
    };
    let Some(user) = user else {
        return (StatusCode::UNAUTHORIZED, "Unauthorized").into_response();
    };
    let (verb, subresources) = attributes(request.method(), request.uri().path());
    for subresource in subresources {
        match server.auth.allows(&user, verb, subresource).await {
            Ok(true) => return next.run(request).await,
            Ok(false) => {}
            Err(error) => return unavailable(error),
        }
    }
    let message = format!(
        "Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)=[{}])",
        user.name,
        subresources.join(" ")
    );
    (StatusCode::FORBIDDEN, message).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_has_its_subresources() {
        for (method, path, verb, subresources) in [
            (Method::GET, "/pods", "get", &["pods", "proxy"][..]),
            (Method::GET, "/pods/", "get", &["pods", "proxy"]),
            (Method::GET, "/runningpods/", "get", &["pods", "proxy"]),
            (Method::GET, "/healthz", "get", &["healthz", "proxy"]),
            (
                Method::GET,
                "/healthz/syncloop",
                "get",
                &["healthz", "proxy"],
            ),
            (Method::GET, "/configz", "get", &["configz", "proxy"]),
            (Method::GET, "/stats/summary", "get", &["stats"]),
            (Method::HEAD, "/metrics", "get", &["metrics"]),
            (Method::GET, "/metrics/cadvisor", "get", &["metrics"]),
            (Method::GET, "/logs/kubelet.log", "get", &["log"]),
            (Method::GET, "/logsx", "get", &["proxy"]),
            (Method::GET, "/podsx", "get", &["proxy"]),
            (Method::GET, "/", "get", &["proxy"]),
            (Method::POST, "/exec/ns/pod/c", "create", &["proxy"]),
            (Method::GET, "/containerLogs/ns/pod/c", "get", &["proxy"]),
            (Method::PUT, "/x", "update", &["proxy"]),
            (Method::PATCH, "/x", "patch", &["proxy"]),
            (Method::DELETE, "/x", "delete", &["proxy"]),
        ] {
            assert_eq!(
                attributes(&method, path),
                (verb, subresources),
                "{method} {path}"
            );
        }
    }
}
