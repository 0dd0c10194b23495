//! What every cluster has at all times: the system namespaces, and the service through which pods reach this server.
//!
//! kube-apiserver looks every ten seconds whether they are there (`controlplane/controller/kubernetesservice`) and every minute for
//! the namespaces (`systemnamespaces`). Here their own changes tell.

use std::net::IpAddr;
use std::sync::Weak;
use std::time::Duration;

use futures::future::select_all;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::collection::Cursor;
use super::delete::DeleteRequest;
use super::lanes::View;
use super::write::{Target, key};
use super::{Registry, meta};
use crate::status::ApiError;
use crate::strategy::Context;

const NAMESPACES: [&str; 4] = ["default", "kube-node-lease", "kube-public", "kube-system"];

/// The API's own service, as namespace and name.
pub(super) const KUBERNETES: (&str, &str) = ("default", "kubernetes");

/// The fields of the service's spec that the server fills in; all others are as below or not there.
const FILLED_IN: [&str; 4] = [
    "clusterIPs",
    "ipFamilies",
    "ipFamilyPolicy",
    "internalTrafficPolicy",
];

/// The pause after a repair, so that somebody who keeps undoing it costs little.
const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause after a repair that failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// An object that has to be there.
pub(super) struct Wanted {
    pub target: Target,
    pub object: Value,
}

impl Registry {
    /// Creates what is missing, and lets the service `default/kubernetes` point at `address` and `port`.
    ///
    /// # Errors
    ///
    /// If the store refuses.
    pub async fn ensure_defaults(&self, address: IpAddr, port: u16) -> Result<(), ApiError> {
        if address.is_loopback() {
            // No pod could reach it there, and the API refuses such endpoints.
            tracing::warn!(%address, "the API server is advertised on loopback: default/kubernetes has no endpoints");
        }
        for wanted in self.defaults(address, port)? {
            self.ensure(&wanted).await?;
        }
        Ok(())
    }

    fn defaults(&self, address: IpAddr, port: u16) -> Result<Vec<Wanted>, ApiError> {
        let (namespace, name) = KUBERNETES;
        let mut all = Vec::new();
        for name in NAMESPACES {
            let namespace =
                json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
            all.push(self.wanted("", "v1", "namespaces", namespace)?);
        }
        let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": name, "namespace": namespace, "labels": labels },
            "spec": {
                "type": "ClusterIP",
                "clusterIP": self.services.first_address().to_string(),
                "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": port }],
                "sessionAffinity": "None",
            },
        });
        all.push(self.wanted("", "v1", "services", service)?);
        if address.is_loopback() {
            return Ok(all);
        }
        let endpoints = json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": { "name": name, "namespace": namespace,
                "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
            "subsets": [{
                "addresses": [{ "ip": address.to_string() }],
                "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
            }],
        });
        all.push(self.wanted("", "v1", "endpoints", endpoints)?);
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": name, "namespace": namespace,
                "labels": { "kubernetes.io/service-name": name } },
            "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": [{ "addresses": [address.to_string()], "conditions": { "ready": true } }],
            "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
        });
        all.push(self.wanted("discovery.k8s.io", "v1", "endpointslices", slice)?);
        Ok(all)
    }

    pub(super) fn wanted(
        &self,
        group: &str,
        version: &str,
        plural: &str,
        object: Value,
    ) -> Result<Wanted, ApiError> {
        let Some((resource, Some(collection))) = self.find(group, version, plural) else {
            return Err(ApiError::no_such_path());
        };
        let target = Target {
            resource,
            collection,
            namespace: meta::text(&object, "namespace").to_owned(),
            name: meta::text(&object, "name").to_owned(),
        };
        Ok(Wanted { target, object })
    }

    /// Creates the object, or brings what differs in line; one that cannot be brought in line, because a field may not change, is
    /// replaced. Unchanged objects are not written.
    async fn ensure(&self, wanted: &Wanted) -> Result<(), ApiError> {
        let Wanted { target, object } = wanted;
        let ctx = Context::component("system:apiserver");
        if target.collection.get(&target.key()).is_some() {
            let change = |old: &Value| Ok(in_line(old, object));
            match self.update(target, None, &change, &ctx).await {
                Err(error) if error.code == 422 => {
                    let reason = error.message;
                    tracing::warn!(
                        object = target.key(),
                        plural = target.resource.plural,
                        reason,
                        "replaced"
                    );
                    self.delete(target, &DeleteRequest::default(), &ctx).await?;
                }
                done => return done.map(drop),
            }
        }
        self.create(target, object.clone(), &ctx).await.map(drop)
    }
}

