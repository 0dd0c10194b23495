//! Network policies.

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, selector_text, text};
use crate::strategy::fields::{CIDR, count, raise_generation};
use crate::strategy::validation::{Errors, items, label_selector, port_name};
use crate::strategy::{Column, Context, Strategy};
use crate::table;

/// Which connections pods accept and make.
pub struct NetworkPolicy;

const TYPES: &[&str] = &["Ingress", "Egress"];

fn port(errors: &mut Errors, at: &str, port: &Value) {
    if !port["protocol"].is_null() {
        errors.one_of(
            format!("{at}.protocol"),
            &port["protocol"],
            &["TCP", "UDP", "SCTP"],
        );
    }
    let (first, last) = (&port["port"], &port["endPort"]);
    let end = format!("{at}.endPort");
    match first {
        Value::Null if !last.is_null() => {
            errors.add(
                end,
                last,
                "may not be specified when `port` is not specified",
            );
        }
        Value::Null => {}
        Value::String(name) => {
            if !last.is_null() {
                errors.add(end, last, "may not be specified when `port` is non-numeric");
            }
            errors.invalid(&format!("{at}.port"), name.as_str(), port_name(name));
        }
        number => {
            errors.port(format!("{at}.port"), number);
            if !last.is_null() {
                if last.as_i64() < number.as_i64() {
                    errors.add(&end, last, "must be greater than or equal to `port`");
                }
                errors.port(end, last);
            }
        }
    }
}

fn peer(errors: &mut Errors, at: &str, peer: &Value) {
    let given = |field: &str| !peer[field].is_null();
    let selectors = ["podSelector", "namespaceSelector"];
    for field in selectors {
        label_selector(errors, &format!("{at}.{field}"), &peer[field]);
    }
    if given("ipBlock") {
        ip_block(errors, &format!("{at}.ipBlock"), &peer["ipBlock"]);
    }
    match (given("ipBlock"), selectors.into_iter().any(given)) {
        (false, false) => errors.required(at, "must specify a peer"),
        (true, true) => {
            let detail = "may not specify both ipBlock and another peer";
            errors.0.push(FieldError::forbidden(at, detail));
        }
        _ => {}
    }
}

fn ip_block(errors: &mut Errors, at: &str, block: &Value) {
    let cidr = &block["cidr"];
    if text(cidr).is_empty() {
        return errors.required(format!("{at}.cidr"), "");
    }
    let Ok(all) = text(cidr).parse::<IpNet>() else {
        return errors.add(format!("{at}.cidr"), cidr, CIDR);
    };
    for (index, except) in items(&block["except"]) {
        let at = format!("{at}.except[{index}]");
        match text(except).parse::<IpNet>() {
            Err(_) => errors.add(at, except, CIDR),
            Ok(part) if !all.contains(&part.network()) || all.prefix_len() >= part.prefix_len() => {
                errors.add(at, except, "must be a strict subset of `cidr`");
            }
            Ok(_) => {}
        }
    }
}

impl Strategy for NetworkPolicy {
    fn default(&self, object: &mut Value) {
        let spec = &object["spec"];
        if !spec.is_object() || count(&spec["policyTypes"]) > 0 {
            return;
        }
        // A policy about connections that pods make is about those that they accept, too.
        let both = count(&spec["egress"]) > 0;
        object["spec"]["policyTypes"] = if both {
            json!(TYPES)
        } else {
            json!(["Ingress"])
        };
    }

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
        let spec = &object["spec"];
        label_selector(&mut errors, "spec.podSelector", &spec["podSelector"]);
        for (list, peers) in [("ingress", "from"), ("egress", "to")] {
            for (index, rule) in items(&spec[list]) {
                let at = format!("spec.{list}[{index}]");
                for (number, value) in items(&rule["ports"]) {
                    port(&mut errors, &format!("{at}.ports[{number}]"), value);
                }
                for (number, value) in items(&rule[peers]) {
                    peer(&mut errors, &format!("{at}.{peers}[{number}]"), value);
                }
            }
        }
        let types = &spec["policyTypes"];
        if count(types) > TYPES.len() {
            errors.add(
                "spec.policyTypes",
                types,
                "may not specify more than two policyTypes",
            );
            return errors.0;
        }
        for (index, kind) in items(types) {
            errors.one_of(format!("spec.policyTypes[{index}]"), kind, TYPES);
        }
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Pod-Selector Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let selector = selector_text(&object["spec"]["podSelector"]);
        vec![
            table::name(object),
            selector.into(),
            table::age(object, now),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::fields::tests::check_new;

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_policy_names_ports_and_peers() {
        let good = json!({ "spec": { "podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{
            "ports": [{ "protocol": "TCP", "port": 80, "endPort": 90 }],
            "from": [{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] } }] }] } });
        let (port, peer) = ("/spec/ingress/0/ports/0", "/spec/ingress/0/from/0");
        let (port_at, peer_at) = ("spec.ingress[0].ports[0]", "spec.ingress[0].from[0]");
        check_new(&NetworkPolicy, &good, &[
            (&format!("{port}/protocol"), json!("ICMP"), &[&format!("{port_at}.protocol: Unsupported value: \"ICMP\": supported values: \"TCP\", \"UDP\", \"SCTP\"")]),
            (&format!("{port}/port"), json!(0), &[&format!("{port_at}.port: Invalid value: 0: must be between 1 and 65535, inclusive")]),
            (&format!("{port}/port"), Value::Null, &[&format!("{port_at}.endPort: Invalid value: 90: may not be specified when `port` is not specified")]),
            (&format!("{port}/port"), json!("web"), &[&format!("{port_at}.endPort: Invalid value: 90: may not be specified when `port` is non-numeric")]),
            (&format!("{port}/endPort"), json!(70), &[&format!("{port_at}.endPort: Invalid value: 70: must be greater than or equal to `port`")]),
            (peer, json!({}), &[&format!("{peer_at}: Required value: must specify a peer")]),
            (&format!("{peer}/podSelector"), json!({}), &[&format!("{peer_at}: Forbidden: may not specify both ipBlock and another peer")]),
            (&format!("{peer}/ipBlock"), json!({}), &[&format!("{peer_at}.ipBlock.cidr: Required value")]),
            (&format!("{peer}/ipBlock/cidr"), json!("10.0.0.0"), &[&format!("{peer_at}.ipBlock.cidr: Invalid value: \"10.0.0.0\": {CIDR}")]),
            (&format!("{peer}/ipBlock/except"), json!(["11.0.0.0/16"]), &[&format!("{peer_at}.ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`")]),
            (&format!("{peer}/ipBlock/except"), json!(["10.0.0.0/8"]), &[&format!("{peer_at}.ipBlock.except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`")]),
            ("/spec/policyTypes", json!(["Both"]), &["spec.policyTypes[0]: Unsupported value: \"Both\": supported values: \"Ingress\", \"Egress\""]),
        ]);
    }

    #[test]
    fn the_types_of_a_policy_follow_from_its_rules() {
        for (spec, wanted) in [
            (json!({}), json!(["Ingress"])),
            (json!({ "egress": [{}] }), json!(["Ingress", "Egress"])),
            (json!({ "policyTypes": ["Egress"] }), json!(["Egress"])),
        ] {
            let mut policy = json!({ "spec": spec });
            NetworkPolicy.default(&mut policy);
            assert_eq!(policy["spec"]["policyTypes"], wanted);
        }
    }
}
