//! Limit ranges against pods and claims, with kube-apiserver's messages.

use serde_json::json;

use super::super::amounts::container;
use super::super::testing;
use super::rules::decimals;
use super::*;
use crate::resource::Scope;

fn range(limit: Value) -> Value {
    json!({ "spec": { "limits": [limit] } })
}

fn pod(requests: Value, limits: Value) -> Value {
    json!({ "spec": { "containers": [container("c", requests, limits)] } })
}

#[test]
fn containers_get_what_they_do_not_ask_for() {
    let range = range(json!({ "type": "Container",
        "default": { "cpu": "75m", "memory": "10Mi" },
        "defaultRequest": { "cpu": "50m", "memory": "5Mi" } }));
    let mut pod = json!({ "metadata": {}, "spec": {
        "containers": [{ "name": "a" }, container("b", json!({ "memory": "512Mi" }), json!({ "cpu": "1" }))],
        "initContainers": [{ "name": "i", "resources": {} }],
    } });
    fill(&mut pod, &range);
    assert_eq!(
        pod["metadata"]["annotations"][ANNOTATION],
        "LimitRanger plugin set: cpu, memory request for container a; cpu, memory limit for container a; \
         cpu request for container b; memory limit for container b; cpu, memory request for init container i; \
         cpu, memory limit for init container i"
    );
    assert_eq!(
        pod["spec"]["containers"][1]["resources"],
        json!({ "requests": { "memory": "512Mi", "cpu": "50m" }, "limits": { "cpu": "1", "memory": "10Mi" } })
    );
    let before = pod.clone();
    fill(&mut pod, &range);
    assert_eq!(pod, before, "a pod that asks for everything stays as it is");
}

#[test]
fn limits_are_enforced_in_kubernetes_words() {
    let cpu = |amount: &str| json!({ "cpu": amount });
    let storage =
        |amount: &str| json!({ "spec": { "resources": { "requests": { "storage": amount } } } });
    let none = || json!({});
    #[rustfmt::skip] // The columns are compared.
    let table = [
        ("pods", json!({ "type": "Container", "min": cpu("50m") }), pod(cpu("100m"), none()), ""),
        ("pods", json!({ "type": "Container", "min": cpu("50m") }), pod(none(), none()),
            "minimum cpu usage per Container is 50m.  No request is specified"),
        ("pods", json!({ "type": "Container", "min": cpu("50m") }), pod(cpu("40m"), none()),
            "minimum cpu usage per Container is 50m, but request is 40m"),
        ("pods", json!({ "type": "Container", "min": cpu("50m") }), pod(cpu("50m"), cpu("40m")),
            "minimum cpu usage per Container is 50m, but limit is 40m"),
        ("pods", json!({ "type": "Container", "max": cpu("2") }), pod(none(), none()),
            "maximum cpu usage per Container is 2.  No limit is specified"),
        ("pods", json!({ "type": "Container", "max": cpu("2") }), pod(none(), cpu("2500m")),
            "maximum cpu usage per Container is 2, but limit is 2500m"),
        ("pods", json!({ "type": "Container", "max": cpu("2") }), pod(cpu("3"), cpu("2")),
            "maximum cpu usage per Container is 2, but request is 3"),
        ("pods", json!({ "type": "Container", "maxLimitRequestRatio": cpu("1500m") }), pod(cpu("500m"), cpu("750m")), ""),
        ("pods", json!({ "type": "Container", "maxLimitRequestRatio": cpu("1") }), pod(cpu("1250m"), cpu("2500m")),
            "cpu max limit to request ratio per Container is 1, but provided ratio is 2.000000"),
        ("pods", json!({ "type": "Container", "maxLimitRequestRatio": cpu("1") }), pod(none(), cpu("1")),
            "cpu max limit to request ratio per Container is 1, but no request is specified or request is 0"),
        ("pods", json!({ "type": "Container", "maxLimitRequestRatio": cpu("1") }), pod(cpu("1"), none()),
            "cpu max limit to request ratio per Container is 1, but no limit is specified or limit is 0"),
        ("pods", json!({ "type": "Pod", "max": cpu("1"), "min": cpu("3") }), pod(cpu("2"), cpu("2")),
            "[minimum cpu usage per Pod is 3, but request is 2, maximum cpu usage per Pod is 1, but limit is 2]"),
        ("persistentvolumeclaims", json!({ "type": "PersistentVolumeClaim", "min": { "storage": "2Gi" } }), storage("1Gi"),
            "minimum storage usage per PersistentVolumeClaim is 2Gi, but request is 1Gi"),
        ("persistentvolumeclaims", json!({ "type": "PersistentVolumeClaim", "max": { "storage": "1Gi" } }), storage("2Gi"),
            "maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi"),
        ("persistentvolumeclaims", json!({ "type": "Pod", "max": { "storage": "1Gi" } }), storage("2Gi"), ""),
    ];
    for (plural, limit, object, expected) in table {
        let wrong = violations(&range(limit.clone()), plural, &object, None);
        let message = if wrong.is_empty() {
            String::new()
        } else {
            aggregate(wrong)
        };
        assert_eq!(message, expected, "{limit} {object}");
    }
}

#[test]
fn what_was_asked_for_before_is_not_judged_again() {
    let range = range(json!({ "type": "Container", "max": { "cpu": "1", "memory": "1Gi" } }));
    let old = pod(json!({}), json!({ "cpu": "2", "memory": "1Gi" }));
    let new = pod(json!({}), json!({ "cpu": "2", "memory": "2Gi" }));
    assert_eq!(
        violations(&range, "pods", &new, Some(&old)),
        ["maximum memory usage per Container is 1Gi, but limit is 2Gi"]
    );
}

#[test]
fn quotients_are_rounded_half_to_even() {
    for (dividend, divisor, expected) in [
        (1, 3, "0.333333"),
        (2, 3, "0.666667"),
        (5, 2, "2.500000"),
        (1, 2_000_000, "0.000000"),
        (3, 2_000_000, "0.000002"),
    ] {
        assert_eq!(decimals(dividend, divisor), expected);
    }
}

#[tokio::test]
async fn pods_are_held_to_the_ranges_of_their_namespace() {
    let directory = tempfile::tempdir().expect("a directory");
    let kind = ("v1", "LimitRange", "limitranges", Scope::Namespaced);
    let registry = testing::registry(&directory, &[kind]).await;
    let mut range =
        range(json!({ "type": "Container", "default": { "cpu": "1" }, "max": { "cpu": "2" } }));
    range["metadata"] = json!({ "name": "r" });
    testing::create(&registry, "limitranges", "shop", range).await;
    for (limits, admitted) in [
        (json!({}), Ok(())),
        (
            json!({ "cpu": "3" }),
            Err("pods \"p\" is forbidden: maximum cpu usage per Container is 2, but limit is 3"),
        ),
    ] {
        let mut pod = pod(json!({}), limits);
        pod["metadata"] = json!({ "name": "p" });
        let mut operation = testing::creation(&registry, "pods", "shop", pod);
        assert!(LimitRanger.handles(&operation));
        let filled = LimitRanger.mutate(&registry, &mut operation).await;
        filled.expect("defaults are never refused");
        let result = LimitRanger.validate(&registry, &operation).await;
        let result = result.map_err(|error| error.message);
        assert_eq!(
            result,
            admitted.map_err(str::to_owned),
            "{:?}",
            operation.new
        );
    }
}
