//! Events for users: what a controller did, or could not do, to an object.
//!
//! Recording never waits: events go through a bounded channel to one task that writes them. The same event again raises the
//! count of the first; an object that causes too many loses the rest, as with Kubernetes' own recorder.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, ObjectReference};
use kube::{Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api;
use crate::model::{self, Written};
use crate::supervise::Loop;

/// Whether an event tells of something usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    /// All is well.
    Normal,
    /// Somebody should look.
    Warning,
}

/// Records events in the name of one component.
#[derive(Clone)]
pub struct Recorder {
    component: &'static str,
    sender: mpsc::Sender<Record>,
}

struct Record {
    component: &'static str,
    subject: ObjectReference,
    severity: Severity,
    reason: &'static str,
    message: String,
}

/// How many events may wait to be written; what comes on top is dropped.
const WAITING: usize = 2048;
/// How many different events are remembered for counting.
const REMEMBERED: usize = 2048;
/// For how long an event is remembered.
const MEMORY: Duration = Duration::from_secs(600);
/// How many events one object may cause at once, and after which time it may cause one more. Source: client-go, `record/events_cache.go`.
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);

impl Recorder {
    /// A recorder, and the loop that writes what it records.
    pub fn start(component: &'static str, client: Client, stop: CancellationToken) -> (Self, Loop) {
        let (sender, receiver) = mpsc::channel(WAITING);
        // Held by the one run of the loop that there is at a time.
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        let writing = move || {
            let (client, receiver, stop) = (client.clone(), receiver.clone(), stop.clone());
            async move { write_all(&client, &mut *receiver.lock().await, stop).await }.boxed()
        };
        (Self { component, sender }, Box::new(writing))
    }

    /// The same recorder in the name of another component.
    pub fn named(&self, component: &'static str) -> Self {
        Self {
            component,
            sender: self.sender.clone(),
        }
    }

    /// Records an event about an object.
    pub fn record<K>(
        &self,
        object: &K,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) where
        K: Resource<DynamicType = ()>,
    {
        self.record_on(reference(object), severity, reason, message);
    }

    /// Records an event about whatever the reference names.
    pub fn record_on(
        &self,
        subject: ObjectReference,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let record = Record {
            component: self.component,
            subject,
            severity,
            reason,
            message: message.into(),
        };
        if self.sender.try_send(record).is_err() {
            tracing::debug!(reason, "event dropped, too many are waiting");
        }
    }
}

/// A full reference to an object.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        namespace: meta.namespace.clone(),
        name: meta.name.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

#[derive(PartialEq, Eq, Hash)]
struct Identity(&'static str, String, Severity, &'static str, String);

struct Known {
    namespace: String,
    name: String,
    count: i32,
    last: Instant,
}

async fn write_all(client: &Client, records: &mut mpsc::Receiver<Record>, stop: CancellationToken) {
    let mut known: HashMap<Identity, Known> = HashMap::new();
    let mut credit: HashMap<(&'static str, String), (f64, Instant)> = HashMap::new();
    loop {
        let record = tokio::select! {
            () = stop.cancelled() => return,
            record = records.recv() => match record {
                Some(record) => record,
                None => return,
            },
        };
        let now = Instant::now();
        if known.len() >= REMEMBERED {
            known.retain(|_, event| now - event.last < MEMORY);
            credit.retain(|_, (_, last)| now - *last < REFILL * 25);
            if known.len() >= REMEMBERED {
                known.clear();
            }
        }
        let uid = record
            .subject
            .uid
            .clone()
            .or_else(|| record.subject.name.clone())
            .unwrap_or_default();
        if !admit(
            credit
                .entry((record.component, uid.clone()))
                .or_insert((BURST, now)),
            now,
        ) {
            continue;
        }
        let identity = Identity(
            record.component,
            uid,
            record.severity,
            record.reason,
            record.message.clone(),
        );
        let counted = match known
            .get_mut(&identity)
            .filter(|event| now - event.last < MEMORY)
        {
            Some(event) => {
                event.count += 1;
                event.last = now;
                let body = json!({"count": event.count, "lastTimestamp": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()});
                let patched =
                    api::patch::<Event>(client, &event.namespace, &event.name, &body).await;
                match patched {
                    // It has expired or was removed: this is a new one.
                    Err(error) if api::is_not_found(&error) => None,
                    other => Some(other.map(drop)),
                }
            }
            None => None,
        };
        let result = match counted {
            Some(result) => result,
            None => create(client, &record).await.map(|(namespace, name)| {
                let event = Known {
                    namespace,
                    name,
                    count: 1,
                    last: now,
                };
                known.insert(identity, event);
            }),
        };
        if let Err(error) = result {
            tracing::debug!(%error, reason = record.reason, "event not written");
        }
    }
}

/// Takes one from the object's credit, if there is one.
fn admit((credit, last): &mut (f64, Instant), now: Instant) -> bool {
    let earned = (now - *last).as_secs_f64() / REFILL.as_secs_f64();
    *credit = (*credit + earned).min(BURST);
    *last = now;
    let admitted = *credit >= 1.0;
    if admitted {
        *credit -= 1.0;
    }
    admitted
}

async fn create(client: &Client, record: &Record) -> Result<(String, String), kube::Error> {
    let now = Timestamp::now();
    let namespace = record
        .subject
        .namespace
        .clone()
        .filter(|text| !text.is_empty())
        .unwrap_or_else(|| "default".to_owned());
    let seconds = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let name = format!(
        "{}.{:016x}",
        record.subject.name.as_deref().unwrap_or_default(),
        now.as_nanosecond()
    );
    let body = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": namespace, "name": name},
        "involvedObject": record.subject,
        "type": match record.severity { Severity::Normal => "Normal", Severity::Warning => "Warning" },
        "reason": record.reason,
        "message": record.message,
        "source": {"component": record.component},
        "reportingComponent": record.component,
        "reportingInstance": "",
        "firstTimestamp": seconds,
        "lastTimestamp": seconds,
        "count": 1,
    });
    let written: Written = api::create::<Event, _>(client, &namespace, &body).await?;
    Ok((namespace, model::name(&written.metadata).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_object_may_cause_a_burst_and_then_one_event_per_five_minutes() {
        let mut credit = (BURST, Instant::now());
        let admitted = (0..40)
            .filter(|_| admit(&mut credit, Instant::now()))
            .count();
        assert_eq!(admitted, 25);
        tokio::time::advance(REFILL).await;
        assert!(admit(&mut credit, Instant::now()));
        assert!(!admit(&mut credit, Instant::now()));
    }
}
