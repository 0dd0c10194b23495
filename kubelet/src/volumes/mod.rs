//! A pod's volumes: made before its sandbox, kept current while it runs, removed with it.
//!
//! Each volume is a directory `<node dir>/pods/<uid>/volumes/kubernetes.io~<plugin>/<name>`, as in Kubernetes.

pub(crate) mod atomic;
mod content;
mod disk;
mod subpath;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use knarr_engine::types::{Mount, MountPropagation};
use tokio::sync::Notify;

use crate::ctx::Ctx;
use crate::pod;
use crate::runtime::chain;

pub(crate) use content::TokenCache;
pub(crate) use disk::{private_directories, remove_pod_dir};

/// Why a volume is not there.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {message}")]
pub(crate) struct MountError {
    pub(crate) volume: String,
    pub(crate) message: String,
}

/// Makes the volumes of a pod before one of its containers starts, unless this process has made them.
///
/// When their content must be renewed, the pod's own task finds out as it takes the pod up.
pub(crate) async fn ensure(
    ctx: &Ctx,
    pod: &Pod,
    pod_ips: &[std::net::IpAddr],
    wake: &Arc<Notify>,
) -> Result<(), MountError> {
    let made = ctx.tokens.made(pod);
    let mut made = made.lock().await;
    if !*made {
        let _renew_at = make_all(ctx, pod, pod_ips, wake).await?;
        *made = true;
    }
    Ok(())
}

/// Makes all volumes of the pod, or brings their content up to date.
///
/// Returns when the content must be renewed though nothing changes (tokens expire).
pub(crate) async fn set_up(
    ctx: &Ctx,
    pod: &Pod,
    pod_ips: &[std::net::IpAddr],
    wake: &Arc<Notify>,
) -> Result<Option<SystemTime>, MountError> {
    let made = ctx.tokens.made(pod);
    let mut made = made.lock().await;
    let renew_at = make_all(ctx, pod, pod_ips, wake).await?;
    *made = true;
    Ok(renew_at)
}

async fn make_all(
    ctx: &Ctx,
    pod: &Pod,
    pod_ips: &[std::net::IpAddr],
    wake: &Arc<Notify>,
) -> Result<Option<SystemTime>, MountError> {
    let mut renew = None;
    for volume in pod::spec(pod).volumes.iter().flatten() {
        let fail = |message: String| MountError {
            volume: volume.name.clone(),
            message,
        };
        let due = match plugin(volume) {
            Plugin::HostPath => {
                disk::host_path(volume).map_err(fail)?;
                None
            }
            Plugin::EmptyDir => {
                let path = directory(ctx, pod, volume);
                let memory = i64::try_from(ctx.machine.memory_bytes).unwrap_or(i64::MAX);
                let in_memory = match volume.empty_dir.as_ref().and_then(|s| s.medium.as_deref()) {
                    None | Some("") => None,
                    Some("Memory") => Some(disk::MemorySize::of(pod, volume, memory)),
                    Some(other) => return Err(fail(format!("unknown storage medium \"{other}\""))),
                };
                disk::empty_dir(&path, in_memory, fs_group(pod)).map_err(fail)?;
                None
            }
            Plugin::ConfigMap | Plugin::Secret | Plugin::DownwardApi | Plugin::Projected => {
                content::set_up(ctx, pod, volume, pod_ips, wake)
                    .await
                    .map_err(fail)?
            }
            Plugin::Other => {
                return Err(fail(
                    "this node has no driver for the volume's type".to_owned(),
                ));
            }
        };
        renew = match (renew, due) {
            (Some(a), Some(b)) => Some(std::cmp::min::<SystemTime>(a, b)),
            (a, b) => a.or(b),
        };
    }
    Ok(renew)
}

/// Which part of the agent makes a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plugin {
    EmptyDir,
    HostPath,
    ConfigMap,
    Secret,
    DownwardApi,
    Projected,
    Other,
}

