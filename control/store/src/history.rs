//! The recent past and those who wait for the future.
//!
//! The window holds the changes of the newest revisions, so that a watch can start a little behind. It lives in memory
//! only: after a restart the oldest revision that a watch can start from is the one the file was closed with, and who asks
//! for an older one reads anew, as after a compaction.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use crate::{Event, Revision, StoreError};

/// The most bytes of values that the window keeps.
const WINDOW_BYTES: usize = 4 << 20;
/// How many revisions a watcher may fall behind before it is dropped.
const WATCHER_BACKLOG: usize = 16 * 1024;

/// One revision's changes.
type Batch = (Revision, Vec<Event>);

struct Watcher {
    prefix: String,
    sender: mpsc::Sender<Batch>,
}

/// The newest revision, the window of changes that led to it, and the watchers.
pub(crate) struct History {
    revision: Revision,
    /// The revision before the first one in the window.
    floor: Revision,
    window: VecDeque<Batch>,
    window_bytes: usize,
    watchers: Vec<Watcher>,
}

impl History {
    pub(crate) fn new(revision: Revision) -> Self {
        Self {
            revision,
            floor: revision,
            window: VecDeque::new(),
            window_bytes: 0,
            watchers: Vec::new(),
        }
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// Adds what has just become durable and tells the watchers.
    pub(crate) fn publish(&mut self, batch: Batch) {
        self.revision = batch.0;
        self.watchers
            .retain(|watcher| match select(&watcher.prefix, &batch) {
                // A watcher that is full has lost its place: closing its channel tells it to start anew.
                Some(mine) => watcher.sender.try_send(mine).is_ok(),
                None => !watcher.sender.is_closed(),
            });
        self.window_bytes += weight(&batch);
        self.window.push_back(batch);
        while self.window_bytes > WINDOW_BYTES {
            let Some(oldest) = self.window.pop_front() else {
                break;
            };
            self.window_bytes -= weight(&oldest);
            self.floor = oldest.0;
        }
    }

    pub(crate) fn watch(
        &mut self,
        prefix: &str,
        after: Revision,
    ) -> Result<mpsc::Receiver<Batch>, StoreError> {
        if after < self.floor {
            return Err(StoreError::Compacted {
                asked: after,
                oldest: self.floor,
            });
        }
        let missed: Vec<Batch> = self
            .window
            .iter()
            .filter(|(revision, _)| *revision > after)
            .filter_map(|batch| select(prefix, batch))
            .collect();
        let (sender, receiver) = mpsc::channel(WATCHER_BACKLOG + missed.len());
        for batch in missed {
            sender
                .try_send(batch)
                .expect("the channel was made large enough for all that was missed");
        }
        self.watchers.push(Watcher {
            prefix: prefix.to_owned(),
            sender,
        });
        Ok(receiver)
    }

    pub(crate) fn compact(&mut self, revision: Revision) {
        while self
            .window
            .front()
            .is_some_and(|(oldest, _)| *oldest < revision)
        {
            if let Some(oldest) = self.window.pop_front() {
                self.window_bytes -= weight(&oldest);
                self.floor = oldest.0;
            }
        }
    }

    /// Closes every watcher's channel.
    pub(crate) fn close(&mut self) {
        self.watchers.clear();
    }
}

/// What a batch holds for a prefix; `None` if nothing.
fn select(prefix: &str, (revision, events): &Batch) -> Option<Batch> {
    let mine: Vec<Event> = events
        .iter()
        .filter(|event| event.key().starts_with(prefix))
        .cloned()
        .collect();
    (!mine.is_empty()).then_some((*revision, mine))
}

fn weight((_, events): &Batch) -> usize {
    events
        .iter()
        .map(|event| match event {
            Event::Put { kv, previous } => {
                kv.value.len() + previous.as_ref().map_or(0, |p| p.value.len()) + 256
            }
            Event::Delete { previous, .. } => previous.value.len() + 256,
        })
        .sum()
}
