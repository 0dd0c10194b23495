//! Quotas against objects, with kube-apiserver's messages, and against many requests at once.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;

use super::super::amounts::{container, print};
use super::*;
use crate::registry::admission::amounts::Amounts;
use crate::registry::admission::testing;
use crate::resource::Scope;

fn quota(spec: Value, hard: Value, used: Value) -> Value {
    let mut quota = json!({ "metadata": { "name": "q" }, "spec": spec });
    quota["status"] = json!({ "hard": hard, "used": used });
    quota
}

fn pod(requests: Value, limits: Value) -> Value {
    json!({ "metadata": { "name": "p" }, "spec": { "containers": [container("c", requests, limits)] } })
}

/// The usage after a charge, or why there is none.
fn charge(quota: &Value, plural: &str, object: &Value, old: Option<&Value>) -> String {
    let charge = Charge {
        measure: &Measure::of("", plural).expect("it can be measured"),
        object,
        old,
        now: Timestamp::UNIX_EPOCH,
        may_exceed: false,
    };
    match evaluate(quota, &charge) {
        Ok(used) => used.as_ref().map_or_else(String::new, print),
        Err(detail) => detail,
    }
}

#[test]
fn quotas_admit_what_fits_and_refuse_the_rest_in_kubernetes_words() {
    let q = |hard, used| quota(json!({}), hard, used);
    let bare = || pod(json!({}), json!({}));
    let node_port =
        json!({ "spec": { "type": "NodePort", "ports": [{ "port": 80 }, { "port": 81 }] } });
    let balancer = json!({ "spec": { "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
        "ports": [{ "port": 80, "nodePort": 30_000 }, { "port": 81 }] } });
    let claim = json!({ "spec": { "storageClassName": "gold", "resources": { "requests": { "storage": "10Gi" } } } });
    #[rustfmt::skip] // The columns are compared.
    let table = [
        ("pods", q(json!({ "pods": "2" }), json!({ "pods": "1" })), bare(), "pods=2"),
        ("pods", q(json!({ "pods": "2" }), json!({ "pods": "2" })), bare(),
            "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"),
        ("pods", q(json!({ "count/pods": "1" }), json!({ "count/pods": "1" })), bare(),
            "exceeded quota: q, requested: count/pods=1, used: count/pods=1, limited: count/pods=1"),
        ("pods", q(json!({ "pods": "2" }), json!({})), bare(), "status unknown for quota: q, resources: pods"),
        ("pods", q(json!({ "services": "0" }), json!({ "services": "0" })), bare(), ""),
        ("pods", q(json!({ "requests.cpu": "1", "limits.memory": "1Gi" }), json!({ "requests.cpu": "0", "limits.memory": "0" })), bare(),
            "failed quota: q: must specify limits.memory for: c; requests.cpu for: c"),
        ("pods", q(json!({ "requests.cpu": "1" }), json!({ "requests.cpu": "600m" })), pod(json!({ "cpu": "500m" }), json!({})),
            "exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1"),
        ("pods", q(json!({ "memory": "1Gi" }), json!({ "memory": "512Mi" })), pod(json!({ "memory": "256Mi" }), json!({})), "memory=768Mi"),
        ("pods", q(json!({ "ephemeral-storage": "1Gi" }), json!({ "ephemeral-storage": "0" })), bare(), ""),
        ("pods", q(json!({ "requests.nvidia.com/gpu": "1" }), json!({ "requests.nvidia.com/gpu": "1" })),
            pod(json!({ "nvidia.com/gpu": "1" }), json!({ "nvidia.com/gpu": "1" })),
            "exceeded quota: q, requested: requests.nvidia.com/gpu=1, used: requests.nvidia.com/gpu=1, limited: requests.nvidia.com/gpu=1"),
        ("pods", q(json!({ "hugepages-2Mi": "4Mi" }), json!({ "hugepages-2Mi": "0" })),
            pod(json!({ "hugepages-2Mi": "4Mi" }), json!({ "hugepages-2Mi": "4Mi" })), "hugepages-2Mi=4Mi"),
        ("pods", quota(json!({ "scopes": ["Terminating"] }), json!({ "pods": "0" }), json!({ "pods": "0" })), bare(), ""),
        ("services", q(json!({ "services.nodeports": "2" }), json!({ "services.nodeports": "0" })), node_port.clone(), "services.nodeports=2"),
        ("services", q(json!({ "services.loadbalancers": "0" }), json!({ "services.loadbalancers": "0" })), balancer.clone(),
            "exceeded quota: q, requested: services.loadbalancers=1, used: services.loadbalancers=0, limited: services.loadbalancers=0"),
        ("services", q(json!({ "services.nodeports": "2" }), json!({ "services.nodeports": "0" })), balancer, "services.nodeports=1"),
        ("persistentvolumeclaims", q(json!({ "gold.storageclass.storage.k8s.io/requests.storage": "15Gi", "requests.storage": "1Ti" }),
            json!({ "gold.storageclass.storage.k8s.io/requests.storage": "10Gi", "requests.storage": "20Gi" })), claim.clone(),
            "exceeded quota: q, requested: gold.storageclass.storage.k8s.io/requests.storage=10Gi, \
             used: gold.storageclass.storage.k8s.io/requests.storage=10Gi, limited: gold.storageclass.storage.k8s.io/requests.storage=15Gi"),
        ("persistentvolumeclaims", q(json!({ "iron.storageclass.storage.k8s.io/persistentvolumeclaims": "0" }),
            json!({ "iron.storageclass.storage.k8s.io/persistentvolumeclaims": "0" })), claim, ""),
        ("configmaps", q(json!({ "configmaps": "5", "count/configmaps": "5" }), json!({ "configmaps": "4", "count/configmaps": "4" })), json!({}),
            "configmaps=5,count/configmaps=5"),
    ];
    for (plural, quota, object, expected) in table {
        let result = charge(&quota, plural, &object, None);
        assert_eq!(result, expected, "{quota} {object}");
    }
}

