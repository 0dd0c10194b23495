//! Autoscalers: what is refused, what is filled in, and that nothing is lost on the way from one version to the other.

use serde_json::{Value, json};

use super::{HorizontalPodAutoscaler, convert_hpa};
use crate::kinds::gvk;
use crate::resource::Subresource;
use crate::strategy::Strategy as _;
use crate::strategy::testing::{created, each_is_refused, lines, updated, with};

fn hpa(spec: &[(&str, Value)]) -> Value {
    let target = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "d" });
    let object = json!({ "apiVersion": "autoscaling/v2", "metadata": { "name": "h" }, "spec": { "maxReplicas": 5, "scaleTargetRef": target } });
    created(
        &HorizontalPodAutoscaler::v2(),
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        with(&object, spec),
    )
}

fn to(version: &str, object: &Value) -> Value {
    let mut object = object.clone();
    convert_hpa(
        &mut object,
        &gvk(&format!("autoscaling/{version}"), "HorizontalPodAutoscaler"),
    );
    object
}

/// Metrics of every type.
fn metrics() -> Value {
    let object = json!({ "kind": "Service", "name": "s", "apiVersion": "v1" });
    json!([
        { "type": "Resource", "resource": { "name": "memory", "target": { "type": "AverageValue", "averageValue": "1Gi" } } },
        { "type": "ContainerResource", "containerResource": { "name": "cpu", "container": "c", "target": { "type": "Utilization", "averageUtilization": 50 } } },
        { "type": "Pods", "pods": { "metric": { "name": "m" }, "target": { "type": "AverageValue", "averageValue": "5" } } },
        { "type": "Object", "object": { "describedObject": object, "metric": { "name": "m", "selector": { "matchLabels": { "a": "b" } } }, "target": { "type": "Value", "value": "5" } } },
        { "type": "External", "external": { "metric": { "name": "m", "selector": {} }, "target": { "type": "AverageValue", "averageValue": "5" } } },
    ])
}

#[test]
fn an_autoscaler_gets_what_kubernetes_gives_it() {
    let object = hpa(&[(
        "/spec/behavior",
        json!({ "scaleUp": { "stabilizationWindowSeconds": 5 } }),
    )]);
    assert_eq!(object["spec"]["minReplicas"], 1);
    assert_eq!(object["spec"]["metrics"], json!([super::convert::cpu(80)]));
    let behavior = json!({
        "scaleUp": { "stabilizationWindowSeconds": 5, "selectPolicy": "Max", "policies": [
            { "type": "Pods", "value": 4, "periodSeconds": 15 }, { "type": "Percent", "value": 100, "periodSeconds": 15 }] },
        "scaleDown": { "selectPolicy": "Max", "policies": [{ "type": "Percent", "value": 100, "periodSeconds": 15 }] },
    });
    assert_eq!(object["spec"]["behavior"], behavior);
    assert!(object["metadata"]["generation"].is_null());
}

