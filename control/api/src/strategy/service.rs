//! Services.

use serde_json::{Value, json};

use super::common::{self, selectable, text};
use super::validation::{
    Errors, dns_1035_label, dns_label, ip_address, items, labels, port_name, qualified_name,
    subdomain,
};
use super::warnings::{address, network};
use super::{Column, Context, Proxied, Strategy};
use crate::registry::names;
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
    fn check_name(&self, name: &str) -> Result<(), String> {
        names::dns_1035_label(name)
    }

    fn proxied(&self) -> Option<Proxied> {
        Some(Proxied::Service)
    }

    fn holds_addresses(&self) -> bool {
        true
    }

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
        if is_reached_from_outside(spec) && unset(&spec["externalTrafficPolicy"]) {
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
        if has_cluster_address(spec) && text(&spec["ipFamilyPolicy"]).is_empty() {
            spec["ipFamilyPolicy"] = "SingleStack".into();
        }
        let address = &spec["clusterIP"];
        if !text(address).is_empty() && is_empty(&spec["clusterIPs"]) {
            spec["clusterIPs"] = json!([address]);
        }
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
        one_address(spec, before);
        if has_cluster_address(spec) && has_cluster_address(before) {
            // What the server chose stays unless the client says otherwise.
            for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                if (text(&spec[field]).is_empty() && is_empty(&spec[field]))
                    && !before[field].is_null()
                {
                    spec[field] = before[field].clone();
                }
            }
        }
        if has_ports_on_nodes(spec) && has_ports_on_nodes(before) {
            keep_node_ports(spec, before);
        }
        if spec["healthCheckNodePort"].as_i64().unwrap_or(0) == 0
            && needs_health_port(before)
            && needs_health_port(spec)
        {
            spec["healthCheckNodePort"] = before["healthCheckNodePort"].clone();
        }
        drop_for_type(spec, before);
        if object["spec"]["type"] != "LoadBalancer" {
            object["status"]["loadBalancer"] = json!({});
        }
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
            load_balancer_status(&mut errors, object);
            return errors.0;
        }
        what_stays(&mut errors, &object["spec"], &old["spec"]);
        // A service from before a rule keeps its spec: its labels and finalizers must still change.
        if object["spec"] != old["spec"] {
            errors.0.extend(validate_service(object));
        }
        errors.0
    }

    fn warnings(&self, object: &Value, _: Option<&Value>) -> Vec<String> {
        warnings_of(object)
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

fn is_empty(list: &Value) -> bool {
    list.as_array().is_none_or(Vec::is_empty)
}

fn has_cluster_address(spec: &Value) -> bool {
    spec["type"] != "ExternalName"
}

/// Whether there are ways to the service from outside the cluster, which a policy may restrict.
fn is_reached_from_outside(spec: &Value) -> bool {
    has_ports_on_nodes(spec) || spec["type"] == "ClusterIP" && !is_empty(&spec["externalIPs"])
}

/// Brings `clusterIP` and `clusterIPs` together where the client changed only one of them.
fn one_address(spec: &mut Value, before: &Value) {
    let same_list = spec["clusterIPs"] == before["clusterIPs"];
    let (new, old) = (
        text(&spec["clusterIP"]).to_owned(),
        text(&before["clusterIP"]),
    );
    if new == old {
        if is_empty(&spec["clusterIPs"]) && !is_empty(&before["clusterIPs"]) {
            spec["clusterIPs"] = before["clusterIPs"].clone();
        }
    } else if same_list {
        spec["clusterIPs"] = match &*new {
            "" => json!([]),
            address => json!([address]),
        };
    }
}

/// Drops what the service had as one of another type and cannot have now, unless the client changed it at the same time:
/// then validation refuses it. A new service loses nothing in silence. Source: `registry/core/service/strategy.go`,
/// `dropTypeDependentFields`.
fn drop_for_type(spec: &mut Value, before: &Value) {
    let gone = |is: fn(&Value) -> bool, spec: &Value| is(before) && !is(spec);
    let balanced = |spec: &Value| spec["type"] == "LoadBalancer";
    let mut dropped: Vec<&str> = Vec::new();
    let same = |spec: &Value, field: &str| spec[field] == before[field];
    if gone(has_cluster_address, spec) {
        if same(spec, "clusterIP") && same(spec, "clusterIPs") {
            dropped.extend(["clusterIP", "clusterIPs"]);
        }
        dropped.extend(
            ["ipFamilies", "ipFamilyPolicy"]
                .iter()
                .filter(|field| same(spec, field)),
        );
    }
    if gone(has_ports_on_nodes, spec) {
        let numbers = |spec: &Value| -> Vec<i64> {
            items(&spec["ports"])
                .filter_map(|(_, port)| port["nodePort"].as_i64().filter(|n| *n != 0))
                .collect()
        };
        let known = numbers(before);
        if numbers(spec).iter().all(|number| known.contains(number)) {
            for port in spec["ports"].as_array_mut().into_iter().flatten() {
                port.as_object_mut().map(|port| port.remove("nodePort"));
            }
        }
    }
    if gone(needs_health_port, spec) && same(spec, "healthCheckNodePort") {
        dropped.push("healthCheckNodePort");
    }
    if balanced(before) && !balanced(spec) {
        dropped.extend(
            ["allocateLoadBalancerNodePorts", "loadBalancerClass"]
                .iter()
                .filter(|field| same(spec, field)),
        );
    }
    if gone(is_reached_from_outside, spec) && same(spec, "externalTrafficPolicy") {
        dropped.push("externalTrafficPolicy");
    }
    if let Some(fields) = spec.as_object_mut() {
        for field in dropped {
            fields.remove(field);
        }
    }
}

/// Whether load balancers ask each node for the service's endpoints there.
pub fn needs_health_port(spec: &Value) -> bool {
    spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local"
}

/// A port keeps its node port if the client leaves it out; ports are known by their names.
fn keep_node_ports(spec: &mut Value, before: &Value) {
    let number = |port: &Value| port["nodePort"].as_i64().filter(|n| *n != 0);
    let used: Vec<i64> = items(&spec["ports"])
        .filter_map(|(_, port)| number(port))
        .collect();
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        if number(port).is_some() {
            continue;
        }
        let had = items(&before["ports"])
            .find(|(_, old)| text(&old["name"]) == text(&port["name"]))
            .and_then(|(_, old)| number(old));
        match had.filter(|number| !used.contains(number)) {
            Some(number) => port["nodePort"] = number.into(),
            None => {
                port.as_object_mut().map(|port| port.remove("nodePort"));
            }
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
    let headless = is_headless(spec);
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
        for (field, set) in [
            ("clusterIPs", !is_empty(&spec["clusterIPs"])),
            ("ipFamilies", !is_empty(&spec["ipFamilies"])),
            ("ipFamilyPolicy", !spec["ipFamilyPolicy"].is_null()),
        ] {
            if set {
                errors.0.push(FieldError::forbidden(
                    format!("spec.{field}"),
                    "may not be set for ExternalName services",
                ));
            }
        }
        let name = text(&spec["externalName"]);
        let target = name.strip_suffix('.').unwrap_or(name);
        if target.is_empty() {
            errors.required("spec.externalName", "");
        } else {
            errors.invalid("spec.externalName", target, subdomain(target));
        }
    } else {
        cluster_addresses(&mut errors, spec);
    }
    labels(&mut errors, "spec.selector", &spec["selector"]);
    validate_service_ports(&mut errors, spec);
    for (index, ip) in items(&spec["externalIPs"]) {
        let (at, ip) = (format!("spec.externalIPs[{index}]"), text(ip));
        errors.invalid(&at, ip, ip_address(ip));
        if let Ok(address) = ip.parse::<std::net::IpAddr>() {
            errors.invalid(&at, ip, special_address(address));
        }
    }
    balanced_only(&mut errors, object);
    outside_only(&mut errors, spec);
    let internal = &spec["internalTrafficPolicy"];
    if !internal.is_null() {
        errors.one_of(
            "spec.internalTrafficPolicy",
            internal,
            &["Cluster", "Local"],
        );
    }
    if !spec["ipFamilyPolicy"].is_null() {
        errors.one_of(
            "spec.ipFamilyPolicy",
            &spec["ipFamilyPolicy"],
            &["PreferDualStack", "RequireDualStack", "SingleStack"],
        );
    }
    if !spec["trafficDistribution"].is_null() {
        errors.one_of(
            "spec.trafficDistribution",
            &spec["trafficDistribution"],
            &["PreferClose", "PreferSameZone", "PreferSameNode"],
        );
    }
    errors.0
}

fn is_headless(spec: &Value) -> bool {
    spec["clusterIP"] == "None" || spec["clusterIPs"] == json!(["None"])
}

fn cluster_addresses(errors: &mut Errors, spec: &Value) {
    let (first, list) = (text(&spec["clusterIP"]), &spec["clusterIPs"]);
    match (first, is_empty(list)) {
        ("", false) => errors.add(
            "spec.clusterIPs",
            list,
            "must be empty when `clusterIP` is not specified",
        ),
        ("", true) => {}
        (_, true) => errors.required("spec.clusterIPs", ""),
        (first, false) if list[0] != first => {
            errors.add(
                "spec.clusterIPs",
                list,
                "first value must match `clusterIP`",
            );
        }
        _ => {}
    }
    for (index, family) in items(&spec["ipFamilies"]) {
        let at = format!("spec.ipFamilies[{index}]");
        errors.one_of(&at, family, &["IPv4", "IPv6"]);
        if items(&spec["ipFamilies"])
            .take(index)
            .any(|(_, other)| other == family)
        {
            errors.0.push(FieldError::duplicate(at, family));
        }
    }
    for (index, address) in items(list) {
        if index == 0 && address == "None" {
            if items(list).count() > 1 {
                errors.add(
                    "spec.clusterIPs",
                    list,
                    "'None' must be the first and only value",
                );
            }
            continue;
        }
        let address = text(address);
        let at = format!("spec.clusterIPs[{index}]");
        errors.invalid(&at, address, ip_address(address));
        let family = text(&spec["ipFamilies"][index]);
        if let Ok(parsed) = address.parse::<std::net::IpAddr>()
            && matches!(family, "IPv4" | "IPv6")
            && parsed.is_ipv6() != (family == "IPv6")
        {
            errors.add(
                at,
                &address.into(),
                &format!("expected an {family} value as indicated by `ipFamilies[{index}]`"),
            );
        }
    }
}

/// What is wrong with an address at which others shall find a service: it means something else on each machine.
pub(super) fn special_address(address: std::net::IpAddr) -> Vec<String> {
    let (local, multicast) = match address {
        std::net::IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        std::net::IpAddr::V6(v6) => (
            v6.is_unicast_link_local(),
            v6.segments()[0] & 0xff0f == 0xff02,
        ),
    };
    #[rustfmt::skip] // One range a line.
    let ranges = [
        (address.is_unspecified(), format!("may not be unspecified ({address})")),
        (address.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()),
        (local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()),
        (multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()),
    ];
    ranges
        .into_iter()
        .filter(|(is, _)| *is)
        .map(|(_, text)| text)
        .collect()
}

/// What only a load balancer has.
fn balanced_only(errors: &mut Errors, object: &Value) {
    const DETAIL: &str = "may only be used when `type` is 'LoadBalancer'";
    const NETWORK: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    const RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
    let spec = &object["spec"];
    let balanced = spec["type"] == "LoadBalancer";
    let is_network = |text: &str| text.trim().parse::<ipnet::IpNet>().is_ok();
    let ranges = &spec["loadBalancerSourceRanges"];
    let annotation = &object["metadata"]["annotations"][RANGES];
    if !is_empty(ranges) {
        // kube-apiserver spells the field so here.
        let at = "spec.LoadBalancerSourceRanges";
        if !balanced {
            errors.0.push(FieldError::forbidden(at, DETAIL));
        }
        for (index, range) in items(ranges).filter(|(_, range)| !is_network(text(range))) {
            errors.add(
                format!("{at}[{index}]"),
                &text(range).trim().into(),
                NETWORK,
            );
        }
    } else if let Some(ranges) = annotation.as_str() {
        let at = format!("metadata.annotations[{RANGES}]");
        if !balanced {
            errors.0.push(FieldError::forbidden(&*at, DETAIL));
        }
        let ranges = ranges.trim().split(',').filter(|range| !range.is_empty());
        for range in ranges.filter(|range| !is_network(range)) {
            errors.add(&*at, &range.trim().into(), NETWORK);
        }
    }
    if !balanced && !spec["allocateLoadBalancerNodePorts"].is_null() {
        errors.0.push(FieldError::forbidden(
            "spec.allocateLoadBalancerNodePorts",
            DETAIL,
        ));
    }
    if let Some(class) = spec["loadBalancerClass"].as_str() {
        let at = "spec.loadBalancerClass";
        if balanced {
            errors.invalid(at, class, qualified_name(class));
        } else {
            errors.0.push(FieldError::forbidden(at, DETAIL));
        }
    }
}

/// What only a service has that is reached from outside.
fn outside_only(errors: &mut Errors, spec: &Value) {
    let (policy, at) = (&spec["externalTrafficPolicy"], "spec.externalTrafficPolicy");
    match (is_reached_from_outside(spec), text(policy)) {
        (false, "") => {}
        (false, _) => errors.add(
            at,
            policy,
            "may only be set for externally-accessible services",
        ),
        (true, "") => errors.required(at, ""),
        (true, _) => errors.one_of(at, policy, &["Cluster", "Local"]),
    }
    let port = &spec["healthCheckNodePort"];
    if port.as_i64().unwrap_or(0) != 0 {
        if needs_health_port(spec) {
            errors.port("spec.healthCheckNodePort", port);
        } else {
            errors.add(
                "spec.healthCheckNodePort",
                port,
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            );
        }
    }
}

/// What an update may not change.
fn what_stays(errors: &mut Errors, new: &Value, old: &Value) {
    let addressed = has_cluster_address(new) && has_cluster_address(old);
    if addressed && !(is_headless(new) && is_headless(old)) && !is_empty(&old["clusterIPs"]) {
        let list = &new["clusterIPs"];
        if is_empty(list) {
            errors.add(
                "spec.clusterIPs[0]",
                &json!([]),
                "primary clusterIP can not be unset",
            );
        }
        for (index, (new, old)) in items(list).zip(items(&old["clusterIPs"])).enumerate() {
            if new.1 != old.1 {
                errors.add(
                    format!("spec.clusterIPs[{index}]"),
                    list,
                    "may not change once set",
                );
            }
        }
    }
    let balanced = |spec: &Value| spec["type"] == "LoadBalancer";
    if balanced(new) && balanced(old) && new["loadBalancerClass"] != old["loadBalancerClass"] {
        errors.add(
            "spec.loadBalancerClass",
            &new["loadBalancerClass"],
            "may not change once set",
        );
    }
    if needs_health_port(new)
        && needs_health_port(old)
        && new["healthCheckNodePort"] != old["healthCheckNodePort"]
    {
        errors.0.push(FieldError::forbidden(
            "spec.healthCheckNodePort",
            "field is immutable",
        ));
    }
}

/// Mistakes in what a load balancer reports.
fn load_balancer_status(errors: &mut Errors, object: &Value) {
    let ingress = &object["status"]["loadBalancer"]["ingress"];
    let at = "status.loadBalancer.ingress";
    if is_empty(ingress) {
        return;
    }
    if object["spec"]["type"] != "LoadBalancer" {
        errors.0.push(FieldError::forbidden(
            at,
            "may only be used when `spec.type` is 'LoadBalancer'",
        ));
        return;
    }
    for (index, entry) in items(ingress) {
        let (ip, host) = (text(&entry["ip"]), text(&entry["hostname"]));
        if !ip.is_empty() {
            errors.invalid(&format!("{at}[{index}].ip"), ip, ip_address(ip));
        }
        if !host.is_empty() {
            let field = format!("{at}[{index}].hostname");
            errors.invalid(&field, host, subdomain(host));
            if ip_address(host).is_empty() {
                errors.add(field, &host.into(), "must be a DNS name, not an IP address");
            }
        }
    }
}

/// What is allowed, but hardly meant (`pkg/api/service/warnings.go`).
fn warnings_of(object: &Value) -> Vec<String> {
    const HINTS: &str = "service.kubernetes.io/topology-aware-hints";
    let (spec, mut warnings) = (&object["spec"], Vec::new());
    if object["metadata"]["annotations"].get(HINTS).is_some() {
        warnings.push(format!(
            "annotation {HINTS} is deprecated, please use service.kubernetes.io/topology-mode instead"
        ));
    }
    let (external, headless) = (
        spec["type"] == "ExternalName",
        spec["type"] == "ClusterIP" && spec["clusterIP"] == "None",
    );
    let has_external_addresses = !is_empty(&spec["externalIPs"]);
    if headless {
        if !text(&spec["loadBalancerIP"]).is_empty() {
            warnings.push("spec.loadBalancerIP is ignored for headless services".to_owned());
        }
        if has_external_addresses {
            warnings.push("spec.externalIPs is ignored for headless services".to_owned());
        }
        if spec["sessionAffinity"] != "None" {
            warnings.push("spec.SessionAffinity is ignored for headless services".to_owned());
        }
    } else {
        for (index, ip) in items(&spec["clusterIPs"]) {
            warnings.extend(address(&format!("spec.clusterIPs[{index}]"), text(ip)));
        }
    }
    for (index, ip) in items(&spec["externalIPs"]) {
        warnings.extend(address(&format!("spec.externalIPs[{index}]"), text(ip)));
    }
    if has_external_addresses && !headless && !external {
        warnings.push(
            "spec.externalIPs is deprecated and may no longer be implemented in some clusters"
                .to_owned(),
        );
    }
    warnings.extend(address(
        "spec.loadBalancerIP",
        text(&spec["loadBalancerIP"]),
    ));
    for (index, range) in items(&spec["loadBalancerSourceRanges"]) {
        warnings.extend(network(
            &format!("spec.loadBalancerSourceRanges[{index}]"),
            text(range),
        ));
    }
    if external && has_external_addresses {
        warnings.push(r#"spec.externalIPs is ignored when spec.type is "ExternalName""#.to_owned());
    }
    if !external && !text(&spec["externalName"]).is_empty() {
        warnings.push(
            r#"spec.externalName is ignored when spec.type is not "ExternalName""#.to_owned(),
        );
    }
    if spec["trafficDistribution"] == "PreferClose" {
        warnings.push(
            r#"spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone""#
                .to_owned(),
        );
    }
    warnings
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
        if let Some(protocol) = port["appProtocol"].as_str() {
            errors.invalid(
                &format!("{at}.appProtocol"),
                protocol,
                qualified_name(protocol),
            );
        }
        let same =
            |other: &Value| other["port"] == port["port"] && other["protocol"] == port["protocol"];
        if items(ports).take(index).any(|(_, other)| same(other)) {
            let value = json!({ "protocol": port["protocol"], "port": port["port"] });
            errors.0.push(FieldError::duplicate(at.clone(), &value));
        }
        let node = port["nodePort"].as_i64().unwrap_or(0);
        if node != 0 && spec["type"] == "ClusterIP" {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Value {
        let mut object = json!({ "metadata": { "name": "s" }, "spec": {
            "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{ "port": 80, "targetPort": 80, "protocol": "TCP" }] } });
        for (field, value) in spec.as_object().into_iter().flatten() {
            object["spec"][field] = value.clone();
        }
        Service.default(&mut object);
        object
    }

    fn context() -> Context {
        Context::component("a test")
    }

    fn mistakes(spec: Value) -> Vec<String> {
        let mut object = service(spec);
        Service.prepare_for_create(&context(), &mut object);
        let errors = Service.validate(&object);
        errors
            .iter()
            .map(|error| format!("{}: {}", error.field, error.message))
            .collect()
    }

    #[test]
    fn a_new_service_may_not_have_the_fields_of_another_type() {
        #[rustfmt::skip] // One service a line.
        let cases = [
            (json!({ "type": "ClusterIP", "loadBalancerClass": "example.com/lb" }),
                "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'"),
            (json!({ "type": "ClusterIP", "allocateLoadBalancerNodePorts": false }),
                "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'"),
            (json!({ "type": "ClusterIP", "externalTrafficPolicy": "Local" }),
                "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services"),
            (json!({ "type": "NodePort", "healthCheckNodePort": 30999 }),
                "spec.healthCheckNodePort: Invalid value: 30999: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"),
            (json!({ "type": "ExternalName", "externalName": "example.com", "clusterIP": "10.96.0.77" }),
                "spec.clusterIPs: Forbidden: may not be set for ExternalName services"),
            (json!({ "type": "ExternalName", "externalName": "example.com", "ipFamilyPolicy": "SingleStack" }),
                "spec.ipFamilyPolicy: Forbidden: may not be set for ExternalName services"),
            (json!({ "type": "ClusterIP", "loadBalancerSourceRanges": ["10.0.0.0/8"] }),
                "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'"),
            (json!({ "type": "LoadBalancer", "loadBalancerSourceRanges": ["10.0.0.300/8"] }),
                "spec.LoadBalancerSourceRanges[0]: Invalid value: \"10.0.0.300/8\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"),
            (json!({ "type": "ClusterIP", "ports": [{ "port": 80, "targetPort": 80, "protocol": "TCP", "nodePort": 30080 }] }),
                "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"),
            (json!({ "type": "ClusterIP", "clusterIPs": ["10.96.0.7"] }),
                "spec.clusterIPs: Invalid value: [\"10.96.0.7\"]: must be empty when `clusterIP` is not specified"),
            (json!({ "type": "NodePort", "externalIPs": ["169.254.0.1"] }),
                "spec.externalIPs[0]: Invalid value: \"169.254.0.1\": may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
            (json!({ "type": "ClusterIP", "trafficDistribution": "Near" }),
                "spec.trafficDistribution: Unsupported value: \"Near\": supported values: \"PreferClose\", \"PreferSameZone\", \"PreferSameNode\""),
        ];
        for (spec, wanted) in cases {
            assert_eq!(mistakes(spec.clone()), [wanted], "{spec}");
        }
        let port = json!({ "type": "ClusterIP", "ports": [{ "port": 80, "targetPort": 80, "protocol": "TCP", "appProtocol": "not a name!" }] });
        assert!(mistakes(port)[0].starts_with(
            "spec.ports[0].appProtocol: Invalid value: \"not a name!\": name part must consist of"
        ));
        for kind in ["ClusterIP", "NodePort", "LoadBalancer"] {
            assert_eq!(mistakes(json!({ "type": kind })), [""; 0], "{kind}");
        }
        assert_eq!(
            mistakes(json!({ "type": "ExternalName", "externalName": "example.com." })),
            [""; 0]
        );
    }

    #[test]
    fn a_change_of_type_drops_what_was_there_and_refuses_what_is_new() {
        let old = service(
            json!({ "type": "LoadBalancer", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "loadBalancerClass": "example.com/lb",
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 30999,
            "ports": [{ "port": 80, "targetPort": 80, "protocol": "TCP", "nodePort": 30080 }] }),
        );
        let changed = |change: &Value| {
            let mut object = old.clone();
            json_patch::merge(&mut object["spec"], change);
            Service.default(&mut object);
            Service.prepare_for_update(&context(), None, &mut object, &old);
            let errors = Service.validate_update(None, &object, &old);
            (object["spec"].clone(), errors)
        };
        let (spec, errors) = changed(&json!({ "type": "ClusterIP" }));
        assert_eq!(errors, []);
        for field in [
            "loadBalancerClass",
            "externalTrafficPolicy",
            "healthCheckNodePort",
            "allocateLoadBalancerNodePorts",
        ] {
            assert!(spec.get(field).is_none(), "{field}: {spec}");
        }
        assert!(spec["ports"][0].get("nodePort").is_none(), "{spec}");
        assert_eq!(spec["clusterIP"], "10.96.0.7");
        let (spec, errors) =
            changed(&json!({ "type": "ExternalName", "externalName": "example.com" }));
        assert_eq!(errors, []);
        assert!(
            spec.get("clusterIP").is_none() && spec.get("clusterIPs").is_none(),
            "{spec}"
        );
        let (_, errors) =
            changed(&json!({ "type": "ClusterIP", "loadBalancerClass": "example.com/other" }));
        assert_eq!(errors[0].field, "spec.loadBalancerClass");
        let (_, errors) = changed(
            &json!({ "type": "ClusterIP", "ports": [{ "port": 80, "targetPort": 80, "protocol": "TCP", "nodePort": 30081 }] }),
        );
        assert_eq!(errors[0].field, "spec.ports[0].nodePort");
        let (_, errors) = changed(&json!({ "clusterIP": "10.96.0.8" }));
        assert_eq!(
            errors[0].message,
            "Invalid value: [\"10.96.0.8\"]: may not change once set"
        );
        let (_, errors) = changed(&json!({ "healthCheckNodePort": 31000 }));
        assert_eq!(errors[0].message, "Forbidden: field is immutable");
    }

    #[test]
    fn two_ports_that_share_a_node_port_keep_it() {
        let ports = json!([{ "name": "t", "port": 53, "protocol": "TCP", "nodePort": 30535 },
                           { "name": "u", "port": 53, "protocol": "UDP", "nodePort": 30535 }]);
        let mut spec = json!({ "ports": [{ "name": "t", "port": 53, "protocol": "TCP" }, { "name": "u", "port": 53, "protocol": "UDP" }] });
        keep_node_ports(&mut spec, &json!({ "ports": ports }));
        assert_eq!(spec["ports"], ports);
    }

    #[test]
    fn a_service_warns_about_what_is_ignored_or_old() {
        #[rustfmt::skip] // One service a line.
        let cases = [
            (json!({ "type": "ClusterIP" }), vec![]),
            (json!({ "type": "ClusterIP", "externalName": "example.com" }), vec![r#"spec.externalName is ignored when spec.type is not "ExternalName""#]),
            (json!({ "type": "ClusterIP", "clusterIP": "None", "sessionAffinity": "ClientIP" }), vec!["spec.SessionAffinity is ignored for headless services"]),
            (json!({ "type": "ClusterIP", "trafficDistribution": "PreferClose" }), vec![r#"spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone""#]),
            (json!({ "type": "LoadBalancer", "loadBalancerSourceRanges": ["10.1.2.3/8"] }), vec![r#"spec.loadBalancerSourceRanges[0]: CIDR value "10.1.2.3/8" is ambiguous in this context (should be "10.0.0.0/8" or "10.1.2.3/32"?)"#]),
        ];
        for (spec, wanted) in cases {
            assert_eq!(
                Service.warnings(&service(spec.clone()), None),
                wanted,
                "{spec}"
            );
        }
    }
}
