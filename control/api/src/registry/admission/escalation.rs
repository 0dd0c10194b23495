//! Nobody grants more than they have: roles and bindings are looked at before they are written.
//!
//! kube-apiserver does this where it stores them (`registry/rbac`), not in a plugin that could be turned off.

use async_trait::async_trait;

use super::Plugin;
use crate::auth::authorize::Attributes;
use crate::auth::rbac::GROUP;
use crate::auth::rbac::escalation::{Write, check};
use crate::registry::Registry;
use crate::registry::operation::{Action, Operation};
use crate::status::ApiError;

pub struct Escalation;

#[async_trait]
impl Plugin for Escalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    fn handles(&self, operation: &Operation) -> bool {
        matches!(operation.action, Action::Create | Action::Update)
            && operation.subresource.is_none()
            && operation.resource.gvk.group == GROUP
    }

    async fn validate(&self, registry: &Registry, operation: &Operation) -> Result<(), ApiError> {
        let Some(object) = &operation.new else {
            return Ok(());
        };
        let user = &operation.context.user;
        let write = Write {
            resource: &operation.resource.plural,
            namespace: &operation.namespace,
            name: match operation.action {
                Action::Create => "",
                _ => &operation.name,
            },
            object,
            old: operation.old.as_ref(),
        };
        registry.rbac.catch_up();
        let may =
            |attributes: &Attributes<'_>| registry.authorizer.authorize(user, attributes).allowed;
        check(&*registry.rbac, &may, user, &write)
    }
}
