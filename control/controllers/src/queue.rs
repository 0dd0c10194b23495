//! A work queue of keys: each key at most once in the queue and at most once in work, back-off after failures.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::supervise::{self, Loop};

/// When a key wants to be looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// When something changes.
    OnChange,
    /// After this time, or when something changes.
    After(Duration),
}

/// The wait before try number `failures` + 1: doubled each time, with a jitter of a fifth so that many keys that failed together do not
/// come back together.
pub fn backoff(first: Duration, longest: Duration, failures: u32) -> Duration {
    let plain = first.saturating_mul(1 << failures.min(20)).min(longest);
    plain.mul_f64(rand::random_range(0.8..1.2))
}

/// The wait after the first failure of a key.
const FIRST_RETRY: Duration = Duration::from_millis(5);
/// The longest wait between two tries of a key.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// The queue.
pub struct Queue<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// Everything in `ready`, and what has to run again once its present run ends.
    dirty: HashSet<K>,
    running: HashSet<K>,
    /// Keys that wait for a time. An entry counts only if `due` names the same time.
    later: BinaryHeap<Reverse<(Instant, K)>>,
    due: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
}

impl<K: Clone + Ord + Hash> Default for Queue<K> {
    fn default() -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            running: HashSet::new(),
            later: BinaryHeap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
        };
        Self {
            state: Mutex::new(state),
            wake: Notify::new(),
        }
    }
}

impl<K: Clone + Ord + Hash + Debug> Queue<K> {
    /// Puts a key into the queue, unless it waits there already.
    pub fn add(&self, key: K) {
        self.state.lock().push(key);
        self.wake.notify_one();
    }

    /// Puts a key into the queue after a time; of several times the earliest counts.
    pub fn add_after(&self, key: K, wait: Duration) {
        let at = Instant::now() + wait;
        let mut state = self.state.lock();
        if state.due.get(&key).is_some_and(|known| *known <= at) {
            return;
        }
        state.due.insert(key.clone(), at);
        state.later.push(Reverse((at, key)));
        drop(state);
        self.wake.notify_one();
    }

