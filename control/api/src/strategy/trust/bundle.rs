//! Bundles of trust anchors.

use serde_json::Value;
use x509_parser::prelude::FromDer as _;

use crate::registry::names;
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{none_if_empty, text};
use crate::strategy::fields::signer_name;
use crate::strategy::validation::{Errors, subdomain};
use crate::strategy::{Column, Strategy};
use crate::table;

/// Bundles of trust anchors.
pub struct ClusterTrustBundle;

const LONGEST_BUNDLE: usize = 1024 * 1024;

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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::strategy::fields::tests::{check_new, check_update, with};

    fn authority(is_authority: bool) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        if is_authority {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }
        params.self_signed(&key).unwrap().pem()
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_bundle_has_authorities_and_is_named_after_its_signer() {
        let pem = authority(true);
        let good = json!({ "metadata": { "name": "example.com:a:b" }, "spec": { "signerName": "example.com/a", "trustBundle": pem } });
        let at = "spec.trustBundle: Invalid value: \"<value omitted>\":";
        check_new(&ClusterTrustBundle, &good, &[
            ("/metadata/name", json!("b"), &["metadata.name: Invalid value: \"b\": ClusterTrustBundle for signerName example.com/a must be named with prefix example.com:a:"]),
            ("/spec/signerName", Value::Null, &["metadata.name: Invalid value: \"example.com:a:b\": ClusterTrustBundle without signer name must not have \":\" in its name"]),
            ("/spec/trustBundle", json!(""), &[&format!("{at} at least one trust anchor must be provided")]),
            ("/spec/trustBundle", json!(authority(false)), &[&format!("{at} entry 0 does not have the CA bit set")]),
            ("/spec/trustBundle", json!(format!("{pem}{pem}")), &[&format!("{at} duplicate trust anchor (indices [0 1])")]),
            ("/spec/trustBundle", json!(pem.replace("CERTIFICATE", "THING")), &[&format!("{at} entry 0 has bad block type: THING")]),
        ]);
        let stored = with(&good, "/spec/trustBundle", json!("from before"));
        check_update(&ClusterTrustBundle, &stored, &[]);
    }
}
