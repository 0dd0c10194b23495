//! The objects as the controllers see them: only the fields that some controller reads.
//!
//! A typed `Pod` of the full API takes several KiB of memory, and the cache holds every pod of the cluster, so
//! each kind is decoded straight from the watch into a few hundred bytes; what is not listed here is skipped
//! by the decoder.

mod node;
mod pod;
mod selector;
mod service;
mod taint;
mod template;
mod workload;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::Deserialize;

pub use node::{Lease, LeaseSpec, Namespace, NamespaceSpec, NamespaceStatus, Node, NodeSpec};
pub use node::{NodeCondition, NodeStatus};
pub use pod::{
    Container, ContainerPort, ContainerStatus, DELETION_COST, Pod, PodCondition, PodIp, PodSpec,
    PodStatus,
};
pub use selector::Selector;
pub use service::{ConfigMap, Service, ServiceAccount, ServicePort, ServiceSpec};
pub use taint::{bears, tolerates};
pub use template::{HASH_LABEL, Template};
pub use workload::{Deployment, DeploymentSpec, LAST_APPLIED, ReplicaSet, ReplicaSetSpec};

/// Declares which resource a slim type stands for.
macro_rules! resource {
    ($type:ty, $group:literal, $version:literal, $kind:literal, $plural:literal, $scope:ident) => {
        impl kube::Resource for $type {
            type DynamicType = ();
            type Scope = k8s_openapi::$scope;
            fn kind((): &()) -> std::borrow::Cow<'_, str> {
                $kind.into()
            }
            fn group((): &()) -> std::borrow::Cow<'_, str> {
                $group.into()
            }
            fn version((): &()) -> std::borrow::Cow<'_, str> {
                $version.into()
            }
            fn plural((): &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }
            fn meta(&self) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &self.metadata
            }
            fn meta_mut(
                &mut self,
            ) -> &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &mut self.metadata
            }
        }
    };
}
pub(crate) use resource;

/// What every write answers with, as far as controllers care: the metadata of the object written.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Written {
    /// The metadata; empty where the server answered with a `Status`.
    #[serde(default)]
    pub metadata: ObjectMeta,
}

/// The reference that marks the controller of an object, if it has one.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references
        .as_ref()?
        .iter()
        .find(|owner| owner.controller == Some(true))
}

/// Whether the object is being deleted.
pub fn is_deleting(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

/// The UID, or an empty text where an object has none yet.
pub fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

/// The name, or an empty text where an object has none yet.
pub fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// The namespace; empty for objects of the cluster.
pub fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

/// The resource version as a number: the store's revision of the last write, 0 where there is none.
pub fn version(meta: &ObjectMeta) -> u64 {
    meta.resource_version
        .as_deref()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// The value of an annotation.
pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The value of a label.
pub fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

/// The reference with which a controller marks what it makes.
pub fn controller_reference<K: kube::Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: name(owner.meta()).to_owned(),
        uid: uid(owner.meta()).to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}
