//! The way of a request: identity, whom it acts as, a seat, permission, then the handler of what it names.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt as _;
use http::header::{HeaderValue, USER_AGENT};
use http::request::Parts;
use http::{Method, Request};

use super::body::RequestBody;
use super::path::{self, ResourcePath, Route};
use super::query::Query;
use super::respond::{self, Answer};
use super::{objects, other, reviews, subresources};
use crate::auth::authorize::{self, Attributes};
use crate::auth::impersonate::impersonate;
use crate::auth::{self, UserInfo};
use crate::managed::manager::{client_name, validate_name};
use crate::registry::write::Target;
use crate::registry::{meta, selector};
use crate::resource::{Scope, Verb};
use crate::server::Inner;
use crate::status::ApiError;
use crate::strategy::{Context, Writing};

/// Where a request comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// Another part of this process, which acts as this user.
    Local(Arc<UserInfo>),
    /// A connection, and the user of its client certificate, if it showed one.
    Connection(Option<Arc<UserInfo>>),
}

/// A request on its way.
pub struct Call {
    /// The server.
    pub server: Arc<Inner>,
    /// Who asks.
    pub user: Arc<UserInfo>,
    /// Method, path and headers.
    pub parts: Parts,
    /// The query.
    pub query: Query,
}

impl Call {
    /// What strategies may know.
    pub fn context(&self) -> Result<Context, ApiError> {
        let dry_run = match self.query.text("dryRun") {
            "" => false,
            "All" => true,
            other => {
                return Err(ApiError::invalid(
                    "meta.k8s.io",
                    "CreateOptions",
                    "",
                    &[crate::status::FieldError::not_supported(
                        "dryRun",
                        &serde_json::json!([other]),
                        &["All"],
                    )],
                ));
            }
        };
        let named = self.query.text("fieldManager");
        let mistakes = validate_name(named, false);
        if !mistakes.is_empty() {
            let kind = match self.parts.method {
                Method::POST => "CreateOptions",
                Method::PATCH => "PatchOptions",
                _ => "UpdateOptions",
            };
            return Err(ApiError::invalid("meta.k8s.io", kind, "", &mistakes));
        }
        let agent = self.parts.headers.get(USER_AGENT);
        let agent = agent
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        Ok(Context {
            user: self.user.clone(),
            now: meta::now(),
            dry_run,
            client: client_name(named, agent).into(),
            writing: Writing::Update,
        })
    }
}

/// Answers a request, whatever happens.
pub async fn handle(server: Arc<Inner>, request: Request<RequestBody>, origin: Origin) -> Answer {
    let started = Instant::now();
    let (parts, body) = request.into_parts();
    let headers = parts.headers.clone();
    let method = parts.method.clone();
    let route = path::parse(parts.uri.path());
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let label = super::metrics::labels(&method, &route, &query);
    let metrics = server.metrics.clone();
    let path = parts.uri.path().to_owned();
    let work = route_request(server, parts, query, route, body, origin);
    let answer = if matches!(method, Method::GET | Method::HEAD) {
        let compressed = async {
            let answer = work.await;
            let answer = answer.unwrap_or_else(|error| respond::error_for(&error, &headers));
            match method {
                Method::GET => respond::compress(answer, &headers),
                _ => answer,
            }
        };
        AssertUnwindSafe(compressed).catch_unwind().await.ok()
    } else {
        // A write goes on to its end when the client goes away in the middle: what the store has committed must also be
        // accounted for here.
        let answer = tokio::spawn(work).await.ok();
        answer.map(|answer| answer.unwrap_or_else(|error| respond::error_for(&error, &headers)))
    };
    let mut answer = answer.unwrap_or_else(|| {
        // Message and place were logged by the panic's hook; here is what it was about.
        tracing::error!(%method, path, "a request caused a panic");
        respond::error(&ApiError::new(
            500,
            "InternalError",
            "This request caused apiserver to panic. Look in the logs for details.",
        ))
    });
    tracing::debug!(%method, path, code = answer.status().as_u16(), took = ?started.elapsed(), "request");
    let audit = headers.get("audit-id").cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&uuid::Uuid::new_v4().to_string()).expect("a uuid is plain ASCII")
    });
    answer.headers_mut().insert("audit-id", audit);
    answer
        .headers_mut()
        .entry("cache-control")
        .or_insert(HeaderValue::from_static("no-cache, private"));
    metrics.observe(label, answer.status(), started.elapsed());
    answer
}

