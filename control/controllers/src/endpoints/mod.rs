//! Endpoints of services: which pods stand behind them.

mod legacy;
mod pods;
mod slices;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::{EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use kube::Client;

use crate::api::{self, Delete};
use crate::cache::{Cache, Change, IndexKey, Key};
use crate::context::Context;
use crate::expect::{Expectations, PATIENCE};
use crate::model::{self, Pod, Service, Written, controller_reference, is_deleting};
use crate::queue::{Next, Queue};
use crate::supervise::Loop;
use pods::{by_ports, families};
use slices::Action;

/// How many services are worked on at a time.
const WORKERS: usize = 16;
const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const MANAGER_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const LEGACY_MANAGER_LABEL: &str = "endpoints.kubernetes.io/managed-by";
const LEGACY_MANAGER: &str = "endpoint-controller";

/// Why a run ended early; the key comes back after a while.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error("write endpoint slice of {service}")]
    Slice { service: Key, source: kube::Error },
    #[error("write endpoints of {service}")]
    Endpoints { service: Key, source: kube::Error },
}

struct Controller {
    ctx: Context,
    /// Writes Endpoints: that is a controller of its own in Kubernetes, with rights of its own.
    legacy: Client,
    slices: Expectations,
    endpoints: Expectations,
}

/// Registers for changes; what the returned function makes works until stopped.
///
/// `legacy` writes Endpoints, `ctx` all else.
pub(crate) fn start(ctx: Context, legacy: Client) -> Loop {
    let queue = Arc::new(Queue::default());
    let keys = queue.clone();
    ctx.caches.services.on_change(move |change| {
        if let Some(service) = change.versions().last() {
            keys.add(Key::of(&service.metadata));
        }
    });
    let (keys, services) = (queue.clone(), ctx.caches.services.clone());
    ctx.caches.pods.on_change(move |change: Change<'_, Pod>| {
        if let (Some(old), Some(new)) = (change.old, change.new)
            && same_endpoint(old, new)
        {
            return;
        }
        for pod in change.versions() {
            for service in services_of(&services, pod) {
                keys.add(Key::of(&service.metadata));
            }
        }
    });
    let keys = queue.clone();
    ctx.caches
        .endpoint_slices
        .on_change(move |change: Change<'_, EndpointSlice>| {
            for slice in change.versions() {
                let meta = &slice.metadata;
                if let Some(service) = model::label(meta, SERVICE_LABEL)
                    .filter(|_| model::label(meta, MANAGER_LABEL) == Some(MANAGER))
                {
                    keys.add(Key::new(model::namespace(meta), service));
                }
            }
        });
    let keys = queue.clone();
    ctx.caches.endpoints.on_change(move |change| {
        if let Some(endpoints) = change.versions().last() {
            keys.add(Key::of(&endpoints.metadata));
        }
    });
    let controller = Arc::new(Controller {
        ctx: ctx.clone(),
        legacy,
        slices: Expectations::default(),
        endpoints: Expectations::default(),
    });
    queue.worker("endpoints", WORKERS, ctx.stop.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    })
}

/// Whether nothing that an endpoint shows differs.
fn same_endpoint(old: &Pod, new: &Pod) -> bool {
    old.metadata.labels == new.metadata.labels
        && old.metadata.uid == new.metadata.uid
        && old.is_ready() == new.is_ready()
        && old.is_terminal() == new.is_terminal()
        && is_deleting(&old.metadata) == is_deleting(&new.metadata)
        && old.spec.node_name == new.spec.node_name
        && old.addresses().eq(new.addresses())
}

