//! Validation of containers.

use serde_json::Value;

use super::ParseQuantity as _;
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::{
    Errors, dns_label, env_name, items, port_name, qualified_name, subdomain,
};

/// The three lists of containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `containers`
    Regular,
    /// `initContainers`
    Init,
    /// `ephemeralContainers`
    Ephemeral,
}

/// Mistakes in a container at the path `at`; `volumes` are the names it may mount.
pub fn validate(
    errors: &mut Errors,
    at: &str,
    container: &Value,
    kind: Kind,
    volumes: &[&str],
    host_network: bool,
) {
    let name = text(&container["name"]);
    if name.is_empty() {
        errors.required(format!("{at}.name"), "");
    } else {
        errors.invalid(&format!("{at}.name"), name, dns_label(name));
    }
    let image = text(&container["image"]);
    if image.is_empty() {
        errors.required(format!("{at}.image"), "");
    } else if image.trim() != image {
        errors.add(
            format!("{at}.image"),
            &container["image"],
            "must not have leading or trailing whitespace",
        );
    }
    errors.one_of(
        format!("{at}.terminationMessagePolicy"),
        &container["terminationMessagePolicy"],
        &["FallbackToLogsOnError", "File"],
    );
    errors.one_of(
        format!("{at}.imagePullPolicy"),
        &container["imagePullPolicy"],
        &["Always", "IfNotPresent", "Never"],
    );
    ports(
        errors,
        &format!("{at}.ports"),
        &container["ports"],
        host_network,
    );
    env(errors, at, container);
    mounts(
        errors,
        &format!("{at}.volumeMounts"),
        &container["volumeMounts"],
        volumes,
    );
    resources(errors, &format!("{at}.resources"), &container["resources"]);
    let sidecar = kind == Kind::Init && container["restartPolicy"] == "Always";
    for field in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let value = &container[field];
        if value.is_null() {
            continue;
        }
        let path = format!("{at}.{field}");
        match kind {
            Kind::Ephemeral => errors.0.push(FieldError::forbidden(
                path,
                "cannot be set for an Ephemeral Container",
            )),
            Kind::Init if !sidecar => errors.0.push(FieldError::forbidden(
                path,
                "may not be set for init containers without restartPolicy=Always",
            )),
            _ => probe(errors, &path, value, field != "readinessProbe"),
        }
    }
    let lifecycle = &container["lifecycle"];
    if !lifecycle.is_null() {
        match kind {
            Kind::Ephemeral => errors.0.push(FieldError::forbidden(
                format!("{at}.lifecycle"),
                "cannot be set for an Ephemeral Container",
            )),
            Kind::Init if !sidecar => errors.0.push(FieldError::forbidden(
                format!("{at}.lifecycle"),
                "may not be set for init containers without restartPolicy=Always",
            )),
            _ => {
                for hook in ["postStart", "preStop"] {
                    if !lifecycle[hook].is_null() {
                        let path = format!("{at}.lifecycle.{hook}");
                        let count = handler(
                            errors,
                            &path,
                            &lifecycle[hook],
                            &["exec", "httpGet", "tcpSocket", "sleep"],
                        );
                        if count == 0 {
                            errors.required(path, "must specify a handler type");
                        }
                    }
                }
            }
        }
    }
    if kind == Kind::Init && !container["restartPolicy"].is_null() {
        errors.one_of(
            format!("{at}.restartPolicy"),
            &container["restartPolicy"],
            &["Always", "Never", "OnFailure"],
        );
    }
    security(
        errors,
        &format!("{at}.securityContext"),
        &container["securityContext"],
    );
}

fn security(errors: &mut Errors, at: &str, context: &Value) {
    for field in ["runAsUser", "runAsGroup"] {
        if context[field]
            .as_i64()
            .is_some_and(|id| !(0..=i64::from(i32::MAX)).contains(&id))
        {
            errors.add(
                format!("{at}.{field}"),
                &context[field],
                "must be between 0 and 2147483647, inclusive",
            );
        }
    }
    if context["allowPrivilegeEscalation"] == false {
        if context["privileged"] == true {
            errors.add(
                at,
                context,
                "cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
            );
        }
        if items(&context["capabilities"]["add"]).any(|(_, name)| name == "CAP_SYS_ADMIN") {
            errors.add(at, context, "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN");
        }
    }
}

fn ports(errors: &mut Errors, at: &str, list: &Value, host_network: bool) {
    for (index, port) in items(list) {
        let path = format!("{at}[{index}]");
        let name = text(&port["name"]);
        if !name.is_empty() {
            errors.invalid(&format!("{path}.name"), name, port_name(name));
            if items(list)
                .take(index)
                .any(|(_, other)| other["name"] == name)
            {
                errors
                    .0
                    .push(FieldError::duplicate(format!("{path}.name"), &port["name"]));
            }
        }
        if port["containerPort"].as_i64().unwrap_or(0) == 0 {
            errors.required(format!("{path}.containerPort"), "");
        } else {
            errors.port(format!("{path}.containerPort"), &port["containerPort"]);
        }
        let host = port["hostPort"].as_i64().unwrap_or(0);
        if host != 0 {
            errors.port(format!("{path}.hostPort"), &port["hostPort"]);
            if host_network && port["hostPort"] != port["containerPort"] {
                errors.add(
                    format!("{path}.containerPort"),
                    &port["containerPort"],
                    "must match `hostPort` when `hostNetwork` is true",
                );
            }
        }
        errors.one_of(
            format!("{path}.protocol"),
            &port["protocol"],
            &["SCTP", "TCP", "UDP"],
        );
    }
}