    /// How often in a row the work on a key has failed.
    pub fn failures(&self, key: &K) -> u32 {
        self.state.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Takes up the keys that an earlier run had in work when it broke down.
    fn resume(&self) {
        let mut state = self.state.lock();
        let left = std::mem::take(&mut state.running);
        for key in left {
            // One that became dirty meanwhile is not in `ready` either: it waited for the end of the run.
            state.dirty.insert(key.clone());
            state.ready.push_back(key);
        }
    }

    /// Takes a key to work on, or says until when there is none.
    fn take(&self) -> Result<K, Option<Instant>> {
        let mut state = self.state.lock();
        let now = Instant::now();
        while let Some(Reverse((at, _))) = state.later.peek() {
            if *at > now {
                break;
            }
            let Some(Reverse((at, key))) = state.later.pop() else {
                break;
            };
            if state.due.get(&key) == Some(&at) {
                state.due.remove(&key);
                state.push(key);
            }
        }
        match state.ready.pop_front() {
            Some(key) => {
                state.dirty.remove(&key);
                state.running.insert(key.clone());
                Ok(key)
            }
            None => Err(state.later.peek().map(|Reverse((at, _))| *at)),
        }
    }

    fn done(&self, key: K, failed: bool) {
        let wait = {
            let mut state = self.state.lock();
            state.running.remove(&key);
            if state.dirty.contains(&key) {
                state.ready.push_back(key.clone());
            }
            if failed {
                let failures = state.failures.entry(key.clone()).or_insert(0);
                let wait = backoff(FIRST_RETRY, LONGEST_RETRY, *failures);
                *failures += 1;
                Some(wait)
            } else {
                state.failures.remove(&key);
                None
            }
        };
        if let Some(wait) = wait {
            self.add_after(key, wait);
        }
    }

    /// Works on keys until stopped, on up to `workers` of them at a time.
    ///
    /// A run that panics has failed: its key comes back after a while, and the others do not notice.
    pub async fn run<F, Fut, E>(
        self: Arc<Self>,
        name: &'static str,
        workers: usize,
        stop: CancellationToken,
        work: F,
    ) where
        F: Fn(K) -> Fut,
        Fut: Future<Output = Result<Next, E>>,
        E: std::error::Error,
    {
        self.resume();
        let work = &work;
        let mut running = FuturesUnordered::new();
        loop {
            let mut until = None;
            while running.len() < workers {
                match self.take() {
                    Ok(key) => {
                        running.push(async move {
                            let run = AssertUnwindSafe(async { work(key.clone()).await });
                            let result = run.catch_unwind().await;
                            (key, result)
                        });
                    }
                    Err(at) => {
                        until = at;
                        break;
                    }
                }
            }
            let timer = async {
                match until {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // `notified` keeps a wake-up that nobody waited for, and the runs stay in `running`: no branch loses anything
            // when another one is first.
            tokio::select! {
                () = stop.cancelled() => return,
                Some((key, result)) = running.next() => match result {
                    Ok(Ok(next)) => {
                        self.done(key.clone(), false);
                        if let Next::After(wait) = next {
                            self.add_after(key, wait);
                        }
                    }
                    Ok(Err(error)) => {
                        report(name, &key, self.failures(&key), &error);
                        self.done(key, true);
                    }
                    Err(panic) => {
                        let error = supervise::message(&*panic);
                        tracing::error!(controller = name, ?key, error, "the work on a key panicked and will be tried again");
                        self.done(key, true);
                    }
                },
                () = self.wake.notified(), if running.len() < workers => {}
                () = timer => {}
            }
        }
    }
}

impl<K: Clone + Ord + Hash + Debug + Send + Sync + 'static> Queue<K> {
    /// The loop that works on this queue, as [`Self::run`] does; it can be started again after a breakdown.
    pub fn worker<F, Fut, E>(
        self: Arc<Self>,
        name: &'static str,
        workers: usize,
        stop: CancellationToken,
        work: F,
    ) -> Loop
    where
        F: Fn(K) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Next, E>> + Send,
        E: std::error::Error + Send,
    {
        let work = Arc::new(work);
        Box::new(move || {
            let (queue, stop, work) = (self.clone(), stop.clone(), work.clone());
            async move { queue.run(name, workers, stop, |key| work(key)).await }.boxed()
        })
    }
}

/// Conflicts and the like are usual and heal by themselves, so only what lasts is worth a warning.
fn report(name: &str, key: &dyn Debug, failures: u32, error: &dyn std::error::Error) {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    if failures < 3 {
        tracing::debug!(controller = name, ?key, error = text, "will be tried again");
    } else {
        tracing::warn!(
            controller = name,
            ?key,
            error = text,
            failures,
            "will be tried again"
        );
    }
}

impl<K: Clone + Ord + Hash> State<K> {
    fn push(&mut self, key: K) {
        if self.dirty.insert(key.clone()) && !self.running.contains(&key) {
            self.ready.push_back(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_queued_once_and_never_runs_twice_at_a_time() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.take(), Ok("a"));
        assert_eq!(queue.take(), Err(None));
        queue.add("a");
        assert_eq!(queue.take(), Err(None), "it is still in work");
        queue.done("a", false);
        assert_eq!(queue.take(), Ok("a"));
        queue.done("a", false);
        assert_eq!(queue.take(), Err(None));
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_of_several_times_counts() {
        let queue = Queue::default();
        queue.add_after("a", Duration::from_secs(5));
        queue.add_after("a", Duration::from_secs(1));
        queue.add_after("a", Duration::from_secs(9));
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(queue.take(), Ok("a"));
        queue.done("a", false);
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(queue.take(), Err(None));
    }

    #[tokio::test(start_paused = true)]
    async fn failures_wait_longer_each_time_and_success_forgets_them() {
        let queue = Queue::default();
        queue.add("a");
        for expected in [5_u64, 10, 20] {
            assert_eq!(queue.take(), Ok("a"));
            queue.done("a", true);
            let at = queue.take().expect_err("it waits").expect("for a time");
            let wait = at - Instant::now();
            assert!(
                wait >= Duration::from_millis(expected * 8 / 10)
                    && wait <= Duration::from_millis(expected * 12 / 10 + 1),
                "{wait:?}"
            );
            tokio::time::advance(wait).await;
        }
        assert_eq!(queue.failures(&"a"), 3);
        assert_eq!(queue.take(), Ok("a"));
        queue.done("a", false);
        assert_eq!(queue.failures(&"a"), 0);
    }

    #[tokio::test]
    async fn the_runner_works_on_several_keys_at_once_until_stopped() {
        let queue = Arc::new(Queue::default());
        let stop = CancellationToken::new();
        let barrier = Arc::new(tokio::sync::Barrier::new(2));
        queue.add("a");
        queue.add("b");
        let ended = stop.clone();
        let run = queue.clone().run("test", 2, stop, move |_| {
            let (barrier, stop) = (barrier.clone(), ended.clone());
            async move {
                barrier.wait().await;
                stop.cancel();
                Ok::<_, std::io::Error>(Next::OnChange)
            }
        });
        tokio::time::timeout(Duration::from_secs(5), run)
            .await
            .expect("both ran at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_panics_costs_its_key_a_wait_and_nobody_else_anything() {
        let queue = Arc::new(Queue::default());
        let stop = CancellationToken::new();
        let runs = Arc::new(Mutex::new(Vec::new()));
        queue.add("bad");
        queue.add("good");
        let (ended, told) = (stop.clone(), runs.clone());
        let run = queue.clone().run("test", 1, stop, move |key| {
            told.lock().push(key);
            let bad = told.lock().iter().filter(|key| **key == "bad").count();
            assert!(key != "bad" || bad > 2, "on purpose");
            if key == "bad" {
                ended.cancel();
            }
            async { Ok::<_, std::io::Error>(Next::OnChange) }
        });
        tokio::time::timeout(Duration::from_secs(5), run)
            .await
            .expect("it went on");
        assert_eq!(*runs.lock(), ["bad", "good", "bad", "bad"]);
    }

    #[test]
    fn what_a_run_that_broke_down_had_in_work_is_taken_up() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("b");
        assert_eq!((queue.take(), queue.take()), (Ok("a"), Ok("b")));
        queue.add("b");
        queue.resume();
        let mut left = [queue.take(), queue.take()];
        left.sort();
        assert_eq!(left, [Ok("a"), Ok("b")]);
        assert_eq!(queue.take(), Err(None));
    }
}
