//! Subresources: `status` and its like, `scale`, `binding`, `eviction`; the rest is `tokens` and `node`.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::body::RequestBody;
use super::dispatch::Call;
use super::negotiate::Output;
use super::objects::{self, Patch};
use super::path::ResourcePath;
use super::respond::{self, Answer};
use super::{node, tokens};
use crate::kinds;
use crate::registry::delete::DeleteRequest;
use crate::registry::meta;
use crate::registry::write::{Change, Target};
use crate::resource::Subresource;
use crate::schema::Schemas;
use crate::status::ApiError;

fn by_name(name: &str) -> Option<Subresource> {
    Some(match name {
        "status" => Subresource::Status,
        "scale" => Subresource::Scale,
        "log" => Subresource::Log,
        "exec" => Subresource::Exec,
        "attach" => Subresource::Attach,
        "portforward" => Subresource::PortForward,
        "proxy" => Subresource::Proxy,
        "binding" => Subresource::Binding,
        "eviction" => Subresource::Eviction,
        "ephemeralcontainers" => Subresource::EphemeralContainers,
        "resize" => Subresource::Resize,
        "token" => Subresource::Token,
        "approval" => Subresource::Approval,
        "finalize" => Subresource::Finalize,
        _ => return None,
    })
}

/// Answers a request for a subresource.
pub async fn answer(
    call: Call,
    target: Target,
    path: &ResourcePath,
    body: RequestBody,
) -> Result<Answer, ApiError> {
    let subresource = by_name(&path.subresource)
        .filter(|subresource| target.resource.subresources.contains(subresource))
        .ok_or_else(ApiError::no_such_path)?;
    let method = call.parts.method.clone();
    match (subresource, method) {
        (Subresource::Scale, method) => scale(&call, &target, method, body).await,
        (Subresource::Log, Method::GET) => node::log(call, target).await,
        (Subresource::Exec, Method::GET | Method::POST) => node::exec(call, target, "exec").await,
        (Subresource::Attach, Method::GET | Method::POST) => {
            node::exec(call, target, "attach").await
        }
        (Subresource::PortForward, Method::GET | Method::POST) => {
            node::port_forward(call, target).await
        }
        (Subresource::Proxy, _) => node::proxy(call, target, path, body).await,
        (Subresource::Binding, Method::POST) => binding(&call, &target, body).await,
        (Subresource::Eviction, Method::POST) => eviction(&call, &target, body).await,
        (Subresource::Token, Method::POST) => tokens::request(&call, &target, body).await,
        (Subresource::Finalize, Method::PUT) => {
            objects::update(&call, &target, Some(subresource), body).await
        }
        (
            Subresource::Status
            | Subresource::Approval
            | Subresource::EphemeralContainers
            | Subresource::Resize,
            method,
        ) => match method {
            Method::GET => objects::get(&call, &target),
            Method::PUT => objects::update(&call, &target, Some(subresource), body).await,
            Method::PATCH => objects::patch(&call, &target, Some(subresource), body).await,
            _ => Err(ApiError::method_not_allowed()),
        },
        _ => Err(ApiError::method_not_allowed()),
    }
}

/// The Status that an action without a result of its own returns.
fn done(code: StatusCode) -> Answer {
    let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code.as_u16() });
    respond::value(code, &status, Output::JSON)
}

async fn scale(
    call: &Call,
    target: &Target,
    method: Method,
    body: RequestBody,
) -> Result<Answer, ApiError> {
    let output = objects::output(call)?;
    let strategy = target.resource.strategy.clone();
    let gvk = kinds::gvk("autoscaling/v1", "Scale");
    let scale_of = |object: &Value| strategy.scale(object).ok_or_else(ApiError::no_such_path);
    let entry = target
        .collection
        .get(&target.key())
        .ok_or_else(|| target.not_found())?;
    if method == Method::GET {
        return Ok(respond::value(
            StatusCode::OK,
            &scale_of(&entry.parse())?,
            output,
        ));
    }
    let ctx = call.context()?;
    let change: Box<Change<'_>> = match method {
        Method::PUT => {
            let wanted = objects::decode(call, &gvk, body).await?.object;
            Box::new(move |_| Ok(wanted.clone()))
        }
        Method::PATCH => {
            let patch = Patch::read(call, body).await?;
            let mode = objects::field_validation(call)?;
            let gvk = gvk.clone();
            Box::new(move |scale| {
                Ok(Schemas::builtin()
                    .check(&gvk, patch.apply(&gvk, scale)?, mode)?
                    .object)
            })
        }
        _ => return Err(ApiError::method_not_allowed()),
    };
    let scaled = |old: &Value| {
        let mut wanted = change(&scale_of(old)?)?;
        objects::named_as_in_the_path(target, &mut wanted)?;
        let mut object = old.clone();
        strategy.set_scale(&mut object, &wanted)?;
        let version = meta::text(&wanted, "resourceVersion").to_owned();
        meta::metadata(&mut object).insert("resourceVersion".to_owned(), version.into());
        Ok(object)
    };
    let written = call
        .server
        .registry
        .update(target, Some(Subresource::Scale), &scaled, &ctx)
        .await?;
    let object: Value =
        serde_json::from_slice(&written.object).map_err(|error| ApiError::internal(&error))?;
    Ok(respond::value(StatusCode::OK, &scale_of(&object)?, output))
}

