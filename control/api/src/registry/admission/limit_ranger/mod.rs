//! LimitRanger: what a pod, a container or a claim may ask for, and what a container gets that does not ask (kubernetes,
//! `plugin/pkg/admission/limitranger`).

mod rules;

use async_trait::async_trait;
use serde_json::Value;

use rules::violations;

use super::{Changed, Plugin};
use crate::registry::operation::{Action, Operation};
use crate::registry::{Registry, meta};
use crate::resource::Subresource;
use crate::status::ApiError;
use crate::strategy::validation::items;

/// Where a pod says what it was given.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";
/// The lists of containers that limits hold for, and what the annotation calls one of them.
const CONTAINERS: [(&str, &str); 2] = [
    ("containers", "container"),
    ("initContainers", "init container"),
];

/// Holds pods, containers and claims to the limit ranges of their namespace.
pub struct LimitRanger;

#[async_trait]
impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, operation: &Operation) -> bool {
        let leaving = operation.old.as_ref().is_some_and(meta::is_terminating);
        let resource = &operation.resource;
        let core = |plural| resource.gvk.group.is_empty() && resource.plural == plural;
        let concerned = match operation.action {
            Action::Create => {
                operation.is_about("", "pods") || operation.is_about("", "persistentvolumeclaims")
            }
            // What a pod asks for changes in this way alone.
            Action::Update if operation.subresource == Some(Subresource::Resize) => core("pods"),
            Action::Update => operation.is_about("", "persistentvolumeclaims"),
            Action::Delete | Action::Connect => false,
        };
        concerned && !leaving
    }

    async fn mutate(
        &self,
        registry: &Registry,
        operation: &mut Operation,
    ) -> Result<Changed, ApiError> {
        if operation.resource.plural == "pods"
            && let Some(pod) = &mut operation.new
        {
            for range in ranges(registry, &operation.namespace) {
                fill(pod, &range);
            }
        }
        // Amounts have no defaults but these.
        Ok(Changed::No)
    }

    async fn validate(&self, registry: &Registry, operation: &Operation) -> Result<(), ApiError> {
        let Some(new) = &operation.new else {
            return Ok(());
        };
        let plural = &operation.resource.plural;
        for range in ranges(registry, &operation.namespace) {
            let wrong = violations(&range, plural, new, operation.old.as_ref());
            if !wrong.is_empty() {
                let detail = aggregate(wrong);
                return Err(ApiError::forbidden("", plural, &operation.name, &detail));
            }
        }
        Ok(())
    }
}

fn ranges(registry: &Registry, namespace: &str) -> Vec<Value> {
    let Some(collection) = registry.collection("limitranges") else {
        return Vec::new();
    };
    let entries = collection.snapshot(&format!("{namespace}/"), "").entries;
    entries.iter().map(|entry| entry.parse()).collect()
}

/// One mistake as it is, several as a list without repetitions (apimachinery, `util/errors`).
fn aggregate(mistakes: Vec<String>) -> String {
    let mut list: Vec<String> = Vec::new();
    for mistake in mistakes {
        if !list.contains(&mistake) {
            list.push(mistake);
        }
    }
    match &list[..] {
        [one] => one.clone(),
        list => format!("[{}]", list.join(", ")),
    }
}

/// Gives containers what they do not ask for, and says so in an annotation.
fn fill(pod: &mut Value, range: &Value) {
    let default = |field: &str| {
        let mut all = serde_json::Map::new();
        for (_, limit) in items(&range["spec"]["limits"]) {
            if limit["type"] == "Container" {
                all.extend(limit[field].as_object().cloned().unwrap_or_default());
            }
        }
        all
    };
    let defaults = [
        ("requests", "request", default("defaultRequest")),
        ("limits", "limit", default("default")),
    ];
    let mut said = Vec::new();
    for (list, kind) in CONTAINERS {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            for (field, word, amounts) in &defaults {
                let name = name_of(container);
                let mut set = Vec::new();
                for (resource, amount) in amounts {
                    let slot = &mut container["resources"][*field][resource];
                    if slot.is_null() {
                        *slot = amount.clone();
                        set.push(resource.as_str());
                    }
                }
                set.sort_unstable();
                if !set.is_empty() {
                    said.push(format!("{} {word} for {kind} {name}", set.join(", ")));
                }
            }
        }
    }
    if !said.is_empty() {
        let text = format!("LimitRanger plugin set: {}", said.join("; "));
        pod["metadata"]["annotations"][ANNOTATION] = text.into();
    }
}

fn name_of(container: &Value) -> String {
    container["name"].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
