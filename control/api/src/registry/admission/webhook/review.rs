//! AdmissionReview: what a webhook is asked, and what it may answer (apiserver, `plugin/webhook/request/admissionreview.go` and
//! `errors/statuserror.go`).

use base64::Engine as _;
use serde::Deserialize;
use serde_json::{Value, json};

use super::matching::{Invocation, namespace_of, word};
use crate::registry::operation::{Action, Operation};
use crate::resource::GroupVersionKind;
use crate::status::ApiError;

/// The reasons of `meta/v1` Status; a webhook's own words are in the message.
#[rustfmt::skip] // A list.
const REASONS: [&str; 20] = [
    "AlreadyExists", "BadRequest", "Conflict", "Expired", "Forbidden", "Gone", "InternalError", "Invalid", "MethodNotAllowed",
    "NotAcceptable", "NotFound", "RequestEntityTooLarge", "ServerTimeout", "ServiceUnavailable", "StoreReadError", "Timeout",
    "TooManyRequests", "Unauthorized", "UnsupportedMediaType", "Unknown",
];

/// A version of `admission.k8s.io`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// `v1`, whose answers are checked.
    V1,
    /// `v1beta1`, whose answers never were: neither uid nor kind nor patchType.
    V1beta1,
}

impl Version {
    /// The first of a webhook's versions that is known here.
    pub fn of(versions: &[String]) -> Option<Self> {
        versions.iter().find_map(|version| match &**version {
            "v1" => Some(Self::V1),
            "v1beta1" => Some(Self::V1beta1),
            _ => None,
        })
    }

    fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "admission.k8s.io/v1",
            Self::V1beta1 => "admission.k8s.io/v1beta1",
        }
    }
}

/// Whether a webhook may change what it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It may answer with a patch.
    Mutating,
    /// It may only say yes or no.
    Validating,
}

/// The request of a review: the operation as `invocation` sees it.
pub fn request(version: Version, uid: &str, operation: &Operation, seen: &Invocation) -> Value {
    let kind = |gvk: &GroupVersionKind| json!({ "group": gvk.group, "version": gvk.version, "kind": gvk.kind });
    let resource = |resource: &crate::resource::Resource| {
        let gvk = &resource.gvk;
        json!({ "group": gvk.group, "version": gvk.version, "resource": resource.plural })
    };
    let mut request = json!({
        "uid": uid,
        "kind": kind(&seen.kind),
        "resource": resource(&seen.resource),
        "requestKind": kind(&operation.kind),
        "requestResource": resource(&operation.resource),
        "operation": word(operation.action),
        "userInfo": operation.context.user.to_json(),
        "object": shown(operation.new.as_ref(), operation, seen),
        "oldObject": shown(operation.old.as_ref(), operation, seen),
        "dryRun": operation.context.dry_run,
        "options": options(operation),
    });
    let part = operation.subresource.map_or("", |part| part.name());
    for (field, text) in [
        ("subResource", part),
        ("requestSubResource", part),
        ("name", &operation.name),
        ("namespace", namespace_of(operation)),
    ] {
        if !text.is_empty() {
            request[field] = text.into();
        }
    }
    json!({ "kind": "AdmissionReview", "apiVersion": version.api_version(), "request": request })
}

/// An object in the version that the webhook sees.
pub fn shown(object: Option<&Value>, operation: &Operation, seen: &Invocation) -> Value {
    let Some(object) = object else {
        return Value::Null;
    };
    let mut object = object.clone();
    if operation.is_whole() && object["apiVersion"] != *seen.kind.api_version() {
        operation.resource.convert(&mut object, &seen.kind);
    }
    object
}

/// The options of the request; a connection has none, its options are the object.
fn options(operation: &Operation) -> Value {
    let kind = match operation.action {
        Action::Create => "CreateOptions",
        Action::Update => "UpdateOptions",
        Action::Delete => "DeleteOptions",
        Action::Connect => return Value::Null,
    };
    let mut options = match &operation.options {
        Some(options) => options.clone(),
        None => json!({}),
    };
    options["kind"] = kind.into();
    options["apiVersion"] = "meta.k8s.io/v1".into();
    if operation.context.dry_run {
        options["dryRun"] = json!(["All"]);
    }
    options
}

/// What a webhook answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Response {
    /// Whether the request may go on.
    pub allowed: bool,
    /// The `Status` that says why not.
    pub status: Value,
    /// A JSON patch; empty for none.
    pub patch: Vec<u8>,
    /// For `Warning` headers.
    pub warnings: Vec<String>,
}

