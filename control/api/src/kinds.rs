//! The built-in resources: adding a kind is one row here, and a strategy if something about it is special.

use std::sync::Arc;

use crate::registry::ownership::Reset;
use crate::resource::Subresource::{
    Approval, Attach, Binding, EphemeralContainers, Eviction, Exec, Finalize, Log, PortForward,
    Proxy, Resize, Scale, Status, Token,
};
use crate::resource::{GroupVersionKind, Resource, Scope, Subresource, Verb};
use crate::schema::Schemas;
use crate::strategy::{self as s, Review, Strategy};

/// Every verb of a stored resource, in discovery's order.
const ALL: &[Verb] = &[
    Verb::Create,
    Verb::Delete,
    Verb::DeleteCollection,
    Verb::Get,
    Verb::List,
    Verb::Patch,
    Verb::Update,
    Verb::Watch,
];

/// What exists only as a request: posted, answered, not stored.
const REQUEST: &[Verb] = &[Verb::Create];

const NAMESPACED: Scope = Scope::Namespaced;
const CLUSTER: Scope = Scope::Cluster;

const POD: &[Subresource] = &[
    Attach,
    Binding,
    EphemeralContainers,
    Eviction,
    Exec,
    Log,
    PortForward,
    Proxy,
    Resize,
    Status,
];

/// One kind in one version.
struct Row {
    /// `group/version`, or `v1`.
    api: &'static str,
    kind: &'static str,
    /// The plural name, short names, and after `|` categories.
    names: &'static str,
    scope: Scope,
    verbs: &'static [Verb],
    subresources: &'static [Subresource],
    /// Where objects are stored, if not under the plural name.
    prefix: Option<&'static str>,
    /// The `apiVersion` in which objects are stored, if not this one.
    stored: Option<&'static str>,
    strategy: Arc<dyn Strategy>,
}

fn row(
    api: &'static str,
    kind: &'static str,
    names: &'static str,
    scope: Scope,
    subresources: &'static [Subresource],
    strategy: impl Strategy,
) -> Row {
    Row {
        api,
        kind,
        names,
        scope,
        verbs: ALL,
        subresources,
        prefix: None,
        stored: None,
        strategy: Arc::new(strategy),
    }
}

fn asks(
    api: &'static str,
    kind: &'static str,
    names: &'static str,
    scope: Scope,
    review: Review,
) -> Row {
    Row {
        verbs: REQUEST,
        ..row(api, kind, names, scope, &[], s::Request(review))
    }
}

impl Row {
    /// Objects are stored under another name than the plural: kube-apiserver's, from before the plural was what it is.
    fn at(self, prefix: &'static str) -> Self {
        let prefix = Some(prefix);
        Self { prefix, ..self }
    }

    /// Objects are stored in another version.
    fn stored_in(self, api: &'static str) -> Self {
        let stored = Some(api);
        Self { stored, ..self }
    }
}

