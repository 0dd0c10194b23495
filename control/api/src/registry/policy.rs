//! The roles and bindings of every cluster, and the rules of aggregated roles.
//!
//! kube-apiserver writes the former when it starts (`rbac/bootstrap-roles`), kube-controller-manager the latter
//! (`clusterrole-aggregation-controller`).

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::Registry;
use super::collection::Collection;
use super::delete::DeleteRequest;
use super::lanes::View;
use super::write::Target;
use crate::auth::rbac::reconcile::{Change, aggregated, reconcile};
use crate::auth::rbac::{GROUP, policy};
use crate::status::ApiError;
use crate::strategy::Context;

/// Where ClusterRoles are stored.
const CLUSTER_ROLES: &str = "clusterroles";
/// Writes at a time, which share the store's fsyncs.
const AT_ONCE: usize = 256;
/// How often roles are gathered anew, because those that were gathered had gathered themselves.
const ROUNDS: usize = 16;
/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

impl Registry {
    /// Brings the default roles and bindings to what this version has, and aggregated roles in line. What people added stays.
    ///
    /// # Errors
    ///
    /// If the store refuses.
    pub async fn ensure_policy(&self) -> Result<(), ApiError> {
        let mut writes = Vec::new();
        for object in policy::objects().into_iter().chain(policy::own()) {
            let plural = match object["kind"].as_str() {
                Some("ClusterRole") => CLUSTER_ROLES,
                Some("ClusterRoleBinding") => "clusterrolebindings",
                Some("Role") => "roles",
                _ => "rolebindings",
            };
            let wanted = self.wanted(GROUP, "v1", plural, object)?;
            let present = wanted.target.collection.get(&wanted.target.key());
            let present = present.map(|entry| entry.parse());
            if let Some(change) = reconcile(present.as_ref(), &wanted.object) {
                writes.push(self.bring(wanted.target, wanted.object, change));
            }
        }
        let mut running = futures::stream::iter(writes).buffer_unordered(AT_ONCE);
        while let Some(done) = running.next().await {
            done?;
        }
        drop(running);
        self.aggregate().await
    }

    async fn bring(&self, target: Target, wanted: Value, change: Change) -> Result<(), ApiError> {
        let ctx = Context::component("system:apiserver");
        let written = match change {
            Change::Create => self.create(&target, wanted, &ctx).await,
            Change::Update(_) => {
                // Worked out again from whatever is there when it is written.
                let anew = |old: &Value| {
                    Ok(match reconcile(Some(old), &wanted) {
                        Some(Change::Update(new)) => new,
                        _ => old.clone(),
                    })
                };
                self.update(&target, None, &anew, &ctx).await
            }
            Change::Replace(new) => {
                self.delete(&target, &DeleteRequest::default(), &ctx)
                    .await?;
                self.create(&target, new, &ctx).await
            }
        };
        match written {
            // Another server was first.
            Err(error) if error.code == 409 => Ok(()),
            done => done.map(drop),
        }
    }

    /// Gives each role with an aggregation rule the rules of the roles that it gathers. Roles may gather aggregated ones.
    async fn aggregate(&self) -> Result<(), ApiError> {
        let Some((resource, Some(collection))) = self.find(GROUP, "v1", CLUSTER_ROLES) else {
            return Err(ApiError::no_such_path());
        };
        let ctx = Context::component("system:apiserver");
        for _ in 0..ROUNDS {
            let roles = parsed(&collection);
            let mut changed = false;
            for role in &roles {
                let Some(rules) = aggregated(role, roles.iter()) else {
                    continue;
                };
                let target = Target {
                    resource: resource.clone(),
                    collection: collection.clone(),
                    namespace: String::new(),
                    name: super::meta::text(role, "name").to_owned(),
                };
                let change = |old: &Value| {
                    let mut new = old.clone();
                    new["rules"] = rules.clone().into();
                    Ok(new)
                };
                match self.update(&target, None, &change, &ctx).await {
                    Err(error) if error.code != 404 => return Err(error),
                    _ => changed = true,
                }
            }
            if !changed {
                return Ok(());
            }
        }
        let reason = "aggregated roles that gather each other do not come to rest";
        Err(ApiError::new(500, "InternalError", reason))
    }
}

fn parsed(collection: &Collection) -> Vec<Value> {
    let snapshot = collection.snapshot("", "");
    snapshot.entries.iter().map(|entry| entry.parse()).collect()
}

/// Keeps aggregated roles in line with the roles that they gather, until `stop` or the end of the registry.
pub async fn keep(registry: Weak<Registry>, stop: CancellationToken) {
    let collection: Option<Arc<Collection>> = registry
        .upgrade()
        .and_then(|all| all.collection(CLUSTER_ROLES));
    let Some(collection) = collection else { return };
    let mut cursor = collection.snapshot_and_follow(&View::Whole, "").1;
    loop {
        let Some(upgraded) = registry.upgrade() else {
            return;
        };
        let done = upgraded.aggregate().await;
        drop(upgraded);
        let failed = done.is_err();
        if let Err(error) = done {
            tracing::warn!(
                reason = error.message,
                "aggregated roles are not as they should be"
            );
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = cursor.changed(), if !failed => {}
            () = tokio::time::sleep(PAUSE), if failed => {}
        }
        while !collection.is_at_end(&cursor) {
            if collection.read(&mut cursor, usize::MAX).is_err() {
                cursor = collection.snapshot_and_follow(&View::Whole, "").1;
            }
        }
    }
}
