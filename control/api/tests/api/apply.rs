//! Who owns which field, and server-side apply.

use http::Method;
use serde_json::{Value, json};

use crate::support::{Reply, Server, config_map};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

async fn apply(server: &Server, path: &str, query: &str, config: &Value) -> Reply {
    let path = format!("{path}?{query}");
    let media_type = "application/apply-patch+yaml";
    server
        .send(Method::PATCH, &path, media_type, config.to_string())
        .await
}

fn map(data: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "m" }, "data": data })
}

/// The entries as `manager operation subresource: fields`.
fn owners(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array();
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let mut owners: Vec<String> = (entries.into_iter().flatten())
        .map(|entry| {
            format!(
                "{} {} {}: {}",
                text(entry, "manager"),
                text(entry, "operation"),
                text(entry, "subresource"),
                entry["fieldsV1"]
            )
        })
        .collect();
    owners.sort();
    owners
}

#[tokio::test]
async fn appliers_share_an_object_and_conflict_about_a_field() {
    let server = Server::start().await;
    let path = format!("{MAPS}/m");
    let first = apply(
        &server,
        &path,
        "fieldManager=a",
        &map(json!({ "x": "1", "y": "1" })),
    )
    .await
    .expect(201);
    assert_eq!(
        owners(&first),
        [r#"a Apply : {"f:data":{"f:x":{},"f:y":{}}}"#]
    );
    let again = apply(
        &server,
        &path,
        "fieldManager=a",
        &map(json!({ "x": "1", "y": "1" })),
    )
    .await
    .expect(200);
    assert_eq!(again, first, "nothing is written");
    let shared = apply(
        &server,
        &path,
        "fieldManager=b",
        &map(json!({ "y": "1", "z": "1" })),
    )
    .await
    .expect(200);
    assert_eq!(shared["data"], json!({ "x": "1", "y": "1", "z": "1" }));
    let conflicting = map(json!({ "y": "2" }));
    let refused = apply(&server, &path, "fieldManager=b", &conflicting).await;
    assert_eq!(
        refused.body["details"]["causes"],
        json!([{ "reason": "FieldManagerConflict", "message": "conflict with \"a\"", "field": ".data.y" }])
    );
    let message = refused.refused(409, "Conflict");
    assert_eq!(
        message,
        "Apply failed with 1 conflict: conflict with \"a\": .data.y"
    );
    let forced = apply(&server, &path, "fieldManager=b&force=true", &conflicting)
        .await
        .expect(200);
    // `b` applies `z` no more, and nobody else owns it; `y` is b's alone now.
    assert_eq!(forced["data"], json!({ "x": "1", "y": "2" }));
    assert_eq!(
        owners(&forced),
        [
            r#"a Apply : {"f:data":{"f:x":{}}}"#,
            r#"b Apply : {"f:data":{"f:y":{}}}"#
        ]
    );
    let less = apply(&server, &path, "fieldManager=a", &map(json!({})))
        .await
        .expect(200);
    assert_eq!(less["data"], json!({ "y": "2" }));
}

#[tokio::test]
async fn other_writes_are_owned_too() {
    let server = Server::start().await;
    let create = |query: &str| format!("{MAPS}?{query}");
    let mut object = config_map("m");
    object["data"] = json!({ "k": "1" });
    let created = server
        .post(&create("fieldManager=creator"), &object)
        .await
        .expect(201);
    assert_eq!(
        owners(&created),
        [r#"creator Update : {"f:data":{".":{},"f:k":{}}}"#]
    );
    let entry = &created["metadata"]["managedFields"][0];
    assert_eq!(
        (&entry["apiVersion"], &entry["fieldsType"]),
        (&json!("v1"), &json!("FieldsV1"))
    );
    assert_eq!(entry["time"], created["metadata"]["creationTimestamp"]);
    let path = format!("{MAPS}/m?fieldManager=patcher");
    let patched = server
        .merge(&path, &json!({ "data": { "k": "2", "l": "1" } }))
        .await
        .expect(200);
    assert_eq!(
        owners(&patched),
        [
            r#"creator Update : {"f:data":{}}"#,
            r#"patcher Update : {"f:data":{"f:k":{},"f:l":{}}}"#
        ]
    );
    let message = apply(
        &server,
        &format!("{MAPS}/m"),
        "fieldManager=a",
        &map(json!({ "k": "3" })),
    )
    .await
    .refused(409, "Conflict");
    assert_eq!(
        message,
        "Apply failed with 1 conflict: conflict with \"patcher\" using v1: .data.k"
    );
    // Without a name, the program of the user agent is the owner.
    let cleared = server
        .merge(
            &format!("{MAPS}/m"),
            &json!({ "metadata": { "managedFields": [{}] } }),
        )
        .await
        .expect(200);
    assert_eq!(owners(&cleared), [""; 0]);
    let name = "x".repeat(129);
    server
        .post(&create(&format!("fieldManager={name}")), &object)
        .await
        .refused(422, "Invalid");
}

#[tokio::test]
async fn the_status_and_the_scale_have_owners_of_their_own() {
    let server = Server::start().await;
    let labels = json!({ "app": "d" });
    let config = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" }, "spec": {
        "replicas": 2, "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels },
        "spec": { "containers": [{ "name": "c", "image": "i", "ports": [{ "containerPort": 80 }] }] } } } });
    let path = format!("{DEPLOYMENTS}/d");
    let made = apply(&server, &path, "fieldManager=a", &config)
        .await
        .expect(201);
    assert_eq!(
        made["spec"]["template"]["spec"]["containers"][0]["ports"][0]["protocol"],
        "TCP"
    );
    let owned = owners(&made).concat();
    assert!(
        owned.contains(r#"k:{\"name\":\"c\"}"#)
            && owned.contains(r#"k:{\"containerPort\":80,\"protocol\":\"TCP\"}"#),
        "{owned}"
    );
    let again = apply(&server, &path, "fieldManager=a", &config)
        .await
        .expect(200);
    assert_eq!(again, made, "an unchanged configuration writes nothing");
    let status =
        json!({ "status": { "replicas": 2, "observedGeneration": 1 }, "spec": { "replicas": 9 } });
    let reported = server
        .merge(&format!("{path}/status?fieldManager=c"), &status)
        .await
        .expect(200);
    let own = r#"c Update status: {"f:status":{"f:observedGeneration":{},"f:replicas":{}}}"#;
    assert!(
        owners(&reported).contains(&own.to_owned()),
        "{:?}",
        owners(&reported)
    );
    let scale = json!({ "spec": { "replicas": 5 } });
    server
        .merge(&format!("{path}/scale?fieldManager=s"), &scale)
        .await
        .expect(200);
    let message = apply(&server, &path, "fieldManager=a", &config)
        .await
        .refused(409, "Conflict");
    assert_eq!(
        message,
        "Apply failed with 1 conflict: conflict with \"s\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
    let mut without = config.clone();
    without["spec"]
        .as_object_mut()
        .expect("a spec")
        .remove("replicas");
    let given_up = apply(&server, &path, "fieldManager=a", &without)
        .await
        .expect(200);
    assert_eq!(given_up["spec"]["replicas"], 5, "another owns it");
}

#[tokio::test]
async fn what_is_no_configuration_is_refused() {
    let server = Server::start().await;
    let path = format!("{MAPS}/m");
    let good = map(json!({ "x": "1" }));
    apply(&server, &path, "", &good)
        .await
        .refused(422, "Invalid");
    let mut owned = good.clone();
    owned["metadata"]["managedFields"] = json!([]);
    apply(&server, &path, "fieldManager=a", &owned)
        .await
        .refused(400, "BadRequest");
    let mut other = good.clone();
    other["metadata"]["name"] = "n".into();
    apply(&server, &path, "fieldManager=a", &other)
        .await
        .refused(400, "BadRequest");
    let mut unknown = good.clone();
    unknown["nothing"] = 1.into();
    let reply = apply(&server, &path, "fieldManager=a", &unknown).await;
    assert_eq!(reply.code, 500, "{}", reply.body);
    assert!(
        reply
            .body
            .to_string()
            .contains(".nothing: field not declared in schema"),
        "{}",
        reply.body
    );
    let strict = apply(
        &server,
        &path,
        "fieldManager=a&fieldValidation=Strict",
        &unknown,
    )
    .await;
    assert_eq!(strict.code, 400, "{}", strict.body);
    let forced = server
        .send(
            Method::PATCH,
            &format!("{path}?force=true"),
            "application/merge-patch+json",
            "{}",
        )
        .await;
    forced.refused(422, "Invalid");
    // Who may patch and not create, does not create.
    let api = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({ "metadata": { "name": "patching" }, "rules": [{ "verbs": ["patch", "update"], "apiGroups": [""], "resources": ["configmaps"] }] });
    server
        .post(&format!("{api}/clusterroles"), &role)
        .await
        .expect(201);
    server.allow("patchers", "patching").await;
    let jane = server.acting("jane", &["patchers"]);
    let message = apply(&jane, &path, "fieldManager=a", &good)
        .await
        .refused(403, "Forbidden");
    assert!(
        message.contains("cannot create resource \"configmaps\""),
        "{message}"
    );
    apply(&server, &path, "fieldManager=a", &good)
        .await
        .expect(201);
    apply(&jane, &path, "fieldManager=a", &good)
        .await
        .expect(200);
}
