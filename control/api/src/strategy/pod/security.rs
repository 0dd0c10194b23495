//! Validation of security contexts, of pods and of containers, and of a pod's operating system.

use serde_json::Value;

use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::{Errors, descending_path, items};

/// The lists of containers.
const LISTS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];
const SYSCTL: &str = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

fn id(errors: &mut Errors, at: String, id: &Value) {
    if id
        .as_i64()
        .is_some_and(|id| !(0..=i64::from(i32::MAX)).contains(&id))
    {
        errors.add(at, id, "must be between 0 and 2147483647, inclusive");
    }
}

fn optional(errors: &mut Errors, at: &str, context: &Value, field: &str, supported: &[&str]) {
    if !context[field].is_null() {
        errors.one_of(format!("{at}.{field}"), &context[field], supported);
    }
}

/// Mistakes in the security context of a pod, and in what depends on it; `at` is the spec's path.
pub fn validate_pod(errors: &mut Errors, at: &str, spec: &Value) {
    let (context, path) = (&spec["securityContext"], format!("{at}.securityContext"));
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(errors, format!("{path}.{field}"), &context[field]);
    }
    for (index, group) in items(&context["supplementalGroups"]) {
        id(errors, format!("{path}.supplementalGroups[{index}]"), group);
    }
    if spec["shareProcessNamespace"] == true && spec["hostPID"] == true {
        errors.add(
            format!("{at}.shareProcessNamespace"),
            &true.into(),
            "ShareProcessNamespace and HostPID cannot both be enabled",
        );
    }
    sysctls(errors, &format!("{path}.sysctls"), spec);
    optional(
        errors,
        &path,
        context,
        "fsGroupChangePolicy",
        &["Always", "OnRootMismatch"],
    );
    optional(
        errors,
        &path,
        context,
        "supplementalGroupsPolicy",
        &["Merge", "Strict"],
    );
    optional(
        errors,
        &path,
        context,
        "seLinuxChangePolicy",
        &["MountOption", "Recursive"],
    );
    profiles(errors, &path, context);
    if spec["hostUsers"] == false {
        for (field, name) in [
            ("hostNetwork", "hostNetwork"),
            ("hostPID", "HostPID"),
            ("hostIPC", "HostIPC"),
        ] {
            if spec[field] == true {
                errors.0.push(FieldError::forbidden(
                    format!("{at}.{name}"),
                    "when `pod.Spec.HostUsers` is false",
                ));
            }
        }
    }
    system(errors, at, spec);
}

fn sysctls(errors: &mut Errors, at: &str, spec: &Value) {
    let list = &spec["securityContext"]["sysctls"];
    for (index, sysctl) in items(list) {
        let path = format!("{at}[{index}].name");
        let name = text(&sysctl["name"]);
        if name.is_empty() {
            errors.required(path.clone(), "");
        } else if !is_sysctl(name) {
            errors.add(path.clone(), &sysctl["name"], SYSCTL);
        } else if items(list)
            .take(index)
            .any(|(_, other)| other["name"] == name)
        {
            errors
                .0
                .push(FieldError::duplicate(path.clone(), &sysctl["name"]));
        }
        // A pod in the host's namespace would set the host's.
        let dotted = name.replace('/', ".");
        let of_ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."]
            .iter()
            .any(|start| dotted.starts_with(start))
            || dotted == "kernel.sem";
        for (set, field) in [
            (dotted.starts_with("net."), "hostNetwork"),
            (of_ipc, "hostIPC"),
        ] {
            if set && spec[field] == true {
                errors.add(
                    path.clone(),
                    &sysctl["name"],
                    &format!("may not be specified when '{field}' is true"),
                );
            }
        }
    }
}

fn is_sysctl(name: &str) -> bool {
    let alphanumeric = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 253
        && name.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            bytes.first().copied().is_some_and(alphanumeric)
                && bytes.last().copied().is_some_and(alphanumeric)
                && bytes.iter().all(|c| alphanumeric(*c) || b"-_".contains(c))
        })
}

