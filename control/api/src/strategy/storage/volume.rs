//! Persistent volumes.

use serde_json::{Map, Value, json};

use super::{
    access_modes, annotation_warning, class_name, modes_text, nano, or_unset, phase, source,
};
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, text};
use crate::strategy::fields::changes;
use crate::strategy::pod::node_selector;
use crate::strategy::validation::{Errors, subdomain};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Persistent volumes.
pub struct PersistentVolume;

/// Mistakes in the spec of a volume, which may stand `inline` in a VolumeAttachment.
pub(super) fn validate_spec(errors: &mut Errors, at: &str, spec: &Value, inline: bool) {
    let path = |field: &str| format!("{at}.{field}");
    if inline {
        for field in ["claimRef", "capacity", "nodeAffinity", "storageClassName"] {
            if !spec[field].is_null() && spec[field] != "" {
                let detail = "may not be specified in the context of inline volumes";
                errors.0.push(FieldError::forbidden(path(field), detail));
            }
        }
        if spec["csi"].is_null() {
            errors.required(
                path("csi"),
                "has to be specified in the context of inline volumes",
            );
        }
    }
    access_modes(errors, &path("accessModes"), &spec["accessModes"], "");
    if !inline {
        capacity(errors, &path("capacity"), &spec["capacity"]);
        one_of_if_set(
            errors,
            path("persistentVolumeReclaimPolicy"),
            &spec["persistentVolumeReclaimPolicy"],
            &["Delete", "Recycle", "Retain"],
        );
    }
    if !inline && !spec["nodeAffinity"].is_null() {
        let (at, required) = (
            path("nodeAffinity.required"),
            &spec["nodeAffinity"]["required"],
        );
        if required.is_null() {
            errors.required(at, "must specify required node constraints");
        } else {
            node_selector(errors, &at, required);
        }
    }
    source::validate(errors, at, spec);
    let root = text(&spec["hostPath"]["path"]);
    let is_root = !root.is_empty() && root.chars().all(|c| c == '/');
    if is_root && spec["persistentVolumeReclaimPolicy"] == "Recycle" {
        let detail = "may not be 'recycle' for a hostPath mount of '/'";
        errors.0.push(FieldError::forbidden(
            path("persistentVolumeReclaimPolicy"),
            detail,
        ));
    }
    if !inline {
        let class = text(&spec["storageClassName"]);
        if !class.is_empty() {
            errors.invalid(&path("storageClassName"), class, subdomain(class));
        }
        one_of_if_set(
            errors,
            path("volumeMode"),
            &spec["volumeMode"],
            &["Block", "Filesystem"],
        );
        attributes_class(errors, at, spec);
    }
}

fn one_of_if_set(errors: &mut Errors, at: String, value: &Value, supported: &[&str]) {
    if !value.is_null() && value != "" {
        errors.one_of(at, value, supported);
    }
}

fn capacity(errors: &mut Errors, at: &str, capacity: &Value) {
    let amounts = capacity.as_object();
    if amounts.is_none_or(Map::is_empty) {
        errors.required(at, "");
    }
    if capacity["storage"].is_null() || amounts.is_some_and(|amounts| amounts.len() > 1) {
        errors
            .0
            .push(FieldError::not_supported(at, capacity, &["storage"]));
    }
    for (name, amount) in amounts.into_iter().flatten() {
        let at = format!("{at}[{name}]");
        if nano(amount) < 0 {
            errors.add(&at, amount, "must be a valid resource quantity");
        }
        if nano(amount) <= 0 {
            errors.add(&at, amount, "must be greater than zero");
        }
    }
}

fn attributes_class(errors: &mut Errors, at: &str, spec: &Value) {
    let class = &spec["volumeAttributesClassName"];
    if class.is_null() {
        return;
    }
    let field = format!("{at}.volumeAttributesClassName");
    match text(class) {
        "" => errors.required(field, "an empty string is disallowed"),
        name => errors.invalid(&field, name, subdomain(name)),
    }
    if spec["csi"].is_null() {
        errors.required(
            format!("{at}.csi"),
            "has to be specified when using volumeAttributesClassName",
        );
    }
}

impl Strategy for PersistentVolume {
    fn prepare_for_create(&self, ctx: &Context, object: &mut Value) {
        object["status"] = json!({ "phase": "Pending", "lastPhaseTransitionTime": ctx.now });
    }

