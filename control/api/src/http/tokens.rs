//! `serviceaccounts/token`: TokenRequest (kube-apiserver, `registry/core/serviceaccount/storage/token.go`).

use http::StatusCode;
use serde_json::{Value, json};

use super::body::RequestBody;
use super::dispatch::Call;
use super::objects;
use super::respond::{self, Answer};
use crate::auth::token::{Grant, Reference};
use crate::kinds;
use crate::registry::meta;
use crate::registry::operation::{Action, Operation};
use crate::registry::write::{Target, key};
use crate::resource::{Scope, Subresource};
use crate::status::{ApiError, FieldError};

/// The shortest life of a token, in seconds.
const MIN_SECONDS: i64 = 600;
/// How long a token lives if nothing is asked for.
const DEFAULT_SECONDS: i64 = 3600;
/// The longest life.
const MAX_SECONDS: i64 = 365 * 24 * 3600;

/// Answers a TokenRequest.
pub async fn request(call: &Call, target: &Target, body: RequestBody) -> Result<Answer, ApiError> {
    let output = objects::unstored_output(call)?;
    let gvk = kinds::gvk("authentication.k8s.io/v1", "TokenRequest");
    let request = objects::decode(call, &gvk, body).await?.object;
    let account = target
        .collection
        .get(&target.key())
        .ok_or_else(|| target.not_found())?;
    let account = Reference {
        name: account.name().to_owned(),
        uid: account.uid.to_string(),
    };
    let mut operation = Operation::new(Action::Create, target, &call.context()?).on(
        Subresource::Token,
        gvk,
        request,
    );
    call.server.registry.admit(&mut operation).await?;
    let mut request = operation.new.unwrap_or_default();
    let seconds = request["spec"]["expirationSeconds"]
        .as_i64()
        .unwrap_or(DEFAULT_SECONDS);
    if !(MIN_SECONDS..=1 << 32).contains(&seconds) {
        let detail = if seconds < MIN_SECONDS {
            "may not specify a duration less than 10 minutes"
        } else {
            "may not specify a duration larger than 2^32 seconds"
        };
        let error = FieldError::invalid("spec.expirationSeconds", &seconds.into(), detail);
        return Err(ApiError::invalid(
            "authentication.k8s.io",
            "TokenRequest",
            "",
            &[error],
        ));
    }
    let mut grant = Grant {
        namespace: target.namespace.clone(),
        account,
        audiences: strings(&request["spec"]["audiences"]),
        seconds: seconds.min(MAX_SECONDS),
        pod: None,
        secret: None,
        node: None,
    };
    bind(call, target, &request["spec"]["boundObjectRef"], &mut grant)?;
    let (token, expires) = call.server.tokens.sign(&grant)?;
    let audiences = call.server.tokens.audiences_or_default(&grant.audiences);
    request["metadata"] = json!({ "name": target.name, "namespace": target.namespace, "creationTimestamp": meta::now() });
    request["spec"]["audiences"] = json!(audiences);
    request["spec"]["expirationSeconds"] = grant.seconds.into();
    request["status"] = json!({ "token": token, "expirationTimestamp": meta::timestamp(expires) });
    Ok(respond::unstored(StatusCode::CREATED, &request, output))
}

/// Binds the token to the object that the request names, which must exist and use the account.
fn bind(
    call: &Call,
    target: &Target,
    reference: &Value,
    grant: &mut Grant,
) -> Result<(), ApiError> {
    if reference.is_null() {
        return Ok(());
    }
    let text = |field: &str| reference[field].as_str().unwrap_or_default().to_owned();
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    let plural = match (&*text("apiVersion"), &*kind) {
        ("v1", "Pod") => "pods",
        ("v1", "Secret") => "secrets",
        ("v1", "Node") => "nodes",
        (version, _) => {
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to {version}, Kind={kind}",
                target.name
            )));
        }
    };
    let entry = call
        .server
        .registry
        .find("", "v1", plural)
        .and_then(|(resource, collection)| {
            let namespace = match resource.scope {
                Scope::Namespaced => &*target.namespace,
                Scope::Cluster => "",
            };
            collection?.get(&key(namespace, &name))
        })
        .ok_or_else(|| ApiError::not_found("", plural, &name))?;
    if !uid.is_empty() && *uid != *entry.uid {
        return Err(ApiError::conflict(
            "",
            plural,
            &name,
            &format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            ),
        ));
    }
    let bound = Reference {
        name,
        uid: entry.uid.to_string(),
    };
    if kind == "Secret" {
        grant.secret = Some(bound);
        return Ok(());
    }
    if kind == "Node" {
        grant.node = Some(bound);
        return Ok(());
    }
    let pod = entry.parse();
    if pod["spec"]["serviceAccountName"].as_str() != Some(&*target.name) {
        return Err(ApiError::bad_request(format!(
            "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
            target.name
        )));
    }
    let node = pod["spec"]["nodeName"]
        .as_str()
        .filter(|name| !name.is_empty())
        .map(|name| {
            let uid = call
                .server
                .registry
                .collection("minions")
                .and_then(|c| c.get(name));
            Reference {
                name: name.to_owned(),
                uid: uid.map(|entry| entry.uid.to_string()).unwrap_or_default(),
            }
        });
    grant.pod = Some((bound, node));
    Ok(())
}

/// The strings of a JSON list.
pub fn strings(list: &Value) -> Vec<String> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}
