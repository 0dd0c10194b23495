//! What CSI drivers can do, where they run, and how much room they have.

use serde_json::Value;

use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{none_if_empty, text};
use crate::strategy::fields::{count, driver_name, joined, raise_generation, required_text};
use crate::strategy::validation::{Errors, items, label_selector, qualified_name, subdomain};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// What CSI drivers can do.
pub struct CsiDriver;

/// Which CSI drivers a node has.
pub struct CsiNode;

/// How much room there is for the volumes of a class.
pub struct CsiStorageCapacity;

/// The longest id of a node that a driver may use.
const LONGEST_ID: usize = 256;

const MODES: &[&str] = &["Persistent", "Ephemeral"];

impl Strategy for CsiDriver {
    fn prepare_for_update(
        &self,
        _: &Context,
        _: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        let changed = object["spec"] != old["spec"];
        raise_generation(object, old, changed);
    }

    fn require_resource_version(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &object["spec"];
        for (field, shown) in [
            // kube-apiserver calls the first one so.
            ("attachRequired", "attachedRequired"),
            ("podInfoOnMount", "podInfoOnMount"),
            ("storageCapacity", "storageCapacity"),
        ] {
            if spec[field].is_null() {
                errors.required(format!("spec.{shown}"), "");
            }
        }
        if !spec["fsGroupPolicy"].is_null() {
            let policies = &["File", "None", "ReadWriteOnceWithFSType"];
            errors.one_of("spec.fsGroupPolicy", &spec["fsGroupPolicy"], policies);
        }
        token_requests(&mut errors, &spec["tokenRequests"]);
        for (_, mode) in items(&spec["volumeLifecycleModes"]) {
            errors.one_of("spec.volumeLifecycleModes", mode, MODES);
        }
        if spec["seLinuxMount"].is_null() {
            errors.required("spec.seLinuxMount", "");
        }
        let period = &spec["nodeAllocatableUpdatePeriodSeconds"];
        if period.as_i64().is_some_and(|seconds| seconds < 10) {
            let at = "spec.nodeAllocatableUpdatePeriodSeconds";
            errors.add(at, period, "must be greater than or equal to 10 seconds");
        }
        errors.0
    }

    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors(self.validate(object));
        let (spec, before) = (&object["spec"], &old["spec"]);
        errors.immutable(
            "spec.attachedRequired",
            &spec["attachRequired"],
            &before["attachRequired"],
        );
        let modes = "volumeLifecycleModes";
        errors.immutable(&format!("spec.{modes}"), &spec[modes], &before[modes]);
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns(
            "Name AttachRequired? PodInfoOnMount? StorageCapacity? TokenRequests RequiresRepublish? Modes Age",
        )
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        let audiences =
            items(&spec["tokenRequests"]).map(|(_, request)| text(&request["audience"]));
        let audiences = audiences.collect::<Vec<_>>().join(",");
        vec![
            table::name(object),
            (spec["attachRequired"] != false).into(),
            (spec["podInfoOnMount"] == true).into(),
            (spec["storageCapacity"] == true).into(),
            if spec["tokenRequests"].is_null() {
                "<unset>".into()
            } else {
                audiences.into()
            },
            (spec["requiresRepublish"] == true).into(),
            none_if_empty(joined(&spec["volumeLifecycleModes"], ",")).into(),
            table::age(object, now),
        ]
    }
}

fn token_requests(errors: &mut Errors, requests: &Value) {
    for (index, request) in items(requests) {
        let at = format!("spec.tokenRequests[{index}]");
        let audience = text(&request["audience"]);
        if items(requests)
            .take(index)
            .any(|(_, other)| text(&other["audience"]) == audience)
        {
            errors.0.push(FieldError::duplicate(
                format!("{at}.audience"),
                &audience.into(),
            ));
            continue;
        }
        let detail = match request["expirationSeconds"].as_i64().unwrap_or(3600) {
            ..600 => "may not specify a duration less than 10 minutes",
            4_294_967_297.. => "may not specify a duration larger than 2^32 seconds",
            _ => continue,
        };
        errors.add(
            format!("{at}.expirationSeconds"),
            &request["expirationSeconds"],
            detail,
        );
    }
}

