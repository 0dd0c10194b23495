//! Errors as the API words them: the `Status` object of `meta/v1` (apimachinery, `api/errors`).

use serde_json::{Value, json};

/// What is wrong with one field (apimachinery, `util/validation/field`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// `FieldValueInvalid`, `FieldValueRequired`, `FieldValueNotSupported`, `FieldValueForbidden`, `FieldValueDuplicate`,
    /// `FieldValueTooLong`, `FieldValueTooMany`, `FieldValueNotFound`, `FieldValueTypeInvalid` or `InternalError`.
    pub reason: &'static str,
    /// The field's path: `spec.containers[0].image`.
    pub field: String,
    /// The whole message without the field: `Required value: must specify an image`.
    pub message: String,
}

impl FieldError {
    /// A value that is there but not allowed; strings are quoted as kube-apiserver quotes them.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: &str) -> Self {
        Self {
            reason: "FieldValueInvalid",
            field: field.into(),
            message: format!("Invalid value: {}: {detail}", render(value)),
        }
    }

    /// A value that must be there.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        Self {
            reason: "FieldValueRequired",
            field: field.into(),
            message: with_detail("Required value", detail),
        }
    }

    /// A value that may not be there, or may not change.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Self {
            reason: "FieldValueForbidden",
            field: field.into(),
            message: with_detail("Forbidden", detail),
        }
    }

    /// A value that stands twice where it may stand once.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self {
            reason: "FieldValueDuplicate",
            field: field.into(),
            message: format!("Duplicate value: {}", render(value)),
        }
    }

    /// A value outside a fixed set.
    pub fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let list = supported
            .iter()
            .map(|s| format!("{s:?}"))
            .collect::<Vec<_>>()
            .join(", ");
        Self {
            reason: "FieldValueNotSupported",
            field: field.into(),
            message: format!(
                "Unsupported value: {}: supported values: {list}",
                render(value)
            ),
        }
    }

    /// A value that is longer than allowed; `what` is `characters` or `bytes`.
    pub fn too_long(field: impl Into<String>, max: usize, what: &str) -> Self {
        Self {
            reason: "FieldValueTooLong",
            field: field.into(),
            message: format!("Too long: may not be more than {max} {what}"),
        }
    }

    /// A list with too many items.
    pub fn too_many(field: impl Into<String>, actual: usize, max: usize) -> Self {
        Self {
            reason: "FieldValueTooMany",
            field: field.into(),
            message: format!("Too many: {actual}: must have at most {max} items"),
        }
    }
}

fn with_detail(what: &str, detail: &str) -> String {
    if detail.is_empty() {
        what.to_owned()
    } else {
        format!("{what}: {detail}")
    }
}

fn render(value: &Value) -> String {
    serde_json::to_string(value).expect("a JSON value always serialises")
}

/// An error of the API: everything that becomes a `Status` with `status: Failure`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status code.
    pub code: u16,
    /// The machine-readable reason: `NotFound`, `Conflict`, `Invalid`, …
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// `details` of the Status; `Value::Null` for none.
    pub details: Value,
}

impl ApiError {
    /// An error without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: Value::Null,
        }
    }

    fn named(
        code: u16,
        reason: &'static str,
        group: &str,
        kind: &str,
        name: &str,
        message: String,
    ) -> Self {
        let mut details = json!({ "kind": kind });
        if !name.is_empty() {
            details["name"] = name.into();
        }
        if !group.is_empty() {
            details["group"] = group.into();
        }
        Self {
            code,
            reason,
            message,
            details,
        }
    }

    /// 404: no such object. `plural` and `group` name the resource.
    pub fn not_found(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} {name:?} not found", qualified(plural, group));
        Self::named(404, "NotFound", group, plural, name, message)
    }

    /// 404: no such path.
    pub fn no_such_path() -> Self {
        Self {
            details: json!({}),
            ..Self::new(
                404,
                "NotFound",
                "the server could not find the requested resource",
            )
        }
    }

    /// 409: the name is taken.
    pub fn already_exists(group: &str, plural: &str, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", qualified(plural, group));
        Self::named(409, "AlreadyExists", group, plural, name, message)
    }

    /// 409: the object changed meanwhile, or a precondition failed.
    pub fn conflict(group: &str, plural: &str, name: &str, detail: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: {detail}",
            qualified(plural, group)
        );
        Self::named(409, "Conflict", group, plural, name, message)
    }

    /// 422: the object is invalid; `kind` is the kind, not the plural.
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let mut lines: Vec<String> = Vec::new();
        for error in errors {
            let line = format!("{}: {}", error.field, error.message);
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        let list = if lines.len() == 1 {
            lines[0].clone()
        } else {
            format!("[{}]", lines.join(", "))
        };
        let message = format!("{} {name:?} is invalid: {list}", qualified(kind, group));
        let mut error = Self::named(422, "Invalid", group, kind, name, message);
        error.details["causes"] = errors
            .iter()
            .map(|e| json!({ "reason": e.reason, "message": e.message, "field": e.field }))
            .collect();
        error
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401: no valid identity.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403: the identity may not do this, or admission refused it.
    pub fn forbidden(group: &str, plural: &str, name: &str, detail: &str) -> Self {
        let message = if name.is_empty() {
            format!("{} is forbidden: {detail}", qualified(plural, group))
        } else {
            format!(
                "{} {name:?} is forbidden: {detail}",
                qualified(plural, group)
            )
        };
        Self::named(403, "Forbidden", group, plural, name, message)
    }

    /// 405: the resource has no such verb.
    pub fn method_not_allowed() -> Self {
        Self {
            details: json!({}),
            ..Self::new(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            )
        }
    }

    /// 410: the resourceVersion or continue token is too old.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413: the body is too large.
    pub fn too_large(limit: usize) -> Self {
        Self::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit}"),
        )
    }

    /// 415: the server does not read this media type.
    pub fn unsupported_media_type(supported: &[&str]) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                supported.join(", ")
            ),
        )
    }

    /// 500: something of ours failed.
    pub fn internal(error: &dyn std::error::Error) -> Self {
        let mut message = format!("Internal error occurred: {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            message.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        Self {
            details: json!({ "causes": [{ "message": message.trim_start_matches("Internal error occurred: ") }] }),
            ..Self::new(500, "InternalError", message.clone())
        }
    }

    /// The `Status` object.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

/// `plural`, or `plural.group` outside the core group.
fn qualified(plural: &str, group: &str) -> String {
    if group.is_empty() {
        plural.to_owned()
    } else {
        format!("{plural}.{group}")
    }
}
