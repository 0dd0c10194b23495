//! Claims of devices, and templates of them.

use serde_json::{Value, json};

use super::{MOST, configuration, key_and_value, selectors, size, status, unique};
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, text};
use crate::strategy::fields::{Check, anything, count, required_text};
use crate::strategy::validation::{Errors, dns_label, items, labels, subdomain};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Claims of devices.
pub struct ResourceClaim;

/// Templates of claims, from which pods get their own.
pub struct ResourceClaimTemplate;

/// How many alternatives a request may have, and how many consumers a claim.
const MOST_ALTERNATIVES: usize = 8;

const REFERENCE: &str = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'";

/// The requests of a claim, with the alternatives of each: one device is what a request asks for that says no number.
fn default_counts(devices: &mut Value) {
    let one = |request: &mut Value| {
        let exact = request["allocationMode"] == "ExactCount";
        if exact && request.get("count").is_none_or(|count| *count == 0) {
            request["count"] = 1.into();
        }
    };
    let list = devices.get_mut("requests").and_then(Value::as_array_mut);
    for request in list.into_iter().flatten() {
        if let Some(exactly) = request.get_mut("exactly") {
            one(exactly);
        }
        let alternatives = request
            .get_mut("firstAvailable")
            .and_then(Value::as_array_mut);
        alternatives.into_iter().flatten().for_each(one);
    }
}

/// Mistakes in what a claim asks for.
fn validate_spec(errors: &mut Errors, at: &str, spec: &Value) {
    let (at, devices) = (format!("{at}.devices"), &spec["devices"]);
    let path = |field: &str| format!("{at}.{field}");
    let requests = &devices["requests"];
    size(errors, &path("requests"), requests, MOST);
    unique(errors, &path("requests"), requests, "name");
    for (index, value) in items(requests) {
        request(errors, &path(&format!("requests[{index}]")), value);
    }
    size(errors, &path("constraints"), &devices["constraints"], MOST);
    for (index, constraint) in items(&devices["constraints"]) {
        let at = path(&format!("constraints[{index}]"));
        references(errors, &at, constraint, requests);
        let given =
            ["matchAttribute", "distinctAttribute"].map(|field| (field, &constraint[field]));
        match given.into_iter().find(|(_, name)| !name.is_null()) {
            Some((field, name)) => attribute_name(errors, &format!("{at}.{field}"), name),
            None => errors.required(at, "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple fields are set"),
        }
    }
    size(errors, &path("config"), &devices["config"], MOST);
    for (index, value) in items(&devices["config"]) {
        let at = path(&format!("config[{index}]"));
        references(errors, &at, value, requests);
        configuration(errors, &at, value);
    }
}

fn request(errors: &mut Errors, at: &str, request: &Value) {
    required_text(errors, &format!("{at}.name"), &request["name"], dns_label);
    let (exactly, alternatives) = (&request["exactly"], &request["firstAvailable"]);
    match (exactly.is_null(), count(alternatives)) {
        (true, 0) => errors.required(
            at,
            "exactly one of `exactly` or `firstAvailable` is required",
        ),
        (false, 0) => device(errors, &format!("{at}.exactly"), exactly),
        (true, _) => {
            let at = format!("{at}.firstAvailable");
            size(errors, &at, alternatives, MOST_ALTERNATIVES);
            unique(errors, &at, alternatives, "name");
            for (index, alternative) in items(alternatives) {
                let at = format!("{at}[{index}]");
                required_text(
                    errors,
                    &format!("{at}.name"),
                    &alternative["name"],
                    dns_label,
                );
                device(errors, &at, alternative);
            }
        }
        (false, _) => {
            let detail = "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are set";
            errors.add(at, &Value::Null, detail);
        }
    }
}

fn device(errors: &mut Errors, at: &str, device: &Value) {
    let class = &device["deviceClassName"];
    required_text(errors, &format!("{at}.deviceClassName"), class, subdomain);
    selectors(errors, &format!("{at}.selectors"), &device["selectors"]);
    let (mode, count) = (
        &device["allocationMode"],
        device["count"].as_i64().unwrap_or(0),
    );
    match text(mode) {
        "All" if count != 0 => {
            let detail = "must not be specified when allocationMode is 'All'";
            errors.add(format!("{at}.count"), &count.into(), detail);
        }
        "ExactCount" if count <= 0 => {
            errors.add(
                format!("{at}.count"),
                &count.into(),
                "must be greater than zero",
            );
        }
        "All" | "ExactCount" => {}
        _ => errors.one_of(format!("{at}.allocationMode"), mode, &["All", "ExactCount"]),
    }
    tolerations(errors, &format!("{at}.tolerations"), &device["tolerations"]);
}

