//! Defaults and validation of a pod's spec, alone or in a template.

use serde_json::Value;

use super::containers::{self, Kind};
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::{
    Errors, dns_label, items, label_value, labels, qualified_name, subdomain,
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

const VOLUME_SOURCES: &[&str] = &[
    "awsElasticBlockStore",
    "azureDisk",
    "azureFile",
    "cephfs",
    "cinder",
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "fc",
    "flexVolume",
    "flocker",
    "gcePersistentDisk",
    "gitRepo",
    "glusterfs",
    "hostPath",
    "image",
    "iscsi",
    "nfs",
    "persistentVolumeClaim",
    "photonPersistentDisk",
    "portworxVolume",
    "projected",
    "quobyte",
    "rbd",
    "scaleIO",
    "secret",
    "storageos",
    "vsphereVolume",
];

/// Mistakes in a pod's spec; `at` is its path.
pub fn validate_pod_spec(errors: &mut Errors, at: &str, spec: &Value) {
    let volumes = validate_volumes(errors, &format!("{at}.volumes"), &spec["volumes"]);
    if items(&spec["containers"]).next().is_none() {
        errors.required(format!("{at}.containers"), "");
    }
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
            names.push(name);
            containers::validate(
                errors,
                &path,
                container,
                kind,
                &volumes,
                spec["hostNetwork"] == true,
            );
        }
    }
    host_ports(errors, at, spec);
    errors.one_of(
        format!("{at}.restartPolicy"),
        &spec["restartPolicy"],
        &["Always", "Never", "OnFailure"],
    );
    errors.one_of(
        format!("{at}.dnsPolicy"),
        &spec["dnsPolicy"],
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
    );
    if spec["dnsPolicy"] == "None" && items(&spec["dnsConfig"]["nameservers"]).next().is_none() {
        errors.required(
            format!("{at}.dnsConfig.nameservers"),
            "must provide at least one DNS nameserver when `dnsPolicy` is None",
        );
    }
    labels(errors, &format!("{at}.nodeSelector"), &spec["nodeSelector"]);
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
    errors.not_negative(
        format!("{at}.terminationGracePeriodSeconds"),
        &spec["terminationGracePeriodSeconds"],
    );
    validate_tolerations(errors, &format!("{at}.tolerations"), &spec["tolerations"]);
    for (index, alias) in items(&spec["hostAliases"]) {
        if text(&alias["ip"]).parse::<std::net::IpAddr>().is_err() {
            errors.add(
                format!("{at}.hostAliases[{index}].ip"),
                &alias["ip"],
                "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            );
        }
    }
    if spec["shareProcessNamespace"] == true && spec["hostPID"] == true {
        errors.add(
            format!("{at}.shareProcessNamespace"),
            &true.into(),
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
}

/// Two containers of a pod cannot have the same port of the host.
fn host_ports(errors: &mut Errors, at: &str, spec: &Value) {
    let mut seen: Vec<String> = Vec::new();
    for (index, container) in items(&spec["containers"]) {
        for (number, port) in items(&container["ports"]) {
            let Some(host) = port["hostPort"].as_i64().filter(|n| *n > 0) else {
                continue;
            };
            let key = format!(
                "{}/{}/{host}",
                text(&port["protocol"]),
                text(&port["hostIP"])
            );
            if seen.contains(&key) {
                let path = format!("{at}.containers[{index}].ports[{number}].hostPort");
                errors
                    .0
                    .push(FieldError::duplicate(path, &key.as_str().into()));
            }
            seen.push(key);
        }
    }
}

/// Checks volumes; returns the names that mounts may use.
fn validate_volumes<'a>(errors: &mut Errors, at: &str, volumes: &'a Value) -> Vec<&'a str> {
    let mut names = Vec::new();
    for (index, volume) in items(volumes) {
        let path = format!("{at}[{index}]");
        let name = text(&volume["name"]);
        if name.is_empty() {
            errors.required(format!("{path}.name"), "");
        } else {
            errors.invalid(&format!("{path}.name"), name, dns_label(name));
            if names.contains(&name) {
                errors.0.push(FieldError::duplicate(
                    format!("{path}.name"),
                    &volume["name"],
                ));
            }
        }
        names.push(name);
        let sources: Vec<&str> = VOLUME_SOURCES
            .iter()
            .copied()
            .filter(|s| !volume[*s].is_null())
            .collect();
        match sources.as_slice() {
            [] => errors.required(path.clone(), "must specify a volume type"),
            [source] => volume_source(
                errors,
                &format!("{path}.{source}"),
                source,
                &volume[*source],
            ),
            [_, rest @ ..] => {
                for source in rest {
                    errors.0.push(FieldError::forbidden(
                        format!("{path}.{source}"),
                        "may not specify more than 1 volume type",
                    ));
                }
            }
        }
    }
    names
}

