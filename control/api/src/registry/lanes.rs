//! Changes of few objects for those who follow no more than those.
//!
//! A lane is a queue of one watcher. The feed puts a change into the lanes of its object and of its indexed field's value,
//! before and after; so what a watcher costs depends on what it sees, not on what happens.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use tokio::sync::mpsc::{self, error::TryRecvError};

use super::collection::Change;

/// Changes that may wait in a lane; a watcher that is further behind starts anew.
const BACKLOG: usize = 4096;
/// With fewer lanes than this nobody looks for those that were left.
const SWEEP_FROM: usize = 64;

/// Which objects of a collection somebody looks at, as far as they are told apart without looking at all of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum View {
    /// All.
    Whole,
    /// The one with this key.
    Object(Box<str>),
    /// Those whose indexed field has this value.
    Field(Box<str>),
}

/// The lanes of a collection, by what is seen in them.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    by_view: HashMap<View, Vec<mpsc::Sender<Arc<Change>>>>,
    sweep_at: usize,
}

impl Lanes {
    /// A lane that starts with these changes.
    pub fn open(&mut self, view: &View, missed: VecDeque<Arc<Change>>) -> Lane {
        if self.by_view.len() >= self.sweep_at.max(SWEEP_FROM) {
            self.by_view.retain(|_, lanes| {
                lanes.retain(|lane| !lane.is_closed());
                !lanes.is_empty()
            });
            self.sweep_at = 2 * self.by_view.len();
        }
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let lanes = self.by_view.entry(view.clone()).or_default();
        lanes.retain(|lane| !lane.is_closed());
        lanes.push(sender);
        Lane {
            waiting: missed,
            receiver,
        }
    }

    /// Puts a change into the lanes of a view.
    pub fn tell(&mut self, view: &View, change: &Arc<Change>) {
        let Some(lanes) = self.by_view.get_mut(view) else {
            return;
        };
        // A lane that is full has lost its place: without its sender its watcher starts anew.
        lanes.retain(|lane| lane.try_send(change.clone()).is_ok());
        if lanes.is_empty() {
            self.by_view.remove(view);
        }
    }

    /// Ends all lanes.
    pub fn close(&mut self) {
        self.by_view.clear();
    }
}

/// One watcher's end of a lane.
#[derive(Debug)]
pub struct Lane {
    waiting: VecDeque<Arc<Change>>,
    receiver: mpsc::Receiver<Arc<Change>>,
}

impl Lane {
    /// The changes that wait, at most `limit`; `None` if the watcher fell too far behind.
    pub(super) fn read(&mut self, limit: usize) -> Option<Vec<Arc<Change>>> {
        let mut ended = false;
        while self.waiting.len() < limit {
            match self.receiver.try_recv() {
                Ok(change) => self.waiting.push_back(change),
                Err(error) => {
                    ended = error == TryRecvError::Disconnected;
                    break;
                }
            }
        }
        if ended && self.waiting.is_empty() {
            return None;
        }
        let count = self.waiting.len().min(limit);
        Some(self.waiting.drain(..count).collect())
    }