/// The table. One line a kind, in the order of kube-apiserver's groups.
#[rustfmt::skip] // So that the eye compares columns.
fn rows() -> Vec<Row> {
    vec![
        //   API                               kind                               names                               scope       subresources         strategy
        row("v1",                              "ConfigMap",                       "configmaps cm",                    NAMESPACED, &[],                 s::ConfigMap),
        row("v1",                              "Endpoints",                       "endpoints ep",                     NAMESPACED, &[],                 s::Endpoints).at("services/endpoints"),
        row("v1",                              "Event",                           "events ev",                        NAMESPACED, &[],                 s::Event::core()),
        row("v1",                              "LimitRange",                      "limitranges limits",               NAMESPACED, &[],                 s::LimitRange),
        row("v1",                              "Namespace",                       "namespaces ns",                    CLUSTER,    &[Finalize, Status], s::Namespace),
        row("v1",                              "Node",                            "nodes no",                         CLUSTER,    &[Proxy, Status],    s::Node).at("minions"),
        row("v1",                              "PersistentVolume",                "persistentvolumes pv",             CLUSTER,    &[Status],           s::PersistentVolume),
        row("v1",                              "PersistentVolumeClaim",           "persistentvolumeclaims pvc",       NAMESPACED, &[Status],           s::PersistentVolumeClaim),
        row("v1",                              "Pod",                             "pods po|all",                      NAMESPACED, POD,                 s::Pod),
        row("v1",                              "PodTemplate",                     "podtemplates",                     NAMESPACED, &[],                 s::PodTemplate),
        row("v1",                              "ReplicationController",           "replicationcontrollers rc|all",    NAMESPACED, &[Scale, Status],    s::ReplicationController).at("controllers"),
        row("v1",                              "ResourceQuota",                   "resourcequotas quota",             NAMESPACED, &[Status],           s::ResourceQuota),
        row("v1",                              "Secret",                          "secrets",                          NAMESPACED, &[],                 s::Secret),
        row("v1",                              "ServiceAccount",                  "serviceaccounts sa",               NAMESPACED, &[Token],            s::ServiceAccount),
        row("v1",                              "Service",                         "services svc|all",                 NAMESPACED, &[Proxy, Status],    s::Service).at("services/specs"),
        row("apps/v1",                         "ControllerRevision",              "controllerrevisions",              NAMESPACED, &[],                 s::ControllerRevision),
        row("apps/v1",                         "DaemonSet",                       "daemonsets ds|all",                NAMESPACED, &[Status],           s::DaemonSet),
        row("apps/v1",                         "Deployment",                      "deployments deploy|all",           NAMESPACED, &[Scale, Status],    s::Deployment),
        row("apps/v1",                         "ReplicaSet",                      "replicasets rs|all",               NAMESPACED, &[Scale, Status],    s::ReplicaSet),
        row("apps/v1",                         "StatefulSet",                     "statefulsets sts|all",             NAMESPACED, &[Scale, Status],    s::StatefulSet),
        row("events.k8s.io/v1",                "Event",                           "events ev",                        NAMESPACED, &[],                 s::Event::new()).stored_in("v1"),
        asks("authentication.k8s.io/v1",       "SelfSubjectReview",               "selfsubjectreviews",               CLUSTER,                         Review::SelfSubject),
        asks("authentication.k8s.io/v1",       "TokenReview",                     "tokenreviews",                     CLUSTER,                         Review::Token),
        asks("authorization.k8s.io/v1",        "LocalSubjectAccessReview",        "localsubjectaccessreviews",        NAMESPACED,                      Review::SubjectAccess),
        asks("authorization.k8s.io/v1",        "SelfSubjectAccessReview",         "selfsubjectaccessreviews",         CLUSTER,                         Review::SelfSubjectAccess),
        asks("authorization.k8s.io/v1",        "SelfSubjectRulesReview",          "selfsubjectrulesreviews",          CLUSTER,                         Review::SelfSubjectRules),
        asks("authorization.k8s.io/v1",        "SubjectAccessReview",             "subjectaccessreviews",             CLUSTER,                         Review::SubjectAccess),
        row("autoscaling/v2",                  "HorizontalPodAutoscaler",         "horizontalpodautoscalers hpa|all", NAMESPACED, &[Status],           s::HorizontalPodAutoscaler::v2()),
        row("autoscaling/v1",                  "HorizontalPodAutoscaler",         "horizontalpodautoscalers hpa|all", NAMESPACED, &[Status],           s::HorizontalPodAutoscaler::v1()).stored_in("autoscaling/v2"),
        row("batch/v1",                        "CronJob",                         "cronjobs cj|all",                  NAMESPACED, &[Status],           s::CronJob),
        row("batch/v1",                        "Job",                             "jobs|all",                         NAMESPACED, &[Status],           s::Job),
        row("certificates.k8s.io/v1",          "CertificateSigningRequest",       "certificatesigningrequests csr",   CLUSTER,    &[Approval, Status], s::CertificateSigningRequest),
        row("certificates.k8s.io/v1",          "ClusterTrustBundle",              "clustertrustbundles",              CLUSTER,    &[],                 s::ClusterTrustBundle),
        row("certificates.k8s.io/v1",          "PodCertificateRequest",           "podcertificaterequests",           NAMESPACED, &[Status],           s::PodCertificateRequest),
        row("networking.k8s.io/v1",            "Ingress",                         "ingresses ing",                    NAMESPACED, &[Status],           s::Ingress).at("ingress"),
        row("networking.k8s.io/v1",            "IngressClass",                    "ingressclasses",                   CLUSTER,    &[],                 s::IngressClass),
        row("networking.k8s.io/v1",            "IPAddress",                       "ipaddresses ip",                   CLUSTER,    &[],                 s::IpAddress),
        row("networking.k8s.io/v1",            "NetworkPolicy",                   "networkpolicies netpol",           NAMESPACED, &[],                 s::NetworkPolicy),
        row("networking.k8s.io/v1",            "ServiceCIDR",                     "servicecidrs",                     CLUSTER,    &[Status],           s::ServiceCidr),
        row("policy/v1",                       "PodDisruptionBudget",             "poddisruptionbudgets pdb",         NAMESPACED, &[Status],           s::PodDisruptionBudget),
        row("rbac.authorization.k8s.io/v1",    "ClusterRole",                     "clusterroles",                     CLUSTER,    &[],                 s::ClusterRole),
        row("rbac.authorization.k8s.io/v1",    "ClusterRoleBinding",              "clusterrolebindings",              CLUSTER,    &[],                 s::ClusterRoleBinding),
        row("rbac.authorization.k8s.io/v1",    "Role",                            "roles",                            NAMESPACED, &[],                 s::Role),
        row("rbac.authorization.k8s.io/v1",    "RoleBinding",                     "rolebindings",                     NAMESPACED, &[],                 s::RoleBinding),
        row("storage.k8s.io/v1",               "CSIDriver",                       "csidrivers",                       CLUSTER,    &[],                 s::CsiDriver),
        row("storage.k8s.io/v1",               "CSINode",                         "csinodes",                         CLUSTER,    &[],                 s::CsiNode),
        row("storage.k8s.io/v1",               "CSIStorageCapacity",              "csistoragecapacities",             NAMESPACED, &[],                 s::CsiStorageCapacity),
        row("storage.k8s.io/v1",               "StorageClass",                    "storageclasses sc",                CLUSTER,    &[],                 s::StorageClass),
        row("storage.k8s.io/v1",               "VolumeAttachment",                "volumeattachments",                CLUSTER,    &[Status],           s::VolumeAttachment),
        row("storage.k8s.io/v1",               "VolumeAttributesClass",           "volumeattributesclasses vac",      CLUSTER,    &[],                 s::VolumeAttributesClass),
        row("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicy",         "mutatingadmissionpolicies",        CLUSTER,    &[],                 s::AdmissionPolicy::Mutating),
        row("admissionregistration.k8s.io/v1", "MutatingAdmissionPolicyBinding",  "mutatingadmissionpolicybindings",  CLUSTER,    &[],                 s::AdmissionPolicyBinding::Mutating),
        row("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration",    "mutatingwebhookconfigurations",    CLUSTER,    &[],                 s::WebhookConfiguration),
        row("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy",       "validatingadmissionpolicies",      CLUSTER,    &[Status],           s::AdmissionPolicy::Validating),
        row("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicyBinding","validatingadmissionpolicybindings",CLUSTER,    &[],                 s::AdmissionPolicyBinding::Validating),
        row("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration",  "validatingwebhookconfigurations",  CLUSTER,    &[],                 s::WebhookConfiguration),
        row("apiextensions.k8s.io/v1",          "CustomResourceDefinition",        "customresourcedefinitions crd crds|api-extensions", CLUSTER, &[Status], crate::crd::CustomResourceDefinition).at("apiextensions.k8s.io/customresourcedefinitions"),
        row("scheduling.k8s.io/v1",            "PriorityClass",                   "priorityclasses pc",               CLUSTER,    &[],                 s::PriorityClass),
        row("coordination.k8s.io/v1",          "Lease",                           "leases",                           NAMESPACED, &[],                 s::Lease),
        row("node.k8s.io/v1",                  "RuntimeClass",                    "runtimeclasses",                   CLUSTER,    &[],                 s::RuntimeClass),
        row("discovery.k8s.io/v1",             "EndpointSlice",                   "endpointslices",                   NAMESPACED, &[],                 s::EndpointSlice),
        row("flowcontrol.apiserver.k8s.io/v1", "FlowSchema",                      "flowschemas",                      CLUSTER,    &[Status],           s::FlowSchema),
        row("flowcontrol.apiserver.k8s.io/v1", "PriorityLevelConfiguration",      "prioritylevelconfigurations",      CLUSTER,    &[Status],           s::PriorityLevelConfiguration),
        row("resource.k8s.io/v1",              "DeviceClass",                     "deviceclasses",                    CLUSTER,    &[],                 s::DeviceClass),
        row("resource.k8s.io/v1",              "ResourceClaim",                   "resourceclaims",                   NAMESPACED, &[Status],           s::ResourceClaim),
        row("resource.k8s.io/v1",              "ResourceClaimTemplate",           "resourceclaimtemplates",           NAMESPACED, &[],                 s::ResourceClaimTemplate),
        row("resource.k8s.io/v1",              "ResourceSlice",                   "resourceslices",                   CLUSTER,    &[],                 s::ResourceSlice),
    ]
}

