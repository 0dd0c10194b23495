use http::Method;
use serde_json::{Value, json};

use crate::support::{MAPS, PODS, Server, config_map, pod};

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .and_then(|v| v.parse().ok())
        .expect("a resourceVersion")
}

#[tokio::test]
async fn an_object_lives_from_create_to_delete() {
    let server = Server::start().await;
    let created = server.post(MAPS, &config_map("a")).await.expect(201);
    assert_eq!(
        (&created["kind"], &created["apiVersion"]),
        (&json!("ConfigMap"), &json!("v1"))
    );
    assert!(
        created["metadata"]["uid"].is_string()
            && created["metadata"]["creationTimestamp"].is_string()
    );
    let path = format!("{MAPS}/a");
    assert_eq!(server.get(&path).await.expect(200), created);

    let mut changed = created.clone();
    changed["data"]["k"] = "w".into();
    let updated = server.put(&path, &changed).await.expect(200);
    assert!(version(&updated) > version(&created));
    assert_eq!(updated["metadata"]["uid"], created["metadata"]["uid"]);
    let again = server.put(&path, &updated).await.expect(200);
    assert_eq!(
        version(&again),
        version(&updated),
        "what changes nothing is not written"
    );
    let message = server.put(&path, &changed).await.refused(409, "Conflict");
    assert_eq!(
        message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes to the \
         latest version and try again"
    );
    let gone = server.delete(&path).await.expect(200);
    assert_eq!(
        (&gone["status"], &gone["details"]["kind"]),
        (&json!("Success"), &json!("configmaps"))
    );
    assert_eq!(
        server.get(&path).await.refused(404, "NotFound"),
        "configmaps \"a\" not found"
    );
}

#[tokio::test]
async fn bad_requests_are_refused_in_kubernetes_words() {
    let server = Server::start().await;
    server.post(MAPS, &config_map("a")).await.expect(201);
    let message = server
        .post(MAPS, &config_map("a"))
        .await
        .refused(409, "AlreadyExists");
    assert_eq!(message, "configmaps \"a\" already exists");
    let message = server
        .post(MAPS, &config_map("No_Name"))
        .await
        .refused(422, "Invalid");
    assert!(message.starts_with("ConfigMap \"No_Name\" is invalid: metadata.name: Invalid value: \"No_Name\": a lowercase RFC 1123 subdomain"), "{message}");
    let absent = "/api/v1/namespaces/absent/configmaps";
    assert_eq!(
        server
            .post(absent, &config_map("a"))
            .await
            .refused(404, "NotFound"),
        "namespaces \"absent\" not found"
    );
    let mut other = config_map("b");
    other["metadata"]["namespace"] = "elsewhere".into();
    server.post(MAPS, &other).await.refused(400, "BadRequest");
    server
        .put(&format!("{MAPS}/b"), &config_map("c"))
        .await
        .refused(400, "BadRequest");
    server
        .put(&format!("{MAPS}/b"), &config_map("b"))
        .await
        .refused(404, "NotFound");
    server
        .put(MAPS, &config_map("b"))
        .await
        .refused(405, "MethodNotAllowed");
    server
        .post(&format!("{MAPS}/a"), &config_map("a"))
        .await
        .refused(405, "MethodNotAllowed");
    server
        .get("/api/v1/nothings")
        .await
        .refused(404, "NotFound");
    server
        .send(Method::POST, MAPS, "application/json", "{")
        .await
        .refused(400, "BadRequest");
    let unknown = server.send(Method::POST, MAPS, "text/csv", "a").await;
    assert_eq!(unknown.code, 415);
    let large = vec![b' '; (3 << 20) + 1];
    server
        .send(Method::POST, MAPS, "application/json", large)
        .await
        .refused(413, "RequestEntityTooLarge");
}

#[tokio::test]
async fn names_are_generated() {
    let server = Server::start().await;
    let mut map = config_map("");
    map["metadata"] = json!({ "generateName": "gen-" });
    let created = server.post(MAPS, &map).await.expect(201);
    let name = created["metadata"]["name"].as_str().expect("a name");
    assert!(name.starts_with("gen-") && name.len() == 9, "{name}");
}

