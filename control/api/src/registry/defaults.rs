//! What every cluster has from the start: the system namespaces, and the service through which pods reach this server.

use serde_json::{Value, json};

use super::write::Target;
use super::{Registry, meta};
use crate::status::ApiError;
use crate::strategy::Context;

const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

impl Registry {
    /// Creates what is missing, and lets the service `default/kubernetes` point at `address` and `port`.
    ///
    /// # Errors
    ///
    /// If the store refuses.
    pub async fn ensure_defaults(
        &self,
        address: std::net::IpAddr,
        port: u16,
    ) -> Result<(), ApiError> {
        let ctx = Context {
            user: "system:apiserver".to_owned(),
            groups: vec!["system:masters".to_owned()],
            now: meta::now(),
            dry_run: false,
        };
        for name in NAMESPACES {
            let namespace =
                json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
            self.ensure("", "v1", "namespaces", "", namespace, &ctx)
                .await?;
        }
        let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "kubernetes", "namespace": "default", "labels": labels },
            "spec": {
                "type": "ClusterIP",
                "clusterIP": self.services.first_address().to_string(),
                "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": port }],
                "sessionAffinity": "None",
            },
        });
        self.ensure("", "v1", "services", "default", service, &ctx)
            .await?;
        if address.is_loopback() {
            // No pod could reach it there, and the API refuses such endpoints.
            tracing::warn!(%address, "the API server is advertised on loopback: default/kubernetes has no endpoints");
            return Ok(());
        }
        let endpoints = json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": { "name": "kubernetes", "namespace": "default",
                "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
            "subsets": [{
                "addresses": [{ "ip": address.to_string() }],
                "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
            }],
        });
        self.ensure("", "v1", "endpoints", "default", endpoints, &ctx)
            .await?;
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "kubernetes", "namespace": "default",
                "labels": { "kubernetes.io/service-name": "kubernetes" } },
            "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": [{ "addresses": [address.to_string()], "conditions": { "ready": true } }],
            "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
        });
        self.ensure(
            "discovery.k8s.io",
            "v1",
            "endpointslices",
            "default",
            slice,
            &ctx,
        )
        .await
    }

    /// Creates the object, or brings what differs of `wanted`'s fields in line. Unchanged objects are not written.
    async fn ensure(
        &self,
        group: &str,
        version: &str,
        plural: &str,
        namespace: &str,
        wanted: Value,
        ctx: &Context,
    ) -> Result<(), ApiError> {
        let Some((resource, Some(collection))) = self.find(group, version, plural) else {
            return Err(ApiError::no_such_path());
        };
        let name = meta::text(&wanted, "name").to_owned();
        let target = Target {
            resource,
            collection,
            namespace: namespace.to_owned(),
            name,
        };
        if target.collection.get(&target.key()).is_none() {
            return self.create(&target, wanted, ctx).await.map(drop);
        }
        let change = |old: &Value| Ok(crate::patch::merge_patch(old, &wanted));
        self.update(&target, None, &change, ctx).await.map(drop)
    }
}
