//! Answers in protobuf: objects, lists, watches and errors, as client-go asks for them.

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use knarr_api::http::ResponseBody;
use knarr_api::resource::GroupVersionKind;
use knarr_api::schema::Schemas;
use serde_json::{Value, json};

use crate::support::{DEADLINE, MAPS, PODS, Server, config_map, pod};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// An answer's code, content type and bytes.
struct Raw {
    code: u16,
    content_type: String,
    body: Bytes,
}

async fn ask(server: &Server, method: Method, path: &str, accept: &str, body: &Value) -> Raw {
    let body = match body {
        Value::Null => Bytes::new(),
        body => body.to_string().into(),
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("accept", accept)
        .header("content-type", "application/json")
        .body(Full::new(body))
        .expect("a request");
    let (parts, body) = server.raw(request).await.into_parts();
    let content_type = parts.headers["content-type"].to_str().expect("text");
    Raw {
        code: parts.status.as_u16(),
        content_type: content_type.to_owned(),
        body: body.collect().await.expect("a whole body").to_bytes(),
    }
}

async fn get(server: &Server, path: &str, accept: &str) -> Raw {
    ask(server, Method::GET, path, accept, &Value::Null).await
}

impl Raw {
    /// The object, if code and content type are the expected ones.
    #[track_caller]
    fn object(&self, code: u16, api_version: &str, kind: &str) -> Value {
        assert_eq!((self.code, &*self.content_type), (code, PROTOBUF));
        read(&self.body, api_version, kind)
    }
}

#[track_caller]
fn read(body: &[u8], api_version: &str, kind: &str) -> Value {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let gvk = GroupVersionKind {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
    };
    let object = Schemas::builtin().decode_protobuf(&gvk, body);
    let object = object.expect("a body in protobuf");
    assert_eq!(
        (&object["apiVersion"], &object["kind"]),
        (&json!(api_version), &json!(kind))
    );
    object
}

/// The fields of a message that are bytes, by number.
fn fields(mut message: &[u8]) -> Vec<(u64, &[u8])> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let tag = varint(&mut message);
        let length = varint(&mut message);
        if tag & 7 == 2 {
            let (content, rest) = message.split_at(usize::try_from(length).expect("a length"));
            found.push((tag >> 3, content));
            message = rest;
        }
    }
    found
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first().expect("a whole number");
        *bytes = rest;
        number |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            break;
        }
    }
    number
}

fn field(message: &[u8], number: u64) -> &[u8] {
    let all = fields(message);
    let found = all.iter().find(|(found, _)| *found == number);
    found
        .unwrap_or_else(|| panic!("no field {number} in {message:?}"))
        .1
}

/// The kind of a list's body, its revision and its items' names.
fn list_of(body: &[u8]) -> (String, String, Vec<String>) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    let unknown = body.strip_prefix(b"k8s\0").expect("the magic");
    let kind = text(field(field(unknown, 1), 2));
    let list = field(unknown, 2);
    let items = fields(list).into_iter().filter(|(number, _)| *number == 2);
    let names = items.map(|(_, item)| text(field(field(item, 1), 1)));
    (kind, text(field(field(list, 1), 2)), names.collect())
}

#[tokio::test]
async fn an_object_is_the_same_in_protobuf_and_in_json() {
    let server = Server::start().await;
    server.service_account().await;
    let created = ask(&server, Method::POST, PODS, PROTOBUF, &pod("p")).await;
    let created = created.object(201, "v1", "Pod");
    let json = server.get(&format!("{PODS}/p")).await.expect(200);
    assert_eq!(created, json);
    let read = get(&server, &format!("{PODS}/p"), PROTOBUF).await;
    assert_eq!(read.object(200, "v1", "Pod"), json);
    let scale = "/apis/apps/v1/namespaces/default/deployments/d/scale";
    let deployment = json!({ "metadata": { "name": "d" }, "spec": {
        "selector": { "matchLabels": { "a": "b" } },
        "template": { "metadata": { "labels": { "a": "b" } }, "spec": pod("")["spec"] } } });
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    server.post(deployments, &deployment).await.expect(201);
    let scale = get(&server, scale, PROTOBUF).await;
    assert_eq!(
        scale.object(200, "autoscaling/v1", "Scale")["spec"]["replicas"],
        1
    );
}

