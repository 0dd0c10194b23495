//! A clock that stands still while this process does not run.
//!
//! Whoever measures somebody else's silence must not count the time in which it could not listen: a server that was
//! suspended for minutes would take every node for dead before it has read what they sent meanwhile.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often the clock is wound.
const TICK: Duration = Duration::from_secs(5);
/// What passes at most between two looks at the clock: more than that means that nobody wound it.
const LONGEST_STEP: Duration = Duration::from_secs(10);

/// The clock.
#[derive(Debug)]
pub(crate) struct Clock(Mutex<State>);

#[derive(Debug)]
struct State {
    awake: Duration,
    looked: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self(Mutex::new(State {
            awake: Duration::ZERO,
            looked: Instant::now(),
        }))
    }
}

impl Clock {
    /// For how long the process has run since the clock was made.
    pub fn now(&self) -> Duration {
        let mut state = self.0.lock();
        let now = Instant::now();
        let step = (now - state.looked).min(LONGEST_STEP);
        state.awake += step;
        state.looked = now;
        state.awake
    }

    /// Winds the clock until stopped.
    pub async fn run(&self, stop: &CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => drop(self.now()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nobody_wound_the_clock_does_not_count() {
        let (clock, stop) = (Clock::default(), CancellationToken::new());
        let look = async {
            // The paused time of the test stands for a process that runs: every timer in between fires.
            tokio::time::sleep(Duration::from_secs(60)).await;
            let before = clock.now();
            assert!(before >= Duration::from_secs(59), "{before:?}");
            // A leap over all timers stands for a process that was suspended.
            tokio::time::advance(Duration::from_secs(360)).await;
            let after = clock.now();
            assert!(after - before <= LONGEST_STEP, "{before:?} {after:?}");
        };
        tokio::select! { () = clock.run(&stop) => {} () = look => {} }
    }
}