#[tokio::test]
async fn patches_of_three_kinds_apply() {
    let server = Server::start().await;
    server.service_account().await;
    server.post(PODS, &pod("p")).await.expect(201);
    let path = format!("{PODS}/p");
    let merged = server
        .merge(&path, &json!({ "metadata": { "labels": { "a": "b" } } }))
        .await
        .expect(200);
    assert_eq!(merged["metadata"]["labels"]["a"], "b");
    let json_patch = r#"[{"op":"test","path":"/metadata/labels/a","value":"b"},{"op":"remove","path":"/metadata/labels/a"}]"#;
    let patched = server
        .send(
            Method::PATCH,
            &path,
            "application/json-patch+json",
            json_patch,
        )
        .await
        .expect(200);
    assert!(patched["metadata"]["labels"]["a"].is_null());
    let strategic =
        json!({ "spec": { "containers": [{ "name": "c", "image": "j" }] } }).to_string();
    let patched = server
        .send(
            Method::PATCH,
            &path,
            "application/strategic-merge-patch+json",
            strategic,
        )
        .await
        .expect(200);
    assert_eq!(patched["spec"]["containers"][0]["image"], "j");
    assert_eq!(
        patched["spec"]["containers"].as_array().map(Vec::len),
        Some(1)
    );
    let stale = json!({ "metadata": { "resourceVersion": "1", "labels": { "x": "y" } } });
    server.merge(&path, &stale).await.refused(409, "Conflict");
    let cbor = server
        .send(Method::PATCH, &path, "application/apply-patch+cbor", "{}")
        .await;
    assert_eq!(cbor.code, 415, "{}", cbor.body);
}

#[tokio::test]
async fn patches_without_a_version_all_arrive() {
    let server = Server::start().await;
    server.post(MAPS, &config_map("a")).await.expect(201);
    let path = format!("{MAPS}/a");
    let patches = (0..20).map(|n| {
        let (server, path) = (&server, &path);
        async move {
            server
                .merge(path, &json!({ "data": { format!("n{n}"): "x" } }))
                .await
                .expect(200)
        }
    });
    futures::future::join_all(patches).await;
    let map = server.get(&path).await.expect(200);
    assert_eq!(map["data"].as_object().map(serde_json::Map::len), Some(21));
}

#[tokio::test]
async fn a_dry_run_stores_nothing() {
    let server = Server::start().await;
    let dry = format!("{MAPS}?dryRun=All");
    server.post(&dry, &config_map("a")).await.expect(201);
    server
        .get(&format!("{MAPS}/a"))
        .await
        .refused(404, "NotFound");
    server.post(MAPS, &config_map("a")).await.expect(201);
    server
        .post(&dry, &config_map("a"))
        .await
        .refused(409, "AlreadyExists");
    server
        .delete(&format!("{MAPS}/a?dryRun=All"))
        .await
        .expect(200);
    server.get(&format!("{MAPS}/a")).await.expect(200);
}

#[tokio::test]
async fn unknown_fields_are_warned_about_or_refused() {
    let server = Server::start().await;
    let mut map = config_map("a");
    map["dat"] = json!({});
    let message = server
        .post(&format!("{MAPS}?fieldValidation=Strict"), &map)
        .await
        .refused(400, "BadRequest");
    assert!(message.contains("unknown field \"dat\""), "{message}");
    let reply = server.post(MAPS, &map).await;
    assert_eq!(
        reply.headers["warning"],
        "299 - \"unknown field \\\"dat\\\"\""
    );
    reply.expect(201);
}

