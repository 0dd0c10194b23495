//! Pods.
//!
//! Reading order: this file (the hooks), `spec` (defaults and validation of a pod's spec, which templates share) and its
//! parts, `warnings` (what is allowed but hardly meant), `update` (what may change), `print` (the table).

mod containers;
mod handlers;
mod print;
mod scheduling;
mod security;
pub(super) mod spec;
mod update;
mod volumes;
pub(super) mod warnings;

pub(super) use containers::resources;
pub(super) use scheduling::{node_selector, tolerations};
pub(super) use volumes::source as volume_source;

use knarr_quantity::Quantity;
use serde_json::{Value, json};

use super::common::{self, selectable, text};
use super::validation::{Errors, items};
use super::{Column, Context, Proxied, Strategy};
use crate::resource::Subresource;
use crate::status::FieldError;
use spec::Owner;

/// Pods.
pub struct Pod;

const FIELDS: &[&str] = &[
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.nominatedNodeName",
];

impl Strategy for Pod {
    fn proxied(&self) -> Option<Proxied> {
        Some(Proxied::Pod)
    }

    fn returns_deleted(&self) -> bool {
        true
    }

    fn default(&self, object: &mut Value) {
        let spec = &mut object["spec"];
        if spec["enableServiceLinks"].is_null() {
            spec["enableServiceLinks"] = true.into();
        }
        if text(&spec["serviceAccountName"]).is_empty() && !text(&spec["serviceAccount"]).is_empty()
        {
            spec["serviceAccountName"] = spec["serviceAccount"].clone();
        }
        if !text(&spec["serviceAccountName"]).is_empty() {
            spec["serviceAccount"] = spec["serviceAccountName"].clone();
        }
        for list in ["containers", "initContainers"] {
            spec[list]
                .as_array_mut()
                .into_iter()
                .flatten()
                .for_each(spec::requests_from_limits);
            if spec[list].is_null() {
                spec.as_object_mut().map(|spec| spec.remove(list));
            }
        }
        spec::default_pod_spec(spec);
    }

    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        common::first_generation(object);
        let qos = qos_class(&object["spec"]);
        object["status"] = json!({ "phase": "Pending", "qosClass": qos });
        if items(&object["spec"]["schedulingGates"]).next().is_some() {
            object["status"]["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        match sub {
            Some(Subresource::Status) => {
                common::split_update(sub, object, old, false);
                if text(&object["status"]["qosClass"]).is_empty() {
                    object["status"]["qosClass"] = old["status"]["qosClass"].clone();
                }
            }
            Some(Subresource::EphemeralContainers) => {
                let containers = object["spec"]["ephemeralContainers"].clone();
                common::keep(object, old, "status");
                object["spec"] = old["spec"].clone();
                if !containers.is_null() {
                    object["spec"]["ephemeralContainers"] = containers;
                }
            }
            // Giving a pod to a node is no new intent of its owner.
            Some(Subresource::Binding) => return,
            _ => common::keep(object, old, "status"),
        }
        common::bump_generation(object, old);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        spec::validate_annotations(&mut errors, "metadata.annotations", object);
        spec::validate_pod_spec(&mut errors, "spec", &object["spec"], Owner::Pod);
        if !text(&object["spec"]["nodeName"]).is_empty()
            && items(&object["spec"]["schedulingGates"]).next().is_some()
        {
            errors.0.push(FieldError::forbidden(
                "spec.nodeName",
                "cannot be set until all schedulingGates have been cleared",
            ));
        }
        if items(&object["spec"]["ephemeralContainers"])
            .next()
            .is_some()
        {
            errors.0.push(FieldError::forbidden(
                "spec.ephemeralContainers",
                "cannot be set on create",
            ));
        }
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        match sub {
            Some(Subresource::Status) => update::validate_status(object, old),
            Some(Subresource::Binding) => update::validate_binding(object, old),
            Some(Subresource::EphemeralContainers) => update::validate_ephemeral(object, old),
            Some(Subresource::Resize) => update::validate_resize(object, old),
            _ => update::validate(object, old),
        }
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        // People hardly change pods themselves, and controllers do it all the time.
        match old {
            None => warnings::of_pod(object),
            Some(_) => Vec::new(),
        }
    }

