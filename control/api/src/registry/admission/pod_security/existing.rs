//! The pods of a namespace that demands more of them than before: they stay, but whoever demands it is warned.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::checks::{Pod, reasons, violations};
use super::policy::{Level, LevelVersion};
use crate::registry::Registry;

/// How many pods are looked at when a namespace demands more …
const MAX_PODS: usize = 3000;
/// … and for how long.
const MAX_TIME: Duration = Duration::from_secs(1);

/// The standards that are enforced from now on, where pods that are there may violate them.
pub(super) fn stricter(old: LevelVersion, new: LevelVersion) -> Option<LevelVersion> {
    let relaxed = new.version == old.version && new.level <= old.level;
    (new.level != Level::Privileged && !relaxed).then_some(new)
}

/// Which of a namespace's pods violate standards, those with the same violations as one.
pub(super) fn warnings(registry: &Registry, namespace: &str, enforce: LevelVersion) -> Vec<String> {
    let Some(pods) = registry.collection("pods") else {
        return Vec::new();
    };
    let pods = pods.snapshot(&format!("{namespace}/"), "").entries;
    let deadline = Instant::now() + MAX_TIME;
    let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
    let mut checked = 0;
    for entry in pods.iter().take(MAX_PODS) {
        let pod = entry.parse();
        let violations = violations(
            enforce,
            Pod {
                metadata: &pod["metadata"],
                spec: &pod["spec"],
            },
        );
        if !violations.is_empty() {
            let first = || (entry.name().to_owned(), 0);
            let (_, count) = found.entry(reasons(&violations)).or_insert_with(first);
            *count += 1;
        }
        checked += 1;
        if Instant::now() > deadline {
            break;
        }
    }
    describe(namespace, enforce, found, checked, pods.len())
}

/// The warnings about the pods of a namespace: by reasons, the first pod and how many there are.
pub(super) fn describe(
    namespace: &str,
    enforce: LevelVersion,
    found: BTreeMap<String, (String, usize)>,
    checked: usize,
    total: usize,
) -> Vec<String> {
    let mut warnings = Vec::new();
    if checked < total {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {checked} of {total} existing pods"
        ));
    }
    if !found.is_empty() {
        warnings.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level {:?}",
            enforce.to_string()
        ));
    }
    let mut by_pod: Vec<String> = found
        .into_iter()
        .map(|(reasons, (pod, count))| match count {
            1 => format!("{pod}: {reasons}"),
            2 => format!("{pod} (and 1 other pod): {reasons}"),
            _ => format!("{pod} (and {} other pods): {reasons}", count - 1),
        })
        .collect();
    by_pod.sort();
    warnings.extend(by_pod);
    warnings
}
