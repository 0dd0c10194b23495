//! Deletion of namespaces: everything in it first, then its finalizer.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Error;
use kube::api::{DeleteParams, ListParams, PropagationPolicy};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api;
use crate::cache::Key;
use crate::context::Context;
use crate::discovery::{Resource, discover};
use crate::model::{self, Namespace, Written};
use crate::queue::{Next, Queue};
use crate::supervise::Loop;

/// The finalizer that this controller removes.
const FINALIZER: &str = "kubernetes";
/// While something is left it is looked at again after this time; the end of a pod wakes the controller at once.
const AGAIN: Duration = Duration::from_millis(500);

/// Why a run ended early; the namespace comes back after a while.
#[derive(Debug, thiserror::Error)]
enum SyncError {
    #[error("discover what namespace {namespace} may hold")]
    Discover { namespace: Arc<str>, source: Error },
    #[error("write the status of namespace {namespace}")]
    Status { namespace: Arc<str>, source: Error },
    #[error("remove the finalizer of namespace {namespace}")]
    Finalize { namespace: Arc<str>, source: Error },
}

/// What is left of one resource in a namespace.
#[derive(Debug, Default, PartialEq, Eq)]
struct Rest {
    what: String,
    count: usize,
    finalizers: Vec<String>,
    error: Option<String>,
}

/// Registers for changes; what the returned function makes works until stopped.
pub(crate) fn start(ctx: Context) -> Loop {
    let queue = Arc::new(Queue::default());
    let keys = queue.clone();
    ctx.caches.namespaces.on_change(move |change| {
        if let Some(namespace) = change
            .new
            .filter(|namespace| model::is_deleting(&namespace.metadata))
        {
            keys.add(Key::of(&namespace.metadata));
        }
    });
    let (keys, namespaces) = (queue.clone(), ctx.caches.namespaces.clone());
    ctx.caches.pods.on_change(move |change| {
        if let (Some(pod), None) = (change.old, change.new) {
            let key = Key::new("", model::namespace(&pod.metadata));
            if namespaces
                .get(&key)
                .is_some_and(|namespace| model::is_deleting(&namespace.metadata))
            {
                keys.add(key);
            }
        }
    });
    let work = ctx.clone();
    queue.worker("namespace", 4, ctx.stop.clone(), move |key| {
        let ctx = work.clone();
        async move { sync(&ctx, &key).await }
    })
}

async fn sync(ctx: &Context, key: &Key) -> Result<Next, SyncError> {
    let Some(namespace) = ctx
        .caches
        .namespaces
        .get(key)
        .filter(|namespace| model::is_deleting(&namespace.metadata))
    else {
        return Ok(Next::OnChange);
    };
    if !namespace
        .spec
        .finalizers
        .iter()
        .any(|finalizer| finalizer == FINALIZER)
    {
        return Ok(Next::OnChange);
    }
    let (discovered, rests) = match discover(&ctx.client).await {
        Ok(resources) => (Ok(()), empty_namespace(ctx, &key.name, resources).await),
        Err(error) => (Err(error), Vec::new()),
    };
    // That something failed is written down before it is tried again, and that nothing is left before the namespace goes: something
    // else may hold it.
    write_conditions(ctx, &namespace, key, discovered.as_ref().err(), &rests)
        .await
        .map_err(|source| SyncError::Status {
            namespace: key.name.clone(),
            source,
        })?;
    discovered.map_err(|source| SyncError::Discover {
        namespace: key.name.clone(),
        source,
    })?;
    if !rests.is_empty() {
        return Ok(Next::After(AGAIN));
    }
    finalize(ctx, &namespace, key)
        .await
        .map_err(|source| SyncError::Finalize {
            namespace: key.name.clone(),
            source,
        })?;
    Ok(Next::OnChange)
}

/// Deletes what these resources hold in a namespace; answers what is left after that.
async fn empty_namespace(
    ctx: &Context,
    namespace: &str,
    resources: Vec<Arc<Resource>>,
) -> Vec<Rest> {
    let (pods, others): (Vec<_>, Vec<_>) = resources
        .into_iter()
        .filter(|resource| resource.namespaced)
        .partition(|resource| resource.group.is_empty() && resource.plural == "pods");
    // Pods go first, so that nothing that they use is taken from under them.
    let rests = empty_all(ctx, namespace, &pods).await;
    if rests.is_empty() {
        empty_all(ctx, namespace, &others).await
    } else {
        rests
    }
}

