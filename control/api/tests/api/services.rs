use serde_json::{Value, json};

use crate::support::Server;

const SERVICES: &str = "/api/v1/namespaces/default/services";

fn service(name: &str, spec: Value) -> Value {
    let mut all = json!({ "ports": [{ "port": 80 }] });
    for (key, value) in spec.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": all })
}

#[tokio::test]
async fn addresses_are_given_out_kept_and_given_back() {
    let server = Server::start().await;
    let kubernetes = server
        .get(&format!("{SERVICES}/kubernetes"))
        .await
        .expect(200);
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.43.0.1");
    let first = server
        .post(SERVICES, &service("a", json!({})))
        .await
        .expect(201);
    let address = first["spec"]["clusterIP"]
        .as_str()
        .expect("an address")
        .to_owned();
    assert_eq!(first["spec"]["clusterIPs"], json!([address]));
    let server = server.restart().await;
    let taken = service("b", json!({ "clusterIP": address }));
    let message = server.post(SERVICES, &taken).await.refused(422, "Invalid");
    assert!(
        message.contains("provided IP is already allocated"),
        "{message}"
    );
    let outside = service("b", json!({ "clusterIP": "192.0.2.1" }));
    let message = server
        .post(SERVICES, &outside)
        .await
        .refused(422, "Invalid");
    assert!(
        message.contains("is not in the valid range. The range of valid IPs is 10.43.0.0/16"),
        "{message}"
    );
    server.delete(&format!("{SERVICES}/a")).await.expect(200);
    server.post(SERVICES, &taken).await.expect(201);
    let headless = server
        .post(SERVICES, &service("h", json!({ "clusterIP": "None" })))
        .await
        .expect(201);
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
}

#[tokio::test]
async fn node_ports_follow_the_type() {
    let server = Server::start().await;
    let node_port = |name: &str, port: Value| {
        service(
            name,
            json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": port }] }),
        )
    };
    let created = server
        .post(SERVICES, &node_port("a", 30080.into()))
        .await
        .expect(201);
    assert_eq!(created["spec"]["ports"][0]["nodePort"], 30080);
    let message = server
        .post(SERVICES, &node_port("b", 30080.into()))
        .await
        .refused(422, "Invalid");
    assert!(
        message.contains(
            "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"
        ),
        "{message}"
    );
    let message = server
        .post(SERVICES, &node_port("b", 80.into()))
        .await
        .refused(422, "Invalid");
    assert!(
        message.contains("The range of valid ports is 30000-32767"),
        "{message}"
    );
    let automatic = server
        .post(SERVICES, &node_port("b", Value::Null))
        .await
        .expect(201);
    assert!(
        automatic["spec"]["ports"][0]["nodePort"]
            .as_u64()
            .is_some_and(|p| (30000..=32767).contains(&p))
    );
    let changed = server
        .merge(
            &format!("{SERVICES}/a"),
            &json!({ "spec": { "type": "ClusterIP" } }),
        )
        .await
        .expect(200);
    assert!(
        changed["spec"]["ports"][0]["nodePort"].is_null(),
        "{changed}"
    );
    server
        .post(SERVICES, &node_port("c", 30080.into()))
        .await
        .expect(201);
}

#[tokio::test]
async fn a_local_load_balancer_has_a_port_for_health_checks() {
    let server = Server::start().await;
    let local = |name: &str, port: Value| {
        let spec = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": port });
        service(name, spec)
    };
    let port = |service: &Value| service["spec"]["healthCheckNodePort"].as_u64();
    let created = server
        .post(SERVICES, &local("a", Value::Null))
        .await
        .expect(201);
    let given = port(&created).expect("a port");
    assert!((30000..=32767).contains(&given), "{created}");
    let message =
        (server.post(SERVICES, &local("b", given.into())).await).refused(500, "InternalError");
    assert!(
        message.contains("failed to allocate requested HealthCheck NodePort"),
        "{message}"
    );
    // It stays through changes, and goes with the policy.
    let path = format!("{SERVICES}/a");
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    let changed = server.merge(&path, &label).await.expect(200);
    assert_eq!(port(&changed), Some(given));
    let cluster = json!({ "spec": { "externalTrafficPolicy": "Cluster" } });
    let changed = server.merge(&path, &cluster).await.expect(200);
    assert_eq!(port(&changed), None, "{changed}");
    let again = server
        .post(SERVICES, &local("b", given.into()))
        .await
        .expect(201);
    assert_eq!(port(&again), Some(given));
}

#[tokio::test]
async fn a_dry_run_takes_nothing() {
    let server = Server::start().await;
    let wanted = service("a", json!({ "clusterIP": "10.43.9.9" }));
    server
        .post(&format!("{SERVICES}?dryRun=All"), &wanted)
        .await
        .expect(201);
    server.post(SERVICES, &wanted).await.expect(201);
}

#[tokio::test]
async fn the_api_server_has_endpoints() {
    let server = Server::start().await;
    let endpoints = server
        .get("/api/v1/namespaces/default/endpoints/kubernetes")
        .await
        .expect(200);
    assert_eq!(endpoints["subsets"][0]["addresses"][0]["ip"], "192.0.2.1");
    server
        .get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes")
        .await
        .expect(200);
}
