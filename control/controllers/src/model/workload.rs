//! Deployments and replica sets.

use k8s_openapi::api::apps::v1::{DeploymentStatus, DeploymentStrategy, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use serde::Deserialize;

use super::{Template, controller_of, namespace, resource};
use crate::cache::{Cached, IndexKey};

/// What `kubectl apply` remembers; large, and no controller reads it.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A deployment.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Deployment {
    /// Its metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: DeploymentSpec,
    /// What is.
    #[serde(default)]
    pub status: DeploymentStatus,
}
resource!(
    Deployment,
    "apps",
    "v1",
    "Deployment",
    "deployments",
    NamespaceResourceScope
);

/// What is wanted of a deployment.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentSpec {
    /// How many pods; 1 by default.
    pub replicas: Option<i32>,
    /// Which pods are its own.
    pub selector: LabelSelector,
    /// What its pods look like.
    pub template: Template,
    /// How old pods give way to new ones.
    pub strategy: DeploymentStrategy,
    /// For how many seconds a pod has to be ready to count as available.
    pub min_ready_seconds: Option<i32>,
    /// How many old replica sets stay for a rollback.
    pub revision_history_limit: Option<i32>,
    /// Whether changes of the template wait.
    pub paused: Option<bool>,
    /// After how many seconds without progress it counts as stuck.
    pub progress_deadline_seconds: Option<i32>,
}

impl Deployment {
    /// How many pods are wanted.
    pub fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }

    /// Whether all old pods have to be gone before the first new one.
    pub fn recreates(&self) -> bool {
        self.spec.strategy.type_.as_deref() == Some("Recreate")
    }
}

impl Cached for Deployment {
    fn trim(&mut self) {
        self.metadata.managed_fields = None;
        if let Some(annotations) = &mut self.metadata.annotations {
            annotations.remove(LAST_APPLIED);
        }
    }

    fn index(&self, add: &mut dyn FnMut(IndexKey)) {
        index_selector(&self.metadata, &self.spec.selector, add);
    }
}

/// A replica set.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ReplicaSet {
    /// Its metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is wanted.
    pub spec: ReplicaSetSpec,
    /// What is.
    #[serde(default)]
    pub status: ReplicaSetStatus,
}
resource!(
    ReplicaSet,
    "apps",
    "v1",
    "ReplicaSet",
    "replicasets",
    NamespaceResourceScope
);

/// What is wanted of a replica set.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetSpec {
    /// How many pods; 1 by default.
    pub replicas: Option<i32>,
    /// Which pods are its own.
    pub selector: LabelSelector,
    /// What its pods look like.
    pub template: Template,
    /// For how many seconds a pod has to be ready to count as available.
    pub min_ready_seconds: Option<i32>,
}

impl ReplicaSet {
    /// How many pods are wanted.
    pub fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }
}

impl Cached for ReplicaSet {
    fn trim(&mut self) {
        self.metadata.managed_fields = None;
        if let Some(annotations) = &mut self.metadata.annotations {
            annotations.remove(LAST_APPLIED);
        }
    }

    fn index(&self, add: &mut dyn FnMut(IndexKey)) {
        index_selector(&self.metadata, &self.spec.selector, add);
        match controller_of(&self.metadata) {
            Some(owner) => add(IndexKey::Owner(owner.uid.as_str().into())),
            None => add(IndexKey::Orphan(namespace(&self.metadata).into())),
        }
    }
}

/// Makes a workload findable by the labels of what it could adopt: by one pair of its selector, or, if it has
/// only expressions, among the few of its namespace that do.
fn index_selector(meta: &ObjectMeta, selector: &LabelSelector, add: &mut dyn FnMut(IndexKey)) {
    match selector.match_labels.iter().flatten().next() {
        Some((key, value)) => add(IndexKey::label(namespace(meta), key, value)),
        None => add(IndexKey::Expressions(namespace(meta).into())),
    }
}
