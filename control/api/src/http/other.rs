//! Paths that are no resource: discovery, OpenAPI, health, version, keys.

use http::header::{ACCEPT, ETAG, IF_NONE_MATCH};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::dispatch::Call;
use super::negotiate::{self, Output};
use super::respond::{self, Answer};
use super::{health, objects};
use crate::registry::table::Table;
use crate::status::ApiError;
use crate::{VERSION, discovery, openapi};

const PATHS: &[&str] = &[
    "/.well-known/openid-configuration",
    "/api",
    "/api/v1",
    "/apis",
    "/cacerts",
    "/healthz",
    "/livez",
    "/metrics",
    "/openapi/v2",
    "/openapi/v3",
    "/openid/v1/jwks",
    "/readyz",
    "/version",
];

/// Answers a request for a path that is no resource.
pub async fn answer(call: &Call) -> Result<Answer, ApiError> {
    let path = call.parts.uri.path();
    if !matches!(call.parts.method, Method::GET | Method::HEAD) {
        return Err(ApiError::method_not_allowed());
    }
    let server = &call.server;
    let table = server.registry.table();
    let resources = table.resources();
    let json = |value: &Value| Ok(respond::value(StatusCode::OK, value, Output::JSON));
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts[..] {
        [] => {
            let groups = resources.iter().filter(|r| !r.gvk.group.is_empty());
            let mut paths: Vec<String> = PATHS.iter().map(|path| (*path).to_owned()).collect();
            paths.extend(health::paths());
            for resource in groups {
                paths.push(format!("/apis/{}", resource.gvk.group));
                paths.push(format!("/apis/{}", resource.gvk.api_version()));
            }
            paths.sort();
            paths.dedup();
            json(&json!({ "paths": paths }))
        }
        ["api"] | ["apis"] => {
            let core = parts[0] == "api";
            if let Some(version) = negotiate::wants_aggregated(&call.parts.headers) {
                let value = discovery::aggregated(resources, core, version);
                let mut answer = respond::value(StatusCode::OK, &value, Output::JSON);
                let content_type = format!(
                    "application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
                );
                if let Ok(value) = content_type.parse() {
                    answer
                        .headers_mut()
                        .insert(http::header::CONTENT_TYPE, value);
                }
                return Ok(answer);
            }
            let value = if core {
                discovery::api_versions(&server.config.advertised())
            } else {
                discovery::api_groups(resources)
            };
            Ok(respond::value(
                StatusCode::OK,
                &value,
                objects::output(call)?,
            ))
        }
        ["api", version] => found(call, discovery::api_resources(resources, "", version)),
        ["apis", group] => found(call, discovery::api_group(resources, group)),
        ["apis", group, version] => {
            found(call, discovery::api_resources(resources, group, version))
        }
        ["version"] => json(&version(&server.config.build)),
        [endpoint @ ("healthz" | "livez" | "readyz"), ref check @ ..] => {
            health::answer(call, endpoint, check).await
        }
        ["metrics"] => Ok(metrics(call)),
        ["cacerts"] => Ok(respond::bytes(
            StatusCode::OK,
            "application/x-pem-file",
            server.ca_cert_pem.clone(),
        )),
        ["openid", "v1", "jwks"] => {
            let keys = server.tokens.jwks().to_string();
            Ok(respond::bytes(
                StatusCode::OK,
                "application/jwk-set+json",
                keys,
            ))
        }
        [".well-known", "openid-configuration"] => {
            json(&server.tokens.discovery(&server.config.advertised()))
        }
        ["openapi", ref name @ ..] => openapi(call, name).await,
        _ => Err(ApiError::no_such_path()),
    }
}

/// `/openapi/v2`, `/openapi/v3` and what is below.
async fn openapi(call: &Call, name: &[&str]) -> Result<Answer, ApiError> {
    let server = &call.server;
    let table = server.registry.table();
    let headers = &call.parts.headers;
    let accepted = headers
        .get(ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let json = "application/json";
    let (content_type, made) = match name {
        ["v2"] if accepted.contains(openapi::V2_PROTOBUF_ACCEPT) => {
            let make = |table: &Table| Some(openapi::v2_protobuf(table.resources()));
            let made = server.documents.get(&table, "v2 in protobuf", make).await;
            (openapi::V2_PROTOBUF_CONTENT_TYPE, made)
        }
        ["v2"] => {
            let make = |table: &Table| Some(openapi::v2(table.resources()));
            (json, server.documents.get(&table, "v2", make).await)
        }
        ["v3"] => {
            let make = |table: &Table| Some(openapi::v3_index(table.resources()));
            (json, server.documents.get(&table, "v3", make).await)
        }
        ["v3", name @ ..] if openapi::has_v3(table.resources(), &name.join("/")) => {
            let name = name.join("/");
            let key = format!("v3/{name}");
            let make = move |table: &Table| openapi::v3(table.resources(), &name);
            (json, server.documents.get(&table, &key, make).await)
        }
        _ => return Err(ApiError::no_such_path()),
    };
    let document = made.document().ok_or_else(ApiError::no_such_path)?;
    let same = headers
        .get(IF_NONE_MATCH)
        .is_some_and(|value| value == document.tag.as_str());
    let mut answer = if same {
        respond::bytes(StatusCode::NOT_MODIFIED, content_type, "")
    } else if respond::takes_gzip(headers) {
        let mut answer = respond::bytes(StatusCode::OK, content_type, document.gzip());
        respond::packed(answer.headers_mut());
        answer
    } else {
        respond::bytes(StatusCode::OK, content_type, document.plain())
    };
    if let Ok(value) = document.tag.parse() {
        answer.headers_mut().insert(ETAG, value);
    }
    Ok(answer)
}

fn found(call: &Call, value: Option<Value>) -> Result<Answer, ApiError> {
    let value = value.ok_or_else(ApiError::no_such_path)?;
    Ok(respond::value(
        StatusCode::OK,
        &value,
        objects::output(call)?,
    ))
}

/// `GET /version` (apimachinery, `version.Info`): what this is, and the versions of the API that it speaks and works with.
fn version(build: &crate::Build) -> Value {
    let mut parts = VERSION.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or("1"), parts.next().unwrap_or("0"));
    let before = minor.parse::<u32>().unwrap_or(1).saturating_sub(1);
    json!({
        "major": major,
        "minor": minor,
        "emulationMajor": major,
        "emulationMinor": minor,
        "minCompatibilityMajor": major,
        "minCompatibilityMinor": before.to_string(),
        "gitVersion": VERSION,
        "gitCommit": build.commit,
        "gitTreeState": build.tree_state,
        "buildDate": build.date,
        "goVersion": build.compiler,
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

fn metrics(call: &Call) -> Answer {
    let text = call.server.metrics.render(&call.server.registry);
    respond::bytes(
        StatusCode::OK,
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
        text,
    )
}