#[tokio::test]
async fn status_and_scale_change_their_part_only() {
    let server = Server::start().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" }, "spec": {
        "replicas": 1, "selector": { "matchLabels": { "a": "b" } },
        "template": { "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } },
    } });
    server.post(deployments, &deployment).await.expect(201);
    let scale = server
        .get(&format!("{deployments}/d/scale"))
        .await
        .expect(200);
    assert_eq!(
        (&scale["kind"], &scale["spec"]["replicas"]),
        (&json!("Scale"), &json!(1))
    );
    let scaled = server
        .merge(
            &format!("{deployments}/d/scale"),
            &json!({ "spec": { "replicas": 4 } }),
        )
        .await
        .expect(200);
    assert_eq!(scaled["spec"]["replicas"], 4);
    let mut object = server.get(&format!("{deployments}/d")).await.expect(200);
    assert_eq!(
        (
            &object["spec"]["replicas"],
            &object["metadata"]["generation"]
        ),
        (&json!(4), &json!(2))
    );
    object["spec"]["replicas"] = 9.into();
    object["status"] = json!({ "replicas": 3 });
    let updated = server
        .put(&format!("{deployments}/d/status"), &object)
        .await
        .expect(200);
    assert_eq!(
        (&updated["spec"]["replicas"], &updated["status"]["replicas"]),
        (&json!(4), &json!(3))
    );
    assert_eq!(updated["metadata"]["generation"], 2);
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let server = Server::start().await;
    server.service_account().await;
    server.post(PODS, &pod("p")).await.expect(201);
    let binding = json!({ "apiVersion": "v1", "kind": "Binding", "metadata": { "name": "p" }, "target": { "kind": "Node", "name": "n" } });
    server
        .post(&format!("{PODS}/p/binding"), &binding)
        .await
        .expect(201);
    let bound = server.get(&format!("{PODS}/p")).await.expect(200);
    assert_eq!(bound["spec"]["nodeName"], "n");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let message = server
        .post(&format!("{PODS}/p/binding"), &binding)
        .await
        .refused(409, "Conflict");
    assert!(
        message.contains("pod p is already assigned to node \"n\""),
        "{message}"
    );
    let on_node = server
        .get("/api/v1/pods?fieldSelector=spec.nodeName%3Dn")
        .await
        .expect(200);
    assert_eq!(on_node["items"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn a_pod_gets_its_account_token_and_tolerations() {
    let server = Server::start().await;
    let message = {
        let mut other = pod("p");
        other["spec"]["serviceAccountName"] = "other".into();
        server.post(PODS, &other).await.refused(403, "Forbidden")
    };
    assert_eq!(
        message,
        "pods \"p\" is forbidden: error looking up service account default/other: serviceaccount \"other\" not found"
    );
    server.service_account().await;
    let pod = server.post(PODS, &pod("p")).await.expect(201);
    assert_eq!(pod["spec"]["serviceAccountName"], "default");
    assert_eq!(
        pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"],
        "/var/run/secrets/kubernetes.io/serviceaccount"
    );
    assert_eq!(pod["spec"]["tolerations"].as_array().map(Vec::len), Some(2));
    assert_eq!(
        (&pod["spec"]["priority"], &pod["status"]["phase"]),
        (&json!(0), &json!("Pending"))
    );
}

#[tokio::test]
async fn events_are_one_store_with_two_versions() {
    let server = Server::start().await;
    let event = json!({ "apiVersion": "v1", "kind": "Event", "metadata": { "name": "e" }, "reason": "R", "message": "hello",
        "involvedObject": { "kind": "Pod", "namespace": "default", "name": "p" }, "type": "Normal" });
    server
        .post("/api/v1/namespaces/default/events", &event)
        .await
        .expect(201);
    let other = server
        .get("/apis/events.k8s.io/v1/namespaces/default/events/e")
        .await
        .expect(200);
    assert_eq!(
        (&other["note"], &other["regarding"]["name"]),
        (&json!("hello"), &json!("p"))
    );
    assert_eq!(other["apiVersion"], "events.k8s.io/v1");
}

#[tokio::test]
async fn a_lease_is_durable_in_who_holds_it_but_not_in_each_renewal() {
    let server = Server::start().await;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "a"},
        "spec": {"holderIdentity": "one", "renewTime": "2026-01-01T00:00:00.000000Z"}
    });
    let mut lease = server.post(leases, &lease).await.expect(201);
    let path = format!("{leases}/a");
    let key = "/registry/leases/default/a";
    // The first renewal of a life reserves revisions, and is durable for that.
    for second in 1..4 {
        lease["spec"]["renewTime"] = format!("2026-01-01T00:00:0{second}.000000Z").into();
        lease = server.put(&path, &lease).await.expect(200);
        assert_eq!(server.get(&path).await.expect(200), lease);
    }
    let stored = server.stored_after_a_crash(key).await;
    assert_eq!(stored["spec"]["renewTime"], "2026-01-01T00:00:01.000000Z");

    lease["spec"]["holderIdentity"] = "two".into();
    lease["spec"]["renewTime"] = "2026-01-01T00:00:04.000000Z".into();
    lease = server.put(&path, &lease).await.expect(200);
    let stored = server.stored_after_a_crash(key).await;
    assert_eq!(stored["spec"], lease["spec"]);

    lease["spec"]["renewTime"] = "2026-01-01T00:00:05.000000Z".into();
    lease = server.put(&path, &lease).await.expect(200);
    let server = server.restart().await;
    assert_eq!(server.get(&path).await.expect(200), lease);
}

