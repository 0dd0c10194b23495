//! The verbs on objects and collections.

use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Response, StatusCode};
use rand::Rng as _;
use serde_json::{Value, json};

use super::body::{self, RequestBody};
use super::dispatch::Call;
use super::frames::{self, WatchFrames};
use super::negotiate::{self, Output, OutputShape};
use super::respond::{self, Answer};
use crate::auth::authorize::{Attributes, forbidden};
use crate::managed::manager::validate_name;
use crate::registry::delete::{self, DeleteRequest};
use crate::registry::list::{At, ListRequest, parse_revision};
use crate::registry::meta;
use crate::registry::selector::Selector;
use crate::registry::watch::{Start, WatchRequest, Watcher};
use crate::registry::write::Target;
use crate::resource::{GroupVersionKind, Resource, Subresource, Verb};
use crate::schema::{Decoded, FieldValidation, Format, Schema, protobuf, yaml};
use crate::status::{ApiError, FieldError};
use crate::strategy::{Context, Writing};

/// Answers a verb on an object or a collection.
pub async fn answer(
    call: Call,
    target: Target,
    verb: Verb,
    body: RequestBody,
) -> Result<Answer, ApiError> {
    match verb {
        Verb::Get => get(&call, &target).await,
        Verb::List => list(&call, &target).await,
        Verb::Watch => watch(&call, target).await,
        Verb::Create => create(&call, target, body).await,
        Verb::Update => update(&call, &target, None, body).await,
        Verb::Patch => patch(&call, &target, None, body).await,
        Verb::Delete => delete(&call, &target, body).await,
        Verb::DeleteCollection => delete_collection(&call, &target, body).await,
    }
}

/// The output that the client asked for.
pub fn output(call: &Call) -> Result<Output, ApiError> {
    let mut output = Output::negotiate(&call.parts.headers)?;
    output.pretty = call.query.flag("pretty");
    Ok(output)
}

/// The same for a resource whose kind may have no encoding in protobuf.
fn output_of(call: &Call, resource: &Resource) -> Result<Output, ApiError> {
    let output = output(call)?;
    match output.shape {
        OutputShape::Object if !protobuf::encodes(&resource.schema) => output.without_protobuf(),
        _ => Ok(output),
    }
}

/// The same, for what is not stored.
pub fn unstored_output(call: &Call) -> Result<Output, ApiError> {
    let mut output = Output::negotiate_unstored(&call.parts.headers)?;
    output.pretty = call.query.flag("pretty");
    Ok(output)
}

/// GET of one object, as it is or as it was at some time since the revision that the client has seen.
pub async fn get(call: &Call, target: &Target) -> Result<Answer, ApiError> {
    let output = output_of(call, &target.resource)?;
    let version = call.query.text("resourceVersion");
    if !version.is_empty() {
        let revision = parse_revision(version)?;
        call.server.registry.wait_for(revision).await?;
    }
    let entry = target
        .collection
        .get(&target.key())
        .ok_or_else(|| target.not_found())?;
    respond::object(
        StatusCode::OK,
        &target.resource,
        &entry.object,
        output,
        &call.query,
    )
}

fn selector(call: &Call, resource: &Resource) -> Result<Selector, ApiError> {
    Selector::parse(
        resource,
        call.query.text("labelSelector"),
        call.query.text("fieldSelector"),
    )
}

async fn list(call: &Call, target: &Target) -> Result<Answer, ApiError> {
    let output = output_of(call, &target.resource)?;
    let query = &call.query;
    let token = query.text("continue");
    let limit = query.number("limit")?.unwrap_or(0);
    let at = At::parse(
        query.text("resourceVersion"),
        query.text("resourceVersionMatch"),
        limit > 0,
        !token.is_empty(),
    )?;
    let request = ListRequest {
        namespace: &target.namespace,
        selector: selector(call, &target.resource)?,
        at,
        limit: usize::try_from(limit).unwrap_or(0),
        continue_token: token,
    };
    let page = call
        .server
        .registry
        .list(&target.resource, &target.collection, &request)
        .await?;
    respond::list(&target.resource, page, output, query)
}

