//! One pod's task from its first start to its end, whatever happens in it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::ctx::Ctx;
use crate::events::Severity;
use crate::existing::Existing;
use crate::memory::Rejection;
use crate::panics;
use crate::pod::PodKey;
use crate::runtime::chain;
use crate::worker::{Input, Start, Worker};

/// How long a task that panicked waits before it starts anew: twice as long each time, …
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// … up to this, …
const MAX_DELAY: Duration = Duration::from_secs(60);
/// … and the first delay again after it ran for so long.
const QUIET: Duration = Duration::from_secs(600);

/// Runs a pod until it is gone from node and API.
///
/// A task that panics starts anew with what the runtime then has. If the pod is being deleted, what its specification says is
/// left out of it: something in there may be what the task stumbles over, and a pod must not stay for that.
pub(crate) async fn run(
    ctx: Arc<Ctx>,
    input: watch::Receiver<Input>,
    mut existing: Existing,
    rejected: Option<Rejection>,
) {
    let mut delay = FIRST_DELAY;
    let mut input = input;
    // Of the stand-in, should it come to that.
    let mut _sender = None;
    loop {
        let began = Instant::now();
        let start = Start {
            ctx: ctx.clone(),
            input: input.clone(),
            wake: Arc::new(Notify::new()),
            existing,
            rejected: rejected.clone(),
        };
        let work = async { Worker::new(start).run().await };
        let Err(message) = panics::caught(work).await else {
            return;
        };
        if began.elapsed() > QUIET {
            delay = FIRST_DELAY;
        }
        report(&ctx, &input.borrow().pod, &message, delay);
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(MAX_DELAY);
        existing = what_is_there(&ctx, &input).await;
        let Input { pod, gone } = input.borrow().clone();
        if gone || pod.metadata.deletion_timestamp.is_some() {
            let pod = Arc::new(stand_in(
                PodKey::of(&pod),
                pod.metadata.deletion_grace_period_seconds,
            ));
            let (sender, receiver) = watch::channel(Input { pod, gone });
            (_sender, input) = (Some(sender), receiver);
        }
    }
}

fn report(ctx: &Ctx, pod: &Pod, message: &str, delay: Duration) {
    tracing::error!(pod = %PodKey::of(pod), message, ?delay, "a pod's task panicked and starts anew");
    ctx.events.pod(
        pod,
        None,
        Severity::Warning,
        "FailedSync",
        format!("error syncing pod, retrying in {delay:?}: internal error: {message}"),
    );
}

async fn what_is_there(ctx: &Ctx, input: &watch::Receiver<Input>) -> Existing {
    let key = PodKey::of(&input.borrow().pod);
    loop {
        match Existing::of_pod(ctx, &key.uid).await {
            Ok(existing) => return existing,
            Err(error) => {
                tracing::warn!(pod = %key, error = chain(&error), "list what the runtime has of a pod");
                tokio::time::sleep(FIRST_DELAY).await;
            }
        }
    }
}

/// A pod that is being deleted and of which only the name is known; nothing of its status is written.
pub(crate) fn stand_in(key: PodKey, grace: Option<i64>) -> Pod {
    Pod {
        metadata: ObjectMeta {
            name: Some(key.name),
            namespace: Some(key.namespace),
            uid: Some(key.uid),
            deletion_timestamp: Some(crate::status::time(std::time::SystemTime::now())),
            deletion_grace_period_seconds: grace,
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            termination_grace_period_seconds: grace,
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some("Failed".to_owned()),
            ..PodStatus::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing;
    use crate::testing::fake::{FakeApi, FakeRuntime};

    /// A pod's task on a runtime that panics at each of these calls the given number of times.
    async fn deleted_after(panics: &[(&'static str, usize)]) -> (FakeApi, Arc<FakeRuntime>) {
        let directory = tempfile::tempdir().expect("a directory");
        let (runtime, api) = (Arc::new(FakeRuntime::new()), FakeApi::new(&[]));
        let (ctx, write) = testing::ctx(directory.path(), runtime.clone(), &api);
        tokio::spawn(write);
        tokio::spawn({
            let ctx = ctx.clone();
            async move { ctx.services.follow(ctx.client.clone()).await }
        });
        let spec = json!({"containers": [{"name": "a", "image": "busybox"}]});
        let mut pod = testing::pod(spec);
        let (input, receiver) = watch::channel(Input {
            pod: Arc::new(pod.clone()),
            gone: false,
        });
        let task = tokio::spawn(run(ctx, receiver, Existing::default(), None));
        api.wait("running", |t| t.status["phase"] == "Running")
            .await;
        runtime.panics.lock().extend(panics.iter().copied());
        pod.metadata.deletion_timestamp = Some(crate::status::time(std::time::SystemTime::now()));
        pod.metadata.deletion_grace_period_seconds = Some(1);
        input.send_replace(Input {
            pod: Arc::new(pod),
            gone: false,
        });
        api.wait("the deletion", |t| t.deleted.is_some()).await;
        task.await.expect("the task ended");
        (api, runtime)
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_whose_task_panics_is_reported_and_can_be_deleted() {
        let (api, runtime) = deleted_after(&[("container_status", 2)]).await;
        assert_eq!(runtime.counts(), (0, 0));
        let told = api
            .wait("events", |t| {
                t.events.iter().any(|e| e.starts_with("FailedSync"))
            })
            .await;
        let reported = "FailedSync: error syncing pod, retrying in 1s: internal error: container_status panics";
        assert!(
            told.events.iter().any(|e| e == reported),
            "{:?}",
            told.events
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_whose_job_panics_is_reported_and_can_be_deleted() {
        let (api, runtime) = deleted_after(&[("stop_container", 1), ("stop_sandbox", 1)]).await;
        assert_eq!(runtime.counts(), (0, 0));
        let told = api
            .wait("events", |t| {
                t.events.iter().any(|e| e.starts_with("FailedKillPod"))
            })
            .await;
        let reported = "FailedKillPod: error killing pod: internal error: stop_container panics";
        assert!(
            told.events.iter().any(|e| e == reported),
            "{:?}",
            told.events
        );
    }
}
