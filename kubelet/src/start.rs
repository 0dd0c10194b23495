//! Starting one container: image, configuration, creation, start.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Container, Pod};
use knarr_engine::types::{ContainerConfig, ContainerId, ImageStatus, Mount, SandboxStatus};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::ctx::Ctx;
use crate::env::{self, Source};
use crate::events::Severity;
use crate::images::{self, ImageError};
use crate::logs;
use crate::objects::{self, Data, ObjectError, Reference};
use crate::pod::{self, PodKey};
use crate::resources;
use crate::runtime::chain;
use crate::sandbox::{self, label};
use crate::security;
use crate::volumes;

/// Why a container does not run, in the words that its status shows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The image is not to be had.
    #[error("{0}")]
    Image(#[source] ImageError),
    /// It cannot be configured: `CreateContainerConfigError`.
    #[error("{message}")]
    Config { message: String },
    /// The runtime could not make it: `CreateContainerError`.
    #[error("{message}")]
    Create { message: String },
    /// The runtime could not start it: `RunContainerError`.
    #[error("{message}")]
    Run { id: ContainerId, message: String },
    /// The pod ends before its image was there.
    #[error("the pod is being stopped")]
    Cancelled,
}

impl StartError {
    /// The waiting reason.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Image(ImageError::InvalidName { .. }) => "InvalidImageName",
            Self::Image(ImageError::NeverPull { .. }) => "ErrImageNeverPull",
            Self::Image(ImageError::Inspect { .. }) => "ImageInspectError",
            Self::Image(ImageError::Pull { .. }) => "ErrImagePull",
            Self::Config { .. } => "CreateContainerConfigError",
            Self::Create { .. } => "CreateContainerError",
            Self::Run { .. } => "RunContainerError",
            Self::Cancelled => "ContainerCreating",
        }
    }
}

/// The host's file that a container writes its last words to.
pub(crate) fn termination_log(ctx: &Ctx, uid: &str, container: &str, attempt: u32) -> PathBuf {
    ctx.config
        .pod_dir(uid)
        .join("containers")
        .join(container)
        .join(attempt.to_string())
}

struct Reader<'a> {
    ctx: &'a Ctx,
    namespace: &'a str,
    uid: &'a str,
    wake: &'a Arc<Notify>,
}

impl Source for Reader<'_> {
    async fn read(&self, kind: objects::Kind, name: &str) -> Result<Data, ObjectError> {
        let reference = Reference {
            kind,
            namespace: self.namespace.to_owned(),
            name: name.to_owned(),
        };
        self.ctx.objects.get(&reference, self.uid, self.wake).await
    }
}

/// Starts the container in the sandbox; what went wrong is an event already.
pub(crate) async fn start(
    ctx: &Ctx,
    pod: &Pod,
    container: &Container,
    sandbox: &SandboxStatus,
    attempt: u32,
    wake: &Arc<Notify>,
    cancel: &CancellationToken,
) -> Result<ContainerId, StartError> {
    let result = try_start(ctx, pod, container, sandbox, attempt, wake, cancel).await;
    if let Err(error) = &result
        && !matches!(error, StartError::Cancelled)
    {
        let message = match error {
            StartError::Image(image) => match image {
                ImageError::NeverPull { .. } => "Error: ErrImageNeverPull".to_owned(),
                ImageError::Pull { .. } => "Error: ErrImagePull".to_owned(),
                ImageError::InvalidName { .. } => "Error: InvalidImageName".to_owned(),
                ImageError::Inspect { .. } => "Error: ImageInspectError".to_owned(),
            },
            other => format!("Error: {other}"),
        };
        if let StartError::Image(ImageError::InvalidName { .. }) = error {
            ctx.events.pod(
                pod,
                Some(&container.name),
                Severity::Warning,
                "InspectFailed",
                error.to_string(),
            );
        }
        ctx.events.pod(
            pod,
            Some(&container.name),
            Severity::Warning,
            "Failed",
            message,
        );
    }
    result
}

async fn try_start(
    ctx: &Ctx,
    pod: &Pod,
    container: &Container,
    sandbox: &SandboxStatus,
    attempt: u32,
    wake: &Arc<Notify>,
    cancel: &CancellationToken,
) -> Result<ContainerId, StartError> {
    let begun = Instant::now();
    // Only getting the image may be given up midway; a pull resumes where it stopped.
    let image = cancel
        .run_until_cancelled(images::ensure(ctx, pod, container, wake))
        .await
        .ok_or(StartError::Cancelled)?
        .map_err(StartError::Image)?;
    let config = configure(ctx, pod, container, sandbox, attempt, &image, wake)
        .await
        .map_err(|message| StartError::Config { message })?;
    let configured = begun.elapsed();
    let event = |reason, message: &str| {
        ctx.events.pod(
            pod,
            Some(&container.name),
            Severity::Normal,
            reason,
            message.to_owned(),
        );
    };
    let log = sandbox.config.log_directory.join(&config.log_path);
    let id = ctx
        .runtime
        .create_container(&sandbox.id, config)
        .await
        .map_err(|e| StartError::Create { message: chain(&e) })?;
    let created = begun.elapsed();
    event("Created", "Container created");
    ctx.runtime
        .start_container(&id)
        .await
        .map_err(|e| StartError::Run {
            id: id.clone(),
            message: chain(&e),
        })?;
    event("Started", "Container started");
    tracing::debug!(container = id.0, ?configured, ?created, started = ?begun.elapsed(), "the container runs");
    logs::link(&ctx.config, &PodKey::of(pod), &container.name, &id, &log);
    Ok(id)
}