/// Mistakes in tolerations of the taints of devices.
pub(super) fn tolerations(errors: &mut Errors, at: &str, list: &Value) {
    for (index, toleration) in items(list) {
        let at = format!("{at}[{index}]");
        key_and_value(errors, &at, toleration);
        match text(&toleration["operator"]) {
            "Exists" if !text(&toleration["value"]).is_empty() => {
                let detail = "must be empty for operator `Exists`";
                errors.add(format!("{at}.value"), &toleration["value"], detail);
            }
            "Equal" if text(&toleration["key"]).is_empty() => {
                errors.required(format!("{at}.key"), "operator must be Exists when `key` is empty, which means \"match all values and all keys\"");
            }
            "Equal" | "Exists" => {}
            _ => errors.one_of(
                format!("{at}.operator"),
                &toleration["operator"],
                &["Equal", "Exists"],
            ),
        }
        if !text(&toleration["effect"]).is_empty() {
            let effects = &["NoExecute", "NoSchedule"];
            errors.one_of(format!("{at}.effect"), &toleration["effect"], effects);
        }
    }
}

/// Mistakes in names of requests, which must exist: `gpu`, or `gpu/big` for an alternative.
pub(super) fn references(errors: &mut Errors, at: &str, object: &Value, requests: &Value) {
    let (at, names) = (format!("{at}.requests"), &object["requests"]);
    size(errors, &at, names, MOST);
    for (index, name) in items(names) {
        let at = format!("{at}[{index}]");
        reference(errors, &at, name, requests);
        if items(names).take(index).any(|(_, other)| other == name) {
            errors.0.push(FieldError::duplicate(at, name));
        }
    }
}

/// Mistakes in the name of one request.
pub(super) fn reference(errors: &mut Errors, at: &str, name: &Value, requests: &Value) {
    let named = |list: &Value, name: &str| {
        items(list)
            .map(|(_, item)| item.clone())
            .find(|item| item["name"] == name)
    };
    let known = match text(name).split_once('/') {
        Some((_, rest)) if rest.contains('/') => return errors.add(at, name, REFERENCE),
        Some((first, second)) => named(requests, first)
            .is_some_and(|request| named(&request["firstAvailable"], second).is_some()),
        None => named(requests, text(name)).is_some(),
    };
    for part in text(name).split('/') {
        errors.invalid(at, part, dns_label(part));
    }
    if !known {
        errors.add(at, name, REFERENCE);
    }
}

/// Mistakes in the full name of an attribute: `example.com/memory`.
fn attribute_name(errors: &mut Errors, at: &str, name: &Value) {
    if text(name).is_empty() {
        return errors.required(at, "name required");
    }
    let Some((domain, id)) = text(name).split_once('/') else {
        return errors.add(at, name, "must include a domain");
    };
    for (part, what, check) in [
        (domain, "domain", subdomain as Check),
        (id, "name", anything as Check),
    ] {
        match part {
            "" => errors.required(at, &format!("the {what} must not be empty")),
            part => errors.invalid(at, part, check(part)),
        }
    }
}

impl Strategy for ResourceClaim {
    fn default(&self, object: &mut Value) {
        if let Some(devices) = object.pointer_mut("/spec/devices") {
            default_counts(devices);
        }
    }

    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        object["status"] = json!({});
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        common::split_update(sub, object, old, false);
        // A claim that nobody uses any more and that is being deleted needs no status of its devices.
        if sub == Some(Subresource::Status) && object["status"]["allocation"].is_null() {
            object["status"]
                .as_object_mut()
                .map(|status| status.remove("devices"));
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        validate_spec(&mut errors, "spec", &object["spec"]);
        errors.0
    }

    /// The spec of a claim never changes, so that only this is checked.
    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        if sub == Some(Subresource::Status) {
            return status::validate(object, old);
        }
        let mut errors = Errors::default();
        errors.immutable("spec", &object["spec"], &old["spec"]);
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name State Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let status = &object["status"];
        let deleted = !object["metadata"]["deletionTimestamp"].is_null();
        let mut states = Vec::from_iter(deleted.then_some("deleted"));
        if status["allocation"].is_null() {
            states.extend((!deleted).then_some("pending"));
        } else {
            states.push("allocated");
            states.extend((count(&status["reservedFor"]) > 0).then_some("reserved"));
        }
        vec![
            table::name(object),
            states.join(",").into(),
            table::age(object, now),
        ]
    }
}

