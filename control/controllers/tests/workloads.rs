//! Deployments, replica sets and the scheduler against a real API server on a real store.

mod harness;

use std::time::Duration;

use harness::{Cluster, Gate, Verdict, eventually};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Node, Pod, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

fn deployment(replicas: i32, image: &str) -> Value {
    json!({"metadata": {"name": "web"}, "spec": {
        "replicas": replicas,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
    }})
}

async fn pods(cluster: &Cluster) -> Vec<Pod> {
    cluster
        .api::<Pod>()
        .list(&ListParams::default())
        .await
        .expect("pods")
        .items
}

/// Plays the kubelet until the deployment is complete with so many pods of this image.
async fn complete(cluster: &Cluster, replicas: i32, image: &str) {
    eventually("the rollout ends", || async {
        cluster.kubelet_round().await;
        let pods = pods(cluster).await;
        let right = |pod: &Pod| {
            pod.spec
                .as_ref()
                .is_some_and(|spec| spec.containers[0].image.as_deref() == Some(image))
        };
        let status = cluster
            .api::<Deployment>()
            .get("web")
            .await
            .expect("it")
            .status
            .unwrap_or_default();
        let generation = cluster
            .api::<Deployment>()
            .get("web")
            .await
            .expect("it")
            .metadata
            .generation;
        let done = usize::try_from(replicas).is_ok_and(|count| pods.len() == count)
            && pods.iter().all(right)
            && status.available_replicas.unwrap_or(0) == replicas
            && status.updated_replicas.unwrap_or(0) == replicas
            && status.observed_generation == generation;
        done.then_some(())
            .ok_or_else(|| format!("{} pods, {status:?}", pods.len()))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_becomes_bound_pods_and_rolls_scales_and_goes() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    eventually("the node gets addresses", || async {
        let spec = nodes
            .get("n1")
            .await
            .expect("the node")
            .spec
            .unwrap_or_default();
        (spec.pod_cidr.as_deref() == Some("10.42.0.0/24"))
            .then_some(())
            .ok_or_else(|| format!("{:?}", spec.pod_cidr))
    })
    .await;
    eventually("the namespace gets its account and CA", || async {
        cluster
            .api::<ServiceAccount>()
            .get("default")
            .await
            .map_err(|error| error.to_string())?;
        cluster
            .api::<ConfigMap>()
            .get("kube-root-ca.crt")
            .await
            .map(|_| ())
            .map_err(|error| error.to_string())
    })
    .await;
    let start = std::time::Instant::now();
    cluster
        .create(&cluster.api::<Deployment>(), deployment(3, "a"))
        .await;
    eventually("three pods are bound", || async {
        let pods = pods(&cluster).await;
        let bound = pods
            .iter()
            .filter(|pod| {
                pod.spec
                    .as_ref()
                    .is_some_and(|spec| spec.node_name.as_deref() == Some("n1"))
            })
            .count();
        (bound == 3)
            .then_some(())
            .ok_or_else(|| format!("{bound} of {} pods", pods.len()))
    })
    .await;
    println!("deployment to three bound pods: {:?}", start.elapsed());
    complete(&cluster, 3, "a").await;

    let patch =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "b"}]}}}});
    cluster
        .api::<Deployment>()
        .patch("web", &PatchParams::default(), &Patch::Strategic(patch))
        .await
        .expect("a new image");
    complete(&cluster, 3, "b").await;
    let sets = cluster
        .api::<ReplicaSet>()
        .list(&ListParams::default())
        .await
        .expect("sets")
        .items;
    assert_eq!(sets.len(), 2, "the old one stays for a rollback");
    let web = cluster.api::<Deployment>().get("web").await.expect("it");
    assert_eq!(
        web.metadata.annotations.expect("annotations")["deployment.kubernetes.io/revision"],
        "2"
    );

    cluster
        .api::<Deployment>()
        .patch(
            "web",
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": {"replicas": 5}})),
        )
        .await
        .expect("more");
    complete(&cluster, 5, "b").await;
    cluster
        .api::<Deployment>()
        .patch(
            "web",
            &PatchParams::default(),
            &Patch::Merge(json!({"spec": {"replicas": 1}})),
        )
        .await
        .expect("fewer");
    complete(&cluster, 1, "b").await;

    let events = eventually("the events tell the story", || async {
        let events = cluster
            .api::<Event>()
            .list(&ListParams::default())
            .await
            .expect("events")
            .items;
        let text: Vec<_> = events
            .iter()
            .map(|event| {
                format!(
                    "{} {}",
                    event.reason.as_deref().unwrap_or_default(),
                    event.message.as_deref().unwrap_or_default()
                )
            })
            .collect();
        let has = |start: &str, end: &str| {
            text.iter()
                .any(|line| line.starts_with(start) && line.ends_with(end))
        };
        let all = has("ScalingReplicaSet Scaled up", "from 0 to 3")
            && has("SuccessfulCreate Created pod: web-", "")
            && has("Scheduled Successfully assigned default/web-", "to n1")
            && has("SuccessfulDelete", "")
            && has("ScalingReplicaSet Scaled down", "from 5 to 1");
        if all { Ok(text) } else { Err(text.join("\n")) }
    })
    .await;
    assert!(events.len() > 8);

    cluster
        .api::<Deployment>()
        .delete("web", &DeleteParams::background())
        .await
        .expect("deleted");
    eventually("everything goes", || async {
        cluster.kubelet_round().await;
        let sets = cluster
            .api::<ReplicaSet>()
            .list(&ListParams::default())
            .await
            .expect("sets")
            .items
            .len();
        let pods = pods(&cluster).await.len();
        (sets + pods == 0)
            .then_some(())
            .ok_or_else(|| format!("{sets} sets, {pods} pods"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why_and_is_bound_once_it_fits() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let pod = json!({"metadata": {"name": "big"}, "spec": {"containers": [{"name": "c", "image": "a", "resources": {"requests": {"cpu": "6"}}}]}});
    cluster.create(&cluster.api::<Pod>(), pod).await;
    eventually("it says why", || async {
        let status = cluster
            .api::<Pod>()
            .get("big")
            .await
            .expect("the pod")
            .status
            .unwrap_or_default();
        let condition = status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "PodScheduled")
            .cloned();
        let condition = condition.ok_or("no condition")?;
        let right = condition.reason.as_deref() == Some("Unschedulable")
            && condition.message.as_deref().is_some_and(|text| {
                text.starts_with(
                    "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes",
                )
            });
        right.then_some(()).ok_or_else(|| format!("{condition:?}"))
    })
    .await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let larger = json!({"status": {"capacity": {"cpu": "8"}, "allocatable": {"cpu": "8"}}});
    nodes
        .patch_status("n1", &PatchParams::default(), &Patch::Merge(larger))
        .await
        .expect("a larger node");
    eventually("it is bound", || async {
        let node = cluster
            .api::<Pod>()
            .get("big")
            .await
            .expect("the pod")
            .spec
            .and_then(|spec| spec.node_name);
        (node.as_deref() == Some("n1"))
            .then_some(())
            .ok_or_else(|| format!("{node:?}"))
    })
    .await;
}

/// Where a pod keeps away from those of some namespaces, the scheduler has to know them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_pod_is_placed_before_all_is_listed() {
    let cluster = Cluster::start_api().await;
    cluster.node("n1").await;
    // Nor does anybody take the taint of a new node away.
    let untainted = Patch::Merge(json!({"spec": {"taints": null}}));
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    (nodes.patch("n1", &PatchParams::default(), &untainted).await).expect("no taint");
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let shy = json!({"metadata": {"name": "shy", "labels": {"team": "x"}}});
    cluster.create(&namespaces, shy).await;
    // Without the controllers nobody makes the account.
    for namespace in ["shy", "default"] {
        let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), namespace);
        let account = json!({"metadata": {"name": "default"}});
        cluster.create(&accounts, account).await;
    }
    let there: Api<Pod> = Api::namespaced(cluster.client.clone(), "shy");
    let containers = json!([{"name": "c", "image": "a"}]);
    let pod = json!({"metadata": {"name": "there", "labels": {"app": "a"}}, "spec": {"nodeName": "n1", "containers": containers}});
    cluster.create(&there, pod).await;
    let term = json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "a"}},
        "namespaceSelector": {"matchLabels": {"team": "x"}}});
    let pod = json!({"metadata": {"name": "away"}, "spec": {"containers": containers,
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}});
    cluster.create(&cluster.api::<Pod>(), pod).await;
    let gate = Gate::new(|request| match request.uri.path() {
        "/api/v1/namespaces" => Verdict::Wait,
        _ => Verdict::Pass,
    });
    cluster.start_scheduler(Some(gate.clone()));
    let start = tokio::time::Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        let away = cluster.api::<Pod>().get("away").await.expect("the pod");
        assert_eq!(away.spec.and_then(|spec| spec.node_name), None);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gate.open();
    eventually("it says why", || async {
        let away = cluster.api::<Pod>().get("away").await.expect("the pod");
        let status = away.status.unwrap_or_default();
        let why = (status.conditions.iter().flatten())
            .find(|one| one.type_ == "PodScheduled")
            .and_then(|one| one.message.clone())
            .ok_or("no condition")?;
        why.contains("didn't match pod anti-affinity rules")
            .then_some(())
            .ok_or(why)
    })
    .await;
}
