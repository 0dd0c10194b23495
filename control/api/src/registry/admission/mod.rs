//! Admission: what needs to look at other objects before a request is carried out.
//!
//! A plugin is one file and one line of [`PLUGINS`]; the order is kube-apiserver's (`pkg/kubeapiserver/options/plugins.go`), in
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

use async_trait::async_trait;

use super::Registry;
use super::operation::Operation;
use crate::status::ApiError;

/// The plugins that are on, in their order.
static PLUGINS: [&dyn Plugin; 9] = [
    &namespace_lifecycle::NamespaceLifecycle,
    &service_account::ServiceAccount,
    &node_restriction::NodeRestriction,
    &priority::Priority,
    &tolerations::DefaultTolerationSeconds,
    &certificate::Approval,
    &certificate::Signing,
    &certificate::SubjectRestriction,
    &escalation::Escalation,
];

/// Whether a plugin has changed the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It has: the defaults are filled in again.
    Yes,
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

    /// What the client should know of what has become of it, where that is not refused.
    fn warnings(&self, _: &Registry, _: &Operation) -> Vec<String> {
        Vec::new()
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
        for plugin in PLUGINS {
            if plugin.handles(operation) && plugin.mutate(self, operation).await? == Changed::Yes {
                tracing::trace!(plugin = plugin.name(), name = operation.name, "changed");
                self.default(operation);
            }
        }
        Ok(())
    }

    /// Asks the plugins about what has become of the operation, of which they change the warnings alone.
    ///
    /// # Errors
    ///
    /// What a plugin refuses it with.
    pub(super) async fn judge(&self, operation: &mut Operation) -> Result<(), ApiError> {
        for plugin in PLUGINS {
            if plugin.handles(operation) {
                plugin.validate(self, operation).await?;
                let warnings = plugin.warnings(self, operation);
                operation.warnings.extend(warnings);
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
