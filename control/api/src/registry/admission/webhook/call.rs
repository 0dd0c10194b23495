//! One webhook, from question to answer, and what its patch makes of the object (apiserver, `plugin/webhook/mutating/dispatcher.go`).

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

use super::client::ClientError;
use super::config::{Hook, SideEffects};
use super::matching::Invocation;
use super::messages::PostError;
use super::review::{self, Response, ReviewError, Role, Version};
use crate::patch::json_patch;
use crate::registry::Registry;
use crate::registry::meta;
use crate::registry::operation::{Action, Operation};
use crate::schema::FieldValidation;
use crate::status::{ApiError, FieldError};

/// What the server sets itself: a webhook sees these fields and cannot change them.
const OF_THE_SERVER: [&str; 7] = [
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Why there is no answer: for this, a webhook has a failurePolicy.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// A dry run, and nobody knows what the webhook would do.
    #[error("Webhook SideEffects is nil")]
    SideEffectsUnset,
    /// It reads no version of AdmissionReview that is known here.
    #[error(
        "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)"
    )]
    Versions,
    /// Its clientConfig cannot be used.
    #[error("could not get REST client")]
    Client {
        /// Why.
        source: Arc<ClientError>,
    },
    /// It did not answer, or with a refusal.
    #[error("failed to call webhook")]
    Post {
        /// Why.
        source: PostError,
    },
    /// The answer is not JSON, or not of the right shape.
    #[error("failed to call webhook: couldn't get version/kind; json parse error")]
    Decode {
        /// Why.
        source: serde_json::Error,
    },
    /// The answer is no valid one.
    #[error("received invalid webhook response")]
    Review {
        /// Why.
        source: ReviewError,
    },
    /// The patch is not a JSON patch.
    #[error("received undecodable patch in webhook response")]
    Patch {
        /// Why.
        source: ApiError,
    },
}

/// Why a webhook's turn ended badly.
#[derive(Debug)]
pub enum Failure {
    /// It could not be called: its failurePolicy decides.
    Call(CallError),
    /// The request is refused, whatever the failurePolicy.
    Decided(ApiError),
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

/// Asks a webhook about an operation.
///
/// # Errors
///
/// If there is no valid answer; 400 for a dry run that a webhook with side effects would see.
pub async fn ask(
    registry: &Registry,
    hook: &Hook,
    operation: &Operation,
    seen: &Invocation,
    role: Role,
) -> Result<Response, Failure> {
    if operation.context.dry_run {
        match hook.side_effects {
            Some(SideEffects::None | SideEffects::NoneOnDryRun) => {}
            None => return Err(CallError::SideEffectsUnset.into()),
            Some(SideEffects::Some | SideEffects::Unknown) => {
                return Err(Failure::Decided(ApiError::bad_request(format!(
                    "admission webhook {:?} does not support dry run",
                    hook.name
                ))));
            }
        }
    }
    let version = Version::of(&hook.review_versions).ok_or(CallError::Versions)?;
    let uid = uuid::Uuid::new_v4().to_string();
    let request = review::request(version, &uid, operation, seen);
    let client = hook.client.as_ref().map_err(|source| CallError::Client {
        source: source.clone(),
    })?;
    let answer = client
        .post(registry, hook.timeout, Bytes::from(request.to_string()))
        .await
        .map_err(|source| CallError::Post { source })?;
    let written = serde_json::from_slice(&answer).map_err(|source| CallError::Decode { source })?;
    let response = review::check(version, &uid, role, written)
        .map_err(|source| CallError::Review { source })?;
    Ok(response)
}

/// Patches the object as the webhook wants; whether that changed it. It has its defaults again afterwards.
///
/// # Errors
///
/// 500 for a patch that does not apply, or whose result is not an object of the kind; the failurePolicy decides about what is
/// no patch at all.
pub fn apply(
    registry: &Registry,
    hook: &Hook,
    operation: &mut Operation,
    seen: &Invocation,
    patch: &[u8],
) -> Result<bool, Failure> {
    let internal = |error: ApiError| Failure::Decided(ApiError::internal(&error));
    let operations: Vec<Value> = serde_json::from_slice(patch).map_err(|error| {
        let source = ApiError::bad_request(error.to_string());
        CallError::Patch { source }
    })?;
    if operations.is_empty() {
        return Ok(false);
    }
    // A deletion has no object; what its options say is not the webhook's to change.
    let Some(before) = operation.new.clone() else {
        let message = format!(
            "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
            hook.name
        );
        return Err(internal(ApiError::bad_request(message)));
    };
    let shown = review::shown(Some(&before), operation, seen);
    let patched = json_patch(&shown, patch).map_err(|error| match error.code {
        400 => Failure::Call(CallError::Patch { source: error }),
        _ => internal(error),
    })?;
    let schemas = &registry.table().schemas;
    let decoded = schemas.check(&seen.kind, patched, FieldValidation::Ignore);
    let mut new = decoded.map_err(internal)?.object;
    let whole = operation.is_whole();
    if whole {
        if seen.kind != operation.kind {
            seen.resource.schema.apply_defaults(&mut new);
            seen.resource.strategy.default(&mut new);
            seen.resource.convert(&mut new, &operation.resource.gvk);
        }
        keep_identity(operation, &before, &mut new).map_err(Failure::Decided)?;
    }
    let changed = new != before;
    operation.new = Some(new);
    registry.default(operation);
    Ok(changed)
}

/// Puts back what the server set before the webhooks' turn, and refuses another identity in the words of the checks that
/// kube-apiserver makes after it (apiserver, `registry/rest/{create,update}.go`).
fn keep_identity(operation: &Operation, before: &Value, new: &mut Value) -> Result<(), ApiError> {
    let metadata = meta::metadata(new);
    for field in OF_THE_SERVER {
        match before["metadata"].get(field) {
            Some(value) => metadata.insert(field.to_owned(), value.clone()),
            None => metadata.remove(field),
        };
    }
    if operation.action == Action::Create {
        if meta::text(new, "namespace") != meta::text(before, "namespace") {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        return Ok(());
    }
    let changed = ["name", "namespace"].into_iter();
    let errors: Vec<_> = changed
        .filter(|field| meta::text(new, field) != meta::text(before, field))
        .map(|field| {
            let value = Value::from(meta::text(new, field));
            FieldError::invalid(format!("metadata.{field}"), &value, "field is immutable")
        })
        .collect();
    if errors.is_empty() {
        return Ok(());
    }
    let gvk = &operation.resource.gvk;
    let name = &operation.name;
    Err(ApiError::invalid(&gvk.group, &gvk.kind, name, &errors))
}