impl Strategy for CsiNode {
    fn require_resource_version(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let drivers = &object["spec"]["drivers"];
        for (index, driver) in items(drivers) {
            let at = format!("spec.drivers[{index}]");
            let name = &driver["name"];
            driver_name(&mut errors, &format!("{at}.name"), name);
            required_text(
                &mut errors,
                &format!("{at}.nodeID"),
                &driver["nodeID"],
                |id| {
                    let long = id.len() > LONGEST_ID;
                    Vec::from_iter(long.then(|| format!("must be {LONGEST_ID} characters or less")))
                },
            );
            errors.not_negative(
                format!("{at}.allocatable.count"),
                &driver["allocatable"]["count"],
            );
            if items(drivers)
                .take(index)
                .any(|(_, other)| other["name"] == *name)
            {
                errors
                    .0
                    .push(FieldError::duplicate(format!("{at}.name"), name));
            }
            for (number, key) in items(&driver["topologyKeys"]) {
                if text(key).is_empty() {
                    errors.required(&at, "");
                }
                if items(&driver["topologyKeys"])
                    .take(number)
                    .any(|(_, other)| other == key)
                {
                    errors.0.push(FieldError::duplicate(&at, key));
                }
                errors.invalid(&at, text(key), qualified_name(text(key)));
            }
        }
        errors.0
    }

    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors(self.validate(object));
        let fixed = |driver: &Value| {
            let mut driver = driver.clone();
            driver
                .as_object_mut()
                .map(|fields| fields.remove("allocatable"));
            driver
        };
        for (_, before) in items(&old["spec"]["drivers"]) {
            for (_, driver) in items(&object["spec"]["drivers"]) {
                if driver["name"] == before["name"] {
                    errors.immutable("spec.drivers", &fixed(driver), &fixed(before));
                }
            }
        }
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Drivers# Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let drivers = count(&object["spec"]["drivers"]);
        vec![table::name(object), drivers.into(), table::age(object, now)]
    }
}

impl Strategy for CsiStorageCapacity {
    fn require_resource_version(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        label_selector(&mut errors, "nodeTopology", &object["nodeTopology"]);
        let class = text(&object["storageClassName"]);
        errors.invalid("storageClassName", class, subdomain(class));
        if super::nano(&object["capacity"]) < 0 {
            errors.add(
                "capacity",
                &object["capacity"],
                "must be greater than or equal to 0",
            );
        }
        errors.0
    }

