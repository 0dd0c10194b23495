//! The ConfigMaps and Secrets that this node's pods refer to, each watched on its own.
//!
//! A watch per object (and not one for all) is what the Node authorizer of Kubernetes allows. A pod's task is woken
//! when an object that it has read changes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::panics;

/// Which kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    ConfigMap,
    Secret,
}

/// Names one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reference {
    pub(crate) kind: Kind,
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// The content of a ConfigMap or Secret, by key.
pub(crate) type Data = Arc<BTreeMap<String, Vec<u8>>>;

/// Why an object's content is not to be had.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ObjectError {
    /// The object does not exist; in the API server's words.
    #[error("{kind} \"{name}\" not found")]
    NotFound { kind: &'static str, name: String },
    /// The API server did not answer.
    #[error("failed to sync {kind} cache: {message}")]
    Unavailable { kind: &'static str, message: String },
}

#[derive(Clone)]
enum Content {
    Pending,
    Absent,
    Present(Data),
    Failed(String),
}

struct Entry {
    content: watch::Receiver<Content>,
    /// The pods that read the object, and how to wake them.
    readers: Arc<Mutex<HashMap<String, Arc<Notify>>>>,
    _stop: DropGuard,
}

/// The watches, shared by all pods of the node.
pub(crate) struct Objects {
    client: Client,
    entries: Mutex<HashMap<Reference, Entry>>,
}

impl Objects {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            entries: Mutex::new(HashMap::new()),
        }
    }

    /// The object's content now; watches it on behalf of the pod from then on.
    pub(crate) async fn get(
        &self,
        reference: &Reference,
        pod_uid: &str,
        wake: &Arc<Notify>,
    ) -> Result<Data, ObjectError> {
        let kind = match reference.kind {
            Kind::ConfigMap => "configmap",
            Kind::Secret => "secret",
        };
        let mut content = {
            let mut entries = self.entries.lock();
            let entry = entries
                .entry(reference.clone())
                .or_insert_with(|| start(self.client.clone(), reference.clone()));
            entry
                .readers
                .lock()
                .insert(pod_uid.to_owned(), wake.clone());
            entry.content.clone()
        };
        let now = content.wait_for(|c| !matches!(c, Content::Pending)).await;
        match now.as_deref() {
            Ok(Content::Present(data)) => Ok(data.clone()),
            Ok(Content::Absent) => Err(ObjectError::NotFound {
                kind,
                name: reference.name.clone(),
            }),
            Ok(Content::Failed(message)) => Err(ObjectError::Unavailable {
                kind,
                message: message.clone(),
            }),
            Ok(Content::Pending) | Err(_) => Err(ObjectError::Unavailable {
                kind,
                message: "the watch ended".to_owned(),
            }),
        }
    }

    /// Ends the watches that only this pod needed.
    pub(crate) fn forget(&self, pod_uid: &str) {
        self.entries.lock().retain(|_, entry| {
            let mut readers = entry.readers.lock();
            readers.remove(pod_uid);
            !readers.is_empty()
        });
    }
}

fn start(client: Client, reference: Reference) -> Entry {
    let (sender, content) = watch::channel(Content::Pending);
    let readers: Arc<Mutex<HashMap<String, Arc<Notify>>>> = Arc::default();
    let stop = CancellationToken::new();
    let task = {
        let readers = readers.clone();
        async move {
            let follow = || follow(&client, &reference, &sender, &readers);
            panics::supervised("object watch", follow).await;
        }
    };
    tokio::spawn(stop.clone().run_until_cancelled_owned(task));
    Entry {
        content,
        readers,
        _stop: stop.drop_guard(),
    }
}

async fn follow(
    client: &Client,
    reference: &Reference,
    sender: &watch::Sender<Content>,
    readers: &Mutex<HashMap<String, Arc<Notify>>>,
) {
    let publish = |content: Content| {
        let known = matches!((&content, &*sender.borrow()), (Content::Present(new), Content::Present(old)) if new == old);
        // Whoever waits for the first word gets it without being woken.
        if matches!(sender.send_replace(content), Content::Pending) || known {
            return;
        }
        for wake in readers.lock().values() {
            wake.notify_one();
        }
    };
    let config = watcher::Config::default().fields(&format!("metadata.name={}", reference.name));
    match reference.kind {
        Kind::ConfigMap => {
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), &reference.namespace);
            run(watcher(api, config), publish, config_map_data).await;
        }
        Kind::Secret => {
            let api: Api<Secret> = Api::namespaced(client.clone(), &reference.namespace);
            run(watcher(api, config), publish, secret_data).await;
        }
    }
}

async fn run<K>(
    stream: impl futures::Stream<Item = watcher::Result<watcher::Event<K>>>,
    publish: impl Fn(Content),
    data: fn(K) -> BTreeMap<String, Vec<u8>>,
) where
    K: 'static,
{
    let mut stream = std::pin::pin!(stream.default_backoff());
    let mut seen = None;
    let mut first = true;
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => seen = None,
            Ok(watcher::Event::InitApply(object)) => seen = Some(data(object)),
            Ok(watcher::Event::InitDone) => {
                publish(
                    seen.take()
                        .map_or(Content::Absent, |d| Content::Present(Arc::new(d))),
                );
                first = false;
            }
            Ok(watcher::Event::Apply(object)) => publish(Content::Present(Arc::new(data(object)))),
            Ok(watcher::Event::Delete(_)) => publish(Content::Absent),
            // Once something is known it stays good while the watch is being set up again.
            Err(error) if first => publish(Content::Failed(crate::runtime::chain(&error))),
            Err(error) => tracing::debug!(
                error = crate::runtime::chain(&error),
                "object watch interrupted"
            ),
        }
    }
}

fn config_map_data(object: ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = object
        .data
        .into_iter()
        .flatten()
        .map(|(k, v)| (k, v.into_bytes()));
    let binary = object
        .binary_data
        .into_iter()
        .flatten()
        .map(|(k, ByteString(v))| (k, v));
    text.chain(binary).collect()
}

fn secret_data(object: Secret) -> BTreeMap<String, Vec<u8>> {
    object
        .data
        .into_iter()
        .flatten()
        .map(|(k, ByteString(v))| (k, v))
        .collect()
}
