//! PodSecurity: pods follow the Pod Security Standards that the labels of their namespace name (pod-security-admission, `admission`).
//!
//! Reading order: `policy` (what a namespace demands), `checks` (the table of checks, and which hold), then the checks by subject, and `existing`
//! (pods that were there before their namespace demanded more).
//! There is no record of audits: what `audit` finds is a line in the log.

mod baseline;
mod checks;
mod existing;
mod host;
mod policy;
mod profiles;
mod restricted;

use async_trait::async_trait;
use serde_json::Value;

use checks::{Pod, details, violations};
use policy::{LevelVersion, Policy};

use super::Plugin;
use crate::registry::Registry;
use crate::registry::operation::{Action, Operation};
use crate::resource::Subresource;
use crate::status::{ApiError, FieldError};
use crate::strategy::validation::items;

/// Where kinds that make pods have the template of them.
const TEMPLATES: [(&str, &str, &str); 8] = [
    ("", "podtemplates", "/template"),
    ("", "replicationcontrollers", "/spec/template"),
    ("apps", "daemonsets", "/spec/template"),
    ("apps", "deployments", "/spec/template"),
    ("apps", "replicasets", "/spec/template"),
    ("apps", "statefulsets", "/spec/template"),
    ("batch", "cronjobs", "/spec/jobTemplate/spec/template"),
    ("batch", "jobs", "/spec/template"),
];

/// Refuses pods that violate the standards of their namespace, and warns of templates of such.
pub struct PodSecurity;

/// What an operation is about.
enum Subject<'a> {
    /// The namespace's own labels.
    Namespace(&'a Value),
    /// A pod, which may be refused.
    Pod(Pod<'a>),
    /// The template of pods that may be refused later.
    Template(Pod<'a>),
}

#[async_trait]
impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, operation: &Operation) -> bool {
        matches!(operation.action, Action::Create | Action::Update)
            && operation.is_whole()
            && subject(operation).is_some()
    }

    async fn validate(&self, registry: &Registry, operation: &Operation) -> Result<(), ApiError> {
        let (pod, may_refuse) = match subject(operation) {
            Some(Subject::Namespace(namespace)) => {
                return check_labels(namespace, operation.old.as_ref(), &operation.name);
            }
            Some(Subject::Pod(pod)) => (pod, true),
            Some(Subject::Template(pod)) => (pod, false),
            None => return Ok(()),
        };
        let namespace = &operation.namespace;
        let Some(policy) = policy_of(registry, namespace) else {
            let message = format!("failed to lookup namespace {namespace}");
            return Err(ApiError::new(500, "InternalError", message));
        };
        if let Some(detail) = violation(policy.audit, pod) {
            let (resource, name) = (&operation.resource.plural, &operation.name);
            tracing::info!(namespace, resource, name, "would violate {detail}");
        }
        match violation(policy.enforce, pod) {
            Some(detail) if may_refuse => {
                let detail = format!("violates {detail}");
                Err(ApiError::forbidden("", "pods", &operation.name, &detail))
            }
            _ => Ok(()),
        }
    }

    async fn judge(&self, registry: &Registry, operation: &mut Operation) -> Result<(), ApiError> {
        self.validate(registry, operation).await?;
        let warnings = warnings(registry, operation);
        operation.warnings.extend(warnings);
        Ok(())
    }
}

/// What would be refused at the level that is only warned about.
fn warnings(registry: &Registry, operation: &Operation) -> Vec<String> {
    match subject(operation) {
        Some(Subject::Namespace(namespace)) => {
            let enforce = operation.old.as_ref().and_then(|old| {
                existing::stricter(
                    policy_by_labels(old).0.enforce,
                    policy_by_labels(namespace).0.enforce,
                )
            });
            enforce.map_or_else(Vec::new, |enforce| {
                existing::warnings(registry, &operation.name, enforce)
            })
        }
        Some(Subject::Pod(pod) | Subject::Template(pod)) => {
            let policy = policy_of(registry, &operation.namespace);
            let detail = policy.and_then(|policy| violation(policy.warn, pod));
            let warning = detail.map(|detail| format!("would violate {detail}"));
            warning.into_iter().collect()
        }
        None => Vec::new(),
    }
}

/// What is to be judged; none where nothing changes that matters.
fn subject(operation: &Operation) -> Option<Subject<'_>> {
    let new = operation.new.as_ref()?;
    if operation.is_about("", "namespaces") {
        return Some(Subject::Namespace(new));
    }
    let resource = &operation.resource;
    if resource.gvk.group.is_empty() && resource.plural == "pods" {
        let concerned = matches!(
            operation.subresource,
            None | Some(Subresource::EphemeralContainers | Subresource::Resize)
        );
        let old = operation.old.as_ref();
        let changes = old.is_none_or(|old| is_significant(new, old));
        let pod = Pod {
            metadata: &new["metadata"],
            spec: &new["spec"],
        };
        return (concerned && changes).then_some(Subject::Pod(pod));
    }
    let mut templates = TEMPLATES.iter();
    let (_, _, path) = templates.find(|(group, plural, _)| operation.is_about(group, plural))?;
    let template = new.pointer(path).filter(|template| template.is_object())?;
    Some(Subject::Template(Pod {
        metadata: &template["metadata"],
        spec: &template["spec"],
    }))
}

fn policy_of(registry: &Registry, namespace: &str) -> Option<Policy> {
    let entry = registry.namespaces.get(namespace)?;
    let label = |key: &str| {
        let mut labels = entry.labels.iter();
        labels.find(|(name, _)| **name == *key).map(|(_, v)| &**v)
    };
    Some(Policy::of(label).0)
}

fn policy_by_labels(namespace: &Value) -> (Policy, Vec<FieldError>) {
    let labels = &namespace["metadata"]["labels"];
    Policy::of(|key| labels[key].as_str())
}

/// `PodSecurity "restricted:latest": privileged (container "a" must not …)`.
fn violation(standards: LevelVersion, pod: Pod<'_>) -> Option<String> {
    let found = violations(standards, pod);
    let standards = standards.to_string();
    (!found.is_empty()).then(|| format!("PodSecurity {standards:?}: {}", details(&found)))
}

/// Labels that cannot be read are refused, unless they were there before.
fn check_labels(new: &Value, old: Option<&Value>, name: &str) -> Result<(), ApiError> {
    let errors = policy_by_labels(new).1;
    let known = old.map_or_else(Vec::new, |old| policy_by_labels(old).1);
    if errors.is_empty() || errors == known {
        return Ok(());
    }
    Err(ApiError::invalid("", "Namespace", name, &errors))
}

/// Whether a pod changes in something that standards are about: the rest of what they look at never changes.
fn is_significant(new: &Value, old: &Value) -> bool {
    let annotation = |key: &str| {
        let of = |pod: &Value| pod["metadata"]["annotations"][key].clone();
        of(new) != of(old)
    };
    let container = |list: &str, container: &Value| {
        let name = checks::text(&container["name"]);
        let before = items(&old["spec"][list])
            .map(|(_, before)| before)
            .find(|before| before["name"] == container["name"]);
        before.is_none_or(|before| before["image"] != container["image"])
            || annotation(&format!(
                "container.seccomp.security.alpha.kubernetes.io/{name}"
            ))
    };
    annotation("seccomp.security.alpha.kubernetes.io/pod")
        || ["initContainers", "containers", "ephemeralContainers"]
            .iter()
            .any(|list| items(&new["spec"][*list]).any(|(_, c)| container(list, c)))
}

#[cfg(test)]
mod tests;