/// The resources, in the order of discovery, and the schemas of all that is sent to them.
pub struct Kinds {
    /// The resources.
    pub resources: Vec<Arc<Resource>>,
    /// The schemas.
    pub schemas: Arc<Schemas>,
}

/// What the program serves without a custom resource.
pub fn builtin() -> Kinds {
    let schemas = Schemas::builtin();
    let resources = rows()
        .into_iter()
        .map(|row| Arc::new(resource(row, &schemas)))
        .collect();
    Kinds { resources, schemas }
}

fn resource(row: Row, schemas: &Schemas) -> Resource {
    let (names, categories) = row.names.split_once('|').unwrap_or((row.names, ""));
    let mut names = names.split_whitespace().map(str::to_owned);
    let plural = names.next().expect("a row names the plural first");
    let gvk = gvk(row.api, row.kind);
    let schema = schemas
        .find(&gvk)
        .expect("build.rs makes a schema for each row")
        .clone();
    Resource {
        storage_prefix: row.prefix.unwrap_or(&plural).to_owned(),
        storage_version: row.stored.map(|api| self::gvk(api, row.kind)),
        gvk,
        plural,
        singular: row.kind.to_lowercase(),
        short_names: names.collect(),
        categories: categories.split_whitespace().map(str::to_owned).collect(),
        scope: row.scope,
        verbs: row.verbs.to_vec(),
        subresources: row.subresources.to_vec(),
        reset: Reset::of(&schema, row.subresources),
        schema,
        definition: None,
        strategy: row.strategy,
    }
}

