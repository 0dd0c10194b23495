//! AppArmor profiles: which a node can enforce, and what a container asks for.
//!
//! A pod that asks for one must not run without it. Source: kubernetes, pkg/security/apparmor, `Validate`, and
//! pkg/kubelet/lifecycle, `appArmorAdmitHandler`.

use std::sync::LazyLock;

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, PodSpec};

use crate::pod;

/// The reason of a pod whose profile cannot be enforced.
pub(crate) const REASON: &str = "AppArmor";

/// Profiles as they were asked for before there was a field.
const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Whether this kernel has AppArmor and has it on, which does not change while it runs.
pub(crate) fn is_enabled() -> bool {
    static ENABLED: LazyLock<bool> = LazyLock::new(|| {
        std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|text| text.starts_with('Y'))
    });
    *ENABLED
}

/// Why the pod cannot be confined as it asks, if it cannot, on a host that has AppArmor or has it not.
pub(crate) fn refusal(pod: &Pod, enabled: bool) -> Option<String> {
    let spec = pod::spec(pod);
    let shared = shared(spec);
    let mut asked = shared.into_iter().chain(own(spec));
    let annotations = pod.metadata.annotations.iter().flatten();
    let annotated = annotations
        .filter(|(key, _)| key.starts_with(ANNOTATION))
        .any(|(_, profile)| profile != "unconfined");
    if !annotated && asked.clone().all(|profile| profile.type_ == "Unconfined") {
        return None;
    }
    let why = if !enabled {
        "AppArmor is not enabled on the host".to_owned()
    } else {
        asked.find_map(unenforceable)?
    };
    Some(format!("Cannot enforce AppArmor: {why}"))
}

/// What is wrong with a profile where there is AppArmor. One that is not loaded is for the kernel to refuse.
fn unenforceable(profile: &AppArmorProfile) -> Option<String> {
    match (profile.type_.as_str(), profile.localhost_profile.as_deref()) {
        ("Localhost", name) if name.is_none_or(|name| name.trim().is_empty()) => Some(format!(
            "invalid empty AppArmor profile name: {:?}",
            name.unwrap_or_default()
        )),
        ("RuntimeDefault", _) => Some("the container runtime has no default profile".to_owned()),
        _ => None,
    }
}

/// The profile of the host that a container is to be confined by.
pub(crate) fn localhost(spec: &PodSpec, container: &Container) -> Option<String> {
    let own = container.security_context.as_ref();
    let own = own.and_then(|context| context.app_armor_profile.as_ref());
    let profile = own.or(shared(spec))?;
    let name = profile.localhost_profile.as_ref();
    name.filter(|_| profile.type_ == "Localhost").cloned()
}

fn shared(spec: &PodSpec) -> Option<&AppArmorProfile> {
    spec.security_context.as_ref()?.app_armor_profile.as_ref()
}

/// Those of all containers that have one of their own.
fn own(spec: &PodSpec) -> impl Iterator<Item = &AppArmorProfile> + Clone {
    let plain = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    let plain = plain.map(|container| &container.security_context);
    let late = spec.ephemeral_containers.iter().flatten();
    let late = late.map(|container| &container.security_context);
    plain
        .chain(late)
        .filter_map(|context| context.as_ref()?.app_armor_profile.as_ref())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const OFF: Option<&str> = Some("Cannot enforce AppArmor: AppArmor is not enabled on the host");

    fn pod(shared: Value, own: Value, annotations: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "annotations": annotations},
            "spec": {
                "securityContext": {"appArmorProfile": shared},
                "containers": [{"name": "c", "securityContext": {"appArmorProfile": own}}],
            },
        }))
        .unwrap()
    }

    #[test]
    fn a_profile_that_cannot_be_enforced_is_refused() {
        let none = Value::Null;
        let unconfined = json!({"type": "Unconfined"});
        let default = json!({"type": "RuntimeDefault"});
        let named = json!({"type": "Localhost", "localhostProfile": "strict"});
        let empty = json!({"type": "Localhost", "localhostProfile": " "});
        let no_default = "Cannot enforce AppArmor: the container runtime has no default profile";
        let no_name = "Cannot enforce AppArmor: invalid empty AppArmor profile name: \" \"";
        for (shared, own, without, with) in [
            (&none, &none, None, None),
            (&unconfined, &none, None, None),
            (&none, &unconfined, None, None),
            (&default, &none, OFF, Some(no_default)),
            (&none, &default, OFF, Some(no_default)),
            (&named, &unconfined, OFF, None),
            (&none, &named, OFF, None),
            (&unconfined, &empty, OFF, Some(no_name)),
        ] {
            let pod = pod(shared.clone(), own.clone(), json!({}));
            assert_eq!(refusal(&pod, false).as_deref(), without, "{shared} {own}");
            assert_eq!(refusal(&pod, true).as_deref(), with, "{shared} {own}");
        }
        for (profile, without) in [
            ("unconfined", None),
            ("runtime/default", OFF),
            ("localhost/x", OFF),
        ] {
            let annotations = json!({"container.apparmor.security.beta.kubernetes.io/c": profile});
            let pod = pod(Value::Null, Value::Null, annotations);
            assert_eq!(refusal(&pod, false).as_deref(), without, "{profile}");
        }
    }

    #[test]
    fn a_containers_own_profile_comes_before_its_pods() {
        let of = |shared: Value, own: Value| {
            let pod = pod(shared, own, json!({}));
            localhost(pod::spec(&pod), &pod::spec(&pod).containers[0])
        };
        let named = |name: &str| json!({"type": "Localhost", "localhostProfile": name});
        assert_eq!(of(named("a"), Value::Null).as_deref(), Some("a"));
        assert_eq!(of(named("a"), named("b")).as_deref(), Some("b"));
        assert_eq!(of(named("a"), json!({"type": "Unconfined"})), None);
        assert_eq!(of(Value::Null, Value::Null), None);
    }
}
