//! Getting a container's image onto the node.

use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::{Container, Pod};
use knarr_engine::types::{ImageStatus, RegistryAuth};
use serde::Deserialize;
use tokio::sync::Notify;

use crate::ctx::Ctx;
use crate::events::Severity;
use crate::objects::{Kind, Reference};
use crate::pod;
use crate::runtime::chain;

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// The name cannot be understood.
    #[error(
        "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": invalid reference format"
    )]
    InvalidName { image: String },
    /// The policy forbids to pull, and it is not here.
    #[error("Container image \"{image}\" is not present with pull policy of Never")]
    NeverPull { image: String },
    /// The store cannot be read.
    #[error("Failed to inspect image \"{image}\": {message}")]
    Inspect { image: String, message: String },
    /// The registry refused.
    #[error("failed to pull image \"{image}\": {message}")]
    Pull { image: String, message: String },
}

/// Finds the container's image in the store or pulls it, as its policy says.
pub(crate) async fn ensure(
    ctx: &Ctx,
    pod: &Pod,
    container: &Container,
    wake: &Arc<Notify>,
) -> Result<ImageStatus, ImageError> {
    let image = container.image.clone().unwrap_or_default();
    if !is_reference(&image) {
        return Err(ImageError::InvalidName { image });
    }
    let event = |severity, reason, message| {
        ctx.events
            .pod(pod, Some(&container.name), severity, reason, message)
    };
    let policy = container
        .image_pull_policy
        .as_deref()
        .unwrap_or("IfNotPresent");
    if policy != "Always" {
        let present = ctx
            .runtime
            .image_status(&image)
            .await
            .map_err(|e| ImageError::Inspect {
                image: image.clone(),
                message: chain(&e),
            })?;
        if let Some(status) = present {
            event(
                Severity::Normal,
                "Pulled",
                format!(
                    "Container image \"{image}\" already present on machine and can be accessed by the pod"
                ),
            );
            return Ok(status);
        }
        if policy == "Never" {
            event(
                Severity::Warning,
                "ErrImageNeverPull",
                format!("Container image \"{image}\" is not present with pull policy of Never"),
            );
            return Err(ImageError::NeverPull { image });
        }
    }
    event(
        Severity::Normal,
        "Pulling",
        format!("Pulling image \"{image}\""),
    );
    let start = Instant::now();
    let auth = credentials(ctx, pod, &image, wake).await;
    match ctx.runtime.pull_image(&image, auth).await {
        Ok(status) => {
            let took = duration(start.elapsed());
            event(
                Severity::Normal,
                "Pulled",
                format!(
                    "Successfully pulled image \"{image}\" in {took} ({took} including waiting). Image size: {} bytes.",
                    status.size
                ),
            );
            Ok(status)
        }
        Err(error) => {
            let message = chain(&error);
            event(
                Severity::Warning,
                "Failed",
                format!("Failed to pull image \"{image}\": {message}"),
            );
            Err(ImageError::Pull { image, message })
        }
    }
}

fn duration(elapsed: std::time::Duration) -> String {
    if elapsed.as_secs() > 0 {
        format!("{:.3}s", elapsed.as_secs_f64())
    } else {
        format!("{}ms", elapsed.as_millis())
    }
}

/// Whether the text has the form of an image reference (distribution's grammar, without its finer points).
fn is_reference(image: &str) -> bool {
    let (name, digest) = image
        .split_once('@')
        .map_or((image, None), |(n, d)| (n, Some(d)));
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    let tag_ok = tag.is_none_or(|t| {
        !t.is_empty()
            && t.len() <= 128
            && t.chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    });
    let digest_ok = digest.is_none_or(|d| {
        d.split_once(':').is_some_and(|(a, h)| {
            !a.is_empty() && h.len() >= 32 && h.chars().all(|c| c.is_ascii_hexdigit())
        })
    });
    let mut parts: Vec<&str> = path.split('/').collect();
    // The first part may be a host, where capitals and a port are allowed.
    let has_host = parts.len() > 1 && (parts[0].contains(['.', ':']) || parts[0] == "localhost");
    if has_host {
        parts.remove(0);
    }
    let path_ok = parts.iter().all(|part| {
        let edge =
            |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(part.chars().next())
            && edge(part.chars().last())
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
    });
    tag_ok && digest_ok && path_ok
}

/// The credentials of the pod's pull secrets that fit the image's registry.
async fn credentials(
    ctx: &Ctx,
    pod: &Pod,
    image: &str,
    wake: &Arc<Notify>,
) -> Option<RegistryAuth> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    for secret in pod::spec(pod).image_pull_secrets.iter().flatten() {
        let reference = Reference {
            kind: Kind::Secret,
            namespace: namespace.clone(),
            name: secret.name.clone(),
        };
        match ctx.objects.get(&reference, uid, wake).await {
            Ok(data) => {
                let found = data
                    .get(".dockerconfigjson")
                    .and_then(|text| serde_json::from_slice::<DockerConfig>(text).ok())
                    .map(|c| c.auths)
                    .or_else(|| data.get(".dockercfg").and_then(|text| serde_json::from_slice(text).ok()))
                    .and_then(|auths| matching(&auths, image));
                if found.is_some() {
                    return found;
                }
            }
            // A missing secret is no reason not to try, as in Kubernetes.
            Err(error) => ctx.events.pod(
                pod,
                None,
                Severity::Warning,
                "FailedToRetrieveImagePullSecret",
                format!(
                    "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed. ({error})",
                    secret.name
                ),
            ),
        }
    }
    None
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
}

fn matching(
    auths: &std::collections::BTreeMap<String, DockerAuth>,
    image: &str,
) -> Option<RegistryAuth> {
    let host = match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => "docker.io",
    };
    let (_, auth) = auths.iter().find(|(server, _)| {
        let server = server
            .trim_start_matches("https://")
            .trim_start_matches("http://");
        let (server, path) = server.split_once('/').unwrap_or((server, ""));
        let hub = matches!(
            server,
            "index.docker.io" | "registry-1.docker.io" | "docker.io"
        ) && host == "docker.io";
        let path = path.trim_end_matches('/');
        let path_fits = path.is_empty()
            || matches!(path, "v1" | "v2")
            || image.starts_with(&format!("{host}/{path}"));
        (server == host || hub) && path_fits
    })?;
    if !auth.username.is_empty() {
        return Some(RegistryAuth {
            username: auth.username.clone(),
            password: auth.password.clone(),
        });
    }
    let text = String::from_utf8(STANDARD.decode(&auth.auth).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(RegistryAuth {
        username: username.to_owned(),
        password: password.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_told_from_nonsense() {
        for good in [
            "busybox",
            "busybox:1.36",
            "docker.io/library/a_b:v1",
            "localhost:5000/a/b",
            "Host.io/x:T",
        ] {
            assert!(is_reference(good), "{good}");
        }
        for bad in ["", "UPPER", "a b", "a:", "a@b", "/a", "a//b", "a:b:c"] {
            assert!(!is_reference(bad), "{bad}");
        }
    }

    #[test]
    fn pull_secrets_match_by_registry() {
        let auths = serde_json::from_str(
            r#"{"https://index.docker.io/v1/": {"auth": "dTpw"}, "reg.io:5000": {"username": "x", "password": "y"}}"#,
        )
        .expect("json");
        let user = |image| matching(&auths, image).map(|a| a.username);
        assert_eq!(user("busybox").as_deref(), Some("u"));
        assert_eq!(user("reg.io:5000/a").as_deref(), Some("x"));
        assert_eq!(user("other.io/a"), None);
    }
}
