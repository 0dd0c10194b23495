//! A back end of redb's whose changes wait in memory until they are let through.
//!
//! Opening a database writes to it: redb marks it as open, repairs it after a crash, and leaves its own state behind when it
//! closes. Which version wrote a file is known only once it is open. So all that happens before that is known stays here, and
//! a file that is refused is not touched; one that is accepted gets the same operations in the same order, which is what makes
//! a crash among them harmless.

use std::io;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;
use redb::{BackendError, StorageBackend};

/// An operation that changes the file or orders the changes before and after it.
#[derive(Debug)]
enum Change {
    Write(u64, Vec<u8>),
    Length(u64),
    Sync,
}

#[derive(Debug)]
struct State<B> {
    below: B,
    /// What waits; `None` once the gate is open.
    held: RwLock<Option<Vec<Change>>>,
}

/// The gate in front of a back end. Clones are the same gate.
#[derive(Debug)]
pub(crate) struct Gate<B>(Arc<State<B>>);

impl<B> Clone for Gate<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: StorageBackend> Gate<B> {
    /// A closed gate.
    pub(crate) fn new(below: B) -> Self {
        Self(Arc::new(State {
            below,
            held: RwLock::new(Some(Vec::new())),
        }))
    }

    /// Lets through what has waited, and from now on everything at once. If that fails the gate stays closed, so that nothing
    /// is written after what is missing.
    pub(crate) fn open(&self) -> io::Result<()> {
        let below = &self.0.below;
        let mut held = self.0.held.write();
        for change in held.iter().flatten() {
            match change {
                Change::Write(offset, data) => below.write(*offset, data)?,
                Change::Length(length) => below.set_len(*length)?,
                Change::Sync => below.sync_data()?,
            }
        }
        *held = None;
        Ok(())
    }

    /// Keeps a change if the gate is closed; whether it was.
    fn holds(&self, change: impl FnOnce() -> Change) -> bool {
        // An open gate never closes: then those who write share it.
        if self.0.held.read().is_none() {
            return false;
        }
        match &mut *self.0.held.write() {
            Some(held) => held.push(change()),
            None => return false,
        }
        true
    }

    /// How long the file is with these changes.
    fn length(&self, held: &[Change]) -> io::Result<u64> {
        let length = self.0.below.len()?;
        Ok(held.iter().fold(length, |length, change| match change {
            Change::Write(offset, data) => length.max(offset + data.len() as u64),
            Change::Length(length) => *length,
            Change::Sync => length,
        }))
    }

    /// What the file would hold from `offset` on with these changes.
    fn read_held(&self, held: &[Change], offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset + out.len() as u64;
        if end > self.length(held)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // Where in `out` a place of the file is; its end for all that lies behind.
        let at = |place: u64| (place.clamp(offset, end) - offset) as usize;
        let there = at(self.0.below.len()?);
        if there > 0 {
            self.0.below.read(offset, &mut out[..there])?;
        }
        out[there..].fill(0);
        for change in held {
            match change {
                Change::Write(start, data) => {
                    let (from, to) = (at(*start), at(start + data.len() as u64));
                    if from < to {
                        let skipped = (offset + from as u64 - start) as usize;
                        out[from..to].copy_from_slice(&data[skipped..skipped + to - from]);
                    }
                }
                // What a file loses is zero when it grows again.
                Change::Length(length) => out[at(*length)..].fill(0),
                Change::Sync => {}
            }
        }
        Ok(())
    }
}

impl<B: StorageBackend> StorageBackend for Gate<B> {
    fn len(&self) -> io::Result<u64> {
        match &*self.0.held.read() {
            Some(held) => self.length(held),
            None => self.0.below.len(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match &*self.0.held.read() {
            Some(held) => self.read_held(held, offset, out),
            None => self.0.below.read(offset, out),
        }
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        if self.holds(|| Change::Length(length)) {
            return Ok(());
        }
        self.0.below.set_len(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.holds(|| Change::Sync) {
            return Ok(());
        }
        self.0.below.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if self.holds(|| Change::Write(offset, data.to_vec())) {
            return Ok(());
        }
        self.0.below.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.below.close()
    }

    // Locks are not the file's content: they are taken at once.

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.below.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.0.below.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.below.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.below.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.below.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.below.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use redb::backends::InMemoryBackend;

    use super::*;

    fn content(backend: &impl StorageBackend) -> Vec<u8> {
        let mut bytes = vec![0xee; backend.len().unwrap() as usize];
        backend.read(0, &mut bytes).unwrap();
        bytes
    }

    fn apply(backend: &impl StorageBackend, (offset, data, length): &(u64, Vec<u8>, Option<u64>)) {
        match length {
            Some(length) => backend.set_len(*length).unwrap(),
            // As redb does, which never writes behind the end.
            None => {
                let end = offset + data.len() as u64;
                if backend.len().unwrap() < end {
                    backend.set_len(end).unwrap();
                }
                backend.write(*offset, data).unwrap();
            }
        }
        backend.sync_data().unwrap();
    }

    proptest! {
        #[test]
        fn a_closed_gate_shows_what_an_open_one_writes(
            before in proptest::collection::vec(any::<u8>(), 0..40),
            changes in proptest::collection::vec(
                (0..60_u64, proptest::collection::vec(any::<u8>(), 0..30), proptest::option::of(0..80_u64)),
                0..12,
            ),
            (from, to) in (0..90_usize, 0..90_usize),
        ) {
            let (file, plain) = (InMemoryBackend::new(), InMemoryBackend::new());
            for backend in [&file, &plain] {
                backend.set_len(before.len() as u64).unwrap();
                backend.write(0, &before).unwrap();
            }
            let gate = Gate::new(file);
            for change in &changes {
                apply(&gate, change);
                apply(&plain, change);
            }
            let wanted = content(&plain);
            prop_assert_eq!(content(&gate), wanted.clone());
            prop_assert_eq!(content(&gate.0.below), before, "nothing was let through");
            let (from, to) = (from.min(to), from.max(to));
            let mut part = vec![0xee; to - from];
            let read = gate.read(from as u64, &mut part);
            prop_assert_eq!(read.is_ok(), to <= wanted.len());
            if read.is_ok() {
                prop_assert_eq!(&part[..], &wanted[from..to]);
            }
            gate.open().unwrap();
            prop_assert_eq!(content(&gate.0.below), wanted.clone());
            apply(&gate, &(0, vec![7], None));
            prop_assert_eq!(content(&gate.0.below)[0], 7);
        }
    }
}