#[test]
fn a_change_is_charged_with_what_it_adds() {
    let service = |kind: &str, ports: usize| json!({ "spec": { "type": kind, "ports": vec![json!({ "port": 1 }); ports] } });
    let q = quota(
        json!({}),
        json!({ "services": "1", "services.nodeports": "3" }),
        json!({ "services": "1", "services.nodeports": "1" }),
    );
    for (old, new, expected) in [
        (
            service("NodePort", 1),
            service("NodePort", 3),
            "services=1,services.nodeports=3",
        ),
        (service("NodePort", 3), service("NodePort", 1), ""),
        (
            service("ClusterIP", 3),
            service("NodePort", 3),
            "exceeded quota: q, requested: services.nodeports=3, used: services.nodeports=1, limited: services.nodeports=3",
        ),
    ] {
        assert_eq!(charge(&q, "services", &new, Some(&old)), expected, "{new}");
    }
}

#[test]
fn the_usage_of_a_namespace_is_the_sum_of_what_counts() {
    let q = quota(
        json!({ "hard": { "pods": "9", "count/pods": "9", "limits.cpu": "9", "secrets": "9" } }),
        json!({}),
        json!({}),
    );
    let mut ended = pod(json!({}), json!({ "cpu": "1" }));
    ended["status"]["phase"] = "Succeeded".into();
    let mut overdue = pod(json!({}), json!({ "cpu": "1" }));
    overdue["metadata"]["deletionTimestamp"] = "1970-01-01T00:00:00Z".into();
    overdue["metadata"]["deletionGracePeriodSeconds"] = 30.into();
    let pods = [pod(json!({}), json!({ "cpu": "1500m" })), ended, overdue];
    let at = |seconds| {
        let now = Timestamp::from_second(seconds).expect("a time");
        let used: Amounts = evaluate::usage(&q, &Measure::Pods, &pods, now);
        print(&used)
    };
    assert_eq!(at(30), "count/pods=3,limits.cpu=2500m,pods=2");
    assert_eq!(at(31), "count/pods=3,limits.cpu=1500m,pods=1");
}

/// A registry that knows quotas, with one that allows so many pods in the namespace `shop`.
async fn registry(directory: &tempfile::TempDir, pods: usize) -> Arc<Registry> {
    let kind = ("v1", "ResourceQuota", "resourcequotas", Scope::Namespaced);
    let registry = testing::registry(directory, &[kind]).await;
    let (hard, used) = (json!({ "pods": pods.to_string() }), json!({ "pods": "0" }));
    let quota = quota(json!({}), hard, used);
    testing::create(&registry, "resourcequotas", "shop", quota).await;
    registry
}

fn creation(registry: &Registry, context: &Context) -> Operation {
    let pod = pod(json!({}), json!({}));
    Operation {
        context: context.clone(),
        ..testing::creation(registry, "pods", "shop", pod)
    }
}

fn used(registry: &Registry) -> Value {
    let quotas = registry.collection("resourcequotas").expect("quotas");
    let quota = quotas.get("shop/q").expect("the quota is there").parse();
    quota["status"]["used"]["pods"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_as_many_are_admitted_as_fit() {
    let directory = tempfile::tempdir().expect("a directory");
    let registry = registry(&directory, 5).await;
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let registry = registry.clone();
        requests.spawn(async move {
            let operation = creation(&registry, &Context::component("test"));
            assert!(ResourceQuota.handles(&operation));
            ResourceQuota.validate(&registry, &operation).await
        });
    }
    let results = requests.join_all().await;
    let refused: Vec<&ApiError> = results.iter().filter_map(|r| r.as_ref().err()).collect();
    assert_eq!(refused.len(), 15, "{refused:?}");
    for error in refused {
        assert_eq!(
            error.message,
            "pods \"p\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=5, limited: pods=5"
        );
    }
    assert_eq!(used(&registry), "5");
}

#[tokio::test]
async fn a_dry_run_is_refused_but_not_charged() {
    let directory = tempfile::tempdir().expect("a directory");
    let registry = registry(&directory, 1).await;
    let context = Context::component("test");
    let dry = Context {
        dry_run: true,
        ..context.clone()
    };
    let ask = async |context: &Context| {
        let operation = creation(&registry, context);
        ResourceQuota.validate(&registry, &operation).await.is_ok()
    };
    assert!(ask(&dry).await);
    assert_eq!(used(&registry), "0");
    assert!(ask(&context).await);
    assert_eq!(used(&registry), "1");
    assert!(!ask(&dry).await);
}
