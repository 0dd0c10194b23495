//! The kinds of this folder, one table each.

use serde_json::{Value, json};

use super::{LimitRange, PodDisruptionBudget, PriorityClass, ResourceQuota};
use crate::resource::Subresource;
use crate::strategy::Strategy as _;
use crate::strategy::testing::{created, each_is_refused, lines, updated, with};

const STATUS: Option<Subresource> = Some(Subresource::Status);

#[test]
#[rustfmt::skip] // A table.
fn a_disruption_budget_is_checked() {
    let selector = json!({ "matchLabels": { "a": "b" } });
    let object = json!({ "metadata": { "name": "p" }, "spec": { "minAvailable": "50%", "selector": selector } });
    let good = created(&PodDisruptionBudget, "policy/v1", "PodDisruptionBudget", object);
    assert_eq!(good["metadata"]["generation"], 1);
    each_is_refused(&[
        ("/spec/maxUnavailable", json!(1), r#"spec: Invalid value: {"maxUnavailable":1,"minAvailable":"50%","selector":{"matchLabels":{"a":"b"}}}: minAvailable and maxUnavailable cannot be both set"#),
        ("/spec/minAvailable", json!(-1), "spec.minAvailable: Invalid value: -1: must be greater than or equal to 0"),
        ("/spec/minAvailable", json!("101%"), "spec.minAvailable: Invalid value: \"101%\": must not be greater than 100%"),
        ("/spec/minAvailable", json!("x"), "spec.minAvailable: Invalid value: \"x\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')"),
        ("/spec/selector", json!({ "matchExpressions": [{ "key": "a", "operator": "x" }] }), "spec.selector.matchExpressions[0].operator: Invalid value: \"x\": not a valid selector operator"),
        ("/spec/unhealthyPodEvictionPolicy", json!("x"), "spec.unhealthyPodEvictionPolicy: Unsupported value: \"x\": supported values: \"AlwaysAllow\", \"IfHealthyBudget\""),
    ], &good, |object| PodDisruptionBudget.validate(object));
    let condition = json!({ "type": "DisruptionAllowed", "status": "True", "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z" });
    let old = with(&good, &[("/status/conditions", json!([condition]))]);
    each_is_refused(&[
        ("/status/disruptionsAllowed", json!(-1), "status.disruptionsAllowed: Invalid value: -1: must be greater than or equal to 0"),
        ("/status/conditions/0/status", json!("x"), "status.conditions[0].status: Unsupported value: \"x\": supported values: \"False\", \"True\", \"Unknown\""),
        ("/status/conditions/0/reason", json!(""), "status.conditions[0].reason: Required value: must be set"),
        ("/status/conditions/0/lastTransitionTime", Value::Null, "status.conditions[0].lastTransitionTime: Required value: must be set"),
        ("/status/conditions", json!([condition, condition]), "status.conditions[1].type: Duplicate value: \"DisruptionAllowed\""),
    ], &old, |object| PodDisruptionBudget.validate_update(STATUS, object, &old));
    let cells = PodDisruptionBudget.cells(&good, jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(cells[1..4], [json!("50%"), json!("N/A"), json!(0)]);
    assert_eq!(updated(&PodDisruptionBudget, STATUS, good.clone(), &good), good);
}

fn limit_range(limits: Value) -> Value {
    let object = json!({ "metadata": { "name": "l" }, "spec": { "limits": limits } });
    created(&LimitRange, "v1", "LimitRange", object)
}

#[test]
fn a_limit_of_containers_gets_defaults_from_its_bounds() {
    let object = limit_range(json!([
        { "type": "Container", "max": { "cpu": "2" }, "min": { "cpu": "1", "memory": "1Gi" } },
        { "type": "Pod", "max": { "cpu": "2" } },
    ]));
    let limits = &object["spec"]["limits"];
    assert_eq!(limits[0]["default"], json!({ "cpu": "2" }));
    assert_eq!(
        limits[0]["defaultRequest"],
        json!({ "cpu": "2", "memory": "1Gi" })
    );
    assert_eq!(limits[1], json!({ "type": "Pod", "max": { "cpu": "2" } }));
}

#[test]
#[rustfmt::skip] // A table.
fn a_limit_range_is_checked() {
    let amounts = |amount: &str| json!({ "cpu": amount });
    let good = limit_range(json!([
        { "type": "Container", "min": amounts("1"), "max": amounts("4"), "default": amounts("3"), "defaultRequest": amounts("2"), "maxLimitRequestRatio": amounts("2") },
        { "type": "Pod", "max": amounts("4") },
        { "type": "PersistentVolumeClaim", "max": { "storage": "1Gi" } },
    ]));
    let at = "spec.limits[0]";
    each_is_refused(&[
        ("/spec/limits/0/type", json!("x"), "spec.limits[0].type: Invalid value: \"x\": must be a standard limit type or fully qualified"),
        ("/spec/limits/1/type", json!("Container"), "spec.limits[1].type: Duplicate value: \"Container\""),
        ("/spec/limits/1/default", amounts("1"), "spec.limits[1].default: Forbidden: may not be specified when `type` is 'Pod'"),
        ("/spec/limits/1/defaultRequest", amounts("1"), "spec.limits[1].defaultRequest: Forbidden: may not be specified when `type` is 'Pod'"),
        ("/spec/limits/2/max", json!({}), "spec.limits[2].limits: Required value: either minimum or maximum storage value is required, but neither was provided"),
        ("/spec/limits/0/max/x", json!("1"), &format!("{at}.max[x]: Invalid value: \"x\": must be a standard resource type or fully qualified")),
        ("/spec/limits/0/max/pods", json!("1"), &format!("{at}.max[pods]: Invalid value: \"pods\": must be a standard resource for containers")),
        ("/spec/limits/0/min", amounts("5"), &format!("{at}.min[cpu]: Invalid value: \"5\": min value 5 is greater than max value 4")),
        ("/spec/limits/0/min", amounts("3"), &format!("{at}.defaultRequest[cpu]: Invalid value: \"2\": min value 3 is greater than default request value 2")),
        ("/spec/limits/0/defaultRequest", amounts("5"), &format!("{at}.defaultRequest[cpu]: Invalid value: \"5\": default request value 5 is greater than max value 4")),
        ("/spec/limits/0/defaultRequest", amounts("3500m"), &format!("{at}.defaultRequest[cpu]: Invalid value: \"3500m\": default request value 3500m is greater than default limit value 3")),
        ("/spec/limits/0/default", amounts("500m"), &format!("{at}.default[cpu]: Invalid value: \"1\": min value 1 is greater than default value 500m")),
        ("/spec/limits/0/default", amounts("5"), &format!("{at}.default[cpu]: Invalid value: \"4\": default value 5 is greater than max value 4")),
        ("/spec/limits/0/maxLimitRequestRatio", amounts("500m"), &format!("{at}.maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1")),
        ("/spec/limits/0/maxLimitRequestRatio", amounts("5"), &format!("{at}.maxLimitRequestRatio[cpu]: Invalid value: \"5\": ratio 5 is greater than max/min = 4.000000")),
    ], &good, |object| LimitRange.validate(object));
    let gpu = limit_range(json!([{ "type": "Container", "default": { "a.io/gpu": "2" }, "defaultRequest": { "a.io/gpu": "1" } }]));
    assert_eq!(lines(&LimitRange.validate(&gpu)), ["spec.limits[0].defaultRequest[a.io/gpu]: Invalid value: \"1\": default value 2 must equal to defaultRequest value 1 in a.io/gpu"]);
}

#[test]
#[rustfmt::skip] // A table.
fn a_quota_is_checked() {
    let hard = json!({ "pods": "5", "cpu": "2", "requests.nvidia.com/gpu": "4", "count/jobs.batch": "3", "limits.memory": "1Gi", "gold.storageclass.storage.k8s.io/requests.storage": "1Gi" });
    let object = json!({ "metadata": { "name": "q" }, "spec": { "hard": hard } });
    let good = created(&ResourceQuota, "v1", "ResourceQuota", object);
    let scoped = |expression: Value| json!({ "matchExpressions": [expression] });
    let at = "spec.scopeSelector.matchExpressions";
    each_is_refused(&[
        ("/spec/hard/x", json!("1"), "spec.hard[x]: Invalid value: \"x\": must be a standard resource type or fully qualified"),
        ("/spec/hard/storage", json!("1"), "spec.hard[storage]: Invalid value: \"storage\": must be a standard resource for quota"),
        ("/spec/hard/pods", json!("1500m"), "spec.hard[pods]: Invalid value: \"1500m\": must be an integer"),
        ("/spec/hard/cpu", json!("-1"), "spec.hard[cpu]: Invalid value: \"-1\": must be greater than or equal to 0"),
        ("/spec/scopes", json!(["x"]), "spec.scopes: Invalid value: [\"x\"]: unsupported scope"),
        ("/spec/scopes", json!(["BestEffort"]), "spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource"),
        ("/spec/scopes", json!(["Terminating", "NotTerminating"]), "spec.scopes: Invalid value: [\"Terminating\",\"NotTerminating\"]: conflicting scopes"),
        ("/spec/scopeSelector", scoped(json!({ "scopeName": "x", "operator": "Exists" })), &format!("{at}.scopeName: Invalid value: \"x\": unsupported scope")),
        ("/spec/scopeSelector", scoped(json!({ "scopeName": "PriorityClass", "operator": "In" })), &format!("{at}.values: Required value: must be at least one value when `operator` is 'In' or 'NotIn' for scope selector")),
        ("/spec/scopeSelector", scoped(json!({ "scopeName": "PriorityClass", "operator": "Exists", "values": ["a"] })), &format!("{at}.values: Invalid value: [\"a\"]: must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector")),
        ("/spec/scopeSelector", scoped(json!({ "scopeName": "PriorityClass", "operator": "x" })), &format!("{at}.operator: Invalid value: \"x\": not a valid selector operator")),
        ("/spec/scopeSelector", scoped(json!({ "scopeName": "Terminating", "operator": "In", "values": ["a"] })), &format!("{at}.operator: Invalid value: \"In\": must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or ResourceQuotaScopeCrossNamespacePodAffinity")),
    ], &good, |object| ResourceQuota.validate(object));
    each_is_refused(&[
        ("/spec/scopes", json!(["Terminating"]), "spec.scopes: Invalid value: [\"Terminating\"]: field is immutable"),
    ], &good, |object| ResourceQuota.validate_update(None, object, &good));
    let used = with(&good, &[("/status", json!({ "hard": { "cpu": "2", "pods": "5", "limits.memory": "1Gi" }, "used": { "cpu": "1", "pods": "3" } }))]);
    each_is_refused(&[
        ("/status/used/x", json!("1"), "status.used[x]: Invalid value: \"x\": must be a standard resource for quota"),
    ], &used, |object| ResourceQuota.validate_update(STATUS, object, &used));
    let cells = ResourceQuota.cells(&used, jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(cells[1..3], [json!("cpu: 1/2, pods: 3/5"), json!("limits.memory: 0/1Gi")]);
}

#[test]
#[rustfmt::skip] // A table.
fn a_priority_class_is_checked() {
    let object = json!({ "metadata": { "name": "p" }, "value": 5 });
    let good = created(&PriorityClass, "scheduling.k8s.io/v1", "PriorityClass", object);
    assert_eq!((&good["preemptionPolicy"], &good["metadata"]["generation"]), (&json!("PreemptLowerPriority"), &json!(1)));
    let reserved = "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error:";
    each_is_refused(&[
        ("/value", json!(1_000_000_001), "value: Forbidden: maximum allowed value of a user defined priority is 1000000000"),
        ("/metadata/name", json!("system-x"), &format!("{reserved} system-x is not a known system priority class")),
        ("/metadata/name", json!("system-node-critical"), &format!("{reserved} value of system-node-critical PriorityClass must be 2000001000")),
        ("/preemptionPolicy", json!("x"), "preemptionPolicy: Unsupported value: \"x\": supported values: \"PreemptLowerPriority\", \"Never\""),
        ("/preemptionPolicy", json!(""), "preemptionPolicy: Required value"),
    ], &good, |object| PriorityClass.validate(object));
    let system = with(&good, &[("/metadata/name", json!("system-cluster-critical")), ("/value", json!(2_000_000_000))]);
    each_is_refused(&[
        ("/globalDefault", json!(true), &format!("{reserved} globalDefault of system-cluster-critical PriorityClass must be false")),
    ], &system, |object| PriorityClass.validate(object));
    each_is_refused(&[
        ("/value", json!(6), "value: Forbidden: may not be changed in an update."),
        ("/preemptionPolicy", json!("Never"), "preemptionPolicy: Invalid value: \"Never\": field is immutable"),
    ], &good, |object| PriorityClass.validate_update(None, object, &good));
    let cells = PriorityClass.cells(&good, jiff::Timestamp::UNIX_EPOCH);
    assert_eq!([&cells[1], &cells[2], &cells[4]], [&json!(5), &json!(false), &json!("PreemptLowerPriority")]);
}
