//! What may change of a pod.

use serde_json::Value;

use super::spec::{self, Owner};
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::{Errors, items};

const IMMUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// Mistakes in an update of the pod itself.
pub fn validate(object: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (new_spec, old_spec) = (&object["spec"], &old["spec"]);
    for list in ["containers", "initContainers"] {
        let count = |spec: &Value| items(&spec[list]).count();
        if count(new_spec) != count(old_spec) {
            errors.0.push(FieldError::forbidden(
                format!("spec.{list}"),
                "pod updates may not add or remove containers",
            ));
        }
        for (index, container) in items(&new_spec[list]) {
            if text(&container["image"]).is_empty() {
                errors.required(format!("spec.{list}[{index}].image"), "");
            }
        }
    }
    if !errors.0.is_empty() {
        return errors.0;
    }
    deadline(&mut errors, new_spec, old_spec);
    let lost = |(_, toleration): &(usize, &Value)| {
        !items(&new_spec["tolerations"]).any(|(_, new)| {
            // Only its seconds may change.
            let same = |field: &str| text(&new[field]) == text(&toleration[field]);
            new == *toleration || ["key", "operator", "value", "effect"].into_iter().all(same)
        })
    };
    if items(&old_spec["tolerations"]).any(|entry| lost(&entry)) {
        errors.0.push(FieldError::forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    let gates: Vec<&Value> = items(&old_spec["schedulingGates"])
        .map(|(_, gate)| gate)
        .collect();
    let added = items(&new_spec["schedulingGates"]).find(|(_, gate)| !gates.contains(gate));
    if let Some((index, gate)) = added {
        let detail = format!(
            "only deletion is allowed, but found new scheduling gate {}",
            text(&gate["name"])
        );
        errors.0.push(FieldError::forbidden(
            format!("spec.schedulingGates[{index}]"),
            &detail,
        ));
    }
    if masked(new_spec, old_spec) != *old_spec {
        errors.0.push(FieldError::forbidden("spec", IMMUTABLE));
    }
    // A pod from before a rule keeps its spec: its labels and finalizers must still change.
    if errors.0.is_empty() && new_spec != old_spec {
        spec::validate_pod_spec(&mut errors, "spec", new_spec, Owner::Pod);
    }
    errors.0
}

fn deadline(errors: &mut Errors, new: &Value, old: &Value) {
    let (new, old) = (&new["activeDeadlineSeconds"], &old["activeDeadlineSeconds"]);
    if new == old {
        return;
    }
    match (new.as_i64(), old.as_i64()) {
        (Some(new_value), Some(old_value)) if new_value > old_value => {
            errors.add(
                "spec.activeDeadlineSeconds",
                new,
                "must be less than or equal to previous value",
            );
        }
        (None, Some(_)) => errors.add(
            "spec.activeDeadlineSeconds",
            new,
            "must not update from a positive integer to nil value",
        ),
        _ => {}
    }
}

/// The new spec with everything that may change set to what it was.
fn masked(new: &Value, old: &Value) -> Value {
    let mut masked = new.clone();
    let gated = items(&old["schedulingGates"]).next().is_some();
    let mut copy = vec!["activeDeadlineSeconds", "tolerations", "schedulingGates"];
    let grace = "terminationGracePeriodSeconds";
    if old[grace].as_i64().is_some_and(|n| n < 0) && new[grace] == 1 {
        copy.push(grace);
    }
    if gated {
        // A pod that does not run yet may be steered.
        copy.extend(["nodeSelector", "affinity"]);
    }
    let Some(fields) = masked.as_object_mut() else {
        return masked;
    };
    for field in copy {
        match old.get(field) {
            Some(value) => fields.insert(field.to_owned(), value.clone()),
            None => fields.remove(field),
        };
    }
    for list in ["containers", "initContainers"] {
        for (container, before) in fields
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
            .zip(items(&old[list]).map(|(_, container)| container))
        {
            container["image"] = before["image"].clone();
        }
    }
    masked
}

/// Mistakes in an update of the status.
pub fn validate_status(object: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let nominated = text(&object["status"]["nominatedNodeName"]);
    if !nominated.is_empty() {
        errors.invalid(
            "status.nominatedNodeName",
            nominated,
            crate::strategy::validation::subdomain(nominated),
        );
    }
    let qos = &old["status"]["qosClass"];
    if !qos.is_null() && object["status"]["qosClass"] != *qos {
        errors.add(
            "status.qosClass",
            &object["status"]["qosClass"],
            crate::strategy::validation::IMMUTABLE,
        );
    }
    // Some clients leave out what they do not know; only a different node is refused.
    if object["spec"]["nodeName"] != old["spec"]["nodeName"] {
        errors.0.push(FieldError::forbidden(
            "status.nodeName",
            "may not be changed directly",
        ));
    }
    for (index, _) in items(&object["status"]["podIPs"]) {
        let ip = &object["status"]["podIPs"][index]["ip"];
        if text(ip).parse::<std::net::IpAddr>().is_err() {
            errors.add(
                format!("status.podIPs[{index}]"),
                ip,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            );
        }
    }
    errors.0
}

/// Mistakes in giving a pod to a node: that happens once.
pub fn validate_binding(object: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let mut masked = object["spec"].clone();
    if text(&old["spec"]["nodeName"]).is_empty()
        && let Some(fields) = masked.as_object_mut()
    {
        fields.remove("nodeName");
    }
    if masked != old["spec"] {
        errors.0.push(FieldError::forbidden(
            "spec",
            "a binding may only set `nodeName`, once",
        ));
    }
    errors.0
}

/// Mistakes in new ephemeral containers: they may be added, not changed or removed.
pub fn validate_ephemeral(object: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let find = |name: &Value| {
        items(&object["spec"]["ephemeralContainers"]).find(|(_, new)| new["name"] == *name)
    };
    for (_, before) in items(&old["spec"]["ephemeralContainers"]) {
        let name = text(&before["name"]);
        match find(&before["name"]) {
            Some((_, new)) if new == before => {}
            Some((index, _)) => errors.0.push(FieldError::forbidden(
                format!("spec.ephemeralContainers[{index}]"),
                &format!("existing ephemeral containers {name:?} may not be changed"),
            )),
            None => errors.0.push(FieldError::forbidden(
                "spec.ephemeralContainers",
                &format!("existing ephemeral containers {name:?} may not be removed"),
            )),
        }
    }
    spec::validate_pod_spec(&mut errors, "spec", &object["spec"], Owner::Pod);
    errors.0
}

/// Mistakes in a resize: only requests and limits of containers may change.
pub fn validate_resize(object: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let mut masked = object["spec"].clone();
    for list in ["containers", "initContainers"] {
        let Some(containers) = masked.get_mut(list).and_then(Value::as_array_mut) else {
            continue;
        };
        for (container, (_, before)) in containers.iter_mut().zip(items(&old["spec"][list])) {
            container["resources"] = before["resources"].clone();
        }
    }
    if masked != old["spec"] {
        errors.0.push(FieldError::forbidden(
            "spec",
            "only cpu and memory resources are mutable",
        ));
    }
    if super::qos_class(&object["spec"]) != super::qos_class(&old["spec"]) {
        errors.add(
            "spec",
            &super::qos_class(&object["spec"]).into(),
            "Pod QOS Class may not change as a result of resizing",
        );
    }
    spec::validate_pod_spec(&mut errors, "spec", &object["spec"], Owner::Pod);
    errors.0
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        json!({ "spec": { "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "containers": [
            { "name": "a", "image": "x:1", "imagePullPolicy": "Always", "terminationMessagePolicy": "File" }] } })
    }

    #[test]
    fn the_image_may_change_and_the_command_may_not() {
        let mut new = pod();
        new["spec"]["containers"][0]["image"] = "x:2".into();
        assert_eq!(validate(&new, &pod()), []);
        new["spec"]["containers"][0]["command"] = json!(["sh"]);
        let errors = validate(&new, &pod());
        assert!(
            errors[0]
                .message
                .starts_with("Forbidden: pod updates may not change fields other than"),
            "{errors:?}"
        );
        let mut stored = pod();
        stored["spec"]["tolerations"] = json!([{ "operator": "Equal" }]);
        let mut labelled = stored.clone();
        labelled["metadata"] = json!({ "labels": { "a": "b" } });
        assert_eq!(validate(&labelled, &stored), []);
        labelled["spec"]["containers"][0]["image"] = "x:3".into();
        assert_ne!(validate(&labelled, &stored), []);
        let mut more = pod();
        more["spec"]["containers"]
            .as_array_mut()
            .expect("a list")
            .push(json!({ "name": "b", "image": "y" }));
        assert_eq!(
            validate(&more, &pod())[0].message,
            "Forbidden: pod updates may not add or remove containers"
        );
    }
}
