//! Service account tokens: JWTs signed with ES256, as kube-apiserver makes them (`pkg/serviceaccount`).
//!
//! The signature of a token is checked once; what it is bound to is looked up with every request, so that a token ends at
//! once with its account, pod, node or secret.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use knarr_store::Revision;
use parking_lot::Mutex;
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::UserInfo;
use super::cache::{self, Cache};
use super::jwt::SigningKey;
use crate::pki::{Clock, Pki};
use crate::registry::Registry;
use crate::registry::entry::Entry;
use crate::status::ApiError;

/// How many tokens are remembered whose signature was right: every pod of a large cluster has one or two.
const REMEMBERED: usize = 16_384;
/// How many are remembered that are none …
const REMEMBERED_BAD: usize = 1024;
/// … and for how long.
const BAD_FOR: Duration = Duration::from_secs(10);
/// How far clocks may be apart, in seconds.
const LEEWAY: i64 = 10;
/// How long an object that is being deleted still stands for its tokens, in seconds (kube-apiserver, `validator.Validate`).
const DELETED_FOR: i64 = 60;

/// Why the key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The private key cannot be parsed.
    #[error("the service accounts' key")]
    Parse {
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// The public key cannot be parsed.
    #[error("the service accounts' public key")]
    Public {
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// It is not a P-256 key.
    #[error("the service accounts' key is no P-256 key: {reason}")]
    Kind {
        /// What is wrong with it.
        reason: ring::error::KeyRejected,
    },
}

/// Signs and checks tokens.
pub struct Tokens {
    key: SigningKey,
    key_id: String,
    issuer: String,
    clock: Clock,
    verified: Cache<Verified>,
    bad: Cache<Instant>,
}

/// A token whose signature and issuer are right.
struct Verified {
    user: Arc<UserInfo>,
    audiences: Vec<String>,
    not_before: i64,
    expires: i64,
    bound: Vec<Bound>,
}

/// An object that a token is bound to.
struct Bound {
    /// Its collection.
    prefix: &'static str,
    /// Its key there.
    key: String,
    uid: String,
    /// The revision of the object that was looked at last, and when the token ends because that is being deleted.
    seen: Mutex<(Revision, i64)>,
}

impl Bound {
    fn new(prefix: &'static str, namespace: &str, reference: &Reference) -> Self {
        let key = crate::registry::write::key(namespace, &reference.name);
        Self {
            prefix,
            key,
            uid: reference.uid.clone(),
            seen: Mutex::new((0, i64::MAX)),
        }
    }

    /// Whether the object is still there, and still the same.
    fn stands(&self, registry: &Registry, now: i64) -> bool {
        let entry = registry
            .collection(self.prefix)
            .and_then(|collection| collection.get(&self.key));
        let Some(entry) = entry.filter(|entry| *entry.uid == *self.uid) else {
            return false;
        };
        let mut seen = self.seen.lock();
        if seen.0 != entry.revision {
            *seen = (entry.revision, end(&entry));
        }
        let (_, ends) = *seen;
        now <= ends
    }
}

/// When the tokens that are bound to an object end: a minute after its deletion was asked for.
fn end(entry: &Entry) -> i64 {
    let object = entry.parse();
    let deleted = object["metadata"]["deletionTimestamp"].as_str();
    let deleted = deleted.and_then(|time| time.parse::<jiff::Timestamp>().ok());
    deleted.map_or(i64::MAX, |time| time.as_second() + DELETED_FOR)
}

/// An object that a token names.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Reference {
    /// Its name.
    pub name: String,
    /// Its uid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    private: Private,
    nbf: i64,
    sub: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Private {
    namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<Reference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Reference>,
    serviceaccount: Reference,
}

/// What a token is to say.
#[derive(Clone, Debug)]
pub struct Grant {
    /// The account's namespace.
    pub namespace: String,
    /// The account.
    pub account: Reference,
    /// Whom the token is for; the API if empty.
    pub audiences: Vec<String>,
    /// How long it is good, in seconds.
    pub seconds: i64,
    /// The pod it is bound to, and that pod's node.
    pub pod: Option<(Reference, Option<Reference>)>,
    /// The secret it is bound to.
    pub secret: Option<Reference>,
    /// The node it is bound to, without a pod.
    pub node: Option<Reference>,
}

impl Tokens {
    /// With the keys of a [`Pki`].
    ///
    /// # Errors
    ///
    /// If they are not a P-256 key pair.
    pub fn new(pki: &Pki, cluster_domain: &str) -> Result<Self, KeyError> {
        let private = PrivatePkcs8KeyDer::from_pem_slice(pki.service_account_key_pem().as_bytes())
            .map_err(|source| KeyError::Parse { source })?;
        let public = pki.service_account_public_pem().as_bytes();
        let public = rustls_pki_types::SubjectPublicKeyInfoDer::from_pem_slice(public)
            .map_err(|source| KeyError::Public { source })?;
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(&public));
        let key = SigningKey::new(private.secret_pkcs8_der(), &key_id)
            .map_err(|reason| KeyError::Kind { reason })?;
        let issuer = format!("https://kubernetes.default.svc.{cluster_domain}");
        Ok(Self {
            key,
            key_id,
            issuer,
            clock: pki.clock(),
            verified: Cache::new(REMEMBERED),
            bad: Cache::new(REMEMBERED_BAD),
        })
    }

    /// The audiences asked for, or the API's own.
    pub fn audiences_or_default(&self, audiences: &[String]) -> Vec<String> {
        if audiences.is_empty() {
            vec![self.issuer.clone()]
        } else {
            audiences.to_vec()
        }
    }

    /// Signs a token; returns it and when it expires.
    ///
    /// # Errors
    ///
    /// 500 if signing fails.
    pub fn sign(&self, grant: &Grant) -> Result<(String, jiff::Timestamp), ApiError> {
        let now = (self.clock)().unix_timestamp();
        let claims = Claims {
            aud: self.audiences_or_default(&grant.audiences),
            exp: now + grant.seconds,
            iat: now,
            iss: self.issuer.clone(),
            jti: uuid::Uuid::new_v4().to_string(),
            nbf: now,
            sub: format!(
                "system:serviceaccount:{}:{}",
                grant.namespace, grant.account.name
            ),
            private: Private {
                namespace: grant.namespace.clone(),
                node: match &grant.pod {
                    Some((_, node)) => node.clone(),
                    None => grant.node.clone(),
                },
                pod: grant.pod.as_ref().map(|(pod, _)| pod.clone()),
                secret: grant.secret.clone(),
                serviceaccount: grant.account.clone(),
            },
        };
        let token = (self.key.sign(&claims)).map_err(|error| ApiError::internal(&error))?;
        let expires =
            jiff::Timestamp::from_second(claims.exp).map_err(|error| ApiError::internal(&error))?;
        Ok((token, expires))
    }

    /// The user of a token, and those of `audiences` (or of the API's own) for which it is good. `None` if it is not valid:
    /// signature, time, issuer and audience must be right, and what it is bound to must still exist.
    pub fn verify(
        &self,
        registry: &Registry,
        token: &str,
        audiences: &[String],
    ) -> Option<(Arc<UserInfo>, Vec<String>)> {
        let verified = self.valid(registry, token)?;
        let wanted = self.audiences_or_default(audiences);
        let good: Vec<String> = wanted
            .into_iter()
            .filter(|audience| verified.audiences.contains(audience))
            .collect();
        (!good.is_empty()).then(|| (verified.user.clone(), good))
    }

    /// The user of a token that is good for the API: [`Tokens::verify`] for each request.
    pub fn user(&self, registry: &Registry, token: &str) -> Option<Arc<UserInfo>> {
        let verified = self.valid(registry, token)?;
        let ours = verified.audiences.contains(&self.issuer);
        ours.then(|| verified.user.clone())
    }

    fn valid(&self, registry: &Registry, token: &str) -> Option<Arc<Verified>> {
        let digest = cache::of(token);
        let verified = match self.verified.get(&digest) {
            Some(verified) => verified,
            None => {
                let bad_until = self.bad.get(&digest);
                if bad_until.is_some_and(|until| Instant::now() < *until) {
                    return None;
                }
                let Some(verified) = self.signed(token) else {
                    let until = Instant::now() + BAD_FOR;
                    self.bad.insert(digest, Arc::new(until));
                    return None;
                };
                let verified = Arc::new(verified);
                self.verified.insert(digest, verified.clone());
                verified
            }
        };
        let now = (self.clock)().unix_timestamp();
        if now > verified.expires + LEEWAY {
            self.verified.remove(&digest);
            return None;
        }
        let stands = |bound: &Bound| bound.stands(registry, now);
        (now + LEEWAY >= verified.not_before && verified.bound.iter().all(stands))
            .then_some(verified)
    }

    /// A token that we have signed.
    fn signed(&self, token: &str) -> Option<Verified> {
        let claims: Claims = self.key.verify(token)?;
        if claims.iss != self.issuer {
            return None;
        }
        let private = claims.private;
        let namespace = &*private.namespace;
        let account = &private.serviceaccount;
        let mut bound = vec![Bound::new("serviceaccounts", namespace, account)];
        bound
            .extend((private.secret.iter()).map(|secret| Bound::new("secrets", namespace, secret)));
        match (&private.pod, &private.node) {
            // The pod's node is only told.
            (Some(pod), _) => bound.push(Bound::new("pods", namespace, pod)),
            (None, Some(node)) => bound.push(Bound::new("minions", "", node)),
            (None, None) => {}
        }
        let groups = [
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
        ];
        let mut user = UserInfo::new(claims.sub, groups);
        user.uid = private.serviceaccount.uid;
        let mut extra = BTreeMap::new();
        let mut add = |name: &str, value: String| {
            extra.insert(format!("authentication.kubernetes.io/{name}"), vec![value]);
        };
        add("credential-id", format!("JTI={}", claims.jti));
        if let Some(pod) = private.pod {
            add("pod-name", pod.name);
            add("pod-uid", pod.uid);
        }
        if let Some(node) = private.node {
            add("node-name", node.name);
            add("node-uid", node.uid);
        }
        user.extra = extra;
        Some(Verified {
            user: Arc::new(user),
            audiences: claims.aud,
            not_before: claims.nbf,
            expires: claims.exp,
            bound,
        })
    }

    /// `/openid/v1/jwks`: the key that checks the tokens.
    pub fn jwks(&self) -> Value {
        let (x, y) = self.key.coordinates();
        json!({ "keys": [{
            "use": "sig",
            "kty": "EC",
            "kid": self.key_id,
            "crv": "P-256",
            "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x),
            "y": URL_SAFE_NO_PAD.encode(y),
        }] })
    }

    /// `/.well-known/openid-configuration`; `server` is this server's address.
    pub fn discovery(&self, server: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("https://{server}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}
