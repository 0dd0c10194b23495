//! The one thread that writes: it gathers the transactions that wait, commits them with one fsync, and tells everybody.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use redb::{ReadableTable, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use crate::embedded::{KV, META, REVISION, Shared};
use crate::{Compare, Event, KeyValue, Op, Revision, StoreError, TxnOutcome, record};

/// Most transactions in one commit: bounds how long the first of them waits for the last.
const GROUP: usize = 512;
/// Room on the disk that a commit leaves free, in bytes.
///
/// redb writes new pages before it frees old ones; below this it could fail half-way and would have to be reopened.
const RESERVE: u64 = 8 << 20;

pub(crate) struct Request {
    pub(crate) compares: Vec<Compare>,
    pub(crate) ops: Vec<Op>,
    pub(crate) reply: oneshot::Sender<Result<TxnOutcome, StoreError>>,
}

/// Runs until every handle of the store is gone.
pub(crate) fn run(shared: &Arc<Shared>, path: &Path, mut requests: mpsc::Receiver<Request>) {
    let mut group = Vec::new();
    while requests.blocking_recv_many(&mut group, GROUP) > 0 {
        match commit(shared, path, &group) {
            Ok((outcomes, batches)) => {
                let mut history = shared.history.lock();
                for batch in batches {
                    history.publish(batch);
                }
                shared.revision.store(history.revision(), Ordering::Release);
                drop(history);
                for (request, outcome) in group.drain(..).zip(outcomes) {
                    // A caller that has gone away needs no answer; its write stands.
                    let _ = request.reply.send(Ok(outcome));
                }
            }
            Err(failure) => {
                tracing::error!(%failure, "commit");
                reopen_if_broken(shared, path);
                for request in group.drain(..) {
                    let _ = request.reply.send(Err(failure.to_error()));
                }
            }
        }
    }
    shared.history.lock().close();
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

fn commit(shared: &Shared, path: &Path, group: &[Request]) -> Result<Committed, Failure> {
    check_space(path, group)?;
    let redb = |source: redb::Error| Failure::Redb {
        path: path.to_owned(),
        source,
    };
    let database = shared.database.read();
    let txn = database.begin_write().map_err(|e| redb(e.into()))?;
    let (outcomes, batches) =
        apply(&txn, shared.revision.load(Ordering::Acquire), group).map_err(redb)?;
    if batches.is_empty() {
        // Nothing but conflicts: there is nothing to make durable.
        txn.abort().map_err(|e| redb(e.into()))?;
    } else {
        txn.commit().map_err(|e| redb(e.into()))?;
    }
    Ok((outcomes, batches))
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
    group: &[Request],
) -> Result<Committed, redb::Error> {
    let mut kv = txn.open_table(KV)?;
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
    let mut outcomes = Vec::with_capacity(group.len());
    let mut batches = Vec::new();
    for request in group {
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

/// After a failed write redb refuses everything until the file is opened again.
fn reopen_if_broken(shared: &Shared, path: &Path) {
    let broken = match shared.database.read().begin_read() {
        Ok(_) => shared.database.read().begin_write().map(drop).is_err(),
        Err(_) => true,
    };
    if broken && let Err(error) = shared.database.reopen(path) {
        tracing::error!(%error, path = %path.display(), "reopen the store");
    }
}