async fn watch(call: &Call, target: Target) -> Result<Answer, ApiError> {
    let output = output_of(call, &target.resource)?;
    let query = &call.query;
    let bookmarks = query.flag("allowWatchBookmarks");
    let start = WatchRequest::start(
        query.text("resourceVersion"),
        query.text("resourceVersionMatch"),
        query.optional_flag("sendInitialEvents"),
        bookmarks,
    )?;
    let seconds = query
        .number("timeoutSeconds")?
        .and_then(|s| u64::try_from(s).ok())
        .filter(|s| *s > 0);
    // As kube-apiserver: between half an hour and an hour, so that not all watchers come back at once.
    let timeout =
        Duration::from_secs(seconds.unwrap_or_else(|| rand::rng().random_range(1800..3600)));
    let selector = selector(call, &target.resource)?;
    let name = if target.name.is_empty() {
        selector.name().unwrap_or_default().to_owned()
    } else {
        target.name
    };
    let namespace = match &*target.namespace {
        "" => selector.namespace().unwrap_or_default().to_owned(),
        namespace => namespace.to_owned(),
    };
    let request = WatchRequest {
        namespace,
        name,
        selector,
        start,
        bookmarks,
        timeout,
    };
    let resource = target.resource;
    let frames = WatchFrames::new(resource.clone(), output, query)?;
    let registry = call.server.registry.clone();
    let stop = call.server.stop.clone();
    let reached = match start {
        Start::Present {
            not_older_than: revision,
            ..
        } => registry.wait_for(revision).await,
        Start::After(_) => Ok(()),
    };
    let started = reached.and_then(|()| {
        Watcher::new(
            registry,
            resource,
            target.collection,
            request,
            Box::new(frames),
            stop,
        )
    });
    let body = match started {
        Ok(watcher) => {
            let guard = call.server.metrics.long_running();
            let chunks =
                futures::stream::unfold((watcher, guard), |(mut watcher, guard)| async move {
                    let chunk = watcher.next().await?;
                    Some((Ok(chunk), (watcher, guard)))
                });
            body::while_taken(body::stream(chunks), body::UNREAD)
        }
        // A watch that cannot start from there says so in the stream, as kube-apiserver does.
        Err(error) if matches!(error.code, 410 | 504) => {
            body::full(frames::frame(output.format, "ERROR", &error.to_status()))
        }
        Err(error) => return Err(error),
    };
    let mut response = Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, frames::content_type(output.format));
    Ok(response)
}

/// What to do about unknown fields.
pub fn field_validation(call: &Call) -> Result<FieldValidation, ApiError> {
    match call.query.text("fieldValidation") {
        "" | "Warn" => Ok(FieldValidation::Warn),
        "Ignore" => Ok(FieldValidation::Ignore),
        "Strict" => Ok(FieldValidation::Strict),
        other => Err(ApiError::invalid(
            "meta.k8s.io",
            "CreateOptions",
            "",
            &[FieldError::not_supported(
                "fieldValidation",
                &other.into(),
                &["Ignore", "Strict", "Warn"],
            )],
        )),
    }
}

/// Reads the body as an object of a kind.
pub async fn decode(
    call: &Call,
    gvk: &GroupVersionKind,
    body: RequestBody,
) -> Result<Decoded, ApiError> {
    let mode = field_validation(call)?;
    let schemas = &call.server.registry.table().schemas;
    if negotiate::media_type(&call.parts.headers) == negotiate::PROTOBUF {
        let bytes = body::read(body).await?;
        let object = schemas.decode_protobuf(gvk, &bytes)?;
        return schemas.check(gvk, object, mode);
    }
    let format = negotiate::input(&call.parts.headers)?;
    let bytes = body::read(body).await?;
    schemas.decode(gvk, &bytes, format, mode)
}

async fn create(call: &Call, target: Target, body: RequestBody) -> Result<Answer, ApiError> {
    let output = output_of(call, &target.resource)?;
    let mut ctx = call.context()?;
    let decoded = decode(call, &target.resource.gvk, body).await?;
    let mut target = target;
    if target.resource.scope == crate::resource::Scope::Namespaced && target.namespace.is_empty() {
        // Posted to the collection of all namespaces: the object says in which one it is to be.
        target.namespace = meta::text(&decoded.object, "namespace").to_owned();
        if target.namespace.is_empty() {
            return Err(ApiError::bad_request(
                "an empty namespace may not be set during creation",
            ));
        }
    }
    ctx.now = meta::now();
    let mut warnings = decoded.warnings;
    let written = call
        .server
        .registry
        .create(&target, decoded.object, &ctx)
        .await?;
    let mut answer = respond::object(
        StatusCode::CREATED,
        &target.resource,
        &written.object,
        output,
        &call.query,
    )?;
    warnings.extend(written.warnings);
    respond::warn(&mut answer, &warnings);
    Ok(answer)
}

