//! How fast nodes that do not answer may lose their pods, zone by zone.
//!
//! Many nodes that fall silent at once are rather a broken network than dead machines, and to move all their pods would
//! make it worse. So a zone with many of them evicts slowly or not at all, and where no node of any zone is ready, nobody is
//! evicted: then it is probably us who were cut off. Source: kubernetes, pkg/controller/nodelifecycle, `ComputeZoneState`,
//! `handleDisruption`, `setLimiterInZone`; "Nodes", "Rate limits on eviction".

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config::EvictionLimits;

/// The name of a zone, made of a node's region and zone.
pub(crate) type Zone = String;

/// How many nodes of a zone are ready and how many are not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub ready: usize,
    pub not_ready: usize,
}

/// How much of a zone is disrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// At most a few nodes are not ready.
    Normal,
    /// So many are not ready that the zone's network may be to blame.
    Partial,
    /// None is ready.
    Full,
}

/// The mode of a zone.
pub(crate) fn mode(count: Count, limits: &EvictionLimits) -> Mode {
    let Count { ready, not_ready } = count;
    #[expect(
        clippy::cast_precision_loss,
        reason = "no cluster has so many nodes that a fraction of them is not exact"
    )]
    let part = not_ready as f64 / (ready + not_ready).max(1) as f64;
    if ready == 0 && not_ready > 0 {
        Mode::Full
    } else if not_ready > 2 && part >= limits.unhealthy_zone_threshold {
        Mode::Partial
    } else {
        Mode::Normal
    }
}

/// How many nodes of a zone may be evicted per second.
fn rate(mode: Mode, size: usize, limits: &EvictionLimits) -> f64 {
    match mode {
        Mode::Normal | Mode::Full => limits.node_eviction_rate,
        Mode::Partial if size > limits.large_cluster_size_threshold => {
            limits.secondary_node_eviction_rate
        }
        Mode::Partial => 0.0,
    }
}

/// What a look at the zones has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing.
    None,
    /// The rate of some zone.
    Rates,
    /// No node is ready any more: all evictions stop, and those that were begun are taken back.
    AllSilent,
    /// Some node is ready again, after none was: nobody was heard meanwhile, so silence is counted from now.
    HeardAgain,
}

/// What may be evicted when.
#[derive(Debug)]
pub(crate) struct Zones {
    limits: EvictionLimits,
    /// The mode of each zone that has nodes; `None` before the first look.
    modes: BTreeMap<Zone, Option<Mode>>,
    buckets: BTreeMap<Zone, Bucket>,
}

impl Zones {
    /// Zones of which nothing is known yet.
    pub fn new(limits: EvictionLimits) -> Self {
        Self {
            limits,
            modes: BTreeMap::new(),
            buckets: BTreeMap::new(),
        }
    }

    /// Whether no node of any zone is ready.
    pub fn all_silent(&self) -> bool {
        !self.modes.is_empty() && self.modes.values().all(|mode| *mode == Some(Mode::Full))
    }

    /// Takes in how many nodes of each zone are ready.
    pub fn observe(&mut self, counts: &BTreeMap<Zone, Count>, now: Duration) -> Turn {
        let new: BTreeMap<_, _> = counts
            .iter()
            .map(|(zone, count)| (zone.clone(), mode(*count, &self.limits)))
            .collect();
        self.modes.retain(|zone, _| new.contains_key(zone));
        let were_silent = self.all_silent();
        let are_silent = !new.is_empty() && new.values().all(|mode| *mode == Mode::Full);
        if are_silent && were_silent && self.modes.len() == new.len() {
            return Turn::None;
        }
        let changed: BTreeSet<Zone> = new
            .iter()
            .filter(|(zone, mode)| self.modes.get(*zone).copied().flatten() != Some(**mode))
            .map(|(zone, _)| zone.clone())
            .collect();
        for (zone, mode) in new {
            // The rates of all zones come back when the first node does.
            if were_silent || are_silent || changed.contains(&zone) {
                let count = counts.get(&zone).copied().unwrap_or_default();
                let rate = if are_silent {
                    0.0
                } else {
                    rate(mode, count.ready + count.not_ready, &self.limits)
                };
                self.bucket(&zone, now).set_rate(rate, now);
            }
            self.modes.insert(zone, Some(mode));
        }
        match (were_silent, are_silent) {
            (_, true) => Turn::AllSilent,
            (true, false) => Turn::HeardAgain,
            (false, false) if changed.is_empty() => Turn::None,
            (false, false) => Turn::Rates,
        }
    }

    /// Asks to evict one node of a zone; says how long to wait if it is too early, and `None` if the zone evicts nobody now.
    pub fn take(&mut self, zone: &str, now: Duration) -> Result<(), Option<Duration>> {
        self.bucket(zone, now).take(now)
    }

    fn bucket(&mut self, zone: &str, now: Duration) -> &mut Bucket {
        let rate = self.limits.node_eviction_rate;
        self.buckets
            .entry(zone.to_owned())
            .or_insert_with(|| Bucket { rate, next: now })
    }
}

/// A rate limit that lets one through at once.
#[derive(Debug)]
struct Bucket {
    rate: f64,
    /// When the next may go.
    next: Duration,
}

