//! The store in one file: redb, with group commit.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use redb::{Database, ReadableDatabase, ReadableTable as _, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use crate::history::History;
use crate::writer::{self, Request};
use crate::{
    Compare, Durability, Event, KeyValue, Op, Range, Revision, Store, StoreError, TxnOutcome,
    record,
};

pub(crate) const KV: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("kv");
pub(crate) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Since when no key of a [`kind`] was removed; under [`EVERY_KIND`], of those that are not listed.
pub(crate) const REMOVED: TableDefinition<'_, &str, u64> = TableDefinition::new("removed");
pub(crate) const EVERY_KIND: &str = "";
/// The key in [`META`] of the newest revision.
pub(crate) const REVISION: &str = "revision";
/// The key in [`META`] of the reservation: no revision beyond it was given out without being in the file.
pub(crate) const RESERVED: &str = "reserved";

/// redb's page cache, in bytes. The API server's watch cache answers nearly every read, so this serves writes only.
const CACHE_BYTES: usize = 4 << 20;
/// How many transactions may wait for the writer before callers wait too.
const QUEUE: usize = 1024;

/// The open file; it is closed and opened again after a failed write, which is why it stands behind a lock.
pub(crate) struct File(RwLock<Option<Database>>);

impl File {
    pub(crate) fn open(path: &Path) -> Result<Self, redb::Error> {
        Ok(Self(RwLock::new(Some(open_database(path)?))))
    }

    /// The database; while it could not be reopened, an empty option that every caller reports.
    pub(crate) fn read(&self) -> DatabaseGuard<'_> {
        DatabaseGuard(self.0.read())
    }

    pub(crate) fn reopen(&self, path: &Path) -> Result<(), redb::Error> {
        let mut slot = self.0.write();
        // The old handle holds the file's lock: it must go first.
        *slot = None;
        *slot = Some(open_database(path)?);
        Ok(())
    }
}

pub(crate) struct DatabaseGuard<'a>(RwLockReadGuard<'a, Option<Database>>);

impl DatabaseGuard<'_> {
    fn database(&self) -> Result<&Database, redb::TransactionError> {
        self.0.as_ref().ok_or(redb::TransactionError::Storage(
            redb::StorageError::DatabaseClosed,
        ))
    }

    pub(crate) fn begin_write(&self) -> Result<redb::WriteTransaction, redb::TransactionError> {
        self.database()?.begin_write()
    }

    pub(crate) fn begin_read(&self) -> Result<redb::ReadTransaction, redb::TransactionError> {
        self.database()?.begin_read()
    }
}

fn open_database(path: &Path) -> Result<Database, redb::Error> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder.set_repair_callback(|session| {
        tracing::info!(
            progress = session.progress(),
            "repairing the store after a crash"
        );
    });
    let database = builder.create(path)?;
    // Make both tables, so that readers never meet a file without them.
    let txn = database.begin_write()?;
    txn.open_table(KV)?;
    txn.open_table(META)?;
    txn.open_table(REMOVED)?;
    txn.commit()?;
    Ok(database)
}

pub(crate) struct Shared {
    pub(crate) database: File,
    pub(crate) history: Mutex<History>,
    /// A copy of the history's revision, to be read without its lock.
    pub(crate) revision: AtomicU64,
}

/// A store in one redb file. It is closed when its last clone is dropped and the writer has come to rest.
pub struct RedbStore {
    shared: Arc<Shared>,
    path: PathBuf,
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl RedbStore {
    /// Opens the file, or makes it; its directory must exist.
    ///
    /// # Errors
    ///
    /// `Backend` if the file cannot be opened, is no store, or another process has it open.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source: redb::Error| backend(format!("open {}", path.display()), source);
        let database = File::open(path).map_err(failed)?;
        let revision = begin_life(&database).map_err(failed)?;
        let shared = Arc::new(Shared {
            database,
            history: Mutex::new(History::new(revision)),
            revision: AtomicU64::new(revision),
        });
        let (sender, receiver) = mpsc::channel(QUEUE);
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn({
                let shared = shared.clone();
                let path = path.to_owned();
                move || writer::run(shared, path, receiver)
            })
            .map_err(|source| StoreError::Backend {
                what: "start the store's thread".to_owned(),
                source: source.into(),
            })?;
        Ok(Self {
            shared,
            path: path.to_owned(),
            requests: Some(sender),
            writer: Some(writer),
        })
    }

    fn failed(&self, what: &str, source: redb::Error) -> StoreError {
        backend(format!("{what} in {}", self.path.display()), source)
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's thread panicked");
        }
    }
}