    /// Only what may not change is checked.
    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors::default();
        for field in ["nodeTopology", "storageClassName"] {
            errors.immutable(field, &object[field], &old[field]);
        }
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name StorageClassName Capacity")
    }

    fn cells(&self, object: &Value, _: jiff::Timestamp) -> Vec<Value> {
        let class = text(&object["storageClassName"]);
        vec![
            table::name(object),
            class.into(),
            super::or_unset(&object["capacity"]).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::strategy::fields::tests::{check_new, check_update};

    fn driver() -> Value {
        json!({ "metadata": { "name": "csi.example.com" }, "spec": { "attachRequired": true, "podInfoOnMount": false,
            "storageCapacity": false, "seLinuxMount": false, "volumeLifecycleModes": ["Persistent"] } })
    }

    fn node() -> Value {
        json!({ "spec": { "drivers": [{ "name": "csi.example.com", "nodeID": "a", "topologyKeys": ["zone"] }] } })
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_driver_says_what_it_can_do() {
        check_new(&CsiDriver, &driver(), &[
            ("/spec/attachRequired", Value::Null, &["spec.attachedRequired: Required value"]),
            ("/spec/fsGroupPolicy", json!("Some"), &["spec.fsGroupPolicy: Unsupported value: \"Some\": supported values: \"File\", \"None\", \"ReadWriteOnceWithFSType\""]),
            ("/spec/volumeLifecycleModes", json!(["Once"]), &["spec.volumeLifecycleModes: Unsupported value: \"Once\": supported values: \"Persistent\", \"Ephemeral\""]),
            ("/spec/tokenRequests", json!([{ "audience": "a" }, { "audience": "a" }]), &["spec.tokenRequests[1].audience: Duplicate value: \"a\""]),
            ("/spec/tokenRequests", json!([{ "expirationSeconds": 1 }]), &["spec.tokenRequests[0].expirationSeconds: Invalid value: 1: may not specify a duration less than 10 minutes"]),
            ("/spec/nodeAllocatableUpdatePeriodSeconds", json!(9), &["spec.nodeAllocatableUpdatePeriodSeconds: Invalid value: 9: must be greater than or equal to 10 seconds"]),
        ]);
        check_update(&CsiDriver, &driver(), &[
            ("/spec/podInfoOnMount", json!(true), &[]),
            ("/spec/attachRequired", json!(false), &["spec.attachedRequired: Invalid value: false: field is immutable"]),
            ("/spec/volumeLifecycleModes", json!(["Ephemeral"]), &["spec.volumeLifecycleModes: Invalid value: [\"Ephemeral\"]: field is immutable"]),
        ]);
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_node_lists_each_driver_once() {
        check_new(&CsiNode, &node(), &[
            ("/spec/drivers/0/name", Value::Null, &["spec.drivers[0].name: Required value"]),
            ("/spec/drivers/0/nodeID", json!("a".repeat(257)), &[&format!("spec.drivers[0].nodeID: Invalid value: \"{}\": must be 256 characters or less", "a".repeat(257))]),
            ("/spec/drivers/0/allocatable", json!({ "count": -1 }), &["spec.drivers[0].allocatable.count: Invalid value: -1: must be greater than or equal to 0"]),
            ("/spec/drivers/0/topologyKeys", json!(["a", "a"]), &["spec.drivers[0]: Duplicate value: \"a\""]),
            ("/spec/drivers", json!([{ "name": "a", "nodeID": "1" }, { "name": "a", "nodeID": "2" }]), &["spec.drivers[1].name: Duplicate value: \"a\""]),
        ]);
        check_update(&CsiNode, &node(), &[
            ("/spec/drivers/0/allocatable", json!({ "count": 3 }), &[]),
            ("/spec/drivers", json!([]), &[]),
            ("/spec/drivers/0/nodeID", json!("b"), &["spec.drivers: Invalid value: {\"name\":\"csi.example.com\",\"nodeID\":\"b\",\"topologyKeys\":[\"zone\"]}: field is immutable"]),
        ]);
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_capacity_belongs_to_a_class_and_a_topology() {
        let good = json!({ "storageClassName": "fast", "capacity": "1Gi", "nodeTopology": { "matchLabels": { "zone": "a" } } });
        check_new(&CsiStorageCapacity, &good, &[
            ("/capacity", json!("-1"), &["capacity: Invalid value: \"-1\": must be greater than or equal to 0"]),
            ("/nodeTopology/matchLabels/zone", json!("-"), &["nodeTopology.matchLabels: Invalid value: \"-\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"]),
        ]);
        check_update(&CsiStorageCapacity, &good, &[
            ("/capacity", json!("2Gi"), &[]),
            ("/storageClassName", json!("slow"), &["storageClassName: Invalid value: \"slow\": field is immutable"]),
        ]);
    }

    #[test]
    fn a_change_of_a_driver_raises_its_generation() {
        let (ctx, old) = (Context::component("test"), driver());
        let mut object = old.clone();
        CsiDriver.prepare_for_update(&ctx, None, &mut object, &old);
        assert_eq!(object, old);
        object["spec"]["podInfoOnMount"] = true.into();
        CsiDriver.prepare_for_update(&ctx, None, &mut object, &old);
        assert_eq!(object["metadata"]["generation"], 1);
    }
}
