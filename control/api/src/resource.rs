//! The table of resources: what drives routing, discovery, OpenAPI, storage keys and printing.
//!
//! A built-in kind and a custom resource take the same path, so everything here is owned data.

use std::sync::Arc;

use crate::registry::ownership::Reset;
use crate::schema::Schema;
use crate::strategy::Strategy;

/// A group, a version and a kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupVersionKind {
    /// The API group; empty for the core group.
    pub group: String,
    /// The version, such as `v1`.
    pub version: String,
    /// The kind, such as `Pod`.
    pub kind: String,
}

impl GroupVersionKind {
    /// `v1` for the core group, else `group/version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

/// Whether objects of a resource live in namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In a namespace.
    Namespaced,
    /// In the cluster.
    Cluster,
}

/// What can be done to a resource, in discovery's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verb {
    /// `create`
    Create,
    /// `delete`
    Delete,
    /// `deletecollection`
    DeleteCollection,
    /// `get`
    Get,
    /// `list`
    List,
    /// `patch`
    Patch,
    /// `update`
    Update,
    /// `watch`
    Watch,
}

/// A subresource that the generic machinery or a handler of its own serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subresource {
    /// `status`: the same object, of which only the status may change.
    Status,
    /// `scale`: `autoscaling/v1` Scale.
    Scale,
    /// `log` of a pod.
    Log,
    /// `exec` of a pod.
    Exec,
    /// `attach` of a pod.
    Attach,
    /// `portforward` of a pod.
    PortForward,
    /// `proxy` of a pod, service or node.
    Proxy,
    /// `binding` of a pod.
    Binding,
    /// `eviction` of a pod.
    Eviction,
    /// `ephemeralcontainers` of a pod.
    EphemeralContainers,
    /// `resize` of a pod.
    Resize,
    /// `token` of a service account (TokenRequest).
    Token,
    /// `approval` of a certificate signing request.
    Approval,
    /// `finalize` of a namespace.
    Finalize,
}

impl Subresource {
    /// Its name, as paths and admission write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
            Self::Proxy => "proxy",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Resize => "resize",
            Self::Token => "token",
            Self::Approval => "approval",
            Self::Finalize => "finalize",
        }
    }
}

/// One resource of one group and version.
#[derive(Clone)]
pub struct Resource {
    /// Its group, version and kind.
    pub gvk: GroupVersionKind,
    /// The plural name in paths: `pods`.
    pub plural: String,
    /// The singular name: `pod`.
    pub singular: String,
    /// Short names: `po`.
    pub short_names: Vec<String>,
    /// Categories such as `all`.
    pub categories: Vec<String>,
    /// Whether its objects live in namespaces.
    pub scope: Scope,
    /// What can be done to it; empty for a resource that exists only as a request (TokenReview).
    pub verbs: Vec<Verb>,
    /// Its subresources.
    pub subresources: Vec<Subresource>,
    /// The group and plural under which objects are stored: `/registry/<storage_prefix>/<namespace>/<name>`,
    /// kube-apiserver's own (`pods`, `services/specs`, `services/endpoints`, `minions`, `deployments`, …).
    pub storage_prefix: String,
    /// The group and version that stored objects carry, where it is not this one (events).
    pub storage_version: Option<GroupVersionKind>,
    /// The fields of its objects.
    pub schema: Schema,
    /// The fields that its endpoints do not change.
    pub reset: Reset,
    /// What OpenAPI documents say of the kind, where it is no built-in one.
    pub definition: Option<Arc<serde_json::Value>>,
    /// What is special about the kind.
    pub strategy: Arc<dyn Strategy>,
}

impl Resource {
    /// Converts an object to another version of its kind (`to`).
    pub fn convert(&self, object: &mut serde_json::Value, to: &GroupVersionKind) {
        self.strategy.convert(object, to);
        object["apiVersion"] = to.api_version().into();
    }
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resource")
            .field("gvk", &self.gvk)
            .field("plural", &self.plural)
            .finish_non_exhaustive()
    }
}