/// Why an answer is no answer, in the words of kube-apiserver.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// The review has no response.
    #[error("webhook response was absent")]
    Absent,
    /// It answers another review.
    #[error("expected response.uid={expected:?}, got {got:?}")]
    Uid {
        /// The uid of the review.
        expected: String,
        /// That of the response.
        got: String,
    },
    /// It is not a review, or one of another version.
    #[error(
        "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {got}, Kind={kind}"
    )]
    Kind {
        /// Its group and version.
        got: String,
        /// Its kind.
        kind: String,
    },
    /// It does not say what kind of patch it is.
    #[error("webhook returned response.patch but not response.patchType")]
    PatchWithoutType,
    /// It says so of no patch.
    #[error("webhook returned response.patchType but not response.patch")]
    TypeWithoutPatch,
    /// The kind of patch has no name.
    #[error("webhook returned invalid response.patchType of \"\"")]
    EmptyType,
    /// The patch is no JSON patch.
    #[error("unsupported patch type {0:?}")]
    UnknownType(String),
    /// Only a mutating webhook may patch.
    #[error("validating webhook may not return response.patch")]
    PatchFromValidating,
    /// Only a mutating webhook may patch.
    #[error("validating webhook may not return response.patchType")]
    TypeFromValidating,
    /// The patch is not readable.
    #[error("response.patch is not base64")]
    Base64 {
        /// Why.
        source: base64::DecodeError,
    },
}

/// An AdmissionReview as it is written.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Written {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    api_version: String,
    response: Option<WrittenResponse>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WrittenResponse {
    uid: String,
    allowed: bool,
    status: Option<Value>,
    patch: Option<String>,
    patch_type: Option<String>,
    warnings: Option<Vec<String>>,
}

/// Checks an answer to the review `uid`.
///
/// # Errors
///
/// If it is not a valid one.
pub fn check(
    version: Version,
    uid: &str,
    role: Role,
    written: Written,
) -> Result<Response, ReviewError> {
    let response = written.response.ok_or(ReviewError::Absent)?;
    if version == Version::V1 {
        if response.uid != uid {
            return Err(ReviewError::Uid {
                expected: uid.to_owned(),
                got: response.uid,
            });
        }
        if written.api_version != version.api_version() || written.kind != "AdmissionReview" {
            // As Go writes a group and version, of which either may be empty.
            let got = match written.api_version.contains('/') {
                true => written.api_version,
                false => format!("/{}", written.api_version),
            };
            let kind = written.kind;
            return Err(ReviewError::Kind { got, kind });
        }
    }
    let patch = base64::engine::general_purpose::STANDARD
        .decode(response.patch.unwrap_or_default())
        .map_err(|source| ReviewError::Base64 { source })?;
    let patch = match (version, role) {
        (Version::V1, Role::Mutating) => match (&response.patch_type, patch.is_empty()) {
            (None, false) => return Err(ReviewError::PatchWithoutType),
            (Some(_), true) => return Err(ReviewError::TypeWithoutPatch),
            (Some(kind), false) if kind.is_empty() => return Err(ReviewError::EmptyType),
            (Some(kind), false) if kind != "JSONPatch" => {
                return Err(ReviewError::UnknownType(kind.clone()));
            }
            _ => patch,
        },
        (Version::V1, Role::Validating) if !patch.is_empty() => {
            return Err(ReviewError::PatchFromValidating);
        }
        (Version::V1, Role::Validating) if response.patch_type.is_some() => {
            return Err(ReviewError::TypeFromValidating);
        }
        (Version::V1beta1, Role::Mutating) => patch,
        (_, Role::Validating) => Vec::new(),
    };
    Ok(Response {
        allowed: response.allowed,
        status: response.status.unwrap_or_default(),
        patch,
        warnings: response.warnings.unwrap_or_default(),
    })
}

/// The refusal of a webhook, from the Status of its answer.
///
/// Less than 400 is no code for a refusal and becomes 400. A reason that is none of `meta/v1` is not passed on as such; it is in
/// the message unless that says something else.
pub fn denial(webhook: &str, status: &Value) -> ApiError {
    let text = |field: &str| status[field].as_str().unwrap_or_default();
    let denied = format!("admission webhook {webhook:?} denied the request");
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    let code = status["code"].as_u64().unwrap_or(0);
    let code = u16::try_from(code).unwrap_or(0);
    let known = REASONS.iter().find(|known| **known == text("reason"));
    ApiError {
        code: if (400..=599).contains(&code) {
            code
        } else {
            400
        },
        reason: known.copied().unwrap_or_default(),
        message,
        details: status["details"].clone(),
    }
}
