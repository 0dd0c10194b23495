//! Requests of certificates for pods.

use base64::Engine as _;
use serde_json::{Value, json};
use x509_parser::prelude::FromDer as _;

use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, text};
use crate::strategy::fields::signer_name;
use crate::strategy::validation::{Errors, items, subdomain};
use crate::strategy::{Context, Strategy};

/// Requests of certificates for pods.
pub struct PodCertificateRequest;

const LONGEST_CHAIN: usize = 100 * 1024;

const LONGEST_REQUEST: usize = 10 * 1024;

const LONGEST_UID: usize = 128;

/// What the answer to a request is: one of these conditions, which is true.
const OUTCOMES: &[&str] = &["Denied", "Failed", "Issued"];

impl Strategy for PodCertificateRequest {
    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        object["status"] = json!({});
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        common::split_update(sub, object, old, false);
    }

    fn require_resource_version(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &object["spec"];
        signer_name(&mut errors, "spec.signerName", &spec["signerName"]);
        for kind in ["pod", "serviceAccount", "node"] {
            let (name, uid) = (format!("{kind}Name"), format!("{kind}UID"));
            let value = text(&spec[&name]);
            errors.invalid(&format!("spec.{name}"), value, subdomain(value));
            let (at, value) = (format!("spec.{uid}"), text(&spec[&uid]));
            if value.is_empty() {
                errors.add(&at, &"".into(), "must not be empty");
            } else if value.len() > LONGEST_UID {
                errors
                    .0
                    .push(FieldError::too_long(at, LONGEST_UID, "bytes"));
            }
        }
        let seconds = &spec["maxExpirationSeconds"];
        let domain = text(&spec["signerName"]).split('/').next().unwrap_or("");
        let own = domain == "kubernetes.io" || domain.ends_with(".kubernetes.io");
        // An hour; a day for Kubernetes' own signers, 91 days for others.
        let most = if own { 86_400 } else { 7_862_400 };
        match seconds.as_i64() {
            None => {
                return {
                    errors.required("spec.maxExpirationSeconds", "must be set");
                    errors.0
                };
            }
            Some(3600..) if seconds.as_i64() <= Some(most) => {}
            Some(_) => errors.add(
                "spec.maxExpirationSeconds",
                seconds,
                &format!("must be in the range [3600, {most}]"),
            ),
        }
        stub_request(&mut errors, &spec["stubPKCS10Request"]);
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        if sub == Some(Subresource::Status) {
            return validate_status(&object["status"], &old["status"]);
        }
        let mut errors = Errors::default();
        errors.immutable("spec", &object["spec"], &old["spec"]);
        errors.0
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let field = |name: &str| text(&object["spec"][name]).to_owned();
        vec![
            ("spec.signerName", field("signerName")),
            ("spec.podName", field("podName")),
            ("spec.nodeName", field("nodeName")),
        ]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["spec.signerName", "spec.podName", "spec.nodeName"]
    }
}

fn stub_request(errors: &mut Errors, request: &Value) {
    let at = "spec.stubPKCS10Request";
    let der = base64::engine::general_purpose::STANDARD
        .decode(text(request))
        .unwrap_or_default();
    if der.is_empty() {
        errors.required(at, "must be set");
    } else if der.len() > LONGEST_REQUEST {
        errors
            .0
            .push(FieldError::too_long(at, LONGEST_REQUEST, "bytes"));
    } else {
        let parsed = x509_parser::certification_request::X509CertificationRequest::from_der(&der);
        if parsed.is_err() {
            errors.add(
                at,
                request,
                "must be a valid PKCS#10 certificate signing request",
            );
        }
    }
}