/// PUT of an object or a subresource that has the object's own shape.
pub async fn update(
    call: &Call,
    target: &Target,
    subresource: Option<Subresource>,
    body: RequestBody,
) -> Result<Answer, ApiError> {
    let output = output_of(call, &target.resource)?;
    let ctx = call.context()?;
    let decoded = decode(call, &target.resource.gvk, body).await?;
    let mut object = decoded.object;
    named_as_in_the_path(target, &mut object)?;
    let registry = &call.server.registry;
    let change = |_: &Value| Ok(object.clone());
    let written = match registry.update(target, subresource, &change, &ctx).await {
        Err(error)
            if error.code == 404
                && subresource.is_none()
                && target.resource.strategy.allow_create_on_update()
                && target.collection.get(&target.key()).is_none() =>
        {
            may_create(call, target)?;
            meta::metadata(&mut object).remove("resourceVersion");
            registry.create(target, object, &ctx).await?
        }
        other => other?,
    };
    let code = if written.created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let mut answer = respond::object(code, &target.resource, &written.object, output, &call.query)?;
    let mut warnings = decoded.warnings;
    warnings.extend(written.warnings);
    respond::warn(&mut answer, &warnings);
    Ok(answer)
}

/// The object must be the one that the path names.
pub fn named_as_in_the_path(target: &Target, object: &mut Value) -> Result<(), ApiError> {
    let name = meta::text(object, "name");
    if name.is_empty() {
        return Err(ApiError::bad_request("name must be provided"));
    }
    if name != target.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name
        )));
    }
    let namespace = meta::text(object, "namespace");
    if !namespace.is_empty() && namespace != target.namespace {
        return Err(ApiError::bad_request(format!(
            "the namespace of the object ({namespace}) does not match the namespace on the URL ({})",
            target.namespace
        )));
    }
    if !target.namespace.is_empty() {
        meta::metadata(object).insert("namespace".to_owned(), (&*target.namespace).into());
    }
    Ok(())
}

/// A patch, read and ready to be applied.
pub enum Patch {
    /// RFC 6902.
    Json(Bytes),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' strategic merge.
    Strategic(Value),
    /// Server-side apply: the configuration, and what is wrong with it as YAML.
    Apply(Value, Vec<String>),
}

/// The media types of patches, as kube-apiserver lists them in a refusal.
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    APPLY,
];
const APPLY: &str = "application/apply-patch+yaml";

impl Patch {
    /// Reads the body.
    ///
    /// # Errors
    ///
    /// 415 for another media type, 400 for what is no JSON.
    pub async fn read(call: &Call, body: RequestBody) -> Result<Self, ApiError> {
        let media_type = negotiate::media_type(&call.parts.headers).to_owned();
        if !PATCHES.contains(&&*media_type) {
            return Err(ApiError::unsupported_media_type(PATCHES));
        }
        if media_type != APPLY && call.query.optional_flag("force").is_some() {
            let error = FieldError::forbidden("force", "may not be specified for non-apply patch");
            return Err(ApiError::invalid(
                "meta.k8s.io",
                "PatchOptions",
                "",
                &[error],
            ));
        }
        let bytes = body::read(body).await?;
        if media_type == "application/json-patch+json" {
            return Ok(Self::Json(bytes));
        }
        if media_type == APPLY {
            let text = std::str::from_utf8(&bytes)
                .map_err(|error| ApiError::bad_request(error.to_string()))?;
            let (config, repeated) = yaml::parse(text)
                .map_err(|error| ApiError::bad_request(format!("error decoding YAML: {error}")))?;
            return Ok(Self::Apply(config, repeated));
        }
        let value: Value = serde_json::from_slice(&bytes)
            .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
        Ok(if media_type == "application/merge-patch+json" {
            Self::Merge(value)
        } else {
            Self::Strategic(value)
        })
    }

    /// Applies it to an object of the kind that the schema describes.
    ///
    /// # Errors
    ///
    /// 400 or 422 if it does not apply.
    pub fn apply(&self, schema: Option<&Schema>, object: &Value) -> Result<Value, ApiError> {
        match self {
            Self::Json(patch) => crate::patch::json_patch(object, patch),
            Self::Merge(patch) => Ok(crate::patch::merge_patch(object, patch)),
            Self::Strategic(patch) => crate::patch::strategic::merge(schema, object, patch),
            // It looks at owners, and goes its own way: `apply` below.
            Self::Apply(..) => Err(ApiError::unsupported_media_type(&PATCHES[..3])),
        }
    }
}

