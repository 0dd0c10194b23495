//! Room on the disk: what a full one still takes, and what it is given for that.
//!
//! redb writes new pages before it frees old ones, so even a deletion needs room. Two things provide it. While the disk has
//! room, the file's holes are filled with blocks that nobody else can take, so that pages which redb uses again are never
//! refused. And a file beside the database holds a few megabytes in reserve: on a full disk it shrinks, step by step, in
//! favour of the transactions that are the way out: deletions, renewals and other changes that do not make the store grow.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};

/// Room that the store leaves free to others while it grows, in bytes.
const LEAVE_FREE: u64 = 8 << 20;
/// How much a growing transaction may cost for each of its bytes: redb rewrites the pages around it as well.
const COST: u64 = 4;
/// The size of the reserve, in bytes.
const RESERVE: u64 = 4 << 20;
/// With less than this free the reserve shrinks by as much, before a transaction that is the way out.
const STEP: u64 = 1 << 20;

/// The disk below one store.
pub(crate) struct Space {
    database: File,
    reserve_path: PathBuf,
    reserve: Option<File>,
    reserved: u64,
}

/// How much a group of transactions may add.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// The bytes that are free.
    pub(crate) free: u64,
    left: u64,
}

impl Budget {
    pub(crate) const UNLIMITED: Self = Self {
        free: u64::MAX,
        left: u64::MAX,
    };

    fn of(free: u64) -> Self {
        Self {
            free,
            left: free.saturating_sub(LEAVE_FREE),
        }
    }

    /// Takes what a growing transaction with so many bytes costs; the bytes that would have to be free if there is not enough.
    pub(crate) fn take(&mut self, bytes: usize) -> Result<(), u64> {
        let cost = COST.saturating_mul(bytes as u64);
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(LEAVE_FREE + cost),
        }
    }
}

impl Space {
    /// `database` is another handle of the open file at `path`. On a full disk a part of the reserve is given up, so that the
    /// database can be opened.
    pub(crate) fn open(path: &Path, database: File) -> Self {
        let reserve_path = path.with_extension("reserve");
        let reserve = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&reserve_path);
        let reserve = match reserve {
            Ok(file) => Some(file),
            Err(error) => {
                // Without it a full disk refuses more than it must.
                tracing::warn!(%error, path = %reserve_path.display(), "open the reserve for a full disk");
                None
            }
        };
        let mut space = Self {
            database,
            reserve_path,
            reserved: 0,
            reserve,
        };
        space.reserved = space.reserve.as_ref().map_or(0, allocated);
        // After a failed fsync the kernel may show pages that never reached the disk; what counts is what did.
        if let Err(error) = posix_fadvise(
            &space.database,
            0,
            0,
            PosixFadviseAdvice::POSIX_FADV_DONTNEED,
        ) {
            tracing::debug!(%error, "drop the store's cached pages");
        }
        if let Some(free) = space.free() {
            space.give_up_for(free);
        }
        space
    }

    /// What a group may add now. The reserve shrinks or grows as the disk fills or empties.
    pub(crate) fn budget(&mut self) -> Budget {
        let Some(free) = self.free() else {
            // The commit itself will say what is wrong with the file.
            return Budget::UNLIMITED;
        };
        if free < STEP {
            return Budget::of(self.give_up_for(free));
        }
        let missing = RESERVE.saturating_sub(self.reserved);
        // Twice, so that a disk that is nearly full does not go back and forth.
        let spare = free.saturating_sub(LEAVE_FREE);
        if missing > 0 && spare > 2 * RESERVE {
            self.refill();
            return Budget::of(self.free().unwrap_or(0));
        }
        if self.fill_holes(spare) {
            return Budget::of(self.free().unwrap_or(0));
        }
        Budget::of(free)
    }

    /// The bytes that are free, for a process without privileges.
    fn free(&self) -> Option<u64> {
        match nix::sys::statvfs::fstatvfs(&self.database) {
            Ok(stat) => Some(stat.blocks_available() * stat.fragment_size()),
            Err(error) => {
                tracing::warn!(%error, "ask for the room on the store's disk");
                None
            }
        }
    }

    /// Shrinks the reserve by a step if less than a step is free; returns what is free then.
    fn give_up_for(&mut self, free: u64) -> u64 {
        let Some(reserve) = &self.reserve else {
            return free;
        };
        if free >= STEP || self.reserved == 0 {
            return free;
        }
        let keep = self.reserved.saturating_sub(STEP);
        if let Err(error) = reserve.set_len(keep) {
            tracing::warn!(%error, path = %self.reserve_path.display(), "shrink the reserve for a full disk");
            return free;
        }
        tracing::warn!(
            free,
            reserve = keep,
            "the disk is full: the store takes deletions and small changes from its reserve"
        );
        self.reserved = keep;
        self.free().unwrap_or(free)
    }

    fn refill(&mut self) {
        let Some(reserve) = &self.reserve else {
            return;
        };
        match allocate(reserve, RESERVE) {
            Ok(()) => self.reserved = RESERVE,
            Err(error) => {
                tracing::warn!(%error, path = %self.reserve_path.display(), "fill the reserve for a full disk");
                // Whatever is there helps; asking again with every commit does not.
                self.reserved = RESERVE;
            }
        }
    }

    /// Gives blocks to the parts of the database that have none, if they take at most `spare` bytes; whether it did.
    fn fill_holes(&self, spare: u64) -> bool {
        let Ok(metadata) = self.database.metadata() else {
            return false;
        };
        let holes = metadata.len().saturating_sub(metadata.blocks() * 512);
        if holes == 0 || holes > spare {
            return false;
        }
        // A file system that cannot do this (or compresses) keeps its holes: then only the reserve helps.
        match fallocate(
            &self.database,
            FallocateFlags::FALLOC_FL_KEEP_SIZE,
            0,
            i64::try_from(metadata.len()).unwrap_or(i64::MAX),
        ) {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "fill the holes of the store");
                false
            }
        }
    }
}

fn allocated(file: &File) -> u64 {
    (file.metadata()).map_or(0, |metadata| metadata.len().min(metadata.blocks() * 512))
}

/// Makes the file this long, with blocks for all of it.
fn allocate(mut file: &File, length: u64) -> io::Result<()> {
    let whole = i64::try_from(length).unwrap_or(i64::MAX);
    match fallocate(file, FallocateFlags::empty(), 0, whole) {
        Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
            let block = vec![0; 64 << 10];
            io::Seek::rewind(&mut file)?;
            for _ in 0..length / block.len() as u64 {
                file.write_all(&block)?;
            }
            Ok(())
        }
        other => other.map_err(io::Error::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_spent_by_each_transaction_and_a_refused_one_costs_nothing() {
        let mut budget = Budget::of(LEAVE_FREE + 100);
        assert_eq!(budget.take(20), Ok(()));
        assert_eq!(budget.take(6), Err(LEAVE_FREE + 24));
        assert_eq!(budget.take(5), Ok(()));
        assert_eq!(budget.take(1), Err(LEAVE_FREE + 4));
        assert_eq!(Budget::of(1).take(1), Err(LEAVE_FREE + 4));
        let mut unlimited = Budget::UNLIMITED;
        assert_eq!(unlimited.take(usize::MAX), Ok(()));
    }
}
