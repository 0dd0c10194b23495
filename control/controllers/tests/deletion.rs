//! What goes with what: owners and dependents, namespaces and their content; and endpoints that follow pods.

mod harness;

use std::time::Duration;

use harness::{Cluster, Gate, Verdict, eventually};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use knarr_controllers::Config;
use kube::Api;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
    PostParams, PropagationPolicy,
};
use serde_json::{Value, json};

async fn owner_with_dependents(cluster: &Cluster) -> ConfigMap {
    let maps = cluster.api::<ConfigMap>();
    let owner = cluster
        .create(&maps, json!({"metadata": {"name": "owner"}}))
        .await;
    let owned = |name: &str, owner: &ConfigMap| {
        json!({"metadata": {"name": name, "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": owner.metadata.name,
            "uid": owner.metadata.uid, "blockOwnerDeletion": true}]}})
    };
    let middle = cluster.create(&maps, owned("middle", &owner)).await;
    cluster
        .create(&cluster.api::<Secret>(), owned("leaf", &middle))
        .await;
    owner
}

async fn names(cluster: &Cluster) -> Vec<String> {
    let maps = cluster
        .api::<ConfigMap>()
        .list(&ListParams::default())
        .await
        .expect("maps")
        .items
        .into_iter()
        .map(|map| map.metadata);
    let secrets = cluster
        .api::<Secret>()
        .list(&ListParams::default())
        .await
        .expect("secrets")
        .items
        .into_iter()
        .map(|secret| secret.metadata);
    maps.chain(secrets)
        .filter_map(|meta| meta.name)
        .filter(|name| name != "kube-root-ca.crt")
        .collect()
}

