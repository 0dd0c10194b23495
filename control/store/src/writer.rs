//! The one thread that writes: it gathers the transactions that wait, commits them with one fsync, and tells everybody.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use redb::{ReadableTable, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use crate::embedded::{KV, META, REMOVED, RESERVED, REVISION, Shared, kind};
use crate::{Compare, Durability, Event, KeyValue, Op, Revision, StoreError, TxnOutcome, record};

/// Most transactions in one commit: bounds how long the first of them waits for the last.
const GROUP: usize = 512;
/// Room on the disk that a commit leaves free, in bytes.
///
/// redb writes new pages before it frees old ones; below this it could fail half-way and would have to be reopened.
const RESERVE: u64 = 8 << 20;

/// How many revisions one reservation covers: a store that sees nothing but renewals has one fsync per so many of them, and a
/// crash makes a gap of at most so many.
const RESERVATION: u64 = 1000;

pub(crate) struct Request {
    pub(crate) compares: Vec<Compare>,
    pub(crate) ops: Vec<Op>,
    pub(crate) durability: Durability,
    pub(crate) reply: oneshot::Sender<Result<TxnOutcome, StoreError>>,
}

/// Runs until every handle of the store is gone.
pub(crate) fn run(shared: Arc<Shared>, path: PathBuf, mut requests: mpsc::Receiver<Request>) {
    let mut writer = Writer {
        shared,
        path,
        reserved: 0,
        covered: BTreeSet::new(),
        deferred: BTreeMap::new(),
        lost: false,
    };
    let mut group = Vec::new();
    while requests.blocking_recv_many(&mut group, GROUP) > 0 {
        match writer.commit(&group) {
            Ok((outcomes, batches)) => {
                let mut history = writer.shared.history.lock();
                for batch in batches {
                    history.publish(batch);
                }
                (writer.shared.revision).store(history.revision(), Ordering::Release);
                drop(history);
                for (request, outcome) in group.drain(..).zip(outcomes) {
                    // A caller that has gone away needs no answer; its write stands.
                    let _ = request.reply.send(Ok(outcome));
                }
            }
            Err(failure) => {
                tracing::error!(%failure, "commit");
                writer.reopen_if_broken();
                for request in group.drain(..) {
                    let _ = request.reply.send(Err(failure.to_error()));
                }
            }
        }
    }
    if let Err(failure) = writer.end_life() {
        // Nothing is wrong with the file: the next life starts as after a crash.
        tracing::warn!(%failure, "close the store");
    }
    writer.shared.history.lock().close();
}

struct Writer {
    shared: Arc<Shared>,
    path: PathBuf,
    /// The reservation in the file; 0 while there is none.
    reserved: Revision,
    /// The kinds of keys that the reservation in the file is for.
    covered: BTreeSet<String>,
    /// The records that were written without fsync since the last commit that had one.
    deferred: BTreeMap<String, Vec<u8>>,
    /// Whether the file was opened again and has lost what is in `deferred`.
    lost: bool,
}

/// Why a whole group failed; each of its callers gets an error of its own made from it.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{} bytes are free on the disk and {needed} are needed", free)]
    NoSpace { free: u64, needed: u64 },
    #[error("commit to {path}: {source}")]
    Redb { path: PathBuf, source: redb::Error },
}

impl Failure {
    fn to_error(&self) -> StoreError {
        let no_space = |text: String| StoreError::NoSpace {
            source: std::io::Error::new(std::io::ErrorKind::StorageFull, text),
        };
        match self {
            Failure::NoSpace { .. } => no_space(self.to_string()),
            Failure::Redb {
                source: redb::Error::Io(error),
                ..
            } if error.kind() == std::io::ErrorKind::StorageFull => no_space(self.to_string()),
            Failure::Redb { .. } => StoreError::Backend {
                what: "commit".to_owned(),
                source: self.to_string().into(),
            },
        }
    }
}

type Committed = (Vec<TxnOutcome>, Vec<(Revision, Vec<Event>)>);

impl Writer {
    fn commit(&mut self, group: &[Request]) -> Result<Committed, Failure> {
        check_space(&self.path, group)?;
        if self.lost {
            self.restore()?;
        }
        self.write(group).map_err(|source| self.failure(source))
    }

    fn failure(&self, source: redb::Error) -> Failure {
        Failure::Redb {
            path: self.path.clone(),
            source,
        }
    }

