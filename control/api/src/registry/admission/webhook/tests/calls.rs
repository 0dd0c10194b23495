//! What webhooks see, and what becomes of what they answer.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Barrier;

use super::server::{Behaviour, Server, allow};
use super::{Cluster, MUTATING, VALIDATING, pod, webhook};
use crate::registry::admission::Changed;
use crate::registry::operation::Action;

fn patch(operations: Value) -> Behaviour {
    Behaviour::Patch(operations)
}

fn label(name: &str) -> Behaviour {
    patch(json!([{ "op": "add", "path": format!("/metadata/labels/{name}"), "value": "yes" }]))
}

#[tokio::test]
async fn a_webhook_sees_who_does_what_to_which_object() {
    let (cluster, server) = (
        Cluster::start().await,
        Server::start([("/allow", allow())]).await,
    );
    let hook = webhook(&server, "/allow", json!({}));
    cluster.configure(VALIDATING, "v", &[hook]).await;
    let mut old = pod();
    old["metadata"]["labels"] = json!({});
    let mut operation = cluster.on_pod(Action::Update, Some(old.clone()), Some(pod()));
    cluster.judge(&mut operation).await.expect("allowed");
    let (url, review) = server.asked().remove(0);
    assert_eq!(url, "/allow?timeout=10s");
    let mut request = review["request"].clone();
    assert!(request["uid"].take().is_string());
    let kind = json!({ "group": "", "version": "v1", "kind": "Pod" });
    let resource = json!({ "group": "", "version": "v1", "resource": "pods" });
    assert_eq!(
        request,
        json!({
            "uid": null, "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
            "name": "p", "namespace": "default", "operation": "UPDATE", "dryRun": false,
            "userInfo": { "username": "somebody", "groups": ["system:authenticated"] },
            "object": pod(), "oldObject": old,
            "options": { "kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1" },
        })
    );
    let mut deletion = cluster.on_pod(Action::Delete, Some(pod()), None);
    deletion.options = Some(json!({ "gracePeriodSeconds": 5 }));
    cluster.judge(&mut deletion).await.expect("allowed");
    let request = server.asked().remove(1).1["request"].take();
    assert_eq!(
        (&request["object"], &request["oldObject"]),
        (&Value::Null, &pod())
    );
    assert_eq!(request["options"]["kind"], "DeleteOptions");
    assert_eq!(request["options"]["gracePeriodSeconds"], 5);
}

#[tokio::test]
async fn each_webhook_sees_what_the_one_before_it_made_with_defaults() {
    let container = json!({ "name": "sidecar", "image": "s" });
    let server = Server::start([
        (
            "/inject",
            patch(json!([{ "op": "add", "path": "/spec/containers/-", "value": container }])),
        ),
        ("/label", label("seen")),
    ])
    .await;
    let cluster = Cluster::start().await;
    // By the names of the configurations, not by their age.
    let hooks = [webhook(&server, "/label", json!({}))];
    cluster.configure(MUTATING, "b", &hooks).await;
    let hooks = [webhook(&server, "/inject", json!({}))];
    cluster.configure(MUTATING, "a", &hooks).await;
    let mut operation = cluster.creation();
    assert_eq!(cluster.mutate(&mut operation).await, Ok(Changed::ByOthers));
    assert_eq!(server.paths(), ["/inject", "/label"]);
    let seen = &server.asked()[1].1["request"]["object"];
    assert_eq!(seen["spec"]["containers"][1]["imagePullPolicy"], "Always");
    let new = operation.new.expect("an object");
    assert_eq!(
        new["metadata"]["labels"],
        json!({ "app": "web", "seen": "yes" })
    );
}

#[tokio::test]
async fn a_webhook_changes_neither_what_the_server_sets_nor_the_identity() {
    let replace = |path: &str, value: &str| {
        patch(
            json!([{ "op": "add", "path": path, "value": value }, { "op": "add", "path": "/metadata/uid", "value": "mine" },
            { "op": "add", "path": "/metadata/deletionTimestamp", "value": "2026-01-01T00:00:00Z" }]),
        )
    };
    let server = Server::start([
        ("/label", replace("/metadata/labels/x", "y")),
        ("/move", replace("/metadata/namespace", "elsewhere")),
    ])
    .await;
    let cluster = Cluster::start().await;
    let hooks = [webhook(&server, "/label", json!({}))];
    cluster.configure(MUTATING, "m", &hooks).await;
    let mut operation = cluster.creation();
    cluster.mutate(&mut operation).await.expect("allowed");
    let new = operation.new.expect("an object");
    assert_eq!(new["metadata"]["uid"], "u");
    assert!(new["metadata"].get("deletionTimestamp").is_none());
    assert_eq!(new["metadata"]["labels"]["x"], "y");
    let hooks = [webhook(
        &server,
        "/move",
        json!({ "failurePolicy": "Ignore" }),
    )];
    cluster.configure(MUTATING, "m", &hooks).await;
    for (action, old, code) in [
        (Action::Create, None, 400),
        (Action::Update, Some(pod()), 422),
    ] {
        let mut operation = cluster.on_pod(action, old, Some(pod()));
        let refused = cluster.mutate(&mut operation).await.expect_err("moved");
        assert_eq!(refused.code, code, "{refused}");
    }
}

