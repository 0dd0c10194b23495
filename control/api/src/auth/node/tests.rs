//! What a node may do, and why not.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;

/// Objects by kind, namespace and name.
#[derive(Default)]
struct Objects(BTreeMap<(&'static str, String, String), Arc<Value>>);

impl Objects {
    fn add(&mut self, kind: &'static str, object: Value) {
        let text = |field: &str| {
            object["metadata"][field]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let key = (kind, text("namespace"), text("name"));
        self.0.insert(key, Arc::new(object));
    }

    fn get(&self, kind: &'static str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        self.0.get(&key).cloned()
    }
}

impl Lookup for Objects {
    fn pods_of_node(&self, node: &str) -> Vec<Arc<Value>> {
        self.0
            .iter()
            .filter(|((kind, ..), pod)| *kind == "pod" && pod["spec"]["nodeName"] == node)
            .map(|(_, pod)| pod.clone())
            .collect()
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.get("pod", namespace, name)
    }

    fn persistent_volume_claim(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.get("claim", namespace, name)
    }

    fn persistent_volume(&self, name: &str) -> Option<Arc<Value>> {
        self.get("volume", "", name)
    }

    fn volume_attachment(&self, name: &str) -> Option<Arc<Value>> {
        self.get("attachment", "", name)
    }

    fn resource_slice(&self, name: &str) -> Option<Arc<Value>> {
        self.get("slice", "", name)
    }

    fn pod_certificate_request(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.get("request", namespace, name)
    }
}

/// Node `a` runs the pod `p` in the namespace `n`, node `b` the pod `q`; each uses objects with a name of its own letter.
fn objects() -> Objects {
    let mut objects = Objects::default();
    for (node, pod) in [("a", "p"), ("b", "q")] {
        let named = |suffix: &str| format!("{pod}-{suffix}");
        let meta = |suffix: &str| json!({ "namespace": "n", "name": named(suffix) });
        objects.add(
            "pod",
            json!({
                "metadata": { "namespace": "n", "name": pod },
                "spec": {
                    "nodeName": node,
                    "serviceAccountName": named("account"),
                    "volumes": [
                        { "name": "s", "secret": { "secretName": named("secret") } },
                        { "name": "m", "configMap": { "name": named("map") } },
                        { "name": "c", "persistentVolumeClaim": { "claimName": named("claim") } },
                    ],
                    "resourceClaims": [{ "name": "r", "resourceClaimName": named("device") }],
                },
            }),
        );
        objects.add(
            "claim",
            json!({ "metadata": meta("claim"), "spec": { "volumeName": named("volume") } }),
        );
        objects.add("volume", json!({
            "metadata": { "name": named("volume") },
            "spec": {
                "claimRef": { "namespace": "n", "name": named("claim") },
                "csi": {
                    "nodeStageSecretRef": { "namespace": "storage", "name": named("stage") },
                    "controllerPublishSecretRef": { "namespace": "storage", "name": named("controller") },
                },
            },
        }));
        let own = json!({ "nodeName": node });
        objects.add(
            "attachment",
            json!({ "metadata": { "name": named("attachment") }, "spec": own }),
        );
        objects.add(
            "slice",
            json!({ "metadata": { "name": named("slice") }, "spec": own }),
        );
        objects.add(
            "request",
            json!({ "metadata": meta("request"), "spec": own }),
        );
    }
    objects
}

/// A request: verb, group, resource, namespace and name; `-` for an empty word. A subresource stands behind a slash.
fn ask(objects: &Objects, user: &UserInfo, words: &str, fields: &[(&str, &str)]) -> Decision {
    let [verb, group, resource, namespace, name] = words
        .split(' ')
        .map(|word| if word == "-" { "" } else { word })
        .collect::<Vec<_>>()[..]
    else {
        panic!("{words}")
    };
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let attributes = Attributes {
        verb,
        group,
        resource,
        subresource,
        namespace,
        name,
        path: "",
        fields,
    };
    authorize(objects, user, &attributes)
}

fn node(name: &str) -> UserInfo {
    UserInfo::new(format!("system:node:{name}"), [NODES.to_owned()])
}

const UNRELATED: &str = "no relationship found between node 'a' and this object";
const ONLY_GET: &str = "can only get individual resources of this type";
const ONE_POD: &str = "can only list/watch pods with spec.nodeName field selector";
const LEASE: &str = "can only access node lease with the same name as the requesting node";
const CSI: &str = "can only access CSINode with the same name as the requesting node";

#[test]
#[rustfmt::skip] // One case a line.
fn a_node_reads_what_its_pods_need() {
    let objects = objects();
    let ok = "ok";
    for (words, reason) in [
        ("get - secrets n p-secret", ok),
        ("list - secrets n p-secret", ok),
        ("watch - secrets n p-secret", ok),
        ("get - secrets n q-secret", UNRELATED),
        ("get - secrets m p-secret", UNRELATED),
        ("get - secrets n p-map", UNRELATED),
        ("list - secrets n -", "No Object name found"),
        ("list - secrets - -", "can only read namespaced object of this type"),
        ("get - secrets - p-secret", "can only read namespaced object of this type"),
        ("update - secrets n p-secret", "can only read resources of this type"),
        ("create - secrets n -", "can only read resources of this type"),
        ("get - secrets/x n p-secret", "cannot read subresource"),
        ("get - secrets storage p-stage", ok),
        ("get - secrets storage q-stage", UNRELATED),
        ("get - secrets storage p-controller", UNRELATED),
        ("get - secrets n p-stage", UNRELATED),
        ("get - configmaps n p-map", ok),
        ("get - configmaps n q-map", UNRELATED),
        ("delete - configmaps n p-map", "can only read resources of this type"),
        ("get - persistentvolumeclaims n p-claim", ok),
        ("get - persistentvolumeclaims n q-claim", UNRELATED),
        ("list - persistentvolumeclaims n p-claim", ONLY_GET),
        ("patch - persistentvolumeclaims/status n p-claim", ok),
        ("update - persistentvolumeclaims/status n q-claim", UNRELATED),
        ("get - persistentvolumeclaims/status n p-claim", "can only get/update/patch this type"),
        ("get - persistentvolumeclaims/x n p-claim", "cannot get subresource"),
        ("get - persistentvolumes - p-volume", ok),
        ("get - persistentvolumes - q-volume", UNRELATED),
        ("get - persistentvolumes - none", UNRELATED),
        ("list - persistentvolumes - -", ONLY_GET),
        ("get storage.k8s.io volumeattachments - p-attachment", ok),
        ("get storage.k8s.io volumeattachments - q-attachment", UNRELATED),
        ("watch storage.k8s.io volumeattachments - p-attachment", ONLY_GET),
        ("get resource.k8s.io resourceclaims n p-device", ok),
        ("get resource.k8s.io resourceclaims n q-device", UNRELATED),
        ("get - serviceaccounts n p-account", ok),
        ("get - serviceaccounts n q-account", UNRELATED),
        ("list - serviceaccounts n p-account", "can only create tokens for individual service accounts"),
        ("create - serviceaccounts/token n p-account", ok),
        ("create - serviceaccounts/token n q-account", UNRELATED),
        ("create - serviceaccounts/token n -", "can only create tokens for individual service accounts"),
        ("create - serviceaccounts n p-account", "can only create token subresource of serviceaccount"),
        ("get certificates.k8s.io podcertificaterequests n p-request", ok),
        ("get certificates.k8s.io podcertificaterequests n q-request", UNRELATED),
        ("create certificates.k8s.io podcertificaterequests n -", ok),
        ("list certificates.k8s.io podcertificaterequests - -", "can only list/watch podcertificaterequests with nodeName field selector"),
        ("delete certificates.k8s.io podcertificaterequests n p-request", "nodes may not delete podcertificaterequests"),
        ("update certificates.k8s.io podcertificaterequests/status n p-request", "nodes may not access the status subresource of PodCertificateRequests"),
    ] {
        let decision = ask(&objects, &node("a"), words, &[]);
        assert_eq!((decision.allowed, &*decision.reason), if reason == ok { (true, "") } else { (false, reason) }, "{words}");
    }
}

#[test]
#[rustfmt::skip] // One case a line.
fn a_node_writes_what_is_its_own() {
    let objects = objects();
    let ok = "ok";
    for (words, reason) in [
        ("get - nodes - a", ok),
        ("watch - nodes - a", ok),
        ("list - nodes - -", "node 'a' cannot read all nodes, only its own Node object"),
        ("get - nodes - b", "node 'a' cannot read 'b', only its own Node object"),
        ("create - nodes - -", ok),
        ("patch - nodes/status - a", ok),
        ("delete - nodes - a", ""),
        ("get - nodes/proxy - a", ""),
        ("get - pods n p", ok),
        ("get - pods n q", UNRELATED),
        ("get - pods m p", UNRELATED),
        ("list - pods - -", ONE_POD),
        ("watch - pods n p", ok),
        ("watch - pods n q", UNRELATED),
        ("create - pods n -", ok),
        ("delete - pods n p", ok),
        ("update - pods n p", ""),
        ("patch - pods/status n p", ok),
        ("create - pods/eviction n p", ok),
        ("create - pods/exec n p", ""),
        ("get coordination.k8s.io leases kube-node-lease a", ok),
        ("create coordination.k8s.io leases kube-node-lease -", ok),
        ("update coordination.k8s.io leases kube-node-lease b", LEASE),
        ("get coordination.k8s.io leases kube-system a", "can only access leases in the \"kube-node-lease\" system namespace"),
        ("list coordination.k8s.io leases kube-node-lease -", "can only get, create, update, patch, or delete a node lease"),
        ("patch storage.k8s.io csinodes - a", ok),
        ("create storage.k8s.io csinodes - -", ok),
        ("delete storage.k8s.io csinodes - b", CSI),
        ("list storage.k8s.io csinodes - -", "can only get, create, update, patch, or delete a CSINode"),
        ("get storage.k8s.io csinodes/status - a", "cannot authorize CSINode subresources"),
        ("create resource.k8s.io resourceslices - -", ok),
        ("delete resource.k8s.io resourceslices - p-slice", ok),
        ("update resource.k8s.io resourceslices - q-slice", UNRELATED),
        ("get resource.k8s.io resourceslices/x - p-slice", "cannot authorize ResourceSlice subresources"),
        ("list resource.k8s.io resourceslices - -", "can only list/watch/deletecollection resourceslices with nodeName field selector"),
        ("get storage.k8s.io csidrivers - x", ok),
        ("list - services - -", ok),
        ("create events.k8s.io events n -", ok),
        ("create certificates.k8s.io certificatesigningrequests - -", ok),
        ("list apps deployments n -", ""),
        ("get extensions secrets n p-secret", ""),
    ] {
        let decision = ask(&objects, &node("a"), words, &[]);
        assert_eq!((decision.allowed, &*decision.reason), if reason == ok { (true, "") } else { (false, reason) }, "{words}");
    }
}

#[test]
fn a_field_selector_for_the_node_opens_lists() {
    let objects = objects();
    for words in [
        "list - pods - -",
        "watch - pods n -",
        "deletecollection resource.k8s.io resourceslices - -",
        "watch certificates.k8s.io podcertificaterequests - -",
    ] {
        for (fields, allowed) in [
            (&[("spec.nodeName", "a")][..], true),
            (&[("status.phase", "Running"), ("spec.nodeName", "a")], true),
            (&[("spec.nodeName", "b")], false),
            (&[("metadata.name", "a")], false),
            (&[], false),
        ] {
            let decision = ask(&objects, &node("a"), words, fields);
            assert_eq!(decision.allowed, allowed, "{words} {fields:?}");
        }
    }
}

#[test]
fn only_nodes_are_nodes() {
    let objects = objects();
    let outside = UserInfo::new("system:node:a", []);
    let other = UserInfo::new("a", [NODES.to_owned()]);
    for user in [outside, other, UserInfo::anonymous()] {
        let decision = ask(&objects, &user, "get - pods n p", &[]);
        assert_eq!(
            (decision.allowed, &*decision.reason),
            (false, ""),
            "{user:?}"
        );
        assert_eq!(node_of(&user), None);
    }
    let decision = ask(&objects, &node(""), "get - pods n p", &[]);
    assert_eq!(decision.reason, "unknown node for user \"system:node:\"");
    assert!(!decision.allowed);
    assert_eq!(node_of(&node("a")), Some("a"));
}

#[test]
fn a_claim_opens_no_volume_that_does_not_name_it() {
    let mut objects = objects();
    objects.add(
        "claim",
        json!({
            "metadata": { "namespace": "n", "name": "p-claim" },
            "spec": { "volumeName": "q-volume" },
        }),
    );
    for words in [
        "get - secrets storage q-stage",
        "get - persistentvolumes - q-volume",
    ] {
        assert_eq!(
            ask(&objects, &node("a"), words, &[]).reason,
            UNRELATED,
            "{words}"
        );
    }
}

#[test]
fn odd_objects_open_nothing() {
    let mut objects = objects();
    objects.add(
        "volume",
        json!({ "metadata": { "name": "odd" }, "spec": { "claimRef": "p-claim" } }),
    );
    objects.add(
        "attachment",
        json!({ "metadata": { "name": "odd" }, "spec": { "nodeName": ["a"] } }),
    );
    objects.add(
        "slice",
        json!({ "metadata": { "name": "odd" }, "spec": null }),
    );
    for words in [
        "get - persistentvolumes - odd",
        "get storage.k8s.io volumeattachments - odd",
        "get resource.k8s.io resourceslices - odd",
    ] {
        assert_eq!(
            ask(&objects, &node("a"), words, &[]).reason,
            UNRELATED,
            "{words}"
        );
    }
}
