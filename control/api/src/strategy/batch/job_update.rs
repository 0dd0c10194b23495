//! What may change of a job.
//!
//! The template of a job is fixed, but for one that waits: before a suspended job starts, a queue may still steer where its
//! pods go and what they are given.

use serde_json::{Value, json};

use crate::strategy::validation::Errors;

/// Mistakes in a change of the spec.
pub(super) fn validate(errors: &mut Errors, object: &Value, old: &Value) {
    let (new_spec, old_spec) = (&object["spec"], &old["spec"]);
    completions(errors, new_spec, old_spec);
    template(errors, new_spec, old);
    for field in [
        "selector",
        "completionMode",
        "podFailurePolicy",
        "backoffLimitPerIndex",
        "managedBy",
        "successPolicy",
    ] {
        errors.immutable(&format!("spec.{field}"), &new_spec[field], &old_spec[field]);
    }
}

/// An indexed job may grow and shrink with its parallelism; another needs as many successes as it always did.
fn completions(errors: &mut Errors, new: &Value, old: &Value) {
    let field = "completions";
    if new["completionMode"] != "Indexed" {
        errors.immutable("spec.completions", &new[field], &old[field]);
    } else if new[field] != old[field] && !new[field].is_null() && new[field] != new["parallelism"]
    {
        errors.add(
            "spec.completions",
            &new[field],
            "can only be modified in tandem with spec.parallelism",
        );
    }
}

/// Copies a field from the new template into the old one, so that a difference in it does not count.
fn allow(old: &mut Value, new: &Value, field: &str) {
    match new.get(field) {
        Some(value) => old[field] = value.clone(),
        None => {
            old.as_object_mut().map(|fields| fields.remove(field));
        }
    }
}

/// Lets the node affinity differ, and nothing else of the affinity.
fn allow_node_affinity(old: &mut Value, new: &Value) {
    const NODE: &str = "nodeAffinity";
    let is_empty = |value: &Value| value.as_object().is_none_or(serde_json::Map::is_empty);
    match (new["affinity"].is_null(), old["affinity"].is_null()) {
        (true, true) => {}
        (true, false) => {
            old["affinity"]
                .as_object_mut()
                .map(|fields| fields.remove(NODE));
            if is_empty(&old["affinity"]) {
                allow(old, new, "affinity");
            }
        }
        (false, absent) => {
            if absent {
                old["affinity"] = json!({});
            }
            allow(&mut old["affinity"], &new["affinity"], NODE);
        }
    }
}

/// Lets the resources of containers differ that have kept their names.
fn allow_resources(old: &mut Value, new: &Value) {
    for list in ["containers", "initContainers"] {
        let Some(old) = old.get_mut(list).and_then(Value::as_array_mut) else {
            continue;
        };
        let new = new[list].as_array().map_or(&[][..], Vec::as_slice);
        if old.len() != new.len() {
            continue;
        }
        for (old, new) in old.iter_mut().zip(new) {
            if old["name"] == new["name"] {
                allow(old, new, "resources");
            }
        }
    }
}

fn template(errors: &mut Errors, new_spec: &Value, old: &Value) {
    let new = &new_spec["template"];
    let mut before = old["spec"]["template"].clone();
    let suspended = old["spec"]["suspend"] == true;
    let started = !old["status"]["startTime"].is_null();
    let idle = old["status"]["active"].as_i64().unwrap_or(0) == 0;
    if !suspended || started && !idle {
        errors.immutable("spec.template", new, &before);
        return;
    }
    for field in ["nodeSelector", "tolerations", "schedulingGates"] {
        allow(&mut before["spec"], &new["spec"], field);
    }
    allow_node_affinity(&mut before["spec"], &new["spec"]);
    for field in ["annotations", "labels"] {
        allow(&mut before["metadata"], &new["metadata"], field);
    }
    allow_resources(&mut before["spec"], &new["spec"]);
    errors.immutable("spec.template.spec", &new["spec"], &before["spec"]);
}
