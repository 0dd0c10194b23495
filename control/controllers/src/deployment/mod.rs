//! Deployments: replica sets that take turns.

mod plan;
mod revision;
mod rolling;
mod status;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DeploymentStatus;
use serde_json::{Value, json};

use crate::api::{self, Delete};
use crate::cache::{Cache, Change, IndexKey, Key};
use crate::context::Context;
use crate::events::Severity;
use crate::expect::{Expectations, PATIENCE};
use crate::model::{
    self, Deployment, HASH_LABEL, Pod, ReplicaSet, Selector, Written, controller_of,
    controller_reference,
};
use crate::queue::{Next, Queue};
use crate::replicaset::text;
use crate::supervise::Loop;
use plan::{Action, Observed, size_annotations};

/// How many deployments are worked on at a time.
const WORKERS: usize = 16;

/// Why a run ended early; the key comes back after a while.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error("create replica set {name}")]
    Create { name: String, source: kube::Error },
    #[error("the name {name} belongs to another replica set")]
    Collision { name: String },
    #[error("change replica set {name}")]
    Change { name: String, source: kube::Error },
    #[error("delete replica set {name}")]
    Delete { name: String, source: kube::Error },
    #[error("write the deployment")]
    Write { source: kube::Error },
}

struct Controller {
    ctx: Context,
    /// Own writes of replica sets.
    sets: Expectations,
    /// Own writes of the deployments themselves.
    own: Expectations,
}

/// Registers for changes; what the returned function makes works until stopped.
pub(crate) fn start(ctx: Context) -> Loop {
    let queue = Arc::new(Queue::default());
    let keys = queue.clone();
    ctx.caches.deployments.on_change(move |change| {
        if let Some(deployment) = change.versions().last() {
            keys.add(Key::of(&deployment.metadata));
        }
    });
    let (keys, deployments) = (queue.clone(), ctx.caches.deployments.clone());
    ctx.caches
        .replica_sets
        .on_change(move |change: Change<'_, ReplicaSet>| {
            for set in change.versions() {
                match controller_of(&set.metadata) {
                    Some(owner) if owner.kind == "Deployment" => {
                        keys.add(Key::new(model::namespace(&set.metadata), &owner.name))
                    }
                    Some(_) => {}
                    None => {
                        for deployment in could_adopt(&deployments, set) {
                            keys.add(Key::of(&deployment.metadata));
                        }
                    }
                }
            }
        });
    // `Recreate` waits for the last old pod to be gone.
    let (keys, deployments, sets) = (
        queue.clone(),
        ctx.caches.deployments.clone(),
        ctx.caches.replica_sets.clone(),
    );
    ctx.caches.pods.on_change(move |change: Change<'_, Pod>| {
        let ended = change.new.is_none_or(|pod| pod.is_terminal());
        let owner = change
            .old
            .filter(|_| ended)
            .and_then(|pod| Some((pod, controller_of(&pod.metadata)?)));
        if let Some((pod, owner)) = owner
            && let Some(set) = sets.get(&Key::new(model::namespace(&pod.metadata), &owner.name))
            && let Some(owner) = controller_of(&set.metadata)
        {
            let key = Key::new(model::namespace(&pod.metadata), &owner.name);
            if deployments
                .get(&key)
                .is_some_and(|deployment| deployment.recreates())
            {
                keys.add(key);
            }
        }
    });
    let controller = Arc::new(Controller {
        ctx: ctx.clone(),
        sets: Expectations::default(),
        own: Expectations::default(),
    });
    queue.worker("deployment", WORKERS, ctx.stop.clone(), move |key| {
        let controller = controller.clone();
        async move { controller.sync(&key).await }
    })
}

/// The deployments whose selector matches an orphan.
fn could_adopt(deployments: &Cache<Deployment>, set: &ReplicaSet) -> Vec<Arc<Deployment>> {
    let namespace = model::namespace(&set.metadata);
    let mut found = deployments.find(&IndexKey::Expressions(namespace.into()));
    for (key, value) in set.metadata.labels.iter().flatten() {
        found.extend(deployments.find(&IndexKey::label(namespace, key, value)));
    }
    found.retain(|deployment| {
        Selector(&deployment.spec.selector).matches(set.metadata.labels.as_ref())
    });
    found
}

