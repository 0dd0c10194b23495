//! Who may do what, tried from outside.

use serde_json::{Value, json};

use crate::support::{Server, config_map, pod};

const API: &str = "/apis/rbac.authorization.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

fn rule(verbs: &[&str], group: &str, resources: &[&str]) -> Value {
    json!({ "verbs": verbs, "apiGroups": [group], "resources": resources })
}

fn role(name: &str, rules: &[Value]) -> Value {
    json!({ "metadata": { "name": name }, "rules": rules })
}

fn binding(name: &str, role: &str, user: &str) -> Value {
    let (kind, role) = role.split_once('/').expect("kind/name");
    json!({ "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user }] })
}

/// `VERB GROUP RESOURCE[/SUBRESOURCE] [NAMESPACE]`, `core` being the empty group.
fn attributes(words: &str) -> Value {
    let words: Vec<&str> = words.split(' ').collect();
    if let [verb, path] = words[..] {
        return json!({ "nonResourceAttributes": { "verb": verb, "path": path } });
    }
    let (resource, subresource) = words[2].split_once('/').unwrap_or((words[2], ""));
    let group = if words[1] == "core" { "" } else { words[1] };
    json!({ "resourceAttributes": { "verb": words[0], "group": group, "resource": resource,
        "subresource": subresource, "namespace": words.get(3).unwrap_or(&"") } })
}

#[tokio::test]
async fn the_default_roles_allow_what_kubernetes_allows_and_no_more() {
    let server = Server::start().await;
    let namespaced = "/apis/rbac.authorization.k8s.io/v1/namespaces/a/rolebindings";
    let namespace = json!({ "metadata": { "name": "a" } });
    server
        .post("/api/v1/namespaces", &namespace)
        .await
        .expect(201);
    for role in ["view", "edit", "admin"] {
        let bound = binding(role, &format!("ClusterRole/{role}"), role);
        server.post(namespaced, &bound).await.expect(201);
    }
    let root = binding("root", "ClusterRole/cluster-admin", "root");
    server
        .post(&format!("{API}/clusterrolebindings"), &root)
        .await
        .expect(201);
    let nodes = "system:nodes";
    #[rustfmt::skip] // A table: who, of which group, what they may, and what they may not.
    let table: [(&str, &str, &[&str], &[&str]); 11] = [
        ("view", "", &[
            "get core pods a", "list core configmaps a", "watch apps deployments a", "get core pods/log a", "get apps deployments/scale a",
            "get core namespaces a", "list core services a", "get core resourcequotas a",
        ], &[
            "get core secrets a", "list core secrets a", "create core pods a", "get core pods b", "list core nodes", "get core pods/exec a",
            "create core pods/exec a", "get rbac.authorization.k8s.io roles a", "create core serviceaccounts/token a", "delete core configmaps a",
        ]),
        ("edit", "", &[
            "get core secrets a", "create core pods a", "delete core services a", "create core pods/exec a", "patch apps deployments/scale a",
            "impersonate core serviceaccounts a", "create core serviceaccounts/token a", "create core pods/eviction a", "update core configmaps a",
        ], &[
            "create rbac.authorization.k8s.io rolebindings a", "create core pods b", "update core pods/status a", "create core resourcequotas a",
            "update core namespaces a", "create core namespaces", "get core nodes",
        ]),
        ("admin", "", &[
            "create rbac.authorization.k8s.io rolebindings a", "create rbac.authorization.k8s.io roles a", "get core secrets a",
            "create authorization.k8s.io localsubjectaccessreviews a", "delete core pods a",
        ], &[
            "create rbac.authorization.k8s.io clusterroles", "update core namespaces a", "create core resourcequotas a", "create core pods b",
            "escalate rbac.authorization.k8s.io roles a", "bind rbac.authorization.k8s.io clusterroles", "update core pods/status a",
        ]),
        ("root", "", &["delete core nodes", "escalate rbac.authorization.k8s.io clusterroles", "get /metrics", "impersonate core users"], &[]),
        ("anybody", "", &[
            "create authorization.k8s.io selfsubjectaccessreviews", "create authentication.k8s.io selfsubjectreviews",
            "get /api", "get /apis/apps/v1", "get /openapi/v3", "get /version", "get /healthz",
        ], &[
            "get core pods a", "list core namespaces", "create authorization.k8s.io subjectaccessreviews", "get /metrics", "get /logs", "post /api",
            "create authentication.k8s.io tokenreviews", "impersonate core users",
        ]),
        ("system:kube-scheduler", "", &[
            "list core pods", "create core pods/binding", "patch core pods/status", "delete core pods", "watch core nodes", "update coordination.k8s.io leases kube-system",
        ], &["create core pods", "get core secrets", "update core nodes", "create core pods/exec", "update coordination.k8s.io leases a"]),
        ("system:kube-controller-manager", "", &[
            "list core secrets", "watch apps deployments", "create core serviceaccounts", "create core events", "list example.com anything",
        ], &["delete core pods", "create core pods", "update core nodes", "create rbac.authorization.k8s.io clusterrolebindings"]),
        ("system:serviceaccount:kube-system:deployment-controller", "", &[
            "create apps replicasets", "update apps deployments/status", "patch core events",
        ], &["create core pods", "get core secrets", "delete apps deployments"]),
        ("system:serviceaccount:a:default", "system:serviceaccounts", &[
            "get /.well-known/openid-configuration", "get /openid/v1/jwks",
        ], &["get core pods a", "list core secrets a", "create core pods a"]),
        ("system:node:n", nodes, &[
            "list core services", "watch discovery.k8s.io endpointslices", "create core nodes", "create core events", "list core nodes",
            "create certificates.k8s.io certificatesigningrequests", "create authentication.k8s.io tokenreviews",
            "create core pods/eviction a", "patch core pods/status a",
        ], &[
            "list core secrets", "list core secrets a", "create core secrets a", "list core configmaps", "create core pods/exec a", "delete core nodes",
            "update core services a", "create rbac.authorization.k8s.io clusterrolebindings", "approve certificates.k8s.io signers", "list core pods",
        ]),
        ("system:bootstrap:abcdef", "system:bootstrappers:kubeadm:default-node-token", &[
            "create certificates.k8s.io certificatesigningrequests", "get certificates.k8s.io certificatesigningrequests",
        ], &["list core pods", "get core secrets kube-system", "create core nodes", "update certificates.k8s.io certificatesigningrequests/approval"]),
    ];
    for (user, group, allowed, refused) in table {
        for (words, wanted) in (allowed.iter().map(|words| (words, true)))
            .chain(refused.iter().map(|words| (words, false)))
        {
            let mut spec = attributes(words);
            spec["user"] = user.into();
            spec["groups"] = json!(["system:authenticated", group]);
            let review = server
                .post(REVIEWS, &json!({ "spec": spec }))
                .await
                .expect(201);
            assert_eq!(
                review["status"]["allowed"], wanted,
                "{user}: {words}: {review}"
            );
        }
    }
}

#[tokio::test]
async fn a_binding_holds_from_the_next_request_on_until_it_is_gone() {
    let server = Server::start().await;
    let jane = server.acting("jane", &[]);
    let message = jane.get(MAPS).await.refused(403, "Forbidden");
    assert_eq!(
        message,
        "configmaps is forbidden: User \"jane\" cannot list resource \"configmaps\" in API group \"\" in the namespace \"default\""
    );
    let roles = format!("{API}/namespaces/default/roles");
    let bindings = format!("{API}/namespaces/default/rolebindings");
    let reading = role("reading", &[rule(&["get", "list"], "", &["configmaps"])]);
    let bound = binding("jane", "Role/reading", "jane");
    for _ in 0..3 {
        server.post(&bindings, &bound).await.expect(201);
        let message = jane.get(MAPS).await.refused(403, "Forbidden");
        assert!(
            message.ends_with("RBAC: role.rbac.authorization.k8s.io \"reading\" not found"),
            "{message}"
        );
        server.post(&roles, &reading).await.expect(201);
        jane.get(MAPS).await.expect(200);
        jane.post(MAPS, &config_map("a"))
            .await
            .refused(403, "Forbidden");
        jane.get(&MAPS.replace("default", "kube-system"))
            .await
            .refused(403, "Forbidden");
        let more = json!({ "rules": [rule(&["get"], "", &["configmaps"])] });
        server
            .merge(&format!("{roles}/reading"), &more)
            .await
            .expect(200);
        jane.get(MAPS).await.refused(403, "Forbidden");
        server.delete(&format!("{bindings}/jane")).await.expect(200);
        server.delete(&format!("{roles}/reading")).await.expect(200);
    }
}

#[tokio::test]
async fn nobody_grants_more_than_they_have() {
    let server = Server::start().await;
    let roles = format!("{API}/namespaces/default/roles");
    let bindings = format!("{API}/namespaces/default/rolebindings");
    let bound = binding("boss", "ClusterRole/admin", "boss");
    server.post(&bindings, &bound).await.expect(201);
    let boss = server.acting("boss", &[]);
    let fine = role("fine", &[rule(&["get"], "", &["secrets"])]);
    boss.post(&roles, &fine).await.expect(201);
    let too_much = role("much", &[rule(&["get"], "", &["secrets", "nodes"])]);
    let message = boss.post(&roles, &too_much).await.refused(403, "Forbidden");
    assert_eq!(
        message,
        "roles.rbac.authorization.k8s.io \"much\" is forbidden: user \"boss\" (groups=[\"system:authenticated\"]) is attempting to \
         grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\"]}"
    );
    let more = json!({ "rules": [rule(&["*"], "*", &["*"])] });
    boss.merge(&format!("{roles}/fine"), &more)
        .await
        .refused(403, "Forbidden");
    boss.put(
        &format!("{roles}/fine"),
        &role("fine", &[rule(&["*"], "*", &["*"])]),
    )
    .await
    .refused(403, "Forbidden");
    let friend = binding("friend", "Role/fine", "friend");
    boss.post(&bindings, &friend).await.expect(201);
    let all = binding("all", "ClusterRole/cluster-admin", "boss");
    boss.post(&bindings, &all).await.refused(403, "Forbidden");
    // With the verb `bind` on that role it is allowed.
    let mut may_bind = rule(&["bind"], "rbac.authorization.k8s.io", &["clusterroles"]);
    may_bind["resourceNames"] = json!(["cluster-admin"]);
    server
        .post(&format!("{API}/clusterroles"), &role("binder", &[may_bind]))
        .await
        .expect(201);
    let binder = binding("binder", "ClusterRole/binder", "boss");
    server
        .post(&format!("{API}/clusterrolebindings"), &binder)
        .await
        .expect(201);
    boss.post(&bindings, &all).await.expect(201);
    boss.delete(PODS).await.expect(200);
}

#[tokio::test]
async fn aggregated_roles_gather_what_is_labelled_for_them() {
    let server = Server::start().await;
    let jane = server.acting("jane", &[]);
    let bound = binding("jane", "ClusterRole/view", "jane");
    server
        .post(&format!("{API}/clusterrolebindings"), &bound)
        .await
        .expect(201);
    jane.get("/api/v1/nodes").await.refused(403, "Forbidden");
    let mut nodes = role("view-nodes", &[rule(&["get", "list"], "", &["nodes"])]);
    nodes["metadata"]["labels"] = json!({ "rbac.authorization.k8s.io/aggregate-to-view": "true" });
    let mut events = server
        .watch(&format!("{API}/clusterroles?watch=true"))
        .await;
    server
        .post(&format!("{API}/clusterroles"), &nodes)
        .await
        .expect(201);
    // `view` gathers it, then `edit` gathers `view`, then `admin` gathers `edit`.
    loop {
        let event = events.next().await.expect("the watch goes on");
        let object = &event["object"];
        let gathers = object["rules"].to_string().contains("\"nodes\"");
        if event["type"] == "MODIFIED" && object["metadata"]["name"] == "admin" && gathers {
            break;
        }
    }
    jane.get("/api/v1/nodes").await.expect(200);
}

#[tokio::test]
async fn the_default_roles_are_brought_back_at_the_start_and_what_people_add_stays() {
    let server = Server::start().await;
    let one = |name: &str| format!("{API}/clusterroles/{name}");
    let before = server.get(&one("system:basic-user")).await.expect(200);
    server.delete(&one("system:basic-user")).await.expect(200);
    let mut scheduler = server.get(&one("system:kube-scheduler")).await.expect(200);
    let rules = scheduler["rules"].as_array_mut().expect("rules");
    let removed = rules.remove(0);
    rules.push(rule(&["get"], "example.com", &["things"]));
    server
        .put(&one("system:kube-scheduler"), &scheduler)
        .await
        .expect(200);
    let untouched = server.get(&one("cluster-admin")).await.expect(200);
    let server = server.restart().await;
    let after = server.get(&one("system:basic-user")).await.expect(200);
    assert_eq!(after["rules"], before["rules"]);
    let scheduler = server.get(&one("system:kube-scheduler")).await.expect(200);
    let rules = scheduler["rules"].as_array().expect("rules");
    assert!(rules.contains(&rule(&["get"], "example.com", &["things"])));
    let words = |field: &str| removed[field].as_array().expect("words").clone();
    for (verb, resource) in (words("verbs").into_iter()).flat_map(|verb| {
        words("resources")
            .into_iter()
            .map(move |r| (verb.clone(), r))
    }) {
        let spec = json!({ "user": "system:kube-scheduler", "resourceAttributes": {
            "verb": verb, "group": removed["apiGroups"][0], "resource": resource } });
        let review = json!({ "spec": spec });
        let review = server.post(REVIEWS, &review).await.expect(201);
        assert_eq!(review["status"]["allowed"], true, "{review}");
    }
    assert_eq!(
        server.get(&one("cluster-admin")).await.expect(200),
        untouched,
        "it is not written anew"
    );
}

#[tokio::test]
async fn a_node_reads_what_its_pods_use_and_changes_itself_alone() {
    let server = Server::start().await;
    server.service_account().await;
    let node = server.acting("system:node:n", &["system:nodes"]);
    let secrets = "/api/v1/namespaces/default/secrets";
    for name in ["used", "other"] {
        let secret = json!({ "metadata": { "name": name } });
        server.post(secrets, &secret).await.expect(201);
    }
    let own = json!({ "metadata": { "name": "n", "labels": { "kubernetes.io/hostname": "n" } } });
    node.post("/api/v1/nodes", &own).await.expect(201);
    let another = json!({ "metadata": { "name": "m" } });
    let message = node
        .post("/api/v1/nodes", &another)
        .await
        .refused(403, "Forbidden");
    assert!(
        message.ends_with("node \"n\" is not allowed to modify node \"\"")
            || message.ends_with("node \"n\" is not allowed to modify node \"m\""),
        "{message}"
    );
    server.post("/api/v1/nodes", &another).await.expect(201);
    for patch in [
        json!({ "spec": { "taints": [{ "key": "k", "effect": "NoSchedule" }] } }),
        json!({ "metadata": { "labels": { "node-restriction.kubernetes.io/x": "y" } } }),
        json!({ "metadata": { "labels": { "node-role.kubernetes.io/control-plane": "" } } }),
    ] {
        node.merge("/api/v1/nodes/n", &patch)
            .await
            .refused(403, "Forbidden");
        server.merge("/api/v1/nodes/m", &patch).await.expect(200);
    }
    let label = json!({ "metadata": { "labels": { "team": "x" } } });
    node.merge("/api/v1/nodes/n", &label).await.expect(200);
    node.merge("/api/v1/nodes/m", &label)
        .await
        .refused(403, "Forbidden");
    node.delete("/api/v1/nodes/m")
        .await
        .refused(403, "Forbidden");

    let secret = |name: &str| format!("{secrets}/{name}");
    node.get(&secret("used")).await.refused(403, "Forbidden");
    let mut uses = pod("p");
    uses["spec"]["nodeName"] = "n".into();
    uses["spec"]["volumes"] = json!([{ "name": "v", "secret": { "secretName": "used" } }]);
    server.post(PODS, &uses).await.expect(201);
    node.get(&secret("used")).await.expect(200);
    node.get(&format!("{secrets}?fieldSelector=metadata.name%3Dused"))
        .await
        .expect(200);
    node.get(&secret("other")).await.refused(403, "Forbidden");
    node.get(secrets).await.refused(403, "Forbidden");
    server
        .acting("system:node:m", &["system:nodes"])
        .get(&secret("used"))
        .await
        .refused(403, "Forbidden");

    let mut elsewhere = pod("q");
    elsewhere["spec"]["nodeName"] = "m".into();
    server.post(PODS, &elsewhere).await.expect(201);
    let running = json!({ "status": { "phase": "Running" } });
    node.merge(&format!("{PODS}/p/status"), &running)
        .await
        .expect(200);
    let message = node
        .merge(&format!("{PODS}/q/status"), &running)
        .await
        .refused(403, "Forbidden");
    assert!(
        message.ends_with(
            "node \"n\" can only update pod status for pods with spec.nodeName set to itself"
        ),
        "{message}"
    );
    node.delete(&format!("{PODS}/q"))
        .await
        .refused(403, "Forbidden");
    let mut mirror = pod("mirror");
    mirror["spec"]["nodeName"] = "n".into();
    node.post(PODS, &mirror).await.refused(403, "Forbidden");
    let tokens = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let uid = |pod: &Value| pod["metadata"]["uid"].clone();
    let (p, q) = (
        server.get(&format!("{PODS}/p")).await.expect(200),
        server.get(&format!("{PODS}/q")).await.expect(200),
    );
    let bound = |name: &str, uid: Value| json!({ "spec": { "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid } } });
    node.post(tokens, &bound("p", uid(&p))).await.expect(201);
    node.post(tokens, &bound("q", uid(&q)))
        .await
        .refused(403, "Forbidden");
    node.post(tokens, &json!({ "spec": {} }))
        .await
        .refused(403, "Forbidden");
    node.delete(&format!("{PODS}/p?gracePeriodSeconds=0"))
        .await
        .expect(200);
    node.get(&secret("used")).await.refused(403, "Forbidden");
}

#[tokio::test]
async fn a_user_reads_the_rules_that_hold_for_them() {
    let server = Server::start().await;
    let bound = binding("jane", "ClusterRole/view", "jane");
    server
        .post(&format!("{API}/namespaces/default/rolebindings"), &bound)
        .await
        .expect(201);
    let jane = server.acting("jane", &[]);
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let ask = json!({ "spec": { "namespace": "default" } });
    let status = jane.post(reviews, &ask).await.expect(201)["status"].clone();
    assert_eq!(status["incomplete"], false);
    let text = status["resourceRules"].to_string();
    assert!(
        text.contains("\"pods/log\"")
            && text.contains("selfsubjectaccessreviews")
            && !text.contains("\"secrets\""),
        "{text}"
    );
    assert!(
        status["nonResourceRules"]
            .to_string()
            .contains("/openapi/*"),
        "{status}"
    );
    jane.post(reviews, &json!({ "spec": {} }))
        .await
        .refused(400, "BadRequest");
    let elsewhere = json!({ "spec": { "namespace": "kube-system" } });
    let status = jane.post(reviews, &elsewhere).await.expect(201)["status"].clone();
    assert!(!status["resourceRules"].to_string().contains("pods/log"));
}
