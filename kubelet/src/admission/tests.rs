use serde_json::{Value, json};

use super::*;

fn node() -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": "n1", "labels": {"kubernetes.io/os": "linux", "zone": "a", "size": "7"}},
        "spec": {"taints": [{"key": "soft", "effect": "NoSchedule"}]},
        "status": {"allocatable": {
            "cpu": "2", "memory": "1Gi", "ephemeral-storage": "10Gi", "pods": "3", "example.com/gpu": "1",
            "hugepages-2Mi": "0",
        }},
    }))
    .expect("a node")
}

fn pod(spec: Value) -> Pod {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("a pod")
}

fn asks(requests: Value) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": requests}}]})
}

fn affinity(terms: Value) -> Value {
    let required = json!({"nodeSelectorTerms": terms});
    json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}})
}

fn ports(ports: Value) -> Value {
    json!({"containers": [{"name": "c", "ports": ports}]})
}

fn reason(node: &Node, others: &[&Pod], spec: Value) -> Option<String> {
    check(node, others, &pod(spec)).err().map(|r| r.reason)
}

#[test]
fn messages_are_those_of_kubernetes() {
    let other = pod(asks(json!({"cpu": "1500m"})));
    for (spec, reason, message) in [
        (
            json!({"nodeSelector": {"no": "way"}}),
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ),
        (
            asks(json!({"cpu": "64"})),
            "OutOfcpu",
            "Node didn't have enough resource: cpu, requested: 64000, used: 1500, capacity: 2000",
        ),
        (
            asks(json!({"memory": "2Gi"})),
            "OutOfmemory",
            "Node didn't have enough resource: memory, requested: 2147483648, used: 0, capacity: 1073741824",
        ),
        (
            json!({"os": {"name": "windows"}}),
            "PodOSNotSupported",
            "Failed to admit pod as the OS field doesn't match node OS",
        ),
    ] {
        let rejection = check(&node(), &[&other], &pod(spec)).expect_err("a rejection");
        assert_eq!(
            (rejection.reason.as_str(), rejection.message.as_str()),
            (reason, message)
        );
    }
}

