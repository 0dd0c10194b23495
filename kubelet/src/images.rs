//! Getting a container's image onto the node.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Container, Pod};
use knarr_engine::types::{ImageStatus, RegistryAuth};
use knarr_engine::{ImageReference, Logins};
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
    #[error("Failed to apply default image tag \"{image}\": {message}")]
    InvalidName { image: String, message: String },
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
    let reference: ImageReference = match image.parse() {
        Ok(reference) => reference,
        Err(error) => {
            let message = chain(&error);
            return Err(ImageError::InvalidName { image, message });
        }
    };
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
    let credentials = credentials(ctx, pod, &reference, wake).await;
    match ctx.runtime.pull_image(&image, credentials).await {
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

/// The credentials of all of the pod's pull secrets that fit the image, in the order in which Kubernetes tries them.
async fn credentials(
    ctx: &Ctx,
    pod: &Pod,
    image: &ImageReference,
    wake: &Arc<Notify>,
) -> Vec<RegistryAuth> {
    let mut all = Logins::default();
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
                let logins = match (data.get(".dockerconfigjson"), data.get(".dockercfg")) {
                    (Some(text), _) => Logins::parse(text),
                    (None, Some(text)) => Logins::parse_old(text),
                    (None, None) => Ok(Logins::default()),
                };
                match logins {
                    Ok(logins) => all.add(logins),
                    Err(error) => retrieval_failed(ctx, pod, &secret.name, &chain(&error)),
                }
            }
            // A missing secret is no reason not to try, as in Kubernetes.
            Err(error) => retrieval_failed(ctx, pod, &secret.name, &error.to_string()),
        }
    }
    let matching = all.matching(image).into_iter();
    matching
        .map(|login| RegistryAuth {
            username: login.username.clone(),
            password: login.password.clone(),
        })
        .collect()
}

fn retrieval_failed(ctx: &Ctx, pod: &Pod, secret: &str, why: &str) {
    ctx.events.pod(
        pod,
        None,
        Severity::Warning,
        "FailedToRetrieveImagePullSecret",
        format!(
            "Unable to retrieve some image pull secrets ({secret}); attempting to pull the image may not succeed. ({why})"
        ),
    );
}
