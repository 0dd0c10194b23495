//! CertificateApproval, CertificateSigning, CertificateSubjectRestriction: to approve and to sign are rights of their own for each
//! signer, and nobody gets a client certificate of `system:masters` (kubernetes, `plugin/pkg/admission/certificates`).

use async_trait::async_trait;
use serde_json::Value;

use super::{Changed, Plugin};
use crate::auth::authorize::{Attributes, MASTERS};
use crate::registry::Registry;
use crate::registry::operation::{Action, Operation};
use crate::resource::Subresource;
use crate::status::ApiError;
use crate::strategy::requested_organizations;

const GROUP: &str = "certificates.k8s.io";
const PLURAL: &str = "certificatesigningrequests";

/// Who approves or denies needs the right `approve` for the signer.
pub struct Approval;

/// Who fills in a certificate, or says that it failed, needs the right `sign`.
pub struct Signing;

/// Nobody asks for a client certificate of the administrators' group.
pub struct SubjectRestriction;

fn is_request(operation: &Operation, subresource: Option<Subresource>) -> bool {
    operation.subresource == subresource
        && operation.resource.plural == PLURAL
        && operation.resource.gvk.group == GROUP
}

fn signer(object: Option<&Value>) -> &str {
    object
        .and_then(|object| object["spec"]["signerName"].as_str())
        .unwrap_or_default()
}

/// Whether the user may do this for the signer, or for all signers of its domain.
fn may(registry: &Registry, operation: &Operation, verb: &str) -> Result<(), ApiError> {
    let signer = signer(operation.old.as_ref());
    let domain = signer.split('/').next().unwrap_or_default();
    let user = &operation.context.user;
    let allowed = [signer.to_owned(), format!("{domain}/*")]
        .iter()
        .any(|name| {
            let attributes = Attributes {
                verb,
                group: GROUP,
                resource: "signers",
                name,
                ..Attributes::default()
            };
            registry.authorizer.authorize(user, &attributes).allowed
        });
    if allowed {
        return Ok(());
    }
    let detail = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(ApiError::forbidden(GROUP, PLURAL, &operation.name, &detail))
}

#[async_trait]
impl Plugin for Approval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn handles(&self, operation: &Operation) -> bool {
        operation.action == Action::Update && is_request(operation, Some(Subresource::Approval))
    }

    async fn validate(&self, registry: &Registry, operation: &Operation) -> Result<(), ApiError> {
        may(registry, operation, "approve")
    }
}

#[async_trait]
impl Plugin for Signing {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn handles(&self, operation: &Operation) -> bool {
        operation.action == Action::Update && is_request(operation, Some(Subresource::Status))
    }

    async fn validate(&self, registry: &Registry, operation: &Operation) -> Result<(), ApiError> {
        let part = |object: Option<&Value>, field: &str| {
            object.map_or(Value::Null, |object| object["status"][field].clone())
        };
        let (old, new) = (operation.old.as_ref(), operation.new.as_ref());
        // What only changes annotations or the like signs nothing.
        if ["certificate", "conditions"]
            .iter()
            .all(|field| part(old, field) == part(new, field))
        {
            return Ok(());
        }
        may(registry, operation, "sign")
    }
}

#[async_trait]
impl Plugin for SubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn handles(&self, operation: &Operation) -> bool {
        operation.action == Action::Create && is_request(operation, None)
    }

    async fn mutate(&self, _: &Registry, operation: &mut Operation) -> Result<Changed, ApiError> {
        let new = operation.new.as_ref();
        if signer(new) != "kubernetes.io/kube-apiserver-client" {
            return Ok(Changed::No);
        }
        let asked = new
            .map(|new| requested_organizations(&new["spec"]))
            .unwrap_or_default();
        if asked.iter().any(|group| group == MASTERS) {
            let detail = format!(
                "use of kubernetes.io/kube-apiserver-client signer with {MASTERS} group is not allowed"
            );
            return Err(ApiError::forbidden(GROUP, PLURAL, &operation.name, &detail));
        }
        Ok(Changed::No)
    }
}