impl Strategy for ResourceClaimTemplate {
    fn default(&self, object: &mut Value) {
        if let Some(devices) = object.pointer_mut("/spec/spec/devices") {
            default_counts(devices);
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let template = &object["spec"];
        labels(
            &mut errors,
            "spec.metadata.labels",
            &template["metadata"]["labels"],
        );
        validate_spec(&mut errors, "spec.spec", &template["spec"]);
        errors.0
    }

    /// The spec of a template never changes, so that only this is checked.
    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors::default();
        errors.immutable("spec", &object["spec"], &old["spec"]);
        errors.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::fields::tests::{check_new, check_update, with};

    fn claim() -> Value {
        let exactly =
            json!({ "deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 1 });
        let small = json!({ "name": "small", "deviceClassName": "gpu", "allocationMode": "All" });
        json!({ "metadata": { "name": "a" }, "spec": { "devices": {
            "requests": [{ "name": "one", "exactly": exactly }, { "name": "any", "firstAvailable": [small] }],
            "constraints": [{ "requests": ["one", "any/small"], "matchAttribute": "example.com/numa" }] } } })
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_claim_asks_for_devices_of_classes() {
        let (first, at) = ("/spec/devices/requests/0", "spec.devices.requests[0]");
        check_new(&ResourceClaim, &claim(), &[
            (&format!("{first}/exactly"), Value::Null, &[&format!("{at}: Required value: exactly one of `exactly` or `firstAvailable` is required")]),
            (&format!("{first}/exactly/deviceClassName"), Value::Null, &[&format!("{at}.exactly.deviceClassName: Required value")]),
            (&format!("{first}/exactly/count"), json!(-1), &[&format!("{at}.exactly.count: Invalid value: -1: must be greater than zero")]),
            (&format!("{first}/exactly/allocationMode"), json!("All"), &[&format!("{at}.exactly.count: Invalid value: 1: must not be specified when allocationMode is 'All'")]),
            (&format!("{first}/exactly/allocationMode"), json!("Some"), &[&format!("{at}.exactly.allocationMode: Unsupported value: \"Some\": supported values: \"All\", \"ExactCount\"")]),
            (&format!("{first}/exactly/selectors"), json!([{}]), &[&format!("{at}.exactly.selectors[0].cel: Required value")]),
            ("/spec/devices/requests/1/name", json!("one"), &["spec.devices.requests[1]: Duplicate value: \"one\"", &format!("spec.devices.constraints[0].requests[1]: Invalid value: \"any/small\": {REFERENCE}")]),
            ("/spec/devices/constraints/0/requests", json!(["two"]), &[&format!("spec.devices.constraints[0].requests[0]: Invalid value: \"two\": {REFERENCE}")]),
            ("/spec/devices/constraints/0/matchAttribute", json!("numa"), &["spec.devices.constraints[0].matchAttribute: Invalid value: \"numa\": must include a domain"]),
            ("/spec/devices/config", json!([{ "requests": ["one"] }]), &["spec.devices.config[0].opaque: Required value"]),
        ]);
        let template = json!({ "spec": { "spec": claim()["spec"] } });
        check_new(&ResourceClaimTemplate, &template, &[
            ("/spec/spec/devices/requests/0/exactly", Value::Null, &["spec.spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is required"]),
        ]);
        let changed = with(&claim(), "/spec/devices/constraints", Value::Null);
        let wanted = format!("spec: Invalid value: {}: field is immutable", changed["spec"]);
        check_update(&ResourceClaim, &claim(), &[("/spec/devices/constraints", Value::Null, &[&wanted])]);
    }

    #[test]
    fn a_request_without_a_number_is_for_one_device() {
        let mut claim = with(
            &claim(),
            "/spec/devices/requests/0/exactly/count",
            Value::Null,
        );
        ResourceClaim.default(&mut claim);
        assert_eq!(
            claim["spec"]["devices"]["requests"][0]["exactly"]["count"],
            1
        );
        assert!(!claim.to_string().contains("null"));
    }
}
