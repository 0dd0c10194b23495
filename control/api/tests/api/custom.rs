//! Custom resources: kinds that come and go with their definitions.

use http::Method;
use serde_json::{Value, json};

use crate::support::Server;

const CRDS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn definition() -> Value {
    let schema = json!({ "type": "object", "required": ["spec"], "properties": {
        "spec": { "type": "object", "required": ["size"], "properties": {
            "size": { "type": "integer", "minimum": 1, "maximum": 10 },
            "color": { "type": "string", "enum": ["red", "blue"], "default": "red" },
            "replicas": { "type": "integer", "default": 1 },
            "parts": { "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": { "type": "object", "required": ["name"], "properties": {
                    "name": { "type": "string" }, "count": { "type": "integer" } } } },
        }, "x-kubernetes-validations": [
            { "rule": "self.size >= self.replicas", "message": "size is at least replicas" },
            { "rule": "self.size >= oldSelf.size", "message": "size never shrinks" },
        ] },
        "status": { "type": "object", "properties": { "phase": { "type": "string" }, "replicas": { "type": "integer" } } },
    } });
    let version = |name: &str, storage: bool| {
        json!({
            "name": name, "served": true, "storage": storage, "schema": { "openAPIV3Schema": schema },
            "subresources": { "status": {}, "scale": { "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas" } },
            "additionalPrinterColumns": [{ "name": "Size", "type": "integer", "jsonPath": ".spec.size" }],
            "selectableFields": [{ "jsonPath": ".spec.color" }],
        })
    };
    json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "widgets.example.com" },
        "spec": { "group": "example.com", "scope": "Namespaced",
            "names": { "plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList", "shortNames": ["wd"] },
            "versions": [version("v1", true), version("v1beta1", false)] } })
}

fn widget(name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "example.com/v1", "kind": "Widget", "metadata": { "name": name }, "spec": spec })
}

/// Waits until the definition has a condition, and then says so.
async fn condition(server: &Server, name: &str, kind: &str, status: &str) -> Value {
    let mut events = server.watch(&format!("{CRDS}?watch=true")).await;
    loop {
        let event = events.next().await.expect("the watch goes on");
        let conditions = event["object"]["status"]["conditions"].as_array().cloned();
        let found = conditions
            .into_iter()
            .flatten()
            .find(|c| c["type"] == kind && c["status"] == status);
        if let Some(found) = found.filter(|_| event["object"]["metadata"]["name"] == name) {
            return found;
        }
    }
}

/// Waits until the resource is served, which it is right after it was established.
async fn served(server: &Server, path: &str, code: u16) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while server.get(path).await.code != code {
        assert!(
            tokio::time::Instant::now() < deadline,
            "{path} is not {code}"
        );
        tokio::task::yield_now().await;
    }
}

async fn defined() -> Server {
    let server = Server::start().await;
    server.post(CRDS, &definition()).await.expect(201);
    condition(&server, "widgets.example.com", "Established", "True").await;
    served(&server, WIDGETS, 200).await;
    server
}

#[tokio::test]
async fn a_custom_resource_is_validated_defaulted_and_pruned() {
    let server = defined().await;
    let mut object = widget("a", json!({ "size": 3, "unknown": true }));
    object["status"] = json!({ "phase": "not yet" });
    let made = server.post(WIDGETS, &object).await.expect(201);
    assert_eq!(
        made["spec"],
        json!({ "size": 3, "color": "red", "replicas": 1 })
    );
    assert_eq!(
        (&made["status"], &made["metadata"]["generation"]),
        (&Value::Null, &json!(1))
    );
    #[rustfmt::skip] // One mistake a line.
    let table = [
        (json!({}), "spec.size: Required value"),
        (json!({ "size": 0 }), "spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"),
        (json!({ "size": 11 }), "spec.size in body should be less than or equal to 10"),
        (json!({ "size": 1, "color": "green" }), "spec.color: Unsupported value: \"green\": supported values: \"red\", \"blue\""),
        (json!({ "size": 1, "replicas": 2 }), "size is at least replicas"),
        (json!({ "size": 1, "parts": [{ "name": "x" }, { "name": "x" }] }), "spec.parts[1]: Duplicate value"),
        (json!({ "size": "1" }), "spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\""),
    ];
    for (spec, wanted) in table {
        let message = server
            .post(WIDGETS, &widget("b", spec))
            .await
            .refused(422, "Invalid");
        assert!(message.contains(wanted), "{message}");
    }
    let path = format!("{WIDGETS}/a");
    let smaller = json!({ "spec": { "size": 2 } });
    let message = server.merge(&path, &smaller).await.refused(422, "Invalid");
    assert!(message.contains("size never shrinks"), "{message}");
    let larger = server
        .merge(&path, &json!({ "spec": { "size": 5 } }))
        .await
        .expect(200);
    assert_eq!(larger["metadata"]["generation"], 2);
    let status = json!({ "spec": { "size": 9 }, "status": { "phase": "Ready", "replicas": 1 } });
    let reported = server
        .merge(&format!("{path}/status"), &status)
        .await
        .expect(200);
    assert_eq!(
        (&reported["spec"]["size"], &reported["status"]["phase"]),
        (&json!(5), &json!("Ready"))
    );
    assert_eq!(reported["metadata"]["generation"], 2);
    let scale = server.get(&format!("{path}/scale")).await.expect(200);
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]["replicas"]),
        (&json!(1), &json!(1))
    );
    server
        .merge(
            &format!("{path}/scale"),
            &json!({ "spec": { "replicas": 4 } }),
        )
        .await
        .expect(200);
    let beta = server
        .get(&path.replace("/v1/", "/v1beta1/"))
        .await
        .expect(200);
    assert_eq!(
        (&beta["apiVersion"], &beta["spec"]["replicas"]),
        (&json!("example.com/v1beta1"), &json!(4))
    );
    let strategic = server
        .send(
            Method::PATCH,
            &path,
            "application/strategic-merge-patch+json",
            "{}",
        )
        .await;
    strategic.refused(415, "UnsupportedMediaType");
    let red = server
        .get(&format!("{WIDGETS}?fieldSelector=spec.color%3Dred"))
        .await
        .expect(200);
    assert_eq!(red["items"].as_array().map(Vec::len), Some(1));
    let table = server
        .get_as(WIDGETS, "application/json;as=Table;g=meta.k8s.io;v=v1")
        .await
        .expect(200);
    assert_eq!(table["columnDefinitions"][1]["name"], "Size");
    assert_eq!(table["rows"][0]["cells"], json!(["a", 5]));
}