async fn route_request(
    server: Arc<Inner>,
    mut parts: Parts,
    query: Query,
    route: Route,
    body: RequestBody,
    origin: Origin,
) -> Result<Answer, ApiError> {
    let local = matches!(origin, Origin::Local(_));
    let user = match origin {
        Origin::Local(user) => user,
        Origin::Connection(certificate) => auth::authenticate(
            &server.registry,
            &server.tokens,
            certificate.as_ref(),
            &parts.headers,
        )?,
    };
    let user = impersonate(&*server.authorizer, user, &mut parts.headers)?;
    // Those of this process are few, and what they do keeps the cluster alive.
    let seat = match local {
        true => Ok(None),
        false => server.seats.take(&user, &parts.method, &route, &query),
    };
    let _seat = match seat {
        Ok(seat) => seat,
        Err(none) => return Ok(none.answer()),
    };
    permit(&server, &user, &parts, &query, &route)?;
    let call = Call {
        server,
        user,
        parts,
        query,
    };
    match route {
        Route::Resource(path) => resource(call, path, body).await,
        Route::Other => other::answer(&call).await,
    }
}

fn permit(
    server: &Inner,
    user: &UserInfo,
    parts: &Parts,
    query: &Query,
    route: &Route,
) -> Result<(), ApiError> {
    let may = |attributes: &Attributes<'_>| {
        let decision = server.authorizer.authorize(user, attributes);
        match decision.allowed {
            true => Ok(()),
            false => Err(authorize::forbidden(user, attributes, &decision.reason)),
        }
    };
    let Route::Resource(path) = route else {
        let method = parts.method.as_str().to_lowercase();
        return may(&Attributes {
            verb: &method,
            path: parts.uri.path(),
            ..Attributes::default()
        });
    };
    let verb = path.verb(&parts.method, query);
    let selects = path.name.is_empty() && matches!(verb, "list" | "watch" | "deletecollection");
    let equalities = match query.text("fieldSelector") {
        text if selects && !text.is_empty() => selector::equalities(text),
        _ => Vec::new(),
    };
    let fields: Vec<(&str, &str)> = (equalities.iter())
        .map(|(field, value)| (&**field, &**value))
        .collect();
    let attributes = Attributes {
        verb,
        group: &path.group,
        resource: &path.resource,
        subresource: &path.subresource,
        namespace: &path.namespace,
        name: selector::only_name(&fields).unwrap_or(&path.name),
        path: parts.uri.path(),
        fields: &fields,
    };
    may(&attributes)?;
    // A session that is opened by GET, as WebSockets are, does what one that is opened by POST does.
    let session = matches!(&*path.subresource, "exec" | "attach" | "portforward");
    if session && verb == "get" && path.resource == "pods" && path.group.is_empty() {
        let verb = "create";
        may(&Attributes { verb, ..attributes })?;
    }
    Ok(())
}

async fn resource(call: Call, path: ResourcePath, body: RequestBody) -> Result<Answer, ApiError> {
    let found = call
        .server
        .registry
        .find(&path.group, &path.version, &path.resource);
    let Some((resource, collection)) = found else {
        return Err(ApiError::no_such_path());
    };
    if resource.scope == Scope::Cluster && path.inside {
        return Err(ApiError::no_such_path());
    }
    let Some(collection) = collection else {
        return reviews::answer(&call, &resource, &path, body).boxed().await;
    };
    let namespace = match resource.scope {
        Scope::Cluster => String::new(),
        Scope::Namespaced if path.namespace.is_empty() && !path.name.is_empty() => {
            return Err(ApiError::no_such_path());
        }
        Scope::Namespaced => path.namespace.clone(),
    };
    let target = Target {
        resource,
        collection,
        namespace,
        name: path.name.clone(),
    };
    let deprecation = target.resource.strategy.deprecation().map(str::to_owned);
    let mut answer = stored(call, target, &path, body).await?;
    respond::warn(&mut answer, deprecation.as_slice());
    Ok(answer)
}

/// Answers a request for a resource whose objects are stored.
async fn stored(
    call: Call,
    target: Target,
    path: &ResourcePath,
    body: RequestBody,
) -> Result<Answer, ApiError> {
    if !path.subresource.is_empty() {
        return subresources::answer(call, target, path, body).boxed().await;
    }
    let verb = match path.verb(&call.parts.method, &call.query) {
        "create" if path.name.is_empty() => Verb::Create,
        "update" if !path.name.is_empty() => Verb::Update,
        "patch" if !path.name.is_empty() => Verb::Patch,
        "delete" => Verb::Delete,
        "deletecollection" => Verb::DeleteCollection,
        "list" => Verb::List,
        "get" => Verb::Get,
        "watch" => Verb::Watch,
        _ => return Err(ApiError::method_not_allowed()),
    };
    let reads = matches!(call.parts.method, Method::GET | Method::HEAD);
    if !target.resource.verbs.contains(&verb) || (!reads && !is_write(verb)) {
        return Err(ApiError::method_not_allowed());
    }
    objects::answer(call, target, verb, body).boxed().await
}

fn is_write(verb: Verb) -> bool {
    !matches!(verb, Verb::Get | Verb::List | Verb::Watch)
}
