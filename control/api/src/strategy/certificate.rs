//! Certificate signing requests.

use base64::Engine as _;
use serde_json::{Value, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::common::{self, text};
use super::validation::{Errors, items};
use super::{Column, Context, Strategy};
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::table;

/// Certificate signing requests.
pub struct CertificateSigningRequest;

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

impl Strategy for CertificateSigningRequest {
    fn prepare_for_create(&self, ctx: &Context, object: &mut Value) {
        // Who asks is who is authenticated, whatever the body says.
        let spec = common::object_at(object, "spec");
        spec.insert("username".to_owned(), ctx.user.name.as_str().into());
        spec.insert("groups".to_owned(), json!(ctx.user.groups));
        for field in ["uid", "extra"] {
            spec.remove(field);
        }
        if !ctx.user.uid.is_empty() {
            spec.insert("uid".to_owned(), ctx.user.uid.as_str().into());
        }
        if !ctx.user.extra.is_empty() {
            spec.insert("extra".to_owned(), json!(ctx.user.extra));
        }
        object["status"] = json!({});
    }

    fn prepare_for_update(
        &self,
        ctx: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        object["spec"] = old["spec"].clone();
        match sub {
            // The signer writes the certificate and leaves approval alone; the approver does the reverse.
            Some(Subresource::Status) => {
                let decisions = |status: &Value, keep: bool| -> Vec<Value> {
                    items(&status["conditions"])
                        .filter(|(_, c)| matches!(text(&c["type"]), "Approved" | "Denied") == keep)
                        .map(|(_, c)| c.clone())
                        .collect()
                };
                let mut conditions = decisions(&old["status"], true);
                conditions.extend(decisions(&object["status"], false));
                if conditions.is_empty() {
                    object["status"]
                        .as_object_mut()
                        .map(|status| status.remove("conditions"));
                } else {
                    object["status"]["conditions"] = conditions.into();
                }
                stamp(object, old, &ctx.now);
            }
            Some(Subresource::Approval) => {
                let conditions = object["status"]["conditions"].clone();
                common::keep(object, old, "status");
                if !conditions.is_null() {
                    object["status"]["conditions"] = conditions;
                }
                stamp(object, old, &ctx.now);
            }
            _ => common::keep(object, old, "status"),
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &object["spec"];
        let pem = base64::engine::general_purpose::STANDARD
            .decode(text(&spec["request"]))
            .unwrap_or_default();
        if let Err(reason) = check_request(&pem) {
            errors.add("spec.request", &spec["request"], &reason);
        }
        if items(&spec["usages"]).next().is_none() {
            errors.required("spec.usages", "usages must be provided");
        }
        for (index, usage) in items(&spec["usages"]) {
            errors.one_of(format!("spec.usages[{index}]"), usage, USAGES);
            if items(&spec["usages"])
                .take(index)
                .any(|(_, other)| other == usage)
            {
                errors.0.push(FieldError::duplicate(
                    format!("spec.usages[{index}]"),
                    usage,
                ));
            }
        }
        let signer = text(&spec["signerName"]);
        if signer.is_empty() {
            errors.required("spec.signerName", "");
        } else if !signer
            .split_once('/')
            .is_some_and(|(domain, path)| domain.contains('.') && !path.is_empty())
        {
            errors.add(
                "spec.signerName",
                &spec["signerName"],
                "must be a fully qualified domain and path of the form 'example.com/signer-name'",
            );
        }
        if spec["expirationSeconds"]
            .as_i64()
            .is_some_and(|seconds| seconds < 600)
        {
            errors.add(
                "spec.expirationSeconds",
                &spec["expirationSeconds"],
                "may not specify a duration less than 600 seconds (10 minutes)",
            );
        }
        let has =
            |kind: &str| items(&object["status"]["conditions"]).any(|(_, c)| c["type"] == kind);
        for (index, condition) in items(&object["status"]["conditions"]) {
            let at = format!("status.conditions[{index}]");
            if text(&condition["type"]).is_empty() {
                errors.required(format!("{at}.type"), "");
            } else if condition["type"] == "Denied" && has("Approved") {
                errors.add(
                    format!("{at}.type"),
                    &condition["type"],
                    "Approved and Denied conditions are mutually exclusive",
                );
            }
        }
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
        table::columns("Name Age SignerName Requestor RequestedDuration Condition")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let has = |kind: &str| items(&status["conditions"]).any(|(_, c)| c["type"] == kind);
        let mut state = match (has("Denied"), has("Approved")) {
            (true, _) => "Denied".to_owned(),
            (_, true) => "Approved".to_owned(),
            _ => "Pending".to_owned(),
        };
        if has("Failed") {
            state.push_str(",Failed");
        }
        if !text(&status["certificate"]).is_empty() {
            state.push_str(",Issued");
        }
        let duration = spec["expirationSeconds"]
            .as_i64()
            .map_or_else(|| "<none>".to_owned(), table::human_duration);
        let signer = match text(&spec["signerName"]) {
            "" => "<none>",
            name => name,
        };
        vec![
            table::name(object),
            table::age(object, now),
            signer.into(),
            text(&spec["username"]).into(),
            duration.into(),
            state.into(),
        ]
    }
}

/// Gives new or changed conditions their times.
fn stamp(object: &mut Value, old: &Value, now: &str) {
    let Some(Value::Array(conditions)) = object
        .get_mut("status")
        .and_then(|status| status.get_mut("conditions"))
    else {
        return;
    };
    for condition in conditions {
        if condition["lastUpdateTime"].is_null() {
            condition["lastUpdateTime"] = now.into();
        }
        if condition["lastTransitionTime"].is_null() {
            let before = items(&old["status"]["conditions"])
                .find(|(_, c)| c["type"] == condition["type"] && c["status"] == condition["status"])
                .map(|(_, c)| c["lastTransitionTime"].clone())
                .filter(|time| !time.is_null());
            condition["lastTransitionTime"] = before.unwrap_or_else(|| now.into());
        }
    }
}

/// The organizations of the subject that a request asks for: what will be its user's groups. None where it cannot be read,
/// which validation refuses.
pub fn requested_organizations(spec: &Value) -> Vec<String> {
    let pem = base64::engine::general_purpose::STANDARD.decode(text(&spec["request"]));
    let read = pem.map(|pem| {
        with_request(&pem, |request| {
            let subject = &request.certification_request_info.subject;
            let names = subject.iter_organization();
            names
                .filter_map(|name| Some(name.as_str().ok()?.to_owned()))
                .collect()
        })
    });
    read.ok().and_then(Result::ok).unwrap_or_default()
}

fn check_request(pem: &[u8]) -> Result<(), String> {
    with_request(pem, |_| ())
}

fn with_request<T>(
    pem: &[u8],
    look: impl FnOnce(&X509CertificationRequest<'_>) -> T,
) -> Result<T, String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem)
        .ok()
        .filter(|(_, pem)| pem.label == "CERTIFICATE REQUEST")
        .ok_or("PEM block type must be CERTIFICATE REQUEST")?;
    X509CertificationRequest::from_der(&pem.contents)
        .map(|(_, request)| look(&request))
        .map_err(|err| err.to_string())
}
