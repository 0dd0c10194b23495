//! Custom resources: the table of what is served follows the CustomResourceDefinitions.
//!
//! kube-apiserver has a controller each for their names, for serving them, for their deletion. Here one task does all three, one
//! definition after the other, whenever one of them, or an object of one that is being deleted, changes.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::select_all;
use knarr_store::Revision;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::collection::{Collection, Cursor};
use super::delete::{self, DeleteRequest};
use super::lanes::View;
use super::write::Target;
use super::{Registry, meta};
use crate::crd::{CLEANUP_FINALIZER, conditions, is_established, resources, terminating};
use crate::kinds::{self, Kinds};
use crate::resource::{Resource, Subresource, Verb};
use crate::schema::Schemas;
use crate::status::ApiError;
use crate::strategy::Context;

/// Where definitions are stored.
pub const DEFINITIONS: &str = "apiextensions.k8s.io/customresourcedefinitions";
const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";
/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// What the definitions of the moment serve.
#[derive(Default)]
pub struct Served {
    /// By the definition's name: as of which revision, and its resources.
    by_name: HashMap<String, (Revision, Vec<Arc<Resource>>)>,
}

impl Registry {
    /// Serves what the established definitions define, and nothing else.
    ///
    /// # Errors
    ///
    /// If the store cannot be read.
    pub async fn serve_definitions(&self, served: &mut Served) -> Result<(), ApiError> {
        let Some(definitions) = self.collection(DEFINITIONS) else {
            return Err(ApiError::no_such_path());
        };
        let snapshot = definitions.snapshot("", "");
        let mut now = HashMap::new();
        let mut changed = false;
        for entry in &snapshot.entries {
            let name = entry.name().to_owned();
            if let Some(same) = served
                .by_name
                .remove(&name)
                .filter(|(at, _)| *at == entry.revision)
            {
                now.insert(name, same);
                continue;
            }
            changed = true;
            let crd = entry.parse();
            if !is_established(&crd) {
                continue;
            }
            match resources(&crd) {
                Ok(resources) => {
                    let resources = resources
                        .into_iter()
                        .map(|resource| Arc::new(offered(resource, &crd)));
                    now.insert(name, (entry.revision, resources.collect()));
                }
                Err(error) => tracing::error!(name, %error, "a definition cannot be served"),
            }
        }
        changed |= !served.by_name.is_empty();
        served.by_name = now;
        if !changed {
            return Ok(());
        }
        let mut custom: Vec<Arc<Resource>> = served
            .by_name
            .values()
            .flat_map(|(_, resources)| resources.clone())
            .collect();
        // Groups one after the other, of their versions the preferred one first, as kube-apiserver shows them.
        custom.sort_by(|a, b| {
            let of = |r: &Resource| {
                (
                    r.gvk.group.clone(),
                    std::cmp::Reverse(rank(&r.gvk.version)),
                    r.plural.clone(),
                )
            };
            of(a).cmp(&of(b))
        });
        self.serve(|_| with_custom(custom))
            .await
            .map_err(|error| super::write::store_error(&error))
    }

    /// Writes what is to be said of a definition; says whether it is as it should be.
    async fn settle(&self, name: &str) -> Result<(), ApiError> {
        let Some((resource, Some(collection))) = self.find(GROUP, "v1", PLURAL) else {
            return Err(ApiError::no_such_path());
        };
        let target = Target {
            resource,
            collection,
            namespace: String::new(),
            name: name.to_owned(),
        };
        let ctx = Context::component("system:apiserver");
        let others: Vec<Value> = (target.collection.snapshot("", "").entries.iter())
            .filter(|entry| entry.name() != name)
            .map(|entry| entry.parse())
            .collect();
        let say = |crd: &Value| {
            let group = &crd["spec"]["group"];
            let taken = |name: &str| {
                let same_group = others
                    .iter()
                    .filter(|other| other["spec"]["group"] == *group);
                same_group
                    .into_iter()
                    .any(|other| has_name(&other["status"]["acceptedNames"], name))
            };
            let mut new = crd.clone();
            new["status"] = conditions(crd, taken, &meta::now());
            Ok(new)
        };
        self.update(&target, Some(Subresource::Status), &say, &ctx)
            .await
            .map(drop)
    }

