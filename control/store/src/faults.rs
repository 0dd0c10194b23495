//! A disk that fails at its n-th operation, for every n: what was acknowledged is there in the next life, whatever the disk
//! kept of the commit that failed, and no revision means two things.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use redb::{BackendError, StorageBackend};

use crate::{Compare, Durability, Op, RedbStore, Store, StoreError, TxnOutcome};

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing of it happens.
    Nothing,
    /// The first half of what is to be written is written.
    Half,
    /// All of it happens, and is reported as failed.
    Whole,
}

/// What the next life finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crash {
    /// The process ended: all that was written.
    Process,
    /// The power went: only what was synced.
    Power,
    /// The power went while the kernel was writing: some of what was not synced, picked by this number.
    Some(u64),
}

#[derive(Clone, Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Length(length) => bytes.resize(*length as usize, 0),
            Change::Write(offset, data) => {
                let (start, end) = (*offset as usize, *offset as usize + data.len());
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[start..end].copy_from_slice(data);
            }
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// As processes see it.
    seen: Vec<u8>,
    /// As it is after a loss of power.
    synced: Vec<u8>,
    pending: Vec<Change>,
    operations: u64,
    fault: Option<(u64, Fault)>,
}

impl State {
    fn fails(&mut self) -> Option<Fault> {
        self.operations += 1;
        self.fault
            .and_then(|(at, fault)| (at == self.operations).then_some(fault))
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.seen);
        self.pending.push(change);
    }
}

#[derive(Clone, Debug, Default)]
struct Disk(Arc<Mutex<State>>);

impl Disk {
    fn with(content: Vec<u8>, fault: Option<(u64, Fault)>) -> Self {
        Self(Arc::new(Mutex::new(State {
            seen: content.clone(),
            synced: content,
            fault,
            ..State::default()
        })))
    }

    fn after(&self, crash: Crash) -> Vec<u8> {
        let state = self.0.lock();
        let mut bytes = match crash {
            Crash::Process => return state.seen.clone(),
            Crash::Power | Crash::Some(_) => state.synced.clone(),
        };
        if let Crash::Some(mut seed) = crash {
            for change in &state.pending {
                // Knuth's generator: enough to pick without a pattern.
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1);
                if seed >> 63 == 1 {
                    change.apply(&mut bytes);
                }
            }
        }
        bytes
    }
}