/// Seccomp and AppArmor, which pods and containers have alike.
fn profiles(errors: &mut Errors, at: &str, context: &Value) {
    let (seccomp, path) = (&context["seccompProfile"], format!("{at}.seccompProfile"));
    if !seccomp.is_null() {
        let (kind, file) = (text(&seccomp["type"]), &seccomp["localhostProfile"]);
        if kind.is_empty() {
            errors.required(
                format!("{path}.type"),
                "type is required when seccompProfile is set",
            );
        } else {
            errors.one_of(
                format!("{path}.type"),
                &seccomp["type"],
                &["Localhost", "RuntimeDefault", "Unconfined"],
            );
        }
        let field = format!("{path}.localhostProfile");
        match (kind == "Localhost", file.as_str()) {
            (true, None) => {
                errors.required(field, "must be set when seccomp type is Localhost");
            }
            (true, Some(file)) => errors.invalid(&field, file, descending_path(file)),
            (false, Some(_)) => errors.add(
                field,
                seccomp,
                "can only be set when seccomp type is Localhost",
            ),
            (false, None) => {}
        }
    }
    let (armor, path) = (&context["appArmorProfile"], format!("{at}.appArmorProfile"));
    if armor.is_null() {
        return;
    }
    let (profile, field) = (
        &armor["localhostProfile"],
        format!("{path}.localhostProfile"),
    );
    match text(&armor["type"]) {
        "Localhost" => match profile.as_str() {
            Some(name) if name.trim() != name => {
                errors.add(field, profile, "must not be padded with whitespace");
            }
            Some(name) if name.len() > 4095 => {
                errors.0.push(FieldError::too_long(field, 4095, "bytes"));
            }
            Some(name) if !name.is_empty() => {}
            _ => errors.required(field, "must be set when AppArmor type is Localhost"),
        },
        "RuntimeDefault" | "Unconfined" => {
            if !profile.is_null() {
                errors.add(
                    field,
                    profile,
                    "can only be set when AppArmor type is Localhost",
                );
            }
        }
        "" => errors.required(
            format!("{path}.type"),
            "type is required when appArmorProfile is set",
        ),
        _ => errors.one_of(
            format!("{path}.type"),
            &armor["type"],
            &["Localhost", "RuntimeDefault", "Unconfined"],
        ),
    }
}

/// Mistakes in the security context of a container; `host_users` is whether the pod has the host's user namespace.
pub fn validate_container(errors: &mut Errors, at: &str, context: &Value, host_users: bool) {
    for field in ["runAsUser", "runAsGroup"] {
        id(errors, format!("{at}.{field}"), &context[field]);
    }
    optional(errors, at, context, "procMount", &["Default", "Unmasked"]);
    if context["procMount"] == "Unmasked" && host_users {
        errors.add(
            format!("{at}.procMount"),
            &context["procMount"],
            "`hostUsers` must be false to use `Unmasked`",
        );
    }
    profiles(errors, at, context);
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

/// The operating system that a pod is for, and what it cannot have there.
fn system(errors: &mut Errors, at: &str, spec: &Value) {
    #[rustfmt::skip] // One list.
    const NOT_ON_WINDOWS: &[&str] = &[
        "appArmorProfile", "seLinuxOptions", "seccompProfile", "fsGroup", "fsGroupChangePolicy", "sysctls", "runAsUser",
        "runAsGroup", "supplementalGroups", "supplementalGroupsPolicy", "seLinuxChangePolicy", "capabilities",
        "readOnlyRootFilesystem", "privileged", "allowPrivilegeEscalation", "procMount",
    ];
    if spec["os"].is_null() {
        return;
    }
    let name = text(&spec["os"]["name"]);
    let contexts = std::iter::once((format!("{at}.securityContext"), &spec["securityContext"]))
        .chain(LISTS.iter().flat_map(|list| {
            items(&spec[*list]).map(move |(index, container)| {
                let path = format!("{at}.{list}[{index}].securityContext");
                (path, &container["securityContext"])
            })
        }));
    match name {
        "" => errors.required(format!("{at}.os.name"), "cannot be empty"),
        "linux" => {
            for (path, context) in contexts {
                if !context["windowsOptions"].is_null() {
                    errors.0.push(FieldError::forbidden(
                        format!("{path}.windowsOptions"),
                        "windows options cannot be set for a linux pod",
                    ));
                }
            }
        }
        "windows" => {
            const DETAIL: &str = "cannot be set for a windows pod";
            for (path, context) in contexts {
                for field in NOT_ON_WINDOWS {
                    if !context[*field].is_null() {
                        errors
                            .0
                            .push(FieldError::forbidden(format!("{path}.{field}"), DETAIL));
                    }
                }
            }
            for field in ["hostUsers", "hostPID", "hostIPC", "shareProcessNamespace"] {
                if !spec[field].is_null() && spec[field] != false {
                    errors
                        .0
                        .push(FieldError::forbidden(format!("{at}.{field}"), DETAIL));
                }
            }
        }
        _ => errors.one_of(
            format!("{at}.os"),
            &spec["os"]["name"],
            &["linux", "windows"],
        ),
    }
}
