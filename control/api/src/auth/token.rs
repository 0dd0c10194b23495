//! Service account tokens: JWTs signed with ES256, as kube-apiserver makes them (`pkg/serviceaccount`).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::UserInfo;
use crate::pki::Pki;
use crate::registry::Registry;
use crate::status::ApiError;

/// An uncompressed point of P-256: a tag and two coordinates.
const POINT: usize = 65;

/// Why the key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be parsed.
    #[error("the service accounts' key")]
    Parse {
        /// Why.
        source: jsonwebtoken::errors::Error,
    },
    /// It is not a P-256 key.
    #[error("the service accounts' public key is no P-256 key")]
    Kind,
}

/// Signs and checks tokens.
pub struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    key_id: String,
    point: [u8; POINT],
    issuer: String,
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
}

impl Tokens {
    /// With the keys of a [`Pki`].
    ///
    /// # Errors
    ///
    /// If they are not a P-256 key pair.
    pub fn new(pki: &Pki, cluster_domain: &str) -> Result<Self, KeyError> {
        let parse = |source| KeyError::Parse { source };
        let public = pki.service_account_public_pem();
        let encoding =
            EncodingKey::from_ec_pem(pki.service_account_key_pem().as_bytes()).map_err(parse)?;
        let decoding = DecodingKey::from_ec_pem(public.as_bytes()).map_err(parse)?;
        let (_, pem) =
            x509_parser::pem::parse_x509_pem(public.as_bytes()).map_err(|_| KeyError::Kind)?;
        let point = pem
            .contents
            .len()
            .checked_sub(POINT)
            .and_then(|at| pem.contents[at..].try_into().ok())
            .filter(|point: &[u8; POINT]| point[0] == 4)
            .ok_or(KeyError::Kind)?;
        let key_id = URL_SAFE_NO_PAD.encode(Sha256::digest(&pem.contents));
        let issuer = format!("https://kubernetes.default.svc.{cluster_domain}");
        Ok(Self {
            encoding,
            decoding,
            key_id,
            point,
            issuer,
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
        let now = jiff::Timestamp::now().as_second();
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
                node: grant.pod.as_ref().and_then(|(_, node)| node.clone()),
                pod: grant.pod.as_ref().map(|(pod, _)| pod.clone()),
                secret: grant.secret.clone(),
                serviceaccount: grant.account.clone(),
            },
        };
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.key_id.clone());
        header.typ = None;
        let token = jsonwebtoken::encode(&header, &claims, &self.encoding)
            .map_err(|error| ApiError::internal(&error))?;
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
    ) -> Option<(UserInfo, Vec<String>)> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[&self.issuer]);
        validation.validate_nbf = true;
        validation.validate_aud = false;
        validation.leeway = 10;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation)
            .ok()?
            .claims;
        let wanted = self.audiences_or_default(audiences);
        let good: Vec<String> = wanted
            .into_iter()
            .filter(|audience| claims.aud.contains(audience))
            .collect();
        if good.is_empty() {
            return None;
        }
        let private = claims.private;
        let namespace = &*private.namespace;
        let exists = |prefix: &str, reference: &Reference| {
            let entry = registry
                .collection(prefix)
                .and_then(|c| c.get(&format!("{namespace}/{}", reference.name)));
            entry.is_some_and(|entry| *entry.uid == *reference.uid)
        };
        let bound = exists("serviceaccounts", &private.serviceaccount)
            && private.pod.as_ref().is_none_or(|pod| exists("pods", pod))
            && private
                .secret
                .as_ref()
                .is_none_or(|secret| exists("secrets", secret));
        if !bound {
            return None;
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
        Some((user, good))
    }

    /// `/openid/v1/jwks`: the key that checks the tokens.
    pub fn jwks(&self) -> Value {
        json!({ "keys": [{
            "use": "sig",
            "kty": "EC",
            "kid": self.key_id,
            "crv": "P-256",
            "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(&self.point[1..33]),
            "y": URL_SAFE_NO_PAD.encode(&self.point[33..]),
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
