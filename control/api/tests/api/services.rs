use serde_json::{Value, json};

use crate::support::{DEADLINE, Server};

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

/// Asks until `right` holds for the object at `path`; fails with the last answer after a deadline.
async fn comes_to(server: &Server, path: &str, right: impl Fn(&Value) -> bool) -> Value {
    let start = std::time::Instant::now();
    loop {
        let reply = server.get(path).await;
        if reply.code == 200 && right(&reply.body) {
            return reply.body;
        }
        assert!(start.elapsed() < DEADLINE, "{path}: {}", reply.body);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_api_servers_own_service_and_endpoints_come_back() {
    let server = Server::start().await;
    let paths = [
        "/api/v1/namespaces/default/services/kubernetes",
        "/api/v1/namespaces/default/endpoints/kubernetes",
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
    ];
    let mut first = Vec::new();
    for path in paths {
        first.push(server.get(path).await.expect(200));
    }
    let uid = |object: &Value| object["metadata"]["uid"].clone();
    for round in 0..2 {
        for (path, before) in paths.iter().zip(&mut first) {
            server.delete(path).await.expect(200);
            let after = comes_to(&server, path, |now| uid(now) != uid(before)).await;
            for part in ["spec", "subsets", "endpoints", "ports", "addressType"] {
                assert_eq!(after[part], before[part], "{path}, round {round}");
            }
            *before = after;
        }
    }
    // Nobody gets its address meanwhile, not even by asking for it.
    let address = &first[0]["spec"]["clusterIP"];
    let thief = service(
        "thief",
        json!({ "clusterIP": address, "ports": [{ "port": 80 }] }),
    );
    server.delete(paths[0]).await.expect(200);
    let message = server.post(SERVICES, &thief).await.refused(422, "Invalid");
    assert!(
        message.contains("provided IP is already allocated"),
        "{message}"
    );
    comes_to(&server, paths[0], |now| {
        now["spec"]["clusterIP"] == *address
    })
    .await;
}

#[tokio::test]
async fn what_damages_the_api_servers_own_service_is_mended() {
    let server = Server::start().await;
    let service = "/api/v1/namespaces/default/services/kubernetes";
    let endpoints = "/api/v1/namespaces/default/endpoints/kubernetes";
    let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    for (path, part, damage) in [
        (
            service,
            "spec",
            json!({ "spec": { "selector": { "app": "mine" } } }),
        ),
        (service, "spec", json!({ "spec": { "type": "NodePort" } })),
        (
            service,
            "spec",
            json!({ "spec": { "ports": [{ "name": "https", "port": 444, "protocol": "TCP" }] } }),
        ),
        (
            service,
            "spec",
            json!({ "spec": { "type": "ExternalName", "externalName": "example.com", "clusterIP": null, "clusterIPs": null } }),
        ),
        (endpoints, "subsets", json!({ "subsets": null })),
        (
            endpoints,
            "subsets",
            json!({ "subsets": [{ "addresses": [{ "ip": "192.0.2.66" }], "ports": [{ "name": "https", "port": 6443 }] }] }),
        ),
        (
            slice,
            "endpoints",
            json!({ "endpoints": [{ "addresses": ["192.0.2.66"] }] }),
        ),
        (slice, "ports", json!({ "ports": null })),
    ] {
        let before = server.get(path).await.expect(200);
        let damaged = server.merge(path, &damage).await.expect(200);
        assert_ne!(damaged[part], before[part], "{damage}");
        comes_to(&server, path, |now| now[part] == before[part]).await;
    }
    let label = json!({ "metadata": { "labels": { "kubernetes.io/service-name": null } } });
    server.merge(slice, &label).await.expect(200);
    let label =
        |now: &Value| now["metadata"]["labels"]["kubernetes.io/service-name"] == "kubernetes";
    comes_to(&server, slice, label).await;
    // A system namespace that may go comes back, too.
    let namespace = "/api/v1/namespaces/kube-node-lease";
    let before = server.get(namespace).await.expect(200)["metadata"]["uid"].clone();
    server.delete(namespace).await;
    let finalize = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "kube-node-lease" }, "spec": { "finalizers": [] } });
    server
        .put(&format!("{namespace}/finalize"), &finalize)
        .await
        .expect(200);
    comes_to(&server, namespace, |now| now["metadata"]["uid"] != before).await;
}