#[tokio::test]
async fn a_custom_resource_is_applied_watched_and_discovered() {
    let server = defined().await;
    let mut events = server.watch(&format!("{WIDGETS}?watch=true")).await;
    let apply = async |manager: &str, spec: Value| {
        let path = format!("{WIDGETS}/a?fieldManager={manager}");
        let media_type = "application/apply-patch+yaml";
        server
            .send(
                Method::PATCH,
                &path,
                media_type,
                widget("a", spec).to_string(),
            )
            .await
    };
    apply(
        "one",
        json!({ "size": 2, "parts": [{ "name": "x", "count": 1 }] }),
    )
    .await
    .expect(201);
    let both = apply(
        "two",
        json!({ "size": 2, "parts": [{ "name": "y", "count": 1 }] }),
    )
    .await
    .expect(200);
    assert_eq!(
        both["spec"]["parts"].as_array().map(Vec::len),
        Some(2),
        "{both}"
    );
    apply(
        "two",
        json!({ "size": 2, "parts": [{ "name": "x", "count": 2 }] }),
    )
    .await
    .refused(409, "Conflict");
    assert_eq!(events.next().await.expect("an event")["type"], "ADDED");
    assert_eq!(events.next().await.expect("an event")["type"], "MODIFIED");
    let groups = server.get("/apis").await.expect(200).to_string();
    assert!(
        groups.contains(r#""preferredVersion":{"groupVersion":"example.com/v1","version":"v1"}"#),
        "{groups}"
    );
    let resources = server.get("/apis/example.com/v1").await.expect(200);
    let names: Vec<&Value> = resources["resources"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|r| &r["name"])
        .collect();
    assert_eq!(names, ["widgets", "widgets/scale", "widgets/status"]);
    let document = server
        .get("/openapi/v3/apis/example.com/v1")
        .await
        .expect(200);
    let schema = &document["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(
        schema["properties"]["spec"]["properties"]["size"]["maximum"],
        10
    );
    assert!(
        !document["components"]["schemas"]["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"]
            .is_null()
    );
    let old = server.get("/openapi/v2").await.expect(200);
    assert!(!old["definitions"]["com.example.v1.Widget"].is_null());
}

#[tokio::test]
async fn a_definition_goes_after_its_objects_and_may_come_again() {
    let server = defined().await;
    let path = format!("{WIDGETS}/held");
    let mut held = widget("held", json!({ "size": 1 }));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    server.post(WIDGETS, &held).await.expect(201);
    server
        .post(WIDGETS, &widget("free", json!({ "size": 1 })))
        .await
        .expect(201);
    let one = format!("{CRDS}/widgets.example.com");
    server.delete(&one).await.expect(200);
    condition(&server, "widgets.example.com", "Terminating", "True").await;
    served(&server, &format!("{WIDGETS}/free"), 404).await;
    let code = server
        .post(WIDGETS, &widget("late", json!({ "size": 1 })))
        .await
        .code;
    assert_eq!(code, 405, "nothing new is made");
    server.get(&one).await.expect(200);
    let let_go = json!({ "metadata": { "finalizers": null } });
    server.merge(&path, &let_go).await.expect(200);
    served(&server, &one, 404).await;
    served(&server, WIDGETS, 404).await;
    assert!(
        !server
            .get("/apis")
            .await
            .expect(200)
            .to_string()
            .contains("example.com/")
    );
    server.post(CRDS, &definition()).await.expect(201);
    condition(&server, "widgets.example.com", "Established", "True").await;
    served(&server, WIDGETS, 200).await;
    let list = server.get(WIDGETS).await.expect(200);
    assert_eq!(list["items"], json!([]));
}

#[tokio::test]
async fn definitions_and_their_objects_survive_a_restart_and_names_do_not_clash() {
    let server = defined().await;
    let made = server
        .post(WIDGETS, &widget("a", json!({ "size": 3 })))
        .await
        .expect(201);
    let mut other = definition();
    other["metadata"]["name"] = "gadgets.example.com".into();
    other["spec"]["names"] = json!({ "plural": "gadgets", "singular": "gadget", "kind": "Gadget", "listKind": "GadgetList", "shortNames": ["wd"] });
    server.post(CRDS, &other).await.expect(201);
    let refused = condition(&server, "gadgets.example.com", "NamesAccepted", "False").await;
    assert_eq!(
        (&refused["reason"], &refused["message"]),
        (
            &json!("ShortNamesConflict"),
            &json!("\"wd\" is already in use")
        )
    );
    let server = server.restart().await;
    // Without a wait: what is established is served from the start.
    assert_eq!(server.get(&format!("{WIDGETS}/a")).await.expect(200), made);
    server
        .get("/apis/example.com/v1/gadgets")
        .await
        .refused(404, "NotFound");
}