    fn write(&mut self, group: &[Request]) -> Result<Committed, redb::Error> {
        let database = self.shared.database.read();
        let mut txn = database.begin_write()?;
        let revision = self.shared.revision.load(Ordering::Acquire);
        let (outcomes, batches) = apply(&txn, revision, group)?;
        let Some(newest) = batches.last().map(|(revision, _)| *revision) else {
            // Nothing but conflicts: there is nothing to make durable.
            txn.abort()?;
            return Ok((outcomes, batches));
        };
        let only_deferred = (group.iter())
            .all(|request| request.durability == Durability::Deferred)
            // A deletion undone would bring back what somebody was told is gone.
            && batches.iter().flat_map(|(_, events)| events).all(|event| matches!(event, Event::Put { .. }));
        let kinds = || puts(&batches).map(|kv| kind(&kv.key));
        let covered = newest <= self.reserved && kinds().all(|kind| self.covered.contains(kind));
        if only_deferred && covered {
            txn.set_durability(redb::Durability::None)
                .expect("this transaction made no savepoint");
            txn.commit()?;
            for kv in puts(&batches) {
                let record = record::encode(kv.create_revision, kv.mod_revision, &kv.value);
                self.deferred.insert(kv.key.clone(), record);
            }
        } else {
            let reserved = only_deferred.then_some(newest + RESERVATION);
            if let Some(reserved) = reserved {
                txn.open_table(META)?.insert(RESERVED, reserved)?;
                self.covered.extend(kinds().map(str::to_owned));
                // What a crash undoes of these kinds happened, for those who saw it, up to where the next life starts.
                let mut removed = txn.open_table(REMOVED)?;
                for kind in &self.covered {
                    removed.insert(kind.as_str(), reserved + 1)?;
                }
            }
            txn.commit()?;
            self.reserved = reserved.unwrap_or(self.reserved);
            self.deferred.clear();
        }
        Ok((outcomes, batches))
    }

    /// After a failed write redb refuses everything until the file is opened again.
    fn reopen_if_broken(&mut self) {
        let database = &self.shared.database;
        let broken = match database.read().begin_read() {
            Ok(_) => database.read().begin_write().map(drop).is_err(),
            Err(_) => true,
        };
        if !broken {
            return;
        }
        self.lost = true;
        if let Err(error) = database.reopen(&self.path) {
            tracing::error!(%error, path = %self.path.display(), "reopen the store");
        } else if let Err(failure) = self.restore() {
            // The next commit tries it again before it writes anything.
            tracing::error!(%failure, "write again what was not durable yet");
        }
    }

    /// Writes again what the file lost when it was opened again: everybody has seen it, so it must stay.
    fn restore(&mut self) -> Result<(), Failure> {
        let write = || -> Result<(), redb::Error> {
            let txn = self.shared.database.read().begin_write()?;
            let mut kv = txn.open_table(KV)?;
            for (key, record) in &self.deferred {
                kv.insert(key.as_str(), record.as_slice())?;
            }
            drop(kv);
            let revision = self.shared.revision.load(Ordering::Acquire);
            txn.open_table(META)?.insert(REVISION, revision)?;
            Ok(txn.commit()?)
        };
        write().map_err(|source| self.failure(source))?;
        self.deferred.clear();
        self.lost = false;
        Ok(())
    }

    /// Makes everything durable, and drops the reservation.
    fn end_life(&mut self) -> Result<(), Failure> {
        if self.lost {
            self.restore()?;
        }
        if self.reserved == 0 {
            return Ok(());
        }
        let write = || -> Result<(), redb::Error> {
            let txn = self.shared.database.read().begin_write()?;
            txn.open_table(META)?.remove(RESERVED)?;
            Ok(txn.commit()?)
        };
        write().map_err(|source| self.failure(source))
    }
}

fn puts(batches: &[(Revision, Vec<Event>)]) -> impl Iterator<Item = &KeyValue> {
    let events = batches.iter().flat_map(|(_, events)| events);
    events.filter_map(|event| match event {
        Event::Put { kv, .. } => Some(kv),
        Event::Delete { .. } => None,
    })
}

fn check_space(path: &Path, group: &[Request]) -> Result<(), Failure> {
    let payload: usize = group
        .iter()
        .flat_map(|request| &request.ops)
        .map(|op| match op {
            Op::Put(key, value) => key.len() + value.len(),
            Op::Delete(_) => 0,
        })
        .sum();
    if payload == 0 {
        // Deletions must go through, they are the way out.
        return Ok(());
    }
    let needed = RESERVE + 4 * payload as u64;
    match nix::sys::statvfs::statvfs(path) {
        Ok(stat) => {
            let free = stat.blocks_available() * stat.fragment_size();
            if free < needed {
                Err(Failure::NoSpace { free, needed })
            } else {
                Ok(())
            }
        }
        // The commit itself will say what is wrong with the file.
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "statvfs");
            Ok(())
        }
    }
}

