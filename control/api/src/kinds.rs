//! The built-in resources: adding a kind is one row here, and a strategy if something about it is special.

use std::sync::Arc;

use crate::resource::Subresource::{
    Approval, Attach, Binding, EphemeralContainers, Eviction, Exec, Finalize, Log, PortForward,
    Proxy, Resize, Scale, Status, Token,
};
use crate::resource::{GroupVersionKind, Resource, Scope, Subresource, Verb};
use crate::strategy::{self, Review, Strategy};

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

struct Row {
    /// `group/version`, or `v1`.
    api: &'static str,
    kind: &'static str,
    plural: &'static str,
    /// Short names, then after `|` categories.
    names: &'static str,
    scope: Scope,
    verbs: &'static [Verb],
    subresources: &'static [Subresource],
    /// Where objects are stored, if not under the plural name.
    prefix: &'static str,
    strategy: Arc<dyn Strategy>,
}

fn row(
    api: &'static str,
    kind: &'static str,
    plural: &'static str,
    names: &'static str,
    scope: Scope,
    subresources: &'static [Subresource],
    strategy: impl Strategy,
) -> Row {
    let strategy = Arc::new(strategy);
    Row {
        api,
        kind,
        plural,
        names,
        scope,
        verbs: ALL,
        subresources,
        prefix: plural,
        strategy,
    }
}

fn request(
    api: &'static str,
    kind: &'static str,
    plural: &'static str,
    scope: Scope,
    review: Review,
) -> Row {
    Row {
        verbs: REQUEST,
        ..row(api, kind, plural, "", scope, &[], strategy::Request(review))
    }
}

fn rows() -> Vec<Row> {
    let pod_subresources = &[
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
    vec![
        row(
            "v1",
            "ConfigMap",
            "configmaps",
            "cm",
            NAMESPACED,
            &[],
            strategy::ConfigMap,
        ),
        Row {
            prefix: "services/endpoints",
            ..row(
                "v1",
                "Endpoints",
                "endpoints",
                "ep",
                NAMESPACED,
                &[],
                strategy::Endpoints,
            )
        },
        row(
            "v1",
            "Event",
            "events",
            "ev",
            NAMESPACED,
            &[],
            strategy::Event::core(),
        ),
        row(
            "v1",
            "Namespace",
            "namespaces",
            "ns",
            CLUSTER,
            &[Finalize, Status],
            strategy::Namespace,
        ),
        Row {
            prefix: "minions",
            ..row(
                "v1",
                "Node",
                "nodes",
                "no",
                CLUSTER,
                &[Proxy, Status],
                strategy::Node,
            )
        },
        row(
            "v1",
            "Pod",
            "pods",
            "po|all",
            NAMESPACED,
            pod_subresources,
            strategy::Pod,
        ),
        row(
            "v1",
            "Secret",
            "secrets",
            "",
            NAMESPACED,
            &[],
            strategy::Secret,
        ),
        row(
            "v1",
            "ServiceAccount",
            "serviceaccounts",
            "sa",
            NAMESPACED,
            &[Token],
            strategy::ServiceAccount,
        ),
        Row {
            prefix: "services/specs",
            ..row(
                "v1",
                "Service",
                "services",
                "svc|all",
                NAMESPACED,
                &[Proxy, Status],
                strategy::Service,
            )
        },
        row(
            "apps/v1",
            "Deployment",
            "deployments",
            "deploy|all",
            NAMESPACED,
            &[Scale, Status],
            strategy::Deployment,
        ),
        row(
            "apps/v1",
            "ReplicaSet",
            "replicasets",
            "rs|all",
            NAMESPACED,
            &[Scale, Status],
            strategy::ReplicaSet,
        ),
        request(
            "authentication.k8s.io/v1",
            "SelfSubjectReview",
            "selfsubjectreviews",
            CLUSTER,
            Review::SelfSubject,
        ),
        request(
            "authentication.k8s.io/v1",
            "TokenReview",
            "tokenreviews",
            CLUSTER,
            Review::Token,
        ),
        request(
            "authorization.k8s.io/v1",
            "LocalSubjectAccessReview",
            "localsubjectaccessreviews",
            NAMESPACED,
            Review::SubjectAccess,
        ),
        request(
            "authorization.k8s.io/v1",
            "SelfSubjectAccessReview",
            "selfsubjectaccessreviews",
            CLUSTER,
            Review::SelfSubjectAccess,
        ),
        request(
            "authorization.k8s.io/v1",
            "SubjectAccessReview",
            "subjectaccessreviews",
            CLUSTER,
            Review::SubjectAccess,
        ),
        row(
            "certificates.k8s.io/v1",
            "CertificateSigningRequest",
            "certificatesigningrequests",
            "csr",
            CLUSTER,
            &[Approval, Status],
            strategy::CertificateSigningRequest,
        ),
        row(
            "coordination.k8s.io/v1",
            "Lease",
            "leases",
            "",
            NAMESPACED,
            &[],
            strategy::Lease,
        ),
        row(
            "discovery.k8s.io/v1",
            "EndpointSlice",
            "endpointslices",
            "",
            NAMESPACED,
            &[],
            strategy::EndpointSlice,
        ),
        row(
            "events.k8s.io/v1",
            "Event",
            "events",
            "ev",
            NAMESPACED,
            &[],
            strategy::Event::new(),
        ),
        row(
            "networking.k8s.io/v1",
            "IPAddress",
            "ipaddresses",
            "ip",
            CLUSTER,
            &[],
            strategy::IpAddress,
        ),
    ]
}

/// The built-in resources, by group.
pub fn builtin() -> Vec<Arc<Resource>> {
    rows()
        .into_iter()
        .map(|row| Arc::new(resource(row)))
        .collect()
}

fn resource(row: Row) -> Resource {
    let (short_names, categories) = row.names.split_once('|').unwrap_or((row.names, ""));
    let words = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let gvk = gvk(row.api, row.kind);
    let storage_version = (row.api == "events.k8s.io/v1").then(|| self::gvk("v1", "Event"));
    Resource {
        gvk,
        plural: row.plural.to_owned(),
        singular: row.kind.to_lowercase(),
        short_names: words(short_names),
        categories: words(categories),
        scope: row.scope,
        verbs: row.verbs.to_vec(),
        subresources: row.subresources.to_vec(),
        storage_prefix: row.prefix.to_owned(),
        storage_version,
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

/// Converts an object to another version of its kind (`to`), where the two differ in more than `apiVersion`.
pub fn convert(object: &mut serde_json::Value, to: &GroupVersionKind) {
    if to.kind == "Event" {
        strategy::convert_event(object, to);
    }
    object["apiVersion"] = to.api_version().into();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Schemas;

    #[test]
    fn every_resource_has_a_schema_and_as_many_cells_as_columns() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        for resource in builtin() {
            assert!(
                Schemas::builtin().find(&resource.gvk).is_some(),
                "{:?} has no schema",
                resource.gvk
            );
            let columns = resource.strategy.columns();
            for object in [
                serde_json::json!({}),
                serde_json::json!({ "metadata": {}, "spec": {}, "status": {} }),
            ] {
                let cells = resource.strategy.cells(&object, now);
                assert_eq!(columns.len(), cells.len(), "{:?}", resource.gvk);
            }
            let mut object = serde_json::json!({ "metadata": { "name": "x" } });
            Schemas::builtin().apply_defaults(&resource.gvk, &mut object);
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
