//! The caches that the controllers share.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Cache, Cached, IndexKey, follow};
use crate::model::{
    self, ConfigMap, Deployment, Lease, Namespace, Node, Pod, ReplicaSet, Service, ServiceAccount,
};
use crate::supervise::{Health, supervise};

/// One cache per kind.
#[derive(Clone, Default)]
pub struct Caches {
    /// Pods.
    pub pods: Arc<Cache<Pod>>,
    /// Replica sets.
    pub replica_sets: Arc<Cache<ReplicaSet>>,
    /// Deployments.
    pub deployments: Arc<Cache<Deployment>>,
    /// Services.
    pub services: Arc<Cache<Service>>,
    /// Endpoint slices.
    pub endpoint_slices: Arc<Cache<EndpointSlice>>,
    /// Endpoints.
    pub endpoints: Arc<Cache<Endpoints>>,
    /// Nodes.
    pub nodes: Arc<Cache<Node>>,
    /// The nodes' leases.
    pub leases: Arc<Cache<Lease>>,
    /// Namespaces.
    pub namespaces: Arc<Cache<Namespace>>,
    /// The service accounts called `default`.
    pub service_accounts: Arc<Cache<ServiceAccount>>,
    /// The configuration maps called `kube-root-ca.crt`.
    pub root_cas: Arc<Cache<ConfigMap>>,
}

impl Caches {
    /// Starts to follow every kind.
    pub fn follow(
        &self,
        client: &Client,
        tasks: &mut JoinSet<()>,
        health: &Health,
        stop: &CancellationToken,
    ) {
        let mut start = Starter {
            tasks,
            health,
            stop,
        };
        start.follow(&self.pods, Api::all(client.clone()), None);
        start.follow(&self.replica_sets, Api::all(client.clone()), None);
        start.follow(&self.deployments, Api::all(client.clone()), None);
        start.follow(&self.services, Api::all(client.clone()), None);
        start.follow(&self.endpoint_slices, Api::all(client.clone()), None);
        start.follow(&self.endpoints, Api::all(client.clone()), None);
        start.follow(&self.nodes, Api::all(client.clone()), None);
        start.follow(
            &self.leases,
            Api::namespaced(client.clone(), "kube-node-lease"),
            None,
        );
        start.follow(&self.namespaces, Api::all(client.clone()), None);
        start.follow(
            &self.service_accounts,
            Api::all(client.clone()),
            Some("metadata.name=default"),
        );
        start.follow(
            &self.root_cas,
            Api::all(client.clone()),
            Some("metadata.name=kube-root-ca.crt"),
        );
    }

    /// Waits until the first list of every kind is in.
    pub async fn ready(&self) {
        self.pods.ready().await;
        self.replica_sets.ready().await;
        self.deployments.ready().await;
        self.services.ready().await;
        self.endpoint_slices.ready().await;
        self.endpoints.ready().await;
        self.nodes.ready().await;
        self.leases.ready().await;
        self.namespaces.ready().await;
        self.service_accounts.ready().await;
        self.root_cas.ready().await;
    }
}

struct Starter<'a> {
    tasks: &'a mut JoinSet<()>,
    health: &'a Health,
    stop: &'a CancellationToken,
}

impl Starter<'_> {
    fn follow<K: Cached>(
        &mut self,
        cache: &Arc<Cache<K>>,
        api: Api<K>,
        fields: Option<&'static str>,
    ) {
        let (cache, health, stop) = (cache.clone(), self.health.clone(), self.stop.clone());
        self.tasks.spawn(async move {
            let name = format!("cache-{}", K::plural(&()));
            let start = || follow(api.clone(), fields, cache.clone(), stop.clone());
            supervise(&name, &health, &stop, start).await;
        });
    }
}

impl Cached for EndpointSlice {
    fn trim(&mut self) {
        self.metadata.managed_fields = None;
    }

    fn index(&self, add: &mut dyn FnMut(IndexKey)) {
        if let Some(service) = model::label(&self.metadata, "kubernetes.io/service-name") {
            add(IndexKey::Service(
                model::namespace(&self.metadata).into(),
                service.into(),
            ));
        }
    }
}

impl Cached for Endpoints {
    fn trim(&mut self) {
        self.metadata.managed_fields = None;
        self.metadata.annotations = None;
    }
}