    fn graceful_deletion_seconds(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        let spec = &object["spec"];
        let wanted = requested
            .or_else(|| spec["terminationGracePeriodSeconds"].as_i64())
            .unwrap_or(0);
        let done = matches!(text(&object["status"]["phase"]), "Failed" | "Succeeded");
        // Nobody would ever confirm the end of a pod that no node has, or that has ended already.
        let at_once = done || text(&spec["nodeName"]).is_empty();
        Some(if at_once {
            0
        } else if wanted < 0 {
            1
        } else {
            wanted
        })
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        FIELDS
            .iter()
            .map(|field| {
                let path: Vec<&str> = field.split('.').collect();
                let value = match *field {
                    "spec.hostNetwork" => (object["spec"]["hostNetwork"] == true).to_string(),
                    _ => selectable(object, &path),
                };
                (*field, value)
            })
            .collect()
    }

    fn indexed_field(&self) -> Option<&'static str> {
        // Each node's kubelet follows its own pods.
        Some("spec.nodeName")
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        FIELDS
    }

    fn columns(&self) -> Vec<Column> {
        print::columns()
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        print::cells(object, now)
    }
}

/// The quality of service that a pod's requests and limits earn it (`pkg/apis/core/helper/qos`).
///
/// Only cpu and memory count. `Guaranteed` needs limits of both for every container, equal to its requests.
pub fn qos_class(spec: &Value) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    let positive = |value: &Value| {
        text(value)
            .parse_quantity()
            .filter(|quantity| quantity.nano() > 0)
    };
    for list in ["containers", "initContainers"] {
        for (_, container) in items(&spec[list]) {
            let resources = &container["resources"];
            for name in ["cpu", "memory"] {
                let request = positive(&resources["requests"][name]);
                let limit = positive(&resources["limits"][name]);
                any |= request.is_some() || limit.is_some();
                let equal = match (request, limit) {
                    (Some(request), Some(limit)) => request.nano() == limit.nano(),
                    (None, Some(_)) => true,
                    _ => false,
                };
                guaranteed &= equal;
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

trait ParseQuantity {
    fn parse_quantity(&self) -> Option<Quantity>;
}

impl ParseQuantity for str {
    fn parse_quantity(&self) -> Option<Quantity> {
        self.parse().ok()
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod hooks {
    use super::*;

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        let pod = |resources: Value| json!({ "containers": [{ "resources": resources }] });
        assert_eq!(qos_class(&pod(json!({}))), "BestEffort");
        assert_eq!(
            qos_class(&pod(json!({ "requests": { "cpu": "1" } }))),
            "Burstable"
        );
        let both = json!({ "cpu": "1", "memory": "1Gi" });
        assert_eq!(qos_class(&pod(json!({ "limits": both }))), "Guaranteed");
        assert_eq!(
            qos_class(&pod(
                json!({ "limits": both, "requests": { "cpu": "1000m", "memory": "1024Mi" } })
            )),
            "Guaranteed"
        );
        assert_eq!(
            qos_class(&pod(
                json!({ "limits": both, "requests": { "cpu": "1", "memory": "1Mi" } })
            )),
            "Burstable"
        );
    }

    #[test]
    fn only_a_running_pod_on_a_node_takes_time_to_delete() {
        let mut pod = json!({ "spec": { "nodeName": "n", "terminationGracePeriodSeconds": 30 }, "status": { "phase": "Running" } });
        assert_eq!(Pod.graceful_deletion_seconds(&pod, None), Some(30));
        assert_eq!(Pod.graceful_deletion_seconds(&pod, Some(5)), Some(5));
        assert_eq!(Pod.graceful_deletion_seconds(&pod, Some(-1)), Some(1));
        pod["status"]["phase"] = "Succeeded".into();
        assert_eq!(Pod.graceful_deletion_seconds(&pod, None), Some(0));
    }
}