    /// Deletes the objects of a definition that is being deleted, and lets it go once there are none.
    async fn empty(&self, crd: &Value) -> Result<(), ApiError> {
        let Some((resource, Some(definitions))) = self.find(GROUP, "v1", PLURAL) else {
            return Err(ApiError::no_such_path());
        };
        let ctx = Context::component("system:apiserver");
        if let Some((resource, objects)) = self.objects_of(crd) {
            let of_all = Target {
                resource,
                collection: objects.clone(),
                namespace: String::new(),
                name: String::new(),
            };
            for entry in objects.snapshot("", "").entries {
                let target = delete::of_entry(&of_all, &entry);
                match self.delete(&target, &DeleteRequest::default(), &ctx).await {
                    Err(error) if !delete::is_missing(&error) => return Err(error),
                    _ => {}
                }
            }
            if !objects.is_empty() {
                return Ok(());
            }
        }
        let target = Target {
            resource,
            collection: definitions,
            namespace: String::new(),
            name: meta::text(crd, "name").to_owned(),
        };
        let done = |crd: &Value| {
            let mut new = crd.clone();
            new["status"] = terminating(crd, &meta::now());
            Ok(new)
        };
        self.update(&target, Some(Subresource::Status), &done, &ctx)
            .await?;
        let let_go = |crd: &Value| {
            let mut new = crd.clone();
            let rest: Vec<String> = (meta::finalizers(crd).into_iter())
                .filter(|name| *name != CLEANUP_FINALIZER)
                .map(str::to_owned)
                .collect();
            meta::set_finalizers(&mut new, &rest);
            Ok(new)
        };
        self.update(&target, None, &let_go, &ctx).await.map(drop)
    }

    /// The resource and the objects of a definition, if it is served.
    fn objects_of(&self, crd: &Value) -> Option<(Arc<Resource>, Arc<Collection>)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let group = text(&crd["spec"]["group"]);
        let plural = text(&crd["spec"]["names"]["plural"]);
        let table = self.table();
        let resource = table
            .resources()
            .iter()
            .find(|r| r.gvk.group == group && r.plural == plural)?;
        let objects = table.collection(&resource.storage_prefix)?;
        Some((resource.clone(), objects.clone()))
    }

    /// What there is to do about the definitions: their status, what is served, those that go. Returns what else to wait for.
    async fn reconcile_definitions(
        &self,
        served: &mut Served,
    ) -> Result<Vec<Arc<Collection>>, ApiError> {
        let Some(definitions) = self.collection(DEFINITIONS) else {
            return Err(ApiError::no_such_path());
        };
        for entry in definitions.snapshot("", "").entries {
            match self.settle(entry.name()).await {
                Err(error) if !delete::is_missing(&error) => return Err(error),
                _ => {}
            }
        }
        self.serve_definitions(served).await?;
        let mut waits = Vec::new();
        for entry in definitions.snapshot("", "").entries {
            let crd = entry.parse();
            let cleans = meta::finalizers(&crd).contains(&CLEANUP_FINALIZER);
            if !meta::is_terminating(&crd) || !cleans {
                continue;
            }
            let objects = self.objects_of(&crd).map(|(_, objects)| objects);
            match self.empty(&crd).await {
                Err(error) if !delete::is_missing(&error) => return Err(error),
                _ => waits.extend(objects),
            }
        }
        Ok(waits)
    }
}

/// Nothing new is made of a definition that is being deleted.
fn offered(mut resource: Resource, crd: &Value) -> Resource {
    if meta::is_terminating(crd) {
        resource.verbs.retain(|verb| *verb != Verb::Create);
    }
    resource
}

