//! The stock kubectl reads discovery and OpenAPI documents, and prints tables.
//!
//! A thread answers HTTP on loopback with what `discovery`, `openapi`, `table` and `patch` make; it keeps one Deployment.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, Mutex};

use knarr_api::resource::Resource;
use knarr_api::schema::{FieldValidation, Format, Schemas};
use knarr_api::{discovery, kinds, openapi, table};
use serde_json::{Value, json};

const AGGREGATED: &str = "g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

struct Server {
    resources: Vec<Arc<Resource>>,
    aggregated: bool,
    version_three: bool,
    deployment: Mutex<Option<Value>>,
}

/// Starts a server; returns its URL.
fn serve(aggregated: bool, version_three: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let server = Arc::new(Server {
        resources: kinds::builtin().resources,
        aggregated,
        version_three,
        deployment: Mutex::new(None),
    });
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let server = Arc::clone(&server);
            // A client that goes away is none of the test's business.
            std::thread::spawn(move || server.connection(stream).ok());
        }
    });
    url
}

impl Server {
    fn connection(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut writer = stream;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let mut words = line.split_whitespace();
            let (method, target) = (
                words.next().unwrap_or_default(),
                words.next().unwrap_or_default(),
            );
            let (mut accept, mut length) = (String::new(), 0);
            loop {
                let mut header = String::new();
                reader.read_line(&mut header)?;
                let Some((name, value)) = header.trim().split_once(": ") else {
                    break;
                };
                match name.to_lowercase().as_str() {
                    "accept" => value.clone_into(&mut accept),
                    "content-length" => length = value.parse().unwrap_or(0),
                    _ => {}
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            let (code, kind, content) = self.answer(method, target, &accept, &body);
            write!(
                writer,
                "HTTP/1.1 {code} X\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
                content.len()
            )?;
            writer.write_all(&content)?;
        }
    }

    fn answer(
        &self,
        method: &str,
        target: &str,
        accept: &str,
        body: &[u8],
    ) -> (u16, String, Vec<u8>) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let json = |value: Option<Value>| match value {
            Some(value) => (
                200,
                "application/json".to_owned(),
                value.to_string().into_bytes(),
            ),
            None => (404, "application/json".to_owned(), b"{}".to_vec()),
        };
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        match parts.as_slice() {
            ["api" | "apis"] if self.aggregated && accept.contains(AGGREGATED) => {
                let list = discovery::aggregated(&self.resources, path == "/api", "v2");
                (
                    200,
                    format!("application/json;{AGGREGATED}"),
                    list.to_string().into_bytes(),
                )
            }
            ["api"] => json(Some(discovery::api_versions("127.0.0.1:6443"))),
            ["apis"] => json(Some(discovery::api_groups(&self.resources))),
            ["api", version] => json(discovery::api_resources(&self.resources, "", version)),
            ["apis", group, version] => {
                json(discovery::api_resources(&self.resources, group, version))
            }
            ["openapi", "v2"] if accept.contains(openapi::V2_PROTOBUF_ACCEPT) => (
                200,
                openapi::V2_PROTOBUF_CONTENT_TYPE.to_owned(),
                openapi::v2_protobuf(&self.resources),
            ),
            ["openapi", "v2"] => (
                200,
                "application/json".to_owned(),
                openapi::v2(&self.resources),
            ),
            ["openapi", "v3"] if self.version_three => (
                200,
                "application/json".to_owned(),
                openapi::v3_index(&self.resources),
            ),
            ["openapi", "v3", ..] if self.version_three => {
                match openapi::v3(&self.resources, path.trim_start_matches("/openapi/v3/")) {
                    Some(document) => (200, "application/json".to_owned(), document),
                    None => json(None),
                }
            }
            [
                "apis",
                "apps",
                "v1",
                "namespaces",
                "default",
                "deployments",
                ..,
            ] => {
                let gvk = kinds::gvk("apps/v1", "Deployment");
                let schemas = Schemas::builtin();
                let mut kept = self.deployment.lock().expect("no thread panics with it");
                let sent = match method {
                    "POST" => Some(
                        schemas
                            .decode(&gvk, body, Format::Json, FieldValidation::Strict)
                            .expect("valid")
                            .object,
                    ),
                    "PATCH" => {
                        let patch = serde_json::from_slice(body).expect("JSON");
                        let old = kept.as_ref().expect("created");
                        let merged =
                            knarr_api::patch::strategic::merge(schemas.find(&gvk), old, &patch)
                                .expect("applies");
                        Some(
                            schemas
                                .check(&gvk, merged, FieldValidation::Strict)
                                .expect("valid")
                                .object,
                        )
                    }
                    _ => None,
                };
                if let Some(mut object) = sent {
                    schemas.apply_defaults(&gvk, &mut object);
                    object["metadata"]["uid"] = "u".into();
                    *kept = Some(object);
                }
                json(kept.clone())
            }
            ["api", "v1", "namespaces", "default", "pods"] if method == "POST" => {
                let mode = if query.contains("fieldValidation=Strict") {
                    FieldValidation::Strict
                } else {
                    FieldValidation::Ignore
                };
                match Schemas::builtin().decode(&kinds::gvk("v1", "Pod"), body, Format::Json, mode)
                {
                    Ok(decoded) => json(Some(decoded.object)),
                    Err(error) => (
                        error.code,
                        "application/json".to_owned(),
                        error.to_status().to_string().into_bytes(),
                    ),
                }
            }
            ["api", "v1", "namespaces", "default", "pods"] => {
                let resource = self
                    .resources
                    .iter()
                    .find(|r| r.plural == "pods")
                    .expect("pods are built in");
                let options = table::Options {
                    include: table::Include::Metadata,
                    headers: true,
                    metadata: json!({ "resourceVersion": "7" }),
                    now: "2026-01-01T00:05:00Z".parse().expect("a time"),
                };
                json(Some(table::render(resource, &[pod()], &options)))
            }
            _ => json(None),
        }
    }
}

