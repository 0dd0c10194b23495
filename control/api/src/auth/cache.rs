//! What was found out about tokens, by their digests: so that a signature is checked once, not with every request.
//!
//! The tokens themselves are not kept, and looking up a digest tells nobody by its time how much of a guess was right.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

/// The SHA-256 of a token.
pub type Digest = [u8; SHA256_OUTPUT_LEN];

/// A map that forgets what was not used for long once it has too much: two generations, the older of which goes when the
/// younger is full.
pub struct Cache<V> {
    generations: RwLock<Generations<V>>,
    /// How many entries a generation holds.
    each: usize,
}

struct Generations<V> {
    young: HashMap<Digest, Arc<V>>,
    old: HashMap<Digest, Arc<V>>,
}

/// The digest of a token.
pub fn of(token: &str) -> Digest {
    let digest = digest(&SHA256, token.as_bytes());
    digest.as_ref().try_into().expect("its length is fixed")
}

impl<V> Cache<V> {
    /// A cache of at most `entries`.
    pub fn new(entries: usize) -> Self {
        Self {
            generations: RwLock::new(Generations {
                young: HashMap::new(),
                old: HashMap::new(),
            }),
            each: (entries / 2).max(1),
        }
    }

    /// What is known of a token.
    pub fn get(&self, key: &Digest) -> Option<Arc<V>> {
        let generations = self.generations.read();
        if let Some(found) = generations.young.get(key) {
            return Some(found.clone());
        }
        let found = generations.old.get(key)?.clone();
        drop(generations);
        self.insert(*key, found.clone());
        Some(found)
    }

    /// Remembers something.
    pub fn insert(&self, key: Digest, value: Arc<V>) {
        let mut generations = self.generations.write();
        if generations.young.len() >= self.each && !generations.young.contains_key(&key) {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(key, value);
    }

    /// Forgets something.
    pub fn remove(&self, key: &Digest) {
        let mut generations = self.generations.write();
        generations.young.remove(key);
        generations.old.remove(key);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        let generations = self.generations.read();
        generations.young.len() + generations.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays_and_the_rest_goes() {
        let cache = Cache::new(10);
        let used = of("used");
        cache.insert(used, Arc::new(0));
        for n in 1..1000 {
            cache.insert(of(&n.to_string()), Arc::new(n));
            assert_eq!(cache.get(&used).as_deref(), Some(&0), "after {n}");
            assert!(cache.len() <= 11, "{} after {n}", cache.len());
        }
        assert_eq!(cache.get(&of("1")), None);
        cache.remove(&used);
        assert_eq!(cache.get(&used), None);
    }
}
