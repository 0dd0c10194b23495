use std::time::Duration;

use knarr_api::ApiServerConfig;
use serde_json::json;

use crate::support::{MAPS, PODS, Server, config_map, pod};

#[tokio::test]
async fn a_running_pod_is_deleted_gracefully() {
    let server = Server::start().await;
    server.service_account().await;
    let path = format!("{PODS}/p");
    let mut running = pod("p");
    running["spec"]["nodeName"] = "n".into();
    server.post(PODS, &running).await.expect(201);
    let marked = server.delete(&path).await.expect(200);
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let again = server.delete(&path).await.expect(200);
    assert_eq!(
        again["metadata"]["resourceVersion"],
        marked["metadata"]["resourceVersion"]
    );
    let shorter = server
        .delete(&format!("{path}?gracePeriodSeconds=5"))
        .await
        .expect(200);
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    server
        .delete(&format!("{path}?gracePeriodSeconds=0"))
        .await
        .expect(200);
    server.get(&path).await.refused(404, "NotFound");
}

#[tokio::test]
async fn a_pod_that_no_node_has_is_deleted_at_once() {
    let server = Server::start().await;
    server.service_account().await;
    server.post(PODS, &pod("p")).await.expect(201);
    server.delete(&format!("{PODS}/p")).await.expect(200);
    server
        .get(&format!("{PODS}/p"))
        .await
        .refused(404, "NotFound");
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let server = Server::start().await;
    let path = format!("{MAPS}/a");
    let mut map = config_map("a");
    map["metadata"]["finalizers"] = json!(["example.com/hold"]);
    server.post(MAPS, &map).await.expect(201);
    let marked = server.delete(&path).await.expect(200);
    assert!(
        marked["metadata"]["deletionTimestamp"].is_string(),
        "{marked}"
    );
    let message = server
        .merge(
            &path,
            &json!({ "metadata": { "finalizers": ["example.com/hold", "example.com/more"] } }),
        )
        .await
        .refused(422, "Invalid");
    assert!(
        message.contains("no new finalizers can be added if the object is being deleted"),
        "{message}"
    );
    server
        .merge(&path, &json!({ "metadata": { "finalizers": null } }))
        .await
        .expect(200);
    server.get(&path).await.refused(404, "NotFound");
}

#[tokio::test]
async fn propagation_becomes_a_finalizer() {
    let server = Server::start().await;
    for (policy, finalizer) in [("Foreground", "foregroundDeletion"), ("Orphan", "orphan")] {
        let name = policy.to_lowercase();
        server.post(MAPS, &config_map(&name)).await.expect(201);
        let marked = server
            .delete(&format!("{MAPS}/{name}?propagationPolicy={policy}"))
            .await
            .expect(200);
        assert_eq!(marked["metadata"]["finalizers"], json!([finalizer]));
    }
    server.post(MAPS, &config_map("b")).await.expect(201);
    server
        .delete(&format!("{MAPS}/b?propagationPolicy=Sideways"))
        .await
        .refused(422, "Invalid");
}

#[tokio::test]
async fn preconditions_hold() {
    let server = Server::start().await;
    server.post(MAPS, &config_map("a")).await.expect(201);
    let options =
        json!({ "kind": "DeleteOptions", "apiVersion": "v1", "preconditions": { "uid": "other" } });
    let path = format!("{MAPS}/a");
    let reply = server
        .send(
            http::Method::DELETE,
            &path,
            "application/json",
            options.to_string(),
        )
        .await;
    let message = reply.refused(409, "Conflict");
    assert!(
        message.contains("Precondition failed: UID in precondition: other, UID in object meta: "),
        "{message}"
    );
}

#[tokio::test]
async fn a_namespace_is_emptied_before_it_goes() {
    let server = Server::start().await;
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "x" } });
    server
        .post("/api/v1/namespaces", &namespace)
        .await
        .expect(201);
    let marked = server.delete("/api/v1/namespaces/x").await.expect(200);
    assert_eq!(marked["status"]["phase"], "Terminating");
    let message = server
        .post("/api/v1/namespaces/x/configmaps", &config_map("a"))
        .await
        .refused(403, "Forbidden");
    assert_eq!(
        message,
        "configmaps \"a\" is forbidden: unable to create new content in namespace x because it is being terminated"
    );
    let again = server.delete("/api/v1/namespaces/x").await.expect(200);
    assert_eq!(
        again["metadata"]["resourceVersion"],
        marked["metadata"]["resourceVersion"]
    );
    let mut finalized = marked.clone();
    finalized["spec"]["finalizers"] = json!([]);
    server
        .put("/api/v1/namespaces/x/finalize", &finalized)
        .await
        .expect(200);
    server
        .get("/api/v1/namespaces/x")
        .await
        .refused(404, "NotFound");
    server
        .delete("/api/v1/namespaces/default")
        .await
        .refused(403, "Forbidden");
}