/// The services whose selector matches the pod.
fn services_of(services: &Cache<Service>, pod: &Pod) -> Vec<Arc<Service>> {
    let namespace = model::namespace(&pod.metadata);
    let labels = pod.metadata.labels.as_ref();
    (labels.into_iter().flatten())
        .flat_map(|(key, value)| services.find(&IndexKey::label(namespace, key, value)))
        .filter(|service| selects(service, pod))
        .collect()
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    service
        .spec
        .selector
        .iter()
        .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result<Next, SyncError> {
        let caches = &self.ctx.caches;
        let Some(service) = caches.services.get(key) else {
            // Slices go by their owner reference; the old object has none, so it is removed by name.
            self.slices.forget(key);
            self.endpoints.forget(key);
            return self.remove_endpoints(key).await;
        };
        if !service.selects() || is_deleting(&service.metadata) {
            return Ok(Next::OnChange);
        }
        let pods = self.pods_of(key, &service);
        let mut next = Next::OnChange;
        if self.slices.fulfilled(key, caches.endpoint_slices.version()) {
            self.write_slices(key, &service, &pods)
                .await
                .map_err(|source| SyncError::Slice {
                    service: key.clone(),
                    source,
                })?;
        } else {
            next = Next::After(PATIENCE);
        }
        if self.endpoints.fulfilled(key, caches.endpoints.version()) {
            self.write_endpoints(key, &service, &pods)
                .await
                .map_err(|source| SyncError::Endpoints {
                    service: key.clone(),
                    source,
                })?;
        } else {
            next = Next::After(PATIENCE);
        }
        Ok(next)
    }

    /// The pods of a service, found by the rarest label of its selector.
    fn pods_of(&self, key: &Key, service: &Service) -> Vec<Arc<Pod>> {
        let cache = &self.ctx.caches.pods;
        let rarest = (service.spec.selector.iter())
            .map(|(label, value)| IndexKey::label(&key.namespace, label, value))
            .min_by_key(|index| cache.count(index));
        let mut pods = rarest.map(|index| cache.find(&index)).unwrap_or_default();
        pods.retain(|pod| selects(service, pod));
        pods
    }

    async fn write_slices(
        &self,
        key: &Key,
        service: &Service,
        pods: &[Arc<Pod>],
    ) -> Result<(), kube::Error> {
        let index = IndexKey::Service((&*key.namespace).into(), (&*key.name).into());
        let mut slices = self.ctx.caches.endpoint_slices.find(&index);
        slices.retain(|slice| {
            model::label(&slice.metadata, MANAGER_LABEL) == Some(MANAGER)
                && !is_deleting(&slice.metadata)
        });
        let labels = slice_labels(service);
        let node = |name: &str| self.ctx.caches.nodes.get(&Key::new("", name));
        let families = families(service);
        let mut actions: Vec<_> = (slices.iter())
            .filter(|slice| {
                !families
                    .iter()
                    .any(|family| family.name() == slice.address_type)
            })
            .map(|slice| Action::Delete(model::name(&slice.metadata).to_owned()))
            .collect();
        for family in families {
            let stale = |slice: &EndpointSlice| slice.metadata.labels.as_ref() != Some(&labels);
            actions.extend(slices::plan(
                family,
                by_ports(service, pods, node, family),
                &slices,
                stale,
            ));
        }
        for action in actions {
            self.act(key, service, &slices, &labels, action).await?;
        }
        Ok(())
    }

    async fn act(
        &self,
        key: &Key,
        service: &Service,
        slices: &[Arc<EndpointSlice>],
        labels: &BTreeMap<String, String>,
        action: Action,
    ) -> Result<(), kube::Error> {
        let find = |name: &str| {
            slices
                .iter()
                .find(|slice| model::name(&slice.metadata) == name)
        };
        let written = match action {
            Action::Create {
                family,
                ports,
                endpoints,
            } => {
                let ports: Vec<EndpointPort> = ports.iter().map(pods::PortKey::to_api).collect();
                let body = json!({
                    "apiVersion": "discovery.k8s.io/v1",
                    "kind": "EndpointSlice",
                    "metadata": {
                        "generateName": format!("{}-", key.name),
                        "namespace": &*key.namespace,
                        "labels": labels,
                        "ownerReferences": [controller_reference(service)],
                    },
                    "addressType": family.name(),
                    "ports": ports,
                    "endpoints": endpoints,
                });
                api::create::<EndpointSlice, Written>(&self.ctx.client, &key.namespace, &body).await
            }
            Action::Update { name, endpoints } => {
                let Some(slice) = find(&name) else {
                    return Ok(());
                };
                let replaced = replacing(&slice.metadata, labels);
                let body = json!({
                    "metadata": {"resourceVersion": slice.metadata.resource_version, "labels": replaced},
                    "endpoints": endpoints,
                });
                api::patch::<EndpointSlice>(&self.ctx.client, &key.namespace, &name, &body).await
            }
            Action::Delete(name) => {
                let Some(slice) = find(&name) else {
                    return Ok(());
                };
                return api::delete::<EndpointSlice>(
                    &self.ctx.client,
                    &slice.metadata,
                    Delete::default(),
                )
                .await;
            }
        };
        match written {
            Ok(written) => self.slices.wrote(key, &written),
            Err(error) if api::is_namespace_terminating(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn write_endpoints(
        &self,
        key: &Key,
        service: &Service,
        pods: &[Arc<Pod>],
    ) -> Result<(), kube::Error> {
        let subsets = legacy::subsets(service, pods);
        let labels = legacy_labels(service);
        let current = self.ctx.caches.endpoints.get(key);
        let written = match current {
            Some(current) => {
                let same_labels = current.metadata.labels.as_ref() == Some(&labels);
                if same_labels && current.subsets.as_deref().unwrap_or_default() == subsets {
                    return Ok(());
                }
                let replaced = replacing(&current.metadata, &labels);
                let body = json!({"metadata": {"resourceVersion": current.metadata.resource_version, "labels": replaced}, "subsets": subsets});
                api::patch::<Endpoints>(&self.legacy, &key.namespace, &key.name, &body).await
            }
            None => {
                let body = json!({
                    "apiVersion": "v1",
                    "kind": "Endpoints",
                    "metadata": {"name": &*key.name, "namespace": &*key.namespace, "labels": labels},
                    "subsets": subsets,
                });
                api::create::<Endpoints, Written>(&self.legacy, &key.namespace, &body).await
            }
        };
        match written {
            Ok(written) => self.endpoints.wrote(key, &written),
            Err(error) if api::is_namespace_terminating(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn remove_endpoints(&self, key: &Key) -> Result<Next, SyncError> {
        if let Some(endpoints) = self.ctx.caches.endpoints.get(key)
            && model::label(&endpoints.metadata, LEGACY_MANAGER_LABEL) == Some(LEGACY_MANAGER)
        {
            api::delete::<Endpoints>(&self.legacy, &endpoints.metadata, Delete::default())
                .await
                .map_err(|source| SyncError::Endpoints {
                    service: key.clone(),
                    source,
                })?;
        }
        Ok(Next::OnChange)
    }
}

fn slice_labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS_LABEL);
    if service.is_headless() {
        labels.insert(HEADLESS_LABEL.into(), String::new());
    }
    labels.insert(
        SERVICE_LABEL.into(),
        model::name(&service.metadata).to_owned(),
    );
    labels.insert(MANAGER_LABEL.into(), MANAGER.into());
    labels
}

fn legacy_labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS_LABEL);
    if service.is_headless() {
        labels.insert(HEADLESS_LABEL.into(), String::new());
    }
    labels.insert(LEGACY_MANAGER_LABEL.into(), LEGACY_MANAGER.into());
    labels
}

/// The part of a merge patch that puts these labels in the place of those that are there.
fn replacing<'a>(
    there: &'a ObjectMeta,
    labels: &'a BTreeMap<String, String>,
) -> BTreeMap<&'a str, Value> {
    let removed = there
        .labels
        .iter()
        .flatten()
        .map(|(key, _)| (key.as_str(), Value::Null));
    let set = labels
        .iter()
        .map(|(key, value)| (key.as_str(), json!(value)));
    removed.chain(set).collect()
}
