//! What an object has to do with a node.

use std::sync::Arc;

use serde_json::Value;

use super::Request;
use super::references::{Kind, claims, uses, volume_uses_secret};
use crate::auth::authorize::Attributes;

impl Request<'_> {
    /// Whether the request's field selector keeps to the node.
    pub fn selects_node(&self) -> bool {
        self.attributes
            .fields
            .contains(&("spec.nodeName", self.node))
    }

    /// Whether an object says that it is of the node.
    pub fn is_of_node(&self, object: Option<Arc<Value>>) -> bool {
        object.is_some_and(|object| object["spec"]["nodeName"] == self.node)
    }

    /// Whether a pod of the node names the object.
    pub fn a_pod_uses(&self, kind: Kind) -> bool {
        let Attributes {
            namespace, name, ..
        } = *self.attributes;
        self.pod_in(namespace, |pod| uses(pod, kind, name))
    }

    /// Whether a pod of the node, in this namespace, is such a pod.
    fn pod_in(&self, namespace: &str, is: impl Fn(&Value) -> bool) -> bool {
        self.lookup
            .pods_of_node(self.node)
            .iter()
            .any(|pod| pod["metadata"]["namespace"] == namespace && is(pod))
    }

    /// A volume has to do with the node by its claim.
    pub fn uses_volume(&self) -> bool {
        let Some(volume) = self.lookup.persistent_volume(self.attributes.name) else {
            return false;
        };
        let claim = &volume["spec"]["claimRef"];
        match (claim["namespace"].as_str(), claim["name"].as_str()) {
            (Some(namespace), Some(name)) => {
                self.pod_in(namespace, |pod| uses(pod, Kind::Claim, name))
            }
            _ => false,
        }
    }

    /// A secret has to do with the node by a pod, or by a volume that a pod claims.
    pub fn uses_secret(&self) -> bool {
        let Attributes {
            namespace, name, ..
        } = *self.attributes;
        let pods = self.lookup.pods_of_node(self.node);
        pods.iter()
            .any(|pod| pod["metadata"]["namespace"] == namespace && uses(pod, Kind::Secret, name))
            || pods.iter().any(|pod| {
                let own = pod["metadata"]["namespace"].as_str().unwrap_or_default();
                claims(pod).any(|claim| {
                    self.claimed_volume(own, &claim)
                        .is_some_and(|volume| volume_uses_secret(&volume, namespace, name))
                })
            })
    }

    /// The volume of a claim. The volume must name the claim too: anybody may write a claim with any volume's name.
    fn claimed_volume(&self, namespace: &str, claim: &str) -> Option<Arc<Value>> {
        let object = self.lookup.persistent_volume_claim(namespace, claim)?;
        let volume = self
            .lookup
            .persistent_volume(object["spec"]["volumeName"].as_str()?)?;
        let reference = &volume["spec"]["claimRef"];
        (reference["namespace"] == namespace && reference["name"] == claim).then_some(volume)
    }
}
