//! Ingresses.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, text};
use crate::strategy::fields::{optional_text, path_segment, required_text};
use crate::strategy::validation::{Errors, dns_label, ip_address, items, port_name, subdomain};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Rules by which requests from outside reach services.
pub struct Ingress;

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const NOT_AN_ADDRESS: &str = "must be a DNS name, not an IP address";
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

/// What is wrong with a host, whose first label may be `*`.
fn host(name: &str) -> Vec<String> {
    if !name.contains('*') {
        return subdomain(name);
    }
    let good = name
        .strip_prefix("*.")
        .is_some_and(|rest| subdomain(rest).is_empty());
    Vec::from_iter((!good).then(|| WILDCARD.to_owned()))
}

fn is_address(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok()
}

fn backend(errors: &mut Errors, at: &str, backend: &Value) {
    let (service, resource) = (&backend["service"], &backend["resource"]);
    let nothing = Value::from("");
    match (service.is_null(), resource.is_null()) {
        (true, true) => errors.add(at, &nothing, "resource or service backend is required"),
        (false, false) => errors.add(
            at,
            &nothing,
            "cannot set both resource and service backends",
        ),
        (true, false) => reference(errors, &format!("{at}.resource"), resource),
        (false, true) => {
            required_text(
                errors,
                &format!("{at}.service.name"),
                &service["name"],
                dns_label,
            );
            let name = text(&service["port"]["name"]);
            let number = &service["port"]["number"];
            match (name.is_empty(), number.as_i64().unwrap_or(0) == 0) {
                (false, false) => {
                    errors.add(at, &nothing, "cannot set both port name & port number")
                }
                (true, true) => errors.required(at, "port name or number is required"),
                (false, true) => {
                    errors.invalid(&format!("{at}.service.port.name"), name, port_name(name))
                }
                (true, false) => errors.port(format!("{at}.service.port.number"), number),
            }
        }
    }
}

/// Mistakes in a reference to an object of any kind, in the same namespace or none.
pub(super) fn reference(errors: &mut Errors, at: &str, reference: &Value) {
    optional_text(
        errors,
        &format!("{at}.apiGroup"),
        &reference["apiGroup"],
        subdomain,
    );
    for field in ["kind", "name"] {
        required_text(
            errors,
            &format!("{at}.{field}"),
            &reference[field],
            path_segment,
        );
    }
}

fn http_path(errors: &mut Errors, at: &str, rule: &Value) {
    if rule["pathType"].is_null() {
        return errors.required(format!("{at}.pathType"), "pathType must be specified");
    }
    let path = text(&rule["path"]);
    let mut wrong = Vec::new();
    match text(&rule["pathType"]) {
        "Exact" | "Prefix" => {
            if !path.starts_with('/') {
                wrong.push("must be an absolute path".to_owned());
            }
            let parts = ["//", "/./", "/../", "%2f", "%2F"];
            let parts = parts.into_iter().filter(|part| path.contains(part));
            wrong.extend(parts.map(|part| format!("must not contain '{part}'")));
            let ends = ["/..", "/."].into_iter().filter(|end| path.ends_with(end));
            wrong.extend(ends.map(|end| format!("cannot end with '{end}'")));
        }
        "ImplementationSpecific" => {
            if !path.is_empty() && !path.starts_with('/') {
                wrong.push("must be an absolute path".to_owned());
            }
        }
        _ => {
            let kinds = &["Exact", "ImplementationSpecific", "Prefix"];
            errors.one_of(format!("{at}.pathType"), &rule["pathType"], kinds);
        }
    }
    errors.invalid(&format!("{at}.path"), path, wrong);
    backend(errors, &format!("{at}.backend"), &rule["backend"]);
}

fn rules(errors: &mut Errors, rules: &Value) {
    for (index, rule) in items(rules) {
        let at = format!("spec.rules[{index}]");
        let name = text(&rule["host"]);
        if !name.is_empty() {
            if is_address(name) {
                errors.add(format!("{at}.host"), &name.into(), NOT_AN_ADDRESS);
            }
            errors.invalid(&format!("{at}.host"), name, host(name));
        }
        let http = &rule["http"];
        if !http.is_null() && items(&http["paths"]).next().is_none() {
            errors.required(format!("{at}.http.paths"), "");
        }
        for (number, path) in items(&http["paths"]) {
            http_path(errors, &format!("{at}.http.paths[{number}]"), path);
        }
    }
}

