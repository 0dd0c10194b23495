//! Validation of containers.

use serde_json::Value;

use super::spec::Owner;
use super::volumes::Volume;
use super::{ParseQuantity as _, handlers, security};
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::{
    Errors, config_key, descending_path, dns_label, env_name, items, no_backsteps, port_name,
    qualified_name, subdomain,
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

/// What a container must know of its pod.
pub struct Pod<'a> {
    /// The volumes that it may mount.
    pub volumes: &'a [Volume<'a>],
    /// The names of the claims of devices that it may use.
    pub claims: &'a [&'a str],
    /// The pod's grace period in seconds.
    pub grace: Option<i64>,
    /// Whether a container of the pod is ever started again.
    pub restarts: bool,
    /// Whether the pod has the host's user namespace.
    pub host_users: bool,
    /// What the spec belongs to.
    pub owner: Owner,
}

/// Mistakes in a container at the path `at`.
pub fn validate(errors: &mut Errors, at: &str, container: &Value, kind: Kind, pod: &Pod<'_>) {
    let name = text(&container["name"]);
    if name.is_empty() {
        errors.required(format!("{at}.name"), "");
    } else {
        errors.invalid(&format!("{at}.name"), name, dns_label(name));
    }
    let image = text(&container["image"]);
    if image.is_empty() {
        errors.required(format!("{at}.image"), "");
    } else if image.trim() != image && (pod.owner == Owner::Pod || kind == Kind::Ephemeral) {
        errors.add(
            format!("{at}.image"),
            &container["image"],
            "must not have leading or trailing whitespace",
        );
    }
    errors.one_of(
        format!("{at}.terminationMessagePolicy"),
        &container["terminationMessagePolicy"],
        &["File", "FallbackToLogsOnError"],
    );
    errors.one_of(
        format!("{at}.imagePullPolicy"),
        &container["imagePullPolicy"],
        &["Always", "IfNotPresent", "Never"],
    );
    ports(errors, &format!("{at}.ports"), &container["ports"]);
    env(errors, at, container);
    mounts(errors, at, container, kind, pod.volumes);
    devices(errors, at, container, pod.volumes);
    resources(
        errors,
        &format!("{at}.resources"),
        &container["resources"],
        pod.claims,
    );
    resize_policy(
        errors,
        &format!("{at}.resizePolicy"),
        &container["resizePolicy"],
        pod.restarts,
    );
    restart_policy(errors, at, container, kind);
    if kind == Kind::Ephemeral {
        not_ephemeral(errors, at, container);
    } else {
        handlers::validate(errors, at, container, kind, pod.grace);
    }
    security::validate_container(
        errors,
        &format!("{at}.securityContext"),
        &container["securityContext"],
        pod.host_users,
    );
}

/// What containers that come later cannot have.
fn not_ephemeral(errors: &mut Errors, at: &str, container: &Value) {
    let is_set = |value: &Value| match value {
        Value::Null => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => true,
    };
    for field in [
        "ports",
        "resources",
        "resizePolicy",
        "restartPolicy",
        "restartPolicyRules",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
        "lifecycle",
    ] {
        if is_set(&container[field]) {
            errors.0.push(FieldError::forbidden(
                format!("{at}.{field}"),
                "cannot be set for an Ephemeral Container",
            ));
        }
    }
}

fn restart_policy(errors: &mut Errors, at: &str, container: &Value, kind: Kind) {
    let policy = &container["restartPolicy"];
    if kind != Kind::Ephemeral && !policy.is_null() {
        errors.one_of(
            format!("{at}.restartPolicy"),
            policy,
            &["Always", "Never", "OnFailure"],
        );
    }
    if policy.is_null() && items(&container["restartPolicyRules"]).next().is_some() {
        errors.required(
            format!("{at}.restartPolicy"),
            "must specify restartPolicy when restart rules are used",
        );
    }
}

fn resize_policy(errors: &mut Errors, at: &str, policies: &Value, restarts: bool) {
    for (index, policy) in items(policies) {
        if items(policies)
            .take(index)
            .any(|(_, other)| other["resourceName"] == policy["resourceName"])
        {
            errors.0.push(FieldError::duplicate(
                format!("{at}[{index}]"),
                &policy["resourceName"],
            ));
        }
        for (field, supported) in [
            ("resourceName", ["cpu", "memory"]),
            ("restartPolicy", ["NotRequired", "RestartContainer"]),
        ] {
            if text(&policy[field]).is_empty() {
                errors.required(at, "");
            } else {
                errors.one_of(at, &policy[field], &supported);
            }
        }
        if !restarts && policy["restartPolicy"] != "NotRequired" {
            errors.add(
                at,
                &policy["restartPolicy"],
                "must be 'NotRequired' when `restartPolicy` is 'Never'",
            );
        }
    }
}

