//! The task that owns one pod.
//!
//! It observes the runtime, plans, acts, publishes the status, and waits for whatever comes first: a change of the
//! pod's object, an event of the runtime, a probe's verdict, the end of a job, or a time that the plan named.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use knarr_engine::types::{ContainerId, ContainerState, ContainerStatus, SandboxId};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::container_status::Facts;
use crate::ctx::Ctx;
use crate::done::Done;
use crate::existing::Existing;
use crate::hooks::PreStops;
use crate::jobs::Job;
use crate::memory::{ContainerMemory, Ending, Memory, Observed, Rejection};
use crate::plan::plan;
use crate::pod::{self, PodKey};
use crate::probe::Verdict;
use crate::probes::Probes;
use crate::runtime::{RuntimeError, chain};
use crate::status;
use crate::termination;
use crate::writer::StatusWriter;

/// How long a pod waits whose containers could not be looked at.
const OBSERVE_RETRY: Duration = Duration::from_secs(1);

/// What the API wants of the pod.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    /// The newest version of the object.
    pub(crate) pod: Arc<Pod>,
    /// Whether the object is gone from the API.
    pub(crate) gone: bool,
}

/// What a task of a pod is started with.
pub(crate) struct Start {
    pub(crate) ctx: Arc<Ctx>,
    pub(crate) input: watch::Receiver<Input>,
    /// Wakes the task: an event of the runtime, a change of an object that the pod refers to.
    pub(crate) wake: Arc<Notify>,
    /// What the runtime already has of the pod.
    pub(crate) existing: Existing,
    /// Why the node does not take the pod, if it does not.
    pub(crate) rejected: Option<Rejection>,
}

pub(crate) struct Worker {
    pub(crate) ctx: Arc<Ctx>,
    pub(crate) key: PodKey,
    pub(crate) pod: Arc<Pod>,
    pub(crate) gone: bool,
    pub(crate) wake: Arc<Notify>,
    input: watch::Receiver<Input>,
    pub(crate) sandboxes: Vec<SandboxId>,
    pub(crate) containers: Vec<ContainerId>,
    pub(crate) memory: Memory,
    pub(crate) jobs: JoinSet<Done>,
    /// Ends what is being pulled or mounted.
    pub(crate) cancel: CancellationToken,
    /// The grace period and the token of the job that stops the pod.
    pub(crate) killing: Option<(Duration, CancellationToken)>,
    pub(crate) probes: Probes,
    verdicts: mpsc::Receiver<Verdict>,
    pub(crate) writer: StatusWriter,
    /// When the content of volumes must be renewed, and whether that is under way.
    pub(crate) renew_at: Option<SystemTime>,
    pub(crate) renewing: bool,
    pub(crate) finished: bool,
    /// Whether the runtime may have sandboxes and containers of the pod that are not known here.
    pub(crate) relist: bool,
    pub(crate) pre_stops: Arc<PreStops>,
    /// The last words of ended containers, read once.
    messages: HashMap<ContainerId, Option<String>>,
}

impl Worker {
    pub(crate) fn new(start: Start) -> Self {
        let Start {
            ctx,
            mut input,
            wake,
            existing:
                Existing {
                    sandboxes,
                    containers,
                },
            rejected,
        } = start;
        let Input { pod, gone } = input.borrow_and_update().clone();
        let (sender, verdicts) = mpsc::channel(16);
        let known = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
        let memory = Memory {
            start_time: Some(known.map_or_else(SystemTime::now, |t| SystemTime::from(t.0))),
            rejected,
            ..Memory::default()
        };
        Self {
            ctx,
            key: PodKey::of(&pod),
            pod,
            gone,
            wake,
            input,
            // A pod that the runtime already has may have volumes to renew.
            renew_at: (!sandboxes.is_empty()).then(SystemTime::now),
            sandboxes,
            containers,
            memory,
            jobs: JoinSet::new(),
            cancel: CancellationToken::new(),
            killing: None,
            probes: Probes::new(sender),
            verdicts,
            writer: StatusWriter::default(),
            renewing: false,
            finished: false,
            relist: false,
            pre_stops: Arc::default(),
            messages: HashMap::new(),
        }
    }

