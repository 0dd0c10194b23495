//! Giving back what a pod used, and deleting its object last.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};

use crate::ctx::Ctx;
use crate::kill;
use crate::logs;
use crate::memory::Observed;
use crate::pod::PodKey;
use crate::runtime::chain;
use crate::volumes;
use crate::worker::Worker;
use crate::writer::is_gone;

/// How long a status write may take before the pod goes on without it.
const LAST_WRITE: Duration = Duration::from_secs(5);
/// How long what could not be removed waits for its next try.
const RETRY: Duration = Duration::from_secs(2);

impl Worker {
    /// Unmounts and removes the pod's directory on the node.
    pub(crate) async fn release_volumes(&self) -> bool {
        let directory = self.ctx.config.pod_dir(&self.key.uid);
        self.ctx.objects.forget(&self.key.uid);
        self.ctx.tokens.forget(&self.key.uid);
        // The termination messages go with it; the status has them already.
        match tokio::task::spawn_blocking(move || volumes::remove_pod_dir(&directory)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::warn!(pod = %self.key, error = chain(&error), "remove the pod's directory");
                false
            }
            Err(error) => {
                tracing::error!(pod = %self.key, %error, "remove the pod's directory");
                false
            }
        }
    }

    /// Publishes the last status, gives everything back, deletes the object.
    pub(crate) async fn clean_up(&mut self, observed: &Observed) {
        // A status that is being written must not overtake the last one; hooks and the like need no waiting for.
        let rest = async {
            while self.writer.writing() {
                match self.jobs.join_next().await {
                    Some(Ok(done)) => self.finish(done),
                    Some(Err(error)) => {
                        tracing::error!(pod = %self.key, %error, "a job of the pod failed")
                    }
                    None => break,
                }
            }
        };
        let _late = tokio::time::timeout(LAST_WRITE, rest).await;
        self.jobs.shutdown().await;
        self.writer.abandon();
        if !self.gone && !self.end_is_told() {
            let status = self.status(observed);
            self.writer.want(status, true);
            if let Some(write) = self.writer.next(&self.pod) {
                let written = write.send(self.ctx.client.clone(), &self.key).await;
                self.writer.done(&written);
            }
        }
        let removed = kill::remove(&self.ctx, observed).await;
        // The pod's own directory goes last: as long as it is there, a restarted agent finds what is left to remove.
        for container in &observed.containers {
            logs::remove(&self.ctx.config, container);
        }
        let key = &self.key;
        logs::remove_directory(&self.ctx.config.log_dir(&key.namespace, &key.name, &key.uid));
        if !(removed && self.release_volumes().await) {
            self.clean_up_failed().await;
            return;
        }
        if self.gone || delete_object(&self.ctx, &self.key).await {
            self.finished = true;
        } else {
            self.clean_up_failed().await;
        }
    }

    async fn clean_up_failed(&self) {
        tokio::time::sleep(RETRY).await;
        self.wake.notify_one();
    }
}

/// Deletes the object, if it still is this very pod; returns whether it is gone.
async fn delete_object(ctx: &Ctx, key: &PodKey) -> bool {
    let api: Api<Pod> = Api::namespaced(ctx.client.clone(), &key.namespace);
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: Some(key.uid.clone()),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(&key.name, &parameters).await {
        Ok(_) => true,
        Err(error) if is_gone(&error) => true,
        Err(error) => {
            tracing::warn!(pod = %key, error = chain(&error), "delete the pod's object");
            false
        }
    }
}
