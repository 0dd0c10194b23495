//! What is special about a kind, as hooks around the generic path.
//!
//! The generic path of a write is: decode and check fields by schema, apply static defaults, `default`,
//! `prepare_for_create` or `prepare_for_update`, generic metadata checks, `validate` or `validate_update`, admission, store.

mod admission;
mod apps;
mod autoscaling;
mod batch;
mod certificate;
mod cluster;
pub(crate) mod common;
mod config;
mod device;
mod endpoints;
mod event;
mod fields;
mod flow;
mod network;
mod pod;
mod policy;
mod rbac;
mod runtime_class;
mod service;
mod storage;
#[cfg(test)]
mod testing;
mod trust;
pub mod validation;
mod warnings;
mod workload;

use std::sync::Arc;

use serde_json::Value;

pub use admission::{AdmissionPolicy, AdmissionPolicyBinding, WebhookConfiguration};
pub use apps::{ControllerRevision, DaemonSet, PodTemplate, ReplicationController, StatefulSet};
pub use autoscaling::HorizontalPodAutoscaler;
pub use batch::{CronJob, Job};
pub use certificate::{CertificateSigningRequest, requested_organizations};
pub use cluster::{Lease, Namespace, Node, ServiceAccount};
pub use config::{ConfigMap, Secret};
pub use device::{DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice};
pub use endpoints::{EndpointSlice, Endpoints};
pub use event::Event;
pub use flow::{FlowSchema, PriorityLevelConfiguration};
pub use network::{Ingress, IngressClass, IpAddress, NetworkPolicy, ServiceCidr};
pub use pod::{Pod, qos_class};
pub use policy::{LimitRange, PodDisruptionBudget, PriorityClass, ResourceQuota};
pub use rbac::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
pub use runtime_class::RuntimeClass;
pub use service::{Service, needs_health_port};
pub use storage::{
    CsiDriver, CsiNode, CsiStorageCapacity, PersistentVolume, PersistentVolumeClaim, StorageClass,
    VolumeAttachment, VolumeAttributesClass,
};
pub use trust::{ClusterTrustBundle, PodCertificateRequest};
pub use workload::{Deployment, ReplicaSet};

use crate::auth::UserInfo;
use crate::registry::names;
use crate::resource::{GroupVersionKind, Subresource};
use crate::status::{ApiError, FieldError};

/// What a hook may know beyond the objects: who asks, and when.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who asks.
    pub user: Arc<UserInfo>,
    /// Now, as RFC 3339 with seconds: `2026-01-02T15:04:05Z`.
    pub now: String,
    /// Whether nothing will be stored.
    pub dry_run: bool,
    /// The client's name, as an owner of fields.
    pub client: Arc<str>,
    /// How the client writes.
    pub writing: Writing,
}

/// How a client writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// It says what is to be there: who owns what follows from what it changes.
    Update,
    /// By server-side apply, which has settled who owns what.
    Apply,
}

impl Context {
    /// A part of the control plane asks, now: `system:apiserver`.
    pub fn component(name: &str) -> Self {
        Self {
            user: Arc::new(UserInfo::component(name)),
            now: crate::registry::meta::now(),
            dry_run: false,
            client: "kube-apiserver".into(),
            writing: Writing::Update,
        }
    }
}

/// What a resource that exists only as a request asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Review {
    /// Whose token this is.
    Token,
    /// Who I am.
    SelfSubject,
    /// Whether I may do this.
    SelfSubjectAccess,
    /// Whether somebody may do this.
    SubjectAccess,
    /// What I may do in a namespace.
    SelfSubjectRules,
}

/// What the `proxy` of a resource leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxied {
    /// The kubelet of a node, or another port of it.
    Node,
    /// A pod's address.
    Pod,
    /// One of a service's endpoints.
    Service,
}

/// A column of the table that `kubectl get` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its heading, such as `Ready`.
    pub name: String,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: String,
    /// `name` for the first column, else empty.
    pub format: String,
    /// What it shows.
    pub description: String,
    /// 0 always, 1 for `-o wide` only.
    pub priority: i32,
}

