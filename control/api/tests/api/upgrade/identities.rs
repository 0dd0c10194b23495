//! Keys, certificates and tokens, and what those who have them may do now that there are roles.

use std::path::Path;

use base64::Engine as _;
use knarr_api::pki::Identity;
use serde_json::json;

use super::fixture::{Old, STORES, path, text};
use crate::support::{MAPS, Server, pod};
use crate::wire::listen_with;

#[tokio::test]
async fn old_tokens_are_good_for_whom_and_as_long_as_they_were() {
    let old = Old::unpack();
    let listening = listen_with(old.open(STORES[0]).await).await;
    let robot = "system:serviceaccount:shop:robot";
    let all = [
        ("plain", robot),
        ("secret", robot),
        ("pod", "system:serviceaccount:shop:default"),
    ];
    for (bond, user) in all {
        let token = &old.tokens[bond];
        assert_eq!(listening.get(None, "/apis", token).await.0, 200, "{bond}");
        // Before there were roles, every account could do everything.
        let (code, status) = listening.get(None, MAPS, token).await;
        let message = format!(
            "configmaps is forbidden: User \"{user}\" cannot list resource \"configmaps\" in API group \"\" in the namespace \
             \"default\""
        );
        assert_eq!((code, text(&status["message"])), (403, &*message));
    }
    let requests = "/apis/certificates.k8s.io/v1/certificatesigningrequests/kubelet";
    let join = &old.tokens["join"];
    assert_eq!(listening.get(None, requests, join).await.0, 200);
    assert_eq!(listening.get(None, MAPS, join).await.0, 403);

    let server = &listening.server;
    let secret = "/api/v1/namespaces/shop/secrets/password";
    server.delete(secret).await.expect(200);
    let robot = "/api/v1/namespaces/shop/serviceaccounts/robot";
    for (bond, code) in [("secret", 401), ("plain", 200)] {
        let token = &old.tokens[bond];
        assert_eq!(listening.get(None, "/apis", token).await.0, code, "{bond}");
    }
    server.delete(robot).await.expect(200);
    assert_eq!(
        listening.get(None, "/apis", &old.tokens["plain"]).await.0,
        401
    );
    listening.end().await;
}

/// The base64 text behind `name:` in a kubeconfig, decoded.
fn embedded(kubeconfig: &str, name: &str) -> String {
    let mut values = (kubeconfig.lines()).filter_map(|line| line.trim().strip_prefix(name));
    decoded(values.next().expect(name).trim_start_matches(": "))
}

fn decoded(text: &str) -> String {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text);
    String::from_utf8(bytes.expect("base64")).expect("UTF-8")
}

#[tokio::test]
async fn old_keys_and_certificates_stay_and_open_what_they_should() {
    let old = Old::unpack();
    let listening = listen_with(old.open(STORES[0]).await).await;
    let kept = old.dir.path().join("data/server/tls");
    let now = listening.server.dir().join("tls");
    let mut files = 0;
    for file in std::fs::read_dir(&kept).expect("the keys") {
        let name = file.expect("a file").file_name();
        let read = |dir: &Path| std::fs::read_to_string(dir.join(&name)).expect("a key");
        assert_eq!(read(&now), read(&kept), "{name:?}");
        files += 1;
    }
    assert_eq!(files, std::fs::read_dir(&now).expect("the keys").count());

    let kubeconfig = old.read("admin.kubeconfig");
    let admin = Identity {
        cert_pem: embedded(&kubeconfig, "client-certificate-data"),
        key_pem: embedded(&kubeconfig, "client-key-data"),
    };
    for path in [
        "/api/v1/secrets",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    ] {
        assert_eq!(listening.get(Some(&admin), path, "").await.0, 200, "{path}");
    }

    // A node that joined reads what its pods need, and no more.
    let requests = old.of("CertificateSigningRequest");
    let signed = requests
        .iter()
        .find(|one| one["metadata"]["name"] == "kubelet");
    let signed = &signed.expect("the kubelet's request")["status"]["certificate"];
    let kubelet = Identity {
        cert_pem: decoded(text(signed)),
        key_pem: old.read("kubelet.key"),
    };
    for (path, code) in [
        ("/api/v1/nodes/box", 200),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Dbox", 200),
        ("/api/v1/namespaces/shop/pods/alone", 200),
        ("/api/v1/namespaces/shop/secrets/password", 200),
        ("/api/v1/namespaces/shop/configmaps/settings", 200),
        (
            "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/box",
            200,
        ),
        ("/api/v1/namespaces/shop/configmaps/fixed", 403),
        ("/api/v1/secrets", 403),
    ] {
        assert_eq!(
            listening.get(Some(&kubelet), path, "").await.0,
            code,
            "{path}"
        );
    }
    listening.end().await;
}

#[tokio::test]
async fn the_program_s_own_parts_may_go_on_with_old_objects() {
    let old = Old::unpack();
    let server = old.open(STORES[0]).await;
    let note = json!({ "metadata": { "annotations": { "upgraded": "yes" } } });
    let patched = async |who: &Server, path: &str| who.merge(path, &note).await.expect(200);

    let node = server.acting("system:node:box", &["system:nodes"]);
    patched(&node, "/api/v1/nodes/box/status").await;
    patched(
        &node,
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/box",
    )
    .await;
    for pod in old.of("Pod") {
        patched(&node, &format!("{}/status", path(pod))).await;
    }
    let token = "/api/v1/namespaces/shop/serviceaccounts/default/token";
    let uid = |kind: &str, name: &str| {
        let all = old.of(kind);
        let one = all.iter().find(|object| object["metadata"]["name"] == name);
        one.expect(name)["metadata"]["uid"].clone()
    };
    let bound =
        json!({ "apiVersion": "v1", "kind": "Pod", "name": "alone", "uid": uid("Pod", "alone") });
    let asked = json!({ "spec": { "audiences": [], "boundObjectRef": bound } });
    node.post(token, &asked).await.expect(201);
    for list in ["services", "nodes"] {
        node.get(&format!("/api/v1/{list}")).await.expect(200);
    }
    node.get("/apis/discovery.k8s.io/v1/endpointslices")
        .await
        .expect(200);

    let scheduler = server.acting("system:kube-scheduler", &[]);
    for list in ["pods", "nodes", "namespaces"] {
        scheduler.get(&format!("/api/v1/{list}")).await.expect(200);
    }
    let pods = "/api/v1/namespaces/shop/pods";
    server.post(pods, &pod("late")).await.expect(201);
    let binding =
        json!({ "metadata": { "name": "late" }, "target": { "kind": "Node", "name": "box" } });
    scheduler
        .post(&format!("{pods}/late/binding"), &binding)
        .await
        .expect(201);

    // A controller each, on what it owns.
    for (account, kind, subresource) in [
        ("deployment-controller", "Deployment", "/status"),
        ("replicaset-controller", "ReplicaSet", "/status"),
        ("endpoint-controller", "Endpoints", ""),
        ("endpointslice-controller", "EndpointSlice", ""),
        ("node-controller", "Node", "/status"),
    ] {
        let user = format!("system:serviceaccount:kube-system:{account}");
        let groups = [
            "system:serviceaccounts",
            "system:serviceaccounts:kube-system",
        ];
        let controller = server.acting(&user, &groups);
        for object in old.of(kind) {
            patched(&controller, &format!("{}{subresource}", path(object))).await;
        }
    }
}