fn env(errors: &mut Errors, at: &str, container: &Value) {
    for (index, variable) in items(&container["env"]) {
        let path = format!("{at}.env[{index}]");
        let name = text(&variable["name"]);
        if name.is_empty() {
            errors.required(format!("{path}.name"), "");
        } else {
            errors.invalid(&format!("{path}.name"), name, env_name(name));
        }
        let from = &variable["valueFrom"];
        if from.is_null() {
            continue;
        }
        if !text(&variable["value"]).is_empty() {
            errors.add(
                format!("{path}.valueFrom"),
                &"".into(),
                "may not be specified when `value` is not empty",
            );
        }
        let sources: Vec<&str> = [
            "fieldRef",
            "resourceFieldRef",
            "configMapKeyRef",
            "secretKeyRef",
            "fileKeyRef",
        ]
        .into_iter()
        .filter(|source| !from[*source].is_null())
        .collect();
        match sources.as_slice() {
            [] => errors.add(format!("{path}.valueFrom"), &"".into(), "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"),
            [source] => env_source(errors, &format!("{path}.valueFrom.{source}"), source, &from[*source]),
            _ => errors.add(format!("{path}.valueFrom"), &"".into(), "may not have more than one field specified at a time"),
        }
    }
    for (index, source) in items(&container["envFrom"]) {
        let path = format!("{at}.envFrom[{index}]");
        let set: Vec<&str> = ["configMapRef", "secretRef"]
            .into_iter()
            .filter(|kind| !source[*kind].is_null())
            .collect();
        match set.as_slice() {
            [] => errors.add(
                path,
                &"".into(),
                "must specify one of: `configMapRef` or `secretRef`",
            ),
            [kind] if text(&source[*kind]["name"]).is_empty() => {
                errors.required(format!("{path}.{kind}.name"), "");
            }
            [_] => {}
            _ => errors.add(
                path,
                &"".into(),
                "may not have more than one field specified at a time",
            ),
        }
    }
}

