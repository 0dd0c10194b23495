//! Replica sets: as many pods as wanted.

mod plan;
mod rank;

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use kube::Resource;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::api::{self, Delete};
use crate::cache::{Change, IndexKey, Key};
use crate::context::Context;
use crate::events::Severity;
use crate::expect::{Expectations, PATIENCE};
use crate::model::{self, Pod, ReplicaSet, Selector, Written, controller_of, controller_reference};
use crate::queue::{Next, Queue};
use crate::supervise::Loop;
use plan::{Action, Observed};

/// How many replica sets are worked on at a time.
const WORKERS: usize = 16;
/// How many pods are made in the first round; each round that succeeds doubles it. After a failure one pod tries
/// whether the trouble (a quota, say) is over.
const FIRST_BATCH: usize = 8;

/// Why a run ended early; the key comes back after a while.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncError {
    #[error("adopt or release pod {pod}")]
    Claim { pod: Box<str>, source: kube::Error },
    #[error("create a pod")]
    Create { source: kube::Error },
    #[error("delete pod {pod}")]
    Delete { pod: Box<str>, source: kube::Error },
    #[error("write the status")]
    Status { source: kube::Error },
    #[error("read the replica set again")]
    Read { source: kube::Error },
}

struct Controller {
    ctx: Context,
    expected: Expectations,
    /// Pods whose deletion was accepted and which the cache still shows as living, per replica set.
    deleted: Mutex<HashMap<Key, HashMap<String, u64>>>,
    queue: Arc<Queue<Key>>,
}

/// Registers for changes; what the returned function makes works until stopped.
pub(crate) fn start(ctx: Context) -> Loop {
    let queue = Arc::new(Queue::default());
    let keys = queue.clone();
    ctx.caches.replica_sets.on_change(move |change| {
        if let Some(set) = change.versions().last() {
            keys.add(Key::of(&set.metadata));
        }
    });
    let (keys, sets) = (queue.clone(), ctx.caches.replica_sets.clone());
    ctx.caches.pods.on_change(move |change: Change<'_, Pod>| {
        for pod in change.versions() {
            match controller_of(&pod.metadata) {
                Some(owner) if owner.kind == "ReplicaSet" => {
                    keys.add(Key::new(model::namespace(&pod.metadata), &owner.name))
                }
                Some(_) => {}
                None => {
                    for set in could_adopt(&sets, pod) {
                        keys.add(Key::of(&set.metadata));
                    }
                }
            }
        }
    });
    let controller = Arc::new(Controller {
        expected: Expectations::default(),
        deleted: Mutex::default(),
        queue: queue.clone(),
        ctx: ctx.clone(),
    });
    queue.worker("replicaset", WORKERS, ctx.stop.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    })
}

