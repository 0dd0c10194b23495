//! Answers: objects, lists, tables and Status, in the format and shape that the client asked for.

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, VARY, WARNING,
};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};

use super::body::{self, ListBody, ResponseBody};
use super::negotiate::{Output, OutputFormat, OutputShape, PROTOBUF};
use super::query::Query;
use crate::registry::entry::Entry;
use crate::registry::list::{CONTINUE, Page};
use crate::resource::Resource;
use crate::schema::protobuf::{self, EncodeError};
use crate::status::{ApiError, FieldError};
use crate::table;

/// Smaller answers are not worth compressing (kube-apiserver's own threshold).
const COMPRESS_FROM: usize = 128 << 10;

/// A Status in protobuf. Should one have no encoding, JSON that the client cannot read is better than no reason at all.
const PROTOBUF_STATUS: Output = Output {
    format: OutputFormat::Protobuf,
    otherwise: Some((OutputFormat::Json, OutputShape::Object)),
    ..Output::JSON
};

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

/// A value as JSON, YAML or protobuf; text, too, for a value without an encoding in protobuf.
pub fn value(code: StatusCode, value: &Value, output: Output) -> Answer {
    match output.format {
        OutputFormat::Json if output.pretty => {
            let json = serde_json::to_vec_pretty(value).expect("a JSON value always serialises");
            bytes(code, "application/json", json)
        }
        OutputFormat::Json => {
            let json = serde_json::to_vec(value).expect("a JSON value always serialises");
            bytes(code, "application/json", json)
        }
        OutputFormat::Yaml => match serde_saphyr::to_string(value) {
            Ok(yaml) => bytes(code, "application/yaml", yaml),
            Err(failed) => error(&ApiError::internal(&failed)),
        },
        OutputFormat::Protobuf => match protobuf::encode_by_kind(value) {
            Ok(body) => bytes(code, PROTOBUF, body),
            Err(reason) => match as_text(output, &reason) {
                Ok(output) => self::value(code, value, output),
                Err(not_acceptable) => status(&not_acceptable, PROTOBUF_STATUS),
            },
        },
    }
}

/// The text that stands in for protobuf, for one object whose kind may well have an encoding.
fn as_text(output: Output, reason: &EncodeError) -> Result<Output, ApiError> {
    tracing::debug!(%reason, "an answer is not in protobuf");
    output.without_protobuf()
}

/// An object that is not stored, or of which only the metadata was asked for.
pub fn unstored(code: StatusCode, object: &Value, output: Output) -> Answer {
    match output.shape {
        OutputShape::Partial => value(code, &table::partial_metadata(object), output),
        OutputShape::Object | OutputShape::Table => value(code, object, output),
    }
}

/// An error as a Status in JSON.
pub fn error(error: &ApiError) -> Answer {
    status(error, Output::JSON)
}

/// An error as a Status, in protobuf for clients that want it most.
pub fn error_for(error: &ApiError, request: &HeaderMap) -> Answer {
    match Output::negotiate(request).map(|output| output.format) {
        Ok(OutputFormat::Protobuf) => status(error, PROTOBUF_STATUS),
        _ => status(error, Output::JSON),
    }
}

fn status(error: &ApiError, output: Output) -> Answer {
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
    let mut answer = value(code, &status, output);
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
        resource.convert(&mut parsed, &resource.gvk);
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
        let list = ListBody::new(head.into(), page.entries);
        let small = body::is_sent_at_once(&list);
        let list = list.boxed_unsync();
        let mut response = Response::new(match small {
            true => list,
            false => body::within(list, body::TIMEOUT),
        });
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        return Ok(response);
    }
    let parse = |entry: &Arc<Entry>| {
        let mut object = entry.parse();
        if resource.storage_version.is_some() {
            resource.convert(&mut object, &resource.gvk);
        }
        object
    };
    if output.format == OutputFormat::Protobuf {
        let items = page.entries.iter().map(parse);
        let mut gvk = resource.gvk.clone();
        gvk.kind.push_str("List");
        let body = match output.shape {
            OutputShape::Partial => protobuf::encode_partial_list(&metadata, items),
            OutputShape::Object | OutputShape::Table => {
                protobuf::encode_list(Some(&resource.schema), &gvk, &metadata, items)
            }
        };
        return match body {
            Ok(body) => Ok(bytes(StatusCode::OK, PROTOBUF, body)),
            Err(reason) => list(resource, page, as_text(output, &reason)?, query),
        };
    }
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

