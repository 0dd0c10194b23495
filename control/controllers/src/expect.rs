//! What a controller has written and its cache has yet to show.
//!
//! Every write answers with the revision at which it was stored, and a watch delivers a kind's changes in the order of their
//! revisions. So once the cache has seen that revision it has seen the write. Until then a key is left alone: the event
//! that carries the write wakes it again. That is what keeps a late cache from making a controller do things twice.
//!
//! A list that is read anew may lack an object that came and went meanwhile, and then its revision is never seen; so nothing is
//! awaited longer than [`PATIENCE`].

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cache::Key;
use crate::model::{self, Written};

/// For how long a write is awaited at most.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The newest own write per key, and when it was done.
#[derive(Default)]
pub struct Expectations(Mutex<HashMap<Key, (u64, Instant)>>);

impl Expectations {
    /// Remembers a write that was done for `key`.
    pub fn wrote(&self, key: &Key, written: &Written) {
        let version = model::version(&written.metadata);
        let mut expected = self.0.lock();
        let (newest, time) = expected.entry(key.clone()).or_insert((0, Instant::now()));
        *newest = version.max(*newest);
        *time = Instant::now();
    }

    /// Whether the cache, whose newest version is `seen`, shows all that was written for `key`.
    pub fn fulfilled(&self, key: &Key, seen: u64) -> bool {
        let mut expected = self.0.lock();
        match expected.get(key) {
            Some((version, time)) if *version > seen && time.elapsed() < PATIENCE => false,
            Some(_) => {
                expected.remove(key);
                true
            }
            None => true,
        }
    }

    /// Forgets a key that is gone.
    pub fn forget(&self, key: &Key) {
        self.0.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_waits_until_the_cache_shows_its_newest_write() {
        let expectations = Expectations::default();
        let key = Key::new("ns", "a");
        let mut written = Written::default();
        for version in ["12", "9"] {
            written.metadata.resource_version = Some(version.into());
            expectations.wrote(&key, &written);
        }
        assert!(!expectations.fulfilled(&key, 11));
        assert!(expectations.fulfilled(&Key::new("ns", "b"), 0));
        assert!(expectations.fulfilled(&key, 12));
        assert!(expectations.fulfilled(&key, 0), "it was forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends() {
        let expectations = Expectations::default();
        let key = Key::new("ns", "a");
        let mut written = Written::default();
        written.metadata.resource_version = Some("12".into());
        expectations.wrote(&key, &written);
        assert!(!expectations.fulfilled(&key, 0));
        tokio::time::advance(PATIENCE).await;
        assert!(expectations.fulfilled(&key, 0));
    }
}
