//! Nodes that fall silent, pods of nodes that are gone, tokens that have expired.

mod harness;

use std::time::Duration;

use harness::{Cluster, eventually};
use k8s_openapi::api::core::v1::{Node, Pod, Secret};
use kube::Api;
use kube::api::{DeleteParams, ListParams};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_node_is_tainted_and_its_pods_are_evicted() {
    let cluster = Cluster::start_with_grace(Duration::from_secs(1)).await;
    cluster.node("n1").await;
    let tolerations = json!([{"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}]);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1", "tolerations": tolerations, "containers": [{"name": "c", "image": "i"}]}});
    let pod = cluster.create(&cluster.api::<Pod>(), pod).await;
    cluster.make_ready(&pod, "10.42.0.9").await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    eventually("the node is unreachable", || async {
        let node = nodes.get("n1").await.expect("the node");
        let ready = node
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .find(|one| one.type_ == "Ready")
            .map(|one| one.status.clone());
        let taints: Vec<_> = node
            .spec
            .iter()
            .flat_map(|spec| spec.taints.iter().flatten())
            .map(|taint| format!("{}:{}", taint.key, taint.effect))
            .collect();
        let right = ready.as_deref() == Some("Unknown")
            && taints.contains(&"node.kubernetes.io/unreachable:NoExecute".to_owned());
        right
            .then_some(())
            .ok_or_else(|| format!("{ready:?} {taints:?}"))
    })
    .await;
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
