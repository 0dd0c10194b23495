//! Ingresses and their classes.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::common::{self, none_if_empty, text};
use super::fields::{anything, optional_text, path_segment, raise_generation, required_text};
use super::validation::{Errors, dns_label, ip_address, items, port_name, subdomain};
use super::{Column, Context, Strategy};
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::table;

/// Rules by which requests from outside reach services.
pub struct Ingress;

/// Classes of ingresses: who implements them.
pub struct IngressClass;

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const DEFAULT_CLASS: &str = "ingressclass.kubernetes.io/is-default-class";
const NOT_AN_ADDRESS: &str = "must be a DNS name, not an IP address";
const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

/// The longest name of a controller.
const LONGEST_CONTROLLER: usize = 250;

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

fn reference(errors: &mut Errors, at: &str, reference: &Value) {
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

/// What is wrong with the name of a controller: `example.com/name`, each mistake with the part that it is about.
fn controller(errors: &mut Errors, at: &str, name: &str) {
    let parts = name
        .split_once('/')
        .filter(|(host, path)| !host.is_empty() && !path.is_empty());
    let Some((host, path)) = parts else {
        let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
        return errors.add(at, &name.into(), detail);
    };
    errors.invalid(at, host, subdomain(host));
    let allowed = |c: u8| c.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:".contains(&c);
    if !path.bytes().all(allowed) {
        let detail =
            "Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')";
        errors.add(at, &path.into(), detail);
    }
}

fn parameters(errors: &mut Errors, parameters: &Value) {
    let at = "spec.parameters";
    reference(errors, at, parameters);
    let (scope, namespace) = (&parameters["scope"], &parameters["namespace"]);
    let place = format!("{at}.namespace");
    match scope.as_str() {
        None => errors.required(format!("{at}.scope"), ""),
        Some("Namespace") if namespace.is_null() => {
            errors.required(place, "`parameters.scope` is set to 'Namespace'");
        }
        Some("Namespace") => optional_text(errors, &place, namespace, dns_label),
        Some("Cluster") if !namespace.is_null() => {
            let detail = "`parameters.scope` is set to 'Cluster'";
            errors.0.push(FieldError::forbidden(place, detail));
        }
        Some(_) => errors.one_of(format!("{at}.scope"), scope, &["Cluster", "Namespace"]),
    }
}

impl Strategy for IngressClass {
    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        common::first_generation(object);
    }

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

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let (at, spec) = ("spec.controller", &object["spec"]);
        required_text(&mut errors, at, &spec["controller"], anything);
        let name = text(&spec["controller"]);
        if name.len() > LONGEST_CONTROLLER {
            errors
                .0
                .push(FieldError::too_long(at, LONGEST_CONTROLLER, "bytes"));
        }
        if !name.is_empty() {
            controller(&mut errors, at, name);
        }
        if !spec["parameters"].is_null() {
            parameters(&mut errors, &spec["parameters"]);
        }
        errors.0
    }

    fn validate_update(
        &self,
        _: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let (name, before) = (&object["spec"]["controller"], &old["spec"]["controller"]);
        errors.immutable("spec.controller", name, before);
        errors.0.extend(self.validate(object));
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Controller Parameters Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let parameters = &object["spec"]["parameters"];
        let mut shown = text(&parameters["kind"]).to_owned();
        if let Some(group) = parameters["apiGroup"].as_str() {
            shown.push_str(&format!(".{group}"));
        }
        if parameters.is_object() {
            shown.push_str(&format!("/{}", text(&parameters["name"])));
        }
        let is_default = object["metadata"]["annotations"][DEFAULT_CLASS] == "true";
        let mark = if is_default { " (default)" } else { "" };
        vec![
            format!("{}{mark}", text(&object["metadata"]["name"])).into(),
            text(&object["spec"]["controller"]).into(),
            none_if_empty(shown).into(),
            table::age(object, now),
        ]
    }
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

    fn class() -> Value {
        json!({ "metadata": { "name": "a" }, "spec": { "controller": "example.com/a" } })
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

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_class_names_its_controller() {
        check_new(&IngressClass, &class(), &[
            ("/spec/controller", Value::Null, &["spec.controller: Required value"]),
            ("/spec/controller", json!("a"), &["spec.controller: Invalid value: \"a\": must be a domain-prefixed path (such as \"acme.io/foo\")"]),
            ("/spec/controller", json!("example.com/a b"), &["spec.controller: Invalid value: \"a b\": Invalid path (regex used for validation is '[A-Za-z0-9/\\-._~%!$&'()*+,;=:]+')"]),
            ("/spec/parameters", json!({ "kind": "A", "name": "a" }), &["spec.parameters.scope: Required value"]),
            ("/spec/parameters", json!({ "kind": "A", "name": "a", "scope": "Namespace" }), &["spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"]),
            ("/spec/parameters", json!({ "kind": "A", "name": "a", "scope": "Cluster", "namespace": "b" }), &["spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'"]),
        ]);
        check_update(&IngressClass, &class(), &[
            ("/spec/controller", json!("example.com/b"), &["spec.controller: Invalid value: \"example.com/b\": field is immutable"]),
        ]);
    }

    #[test]
    fn the_default_class_is_marked() {
        let mut class = class();
        class["metadata"]["annotations"] = json!({ DEFAULT_CLASS: "true" });
        assert_eq!(
            IngressClass.cells(&class, jiff::Timestamp::UNIX_EPOCH)[0],
            "a (default)"
        );
    }
}
