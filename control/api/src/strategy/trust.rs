//! Bundles of trust anchors, and requests of certificates for pods.

use base64::Engine as _;
use serde_json::{Value, json};
use x509_parser::prelude::FromDer as _;

use super::common::{self, none_if_empty, text};
use super::fields::signer_name;
use super::validation::{Errors, items, subdomain};
use super::{Column, Context, Strategy};
use crate::registry::names;
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::table;

/// Bundles of trust anchors.
pub struct ClusterTrustBundle;

/// Requests of certificates for pods.
pub struct PodCertificateRequest;

const LONGEST_BUNDLE: usize = 1024 * 1024;
const LONGEST_CHAIN: usize = 100 * 1024;
const LONGEST_REQUEST: usize = 10 * 1024;
const LONGEST_UID: usize = 128;

/// What the answer to a request is: one of these conditions, which is true.
const OUTCOMES: &[&str] = &["Denied", "Failed", "Issued"];

/// Mistakes in PEM blocks, each of which must be the certificate of an authority.
fn bundle(errors: &mut Errors, at: &str, bundle: &str) {
    if bundle.len() > LONGEST_BUNDLE {
        return errors
            .0
            .push(FieldError::too_long(at, LONGEST_BUNDLE, "bytes"));
    }
    let before = errors.0.len();
    let mut refuse = |detail: String| errors.add(at, &"<value omitted>".into(), &detail);
    let mut anchors: Vec<(Vec<u8>, Vec<usize>)> = Vec::new();
    let blocks = x509_parser::pem::Pem::iter_from_buffer(bundle.as_bytes());
    for (index, block) in blocks.filter_map(Result::ok).enumerate() {
        if block.label != "CERTIFICATE" {
            refuse(format!("entry {index} has bad block type: {}", block.label));
            continue;
        }
        match x509_parser::certificate::X509Certificate::from_der(&block.contents) {
            Err(_) => refuse(format!("entry {index} does not parse as X.509")),
            Ok((_, certificate)) if !certificate.is_ca() => {
                refuse(format!("entry {index} does not have the CA bit set"));
            }
            Ok(_) => match anchors
                .iter_mut()
                .find(|(bytes, _)| *bytes == block.contents)
            {
                Some((_, indices)) => indices.push(index),
                None => anchors.push((block.contents.clone(), vec![index])),
            },
        }
    }
    if errors.0.len() > before {
        return;
    }
    let mut refuse = |detail: String| errors.add(at, &"<value omitted>".into(), &detail);
    if anchors.is_empty() {
        refuse("at least one trust anchor must be provided".to_owned());
    }
    for (_, indices) in anchors.iter().filter(|(_, indices)| indices.len() > 1) {
        let indices: Vec<String> = indices.iter().map(usize::to_string).collect();
        refuse(format!(
            "duplicate trust anchor (indices [{}])",
            indices.join(" ")
        ));
    }
}

/// Mistakes in the name of a bundle, which starts with its signer's.
fn bundle_name(errors: &mut Errors, object: &Value) {
    let (name, signer) = (
        text(&object["metadata"]["name"]),
        text(&object["spec"]["signerName"]),
    );
    let prefix = format!("{}:", signer.replace('/', ":"));
    let wrong = match (signer, name.strip_prefix(&prefix)) {
        ("", _) if name.contains(':') => {
            vec![
                "ClusterTrustBundle without signer name must not have \":\" in its name".to_owned(),
            ]
        }
        ("", _) => subdomain(name),
        (_, Some(rest)) => subdomain(rest),
        (_, None) => vec![format!(
            "ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}"
        )],
    };
    errors.invalid("metadata.name", name, wrong);
}

impl Strategy for ClusterTrustBundle {
    /// Which names are good depends on the signer.
    fn check_name(&self, name: &str) -> Result<(), String> {
        names::path_segment(name)
    }

    fn require_resource_version(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &object["spec"];
        bundle_name(&mut errors, object);
        if !text(&spec["signerName"]).is_empty() {
            signer_name(&mut errors, "spec.signerName", &spec["signerName"]);
        }
        bundle(&mut errors, "spec.trustBundle", text(&spec["trustBundle"]));
        errors.0
    }

    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors(self.validate(object));
        let (spec, before) = (&object["spec"], &old["spec"]);
        if spec["trustBundle"] == before["trustBundle"] {
            // What was good when it was stored stays so.
            errors.0.retain(|error| error.field != "spec.trustBundle");
        }
        errors.immutable(
            "spec.signerName",
            &spec["signerName"],
            &before["signerName"],
        );
        errors.0
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![(
            "spec.signerName",
            text(&object["spec"]["signerName"]).to_owned(),
        )]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["spec.signerName"]
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name SignerName")
    }

    fn cells(&self, object: &Value, _: jiff::Timestamp) -> Vec<Value> {
        let signer = text(&object["spec"]["signerName"]).to_owned();
        vec![table::name(object), none_if_empty(signer).into()]
    }
}

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
    use crate::strategy::fields::tests::{check_new, check_update, shown, with};

    fn authority(is_authority: bool) -> (String, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        if is_authority {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }
        (params.self_signed(&key).unwrap().pem(), key)
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_bundle_has_authorities_and_is_named_after_its_signer() {
        let (pem, _) = authority(true);
        let good = json!({ "metadata": { "name": "example.com:a:b" }, "spec": { "signerName": "example.com/a", "trustBundle": pem } });
        let at = "spec.trustBundle: Invalid value: \"<value omitted>\":";
        check_new(&ClusterTrustBundle, &good, &[
            ("/metadata/name", json!("b"), &["metadata.name: Invalid value: \"b\": ClusterTrustBundle for signerName example.com/a must be named with prefix example.com:a:"]),
            ("/spec/signerName", Value::Null, &["metadata.name: Invalid value: \"example.com:a:b\": ClusterTrustBundle without signer name must not have \":\" in its name"]),
            ("/spec/trustBundle", json!(""), &[&format!("{at} at least one trust anchor must be provided")]),
            ("/spec/trustBundle", json!(authority(false).0), &[&format!("{at} entry 0 does not have the CA bit set")]),
            ("/spec/trustBundle", json!(format!("{pem}{pem}")), &[&format!("{at} duplicate trust anchor (indices [0 1])")]),
            ("/spec/trustBundle", json!(pem.replace("CERTIFICATE", "THING")), &[&format!("{at} entry 0 has bad block type: THING")]),
        ]);
        let stored = with(&good, "/spec/trustBundle", json!("from before"));
        check_update(&ClusterTrustBundle, &stored, &[]);
    }

    fn request() -> Value {
        let (_, key) = authority(false);
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
