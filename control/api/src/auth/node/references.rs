//! What a pod names and so lets the kubelet of its node read: secrets, configmaps, claims and the like.

use serde_json::Value;

/// The annotation of a pod that mirrors a file of the node.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The volume sources of a pod whose `secretRef` names a secret of the pod's namespace.
const SECRET_REF: [&str; 7] = [
    "cephfs",
    "cinder",
    "flexVolume",
    "rbd",
    "scaleIO",
    "iscsi",
    "storageos",
];

/// The references of a CSI volume that name secrets for the kubelet; the others are for controllers.
const CSI_SECRETS: [&str; 3] = [
    "nodePublishSecretRef",
    "nodeStageSecretRef",
    "nodeExpandSecretRef",
];

/// What a pod can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A Secret.
    Secret,
    /// A ConfigMap.
    ConfigMap,
    /// A PersistentVolumeClaim.
    Claim,
    /// A ResourceClaim.
    ResourceClaim,
    /// A ServiceAccount.
    ServiceAccount,
}

/// Whether a pod names an object of its namespace.
///
/// A mirror pod names nothing: its node made it, and could give itself every secret.
pub fn uses(pod: &Value, kind: Kind, name: &str) -> bool {
    if name.is_empty() || pod["metadata"]["annotations"].get(MIRROR).is_some() {
        return false;
    }
    match kind {
        Kind::Secret => {
            items(&pod["spec"]["imagePullSecrets"]).any(|secret| secret["name"] == name)
                || from_environment(pod, "secretRef", "secretKeyRef", name)
                || volumes(pod).any(|volume| uses_secret(volume, name))
        }
        Kind::ConfigMap => {
            from_environment(pod, "configMapRef", "configMapKeyRef", name)
                || volumes(pod).any(|volume| {
                    volume["configMap"]["name"] == name || projects(volume, "configMap", name)
                })
        }
        Kind::Claim => claims(pod).any(|claim| claim == name),
        Kind::ResourceClaim => resource_claims(pod).any(|claim| claim == name),
        Kind::ServiceAccount => pod["spec"]["serviceAccountName"] == name,
    }
}

/// The names of the claims that a pod's volumes use. That of an ephemeral volume is made of the names of pod and volume.
pub fn claims(pod: &Value) -> impl Iterator<Item = String> {
    let mirror = pod["metadata"]["annotations"].get(MIRROR).is_some();
    volumes(pod).filter(move |_| !mirror).filter_map(|volume| {
        if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
            return Some(claim.to_owned());
        }
        if volume["ephemeral"].is_object() {
            let pod = pod["metadata"]["name"].as_str()?;
            return Some(format!("{pod}-{}", volume["name"].as_str()?));
        }
        None
    })
}

/// Whether a volume's source, or one of those that it projects, is this secret.
fn uses_secret(volume: &Value, name: &str) -> bool {
    volume["secret"]["secretName"] == name
        || volume["azureFile"]["secretName"] == name
        || volume["csi"]["nodePublishSecretRef"]["name"] == name
        || SECRET_REF
            .iter()
            .any(|source| volume[*source]["secretRef"]["name"] == name)
        || projects(volume, "secret", name)
}

/// Whether a PersistentVolume names a secret for the kubelet. Where it says no namespace, that of its claim counts.
pub fn volume_uses_secret(volume: &Value, namespace: &str, name: &str) -> bool {
    if name.is_empty() || namespace.is_empty() {
        return false;
    }
    let spec = &volume["spec"];
    let is = |own: &Value, reference: &Value| {
        let own = own.as_str().unwrap_or_default();
        let own = if own.is_empty() {
            spec["claimRef"]["namespace"].as_str().unwrap_or_default()
        } else {
            own
        };
        own == namespace && *reference == name
    };
    let file = &spec["azureFile"];
    is(&file["secretNamespace"], &file["secretName"])
        || SECRET_REF
            .iter()
            .map(|source| &spec[*source]["secretRef"])
            .chain(CSI_SECRETS.iter().map(|field| &spec["csi"][*field]))
            .any(|reference| is(&reference["namespace"], &reference["name"]))
}

