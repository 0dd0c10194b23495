//! Bringing one pod's status to the API: at most one write under way, and only the newest waits.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::pod::PodKey;
use crate::runtime::chain;

/// How long the news that a pod is being set up may wait for something better to say.
const UNREMARKABLE: Duration = Duration::from_millis(150);
/// How long a failed write waits for its next try.
const RETRY: Duration = Duration::from_secs(1);

/// What a pod's status is to be, and what the API has of it.
#[derive(Debug, Default)]
pub(crate) struct StatusWriter {
    wanted: Option<PodStatus>,
    sent: Option<PodStatus>,
    writing: bool,
    not_before: Option<Instant>,
}

/// One write, to be run beside the pod's other work.
pub(crate) struct Write {
    status: PodStatus,
    body: Value,
}

/// What became of a write.
#[derive(Debug)]
pub(crate) enum Written {
    /// The API has it.
    Done(Box<PodStatus>),
    /// The pod is gone, or another one has its name.
    Gone,
    /// The API did not take it.
    Failed,
}

impl StatusWriter {
    /// The status that was computed last, for the next computation.
    pub(crate) fn latest(&self) -> Option<&PodStatus> {
        self.wanted.as_ref()
    }

    /// Takes a new status; `remarkable` says whether somebody may be waiting for it.
    pub(crate) fn want(&mut self, status: PodStatus, remarkable: bool) {
        if self.wanted.as_ref() == Some(&status) {
            return;
        }
        self.wanted = Some(status);
        if remarkable {
            self.not_before = None;
        } else if self.not_before.is_none() && !self.writing {
            self.not_before = Some(Instant::now() + UNREMARKABLE);
        }
    }

    /// Whether the API has what is wanted.
    pub(crate) fn settled(&self) -> bool {
        !self.writing && self.wanted == self.sent
    }

    /// Whether a write is under way.
    pub(crate) fn writing(&self) -> bool {
        self.writing
    }

    /// Forgets a write whose end nobody will hear of.
    pub(crate) fn abandon(&mut self) {
        self.writing = false;
    }

    /// When to call [`next`](Self::next) again.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        if self.writing || self.wanted == self.sent {
            None
        } else {
            self.not_before
        }
    }

    /// The write that is due, if none is under way.
    pub(crate) fn next(&mut self, pod: &Pod) -> Option<Write> {
        let due = self.not_before.is_none_or(|at| at <= Instant::now());
        if self.writing || !due || self.wanted == self.sent {
            return None;
        }
        let status = self.wanted.clone()?;
        let previous = self.sent.as_ref().or(pod.status.as_ref());
        self.writing = true;
        self.not_before = None;
        Some(Write {
            body: patch(&PodKey::of(pod), previous, &status),
            status,
        })
    }

    /// Notes what became of the write.
    pub(crate) fn done(&mut self, written: &Written) {
        self.writing = false;
        match written {
            Written::Done(status) => self.sent = Some((**status).clone()),
            Written::Gone => self.sent.clone_from(&self.wanted),
            Written::Failed => self.not_before = Some(Instant::now() + RETRY),
        }
    }
}

impl Write {
    /// Sends it.
    pub(crate) async fn send(self, client: Client, key: &PodKey) -> Written {
        let api: Api<Pod> = Api::namespaced(client, &key.namespace);
        match api
            .patch_status(
                &key.name,
                &PatchParams::default(),
                &Patch::Strategic(self.body),
            )
            .await
        {
            Ok(_) => Written::Done(Box::new(self.status)),
            Err(error) if is_gone(&error) => Written::Gone,
            Err(error) => {
                tracing::warn!(pod = %key, error = chain(&error), "write pod status");
                Written::Failed
            }
        }
    }
}

/// Whether the pod that was meant is gone: its name is free, or another pod's.
pub(crate) fn is_gone(error: &kube::Error) -> bool {
    match error {
        // A conflict of another kind is a write that lost a race, and is tried again.
        kube::Error::Api(status) => {
            status.code == 404
                || (matches!(status.code, 409 | 422)
                    && status.message.to_lowercase().contains("uid"))
        }
        _ => false,
    }
}

/// The strategic merge patch from what the API has to what it should have.
fn patch(key: &PodKey, previous: Option<&PodStatus>, wanted: &PodStatus) -> Value {
    let as_object = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    };
    let mut status = as_object(wanted);
    let previous = previous.map(as_object).unwrap_or_default();
    for (name, value) in &previous {
        // What other writers own stays as it is.
        let foreign = matches!(
            name.as_str(),
            "qosClass" | "nominatedNodeName" | "resize" | "resourceClaimStatuses"
        );
        if !status.contains_key(name) && !foreign && !value.is_null() {
            status.insert(name.clone(), Value::Null);
        }
    }
    if let Some(Value::Array(conditions)) = status.get_mut("conditions") {
        for condition in conditions {
            if let Some(condition) = condition.as_object_mut() {
                condition.entry("reason").or_insert(Value::Null);
                condition.entry("message").or_insert(Value::Null);
                condition.entry("lastProbeTime").or_insert(Value::Null);
            }
        }
    }
    for list in ["podIPs", "hostIPs"] {
        // Merged by address otherwise, so that an old one would stay.
        if previous
            .get(list)
            .is_some_and(|old| Some(old) != status.get(list))
            && let Some(Value::Array(entries)) = status.get_mut(list)
        {
            entries.push(json!({"$patch": "replace"}));
        }
    }
    json!({"metadata": {"uid": key.uid}, "status": status})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_went_away_are_nulled() {
        let key = PodKey {
            namespace: "n".into(),
            name: "p".into(),
            uid: "u".into(),
        };
        let old = PodStatus {
            reason: Some("Evicted".into()),
            pod_ip: Some("1.1.1.1".into()),
            qos_class: Some("Burstable".into()),
            ..PodStatus::default()
        };
        let new = PodStatus {
            phase: Some("Running".into()),
            ..PodStatus::default()
        };
        assert_eq!(
            patch(&key, Some(&old), &new),
            json!({"metadata": {"uid": "u"}, "status": {"phase": "Running", "reason": null, "podIP": null}})
        );
    }

    #[tokio::test]
    async fn one_write_at_a_time_and_the_newest_wins() {
        let pod = Pod::default();
        let status = |phase: &str| PodStatus {
            phase: Some(phase.into()),
            ..PodStatus::default()
        };
        let mut writer = StatusWriter::default();
        writer.want(status("Pending"), true);
        let first = writer.next(&pod).expect("a write");
        writer.want(status("Running"), true);
        assert!(writer.next(&pod).is_none());
        writer.done(&Written::Done(Box::new(first.status)));
        let second = writer.next(&pod).expect("the newer one");
        assert_eq!(second.status.phase.as_deref(), Some("Running"));
        writer.done(&Written::Done(Box::new(second.status)));
        assert!(writer.settled());
    }
}
