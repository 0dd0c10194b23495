//! NodeRestriction: a node changes itself and its own pods, and nothing by which it would draw work to itself (kubernetes,
//! `plugin/pkg/admission/noderestriction`).

use async_trait::async_trait;
use serde_json::Value;

use super::{Changed, Plugin};
use crate::auth::node;
use crate::registry::operation::{Action, Operation};
use crate::registry::write::key;
use crate::registry::{Registry, meta};
use crate::resource::Subresource;
use crate::status::ApiError;

/// The namespace of nodes' leases.
const LEASES: &str = "kube-node-lease";
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Labels of these domains are for administrators.
const RESTRICTED: &str = "node-restriction.kubernetes.io";
/// Labels of Kubernetes' domains that a kubelet may set on its node.
const KUBELET_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "node.kubernetes.io/windows-build",
];
/// The domains, with what is below them, of which a kubelet may set every label.
const KUBELET_DOMAINS: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];

/// The fields of a pod's spec that name objects of the API, by what they name.
#[rustfmt::skip] // A table.
const REFERENCES: [(&str, &[&str]); 5] = [
    ("secrets", &[
        "imagePullSecrets", "secret", "secretRef", "secretKeyRef", "secretName",
        "nodePublishSecretRef", "nodeStageSecretRef", "nodeExpandSecretRef",
    ]),
    ("configmaps", &["configMap", "configMapRef", "configMapKeyRef"]),
    ("clustertrustbundles", &["clusterTrustBundle"]),
    ("persistentvolumeclaims", &["persistentVolumeClaim", "ephemeral"]),
    ("resourceclaims", &["resourceClaims"]),
];

pub struct NodeRestriction;

#[async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    fn handles(&self, operation: &Operation) -> bool {
        operation.action != Action::Connect && node::node_of(&operation.context.user).is_some()
    }

    async fn mutate(
        &self,
        registry: &Registry,
        operation: &mut Operation,
    ) -> Result<Changed, ApiError> {
        let user = &operation.context.user;
        let judged = match node::node_of(user).unwrap_or_default() {
            "" => Err(format!(
                "could not determine node from user {:?}",
                user.name
            )),
            name => judge(registry, operation, name),
        };
        let name = match &*operation.name {
            "" => operation
                .new
                .as_ref()
                .map_or("", |new| meta::text(new, "name")),
            name => name,
        };
        let (group, plural) = (&operation.resource.gvk.group, &operation.resource.plural);
        judged.map_err(|detail| ApiError::forbidden(group, plural, name, &detail))?;
        Ok(Changed::No)
    }
}

