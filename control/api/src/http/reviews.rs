//! Resources that exist only as requests: who somebody is, and what they may do.

use std::sync::Arc;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::body::RequestBody;
use super::dispatch::Call;
use super::objects;
use super::path::ResourcePath;
use super::respond::{self, Answer};
use super::tokens::strings;
use crate::auth::authorize::Attributes;
use crate::auth::{self, UserInfo};
use crate::registry::operation::{Action, Operation};
use crate::resource::Resource;
use crate::status::{ApiError, FieldError};
use crate::strategy::Review;

/// Answers a review.
pub async fn answer(
    call: &Call,
    resource: &Arc<Resource>,
    path: &ResourcePath,
    body: RequestBody,
) -> Result<Answer, ApiError> {
    if call.parts.method != Method::POST || !path.name.is_empty() {
        return Err(ApiError::method_not_allowed());
    }
    let output = objects::unstored_output(call)?;
    let asked = resource.strategy.review();
    let asked = asked.ok_or_else(ApiError::method_not_allowed)?;
    let mut review = objects::decode(call, &resource.gvk, body).await?.object;
    if !review["metadata"].is_object() {
        review["metadata"] = json!({});
    }
    let mut operation = Operation {
        context: call.context()?,
        action: Action::Create,
        resource: resource.clone(),
        subresource: None,
        namespace: path.namespace.clone(),
        name: String::new(),
        kind: resource.gvk.clone(),
        old: None,
        new: Some(review),
        warnings: Vec::new(),
    };
    call.server.registry.admit(&mut operation).await?;
    let mut review = operation.new.unwrap_or_default();
    review["status"] = match asked {
        Review::Token => token(call, &review["spec"])?,
        Review::SelfSubject => json!({ "userInfo": call.user.to_json() }),
        Review::SelfSubjectAccess => access(call, &call.user, &review["spec"]),
        Review::SubjectAccess => access(call, &subject(&review["spec"])?, &review["spec"]),
    };
    Ok(respond::unstored(StatusCode::CREATED, &review, output))
}

fn token(call: &Call, spec: &Value) -> Result<Value, ApiError> {
    let token = spec["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(ApiError::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let server = &call.server;
    let audiences = strings(&spec["audiences"]);
    Ok(
        match auth::by_token(&server.registry, &server.tokens, token, &audiences) {
            Some((user, audiences)) => {
                json!({ "authenticated": true, "user": user.to_json(), "audiences": audiences })
            }
            None => json!({ "user": {}, "error": "invalid bearer token" }),
        },
    )
}

/// The user that a SubjectAccessReview asks about.
fn subject(spec: &Value) -> Result<UserInfo, ApiError> {
    let name = spec["user"].as_str().unwrap_or_default();
    let groups = strings(&spec["groups"]);
    if name.is_empty() && groups.is_empty() {
        let error = FieldError::required(
            "spec.user",
            "at least one of user or group must be specified",
        );
        return Err(ApiError::invalid(
            "authorization.k8s.io",
            "SubjectAccessReview",
            "",
            &[error],
        ));
    }
    Ok(UserInfo {
        name: name.to_owned(),
        groups,
        ..UserInfo::default()
    })
}

fn access(call: &Call, user: &UserInfo, spec: &Value) -> Value {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let text = |of: &'_ Value, field: &str| of[field].as_str().unwrap_or_default().to_owned();
    let fields = if resource.is_object() { resource } else { path };
    let (verb, group, plural) = (
        text(fields, "verb"),
        text(resource, "group"),
        text(resource, "resource"),
    );
    let (subresource, namespace) = (text(resource, "subresource"), text(resource, "namespace"));
    let (name, path) = (text(resource, "name"), text(path, "path"));
    let decision = call.server.authorizer.authorize(
        user,
        &Attributes {
            verb: &verb,
            group: &group,
            resource: &plural,
            subresource: &subresource,
            namespace: &namespace,
            name: &name,
            path: &path,
        },
    );
    let mut status = json!({ "allowed": decision.allowed });
    if !decision.reason.is_empty() {
        status["reason"] = decision.reason.into();
    }
    status
}