fn load_balancer(errors: &mut Errors, object: &Value) {
    for (index, entry) in items(&object["status"]["loadBalancer"]["ingress"]) {
        let at = format!("status.loadBalancer.ingress[{index}]");
        let (ip, name) = (text(&entry["ip"]), text(&entry["hostname"]));
        if !ip.is_empty() {
            errors.invalid(&format!("{at}.ip"), ip, ip_address(ip));
        }
        if !name.is_empty() {
            errors.invalid(&format!("{at}.hostname"), name, subdomain(name));
            if is_address(name) {
                errors.add(format!("{at}.hostname"), &name.into(), NOT_AN_ADDRESS);
            }
        }
    }
}

impl Strategy for Ingress {
    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        object["status"] = json!({ "loadBalancer": {} });
        common::first_generation(object);
    }

    fn has_status(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &object["spec"];
        if items(&spec["rules"]).next().is_none() && spec["defaultBackend"].is_null() {
            let detail = "either `defaultBackend` or `rules` must be specified";
            errors.add("spec", &spec["rules"], detail);
        }
        if !spec["defaultBackend"].is_null() {
            backend(&mut errors, "spec.defaultBackend", &spec["defaultBackend"]);
        }
        rules(&mut errors, &spec["rules"]);
        for (index, tls) in items(&spec["tls"]) {
            for (number, name) in items(&tls["hosts"]) {
                let at = format!("spec.tls[{index}].hosts[{number}]");
                errors.invalid(&at, text(name), host(text(name)));
            }
            let secret = text(&tls["secretName"]);
            if !secret.is_empty() {
                errors.invalid(
                    &format!("spec.tls[{index}].secretName"),
                    secret,
                    subdomain(secret),
                );
            }
        }
        optional_text(
            &mut errors,
            "spec.ingressClassName",
            &spec["ingressClassName"],
            subdomain,
        );
        let annotation = &object["metadata"]["annotations"][CLASS_ANNOTATION];
        let (named, class) = (annotation.as_str(), spec["ingressClassName"].as_str());
        if named.is_some() && class.is_some() && named != class {
            let detail = "must match `ingressClassName` when both are specified";
            errors.add(
                format!("annotations.{CLASS_ANNOTATION}"),
                annotation,
                detail,
            );
        }
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        _: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if sub == Some(Subresource::Status) {
            load_balancer(&mut errors, object);
            return errors.0;
        }
        // Only a new ingress is refused for an annotation that says something else.
        errors.0 = self.validate(object);
        errors
            .0
            .retain(|error| !error.field.starts_with("annotations."));
        errors.0
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let annotated = |object: &Value| {
            object["metadata"]["annotations"]
                .get(CLASS_ANNOTATION)
                .is_some()
        };
        let new = annotated(object) && old.is_none();
        Vec::from_iter(new.then(|| {
            format!("annotation {CLASS_ANNOTATION:?} is deprecated, please use 'spec.ingressClassName' instead")
        }))
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Class Hosts Address Ports Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        let tls = items(&spec["tls"]).next().is_some();
        vec![
            table::name(object),
            spec["ingressClassName"].as_str().unwrap_or("<none>").into(),
            hosts_text(&spec["rules"]).into(),
            addresses_text(&object["status"]["loadBalancer"]).into(),
            if tls { "80, 443" } else { "80" }.into(),
            table::age(object, now),
        ]
    }
}

/// The first three hosts, and how many more there are; `*` where any host will do.
fn hosts_text(rules: &Value) -> String {
    const SHOWN: usize = 3;
    let hosts = items(rules)
        .map(|(_, rule)| text(&rule["host"]))
        .filter(|host| !host.is_empty());
    let hosts: Vec<&str> = hosts.collect();
    let shown = hosts[..hosts.len().min(SHOWN)].join(",");
    match hosts.len() {
        0 => "*".to_owned(),
        all if all > SHOWN => format!("{shown} + {} more...", all - SHOWN),
        _ => shown,
    }
}

