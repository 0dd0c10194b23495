//! Writing through the API: bodies are JSON as the controller makes it, answers are decoded only as far as they are needed.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{
    DeleteParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy, Request,
};
use kube::{Client, Error, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::model::{self, Written};

/// A kind that is known when the program is built.
pub trait Kind: Resource<DynamicType = ()> {}
impl<K: Resource<DynamicType = ()>> Kind for K {}

/// The requests of a kind in a namespace, or of the cluster if that is empty.
fn requests<K: Kind>(namespace: &str) -> Request {
    Request::new(K::url_path(
        &(),
        (!namespace.is_empty()).then_some(namespace),
    ))
}

fn encode(body: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(body).map_err(Error::SerdeError)
}

async fn send<T: DeserializeOwned>(
    client: &Client,
    request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
) -> Result<T, Error> {
    client.request(request.map_err(Error::BuildRequest)?).await
}

/// Creates an object of kind `K` and answers with what was stored, as `T`.
pub async fn create<K: Kind, T: DeserializeOwned>(
    client: &Client,
    namespace: &str,
    body: &impl Serialize,
) -> Result<T, Error> {
    let params = PostParams::default();
    send(
        client,
        requests::<K>(namespace).create(&params, encode(body)?),
    )
    .await
}

/// Reads an object of kind `K` from the server, past the cache.
pub async fn get<K: Kind, T: DeserializeOwned>(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<T, Error> {
    let params = kube::api::GetParams::default();
    send(client, requests::<K>(namespace).get(name, &params)).await
}

/// Changes an object by a merge patch.
///
/// A `metadata.resourceVersion` or `metadata.uid` in the patch makes it conditional.
pub async fn patch<K: Kind>(
    client: &Client,
    namespace: &str,
    name: &str,
    body: &impl Serialize,
) -> Result<Written, Error> {
    let params = PatchParams::default();
    let request = requests::<K>(namespace).patch(name, &params, &Patch::Merge(body));
    send(client, request).await
}

/// Changes an object's metadata lists by a strategic merge patch, whose lists are merged by key.
pub async fn patch_strategic<K: Kind>(
    client: &Client,
    namespace: &str,
    name: &str,
    body: &impl Serialize,
) -> Result<Written, Error> {
    let params = PatchParams::default();
    let request = requests::<K>(namespace).patch(name, &params, &Patch::Strategic(body));
    send(client, request).await
}

/// Changes an object's status by a merge patch.
pub async fn patch_status<K: Kind>(
    client: &Client,
    namespace: &str,
    name: &str,
    body: &impl Serialize,
) -> Result<Written, Error> {
    let (params, patch) = (PatchParams::default(), Patch::Merge(body));
    let request = requests::<K>(namespace).patch_subresource("status", name, &params, &patch);
    send(client, request).await
}

/// Changes an object's status by a strategic merge patch, whose lists (conditions, say) are merged by key.
pub async fn patch_status_strategic<K: Kind>(
    client: &Client,
    namespace: &str,
    name: &str,
    body: &impl Serialize,
) -> Result<Written, Error> {
    let (params, patch) = (PatchParams::default(), Patch::Strategic(body));
    let request = requests::<K>(namespace).patch_subresource("status", name, &params, &patch);
    send(client, request).await
}

/// Posts to a part of an object (`binding`, `eviction`).
pub async fn create_part<K: Kind>(
    client: &Client,
    namespace: &str,
    name: &str,
    part: &str,
    body: &impl Serialize,
) -> Result<(), Error> {
    let (params, body) = (PostParams::default(), encode(body)?);
    let request = requests::<K>(namespace).create_subresource(part, name, &params, body);
    send::<serde::de::IgnoredAny>(client, request).await?;
    Ok(())
}

/// Replaces an object.
pub async fn replace<K: Kind>(
    client: &Client,
    namespace: &str,
    name: &str,
    body: &impl Serialize,
) -> Result<Written, Error> {
    let params = PostParams::default();
    send(
        client,
        requests::<K>(namespace).replace(name, &params, encode(body)?),
    )
    .await
}

/// Replaces a part of an object (`status`, `approval`, `finalize`).
pub async fn replace_part<K: Kind>(
    client: &Client,
    namespace: &str,
    name: &str,
    part: &str,
    body: &impl Serialize,
) -> Result<Written, Error> {
    let (params, body) = (PostParams::default(), encode(body)?);
    let request = requests::<K>(namespace).replace_subresource(part, name, &params, body);
    send(client, request).await
}

/// Deletes exactly this object, not a later one of the same name; that it is gone already is fine.
pub async fn delete<K: Kind>(
    client: &Client,
    meta: &ObjectMeta,
    options: Delete,
) -> Result<(), Error> {
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: meta.uid.clone(),
            resource_version: None,
        }),
        grace_period_seconds: options.grace,
        propagation_policy: options.propagation,
        ..DeleteParams::default()
    };
    let request = requests::<K>(model::namespace(meta)).delete(model::name(meta), &params);
    match send::<Written>(client, request).await {
        Err(error) if is_not_found(&error) => Ok(()),
        other => other.map(|_| ()),
    }
}

/// How to delete; by default as the kind does.
#[derive(Clone, Debug, Default)]
pub struct Delete {
    /// Grace period in seconds.
    pub grace: Option<u32>,
    /// What becomes of the dependents.
    pub propagation: Option<PropagationPolicy>,
}

fn code(error: &Error) -> Option<u16> {
    match error {
        Error::Api(status) => Some(status.code),
        _ => None,
    }
}

fn reason(error: &Error) -> &str {
    match error {
        Error::Api(status) => &status.reason,
        _ => "",
    }
}

/// Whether the object does not exist.
pub fn is_not_found(error: &Error) -> bool {
    code(error) == Some(404)
}

/// Whether a condition on the object did not hold: somebody else was faster.
pub fn is_conflict(error: &Error) -> bool {
    code(error) == Some(409) && reason(error) != "AlreadyExists"
}

/// Whether the name is taken.
pub fn is_already_exists(error: &Error) -> bool {
    reason(error) == "AlreadyExists"
}

/// Whether the object was refused because its namespace is going away.
pub fn is_namespace_terminating(error: &Error) -> bool {
    match error {
        Error::Api(status) => {
            status.details.as_ref().is_some_and(|details| {
                details
                    .causes
                    .iter()
                    .any(|cause| cause.reason == "NamespaceTerminating")
            }) || (status.code == 403 && status.message.contains("because it is being terminated"))
        }
        _ => false,
    }
}
