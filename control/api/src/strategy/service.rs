//! Services.

use serde_json::{Value, json};

use super::common::{self, selectable, text};
use super::validation::{Errors, dns_1035_label, dns_label, items, labels, port_name};
use super::{Column, Context, Strategy};
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::table;

/// Services.
pub struct Service;

pub(super) const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
/// Every second of a day: the longest affinity.
const MAX_AFFINITY: i64 = 86_400;

fn has_ports_on_nodes(spec: &Value) -> bool {
    matches!(text(&spec["type"]), "NodePort" | "LoadBalancer")
}

impl Strategy for Service {
    fn default(&self, object: &mut Value) {
        let spec = &mut object["spec"];
        let kind = text(&spec["type"]).to_owned();
        let unset = |value: &Value| text(value).is_empty();
        if spec["sessionAffinity"] == "ClientIP"
            && spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].is_null()
        {
            spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": 10_800 } });
        } else if spec["sessionAffinity"] == "None" {
            spec.as_object_mut()
                .map(|spec| spec.remove("sessionAffinityConfig"));
        }
        if has_ports_on_nodes(spec) && unset(&spec["externalTrafficPolicy"]) {
            spec["externalTrafficPolicy"] = "Cluster".into();
        }
        if kind != "ExternalName" && unset(&spec["internalTrafficPolicy"]) {
            spec["internalTrafficPolicy"] = "Cluster".into();
        }
        if kind == "LoadBalancer" && spec["allocateLoadBalancerNodePorts"].is_null() {
            spec["allocateLoadBalancerNodePorts"] = true.into();
        }
    }

    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        object["status"] = json!({ "loadBalancer": {} });
        let spec = &mut object["spec"];
        if spec["type"] != "ExternalName" && text(&spec["ipFamilyPolicy"]).is_empty() {
            spec["ipFamilyPolicy"] = "SingleStack".into();
        }
        clear_for_type(spec);
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        if sub == Some(Subresource::Status) {
            common::keep(object, old, "spec");
            return;
        }
        common::keep(object, old, "status");
        let (spec, before) = (&mut object["spec"], &old["spec"]);
        if spec["type"] != "ExternalName" && before["type"] != "ExternalName" {
            // What the server chose stays unless the client says otherwise.
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if spec[field].is_null() && !before[field].is_null() {
                    spec[field] = before[field].clone();
                }
            }
        }
        if has_ports_on_nodes(spec) && has_ports_on_nodes(before) {
            keep_node_ports(spec, before);
        }
        if spec["healthCheckNodePort"].is_null()
            && !before["healthCheckNodePort"].is_null()
            && needs_health_port(spec)
        {
            spec["healthCheckNodePort"] = before["healthCheckNodePort"].clone();
        }
        clear_for_type(spec);
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        validate_service(object)
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if sub == Some(Subresource::Status) {
            return errors.0;
        }
        let external = |object: &Value| object["spec"]["type"] == "ExternalName";
        let (new_ip, old_ip) = (&object["spec"]["clusterIP"], &old["spec"]["clusterIP"]);
        if !external(object) && !external(old) && !text(old_ip).is_empty() {
            errors.immutable("spec.clusterIP", new_ip, old_ip);
        }
        errors.0.extend(validate_service(object));
        errors.0
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![
            ("spec.clusterIP", selectable(object, &["spec", "clusterIP"])),
            ("spec.type", selectable(object, &["spec", "type"])),
        ]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["spec.clusterIP", "spec.type"]
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Type Cluster-IP External-IP Port(s) Age Selector*")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        let cluster_ip = match text(&spec["clusterIP"]) {
            "" => "<none>",
            ip => ip,
        };
        let ports: Vec<String> = items(&spec["ports"])
            .map(|(_, port)| {
                let protocol = text(&port["protocol"]);
                match port["nodePort"].as_i64().filter(|n| *n > 0) {
                    Some(node) => format!("{}:{node}/{protocol}", port["port"]),
                    None => format!("{}/{protocol}", port["port"]),
                }
            })
            .collect();
        vec![
            table::name(object),
            text(&spec["type"]).into(),
            cluster_ip.into(),
            external_ip(object).into(),
            common::none_if_empty(ports.join(",")).into(),
            table::age(object, now),
            common::map_text(&spec["selector"]).into(),
        ]
    }
}

