//! The devices that a driver offers on a node, or to several.

use serde_json::{Map, Value};

use super::{offered, size, unique};
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, text};
use crate::strategy::fields::{count, driver_name, raise_generation, required_text};
use crate::strategy::pod::node_selector;
use crate::strategy::validation::{Errors, dns_label, items, subdomain};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Slices of the pools of devices that drivers offer.
pub struct ResourceSlice;

const LONGEST_POOL: usize = 253;
const MOST_DEVICES: usize = 128;
/// How many devices there may be once some have taints or consume counters.
const MOST_DEVICES_WITH_MORE: usize = 64;
const MOST_COUNTER_SETS: usize = 8;

/// What says where the devices of a slice are.
pub(super) const WHERE: &[&str] = &[
    "nodeName",
    "nodeSelector",
    "allNodes",
    "perDeviceNodeSelection",
];

/// Mistakes in the name of a pool: subdomains with slashes between them.
pub(super) fn pool_name(errors: &mut Errors, at: &str, name: &Value) {
    let name = text(name);
    if name.is_empty() {
        return errors.required(at, "");
    }
    if name.len() > LONGEST_POOL {
        errors
            .0
            .push(FieldError::too_long(at, LONGEST_POOL, "bytes"));
    }
    for part in name.split('/') {
        errors.invalid(at, part, subdomain(part));
    }
}

/// Which of the fields say where something is, quoted; those that are there and say nothing are mistakes.
pub(super) fn places(
    errors: &mut Errors,
    at: &str,
    object: &Value,
    fields: &[&str],
    empty: &str,
) -> Vec<String> {
    let mut found = Vec::new();
    for field in fields.iter().filter(|field| !object[**field].is_null()) {
        let (place, value) = (format!("{at}.{field}"), &object[*field]);
        match value {
            Value::String(name) if name.is_empty() => {
                errors.add(place, value, empty);
                continue;
            }
            Value::String(name) => errors.invalid(&place, name.as_str(), subdomain(name)),
            Value::Bool(false) => {
                errors.add(place, value, "must be either unset or set to true");
                continue;
            }
            Value::Bool(_) => {}
            selector => node_selector(errors, &place, selector),
        }
        found.push(format!("`{field}`"));
    }
    found
}

/// Mistakes in a slice; `old` is the slice that it replaces.
fn validate_spec(spec: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    driver_name(&mut errors, "spec.driver", &spec["driver"]);
    let pool = &spec["pool"];
    pool_name(&mut errors, "spec.pool.name", &pool["name"]);
    let number = |field: &str| Value::from(pool[field].as_i64().unwrap_or(0));
    if number("resourceSliceCount").as_i64() <= Some(0) {
        let detail = "must be greater than zero";
        errors.add(
            "spec.pool.resourceSliceCount",
            &number("resourceSliceCount"),
            detail,
        );
    }
    if number("generation").as_i64() < Some(0) {
        let detail = "must be greater than or equal to zero";
        errors.add("spec.pool.generation", &number("generation"), detail);
    }
    if let Some(old) = old {
        errors.immutable("spec.pool.name", &pool["name"], &old["pool"]["name"]);
        for field in ["driver", "nodeName"] {
            errors.immutable(&format!("spec.{field}"), &spec[field], &old[field]);
        }
    }
    let empty = "must be either unset or set to a non-empty string";
    let given = places(&mut errors, "spec", spec, WHERE, empty);
    let terms = &spec["nodeSelector"]["nodeSelectorTerms"];
    if count(terms) > 1 {
        let detail = "must have exactly one node selector term";
        errors.add("spec.nodeSelector.nodeSelectorTerms", terms, detail);
    }
    let one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match given.len() {
        0 => errors.required("spec", one),
        1 => {}
        _ => {
            let shown = format!("{{{}}}", given.join(", "));
            errors.add(
                "spec",
                &shown.into(),
                &format!("{one}, but multiple fields are set"),
            );
        }
    }
    if !spec["sharedCounters"].is_null() && !spec["devices"].is_null() {
        let detail = "only one of `sharedCounters` or `devices` is allowed";
        errors.add("spec", &"".into(), detail);
    }
    let devices = &spec["devices"];
    let more = items(devices)
        .any(|(_, device)| count(&device["taints"]) + count(&device["consumesCounters"]) > 0);
    let most = if more {
        MOST_DEVICES_WITH_MORE
    } else {
        MOST_DEVICES
    };
    size(&mut errors, "spec.devices", devices, most);
    unique(&mut errors, "spec.devices", devices, "name");
    for (index, value) in items(devices) {
        let each = spec["perDeviceNodeSelection"] == true;
        offered::validate(&mut errors, &format!("spec.devices[{index}]"), value, each);
    }
    size(
        &mut errors,
        "spec.sharedCounters",
        &spec["sharedCounters"],
        MOST_COUNTER_SETS,
    );
    unique(
        &mut errors,
        "spec.sharedCounters",
        &spec["sharedCounters"],
        "name",
    );
    for (index, set) in items(&spec["sharedCounters"]) {
        counters(
            &mut errors,
            &format!("spec.sharedCounters[{index}]"),
            set,
            "name",
        );
    }
    errors.0
}