#[tokio::test]
async fn a_port_has_one_node_port_in_all_its_protocols() {
    let server = Server::start().await;
    let both = |name: &str, tcp: Value, udp: Value| {
        service(
            name,
            json!({ "type": "NodePort", "ports": [
                { "name": "dns-tcp", "port": 5353, "protocol": "TCP", "nodePort": tcp },
                { "name": "dns-udp", "port": 5353, "protocol": "UDP", "nodePort": udp }] }),
        )
    };
    let ports = |service: &Value| {
        let port = |index: usize| service["spec"]["ports"][index]["nodePort"].clone();
        (port(0), port(1))
    };
    let created = server
        .post(SERVICES, &both("a", Value::Null, Value::Null))
        .await
        .expect(201);
    let (tcp, udp) = ports(&created);
    assert!(tcp.is_number() && tcp == udp, "{created}");
    let created = server
        .post(SERVICES, &both("b", Value::Null, 30535.into()))
        .await
        .expect(201);
    assert_eq!(ports(&created), (30535.into(), 30535.into()));
    let created = server
        .post(SERVICES, &both("c", 30001.into(), 30002.into()))
        .await
        .expect(201);
    assert_eq!(ports(&created), (30001.into(), 30002.into()));
    // Applied again without numbers, each keeps what it has; nobody else gets it.
    let again = server
        .put(
            &format!("{SERVICES}/b"),
            &both("b", Value::Null, Value::Null),
        )
        .await
        .expect(200);
    assert_eq!(ports(&again), (30535.into(), 30535.into()));
    let message = server
        .post(SERVICES, &both("d", 30535.into(), Value::Null))
        .await
        .refused(422, "Invalid");
    assert!(
        message.contains("provided port is already allocated"),
        "{message}"
    );
    // Without one of its two protocols the port is still taken, and free when the service is gone.
    let one = service(
        "b",
        json!({ "type": "NodePort", "ports": [{ "name": "dns-udp", "port": 5353, "protocol": "UDP" }] }),
    );
    let left = server.put(&format!("{SERVICES}/b"), &one).await.expect(200);
    assert_eq!(left["spec"]["ports"][0]["nodePort"], 30535);
    let server = server.restart().await;
    server
        .post(SERVICES, &both("d", 30535.into(), Value::Null))
        .await
        .refused(422, "Invalid");
    server.delete(&format!("{SERVICES}/b")).await.expect(200);
    server
        .post(SERVICES, &both("d", 30535.into(), Value::Null))
        .await
        .expect(201);
}

const ADDRESSES: &str = "/apis/networking.k8s.io/v1/ipaddresses";

/// The bits of the node ports that are taken, as they are stored.
async fn stored_ports(server: &Server) -> Value {
    server
        .stored_after_a_crash("/registry/ranges/servicenodeports")
        .await
}

#[tokio::test]
async fn what_a_service_holds_is_an_object_and_goes_with_it() {
    let server = Server::start().await;
    let own = server
        .get(&format!("{ADDRESSES}/10.43.0.1"))
        .await
        .expect(200);
    assert_eq!(own["spec"]["parentRef"]["name"], "kubernetes");
    let spec = json!({ "type": "NodePort", "clusterIP": "10.43.0.9" });
    let a = server.post(SERVICES, &service("a", spec)).await.expect(201);
    let path = format!("{ADDRESSES}/10.43.0.9");
    let address = server.get(&path).await.expect(200);
    assert_eq!(
        address["spec"]["parentRef"],
        json!({ "group": "", "resource": "services", "namespace": "default", "name": "a" })
    );
    let label = &address["metadata"]["labels"]["ipaddress.kubernetes.io/managed-by"];
    assert_eq!(label, "ipallocator.k8s.io");
    let one = stored_ports(&server).await;
    assert_eq!(one["range"], "30000-32767", "{one}");
    // A service that is no NodePort any more keeps its address alone; a dry run changes nothing.
    let mut plain = a.clone();
    plain["spec"]["type"] = "ClusterIP".into();
    plain["spec"]["ports"] = json!([{ "port": 80 }]);
    let dry = format!("{SERVICES}/a?dryRun=All");
    server.put(&dry, &plain).await.expect(200);
    assert_eq!(stored_ports(&server).await, one);
    let path_of_service = format!("{SERVICES}/a");
    server.put(&path_of_service, &plain).await.expect(200);
    assert_eq!(stored_ports(&server).await["data"], "");
    server.get(&path).await.expect(200);
    server.delete(&path_of_service).await.expect(200);
    server.get(&path).await.refused(404, "NotFound");
}

