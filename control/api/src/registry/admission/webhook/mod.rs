//! Admission webhooks: others decide, over HTTPS, what may be written and how (apiserver, `admission/plugin/webhook`).
//!
//! Reading order: `config` (a configuration, parsed), `source` (all of them), `matching` (who wants to see a request), `review`
//! (what is asked and answered), `place`, `trust`, `client` and `messages` (the call), `rounds` (who is called again), `call`
//! (one webhook from question to answer), this file (the two plugins).
//!
//! Every webhook that wants to see a request is asked: mutating ones one after the other, each seeing what the ones before it
//! made of the object, with defaults; then validating ones, all at once, about the object as it will be stored.

mod call;
mod client;
mod config;
mod matching;
mod messages;
mod place;
mod review;
mod rounds;
mod source;
mod trust;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join_all;

pub use rounds::Rounds;

use super::{Changed, Plugin};
use crate::registry::Registry;
use crate::registry::operation::Operation;
use crate::status::ApiError;
use call::{CallError, Failure, apply, ask};
use config::{FailurePolicy, Hook, ReinvocationPolicy};
use matching::{Invocation, invocation, is_exempt};
use review::Role;
use source::Source;

/// The webhooks of a cluster.
pub struct Webhooks {
    mutating: Source,
    validating: Source,
}

impl Default for Webhooks {
    fn default() -> Self {
        Self {
            mutating: Source::new("mutatingwebhookconfigurations"),
            validating: Source::new("validatingwebhookconfigurations"),
        }
    }
}

/// Lets webhooks change what was sent, or refuse it.
pub struct Mutating;

/// Lets webhooks refuse what has become of it.
pub struct Validating;

#[async_trait]
impl Plugin for Mutating {
    fn name(&self) -> &'static str {
        "MutatingAdmissionWebhook"
    }

    fn handles(&self, operation: &Operation) -> bool {
        !is_exempt(operation)
    }

    async fn mutate(
        &self,
        registry: &Registry,
        operation: &mut Operation,
    ) -> Result<Changed, ApiError> {
        let Some(hooks) = registry.webhooks.mutating.hooks(registry) else {
            return Ok(Changed::No);
        };
        operation.rounds.resume(operation.new.as_ref());
        let mut changed = Changed::No;
        for hook in hooks.iter() {
            let Some(seen) = wanted(registry, hook, operation)? else {
                continue;
            };
            if !operation.rounds.wants(&hook.id) {
                continue;
            }
            let outcome = mutate_by(registry, hook, operation, &seen).await;
            if let Ok(true) = outcome {
                operation.rounds.changed();
                changed = Changed::ByOthers;
            }
            // Even a webhook that could not be called may be tried again.
            if hook.reinvocation_policy == ReinvocationPolicy::IfNeeded {
                operation.rounds.called(&hook.id);
            }
            if let Err(failure) = outcome {
                settle(hook, failure)?;
            }
        }
        if changed == Changed::ByOthers {
            operation.rounds.pause(operation.new.as_ref());
        }
        Ok(changed)
    }
}

/// Asks one webhook, and does what it wants; whether that changed the object.
async fn mutate_by(
    registry: &Registry,
    hook: &Hook,
    operation: &mut Operation,
    seen: &Invocation,
) -> Result<bool, Failure> {
    let response = ask(registry, hook, operation, seen, Role::Mutating).await?;
    operation.warnings.extend(response.warnings);
    if !response.allowed {
        return Err(Failure::Decided(review::denial(
            &hook.name,
            &response.status,
        )));
    }
    if response.patch.is_empty() {
        return Ok(false);
    }
    apply(registry, hook, operation, seen, &response.patch)
}

#[async_trait]
impl Plugin for Validating {
    fn name(&self) -> &'static str {
        "ValidatingAdmissionWebhook"
    }

    fn handles(&self, operation: &Operation) -> bool {
        !is_exempt(operation)
    }

    async fn judge(&self, registry: &Registry, operation: &mut Operation) -> Result<(), ApiError> {
        let Some(hooks) = registry.webhooks.validating.hooks(registry) else {
            return Ok(());
        };
        let mut asked = Vec::new();
        for hook in hooks.iter() {
            if let Some(seen) = wanted(registry, hook, operation)? {
                asked.push((hook, seen));
            }
        }
        let shown = &*operation;
        let answers = asked
            .iter()
            .map(|(hook, seen)| ask(registry, hook, shown, seen, Role::Validating));
        let answers = join_all(answers).await;
        // All have been asked; the first refusal, in their order, is the answer, and the log has the others.
        let mut first = Ok(());
        for ((hook, _), answer) in asked.iter().zip(answers) {
            let verdict = match answer {
                Ok(response) => {
                    operation.warnings.extend(response.warnings);
                    match response.allowed {
                        true => Ok(()),
                        false => Err(review::denial(&hook.name, &response.status)),
                    }
                }
                Err(failure) => settle(hook, failure),
            };
            match (&first, verdict) {
                (_, Ok(())) => {}
                (Ok(()), refused) => first = refused,
                (Err(_), Err(other)) => {
                    tracing::warn!(webhook = hook.name, %other, "another webhook refused it too");
                }
            }
        }
        first
    }
}

/// How a webhook sees the request, if it wants to.
fn wanted(
    registry: &Registry,
    hook: &Arc<Hook>,
    operation: &Operation,
) -> Result<Option<Invocation>, ApiError> {
    let table = registry.table();
    let labels = |name: &str| {
        let entry = registry.namespaces.get(name)?;
        Some(entry.parse()["metadata"]["labels"].take())
    };
    let Some(seen) = invocation(hook, operation, table.resources(), &labels)? else {
        return Ok(None);
    };
    if !hook.has_conditions {
        return Ok(Some(seen));
    }
    // As kube-apiserver does for conditions that cannot be evaluated: the webhook is not called.
    if hook.failure_policy == FailurePolicy::Ignore {
        tracing::warn!(
            webhook = hook.name,
            "its matchConditions cannot be evaluated: it is passed over"
        );
        return Ok(None);
    }
    let gvk = &operation.resource.gvk;
    let detail = format!(
        "the matchConditions of webhook {:?} cannot be evaluated: this server does not evaluate CEL expressions",
        hook.name
    );
    let (plural, name) = (&operation.resource.plural, &operation.name);
    Err(ApiError::forbidden(&gvk.group, plural, name, &detail))
}

/// What a failure means to the request.
fn settle(hook: &Hook, failure: Failure) -> Result<(), ApiError> {
    let source = match failure {
        Failure::Decided(refusal) => return Err(refusal),
        Failure::Call(source) => source,
    };
    let failed = CallFailed {
        webhook: hook.name.clone(),
        source,
    };
    match hook.failure_policy {
        FailurePolicy::Ignore => {
            let error = &failed as &dyn std::error::Error;
            tracing::warn!(error, "failed calling a webhook, failing open");
            Ok(())
        }
        FailurePolicy::Fail => Err(ApiError::internal(&failed)),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("failed calling webhook {webhook:?}")]
struct CallFailed {
    webhook: String,
    source: CallError,
}