async fn become_of(cluster: &Cluster, policy: PropagationPolicy, expected: &[&str]) {
    owner_with_dependents(cluster).await;
    let params = DeleteParams {
        propagation_policy: Some(policy.clone()),
        ..DeleteParams::default()
    };
    cluster
        .api::<ConfigMap>()
        .delete("owner", &params)
        .await
        .expect("deleted");
    eventually(&format!("{policy:?}"), || async {
        let names = names(cluster).await;
        (names == expected)
            .then_some(())
            .ok_or_else(|| format!("{names:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dependents_go_or_stay_as_the_deletion_says() {
    let cluster = Cluster::start().await;
    become_of(&cluster, PropagationPolicy::Background, &[]).await;
    become_of(&cluster, PropagationPolicy::Foreground, &[]).await;
    become_of(&cluster, PropagationPolicy::Orphan, &["middle", "leaf"]).await;
    let middle = cluster
        .api::<ConfigMap>()
        .get("middle")
        .await
        .expect("it stays");
    assert_eq!(middle.metadata.owner_references, None);
}

/// A kind that comes while the collector works owns, is owned, and goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_resources_are_collected_and_own() {
    let cluster = Cluster::start().await;
    // It has listed everything, and looks for other kinds only when told.
    become_of(&cluster, PropagationPolicy::Background, &[]).await;
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let schema = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    let version = json!({"name": "v1", "served": true, "storage": true, "schema": schema});
    let definition = json!({"metadata": {"name": "crontabs.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "crontabs", "kind": "CronTab"}, "versions": [version]}});
    cluster.create(&definitions, definition).await;
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("example.com", "v1", "CronTab"));
    let crontabs: Api<DynamicObject> = Api::default_namespaced_with(cluster.client.clone(), &kind);
    let crontab = |name: &str, owners: Value| {
        json!({"apiVersion": "example.com/v1", "kind": "CronTab",
        "metadata": {"name": name, "ownerReferences": owners}})
    };
    let create = async |object: Value| {
        let object: DynamicObject = serde_json::from_value(object).expect("an object");
        crontabs.create(&PostParams::default(), &object).await
    };
    eventually("they are served", async || {
        create(crontab("owner", json!([])))
            .await
            .map_err(|error| error.to_string())
    })
    .await;
    let owner = crontabs.get("owner").await.expect("the owner");
    let uid = owner.metadata.uid.expect("its UID");
    let of = json!([{"apiVersion": "example.com/v1", "kind": "CronTab", "name": "owner", "uid": uid, "blockOwnerDeletion": true}]);
    let map = json!({"metadata": {"name": "leaf", "ownerReferences": of}});
    cluster.create(&cluster.api::<ConfigMap>(), map).await;
    create(crontab("middle", of)).await.expect("owned");
    let foreground = DeleteParams::foreground();
    crontabs
        .delete("owner", &foreground)
        .await
        .expect("accepted");
    eventually("all go", async || {
        let left = crontabs
            .list(&ListParams::default())
            .await
            .expect("a list")
            .items
            .len();
        let maps = names(&cluster).await;
        (left == 0 && maps.is_empty())
            .then_some(())
            .ok_or_else(|| format!("{left} {maps:?}"))
    })
    .await;
    // What is owned by an object of a kind that goes, goes with it.
    let owner = create(crontab("owner", json!([])))
        .await
        .expect("created again");
    let of = json!([{"apiVersion": "example.com/v1", "kind": "CronTab", "name": "owner", "uid": owner.metadata.uid}]);
    let map = json!({"metadata": {"name": "leaf", "ownerReferences": of}});
    cluster.create(&cluster.api::<ConfigMap>(), map).await;
    let deleted = definitions
        .delete("crontabs.example.com", &DeleteParams::default())
        .await;
    deleted.expect("accepted");
    eventually("the leaf goes", async || {
        let maps = names(&cluster).await;
        maps.is_empty()
            .then_some(())
            .ok_or_else(|| format!("{maps:?}"))
    })
    .await;
    eventually("its watch ends", async || {
        let checks = cluster.health.checks();
        let watched = checks.iter().any(|(name, _)| name.contains("crontabs"));
        (!watched)
            .then_some(())
            .ok_or("it is still there".to_owned())
    })
    .await;
}

fn orphan() -> DeleteParams {
    DeleteParams {
        propagation_policy: Some(PropagationPolicy::Orphan),
        ..DeleteParams::default()
    }
}

/// A secret that belongs to a configuration map.
async fn secret_of(cluster: &Cluster, owner: &ConfigMap) -> Secret {
    let reference = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": owner.metadata.name, "uid": owner.metadata.uid}]);
    let secret = json!({"metadata": {"name": "leaf", "ownerReferences": reference}});
    cluster.create(&cluster.api::<Secret>(), secret).await
}

/// Fails if a secret is gone or still has an owner, now or within half a second.
async fn stays_without_owner(cluster: &Cluster) {
    let secrets = cluster.api::<Secret>();
    let start = tokio::time::Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        let leaf = secrets.get_opt("leaf").await.expect("an answer");
        let leaf = leaf.expect("it was let go, and stays");
        assert_eq!(leaf.metadata.owner_references, None);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The process ends while a deletion that orphans is under way, and its next life lists the dependents late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_collected_before_every_kind_was_listed() {
    let cluster = Cluster::start_api().await;
    let maps = cluster.api::<ConfigMap>();
    let owner = cluster
        .create(&maps, json!({"metadata": {"name": "owner"}}))
        .await;
    secret_of(&cluster, &owner).await;
    maps.delete("owner", &orphan()).await.expect("accepted");
    let gate = Gate::new(|request| match request.uri.path() {
        "/api/v1/secrets" => Verdict::Wait,
        _ => Verdict::Pass,
    });
    cluster.start_controllers(Config::default(), Some(gate.clone()));
    eventually("the controllers work", || async {
        let checks = cluster.health.checks();
        let runs = |name: &str| checks.contains(&(name.to_owned(), Ok(())));
        let both = runs("garbage-collector-controller") && runs("garbage-collector-configmaps");
        both.then_some(()).ok_or_else(|| format!("{checks:?}"))
    })
    .await;
    let start = tokio::time::Instant::now();
    while start.elapsed() < Duration::from_millis(500) {
        let owner = maps.get_opt("owner").await.expect("an answer");
        let finalizers = owner.and_then(|owner| owner.metadata.finalizers);
        assert_eq!(finalizers.unwrap_or_default(), ["orphan"]);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    gate.open();
    eventually("the owner goes", || async {
        let owner = maps.get_opt("owner").await.expect("an answer");
        owner.map_or(Ok(()), |owner| Err(format!("{owner:?}")))
    })
    .await;
    stays_without_owner(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_orphaned_lives_though_its_watch_is_behind() {
    let cluster = Cluster::start_api().await;
    let gate = Gate::new(|request| {
        let watches = request
            .uri
            .query()
            .is_some_and(|query| query.contains("watch=true"));
        if watches && request.uri.path() == "/api/v1/secrets" {
            Verdict::Wait
        } else {
            Verdict::Pass
        }
    });
    cluster.start_controllers(Config::default(), Some(gate.clone()));
    let maps = cluster.api::<ConfigMap>();
    eventually("the collector works", || async {
        let lost = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "nobody", "uid": "00000000-0000-0000-0000-000000000000"}]);
        let map = json!({"metadata": {"name": "lost", "ownerReferences": lost}});
        if maps.get_opt("lost").await.expect("an answer").is_some() {
            return Err("an object without owner is there".to_owned());
        }
        let created = cluster.create(&maps, map).await;
        for _ in 0..100 {
            if maps.get_opt("lost").await.expect("an answer").is_none() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Err(format!("{created:?}"))
    })
    .await;
    let owner = cluster
        .create(&maps, json!({"metadata": {"name": "owner"}}))
        .await;
    secret_of(&cluster, &owner).await;
    maps.delete("owner", &orphan()).await.expect("accepted");
    eventually("the owner goes", || async {
        let owner = maps.get_opt("owner").await.expect("an answer");
        owner.map_or(Ok(()), |owner| Err(format!("{owner:?}")))
    })
    .await;
    gate.open();
    stays_without_owner(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_whose_owner_never_was_goes() {
    let cluster = Cluster::start().await;
    let owners = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "nobody", "uid": "00000000-0000-0000-0000-000000000000"}]);
    cluster
        .create(
            &cluster.api::<Secret>(),
            json!({"metadata": {"name": "lost", "ownerReferences": owners}}),
        )
        .await;
    eventually("it goes", || async {
        let names = names(&cluster).await;
        names
            .is_empty()
            .then_some(())
            .ok_or_else(|| format!("{names:?}"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_goes_with_all_that_is_in_it() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    cluster
        .create(&namespaces, json!({"metadata": {"name": "short"}}))
        .await;
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), "short");
    let template = json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    cluster
        .create(&deployments, json!({"metadata": {"name": "x"}, "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "x"}}, "template": template}}))
        .await;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "short");
    eventually("pods come", || async {
        cluster.kubelet_round().await;
        let count = pods
            .list(&ListParams::default())
            .await
            .expect("pods")
            .items
            .len();
        (count == 3)
            .then_some(())
            .ok_or_else(|| format!("{count} pods"))
    })
    .await;
    namespaces
        .delete("short", &DeleteParams::default())
        .await
        .expect("deleted");
    eventually("it goes", || async {
        cluster.kubelet_round().await;
        match namespaces.get_opt("short").await.expect("an answer") {
            None => Ok(()),
            Some(namespace) => Err(format!("{:?}", namespace.status)),
        }
    })
    .await;
    let sets: Api<ReplicaSet> = Api::all(cluster.client.clone());
    assert_eq!(
        sets.list(&ListParams::default())
            .await
            .expect("sets")
            .items
            .len(),
        0
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_waits_for_other_peoples_finalizers() {
    let cluster = Cluster::start().await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
    cluster.create(&namespaces, held).await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "held");
    let map = json!({"metadata": {"name": "m", "finalizers": ["example.com/keep"]}});
    cluster.create(&maps, map).await;
    namespaces
        .delete("held", &DeleteParams::default())
        .await
        .expect("accepted");
    let condition = |namespace: &Namespace, kind: &str| {
        let status = namespace.status.clone().unwrap_or_default();
        let mut all = status.conditions.unwrap_or_default().into_iter();
        all.find(|one| one.type_ == kind)
            .map(|one| (one.status, one.reason.unwrap_or_default()))
    };
    let is = |namespace: &Namespace, kind: &str, status: &str, reason: &str| {
        condition(namespace, kind) == Some((status.to_owned(), reason.to_owned()))
    };
    eventually("it says what it waits for", || async {
        let held = namespaces
            .get("held")
            .await
            .map_err(|error| error.to_string())?;
        let right = is(
            &held,
            "NamespaceContentRemaining",
            "True",
            "SomeResourcesRemain",
        ) && is(
            &held,
            "NamespaceFinalizersRemaining",
            "True",
            "SomeFinalizersRemain",
        );
        right
            .then_some(())
            .ok_or_else(|| format!("{:?}", held.status))
    })
    .await;
    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    maps.patch("m", &PatchParams::default(), &release)
        .await
        .expect("the map is released");
    eventually("its content is gone", || async {
        let held = namespaces
            .get("held")
            .await
            .map_err(|error| error.to_string())?;
        let spec = held.spec.clone().unwrap_or_default();
        let right = spec.finalizers.unwrap_or_default().is_empty()
            && held.metadata.finalizers.as_deref() == Some(&["example.com/hold".to_owned()])
            && is(
                &held,
                "NamespaceContentRemaining",
                "False",
                "ContentRemoved",
            )
            && is(
                &held,
                "NamespaceFinalizersRemaining",
                "False",
                "ContentHasNoFinalizers",
            );
        right.then_some(()).ok_or_else(|| format!("{held:?}"))
    })
    .await;
    namespaces
        .patch("held", &PatchParams::default(), &release)
        .await
        .expect("the namespace is released");
    eventually("it goes", || async {
        let held = namespaces.get_opt("held").await.expect("an answer");
        held.map_or(Ok(()), |held| Err(format!("{held:?}")))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slices_and_endpoints_follow_the_pods_of_a_service() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let ports = json!([{"name": "http", "port": 80, "targetPort": "web"}]);
    cluster.create(&cluster.api::<Service>(), json!({"metadata": {"name": "svc"}, "spec": {"selector": {"app": "web"}, "ports": ports}})).await;
    let pod = json!({"metadata": {"name": "p", "labels": {"app": "web"}}, "spec": {"containers": [
        {"name": "c", "image": "i", "ports": [{"name": "web", "containerPort": 8080}]}]}});
    cluster.create(&cluster.api::<Pod>(), pod).await;
    let state = || async {
        let own = ListParams::default().labels("kubernetes.io/service-name=svc");
        let slices = cluster
            .api::<EndpointSlice>()
            .list(&own)
            .await
            .expect("slices")
            .items;
        let endpoints = cluster
            .api::<Endpoints>()
            .get_opt("svc")
            .await
            .expect("an answer");
        let slice = slices.first().cloned().unwrap_or_default();
        let ready: Vec<_> = slice
            .endpoints
            .iter()
            .flatten()
            .map(|one| {
                (
                    one.addresses.join(","),
                    one.conditions.as_ref().and_then(|c| c.ready),
                )
            })
            .collect();
        let port = slice
            .ports
            .iter()
            .flatten()
            .next()
            .and_then(|port| port.port);
        let old: Vec<_> = endpoints
            .into_iter()
            .flat_map(|one| one.subsets.unwrap_or_default())
            .flat_map(|one| one.addresses.unwrap_or_default())
            .map(|one| one.ip)
            .collect();
        (slices.len(), ready, port, old)
    };
    eventually("the pod runs", || async {
        cluster.kubelet_round().await;
        let status = cluster
            .api::<Pod>()
            .get("p")
            .await
            .expect("the pod")
            .status
            .unwrap_or_default();
        status.pod_ip.ok_or_else(|| format!("{:?}", status.phase))
    })
    .await;
    let ip = cluster
        .api::<Pod>()
        .get("p")
        .await
        .expect("the pod")
        .status
        .and_then(|status| status.pod_ip)
        .unwrap_or_default();
    let expected = (
        1,
        vec![(ip.clone(), Some(true))],
        Some(8080),
        vec![ip.clone()],
    );
    eventually("the pod is an endpoint", || async {
        let state = state().await;
        if state == expected {
            Ok(())
        } else {
            Err(format!("{state:?}"))
        }
    })
    .await;
    let params = DeleteParams {
        grace_period_seconds: Some(30),
        ..DeleteParams::default()
    };
    cluster
        .api::<Pod>()
        .delete("p", &params)
        .await
        .expect("deleted");
    let leaving = eventually("it is leaving", || async {
        let (slices, ready, port, old) = state().await;
        if ready == [(ip.clone(), Some(false))] && old.is_empty() {
            Ok((slices, port))
        } else {
            Err(format!("{ready:?} {old:?}"))
        }
    })
    .await;
    assert_eq!(leaving, (1, Some(8080)));
    eventually("no endpoint is left", || async {
        cluster.kubelet_round().await;
        let (slices, ready, _, _) = state().await;
        if slices == 1 && ready.is_empty() {
            Ok(())
        } else {
            Err(format!("{slices} {ready:?}"))
        }
    })
    .await;
    cluster
        .api::<Service>()
        .delete("svc", &DeleteParams::default())
        .await
        .expect("deleted");
    eventually("they go with the service", || async {
        let own = ListParams::default().labels("kubernetes.io/service-name=svc");
        let slices = cluster
            .api::<EndpointSlice>()
            .list(&own)
            .await
            .expect("slices")
            .items
            .len();
        let endpoints = cluster
            .api::<Endpoints>()
            .get_opt("svc")
            .await
            .expect("an answer")
            .is_some();
        if slices == 0 && !endpoints {
            Ok(())
        } else {
            Err(format!("{slices} slices, {endpoints}"))
        }
    })
    .await;
}