/// Compresses a large answer while it is sent, if the client takes gzip.
///
/// An answer that already states its length comes from a kubelet or a proxied server: it passes as it is, since the length is of
/// these bytes and no others.
pub fn compress(answer: Answer, request: &HeaderMap) -> Answer {
    use http_body::Body as _;
    let size = answer.body().size_hint().exact();
    let large = size.is_some_and(|size| size >= COMPRESS_FROM as u64);
    let headers = answer.headers();
    let settled = headers.contains_key(CONTENT_ENCODING) || headers.contains_key(CONTENT_LENGTH);
    if !takes_gzip(request) || !large || settled {
        return answer;
    }
    let (mut parts, body) = answer.into_parts();
    packed(&mut parts.headers);
    Response::from_parts(parts, gzip(body))
}

/// Whether a client takes gzip. A weight of zero refuses it (RFC 9110, 12.4.2).
pub fn takes_gzip(request: &HeaderMap) -> bool {
    let accepted = request.get(ACCEPT_ENCODING);
    let accepted = accepted.and_then(|value| value.to_str().ok());
    accepted.is_some_and(|value| {
        value.split(',').any(|choice| {
            let (coding, weight) = choice.split_once(';').unwrap_or((choice, ""));
            let weight = weight.trim().strip_prefix("q=");
            let refused = weight.is_some_and(|weight| weight.trim().parse() == Ok(0.0));
            coding.trim() == "gzip" && !refused
        })
    })
}

/// Says that an answer is in gzip's format.
pub fn packed(headers: &mut HeaderMap) {
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
}

/// The body in gzip's format, made piece by piece as it is sent, off the threads that serve others.
fn gzip(body: ResponseBody) -> ResponseBody {
    use http_body_util::BodyExt as _;
    let packer = GzEncoder::new(Vec::new(), Compression::new(1));
    let pieces = futures::stream::unfold(Some((body, packer)), |state| async move {
        let (mut body, mut packer) = state?;
        loop {
            let data = match body.frame().await {
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
                Some(Err(error)) => return Some((Err(error), None)),
                None => {
                    let last = packer.finish().map(Bytes::from);
                    return Some((last.map_err(body::BoxError::from), None));
                }
            };
            let work = tokio::task::spawn_blocking(move || {
                packer.write_all(&data)?;
                let piece = std::mem::take(packer.get_mut());
                Ok::<_, std::io::Error>((packer, piece))
            });
            let piece: Vec<u8>;
            (packer, piece) = match work.await.map_err(body::BoxError::from) {
                Ok(Ok(done)) => done,
                Ok(Err(error)) => return Some((Err(error.into()), None)),
                Err(error) => return Some((Err(error), None)),
            };
            if !piece.is_empty() {
                return Some((Ok(piece.into()), Some((body, packer))));
            }
        }
    });
    body::stream(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_of_zero_refuses_gzip() {
        #[rustfmt::skip] // A table.
        let rows = [
            ("gzip",                true),
            ("deflate, gzip",       true),
            ("gzip;q=0.5",          true),
            ("gzip; q=1",           true),
            ("gzip;q=0",            false),
            ("br, gzip; q=0.000",   false),
            ("identity",            false),
        ];
        for (accepted, expected) in rows {
            let value = HeaderValue::from_static(accepted);
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, value)]);
            assert_eq!(takes_gzip(&headers), expected, "{accepted}");
        }
    }
}
