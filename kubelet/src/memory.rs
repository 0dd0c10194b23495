//! What a pod's task remembers between two looks at the runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use knarr_engine::types::{ContainerId, ContainerStatus, SandboxId, SandboxState, SandboxStatus};

/// The first delay of a container that ended, and of a pull that failed.
pub(crate) const BACKOFF_INITIAL: Duration = Duration::from_secs(10);
/// The longest delay.
pub(crate) const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// What the runtime has of one pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
    /// The pod's sandboxes, the newest first.
    pub(crate) sandboxes: Vec<SandboxStatus>,
    /// The pod's containers, the newest first.
    pub(crate) containers: Vec<ContainerStatus>,
}

impl Observed {
    /// The sandbox that containers can be started in.
    pub(crate) fn ready_sandbox(&self) -> Option<&SandboxStatus> {
        self.sandboxes
            .first()
            .filter(|s| s.state == SandboxState::Ready)
    }

    /// The sandboxes that no container can be started in any more: their shim is gone, they were stopped, or a newer one
    /// took their place.
    pub(crate) fn stale_sandboxes(&self) -> impl Iterator<Item = &SandboxStatus> {
        let usable = usize::from(self.ready_sandbox().is_some());
        self.sandboxes.iter().skip(usable)
    }

    /// The newest container of this name.
    pub(crate) fn latest(&self, name: &str) -> Option<&ContainerStatus> {
        self.containers.iter().find(|c| c.config.name == name)
    }

    /// The containers of this name, the newest first.
    pub(crate) fn history<'a>(
        &'a self,
        name: &'a str,
    ) -> impl Iterator<Item = &'a ContainerStatus> {
        self.containers
            .iter()
            .filter(move |c| c.config.name == name)
    }
}

/// A delay that doubles with each failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// The present delay.
    pub(crate) delay: Duration,
    /// When it was set.
    pub(crate) since: SystemTime,
}

impl Backoff {
    /// The next delay after a failure at `at`: doubled, or the first one again after twice the longest of quiet.
    pub(crate) fn next(previous: Option<Self>, at: SystemTime, now: SystemTime) -> Self {
        let delay = match previous {
            Some(p) if !p.expired(at) => (p.delay * 2).min(BACKOFF_MAX),
            _ => BACKOFF_INITIAL,
        };
        Self { delay, since: now }
    }

    /// Whether a failure at `at` came so late that the delays start anew.
    pub(crate) fn expired(&self, at: SystemTime) -> bool {
        at.duration_since(self.since)
            .is_ok_and(|quiet| quiet > BACKOFF_MAX * 2)
    }

    /// When a failure at `at` may be tried again.
    pub(crate) fn until(&self, at: SystemTime) -> SystemTime {
        if self.expired(at) {
            at
        } else {
            at + self.delay
        }
    }
}

/// A reason and a message, as a waiting container shows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// A pull that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PullFailure {
    /// What the registry or the store said.
    pub(crate) message: String,
    /// When.
    pub(crate) at: SystemTime,
    /// How long until the next try.
    pub(crate) backoff: Backoff,
}

/// What is remembered of one container.
#[derive(Clone, Debug, Default)]
pub(crate) struct ContainerMemory {
    /// The image that it was last started with, or was to be: another one knows no delays and no failures.
    pub(crate) image: Option<String>,
    /// Why it does not start.
    pub(crate) waiting: Option<Waiting>,
    /// The delay after its end.
    pub(crate) backoff: Option<Backoff>,
    /// The last pull, if it failed.
    pub(crate) pull: Option<PullFailure>,
    /// When a failed creation may be tried again.
    pub(crate) retry_at: Option<SystemTime>,
    /// The startup probe passed, or there is none.
    pub(crate) started: bool,
    /// The readiness probe's last word, or there is none.
    pub(crate) ready: bool,
    /// A liveness or startup probe failed, or a postStart hook: the container must go, for this reason.
    pub(crate) condemned: Option<Condemned>,
    /// The container that was stopped because its definition changed: it comes again whatever its policy says.
    pub(crate) replaced: Option<ContainerId>,
    /// The postStart hook is running.
    pub(crate) post_start_running: bool,
}

/// Why a running container must be restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Condemned {
    /// The message of its `Killing` event.
    pub(crate) message: String,
    /// The probe's own grace period.
    pub(crate) grace: Option<Duration>,
}

/// Why a pod's containers are stopped for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The API object is being deleted, or is gone.
    Deleted,
    /// All containers ended and none is to be restarted.
    Completed,
    /// The node ends it: `status.reason` and `status.message`.
    Failed {
        reason: &'static str,
        message: String,
    },
    /// The node never took it.
    Rejected(Rejection),
}

/// Why a node does not take a pod that is assigned to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// `status.reason` and the event's.
    pub(crate) reason: String,
    /// The event's message; `status.message` puts words before it.
    pub(crate) message: String,
}

/// What is remembered of one pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// By container name.
    pub(crate) containers: BTreeMap<String, ContainerMemory>,
    /// The sandbox is being made.
    pub(crate) creating_sandbox: bool,
    /// The last try failed for its volumes.
    pub(crate) volumes_failed: bool,
    /// Sandboxes that are being stopped because no container can be started in them any more.
    pub(crate) releasing: BTreeSet<SandboxId>,
    /// Stale sandboxes whose network, addresses and ports have been given back.
    pub(crate) released: BTreeSet<SandboxId>,
    /// When a stale sandbox that could not be stopped may be tried again.
    pub(crate) release_retry_at: Option<SystemTime>,
    /// When a failed sandbox may be tried again.
    pub(crate) sandbox_retry_at: Option<SystemTime>,
    /// The container that is being pulled, created and started.
    pub(crate) starting: Option<String>,
    /// Containers that are being stopped.
    pub(crate) stopping: BTreeSet<ContainerId>,
    /// Why the node does not take the pod, if it does not.
    pub(crate) rejected: Option<Rejection>,
    /// Set once the pod's containers are to be stopped for good.
    pub(crate) ending: Option<Ending>,
    /// The containers are being stopped for good.
    pub(crate) killing: bool,
    /// All containers and sandboxes are stopped for good.
    pub(crate) killed: bool,
    /// All but the dead containers is given back.
    pub(crate) parked: bool,
    /// When the agent first saw the pod.
    pub(crate) start_time: Option<SystemTime>,
}

impl Memory {
    pub(crate) fn container(&self, name: &str) -> Option<&ContainerMemory> {
        self.containers.get(name)
    }

    pub(crate) fn container_mut(&mut self, name: &str) -> &mut ContainerMemory {
        self.containers.entry(name.to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_to_five_minutes_and_start_anew_after_ten_quiet_ones() {
        let t0 = SystemTime::UNIX_EPOCH;
        let mut backoff = None;
        let mut delays = Vec::new();
        for _ in 0..7 {
            let next = Backoff::next(backoff, t0, t0);
            delays.push(next.delay.as_secs());
            backoff = Some(next);
        }
        assert_eq!(delays, [10, 20, 40, 80, 160, 300, 300]);
        let late = t0 + Duration::from_secs(601);
        assert_eq!(Backoff::next(backoff, late, late).delay, BACKOFF_INITIAL);
    }
}
