//! For tests of plugins: a registry over a real store, with stand-ins for kinds that matter to them.

use std::sync::Arc;

use knarr_store::RedbStore;
use serde_json::{Value, json};

use crate::kinds::{builtin, gvk};
use crate::registry::Registry;
use crate::registry::operation::{Action, Operation};
use crate::registry::write::Target;
use crate::resource::{Resource, Scope, Subresource};
use crate::strategy::{Context, Plain};

/// A kind by its `apiVersion`, its name, its plural, and where its objects live.
pub type Kind = (&'static str, &'static str, &'static str, Scope);

/// A registry with the namespace `shop`, in which nothing is special about these kinds.
pub async fn registry(directory: &tempfile::TempDir, plain: &[Kind]) -> Arc<Registry> {
    let mut kinds = builtin();
    let like = kinds.resources.iter().find(|r| r.plural == "configmaps");
    let like = Resource::clone(like.expect("config maps are built in"));
    for (api, kind, plural, scope) in plain {
        kinds.resources.retain(|r| r.plural != *plural);
        kinds.resources.push(Arc::new(Resource {
            gvk: gvk(api, kind),
            plural: (*plural).to_owned(),
            storage_prefix: (*plural).to_owned(),
            subresources: vec![Subresource::Status],
            scope: *scope,
            strategy: Arc::new(Plain),
            ..like.clone()
        }));
    }
    let store = RedbStore::open(&directory.path().join("store")).expect("a store");
    let range = "10.96.0.0/16".parse().expect("a network");
    let registry = Registry::open(Arc::new(store), kinds, range, 30_000..=32_767)
        .await
        .expect("a registry");
    let namespace = json!({ "metadata": { "name": "shop" } });
    create(&registry, "namespaces", "", namespace).await;
    Arc::new(registry)
}

/// Where objects of a resource are.
pub fn target(registry: &Registry, plural: &str, namespace: &str) -> Target {
    let table = registry.table();
    let resource = table.resources().iter().find(|r| r.plural == plural);
    let resource = resource.expect("it is served").clone();
    let collection = table.collection(&resource.storage_prefix);
    Target {
        collection: collection.expect("it is stored").clone(),
        resource,
        namespace: namespace.to_owned(),
        name: String::new(),
    }
}

/// Makes an object.
pub async fn create(registry: &Registry, plural: &str, namespace: &str, mut object: Value) {
    let target = target(registry, plural, namespace);
    object["apiVersion"] = target.resource.gvk.api_version().into();
    object["kind"] = target.resource.gvk.kind.clone().into();
    let context = Context::component("test");
    let created = registry.create(&target, object, &context).await;
    created.unwrap_or_else(|error| panic!("{plural}: {error}"));
}

/// The request to make an object.
pub fn creation(registry: &Registry, plural: &str, namespace: &str, object: Value) -> Operation {
    let target = target(registry, plural, namespace);
    let mut operation = Operation::new(Action::Create, &target, &Context::component("test"));
    operation.name = object["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    operation.new = Some(object);
    operation
}