#[tokio::test]
async fn lists_and_metadata_come_in_protobuf() {
    let server = Server::start().await;
    server.config_maps(2).await;
    let list = get(
        &server,
        MAPS,
        "application/vnd.kubernetes.protobuf,application/json",
    )
    .await;
    assert_eq!((list.code, &*list.content_type), (200, PROTOBUF));
    let json = server.get(MAPS).await.expect(200);
    let revision = json["metadata"]["resourceVersion"].as_str().expect("text");
    let names = vec!["m-000".to_owned(), "m-001".to_owned()];
    let expected = |kind: &str| (kind.to_owned(), revision.to_owned(), names.clone());
    assert_eq!(list_of(&list.body), expected("ConfigMapList"));
    let partial = format!("{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    let list = get(&server, MAPS, &partial).await;
    assert_eq!(list_of(&list.body), expected("PartialObjectMetadataList"));
    let table = format!("{PROTOBUF};as=Table;g=meta.k8s.io;v=v1");
    let refused = get(&server, MAPS, &table).await;
    assert_eq!(refused.code, 406);
    let either = format!("{table},application/json;as=Table;g=meta.k8s.io;v=v1");
    let table = server.get_as(MAPS, &either).await.expect(200);
    assert_eq!(table["kind"], "Table");
}

#[tokio::test]
async fn an_error_comes_in_protobuf_with_its_details() {
    let server = Server::start().await;
    let missing = get(&server, &format!("{MAPS}/missing"), PROTOBUF).await;
    let status = missing.object(404, "v1", "Status");
    let json = server.get(&format!("{MAPS}/missing")).await.expect(404);
    assert_eq!(status["reason"], "NotFound");
    assert_eq!(status, json);
    let invalid = json!({ "metadata": { "name": "No_Name" } });
    let refused = ask(&server, Method::POST, MAPS, PROTOBUF, &invalid).await;
    let status = refused.object(422, "v1", "Status");
    assert_eq!(status["details"]["causes"][0]["field"], "metadata.name");
}

#[tokio::test]
async fn what_has_no_protobuf_comes_as_json_or_not_at_all() {
    let server = Server::start().await;
    server.service_account().await;
    // A field whose number we do not know.
    let mut newer = pod("newer");
    newer["spec"]["volumes"] = json!([{ "name": "v", "emptyDir": { "mode": 448 } }]);
    server.post(PODS, &newer).await.expect(201);
    let either = format!("{PROTOBUF},application/json");
    for path in [PODS, &format!("{PODS}/newer")] {
        let json = server.get(path).await.expect(200);
        assert_eq!(server.get_as(path, &either).await.expect(200), json);
        let refused = get(&server, path, PROTOBUF).await;
        assert_eq!(
            refused.object(406, "v1", "Status")["reason"],
            "NotAcceptable"
        );
    }
    // A stream cannot change its format: the event says what is wrong.
    let watch = Request::get(format!("{PODS}?watch=1"))
        .header("accept", either)
        .body(Full::default())
        .expect("a request");
    let mut events = Events::of(server.raw(watch).await.into_body());
    let (kind, object) = events.next().await;
    let status = read(&object, "v1", "Status");
    let message = "field mode of EmptyDirVolumeSource has no number in protobuf";
    assert_eq!((&*kind, &status["message"]), ("ERROR", &json!(message)));
}

#[tokio::test]
async fn the_resources_of_a_group_come_in_protobuf() {
    let server = Server::start().await;
    let resources = get(&server, "/api/v1", PROTOBUF).await;
    let resources = resources.object(200, "v1", "APIResourceList");
    let json = server.get("/api/v1").await.expect(200);
    assert_eq!(resources["resources"], json["resources"]);
}

/// The events of a watch in protobuf.
struct Events {
    body: ResponseBody,
    buffer: Vec<u8>,
}

impl Events {
    fn of(body: ResponseBody) -> Self {
        let buffer = Vec::new();
        Self { body, buffer }
    }

    /// The next event's type and its object's body.
    async fn next(&mut self) -> (String, Vec<u8>) {
        loop {
            if let Some((length, rest)) = self.buffer.split_first_chunk::<4>()
                && let length = u32::from_be_bytes(*length) as usize
                && let Some(event) = rest.get(..length)
            {
                let kind = String::from_utf8(field(event, 1).to_vec()).expect("text");
                let object = field(field(event, 2), 1).to_vec();
                self.buffer.drain(..4 + length);
                return (kind, object);
            }
            let frame = tokio::time::timeout(DEADLINE, self.body.frame()).await;
            let frame = frame.expect("an event in time").expect("the watch goes on");
            let data = frame.expect("no error").into_data().expect("only data");
            self.buffer.extend_from_slice(&data);
        }
    }

    /// The next event's type and its config map.
    async fn config_map(&mut self) -> (String, Value) {
        let (kind, object) = self.next().await;
        (kind, read(&object, "v1", "ConfigMap"))
    }
}

#[tokio::test]
async fn a_watch_in_protobuf_shows_every_change_behind_its_length() {
    let server = Server::start().await;
    server.config_maps(1).await;
    let initial = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let request = Request::get(format!("{MAPS}?watch=1&allowWatchBookmarks=true&{initial}"))
        .header(
            "accept",
            format!("{PROTOBUF};stream=watch,application/json"),
        )
        .body(Full::default())
        .expect("a request");
    let response = server.raw(request).await;
    let expected = format!("{PROTOBUF};stream=watch");
    assert_eq!(response.headers()["content-type"], &*expected);
    let mut events = Events::of(response.into_body());
    let (kind, object) = events.config_map().await;
    assert_eq!((&*kind, &object["data"]["k"]), ("ADDED", &json!("v")));
    let (kind, object) = events.config_map().await;
    let end = &object["metadata"]["annotations"]["k8s.io/initial-events-end"];
    assert_eq!((&*kind, end), ("BOOKMARK", &json!("true")));
    let created = server.post(MAPS, &config_map("x")).await.expect(201);
    assert_eq!(events.config_map().await, ("ADDED".to_owned(), created));
    server.delete(&format!("{MAPS}/x")).await.expect(200);
    let (kind, object) = events.config_map().await;
    assert_eq!(
        (&*kind, &object["metadata"]["name"]),
        ("DELETED", &json!("x"))
    );
}