fn broken() -> io::Error {
    io::Error::other("the disk is broken")
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.0.lock();
        let from = offset as usize;
        let bytes = state.seen.get(from..from + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.0.lock();
        let fault = state.fails();
        if matches!(fault, None | Some(Fault::Whole)) {
            state.change(Change::Length(len));
        }
        fault.map_or(Ok(()), |_| Err(broken()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        let fault = state.fails();
        let pending = std::mem::take(&mut state.pending);
        let kept = match fault {
            None | Some(Fault::Whole) => pending.len(),
            Some(Fault::Half) => pending.len() / 2,
            Some(Fault::Nothing) => 0,
        };
        for change in &pending[..kept] {
            change.apply(&mut state.synced);
        }
        // The rest is what Linux makes of it: the pages count as clean, and are never written again.
        fault.map_or(Ok(()), |_| Err(broken()))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock();
        let fault = state.fails();
        let kept = match fault {
            None | Some(Fault::Whole) => data.len(),
            Some(Fault::Half) => data.len() / 2,
            Some(Fault::Nothing) => 0,
        };
        state.change(Change::Write(offset, data[..kept].to_vec()));
        fault.map_or(Ok(()), |_| Err(broken()))
    }

    fn try_lock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<bool, BackendError> {
        Ok(true)
    }

    fn unlock_range(&self, _: Bound<u64>, _: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }
}

type Model = BTreeMap<String, Vec<u8>>;

fn step(n: u64) -> (Vec<Compare>, Vec<Op>, Durability) {
    let key = |n: u64| format!("/registry/pods/{n}");
    let put = |key: String, size: usize| Op::Put(key, vec![n as u8; size].into());
    match n % 7 {
        // Larger than what is free in a small file, so that it grows.
        0 => (vec![], vec![put(key(n), 300_000)], Durability::Immediate),
        1 | 4 => (
            vec![],
            vec![put("/registry/leases/a".to_owned(), 20)],
            Durability::Deferred,
        ),
        2 => (vec![], vec![Op::Delete(key(n - 2))], Durability::Immediate),
        3 => (
            vec![Compare::Absent(key(n))],
            vec![put(key(n), 100), put(key(n + 100), 100)],
            Durability::Immediate,
        ),
        5 => (
            vec![],
            vec![Op::Delete(key(n - 2)), put(key(n), 5000)],
            Durability::Immediate,
        ),
        _ => (vec![], vec![put(key(n), 10)], Durability::Immediate),
    }
}

fn change(model: &mut Model, ops: &[Op]) {
    for op in ops {
        match op {
            Op::Put(key, value) => drop(model.insert(key.clone(), value.to_vec())),
            Op::Delete(key) => drop(model.remove(key)),
        }
    }
}

/// What a life that ended with a broken disk, or in peace, leaves.
#[derive(Default)]
struct Life {
    /// The state that must be there.
    durable: Model,
    /// The state with a renewal, which may be there.
    renewed: Option<Model>,
    /// The state that may be there instead.
    unknown: Option<Model>,
    /// The newest revision that somebody was told.
    newest: u64,
}

async fn live(disk: &Disk, before: &Life, steps: u64) -> Life {
    let mut life = Life {
        durable: before.durable.clone(),
        renewed: None,
        unknown: None,
        newest: before.newest,
    };
    let Ok(store) = RedbStore::on(Path::new("a broken disk"), disk.clone(), None) else {
        return life;
    };
    let mut seen = life.durable.clone();
    for n in 0..steps {
        let (compares, ops, durability) = step(n);
        match store.txn(compares, ops.clone(), durability).await {
            Ok(TxnOutcome::Committed(revision)) => {
                assert!(revision > life.newest, "{revision} was given before");
                life.newest = revision;
                change(&mut seen, &ops);
                match durability {
                    Durability::Immediate => {
                        life.durable = seen.clone();
                        life.renewed = None;
                    }
                    Durability::Deferred => life.renewed = Some(seen.clone()),
                }
                assert_eq!(store.revision(), revision);
            }
            Ok(TxnOutcome::Conflict(found)) => panic!("step {n}: {found:?}"),
            Err(error) => {
                assert!(matches!(error, StoreError::Unknown { .. }), "{error:?}");
                change(&mut seen, &ops);
                life.unknown = Some(seen);
                // Nothing goes back, and nothing is promised any more.
                assert!(store.revision() >= life.newest);
                let put = Op::Put("/registry/pods/later".to_owned(), Bytes::new());
                let later = store.txn(vec![], vec![put], Durability::Immediate).await;
                assert!(matches!(later, Err(StoreError::Failed { .. })), "{later:?}");
                store.check().await.expect_err("the store has failed");
                let why = store.failure().await;
                assert!(matches!(why, StoreError::Failed { .. }), "{why:?}");
                return life;
            }
        }
    }
    drop(store);
    // The end makes the renewals durable, unless the disk broke just then.
    life.unknown = Some(seen);
    life
}

async fn content(store: &RedbStore) -> Model {
    let range = store.range("/", "0", 0).await.expect("a disk that works");
    range
        .kvs
        .into_iter()
        .map(|kv| (kv.key, kv.value.to_vec()))
        .collect()
}

/// The next life, on a disk that works.
async fn check(bytes: Vec<u8>, life: &Life, case: &str) {
    let disk = Disk::with(bytes, None);
    let store = RedbStore::on(Path::new("a new disk"), disk, None)
        .unwrap_or_else(|error| panic!("{case}: {error:?}"));
    let found = content(&store).await;
    let keys = |model: &Model| -> Vec<_> {
        (model.iter())
            .map(|(key, value)| format!("{key}={:?}x{}", value.first(), value.len()))
            .collect()
    };
    let mut fitting = [
        Some(&life.durable),
        life.renewed.as_ref(),
        life.unknown.as_ref(),
    ]
    .into_iter();
    let fits = fitting.any(|model| model == Some(&found));
    assert!(
        fits,
        "{case}: {:?}\nmust be {:?}\nor {:?}",
        keys(&found),
        keys(&life.durable),
        life.unknown.as_ref().map(keys)
    );
    let put = Op::Put("/registry/pods/next".to_owned(), Bytes::new());
    let next = store.txn(vec![], vec![put], Durability::Immediate).await;
    let Ok(TxnOutcome::Committed(revision)) = next else {
        panic!("{case}: {next:?}");
    };
    assert!(
        revision > life.newest,
        "{case}: {revision} after {}",
        life.newest
    );
}

#[test]
fn whatever_write_fails_what_was_acknowledged_is_there_afterwards() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let disk = Disk::default();
        let first = live(&disk, &Life::default(), 3).await;
        let before = Life {
            durable: first.unknown.expect("the state at the end"),
            newest: first.newest,
            ..Life::default()
        };
        let start = disk.after(Crash::Power);
        check(start.clone(), &before, "no fault").await;
        let healthy = Disk::with(start.clone(), None);
        live(&healthy, &before, 14).await;
        let operations = healthy.0.lock().operations;
        assert!(operations > 100, "{operations} operations");
        let mut broke = 0;
        for at in 1..=operations {
            for fault in [Fault::Nothing, Fault::Half, Fault::Whole] {
                let disk = Disk::with(start.clone(), Some((at, fault)));
                let life = live(&disk, &before, 14).await;
                broke += u32::from(life.unknown.is_some());
                for crash in [Crash::Process, Crash::Power, Crash::Some(at)] {
                    let case = format!("operation {at}, {fault:?}, {crash:?}");
                    check(disk.after(crash), &life, &case).await;
                }
            }
        }
        assert!(broke > 100, "{broke} lives had a commit that failed");
    });
}