/// The revision that this life of the store starts with.
///
/// A reservation that is still there tells that the last life ended in a crash: what it gave out and did not write is skipped.
fn begin_life(file: &File) -> Result<Revision, redb::Error> {
    let txn = file.read().begin_write()?;
    let start = {
        let mut meta = txn.open_table(META)?;
        // Revisions start at 1, as in etcd: 0 means "any" to Kubernetes' clients.
        let stored = meta.get(REVISION)?.map_or(1, |guard| guard.value());
        let reserved = meta.remove(RESERVED)?.map(|guard| guard.value());
        let start = match reserved {
            Some(reserved) if reserved > stored => reserved + 1,
            _ => stored,
        };
        meta.insert(REVISION, start)?;
        let mut removed = txn.open_table(REMOVED)?;
        if removed.get(EVERY_KIND)?.is_none() {
            // A file of a version that did not keep this, or a new one.
            removed.insert(EVERY_KIND, start)?;
        }
        start
    };
    txn.commit()?;
    Ok(start)
}

/// What a key belongs to: `/registry/pods/` of `/registry/pods/default/web-0`.
pub(crate) fn kind(key: &str) -> &str {
    let end = key.match_indices('/').nth(2).map(|(at, _)| at + 1);
    &key[..end.unwrap_or(key.len())]
}

fn backend(what: String, source: redb::Error) -> StoreError {
    StoreError::Backend {
        what,
        source: source.into(),
    }
}

fn corrupt(key: &str) -> redb::Error {
    redb::Error::Corrupted(format!("the record of {key} is too short"))
}

#[async_trait]
impl Store for RedbStore {
    fn revision(&self) -> Revision {
        self.shared.revision.load(Ordering::Acquire)
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let read = || -> Result<Option<KeyValue>, redb::Error> {
            let txn = self.shared.database.read().begin_read()?;
            let table = txn.open_table(KV)?;
            match table.get(key)? {
                Some(guard) => record::decode(key, guard.value())
                    .map(Some)
                    .ok_or_else(|| corrupt(key)),
                None => Ok(None),
            }
        };
        read().map_err(|source| self.failed(&format!("read {key}"), source))
    }

    async fn range(&self, start: &str, end: &str, limit: usize) -> Result<Range, StoreError> {
        let read = || -> Result<Range, redb::Error> {
            let txn = self.shared.database.read().begin_read()?;
            // The revision comes from the same snapshot as the values.
            let revision = txn
                .open_table(META)?
                .get(REVISION)?
                .map_or(1, |guard| guard.value());
            let table = txn.open_table(KV)?;
            let mut kvs = Vec::new();
            let mut more = false;
            for entry in table.range(start..end)? {
                let (key, value) = entry?;
                if limit != 0 && kvs.len() == limit {
                    more = true;
                    break;
                }
                kvs.push(
                    record::decode(key.value(), value.value())
                        .ok_or_else(|| corrupt(key.value()))?,
                );
            }
            Ok(Range {
                kvs,
                more,
                revision,
            })
        };
        read().map_err(|source| self.failed(&format!("read {start} to {end}"), source))
    }

    async fn txn(
        &self,
        compares: Vec<Compare>,
        ops: Vec<Op>,
        durability: Durability,
    ) -> Result<TxnOutcome, StoreError> {
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(StoreError::Closed)?;
        requests
            .send(Request {
                compares,
                ops,
                durability,
                reply,
            })
            .await
            .map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    async fn watch(
        &self,
        prefix: &str,
        after: Revision,
    ) -> Result<mpsc::Receiver<(Revision, Vec<Event>)>, StoreError> {
        self.shared.history.lock().watch(prefix, after)
    }

    async fn none_removed_since(&self, prefix: &str) -> Result<Revision, StoreError> {
        let read = || -> Result<Revision, redb::Error> {
            let txn = self.shared.database.read().begin_read()?;
            let removed = txn.open_table(REMOVED)?;
            let of = |kind: &str| -> Result<Revision, redb::Error> {
                Ok(removed.get(kind)?.map_or(0, |guard| guard.value()))
            };
            Ok(of(EVERY_KIND)?.max(of(kind(prefix))?))
        };
        // A reservation stands in the future; what is there now is known.
        read()
            .map(|since| since.min(self.revision()))
            .map_err(|source| self.failed(&format!("read what was removed of {prefix}"), source))
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.shared.history.lock().compact(revision);
        Ok(())
    }
}
