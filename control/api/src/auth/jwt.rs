//! JSON Web Tokens signed with ES256 (RFC 7515, RFC 7518): P-256 with SHA-256, by ring.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// An uncompressed point of P-256: a tag and two coordinates.
pub const POINT: usize = 65;

/// A P-256 key pair that signs tokens, and its name in them.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
    header: String,
    point: [u8; POINT],
}

/// Why a token was not signed: the system has no randomness to give.
#[derive(Debug, thiserror::Error)]
#[error("sign a token: {0}")]
pub struct SignError(ring::error::Unspecified);

#[derive(Deserialize)]
struct Header {
    alg: String,
}

impl SigningKey {
    /// From a private key (PKCS #8); `id` is what tokens name it.
    ///
    /// # Errors
    ///
    /// If it is no P-256 key.
    pub fn new(pkcs8: &[u8], id: &str) -> Result<Self, ring::error::KeyRejected> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)?;
        let mut point = [0; POINT];
        point.copy_from_slice(pair.public_key().as_ref());
        let header = json!({ "alg": "ES256", "kid": id }).to_string();
        Ok(Self {
            pair,
            random,
            header: URL_SAFE_NO_PAD.encode(header),
            point,
        })
    }

    /// The public key's two coordinates.
    pub fn coordinates(&self) -> (&[u8], &[u8]) {
        self.point[1..].split_at(POINT / 2)
    }

    /// Signs claims.
    ///
    /// # Errors
    ///
    /// If the system has no randomness to give.
    pub fn sign(&self, claims: &impl Serialize) -> Result<String, SignError> {
        let claims = serde_json::to_vec(claims).expect("claims are plain data");
        let mut token = format!("{}.{}", self.header, URL_SAFE_NO_PAD.encode(claims));
        let signature = (self.pair.sign(&self.random, token.as_bytes())).map_err(SignError)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }

    /// The claims of a token that this key has signed; `None` for any other.
    pub fn verify<C: DeserializeOwned>(&self, token: &str) -> Option<C> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, claims) = signed.split_once('.')?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
        let header: Header = serde_json::from_slice(&decode(header)?).ok()?;
        if header.alg != "ES256" {
            return None;
        }
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.point);
        key.verify(signed.as_bytes(), &decode(signature)?).ok()?;
        serde_json::from_slice(&decode(claims)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn key() -> SigningKey {
        let pair = rcgen::KeyPair::generate().expect("a key");
        SigningKey::new(&pair.serialize_der(), "name").expect("a P-256 key")
    }

    /// RFC 7515, appendix A.3: its key, its token.
    #[test]
    fn the_token_of_the_specification_is_verified() {
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).expect("base64");
        let mut key = key();
        key.point[1..33].copy_from_slice(&decode("f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"));
        key.point[33..].copy_from_slice(&decode("x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"));
        let token = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
        let claims: Value = key.verify(token).expect("it is valid");
        assert_eq!(claims["iss"], "joe");
    }

    #[test]
    fn only_what_the_key_has_signed_is_verified() {
        let (key, other) = (key(), key());
        let claims = json!({ "sub": "someone", "exp": 5 });
        let token = key.sign(&claims).expect("a signature");
        assert_eq!(key.verify::<Value>(&token), Some(claims.clone()));
        assert_eq!(other.verify::<Value>(&token), None);
        let parts: Vec<&str> = token.split('.').collect();
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let claims = encode(&json!({ "sub": "someone else", "exp": 5 }));
        for forged in [
            format!("{}.{claims}.{}", parts[0], parts[2]),
            format!("{}.{}.", parts[0], parts[1]),
            format!("{}.{}", parts[0], parts[1]),
            format!("{token}x"),
            format!("{token}="),
            format!(
                "{}.{}.{}",
                encode(&json!({ "alg": "none" })),
                parts[1],
                parts[2]
            ),
            format!("{}.{}.", encode(&json!({ "alg": "none" })), parts[1]),
            String::new(),
            "..".to_owned(),
        ] {
            assert_eq!(key.verify::<Value>(&forged), None, "{forged}");
        }
    }
}
