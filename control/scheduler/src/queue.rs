//! The pods that wait for a node: those to try now, in order of priority and age, and those for which no node will do until
//! something changes.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pod::{PodInfo, Uid};

/// The wait after the first failed try; it doubles up to [`LONGEST_BACKOFF`]. Source: kubernetes, `podInitialBackoffSeconds`.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
/// A pod for which nothing changed is tried again after this time, in case a change was overlooked.
const RESYNC: Duration = Duration::from_secs(300);

/// Order of trying: first those that need not wait, then by priority, then by age.
type Rank = (Reverse<i32>, u64, Uid);

/// A waiting pod.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub pod: Arc<PodInfo>,
    /// How often no node was found.
    pub attempts: u32,
    /// The last message, and when it was told.
    pub told: Option<(String, Instant)>,
    number: u64,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Active,
    /// Something changed, but the last try is too recent: tried early only if nobody else waits.
    Backoff {
        until: Instant,
    },
    /// `wake` is when it is tried even if nothing changes.
    Unschedulable {
        since: Instant,
        wake: Instant,
        depends_on_pods: bool,
    },
    /// Its binding could not be written: tried again at `wake`.
    Failed {
        wake: Instant,
    },
    /// Being tried or bound.
    Out,
}

/// What happened in the cluster, as far as it may let a pod in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// A node came or got better.
    Node,
    /// A pod went, came or changed its labels.
    Pods,
}

/// The queue.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pods: HashMap<Uid, Waiting>,
    active: BTreeSet<Rank>,
    backoff: BTreeSet<(Instant, Uid)>,
    unschedulable: BTreeSet<(Instant, Uid)>,
    next: u64,
}

impl Queue {
    /// Takes in a pod, or a new version of it; a changed pod is tried at once.
    pub fn set(&mut self, pod: PodInfo) {
        match self.pods.get(&pod.uid) {
            Some(known) if *known.pod == pod => return,
            Some(known) if known.place == Place::Out => {
                let uid = pod.uid.clone();
                if let Some(known) = self.pods.get_mut(&uid) {
                    known.pod = Arc::new(pod);
                }
                return;
            }
            _ => {}
        }
        let uid = pod.uid.clone();
        let (attempts, told, number) = match self.take_out(&uid) {
            Some(known) => (known.attempts, known.told, known.number),
            None => {
                self.next += 1;
                (0, None, self.next)
            }
        };
        self.pods.insert(
            uid.clone(),
            Waiting {
                pod: Arc::new(pod),
                attempts,
                told,
                number,
                place: Place::Out,
            },
        );
        self.put(&uid, Place::Active);
    }

    /// Forgets a pod.
    pub fn remove(&mut self, uid: &str) {
        self.take_out(uid);
    }

    /// Every pod that waits.
    pub fn uids(&self) -> impl Iterator<Item = &Uid> {
        self.pods.keys()
    }

    /// A waiting pod.
    pub fn get_mut(&mut self, uid: &str) -> Option<&mut Waiting> {
        self.pods.get_mut(uid)
    }

