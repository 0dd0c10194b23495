//! The checks of the profiles that confine a pod: AppArmor, SELinux, seccomp, of both levels.

use std::collections::BTreeSet;

use serde_json::Value;

use super::baseline::is_listed;
use super::checks::{Pod, Violation, containers, plural, quoted, setters, text};
use super::restricted::KNOWS_WINDOWS;

/// SELinux types of containers, and since when.
const SE_LINUX_TYPES: [(&str, u32); 5] = [
    ("", 0),
    ("container_t", 0),
    ("container_init_t", 0),
    ("container_kvm_t", 0),
    ("container_engine_t", 31),
];

/// Whether a profile, of AppArmor or seccomp, is that of the runtime or of the node.
fn is_profile(kind: &Value) -> bool {
    matches!(text(kind), "RuntimeDefault" | "Localhost")
}

/// Who has set a type that is neither of these, and which types.
fn wrong_types(pod: Pod<'_>, field: &str) -> (Option<String>, BTreeSet<String>) {
    let mut bad = BTreeSet::new();
    let mut is_bad = |context: &Value| {
        let profile = &context[field];
        let is_bad = profile.is_object() && !is_profile(&profile["type"]);
        if is_bad {
            bad.insert(text(&profile["type"]).to_owned());
        }
        is_bad
    };
    let of_pod = is_bad(&pod.spec["securityContext"]);
    let names = pod.where_container(|container| is_bad(&container["securityContext"]));
    (setters(of_pod, &names), bad)
}

pub(super) fn app_armor(pod: Pod<'_>, _: u32) -> Option<Violation> {
    const KEY: &str = "container.apparmor.security.beta.kubernetes.io/";
    let (setters, bad) = wrong_types(pod, "appArmorProfile");
    let annotations = pod.metadata["annotations"].as_object();
    let mut annotated: Vec<String> = annotations
        .into_iter()
        .flatten()
        .map(|(key, value)| (key, text(value)))
        .filter(|(key, value)| {
            let allowed =
                matches!(*value, "" | "runtime/default") || value.starts_with("localhost/");
            key.starts_with(KEY) && !allowed
        })
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    annotated.sort();
    let of_annotations = (!annotated.is_empty())
        .then(|| plural("annotation", "annotations", annotated.len()).to_owned());
    let setters: Vec<String> = setters.into_iter().chain(of_annotations).collect();
    let bad: Vec<String> = bad.into_iter().chain(annotated).collect();
    (!setters.is_empty()).then(|| Violation {
        reason: plural(
            "forbidden AppArmor profile",
            "forbidden AppArmor profiles",
            bad.len(),
        ),
        detail: format!(
            "{} must not set AppArmor profile type to {}",
            setters.join(" and "),
            quoted(&bad)
        ),
    })
}

pub(super) fn se_linux(pod: Pod<'_>, minor: u32) -> Option<Violation> {
    let (mut kinds, mut user, mut role) = (BTreeSet::new(), false, false);
    let mut is_bad = |context: &Value| {
        let options = &context["seLinuxOptions"];
        let set = |field: &str| !text(&options[field]).is_empty();
        let kind = text(&options["type"]);
        let known = is_listed(&SE_LINUX_TYPES, kind, minor);
        if !known {
            kinds.insert(kind.to_owned());
        }
        user |= set("user");
        role |= set("role");
        !known || set("user") || set("role")
    };
    let of_pod = is_bad(&pod.spec["securityContext"]);
    let names = pod.where_container(|container| is_bad(&container["securityContext"]));
    let setters = setters(of_pod, &names)?;
    let kinds = (!kinds.is_empty()).then(|| {
        format!(
            "{} {}",
            plural("type", "types", kinds.len()),
            quoted(&kinds)
        )
    });
    let user = user.then(|| "user may not be set".to_owned());
    let role = role.then(|| "role may not be set".to_owned());
    let bad: Vec<String> = kinds.into_iter().chain(user).chain(role).collect();
    Some(Violation {
        reason: "seLinuxOptions",
        detail: format!(
            "{setters} set forbidden securityContext.seLinuxOptions: {}",
            bad.join("; ")
        ),
    })
}

pub(super) fn seccomp(pod: Pod<'_>, minor: u32) -> Option<Violation> {
    if minor < 19 {
        return seccomp_annotations(pod);
    }
    let (setters, bad) = wrong_types(pod, "seccompProfile");
    Some(Violation {
        reason: "seccompProfile",
        detail: format!(
            "{} must not set securityContext.seccompProfile.type to {}",
            setters?,
            quoted(&bad)
        ),
    })
}

/// From before the field.
fn seccomp_annotations(pod: Pod<'_>) -> Option<Violation> {
    const OF_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    const OF_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
    let of_containers = pod.containers();
    let bad: BTreeSet<String> = of_containers
        .map(|container| format!("{OF_CONTAINER}{}", text(&container["name"])))
        .chain([OF_POD.to_owned()])
        .filter_map(|key| {
            let value = pod.metadata["annotations"][&key].as_str()?;
            let allowed = matches!(value, "runtime/default" | "docker/default")
                || value.starts_with("localhost/");
            (!allowed).then(|| format!("{key}={value:?}"))
        })
        .collect();
    let word = plural("annotation", "annotations", bad.len());
    let bad: Vec<String> = bad.into_iter().collect();
    (!bad.is_empty()).then(|| Violation {
        reason: "seccompProfile",
        detail: format!("forbidden {word} {}", bad.join(", ")),
    })
}

/// The level restricted wants a profile to be set, by the pod or by each container.
pub(super) fn some_seccomp(pod: Pod<'_>, minor: u32) -> Option<Violation> {
    if minor >= KNOWS_WINDOWS && pod.is_windows() {
        return None;
    }
    let wrong = seccomp(pod, minor);
    if wrong.is_some() {
        return wrong;
    }
    let is_set = is_profile(&pod.spec["securityContext"]["seccompProfile"]["type"]);
    let silent = pod.where_container(|container| {
        !is_set && !container["securityContext"]["seccompProfile"].is_object()
    });
    (!silent.is_empty()).then(|| Violation {
        reason: "seccompProfile",
        detail: format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            containers(&silent)
        ),
    })
}