    /// Waits until there is a change, or the lane has ended. Losing the wait loses nothing.
    pub(super) async fn changed(&mut self) {
        if self.waiting.is_empty()
            && let Some(change) = self.receiver.recv().await
        {
            self.waiting.push_back(change);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use knarr_store::{Event, KeyValue, Revision};
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::collection::{Collection, Cursor, TooOld};
    use super::*;
    use crate::strategy::Pod;

    const NODES: [&str; 3] = ["", "a", "b"];

    /// What the store tells of a pod's way over the nodes.
    struct Pods {
        collection: Collection,
        revision: Revision,
        now: HashMap<usize, KeyValue>,
    }

    impl Pods {
        fn new() -> Self {
            Self {
                collection: Collection::new("pods", Arc::new(Pod)),
                revision: 1,
                now: HashMap::new(),
            }
        }

        /// Puts a pod on a node, or (`None`) removes it.
        fn step(&mut self, pod: usize, node: Option<usize>) {
            self.revision += 1;
            let revision = self.revision;
            let previous = self.now.remove(&pod);
            let event = match node {
                Some(node) => {
                    let value = json!({ "metadata": { "name": format!("p{pod}") }, "spec": { "nodeName": NODES[node] } });
                    let kv = KeyValue {
                        key: format!("/registry/pods/ns/p{pod}"),
                        value: Bytes::from(value.to_string()),
                        create_revision: revision,
                        mod_revision: revision,
                    };
                    self.now.insert(pod, kv.clone());
                    Event::Put { kv, previous }
                }
                None => match previous {
                    Some(previous) => Event::Delete { previous, revision },
                    None => return,
                },
            };
            self.collection.apply(revision, &[event]);
            self.collection.announce();
        }

        fn seen(&self, cursor: &mut Cursor) -> Result<Vec<(Revision, String)>, TooOld> {
            let changes = self.collection.read(cursor, usize::MAX)?;
            Ok((changes.iter())
                .map(|change| {
                    let frame = String::from_utf8(change.frame.to_vec()).expect("UTF-8");
                    (change.revision, frame)
                })
                .collect())
        }
    }

    proptest! {
        /// Whoever looks at one node or one pod sees what they would find by looking at everything, from whatever revision on.
        #[test]
        fn a_lane_has_what_a_search_of_everything_finds(
            before in proptest::collection::vec((0..4_usize, proptest::option::of(0..3_usize)), 0..12),
            after in proptest::collection::vec((0..4_usize, proptest::option::of(0..3_usize)), 0..12),
            from in 1..12_u64,
        ) {
            let mut pods = Pods::new();
            before.iter().for_each(|(pod, node)| pods.step(*pod, *node));
            let from = from.min(pods.revision);
            let field = |name: &str| View::Field(name.into());
            let views = [field("a"), field("b"), View::Object("ns/p1".into())];
            let mut lanes = views.clone().map(|view| {
                let cursor = pods.collection.follow(&view, from).expect("all is known");
                (view, cursor)
            });
            let mut whole = pods.collection.follow(&View::Whole, from).expect("all is known");
            after.iter().for_each(|(pod, node)| pods.step(*pod, *node));
            let all = pods.collection.read(&mut whole, usize::MAX).expect("the window is long enough");
            for (view, cursor) in &mut lanes {
                let expected: Vec<_> = all.iter().filter(|change| change.concerns(view, Some("spec.nodeName"))).map(|change| change.revision).collect();
                let seen: Vec<_> = pods.seen(cursor).expect("nothing is lost").into_iter().map(|(revision, _)| revision).collect();
                prop_assert_eq!(seen, expected, "{:?}", view);
            }
            let everything = pods.collection.snapshot("", "").entries;
            for node in ["a", "b"] {
                let found: Vec<_> = pods.collection.snapshot_of(&field(node), "", "").entries.iter().map(|entry| entry.key.clone()).collect();
                let expected: Vec<_> = everything.iter().filter(|entry| entry.field("spec.nodeName") == node).map(|entry| entry.key.clone()).collect();
                prop_assert_eq!(found, expected, "{}", node);
            }
        }
    }

    #[tokio::test]
    async fn changes_elsewhere_wake_nobody() {
        let mut pods = Pods::new();
        let (_, mut cursor) = (pods.collection).snapshot_and_follow(&View::Field("a".into()), "");
        for n in 0..2 * BACKLOG {
            pods.step(1, Some(if n % 2 == 0 { 0 } else { 2 }));
        }
        let waked = tokio::time::timeout(std::time::Duration::ZERO, cursor.changed()).await;
        assert!(waked.is_err(), "woken by pods of another node");
        pods.step(2, Some(1));
        cursor.changed().await;
        assert_eq!(pods.seen(&mut cursor).map(|seen| seen.len()), Ok(1));
    }

    #[test]
    fn who_falls_too_far_behind_in_a_lane_is_told_so() {
        let mut pods = Pods::new();
        let view = View::Field("a".into());
        let (_, mut cursor) = pods.collection.snapshot_and_follow(&view, "");
        for _ in 0..=BACKLOG {
            pods.step(1, Some(1));
        }
        assert_eq!(pods.seen(&mut cursor).map(|seen| seen.len()), Ok(BACKLOG));
        assert!(pods.seen(&mut cursor).is_err());
    }
}
