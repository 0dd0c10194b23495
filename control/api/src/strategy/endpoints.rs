//! Endpoints and EndpointSlices.

use serde_json::Value;

use super::common::{self, text};
use super::service::{PROTOCOLS, special_address};
use super::validation::{Errors, dns_label, ip_address, items};
use super::warnings::address;
use super::{Column, Context, Strategy};
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::table;

/// Endpoints.
pub struct Endpoints;

/// EndpointSlices.
pub struct EndpointSlice;

/// Addresses and ports as one cell, at most three of them.
fn endpoint_cell(pairs: &[String]) -> String {
    match pairs.len() {
        0 => "<none>".to_owned(),
        1..=3 => pairs.join(","),
        n => format!("{} + {} more...", pairs[..3].join(","), n - 3),
    }
}

impl Strategy for Endpoints {
    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        for (index, subset) in items(&object["subsets"]) {
            let at = format!("subsets[{index}]");
            let (ready, waiting) = (&subset["addresses"], &subset["notReadyAddresses"]);
            if items(ready).next().is_none() && items(waiting).next().is_none() {
                errors.required(
                    at.clone(),
                    "must specify `addresses` or `notReadyAddresses`",
                );
            }
            for field in ["addresses", "notReadyAddresses"] {
                for (number, address) in items(&subset[field]) {
                    check_ip(
                        &mut errors,
                        &format!("{at}.{field}[{number}].ip"),
                        &address["ip"],
                    );
                }
            }
            for (number, port) in items(&subset["ports"]) {
                errors.port(format!("{at}.ports[{number}].port"), &port["port"]);
                errors.one_of(
                    format!("{at}.ports[{number}].protocol"),
                    &port["protocol"],
                    PROTOCOLS,
                );
            }
        }
        errors.0
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        if is_managed(object, "endpoints.kubernetes.io/managed-by") {
            return warnings;
        }
        for (index, subset) in items(&object["subsets"]) {
            for field in ["addresses", "notReadyAddresses"] {
                for (number, entry) in items(&subset[field]) {
                    let path = format!("subsets[{index}].{field}[{number}].ip");
                    warnings.extend(address(&path, text(&entry["ip"])));
                }
            }
        }
        warnings
    }

    fn deprecation(&self) -> Option<&'static str> {
        Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Endpoints Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let mut pairs = Vec::new();
        for (_, subset) in items(&object["subsets"]) {
            let no_ports = items(&subset["ports"]).next().is_none();
            for (_, address) in items(&subset["addresses"]) {
                if no_ports {
                    pairs.push(text(&address["ip"]).to_owned());
                }
            }
            for (_, port) in items(&subset["ports"]) {
                for (_, address) in items(&subset["addresses"]) {
                    pairs.push(join_host_port(text(&address["ip"]), &port["port"]));
                }
            }
        }
        vec![
            table::name(object),
            endpoint_cell(&pairs).into(),
            table::age(object, now),
        ]
    }
}

fn join_host_port(host: &str, port: &Value) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn check_ip(errors: &mut Errors, at: &str, value: &Value) {
    let ip = text(value);
    errors.invalid(at, ip, ip_address(ip));
    if let Ok(address) = ip.parse::<std::net::IpAddr>() {
        errors.invalid(at, ip, special_address(address));
    }
}

/// Whether one of our controllers keeps the object: it writes addresses as everybody does.
fn is_managed(object: &Value, label: &str) -> bool {
    !text(&object["metadata"]["labels"][label]).is_empty()
}

impl Strategy for EndpointSlice {
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
        let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
        let changed = ["endpoints", "ports", "addressType"]
            .iter()
            .any(|field| object[*field] != old[*field])
            || object["metadata"]["labels"] != old["metadata"]["labels"];
        object["metadata"]["generation"] = (before + i64::from(changed)).into();
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        errors.one_of(
            "addressType",
            &object["addressType"],
            &["FQDN", "IPv4", "IPv6"],
        );
        let endpoints = items(&object["endpoints"]).count();
        if endpoints > 1000 {
            errors
                .0
                .push(FieldError::too_many("endpoints", endpoints, 1000));
        }
        for (index, endpoint) in items(&object["endpoints"]) {
            let at = format!("endpoints[{index}].addresses");
            if items(&endpoint["addresses"]).next().is_none() {
                errors.required(at.clone(), "must contain at least 1 address");
            }
            for (number, address) in items(&endpoint["addresses"]) {
                match text(&object["addressType"]) {
                    "FQDN" => {
                        let name = text(address);
                        errors.invalid(
                            &format!("{at}[{number}]"),
                            name,
                            super::validation::subdomain(name),
                        );
                    }
                    _ => check_ip(&mut errors, &format!("{at}[{number}]"), address),
                }
            }
        }
        let ports = items(&object["ports"]).count();
        if ports > 100 {
            errors.0.push(FieldError::too_many("ports", ports, 100));
        }
        for (index, port) in items(&object["ports"]) {
            let name = text(&port["name"]);
            if !name.is_empty() {
                errors.invalid(&format!("ports[{index}].name"), name, dns_label(name));
            }
            if items(&object["ports"])
                .take(index)
                .any(|(_, other)| text(&other["name"]) == name)
            {
                errors.0.push(FieldError::duplicate(
                    format!("ports[{index}].name"),
                    &name.into(),
                ));
            }
            errors.one_of(
                format!("ports[{index}].protocol"),
                &port["protocol"],
                PROTOCOLS,
            );
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
        errors.immutable("addressType", &object["addressType"], &old["addressType"]);
        errors.0
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        if object["addressType"] == "FQDN" {
            warnings.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
        }
        if is_managed(object, "endpointslice.kubernetes.io/managed-by")
            || object["addressType"] == "FQDN"
        {
            return warnings;
        }
        for (index, endpoint) in items(&object["endpoints"]) {
            for (number, entry) in items(&endpoint["addresses"]) {
                let path = format!("endpoints[{index}].addresses[{number}]");
                warnings.extend(address(&path, text(entry)));
            }
        }
        warnings
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name AddressType Ports Endpoints Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let mut ports: Vec<String> = items(&object["ports"])
            .map(|(_, port)| match port["port"].as_i64() {
                Some(number) => number.to_string(),
                None => "<unset>".to_owned(),
            })
            .collect();
        if ports.len() > 3 {
            let more = ports.len() - 3;
            ports.truncate(3);
            ports = vec![format!("{} + {more} more...", ports.join(","))];
        }
        let ports = if ports.is_empty() {
            "<unset>".to_owned()
        } else {
            ports.join(",")
        };
        let mut addresses: Vec<String> = items(&object["endpoints"])
            .flat_map(|(_, endpoint)| {
                items(&endpoint["addresses"])
                    .map(|(_, a)| text(a).to_owned())
                    .collect::<Vec<_>>()
            })
            .collect();
        if addresses.len() > 3 {
            let more = addresses.len() - 3;
            addresses.truncate(3);
            addresses = vec![format!("{} + {more} more...", addresses.join(","))];
        }
        let addresses = if addresses.is_empty() {
            "<unset>".to_owned()
        } else {
            addresses.join(",")
        };
        vec![
            table::name(object),
            text(&object["addressType"]).into(),
            ports.into(),
            addresses.into(),
            table::age(object, now),
        ]
    }
}
