//! The store in one file: redb, with group commit.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, StorageBackend, TableDefinition};
use tokio::sync::{mpsc, oneshot, watch};

use crate::gate::Gate;
use crate::history::History;
use crate::space::Space;
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
/// The key in [`META`] of the format; a file without it has the first.
const FORMAT_KEY: &str = "format";
/// The format of the files that this version writes: the tables above, the layout of their values, and what the values mean.
///
/// Whoever changes one of them so that an older version would misread the file raises it, and brings files of older formats to
/// the new one when they are opened. [`META`] itself stays as it is, so that every version finds the number.
const FORMAT: u64 = 1;

/// redb's page cache, in bytes. The API server's watch cache answers nearly every read, so this serves writes only.
const CACHE_BYTES: usize = 4 << 20;
/// How many transactions may wait for the writer before callers wait too.
const QUEUE: usize = 1024;

/// Opens the database; `Err` within is the format of a newer version, whose file is not touched.
fn open_database(backend: impl StorageBackend) -> Result<Result<Database, u64>, redb::Error> {
    let gate = Gate::new(backend);
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder.set_repair_callback(|session| {
        tracing::info!(
            progress = session.progress(),
            "repairing the store after a crash"
        );
    });
    let database = builder.create_with_backend(gate.clone())?;
    let format = stored_format(&database)?;
    if format > FORMAT {
        return Ok(Err(format));
    }
    gate.open()?;
    // Make the tables, so that readers never meet a file without them.
    let txn = database.begin_write()?;
    txn.open_table(KV)?;
    txn.open_table(META)?;
    txn.open_table(REMOVED)?;
    txn.commit()?;
    Ok(Ok(database))
}

fn stored_format(database: &Database) -> Result<u64, redb::Error> {
    match database.begin_read()?.open_table(META) {
        Ok(meta) => Ok(meta.get(FORMAT_KEY)?.map_or(1, |guard| guard.value())),
        // A new file.
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(FORMAT),
        Err(error) => Err(error.into()),
    }
}

/// Why the store takes no writes any more.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    pub(crate) what: String,
    pub(crate) cause: String,
}

impl Failed {
    /// For those who wait for a transaction that was not tried.
    pub(crate) fn error(&self) -> StoreError {
        StoreError::Failed {
            what: self.what.clone(),
            source: self.cause.clone().into(),
        }
    }

    /// For those whose transaction was in the commit that failed.
    pub(crate) fn unknown(&self) -> StoreError {
        StoreError::Unknown {
            what: self.what.clone(),
            source: self.cause.clone().into(),
        }
    }
}

pub(crate) struct Shared {
    pub(crate) database: Database,
    pub(crate) history: Mutex<History>,
    /// A copy of the history's revision, to be read without its lock.
    pub(crate) revision: AtomicU64,
    pub(crate) failed: watch::Sender<Option<Failed>>,
}

impl Shared {
    fn failed(&self) -> Option<StoreError> {
        self.failed.borrow().as_ref().map(Failed::error)
    }
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
    /// `Newer` if a newer version wrote the file, which is not changed then. `Backend` if it cannot be opened, is no store, or
    /// another process has it open.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source: redb::Error| backend(format!("open {}", path.display()), source);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|error| failed(error.into()))?;
        let handle = file.try_clone().map_err(|error| failed(error.into()))?;
        let file = FileBackend::new(file).map_err(|error| failed(error.into()))?;
        let space = Space::open(path, handle);
        Self::on(path, file, Some(space))
    }

    /// Opens what a back end of redb's holds; `path` is its name in messages.
    pub(crate) fn on(
        path: &Path,
        file: impl StorageBackend,
        space: Option<Space>,
    ) -> Result<Self, StoreError> {
        let failed = |source: redb::Error| backend(format!("open {}", path.display()), source);
        let database = open_database(file)
            .map_err(failed)?
            .map_err(|found| StoreError::Newer {
                path: path.to_owned(),
                found,
                known: FORMAT,
            })?;
        let revision = begin_life(&database).map_err(failed)?;
        let shared = Arc::new(Shared {
            database,
            history: Mutex::new(History::new(revision)),
            revision: AtomicU64::new(revision),
            failed: watch::Sender::new(None),
        });
        let (sender, receiver) = mpsc::channel(QUEUE);
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn({
                let shared = shared.clone();
                let path = path.to_owned();
                move || writer::run(shared, path, space, receiver)
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

    /// Waits until a commit has failed, and tells why. From then on the store takes no writes; its process must end, so that
    /// the next one reads what the file really holds.
    pub fn failure(&self) -> impl Future<Output = StoreError> + Send + 'static {
        let mut failed = self.shared.failed.subscribe();
        async move {
            let failed = match failed.wait_for(Option::is_some).await {
                Ok(failed) => failed.as_ref().map(Failed::error),
                Err(_) => None,
            };
            match failed {
                Some(failed) => failed,
                // Closed in peace: nothing fails any more.
                None => std::future::pending().await,
            }
        }
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
fn begin_life(database: &Database) -> Result<Revision, redb::Error> {
    let txn = database.begin_write()?;
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
        meta.insert(FORMAT_KEY, FORMAT)?;
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

pub(crate) fn corrupt(key: &str) -> redb::Error {
    redb::Error::Corrupted(format!("the record of {key} is too short"))
}

#[async_trait]
impl Store for RedbStore {
    fn revision(&self) -> Revision {
        self.shared.revision.load(Ordering::Acquire)
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let read = || -> Result<Option<KeyValue>, redb::Error> {
            let txn = self.shared.database.begin_read()?;
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
            let txn = self.shared.database.begin_read()?;
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
            .map_err(|_| self.shared.failed().unwrap_or(StoreError::Closed))?;
        answer
            .await
            .map_err(|_| self.shared.failed().unwrap_or(StoreError::Closed))?
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
            let txn = self.shared.database.begin_read()?;
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

    async fn check(&self) -> Result<(), StoreError> {
        match self.shared.failed() {
            Some(error) => Err(error),
            None => self.none_removed_since(EVERY_KIND).await.map(drop),
        }
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.shared.history.lock().compact(revision);
        Ok(())
    }
}
