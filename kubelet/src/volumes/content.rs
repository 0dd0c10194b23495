//! Volumes whose files the agent writes: `configMap`, `secret`, `downwardAPI`, `projected`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, ServiceAccount, ServiceAccountTokenProjection, Volume,
};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::atomic::{self, File, Payload};
use super::{directory, disk, fs_group};
use crate::ctx::Ctx;
use crate::env::{self, Surroundings};
use crate::objects::{self, Data, ObjectError};
use crate::pod;
use crate::runtime::chain;

const DEFAULT_MODE: i32 = 0o644;
const DEFAULT_TOKEN_SECONDS: i64 = 3600;

/// Names one token: pod UID, service account, audience, lifetime.
type TokenKey = (String, String, Option<String>, i64);

/// What this process knows of the volumes of its pods.
#[derive(Default)]
pub(crate) struct TokenCache {
    /// Tokens that were asked for, until they are due for renewal.
    tokens: Mutex<HashMap<TokenKey, Token>>,
    /// By pod UID, whether this process has made or looked after all its volumes; locked while it does.
    ///
    /// A sandbox may be older than the process: then its volumes may be half made, and after a reboot memory is not mounted.
    made: Mutex<HashMap<String, Arc<tokio::sync::Mutex<bool>>>>,
}

#[derive(Clone)]
struct Token {
    text: String,
    /// When a fresh one is asked for: after four fifths of its life, or a day.
    renew_at: SystemTime,
}

impl TokenCache {
    /// Whether the pod's volumes are made.
    pub(super) fn made(&self, pod: &Pod) -> Arc<tokio::sync::Mutex<bool>> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.made.lock().entry(uid).or_default().clone()
    }

    /// Forgets what belongs to a pod whose volumes are gone.
    pub(crate) fn forget(&self, pod_uid: &str) {
        self.tokens.lock().retain(|key, _| key.0 != pod_uid);
        self.made.lock().remove(pod_uid);
    }
}

/// Gathers the files of one volume.
struct Gather<'a> {
    ctx: &'a Ctx,
    pod: &'a Pod,
    pod_ips: &'a [IpAddr],
    wake: &'a Arc<Notify>,
    mode: i32,
    payload: Payload,
    renew_at: Option<SystemTime>,
}

/// Writes the volume's files; returns when they must be renewed.
pub(super) async fn set_up(
    ctx: &Ctx,
    pod: &Pod,
    volume: &Volume,
    pod_ips: &[IpAddr],
    wake: &Arc<Notify>,
) -> Result<Option<SystemTime>, String> {
    let mut gather = Gather {
        ctx,
        pod,
        pod_ips,
        wake,
        mode: DEFAULT_MODE,
        payload: Payload::new(),
        renew_at: None,
    };
    if let Some(source) = &volume.config_map {
        gather.mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        gather
            .object(
                objects::Kind::ConfigMap,
                &source.name,
                source.items.as_deref(),
                source.optional == Some(true),
            )
            .await?;
    } else if let Some(source) = &volume.secret {
        gather.mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let name = source.secret_name.as_deref().unwrap_or_default();
        gather
            .object(
                objects::Kind::Secret,
                name,
                source.items.as_deref(),
                source.optional == Some(true),
            )
            .await?;
    } else if let Some(source) = &volume.downward_api {
        gather.mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        gather.downward(source.items.as_deref().unwrap_or_default())?;
    } else if let Some(source) = &volume.projected {
        gather.mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        for part in source.sources.iter().flatten() {
            if let Some(s) = &part.config_map {
                let optional = s.optional == Some(true);
                gather
                    .object(
                        objects::Kind::ConfigMap,
                        &s.name,
                        s.items.as_deref(),
                        optional,
                    )
                    .await?;
            } else if let Some(s) = &part.secret {
                let optional = s.optional == Some(true);
                gather
                    .object(objects::Kind::Secret, &s.name, s.items.as_deref(), optional)
                    .await?;
            } else if let Some(s) = &part.downward_api {
                gather.downward(s.items.as_deref().unwrap_or_default())?;
            } else if let Some(s) = &part.service_account_token {
                gather.token(s).await?;
            } else {
                return Err("this node cannot project the volume's source".to_owned());
            }
        }
    }
    let path = directory(ctx, pod, volume);
    let in_memory = volume.config_map.is_none();
    let (payload, renew_at) = (gather.payload, gather.renew_at);
    let group = fs_group(pod);
    let write = move || {
        // Secrets and tokens never reach a disk.
        if in_memory {
            disk::memory(&path, None, group)?;
        } else {
            disk::files(&path, group)?;
        }
        atomic::write(&path, &payload, group).map_err(|e| chain(&e))
    };
    let _changed = tokio::task::spawn_blocking(write)
        .await
        .map_err(|e| e.to_string())??;
    Ok(renew_at)
}