/// The hooks of a kind. Every method has the behaviour of a kind without anything special.
///
/// Objects are JSON values that have passed the schema. A validation returns every mistake, not the first.
pub trait Strategy: Send + Sync + 'static {
    /// Whether a name suits the kind.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    fn check_name(&self, name: &str) -> Result<(), String> {
        names::dns_subdomain(name)
    }

    /// Defaults that depend on other fields.
    fn default(&self, _object: &mut Value) {}

    /// Whether the kind has the usual spec and status: the status is written through `status` alone, and
    /// `metadata.generation` counts the changes of the spec.
    fn has_status(&self) -> bool {
        false
    }

    /// Clears what a client may not set (status), sets `generation` and the like.
    fn prepare_for_create(&self, _ctx: &Context, object: &mut Value) {
        if self.has_status() {
            object["status"] = serde_json::json!({});
            common::first_generation(object);
        }
    }

    /// Carries over what this request may not change: the status in an update of the object, all but the status in an
    /// update of `status`; raises `metadata.generation` where the spec changed.
    fn prepare_for_update(
        &self,
        _ctx: &Context,
        subresource: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        if self.has_status() {
            common::split_update(subresource, object, old, true);
        }
    }

    /// Mistakes in a new object.
    fn validate(&self, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// Mistakes in a changed object.
    fn validate_update(
        &self,
        _subresource: Option<Subresource>,
        object: &Value,
        _old: &Value,
    ) -> Vec<FieldError> {
        self.validate(object)
    }

    /// Warnings for the client (`Warning` headers) about a new object, or one that replaces `old`.
    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// The warning that every answer of the resource carries, for one that has a successor.
    fn deprecation(&self) -> Option<&'static str> {
        None
    }

    /// The grace period of a deletion in seconds, for kinds that are deleted gracefully (pods); `None` for the rest.
    ///
    /// `requested` is `DeleteOptions.gracePeriodSeconds`.
    fn graceful_deletion_seconds(&self, _object: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }

    /// Whether something in the object's spec keeps it after its deletion, beside `metadata.finalizers`.
    fn holds(&self, _object: &Value) -> bool {
        false
    }

    /// Whether the first deletion only marks the object, so that a controller empties it before it goes.
    fn is_emptied_first(&self) -> bool {
        false
    }

    /// Whether a change only says "I am still here", so that a crash may undo it: it need not reach the disk by itself.
    fn is_renewal(&self, _object: &Value, _old: &Value) -> bool {
        false
    }

    /// Whether an update may create (`PUT` on a name that does not exist).
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// What it asks, for a resource that exists only as a request.
    fn review(&self) -> Option<Review> {
        None
    }

    /// What its `proxy` leads to, for a kind that has one.
    fn proxied(&self) -> Option<Proxied> {
        None
    }

    /// Whether a deletion is answered with the object as it was last, rather than with a Status.
    fn returns_deleted(&self) -> bool {
        false
    }

    /// Whether its objects hold cluster addresses and node ports.
    fn holds_addresses(&self) -> bool {
        false
    }

    /// Whether a finalizer may be a name without a domain, as in the groups that are not in kube-apiserver's own scheme.
    fn has_plain_finalizers(&self) -> bool {
        false
    }

    /// Whether an update must carry a resourceVersion.
    fn require_resource_version(&self) -> bool {
        false
    }

    /// The fields that `fieldSelector` may name beside `metadata.name` and `metadata.namespace`, with this object's values.
    fn selectable_fields(&self, _object: &Value) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Renames and moves the fields of an object for another version of its kind, where the two differ in more than
    /// `apiVersion`.
    fn convert(&self, _object: &mut Value, _to: &GroupVersionKind) {}

    /// The selectable field by which objects are so often asked for that the watch cache keeps an index.
    fn indexed_field(&self) -> Option<&'static str> {
        None
    }

    /// The names of the fields that [`Strategy::selectable_fields`] returns.
    fn selectable_field_names(&self) -> &'static [&'static str] {
        &[]
    }

    /// The columns of its table.
    fn columns(&self) -> Vec<Column> {
        crate::table::default_columns()
    }

    /// The cells of one row, one for each of [`Strategy::columns`]; `now` is for ages.
    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        crate::table::default_cells(object, now)
    }

    /// The `scale` subresource of an object as an `autoscaling/v1` Scale, for kinds that have one.
    fn scale(&self, _object: &Value) -> Option<Value> {
        None
    }

    /// Applies a Scale to the object.
    ///
    /// # Errors
    ///
    /// `Invalid` for a negative number of replicas.
    fn set_scale(&self, _object: &mut Value, _scale: &Value) -> Result<(), ApiError> {
        Ok(())
    }
}

/// A resource that exists only as a request.
pub struct Request(pub Review);

impl Strategy for Request {
    fn review(&self) -> Option<Review> {
        Some(self.0)
    }
}

/// A kind without anything special.
pub struct Plain;

impl Strategy for Plain {}
