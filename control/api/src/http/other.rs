//! Paths that are no resource: discovery, OpenAPI, health, version, keys.

use http::header::{ACCEPT, ETAG, IF_NONE_MATCH};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::dispatch::Call;
use super::negotiate::{self, Output};
use super::objects;
use super::respond::{self, Answer};
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
pub fn answer(call: &Call) -> Result<Answer, ApiError> {
    let path = call.parts.uri.path();
    if !matches!(call.parts.method, Method::GET | Method::HEAD) {
        return Err(ApiError::method_not_allowed());
    }
    let server = &call.server;
    let resources = server.registry.resources();
    let json = |value: &Value| Ok(respond::value(StatusCode::OK, value, Output::JSON));
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts[..] {
        [] => {
            let groups = resources.iter().filter(|r| !r.gvk.group.is_empty());
            let mut paths: Vec<String> = PATHS.iter().map(|path| (*path).to_owned()).collect();
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
        ["version"] => json(&version()),
        ["healthz" | "livez" | "readyz", ..] => health(call, &parts),
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
        ["openapi", ref name @ ..] => openapi(call, name),
        _ => Err(ApiError::no_such_path()),
    }
}

/// `/openapi/v2`, `/openapi/v3` and what is below. The documents are made when they are asked for: they are large, and clients
/// keep them by their entity tags.
fn openapi(call: &Call, name: &[&str]) -> Result<Answer, ApiError> {
    let resources = call.server.registry.resources();
    let accepted = call
        .parts
        .headers
        .get(ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let json = "application/json";
    let (content_type, document) = match name {
        ["v2"] if accepted.contains(openapi::V2_PROTOBUF_ACCEPT) => (
            openapi::V2_PROTOBUF_CONTENT_TYPE,
            openapi::v2_protobuf(resources),
        ),
        ["v2"] => (json, openapi::v2(resources)),
        ["v3"] => (json, openapi::v3_index(resources)),
        ["v3", name @ ..] => (
            json,
            openapi::v3(resources, &name.join("/")).ok_or_else(ApiError::no_such_path)?,
        ),
        _ => return Err(ApiError::no_such_path()),
    };
    let tag = openapi::etag(&document);
    let same = call
        .parts
        .headers
        .get(IF_NONE_MATCH)
        .is_some_and(|value| value == tag.as_str());
    let mut answer = if same {
        respond::bytes(StatusCode::NOT_MODIFIED, content_type, "")
    } else {
        respond::bytes(StatusCode::OK, content_type, document)
    };
    if let Ok(value) = tag.parse() {
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

/// `GET /version`.
fn version() -> Value {
    let mut parts = VERSION.trim_start_matches('v').split('.');
    json!({
        "major": parts.next(),
        "minor": parts.next(),
        "gitVersion": VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

/// `/healthz`, `/livez`, `/readyz`, whole or one check (apiserver, `server/healthz`).
fn health(call: &Call, parts: &[&str]) -> Result<Answer, ApiError> {
    let server = &call.server;
    let mut checks = vec![("ping", true), ("log", true), ("etcd", true)];
    if parts[0] != "livez" {
        checks.push(("informer-sync", true));
    }
    checks.push(("poststarthook/bootstrap-controller", true));
    if parts[0] == "readyz" {
        checks.push(("shutdown", !server.stop.is_cancelled()));
    }
    if parts.len() > 1 {
        let asked = parts[1..].join("/");
        let check = checks
            .iter()
            .find(|(name, _)| *name == asked)
            .ok_or_else(ApiError::no_such_path)?;
        return Ok(match check.1 {
            true => respond::text(StatusCode::OK, "ok"),
            false => respond::text(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal server error: failed\n",
            ),
        });
    }
    let excluded: Vec<&str> = call.query.all("exclude").collect();
    checks.retain(|(name, _)| !excluded.contains(name));
    let good = checks.iter().all(|(_, good)| *good);
    if good && !call.query.flag("verbose") {
        return Ok(respond::text(StatusCode::OK, "ok"));
    }
    let mut text: String = checks
        .iter()
        .map(|(name, good)| match good {
            true => format!("[+]{name} ok\n"),
            false => format!("[-]{name} failed: reason withheld\n"),
        })
        .collect();
    let outcome = if good { "passed" } else { "failed" };
    text.push_str(&format!("{} check {outcome}\n", parts[0]));
    let code = if good {
        StatusCode::OK
    } else {
        StatusCode::INTERNAL_SERVER_ERROR
    };
    Ok(respond::text(code, text))
}

fn metrics(call: &Call) -> Answer {
    let text = call.server.metrics.render(&call.server.registry);
    respond::bytes(
        StatusCode::OK,
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
        text,
    )
}