/// The replica sets whose selector matches an orphan.
fn could_adopt(sets: &crate::cache::Cache<ReplicaSet>, pod: &Pod) -> Vec<Arc<ReplicaSet>> {
    let namespace = model::namespace(&pod.metadata);
    let mut found = sets.find(&IndexKey::Expressions(namespace.into()));
    for (key, value) in pod.metadata.labels.iter().flatten() {
        found.extend(sets.find(&IndexKey::label(namespace, key, value)));
    }
    found.retain(|set| Selector(&set.spec.selector).matches(pod.metadata.labels.as_ref()));
    found
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result<Next, SyncError> {
        let caches = &self.ctx.caches;
        let Some(set) = caches.replica_sets.get(key) else {
            self.expected.forget(key);
            self.deleted.lock().remove(key);
            return Ok(Next::OnChange);
        };
        if Selector(&set.spec.selector).is_empty() {
            return Ok(Next::OnChange);
        }
        if !self.expected.fulfilled(key, caches.pods.version()) {
            return Ok(Next::After(PATIENCE));
        }
        let pods = self.pods_of(key, &set);
        let related = self.related(&set, &pods);
        let now = Timestamp::now();
        let observed = Observed {
            set: &set,
            pods: &pods,
            related: &related,
        };
        let mut changed = false;
        let mut failed = None;
        for action in plan::plan(&observed, now) {
            changed = true;
            if let Err(error) = self.act(key, &set, &pods, action).await {
                failed = Some(error);
                break;
            }
        }
        // After a change the events of the pods bring the key back, and one status tells all.
        if !changed || failed.is_some() {
            self.write_status(&observed, failed.as_ref(), now).await?;
        }
        match failed {
            Some(SyncError::Create { source }) if api::is_namespace_terminating(&source) => {
                Ok(Next::OnChange)
            }
            Some(error) => Err(error),
            None => Ok(plan::next_available(&observed, now).map_or(Next::OnChange, Next::After)),
        }
    }

    /// Its own pods and the orphans it could take, without those whose deletion is on its way.
    fn pods_of(&self, key: &Key, set: &ReplicaSet) -> Vec<Arc<Pod>> {
        let cache = &self.ctx.caches.pods;
        let mut pods = cache.find(&IndexKey::Owner(model::uid(&set.metadata).into()));
        let orphans = match set.spec.selector.match_labels.iter().flatten().next() {
            Some((label, value)) => cache.find(&IndexKey::label(&key.namespace, label, value)),
            None => cache.find(&IndexKey::Orphan((&*key.namespace).into())),
        };
        pods.extend(
            orphans
                .into_iter()
                .filter(|pod| controller_of(&pod.metadata).is_none()),
        );
        let mut deleted = self.deleted.lock();
        if let Some(gone) = deleted.get_mut(key) {
            gone.retain(|uid, _| {
                pods.iter().any(|pod| {
                    model::uid(&pod.metadata) == uid && !model::is_deleting(&pod.metadata)
                })
            });
            pods.retain(|pod| !gone.contains_key(model::uid(&pod.metadata)));
            if gone.is_empty() {
                deleted.remove(key);
            }
        }
        pods
    }

    fn related(&self, set: &ReplicaSet, own: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let active: usize = own.iter().filter(|pod| pod.is_active()).count();
        if active <= usize::try_from(set.replicas()).unwrap_or(0) {
            return Vec::new(); // Nothing will be deleted, so nothing needs a rank.
        }
        let Some(owner) = controller_of(&set.metadata) else {
            return own.to_vec();
        };
        let siblings = self
            .ctx
            .caches
            .replica_sets
            .find(&IndexKey::Owner(owner.uid.as_str().into()));
        siblings
            .iter()
            .flat_map(|sibling| {
                self.ctx
                    .caches
                    .pods
                    .find(&IndexKey::Owner(model::uid(&sibling.metadata).into()))
            })
            .filter(|pod| pod.is_active())
            .collect()
    }

    async fn act(
        &self,
        key: &Key,
        set: &ReplicaSet,
        pods: &[Arc<Pod>],
        action: Action,
    ) -> Result<(), SyncError> {
        match action {
            Action::Adopt(pod) => self.adopt(key, set, find(pods, &pod)).await,
            Action::Release(pod) => self.release(key, set, find(pods, &pod)).await,
            Action::Create(count) => self.create(key, set, count).await,
            Action::Delete(names) => {
                let results = join_all(
                    names
                        .iter()
                        .map(|name| self.delete(key, set, find(pods, name))),
                )
                .await;
                results.into_iter().collect()
            }
        }
    }

    async fn adopt(&self, key: &Key, set: &ReplicaSet, pod: Option<&Pod>) -> Result<(), SyncError> {
        let Some(pod) = pod else { return Ok(()) };
        let name = model::name(&pod.metadata);
        let fail = |source| SyncError::Claim {
            pod: name.into(),
            source,
        };
        // A replica set that is deleted meanwhile must not take pods in which its deletion should orphan.
        let fresh: Written = api::get::<ReplicaSet, _>(&self.ctx.client, &key.namespace, &key.name)
            .await
            .map_err(|source| SyncError::Read { source })?;
        if fresh.metadata.uid != set.metadata.uid || model::is_deleting(&fresh.metadata) {
            return Ok(());
        }
        let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
        owners.push(controller_reference(set));
        let body = json!({"metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version, "ownerReferences": owners}});
        let written = api::patch::<Pod>(&self.ctx.client, &key.namespace, name, &body)
            .await
            .map_err(fail)?;
        self.expected.wrote(key, &written);
        Ok(())
    }

    async fn release(
        &self,
        key: &Key,
        set: &ReplicaSet,
        pod: Option<&Pod>,
    ) -> Result<(), SyncError> {
        let Some(pod) = pod else { return Ok(()) };
        let name = model::name(&pod.metadata);
        let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
        owners.retain(|owner| owner.uid != model::uid(&set.metadata));
        let body = json!({"metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version, "ownerReferences": owners}});
        match api::patch::<Pod>(&self.ctx.client, &key.namespace, name, &body).await {
            Ok(written) => {
                self.expected.wrote(key, &written);
                Ok(())
            }
            Err(error) if api::is_not_found(&error) => Ok(()),
            Err(source) => Err(SyncError::Claim {
                pod: name.into(),
                source,
            }),
        }
    }

    async fn create(&self, key: &Key, set: &ReplicaSet, count: usize) -> Result<(), SyncError> {
        let body = pod_of(set);
        let mut batch = if self.queue.failures(key) == 0 {
            FIRST_BATCH
        } else {
            1
        };
        let mut left = count;
        while left > 0 {
            let now = batch.min(left);
            let results = join_all((0..now).map(|_| self.create_one(key, set, &body))).await;
            results.into_iter().collect::<Result<(), _>>()?;
            left -= now;
            batch *= 2;
        }
        Ok(())
    }

    async fn create_one(&self, key: &Key, set: &ReplicaSet, body: &Value) -> Result<(), SyncError> {
        match api::create::<Pod, Written>(&self.ctx.client, &key.namespace, body).await {
            Ok(written) => {
                self.expected.wrote(key, &written);
                let message = format!("Created pod: {}", model::name(&written.metadata));
                self.ctx
                    .recorder
                    .record(set, Severity::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(source) => {
                if !api::is_namespace_terminating(&source) {
                    self.ctx.recorder.record(
                        set,
                        Severity::Warning,
                        "FailedCreate",
                        format!("Error creating: {}", text(&source)),
                    );
                }
                Err(SyncError::Create { source })
            }
        }
    }

    async fn delete(
        &self,
        key: &Key,
        set: &ReplicaSet,
        pod: Option<&Pod>,
    ) -> Result<(), SyncError> {
        let Some(pod) = pod else { return Ok(()) };
        let name = model::name(&pod.metadata);
        match api::delete::<Pod>(&self.ctx.client, &pod.metadata, Delete::default()).await {
            Ok(()) => {
                self.deleted
                    .lock()
                    .entry(key.clone())
                    .or_default()
                    .insert(model::uid(&pod.metadata).to_owned(), 0);
                self.ctx.recorder.record(
                    set,
                    Severity::Normal,
                    "SuccessfulDelete",
                    format!("Deleted pod: {name}"),
                );
                Ok(())
            }
            Err(source) => {
                self.ctx.recorder.record(
                    set,
                    Severity::Warning,
                    "FailedDelete",
                    format!("Error deleting: {}", text(&source)),
                );
                Err(SyncError::Delete {
                    pod: name.into(),
                    source,
                })
            }
        }
    }

    async fn write_status(
        &self,
        observed: &Observed<'_>,
        failed: Option<&SyncError>,
        now: Timestamp,
    ) -> Result<(), SyncError> {
        let failure = match failed {
            Some(SyncError::Create { source }) if !api::is_namespace_terminating(source) => {
                Some(("FailedCreate", text(source)))
            }
            Some(SyncError::Delete { source, .. }) => Some(("FailedDelete", text(source))),
            _ => None,
        };
        let status = plan::status(
            observed,
            failure
                .as_ref()
                .map(|(reason, message)| (*reason, message.as_str())),
            now,
        );
        let set = observed.set;
        if plan::same(&status, &set.status) {
            return Ok(());
        }
        let body = json!({"metadata": {"uid": set.metadata.uid, "resourceVersion": set.metadata.resource_version}, "status": {
            "replicas": status.replicas,
            "fullyLabeledReplicas": status.fully_labeled_replicas,
            "readyReplicas": status.ready_replicas,
            "availableReplicas": status.available_replicas,
            "terminatingReplicas": status.terminating_replicas,
            "observedGeneration": status.observed_generation,
            "conditions": status.conditions,
        }});
        match api::patch_status::<ReplicaSet>(
            &self.ctx.client,
            model::namespace(set.meta()),
            model::name(set.meta()),
            &body,
        )
        .await
        {
            // The newer version is on its way and brings the key back.
            Err(error) if api::is_not_found(&error) || api::is_conflict(&error) => Ok(()),
            Err(source) => Err(SyncError::Status { source }),
            Ok(_) => Ok(()),
        }
    }
}

fn find<'a>(pods: &'a [Arc<Pod>], name: &str) -> Option<&'a Pod> {
    pods.iter()
        .find(|pod| model::name(&pod.metadata) == name)
        .map(|pod| &**pod)
}

/// The text of an API error, as the server worded it.
pub(crate) fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// A pod made from the template.
fn pod_of(set: &ReplicaSet) -> Value {
    let mut pod = set.spec.template.value();
    let template = pod["metadata"].take();
    let mut metadata = json!({
        "generateName": format!("{}-", model::name(&set.metadata)),
        "namespace": set.metadata.namespace,
        "ownerReferences": [controller_reference(set)],
    });
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template.get(field) {
            metadata[field] = value.clone();
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod["spec"].take()})
}
