//! ConfigMaps and Secrets.

use base64::Engine as _;
use serde_json::{Value, json};

use super::common::text;
use super::validation::{Errors, IMMUTABLE, config_key};
use super::{Column, Context, Strategy};
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::table;

/// All data of a ConfigMap or Secret together may not be larger than this.
const LIMIT: usize = 1024 * 1024;

/// ConfigMaps.
pub struct ConfigMap;

/// Secrets.
pub struct Secret;

fn count(map: &Value) -> usize {
    map.as_object().map_or(0, serde_json::Map::len)
}

/// `field is immutable when `immutable` is set`, for every field that changed.
fn immutable_update(object: &Value, old: &Value, fields: &[&str]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if old["immutable"] == true {
        let detail = format!("{IMMUTABLE} when `immutable` is set");
        if object["immutable"] != true {
            errors.push(FieldError::forbidden("immutable", &detail));
        }
        for field in fields {
            if object.get(field) != old.get(field) {
                errors.push(FieldError::forbidden(*field, &detail));
            }
        }
    }
    errors
}

impl Strategy for ConfigMap {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let mut size = 0;
        for field in ["data", "binaryData"] {
            for (key, value) in object[field].as_object().into_iter().flatten() {
                let at = format!("{field}[{key}]");
                errors.invalid(&at, key.as_str(), config_key(key));
                if field == "data" && object["binaryData"].get(key).is_some() {
                    errors.add(
                        &at,
                        &key.as_str().into(),
                        "duplicate of key present in binaryData",
                    );
                }
                size += if field == "data" {
                    text(value).len()
                } else {
                    decoded_len(text(value))
                };
            }
        }
        if size > LIMIT {
            errors.0.push(FieldError::too_long("", LIMIT, "bytes"));
        }
        errors.0
    }

    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = immutable_update(object, old, &["data", "binaryData"]);
        errors.extend(self.validate(object));
        errors
    }

    fn allow_create_on_update(&self) -> bool {
        false
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Data Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let data = count(&object["data"]) + count(&object["binaryData"]);
        vec![table::name(object), data.into(), table::age(object, now)]
    }
}

fn decoded_len(base64: &str) -> usize {
    let padding = base64.bytes().rev().take_while(|c| *c == b'=').count();
    (base64.len() / 4 * 3).saturating_sub(padding)
}

impl Strategy for Secret {
    fn default(&self, object: &mut Value) {
        // What is written as text is kept as bytes; the field itself is write-only.
        let Some(Value::Object(strings)) = object
            .as_object_mut()
            .and_then(|fields| fields.remove("stringData"))
        else {
            return;
        };
        let data = super::common::object_at(object, "data");
        for (key, value) in strings {
            let bytes = base64::engine::general_purpose::STANDARD.encode(text(&value));
            data.insert(key, bytes.into());
        }
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        _: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        if text(&object["type"]).is_empty() {
            object["type"] = old["type"].clone();
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let mut size = 0;
        let data = &object["data"];
        for (key, value) in data.as_object().into_iter().flatten() {
            errors.invalid(&format!("data[{key}]"), key.as_str(), config_key(key));
            size += decoded_len(text(value));
        }
        if size > LIMIT {
            errors.0.push(FieldError::too_long("data", LIMIT, "bytes"));
        }
        let mut need = |key: &str| {
            if data.get(key).is_none() {
                errors.required(format!("data[{key}]"), "");
            }
        };
        match text(&object["type"]) {
            "kubernetes.io/tls" => ["tls.crt", "tls.key"].into_iter().for_each(need),
            "kubernetes.io/ssh-auth" => need("ssh-privatekey"),
            "kubernetes.io/basic-auth"
                if data.get("username").is_none() && data.get("password").is_none() =>
            {
                need("username");
                need("password");
            }
            "kubernetes.io/dockerconfigjson" => json_key(&mut errors, data, ".dockerconfigjson"),
            "kubernetes.io/dockercfg" => json_key(&mut errors, data, ".dockercfg"),
            "kubernetes.io/service-account-token"
                if text(
                    &object["metadata"]["annotations"]["kubernetes.io/service-account.name"],
                )
                .is_empty() =>
            {
                errors.required(
                    "metadata.annotations[kubernetes.io/service-account.name]",
                    "",
                );
            }
            _ => {}
        }
        errors.0
    }

    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors::default();
        errors.immutable("type", &object["type"], &old["type"]);
        errors.0.extend(immutable_update(object, old, &["data"]));
        errors.0.extend(self.validate(object));
        errors.0
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        match text(&object["type"]) {
            "kubernetes.io/tls" => Vec::from_iter(key_pair_mistake(&object["data"])),
            _ => Vec::new(),
        }
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("type", text(&object["type"]).to_owned())]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["type"]
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Type Data# Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        vec![
            table::name(object),
            json!(text(&object["type"])),
            count(&object["data"]).into(),
            table::age(object, now),
        ]
    }
}

/// What Go's `tls.X509KeyPair` says of a certificate and its key, as far as their form and that they belong together.
fn key_pair_mistake(data: &Value) -> Option<String> {
    use rustls_pki_types::pem::PemObject as _;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    let bytes = |key: &str| {
        base64::engine::general_purpose::STANDARD
            .decode(text(&data[key]))
            .unwrap_or_default()
    };
    let (certificate, key) = (bytes("tls.crt"), bytes("tls.key"));
    let is_pem =
        |bytes: &[u8]| x509_parser::pem::Pem::iter_from_buffer(bytes).any(|pem| pem.is_ok());
    let Ok(chain) = CertificateDer::from_pem_slice(&certificate) else {
        return Some(if is_pem(&certificate) {
            "tls: failed to find certificate PEM data in certificate input, but did find other PEM blocks".to_owned()
        } else {
            "tls: failed to find any PEM data in certificate input".to_owned()
        });
    };
    let Ok(key) = PrivateKeyDer::from_pem_slice(&key) else {
        return Some(if is_pem(&key) {
            "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input"
                .to_owned()
        } else {
            "tls: failed to find any PEM data in key input".to_owned()
        });
    };
    let Ok(signer) = rustls::crypto::ring::sign::any_supported_type(&key) else {
        return Some("tls: failed to parse private key".to_owned());
    };
    let pair = rustls::sign::CertifiedKey::new(vec![chain], signer);
    match pair.keys_match() {
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            Some("tls: private key does not match public key".to_owned())
        }
        _ => None,
    }
}

fn json_key(errors: &mut Errors, data: &Value, key: &str) {
    let field = format!("data[{key}]");
    let Some(value) = data.get(key) else {
        errors.required(field, "");
        return;
    };
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(text(value))
        .unwrap_or_default();
    if let Err(err) = serde_json::from_slice::<Value>(&bytes) {
        errors.add(
            field,
            &"<secret contents redacted>".into(),
            &err.to_string(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_data_becomes_data() {
        let mut secret = json!({ "data": { "a": "eA==" }, "stringData": { "b": "hi" } });
        Secret.default(&mut secret);
        assert_eq!(secret, json!({ "data": { "a": "eA==", "b": "aGk=" } }));
    }

    #[test]
    fn an_immutable_config_map_stays_as_it_is() {
        let old = json!({ "immutable": true, "data": { "a": "1" } });
        let errors = ConfigMap.validate_update(
            None,
            &json!({ "immutable": true, "data": { "a": "2" } }),
            &old,
        );
        assert_eq!(
            errors[0].message,
            "Forbidden: field is immutable when `immutable` is set"
        );
        assert!(ConfigMap.validate_update(None, &old, &old).is_empty());
    }
}