/// Mistakes in counters, which a set offers or a device consumes; `name` is the field that names the set.
pub(super) fn counters(errors: &mut Errors, at: &str, set: &Value, name: &str) {
    required_text(errors, &format!("{at}.{name}"), &set[name], dns_label);
    let (at, counters) = (format!("{at}.counters"), set["counters"].as_object());
    if counters.is_none_or(Map::is_empty) {
        errors.required(&at, "");
    }
    for (name, _) in counters.into_iter().flatten() {
        errors.invalid(&at, name.as_str(), dns_label(name));
    }
}

/// A taint without a time was added now.
fn stamp_taints(object: &mut Value, now: &str) {
    let devices = object
        .pointer_mut("/spec/devices")
        .and_then(Value::as_array_mut);
    for device in devices.into_iter().flatten() {
        let taints = device.get_mut("taints").and_then(Value::as_array_mut);
        for taint in taints.into_iter().flatten() {
            if taint.get("timeAdded").is_none() {
                taint["timeAdded"] = now.into();
            }
        }
    }
}

impl Strategy for ResourceSlice {
    fn prepare_for_create(&self, ctx: &Context, object: &mut Value) {
        common::first_generation(object);
        stamp_taints(object, &ctx.now);
    }

    fn prepare_for_update(
        &self,
        ctx: &Context,
        _: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        stamp_taints(object, &ctx.now);
        let changed = object["spec"] != old["spec"];
        raise_generation(object, old, changed);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        validate_spec(&object["spec"], None)
    }

    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        validate_spec(&object["spec"], Some(&old["spec"]))
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let field = |name: &str| text(&object["spec"][name]).to_owned();
        vec![
            ("spec.nodeName", field("nodeName")),
            ("spec.driver", field("driver")),
        ]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["spec.nodeName", "spec.driver"]
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Node Driver Pool Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        vec![
            table::name(object),
            text(&spec["nodeName"]).into(),
            text(&spec["driver"]).into(),
            text(&spec["pool"]["name"]).into(),
            table::age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::strategy::fields::tests::{check_new, check_update};

    fn slice() -> Value {
        let device = json!({ "name": "gpu0", "attributes": { "model": { "string": "a" }, "driver": { "version": "1.0.0-rc.1+b" } } });
        json!({ "spec": { "driver": "gpu.example.com", "nodeName": "a", "devices": [device],
            "pool": { "name": "a", "generation": 0, "resourceSliceCount": 1 } } })
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_slice_says_whose_devices_are_where() {
        let one = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
        check_new(&ResourceSlice, &slice(), &[
            ("/spec/driver", Value::Null, &["spec.driver: Required value"]),
            ("/spec/pool/name", Value::Null, &["spec.pool.name: Required value"]),
            ("/spec/pool/resourceSliceCount", json!(0), &["spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero"]),
            ("/spec/pool/generation", json!(-1), &["spec.pool.generation: Invalid value: -1: must be greater than or equal to zero"]),
            ("/spec/nodeName", Value::Null, &[&format!("spec: Required value: {one}")]),
            ("/spec/allNodes", json!(true), &[&format!("spec: Invalid value: \"{{`nodeName`, `allNodes`}}\": {one}, but multiple fields are set")]),
            ("/spec/allNodes", json!(false), &["spec.allNodes: Invalid value: false: must be either unset or set to true"]),
            ("/spec/devices", json!([{ "name": "a" }, { "name": "a" }]), &["spec.devices[1]: Duplicate value: \"a\""]),
            ("/spec/devices/0/attributes/model", json!({}), &["spec.devices[0].attributes[model]: Invalid value: \"\": exactly one value must be specified"]),
            ("/spec/devices/0/attributes/driver/version", json!("1.0"), &["spec.devices[0].attributes[driver].version: Invalid value: \"1.0\": must be a string compatible with semver.org spec 2.0.0"]),
            ("/spec/devices/0/taints", json!([{ "key": "a", "effect": "Some" }]), &["spec.devices[0].taints[0].effect: Unsupported value: \"Some\": supported values: \"NoExecute\", \"NoSchedule\", \"None\""]),
            ("/spec/devices/0/allNodes", json!(true), &["spec.devices[0]: Invalid value: null: `nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec"]),
        ]);
        check_update(&ResourceSlice, &slice(), &[
            ("/spec/devices", json!([]), &[]),
            ("/spec/pool/name", json!("b"), &["spec.pool.name: Invalid value: \"b\": field is immutable"]),
            ("/spec/driver", json!("other"), &["spec.driver: Invalid value: \"other\": field is immutable"]),
        ]);
    }
}
