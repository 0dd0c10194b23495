//! NamespaceLifecycle: nothing new in a namespace that ends, and those that every cluster has do not end (apiserver,
//! `admission/plugin/namespace/lifecycle`).

use async_trait::async_trait;
use serde_json::json;

use super::{Changed, Plugin};
use crate::registry::Registry;
use crate::registry::operation::{Action, Operation};
use crate::resource::Scope;
use crate::status::ApiError;

/// Namespaces that nobody deletes.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle;

#[async_trait]
impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, operation: &Operation) -> bool {
        match operation.action {
            Action::Delete => operation.is_about("", "namespaces"),
            // To ask whether something would be allowed is fine in any namespace.
            Action::Create | Action::Update => {
                operation.resource.scope == Scope::Namespaced
                    && operation.resource.strategy.review().is_none()
            }
            Action::Connect => false,
        }
    }

    async fn mutate(
        &self,
        registry: &Registry,
        operation: &mut Operation,
    ) -> Result<Changed, ApiError> {
        let (group, plural) = (&operation.resource.gvk.group, &operation.resource.plural);
        if operation.action == Action::Delete {
            if IMMORTAL.contains(&&*operation.name) {
                let detail = "this namespace may not be deleted";
                return Err(ApiError::forbidden(group, plural, &operation.name, detail));
            }
            return Ok(Changed::No);
        }
        let namespace = &operation.namespace;
        let Some(entry) = registry.namespaces.get(namespace) else {
            return Err(ApiError::not_found("", "namespaces", namespace));
        };
        if operation.action != Action::Create || entry.field("status.phase") != "Terminating" {
            return Ok(Changed::No);
        }
        let mut error = ApiError::forbidden(
            group,
            plural,
            &operation.name,
            &format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            ),
        );
        error.details["causes"] = json!([{
            "reason": "NamespaceTerminating",
            "message": format!("namespace {namespace} is being terminated"),
            "field": "metadata.namespace",
        }]);
        Err(error)
    }
}