#[test]
#[rustfmt::skip] // A table.
fn an_autoscaler_is_checked() {
    let v2 = HorizontalPodAutoscaler::v2();
    let up = "/spec/behavior/scaleUp";
    each_is_refused(&[
        ("/spec/minReplicas", json!(-1), "spec.minReplicas: Invalid value: -1: must be greater than or equal to 0"),
        ("/spec/minReplicas", json!(0), "spec.metrics: Forbidden: must specify at least one Object or External metric to support scaling to zero replicas"),
        ("/spec/minReplicas", json!(6), "spec.maxReplicas: Invalid value: 5: must be greater than or equal to `minReplicas`"),
        ("/spec/maxReplicas", json!(0), "spec.maxReplicas: Invalid value: 0: must be greater than 0"),
        ("/spec/scaleTargetRef/kind", json!(""), "spec.scaleTargetRef.kind: Required value"),
        ("/spec/scaleTargetRef/name", json!(".."), "spec.scaleTargetRef.name: Invalid value: \"..\": may not be '..'"),
        ("/spec/scaleTargetRef/apiVersion", json!("v1"), "spec.scaleTargetRef.apiVersion: Invalid value: \"v1\": apiVersion must specify API group"),
        ("/spec/scaleTargetRef/apiVersion", json!("a/b/c"), "spec.scaleTargetRef.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c"),
        (&format!("{up}/stabilizationWindowSeconds"), json!(-1), "spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: -1: must be greater than or equal to zero"),
        (&format!("{up}/stabilizationWindowSeconds"), json!(3601), "spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600"),
        (&format!("{up}/selectPolicy"), json!("x"), "spec.behavior.scaleUp.selectPolicy: Unsupported value: \"x\": supported values: \"Disabled\", \"Max\", \"Min\""),
        (&format!("{up}/tolerance"), json!("-1"), "spec.behavior.scaleUp.tolerance: Invalid value: \"-1\": must be greater or equal to zero"),
        (&format!("{up}/policies"), json!([]), "spec.behavior.scaleUp.policies: Required value: must specify at least one Policy"),
        (&format!("{up}/policies/0/type"), json!("x"), "spec.behavior.scaleUp.policies[0].type: Unsupported value: \"x\": supported values: \"Percent\", \"Pods\""),
        (&format!("{up}/policies/0/value"), json!(0), "spec.behavior.scaleUp.policies[0].value: Invalid value: 0: must be greater than zero"),
        (&format!("{up}/policies/0/periodSeconds"), json!(1801), "spec.behavior.scaleUp.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800"),
    ], &hpa(&[("/spec/behavior", json!({}))]), |object| v2.validate(object));
    let controller = hpa(&[("/spec/scaleTargetRef", json!({ "apiVersion": "v1", "kind": "ReplicationController", "name": "r" }))]);
    assert_eq!(lines(&v2.validate(&controller)), Vec::<String>::new());
    let old = hpa(&[("/spec/scaleTargetRef/apiVersion", json!("v1"))]);
    assert_eq!(lines(&v2.validate_update(None, &old, &old)), Vec::<String>::new());
    each_is_refused(&[
        ("/status/desiredReplicas", json!(-1), "status.desiredReplicas: Invalid value: -1: must be greater than or equal to 0"),
    ], &old, |object| v2.validate_update(Some(Subresource::Status), object, &old));
}

#[test]
#[rustfmt::skip] // A table.
fn each_metric_is_checked() {
    let v2 = HorizontalPodAutoscaler::v2();
    each_is_refused(&[
        ("/spec/metrics/0/type", json!(""), "spec.metrics[0].type: Required value: must specify a metric source type"),
        ("/spec/metrics/0/type", json!("x"), "spec.metrics[0].type: Unsupported value: \"x\": supported values: \"ContainerResource\", \"External\", \"Object\", \"Pods\", \"Resource\""),
        ("/spec/metrics/0/resource", Value::Null, "spec.metrics[0].resource: Required value: must populate information for the given metric source"),
        ("/spec/metrics/0/pods", json!({}), "spec.metrics[0].pods: Forbidden: must populate the given metric source only"),
        ("/spec/metrics/0/resource/name", json!(""), "spec.metrics[0].resource.name: Required value: must specify a resource name"),
        ("/spec/metrics/0/resource/target/averageValue", Value::Null, "spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization"),
        ("/spec/metrics/0/resource/target/averageUtilization", json!(5), "spec.metrics[0].resource.target.averageValue: Forbidden: may not set both a target raw value and a target utilization"),
        ("/spec/metrics/0/resource/target/averageValue", json!("0"), "spec.metrics[0].resource.target.averageValue: Invalid value: \"0\": must be positive"),
        ("/spec/metrics/0/resource/target/type", json!("x"), "spec.metrics[0].resource.target.type: Invalid value: \"x\": must be either Utilization, Value, or AverageValue"),
        ("/spec/metrics/1/containerResource/container", json!(""), "spec.metrics[1].containerResource.container: Required value: must specify a container"),
        ("/spec/metrics/1/containerResource/target/averageUtilization", json!(0), "spec.metrics[1].containerResource.target.averageUtilization: Invalid value: 0: must be greater than 0"),
        ("/spec/metrics/2/pods/metric/name", json!(""), "spec.metrics[2].pods.metric.name: Required value: must specify a metric name"),
        ("/spec/metrics/2/pods/target/averageValue", Value::Null, "spec.metrics[2].pods.target.averageValue: Required value: must specify a positive target averageValue"),
        ("/spec/metrics/3/object/describedObject/name", json!(""), "spec.metrics[3].object.describedObject.name: Required value"),
        ("/spec/metrics/3/object/target/value", Value::Null, "spec.metrics[3].object.target.averageValue: Required value: must set either a target value or averageValue"),
        ("/spec/metrics/4/external/target/averageValue", Value::Null, "spec.metrics[4].external.target.averageValue: Required value: must set either a target value for metric or a per-pod target"),
        ("/spec/metrics/4/external/target/value", json!("5"), "spec.metrics[4].external.target.value: Forbidden: may not set both a target value for metric and a per-pod target"),
    ], &hpa(&[("/spec/metrics", metrics())]), |object| v2.validate(object));
}

