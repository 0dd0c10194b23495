//! ResourceQuota: what the objects of a namespace may use together (apiserver, `admission/plugin/resourcequota`).
//!
//! Whoever is admitted has raised `status.used` of each quota that it counts in before, each by a compare-and-swap. Used is
//! therefore never too little; what is too much, because the object was not made in the end or has gone, the quota controller
//! corrects. Reading order: `measure`, `used` (what an object uses), `scope` (which objects a quota counts), `evaluate` (what is left).

pub mod evaluate;
pub mod measure;
mod scope;
mod used;

use std::hash::{DefaultHasher, Hash, Hasher};

use async_trait::async_trait;
use serde_json::Value;
use tokio::sync::Mutex;

use evaluate::{Charge, evaluate};
use measure::Measure;
pub use used::class_of;

use super::{Plugin, amounts};
use crate::registry::Registry;
use crate::registry::operation::Operation;
use crate::registry::write::Target;
use crate::resource::Subresource;
use crate::status::ApiError;
use crate::strategy::Context;

/// Who raises the usage of a namespace takes turns with others: each try of many at once would have one winner. Namespaces
/// share turns, so that their number does not matter. Other servers are not waited for; they are why it is a compare-and-swap.
static TURNS: [Mutex<()>; 32] = [const { Mutex::const_new(()) }; 32];

/// Charges what is made, or grows, to the quotas of its namespace.
pub struct ResourceQuota;

#[async_trait]
impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        "ResourceQuota"
    }

    fn handles(&self, operation: &Operation) -> bool {
        !operation.namespace.is_empty()
            && operation.resource.strategy.review().is_none()
            && measure_of(operation).is_some_and(|measure| measure.concerns(operation))
    }

    async fn validate(&self, registry: &Registry, operation: &Operation) -> Result<(), ApiError> {
        let (Some(measure), Some(object)) = (measure_of(operation), &operation.new) else {
            return Ok(());
        };
        let Some((resource, Some(collection))) = registry.find("", "v1", "resourcequotas") else {
            return Ok(());
        };
        let scope = format!("{}/", operation.namespace);
        if collection.snapshot(&scope, "").entries.is_empty() {
            return Ok(());
        }
        let now = operation.context.now.parse();
        let charge = Charge {
            measure: &measure,
            object,
            old: operation.old.as_ref(),
            now: now.map_err(|error| ApiError::internal(&error))?,
            may_exceed: operation.subresource == Some(Subresource::Status),
        };
        let forbidden = |detail: String| {
            let resource = &operation.resource;
            let group = &resource.gvk.group;
            ApiError::forbidden(group, &resource.plural, &operation.name, &detail)
        };
        let _turn = turn(&operation.namespace).lock().await;
        // Every quota is asked before the first is charged.
        let mut charged = Vec::new();
        for entry in collection.snapshot(&scope, "").entries {
            let used = evaluate(&entry.parse(), &charge).map_err(forbidden)?;
            charged.extend(used.map(|_| entry.name().to_owned()));
        }
        if operation.context.dry_run {
            return Ok(());
        }
        let context = Context::component("apiserver");
        for name in charged {
            let target = Target {
                resource: resource.clone(),
                collection: collection.clone(),
                namespace: operation.namespace.clone(),
                name,
            };
            let change = |quota: &Value| {
                let mut quota = quota.clone();
                if let Some(used) = evaluate(&quota, &charge).map_err(forbidden)? {
                    quota["status"]["used"] = amounts::write(&used);
                }
                Ok(quota)
            };
            let status = Some(Subresource::Status);
            match registry.update(&target, status, &change, &context).await {
                // A quota that is gone bounds nothing.
                Err(error) if error.code == 404 => {}
                written => written.map(|_| ())?,
            }
        }
        Ok(())
    }
}

fn measure_of(operation: &Operation) -> Option<Measure> {
    let resource = &operation.resource;
    Measure::of(&resource.gvk.group, &resource.plural)
}

fn turn(namespace: &str) -> &'static Mutex<()> {
    let mut hasher = DefaultHasher::new();
    namespace.hash(&mut hasher);
    let turns = TURNS.len() as u64;
    &TURNS[usize::try_from(hasher.finish() % turns).expect("less than the number of turns")]
}

#[cfg(test)]
mod tests;
