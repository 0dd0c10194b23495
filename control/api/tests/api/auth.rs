use http::{Method, Request};
use http_body_util::Full;
use knarr_api::UserInfo;
use serde_json::json;
use tower::ServiceExt as _;

use crate::support::{PODS, Server, pod, read};
use crate::wire::listen;

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
        ["system:bootstrappers:kubeadm:default-node-token".to_owned()],
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

/// A token of `default/default` that is bound to an object.
async fn bound_token(server: &Server, kind: &str, object: &serde_json::Value) -> String {
    let mut request = json!({ "spec": { "expirationSeconds": 600 } });
    if !kind.is_empty() {
        request["spec"]["boundObjectRef"] = json!({ "apiVersion": "v1", "kind": kind,
            "name": object["metadata"]["name"], "uid": object["metadata"]["uid"] });
    }
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let reply = server.post(path, &request).await.expect(201);
    reply["status"]["token"]
        .as_str()
        .expect("a token")
        .to_owned()
}

#[tokio::test]
async fn a_token_ends_at_once_with_what_it_is_bound_to() {
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    let secrets = "/api/v1/namespaces/default/secrets";
    let named =
        |kind: &str| json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": "it" } });
    let account =
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
    #[rustfmt::skip] // A table.
    let table = [
        ("",       accounts,        account),
        ("Pod",    PODS,            pod("it")),
        ("Secret", secrets,         named("Secret")),
        ("Node",   "/api/v1/nodes", named("Node")),
    ];
    for (kind, path, object) in table {
        let listening = listen().await;
        let server = &listening.server;
        server.service_account().await;
        server.allow("system:serviceaccounts", "view").await;
        let created = match kind {
            "" => object.clone(),
            _ => server.post(path, &object).await.expect(201),
        };
        let token = bound_token(server, kind, &created).await;
        // Over one connection, which knows the token already.
        for _ in 0..3 {
            assert_eq!(listening.get(None, PODS, &token).await.0, 200, "{kind:?}");
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let one = format!("{path}/{name}");
        // A change of the object changes nothing.
        let labels = json!({ "metadata": { "labels": { "a": "b" } } });
        server.merge(&one, &labels).await.expect(200);
        assert_eq!(listening.get(None, PODS, &token).await.0, 200, "{kind:?}");
        server.delete(&one).await.expect(200);
        let (code, status) = listening.get(None, PODS, &token).await;
        assert_eq!(
            (code, &status["reason"]),
            (401, &json!("Unauthorized")),
            "{kind:?}"
        );
        // Another object of that name is not the one.
        server.post(path, &object).await.expect(201);
        assert_eq!(listening.get(None, PODS, &token).await.0, 401, "{kind:?}");
        listening.end().await;
    }
}

#[tokio::test]
async fn a_bootstrap_token_ends_at_once_with_its_secret() {
    use base64::Engine as _;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let listening = listen().await;
    let server = &listening.server;
    let secrets = "/api/v1/namespaces/kube-system/secrets";
    let secret = json!({ "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": { "name": "bootstrap-token-abcdef" }, "data": {
            "token-id": encode("abcdef"), "token-secret": encode("0123456789abcdef"),
            "usage-bootstrap-authentication": encode("true"),
            "auth-extra-groups": encode("system:bootstrappers:kubeadm:default-node-token"),
    } });
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let code = async || {
        listening
            .get(None, requests, "abcdef.0123456789abcdef")
            .await
            .0
    };
    assert_eq!(code().await, 401);
    server.post(secrets, &secret).await.expect(201);
    assert_eq!(code().await, 200);
    let one = format!("{secrets}/bootstrap-token-abcdef");
    for (change, wanted) in [
        (
            json!({ "data": { "token-secret": encode("fedcba9876543210") } }),
            401,
        ),
        (
            json!({ "data": { "token-secret": encode("0123456789abcdef") } }),
            200,
        ),
        (
            json!({ "data": { "usage-bootstrap-authentication": encode("false") } }),
            401,
        ),
        (
            json!({ "data": { "usage-bootstrap-authentication": encode("true") } }),
            200,
        ),
        (
            json!({ "data": { "expiration": encode("2020-01-01T00:00:00Z") } }),
            401,
        ),
        (json!({ "data": { "expiration": null } }), 200),
    ] {
        server.merge(&one, &change).await.expect(200);
        assert_eq!(code().await, wanted, "{change}");
    }
    server.delete(&one).await.expect(200);
    assert_eq!(code().await, 401);
    listening.end().await;
}

#[tokio::test]
async fn a_secret_gets_the_token_of_its_account() {
    let server = Server::start().await;
    let (accounts, secrets) = (
        "/api/v1/namespaces/default/serviceaccounts",
        "/api/v1/namespaces/default/secrets",
    );
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "build" },
        "secrets": [{ "name": "build-token" }, { "name": "other" }] });
    server.post(accounts, &account).await.expect(201);
    let secret = |name: &str, account: &str| {
        json!({ "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token",
            "metadata": { "name": name, "annotations": { "kubernetes.io/service-account.name": account } } })
    };
    let mut events = server.watch(&format!("{secrets}?watch=1")).await;
    server
        .post(secrets, &secret("build-token", "build"))
        .await
        .expect(201);
    assert_eq!(events.short().await.0, "ADDED");
    let filled = events.next().await.expect("a change")["object"].clone();
    let text = |field: &str| {
        use base64::Engine as _;
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(filled["data"][field].as_str().unwrap_or_default())
            .expect("base64");
        String::from_utf8(bytes).expect("text")
    };
    assert_eq!(text("namespace"), "default");
    assert_eq!(text("ca.crt"), server.pki.ca_cert_pem());
    assert!(
        filled["metadata"]["annotations"]["kubernetes.io/service-account.uid"].is_string(),
        "{filled}"
    );
    let review = json!({ "spec": { "token": text("token") } });
    let reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
    let status = server.post(reviews, &review).await.expect(201)["status"].clone();
    assert_eq!(
        status["user"]["username"],
        "system:serviceaccount:default:build"
    );
    // One for an account that is not there goes at once.
    server
        .post(secrets, &secret("lost", "nobody"))
        .await
        .expect(201);
    for kind in ["ADDED", "DELETED"] {
        assert_eq!(events.short().await, (kind.to_owned(), "lost".to_owned()));
    }
    // The token ends with its secret, which the account names no more.
    let mut changes = server.watch(&format!("{accounts}?watch=1")).await;
    assert_eq!(changes.short().await.0, "ADDED");
    server
        .delete(&format!("{secrets}/build-token"))
        .await
        .expect(200);
    assert_eq!(events.short().await.0, "DELETED");
    let status = server.post(reviews, &review).await.expect(201)["status"].clone();
    assert_ne!(status["authenticated"], true);
    let change = changes.next().await.expect("a change");
    assert_eq!(change["object"]["secrets"], json!([{ "name": "other" }]));
    // And the secret ends with its account, also after a restart.
    server
        .post(secrets, &secret("again", "build"))
        .await
        .expect(201);
    assert_eq!(events.short().await.0, "ADDED");
    assert_eq!(events.short().await.0, "MODIFIED");
    drop((events, changes));
    let server = server.restart().await;
    let mut events = server.watch(&format!("{secrets}?watch=1")).await;
    assert_eq!(events.short().await.0, "ADDED");
    server
        .delete(&format!("{accounts}/build"))
        .await
        .expect(200);
    assert_eq!(
        events.short().await,
        ("DELETED".to_owned(), "again".to_owned())
    );
}