fn addresses_text(status: &Value) -> String {
    let address = |entry: &Value| match text(&entry["ip"]) {
        "" => text(&entry["hostname"]).to_owned(),
        ip => ip.to_owned(),
    };
    let mut all: Vec<String> = items(&status["ingress"])
        .map(|(_, entry)| address(entry))
        .collect();
    all.retain(|address| !address.is_empty());
    all.sort_unstable();
    all.dedup();
    all.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::fields::tests::{check_new, check_update, shown};

    fn ingress() -> Value {
        let service = json!({ "name": "web", "port": { "number": 80 } });
        json!({ "metadata": { "name": "web" }, "spec": { "ingressClassName": "a", "rules": [{ "host": "*.example.com",
            "http": { "paths": [{ "pathType": "Prefix", "path": "/", "backend": { "service": service } }] } }] } })
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn an_ingress_leads_hosts_and_paths_to_backends() {
        let (path, at) = ("/spec/rules/0/http/paths/0", "spec.rules[0].http.paths[0]");
        let wildcard = format!("spec.rules[0].host: Invalid value: \"a.*.b\": {WILDCARD}");
        check_new(&Ingress, &ingress(), &[
            ("/spec/rules", Value::Null, &["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"]),
            ("/spec/rules/0/host", json!("1.2.3.4"), &["spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address"]),
            ("/spec/rules/0/host", json!("a.*.b"), &[&wildcard]),
            ("/spec/rules/0/http/paths", json!([]), &["spec.rules[0].http.paths: Required value"]),
            (&format!("{path}/pathType"), Value::Null, &[&format!("{at}.pathType: Required value: pathType must be specified")]),
            (&format!("{path}/pathType"), json!("Any"), &[&format!("{at}.pathType: Unsupported value: \"Any\": supported values: \"Exact\", \"ImplementationSpecific\", \"Prefix\"")]),
            (&format!("{path}/path"), json!("a"), &[&format!("{at}.path: Invalid value: \"a\": must be an absolute path")]),
            (&format!("{path}/path"), json!("/a//b"), &[&format!("{at}.path: Invalid value: \"/a//b\": must not contain '//'")]),
            (&format!("{path}/path"), json!("/a/.."), &[&format!("{at}.path: Invalid value: \"/a/..\": cannot end with '/..'")]),
            (&format!("{path}/backend"), json!({}), &[&format!("{at}.backend: Invalid value: \"\": resource or service backend is required")]),
            (&format!("{path}/backend/resource"), json!({ "kind": "A", "name": "a" }), &[&format!("{at}.backend: Invalid value: \"\": cannot set both resource and service backends")]),
            (&format!("{path}/backend/service/port"), json!({}), &[&format!("{at}.backend: Required value: port name or number is required")]),
            (&format!("{path}/backend/service/port/name"), json!("web"), &[&format!("{at}.backend: Invalid value: \"\": cannot set both port name & port number")]),
            (&format!("{path}/backend/service/port/number"), json!(70000), &[&format!("{at}.backend.service.port.number: Invalid value: 70000: must be between 1 and 65535, inclusive")]),
            (&format!("{path}/backend/service/name"), Value::Null, &[&format!("{at}.backend.service.name: Required value")]),
            ("/metadata/annotations", json!({ CLASS_ANNOTATION: "b" }), &["annotations.kubernetes.io/ingress.class: Invalid value: \"b\": must match `ingressClassName` when both are specified"]),
        ]);
        check_update(&Ingress, &ingress(), &[("/metadata/annotations", json!({ CLASS_ANNOTATION: "b" }), &[])]);
    }

    #[test]
    fn the_status_of_an_ingress_has_addresses_and_names() {
        let mut object = ingress();
        object["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "1.2.3" }, { "hostname": "1.2.3.4" }] } });
        let errors = Ingress.validate_update(Some(Subresource::Status), &object, &object);
        assert_eq!(
            shown(&errors),
            [
                "status.loadBalancer.ingress[0].ip: Invalid value: \"1.2.3\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                "status.loadBalancer.ingress[1].hostname: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
            ]
        );
    }

    #[test]
    fn a_table_shows_three_hosts() {
        for (hosts, wanted) in [
            (vec![], "*"),
            (vec!["a", "b"], "a,b"),
            (vec!["a", "b", "c", "d", "e"], "a,b,c + 2 more..."),
        ] {
            let rules = hosts.iter().map(|host| json!({ "host": host })).collect();
            assert_eq!(hosts_text(&rules), wanted);
        }
    }
}
