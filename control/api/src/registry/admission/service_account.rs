//! ServiceAccount: every pod has an account, and its containers that account's token (kubernetes,
//! `plugin/pkg/admission/serviceaccount`).

use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value, json};

use super::{Changed, Plugin};
use crate::registry::lanes::View;
use crate::registry::operation::{Action, Operation};
use crate::registry::write::key;
use crate::registry::{Registry, meta};
use crate::status::ApiError;

/// Where a pod finds its token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long a pod waits for its namespace's default service account, which a controller makes.
const ACCOUNT_WAIT: Duration = Duration::from_secs(1);

pub struct ServiceAccount;

#[async_trait]
impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        "ServiceAccount"
    }

    fn handles(&self, operation: &Operation) -> bool {
        operation.action == Action::Create && operation.is_about("", "pods")
    }

    async fn mutate(
        &self,
        registry: &Registry,
        operation: &mut Operation,
    ) -> Result<Changed, ApiError> {
        let Some(pod) = &mut operation.new else {
            return Ok(Changed::No);
        };
        // Mirror pods run without the API: they have no account.
        if !pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null() {
            return Ok(Changed::No);
        }
        if pod["spec"]["serviceAccountName"]
            .as_str()
            .is_none_or(str::is_empty)
        {
            pod["spec"]["serviceAccountName"] = "default".into();
        }
        let name = pod["spec"]["serviceAccountName"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        pod["spec"]["serviceAccount"] = (&*name).into();
        let namespace = &operation.namespace;
        let Some(account) = account(registry, namespace, &name).await else {
            let detail = format!(
                "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
            );
            return Err(ApiError::forbidden(
                "",
                "pods",
                meta::text(pod, "name"),
                &detail,
            ));
        };
        if pod["spec"]["imagePullSecrets"]
            .as_array()
            .is_none_or(Vec::is_empty)
            && let Some(secrets) = account.get("imagePullSecrets")
        {
            pod["spec"]["imagePullSecrets"] = secrets.clone();
        }
        let automount = pod["spec"]["automountServiceAccountToken"]
            .as_bool()
            .or(account["automountServiceAccountToken"].as_bool())
            .unwrap_or(true);
        if automount {
            mount_token(pod);
        }
        Ok(Changed::Yes)
    }
}

async fn account(registry: &Registry, namespace: &str, name: &str) -> Option<Value> {
    let accounts = registry.collection("serviceaccounts")?;
    let key = key(namespace, name);
    let deadline = tokio::time::Instant::now() + ACCOUNT_WAIT;
    loop {
        let (_, mut cursor) = accounts.snapshot_and_follow(&View::Object(key.as_str().into()), "");
        if let Some(entry) = accounts.get(&key) {
            return Some(entry.parse());
        }
        if name != "default"
            || tokio::time::timeout_at(deadline, cursor.changed())
                .await
                .is_err()
        {
            return None;
        }
    }
}

/// Gives every container the pod's token, the cluster's CA and the namespace, unless it mounts something there itself.
fn mount_token(pod: &mut Value) {
    let volumes = pod["spec"]["volumes"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let present = volumes
        .iter()
        .filter_map(|volume| volume["name"].as_str())
        .find(|name| name.starts_with("kube-api-access-"))
        .map(str::to_owned);
    let name = present
        .clone()
        .unwrap_or_else(|| meta::generate_name("kube-api-access-"));
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let Some(container) = container.as_object_mut() else {
                continue;
            };
            mounted |= mount_into(container, &name);
        }
    }
    if mounted && present.is_none() {
        let mut volumes = volumes;
        volumes.push(json!({ "name": name, "projected": { "defaultMode": 420, "sources": [
            { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
            { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
            { "downwardAPI": { "items": [{
                "path": "namespace",
                "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" },
            }] } },
        ] } }));
        pod["spec"]["volumes"] = volumes.into();
    }
    if let Some(spec) = pod["spec"].as_object_mut() {
        spec.retain(|key, value| key != "initContainers" || !value.is_null());
    }
}

fn mount_into(container: &mut Map<String, Value>, volume: &str) -> bool {
    let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
    if mounts.is_null() {
        *mounts = json!([]);
    }
    let Some(mounts) = mounts.as_array_mut() else {
        return false;
    };
    if mounts.iter().any(|mount| mount["mountPath"] == TOKEN_PATH) {
        return false;
    }
    mounts.push(json!({ "name": volume, "readOnly": true, "mountPath": TOKEN_PATH }));
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_container_gets_the_token_once() {
        let mut pod = json!({ "spec": { "containers": [
            { "name": "a" },
            { "name": "b", "volumeMounts": [{ "name": "own", "mountPath": TOKEN_PATH }] },
        ] } });
        mount_token(&mut pod);
        mount_token(&mut pod);
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        assert_eq!(volumes.len(), 1, "{pod}");
        assert_eq!(
            pod["spec"]["containers"][0]["volumeMounts"][0]["name"],
            volumes[0]["name"]
        );
        assert_eq!(
            pod["spec"]["containers"][1]["volumeMounts"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
        assert!(pod["spec"].get("initContainers").is_none());
    }
}