fn judge(registry: &Registry, operation: &Operation, node: &str) -> Result<(), String> {
    let (group, plural) = (&*operation.resource.gvk.group, &*operation.resource.plural);
    let own = || {
        operation.name == node
            || operation.action == Action::Create
                && operation
                    .new
                    .as_ref()
                    .is_some_and(|new| meta::text(new, "name") == node)
    };
    match (group, plural, operation.subresource) {
        ("", "pods", subresource) => pod(registry, operation, subresource, node),
        ("", "nodes", _) if !own() => Err(format!(
            "node {node:?} is not allowed to modify node {:?}",
            operation.name
        )),
        ("", "nodes", _) => this_node(operation, node),
        ("", "persistentvolumeclaims", Some(Subresource::Status)) => claim(operation, node),
        ("", "persistentvolumeclaims", _) => Err("may only update PVC status".to_owned()),
        ("", "serviceaccounts", Some(Subresource::Token)) => token(registry, operation, node),
        ("coordination.k8s.io", "leases", _) if operation.namespace != LEASES => Err(format!(
            "can only access leases in the {LEASES:?} system namespace"
        )),
        ("coordination.k8s.io", "leases", _) if !own() => {
            Err("can only access node lease with the same name as the requesting node".to_owned())
        }
        ("storage.k8s.io", "csinodes", _) if !own() => {
            Err("can only access CSINode with the same name as the requesting node".to_owned())
        }
        ("resource.k8s.io", "resourceslices", _) if slice_node(operation) != node => Err(
            "can only access ResourceSlice with the same NodeName as the requesting node"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

/// The node of a ResourceSlice: of the one that is there, or of the one to be.
fn slice_node(operation: &Operation) -> &str {
    let slice = operation.old.as_ref().or(operation.new.as_ref());
    slice
        .and_then(|slice| slice["spec"]["nodeName"].as_str())
        .unwrap_or_default()
}

fn pod(
    registry: &Registry,
    operation: &Operation,
    subresource: Option<Subresource>,
    node: &str,
) -> Result<(), String> {
    let is_own = |pod: Option<&Value>| pod.is_some_and(|pod| pod["spec"]["nodeName"] == node);
    let (old, new) = (operation.old.as_ref(), operation.new.as_ref());
    match (subresource, operation.action) {
        (None, Action::Create) => mirror_pod(registry, new.unwrap_or(&Value::Null), node),
        (None, Action::Delete) if is_own(old) => Ok(()),
        (None, Action::Delete) => Err(format!(
            "node {node:?} can only delete pods with spec.nodeName set to itself"
        )),
        (None, _) => Err("unexpected operation \"UPDATE\"".to_owned()),
        (Some(Subresource::Status), _) => {
            if !is_own(old) {
                return Err(format!(
                    "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                ));
            }
            let part = |pod: Option<&Value>, pointer| {
                pod.and_then(|pod: &Value| pod.pointer(pointer)).cloned()
            };
            let differs = |pointer| part(old, pointer) != part(new, pointer);
            if differs("/metadata/labels") {
                return Err(format!(
                    "node {node:?} cannot update labels through pod status"
                ));
            }
            if differs("/status/resourceClaimStatuses") {
                return Err(format!(
                    "node {node:?} cannot update resource claim statues"
                ));
            }
            Ok(())
        }
        (Some(Subresource::Eviction), _) => {
            let pod = find(registry, "pods", &operation.namespace, &operation.name);
            match is_own(pod.as_ref()) {
                true => Ok(()),
                false => Err(format!(
                    "node {node} can only evict pods with spec.nodeName set to itself"
                )),
            }
        }
        (Some(other), _) => Err(format!(
            "unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"
        )),
    }
}

/// A pod that a node makes shows a static pod of its own, and reaches nothing of the API.
fn mirror_pod(registry: &Registry, pod: &Value, node: &str) -> Result<(), String> {
    let refused = |what: &str| Err(format!("node {node:?} {what}"));
    let meta = &pod["metadata"];
    if meta["annotations"][MIRROR].is_null() {
        return Err(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if pod["spec"]["nodeName"] != node {
        return refused("can only create pods with spec.nodeName set to itself");
    }
    let owners = meta["ownerReferences"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let [owner] = owners else {
        let what = match owners {
            [] => "can only create pods with an owner reference set to itself",
            _ => "can only create pods with a single owner reference set to itself",
        };
        return refused(what);
    };
    if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
        return refused("can only create pods with an owner reference set to itself");
    }
    if owner["controller"] != true {
        return refused("can only create pods with a controller owner reference set to itself");
    }
    if owner["blockOwnerDeletion"] == true {
        return refused("must not set blockOwnerDeletion on an owner reference");
    }
    let uid = find(registry, "minions", "", node).map(|node| node["metadata"]["uid"].clone());
    let uid = uid.ok_or_else(|| format!("nodes {node:?} not found"))?;
    if owner["uid"] != uid {
        let text = |uid: &Value| uid.as_str().unwrap_or_default().to_owned();
        return Err(format!(
            "node {node} UID mismatch: expected {} got {}",
            text(&owner["uid"]),
            text(&uid)
        ));
    }
    let spec = &pod["spec"];
    if spec["serviceAccountName"]
        .as_str()
        .is_some_and(|name| !name.is_empty())
    {
        return refused("can not create pods that reference a service account");
    }
    for (plural, fields) in REFERENCES {
        if mentions(spec, fields) {
            return refused(&format!("can not create pods that reference {plural}"));
        }
    }
    Ok(())
}

/// Whether a field of one of these names stands anywhere in it.
fn mentions(value: &Value, fields: &[&str]) -> bool {
    match value {
        Value::Array(items) => items.iter().any(|item| mentions(item, fields)),
        Value::Object(map) => map.iter().any(|(field, value)| {
            !value.is_null() && (fields.contains(&&**field) || mentions(value, fields))
        }),
        _ => false,
    }
}

fn this_node(operation: &Operation, node: &str) -> Result<(), String> {
    let Some(new) = &operation.new else {
        return Ok(());
    };
    let old = operation.old.as_ref().unwrap_or(&Value::Null);
    if operation.action == Action::Update && new["spec"]["taints"] != old["spec"]["taints"] {
        return Err(format!("node {node:?} is not allowed to modify taints"));
    }
    let forbidden = forbidden_labels(&new["metadata"]["labels"], &old["metadata"]["labels"]);
    match (operation.action, forbidden.is_empty()) {
        (_, true) => Ok(()),
        (Action::Create, _) => Err(format!(
            "node {node:?} is not allowed to set the following labels: {}",
            forbidden.join(", ")
        )),
        _ => Err(format!(
            "is not allowed to modify labels: {}",
            forbidden.join(", ")
        )),
    }
}

/// The labels that differ and that a node may not set, in order.
fn forbidden_labels(new: &Value, old: &Value) -> Vec<String> {
    let keys = |labels: &Value| -> Vec<String> {
        labels
            .as_object()
            .into_iter()
            .flat_map(|map| map.keys().cloned())
            .collect()
    };
    let mut differing: Vec<String> = keys(new).into_iter().chain(keys(old)).collect();
    differing.sort();
    differing.dedup();
    differing.retain(|key| new[key] != old[key] && is_forbidden(key));
    differing
}

fn is_forbidden(label: &str) -> bool {
    let domain = label.split_once('/').map_or("", |(domain, _)| domain);
    let is_in = |of: &str| {
        domain
            .strip_suffix(of)
            .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if is_in(RESTRICTED) {
        return true;
    }
    let allowed = KUBELET_LABELS.contains(&label) || KUBELET_DOMAINS.iter().any(|of| is_in(of));
    (is_in("kubernetes.io") || is_in("k8s.io")) && !allowed
}

/// Of a claim a node reports how large it is and how it does.
fn claim(operation: &Operation, node: &str) -> Result<(), String> {
    let rest = |claim: Option<&Value>| {
        let mut claim = claim.cloned().unwrap_or_default();
        if let Some(status) = claim["status"].as_object_mut() {
            for field in [
                "capacity",
                "conditions",
                "allocatedResources",
                "allocatedResourceStatuses",
            ] {
                status.remove(field);
            }
        }
        if let Some(meta) = claim["metadata"].as_object_mut() {
            meta.remove("resourceVersion");
            meta.remove("managedFields");
        }
        claim
    };
    if rest(operation.old.as_ref()) == rest(operation.new.as_ref()) {
        return Ok(());
    }
    Err(format!(
        "node {node:?} is not allowed to update fields other than status.capacity and status.conditions"
    ))
}

/// A node asks for tokens of its own pods only.
fn token(registry: &Registry, operation: &Operation, node: &str) -> Result<(), String> {
    let reference = operation
        .new
        .as_ref()
        .map_or(&Value::Null, |new| &new["spec"]["boundObjectRef"]);
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    if text("apiVersion") != "v1" || text("kind") != "Pod" || text("name").is_empty() {
        return Err("node requested token not bound to a pod".to_owned());
    }
    if text("uid").is_empty() {
        return Err("node requested token with a pod binding without a uid".to_owned());
    }
    let pod = find(registry, "pods", &operation.namespace, text("name"));
    let pod = pod.ok_or_else(|| format!("pods {:?} not found", text("name")))?;
    if pod["metadata"]["uid"] != text("uid") {
        return Err(format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            text("uid")
        ));
    }
    if pod["spec"]["nodeName"] != node {
        return Err("node requested token bound to a pod scheduled on a different node".to_owned());
    }
    Ok(())
}

fn find(registry: &Registry, prefix: &str, namespace: &str, name: &str) -> Option<Value> {
    let entry = registry.collection(prefix)?.get(&key(namespace, name))?;
    Some(entry.parse())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_that_steer_work_are_not_the_nodes_to_set() {
        let old = json!({ "kubernetes.io/hostname": "a", "team": "x" });
        for (label, forbidden) in [
            ("kubernetes.io/arch", false),
            ("node.kubernetes.io/anything", false),
            ("sub.node.kubernetes.io/anything", false),
            ("example.com/anything", false),
            ("plain", false),
            ("node-role.kubernetes.io/master", true),
            ("node-restriction.kubernetes.io/secure", true),
            ("a.node-restriction.kubernetes.io/secure", true),
            ("k8s.io/x", true),
            ("notkubernetes.io/x", false),
        ] {
            let mut new = old.clone();
            new[label] = "1".into();
            let found = forbidden_labels(&new, &old);
            assert_eq!(found == [label], forbidden, "{label}");
            assert_eq!(
                forbidden_labels(&old, &new) == [label],
                forbidden,
                "without {label}"
            );
        }
    }
}