fn validate_status(status: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    for (index, condition) in items(&status["conditions"]) {
        let at = format!("status.conditions[{index}]");
        let kind = &condition["type"];
        if !OUTCOMES.contains(&text(kind)) {
            errors.one_of(format!("{at}.type"), kind, &["Issued", "Denied", "Failed"]);
            continue;
        }
        if index > 0 {
            let detail = "There may be at most one condition with type \"Issued\", \"Denied\", or \"Failed\"";
            errors.add(format!("{at}.type"), kind, detail);
        }
        errors.one_of(format!("{at}.status"), &condition["status"], &["True"]);
    }
    let has = |status: &Value, kinds: &[&str]| {
        items(&status["conditions"]).any(|(_, c)| kinds.contains(&text(&c["type"])))
    };
    let fields = [
        "certificateChain",
        "notBefore",
        "beginRefreshAt",
        "notAfter",
    ];
    if has(old, OUTCOMES) {
        if status != old {
            let detail = "immutable after PodCertificateRequest is issued, denied, or failed";
            errors.add("status", status, detail);
        }
    } else if has(status, &["Denied", "Failed"]) {
        if fields.iter().any(|field| !status[*field].is_null()) {
            let detail = "non-condition status fields must be empty when denying or failing the PodCertificateRequest";
            errors.add("status", status, detail);
        }
    } else if has(status, &["Issued"]) {
        let chain = text(&status["certificateChain"]);
        let first = x509_parser::pem::Pem::iter_from_buffer(chain.as_bytes()).find_map(Result::ok);
        if chain.len() > LONGEST_CHAIN {
            errors.0.push(FieldError::too_long(
                "status.certificateChain",
                LONGEST_CHAIN,
                "bytes",
            ));
        } else if first.is_none() {
            let detail = "issued certificate chain must contain at least one certificate";
            errors.add("status.certificateChain", &chain.into(), detail);
        }
        for field in fields
            .iter()
            .skip(1)
            .filter(|field| status[**field].is_null())
        {
            errors.required(
                format!("status.{field}"),
                "must be present and consistent with the issued certificate",
            );
        }
    }
    errors.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::fields::tests::{check_new, shown};

    fn request() -> Value {
        let key = rcgen::KeyPair::generate().unwrap();
        let der = rcgen::CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        let stub = base64::engine::general_purpose::STANDARD.encode(der.der());
        json!({ "spec": { "signerName": "example.com/a", "podName": "a", "podUID": "1", "serviceAccountName": "b", "serviceAccountUID": "2",
            "nodeName": "c", "nodeUID": "3", "maxExpirationSeconds": 86400, "stubPKCS10Request": stub } })
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_request_names_a_pod_and_a_signer() {
        check_new(&PodCertificateRequest, &request(), &[
            ("/spec/signerName", Value::Null, &["spec.signerName: Required value"]),
            ("/spec/podUID", Value::Null, &["spec.podUID: Invalid value: \"\": must not be empty"]),
            ("/spec/nodeUID", "a".repeat(129).into(), &["spec.nodeUID: Too long: may not be more than 128 bytes"]),
            ("/spec/maxExpirationSeconds", Value::Null, &["spec.maxExpirationSeconds: Required value: must be set"]),
            ("/spec/maxExpirationSeconds", json!(60), &["spec.maxExpirationSeconds: Invalid value: 60: must be in the range [3600, 7862400]"]),
            ("/spec/stubPKCS10Request", json!("AAAA"), &["spec.stubPKCS10Request: Invalid value: \"AAAA\": must be a valid PKCS#10 certificate signing request"]),
        ]);
    }

    #[test]
    #[rustfmt::skip] // One status a line.
    fn a_request_is_answered_once() {
        let condition = |kind: &str| json!({ "type": kind, "status": "True" });
        let denied = json!({ "conditions": [condition("Denied")] });
        for (status, old, wanted) in [
            (denied.clone(), json!({}), vec![]),
            (json!({ "conditions": [condition("Odd")] }), json!({}), vec!["status.conditions[0].type: Unsupported value: \"Odd\": supported values: \"Issued\", \"Denied\", \"Failed\""]),
            (json!({ "conditions": [condition("Issued")] }), denied, vec!["status: Invalid value: {\"conditions\":[{\"status\":\"True\",\"type\":\"Issued\"}]}: immutable after PodCertificateRequest is issued, denied, or failed"]),
        ] {
            assert_eq!(shown(&validate_status(&status, &old)), wanted, "{status}");
        }
    }
}