    fn prepare_for_update(
        &self,
        ctx: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        common::split_update(sub, object, old, false);
        if sub != Some(Subresource::Status) {
            return;
        }
        let time = "lastPhaseTransitionTime";
        let (before, now) = (&old["status"], &object["status"]);
        let same_phase = before["phase"] == now["phase"];
        if same_phase && now[time].is_null() && !before[time].is_null() {
            object["status"][time] = before[time].clone();
        } else if !same_phase && (now[time].is_null() || now[time] == before[time]) {
            object["status"][time] = ctx.now.clone().into();
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        validate_spec(&mut errors, "spec", &object["spec"], false);
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        if sub == Some(Subresource::Status) {
            return Vec::new();
        }
        let mut errors = Errors(self.validate(object));
        let (spec, before) = (&object["spec"], &old["spec"]);
        let (new_source, old_source) = (source::of(spec, before), source::of(before, before));
        if new_source != old_source {
            let detail = format!(
                "spec.persistentvolumesource is immutable after creation\n{}",
                changes(&old_source, &new_source)
            );
            errors.0.push(FieldError::forbidden(
                "spec.persistentvolumesource",
                &detail,
            ));
        }
        errors.immutable("volumeMode", &spec["volumeMode"], &before["volumeMode"]);
        if !before["nodeAffinity"].is_null() {
            errors.immutable(
                "nodeAffinity",
                &spec["nodeAffinity"],
                &before["nodeAffinity"],
            );
        }
        let class = "volumeAttributesClassName";
        if !before[class].is_null() && spec[class].is_null() {
            let detail = "update from non-nil value to nil is forbidden";
            errors
                .0
                .push(FieldError::forbidden(format!("spec.{class}"), detail));
        }
        errors.0
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::from_iter(annotation_warning(object));
        if object["spec"]["persistentVolumeReclaimPolicy"] == "Recycle" {
            warnings.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".to_owned());
        }
        warnings
    }

    fn columns(&self) -> Vec<Column> {
        table::columns(
            "Name Capacity Access_Modes Reclaim_Policy Status Claim StorageClass VolumeAttributesClass Reason Age VolumeMode*",
        )
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let (spec, claim) = (&object["spec"], &object["spec"]["claimRef"]);
        let claim = if claim.is_object() {
            format!("{}/{}", text(&claim["namespace"]), text(&claim["name"]))
        } else {
            String::new()
        };
        vec![
            table::name(object),
            spec["capacity"]["storage"].as_str().unwrap_or("0").into(),
            modes_text(&spec["accessModes"]).into(),
            text(&spec["persistentVolumeReclaimPolicy"]).into(),
            phase(object).into(),
            claim.into(),
            class_name(object).into(),
            or_unset(&spec["volumeAttributesClassName"]).into(),
            text(&object["status"]["reason"]).into(),
            table::age(object, now),
            or_unset(&spec["volumeMode"]).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::fields::tests::{check_new, check_update, shown};

    fn volume() -> Value {
        json!({ "metadata": { "name": "data" }, "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": { "storage": "1Gi" }, "persistentVolumeReclaimPolicy": "Retain",
            "volumeMode": "Filesystem", "hostPath": { "path": "/data" } } })
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_volume_has_one_source_a_size_and_access_modes() {
        check_new(&PersistentVolume, &volume(), &[
            ("/spec/accessModes", Value::Null, &["spec.accessModes: Required value"]),
            ("/spec/accessModes", json!(["Any"]), &["spec.accessModes: Unsupported value: \"Any\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\""]),
            ("/spec/accessModes", json!(["ReadWriteOnce", "ReadWriteOncePod"]), &["spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes"]),
            ("/spec/capacity/storage", json!("0"), &["spec.capacity[storage]: Invalid value: \"0\": must be greater than zero"]),
            ("/spec/capacity/cpu", json!("1"), &["spec.capacity: Unsupported value: {\"cpu\":\"1\",\"storage\":\"1Gi\"}: supported values: \"storage\""]),
            ("/spec/hostPath", Value::Null, &["spec: Required value: must specify a volume type"]),
            ("/spec/hostPath/path", json!("/a/../b"), &["spec.hostPath.path: Invalid value: \"/a/../b\": must not contain '..'"]),
            ("/spec/nfs", json!({ "server": "a", "path": "/b" }), &["spec.nfs: Forbidden: may not specify more than 1 volume type"]),
            ("/spec/volumeMode", json!("Tape"), &["spec.volumeMode: Unsupported value: \"Tape\": supported values: \"Block\", \"Filesystem\""]),
            ("/spec/persistentVolumeReclaimPolicy", json!("Burn"), &["spec.persistentVolumeReclaimPolicy: Unsupported value: \"Burn\": supported values: \"Delete\", \"Recycle\", \"Retain\""]),
            ("/spec/volumeAttributesClassName", json!("gold"), &["spec.csi: Required value: has to be specified when using volumeAttributesClassName"]),
            ("/spec/nodeAffinity", json!({}), &["spec.nodeAffinity.required: Required value: must specify required node constraints"]),
        ]);
        let mut local = volume();
        local["spec"]["local"] = json!({ "path": "" });
        local["spec"].as_object_mut().unwrap().remove("hostPath");
        assert_eq!(shown(&PersistentVolume.validate(&local)), [
            "spec.local.path: Required value",
            "spec.nodeAffinity: Required value: Local volume requires node affinity",
        ]);
    }

    #[test]
    #[rustfmt::skip] // One change a line.
    fn the_source_of_a_volume_stays() {
        check_update(&PersistentVolume, &volume(), &[
            ("/spec/capacity/storage", json!("2Gi"), &[]),
            ("/spec/claimRef", json!({ "name": "a" }), &[]),
            ("/spec/volumeMode", json!("Block"), &["volumeMode: Invalid value: \"Block\": field is immutable"]),
            ("/spec/hostPath/path", json!("/other"), &["spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation\n- hostPath: {\"path\":\"/data\"}\n+ hostPath: {\"path\":\"/other\"}\n"]),
        ]);
    }

    #[test]
    fn a_change_of_phase_sets_its_time() {
        let mut ctx = Context::component("test");
        let mut volume = volume();
        PersistentVolume.prepare_for_create(&ctx, &mut volume);
        let old = volume.clone();
        ctx.now = "2030-01-01T00:00:00Z".to_owned();
        volume["status"]["phase"] = "Bound".into();
        PersistentVolume.prepare_for_update(&ctx, Some(Subresource::Status), &mut volume, &old);
        assert_eq!(
            volume["status"]["lastPhaseTransitionTime"],
            "2030-01-01T00:00:00Z"
        );
    }
}
