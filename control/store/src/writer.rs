//! The one thread that writes: it gathers the transactions that wait, commits them with one fsync, and tells everybody.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use redb::{ReadableTable as _, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use crate::embedded::{Failed, KV, META, REMOVED, RESERVED, REVISION, Shared, corrupt, kind};
use crate::space::{Budget, Space};
use crate::{Compare, Durability, Event, KeyValue, Op, Revision, StoreError, TxnOutcome, record};

/// Most transactions in one commit: bounds how long the first of them waits for the last.
const GROUP: usize = 512;
/// A transaction that replaces values is no growth if it adds at most this many bytes (a deletion's time, a condition) …
const SLACK: usize = 1024;
/// … and is small enough to be carried by the pages that are there.
const SMALL: usize = 64 << 10;

/// How many revisions one reservation covers: a store that sees nothing but renewals has one fsync per so many of them, and a
/// crash makes a gap of at most so many.
const RESERVATION: u64 = 1000;

pub(crate) struct Request {
    pub(crate) compares: Vec<Compare>,
    pub(crate) ops: Vec<Op>,
    pub(crate) durability: Durability,
    pub(crate) reply: oneshot::Sender<Result<TxnOutcome, StoreError>>,
}

/// Runs until every handle of the store is gone, or a commit fails.
///
/// After a failed commit nobody can tell what the file holds: redb may have written its header, and after a failed fsync the
/// kernel's pages may differ from the disk's. So nothing is tried again and no revision is given out any more; the store
/// reports the failure and leaves it to the next life to read what is there.
pub(crate) fn run(
    shared: Arc<Shared>,
    path: PathBuf,
    space: Option<Space>,
    mut requests: mpsc::Receiver<Request>,
) {
    let mut writer = Writer {
        shared,
        space,
        reserved: 0,
        covered: BTreeSet::new(),
    };
    let mut group = Vec::new();
    while requests.blocking_recv_many(&mut group, GROUP) > 0 {
        let committed = catch_unwind(AssertUnwindSafe(|| writer.commit(&group)));
        let cause: String = match committed {
            Ok(Ok((outcomes, batches))) => {
                writer.publish(batches);
                for (request, outcome) in group.drain(..).zip(outcomes) {
                    // A caller that has gone away needs no answer; its write stands.
                    let _ = request.reply.send(outcome);
                }
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(panic) => format!("panic: {}", panic_message(&*panic)),
        };
        let failed = Failed {
            what: format!("commit to {}", path.display()),
            cause,
        };
        tracing::error!(
            what = failed.what,
            cause = failed.cause,
            "the store has failed"
        );
        writer.shared.failed.send_replace(Some(failed.clone()));
        for request in group.drain(..) {
            let _ = request.reply.send(Err(failed.unknown()));
        }
        // Watchers stay: what they have seen is true, and reads go on until the process ends.
        requests.close();
        while let Some(request) = requests.blocking_recv() {
            let _ = request.reply.send(Err(failed.error()));
        }
        return;
    }
    if let Err(error) = writer.end_life() {
        // Nothing is wrong with the file: the next life starts as after a crash.
        tracing::warn!(%error, path = %path.display(), "close the store");
    }
    writer.shared.history.lock().close();
}

/// The message of a panic.
fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}

struct Writer {
    shared: Arc<Shared>,
    /// `None` where the database is in no file.
    space: Option<Space>,
    /// The reservation in the file; 0 while there is none.
    reserved: Revision,
    /// The kinds of keys that the reservation in the file is for.
    covered: BTreeSet<String>,
}

type Batch = (Revision, Vec<Event>);
type Committed = (Vec<Result<TxnOutcome, StoreError>>, Vec<Batch>);

impl Writer {
    /// Commits what holds of a group, each transaction judged for itself.
    ///
    /// # Errors
    ///
    /// Those after which nobody knows what the file holds.
    fn commit(&mut self, group: &[Request]) -> Result<Committed, redb::Error> {
        let budget = (self.space.as_mut()).map_or(Budget::UNLIMITED, Space::budget);
        let mut txn = self.shared.database.begin_write()?;
        let revision = self.shared.revision.load(Ordering::Acquire);
        let (outcomes, batches) = apply(&txn, revision, group, budget)?;
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
        }
        Ok((outcomes, batches))
    }

    fn publish(&self, batches: Vec<Batch>) {
        let mut history = self.shared.history.lock();
        for batch in batches {
            history.publish(batch);
        }
        (self.shared.revision).store(history.revision(), Ordering::Release);
    }

    /// Makes everything durable, and drops the reservation.
    fn end_life(&mut self) -> Result<(), redb::Error> {
        if self.reserved == 0 {
            return Ok(());
        }
        let txn = self.shared.database.begin_write()?;
        txn.open_table(META)?.remove(RESERVED)?;
        Ok(txn.commit()?)
    }
}

fn puts(batches: &[(Revision, Vec<Event>)]) -> impl Iterator<Item = &KeyValue> {
    let events = batches.iter().flat_map(|(_, events)| events);
    events.filter_map(|event| match event {
        Event::Put { kv, .. } => Some(kv),
        Event::Delete { .. } => None,
    })
}

/// What a key holds; an error of this transaction alone if the record cannot be read.
fn read(
    table: &redb::Table<'_, &str, &[u8]>,
    key: &str,
) -> Result<Result<Option<KeyValue>, StoreError>, redb::Error> {
    Ok(match table.get(key)? {
        Some(guard) => {
            record::decode(key, guard.value())
                .map(Some)
                .ok_or_else(|| StoreError::Backend {
                    what: format!("read {key}"),
                    source: corrupt(key).into(),
                })
        }
        None => Ok(None),
    })
}

