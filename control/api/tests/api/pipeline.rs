//! What goes through admission, and in what order.

use http::{Method, Request};
use http_body_util::Full;
use knarr_api::UserInfo;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::support::{MAPS, PODS, Server, config_map, pod, read};

#[tokio::test]
async fn a_pod_that_is_replaced_as_it_was_sent_keeps_what_was_filled_in() {
    let server = Server::start().await;
    server.service_account().await;
    let mut sent = pod("p");
    sent["spec"]["automountServiceAccountToken"] = false.into();
    let created = server.post(PODS, &sent).await.expect(201);
    assert_eq!(created["spec"]["priority"], 0);
    sent["metadata"]["labels"] = json!({ "a": "b" });
    sent["spec"]["serviceAccountName"] = "default".into();
    let path = format!("{PODS}/p");
    let replaced = server.put(&path, &sent).await.expect(200);
    assert_eq!(replaced["spec"], created["spec"]);
    assert_eq!(replaced["metadata"]["labels"], sent["metadata"]["labels"]);
}

/// Evictions, bindings and tokens are made in a namespace like everything else.
#[tokio::test]
async fn nothing_is_made_in_a_namespace_that_ends() {
    let server = Server::start().await;
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "x" } });
    server
        .post("/api/v1/namespaces", &namespace)
        .await
        .expect(201);
    let account =
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
    let x = "/api/v1/namespaces/x";
    let accounts = format!("{x}/serviceaccounts");
    server.post(&accounts, &account).await.expect(201);
    server
        .post(&format!("{x}/pods"), &pod("p"))
        .await
        .expect(201);
    let tokens = format!("{accounts}/default/token");
    let request = json!({ "spec": { "audiences": [] } });
    server.post(&tokens, &request).await.expect(201);
    server.delete(x).await.expect(200);
    let eviction =
        json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": "p" } });
    let binding = json!({ "metadata": { "name": "p" }, "target": { "kind": "Node", "name": "n" } });
    for (path, body) in [
        (format!("{x}/pods/p/eviction"), eviction),
        (format!("{x}/pods/p/binding"), binding),
        (tokens, request),
        (format!("{x}/configmaps"), config_map("m")),
    ] {
        let reply = server.post(&path, &body).await;
        let cause = reply.body["details"]["causes"][0]["reason"].clone();
        let message = reply.refused(403, "Forbidden");
        assert_eq!(cause, "NamespaceTerminating", "{path}: {message}");
    }
    // To ask is fine, and what is there can be changed and deleted.
    let reviews = "/apis/authorization.k8s.io/v1/namespaces/x/localsubjectaccessreviews";
    let review = json!({ "spec": { "user": "u", "resourceAttributes": { "namespace": "x", "verb": "get" } } });
    server.post(reviews, &review).await.expect(201);
    let labels = json!({ "metadata": { "labels": { "a": "b" } } });
    let path = format!("{accounts}/default");
    server.merge(&path, &labels).await.expect(200);
    let deleted = server.delete(&path).await.expect(200);
    assert_eq!(
        (&deleted["kind"], &deleted["metadata"]["labels"]["a"]),
        (&json!("ServiceAccount"), &json!("b")),
        "what is deleted is shown"
    );
}

#[tokio::test]
async fn a_binding_holds_the_pod_to_what_its_author_has_seen() {
    let server = Server::start().await;
    server.service_account().await;
    let created = server.post(PODS, &pod("p")).await.expect(201);
    let path = format!("{PODS}/p/binding");
    let bind = |metadata: Value| json!({ "metadata": metadata, "target": { "name": "n" } });
    let labels = json!({ "metadata": { "labels": { "a": "b" } } });
    let changed = server
        .merge(&format!("{PODS}/p"), &labels)
        .await
        .expect(200);
    let seen = &created["metadata"]["resourceVersion"];
    let stale = bind(json!({ "name": "p", "resourceVersion": seen }));
    server.post(&path, &stale).await.refused(409, "Conflict");
    let other = bind(json!({ "name": "p", "uid": "another" }));
    server.post(&path, &other).await.refused(409, "Conflict");
    let seen = &changed["metadata"]["resourceVersion"];
    let fresh = bind(json!({ "name": "p", "resourceVersion": seen }));
    server.post(&path, &fresh).await.expect(201);
}

#[tokio::test]
async fn who_may_acts_as_somebody_else() {
    let server = Server::start().await;
    let send = async |user: UserInfo,
                      method: Method,
                      path: &str,
                      body: &Value,
                      headers: &[(&str, &str)]| {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = Full::<bytes::Bytes>::from(body.to_string());
        let request = request.body(body).expect("a request");
        let sent = server.api.local(user).oneshot(request).await;
        read(sent.expect("never fails")).await
    };
    let admin = || UserInfo::new("admin", ["system:masters".to_owned()]);
    let joining = || {
        let group = "system:bootstrappers".to_owned();
        UserInfo::new("system:bootstrap:abcdef", [group])
    };
    let who = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let asked = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview" });
    let headers = [
        ("Impersonate-User", "jane"),
        ("Impersonate-Group", "devs"),
        ("Impersonate-Extra-Scope", "read"),
        ("Impersonate-Uid", "u-1"),
    ];
    let reply = send(admin(), Method::POST, who, &asked, &headers).await;
    assert_eq!(
        reply.expect(201)["status"]["userInfo"],
        json!({ "username": "jane", "uid": "u-1", "groups": ["devs", "system:authenticated"],
            "extra": { "scope": ["read"] } })
    );
    let as_admin = [
        ("Impersonate-User", "admin"),
        ("Impersonate-Group", "system:masters"),
    ];
    let reply = send(joining(), Method::GET, MAPS, &json!({}), &as_admin).await;
    let message = reply.refused(403, "Forbidden");
    assert!(
        message.starts_with("users \"admin\" is forbidden: User \"system:bootstrap:abcdef\" cannot impersonate resource"),
        "{message}"
    );
    // And an administrator sees what somebody with fewer rights may do.
    let as_joining = [
        ("Impersonate-User", "system:bootstrap:abcdef"),
        ("Impersonate-Group", "system:bootstrappers"),
    ];
    let reply = send(admin(), Method::GET, MAPS, &json!({}), &as_joining).await;
    reply.refused(403, "Forbidden");
}

/// What exists only as a request has metadata, but no columns.
#[tokio::test]
async fn a_review_is_no_table() {
    let server = Server::start().await;
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let review =
        json!({ "metadata": { "name": "r" }, "spec": { "resourceAttributes": { "verb": "get" } } });
    let send = async |accept: &str| {
        let request = Request::post(path)
            .header("content-type", "application/json")
            .header("accept", accept)
            .body(Full::from(review.to_string()))
            .expect("a request");
        read(server.raw(request).await).await
    };
    let of = |kind: &str| format!("application/json;as={kind};g=meta.k8s.io;v=v1");
    send(&of("Table")).await.refused(406, "NotAcceptable");
    let either = format!("{},application/json", of("Table"));
    let whole = send(&either).await.expect(201);
    assert_eq!(whole["status"]["allowed"], true);
    let part = send(&of("PartialObjectMetadata")).await.expect(201);
    assert_eq!(
        (&part["kind"], &part["metadata"]["name"], &part["status"]),
        (&json!("PartialObjectMetadata"), &json!("r"), &Value::Null)
    );
}
