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
use crate::auth::rbac::PolicyRule;
use crate::auth::{self, UserInfo};
use crate::registry::operation::{Action, Operation};
use crate::registry::selector;
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
        options: None,
        warnings: Vec::new(),
        rounds: Default::default(),
    };
    call.server.registry.admit(&mut operation).await?;
    let mut review = operation.new.unwrap_or_default();
    review["status"] = match asked {
        Review::Token => token(call, &review["spec"])?,
        Review::SelfSubject => json!({ "userInfo": call.user.to_json() }),
        Review::SelfSubjectAccess => access(call, &call.user, &review["spec"]),
        Review::SelfSubjectRules => rules(call, &review["spec"])?,
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

/// What the user may do in a namespace, as a SubjectRulesReviewStatus.
fn rules(call: &Call, spec: &Value) -> Result<Value, ApiError> {
    let namespace = spec["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let known = call.server.authorizer.rules(&call.user, namespace);
    let (paths, resources): (Vec<_>, Vec<_>) =
        (known.rules.iter()).partition(|rule: &&PolicyRule| !rule.non_resource_urls.is_empty());
    let json = |rules: Vec<&PolicyRule>| -> Vec<Value> {
        rules.into_iter().map(PolicyRule::to_json).collect()
    };
    let mut status = json!({
        "resourceRules": json(resources),
        "nonResourceRules": json(paths),
        "incomplete": !known.errors.is_empty(),
    });
    if !known.errors.is_empty() {
        status["evaluationError"] = known.errors.join(", ").into();
    }
    Ok(status)
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

/// The fields that must have one value, of the `fieldSelector` of a review: as text, or as requirements.
fn equalities(of: &Value) -> Vec<(String, String)> {
    if let Some(text) = of["rawSelector"].as_str() {
        return selector::equalities(text);
    }
    let requirements = of["requirements"].as_array().into_iter().flatten();
    let equality = |requirement: &Value| {
        let [value] = requirement["values"].as_array()?.as_slice() else {
            return None;
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        (requirement["operator"] == "In").then_some(())?;
        Some((text(&requirement["key"])?, text(value)?))
    };
    requirements.filter_map(equality).collect()
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
    let equalities = equalities(&resource["fieldSelector"]);
    let fields: Vec<(&str, &str)> = (equalities.iter())
        .map(|(field, value)| (&**field, &**value))
        .collect();
    let name = match &*name {
        "" => selector::only_name(&fields).unwrap_or_default(),
        name => name,
    };
    let decision = call.server.authorizer.authorize(
        user,
        &Attributes {
            verb: &verb,
            group: &group,
            resource: &plural,
            subresource: &subresource,
            namespace: &namespace,
            name,
            path: &path,
            fields: &fields,
        },
    );
    let mut status = json!({ "allowed": decision.allowed });
    if !decision.reason.is_empty() {
        status["reason"] = decision.reason.into();
    }
    status
}
