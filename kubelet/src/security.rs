//! Security contexts: a container's over its pod's.

use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile as ApiSeccomp};
use knarr_engine::types::{ImageStatus, SeccompProfile, SecurityContext};

use crate::apparmor;
use crate::pod::{self, PodKey};

/// What the container may do; an error is the message of `CreateContainerConfigError`.
pub(crate) fn context(
    pod: &Pod,
    container: &Container,
    image: &ImageStatus,
    seccomp_root: &Path,
) -> Result<SecurityContext, String> {
    let own = container.security_context.clone().unwrap_or_default();
    let shared = pod::spec(pod).security_context.clone().unwrap_or_default();
    let run_as_user = own.run_as_user.or(shared.run_as_user);
    if own.run_as_non_root.or(shared.run_as_non_root) == Some(true) {
        non_root(pod, container, run_as_user, image)?;
    }
    let capabilities = own.capabilities.unwrap_or_default();
    let plain = |list: Option<Vec<String>>| -> Vec<String> {
        list.into_iter()
            .flatten()
            .map(|c| c.to_uppercase().trim_start_matches("CAP_").to_owned())
            .collect()
    };
    let mut supplemental_groups = shared.supplemental_groups.unwrap_or_default();
    supplemental_groups.extend(shared.fs_group);
    let profile = own.seccomp_profile.or(shared.seccomp_profile);
    Ok(SecurityContext {
        privileged: own.privileged == Some(true),
        add_capabilities: plain(capabilities.add),
        drop_capabilities: plain(capabilities.drop),
        run_as_user,
        run_as_group: own.run_as_group.or(shared.run_as_group),
        supplemental_groups,
        supplemental_groups_strict: shared.supplemental_groups_policy.as_deref() == Some("Strict"),
        readonly_rootfs: own.read_only_root_filesystem == Some(true),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
        seccomp: seccomp(profile.as_ref(), seccomp_root)?,
        apparmor: apparmor::localhost(pod::spec(pod), container),
    })
}

/// Without a profile the runtime's own applies, as with the kubelet's `seccompDefault`.
fn seccomp(profile: Option<&ApiSeccomp>, root: &Path) -> Result<SeccompProfile, String> {
    let Some(profile) = profile else {
        return Ok(SeccompProfile::RuntimeDefault);
    };
    match profile.type_.as_str() {
        "Unconfined" => Ok(SeccompProfile::Unconfined),
        "Localhost" => match profile
            .localhost_profile
            .as_deref()
            .filter(|p| !p.is_empty())
        {
            Some(path) => Ok(SeccompProfile::Localhost(root.join(path))),
            None => {
                Err("localhostProfile must be set if seccompProfile type is Localhost.".to_owned())
            }
        },
        _ => Ok(SeccompProfile::RuntimeDefault),
    }
}

/// Source: kubernetes, pkg/kubelet/kuberuntime/security_context.go, `verifyRunAsNonRoot`.
fn non_root(
    pod: &Pod,
    container: &Container,
    user: Option<i64>,
    image: &ImageStatus,
) -> Result<(), String> {
    let place = format!(
        "(pod: \"{}\", container: {})",
        PodKey::of(pod),
        container.name
    );
    if let Some(user) = user {
        return if user == 0 {
            Err(format!(
                "container's runAsUser breaks non-root policy {place}"
            ))
        } else {
            Ok(())
        };
    }
    let name = image.user.split(':').next().unwrap_or_default();
    match name.parse::<i64>() {
        Ok(0) => Err(format!(
            "container has runAsNonRoot and image will run as root {place}"
        )),
        Ok(_) => Ok(()),
        Err(_) if name.is_empty() => Err(format!(
            "container has runAsNonRoot and image will run as root {place}"
        )),
        Err(_) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {place}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_refused_where_non_root_is_asked_for() {
        for (spec_user, image_user, expected) in [
            (None, "", Err("image will run as root")),
            (None, "0", Err("image will run as root")),
            (None, "nobody:x", Err("non-numeric user (nobody)")),
            (None, "1000", Ok(())),
            (Some(0), "1000", Err("breaks non-root policy")),
            (Some(5), "", Ok(())),
        ] {
            let pod: Pod = serde_json::from_value(serde_json::json!({
                "metadata": {"name": "p", "namespace": "n", "uid": "u"},
                "spec": {"containers": [{"name": "c", "securityContext": {"runAsNonRoot": true, "runAsUser": spec_user}}]},
            }))
            .expect("a pod");
            let image = ImageStatus {
                id: String::new(),
                repo_tags: Vec::new(),
                repo_digests: Vec::new(),
                size: 0,
                user: image_user.to_owned(),
            };
            let got = context(&pod, &pod::spec(&pod).containers[0], &image, Path::new("/"));
            match expected {
                Ok(()) => assert!(got.is_ok(), "{got:?}"),
                Err(part) => assert!(got.as_ref().is_err_and(|e| e.contains(part)), "{got:?}"),
            }
        }
    }
}
