//! A hostile neighbour, in two shapes: one exchanges two names as fast as it can, while the runtime works on them. The other
//! has all the luck: it exchanges them between two system calls of the runtime, at every place where that can matter
//! ([`at_every_step`]). A gap of a microsecond between a check and its use is found by the first one in one run of thousands,
//! and by the second one always.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
#[cfg(target_arch = "x86_64")]
use nix::unistd::Pid;

#[cfg(target_arch = "x86_64")]
use super::inject::Moment;

/// How often the names are swapped in one race, at least.
pub const SWAPS: u64 = 10_000;

/// How long one race may take, at most.
const PATIENCE: Duration = Duration::from_secs(15);

fn exchange(one: &Path, other: &Path) {
    let flags = RenameFlags::RENAME_EXCHANGE;
    renameat2(AT_FDCWD, one, AT_FDCWD, other, flags).expect("exchange two names");
}

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
                exchange(&one, &other);
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

/// For how many calls the names are exchanged.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    /// The chosen one only: a use that follows a check, and is followed by more checks.
    One,
    /// That one and all after it: a check, and uses that follow.
    Rest,
}

/// Exchanges two names when a traced program is about to make a call that names one of them.
#[cfg(target_arch = "x86_64")]
#[derive(Debug)]
pub struct Stepper {
    one: PathBuf,
    other: PathBuf,
    /// Whether they are exchanged now.
    exchanged: bool,
    /// Calls of this run that have named them.
    calls: usize,
    /// The call at which they are exchanged.
    at: Option<usize>,
    length: Length,
    /// Who makes the call after which they are to be exchanged back.
    back_after: Option<Pid>,
}

#[cfg(target_arch = "x86_64")]
impl Stepper {
    /// To be called at every moment that the tracer tells of.
    pub fn step(&mut self, moment: &Moment<'_>) {
        match moment {
            Moment::Before(pid, paths) if paths.iter().any(|path| self.is_meant(path)) => {
                if self.at == Some(self.calls) {
                    self.exchange();
                    self.back_after = (self.length == Length::One).then_some(*pid);
                }
                self.calls += 1;
            }
            Moment::After(pid) if self.back_after == Some(*pid) => {
                self.back_after = None;
                self.exchange();
            }
            _ => {}
        }
    }

    fn is_meant(&self, path: &Path) -> bool {
        let names = [self.one.file_name(), self.other.file_name()];
        path.iter().any(|part| names.contains(&Some(part)))
    }

    fn exchange(&mut self) {
        exchange(&self.one, &self.other);
        self.exchanged = !self.exchanged;
    }

    fn begin(&mut self, exchanged: bool, at: Option<usize>, length: Length) {
        if self.exchanged != exchanged {
            self.exchange();
        }
        (self.calls, self.at, self.length, self.back_after) = (0, at, length, None);
    }
}

/// Calls `cycle`, which runs a traced program, once for every call of it that names `one` or `other`, for both orders in
/// which they can be exchanged there, and for both lengths of time. The text is for messages.
#[cfg(target_arch = "x86_64")]
pub fn at_every_step(one: &Path, other: &Path, mut cycle: impl FnMut(&str, &mut Stepper)) {
    let mut stepper = Stepper {
        one: one.to_owned(),
        other: other.to_owned(),
        exchanged: false,
        calls: 0,
        at: None,
        length: Length::Rest,
        back_after: None,
    };
    for exchanged in [false, true] {
        stepper.begin(exchanged, None, Length::Rest);
        cycle(&format!("exchanged: {exchanged}"), &mut stepper);
        let calls = stepper.calls;
        // An attack that never comes near shows nothing.
        assert!(calls > 0, "no call names {one:?} or {other:?}");
        for at in 0..calls {
            for length in [Length::One, Length::Rest] {
                stepper.begin(exchanged, Some(at), length);
                let what = format!("exchanged: {exchanged}, until call {at}, then {length:?}");
                cycle(&what, &mut stepper);
            }
        }
    }
    stepper.begin(false, None, Length::Rest);
}
