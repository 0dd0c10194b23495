//! A hostile neighbour: swaps two names for ever, while the runtime works on them; and a witness of what it touched.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// How often the names are swapped in one race, at least.
pub const SWAPS: u64 = 10_000;

/// How long one race may take, at most.
const PATIENCE: Duration = Duration::from_secs(15);

/// Exchanges two names in a loop, in a thread of its own, until it is dropped.
pub struct Swapper {
    stop: Arc<AtomicBool>,
    swaps: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Swapper {
    pub fn start(one: PathBuf, other: PathBuf) -> Self {
        let (stop, swaps) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (ask, count) = (stop.clone(), swaps.clone());
        let thread = std::thread::spawn(move || {
            while !ask.load(Ordering::Relaxed) {
                renameat2(
                    AT_FDCWD,
                    &one,
                    AT_FDCWD,
                    &other,
                    RenameFlags::RENAME_EXCHANGE,
                )
                .expect("exchange two names");
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            stop,
            swaps,
            thread: Some(thread),
        }
    }

    /// Calls `cycle` with its number, until there were enough swaps, and `wanted` cycles or no time for more.
    pub fn against(self, wanted: usize, mut cycle: impl FnMut(usize)) {
        let start = Instant::now();
        let mut cycles = 0;
        let swaps = || self.swaps.load(Ordering::Relaxed);
        while swaps() < SWAPS || cycles < wanted {
            if start.elapsed() > PATIENCE {
                break;
            }
            cycle(cycles);
            cycles += 1;
        }
        assert!(
            swaps() >= SWAPS && cycles >= wanted / 8,
            "only {} swaps and {cycles} cycles",
            swaps()
        );
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                ended.is_ok() || std::thread::panicking(),
                "the swaps failed"
            );
        }
    }
}

/// All that can be told of a directory's files: nothing of it may change.
#[derive(Debug, PartialEq, Eq)]
pub struct Witness(BTreeMap<PathBuf, String>);

impl Witness {
    pub fn of(directory: &Path) -> Self {
        let mut seen = BTreeMap::new();
        look(directory, &mut seen);
        Self(seen)
    }
}

fn look(path: &Path, seen: &mut BTreeMap<PathBuf, String>) {
    let meta = path.symlink_metadata().expect("look at a file");
    let content = if meta.is_file() {
        std::fs::read(path).expect("read a file")
    } else {
        Vec::new()
    };
    let facts = format!(
        "inode {} mode {:o} owner {}:{} device {} links {} changed {}.{} content {content:?}",
        meta.ino(),
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.rdev(),
        meta.nlink(),
        meta.ctime(),
        meta.ctime_nsec(),
    );
    seen.insert(path.to_owned(), facts);
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).expect("list a directory") {
            look(&entry.expect("an entry").path(), seen);
        }
    }
}