fn env_source(errors: &mut Errors, at: &str, kind: &str, source: &Value) {
    const FIELDS: &[&str] = &[
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    match kind {
        "fieldRef" => {
            let field = text(&source["fieldPath"]);
            let subscript = field.starts_with("metadata.labels['")
                || field.starts_with("metadata.annotations['");
            if field.is_empty() {
                errors.required(format!("{at}.fieldPath"), "");
            } else if !(FIELDS.contains(&field) || subscript && field.ends_with("']")) {
                if field
                    .split('.')
                    .next()
                    .is_some_and(|top| matches!(top, "metadata" | "spec" | "status"))
                {
                    errors.0.push(FieldError::not_supported(
                        format!("{at}.fieldPath"),
                        &source["fieldPath"],
                        FIELDS,
                    ));
                } else {
                    errors.add(
                        format!("{at}.fieldPath"),
                        &source["fieldPath"],
                        &format!("error converting fieldPath: field label not supported: {field}"),
                    );
                }
            }
        }
        "resourceFieldRef" => {
            if text(&source["resource"]).is_empty() {
                errors.required(format!("{at}.resource"), "");
            } else {
                errors.one_of(
                    format!("{at}.resource"),
                    &source["resource"],
                    &[
                        "limits.cpu",
                        "limits.ephemeral-storage",
                        "limits.memory",
                        "requests.cpu",
                        "requests.ephemeral-storage",
                        "requests.memory",
                    ],
                );
            }
        }
        "configMapKeyRef" | "secretKeyRef" => {
            for field in ["name", "key"] {
                if text(&source[field]).is_empty() {
                    errors.required(format!("{at}.{field}"), "");
                }
            }
        }
        _ => {}
    }
}

fn mounts(errors: &mut Errors, at: &str, list: &Value, volumes: &[&str]) {
    for (index, mount) in items(list) {
        let path = format!("{at}[{index}]");
        let name = text(&mount["name"]);
        if name.is_empty() {
            errors.required(format!("{path}.name"), "");
        } else if !volumes.contains(&name) {
            errors.not_found(format!("{path}.name"), &mount["name"]);
        }
        let target = text(&mount["mountPath"]);
        if target.is_empty() {
            errors.required(format!("{path}.mountPath"), "");
        } else if items(list)
            .take(index)
            .any(|(_, other)| other["mountPath"] == target)
        {
            errors.add(
                format!("{path}.mountPath"),
                &mount["mountPath"],
                "must be unique",
            );
        }
        for field in ["subPath", "subPathExpr"] {
            let sub = text(&mount[field]);
            if sub.starts_with('/') {
                errors.add(
                    format!("{path}.{field}"),
                    &mount[field],
                    "must be a relative path",
                );
            } else if sub.split('/').any(|part| part == "..") {
                errors.add(
                    format!("{path}.{field}"),
                    &mount[field],
                    "must not contain '..'",
                );
            }
        }
        if !text(&mount["subPath"]).is_empty() && !text(&mount["subPathExpr"]).is_empty() {
            errors.add(
                format!("{path}.subPathExpr"),
                &mount["subPathExpr"],
                "subPathExpr and subPath are mutually exclusive",
            );
        }
        if !mount["mountPropagation"].is_null() {
            errors.one_of(
                format!("{path}.mountPropagation"),
                &mount["mountPropagation"],
                &["Bidirectional", "HostToContainer", "None"],
            );
        }
    }
}

/// Mistakes in requests and limits.
pub fn resources(errors: &mut Errors, at: &str, resources: &Value) {
    let known = |name: &str| {
        matches!(name, "cpu" | "memory" | "ephemeral-storage")
            || name.starts_with("hugepages-")
            || name.contains('/')
    };
    for list in ["limits", "requests"] {
        for (name, value) in resources[list].as_object().into_iter().flatten() {
            let path = format!("{at}.{list}[{name}]");
            errors.invalid(&path, name.as_str(), qualified_name(name));
            if !known(name) {
                errors.add(
                    format!("{at}.{list}"),
                    &name.as_str().into(),
                    "must be a standard resource for containers",
                );
            }
            if text(value)
                .parse_quantity()
                .is_some_and(|quantity| quantity.nano() < 0)
            {
                errors.add(path, value, "must be greater than or equal to 0");
            }
        }
    }
    for (name, request) in resources["requests"].as_object().into_iter().flatten() {
        let limit = &resources["limits"][name];
        let (Some(wanted), Some(allowed)) =
            (text(request).parse_quantity(), text(limit).parse_quantity())
        else {
            let extended = name.contains('/') || name.starts_with("hugepages-");
            if extended && limit.is_null() {
                errors.required(
                    format!("{at}.limits"),
                    "Limit must be set for non overcommitable resources",
                );
            }
            continue;
        };
        if name.contains('/') && wanted.nano() != allowed.nano() {
            errors.add(
                format!("{at}.requests"),
                request,
                &format!("must be equal to {name} limit of {}", text(limit)),
            );
        } else if wanted.nano() > allowed.nano() {
            errors.add(
                format!("{at}.requests"),
                request,
                &format!(
                    "must be less than or equal to {name} limit of {}",
                    text(limit)
                ),
            );
        }
    }
}

fn probe(errors: &mut Errors, at: &str, probe: &Value, one_success: bool) {
    let count = handler(errors, at, probe, &["exec", "httpGet", "tcpSocket", "grpc"]);
    if count == 0 {
        errors.required(at, "must specify a handler type");
    }
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        errors.not_negative(format!("{at}.{field}"), &probe[field]);
    }
    if one_success && probe["successThreshold"].as_i64().unwrap_or(1) != 1 {
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
}

/// Checks the handlers of a probe or hook; returns how many there are.
fn handler(errors: &mut Errors, at: &str, value: &Value, kinds: &[&str]) -> usize {
    let mut count = 0;
    for kind in kinds {
        let handler = &value[*kind];
        if handler.is_null() {
            continue;
        }
        count += 1;
        let path = format!("{at}.{kind}");
        if count > 1 {
            errors.0.push(FieldError::forbidden(
                path,
                "may not specify more than 1 handler type",
            ));
            continue;
        }
        match *kind {
            "exec" => {
                if items(&handler["command"]).next().is_none() {
                    errors.required(format!("{path}.command"), "");
                }
            }
            "grpc" => errors.port(format!("{path}.port"), &handler["port"]),
            "sleep" => errors.not_negative(format!("{path}.seconds"), &handler["seconds"]),
            _ => {
                match &handler["port"] {
                    Value::String(name) => {
                        errors.invalid(&format!("{path}.port"), name.as_str(), port_name(name))
                    }
                    port => errors.port(format!("{path}.port"), port),
                }
                if *kind == "httpGet" {
                    if text(&handler["path"]).is_empty() {
                        errors.required(format!("{path}.path"), "");
                    }
                    errors.one_of(
                        format!("{path}.scheme"),
                        &handler["scheme"],
                        &["HTTP", "HTTPS"],
                    );
                }
                let host = text(&handler["host"]);
                if *kind == "httpGet"
                    && !host.is_empty()
                    && host.parse::<std::net::IpAddr>().is_err()
                    && !subdomain(host).is_empty()
                {
                    errors.invalid(&format!("{path}.host"), host, subdomain(host));
                }
            }
        }
    }
    count
}
