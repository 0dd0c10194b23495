//! The kinds of this folder, one table each.

use serde_json::{Value, json};

use super::{ControllerRevision, DaemonSet, PodTemplate, ReplicationController, StatefulSet};
use crate::resource::Subresource;
use crate::strategy::Strategy as _;
use crate::strategy::testing::{created, each_is_refused, lines, template, updated, with};

const STATUS: Option<Subresource> = Some(Subresource::Status);

fn daemon_set() -> Value {
    let selector = json!({ "matchLabels": { "a": "b" } });
    let object = json!({ "metadata": { "name": "d" }, "spec": { "selector": selector, "template": template("Always") } });
    created(&DaemonSet, "apps/v1", "DaemonSet", object)
}

fn stateful_set() -> Value {
    let claim = json!({ "metadata": { "name": "data" }, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } });
    let mut template = template("Always");
    template["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "data", "mountPath": "/data" }]);
    let object = json!({ "metadata": { "name": "s" }, "spec": { "serviceName": "s", "template": template,
        "selector": { "matchLabels": { "a": "b" } }, "volumeClaimTemplates": [claim] } });
    created(&StatefulSet, "apps/v1", "StatefulSet", object)
}

#[test]
fn a_daemon_set_counts_its_templates_in_an_annotation() {
    let old = daemon_set();
    assert_eq!(
        old["metadata"]["annotations"]["deprecated.daemonset.template.generation"],
        "1"
    );
    assert_eq!(
        old["spec"]["updateStrategy"],
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1, "maxSurge": 0 } })
    );
    let new = with(
        &old,
        &[("/spec/template/spec/containers/0/image", json!("i:2"))],
    );
    let new = updated(&DaemonSet, None, new, &old);
    assert_eq!(
        new["metadata"]["annotations"]["deprecated.daemonset.template.generation"],
        "2"
    );
    assert_eq!(new["metadata"]["generation"], 2);
}

#[test]
#[rustfmt::skip] // A table.
fn a_daemon_set_is_checked() {
    let good = daemon_set();
    each_is_refused(&[
        ("/spec/template/metadata/labels/a", json!("c"), "spec.template.metadata.labels: Invalid value: {\"a\":\"c\"}: `selector` does not match template `labels`"),
        ("/spec/selector", json!({}), "spec.selector: Invalid value: {}: empty selector is invalid for daemonset"),
        ("/spec/template/spec/restartPolicy", json!("Never"), "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""),
        ("/spec/template/spec/activeDeadlineSeconds", json!(5), "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in DaemonSet is not Supported"),
        ("/spec/minReadySeconds", json!(-1), "spec.minReadySeconds: Invalid value: -1: must be greater than or equal to 0"),
        ("/spec/revisionHistoryLimit", json!(-1), "spec.revisionHistoryLimit: Invalid value: -1: must be greater than or equal to 0"),
        ("/spec/updateStrategy/rollingUpdate", Value::Null, "spec.updateStrategy.rollingUpdate: Required value"),
        ("/spec/updateStrategy", json!({ "type": "x" }), "spec.updateStrategy: Unsupported value: {\"type\":\"x\"}: supported values: \"RollingUpdate\", \"OnDelete\""),
        ("/spec/updateStrategy/rollingUpdate/maxSurge", json!(1), "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero"),
        ("/spec/updateStrategy/rollingUpdate/maxUnavailable", json!("0%"), "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0"),
        ("/spec/updateStrategy/rollingUpdate/maxUnavailable", json!("101%"), "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%"),
    ], &good, |object| DaemonSet.validate(object));
    each_is_refused(&[
        ("/spec/selector", json!({ "matchLabels": { "c": "d" } }), "spec.selector: Invalid value: {\"matchLabels\":{\"c\":\"d\"}}: field is immutable"),
    ], &good, |object| DaemonSet.validate_update(None, object, &good));
    let old = with(&good, &[("/status/collisionCount", json!(2))]);
    each_is_refused(&[
        ("/status/numberReady", json!(-1), "status.numberReady: Invalid value: -1: must be greater than or equal to 0"),
        ("/status/collisionCount", json!(1), "status.collisionCount: Invalid value: 1: cannot be decremented"),
    ], &old, |object| DaemonSet.validate_update(STATUS, object, &old));
}

#[test]
fn a_stateful_set_gets_what_kubernetes_gives_it() {
    let object = stateful_set();
    let spec = &object["spec"];
    assert_eq!(
        spec["updateStrategy"],
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1, "partition": 0 } })
    );
    assert_eq!(
        spec["persistentVolumeClaimRetentionPolicy"],
        json!({ "whenDeleted": "Retain", "whenScaled": "Retain" })
    );
    let claim = &spec["volumeClaimTemplates"][0];
    assert_eq!(
        (&claim["kind"], &claim["status"]["phase"]),
        (&json!("PersistentVolumeClaim"), &json!("Pending"))
    );
    assert_eq!(
        object["status"],
        json!({ "replicas": 0, "availableReplicas": 0 })
    );
}