/// A group, version and kind from an `apiVersion` and a kind.
pub fn gvk(api_version: &str, kind: &str) -> GroupVersionKind {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    GroupVersionKind {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_has_a_schema_and_as_many_cells_as_columns() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        for resource in builtin().resources {
            let columns = resource.strategy.columns();
            for object in [
                serde_json::json!({}),
                serde_json::json!({ "metadata": {}, "spec": {}, "status": {} }),
            ] {
                let cells = resource.strategy.cells(&object, now);
                assert_eq!(columns.len(), cells.len(), "{:?}", resource.gvk);
            }
            let mut object = serde_json::json!({ "metadata": { "name": "x" } });
            resource.schema.apply_defaults(&mut object);
            resource.strategy.default(&mut object);
            let ctx = crate::strategy::Context::component("u");
            resource.strategy.prepare_for_create(&ctx, &mut object);
            resource.strategy.validate(&object);
            let stored = object.clone();
            resource
                .strategy
                .prepare_for_update(&ctx, None, &mut object, &stored);
            assert_eq!(
                object, stored,
                "an update without a change changes {:?}",
                resource.gvk
            );
            for subresource in &resource.subresources {
                resource.strategy.prepare_for_update(
                    &ctx,
                    Some(*subresource),
                    &mut object,
                    &stored,
                );
                assert_eq!(
                    object, stored,
                    "{subresource:?} without a change changes {:?}",
                    resource.gvk
                );
            }
            let template = resource.gvk.group == "apps";
            assert!(
                template || !object.to_string().contains("null"),
                "{:?} has a null: {object}",
                resource.gvk
            );
            let fields = resource.strategy.selectable_fields(&serde_json::json!({}));
            let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
            assert_eq!(
                names,
                resource.strategy.selectable_field_names(),
                "{:?}",
                resource.gvk
            );
        }
    }
}