async fn empty_all(ctx: &Context, namespace: &str, resources: &[Arc<Resource>]) -> Vec<Rest> {
    let rests = join_all(resources.iter().map(|resource| async {
        let rest = match empty(ctx, namespace, resource).await {
            Ok(rest) => rest,
            // A kind that went meanwhile holds nothing.
            Err(error) if api::is_not_found(&error) => Rest::default(),
            Err(error) => Rest {
                error: Some(error.to_string()),
                ..Rest::default()
            },
        };
        Rest {
            what: describe(resource),
            ..rest
        }
    }))
    .await;
    rests
        .into_iter()
        .filter(|rest| rest.count > 0 || rest.error.is_some())
        .collect()
}

fn describe(resource: &Resource) -> String {
    if resource.group.is_empty() {
        format!("{}.", resource.plural)
    } else {
        format!("{}.{}", resource.plural, resource.group)
    }
}

#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    items: Vec<Written>,
}

/// Deletes every object of a resource; answers what is left after that.
async fn empty(ctx: &Context, namespace: &str, resource: &Resource) -> Result<Rest, Error> {
    let requests = resource.requests(namespace);
    let list = || {
        requests
            .list_metadata(&ListParams::default())
            .map_err(Error::BuildRequest)
    };
    let before: Listed = ctx.client.request(list()?).await?;
    if before.items.is_empty() {
        return Ok(Rest::default());
    }
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Background),
        ..DeleteParams::default()
    };
    if resource.can("deletecollection") {
        let request = requests
            .delete_collection(&params, &ListParams::default())
            .map_err(Error::BuildRequest)?;
        ctx.client.request::<Value>(request).await?;
    } else {
        for item in before
            .items
            .iter()
            .filter(|item| !model::is_deleting(&item.metadata))
        {
            let request = requests
                .delete(model::name(&item.metadata), &params)
                .map_err(Error::BuildRequest)?;
            match ctx.client.request::<Value>(request).await {
                Err(error) if !api::is_not_found(&error) => return Err(error),
                _ => {}
            }
        }
    }
    let after: Listed = ctx.client.request(list()?).await?;
    Ok(Rest {
        count: after.items.len(),
        finalizers: after
            .items
            .into_iter()
            .flat_map(|item| item.metadata.finalizers.unwrap_or_default())
            .collect(),
        ..Rest::default()
    })
}