/// Drops what a service of this type cannot have.
fn clear_for_type(spec: &mut Value) {
    let ports_on_nodes = has_ports_on_nodes(spec);
    let external = spec["type"] == "ExternalName";
    let health = needs_health_port(spec);
    let Some(fields) = spec.as_object_mut() else {
        return;
    };
    if external {
        for field in [
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "internalTrafficPolicy",
        ] {
            fields.remove(field);
        }
    }
    if !health {
        fields.remove("healthCheckNodePort");
    }
    if fields
        .get("type")
        .is_some_and(|kind| kind != "LoadBalancer")
    {
        fields.remove("allocateLoadBalancerNodePorts");
        fields.remove("loadBalancerClass");
    }
    if !ports_on_nodes {
        if fields.get("externalIPs").is_none() {
            fields.remove("externalTrafficPolicy");
        }
        for port in fields
            .get_mut("ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            port.as_object_mut().map(|port| port.remove("nodePort"));
        }
    }
}

/// Whether load balancers ask each node for the service's endpoints there.
pub fn needs_health_port(spec: &Value) -> bool {
    spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local"
}

/// A port keeps its node port if the client leaves it out.
fn keep_node_ports(spec: &mut Value, before: &Value) {
    let ports: Vec<(Value, Value)> = items(&before["ports"])
        .map(|(_, p)| (json!([p["port"], p["protocol"]]), p["nodePort"].clone()))
        .collect();
    let mut used: Vec<Value> = items(&spec["ports"])
        .map(|(_, port)| port["nodePort"].clone())
        .collect();
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        if port["nodePort"].as_i64().unwrap_or(0) != 0 {
            continue;
        }
        let key = json!([port["port"], port["protocol"]]);
        let Some((_, node)) = ports.iter().find(|(old, _)| *old == key) else {
            port.as_object_mut().map(|port| port.remove("nodePort"));
            continue;
        };
        if !node.is_null() && !used.contains(node) {
            used.push(node.clone());
            port["nodePort"] = node.clone();
        } else {
            port.as_object_mut().map(|port| port.remove("nodePort"));
        }
    }
}

fn external_ip(object: &Value) -> String {
    let spec = &object["spec"];
    let external: Vec<&str> = items(&spec["externalIPs"])
        .map(|(_, ip)| text(ip))
        .collect();
    match text(&spec["type"]) {
        "ExternalName" => text(&spec["externalName"]).to_owned(),
        "LoadBalancer" => {
            let mut all: Vec<&str> = items(&object["status"]["loadBalancer"]["ingress"])
                .map(|(_, i)| {
                    if text(&i["ip"]).is_empty() {
                        text(&i["hostname"])
                    } else {
                        text(&i["ip"])
                    }
                })
                .collect();
            all.extend(&external);
            if all.is_empty() {
                "<pending>".to_owned()
            } else {
                all.join(",")
            }
        }
        _ => common::none_if_empty(external.join(",")),
    }
}