/// The built-in kinds with these besides.
fn with_custom(custom: Vec<Arc<Resource>>) -> Kinds {
    let Kinds {
        mut resources,
        schemas,
    } = kinds::builtin();
    let mut schemas = Schemas::clone(&schemas);
    for resource in custom {
        schemas.insert(resource.gvk.clone(), resource.schema.clone());
        resources.push(resource);
    }
    Kinds {
        resources,
        schemas: Arc::new(schemas),
    }
}

/// How a version ranks beside others of its group: GA before beta before alpha, newer before older (apimachinery `version`).
fn rank(version: &str) -> (u8, u32, u32, std::cmp::Reverse<String>) {
    let other = || (0, 0, 0, std::cmp::Reverse(version.to_owned()));
    let Some(rest) = version.strip_prefix('v') else {
        return other();
    };
    let digits = |text: &str| {
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len())
    };
    let (major, rest) = rest.split_at(digits(rest));
    let Ok(major) = major.parse::<u32>() else {
        return other();
    };
    let same = std::cmp::Reverse(String::new());
    let minor = |text: &str| text.parse::<u32>().ok();
    match rest {
        "" => (3, major, 0, same),
        _ => match (rest.strip_prefix("beta"), rest.strip_prefix("alpha")) {
            (Some(beta), _) => minor(beta).map_or_else(other, |minor| (2, major, minor, same)),
            (_, Some(alpha)) => minor(alpha).map_or_else(other, |minor| (1, major, minor, same)),
            _ => other(),
        },
    }
}

fn has_name(accepted: &Value, name: &str) -> bool {
    let one = ["plural", "singular", "kind", "listKind"];
    let short = accepted["shortNames"].as_array().into_iter().flatten();
    one.iter().any(|field| accepted[*field] == name) || short.into_iter().any(|known| known == name)
}

/// Follows the definitions until `stop` or the end of the registry.
pub async fn keep(registry: Weak<Registry>, stop: CancellationToken) {
    let Some(definitions) = registry
        .upgrade()
        .and_then(|all| all.collection(DEFINITIONS))
    else {
        return;
    };
    let mut served = Served::default();
    loop {
        let mut cursor = definitions.snapshot_and_follow(&View::Whole, "").1;
        let Some(upgraded) = registry.upgrade() else {
            return;
        };
        let done = upgraded.reconcile_definitions(&mut served).await;
        drop(upgraded);
        let mut waits: Vec<Cursor> = Vec::new();
        match &done {
            Ok(emptied) => {
                let follow =
                    |objects: &Arc<Collection>| objects.snapshot_and_follow(&View::Whole, "");
                for (snapshot, cursor) in emptied.iter().map(follow) {
                    // The last one may have gone since they were counted.
                    if snapshot.entries.is_empty() {
                        continue;
                    }
                    waits.push(cursor);
                }
            }
            Err(error) => tracing::warn!(
                reason = error.message,
                "definitions of resources are not as they should be"
            ),
        }
        let again =
            done.as_ref().is_err() || done.is_ok_and(|emptied| emptied.len() != waits.len());
        let changes = waits.iter_mut().map(|cursor| cursor.changed().boxed());
        let any = select_all(changes.chain([cursor.changed().boxed()]));
        tokio::select! {
            () = stop.cancelled() => return,
            _ = any => {}
            () = tokio::time::sleep(PAUSE), if again => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_rank_as_kubernetes_ranks_them() {
        let ranked = [
            "v10",
            "v2",
            "v1",
            "v11beta2",
            "v10beta3",
            "v3beta1",
            "v12alpha1",
            "v11alpha2",
            "foo1",
            "foo10",
        ];
        let mut sorted = ranked;
        sorted.sort_by_key(|version| std::cmp::Reverse(rank(version)));
        assert_eq!(sorted, ranked);
    }
}
