//! The kinds whose schemas, and whatever they refer to, ship with the program.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration;
use k8s_openapi::{Resource, api};
use schemars::{JsonSchema, SchemaGenerator};

/// A definition's name with the group, version and kind that it stands for.
pub type KindOf = Vec<(String, [&'static str; 3])>;

fn kind<T: JsonSchema + Resource>(generator: &mut SchemaGenerator, kinds: &mut KindOf) {
    generator.subschema_for::<T>();
    kinds.push((
        T::schema_name().into_owned(),
        [T::GROUP, T::VERSION, T::KIND],
    ));
}

macro_rules! kinds {
    ($generator:ident, $kinds:ident, $($module:path { $($kind:ident),* $(,)? })*) => {$({
        use $module as module;
        $(kind::<module::$kind>($generator, &mut $kinds);)*
    })*};
}

/// Lets `generator` define every kind; says which definitions are kinds.
pub fn define(generator: &mut SchemaGenerator) -> KindOf {
    let mut kinds = KindOf::new();
    kinds! { generator, kinds,
        api::core::v1 {
            Binding, ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolume,
            PersistentVolumeClaim, Pod, PodTemplate, ReplicationController, ResourceQuota, Secret, Service,
            ServiceAccount,
        }
        api::admissionregistration::v1 {
            MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingWebhookConfiguration,
            ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration,
        }
        api::apps::v1 { ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet }
        api::authentication::v1 { SelfSubjectReview, TokenRequest, TokenReview }
        api::authorization::v1 {
            LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
        }
        api::autoscaling::v1 { HorizontalPodAutoscaler, Scale }
        api::autoscaling::v2 { HorizontalPodAutoscaler }
        api::batch::v1 { CronJob, Job }
        api::certificates::v1 { CertificateSigningRequest, ClusterTrustBundle, PodCertificateRequest }
        api::coordination::v1 { Lease }
        api::discovery::v1 { EndpointSlice }
        api::events::v1 { Event }
        api::flowcontrol::v1 { FlowSchema, PriorityLevelConfiguration }
        api::networking::v1 { IPAddress, Ingress, IngressClass, NetworkPolicy, ServiceCIDR }
        api::node::v1 { RuntimeClass }
        api::policy::v1 { Eviction, PodDisruptionBudget }
        api::rbac::v1 { ClusterRole, ClusterRoleBinding, Role, RoleBinding }
        api::resource::v1 { DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice }
        api::scheduling::v1 { PriorityClass }
        api::storage::v1 {
            CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass,
        }
        apiextensions::v1 { CustomResourceDefinition }
        apiregistration::v1 { APIService }
        meta { APIGroup, APIGroupList, APIResourceList, APIVersions, Status }
    }
    generator.subschema_for::<meta::DeleteOptions>();
    generator.subschema_for::<meta::Patch>();
    generator.subschema_for::<meta::ListMeta>();
    kinds
}