/// `old`, with all that is wanted, and nothing in its spec that is neither wanted nor filled in by the server.
fn in_line(old: &Value, wanted: &Value) -> Value {
    let mut patch = wanted.clone();
    if let (Some(spec), Some(has)) = (patch["spec"].as_object_mut(), old["spec"].as_object()) {
        let surplus: Vec<_> = (has.keys())
            .filter(|field| !spec.contains_key(*field) && !FILLED_IN.contains(&field.as_str()))
            .cloned()
            .collect();
        spec.extend(surplus.into_iter().map(|field| (field, Value::Null)));
    }
    crate::patch::merge_patch(old, &patch)
}

/// Brings back what is deleted or damaged of the defaults, until `stop` or the end of the registry.
pub async fn keep(registry: Weak<Registry>, address: IpAddr, port: u16, stop: CancellationToken) {
    let follow = |wanted: &Wanted| -> Cursor {
        let Target {
            namespace, name, ..
        } = &wanted.target;
        let view = View::Object(key(namespace, name).into());
        wanted.target.collection.snapshot_and_follow(&view, "").1
    };
    let all = match registry
        .upgrade()
        .map(|registry| registry.defaults(address, port))
    {
        Some(Ok(all)) => all,
        Some(Err(error)) => {
            tracing::error!(
                error = error.message,
                "the cluster's own objects are unknown kinds"
            );
            return;
        }
        None => return,
    };
    let mut cursors: Vec<_> = all.iter().map(follow).collect();
    let mut pause = PAUSE;
    loop {
        let repaired = {
            let Some(registry) = registry.upgrade() else {
                return;
            };
            repair(&registry, &all).await
        };
        let wait = if repaired {
            pause = PAUSE;
            PAUSE
        } else {
            pause = (2 * pause).min(LONGEST_PAUSE);
            pause
        };
        // What changes during the pause waits at the cursors.
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        if !repaired {
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            _ = select_all(cursors.iter_mut().map(|cursor| Box::pin(cursor.changed()))) => {}
        }
        for (cursor, wanted) in cursors.iter_mut().zip(&all) {
            // All is looked at, so that what changed does not matter; only that the cursor is behind it.
            while match wanted.target.collection.read(cursor, usize::MAX) {
                Ok(changes) => !changes.is_empty(),
                Err(_too_old) => {
                    *cursor = follow(wanted);
                    false
                }
            } {}
        }
    }
}

async fn repair(registry: &Registry, all: &[Wanted]) -> bool {
    let mut repaired = true;
    for wanted in all {
        if let Err(error) = registry.ensure(wanted).await {
            let (object, plural) = (wanted.target.key(), &wanted.target.resource.plural);
            let error = error.message;
            tracing::warn!(
                object,
                plural,
                error,
                "an object of the cluster itself is not as it should be; it is tried again"
            );
            repaired = false;
        }
    }
    repaired
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_wanted_leaves_the_spec_and_what_is_filled_in_stays() {
        let wanted = json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "type": "ClusterIP", "ports": [1] } });
        let old = json!({
            "metadata": { "uid": "u", "labels": { "c": "d" } },
            "spec": { "type": "NodePort", "ports": [1, 2], "selector": { "e": "f" }, "clusterIPs": ["10.0.0.1"] },
        });
        let expected = json!({
            "metadata": { "uid": "u", "labels": { "a": "b", "c": "d" } },
            "spec": { "type": "ClusterIP", "ports": [1], "clusterIPs": ["10.0.0.1"] },
        });
        assert_eq!(in_line(&old, &wanted), expected);
        // An object without a spec stays one.
        let slice = json!({ "addressType": "IPv4" });
        assert_eq!(in_line(&slice, &slice), slice);
    }
}