    /// The next pod to try; it stays known, but is out of the order until its fate is told.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        self.wake(now);
        let uid = match self.active.first() {
            Some((_, _, uid)) => uid.clone(),
            None => self.backoff.first()?.1.clone(),
        };
        self.put(&uid, Place::Out);
        self.pods.get(&uid).map(|waiting| waiting.pod.clone())
    }

    /// When the next pod wants to be tried by itself.
    pub fn due(&self) -> Option<Instant> {
        if !self.active.is_empty() || !self.backoff.is_empty() {
            return Some(Instant::now());
        }
        self.unschedulable.first().map(|(wake, _)| *wake)
    }

    /// No node will do: the pod waits for a change.
    pub fn unschedulable(&mut self, uid: &str, depends_on_pods: bool, now: Instant) {
        if let Some(waiting) = self.pods.get_mut(uid) {
            waiting.attempts += 1;
        }
        self.put(
            uid,
            Place::Unschedulable {
                since: now,
                wake: now + RESYNC,
                depends_on_pods,
            },
        );
    }

    /// Binding failed: the pod is tried again after a while, whatever changes.
    pub fn failed(&mut self, uid: &str, now: Instant) {
        let Some(waiting) = self.pods.get_mut(uid) else {
            return;
        };
        waiting.attempts += 1;
        let wake = now + backoff(waiting.attempts);
        self.put(uid, Place::Failed { wake });
    }

    /// A pod that waits for a change is tried again after a while, unless it is being tried now.
    pub fn retry(&mut self, uid: &str, now: Instant) {
        if let Some(waiting) = self.pods.get(uid)
            && matches!(waiting.place, Place::Unschedulable { .. })
        {
            let wake = now + backoff(waiting.attempts);
            self.put(uid, Place::Failed { wake });
        }
    }

    /// Something changed: pods that it may help are tried again.
    pub fn change(&mut self, change: Change, now: Instant) {
        let concerned: Vec<_> = (self.unschedulable.iter())
            .filter_map(|(_, uid)| self.pods.get(uid))
            .filter_map(|waiting| match waiting.place {
                Place::Unschedulable {
                    since,
                    depends_on_pods,
                    ..
                } if change == Change::Node || depends_on_pods => {
                    Some((waiting.pod.uid.clone(), since + backoff(waiting.attempts)))
                }
                _ => None,
            })
            .collect();
        for (uid, until) in concerned {
            self.put(
                &uid,
                if until <= now {
                    Place::Active
                } else {
                    Place::Backoff { until }
                },
            );
        }
    }

    /// Moves what has waited long enough.
    fn wake(&mut self, now: Instant) {
        while let Some((until, uid)) = self.backoff.first().cloned() {
            if until > now {
                break;
            }
            self.put(&uid, Place::Active);
        }
        while let Some((wake, uid)) = self.unschedulable.first().cloned() {
            if wake > now {
                break;
            }
            self.put(&uid, Place::Active);
        }
    }

    fn put(&mut self, uid: &str, place: Place) {
        let Some(waiting) = self.pods.get_mut(uid) else {
            return;
        };
        let uid = waiting.pod.uid.clone();
        let rank = (Reverse(waiting.pod.priority), waiting.number, uid.clone());
        match std::mem::replace(&mut waiting.place, place) {
            Place::Active => {
                self.active.remove(&rank);
            }
            Place::Backoff { until } => {
                self.backoff.remove(&(until, uid.clone()));
            }
            Place::Unschedulable { wake, .. } | Place::Failed { wake } => {
                self.unschedulable.remove(&(wake, uid.clone()));
            }
            Place::Out => {}
        }
        match place {
            Place::Active => {
                self.active.insert(rank);
            }
            Place::Backoff { until } => {
                self.backoff.insert((until, uid));
            }
            Place::Unschedulable { wake, .. } | Place::Failed { wake } => {
                self.unschedulable.insert((wake, uid));
            }
            Place::Out => {}
        }
    }

    fn take_out(&mut self, uid: &str) -> Option<Waiting> {
        self.put(uid, Place::Out);
        self.pods.remove(uid)
    }
}

fn backoff(attempts: u32) -> Duration {
    FIRST_BACKOFF
        .saturating_mul(1 << attempts.saturating_sub(1).min(10))
        .min(LONGEST_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, priority: i32) -> PodInfo {
        let pod = json!({"metadata": {"uid": uid, "name": uid}, "spec": {"priority": priority}});
        PodInfo::of(serde_json::from_value(pod).expect("a pod"))
    }

    fn popped(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.pop(now).map(|pod| pod.uid.to_string())
    }

    #[test]
    fn the_dearest_then_the_oldest_goes_first() {
        let mut queue = Queue::default();
        let now = Instant::now();
        for (uid, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            queue.set(pod(uid, priority));
        }
        let order: Vec<_> = std::iter::from_fn(|| popped(&mut queue, now)).collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }

    #[test]
    fn an_unschedulable_pod_waits_for_what_can_help_it() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.set(pod("a", 0));
        assert_eq!(popped(&mut queue, now).as_deref(), Some("a"));
        queue.unschedulable("a", false, now);
        assert_eq!(popped(&mut queue, now), None);
        queue.change(Change::Pods, now);
        assert_eq!(
            popped(&mut queue, now),
            None,
            "its trouble is with the nodes"
        );
        queue.change(Change::Node, now);
        assert_eq!(popped(&mut queue, now).as_deref(), Some("a"));
    }

    #[test]
    fn a_recently_tried_pod_gives_way_to_others_but_needs_not_idle() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.set(pod("old", 5));
        popped(&mut queue, now);
        queue.unschedulable("old", true, now);
        queue.change(Change::Pods, now);
        queue.set(pod("new", 0));
        assert_eq!(popped(&mut queue, now).as_deref(), Some("new"));
        assert_eq!(popped(&mut queue, now).as_deref(), Some("old"));
    }

    #[test]
    fn a_pod_that_changes_is_tried_again_and_one_that_does_not_is_left() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.set(pod("a", 0));
        popped(&mut queue, now);
        queue.unschedulable("a", false, now);
        queue.set(pod("a", 0));
        assert_eq!(popped(&mut queue, now), None);
        queue.set(pod("a", 1));
        assert_eq!(popped(&mut queue, now).as_deref(), Some("a"));
        queue.remove("a");
        assert_eq!(queue.uids().count(), 0);
    }

    #[test]
    fn nothing_waits_for_ever() {
        let mut queue = Queue::default();
        let now = Instant::now();
        queue.set(pod("a", 0));
        popped(&mut queue, now);
        queue.unschedulable("a", false, now);
        assert_eq!(popped(&mut queue, now + RESYNC).as_deref(), Some("a"));
    }
}
