use http::{Method, Request};
use http_body_util::Full;
use knarr_api::UserInfo;
use serde_json::json;
use tower::ServiceExt as _;

use crate::support::{PODS, Server, pod, read};

#[tokio::test]
async fn a_bound_token_is_good_as_long_as_its_pod() {
    let server = Server::start().await;
    server.service_account().await;
    let created = server.post(PODS, &pod("p")).await.expect(201);
    let request = json!({ "spec": { "audiences": [], "expirationSeconds": 600, "boundObjectRef":
        { "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": created["metadata"]["uid"] } } });
    let tokens = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let token = server.post(tokens, &request).await.expect(201)["status"]["token"].clone();
    let review = |token: &serde_json::Value| json!({ "spec": { "token": token } });
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let status = server.post(reviews, &review(&token)).await.expect(201)["status"].clone();
    assert_eq!(status["authenticated"], true, "{status}");
    assert_eq!(
        status["user"]["username"],
        "system:serviceaccount:default:default"
    );
    assert_eq!(
        status["user"]["extra"]["authentication.kubernetes.io/pod-name"],
        json!(["p"])
    );
    let other = json!({ "spec": { "token": token, "audiences": ["other"] } });
    assert_ne!(
        server.post(reviews, &other).await.expect(201)["status"]["authenticated"],
        true
    );
    let forged = json!(format!("{}x", token.as_str().unwrap_or_default()));
    assert_ne!(
        server.post(reviews, &review(&forged)).await.expect(201)["status"]["authenticated"],
        true
    );
    server.delete(&format!("{PODS}/p")).await.expect(200);
    assert_ne!(
        server.post(reviews, &review(&token)).await.expect(201)["status"]["authenticated"],
        true
    );
    let short = json!({ "spec": { "expirationSeconds": 5 } });
    server.post(tokens, &short).await.refused(422, "Invalid");
}

#[tokio::test]
async fn users_of_bootstrap_tokens_may_only_ask_for_certificates() {
    let server = Server::start().await;
    let joining = server.api.local(UserInfo::new(
        "system:bootstrap:abcdef",
        ["system:bootstrappers".to_owned()],
    ));
    let get = |path: &str| {
        Request::get(path)
            .body(Full::<bytes::Bytes>::default())
            .expect("a request")
    };
    let reply = read(
        joining
            .clone()
            .oneshot(get(PODS))
            .await
            .expect("never fails"),
    )
    .await;
    let message = reply.refused(403, "Forbidden");
    assert_eq!(
        message,
        "pods is forbidden: User \"system:bootstrap:abcdef\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    read(joining.oneshot(get(requests)).await.expect("never fails"))
        .await
        .expect(200);
}

#[tokio::test]
async fn reviews_say_who_may_what() {
    let server = Server::start().await;
    let who = server
        .post(
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            &json!({}),
        )
        .await
        .expect(201);
    assert_eq!(who["status"]["userInfo"]["username"], "admin");
    let spec = json!({ "spec": { "user": "system:bootstrap:x", "groups": ["system:bootstrappers", "system:authenticated"],
        "resourceAttributes": { "verb": "get", "resource": "pods" } } });
    let review = server
        .post("/apis/authorization.k8s.io/v1/subjectaccessreviews", &spec)
        .await
        .expect(201);
    assert_eq!(review["status"]["allowed"], false);
    let own = json!({ "spec": { "resourceAttributes": { "verb": "get", "resource": "pods" } } });
    let review = server
        .post(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            &own,
        )
        .await
        .expect(201);
    assert_eq!(review["status"]["allowed"], true);
    let reply = server
        .send(
            Method::GET,
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            "",
            "",
        )
        .await;
    reply.refused(405, "MethodNotAllowed");
}