/// Gives a pod to a node (kube-apiserver, `registry/core/pod/storage`).
async fn binding(call: &Call, target: &Target, body: RequestBody) -> Result<Answer, ApiError> {
    let ctx = call.context()?;
    let binding = objects::decode(call, &kinds::gvk("v1", "Binding"), body)
        .await?
        .object;
    let node = binding["target"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let kind = binding["target"]["kind"].as_str().unwrap_or_default();
    let invalid = |error| ApiError::invalid("", "Binding", &target.name, &[error]);
    if !matches!(kind, "" | "Node") {
        let error = crate::status::FieldError::not_supported(
            "target.kind",
            &kind.into(),
            &["Node", "<empty>"],
        );
        return Err(invalid(error));
    }
    if node.is_empty() {
        return Err(invalid(crate::status::FieldError::required(
            "target.name",
            "",
        )));
    }
    let uid = meta::text(&binding, "uid").to_owned();
    let change = |pod: &Value| {
        let conflict =
            |detail: String| ApiError::conflict("", "pods/binding", &target.name, &detail);
        if !uid.is_empty() && uid != meta::text(pod, "uid") {
            return Err(target.conflict(&format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                meta::text(pod, "uid")
            )));
        }
        if meta::is_terminating(pod) {
            return Err(conflict(format!(
                "pod {} is being deleted, cannot be assigned to a host",
                target.name
            )));
        }
        let present = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if !present.is_empty() {
            return Err(conflict(format!(
                "pod {} is already assigned to node {present:?}",
                target.name
            )));
        }
        if pod["spec"]["schedulingGates"]
            .as_array()
            .is_some_and(|gates| !gates.is_empty())
        {
            return Err(conflict(format!(
                "pod {} has non-empty .spec.schedulingGates",
                target.name
            )));
        }
        let mut pod = pod.clone();
        // The object's own resourceVersion is no precondition of the binding.
        meta::metadata(&mut pod).remove("resourceVersion");
        pod["spec"]["nodeName"] = (&*node).into();
        if let Some(annotations) = binding["metadata"]["annotations"].as_object() {
            for (key, value) in annotations {
                pod["metadata"]["annotations"][key] = value.clone();
            }
        }
        let mut conditions = pod["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        conditions.retain(|condition| condition["type"] != "PodScheduled");
        conditions.push(json!({ "type": "PodScheduled", "status": "True",
            "lastProbeTime": null, "lastTransitionTime": ctx.now }));
        pod["status"]["conditions"] = conditions.into();
        // Wherever room was made for it: it has its node now (KEP-5278).
        if let Some(status) = pod["status"].as_object_mut() {
            status.remove("nominatedNodeName");
        }
        Ok(pod)
    };
    call.server
        .registry
        .update(target, Some(Subresource::Binding), &change, &ctx)
        .await?;
    Ok(done(StatusCode::CREATED))
}

/// Evicts a pod: deletes it. Disruption budgets will have their say here.
async fn eviction(call: &Call, target: &Target, body: RequestBody) -> Result<Answer, ApiError> {
    let mut ctx = call.context()?;
    let eviction = objects::decode(call, &kinds::gvk("policy/v1", "Eviction"), body)
        .await?
        .object;
    let name = meta::text(&eviction, "name");
    if !name.is_empty() && name != target.name {
        return Err(ApiError::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let options = &eviction["deleteOptions"];
    ctx.dry_run |= options["dryRun"]
        .as_array()
        .is_some_and(|list| list.iter().any(|word| word == "All"));
    let request = DeleteRequest::parse(options)?;
    call.server.registry.delete(target, &request, &ctx).await?;
    Ok(done(StatusCode::CREATED))
}
