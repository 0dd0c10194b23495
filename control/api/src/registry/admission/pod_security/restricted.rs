//! The checks of the level restricted: what is known to be good practice.

use std::collections::BTreeSet;

use serde_json::Value;

use super::baseline::unmasked;
use super::checks::{Pod, Violation, containers, plural, quoted, setters, text};
use crate::strategy::validation::items;

/// Volumes that do not name something of the node or of the network.
const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// From this minor version on, what only Linux knows is not asked of pods for Windows.
pub(super) const KNOWS_WINDOWS: u32 = 25;

pub(super) fn privilege_escalation(pod: Pod<'_>, minor: u32) -> Option<Violation> {
    if minor >= KNOWS_WINDOWS && pod.is_windows() {
        return None;
    }
    let names = pod.where_container(|container| {
        container["securityContext"]["allowPrivilegeEscalation"] != false
    });
    (!names.is_empty()).then(|| Violation {
        reason: "allowPrivilegeEscalation != false",
        detail: format!(
            "{} must set securityContext.allowPrivilegeEscalation=false",
            containers(&names)
        ),
    })
}

pub(super) fn capabilities(pod: Pod<'_>, minor: u32) -> Option<Violation> {
    if minor >= KNOWS_WINDOWS && pod.is_windows() {
        return None;
    }
    let keeping = pod.where_container(|container| {
        let dropped = &container["securityContext"]["capabilities"]["drop"];
        !items(dropped).any(|(_, name)| name == "ALL")
    });
    let mut bad = BTreeSet::new();
    let adding = pod.where_container(|container| {
        let added = items(&container["securityContext"]["capabilities"]["add"]);
        let beyond: Vec<&str> = added
            .map(|(_, name)| text(name))
            .filter(|name| *name != "NET_BIND_SERVICE")
            .collect();
        bad.extend(beyond.iter().copied());
        !beyond.is_empty()
    });
    let keeping = (!keeping.is_empty()).then(|| {
        format!(
            "{} must set securityContext.capabilities.drop=[\"ALL\"]",
            containers(&keeping)
        )
    });
    let adding = (!adding.is_empty()).then(|| {
        format!(
            "{} must not include {} in securityContext.capabilities.add",
            containers(&adding),
            quoted(&bad)
        )
    });
    let details: Vec<String> = keeping.into_iter().chain(adding).collect();
    (!details.is_empty()).then(|| Violation {
        reason: "unrestricted capabilities",
        detail: details.join("; "),
    })
}

pub(super) fn proc_mount(pod: Pod<'_>, _: u32) -> Option<Violation> {
    unmasked(pod)
}

pub(super) fn volumes(pod: Pod<'_>, _: u32) -> Option<Violation> {
    let (mut names, mut kinds) = (Vec::new(), BTreeSet::new());
    for (_, volume) in items(&pod.spec["volumes"]) {
        let fields = volume.as_object().into_iter().flatten();
        let source = fields
            .filter(|(field, source)| *field != "name" && !source.is_null())
            .map(|(field, _)| field.as_str())
            .next();
        if !source.is_some_and(|source| VOLUMES.contains(&source)) {
            names.push(text(&volume["name"]));
            kinds.insert(source.unwrap_or("unknown"));
        }
    }
    (!names.is_empty()).then(|| Violation {
        reason: "restricted volume types",
        detail: format!(
            "{} {} {} {} {}",
            plural("volume", "volumes", names.len()),
            quoted(&names),
            plural("uses", "use", names.len()),
            plural(
                "restricted volume type",
                "restricted volume types",
                kinds.len()
            ),
            quoted(&kinds)
        ),
    })
}

pub(super) fn non_root(pod: Pod<'_>, minor: u32) -> Option<Violation> {
    if minor >= 35 && pod.has_own_users() {
        return None;
    }
    let of_pod = &pod.spec["securityContext"]["runAsNonRoot"];
    let root =
        pod.where_container(|container| container["securityContext"]["runAsNonRoot"] == false);
    let silent = pod.where_container(|container| {
        of_pod != true && !container["securityContext"]["runAsNonRoot"].is_boolean()
    });
    let detail = match setters(of_pod == false, &root) {
        Some(setters) => format!("{setters} must not set securityContext.runAsNonRoot=false"),
        None if silent.is_empty() => return None,
        None => format!(
            "pod or {} must set securityContext.runAsNonRoot=true",
            containers(&silent)
        ),
    };
    Some(Violation {
        reason: "runAsNonRoot != true",
        detail,
    })
}

pub(super) fn user(pod: Pod<'_>, minor: u32) -> Option<Violation> {
    if minor >= 35 && pod.has_own_users() {
        return None;
    }
    let is_root = |context: &Value| context["runAsUser"] == 0;
    let of_pod = is_root(&pod.spec["securityContext"]);
    let names = pod.where_container(|container| is_root(&container["securityContext"]));
    let setters = setters(of_pod, &names)?;
    Some(Violation {
        reason: "runAsUser=0",
        detail: format!("{setters} must not set runAsUser=0"),
    })
}