async fn configure(
    ctx: &Ctx,
    pod: &Pod,
    container: &Container,
    sandbox: &SandboxStatus,
    attempt: u32,
    image: &ImageStatus,
    wake: &Arc<Notify>,
) -> Result<ContainerConfig, String> {
    let key = PodKey::of(pod);
    let spec = pod::spec(pod);
    let security = security::context(pod, container, image, &ctx.config.node_dir.join("seccomp"))?;
    volumes::ensure(ctx, pod, &sandbox.ips, wake)
        .await
        .map_err(|e| e.to_string())?;
    let services = ctx
        .services
        .variables(&key.namespace, spec.enable_service_links != Some(false))
        .await;
    let reader = Reader {
        ctx,
        namespace: &key.namespace,
        uid: &key.uid,
        wake,
    };
    let around = ctx.surroundings(&sandbox.ips);
    let mut env = env::variables(pod, container, services, &around, &reader)
        .await
        .map_err(|e| chain(&e))?;
    let host_name = if sandbox.config.hostname.is_empty() {
        &ctx.config.node_name
    } else {
        &sandbox.config.hostname
    };
    if !env.iter().any(|(name, _)| name == "HOSTNAME") {
        env.insert(0, ("HOSTNAME".to_owned(), host_name.clone()));
    }
    let known: BTreeMap<&str, &str> = env.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let lookup = |name: &str| known.get(name).map(|v| (*v).to_owned());
    let expand = |text: &str| env::expand(text, lookup);
    let command = container
        .command
        .iter()
        .flatten()
        .map(|c| expand(c))
        .collect();
    let args = container.args.iter().flatten().map(|a| expand(a)).collect();
    let mut mounts = volumes::mounts(ctx, pod, container, lookup)?;
    mounts.extend(own_files(ctx, pod, container, sandbox, attempt, &mounts)?);
    let memory = i64::try_from(ctx.machine.memory_bytes).unwrap_or(i64::MAX);
    let labels = BTreeMap::from([
        (label::POD_NAME.to_owned(), key.name.clone()),
        (label::POD_NAMESPACE.to_owned(), key.namespace.clone()),
        (label::POD_UID.to_owned(), key.uid.clone()),
        (label::CONTAINER_NAME.to_owned(), container.name.clone()),
    ]);
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt,
        image_id: image.id.clone(),
        image_ref: container.image.clone().unwrap_or_default(),
        command,
        args,
        working_dir: container.working_dir.clone().filter(|d| !d.is_empty()),
        env,
        mounts,
        devices: Vec::new(),
        labels,
        annotations: BTreeMap::new(),
        pids_of: target(ctx, pod, container, sandbox).await?,
        log_path: PathBuf::from(&container.name).join(format!("{attempt}.log")),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        resources: resources::container(pod, container, memory),
        security,
        stop_signal: container
            .lifecycle
            .as_ref()
            .and_then(|l| l.stop_signal.clone()),
    })
}

/// The container whose processes an ephemeral one is to see (`targetContainerName`).
async fn target(
    ctx: &Ctx,
    pod: &Pod,
    container: &Container,
    sandbox: &SandboxStatus,
) -> Result<Option<ContainerId>, String> {
    let ephemeral = pod::spec(pod).ephemeral_containers.iter().flatten();
    let name = ephemeral
        .filter(|e| e.name == container.name)
        .find_map(|e| e.target_container_name.as_deref())
        .filter(|name| !name.is_empty());
    let Some(name) = name else { return Ok(None) };
    let all = ctx.runtime.list_containers().await.map_err(|e| chain(&e))?;
    let newest = all
        .into_iter()
        .filter(|one| one.sandbox_id == sandbox.id && one.config.name == name)
        .max_by_key(|one| one.config.attempt);
    match newest {
        Some(status) => Ok(Some(status.id)),
        None => Err(format!("unable to find target container {name}")),
    }
}

/// The files that the agent gives every container: `/etc/hosts` and the termination log.
fn own_files(
    ctx: &Ctx,
    pod: &Pod,
    container: &Container,
    sandbox: &SandboxStatus,
    attempt: u32,
    mounts: &[Mount],
) -> Result<Vec<Mount>, String> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let mut own = Vec::new();
    let taken = |path: &str| {
        mounts
            .iter()
            .any(|m| m.container_path == std::path::Path::new(path))
    };
    if !taken("/etc/hosts") {
        let path = ctx.config.pod_dir(uid).join("etc-hosts");
        let content = sandbox::hosts(&ctx.config, pod, &sandbox.ips);
        // Written in place: running containers have this very file mounted.
        if fs::read_to_string(&path).ok().as_deref() != Some(content.as_str()) {
            fs::write(&path, content).map_err(|e| format!("write {}: {e}", path.display()))?;
        }
        own.push(Mount {
            host_path: path,
            container_path: "/etc/hosts".into(),
            ..Mount::default()
        });
    }
    let inside = container
        .termination_message_path
        .as_deref()
        .unwrap_or("/dev/termination-log");
    if !inside.is_empty() {
        let path = termination_log(ctx, uid, &container.name, attempt);
        let failed = |e: std::io::Error| format!("make {}: {e}", path.display());
        if let Some(parent) = path.parent() {
            volumes::private_directories(parent)?;
        }
        fs::File::create(&path).map_err(failed)?;
        // The container's user is not ours.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).map_err(failed)?;
        own.push(Mount {
            host_path: path,
            container_path: inside.into(),
            ..Mount::default()
        });
    }
    Ok(own)
}
