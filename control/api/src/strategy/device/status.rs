//! What was allocated for a claim of devices, and who uses it.

use serde_json::Value;

use super::claim::{reference, references, tolerations};
use super::slice::pool_name;
use super::{MOST, configuration, size, unique};
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::fields::{anything, count, driver_name, required_text};
use crate::strategy::pod::node_selector;
use crate::strategy::validation::{Errors, dns_label, items};

const MOST_CONSUMERS: usize = 256;

/// Mistakes in the status of a claim that replaces another.
pub(super) fn validate(object: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (status, before) = (&object["status"], &old["status"]);
    let (at, consumers) = ("status.reservedFor", &status["reservedFor"]);
    size(&mut errors, at, consumers, MOST_CONSUMERS);
    for (index, consumer) in items(consumers) {
        for field in ["resource", "name", "uid"] {
            required_text(
                &mut errors,
                &format!("{at}[{index}].{field}"),
                &consumer[field],
                anything,
            );
        }
    }
    unique(&mut errors, at, consumers, "uid");
    let allocation = &status["allocation"];
    let is_new =
        |consumer: &Value| !items(&before["reservedFor"]).any(|(_, other)| other == consumer);
    let leaving = !object["metadata"]["deletionTimestamp"].is_null();
    if count(consumers) > 0 && allocation.is_null() {
        let detail = "may not be specified when `allocated` is not set";
        errors.0.push(FieldError::forbidden(at, detail));
    } else if leaving && items(consumers).any(|(_, consumer)| is_new(consumer)) {
        let detail = "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
        errors.0.push(FieldError::forbidden(at, detail));
    }
    if !allocation.is_null() && !before["allocation"].is_null() {
        errors.immutable("status.allocation", allocation, &before["allocation"]);
    } else if !allocation.is_null() {
        allocated(
            &mut errors,
            allocation,
            &object["spec"]["devices"]["requests"],
        );
    }
    let results = &allocation["devices"]["results"];
    for (index, device) in items(&status["devices"]) {
        let same = |result: &Value| {
            ["driver", "pool", "device", "shareID"]
                .iter()
                .all(|field| result[*field] == device[*field])
        };
        if !items(results).any(|(_, result)| same(result)) {
            let detail = "must be an allocated device in the claim";
            errors.add(
                format!("status.devices[{index}]"),
                &device["device"],
                detail,
            );
        }
    }
    errors.0
}

fn allocated(errors: &mut Errors, allocation: &Value, requests: &Value) {
    let at = "status.allocation.devices";
    let devices = &allocation["devices"];
    size(errors, &format!("{at}.results"), &devices["results"], MOST);
    for (index, result) in items(&devices["results"]) {
        let at = format!("{at}.results[{index}]");
        reference(
            errors,
            &format!("{at}.request"),
            &result["request"],
            requests,
        );
        driver_name(errors, &format!("{at}.driver"), &result["driver"]);
        pool_name(errors, &format!("{at}.pool"), &result["pool"]);
        required_text(
            errors,
            &format!("{at}.device"),
            &result["device"],
            dns_label,
        );
        tolerations(errors, &format!("{at}.tolerations"), &result["tolerations"]);
    }
    size(
        errors,
        &format!("{at}.config"),
        &devices["config"],
        2 * MOST,
    );
    for (index, value) in items(&devices["config"]) {
        let at = format!("{at}.config[{index}]");
        match text(&value["source"]) {
            "" => errors.required(format!("{at}.source"), ""),
            _ => errors.one_of(
                format!("{at}.source"),
                &value["source"],
                &["FromClaim", "FromClass"],
            ),
        }
        references(errors, &at, value, requests);
        configuration(errors, &at, value);
    }
    if !allocation["nodeSelector"].is_null() {
        node_selector(
            errors,
            "status.allocation.nodeSelector",
            &allocation["nodeSelector"],
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::strategy::fields::tests::{shown, with};

    #[test]
    #[rustfmt::skip] // One status a line.
    fn only_an_allocated_claim_is_reserved() {
        let claim = json!({ "spec": { "devices": { "requests": [{ "name": "one" }] } } });
        let pod = json!({ "resource": "pods", "name": "a", "uid": "1" });
        let result = json!({ "request": "one", "driver": "gpu.example.com", "pool": "node", "device": "gpu0" });
        let allocation = json!({ "devices": { "results": [result] } });
        for (status, wanted) in [
            (json!({ "allocation": allocation, "reservedFor": [pod] }), vec![]),
            (json!({ "reservedFor": [pod] }), vec!["status.reservedFor: Forbidden: may not be specified when `allocated` is not set"]),
            (json!({ "allocation": allocation, "reservedFor": [pod, pod] }), vec!["status.reservedFor[1]: Duplicate value: \"1\""]),
            (json!({ "allocation": { "devices": { "results": [{ "request": "one", "driver": "a", "pool": "b" }] } } }), vec!["status.allocation.devices.results[0].device: Required value"]),
            (json!({ "allocation": allocation, "devices": [{ "driver": "gpu.example.com", "pool": "node", "device": "gpu1" }] }), vec!["status.devices[0]: Invalid value: \"gpu1\": must be an allocated device in the claim"]),
        ] {
            let object = with(&claim, "/status", status.clone());
            assert_eq!(shown(&validate(&object, &claim)), wanted, "{status}");
        }
    }
}