/// PATCH of an object or a subresource that has the object's own shape.
pub async fn patch(
    call: &Call,
    target: &Target,
    subresource: Option<Subresource>,
    body: RequestBody,
) -> Result<Answer, ApiError> {
    let output = output_of(call, &target.resource)?;
    let ctx = call.context()?;
    let mode = field_validation(call)?;
    let patch = Patch::read(call, body).await?;
    if let Patch::Apply(config, repeated) = patch {
        if mode == FieldValidation::Strict && !repeated.is_empty() {
            let repeated = repeated.join("\n  ");
            let message = format!("error decoding YAML: yaml: unmarshal errors:\n  {repeated}");
            return Err(ApiError::bad_request(message));
        }
        return apply(call, target, subresource, config, repeated).await;
    }
    if matches!(patch, Patch::Strategic(_)) && target.resource.definition.is_some() {
        return Err(ApiError::unsupported_media_type(&[
            PATCHES[0], PATCHES[1], APPLY,
        ]));
    }
    let gvk = &target.resource.gvk;
    let (table, schema) = (call.server.registry.table(), &target.resource.schema);
    let warnings = parking_lot::Mutex::new(Vec::new());
    let change = |old: &Value| {
        let patched = patch.apply(Some(schema), old)?;
        let decoded = table.schemas.check(gvk, patched, mode)?;
        *warnings.lock() = decoded.warnings;
        let mut object = decoded.object;
        named_as_in_the_path(target, &mut object)?;
        Ok(object)
    };
    let written = call
        .server
        .registry
        .update(target, subresource, &change, &ctx)
        .await?;
    let mut answer = respond::object(
        StatusCode::OK,
        &target.resource,
        &written.object,
        output,
        &call.query,
    )?;
    let mut warnings = warnings.into_inner();
    warnings.extend(written.warnings);
    respond::warn(&mut answer, &warnings);
    Ok(answer)
}

/// Server-side apply of a configuration: creates the object if it is not there.
async fn apply(
    call: &Call,
    target: &Target,
    subresource: Option<Subresource>,
    mut config: Value,
    mut warnings: Vec<String>,
) -> Result<Answer, ApiError> {
    let output = output(call)?;
    let mode = field_validation(call)?;
    let ctx = Context {
        writing: Writing::Apply,
        ..call.context()?
    };
    let mistakes = validate_name(call.query.text("fieldManager"), true);
    if !mistakes.is_empty() {
        return Err(ApiError::invalid(
            "meta.k8s.io",
            "PatchOptions",
            "",
            &mistakes,
        ));
    }
    let (registry, gvk) = (&call.server.registry, &target.resource.gvk);
    let table = registry.table();
    if !config.is_object() {
        return Err(ApiError::bad_request("the configuration is no object"));
    }
    // What is wrong with it as an object of its kind; what it applies is what was sent, with nothing filled in.
    warnings.extend(table.schemas.check(gvk, config.clone(), mode)?.warnings);
    if mode == FieldValidation::Ignore {
        warnings.clear();
    }
    if meta::text(&config, "name").is_empty() {
        meta::metadata(&mut config).insert("name".to_owned(), (&*target.name).into());
    }
    named_as_in_the_path(target, &mut config)?;
    let force = call.query.flag("force");
    let applied = |live: Option<&Value>| {
        let applied = registry.applied(target, subresource, &ctx, (live, &config), force)?;
        match live {
            Some(live) if !applied.changed => Ok(live.clone()),
            _ => Ok(table.schemas.check(gvk, applied.object, mode)?.object),
        }
    };
    let change = |live: &Value| applied(Some(live));
    let mut created = None;
    if subresource.is_none() && target.collection.get(&target.key()).is_none() {
        may_create(call, target)?;
        created = match registry.create(target, applied(None)?, &ctx).await {
            // Somebody was first.
            Err(error) if error.reason == "AlreadyExists" => None,
            done => Some(done?),
        };
    }
    let (code, written) = match created {
        Some(written) => (StatusCode::CREATED, written),
        None => {
            let written = registry.update(target, subresource, &change, &ctx).await?;
            (StatusCode::OK, written)
        }
    };
    let resource = &target.resource;
    let mut answer = respond::object(code, resource, &written.object, output, &call.query)?;
    warnings.extend(written.warnings);
    respond::warn(&mut answer, &warnings);
    Ok(answer)
}

/// Who creates by an update or an apply needs the right to create.
fn may_create(call: &Call, target: &Target) -> Result<(), ApiError> {
    let attributes = Attributes {
        verb: "create",
        group: &target.resource.gvk.group,
        resource: &target.resource.plural,
        namespace: &target.namespace,
        name: &target.name,
        ..Attributes::default()
    };
    let decision = call.server.authorizer.authorize(&call.user, &attributes);
    match decision.allowed {
        true => Ok(()),
        false => Err(forbidden(&call.user, &attributes, &decision.reason)),
    }
}