fn plugin(volume: &Volume) -> Plugin {
    if volume.config_map.is_some() {
        Plugin::ConfigMap
    } else if volume.secret.is_some() {
        Plugin::Secret
    } else if volume.projected.is_some() {
        Plugin::Projected
    } else if volume.downward_api.is_some() {
        Plugin::DownwardApi
    } else if volume.host_path.is_some() {
        Plugin::HostPath
    } else if volume.empty_dir.is_some() {
        Plugin::EmptyDir
    } else {
        Plugin::Other
    }
}

/// The volume's directory on the node.
fn directory(ctx: &Ctx, pod: &Pod, volume: &Volume) -> PathBuf {
    let plugin = match plugin(volume) {
        Plugin::EmptyDir => "kubernetes.io~empty-dir",
        Plugin::ConfigMap => "kubernetes.io~configmap",
        Plugin::Secret => "kubernetes.io~secret",
        Plugin::DownwardApi => "kubernetes.io~downward-api",
        Plugin::Projected => "kubernetes.io~projected",
        Plugin::HostPath | Plugin::Other => {
            return volume
                .host_path
                .as_ref()
                .map(|h| PathBuf::from(&h.path))
                .unwrap_or_default();
        }
    };
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    ctx.config
        .pod_dir(uid)
        .join("volumes")
        .join(plugin)
        .join(&volume.name)
}

/// The group that owns the pod's volumes.
fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod::spec(pod).security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// The bind mounts of one container's volume mounts.
///
/// `lookup` gives the values of the container's variables for `subPathExpr`.
pub(crate) fn mounts(
    ctx: &Ctx,
    pod: &Pod,
    container: &Container,
    lookup: impl Fn(&str) -> Option<String>,
) -> Result<Vec<Mount>, String> {
    let spec = pod::spec(pod);
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let mut mounts = Vec::new();
    for (index, wanted) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = spec
            .volumes
            .iter()
            .flatten()
            .find(|v| v.name == wanted.name)
            .ok_or_else(|| {
                format!(
                    "cannot find volume \"{}\" to mount into container \"{}\"",
                    wanted.name, container.name
                )
            })?;
        let mut host_path = directory(ctx, pod, volume);
        let propagation = match wanted.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::HostToContainer,
            Some("Bidirectional") => MountPropagation::Bidirectional,
            _ => MountPropagation::Private,
        };
        let sub_path = match wanted.sub_path_expr.as_deref().filter(|e| !e.is_empty()) {
            Some(expression) => {
                Some(subpath::expand(expression, &lookup).map_err(|e| e.to_string())?)
            }
            None => wanted.sub_path.clone(),
        };
        if let Some(sub_path) = sub_path.filter(|path| !path.is_empty()) {
            subpath::check(&sub_path).map_err(|e| e.to_string())?;
            let place = ctx
                .config
                .pod_dir(uid)
                .join("volume-subpaths")
                .join(&volume.name)
                .join(&container.name)
                .join(index.to_string());
            let events = match propagation {
                MountPropagation::Bidirectional => subpath::Events::BothWays,
                _ => subpath::Events::FromHost,
            };
            subpath::bind(&host_path, Path::new(&sub_path), &place, events).map_err(|error| {
                let key = pod::PodKey::of(pod);
                tracing::error!(pod = %key, error = chain(&error), "mount a path inside a volume");
                error.message(&wanted.name, &container.name)
            })?;
            host_path = place;
        }
        // What the agent writes, the container must not: it would follow what the container left there.
        let written_by_us = matches!(
            plugin(volume),
            Plugin::ConfigMap | Plugin::Secret | Plugin::DownwardApi | Plugin::Projected
        );
        mounts.push(Mount {
            host_path,
            container_path: PathBuf::from(&wanted.mount_path),
            readonly: wanted.read_only == Some(true) || written_by_us,
            recursive_read_only: matches!(
                wanted.recursive_read_only.as_deref(),
                Some("Enabled" | "IfPossible")
            ),
            propagation,
        });
    }
    Ok(mounts)
}

/// Whether the content of some volume comes from other objects or the pod's own metadata.
pub(crate) fn has_content(pod: &Pod) -> bool {
    pod::spec(pod).volumes.iter().flatten().any(|v| {
        !matches!(
            plugin(v),
            Plugin::EmptyDir | Plugin::HostPath | Plugin::Other
        )
    })
}
