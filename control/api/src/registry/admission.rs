//! Admission that needs to look at other objects: namespaces' life cycle, service accounts, priorities, tolerations.
//!
//! The plugins are those that kube-apiserver has on by default, in its order. Quotas, limits and webhooks take their place here.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::lanes::View;
use super::write::{Target, key};
use super::{Registry, meta};
use crate::resource::{Scope, Subresource};
use crate::status::ApiError;
use crate::strategy::Context;

/// Where a pod finds its token.
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long a pod waits for its namespace's default service account, which a controller makes.
const ACCOUNT_WAIT: Duration = Duration::from_secs(1);
/// How long a pod stays on a node that is gone, if it does not say itself.
const TOLERATION_SECONDS: i64 = 300;
/// The priority classes that always exist.
const SYSTEM_CLASSES: [(&str, i64); 2] = [
    ("system-cluster-critical", 2_000_000_000),
    ("system-node-critical", 2_000_001_000),
];
/// Namespaces that nobody deletes.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

impl Registry {
    /// Admits a new object, and fills in what other objects say about it.
    pub(super) async fn admit_new(
        &self,
        target: &Target,
        object: &mut Value,
        _ctx: &Context,
    ) -> Result<(), ApiError> {
        let resource = &target.resource;
        if resource.scope == Scope::Namespaced {
            self.namespace_takes_new(target, meta::text(object, "name"))?;
        }
        if resource.gvk.group.is_empty() && resource.gvk.kind == "Pod" {
            self.service_account(target, object).await?;
            default_tolerations(object);
            self.priority(target, object)?;
        }
        Ok(())
    }

    /// Admits a change of an object.
    pub(super) fn admit_changed(
        &self,
        _target: &Target,
        _subresource: Option<Subresource>,
        _object: &mut Value,
        _old: &Value,
        _ctx: &Context,
    ) -> Result<(), ApiError> {
        Ok(())
    }

    /// Admits a deletion.
    pub(super) fn admit_deletion(&self, target: &Target) -> Result<(), ApiError> {
        if target.resource.storage_prefix == "namespaces" && IMMORTAL.contains(&&*target.name) {
            return Err(ApiError::forbidden(
                "",
                "namespaces",
                &target.name,
                "this namespace may not be deleted",
            ));
        }
        Ok(())
    }

    fn namespace_takes_new(&self, target: &Target, name: &str) -> Result<(), ApiError> {
        let namespace = &target.namespace;
        let Some(entry) = self.namespaces.get(namespace) else {
            return Err(ApiError::not_found("", "namespaces", namespace));
        };
        if !entry
            .fields
            .iter()
            .any(|(field, value)| *field == "status.phase" && &**value == "Terminating")
        {
            return Ok(());
        }
        let mut error = ApiError::forbidden(
            &target.resource.gvk.group,
            &target.resource.plural,
            name,
            &format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            ),
        );
        error.details["causes"] = json!([{
            "reason": "NamespaceTerminating",
            "message": format!("namespace {namespace} is being terminated"),
            "field": "metadata.namespace",
        }]);
        Err(error)
    }

    async fn service_account(&self, target: &Target, pod: &mut Value) -> Result<(), ApiError> {
        // Mirror pods run without the API: they have no account.
        if !pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_null() {
            return Ok(());
        }
        let forbidden = |pod: &Value, detail: &str| {
            ApiError::forbidden("", "pods", meta::text(pod, "name"), detail)
        };
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
        let Some(account) = self.account(&target.namespace, &name).await else {
            let detail = format!(
                "error looking up service account {}/{name}: serviceaccount {name:?} not found",
                target.namespace
            );
            return Err(forbidden(pod, &detail));
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
        Ok(())
    }

    async fn account(&self, namespace: &str, name: &str) -> Option<Value> {
        let accounts = self.collection("serviceaccounts")?;
        let key = key(namespace, name);
        let deadline = tokio::time::Instant::now() + ACCOUNT_WAIT;
        loop {
            let (_, mut cursor) =
                accounts.snapshot_and_follow(&View::Object(key.as_str().into()), "");
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

    fn priority(&self, target: &Target, pod: &mut Value) -> Result<(), ApiError> {
        let class = pod["spec"]["priorityClassName"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let mut policy = Value::from("PreemptLowerPriority");
        let priority = if class.is_empty() {
            let default = self.default_priority_class();
            if let Some(default) = &default {
                pod["spec"]["priorityClassName"] = default["metadata"]["name"].clone();
            }
            default.map_or(0, |class| class["value"].as_i64().unwrap_or(0))
        } else if let Some((_, value)) = SYSTEM_CLASSES.iter().find(|(name, _)| *name == class) {
            *value
        } else if let Some(entry) = self
            .collection("priorityclasses")
            .and_then(|c| c.get(&class))
        {
            let class = entry.parse();
            if let Some(own) = class.get("preemptionPolicy") {
                policy = own.clone();
            }
            class["value"].as_i64().unwrap_or(0)
        } else {
            let detail = format!("no PriorityClass with name {class} was found");
            return Err(ApiError::forbidden(
                "",
                &target.resource.plural,
                meta::text(pod, "name"),
                &detail,
            ));
        };
        if pod["spec"]["priority"]
            .as_i64()
            .is_some_and(|own| own != priority)
        {
            return Err(ApiError::forbidden(
                "",
                "pods",
                meta::text(pod, "name"),
                &format!(
                    "the integer value of priority ({}) must not be provided in pod spec; priority admission controller \
                 computed {priority} from the given PriorityClass name",
                    pod["spec"]["priority"]
                ),
            ));
        }
        pod["spec"]["priority"] = priority.into();
        if pod["spec"]["preemptionPolicy"].is_null() {
            pod["spec"]["preemptionPolicy"] = policy;
        }
        Ok(())
    }

    fn default_priority_class(&self) -> Option<Value> {
        let classes = self.collection("priorityclasses")?;
        if classes.is_empty() {
            return None;
        }
        let snapshot = classes.snapshot("", "");
        snapshot
            .entries
            .iter()
            .map(|e| e.parse())
            .find(|class| class["globalDefault"] == true)
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

/// Lets a pod stay for five minutes on a node that is not ready or cannot be reached.
fn default_tolerations(pod: &mut Value) {
    let mut tolerations = pod["spec"]["tolerations"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    for taint in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let tolerated = tolerations.iter().any(|toleration| {
            let key = toleration["key"].as_str().unwrap_or_default();
            let effect = toleration["effect"].as_str().unwrap_or_default();
            (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
        });
        if !tolerated {
            tolerations.push(json!({
                "key": taint,
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
    pod["spec"]["tolerations"] = tolerations.into();
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

    #[test]
    fn tolerations_of_the_pods_own_are_kept() {
        let mut pod = json!({ "spec": { "tolerations": [{ "operator": "Exists" }] } });
        default_tolerations(&mut pod);
        assert_eq!(pod["spec"]["tolerations"].as_array().unwrap().len(), 1);
        let mut pod = json!({ "spec": {} });
        default_tolerations(&mut pod);
        assert_eq!(
            pod["spec"]["tolerations"][1]["key"],
            "node.kubernetes.io/unreachable"
        );
    }
}