#[tokio::test]
async fn a_webhook_is_called_again_only_if_it_wants_to_and_something_changed_since() {
    let server = Server::start([
        ("/again", allow()),
        ("/once", allow()),
        ("/change", label("changed")),
    ])
    .await;
    let again = json!({ "reinvocationPolicy": "IfNeeded" });
    let hooks = [
        webhook(&server, "/again", again.clone()),
        webhook(&server, "/once", json!({})),
        webhook(&server, "/change", again),
    ];
    let cluster = Cluster::start().await;
    cluster.configure(MUTATING, "m", &hooks).await;
    let mut operation = cluster.creation();
    assert_eq!(cluster.mutate(&mut operation).await, Ok(Changed::ByOthers));
    operation.rounds.start_second();
    cluster.mutate(&mut operation).await.expect("allowed");
    assert_eq!(server.paths(), ["/again", "/once", "/change", "/again"]);
    // Had a plugin of this server changed the object meanwhile, the last would be called again too.
    let mut operation = cluster.creation();
    cluster.mutate(&mut operation).await.expect("allowed");
    operation.rounds.start_second();
    operation.new.as_mut().expect("an object")["metadata"]["labels"]["by"] = "server".into();
    cluster.mutate(&mut operation).await.expect("allowed");
    let paths = server.paths().split_off(4);
    assert_eq!(paths, ["/again", "/once", "/change", "/again", "/change"]);
}

#[tokio::test]
async fn validating_webhooks_are_asked_all_at_once() {
    let barrier = Arc::new(Barrier::new(2));
    let server = Server::start([
        ("/a", Behaviour::Meet(barrier.clone())),
        ("/b", Behaviour::Meet(barrier)),
    ])
    .await;
    let cluster = Cluster::start().await;
    let hooks = ["/a", "/b"].map(|path| webhook(&server, path, json!({})));
    cluster.configure(VALIDATING, "v", &hooks).await;
    let mut operation = cluster.creation();
    cluster.judge(&mut operation).await.expect("both answer");
}

#[tokio::test]
async fn the_first_refusal_counts_and_all_warnings_do() {
    let refuse = |why: &str| {
        let status = json!({ "message": why, "code": 403, "reason": "Forbidden" });
        Behaviour::Respond(json!({ "allowed": false, "status": status, "warnings": [why] }))
    };
    let server = Server::start([("/a", refuse("first")), ("/b", refuse("second"))]).await;
    let cluster = Cluster::start().await;
    let hooks =
        ["/a", "/b"].map(|path| webhook(&server, path, json!({ "failurePolicy": "Ignore" })));
    cluster.configure(VALIDATING, "v", &hooks).await;
    let mut operation = cluster.creation();
    let refused = cluster.judge(&mut operation).await.expect_err("refused");
    assert_eq!((refused.code, refused.reason), (403, "Forbidden"));
    let message = "admission webhook \"a.example.com\" denied the request: first";
    assert_eq!(refused.message, message);
    assert_eq!(operation.warnings, ["first", "second"]);
    cluster.configure(MUTATING, "m", &hooks).await;
    let refused = cluster.mutate(&mut operation).await.expect_err("refused");
    assert_eq!(refused.message, message);
}

#[tokio::test]
async fn configurations_are_seen_at_the_next_request() {
    let server = Server::start([("/deny", Behaviour::Respond(json!({ "allowed": false })))]).await;
    let cluster = Cluster::start().await;
    let mut operation = cluster.creation();
    let mut exempting = webhook(&server, "/deny", json!({}));
    exempting["namespaceSelector"] = json!({ "matchLabels": { "team": "b" } });
    let hooks = [webhook(&server, "/deny", json!({}))];
    cluster.judge(&mut operation).await.expect("there is none");
    cluster.configure(VALIDATING, "v", &hooks).await;
    cluster
        .judge(&mut operation)
        .await
        .expect_err("there is one");
    cluster
        .configure(VALIDATING, "w", &[exempting.clone()])
        .await;
    cluster.judge(&mut operation).await.expect_err("both");
    assert_eq!(
        server.connections(),
        1,
        "an unchanged webhook keeps its connection"
    );
    cluster.configure(VALIDATING, "v", &[exempting]).await;
    cluster.judge(&mut operation).await.expect("it is exempt");
    cluster.configure(VALIDATING, "v", &hooks).await;
    cluster.remove(VALIDATING, "v").await;
    cluster
        .judge(&mut operation)
        .await
        .expect("only the exempting one");
    cluster.remove(VALIDATING, "w").await;
    cluster.judge(&mut operation).await.expect("there is none");
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn rules_of_another_version_see_the_object_in_that_version() {
    let server = Server::start([(
        "/note",
        patch(json!([{ "op": "replace", "path": "/message", "value": "patched" }])),
    )])
    .await;
    let cluster = Cluster::start().await;
    let rules = json!([{ "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["events"] }]);
    let hooks = [webhook(&server, "/note", json!({ "rules": rules }))];
    cluster.configure(MUTATING, "m", &hooks).await;
    let event = json!({ "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": { "name": "e", "namespace": "default" }, "note": "sent" });
    let mut operation = cluster.on(
        "events.k8s.io",
        "v1",
        "events",
        Action::Create,
        None,
        Some(event),
    );
    cluster.mutate(&mut operation).await.expect("allowed");
    let request = server.asked().remove(0).1["request"].take();
    assert_eq!(request["object"]["apiVersion"], "v1");
    assert_eq!(request["object"]["message"], "sent");
    assert_eq!(request["resource"]["group"], "");
    assert_eq!(request["requestResource"]["group"], "events.k8s.io");
    let new = operation.new.expect("an object");
    assert_eq!(
        (&new["note"], &new["apiVersion"]),
        (&json!("patched"), &json!("events.k8s.io/v1"))
    );
}