#[tokio::test]
async fn a_collection_is_deleted_by_selector() {
    let server = Server::start().await;
    server.config_maps(5).await;
    server
        .merge(
            &format!("{MAPS}/m-001"),
            &json!({ "metadata": { "labels": { "keep": "1" } } }),
        )
        .await
        .expect(200);
    server
        .delete(&format!("{MAPS}?labelSelector=!keep"))
        .await
        .expect(200);
    let left = server.get(MAPS).await.expect(200);
    assert_eq!(left["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn an_eviction_deletes_the_pod() {
    let server = Server::start().await;
    server.service_account().await;
    server.post(PODS, &pod("p")).await.expect(201);
    let eviction =
        json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": "p" } });
    server
        .post(&format!("{PODS}/p/eviction"), &eviction)
        .await
        .expect(201);
    server
        .get(&format!("{PODS}/p"))
        .await
        .refused(404, "NotFound");
}

#[tokio::test]
async fn events_go_after_their_time() {
    let event_ttl = Duration::from_millis(50);
    let server = Server::start_with(ApiServerConfig {
        event_ttl,
        ..ApiServerConfig::default()
    })
    .await;
    let events = "/api/v1/namespaces/default/events";
    let mut watch = server.watch(&format!("{events}?watch=1")).await;
    let event = json!({ "apiVersion": "v1", "kind": "Event", "metadata": { "name": "e" }, "reason": "R",
        "involvedObject": { "kind": "Pod", "namespace": "default", "name": "p" }, "type": "Normal" });
    server.post(events, &event).await.expect(201);
    assert_eq!(watch.short().await, ("ADDED".to_owned(), "e".to_owned()));
    assert_eq!(watch.short().await, ("DELETED".to_owned(), "e".to_owned()));
}

#[tokio::test]
async fn a_namespace_stays_until_both_its_lists_of_finalizers_are_empty() {
    let server = Server::start().await;
    let hold = json!(["example.com/hold"]);
    for (name, ours_first) in [("a", true), ("b", false)] {
        let path = format!("/api/v1/namespaces/{name}");
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace",
            "metadata": { "name": name, "finalizers": hold } });
        server
            .post("/api/v1/namespaces", &namespace)
            .await
            .expect(201);
        let marked = server.delete(&path).await.expect(200);
        assert_eq!(marked["status"]["phase"], "Terminating");
        assert_eq!(marked["metadata"]["finalizers"], hold);
        let mut finalized = marked.clone();
        finalized["spec"]["finalizers"] = json!([]);
        let release = json!({ "metadata": { "finalizers": null } });
        if ours_first {
            let left = server
                .put(&format!("{path}/finalize"), &finalized)
                .await
                .expect(200);
            assert_eq!(left["metadata"]["finalizers"], hold);
            assert_eq!(left["status"]["phase"], "Terminating");
            let again = server.delete(&path).await.expect(200);
            assert_eq!(again["metadata"]["finalizers"], hold);
            server.merge(&path, &release).await.expect(200);
        } else {
            let left = server.merge(&path, &release).await.expect(200);
            assert_eq!(left["spec"]["finalizers"], json!(["kubernetes"]));
            finalized["metadata"] = json!({ "name": name });
            server
                .put(&format!("{path}/finalize"), &finalized)
                .await
                .expect(200);
        }
        server.get(&path).await.refused(404, "NotFound");
    }
}

#[tokio::test]
async fn finalizers_and_phase_of_a_namespace_are_checked() {
    let server = Server::start().await;
    let namespace = |finalizers: &serde_json::Value| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "x", "finalizers": finalizers } });
    let message = server
        .post("/api/v1/namespaces", &namespace(&json!(["mine"])))
        .await
        .refused(422, "Invalid");
    assert!(
        message.contains("name is neither a standard finalizer name nor is it fully qualified"),
        "{message}"
    );
    let created = server
        .post("/api/v1/namespaces", &namespace(&json!(["kubernetes"])))
        .await
        .expect(201);
    let mut status = created.clone();
    status["status"]["phase"] = "Terminating".into();
    let message = server
        .put("/api/v1/namespaces/x/status", &status)
        .await
        .refused(422, "Invalid");
    assert!(
        message.contains(
            "status.Phase: Invalid value: \"Terminating\": may only be 'Active' if `deletionTimestamp` is empty"
        ),
        "{message}"
    );
}

#[tokio::test]
async fn less_than_no_time_to_end_is_a_second() {
    let server = Server::start().await;
    server.service_account().await;
    let mut running = pod("p");
    running["spec"]["nodeName"] = "n".into();
    running["spec"]["terminationGracePeriodSeconds"] = (-10).into();
    let reply = server.post(PODS, &running).await;
    assert_eq!(
        reply.headers["warning"],
        "299 - \"spec.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1\""
    );
    reply.expect(201);
    let marked = server.delete(&format!("{PODS}/p")).await.expect(200);
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 1);
    running["metadata"]["name"] = "q".into();
    running["spec"]["terminationGracePeriodSeconds"] = 30.into();
    server.post(PODS, &running).await.expect(201);
    let marked = server
        .delete(&format!("{PODS}/q?gracePeriodSeconds=-3"))
        .await
        .expect(200);
    assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 1);
}
