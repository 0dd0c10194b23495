//! What kube-apiserver's default admission plugins add to a new pod.

use serde_json::{Value, json};

use crate::strategy::common::{object_at, text};
use crate::strategy::validation::items;

/// How long a pod stays on a node that is gone, if it does not say (DefaultTolerationSeconds).
const TOLERATION_SECONDS: i64 = 300;
const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Tokens are renewed long before they end; this is kube-apiserver's odd number.
const TOKEN_SECONDS: i64 = 3607;

/// Tolerates a node that is not ready or not reachable for five minutes.
pub fn tolerations(object: &mut Value) {
    let spec = object_at(object, "spec");
    let mut list = spec.get("tolerations").and_then(Value::as_array).cloned().unwrap_or_default();
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let covered = list.iter().any(|toleration| {
            matches!(text(&toleration["effect"]), "" | "NoExecute")
                && (toleration["key"] == key
                    || text(&toleration["key"]).is_empty() && toleration["operator"] == "Exists")
        });
        if !covered {
            list.push(json!({
                "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS,
            }));
        }
    }
    spec.insert("tolerations".into(), list.into());
}

/// The number behind a priority class; classes other than the system's do not exist yet.
pub fn priority(object: &mut Value) {
    let spec = object_at(object, "spec");
    let class = spec.get("priorityClassName").and_then(Value::as_str).unwrap_or_default();
    let priority = match class {
        "system-node-critical" => 2_000_001_000_i64,
        "system-cluster-critical" => 2_000_000_000,
        _ => 0,
    };
    spec.insert("priority".into(), priority.into());
    spec.entry("preemptionPolicy").or_insert_with(|| "PreemptLowerPriority".into());
}

/// Gives a new pod its service account's pull secrets and, unless either declines, its token; `suffix` makes the volume's name unique.
///
/// `account` is the ServiceAccount named by [`crate::strategy::Strategy::default`] or `default`.
pub fn service_account(object: &mut Value, account: &Value, suffix: &str) {
    let spec = &mut object["spec"];
    let name = account["metadata"]["name"].clone();
    spec["serviceAccountName"] = name.clone();
    spec["serviceAccount"] = name;
    if items(&spec["imagePullSecrets"]).next().is_none() && items(&account["imagePullSecrets"]).next().is_some() {
        spec["imagePullSecrets"] = account["imagePullSecrets"].clone();
    }
    if items(&spec["imagePullSecrets"]).next().is_none() {
        spec.as_object_mut().map(|spec| spec.remove("imagePullSecrets"));
    }
    let wanted = spec["automountServiceAccountToken"]
        .as_bool()
        .or_else(|| account["automountServiceAccountToken"].as_bool())
        .unwrap_or(true);
    // A read of a missing field through IndexMut leaves a null.
    if let Some(fields) = spec.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    if wanted {
        mount_token(spec, suffix);
    }
}

fn mount_token(spec: &mut Value, suffix: &str) {
    let found = items(&spec["volumes"])
        .map(|(_, volume)| text(&volume["name"]))
        .find(|name| name.starts_with("kube-api-access-"))
        .map(str::to_owned);
    let name = found.clone().unwrap_or_else(|| format!("kube-api-access-{suffix}"));
    let mut used = false;
    for list in ["initContainers", "containers"] {
        let Some(containers) = spec.get_mut(list).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            let mounts = &mut container["volumeMounts"];
            if items(mounts).any(|(_, mount)| mount["mountPath"] == TOKEN_PATH) {
                continue;
            }
            let mut all = mounts.as_array().cloned().unwrap_or_default();
            all.push(json!({ "name": name, "readOnly": true, "mountPath": TOKEN_PATH }));
            *mounts = all.into();
            used = true;
        }
    }
    if !used || found.is_some() {
        return;
    }
    let mut volumes = spec.get("volumes").and_then(Value::as_array).cloned().unwrap_or_default();
    volumes.push(json!({
        "name": name,
        "projected": {
            "defaultMode": 420,
            "sources": [
                { "serviceAccountToken": { "expirationSeconds": TOKEN_SECONDS, "path": "token" } },
                { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                { "downwardAPI": { "items": [{
                    "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" },
                }] } },
            ],
        },
    }));
    spec["volumes"] = volumes.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_mounted_once_into_every_container() {
        let mut pod = json!({ "spec": { "containers": [{ "name": "a" }, { "name": "b" }] } });
        let account = json!({ "metadata": { "name": "default" } });
        service_account(&mut pod, &account, "abcde");
        service_account(&mut pod, &account, "fghij");
        assert_eq!(pod["spec"]["volumes"].as_array().map(Vec::len), Some(1));
        for container in pod["spec"]["containers"].as_array().expect("containers") {
            assert_eq!(container["volumeMounts"][0]["name"], "kube-api-access-abcde");
            assert_eq!(container["volumeMounts"].as_array().map(Vec::len), Some(1));
        }
        let mut pod = json!({ "spec": { "automountServiceAccountToken": false, "containers": [{ "name": "a" }] } });
        service_account(&mut pod, &account, "abcde");
        assert!(pod["spec"].get("volumes").is_none());
    }
}