#[test]
fn nothing_is_lost_between_the_versions() {
    let mut all = metrics();
    all.as_array_mut()
        .expect("a list")
        .push(super::convert::cpu(60));
    let current = json!([{ "type": "Resource", "resource": { "name": "cpu", "current": { "averageUtilization": 20, "averageValue": "100m" } } }]);
    let conditions = json!([{ "type": "AbleToScale", "status": "True" }]);
    let object = with(
        &hpa(&[("/spec/metrics", all), ("/spec/behavior", json!({}))]),
        &[(
            "/status",
            json!({ "currentReplicas": 2, "desiredReplicas": 3, "currentMetrics": current, "conditions": conditions }),
        )],
    );
    let old = to("v1", &object);
    assert_eq!(
        old["spec"],
        json!({
            "minReplicas": 1, "maxReplicas": 5, "targetCPUUtilizationPercentage": 60,
            "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "d" },
        })
    );
    assert_eq!(
        old["status"],
        json!({ "currentReplicas": 2, "desiredReplicas": 3, "currentCPUUtilizationPercentage": 20 })
    );
    let annotation = |name: &str| {
        old["metadata"]["annotations"][name]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let metrics: Value = serde_json::from_str(&annotation(super::convert::METRICS)).expect("JSON");
    assert_eq!(
        metrics[0],
        json!({ "type": "Resource", "resource": { "name": "memory", "targetAverageValue": "1Gi" } })
    );
    assert_eq!(metrics[3]["object"]["targetValue"], "5");
    assert!(
        annotation(super::convert::BEHAVIOR)
            .contains(r#""ScaleUp":{"Policies":[{"PeriodSeconds":15,"#)
    );
    assert_eq!(to("v2", &old), object);
    assert_eq!(to("v1", &old), old);
    assert_eq!(to("v2", &object), object);
}

#[test]
fn the_first_version_is_the_second_in_other_words() {
    let v1 = HorizontalPodAutoscaler::v1();
    let target = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "d" });
    let spoofed = json!({ super::convert::CONDITIONS: "[]" });
    let object = json!({ "metadata": { "name": "h", "annotations": spoofed }, "spec": { "maxReplicas": 5, "scaleTargetRef": target } });
    let object = created(&v1, "autoscaling/v1", "HorizontalPodAutoscaler", object);
    assert_eq!(object["spec"]["targetCPUUtilizationPercentage"], 80);
    assert!(
        object["metadata"]["annotations"].is_null(),
        "the status is not the client's"
    );
    assert_eq!(lines(&v1.validate(&object)), Vec::<String>::new());
    let bad = with(
        &object,
        &[("/spec/targetCPUUtilizationPercentage", json!(0))],
    );
    assert_eq!(
        lines(&v1.validate(&bad)),
        [
            "spec.metrics[0].resource.target.averageUtilization: Invalid value: 0: must be greater than 0"
        ]
    );
    assert_eq!(updated(&v1, None, object.clone(), &object), object);
    assert_eq!(
        v1.cells(&object, jiff::Timestamp::UNIX_EPOCH)[2],
        "cpu: <unknown>/80%"
    );
}

#[test]
fn two_metrics_are_shown_and_the_rest_counted() {
    let v2 = HorizontalPodAutoscaler::v2();
    let cells = v2.cells(
        &hpa(&[("/spec/metrics", metrics())]),
        jiff::Timestamp::UNIX_EPOCH,
    );
    let shown = "memory: <unknown>/1Gi, cpu: <unknown>/50% + 3 more...";
    assert_eq!(
        cells[1..6],
        [
            json!("Deployment/d"),
            json!(shown),
            json!("1"),
            json!(5),
            json!(0)
        ]
    );
}