    /// Runs until the pod is gone from node and API.
    pub(crate) async fn run(mut self) {
        loop {
            let observed = match self.observe().await {
                Ok(observed) => observed,
                Err(error) => {
                    // What is not seen must not be taken for gone: it would be made a second time.
                    tracing::warn!(pod = %self.key, error = chain(&error), "look at the pod's containers");
                    self.wait(Some(Instant::now() + OBSERVE_RETRY)).await;
                    continue;
                }
            };
            self.probes
                .follow(&self.ctx, &self.pod, &observed, &mut self.memory);
            let now = SystemTime::now();
            let plan = plan(&self.pod, &observed, &self.memory, now);
            let mut acted = false;
            for action in plan.actions {
                acted |= self.act(action, &observed).await;
            }
            if self.finished {
                return;
            }
            if acted {
                continue;
            }
            self.publish(&observed);
            let mut wake_at = plan.wake_at;
            if let Some(at) = self.renew_at.filter(|_| self.may_renew()) {
                if at <= now {
                    self.renew_volumes(&observed);
                } else {
                    wake_at = Some(wake_at.map_or(at, |w| w.min(at)));
                }
            }
            let sleep = wake_at.map(|at| at.duration_since(now).unwrap_or_default());
            let timer = [sleep.map(|s| Instant::now() + s), self.writer.wake_at()]
                .into_iter()
                .flatten()
                .min();
            self.wait(timer).await;
        }
    }