/// What a transaction finds: the values of its compares, and of its ops.
struct Found {
    holds: bool,
    compared: Vec<Option<KeyValue>>,
    previous: Vec<Option<KeyValue>>,
}

fn find(
    table: &redb::Table<'_, &str, &[u8]>,
    request: &Request,
) -> Result<Result<Found, StoreError>, redb::Error> {
    let mut found = Found {
        holds: true,
        compared: Vec::with_capacity(request.compares.len()),
        previous: Vec::new(),
    };
    for compare in &request.compares {
        let current = match read(table, compare.key())? {
            Ok(current) => current,
            Err(error) => return Ok(Err(error)),
        };
        found.holds &= match compare {
            Compare::Absent(_) => current.is_none(),
            Compare::ModRevision(_, wanted) => current
                .as_ref()
                .is_some_and(|kv| kv.mod_revision == *wanted),
        };
        found.compared.push(current);
    }
    if !found.holds {
        return Ok(Ok(found));
    }
    found.previous.reserve(request.ops.len());
    for op in &request.ops {
        let compared = (request.compares.iter()).position(|compare| compare.key() == op.key());
        let previous = match compared {
            Some(at) => found.compared[at].clone(),
            None => match read(table, op.key())? {
                Ok(previous) => previous,
                Err(error) => return Ok(Err(error)),
            },
        };
        found.previous.push(previous);
    }
    Ok(Ok(found))
}

/// The bytes that a transaction adds to the store and needs room for; `None` if it does not make it grow.
fn growth(ops: &[Op], previous: &[Option<KeyValue>]) -> Option<usize> {
    let (mut written, mut added, mut creates) = (0, 0_usize, false);
    for (op, previous) in ops.iter().zip(previous) {
        if let Op::Put(key, value) = op {
            let replaced = previous.as_ref().map_or(0, |kv| kv.value.len());
            creates |= previous.is_none();
            written += key.len() + value.len();
            added += value.len().saturating_sub(replaced);
        }
    }
    (creates || added > SLACK || written > SMALL).then_some(written)
}

fn apply(
    txn: &WriteTransaction,
    mut revision: Revision,
    requests: &[Request],
    mut budget: Budget,
) -> Result<Committed, redb::Error> {
    let mut kv = txn.open_table(KV)?;
    let mut removed = txn.open_table(REMOVED)?;
    let mut outcomes = Vec::with_capacity(requests.len());
    let mut batches = Vec::new();
    for request in requests {
        let found = match find(&kv, request)? {
            Ok(found) if found.holds => found,
            Ok(found) => {
                outcomes.push(Ok(TxnOutcome::Conflict(found.compared)));
                continue;
            }
            Err(error) => {
                outcomes.push(Err(error));
                continue;
            }
        };
        if let Some(bytes) = growth(&request.ops, &found.previous)
            && let Err(needed) = budget.take(bytes)
        {
            outcomes.push(Err(no_space(budget.free, needed)));
            continue;
        }
        let next = revision + 1;
        let mut events: Vec<Event> = Vec::with_capacity(request.ops.len());
        for (op, mut previous) in request.ops.iter().zip(found.previous) {
            // Two changes of one key: the second finds what the first left.
            if let Some(event) = events.iter().rev().find(|event| event.key() == op.key()) {
                previous = match event {
                    Event::Put { kv, .. } => Some(kv.clone()),
                    Event::Delete { .. } => None,
                };
            }
            match op {
                Op::Put(key, value) => {
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
                    if let Some(previous) = previous {
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
            outcomes.push(Ok(TxnOutcome::Committed(revision)));
            continue;
        }
        revision = next;
        outcomes.push(Ok(TxnOutcome::Committed(revision)));
        batches.push((revision, events));
    }
    if !batches.is_empty() {
        txn.open_table(META)?.insert(REVISION, revision)?;
    }
    Ok((outcomes, batches))
}

fn no_space(free: u64, needed: u64) -> StoreError {
    let text = format!("{free} bytes are free on the disk and {needed} are needed");
    StoreError::NoSpace {
        source: std::io::Error::new(std::io::ErrorKind::StorageFull, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(size: usize) -> Option<KeyValue> {
        Some(KeyValue {
            key: "/a".to_owned(),
            value: vec![0; size].into(),
            create_revision: 1,
            mod_revision: 1,
        })
    }

    #[test]
    fn what_replaces_and_what_removes_is_no_growth() {
        let put = |size: usize| Op::Put("/a".to_owned(), vec![0; size].into());
        let delete = || Op::Delete("/b".to_owned());
        #[rustfmt::skip] // A table.
        let table = [
            (vec![delete()], vec![value(5)], None),
            (vec![delete()], vec![None], None),
            (vec![put(100)], vec![value(100)], None),
            (vec![put(100 + SLACK)], vec![value(100)], None),
            (vec![put(101 + SLACK)], vec![value(100)], Some(103 + SLACK)),
            (vec![put(1)], vec![None], Some(3)),
            (vec![delete(), put(1)], vec![value(9), None], Some(3)),
            // Not growth, but more pages than one can count on.
            (vec![put(SMALL)], vec![value(SMALL)], Some(SMALL + 2)),
        ];
        for (ops, previous, wanted) in table {
            assert_eq!(growth(&ops, &previous), wanted, "{ops:?}");
        }
    }
}
