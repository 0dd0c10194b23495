//! Events of pods and of the node, counted when they repeat.

use std::borrow::Cow;
use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::mpsc;

use crate::panics;
use crate::pod::{self, Kind, PodKey};

/// How many different events are remembered for counting.
const REMEMBERED: usize = 1024;
/// How many events may wait for the API server; more are dropped, as in client-go.
const QUEUE: usize = 1000;

/// Whether an event tells of a mishap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Severity {
    Normal,
    Warning,
}

#[derive(Clone, Debug)]
struct Entry {
    object: ObjectReference,
    severity: Severity,
    reason: Cow<'static, str>,
    message: String,
    at: Timestamp,
}

/// Where the agent's events go. Cheap to clone; recording never waits.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    queue: mpsc::Sender<Entry>,
}

impl Events {
    /// The recorder, and the task that writes what is recorded.
    pub(crate) fn new(client: Client, node: String) -> (Self, impl Future<Output = ()> + Send) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        (Self { queue }, write(client, node, receiver))
    }

    /// Records an event of a pod, or of one of its containers.
    pub(crate) fn pod(
        &self,
        pod: &Pod,
        container: Option<&str>,
        severity: Severity,
        reason: impl Into<Cow<'static, str>>,
        message: String,
    ) {
        let key = PodKey::of(pod);
        let field_path = container.map(|name| {
            let kind = pod::find_container(pod::spec(pod), name).map_or(Kind::Regular, |(_, k)| k);
            pod::field_path(name, kind)
        });
        self.record(
            ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(key.name),
                namespace: Some(key.namespace),
                uid: Some(key.uid),
                resource_version: pod.metadata.resource_version.clone(),
                field_path,
            },
            severity,
            reason,
            message,
        );
    }

    /// Records an event of the node itself.
    pub(crate) fn node(
        &self,
        name: &str,
        severity: Severity,
        reason: impl Into<Cow<'static, str>>,
        message: String,
    ) {
        self.record(
            ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(name.to_owned()),
                uid: Some(name.to_owned()),
                ..ObjectReference::default()
            },
            severity,
            reason,
            message,
        );
    }

    fn record(
        &self,
        object: ObjectReference,
        severity: Severity,
        reason: impl Into<Cow<'static, str>>,
        message: String,
    ) {
        let entry = Entry {
            object,
            severity,
            reason: reason.into(),
            message,
            at: Timestamp::now(),
        };
        if let Err(error) = self.queue.try_send(entry) {
            tracing::warn!(%error, "event dropped");
        }
    }
}

#[derive(PartialEq, Eq, Hash)]
struct Sameness {
    uid: String,
    field_path: String,
    severity: Severity,
    reason: Cow<'static, str>,
    message: String,
}

struct Known {
    name: String,
    count: i32,
    used: Timestamp,
}

async fn write(client: Client, node: String, mut queue: mpsc::Receiver<Entry>) {
    let mut known: HashMap<Sameness, Known> = HashMap::new();
    while let Some(entry) = queue.recv().await {
        let written = panics::caught(write_one(&client, &node, &mut known, entry)).await;
        if let Err(message) = written {
            tracing::error!(message, "the writing of an event panicked");
        }
    }
}

async fn write_one(
    client: &Client,
    node: &str,
    known: &mut HashMap<Sameness, Known>,
    entry: Entry,
) {
    let namespace = entry
        .object
        .namespace
        .clone()
        .unwrap_or_else(|| "default".to_owned());
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let key = Sameness {
        uid: entry.object.uid.clone().unwrap_or_default(),
        field_path: entry.object.field_path.clone().unwrap_or_default(),
        severity: entry.severity,
        reason: entry.reason.clone(),
        message: entry.message.clone(),
    };
    if let Some(seen) = known.get_mut(&key) {
        seen.count += 1;
        seen.used = entry.at;
        let patch = serde_json::json!({"count": seen.count, "lastTimestamp": Time(entry.at)});
        match api
            .patch(&seen.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => return,
            // It has expired; it is written anew below.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => {
                tracing::warn!(error = crate::runtime::chain(&error), "write event");
                return;
            }
        }
    }
    let name = format!(
        "{}.{:x}{:04x}",
        entry.object.name.as_deref().unwrap_or_default(),
        entry.at.as_nanosecond(),
        rand::random::<u16>()
    );
    let event = event(node, &namespace, &name, &entry);
    match api.create(&PostParams::default(), &event).await {
        Ok(_) => {
            if known.len() >= REMEMBERED {
                // Half is let go at once, so that this happens rarely.
                let mut times: Vec<Timestamp> = known.values().map(|k| k.used).collect();
                times.sort_unstable();
                let middle = times[times.len() / 2];
                known.retain(|_, k| k.used > middle);
            }
            known.insert(
                key,
                Known {
                    name,
                    count: 1,
                    used: entry.at,
                },
            );
        }
        // The namespace is going away: nobody is left to read it.
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
            tracing::debug!(message = status.message, "event refused");
        }
        Err(error) => tracing::warn!(error = crate::runtime::chain(&error), "write event"),
    }
}

fn event(node: &str, namespace: &str, name: &str, entry: &Entry) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: entry.object.clone(),
        reason: Some(entry.reason.to_string()),
        message: Some(entry.message.clone()),
        source: Some(EventSource {
            component: Some("kubelet".to_owned()),
            host: Some(node.to_owned()),
        }),
        first_timestamp: Some(Time(entry.at)),
        last_timestamp: Some(Time(entry.at)),
        count: Some(1),
        type_: Some(
            match entry.severity {
                Severity::Normal => "Normal",
                Severity::Warning => "Warning",
            }
            .to_owned(),
        ),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}
