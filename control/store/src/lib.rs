//! A revisioned key-value store in etcd's model: keys, values, `create_revision`,
//! `mod_revision`, compare-and-swap transactions, ranges, watches from a revision, compaction.
//!
//! One trait, [`Store`], and one back end so far: redb in a file.
//!
//! # What a crash may take
//!
//! A write is on the disk when the caller hears of it, with one exception: a [`Durability::Deferred`] one, such as the
//! renewal of a Lease, which repeats every few seconds on each node and would otherwise keep the disk awake for ever. It is
//! seen by all readers and watchers at once and in its order, and becomes durable with the next write that is. After a crash
//! the key holds what it held before, as if the renewals had not come in time.
//!
//! What must not happen is that one revision means two things. So the file holds, durably, a *reservation*: a revision
//! beyond which no deferred write is committed without fsync. A deferred write that would pass it is made durable and moves
//! it. After a crash the store starts one behind the reservation: every revision that the earlier life gave out is either in
//! the file or never given again, and a watch from a lost one is told that it is compacted. A store that is closed in peace
//! first makes everything durable, drops the reservation, and goes on counting where it was.
//!
//! # What another version may find
//!
//! The file holds the number of its format. One without a number has the first. A file of a newer format is refused and stays
//! as it is, byte for byte ([`StoreError::Newer`]).
//!
//! # What a failing disk may do
//!
//! A full disk refuses what makes the store grow, and takes deletions, renewals and small changes ([`StoreError::NoSpace`]).
//! Any other failure to write ends this life of the store: whether the commit reached the disk can only be told by reading
//! the file again, so those who wait get [`StoreError::Unknown`], nothing is given a revision any more, and whoever owns the
//! store ends its process ([`RedbStore::failure`]). What was acknowledged before is there afterwards.

mod embedded;
mod gate;
mod history;
mod record;
mod space;
mod writer;

#[cfg(test)]
mod faults;

use std::path::PathBuf;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

pub use embedded::RedbStore;

/// A point in the store's history: grows by one with each committed transaction.
pub type Revision = u64;

/// One key and its value as of some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key, such as `/registry/pods/default/web-0`.
    pub key: String,
    /// The value's bytes.
    pub value: Bytes,
    /// The revision in which the key was created last.
    pub create_revision: Revision,
    /// The revision in which the value was written last.
    pub mod_revision: Revision,
}

impl Compare {
    /// The key that is looked at.
    pub fn key(&self) -> &str {
        match self {
            Compare::Absent(key) | Compare::ModRevision(key, _) => key,
        }
    }
}

impl Op {
    /// The key that changes.
    pub fn key(&self) -> &str {
        match self {
            Op::Put(key, _) | Op::Delete(key) => key,
        }
    }
}

/// What a transaction asks of one key before it changes anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key exists and was last written in this revision.
    ModRevision(String, Revision),
}

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Writes a value.
    Put(String, Bytes),
    /// Removes a key; a key that is not there is no error.
    Delete(String),
}

/// When a transaction must be on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before its caller hears of it.
    Immediate,
    /// With the next one that is [`Durability::Immediate`]; a crash before that undoes it.
    ///
    /// Only for writes that are worthless after a crash; never for a deletion or a creation.
    Deferred,
}

/// What became of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TxnOutcome {
    /// All compares held; the changes stand in this revision, as durable as they were asked to be.
    Committed(Revision),
    /// A compare did not hold; this is what each compared key holds now, in the order of the compares.
    Conflict(Vec<Option<KeyValue>>),
}

/// One change, as watchers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A key was written; `previous` is what it held before, `None` if it was created.
    Put {
        /// The key and its new value.
        kv: KeyValue,
        /// What it held before.
        previous: Option<KeyValue>,
    },
    /// A key was removed in revision `revision`.
    Delete {
        /// What it held before.
        previous: KeyValue,
        /// The revision of the removal.
        revision: Revision,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Event::Put { kv, .. } => &kv.key,
            Event::Delete { previous, .. } => &previous.key,
        }
    }
}

/// One page of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// The keys and values, sorted by key.
    pub kvs: Vec<KeyValue>,
    /// Whether there is more behind the last key.
    pub more: bool,
    /// The store's revision that the page shows.
    pub revision: Revision,
}

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The revision asked for is compacted away: read anew (HTTP 410).
    #[error("revision {asked} is compacted; the oldest is {oldest}")]
    Compacted {
        /// The revision asked for.
        asked: Revision,
        /// The oldest that is still there.
        oldest: Revision,
    },
    /// The disk is full; nothing was written, reads go on (HTTP 507 or 500 with the cause).
    #[error("no space left to write")]
    NoSpace {
        /// The system's error.
        source: std::io::Error,
    },
    /// The commit that held this transaction failed: whether its changes were made is not known before the store is opened
    /// again (HTTP 500).
    #[error("the store failed while it wrote, whether the change was made is not known: {what}")]
    Unknown {
        /// What was tried, on what.
        what: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An earlier commit failed, and the store takes nothing more until it is opened again (HTTP 503).
    #[error("the store has failed: {what}")]
    Failed {
        /// What was tried, on what.
        what: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A newer version of the program wrote the file, in a format that this one would misread.
    #[error(
        "{path} has store format {found}, and this version of Knarr reads formats up to {known}: start the version that wrote \
         it, or a newer one, or restore a copy of the data directory from before the upgrade",
        path = path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest format that this version reads and writes.
        known: u64,
    },
    /// The back end failed.
    #[error("{what}")]
    Backend {
        /// What was tried, on what.
        what: String,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store is closed.
    #[error("the store is closed")]
    Closed,
}

/// etcd's model, as far as Kubernetes uses it.
///
/// A transaction is as durable as it asks to be when `txn` returns `Committed`; events reach watchers only after that, in the order of
/// their revisions.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest revision.
    fn revision(&self) -> Revision;

    /// What `key` holds now.
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError>;

    /// Keys from `start` on, below `end`, at most `limit` (0 for all), as of now.
    async fn range(&self, start: &str, end: &str, limit: usize) -> Result<Range, StoreError>;

    /// Applies all of `ops` in one revision if all of `compares` hold, else none.
    async fn txn(
        &self,
        compares: Vec<Compare>,
        ops: Vec<Op>,
        durability: Durability,
    ) -> Result<TxnOutcome, StoreError>;

    /// All changes to keys that start with `prefix`, in revisions after `after`; each message is one revision's changes.
    ///
    /// The channel closes when the watcher falls too far behind or the store closes; the watcher then starts anew.
    async fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> Result<mpsc::Receiver<(Revision, Vec<Event>)>, StoreError>;

    /// A revision since which no key that starts with `prefix` was removed; `prefix` is `/registry/x/` or longer.
    ///
    /// With the newest `mod_revision` of those keys it tells since when nothing under the prefix has changed: whoever knows
    /// that state may go on from there, although this life of the store has not seen how it came about. A store that does
    /// not know answers with its newest revision.
    async fn none_removed_since(&self, prefix: &str) -> Result<Revision, StoreError>;

    /// Whether the store answers reads and takes writes.
    ///
    /// # Errors
    ///
    /// Why it does not.
    async fn check(&self) -> Result<(), StoreError>;

    /// Forgets history before `revision`; the present stays whole.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;
}