#[test]
fn resources_are_counted_as_the_scheduler_does() {
    let half = pod(asks(json!({"cpu": "1", "memory": "512Mi"})));
    let gpu = pod(asks(json!({"example.com/gpu": "1"})));
    let rows: [(&[&Pod], Value, Option<&str>); 16] = [
        (&[], asks(json!({"cpu": "2", "memory": "1Gi"})), None),
        (&[&half], asks(json!({"cpu": "1", "memory": "512Mi"})), None),
        (&[&half], asks(json!({"cpu": "1001m"})), Some("OutOfcpu")),
        (
            &[&half],
            asks(json!({"memory": "513Mi"})),
            Some("OutOfmemory"),
        ),
        (&[&half], json!({}), None),
        (&[&half, &half, &half], json!({}), Some("OutOfpods")),
        (
            &[],
            asks(json!({"ephemeral-storage": "11Gi"})),
            Some("OutOfephemeral-storage"),
        ),
        (
            &[],
            asks(json!({"example.com/gpu": "2"})),
            Some("OutOfexample.com/gpu"),
        ),
        (
            &[&gpu],
            asks(json!({"example.com/gpu": "1"})),
            Some("OutOfexample.com/gpu"),
        ),
        // Nobody here knows it: a matter of the cluster.
        (&[], asks(json!({"example.com/other": "2"})), None),
        (
            &[],
            asks(json!({"hugepages-2Mi": "2Mi"})),
            Some("OutOfhugepages-2Mi"),
        ),
        (
            &[],
            asks(json!({"hugepages-1Gi": "1Gi"})),
            Some("OutOfhugepages-1Gi"),
        ),
        // Init containers run before the others, sidecars beside them, and the sandbox has its own share.
        (
            &[],
            json!({
            "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "2"}}}],
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "2"}}}]}),
            None,
        ),
        (
            &[],
            json!({
            "initContainers": [{"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}}],
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1500m"}}}]}),
            Some("OutOfcpu"),
        ),
        (
            &[],
            json!({
            "overhead": {"cpu": "1"},
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1500m"}}}]}),
            Some("OutOfcpu"),
        ),
        (
            &[],
            json!({
            "resources": {"requests": {"cpu": "3"}},
            "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}),
            Some("OutOfcpu"),
        ),
    ];
    for (others, spec, expected) in rows {
        let got = reason(&node(), others, spec.clone());
        assert_eq!(got.as_deref(), expected, "{spec} beside {}", others.len());
    }
}

#[test]
fn selectors_and_affinity_must_match() {
    let expression = |key: &str, operator: &str, values: Value| json!([{"matchExpressions": [{"key": key, "operator": operator, "values": values}]}]);
    for (spec, fits) in [
        (json!({"nodeSelector": {"zone": "a"}}), true),
        (json!({"nodeSelector": {"zone": "b"}}), false),
        (json!({"nodeSelector": {"zone": "a", "no": "way"}}), false),
        (affinity(expression("zone", "In", json!(["b", "a"]))), true),
        (affinity(expression("zone", "In", json!(["b"]))), false),
        (affinity(expression("zone", "NotIn", json!(["b"]))), true),
        (affinity(expression("none", "NotIn", json!(["b"]))), true),
        (affinity(expression("zone", "Exists", Value::Null)), true),
        (
            affinity(expression("zone", "DoesNotExist", Value::Null)),
            false,
        ),
        (affinity(expression("size", "Gt", json!(["6"]))), true),
        (affinity(expression("size", "Lt", json!(["6"]))), false),
        (affinity(expression("zone", "Gt", json!(["6"]))), false),
        (affinity(json!([{}])), false),
        (
            affinity(json!([{}, {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}])),
            true,
        ),
        (
            affinity(
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]),
            ),
            true,
        ),
        (
            affinity(
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]),
            ),
            false,
        ),
    ] {
        let got = reason(&node(), &[], spec.clone());
        assert_eq!(got.is_none(), fits, "{spec}: {got:?}");
    }
}

#[test]
fn host_ports_and_taints_that_evict_are_respected() {
    let other = pod(ports(
        json!([{"containerPort": 80, "hostPort": 8080, "hostIP": "10.0.0.1"}]),
    ));
    for (spec, expected) in [
        (
            ports(json!([{"containerPort": 80, "hostPort": 8080}])),
            Some("NodePorts"),
        ),
        (
            ports(json!([{"containerPort": 80, "hostPort": 8080, "hostIP": "10.0.0.2"}])),
            None,
        ),
        (
            ports(json!([{"containerPort": 80, "hostPort": 8080, "protocol": "UDP"}])),
            None,
        ),
        (ports(json!([{"containerPort": 8080}])), None),
    ] {
        assert_eq!(
            reason(&node(), &[&other], spec.clone()).as_deref(),
            expected,
            "{spec}"
        );
    }
    let mut tainted = node();
    let taints = json!([{"key": "k", "value": "v", "effect": "NoExecute"}]);
    let spec = tainted.spec.as_mut().expect("a spec");
    spec.taints = serde_json::from_value(taints).expect("taints");
    for (tolerations, tolerated) in [
        (json!([]), false),
        (json!([{"operator": "Exists"}]), true),
        (json!([{"key": "k", "operator": "Exists"}]), true),
        (json!([{"key": "k", "value": "v"}]), true),
        (
            json!([{"key": "k", "operator": "Equal", "value": "w"}]),
            false,
        ),
        (
            json!([{"key": "k", "value": "v", "effect": "NoSchedule"}]),
            false,
        ),
        (
            json!([{"key": "k", "value": "v", "effect": "NoExecute", "tolerationSeconds": 5}]),
            true,
        ),
        (json!([{"key": "other", "operator": "Exists"}]), false),
    ] {
        let got = reason(&tainted, &[], json!({"tolerations": tolerations}));
        assert_eq!(got.is_none(), tolerated, "{tolerations}: {got:?}");
    }
}
