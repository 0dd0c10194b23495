//! Validation of probes and of the hooks in a container's life.

use serde_json::Value;

use super::containers::Kind;
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::{Errors, items, port_name};

const HEADER: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";

/// Mistakes in the probes and hooks of a container that is not ephemeral; `grace` is the pod's grace period in seconds.
pub fn validate(errors: &mut Errors, at: &str, container: &Value, kind: Kind, grace: Option<i64>) {
    // Those that run to their end before the others start are never ready, nor stopped.
    let ends = kind == Kind::Init && container["restartPolicy"] != "Always";
    for field in [
        "lifecycle",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
    ] {
        let (value, path) = (&container[field], format!("{at}.{field}"));
        if value.is_null() {
            continue;
        }
        if ends {
            errors.0.push(FieldError::forbidden(
                path,
                "may not be set for init containers without restartPolicy=Always",
            ));
        } else if field == "lifecycle" {
            lifecycle(errors, &path, value, grace);
        } else {
            probe(errors, &path, value, field == "readinessProbe");
        }
    }
}

fn lifecycle(errors: &mut Errors, at: &str, lifecycle: &Value, grace: Option<i64>) {
    for hook in ["postStart", "preStop"] {
        if !lifecycle[hook].is_null() {
            handler(
                errors,
                &format!("{at}.{hook}"),
                &lifecycle[hook],
                &["exec", "httpGet", "tcpSocket", "sleep"],
                grace,
            );
        }
    }
}

fn probe(errors: &mut Errors, at: &str, probe: &Value, of_readiness: bool) {
    handler(
        errors,
        at,
        probe,
        &["exec", "httpGet", "tcpSocket", "grpc"],
        None,
    );
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        errors.not_negative(format!("{at}.{field}"), &probe[field]);
    }
    if !of_readiness && probe["successThreshold"].as_i64().unwrap_or(1) != 1 {
        errors.add(
            format!("{at}.successThreshold"),
            &probe["successThreshold"],
            "must be 1",
        );
    }
    if probe["terminationGracePeriodSeconds"]
        .as_i64()
        .is_some_and(|n| n <= 0)
    {
        errors.add(
            format!("{at}.terminationGracePeriodSeconds"),
            &probe["terminationGracePeriodSeconds"],
            "must be greater than 0",
        );
    }
    if of_readiness && !probe["terminationGracePeriodSeconds"].is_null() {
        errors.add(
            format!("{at}.terminationGracePeriodSeconds"),
            &probe["terminationGracePeriodSeconds"],
            "must not be set for readinessProbes",
        );
    }
}

/// Checks the handlers of a probe or hook, of which there must be one.
fn handler(errors: &mut Errors, at: &str, value: &Value, kinds: &[&str], grace: Option<i64>) {
    let mut set = kinds.iter().filter(|kind| !value[**kind].is_null());
    let Some(kind) = set.next() else {
        errors.required(at, "must specify a handler type");
        return;
    };
    action(errors, &format!("{at}.{kind}"), kind, &value[*kind], grace);
    for more in set {
        errors.0.push(FieldError::forbidden(
            format!("{at}.{more}"),
            "may not specify more than 1 handler type",
        ));
    }
}

fn action(errors: &mut Errors, at: &str, kind: &str, action: &Value, grace: Option<i64>) {
    match kind {
        "exec" => {
            if items(&action["command"]).next().is_none() {
                errors.required(format!("{at}.command"), "");
            }
        }
        "grpc" => errors.port(format!("{at}.port"), &action["port"]),
        "sleep" => {
            let seconds = action["seconds"].as_i64().unwrap_or(0);
            if let Some(grace) = grace.filter(|grace| !(0..=*grace).contains(&seconds)) {
                errors.add(
                    at,
                    &seconds.into(),
                    &format!(
                        "must be non-negative and less than terminationGracePeriodSeconds ({grace})"
                    ),
                );
            }
        }
        _ => {
            if kind == "httpGet" && text(&action["path"]).is_empty() {
                errors.required(format!("{at}.path"), "");
            }
            match &action["port"] {
                Value::String(name) => {
                    errors.invalid(&format!("{at}.port"), name.as_str(), port_name(name));
                }
                port => errors.port(format!("{at}.port"), port),
            }
            if kind == "httpGet" {
                errors.one_of(
                    format!("{at}.scheme"),
                    &action["scheme"],
                    &["HTTP", "HTTPS"],
                );
            }
            for (_, header) in items(&action["httpHeaders"]) {
                let name = text(&header["name"]);
                let good = |c: u8| c.is_ascii_alphanumeric() || c == b'-';
                if name.is_empty() || !name.bytes().all(good) {
                    errors.add(format!("{at}.httpHeaders"), &name.into(), HEADER);
                }
            }
        }
    }
}