fn ports(errors: &mut Errors, at: &str, list: &Value) {
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
    let list = format!("{at}.envFrom");
    for (index, source) in items(&container["envFrom"]) {
        let path = format!("{list}[{index}]");
        let prefix = text(&source["prefix"]);
        if !prefix.is_empty() {
            errors.invalid(&format!("{path}.prefix"), prefix, env_name(prefix));
        }
        let set: Vec<&str> = ["configMapRef", "secretRef"]
            .into_iter()
            .filter(|kind| !source[*kind].is_null())
            .collect();
        for kind in &set {
            let name = text(&source[*kind]["name"]);
            if name.is_empty() {
                errors.required(format!("{path}.{kind}.name"), "");
            } else {
                errors.invalid(&format!("{path}.{kind}.name"), name, subdomain(name));
            }
        }
        // kube-apiserver names the list here, not the item.
        match set.as_slice() {
            [] => errors.add(
                &list,
                &"".into(),
                "must specify one of: `configMapRef` or `secretRef`",
            ),
            [_] => {}
            _ => errors.add(
                &list,
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
        "fieldRef" => downward_field(errors, at, source, FIELDS),
        "resourceFieldRef" => resource_field(errors, at, source, false),
        "configMapKeyRef" | "secretKeyRef" => {
            let (name, key) = (text(&source["name"]), text(&source["key"]));
            errors.invalid(&format!("{at}.name"), name, subdomain(name));
            if key.is_empty() {
                errors.required(format!("{at}.key"), "");
            } else {
                errors.invalid(&format!("{at}.key"), key, config_key(key));
            }
        }
        _ => {}
    }
}

/// Mistakes in a reference to a field of the pod; `supported` are those without a subscript.
pub fn downward_field(errors: &mut Errors, at: &str, source: &Value, supported: &[&str]) {
    /// What the fields of pods can be called at all.
    const KNOWN: &[&str] = &[
        "metadata.annotations",
        "metadata.labels",
        "metadata.name",
        "metadata.namespace",
        "metadata.uid",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.serviceAccountName",
        "spec.schedulerName",
        "status.phase",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    let field = text(&source["fieldPath"]);
    let path = format!("{at}.fieldPath");
    if field.is_empty() {
        errors.required(path, "");
        return;
    }
    let cannot = |why: &str| format!("error converting fieldPath: {why}");
    let subscript = field
        .strip_suffix("']")
        .and_then(|start| start.split_once("['"))
        .filter(|(base, _)| !base.is_empty());
    match subscript {
        Some((base @ ("metadata.labels" | "metadata.annotations"), key)) => {
            let key = match base {
                "metadata.annotations" => key.to_lowercase(),
                _ => key.to_owned(),
            };
            errors.invalid(at, key.as_str(), qualified_name(&key));
        }
        Some((base, _)) => {
            let why = format!("field label does not support subscript: {base:?}");
            errors.add(path, &source["fieldPath"], &cannot(&why));
        }
        None if supported.contains(&field) => {}
        None if KNOWN.contains(&field) => {
            errors.0.push(FieldError::not_supported(
                path,
                &source["fieldPath"],
                supported,
            ));
        }
        None => {
            let why = format!("field label not supported: {field}");
            errors.add(path, &source["fieldPath"], &cannot(&why));
        }
    }
}

/// Mistakes in a reference to a container's requests or limits; in a volume it must say which container's.
pub fn resource_field(errors: &mut Errors, at: &str, source: &Value, in_volume: bool) {
    const SIZES: &[&str] = &[
        "1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei",
    ];
    let resource = text(&source["resource"]);
    let of = |name: &str| {
        resource
            .strip_prefix("limits.")
            .or_else(|| resource.strip_prefix("requests."))
            .is_some_and(|rest| rest.starts_with(name))
    };
    if in_volume && text(&source["containerName"]).is_empty() {
        errors.required(format!("{at}.containerName"), "");
    } else if resource.is_empty() {
        errors.required(format!("{at}.resource"), "");
    } else if !of("hugepages-") {
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
    let divisor = text(&source["divisor"]);
    if matches!(divisor, "" | "0") {
        return;
    }
    let (good, what): (bool, &str) = match resource {
        "limits.cpu" | "requests.cpu" => (matches!(divisor, "1" | "1m"), "cpu"),
        "limits.memory" | "requests.memory" => (SIZES.contains(&divisor), "memory"),
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => {
            (SIZES.contains(&divisor), "local ephemeral storage")
        }
        _ if of("hugepages-") => (SIZES.contains(&divisor), "hugepages"),
        _ => return,
    };
    if !good {
        let values = match what {
            "cpu" => "1m and 1".to_owned(),
            _ => SIZES.join(", "),
        };
        errors.add(
            format!("{at}.divisor"),
            &source["resource"],
            &format!("only divisor's values {values} are supported with the {what} resource"),
        );
    }
}

fn mounts(errors: &mut Errors, at: &str, container: &Value, kind: Kind, volumes: &[Volume<'_>]) {
    let (list, devices) = (&container["volumeMounts"], &container["volumeDevices"]);
    let at = format!("{at}.volumeMounts");
    for (index, mount) in items(list) {
        let path = format!("{at}[{index}]");
        let name = text(&mount["name"]);
        if name.is_empty() {
            errors.required(format!("{path}.name"), "");
        }
        if !volumes.iter().any(|volume| volume.name == name) {
            errors.not_found(format!("{path}.name"), &name.into());
        }
        let target = text(&mount["mountPath"]);
        if target.is_empty() {
            errors.required(format!("{path}.mountPath"), "");
        }
        if items(list)
            .take(index)
            .any(|(_, other)| other["mountPath"] == target)
        {
            errors.add(
                format!("{path}.mountPath"),
                &mount["mountPath"],
                "must be unique",
            );
        }
        if items(devices).any(|(_, device)| device["name"] == name) {
            errors.add(
                format!("{path}.name"),
                &mount["name"],
                "must not already exist in volumeDevices",
            );
        }
        if items(devices).any(|(_, device)| device["devicePath"] == target) {
            errors.add(
                format!("{path}.mountPath"),
                &mount["mountPath"],
                "must not already exist as a path in volumeDevices",
            );
        }
        for field in ["subPath", "subPathExpr"] {
            let sub = text(&mount[field]);
            if sub.is_empty() {
                continue;
            }
            // kube-apiserver names the list here, not the item.
            errors.invalid(&format!("{at}.{field}"), sub, descending_path(sub));
            if kind == Kind::Ephemeral {
                errors.0.push(FieldError::forbidden(
                    format!("{path}.{field}"),
                    "cannot be set for an Ephemeral Container",
                ));
            }
        }
        if !text(&mount["subPath"]).is_empty() && !text(&mount["subPathExpr"]).is_empty() {
            errors.add(
                format!("{path}.subPathExpr"),
                &mount["subPathExpr"],
                "subPathExpr and subPath are mutually exclusive",
            );
        }
        propagation(errors, &at, container, mount);
    }
}

/// How mounts below a mount spread; the paths name the list, as kube-apiserver's do.
fn propagation(errors: &mut Errors, at: &str, container: &Value, mount: &Value) {
    let mode = &mount["mountPropagation"];
    if !mode.is_null() {
        let field = format!("{at}.mountPropagation");
        errors.one_of(&field, mode, &["Bidirectional", "HostToContainer", "None"]);
        if mode == "Bidirectional" && container["securityContext"]["privileged"] != true {
            errors.0.push(FieldError::forbidden(
                field,
                "Bidirectional mount propagation is available only to privileged containers",
            ));
        }
    }
    let recursive = &mount["recursiveReadOnly"];
    let field = format!("{at}.recursiveReadOnly");
    match text(recursive) {
        "Enabled" | "IfPossible" => {
            if mount["readOnly"] != true {
                errors.0.push(FieldError::forbidden(
                    field.clone(),
                    "may only be specified when readOnly is true",
                ));
            }
            if !mode.is_null() && mode != "None" {
                errors.0.push(FieldError::forbidden(
                    field,
                    "may only be specified when mountPropagation is None or not specified",
                ));
            }
        }
        _ if recursive.is_null() => {}
        _ => errors.one_of(field, recursive, &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn devices(errors: &mut Errors, at: &str, container: &Value, volumes: &[Volume<'_>]) {
    let (list, mounts) = (&container["volumeDevices"], &container["volumeMounts"]);
    for (index, device) in items(list) {
        let path = format!("{at}.volumeDevices[{index}]");
        let (name, target) = (text(&device["name"]), text(&device["devicePath"]));
        if name.is_empty() {
            errors.required(format!("{path}.name"), "");
        }
        let before = |field: &str| {
            items(list)
                .take(index)
                .any(|(_, other)| other[field] == device[field])
        };
        if before("name") {
            errors.add(format!("{path}.name"), &device["name"], "must be unique");
        }
        match volumes.iter().find(|volume| volume.name == name) {
            None => errors.not_found(format!("{path}.name"), &name.into()),
            Some(volume) if !volume.is_claim => errors.add(
                format!("{path}.name"),
                &device["name"],
                "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            ),
            Some(_) => {}
        }
        if target.is_empty() {
            errors.required(format!("{path}.devicePath"), "");
        }
        if before("devicePath") {
            errors.add(
                format!("{path}.devicePath"),
                &device["devicePath"],
                "must be unique",
            );
        }
        if !no_backsteps(target).is_empty() {
            errors.add(
                format!("{path}.devicePath"),
                &device["devicePath"],
                "can not contain backsteps ('..')",
            );
        }
        if items(mounts).any(|(_, mount)| mount["name"] == name) {
            errors.add(
                format!("{path}.name"),
                &device["name"],
                "must not already exist in volumeMounts",
            );
        }
        if items(mounts).any(|(_, mount)| mount["mountPath"] == target) {
            errors.add(
                format!("{path}.devicePath"),
                &device["devicePath"],
                "must not already exist as a path in volumeMounts",
            );
        }
    }
}

/// Whether an amount is more than another; amounts that cannot be read are not.
pub fn exceeds(amount: &Value, most: &Value) -> bool {
    let nano = |value: &Value| text(value).parse_quantity().map(|quantity| quantity.nano());
    matches!((nano(amount), nano(most)), (Some(amount), Some(most)) if amount > most)
}

/// What is wrong with the name of a container's resource.
fn resource_name(name: &str) -> Vec<String> {
    let wrong = qualified_name(name);
    if !wrong.is_empty() {
        return wrong;
    }
    let native = matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_huge_page(name);
    match name.split_once('/') {
        None if native => Vec::new(),
        None => vec!["must be a standard resource for containers".to_owned()],
        // Kubernetes' own resources, and those of devices, which are named after their makers.
        Some((domain, _)) if domain == "kubernetes.io" || domain.ends_with(".kubernetes.io") => {
            Vec::new()
        }
        Some(_) if name.starts_with("requests.") => {
            vec!["doesn't follow extended resource name standard".to_owned()]
        }
        Some(_) => Vec::new(),
    }
}

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

/// Mistakes in requests and limits; `claims` are the pod's claims of devices.
pub fn resources(errors: &mut Errors, at: &str, resources: &Value, claims: &[&str]) {
    let amounts = |list: &str| resources[list].as_object().into_iter().flatten();
    for list in ["limits", "requests"] {
        for (name, value) in amounts(list) {
            let path = format!("{at}.{list}[{name}]");
            errors.invalid(&path, name.as_str(), resource_name(name));
            let Some(quantity) = text(value).parse_quantity() else {
                continue;
            };
            if quantity.nano() < 0 {
                errors.add(&path, value, "must be greater than or equal to 0");
            }
            if name.contains('/') && quantity.nano() % 1_000_000_000 != 0 {
                errors.add(&path, value, "must be an integer");
            }
        }
    }
    for (name, request) in amounts("requests") {
        // What cannot be promised twice must be asked for as it is used.
        let exact = name.contains('/') || is_huge_page(name);
        let limit = &resources["limits"][name];
        if limit.is_null() {
            if exact {
                errors.required(
                    format!("{at}.limits"),
                    "Limit must be set for non overcommitable resources",
                );
            }
        } else if exact && (exceeds(request, limit) || exceeds(limit, request)) {
            errors.add(
                format!("{at}.requests"),
                request,
                &format!("must be equal to {name} limit of {}", text(limit)),
            );
        } else if exceeds(request, limit) {
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
    let names = || {
        amounts("limits")
            .chain(amounts("requests"))
            .map(|(name, _)| name)
    };
    if names().any(|name| is_huge_page(name))
        && !names().any(|name| matches!(name.as_str(), "cpu" | "memory"))
    {
        errors
            .0
            .push(FieldError::forbidden(at, "HugePages require cpu or memory"));
    }
    for (index, claim) in items(&resources["claims"]) {
        let path = format!("{at}.claims[{index}]");
        let name = text(&claim["name"]);
        if name.is_empty() {
            errors.required(format!("{path}.name"), "");
        } else if items(&resources["claims"])
            .take(index)
            .any(|(_, other)| other["name"] == name && other["request"] == claim["request"])
        {
            errors.0.push(FieldError::duplicate(path, &claim["name"]));
        } else if !claims.contains(&name) {
            errors.not_found(path, &claim["name"]);
        }
    }
}
