//! Nodes that fall silent, pods of nodes that are gone, tokens that have expired.

mod harness;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use harness::{Cluster, Gate, Verdict, eventually};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use knarr_api::auth::UserInfo;
use knarr_controllers::Config;
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;

fn impatient(config: &mut Config) {
    config.node_grace = Duration::from_secs(1);
    config.eviction.node_eviction_rate = 5.0;
}

/// The status of its condition `Ready`, and its taints.
async fn state(cluster: &Cluster, name: &str) -> (Option<String>, Vec<String>) {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let node = nodes.get(name).await.expect("the node");
    let ready = (node.status.iter())
        .flat_map(|status| status.conditions.iter().flatten())
        .find(|one| one.type_ == "Ready")
        .map(|one| one.status.clone());
    let taints = (node.spec.iter())
        .flat_map(|spec| spec.taints.iter().flatten())
        .map(|taint| format!("{}:{}", taint.key, taint.effect))
        .collect();
    (ready, taints)
}

async fn becomes(cluster: &Cluster, name: &str, ready: &str, taints: &[&str]) {
    let what = format!("{name} has {ready} and {taints:?}");
    eventually(&what, || async {
        let now = state(cluster, name).await;
        let right = now.0.as_deref() == Some(ready) && now.1 == taints;
        right.then_some(()).ok_or_else(|| format!("{now:?}"))
    })
    .await;
}

const UNREACHABLE: [&str; 2] = [
    "node.kubernetes.io/unreachable:NoSchedule",
    "node.kubernetes.io/unreachable:NoExecute",
];

/// All nodes silent at once are rather a server that was cut off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_evicted_while_no_node_is_heard_of() {
    let cluster = Cluster::start_with(impatient).await;
    let names = ["n1", "n2", "n3", "n4"];
    let mut kubelets = Vec::new();
    for name in names {
        cluster.node(name).await;
        kubelets.push(cluster.kubelet_of(name));
    }
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}],
        "tolerations": [{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]}});
    let pod = cluster.create(&cluster.api::<Pod>(), pod).await;
    cluster.make_ready(&pod, "10.42.0.9").await;
    for name in names {
        becomes(&cluster, name, "True", &[]).await;
    }
    kubelets.iter().for_each(|kubelet| kubelet.abort());
    for name in names {
        becomes(&cluster, name, "Unknown", &UNREACHABLE[..1]).await;
    }
    // One comes back, and the others get their time again: only then is it known that they are away.
    let back = cluster.kubelet_of("n4");
    becomes(&cluster, "n4", "True", &[]).await;
    let other = cluster.kubelet_of("n3");
    becomes(&cluster, "n3", "True", &[]).await;
    let living = cluster.api::<Pod>().get("p").await.expect("the pod");
    assert_eq!(living.metadata.deletion_timestamp, None);
    // With half of the nodes here the others are evicted, at the zone's rate.
    becomes(&cluster, "n1", "Unknown", &UNREACHABLE).await;
    becomes(&cluster, "n2", "Unknown", &UNREACHABLE).await;
    back.abort();
    other.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_tainted_and_its_pods_are_evicted() {
    let cluster = Cluster::start_with(impatient).await;
    cluster.node("n1").await;
    cluster.node("n2").await;
    cluster.kubelet_of("n2");
    let tolerations = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}]);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "tolerations": tolerations, "containers": [{"name": "c", "image": "i"}]}});
    let pod = cluster.create(&cluster.api::<Pod>(), pod).await;
    cluster.make_ready(&pod, "10.42.0.9").await;
    becomes(&cluster, "n1", "Unknown", &UNREACHABLE).await;
    eventually("its pod is evicted", || async {
        let Some(pod) = cluster.api::<Pod>().get_opt("p").await.expect("an answer") else {
            return Ok(());
        };
        let conditions = pod
            .status
            .and_then(|status| status.conditions)
            .unwrap_or_default();
        let marked = conditions.iter().any(|one| {
            one.type_ == "DisruptionTarget"
                && one.reason.as_deref() == Some("DeletionByTaintManager")
        });
        if marked && pod.metadata.deletion_timestamp.is_some() {
            Ok(())
        } else {
            Err(format!("{conditions:?}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_token_goes_and_another_stays() {
    let cluster = Cluster::start().await;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), "kube-system");
    let token = |name: &str, end: &str| json!({"metadata": {"name": name}, "type": "bootstrap.kubernetes.io/token", "stringData": {"expiration": end}});
    cluster
        .create(
            &secrets,
            token("bootstrap-token-aaaaaa", "2020-01-01T00:00:00Z"),
        )
        .await;
    cluster
        .create(
            &secrets,
            token("bootstrap-token-bbbbbb", "2120-01-01T00:00:00Z"),
        )
        .await;
    eventually("the first goes", || async {
        let names: Vec<_> = secrets
            .list(&ListParams::default())
            .await
            .expect("secrets")
            .items
            .into_iter()
            .filter_map(|one| one.metadata.name)
            .collect();
        (names == ["bootstrap-token-bbbbbb"])
            .then_some(())
            .ok_or_else(|| format!("{names:?}"))
    })
    .await;
    secrets
        .delete("bootstrap-token-bbbbbb", &DeleteParams::default())
        .await
        .expect("it is still there");
}

/// A request of a kubelet for its client certificate.
fn request_of(node: &str) -> serde_json::Value {
    let mut params = rcgen::CertificateParams::default();
    let name = &mut params.distinguished_name;
    name.push(rcgen::DnType::OrganizationName, "system:nodes");
    name.push(rcgen::DnType::CommonName, format!("system:node:{node}"));
    let key = rcgen::KeyPair::generate().expect("a key");
    let pem = params
        .serialize_request(&key)
        .and_then(|request| request.pem())
        .expect("a request");
    json!({"metadata": {"name": format!("csr-{node}")}, "spec": {
        "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
        "usages": ["digital signature", "client auth"],
        "request": k8s_openapi::ByteString(pem.into_bytes()),
    }})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_request_is_settled_though_each_step_failed_once() {
    let cluster = Cluster::start_api().await;
    let (approvals, statuses) = (AtomicU32::new(0), AtomicU32::new(0));
    let gate = Gate::new(move |request| {
        let path = request.uri.path();
        let tries = match path.rsplit('/').next() {
            Some("approval") => &approvals,
            Some("status") if path.contains("certificatesigningrequests") => &statuses,
            _ => return Verdict::Pass,
        };
        match tries.fetch_add(1, Ordering::Relaxed) {
            0 => Verdict::Break,
            _ => Verdict::Pass,
        }
    });
    cluster.start_controllers(Config::default(), Some(gate));
    let node = UserInfo::new("system:node:n1", ["system:nodes".to_owned()]);
    let requests: Api<CertificateSigningRequest> = Api::all(cluster.client(node));
    cluster.create(&requests, request_of("n1")).await;
    eventually("it gets its certificate", || async {
        let request = requests.get("csr-n1").await.expect("the request");
        let status = request.status.unwrap_or_default();
        status
            .certificate
            .is_some()
            .then_some(())
            .ok_or_else(|| format!("{:?}", status.conditions))
    })
    .await;
}