impl Gather<'_> {
    fn add(&mut self, path: &str, content: Vec<u8>, mode: Option<i32>) {
        let mode = u32::try_from(mode.unwrap_or(self.mode)).unwrap_or(0o644) & 0o7777;
        self.payload.insert(
            PathBuf::from(path),
            File {
                content,
                mode,
                owner: None,
            },
        );
    }

    async fn object(
        &mut self,
        kind: objects::Kind,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
    ) -> Result<(), String> {
        let reference = objects::Reference {
            kind,
            namespace: self.pod.metadata.namespace.clone().unwrap_or_default(),
            name: name.to_owned(),
        };
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        let data: Data = match self.ctx.objects.get(&reference, uid, self.wake).await {
            Ok(data) => data,
            Err(ObjectError::NotFound { .. }) if optional => return Ok(()),
            Err(error) => return Err(chain(&error)),
        };
        let Some(items) = items.filter(|i| !i.is_empty()) else {
            for (key, value) in data.iter() {
                self.add(key, value.clone(), None);
            }
            return Ok(());
        };
        for item in items {
            match data.get(&item.key) {
                Some(value) => self.add(&item.path, value.clone(), item.mode),
                None if optional => {}
                None => {
                    let kind = match kind {
                        objects::Kind::ConfigMap => "configmap",
                        objects::Kind::Secret => "secret",
                    };
                    return Err(format!(
                        "{kind} references non-existent {} key: {}",
                        if kind == "secret" { "secret" } else { "config" },
                        item.key
                    ));
                }
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: &[DownwardAPIVolumeFile]) -> Result<(), String> {
        let around = self.ctx.surroundings(self.pod_ips);
        for item in items {
            let value = value(self.pod, item, &around).map_err(|e| chain(&e))?;
            self.add(&item.path, value.into_bytes(), item.mode);
        }
        Ok(())
    }

    async fn token(&mut self, source: &ServiceAccountTokenProjection) -> Result<(), String> {
        let seconds = source.expiration_seconds.unwrap_or(DEFAULT_TOKEN_SECONDS);
        let account = pod::spec(self.pod)
            .service_account_name
            .clone()
            .unwrap_or_else(|| "default".to_owned());
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        let key = (
            uid,
            account,
            source.audience.clone().filter(|a| !a.is_empty()),
            seconds,
        );
        let known = self.ctx.tokens.tokens.lock().get(&key).cloned();
        let token = match known.filter(|t| t.renew_at > SystemTime::now()) {
            Some(token) => token,
            None => {
                let token = request(self.ctx, self.pod, &key).await?;
                self.ctx.tokens.tokens.lock().insert(key, token.clone());
                token
            }
        };
        self.renew_at = Some(
            self.renew_at
                .map_or(token.renew_at, |at| at.min(token.renew_at)),
        );
        // Whoever the containers run as must read it, and nobody else.
        let owner = common_user(self.pod);
        let private = owner.is_some() || fs_group(self.pod).is_some();
        let mode = if private {
            0o600
        } else {
            u32::try_from(self.mode).unwrap_or(0o644)
        };
        let file = File {
            content: token.text.into_bytes(),
            mode,
            owner,
        };
        self.payload.insert(PathBuf::from(&source.path), file);
        Ok(())
    }
}

/// The user that all containers of the pod run as, if it is written and the same for all.
fn common_user(pod: &Pod) -> Option<u32> {
    let spec = pod::spec(pod);
    let default = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users = pod::all_containers(spec).into_iter().map(|(container, _)| {
        container
            .security_context
            .as_ref()
            .and_then(|s| s.run_as_user)
            .or(default)
    });
    let first = users.next()??;
    users
        .all(|u| u == Some(first))
        .then(|| u32::try_from(first).ok())?
}

fn value(
    pod: &Pod,
    item: &DownwardAPIVolumeFile,
    around: &Surroundings<'_>,
) -> Result<String, env::EnvError> {
    if let Some(selector) = &item.field_ref {
        env::field(pod, &selector.field_path, around)
    } else if let Some(selector) = &item.resource_field_ref {
        env::resource(pod, None, selector, around)
    } else {
        Ok(String::new())
    }
}

async fn request(ctx: &Ctx, pod: &Pod, key: &TokenKey) -> Result<Token, String> {
    let (uid, account, audience, seconds) = key;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let asked = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(audience.iter().cloned().collect()),
            expiration_seconds: Some(*seconds),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: pod.metadata.name.clone(),
                uid: Some(uid.clone()),
            }),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let api: Api<ServiceAccount> = Api::namespaced(ctx.client.clone(), namespace);
    let start = SystemTime::now();
    let answer: TokenRequest = api
        .create_subresource("token", account, &PostParams::default(), &asked)
        .await
        .map_err(|e| format!("failed to fetch token: {}", chain(&e)))?;
    let status = answer
        .status
        .ok_or("failed to fetch token: the answer has no status")?;
    let (Some(text), Some(end)) = (status.token, status.expiration_timestamp) else {
        return Err("failed to fetch token: the answer has no token".to_owned());
    };
    let end = SystemTime::from(end.0);
    let life = end.duration_since(start).unwrap_or_default();
    let renew_at = start + (life * 4 / 5).min(Duration::from_secs(24 * 3600));
    Ok(Token { text, renew_at })
}
