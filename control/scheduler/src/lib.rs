//! Assigns pods to nodes.
//!
//! Every change of a pod or node goes into the snapshot as it comes. For each waiting pod, in order of priority and age,
//! `decide` filters nodes until enough will do, scores those and takes the best; the pod counts as running there at once,
//! and its binding is written while the next is decided. A pod for which no node will do waits for a change that can help it.
//!
//! Where other pods are in the way of one with more priority, `preempt` makes room.
//!
//! Absent so far: volumes, disruption budgets, other schedulers' plugins, image locality.

mod affinity;
mod bind;
mod decide;
mod filter;
mod interpod;
mod model;
mod pod;
mod preempt;
mod queue;
mod resources;
mod scheduler;
mod snapshot;
mod spread;
mod watch;

use knarr_controllers::events::Recorder;
use knarr_controllers::supervise::{Health, supervise};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use bind::Writer;
use scheduler::{Input, Scheduler};

/// The scheduler's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// The `schedulerName` of the pods that it works for.
    pub name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "default-scheduler".into(),
        }
    }
}

/// Why the scheduler ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// One of its tasks broke down.
    #[error("a task of the scheduler broke down")]
    Task {
        /// How.
        source: tokio::task::JoinError,
    },
}

/// How many changes may wait between a watch and the scheduler.
const WAITING_CHANGES: usize = 1024;

/// Schedules pods until stopped. `health` tells how the loops do.
///
/// A panic over one pod costs that pod a wait; a panic elsewhere costs the whole picture, which is listed anew.
///
/// # Errors
///
/// Only if what starts the loops anew panics itself; lost watches and failed bindings are tried again.
pub async fn run(
    client: Client,
    config: Config,
    health: Health,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let mut tasks = JoinSet::new();
    let (recorder, writing) = Recorder::start("default-scheduler", client.clone(), stop.clone());
    let (own, ending) = (health.clone(), stop.clone());
    tasks.spawn(async move {
        supervise("scheduler-event-recorder", &own, &ending, writing).await;
    });
    let ending = stop.clone();
    tasks.spawn(async move {
        let start = || {
            let writer = Writer {
                client: client.clone(),
                recorder: recorder.clone(),
            };
            schedule(Scheduler::new(config.name.clone(), writer), ending.clone())
        };
        supervise("scheduler", &health, &ending, start).await;
    });
    while let Some(ended) = tasks.join_next().await {
        if let Err(source) = ended {
            stop.cancel();
            return Err(RunError::Task { source });
        }
    }
    Ok(())
}

/// One life of the scheduler: watches from their first list, and what they feed.
///
/// # Panics
///
/// If one of them does: the others are of no use without it.
async fn schedule(scheduler: Scheduler, stop: CancellationToken) {
    let (sender, inputs) = mpsc::channel(WAITING_CHANGES);
    let client = scheduler.client();
    let mut feeds = JoinSet::new();
    feeds.spawn(watch::feed(
        Api::all(client.clone()),
        sender.clone(),
        Input::Node,
        stop.clone(),
    ));
    feeds.spawn(watch::feed(
        Api::all(client.clone()),
        sender.clone(),
        Input::Namespace,
        stop.clone(),
    ));
    feeds.spawn(watch::feed(
        Api::all(client.clone()),
        sender,
        Input::Pod,
        stop.clone(),
    ));
    // Whichever ends first, the other is dropped: all is listed anew.
    tokio::select! {
        () = scheduler.run(inputs, stop) => {}
        Some(ended) = feeds.join_next() => {
            if let Err(error) = ended
                && let Ok(panic) = error.try_into_panic()
            {
                std::panic::resume_unwind(panic);
            }
        }
    }
}