fn volume_source(errors: &mut Errors, at: &str, kind: &str, source: &Value) {
    let mut need = |field: &str| {
        if text(&source[field]).is_empty() {
            errors.required(format!("{at}.{field}"), "");
        }
    };
    match kind {
        "hostPath" => {
            need("path");
            if text(&source["path"]).split('/').any(|part| part == "..") {
                errors.add(
                    format!("{at}.path"),
                    &source["path"],
                    "must not contain '..'",
                );
            }
            if !text(&source["type"]).is_empty() {
                errors.one_of(
                    format!("{at}.type"),
                    &source["type"],
                    &[
                        "",
                        "BlockDevice",
                        "CharDevice",
                        "Directory",
                        "DirectoryOrCreate",
                        "File",
                        "FileOrCreate",
                        "Socket",
                    ],
                );
            }
        }
        "secret" => need("secretName"),
        "configMap" => need("name"),
        "persistentVolumeClaim" => need("claimName"),
        "nfs" => {
            need("server");
            need("path");
        }
        "emptyDir" => {
            let limit = &source["sizeLimit"];
            if text(limit).starts_with('-') {
                errors.0.push(FieldError::forbidden(
                    format!("{at}.sizeLimit"),
                    "SizeLimit field must be a valid resource quantity",
                ));
            }
        }
        _ => {}
    }
    file_modes(errors, at, source);
    for (index, inner) in items(&source["sources"]) {
        for kind in ["secret", "configMap", "downwardAPI", "serviceAccountToken"] {
            if !inner[kind].is_null() {
                let path = format!("{at}.sources[{index}].{kind}");
                if matches!(kind, "secret" | "configMap") && text(&inner[kind]["name"]).is_empty() {
                    errors.required(format!("{path}.name"), "");
                }
                if kind == "serviceAccountToken" && text(&inner[kind]["path"]).is_empty() {
                    errors.required(format!("{path}.path"), "");
                }
                file_modes(errors, &path, &inner[kind]);
            }
        }
    }
}

/// Modes, and the keys and paths of files.
fn file_modes(errors: &mut Errors, at: &str, source: &Value) {
    const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
    let wrong = |mode: &Value| mode.as_i64().is_some_and(|n| !(0..=0o777).contains(&n));
    if wrong(&source["defaultMode"]) {
        errors.add(format!("{at}.defaultMode"), &source["defaultMode"], MODE);
    }
    for (index, item) in items(&source["items"]) {
        let path = format!("{at}.items[{index}]");
        if wrong(&item["mode"]) {
            errors.add(format!("{path}.mode"), &item["mode"], MODE);
        }
        if text(&item["path"]).is_empty() {
            errors.required(format!("{path}.path"), "");
        } else if text(&item["path"]).starts_with('/') {
            errors.add(
                format!("{path}.path"),
                &item["path"],
                "must be a relative path",
            );
        } else if text(&item["path"]).split('/').any(|part| part == "..") {
            errors.add(
                format!("{path}.path"),
                &item["path"],
                "must not contain '..'",
            );
        }
    }
}

fn validate_tolerations(errors: &mut Errors, at: &str, list: &Value) {
    for (index, toleration) in items(list) {
        let path = format!("{at}[{index}]");
        let key = text(&toleration["key"]);
        if !key.is_empty() {
            errors.invalid(&format!("{path}.key"), key, qualified_name(key));
        } else if toleration["operator"] != "Exists" {
            errors.add(
                format!("{path}.operator"),
                &toleration["operator"],
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if !toleration["tolerationSeconds"].is_null() && toleration["effect"] != "NoExecute" {
            errors.add(
                format!("{path}.effect"),
                &toleration["effect"],
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
        match text(&toleration["operator"]) {
            "" | "Equal" => {
                let value = text(&toleration["value"]);
                errors.invalid(&format!("{path}.operator"), value, label_value(value));
            }
            "Exists" => {
                if !text(&toleration["value"]).is_empty() {
                    errors.add(
                        format!("{path}.operator"),
                        toleration,
                        "value must be empty when `operator` is 'Exists'",
                    );
                }
            }
            _ => errors.one_of(
                format!("{path}.operator"),
                &toleration["operator"],
                &["Equal", "Exists"],
            ),
        }
        if !text(&toleration["effect"]).is_empty() {
            errors.one_of(
                format!("{path}.effect"),
                &toleration["effect"],
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            );
        }
    }
}