fn pod() -> Value {
    json!({
        "metadata": { "name": "web", "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z" },
        "spec": { "nodeName": "n1", "containers": [{ "name": "a" }] },
        "status": { "phase": "Running", "podIP": "10.42.0.5", "containerStatuses": [
            { "name": "a", "ready": true, "restartCount": 0, "state": { "running": {} } }] },
    })
}

/// Runs kubectl; returns standard output and error together.
fn kubectl(url: &str, arguments: &[&str]) -> String {
    let home = tempfile::tempdir().expect("a directory");
    let output = Command::new("kubectl")
        .env("HOME", home.path())
        .env("KUBECONFIG", "/dev/null")
        .args(["--server", url])
        .args(arguments)
        .output()
        .expect("kubectl is installed");
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn discovery_in_both_forms_gives_the_same_resources() {
    let new = kubectl(&serve(true, true), &["api-resources"]);
    let old = kubectl(&serve(false, true), &["api-resources"]);
    assert_eq!(new, old);
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert!(
        new.lines()
            .any(|line| words(line) == ["deployments", "deploy", "apps/v1", "true", "Deployment"]),
        "{new}"
    );
    assert!(
        new.lines()
            .any(|line| words(line) == ["pods", "po", "v1", "true", "Pod"]),
        "{new}"
    );
}

#[test]
fn fields_are_explained_from_either_version() {
    let text = kubectl(
        &serve(true, true),
        &[
            "explain",
            "deployment.spec.template.spec.containers.livenessProbe",
        ],
    );
    assert!(
        text.contains("FIELD: livenessProbe <Probe>") && text.contains("periodSeconds\t<integer>"),
        "{text}"
    );
    let text = kubectl(
        &serve(true, false),
        &[
            "explain",
            "--output",
            "plaintext-openapiv2",
            "pod.spec.containers",
        ],
    );
    assert!(text.contains("RESOURCE: containers <[]Object>"), "{text}");
    assert!(text.contains("imagePullPolicy"), "{text}");
}

#[test]
fn the_server_validates_fields_and_kubectl_knows() {
    let url = serve(true, true);
    let manifest = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "a", "namespace": "default" },
        "spec": { "containers": [{ "name": "a", "image": "b" }], "foo": 1 } });
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), manifest.to_string()).expect("written");
    let path = file.path().to_str().expect("UTF-8");
    let text = kubectl(&url, &["create", "--validate=strict", "-f", path]);
    assert!(
        text.contains("strict decoding error: unknown field \"spec.foo\""),
        "{text}"
    );
    assert_eq!(
        kubectl(&url, &["create", "--validate=false", "-f", path]),
        "pod/a created\n"
    );
}

#[test]
fn tables_are_printed_as_they_come() {
    let url = serve(true, true);
    let text = kubectl(&url, &["-n", "default", "get", "pods", "-o", "wide"]);
    let words: Vec<Vec<&str>> = text
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        words[0].join(" "),
        "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES",
        "{text}"
    );
    assert_eq!(
        words[1].join(" "),
        "web 1/1 Running 0 5m 10.42.0.5 n1 <none> <none>",
        "{text}"
    );
    assert!(!kubectl(&url, &["-n", "default", "get", "pods"]).contains("NODE"));
}

#[test]
fn applying_again_merges_lists_by_their_keys() {
    let url = serve(true, true);
    let file = tempfile::NamedTempFile::new().expect("a file");
    let path = file.path().to_str().expect("UTF-8");
    let apply = |containers: Value| {
        let manifest = json!({ "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": { "name": "a", "namespace": "default" },
            "spec": { "selector": { "matchLabels": { "a": "b" } }, "template": {
                "metadata": { "labels": { "a": "b" } }, "spec": { "containers": containers } } } });
        std::fs::write(file.path(), manifest.to_string()).expect("written");
        kubectl(&url, &["apply", "-f", path])
    };
    let first = json!([
        { "name": "x", "image": "x:1", "env": [{ "name": "A", "value": "1" }, { "name": "B", "value": "2" }] },
        { "name": "gone", "image": "g" },
    ]);
    assert_eq!(apply(first.clone()), "deployment.apps/a created\n");
    assert_eq!(apply(first), "deployment.apps/a unchanged\n");
    let second = json!([{ "name": "x", "image": "x:2", "env": [{ "name": "B", "value": "3" }] }]);
    assert_eq!(apply(second), "deployment.apps/a configured\n");
    let object: Value = serde_json::from_str(&kubectl(
        &url,
        &["-n", "default", "get", "deployment", "a", "-o", "json"],
    ))
    .expect("the Deployment");
    let containers = &object["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers.as_array().map(Vec::len), Some(1), "{containers}");
    assert_eq!(containers[0]["image"], "x:2");
    assert_eq!(containers[0]["env"], json!([{ "name": "B", "value": "3" }]));
    assert_eq!(
        containers[0]["terminationMessagePath"], "/dev/termination-log",
        "defaults stay"
    );
}
