//! Defaults and validation of a pod's spec, alone or in a template (`pkg/apis/core/validation`).
//!
//! Reading order: this file, then `containers` and `handlers`, `volumes`, `security`, `scheduling`.

use serde_json::Value;

use super::containers::{self, Kind, Pod};
use super::{scheduling, security, volumes};
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::{
    Errors, dns_label, ip_address, items, labels, qualified_name, subdomain, underscored_subdomain,
};

/// Defaults that depend on other fields of the spec: with the host's network a container's port is the host's.
pub fn default_pod_spec(spec: &mut Value) {
    if spec["hostNetwork"] != true {
        if spec["hostNetwork"].is_null() {
            spec.as_object_mut().map(|spec| spec.remove("hostNetwork"));
        }
        return;
    }
    for list in ["containers", "initContainers"] {
        let Some(containers) = spec.get_mut(list).and_then(Value::as_array_mut) else {
            continue;
        };
        for container in containers {
            let Some(ports) = container.get_mut("ports").and_then(Value::as_array_mut) else {
                continue;
            };
            for port in ports {
                if port.get("hostPort").and_then(Value::as_i64).unwrap_or(0) == 0 {
                    port["hostPort"] = port["containerPort"].clone();
                }
            }
        }
    }
}

/// A limit without a request is its own request.
pub fn requests_from_limits(container: &mut Value) {
    let Some(resources) = container
        .get_mut("resources")
        .filter(|r| r["limits"].is_object())
    else {
        return;
    };
    let limits = resources["limits"].clone();
    let requests = crate::strategy::common::object_at(resources, "requests");
    for (name, limit) in limits.as_object().into_iter().flatten() {
        requests
            .entry(name.clone())
            .or_insert_with(|| limit.clone());
    }
}

/// What a spec belongs to: some rules are older than templates, and hold for pods only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A pod.
    Pod,
    /// The template of a workload.
    Template,
}