#[tokio::test]
async fn a_table_of_addresses_tells_whose_they_are() {
    let server = Server::start().await;
    let table = "application/json;as=Table;g=meta.k8s.io;v=v1";
    let table = server.get_as(ADDRESSES, table).await.expect(200);
    assert_eq!(
        (&table["rows"][0]["cells"][0], &table["rows"][0]["cells"][1]),
        (&json!("10.43.0.1"), &json!("services/default/kubernetes"))
    );
    let address = |name: &str, spec: Value| json!({ "metadata": { "name": name }, "spec": spec });
    let parent =
        json!({ "parentRef": { "resource": "things", "name": "t", "group": "example.com" } });
    for (name, spec, words) in [
        ("10.0.0.01", &parent, "must be a valid IP address"),
        (
            "fd00:0::1",
            &parent,
            "must be in canonical form (\"fd00::1\")",
        ),
        ("10.0.0.1", &json!({}), "spec.parentRef: Required value"),
        (
            "10.0.0.1",
            &json!({ "parentRef": {} }),
            "spec.parentRef.resource: Required value",
        ),
    ] {
        let refused = server.post(ADDRESSES, &address(name, spec.clone())).await;
        let message = refused.refused(422, "Invalid");
        assert!(message.contains(words), "{message}");
    }
    let made = server.post(ADDRESSES, &address("10.0.0.1", parent)).await;
    let mut made = made.expect(201);
    made["spec"]["parentRef"]["name"] = "u".into();
    let changed = server.put(&format!("{ADDRESSES}/10.0.0.1"), &made).await;
    let message = changed.refused(422, "Invalid");
    assert!(message.contains("field is immutable"), "{message}");
}

/// What somebody deletes comes back, and what a store from before they were objects lacks is there after the start.
#[tokio::test]
async fn allocations_are_brought_in_line_with_the_services() {
    let server = Server::start().await;
    let spec = json!({ "type": "NodePort", "clusterIP": "10.43.0.9",
        "ports": [{ "port": 80, "nodePort": 30100 }] });
    server.post(SERVICES, &service("a", spec)).await.expect(201);
    let path = format!("{ADDRESSES}/10.43.0.9");
    let before = server.get(&path).await.expect(200);
    let mut watch = server.watch(&format!("{ADDRESSES}?watch=true")).await;
    assert_eq!(
        watch.short().await,
        ("ADDED".to_owned(), "10.43.0.1".to_owned())
    );
    assert_eq!(
        watch.short().await,
        ("ADDED".to_owned(), "10.43.0.9".to_owned())
    );
    server.delete(&path).await.expect(200);
    assert_eq!(watch.short().await.0, "DELETED");
    let (change, name) = watch.short().await;
    assert_eq!((&*change, &*name), ("ADDED", "10.43.0.9"));
    let after = server.get(&path).await.expect(200);
    assert_ne!(before["metadata"]["uid"], after["metadata"]["uid"]);

    drop(watch);
    let server = server
        .restart_after(&[
            "/registry/ranges/servicenodeports",
            "/registry/ipaddresses/10.43.0.9",
        ])
        .await;
    server.get(&path).await.expect(200);
    for (spec, words) in [
        (
            json!({ "clusterIP": "10.43.0.9" }),
            "provided IP is already allocated",
        ),
        (
            json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30100 }] }),
            "provided port is already allocated",
        ),
    ] {
        let taken = server.post(SERVICES, &service("b", spec)).await;
        let message = taken.refused(422, "Invalid");
        assert!(message.contains(words), "{message}");
    }
}

/// All want any port and any address at once: the one object of the ports is fought for, and each gets its own.
#[tokio::test]
async fn many_at_once_get_each_its_own() {
    let server = Server::start().await;
    let create = |index: usize| {
        let spec = json!({ "type": "NodePort" });
        let service = service(&format!("s-{index}"), spec);
        let server = &server;
        async move { server.post(SERVICES, &service).await.expect(201) }
    };
    let made = futures::future::join_all((0..24).map(create)).await;
    let all = |pointer: &str| -> std::collections::HashSet<String> {
        let values = made.iter().map(|service| service.pointer(pointer));
        values
            .map(|value| value.expect("it is given").to_string())
            .collect()
    };
    assert_eq!(all("/spec/ports/0/nodePort").len(), 24);
    assert_eq!(all("/spec/clusterIP").len(), 24);
    let bits = stored_ports(&server).await;
    let bytes = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        bits["data"].as_str().expect("text"),
    );
    let ones: u32 = bytes
        .expect("base64")
        .iter()
        .map(|byte| byte.count_ones())
        .sum();
    assert_eq!(ones, 24);
}
