//! Subresources: `status` and its like, `scale`, `binding`, `eviction`; the rest is `tokens` and `node`.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::body::RequestBody;
use super::dispatch::Call;
use super::negotiate::Output;
use super::objects::{self, Patch};
use super::path::ResourcePath;
use super::respond::{self, Answer};
use super::{node, proxy, tokens};
use crate::kinds;
use crate::registry::delete::DeleteRequest;
use crate::registry::meta;
use crate::registry::operation::{Action, Operation};
use crate::registry::views::View;
use crate::registry::write::{Change, Target};
use crate::resource::Subresource;
use crate::status::ApiError;
use crate::strategy::Proxied;

/// What is asked for of a container's streams.
const STREAMS: &[&str] = &["container", "stdin", "stdout", "stderr", "tty"];

/// Answers a request for a subresource.
pub async fn answer(
    call: Call,
    target: Target,
    path: &ResourcePath,
    body: RequestBody,
) -> Result<Answer, ApiError> {
    let subresources = &target.resource.subresources;
    let subresource = *subresources
        .iter()
        .find(|subresource| subresource.name() == path.subresource)
        .ok_or_else(ApiError::no_such_path)?;
    let method = call.parts.method.clone();
    match (subresource, method) {
        (Subresource::Scale, method) => scale(&call, &target, method, body).await,
        (Subresource::Log, Method::GET) => node::log(call, target).await,
        (Subresource::Exec, Method::GET | Method::POST) => {
            connect(
                &call,
                &target,
                subresource,
                "PodExecOptions",
                &[STREAMS, &["command"]].concat(),
            )
            .await?;
            node::exec(call, target, "exec").await
        }
        (Subresource::Attach, Method::GET | Method::POST) => {
            connect(&call, &target, subresource, "PodAttachOptions", STREAMS).await?;
            node::exec(call, target, "attach").await
        }
        (Subresource::PortForward, Method::GET | Method::POST) => {
            connect(
                &call,
                &target,
                subresource,
                "PodPortForwardOptions",
                &["ports"],
            )
            .await?;
            node::port_forward(call, target).await
        }
        (Subresource::Proxy, _) => {
            let proxied = target.resource.strategy.proxied();
            let proxied = proxied.ok_or_else(ApiError::no_such_path)?;
            let kind = match proxied {
                Proxied::Node => "NodeProxyOptions",
                Proxied::Pod => "PodProxyOptions",
                Proxied::Service => "ServiceProxyOptions",
            };
            connect(&call, &target, subresource, kind, &[]).await?;
            proxy::answer(call, target, proxied, path, body).await
        }
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
            Method::GET => objects::get(&call, &target).await,
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

/// GET, PUT and PATCH of a Scale.
async fn scale(
    call: &Call,
    target: &Target,
    method: Method,
    body: RequestBody,
) -> Result<Answer, ApiError> {
    let output = objects::output(call)?;
    let (view, resource) = (View::Scale, &target.resource);
    let kind = view.kind(resource);
    let scale_of = |object: &Value| {
        let shown = view.shown(resource, object)?;
        shown.ok_or_else(ApiError::no_such_path)
    };
    if method == Method::GET {
        let entry = target
            .collection
            .get(&target.key())
            .ok_or_else(|| target.not_found())?;
        return Ok(respond::value(
            StatusCode::OK,
            &scale_of(&entry.parse())?,
            output,
        ));
    }
    let ctx = call.context()?;
    let change: Box<Change<'_>> = match method {
        Method::PUT => {
            let wanted = objects::decode(call, &kind, body).await?.object;
            Box::new(move |_| Ok(wanted.clone()))
        }
        Method::PATCH => {
            let patch = Patch::read(call, body).await?;
            let mode = objects::field_validation(call)?;
            let table = call.server.registry.table();
            Box::new(move |scale| {
                let patched = patch.apply(table.schemas.find(&kind), scale)?;
                Ok(table.schemas.check(&kind, patched, mode)?.object)
            })
        }
        _ => return Err(ApiError::method_not_allowed()),
    };
    let named = |scale: &Value| {
        let mut wanted = change(scale)?;
        objects::named_as_in_the_path(target, &mut wanted)?;
        Ok(wanted)
    };
    let written = call
        .server
        .registry
        .update(target, Some(Subresource::Scale), &named, &ctx)
        .await?;
    let object: Value =
        serde_json::from_slice(&written.object).map_err(|error| ApiError::internal(&error))?;
    let mut answer = respond::value(StatusCode::OK, &scale_of(&object)?, output);
    respond::warn(&mut answer, &written.warnings);
    Ok(answer)
}

/// Gives a pod to a node.
async fn binding(call: &Call, target: &Target, body: RequestBody) -> Result<Answer, ApiError> {
    let ctx = call.context()?;
    let kind = View::Binding.kind(&target.resource);
    let binding = objects::decode(call, &kind, body).await?.object;
    let change = |_: &Value| Ok(binding.clone());
    call.server
        .registry
        .update(target, Some(Subresource::Binding), &change, &ctx)
        .await?;
    Ok(done(StatusCode::CREATED))
}

/// Evicts a pod: deletes it. Disruption budgets will have their say here.
async fn eviction(call: &Call, target: &Target, body: RequestBody) -> Result<Answer, ApiError> {
    let mut ctx = call.context()?;
    let kind = kinds::gvk("policy/v1", "Eviction");
    let eviction = objects::decode(call, &kind, body).await?.object;
    let name = meta::text(&eviction, "name");
    if !name.is_empty() && name != target.name {
        return Err(ApiError::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let registry = &call.server.registry;
    let mut operation =
        Operation::new(Action::Create, target, &ctx).on(Subresource::Eviction, kind, eviction);
    registry.admit(&mut operation).await?;
    let eviction = operation.new.unwrap_or_default();
    let options = &eviction["deleteOptions"];
    ctx.dry_run |= options["dryRun"]
        .as_array()
        .is_some_and(|list| list.iter().any(|word| word == "All"));
    let request = DeleteRequest::parse(options)?;
    registry.delete(target, &request, &ctx).await?;
    Ok(done(StatusCode::CREATED))
}

/// Lets admission look at a connection before it is opened; its options are what the query says.
async fn connect(
    call: &Call,
    target: &Target,
    subresource: Subresource,
    kind: &str,
    fields: &[&str],
) -> Result<(), ApiError> {
    let kind = kinds::gvk("v1", kind);
    let mut options = json!({ "kind": kind.kind, "apiVersion": kind.api_version() });
    for field in fields {
        let given: Vec<&str> = call.query.all(field).collect();
        match (*field, &given[..]) {
            (_, []) => {}
            ("command", words) => options[*field] = json!(words),
            ("ports", _) => {
                let numbers = given.iter().flat_map(|list| list.split(','));
                let numbers: Vec<u16> = numbers.filter_map(|text| text.parse().ok()).collect();
                options[*field] = json!(numbers);
            }
            ("container", [text, ..]) => options[*field] = (*text).into(),
            _ => options[*field] = call.query.flag(field).into(),
        }
    }
    let mut operation =
        Operation::new(Action::Connect, target, &call.context()?).on(subresource, kind, options);
    call.server.registry.admit(&mut operation).await
}
