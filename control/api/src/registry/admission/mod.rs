//! Admission: what needs to look at other objects before a request is carried out.
//!
//! A plugin is one file and one line of `PLUGINS`; the order is kube-apiserver's (`pkg/kubeapiserver/options/plugins.go`), in
//! which webhooks and policies stand near the end and quotas last.

pub mod amounts;
mod certificate;
pub mod claim_resize;
mod default_class;
pub mod default_ingress_class;
pub mod default_storage_class;
mod escalation;
pub mod limit_ranger;
mod namespace_lifecycle;
mod node_restriction;
pub mod node_taint;
pub mod pod_security;
mod priority;
pub mod resource_quota;
pub mod runtime_class;
mod service_account;
pub mod storage_protection;
#[cfg(test)]
mod testing;
mod tolerations;
pub mod webhook;

use async_trait::async_trait;

use super::Registry;
use super::operation::Operation;
use crate::status::ApiError;

/// The plugins that are on, in their order. StorageObjectInUseProtection waits for the controllers that take its finalizers off.
static PLUGINS: [&dyn Plugin; 18] = [
    &namespace_lifecycle::NamespaceLifecycle,
    &limit_ranger::LimitRanger,
    &service_account::ServiceAccount,
    &node_restriction::NodeRestriction,
    &node_taint::TaintNodesByCondition,
    &pod_security::PodSecurity,
    &priority::Priority,
    &tolerations::DefaultTolerationSeconds,
    &default_storage_class::DefaultStorageClass,
    &claim_resize::PersistentVolumeClaimResize,
    &runtime_class::RuntimeClass,
    &certificate::Approval,
    &certificate::Signing,
    &certificate::SubjectRestriction,
    &default_ingress_class::DefaultIngressClass,
    &webhook::Mutating,
    &webhook::Validating,
    &resource_quota::ResourceQuota,
];

/// What cannot be turned off.
static RULES: [&dyn Plugin; 1] = [&escalation::Escalation];

/// Whether a plugin has changed the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It has: the defaults are filled in again.
    Yes,
    /// Somebody outside this server has: besides, all plugins look at it once more.
    ByOthers,
    /// It has not.
    No,
}

/// One rule of admission.
#[async_trait]
pub trait Plugin: Send + Sync {
    /// Its name, as `--enable-admission-plugins` knows it.
    fn name(&self) -> &'static str;

    /// Whether it has a say in such an operation.
    fn handles(&self, operation: &Operation) -> bool;

    /// Changes what was sent, or refuses it.
    async fn mutate(&self, _: &Registry, _: &mut Operation) -> Result<Changed, ApiError> {
        Ok(Changed::No)
    }

    /// Refuses what has become of it.
    async fn validate(&self, _: &Registry, _: &Operation) -> Result<(), ApiError> {
        Ok(())
    }

    /// As `validate`, for a plugin that may also warn.
    async fn judge(&self, registry: &Registry, operation: &mut Operation) -> Result<(), ApiError> {
        self.validate(registry, operation).await
    }
}

impl Registry {
    /// Fills in the defaults of what was sent, lets its sender own it, and lets the plugins change it.
    ///
    /// # Errors
    ///
    /// What a plugin refuses it with.
    pub(super) async fn mutate(&self, operation: &mut Operation) -> Result<(), ApiError> {
        self.default(operation);
        self.own(operation);
        if self.round(operation).await? == Changed::ByOthers {
            // What others put in (a container) may need what an earlier plugin adds (a volume). There is no third round.
            operation.rounds.start_second();
            self.round(operation).await?;
        }
        Ok(())
    }

    /// Lets each plugin change what was sent, once.
    async fn round(&self, operation: &mut Operation) -> Result<Changed, ApiError> {
        let mut by = Changed::No;
        for plugin in PLUGINS {
            if !plugin.handles(operation) {
                continue;
            }
            let changed = plugin.mutate(self, operation).await?;
            if changed != Changed::No {
                tracing::trace!(plugin = plugin.name(), name = operation.name, "changed");
                self.default(operation);
            }
            if changed == Changed::ByOthers {
                by = changed;
            }
        }
        Ok(by)
    }

    /// Asks the plugins about what has become of the operation, of which they change the warnings alone.
    ///
    /// # Errors
    ///
    /// What a plugin refuses it with.
    pub(super) async fn judge(&self, operation: &mut Operation) -> Result<(), ApiError> {
        for plugin in RULES.into_iter().chain(PLUGINS) {
            if plugin.handles(operation) {
                plugin.judge(self, operation).await?;
            }
        }
        Ok(())
    }

    /// The way of what is not stored: a connection, an eviction, a token, a review. It may be carried out afterwards.
    ///
    /// # Errors
    ///
    /// What a plugin refuses it with.
    pub async fn admit(&self, operation: &mut Operation) -> Result<(), ApiError> {
        self.mutate(operation).await?;
        self.judge(operation).await
    }

    fn default(&self, operation: &mut Operation) {
        let whole = operation.is_whole();
        let Some(new) = &mut operation.new else {
            return;
        };
        if whole {
            operation.resource.schema.apply_defaults(new);
            operation.resource.strategy.default(new);
        } else {
            let schemas = &self.table().schemas;
            schemas.apply_defaults(&operation.kind, new);
        }
    }
}