fn validate_service(object: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let spec = &object["spec"];
    let name = text(&object["metadata"]["name"]);
    if !name.is_empty() {
        errors.invalid("metadata.name", name, dns_1035_label(name));
    }
    let kind = text(&spec["type"]);
    errors.one_of(
        "spec.type",
        &spec["type"],
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
    );
    errors.one_of(
        "spec.sessionAffinity",
        &spec["sessionAffinity"],
        &["ClientIP", "None"],
    );
    let timeout = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
    if timeout
        .as_i64()
        .is_some_and(|n| !(1..=MAX_AFFINITY).contains(&n))
    {
        errors.add(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            timeout,
            &format!("must be greater than 0 and less than {MAX_AFFINITY}"),
        );
    }
    let headless = spec["clusterIP"] == "None";
    let no_ports = items(&spec["ports"]).next().is_none();
    if no_ports && !headless && kind != "ExternalName" {
        errors.required("spec.ports", "");
    }
    if headless && has_ports_on_nodes(spec) {
        errors.add(
            "spec.clusterIPs[0]",
            &"None".into(),
            &format!("may not be set to 'None' for {kind} services"),
        );
    }
    if kind == "ExternalName" {
        let target = text(&spec["externalName"]).trim_end_matches('.');
        if target.is_empty() {
            errors.required("spec.externalName", "");
        } else {
            errors.invalid(
                "spec.externalName",
                target,
                super::validation::subdomain(target),
            );
        }
        if !text(&spec["clusterIP"]).is_empty() {
            errors.0.push(FieldError::forbidden(
                "spec.clusterIPs",
                "may not be set for ExternalName services",
            ));
        }
    } else if !matches!(text(&spec["clusterIP"]), "" | "None")
        && text(&spec["clusterIP"])
            .parse::<std::net::IpAddr>()
            .is_err()
    {
        errors.add(
            "spec.clusterIPs[0]",
            &spec["clusterIP"],
            "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        );
    }
    labels(&mut errors, "spec.selector", &spec["selector"]);
    validate_service_ports(&mut errors, spec);
    for (index, ip) in items(&spec["externalIPs"]) {
        match text(ip).parse::<std::net::IpAddr>() {
            Ok(ip) if !ip.is_loopback() && !ip.is_unspecified() => {}
            Ok(_) => errors.add(
                format!("spec.externalIPs[{index}]"),
                ip,
                "may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ),
            Err(_) => errors.add(
                format!("spec.externalIPs[{index}]"),
                ip,
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ),
        }
    }
    for (field, needed) in [
        ("externalTrafficPolicy", has_ports_on_nodes(spec)),
        ("internalTrafficPolicy", false),
    ] {
        let value = &spec[field];
        if !value.is_null() {
            errors.one_of(format!("spec.{field}"), value, &["Cluster", "Local"]);
        } else if needed {
            errors.required(format!("spec.{field}"), "");
        }
    }
    if !spec["ipFamilyPolicy"].is_null() {
        errors.one_of(
            "spec.ipFamilyPolicy",
            &spec["ipFamilyPolicy"],
            &["PreferDualStack", "RequireDualStack", "SingleStack"],
        );
    }
    errors.0
}

fn validate_service_ports(errors: &mut Errors, spec: &Value) {
    let ports = &spec["ports"];
    let several = items(ports).count() > 1;
    for (index, port) in items(ports) {
        let at = format!("spec.ports[{index}]");
        let name = text(&port["name"]);
        if name.is_empty() && several {
            errors.required(format!("{at}.name"), "");
        } else if !name.is_empty() {
            errors.invalid(&format!("{at}.name"), name, dns_label(name));
            if items(ports)
                .take(index)
                .any(|(_, other)| other["name"] == name)
            {
                errors
                    .0
                    .push(FieldError::duplicate(format!("{at}.name"), &port["name"]));
            }
        }
        errors.port(format!("{at}.port"), &port["port"]);
        errors.one_of(format!("{at}.protocol"), &port["protocol"], PROTOCOLS);
        match &port["targetPort"] {
            Value::String(target) => errors.invalid(
                &format!("{at}.targetPort"),
                target.as_str(),
                port_name(target),
            ),
            Value::Null => {}
            target => errors.port(format!("{at}.targetPort"), target),
        }
        let same =
            |other: &Value| other["port"] == port["port"] && other["protocol"] == port["protocol"];
        if items(ports).take(index).any(|(_, other)| same(other)) {
            let value = json!({ "protocol": port["protocol"], "port": port["port"] });
            errors.0.push(FieldError::duplicate(at.clone(), &value));
        }
        let node = port["nodePort"].as_i64().unwrap_or(0);
        if node != 0 && !has_ports_on_nodes(spec) {
            errors.0.push(FieldError::forbidden(
                format!("{at}.nodePort"),
                "may not be used when `type` is 'ClusterIP'",
            ));
        }
        let same_node = |other: &Value| {
            other["nodePort"] == port["nodePort"] && other["protocol"] == port["protocol"]
        };
        if node != 0 && items(ports).take(index).any(|(_, other)| same_node(other)) {
            errors.0.push(FieldError::duplicate(
                format!("{at}.nodePort"),
                &port["nodePort"],
            ));
        }
    }
}
