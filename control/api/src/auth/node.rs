//! The Node authorizer: a kubelet reads what the pods of its node need, and writes what is its own.
//!
//! A user `system:node:<name>` of the group `system:nodes` is a node. What it asks falls into three parts: objects that must
//! have to do with it (its pods' secrets, its own lease), whose content admission must check as well (its own Node and
//! pods, which this only lets pass), and the rest, for which the rules of the role `system:node` hold.
//!
//! Kubernetes keeps a graph of these relations. Here they are found anew at each request, from the pods of the node.

mod references;
mod relations;

use std::sync::Arc;

use serde_json::Value;

use self::references::Kind;
use super::UserInfo;
use super::authorize::{Attributes, Decision};
use super::rbac::policy::node_rules;

/// The group of all nodes.
pub const NODES: &str = "system:nodes";

/// Every node's user starts with this.
const PREFIX: &str = "system:node:";

/// Where objects are looked up.
pub trait Lookup: Send + Sync {
    /// The pods whose `spec.nodeName` is this node: the caller has an index of them.
    fn pods_of_node(&self, node: &str) -> Vec<Arc<Value>>;

    /// A pod.
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// A PersistentVolumeClaim.
    fn persistent_volume_claim(&self, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// A PersistentVolume.
    fn persistent_volume(&self, name: &str) -> Option<Arc<Value>>;

    /// A VolumeAttachment.
    fn volume_attachment(&self, name: &str) -> Option<Arc<Value>>;

    /// A ResourceSlice.
    fn resource_slice(&self, name: &str) -> Option<Arc<Value>>;

    /// A PodCertificateRequest.
    fn pod_certificate_request(&self, namespace: &str, name: &str) -> Option<Arc<Value>>;
}

/// The name of the node that a user is, if it is one; the name of a user that says none is empty.
pub fn node_of(user: &UserInfo) -> Option<&str> {
    let name = user.name.strip_prefix(PREFIX)?;
    user.is_in(NODES).then_some(name)
}

/// Whether a node may do this; of users who are no nodes it knows nothing.
///
/// The name of a list or watch
/// that selects one `metadata.name` is that name, as in every request.
pub fn authorize(lookup: &dyn Lookup, user: &UserInfo, attributes: &Attributes<'_>) -> Decision {
    let verdict = match node_of(user) {
        None => Err(String::new()),
        Some("") => Err(format!("unknown node for user {:?}", user.name)),
        Some(node) => Request {
            lookup,
            node,
            attributes,
        }
        .decide(),
    };
    Decision {
        allowed: verdict.is_ok(),
        reason: verdict.err().unwrap_or_default(),
    }
}

/// Allowed, or the reason why not.
type Verdict = Result<(), String>;

/// A node's request.
struct Request<'a> {
    lookup: &'a dyn Lookup,
    node: &'a str,
    attributes: &'a Attributes<'a>,
}