/// Mistakes in the metadata and spec of a pod template; `at` is its path.
pub fn validate_template(errors: &mut Errors, at: &str, template: &Value) {
    labels(
        errors,
        &format!("{at}.labels"),
        &template["metadata"]["labels"],
    );
    for (key, _) in template["metadata"]["annotations"]
        .as_object()
        .into_iter()
        .flatten()
    {
        errors.invalid(
            &format!("{at}.annotations"),
            key.as_str(),
            qualified_name(&key.to_lowercase()),
        );
    }
    let spec = &template["spec"];
    validate_annotations(errors, &format!("{at}.annotations"), template);
    validate_pod_spec(errors, &format!("{at}.spec"), spec, Owner::Template);
    if items(&spec["ephemeralContainers"]).next().is_some() {
        errors.0.push(FieldError::forbidden(
            format!("{at}.spec.ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
}

/// Mistakes in the annotations that mean something to pods; `at` is their path.
pub fn validate_annotations(errors: &mut Errors, at: &str, pod: &Value) {
    const MIRROR: &str = "kubernetes.io/config.mirror";
    const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    let annotations = &pod["metadata"]["annotations"];
    if let Some(value) = annotations.get(MIRROR)
        && text(&pod["spec"]["nodeName"]).is_empty()
    {
        errors.add(
            format!("{at}[{MIRROR}]"),
            value,
            "must set spec.nodeName if mirror pod annotation is set",
        );
    }
    if let Some(value) = annotations.get(COST) {
        // As Go's `Atoi` after a look at the first characters: no plus, no leading zero.
        let cost = text(value);
        let plain = !cost.starts_with('+') && (cost == "0" || !cost.starts_with('0'));
        if !plain || cost.parse::<i32>().is_err() {
            errors.add(format!("{at}[{COST}]"), value, "must be a 32bit integer");
        }
    }
}

/// Mistakes in a pod's spec; `at` is its path.
pub fn validate_pod_spec(errors: &mut Errors, at: &str, spec: &Value, owner: Owner) {
    let volumes = volumes::validate(errors, &format!("{at}.volumes"), &spec["volumes"], owner);
    let claims = resource_claims(
        errors,
        &format!("{at}.resourceClaims"),
        &spec["resourceClaims"],
    );
    if items(&spec["containers"]).next().is_none() {
        errors.required(format!("{at}.containers"), "");
    }
    let pod = Pod {
        volumes: &volumes,
        claims: &claims,
        grace: spec["terminationGracePeriodSeconds"].as_i64(),
        restarts: spec["restartPolicy"] != "Never",
        host_users: spec["hostUsers"] != false,
        owner,
    };
    let mut names: Vec<&str> = Vec::new();
    for (list, kind) in [
        ("containers", Kind::Regular),
        ("initContainers", Kind::Init),
        ("ephemeralContainers", Kind::Ephemeral),
    ] {
        for (index, container) in items(&spec[list]) {
            let path = format!("{at}.{list}[{index}]");
            let name = text(&container["name"]);
            if !name.is_empty() && names.contains(&name) {
                errors.0.push(FieldError::duplicate(
                    format!("{path}.name"),
                    &container["name"],
                ));
            }
            let target = text(&container["targetContainerName"]);
            let known = ["containers", "initContainers"]
                .iter()
                .any(|list| items(&spec[*list]).any(|(_, other)| other["name"] == target));
            if kind == Kind::Ephemeral && !target.is_empty() && !known {
                errors.not_found(
                    format!("{path}.targetContainerName"),
                    &container["targetContainerName"],
                );
            }
            names.push(name);
            containers::validate(errors, &path, container, kind, &pod);
        }
    }
    pod_resources(errors, at, spec);
    host_ports(errors, at, spec, owner);
    errors.one_of(
        format!("{at}.restartPolicy"),
        &spec["restartPolicy"],
        &["Always", "OnFailure", "Never"],
    );
    dns(errors, at, spec);
    labels(errors, &format!("{at}.nodeSelector"), &spec["nodeSelector"]);
    security::validate_pod(errors, at, spec);
    scheduling::validate(errors, at, spec);
    for (field, check) in [
        ("serviceAccountName", subdomain as fn(&str) -> Vec<String>),
        ("nodeName", subdomain),
        ("hostname", dns_label),
        ("subdomain", dns_label),
        ("schedulerName", subdomain),
        ("priorityClassName", subdomain),
        ("runtimeClassName", subdomain),
    ] {
        let name = text(&spec[field]);
        if !name.is_empty() {
            errors.invalid(&format!("{at}.{field}"), name, check(name));
        }
    }
    let deadline = &spec["activeDeadlineSeconds"];
    if deadline
        .as_i64()
        .is_some_and(|n| !(1..=i64::from(i32::MAX)).contains(&n))
    {
        errors.add(
            format!("{at}.activeDeadlineSeconds"),
            deadline,
            "must be between 1 and 2147483647, inclusive",
        );
    }
    for (index, alias) in items(&spec["hostAliases"]) {
        let path = format!("{at}.hostAliases[{index}]");
        errors.invalid(
            &format!("{path}.ip"),
            text(&alias["ip"]),
            ip_address(text(&alias["ip"])),
        );
        for (number, name) in items(&alias["hostnames"]) {
            let name = text(name);
            errors.invalid(
                &format!("{path}.hostnames[{number}]"),
                name,
                subdomain(name),
            );
        }
    }
    if !spec["preemptionPolicy"].is_null() {
        errors.one_of(
            format!("{at}.preemptionPolicy"),
            &spec["preemptionPolicy"],
            &["PreemptLowerPriority", "Never"],
        );
    }
    for (index, gate) in items(&spec["readinessGates"]) {
        let name = text(&gate["conditionType"]);
        errors.invalid(
            &format!("{at}.readinessGates[{index}].conditionType"),
            name,
            qualified_name(name),
        );
    }
    if !spec["overhead"].is_null() {
        let overhead = serde_json::json!({ "limits": spec["overhead"] });
        containers::resources(errors, &format!("{at}.overhead"), &overhead, &[]);
    }
}

/// Checks the claims of devices; returns their names.
fn resource_claims<'a>(errors: &mut Errors, at: &str, claims: &'a Value) -> Vec<&'a str> {
    let mut names = Vec::new();
    for (index, claim) in items(claims) {
        let path = format!("{at}[{index}]");
        let name = text(&claim["name"]);
        if name.is_empty() {
            errors.required(format!("{path}.name"), "");
        } else if names.contains(&name) {
            errors.0.push(FieldError::duplicate(
                format!("{path}.name"),
                &claim["name"],
            ));
        } else {
            errors.invalid(&format!("{path}.name"), name, dns_label(name));
            names.push(name);
        }
        let set = |field: &str| !claim[field].is_null();
        match (set("resourceClaimName"), set("resourceClaimTemplateName")) {
            (true, true) => errors.add(
                &path,
                claim,
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            ),
            (false, false) => errors.add(
                &path,
                claim,
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            ),
            _ => {}
        }
        for field in ["resourceClaimName", "resourceClaimTemplateName"] {
            if let Some(name) = claim[field].as_str() {
                errors.invalid(&format!("{path}.{field}"), name, subdomain(name));
            }
        }
    }
    names
}

/// Requests and limits of the whole pod: no container may have a larger limit.
fn pod_resources(errors: &mut Errors, at: &str, spec: &Value) {
    let resources = &spec["resources"];
    if resources.is_null() {
        return;
    }
    let path = format!("{at}.resources");
    if items(&resources["claims"]).next().is_some() {
        errors.0.push(FieldError::forbidden(
            format!("{path}.claims"),
            "claims cannot be set for Resources at pod-level",
        ));
    }
    let amounts =
        serde_json::json!({ "limits": resources["limits"], "requests": resources["requests"] });
    containers::resources(errors, &path, &amounts, &[]);
    for (index, container) in items(&spec["containers"]) {
        for (name, limit) in container["resources"]["limits"]
            .as_object()
            .into_iter()
            .flatten()
        {
            let whole = &resources["limits"][name];
            if containers::exceeds(limit, whole) {
                errors.add(
                    format!("{path}.containers[{index}][{name}].limits"),
                    limit,
                    &format!(
                        "must be less than or equal to pod limits of {}",
                        text(whole)
                    ),
                );
            }
        }
    }
}

/// Where a pod's names are looked up.
fn dns(errors: &mut Errors, at: &str, spec: &Value) {
    const MAX_SERVERS: usize = 3;
    const MAX_SEARCHES: usize = 32;
    const MAX_SEARCH_CHARACTERS: usize = 2048;
    errors.one_of(
        format!("{at}.dnsPolicy"),
        &spec["dnsPolicy"],
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    let (config, at) = (&spec["dnsConfig"], format!("{at}.dnsConfig"));
    let servers = &config["nameservers"];
    if spec["dnsPolicy"] == "None" {
        if config.is_null() {
            errors.required(at, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if items(servers).next().is_none() {
            errors.required(
                format!("{at}.nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
            return;
        }
    }
    if items(servers).count() > MAX_SERVERS {
        errors.add(
            format!("{at}.nameservers"),
            servers,
            &format!("must not have more than {MAX_SERVERS} nameservers"),
        );
    }
    for (index, server) in items(servers) {
        let server = text(server);
        errors.invalid(
            &format!("{at}.nameservers[{index}]"),
            server,
            ip_address(server),
        );
    }
    let searches = &config["searches"];
    let count = items(searches).count();
    if count > MAX_SEARCHES {
        errors.add(
            format!("{at}.searches"),
            searches,
            &format!("must not have more than {MAX_SEARCHES} search paths"),
        );
    }
    let length: usize = items(searches).map(|(_, search)| text(search).len()).sum();
    if length + count.saturating_sub(1) > MAX_SEARCH_CHARACTERS {
        errors.add(
            format!("{at}.searches"),
            searches,
            &format!(
                "must not have more than {MAX_SEARCH_CHARACTERS} characters (including spaces) in the search list"
            ),
        );
    }
    for (index, search) in items(searches) {
        let search = text(search);
        if search != "." {
            let search = search.strip_suffix('.').unwrap_or(search);
            errors.invalid(
                &format!("{at}.searches[{index}]"),
                search,
                underscored_subdomain(search),
            );
        }
    }
    for (index, option) in items(&config["options"]) {
        if text(&option["name"]).is_empty() {
            errors.required(format!("{at}.options[{index}]"), "must not be empty");
        }
    }
}

/// Two containers of a pod cannot have the same port of the host; with the host's network there are no other ports.
fn host_ports(errors: &mut Errors, at: &str, spec: &Value, owner: Owner) {
    let mut seen: Vec<String> = Vec::new();
    for (list, index, container) in items(&spec["containers"])
        .map(|(index, container)| ("containers", index, container))
        .chain(
            items(&spec["initContainers"])
                .map(|(index, container)| ("initContainers", index, container)),
        )
    {
        if list == "initContainers" {
            // They run one after the other.
            seen.clear();
        }
        for (number, port) in items(&container["ports"]) {
            let path = format!("{at}.{list}[{index}].ports[{number}].hostPort");
            let host = port["hostPort"].as_i64().unwrap_or(0);
            let must_match = owner == Owner::Pod || host != 0;
            if spec["hostNetwork"] == true
                && list == "containers"
                && must_match
                && Some(host) != port["containerPort"].as_i64()
            {
                errors.add(
                    path.clone(),
                    &host.into(),
                    "must match `containerPort` when `hostNetwork` is true",
                );
            }
            if host == 0 {
                continue;
            }
            let key = format!(
                "{}/{}/{host}",
                text(&port["protocol"]),
                text(&port["hostIP"])
            );
            if seen.contains(&key) {
                errors
                    .0
                    .push(FieldError::duplicate(path, &key.as_str().into()));
            }
            seen.push(key);
        }
    }
}
