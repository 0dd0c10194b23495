//! What can go wrong with a call, with either failurePolicy.

use serde_json::{Value, json};

use super::server::{Behaviour, Server, allow};
use super::{Cluster, MUTATING, VALIDATING, base64, pod, webhook};
use crate::registry::admission::Changed;
use crate::registry::operation::Action;

#[tokio::test]
async fn a_webhook_that_cannot_be_called_refuses_or_is_passed_over_as_its_policy_says() {
    let whole = |text| Behaviour::Body(200, text);
    let respond = |response: Value| Behaviour::Respond(response);
    #[rustfmt::skip] // A table.
    let cases = [
        ("/hang",      Behaviour::Hang,                         "failed to call webhook: Post \"URL/hang?timeout=1s\": context deadline exceeded"),
        ("/close",     Behaviour::Close,                        "failed to call webhook: Post \"URL/close?timeout=1s\": EOF"),
        ("/huge",      Behaviour::Huge,                         "failed to call webhook: the answer is larger than 3145728 bytes"),
        ("/redirect",  Behaviour::Redirect,                     "failed to call webhook: the server responded with the status code 307 but did not return more information"),
        ("/500",       Behaviour::Body(500, "oh\n"),            "failed to call webhook: an error on the server (\"oh\") has prevented the request from succeeding"),
        ("/404",       Behaviour::Body(404, "404"),             "failed to call webhook: the server could not find the requested resource"),
        ("/status",    Behaviour::Body(429, r#"{"kind":"Status","status":"Failure","message":"slow down"}"#), "failed to call webhook: slow down"),
        ("/nothing",   whole(""),                               "failed to call webhook: 0-length response with status code: 200 and content type: "),
        ("/garbage",   whole("garbage"),                        "failed to call webhook: couldn't get version/kind; json parse error: expected value at line 1 column 1"),
        ("/absent",    whole(r#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}"#), "received invalid webhook response: webhook response was absent"),
        ("/uid",       respond(json!({ "uid": "x" })),          "received invalid webhook response: expected response.uid=UID, got \"x\""),
        ("/untyped",   respond(json!({ "allowed": true, "patch": base64("[]") })), "received invalid webhook response: webhook returned response.patch but not response.patchType"),
        ("/undecodable", Behaviour::Patch(json!({ "op": "add" })), "received undecodable patch in webhook response: invalid type: map, expected a sequence at line 1 column 0"),
    ];
    let messages: Vec<_> = cases
        .iter()
        .map(|(path, _, message)| (*path, *message))
        .collect();
    let server = Server::start(cases.map(|(path, behaviour, _)| (path, behaviour))).await;
    let cluster = Cluster::start().await;
    for (path, message) in messages {
        for policy in ["Fail", "Ignore"] {
            let more = json!({ "failurePolicy": policy, "timeoutSeconds": 1 });
            let hooks = [webhook(&server, path, more)];
            cluster.configure(MUTATING, "m", &hooks).await;
            let mut operation = cluster.creation();
            let outcome = cluster.mutate(&mut operation).await;
            if policy == "Ignore" {
                assert_eq!(outcome, Ok(Changed::No), "{path}");
                assert_eq!(operation.new, Some(pod()), "{path}");
                continue;
            }
            let refused = outcome.expect_err(path);
            let (_, review) = server.asked().pop().expect("it was asked");
            let expected = message
                .replace("URL", &server.url)
                .replace("=UID", &format!("={}", review["request"]["uid"]));
            let name = path.trim_start_matches('/');
            let expected = format!(
                "Internal error occurred: failed calling webhook \"{name}.example.com\": {expected}"
            );
            assert_eq!((refused.code, &*refused.message), (500, &*expected));
        }
    }
}

#[tokio::test]
async fn a_patch_that_makes_nonsense_is_an_error_whatever_the_policy() {
    let set = |path: &str, value: Value| {
        Behaviour::Patch(json!([{ "op": "replace", "path": path, "value": value }]))
    };
    let server = Server::start([
        ("/no-such", set("/spec/no/such", json!(1))),
        ("/type", set("/spec/containers", json!("none"))),
        ("/kind", set("/kind", json!("Service"))),
        ("/label", set("/metadata/labels", json!({}))),
    ])
    .await;
    let cluster = Cluster::start().await;
    for path in ["/no-such", "/type", "/kind"] {
        let hooks = [webhook(&server, path, json!({ "failurePolicy": "Ignore" }))];
        cluster.configure(MUTATING, "m", &hooks).await;
        let mut operation = cluster.creation();
        let refused = cluster.mutate(&mut operation).await.expect_err(path);
        assert_eq!(refused.code, 500, "{refused}");
        assert!(
            refused.message.starts_with("Internal error occurred: "),
            "{refused}"
        );
        assert_eq!(operation.new, Some(pod()), "{path}");
    }
    let hooks = [webhook(
        &server,
        "/label",
        json!({ "failurePolicy": "Ignore" }),
    )];
    cluster.configure(MUTATING, "m", &hooks).await;
    let mut deletion = cluster.on_pod(Action::Delete, Some(pod()), None);
    let refused = cluster.mutate(&mut deletion).await.expect_err("no object");
    let message = "Internal error occurred: admission webhook \"label.example.com\" attempted to modify the object, which is not supported for this operation";
    assert_eq!((refused.code, &*refused.message), (500, message));
}

#[tokio::test]
async fn a_dry_run_reaches_only_webhooks_without_side_effects() {
    let server = Server::start([("/allow", allow())]).await;
    let cluster = Cluster::start().await;
    #[rustfmt::skip] // A table.
    let cases = [
        (json!("None"),         None),
        (json!("NoneOnDryRun"), None),
        (json!("Some"),         Some((400, "admission webhook \"allow.example.com\" does not support dry run"))),
        (json!("Unknown"),      Some((400, "admission webhook \"allow.example.com\" does not support dry run"))),
        (Value::Null,           Some((500, "Internal error occurred: failed calling webhook \"allow.example.com\": Webhook SideEffects is nil"))),
    ];
    for (effects, expected) in cases {
        let hooks = [webhook(
            &server,
            "/allow",
            json!({ "sideEffects": effects }),
        )];
        cluster.configure(VALIDATING, "v", &hooks).await;
        let mut operation = cluster.creation();
        operation.context.dry_run = true;
        let refused = cluster.judge(&mut operation).await.err();
        let refused = refused.map(|refused| (refused.code, refused.message));
        let expected = expected.map(|(code, message)| (code, message.to_owned()));
        assert_eq!(refused, expected, "{effects}");
    }
    let asked = server.asked();
    assert_eq!(asked.len(), 2);
    for (_, review) in asked {
        assert_eq!(review["request"]["dryRun"], true);
        assert_eq!(review["request"]["options"]["dryRun"], json!(["All"]));
    }
}

#[tokio::test]
async fn conditions_that_cannot_be_evaluated_are_treated_as_the_policy_says() {
    let server = Server::start([("/allow", allow())]).await;
    let cluster = Cluster::start().await;
    let conditions = json!([{ "name": "c", "expression": "true" }]);
    for (policy, refused) in [("Fail", true), ("Ignore", false)] {
        let more = json!({ "matchConditions": conditions, "failurePolicy": policy });
        let hooks = [webhook(&server, "/allow", more)];
        cluster.configure(VALIDATING, "v", &hooks).await;
        let outcome = cluster.judge(&mut cluster.creation()).await;
        assert_eq!(outcome.is_err(), refused, "{outcome:?}");
        if let Err(error) = outcome {
            assert_eq!(error.code, 403);
            assert!(error.message.contains("CEL"), "{error}");
        }
    }
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn a_service_is_called_at_a_ready_endpoint_under_its_own_name() {
    let server = Server::start([("/allow", allow())]).await;
    let cluster = Cluster::start().await;
    let service = json!({ "namespace": "default", "name": "hook", "path": "allow" });
    let client = json!({ "service": service, "caBundle": base64(&server.ca) });
    let hooks = [webhook(
        &server,
        "/allow",
        json!({ "clientConfig": client, "timeoutSeconds": 3 }),
    )];
    cluster.configure(VALIDATING, "v", &hooks).await;
    let failed = async || {
        let refused = cluster
            .judge(&mut cluster.creation())
            .await
            .expect_err("nobody");
        let prefix = "Internal error occurred: failed calling webhook \"allow.example.com\": failed to call webhook: Post \"https://hook.default.svc:443/allow?timeout=3s\": ";
        let reason = refused.message.strip_prefix(prefix);
        reason.unwrap_or_else(|| panic!("{refused}")).to_owned()
    };
    assert_eq!(failed().await, "service \"hook\" not found");
    let service = |port: u16| {
        json!({ "metadata": { "name": "hook", "namespace": "default" },
        "spec": { "type": "ClusterIP", "ports": [{ "name": "web", "port": port }] } })
    };
    cluster
        .put("services/specs", "default/hook", service(80))
        .await;
    assert_eq!(
        failed().await,
        "no service port 443 found for service \"hook\""
    );
    cluster
        .put("services/specs", "default/hook", service(443))
        .await;
    assert_eq!(
        failed().await,
        "no endpoints available for service \"hook\""
    );
    let slice = |ready: bool, port: u16| {
        json!({ "metadata": { "name": "hook-1", "namespace": "default", "labels": { "kubernetes.io/service-name": "hook" } },
            "endpoints": [{ "addresses": ["127.0.0.1"], "conditions": { "ready": ready } }],
            "ports": [{ "name": "metrics", "port": 1 }, { "name": "web", "port": port }] })
    };
    cluster
        .put(
            "endpointslices",
            "default/hook-1",
            slice(false, server.port),
        )
        .await;
    assert_eq!(
        failed().await,
        "no endpoints available for service \"hook\""
    );
    cluster
        .put("endpointslices", "default/hook-1", slice(true, server.port))
        .await;
    for _ in 0..3 {
        cluster
            .judge(&mut cluster.creation())
            .await
            .expect("allowed");
    }
    assert_eq!(server.connections(), 1, "the connection is used again");
    // Port 1 of loopback is nobody's; the connection to the endpoint that left is not used any more.
    cluster
        .put("endpointslices", "default/hook-1", slice(true, 1))
        .await;
    assert_eq!(
        failed().await,
        "dial tcp 127.0.0.1:1: connect: connection refused"
    );
}

#[tokio::test]
async fn only_the_certificates_of_the_bundle_are_believed() {
    let (server, other) = (
        Server::start([("/allow", allow())]).await,
        Server::start([]).await,
    );
    let cluster = Cluster::start().await;
    let wrong_name = server.url.replace("127.0.0.1", "localhost");
    let unknown =
        "tls: failed to verify certificate: x509: certificate signed by unknown authority";
    for (url, ca, expected) in [
        (&server.url, base64(&server.ca), ""),
        (&server.url, base64(&other.ca), unknown),
        (
            &wrong_name,
            base64(&server.ca),
            "tls: failed to verify certificate: x509: ",
        ),
        (&server.url, base64("no PEM"), "could not get REST client: "),
    ] {
        let client = json!({ "url": format!("{url}/allow"), "caBundle": ca });
        let hooks = [webhook(
            &server,
            "/allow",
            json!({ "clientConfig": client }),
        )];
        cluster.configure(VALIDATING, "v", &hooks).await;
        let outcome = cluster.judge(&mut cluster.creation()).await;
        let message = outcome.err().map(|refused| refused.message);
        let message = message.unwrap_or_default();
        assert_eq!(message.is_empty(), expected.is_empty(), "{message}");
        assert!(message.contains(expected), "{message}");
    }
}

#[tokio::test]
async fn a_self_signed_certificate_that_is_the_bundle_is_believed() {
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params =
        rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
    // As `openssl req -x509` makes them.
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let cert = params.self_signed(&key).expect("a certificate").pem();
    let allow = [("/allow", allow())];
    let server = Server::start_with(allow, &cert, &key.serialize_pem(), &cert).await;
    let cluster = Cluster::start().await;
    let hooks = [webhook(&server, "/allow", json!({}))];
    cluster.configure(VALIDATING, "v", &hooks).await;
    cluster
        .judge(&mut cluster.creation())
        .await
        .expect("allowed");
    assert_eq!(server.asked().len(), 1);
}