fn resource_claims(pod: &Value) -> impl Iterator<Item = &str> {
    let status = &pod["status"];
    items(&pod["spec"]["resourceClaims"])
        .filter_map(|claim| {
            // The name of a claim made from a template stands in the status.
            claim["resourceClaimName"].as_str().or_else(|| {
                items(&status["resourceClaimStatuses"])
                    .find(|made| made["name"] == claim["name"])?["resourceClaimName"]
                    .as_str()
            })
        })
        .chain(status["extendedResourceClaimStatus"]["resourceClaimName"].as_str())
}

/// Whether a container of any sort has variables from an object: all of its keys, or one.
fn from_environment(pod: &Value, all: &str, key: &str, name: &str) -> bool {
    ["initContainers", "containers", "ephemeralContainers"]
        .iter()
        .flat_map(|field| items(&pod["spec"][*field]))
        .any(|container| {
            items(&container["envFrom"]).any(|source| source[all]["name"] == name)
                || items(&container["env"])
                    .any(|variable| variable["valueFrom"][key]["name"] == name)
        })
}

fn projects(volume: &Value, source: &str, name: &str) -> bool {
    items(&volume["projected"]["sources"]).any(|projected| projected[source]["name"] == name)
}

fn volumes(pod: &Value) -> impl Iterator<Item = &Value> {
    items(&pod["spec"]["volumes"])
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A pod that names an object of each kind in every way; the names say how.
    fn pod() -> Value {
        let container = |word: &str| {
            json!({
                "envFrom": [{ "secretRef": { "name": format!("{word}-all") } }, { "configMapRef": { "name": format!("{word}-map") } }],
                "env": [
                    { "name": "PLAIN", "value": "plain" },
                    { "valueFrom": { "secretKeyRef": { "name": format!("{word}-key") } } },
                    { "valueFrom": { "configMapKeyRef": { "name": format!("{word}-map-key") } } },
                ],
            })
        };
        json!({
            "metadata": { "name": "pod", "namespace": "n" },
            "spec": {
                "serviceAccountName": "robot",
                "imagePullSecrets": [{ "name": "pull" }],
                "initContainers": [container("init")],
                "containers": [container("main")],
                "ephemeralContainers": [container("debug")],
                "volumes": [
                    { "name": "a", "secret": { "secretName": "file" } },
                    { "name": "b", "projected": { "sources": [{ "secret": { "name": "part" } }, { "configMap": { "name": "map-part" } }] } },
                    { "name": "c", "configMap": { "name": "map-file" } },
                    { "name": "d", "csi": { "nodePublishSecretRef": { "name": "csi" } } },
                    { "name": "e", "rbd": { "secretRef": { "name": "rbd" } } },
                    { "name": "f", "azureFile": { "secretName": "azure" } },
                    { "name": "g", "persistentVolumeClaim": { "claimName": "claim" } },
                    { "name": "h", "ephemeral": { "volumeClaimTemplate": {} } },
                ],
                "resourceClaims": [
                    { "name": "x", "resourceClaimName": "direct" },
                    { "name": "y", "resourceClaimTemplateName": "template" },
                    { "name": "z", "resourceClaimTemplateName": "unmade" },
                ],
            },
            "status": {
                "resourceClaimStatuses": [{ "name": "y", "resourceClaimName": "made" }, { "name": "z" }],
                "extendedResourceClaimStatus": { "resourceClaimName": "extended" },
            },
        })
    }

    #[test]
    #[rustfmt::skip] // One kind a line.
    fn a_pod_uses_what_it_names() {
        let pod = pod();
        for (kind, names) in [
            (Kind::Secret, "pull init-all init-key main-all main-key debug-all debug-key file part csi rbd azure"),
            (Kind::ConfigMap, "init-map init-map-key main-map main-map-key debug-map debug-map-key map-part map-file"),
            (Kind::Claim, "claim pod-h"),
            (Kind::ResourceClaim, "direct made extended"),
            (Kind::ServiceAccount, "robot"),
        ] {
            for name in names.split(' ') {
                for other in [Kind::Secret, Kind::ConfigMap, Kind::Claim, Kind::ResourceClaim, Kind::ServiceAccount] {
                    assert_eq!(uses(&pod, other, name), other == kind, "{other:?} {name}");
                }
            }
            for name in ["", "x", "z", "template", "plain", "PLAIN", "pod", "pod-", "pod-g"] {
                assert!(!uses(&pod, kind, name), "{kind:?} {name}");
            }
        }
    }

    #[test]
    fn a_mirror_pod_uses_nothing() {
        let mut pod = pod();
        pod["metadata"]["annotations"] = json!({ MIRROR: "" });
        for (kind, name) in [
            (Kind::Secret, "file"),
            (Kind::ConfigMap, "map-file"),
            (Kind::Claim, "claim"),
            (Kind::ResourceClaim, "direct"),
            (Kind::ServiceAccount, "robot"),
        ] {
            assert!(!uses(&pod, kind, name), "{kind:?}");
        }
        assert_eq!(claims(&pod).count(), 0);
    }

    #[test]
    fn odd_pods_use_nothing() {
        for pod in [
            json!(null),
            json!([]),
            json!({ "spec": [], "status": 5 }),
            json!({ "spec": { "volumes": {}, "containers": "x", "imagePullSecrets": [null, 5, []], "resourceClaims": [{}] } }),
            json!({ "spec": { "volumes": [null, { "ephemeral": {} }, { "projected": { "sources": 5 } }] } }),
        ] {
            for kind in [
                Kind::Secret,
                Kind::ConfigMap,
                Kind::Claim,
                Kind::ResourceClaim,
            ] {
                assert!(!uses(&pod, kind, "x"), "{kind:?} {pod}");
            }
        }
    }

    #[test]
    fn a_volume_names_secrets_for_the_kubelet_and_for_controllers() {
        let spec = |source: Value| {
            let mut spec = source;
            spec["claimRef"] = json!({ "namespace": "n", "name": "claim" });
            json!({ "spec": spec })
        };
        for (source, namespace, name, uses) in [
            (
                json!({ "csi": { "nodePublishSecretRef": { "namespace": "s", "name": "x" } } }),
                "s",
                "x",
                true,
            ),
            (
                json!({ "csi": { "nodeStageSecretRef": { "namespace": "s", "name": "x" } } }),
                "s",
                "x",
                true,
            ),
            (
                json!({ "csi": { "nodeExpandSecretRef": { "namespace": "s", "name": "x" } } }),
                "s",
                "x",
                true,
            ),
            (
                json!({ "csi": { "nodeStageSecretRef": { "namespace": "s", "name": "x" } } }),
                "n",
                "x",
                false,
            ),
            (
                json!({ "csi": { "controllerPublishSecretRef": { "namespace": "s", "name": "x" } } }),
                "s",
                "x",
                false,
            ),
            (
                json!({ "csi": { "controllerExpandSecretRef": { "namespace": "s", "name": "x" } } }),
                "s",
                "x",
                false,
            ),
            (
                json!({ "rbd": { "secretRef": { "name": "x" } } }),
                "n",
                "x",
                true,
            ),
            (
                json!({ "rbd": { "secretRef": { "name": "x" } } }),
                "s",
                "x",
                false,
            ),
            (
                json!({ "azureFile": { "secretName": "x" } }),
                "n",
                "x",
                true,
            ),
            (
                json!({ "azureFile": { "secretName": "x", "secretNamespace": "s" } }),
                "s",
                "x",
                true,
            ),
            (
                json!({ "azureFile": { "secretName": "x", "secretNamespace": "s" } }),
                "n",
                "x",
                false,
            ),
            (json!({ "nfs": {} }), "n", "", false),
            (json!({ "csi": 5, "rbd": null }), "n", "x", false),
        ] {
            assert_eq!(
                volume_uses_secret(&spec(source.clone()), namespace, name),
                uses,
                "{source} {namespace}"
            );
        }
        assert!(!volume_uses_secret(&json!({ "spec": {} }), "", ""));
    }
}