impl Request<'_> {
    fn decide(&self) -> Verdict {
        match (self.attributes.group, self.attributes.resource) {
            ("", "secrets") => self.read(|| self.uses_secret()),
            ("", "configmaps") => self.read(|| self.a_pod_uses(Kind::ConfigMap)),
            ("", "persistentvolumeclaims") => self.claim(),
            ("", "persistentvolumes") => self.get(|| self.uses_volume()),
            ("", "serviceaccounts") => self.service_account(),
            ("", "nodes") => self.own_node(),
            ("", "pods") => self.own_pod(),
            ("resource.k8s.io", "resourceclaims") => {
                self.get(|| self.a_pod_uses(Kind::ResourceClaim))
            }
            ("resource.k8s.io", "resourceslices") => self.resource_slice(),
            ("storage.k8s.io", "volumeattachments") => {
                self.get(|| self.is_of_node(self.lookup.volume_attachment(self.attributes.name)))
            }
            ("storage.k8s.io", "csinodes") => self.csi_node(),
            ("coordination.k8s.io", "leases") => self.lease(),
            ("certificates.k8s.io", "podcertificaterequests") => self.pod_certificate_request(),
            _ => allow_if(
                node_rules().iter().any(|rule| rule.allows(self.attributes)),
                "",
            ),
        }
    }

    /// One object that has to do with the node.
    fn related(&self, related: impl FnOnce() -> bool) -> Verdict {
        if self.attributes.name.is_empty() {
            return refuse("No Object name found");
        }
        allow_if(
            related(),
            &format!(
                "no relationship found between node '{}' and this object",
                self.node
            ),
        )
    }

    /// `get` of one object.
    fn get(&self, related: impl FnOnce() -> bool) -> Verdict {
        if self.attributes.verb != "get" {
            return refuse("can only get individual resources of this type");
        }
        if !self.attributes.subresource.is_empty() {
            return refuse("cannot get subresource");
        }
        self.related(related)
    }

    /// `get`, or a list or watch of one object in a namespace.
    fn read(&self, related: impl FnOnce() -> bool) -> Verdict {
        if !matches!(self.attributes.verb, "get" | "list" | "watch") {
            return refuse("can only read resources of this type");
        }
        if !self.attributes.subresource.is_empty() {
            return refuse("cannot read subresource");
        }
        if self.attributes.namespace.is_empty() {
            return refuse("can only read namespaced object of this type");
        }
        self.related(related)
    }

    fn claim(&self) -> Verdict {
        let related = || self.a_pod_uses(Kind::Claim);
        if self.attributes.subresource != "status" {
            return self.get(related);
        }
        if !matches!(self.attributes.verb, "update" | "patch") {
            return refuse("can only get/update/patch this type");
        }
        self.related(related)
    }

    /// The kubelet reads the accounts of its pods, and asks for tokens of them; admission binds the tokens to pods.
    fn service_account(&self) -> Verdict {
        let related = || self.a_pod_uses(Kind::ServiceAccount);
        let attributes = self.attributes;
        if attributes.verb == "get" && attributes.subresource.is_empty() {
            return self.read(related);
        }
        if attributes.verb != "create" || attributes.name.is_empty() {
            return refuse("can only create tokens for individual service accounts");
        }
        if attributes.subresource != "token" {
            return refuse("can only create token subresource of serviceaccount");
        }
        self.related(related)
    }

    /// Admission keeps a node to its own object where it writes one.
    fn own_node(&self) -> Verdict {
        let name = self.attributes.name;
        match (self.attributes.subresource, self.attributes.verb) {
            ("", "create" | "update" | "patch") | ("status", "update" | "patch") => Ok(()),
            ("", "get" | "list" | "watch") if name == self.node => Ok(()),
            ("", "get" | "list" | "watch") => Err(if name.is_empty() {
                format!(
                    "node '{}' cannot read all nodes, only its own Node object",
                    self.node
                )
            } else {
                format!(
                    "node '{}' cannot read '{name}', only its own Node object",
                    self.node
                )
            }),
            _ => refuse(""),
        }
    }

    /// Admission keeps a node to its own pods where it writes one.
    fn own_pod(&self) -> Verdict {
        let Attributes {
            namespace, name, ..
        } = *self.attributes;
        let related = || self.is_of_node(self.lookup.pod(namespace, name));
        match (self.attributes.subresource, self.attributes.verb) {
            ("", "get") => self.get(related),
            ("", "list" | "watch") if self.selects_node() => Ok(()),
            ("", "list" | "watch") if !name.is_empty() => self.related(related),
            ("", "list" | "watch") => {
                refuse("can only list/watch pods with spec.nodeName field selector")
            }
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => {
                Ok(())
            }
            _ => refuse(""),
        }
    }

    /// Admission keeps a node to its own slices where it creates one.
    fn resource_slice(&self) -> Verdict {
        if !self.attributes.subresource.is_empty() {
            return refuse("cannot authorize ResourceSlice subresources");
        }
        match self.attributes.verb {
            "create" => Ok(()),
            "get" | "update" | "patch" | "delete" => {
                self.related(|| self.is_of_node(self.lookup.resource_slice(self.attributes.name)))
            }
            "watch" | "list" | "deletecollection" => allow_if(
                self.selects_node(),
                "can only list/watch/deletecollection resourceslices with nodeName field selector",
            ),
            _ => refuse(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    /// Admission compares a new request with its pod.
    fn pod_certificate_request(&self) -> Verdict {
        let Attributes {
            namespace, name, ..
        } = *self.attributes;
        if !self.attributes.subresource.is_empty() {
            return refuse("nodes may not access the status subresource of PodCertificateRequests");
        }
        match self.attributes.verb {
            "create" => Ok(()),
            "get" => self
                .related(|| self.is_of_node(self.lookup.pod_certificate_request(namespace, name))),
            "list" | "watch" => allow_if(
                self.selects_node(),
                "can only list/watch podcertificaterequests with nodeName field selector",
            ),
            verb => Err(format!("nodes may not {verb} podcertificaterequests")),
        }
    }

    /// The name of what is created is not known yet; admission compares it with the node's.
    fn lease(&self) -> Verdict {
        let Attributes {
            verb,
            namespace,
            name,
            ..
        } = *self.attributes;
        if !matches!(verb, "get" | "create" | "update" | "patch" | "delete") {
            return refuse("can only get, create, update, patch, or delete a node lease");
        }
        if namespace != "kube-node-lease" {
            return refuse("can only access leases in the \"kube-node-lease\" system namespace");
        }
        allow_if(
            verb == "create" || name == self.node,
            "can only access node lease with the same name as the requesting node",
        )
    }

    /// As with a lease.
    fn csi_node(&self) -> Verdict {
        let Attributes {
            verb,
            subresource,
            name,
            ..
        } = *self.attributes;
        if !matches!(verb, "get" | "create" | "update" | "patch" | "delete") {
            return refuse("can only get, create, update, patch, or delete a CSINode");
        }
        if !subresource.is_empty() {
            return refuse("cannot authorize CSINode subresources");
        }
        allow_if(
            verb == "create" || name == self.node,
            "can only access CSINode with the same name as the requesting node",
        )
    }
}

fn allow_if(allowed: bool, reason: &str) -> Verdict {
    if allowed { Ok(()) } else { refuse(reason) }
}

fn refuse(reason: &str) -> Verdict {
    Err(reason.to_owned())
}

#[cfg(test)]
mod tests;