/// Takes our finalizer from `spec.finalizers`. All else stays as the server has it: what is missing in what is written would be
/// removed, other people's `metadata.finalizers` too.
async fn finalize(ctx: &Context, namespace: &Namespace, key: &Key) -> Result<(), Error> {
    let mut object: Value = match api::get::<Namespace, Value>(&ctx.client, "", &key.name).await {
        Err(error) if api::is_not_found(&error) => return Ok(()),
        answer => answer?,
    };
    if object["metadata"]["uid"].as_str() != namespace.metadata.uid.as_deref() {
        return Ok(());
    }
    if let Some(finalizers) = object["spec"]["finalizers"].as_array_mut() {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    match api::replace_part::<Namespace>(&ctx.client, "", &key.name, "finalize", &object).await {
        Err(error) if !api::is_not_found(&error) => Err(error),
        _ => Ok(()),
    }
}

/// The conditions that `kubectl describe` shows while a namespace does not go.
fn conditions(
    undiscovered: Option<&Error>,
    rests: &[Rest],
) -> Vec<(&'static str, bool, &'static str, String)> {
    let errors: Vec<_> = rests
        .iter()
        .filter_map(|rest| rest.error.as_deref())
        .collect();
    let contents: Vec<_> = (rests.iter().filter(|rest| rest.count > 0))
        .map(|rest| format!("{} has {} resource instances", rest.what, rest.count))
        .collect();
    let mut finalizers = std::collections::BTreeMap::new();
    for finalizer in rests.iter().flat_map(|rest| &rest.finalizers) {
        *finalizers.entry(finalizer).or_insert(0) += 1;
    }
    let finalizers: Vec<_> = finalizers
        .into_iter()
        .map(|(name, count)| format!("{name} in {count} resource instances"))
        .collect();
    vec![
        match undiscovered {
            None => (
                "NamespaceDeletionDiscoveryFailure",
                false,
                "ResourcesDiscovered",
                "All resources successfully discovered".to_owned(),
            ),
            Some(error) => (
                "NamespaceDeletionDiscoveryFailure",
                true,
                "DiscoveryFailed",
                error.to_string(),
            ),
        },
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".to_owned(),
        ),
        if errors.is_empty() {
            let message = "All content successfully deleted, may be waiting on finalization";
            (
                "NamespaceDeletionContentFailure",
                false,
                "ContentDeleted",
                message.to_owned(),
            )
        } else {
            let message = format!(
                "Failed to delete all resource types, {} remaining: {}",
                errors.len(),
                errors.join(", ")
            );
            (
                "NamespaceDeletionContentFailure",
                true,
                "ContentDeletionFailed",
                message,
            )
        },
        if contents.is_empty() {
            (
                "NamespaceContentRemaining",
                false,
                "ContentRemoved",
                "All content successfully removed".to_owned(),
            )
        } else {
            (
                "NamespaceContentRemaining",
                true,
                "SomeResourcesRemain",
                format!("Some resources are remaining: {}", contents.join(", ")),
            )
        },
        if finalizers.is_empty() {
            (
                "NamespaceFinalizersRemaining",
                false,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished".to_owned(),
            )
        } else {
            let message = format!(
                "Some content in the namespace has finalizers remaining: {}",
                finalizers.join(", ")
            );
            (
                "NamespaceFinalizersRemaining",
                true,
                "SomeFinalizersRemain",
                message,
            )
        },
    ]
}

async fn write_conditions(
    ctx: &Context,
    namespace: &Namespace,
    key: &Key,
    undiscovered: Option<&Error>,
    rests: &[Rest],
) -> Result<(), Error> {
    let wanted = conditions(undiscovered, rests);
    let known = &namespace.status.conditions;
    let find = |kind: &str| known.iter().find(|condition| condition.type_ == kind);
    let text = |is: bool| if is { "True" } else { "False" };
    let same = wanted.iter().all(|(kind, is, _, message)| {
        find(kind).is_some_and(|condition| {
            condition.status == text(*is) && condition.message.as_deref() == Some(message)
        })
    });
    if same {
        return Ok(());
    }
    let conditions: Vec<_> = (wanted.into_iter())
        .map(|(kind, is, reason, message)| {
            let since = find(kind).filter(|condition| condition.status == text(is)).and_then(|condition| condition.last_transition_time.clone());
            json!({"type": kind, "status": text(is), "reason": reason, "message": message, "lastTransitionTime": since.unwrap_or(Time(Timestamp::now()))})
        })
        .collect();
    let body = json!({"metadata": {"uid": namespace.metadata.uid}, "status": {"phase": "Terminating", "conditions": conditions}});
    match api::patch_status::<Namespace>(&ctx.client, "", &key.name, &body).await {
        Err(error) if !api::is_not_found(&error) && !api::is_conflict(&error) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conditions_name_what_is_left() {
        let rests = [
            Rest {
                what: "pods.".into(),
                count: 2,
                finalizers: vec!["a/b".into(), "a/b".into()],
                error: None,
            },
            Rest {
                what: "secrets.".into(),
                error: Some("no".into()),
                ..Rest::default()
            },
        ];
        let conditions = conditions(None, &rests);
        let of = |kind: &str| {
            conditions
                .iter()
                .find(|condition| condition.0 == kind)
                .map(|condition| (condition.1, condition.3.as_str()))
        };
        assert_eq!(
            of("NamespaceContentRemaining"),
            Some((
                true,
                "Some resources are remaining: pods. has 2 resource instances"
            ))
        );
        assert_eq!(
            of("NamespaceFinalizersRemaining"),
            Some((
                true,
                "Some content in the namespace has finalizers remaining: a/b in 2 resource instances"
            ))
        );
        assert_eq!(
            of("NamespaceDeletionContentFailure"),
            Some((true, "Failed to delete all resource types, 1 remaining: no"))
        );
    }
}