#[tokio::test]
async fn what_is_allowed_but_hardly_meant_is_warned_about() {
    let server = Server::start().await;
    let warnings = |reply: &crate::support::Reply| -> Vec<String> {
        let values = reply.headers.get_all("warning").iter();
        values
            .map(|value| value.to_str().unwrap_or_default().to_owned())
            .collect()
    };
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = |env: Value| {
        json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "dup" }, "spec": {
            "replicas": 0, "selector": { "matchLabels": { "a": "dup" } }, "template": { "metadata": { "labels": { "a": "dup" } },
            "spec": { "containers": [{ "name": "c", "image": "i", "env": env }] } } } })
    };
    let twice = json!([{ "name": "AX", "value": "1" }, { "name": "AN", "value": "qa" }, { "name": "AN", "value": "qa" }]);
    let warning = "299 - \"spec.template.spec.containers[0].env[2]: hides previous definition of \\\"AN\\\", which may be dropped when using apply\"";
    let reply = server.post(path, &deployment(twice)).await;
    assert_eq!(warnings(&reply), [warning]);
    reply.expect(201);
    // A change of the labels is none of the template.
    let reply = server
        .merge(
            &format!("{path}/dup"),
            &json!({ "metadata": { "labels": { "x": "y" } } }),
        )
        .await;
    assert_eq!(warnings(&reply), [""; 0]);
    let reply = server
        .merge(
            &format!("{path}/dup"),
            &json!({ "spec": { "replicas": 1 } }),
        )
        .await;
    assert_eq!(warnings(&reply), [warning]);
    let owner = json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "u" });
    let mut map = config_map("owned");
    map["metadata"]["ownerReferences"] = json!([owner, owner]);
    let reply = server.post(MAPS, &map).await;
    assert_eq!(warnings(&reply).len(), 1);
    assert_eq!(
        reply.expect(201)["metadata"]["ownerReferences"],
        json!([owner])
    );
    let reply = server.get("/api/v1/namespaces/default/endpoints").await;
    assert_eq!(
        warnings(&reply),
        ["299 - \"v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice\""]
    );
}

#[tokio::test]
async fn yaml_is_read_as_everybody_writes_it() {
    let server = Server::start().await;
    server.service_account().await;
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: yaml-octal}\nspec:\n  containers: [{name: c, image: x, tty: yes}]\n  \
               volumes: [{name: v, secret: {secretName: s, defaultMode: 0400}}]\n";
    let created = server
        .send(Method::POST, crate::support::PODS, "application/yaml", pod)
        .await
        .expect(201);
    assert_eq!(created["spec"]["volumes"][0]["secret"]["defaultMode"], 256);
    assert_eq!(created["spec"]["containers"][0]["tty"], true);
    let twice = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata:\n  a: x\n  a: z\n";
    let reply = server
        .send(Method::POST, MAPS, "application/yaml", twice)
        .await;
    let warning = reply.headers.get("warning");
    assert_eq!(
        warning.unwrap_or_else(|| panic!("no warning: {}", reply.body)),
        "299 - \"line 6: key \\\"a\\\" already set in map\""
    );
    assert_eq!(reply.expect(201)["data"]["a"], "z");
    let strict = format!("{MAPS}?fieldValidation=Strict");
    let message = server
        .send(Method::POST, &strict, "application/yaml", twice)
        .await
        .refused(400, "BadRequest");
    assert!(
        message.ends_with(
            "strict decoding error: yaml: unmarshal errors:\n  line 6: key \"a\" already set in map"
        ),
        "{message}"
    );
}

#[tokio::test]
async fn the_version_says_what_the_program_is() {
    let server = Server::start().await;
    let version = server.get("/version").await.expect(200);
    assert_eq!(
        (&version["major"], &version["minor"]),
        (&json!("1"), &json!("37"))
    );
    assert_eq!(
        (
            &version["emulationMinor"],
            &version["minCompatibilityMinor"]
        ),
        (&json!("37"), &json!("36"))
    );
    let commit = version["gitCommit"].as_str().unwrap_or_default();
    assert!(
        commit.len() == 40 && commit.bytes().all(|c| c.is_ascii_hexdigit()),
        "{version}"
    );
    for field in [
        "gitTreeState",
        "buildDate",
        "goVersion",
        "compiler",
        "platform",
    ] {
        assert!(
            version[field].as_str().is_some_and(|text| !text.is_empty()),
            "{field}: {version}"
        );
    }
}
