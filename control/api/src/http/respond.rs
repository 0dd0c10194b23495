//! Answers: objects, lists, tables and Status, in the format and shape that the client asked for.

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, VARY, WARNING};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

use super::body::{self, ListBody, ResponseBody};
use super::negotiate::{Output, OutputShape};
use super::query::Query;
use crate::registry::entry::Entry;
use crate::registry::list::{CONTINUE, Page};
use crate::resource::Resource;
use crate::schema::Format;
use crate::status::{ApiError, FieldError};
use crate::table;

/// Smaller answers are not worth compressing (kube-apiserver's own threshold).
const COMPRESS_FROM: usize = 128 << 10;

/// An answer.
pub type Answer = Response<ResponseBody>;

/// Bytes with a content type.
pub fn bytes(code: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(body::full(bytes));
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// Plain text.
pub fn text(code: StatusCode, text: impl Into<Bytes>) -> Answer {
    bytes(code, "text/plain; charset=utf-8", text)
}

/// A value as JSON or YAML.
pub fn value(code: StatusCode, value: &Value, output: Output) -> Answer {
    match output.format {
        Format::Json if output.pretty => {
            let json = serde_json::to_vec_pretty(value).expect("a JSON value always serialises");
            bytes(code, "application/json", json)
        }
        Format::Json => {
            let json = serde_json::to_vec(value).expect("a JSON value always serialises");
            bytes(code, "application/json", json)
        }
        Format::Yaml => match serde_saphyr::to_string(value) {
            Ok(yaml) => bytes(code, "application/yaml", yaml),
            Err(failed) => error(&ApiError::internal(&failed)),
        },
    }
}

/// An error as a Status.
pub fn error(error: &ApiError) -> Answer {
    let mut status = error.to_status();
    let token = status["details"]
        .as_object_mut()
        .and_then(|details| details.remove(CONTINUE));
    if let Some(token) = token {
        status["metadata"]["continue"] = token;
        if let Some(status) = status.as_object_mut() {
            status.remove("details");
        }
    }
    let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut answer = value(code, &status, Output::JSON);
    if let Some(seconds) = error.details["retryAfterSeconds"].as_u64() {
        answer.headers_mut().insert("retry-after", seconds.into());
    }
    answer
}

/// One object, from its stored bytes.
///
/// # Errors
///
/// 400 for bad parameters of a table.
pub fn object(
    code: StatusCode,
    resource: &Resource,
    object: &Bytes,
    output: Output,
    query: &Query,
) -> Result<Answer, ApiError> {
    if output == Output::JSON && resource.storage_version.is_none() {
        return Ok(bytes(code, "application/json", object.clone()));
    }
    let mut parsed: Value =
        serde_json::from_slice(object).map_err(|error| ApiError::internal(&error))?;
    if resource.storage_version.is_some() {
        crate::kinds::convert(&mut parsed, &resource.gvk);
    }
    let shaped = match output.shape {
        OutputShape::Object => parsed,
        OutputShape::Partial => table::partial_metadata(&parsed),
        OutputShape::Table => {
            let metadata = json!({ "resourceVersion": parsed["metadata"]["resourceVersion"] });
            table::render(resource, [&parsed], &table_options(query, metadata)?)
        }
    };
    Ok(value(code, &shaped, output))
}

/// The options of a table from a query.
///
/// # Errors
///
/// 400 for an unknown `includeObject`.
pub fn table_options(query: &Query, metadata: Value) -> Result<table::Options, ApiError> {
    let include = table::Include::parse(query.text("includeObject")).map_err(|other| {
        ApiError::invalid(
            "meta.k8s.io",
            "TableOptions",
            "",
            &[FieldError::not_supported(
                "includeObject",
                &other.into(),
                &["Metadata", "None", "Object"],
            )],
        )
    })?;
    Ok(table::Options {
        include,
        headers: true,
        metadata,
        now: jiff::Timestamp::now(),
    })
}

/// A list.
///
/// # Errors
///
/// 400 for bad parameters of a table.
pub fn list(
    resource: &Resource,
    page: Page,
    output: Output,
    query: &Query,
) -> Result<Answer, ApiError> {
    let metadata = page.metadata();
    if output == Output::JSON && resource.storage_version.is_none() {
        let head = format!(
            r#"{{"kind":"{}List","apiVersion":"{}","metadata":{metadata},"items":["#,
            resource.gvk.kind,
            resource.gvk.api_version()
        );
        use http_body_util::BodyExt as _;
        let mut response = Response::new(ListBody::new(head.into(), page.entries).boxed_unsync());
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        return Ok(response);
    }
    let parse = |entry: &Arc<Entry>| {
        let mut object = entry.parse();
        if resource.storage_version.is_some() {
            crate::kinds::convert(&mut object, &resource.gvk);
        }
        object
    };
    let shaped = match output.shape {
        OutputShape::Object => json!({
            "kind": format!("{}List", resource.gvk.kind),
            "apiVersion": resource.gvk.api_version(),
            "metadata": metadata,
            "items": page.entries.iter().map(parse).collect::<Vec<_>>(),
        }),
        OutputShape::Partial => json!({
            "kind": "PartialObjectMetadataList",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "items": page.entries.iter().map(|e| table::partial_metadata(&parse(e))).collect::<Vec<_>>(),
        }),
        OutputShape::Table => {
            let options = table_options(query, metadata)?;
            let mut table = table::render(resource, [], &options);
            // Row by row: the parsed objects of a large list need not all be there at once.
            table["rows"] = page
                .entries
                .iter()
                .map(|e| table::row(resource, &parse(e), &options))
                .collect();
            table
        }
    };
    Ok(value(StatusCode::OK, &shaped, output))
}

/// Adds `Warning` headers.
pub fn warn(answer: &mut Answer, warnings: &[String]) {
    for warning in warnings {
        let text = warning.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            answer.headers_mut().append(WARNING, value);
        }
    }
}

/// Compresses a large answer, if the client takes gzip.
pub async fn compress(answer: Answer, request: &HeaderMap) -> Answer {
    use http_body::Body as _;
    let accepts = request
        .get(ACCEPT_ENCODING)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| {
            value
                .split(',')
                .any(|word| word.trim().split(';').next() == Some("gzip"))
        });
    let large = answer
        .body()
        .size_hint()
        .exact()
        .is_some_and(|size| size >= COMPRESS_FROM as u64);
    if !accepts || !large || answer.headers().contains_key(CONTENT_ENCODING) {
        return answer;
    }
    let (mut parts, body) = answer.into_parts();
    let packed = async {
        use http_body_util::BodyExt as _;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
        let mut body = body;
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                encoder.write_all(&data)?;
            }
        }
        Ok::<_, body::BoxError>(encoder.finish()?)
    };
    match packed.await {
        Ok(packed) => {
            parts
                .headers
                .insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            parts
                .headers
                .insert(VARY, HeaderValue::from_static("Accept-Encoding"));
            Response::from_parts(parts, body::full(packed))
        }
        Err(failed) => error(&ApiError::internal(&*failed)),
    }
}