    async fn wait(&mut self, timer: Option<Instant>) {
        // Each branch only receives; a value that is not taken stays where it is.
        tokio::select! {
            changed = self.input.changed() => {
                if changed.is_err() {
                    // The manager stopped; the pod goes on without its agent.
                    self.finished = true;
                    std::future::pending::<()>().await;
                }
                let input = self.input.borrow_and_update().clone();
                self.take_input(input);
            }
            () = self.wake.notified() => {
                for container in self.memory.containers.values_mut() {
                    container.retry_at = None;
                }
                self.memory.sandbox_retry_at = None;
                // Also while the sandbox is being made: its volumes may have been read already.
                if crate::volumes::has_content(&self.pod) {
                    self.renew_at = Some(SystemTime::now());
                }
            }
            Some(verdict) = self.verdicts.recv() => {
                self.probes.take(&self.ctx, &self.pod, verdict, &mut self.memory);
            }
            Some(done) = self.jobs.join_next(), if !self.jobs.is_empty() => match done {
                Ok(done) => self.finish(done),
                Err(error) => tracing::error!(pod = %self.key, %error, "a job of the pod failed"),
            },
            () = async {
                match timer {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            } => {}
        }
    }

    fn may_renew(&self) -> bool {
        !self.renewing && !self.sandboxes.is_empty() && self.memory.ending.is_none()
    }

    fn take_input(&mut self, input: Input) {
        let metadata = |pod: &Pod| {
            (
                pod.metadata.labels.clone(),
                pod.metadata.annotations.clone(),
            )
        };
        if metadata(&self.pod) != metadata(&input.pod) {
            // What a container was missing may be there now: its environment and its mounts may refer to these.
            for container in self.memory.containers.values_mut() {
                container.retry_at = None;
            }
            if crate::volumes::has_content(&input.pod) {
                self.renew_at = Some(SystemTime::now());
            }
        }
        let mut pod = input.pod;
        if input.gone && pod.metadata.deletion_timestamp.is_none() {
            // Removed by force: the object went before its deletion was seen.
            let mut marked = (*pod).clone();
            marked.metadata.deletion_timestamp = Some(status::time(SystemTime::now()));
            marked.metadata.deletion_grace_period_seconds = Some(0);
            pod = Arc::new(marked);
        }
        self.pod = pod;
        self.gone = input.gone;
        if let Some((grace, token)) = &self.killing
            && pod::grace_period(&self.pod) < *grace
        {
            // Less time than before: the stop under way is replaced by a shorter one.
            token.cancel();
        }
    }

    /// Asks the runtime what it has of this pod now.
    pub(crate) async fn observe(&mut self) -> Result<Observed, RuntimeError> {
        if self.relist {
            let existing = Existing::of_pod(&self.ctx, &self.key.uid).await?;
            self.adopt(existing);
            self.relist = false;
        }
        let mut observed = Observed::default();
        let mut lost_sandboxes = Vec::new();
        for id in &self.sandboxes {
            match self.ctx.runtime.sandbox_status(id).await {
                Ok(status) => observed.sandboxes.push(status),
                Err(RuntimeError::NotFound { .. }) => lost_sandboxes.push(id.clone()),
                Err(error) => return Err(error),
            }
        }
        let mut lost = Vec::new();
        for id in &self.containers {
            match self.ctx.runtime.container_status(id).await {
                Ok(status) => observed.containers.push(status),
                Err(RuntimeError::NotFound { .. }) => lost.push(id.clone()),
                Err(error) => return Err(error),
            }
        }
        for ended in observed
            .containers
            .iter()
            .filter(|c| c.state == ContainerState::Exited)
        {
            if !self.messages.contains_key(&ended.id) {
                let message = termination::message(&self.ctx, &self.pod, ended);
                self.messages.insert(ended.id.clone(), message);
            }
        }
        self.messages.retain(|id, _| !lost.contains(id));
        self.sandboxes.retain(|id| !lost_sandboxes.contains(id));
        self.containers.retain(|id| !lost.contains(id));
        observed
            .sandboxes
            .sort_by_key(|s| std::cmp::Reverse((s.config.attempt, s.created_at)));
        observed
            .containers
            .sort_by_key(|c| std::cmp::Reverse((c.config.attempt, c.created_at)));
        Ok(observed)
    }

    /// Takes up what the runtime has of this pod and was not known here.
    fn adopt(&mut self, existing: Existing) {
        for id in existing.sandboxes {
            if !self.sandboxes.contains(&id) {
                self.sandboxes.push(id);
            }
        }
        for id in existing.containers {
            if !self.containers.contains(&id) {
                self.containers.push(id);
            }
        }
    }

    /// Whether the API has the pod's end: what is terminal stays as it was written, even when its containers are gone from
    /// the node. If somebody else made it terminal, it still lacks how its containers ended.
    pub(crate) fn end_is_told(&self) -> bool {
        pod::is_terminal(&self.pod) && self.writer.settled() && !pod::shows_running(&self.pod)
    }

    /// The status that the API should show now.
    pub(crate) fn status(&self, observed: &Observed) -> PodStatus {
        let facts = Facts {
            termination_message: &|s| self.messages.get(&s.id).cloned().flatten(),
        };
        status::build(
            &self.pod,
            observed,
            &self.memory,
            self.writer.latest(),
            &self.ctx.config.node_ips,
            &facts,
            SystemTime::now(),
        )
    }

    fn publish(&mut self, observed: &Observed) {
        if self.gone || self.end_is_told() {
            return;
        }
        let status = self.status(observed);
        let began = |c: &ContainerStatus| c.state != ContainerState::Created;
        let waits = |c: &ContainerMemory| c.waiting.is_some();
        // A pod that is completed has its phase to tell in a moment, once its sandbox is stopped.
        let remarkable = match self.memory.ending {
            Some(Ending::Completed) => self.memory.killed,
            Some(_) => true,
            None => {
                observed.containers.iter().any(began) || self.memory.containers.values().any(waits)
            }
        };
        self.writer.want(status, remarkable);
        if let Some(write) = self.writer.next(&self.pod) {
            let (client, key) = (self.ctx.client.clone(), self.key.clone());
            self.run_job(Job::Status, async move {
                Done::Status(write.send(client, &key).await)
            });
        }
    }
}

#[cfg(test)]
mod tests;