fn apply(
    txn: &WriteTransaction,
    mut revision: Revision,
    requests: &[Request],
) -> Result<Committed, redb::Error> {
    let mut kv = txn.open_table(KV)?;
    let mut removed = txn.open_table(REMOVED)?;
    let read = |table: &redb::Table<'_, &str, &[u8]>,
                key: &str|
     -> Result<Option<KeyValue>, redb::Error> {
        match table.get(key)? {
            Some(guard) => record::decode(key, guard.value())
                .map(Some)
                .ok_or_else(|| redb::Error::Corrupted(format!("the record of {key} is too short"))),
            None => Ok(None),
        }
    };
    let mut outcomes = Vec::with_capacity(requests.len());
    let mut batches = Vec::new();
    for request in requests {
        let mut holds = true;
        let mut found = Vec::with_capacity(request.compares.len());
        for compare in &request.compares {
            let (Compare::Absent(key) | Compare::ModRevision(key, _)) = compare;
            let current = read(&kv, key)?;
            holds &= match compare {
                Compare::Absent(_) => current.is_none(),
                Compare::ModRevision(_, wanted) => current
                    .as_ref()
                    .is_some_and(|kv| kv.mod_revision == *wanted),
            };
            found.push(current);
        }
        if !holds {
            outcomes.push(TxnOutcome::Conflict(found));
            continue;
        }
        let next = revision + 1;
        let mut events = Vec::with_capacity(request.ops.len());
        for op in &request.ops {
            match op {
                Op::Put(key, value) => {
                    let previous = read(&kv, key)?;
                    let create = previous.as_ref().map_or(next, |p| p.create_revision);
                    kv.insert(key.as_str(), record::encode(create, next, value).as_slice())?;
                    events.push(Event::Put {
                        kv: KeyValue {
                            key: key.clone(),
                            value: value.clone(),
                            create_revision: create,
                            mod_revision: next,
                        },
                        previous,
                    });
                }
                Op::Delete(key) => {
                    if let Some(previous) = read(&kv, key)? {
                        kv.remove(key.as_str())?;
                        let kind = kind(key);
                        // It may stand higher already, for renewals that a crash would undo.
                        let since = removed.get(kind)?.map_or(0, |guard| guard.value());
                        removed.insert(kind, since.max(next))?;
                        events.push(Event::Delete {
                            previous,
                            revision: next,
                        });
                    }
                }
            }
        }
        if events.is_empty() {
            // As in etcd, a transaction that changes nothing makes no revision.
            outcomes.push(TxnOutcome::Committed(revision));
            continue;
        }
        revision = next;
        outcomes.push(TxnOutcome::Committed(revision));
        batches.push((revision, events));
    }
    if !batches.is_empty() {
        txn.open_table(META)?.insert(REVISION, revision)?;
    }
    Ok((outcomes, batches))
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::embedded::File;
    use crate::history::History;

    fn put(durability: Durability, value: &'static str) -> Request {
        Request {
            compares: Vec::new(),
            ops: vec![Op::Put("/lease".to_owned(), value.into())],
            durability,
            reply: oneshot::channel().0,
        }
    }

    fn stored(writer: &Writer) -> (String, Revision) {
        let txn = writer.shared.database.read().begin_write().unwrap();
        let kv = txn.open_table(KV).unwrap();
        let lease = kv.get("/lease").unwrap().unwrap();
        let lease = record::decode("/lease", lease.value()).unwrap();
        let value = String::from_utf8(lease.value.to_vec()).unwrap();
        (value, lease.mod_revision)
    }

    /// As a disk does that fails once: everybody has seen the renewal, and then the file is opened anew without it.
    #[test]
    fn what_a_reopened_file_lost_is_written_again_before_anything_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.redb");
        let mut writer = Writer {
            shared: Arc::new(Shared {
                database: File::open(&path).unwrap(),
                history: Mutex::new(History::new(1)),
                revision: 1.into(),
            }),
            path,
            reserved: 0,
            covered: BTreeSet::new(),
            deferred: BTreeMap::new(),
            lost: false,
        };
        for value in ["reserves", "lost"] {
            let (_, batches) = writer.commit(&[put(Durability::Deferred, value)]).unwrap();
            writer
                .shared
                .revision
                .store(batches[0].0, Ordering::Release);
        }
        assert_eq!(stored(&writer), ("lost".to_owned(), 3));

        let copy = dir.path().join("as-the-disk-has-it.redb");
        std::fs::copy(&writer.path, &copy).unwrap();
        writer.shared.database.reopen(&copy).unwrap();
        assert_eq!(stored(&writer), ("reserves".to_owned(), 2));
        writer.lost = true;
        let mut next = put(Durability::Immediate, "next");
        next.compares = vec![Compare::ModRevision("/lease".to_owned(), 3)];
        let (outcomes, _) = writer.commit(&[next]).unwrap();
        assert_eq!(outcomes, [TxnOutcome::Committed(4)]);
        assert_eq!(stored(&writer), ("next".to_owned(), 4));
    }
}