/// `DeleteOptions` from the body and, where that is empty, the query.
pub async fn delete_options(
    call: &Call,
    body: RequestBody,
) -> Result<(DeleteRequest, bool), ApiError> {
    let bytes = body::read(body).await?;
    let mut options = json!({});
    if !bytes.is_empty() && negotiate::media_type(&call.parts.headers) == negotiate::PROTOBUF {
        let schemas = &call.server.registry.table().schemas;
        options = schemas.decode_protobuf(&crate::kinds::gvk("v1", "DeleteOptions"), &bytes)?;
    } else if !bytes.is_empty() {
        options = match negotiate::input(&call.parts.headers)? {
            Format::Json => serde_json::from_slice(&bytes).map_err(|error| {
                ApiError::bad_request(format!(
                    "couldn't get version/kind; json parse error: {error}"
                ))
            })?,
            Format::Yaml => {
                let text = std::str::from_utf8(&bytes)
                    .map_err(|error| ApiError::bad_request(error.to_string()))?;
                let parsed = yaml::parse(text).map_err(|error| {
                    ApiError::bad_request(format!("error converting YAML to JSON: yaml: {error}"))
                })?;
                parsed.0
            }
        };
        if let Some(kind) = options["kind"]
            .as_str()
            .filter(|kind| *kind != "DeleteOptions")
        {
            return Err(ApiError::bad_request(format!(
                "decoded object cannot be converted to DeleteOptions: {kind}"
            )));
        }
    } else {
        let query = &call.query;
        if let Some(grace) = query.number("gracePeriodSeconds")? {
            options["gracePeriodSeconds"] = grace.into();
        }
        if let Some(orphan) = query.optional_flag("orphanDependents") {
            options["orphanDependents"] = orphan.into();
        }
        if !query.text("propagationPolicy").is_empty() {
            options["propagationPolicy"] = query.text("propagationPolicy").into();
        }
    }
    let dry_run = options["dryRun"]
        .as_array()
        .is_some_and(|list| list.iter().any(|word| word == "All"));
    Ok((DeleteRequest::parse(&options)?, dry_run))
}

async fn delete(call: &Call, target: &Target, body: RequestBody) -> Result<Answer, ApiError> {
    let output = output_of(call, &target.resource)?;
    let mut ctx = call.context()?;
    let (request, dry_run) = delete_options(call, body).await?;
    ctx.dry_run |= dry_run;
    let deleted = call.server.registry.delete(target, &request, &ctx).await?;
    if deleted.gone {
        let status = delete::success(target, &deleted);
        if !target.resource.strategy.returns_deleted() {
            let output = Output {
                shape: OutputShape::Object,
                ..output
            };
            return Ok(respond::value(StatusCode::OK, &status, output));
        }
    }
    let code = if !deleted.gone && request.no_orphans {
        StatusCode::ACCEPTED
    } else {
        StatusCode::OK
    };
    respond::object(code, &target.resource, &deleted.object, output, &call.query)
}

async fn delete_collection(
    call: &Call,
    target: &Target,
    body: RequestBody,
) -> Result<Answer, ApiError> {
    let output = output_of(call, &target.resource)?;
    let mut ctx = call.context()?;
    let request = ListRequest {
        namespace: &target.namespace,
        selector: selector(call, &target.resource)?,
        at: At::Newest,
        limit: usize::try_from(call.query.number("limit")?.unwrap_or(0)).unwrap_or(0),
        continue_token: call.query.text("continue"),
    };
    let (options, dry_run) = delete_options(call, body).await?;
    ctx.dry_run |= dry_run;
    let registry = &call.server.registry;
    let page = registry
        .list(&target.resource, &target.collection, &request)
        .await?;
    // Together, so that they share the store's fsyncs.
    let mut deletions = Vec::with_capacity(page.entries.len());
    for entry in &page.entries {
        let (registry, target) = (registry.clone(), delete::of_entry(target, entry));
        let (options, ctx) = (options.clone(), ctx.clone());
        deletions.push(async move { registry.delete(&target, &options, &ctx).await });
    }
    use futures::StreamExt as _;
    let mut running = futures::stream::iter(deletions).buffer_unordered(64);
    while let Some(result) = running.next().await {
        if let Err(error) = result
            && !delete::is_missing(&error)
        {
            return Err(error);
        }
    }
    drop(running);
    respond::list(&target.resource, page, output, &call.query)
}
