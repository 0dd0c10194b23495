//! The plugins against webhooks of the tests' own: a registry on a real store, and a TLS server on loopback.

mod answers;
mod calls;
mod failures;
mod matching;
mod pipeline;
mod server;

use std::sync::Arc;

use base64::Engine as _;
use knarr_store::{Op, RedbStore};
use serde_json::{Value, json};

use super::super::{Changed, Plugin as _};
use super::{Mutating, Validating};
use crate::registry::Registry;
use crate::registry::entry;
use crate::registry::operation::{Action, Operation};
use crate::registry::write::Target;
use crate::resource::Scope;
use crate::status::ApiError;
use crate::strategy::Context;
use server::Server;

const MUTATING: &str = "mutatingwebhookconfigurations";
const VALIDATING: &str = "validatingwebhookconfigurations";

/// A registry whose webhooks are those of the tests.
struct Cluster {
    registry: Registry,
    _dir: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let store = RedbStore::open(&dir.path().join("state.redb")).expect("a store");
        let kinds = crate::kinds::builtin();
        let range = "10.43.0.0/16".parse().expect("a network");
        let registry = Registry::open(Arc::new(store), kinds, range, 30000..=32767)
            .await
            .expect("a registry");
        let cluster = Self {
            registry,
            _dir: dir,
        };
        let labels = json!({ "team": "a" });
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "default", "labels": labels } });
        cluster.put("namespaces", "default", namespace).await;
        cluster
    }

    /// Stores an object as it is.
    async fn put(&self, prefix: &str, key: &str, object: Value) {
        let collection = self.registry.collection(prefix).expect("a collection");
        let op = Op::Put(collection.store_key(key), entry::encode(&object).into());
        let outcome = self.registry.commit(Vec::new(), vec![op]).await;
        outcome.expect("a commit");
    }

    /// Stores a configuration with these webhooks.
    async fn configure(&self, prefix: &str, name: &str, webhooks: &[Value]) {
        let object = json!({ "metadata": { "name": name }, "webhooks": webhooks });
        self.put(prefix, name, object).await;
    }

    async fn remove(&self, prefix: &str, key: &str) {
        let collection = self.registry.collection(prefix).expect("a collection");
        let op = Op::Delete(collection.store_key(key));
        let outcome = self.registry.commit(Vec::new(), vec![op]).await;
        outcome.expect("a commit");
    }

    /// An operation on the pod `default/p`.
    fn on_pod(&self, action: Action, old: Option<Value>, new: Option<Value>) -> Operation {
        self.on("", "v1", "pods", action, old, new)
    }

    fn on(
        &self,
        group: &str,
        version: &str,
        plural: &str,
        action: Action,
        old: Option<Value>,
        new: Option<Value>,
    ) -> Operation {
        let found = self.registry.find(group, version, plural);
        let (resource, collection) = found.expect("a resource");
        let object = new.as_ref().or(old.as_ref());
        let name = object.map_or("p", |object| {
            object["metadata"]["name"].as_str().expect("a name")
        });
        let namespaced = resource.scope == Scope::Namespaced;
        let target = Target {
            resource,
            collection: collection.expect("it is stored"),
            namespace: if namespaced { "default" } else { "" }.to_owned(),
            name: name.to_owned(),
        };
        let mut operation = Operation::new(action, &target, &Context::component("somebody"));
        (operation.old, operation.new) = (old, new);
        operation
    }

    /// The creation of a pod.
    fn creation(&self) -> Operation {
        self.on_pod(Action::Create, None, Some(pod()))
    }

    async fn mutate(&self, operation: &mut Operation) -> Result<Changed, ApiError> {
        Mutating.mutate(&self.registry, operation).await
    }

    async fn judge(&self, operation: &mut Operation) -> Result<(), ApiError> {
        Validating.judge(&self.registry, operation).await
    }
}

fn pod() -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "p", "namespace": "default", "uid": "u", "labels": { "app": "web" } },
        "spec": { "containers": [{ "name": "c", "image": "i:1" }] } })
}

/// A webhook of the server for everything that is done to anything; `more` replaces fields.
fn webhook(server: &Server, path: &str, more: Value) -> Value {
    let mut webhook = json!({
        "name": format!("{}.example.com", path.trim_start_matches('/').replace('/', "-")),
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "timeoutSeconds": 10,
        "clientConfig": { "url": format!("{}{path}", server.url), "caBundle": base64(&server.ca) },
        "rules": [{ "operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"] }],
    });
    for (field, value) in more.as_object().into_iter().flatten() {
        webhook[field] = value.clone();
    }
    webhook
}

fn base64(text: &str) -> String {
    base64::engine::general_purpose::STANDARD.encode(text)
}
