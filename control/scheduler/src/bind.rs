//! Telling the API server: the binding of a pod, or why it has none.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use knarr_controllers::api;
use knarr_controllers::events::{Recorder, Severity};
use kube::Client;
use serde_json::{Value, json};

use crate::model::Pod;
use crate::pod::PodInfo;

/// Writes on behalf of the scheduler.
#[derive(Clone)]
pub(crate) struct Writer {
    pub client: Client,
    pub recorder: Recorder,
}

impl Writer {
    /// Binds a pod to a node.
    pub async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), kube::Error> {
        let body = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"namespace": pod.namespace, "name": pod.name, "uid": &*pod.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        api::create_part::<Pod>(&self.client, &pod.namespace, &pod.name, "binding", &body).await?;
        let message = format!(
            "Successfully assigned {}/{} to {node}",
            pod.namespace, pod.name
        );
        self.recorder
            .record_on(reference(pod), Severity::Normal, "Scheduled", message);
        Ok(())
    }

    /// Says on the pod why it has no node; answers whether that worked.
    pub async fn explain(&self, pod: &PodInfo, message: String, nominated: Option<String>) -> bool {
        let mut body = json!({"metadata": {"uid": &*pod.uid}, "status": {"conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastTransitionTime": now(),
        }]}});
        if let Some(node) = nominated {
            body["status"]["nominatedNodeName"] = node.into();
        }
        self.patch_status(pod, &body).await
    }

    /// Says on a pod that its room went to somebody else.
    pub async fn take_nomination(&self, pod: &PodInfo) {
        let body = json!({"metadata": {"uid": &*pod.uid}, "status": {"nominatedNodeName": null}});
        self.patch_status(pod, &body).await;
    }

    /// Sends a pod away from its node, because `pod` needs its place; answers whether it goes or is gone.
    pub async fn preempt(&self, victim: &PodInfo, pod: &PodInfo, node: &str, by: &str) -> bool {
        let body = json!({"metadata": {"uid": &*victim.uid}, "status": {"conditions": [{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": format!("{by}: preempting to accommodate a higher priority pod"),
            "lastTransitionTime": now(),
        }]}});
        self.patch_status(victim, &body).await;
        let meta = ObjectMeta {
            namespace: Some(victim.namespace.clone()),
            name: Some(victim.name.clone()),
            uid: Some(victim.uid.to_string()),
            ..ObjectMeta::default()
        };
        match api::delete::<Pod>(&self.client, &meta, api::Delete::default()).await {
            Ok(()) => {
                let message = format!("Preempted by pod {} on node {node}", pod.uid);
                self.recorder
                    .record_on(reference(victim), Severity::Normal, "Preempted", message);
                true
            }
            // Another pod has its name by now.
            Err(error) if api::is_conflict(&error) => true,
            Err(error) => {
                tracing::warn!(%error, namespace = victim.namespace, name = victim.name, "pod not preempted");
                false
            }
        }
    }

    async fn patch_status(&self, pod: &PodInfo, body: &Value) -> bool {
        match api::patch_status_strategic::<Pod>(&self.client, &pod.namespace, &pod.name, body)
            .await
        {
            Ok(_) => true,
            Err(error) if api::is_not_found(&error) || api::is_conflict(&error) => true,
            Err(error) => {
                tracing::warn!(%error, namespace = pod.namespace, name = pod.name, "status not written");
                false
            }
        }
    }

    /// Tells the user by an event.
    pub fn tell(&self, pod: &PodInfo, message: String) {
        self.recorder.record_on(
            reference(pod),
            Severity::Warning,
            "FailedScheduling",
            message,
        );
    }
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn reference(pod: &PodInfo) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.to_string()),
        ..ObjectReference::default()
    }
}