#[test]
#[rustfmt::skip] // A table.
fn a_stateful_set_is_checked() {
    let good = stateful_set();
    each_is_refused(&[
        ("/spec/podManagementPolicy", json!("x"), "spec.podManagementPolicy: Invalid value: \"x\": must be 'OrderedReady' or 'Parallel'"),
        ("/spec/podManagementPolicy", Value::Null, "spec.podManagementPolicy: Required value"),
        ("/spec/updateStrategy/type", Value::Null, "spec.updateStrategy: Required value"),
        ("/spec/updateStrategy", json!({ "type": "x" }), "spec.updateStrategy: Invalid value: {\"type\":\"x\"}: must be 'RollingUpdate' or 'OnDelete'"),
        ("/spec/updateStrategy", json!({ "type": "OnDelete", "rollingUpdate": {} }), "spec.updateStrategy.rollingUpdate: Invalid value: {}: only allowed for updateStrategy 'RollingUpdate'"),
        ("/spec/updateStrategy/rollingUpdate/partition", json!(-1), "spec.updateStrategy.rollingUpdate.partition: Invalid value: -1: must be greater than or equal to 0"),
        ("/spec/updateStrategy/rollingUpdate/maxUnavailable", json!(0), "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: 0: cannot be 0"),
        ("/spec/persistentVolumeClaimRetentionPolicy/whenScaled", json!("x"), "spec.persistentVolumeClaimRetentionPolicy.whenScaled: Unsupported value: \"x\": supported values: \"Retain\", \"Delete\""),
        ("/spec/volumeClaimTemplates/0/spec/accessModes", json!([]), "spec.volumeClaimTemplates[0].spec.accessModes: Required value: at least 1 access mode is required"),
        ("/spec/volumeClaimTemplates/0/spec/resources", json!({}), "spec.volumeClaimTemplates[0].spec.resources[storage]: Required value"),
        ("/spec/replicas", json!(-1), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
        ("/spec/ordinals", json!({ "start": -1 }), "spec.ordinals.start: Invalid value: -1: must be greater than or equal to 0"),
        ("/spec/selector", json!({}), "spec.selector: Invalid value: {}: empty selector is invalid for statefulset"),
        ("/spec/template/spec/activeDeadlineSeconds", json!(5), "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in StatefulSet is not Supported"),
    ], &good, |object| StatefulSet.validate(object));
    let forbidden = "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
    each_is_refused(&[
        ("/spec/serviceName", json!("other"), forbidden),
        ("/spec/volumeClaimTemplates", json!([]), forbidden),
        ("/spec/selector/matchLabels/c", json!("d"), forbidden),
        ("/spec/replicas", json!(-1), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
    ], &good, |object| StatefulSet.validate_update(None, object, &good));
    for change in [("/spec/replicas", json!(3)), ("/spec/ordinals", json!({ "start": 2 })), ("/spec/revisionHistoryLimit", json!(2))] {
        let new = with(&good, &[change]);
        assert_eq!(lines(&StatefulSet.validate_update(None, &new, &good)), Vec::<String>::new());
    }
    each_is_refused(&[
        ("/status/readyReplicas", json!(1), "status.readyReplicas: Invalid value: 1: cannot be greater than status.replicas"),
        ("/status/availableReplicas", json!(1), "status.availableReplicas: Invalid value: 1: cannot be greater than status.readyReplicas"),
    ], &good, |object| StatefulSet.validate_update(STATUS, object, &good));
    assert!(StatefulSet.check_name("a.b").is_err());
}

#[test]
fn a_revision_keeps_its_data() {
    let good = json!({ "metadata": { "name": "r" }, "data": { "spec": {} }, "revision": 1 });
    each_is_refused(
        &[
            (
                "/data",
                Value::Null,
                "data: Required value: data is mandatory",
            ),
            (
                "/data",
                json!([]),
                "data: Required value: data must be a valid JSON object",
            ),
            (
                "/revision",
                json!(-1),
                "revision: Invalid value: -1: must be greater than or equal to 0",
            ),
        ],
        &good,
        |object| ControllerRevision.validate(object),
    );
    each_is_refused(
        &[(
            "/data",
            json!({}),
            "data: Invalid value: {}: field is immutable",
        )],
        &good,
        |object| ControllerRevision.validate_update(None, object, &good),
    );
    let owner =
        json!([{ "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d", "controller": true }]);
    let owned = with(&good, &[("/metadata/ownerReferences", owner)]);
    let cells = ControllerRevision.cells(&owned, jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(cells[1], "daemonset.apps/d");
}

#[test]
#[rustfmt::skip] // A table.
fn a_replication_controller_takes_its_selector_from_its_template() {
    let object = json!({ "metadata": { "name": "r" }, "spec": { "template": template("Always") } });
    let good = created(&ReplicationController, "v1", "ReplicationController", object);
    assert_eq!((&good["spec"]["selector"], &good["metadata"]["labels"]), (&json!({ "a": "b" }), &json!({ "a": "b" })));
    assert_eq!(good["spec"]["replicas"], 1);
    each_is_refused(&[
        ("/spec/selector", json!({}), "spec.selector: Required value"),
        ("/spec/selector/c", json!("d"), "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`"),
        ("/spec/replicas", json!(-1), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
        ("/spec/template", Value::Null, "spec.template: Required value"),
        ("/spec/template/spec/restartPolicy", json!("Never"), "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""),
        ("/spec/template/spec/activeDeadlineSeconds", json!(5), "spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in ReplicationController is not Supported"),
    ], &good, |object| ReplicationController.validate(object));
    let scale = ReplicationController.scale(&good).expect("it has one");
    assert_eq!(scale["status"], json!({ "replicas": 0, "selector": "a=b" }));
}

#[test]
fn a_pod_template_counts_its_changes() {
    let object = json!({ "metadata": { "name": "t" }, "template": template("Always") });
    let good = created(&PodTemplate, "v1", "PodTemplate", object);
    each_is_refused(
        &[(
            "/template/spec/containers",
            json!([]),
            "template.spec.containers: Required value",
        )],
        &good,
        |object| PodTemplate.validate(object),
    );
    let new = with(&good, &[("/template/metadata/labels/a", json!("c"))]);
    assert_eq!(
        updated(&PodTemplate, None, new, &good)["metadata"]["generation"],
        2
    );
    assert_eq!(updated(&PodTemplate, None, good.clone(), &good), good);
}