impl Bucket {
    /// Whoever has to wait waits anew, so that a change of the rate lets nobody through.
    fn set_rate(&mut self, rate: f64, now: Duration) {
        #[expect(clippy::float_cmp, reason = "the same setting or another one")]
        if self.rate == rate {
            return;
        }
        let waits = self.rate <= 0.0 || now < self.next;
        self.rate = rate;
        if waits && rate > 0.0 {
            self.next = now + self.pause();
        }
    }

    fn take(&mut self, now: Duration) -> Result<(), Option<Duration>> {
        if self.rate <= 0.0 {
            return Err(None);
        }
        if now < self.next {
            return Err(Some(self.next - now));
        }
        self.next = now + self.pause();
        Ok(())
    }

    fn pause(&self) -> Duration {
        Duration::try_from_secs_f64(1.0 / self.rate).unwrap_or(Duration::MAX / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(zones: &[(&str, usize, usize)]) -> BTreeMap<Zone, Count> {
        zones
            .iter()
            .map(|(zone, ready, not_ready)| {
                let count = Count {
                    ready: *ready,
                    not_ready: *not_ready,
                };
                ((*zone).to_owned(), count)
            })
            .collect()
    }

    #[test]
    #[rustfmt::skip] // A table.
    fn the_mode_of_a_zone() {
        for (ready, not_ready, expected) in [
            (0, 0, Mode::Normal),
            (1, 0, Mode::Normal),
            (0, 1, Mode::Full),
            (0, 100, Mode::Full),
            (1, 2, Mode::Normal), // Two are too few to blame the network.
            (1, 3, Mode::Partial),
            (3, 3, Mode::Normal), // 0.5
            (9, 11, Mode::Partial), // 0.55
            (46, 54, Mode::Normal),
            (45, 55, Mode::Partial),
        ] {
            let count = Count { ready, not_ready };
            assert_eq!(mode(count, &EvictionLimits::default()), expected, "{count:?}");
        }
    }

    /// What may be evicted from zone `a` within 100 s of each step.
    #[test]
    #[rustfmt::skip] // A table.
    fn a_zone_evicts_as_fast_as_its_mode_allows() {
        let evicted = |zones: &mut Zones, from: u64| {
            let mut count = 0;
            for second in from..from + 100 {
                if zones.take("a", Duration::from_secs(second)).is_ok() { count += 1 }
            }
            count
        };
        for (name, steps) in [
            ("one of many",       &[([("a", 9, 1), ("b", 5, 0)], Turn::Rates, 10)][..]),
            ("a small zone",      &[([("a", 4, 6), ("b", 5, 0)], Turn::Rates, 0)]),
            ("a large zone",      &[([("a", 40, 60), ("b", 5, 0)], Turn::Rates, 1)]),
            ("a zone of several", &[([("a", 0, 9), ("b", 5, 0)], Turn::Rates, 10)]),
            ("all zones",         &[([("a", 0, 9), ("b", 0, 1)], Turn::AllSilent, 0),
                                    ([("a", 0, 9), ("b", 0, 1)], Turn::None, 0)]),
            ("all, then one",     &[([("a", 0, 9), ("b", 0, 1)], Turn::AllSilent, 0),
                                    ([("a", 0, 9), ("b", 1, 0)], Turn::HeardAgain, 9),
                                    ([("a", 0, 9), ("b", 1, 0)], Turn::None, 10)]),
            ("slowly all",        &[([("a", 9, 1), ("b", 1, 0)], Turn::Rates, 10),
                                    ([("a", 2, 8), ("b", 1, 0)], Turn::Rates, 0),
                                    ([("a", 0, 10), ("b", 0, 1)], Turn::AllSilent, 0),
                                    ([("a", 10, 0), ("b", 0, 1)], Turn::HeardAgain, 9)]),
        ] {
            let mut zones = Zones::new(EvictionLimits::default());
            for (step, (state, turn, expected)) in (0_u64..).zip(steps) {
                let now = step * 100;
                assert_eq!(zones.observe(&counts(state), Duration::from_secs(now)), *turn, "{name}, step {step}");
                assert_eq!(evicted(&mut zones, now), *expected, "{name}, step {step}");
            }
        }
    }

    #[test]
    fn a_zone_that_comes_to_silent_ones_is_as_silent_as_they_are() {
        let mut zones = Zones::new(EvictionLimits::default());
        assert_eq!(zones.observe(&counts(&[]), Duration::ZERO), Turn::None);
        let one = counts(&[("a", 0, 1)]);
        assert_eq!(zones.observe(&one, Duration::ZERO), Turn::AllSilent);
        let two = counts(&[("a", 0, 1), ("b", 0, 1)]);
        assert_eq!(zones.observe(&two, Duration::ZERO), Turn::AllSilent);
        assert_eq!(zones.take("b", Duration::from_secs(100)), Err(None));
        assert!(zones.all_silent());
    }

    #[test]
    fn the_wait_is_as_long_as_the_rate_says() {
        let mut zones = Zones::new(EvictionLimits::default());
        zones.observe(&counts(&[("a", 9, 2)]), Duration::ZERO);
        assert_eq!(zones.take("a", Duration::ZERO), Ok(()));
        let wait = zones
            .take("a", Duration::from_secs(4))
            .expect_err("too early")
            .expect("for a time");
        assert_eq!(wait.as_secs(), 6);
        assert_eq!(zones.take("a", Duration::from_secs(4) + wait), Ok(()));
    }
}