impl Controller {
    async fn sync(&self, key: &Key) -> Result<Next, SyncError> {
        let caches = &self.ctx.caches;
        let Some(deployment) = caches.deployments.get(key) else {
            self.sets.forget(key);
            self.own.forget(key);
            return Ok(Next::OnChange);
        };
        let current = self.sets.fulfilled(key, caches.replica_sets.version())
            && self.own.fulfilled(key, caches.deployments.version());
        if !current {
            return Ok(Next::After(PATIENCE));
        }
        if Selector(&deployment.spec.selector).is_empty() {
            let message =
                "This deployment is selecting all pods. A non-empty selector is required.";
            self.ctx
                .recorder
                .record(&*deployment, Severity::Warning, "SelectingAll", message);
            return Ok(Next::OnChange);
        }
        let mut sets = caches
            .replica_sets
            .find(&IndexKey::Owner(model::uid(&deployment.metadata).into()));
        let orphans = caches
            .replica_sets
            .find(&IndexKey::Orphan((&*key.namespace).into()));
        sets.extend(orphans.into_iter().filter(|set| {
            Selector(&deployment.spec.selector).matches(set.metadata.labels.as_ref())
        }));
        let actions = {
            let old_pods_run =
                |new: Option<&ReplicaSet>| self.old_pods_run(&deployment, &sets, new);
            let observed = Observed {
                deployment: &deployment,
                sets: &sets,
                old_pods_run: &old_pods_run,
            };
            plan::plan(&observed, Timestamp::now())
        };
        let mut next = Next::OnChange;
        for action in actions {
            if let Action::Wait(wait) = action {
                next = Next::After(wait);
                continue;
            }
            match self.act(key, &deployment, &sets, action).await {
                Ok(()) => {}
                // A newer version is on its way and brings the key back, and a namespace that goes needs nothing more.
                Err(SyncError::Change { source, .. } | SyncError::Write { source })
                    if api::is_conflict(&source) || api::is_not_found(&source) =>
                {
                    return Ok(Next::After(std::time::Duration::from_secs(1)));
                }
                Err(SyncError::Create { source, .. }) if api::is_namespace_terminating(&source) => {
                    return Ok(Next::OnChange);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(next)
    }

    fn old_pods_run(
        &self,
        deployment: &Deployment,
        sets: &[Arc<ReplicaSet>],
        new: Option<&ReplicaSet>,
    ) -> bool {
        let own = |set: &&Arc<ReplicaSet>| {
            controller_of(&set.metadata)
                .is_some_and(|owner| owner.uid == model::uid(&deployment.metadata))
        };
        sets.iter()
            .filter(own)
            .filter(|set| new.is_none_or(|new| new.metadata.uid != set.metadata.uid))
            .flat_map(|set| {
                self.ctx
                    .caches
                    .pods
                    .find(&IndexKey::Owner(model::uid(&set.metadata).into()))
            })
            .any(|pod| !pod.is_terminal())
    }

    async fn act(
        &self,
        key: &Key,
        deployment: &Deployment,
        sets: &[Arc<ReplicaSet>],
        action: Action,
    ) -> Result<(), SyncError> {
        match action {
            Action::Adopt(name) => self.own_set(key, deployment, sets, name, true).await,
            Action::Release(name) => self.own_set(key, deployment, sets, name, false).await,
            Action::Create {
                replicas,
                annotations,
                hash,
            } => {
                let body = replica_set(deployment, replicas, &json!(annotations), &hash);
                self.create(key, deployment, &body, replicas).await
            }
            Action::Scale { name, from, to } => {
                self.scale(key, deployment, sets, name, from, to).await
            }
            Action::Annotate { name, annotations } => {
                let body = json!({"metadata": {"annotations": annotations}, "spec": {"minReadySeconds": deployment.spec.min_ready_seconds.unwrap_or(0)}});
                self.change(key, sets, name, body).await
            }
            Action::Delete(name) => {
                let Some(set) = find(sets, &name) else {
                    return Ok(());
                };
                api::delete::<ReplicaSet>(&self.ctx.client, &set.metadata, Delete::default())
                    .await
                    .map_err(|source| SyncError::Delete { name, source })
            }
            Action::SetRevision(revision) => {
                let body = json!({"metadata": {"uid": deployment.metadata.uid, "annotations": {revision::REVISION: revision}}});
                let written =
                    api::patch::<Deployment>(&self.ctx.client, &key.namespace, &key.name, &body)
                        .await;
                self.own
                    .wrote(key, &written.map_err(|source| SyncError::Write { source })?);
                Ok(())
            }
            Action::Status(status) => self.write_status(key, deployment, &status).await,
            Action::Wait(_) => Ok(()),
        }
    }

    async fn create(
        &self,
        key: &Key,
        deployment: &Deployment,
        body: &Value,
        replicas: i32,
    ) -> Result<(), SyncError> {
        let name = body["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        match api::create::<ReplicaSet, Written>(&self.ctx.client, &key.namespace, body).await {
            Ok(written) => {
                self.sets.wrote(key, &written);
                if replicas > 0 {
                    let message = format!("Scaled up replica set {name} from 0 to {replicas}");
                    self.ctx.recorder.record(
                        deployment,
                        Severity::Normal,
                        "ScalingReplicaSet",
                        message,
                    );
                }
                Ok(())
            }
            Err(error) if api::is_already_exists(&error) => {
                self.collide(key, deployment, name).await
            }
            Err(source) => {
                if !api::is_namespace_terminating(&source) {
                    let message = format!(
                        "Failed to create new replica set {name:?}: {}",
                        text(&source)
                    );
                    self.ctx.recorder.record(
                        deployment,
                        Severity::Warning,
                        "ReplicaSetCreateError",
                        message.clone(),
                    );
                    let mut status = deployment.status.clone();
                    status::set(
                        &mut status,
                        status::condition(
                            status::PROGRESSING,
                            "False",
                            "ReplicaSetCreateError",
                            message,
                            Timestamp::now(),
                        ),
                    );
                    if !status::same(&status, &deployment.status) {
                        self.write_status(key, deployment, &status).await?;
                    }
                }
                Err(SyncError::Create { name, source })
            }
        }
    }

    /// The name is taken: by our own replica set, which the cache will show soon, or by a stranger, and then another hash is due.
    async fn collide(
        &self,
        key: &Key,
        deployment: &Deployment,
        name: String,
    ) -> Result<(), SyncError> {
        let found: Result<ReplicaSet, _> =
            api::get::<ReplicaSet, _>(&self.ctx.client, &key.namespace, &name).await;
        let set = found.map_err(|source| SyncError::Create {
            name: name.clone(),
            source,
        })?;
        let is_ours = controller_of(&set.metadata)
            .is_some_and(|owner| owner.uid == model::uid(&deployment.metadata));
        if is_ours && set.spec.template.same_pods(&deployment.spec.template) {
            self.sets.wrote(
                key,
                &Written {
                    metadata: set.metadata,
                },
            );
            return Ok(());
        }
        let collisions = deployment.status.collision_count.unwrap_or(0) + 1;
        let body = json!({"metadata": {"uid": deployment.metadata.uid}, "status": {"collisionCount": collisions}});
        let written =
            api::patch_status::<Deployment>(&self.ctx.client, &key.namespace, &key.name, &body)
                .await;
        self.own
            .wrote(key, &written.map_err(|source| SyncError::Write { source })?);
        Err(SyncError::Collision { name })
    }

    async fn scale(
        &self,
        key: &Key,
        deployment: &Deployment,
        sets: &[Arc<ReplicaSet>],
        name: String,
        from: i32,
        to: i32,
    ) -> Result<(), SyncError> {
        let annotations: serde_json::Map<_, _> = size_annotations(deployment)
            .into_iter()
            .map(|(key, value)| (key, json!(value)))
            .collect();
        let body = json!({"metadata": {"annotations": annotations}, "spec": {"replicas": to}});
        self.change(key, sets, name.clone(), body).await?;
        if from != to {
            let direction = if from < to { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
            self.ctx
                .recorder
                .record(deployment, Severity::Normal, "ScalingReplicaSet", message);
        }
        Ok(())
    }

    async fn own_set(
        &self,
        key: &Key,
        deployment: &Deployment,
        sets: &[Arc<ReplicaSet>],
        name: String,
        take: bool,
    ) -> Result<(), SyncError> {
        let Some(set) = find(sets, &name) else {
            return Ok(());
        };
        let mut owners = set.metadata.owner_references.clone().unwrap_or_default();
        owners.retain(|owner| owner.uid != model::uid(&deployment.metadata));
        if take {
            let fresh: Result<Written, _> =
                api::get::<Deployment, _>(&self.ctx.client, &key.namespace, &key.name).await;
            let fresh = fresh.map_err(|source| SyncError::Write { source })?;
            if fresh.metadata.uid != deployment.metadata.uid || model::is_deleting(&fresh.metadata)
            {
                return Ok(());
            }
            owners.push(controller_reference(deployment));
        }
        let body = json!({"metadata": {"resourceVersion": set.metadata.resource_version, "ownerReferences": owners}});
        self.change(key, sets, name, body).await
    }

    async fn change(
        &self,
        key: &Key,
        sets: &[Arc<ReplicaSet>],
        name: String,
        mut body: Value,
    ) -> Result<(), SyncError> {
        if let Some(set) = find(sets, &name) {
            body["metadata"]["uid"] = json!(set.metadata.uid);
        }
        match api::patch::<ReplicaSet>(&self.ctx.client, &key.namespace, &name, &body).await {
            Ok(written) => {
                self.sets.wrote(key, &written);
                Ok(())
            }
            Err(source) => Err(SyncError::Change { name, source }),
        }
    }

    async fn write_status(
        &self,
        key: &Key,
        deployment: &Deployment,
        status: &DeploymentStatus,
    ) -> Result<(), SyncError> {
        let body = json!({"metadata": {"uid": deployment.metadata.uid}, "status": {
            "observedGeneration": status.observed_generation,
            "replicas": status.replicas,
            "updatedReplicas": status.updated_replicas,
            "readyReplicas": status.ready_replicas,
            "availableReplicas": status.available_replicas,
            "unavailableReplicas": status.unavailable_replicas,
            "terminatingReplicas": status.terminating_replicas,
            "collisionCount": status.collision_count,
            "conditions": status.conditions,
        }});
        let written =
            api::patch_status::<Deployment>(&self.ctx.client, &key.namespace, &key.name, &body)
                .await;
        self.own
            .wrote(key, &written.map_err(|source| SyncError::Write { source })?);
        Ok(())
    }
}

fn find<'a>(sets: &'a [Arc<ReplicaSet>], name: &str) -> Option<&'a ReplicaSet> {
    sets.iter()
        .find(|set| model::name(&set.metadata) == name)
        .map(|set| &**set)
}

/// The replica set of the deployment's present template.
fn replica_set(deployment: &Deployment, replicas: i32, annotations: &Value, hash: &str) -> Value {
    let mut template = deployment.spec.template.value();
    template["metadata"]["labels"][HASH_LABEL] = json!(hash);
    let mut selector = json!(deployment.spec.selector);
    selector["matchLabels"][HASH_LABEL] = json!(hash);
    json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": format!("{}-{hash}", model::name(&deployment.metadata)),
            "namespace": deployment.metadata.namespace,
            "labels": template["metadata"]["labels"],
            "annotations": annotations,
            "ownerReferences": [controller_reference(deployment)],
        },
        "spec": {
            "replicas": replicas,
            "minReadySeconds": deployment.spec.min_ready_seconds.unwrap_or(0),
            "selector": selector,
            "template": template,
        },
    })
}
