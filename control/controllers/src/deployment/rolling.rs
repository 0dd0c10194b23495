//! The numbers of a rollout: how many pods each replica set may have now.
//!
//! Source of the rules: kubernetes/pkg/controller/deployment (rolling.go, sync.go) and util/deployment_util.go.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::revision::{DESIRED, MAXIMUM, age};
use crate::model::{self, Deployment, ReplicaSet};

/// How far a rolling update may go beyond and below the wanted number of pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub surge: i32,
    pub unavailable: i32,
}

/// The limits of a deployment. Percentages round up for the surge and down for what may be unavailable; if both come to zero, one pod may be
/// unavailable, since otherwise nothing could move.
pub(crate) fn limits(deployment: &Deployment) -> Limits {
    if deployment.recreates() || deployment.replicas() == 0 {
        return Limits {
            surge: if deployment.recreates() {
                0
            } else {
                surge(deployment)
            },
            unavailable: 0,
        };
    }
    let rolling = deployment.spec.strategy.rolling_update.as_ref();
    let surge = surge(deployment);
    let wanted = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
    let mut unavailable = resolve(wanted, deployment.replicas(), Round::Down);
    if surge == 0 && unavailable == 0 {
        unavailable = 1;
    }
    Limits {
        surge,
        unavailable: unavailable.min(deployment.replicas()),
    }
}

fn surge(deployment: &Deployment) -> i32 {
    let rolling = deployment.spec.strategy.rolling_update.as_ref();
    resolve(
        rolling.and_then(|rolling| rolling.max_surge.as_ref()),
        deployment.replicas(),
        Round::Up,
    )
}

#[derive(Clone, Copy)]
enum Round {
    Up,
    Down,
}

/// A number, or a percentage of `whole`; 25 % if none is given.
fn resolve(value: Option<&IntOrString>, whole: i32, round: Round) -> i32 {
    let percent = match value {
        Some(IntOrString::Int(number)) => return (*number).max(0),
        Some(IntOrString::String(text)) => text.trim_end_matches('%').parse().unwrap_or(25),
        None => 25_i64,
    };
    let scaled = i64::from(whole) * percent;
    let result = match round {
        Round::Up => scaled.div_euclid(100) + i64::from(scaled.rem_euclid(100) != 0),
        Round::Down => scaled / 100,
    };
    i32::try_from(result).unwrap_or(i32::MAX).max(0)
}

/// The sizes that replica sets should have, by name; only those that change.
pub(crate) type Sizes = BTreeMap<String, i32>;

/// How many pods the present replica set should have now, given how many all have together. `size` is 0 for one to be made.
pub(crate) fn new_size(deployment: &Deployment, all: i32, size: i32) -> i32 {
    if deployment.recreates() {
        return deployment.replicas();
    }
    if size > deployment.replicas() {
        return deployment.replicas();
    }
    let most = deployment
        .replicas()
        .saturating_add(limits(deployment).surge);
    if all >= most {
        return size;
    }
    size + (most - all).min(deployment.replicas() - size)
}

/// How far the old replica sets can shrink now without endangering availability.
pub(crate) fn shrink_old(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    old: &[&Arc<ReplicaSet>],
) -> Sizes {
    let mut sizes = Sizes::new();
    let available = |set: &ReplicaSet| set.status.available_replicas.unwrap_or(0);
    let all: i32 = old
        .iter()
        .map(|set| set.replicas())
        .chain(new.map(ReplicaSet::replicas))
        .sum();
    let least = deployment.replicas() - limits(deployment).unavailable;
    let new_unavailable = new.map_or(0, |new| new.replicas() - available(new));
    let spare = all - least - new_unavailable;
    if spare <= 0 || old.iter().all(|set| set.replicas() == 0) {
        return sizes;
    }
    let mut oldest_first = old.to_vec();
    oldest_first.sort_by(|left, right| age(left).cmp(&age(right)));
    // Pods that are not available help nobody, so they go first and do not count against availability.
    let mut cleaned = 0;
    for set in &oldest_first {
        let sick = (set.replicas() - available(set)).clamp(0, spare - cleaned);
        if sick > 0 {
            cleaned += sick;
            sizes.insert(model::name(&set.metadata).to_owned(), set.replicas() - sick);
        }
    }
    let healthy: i32 = old
        .iter()
        .map(|set| available(set))
        .chain(new.map(available))
        .sum();
    let mut may_go = (healthy - least).max(0);
    for set in &oldest_first {
        let name = model::name(&set.metadata);
        let size = sizes.get(name).copied().unwrap_or(set.replicas());
        let goes = size.min(may_go);
        if goes > 0 {
            may_go -= goes;
            sizes.insert(name.to_owned(), size - goes);
        }
    }
    sizes
}

/// Whether the deployment's number of replicas was changed since its replica sets were last scaled.
pub(crate) fn was_scaled<'a>(
    deployment: &Deployment,
    sets: impl Iterator<Item = &'a Arc<ReplicaSet>>,
) -> bool {
    sets.filter(|set| set.replicas() > 0)
        .any(|set| desired(set).is_some_and(|desired| desired != deployment.replicas()))
}

fn desired(set: &ReplicaSet) -> Option<i32> {
    model::annotation(&set.metadata, DESIRED)?.parse().ok()
}

/// How the replica sets share a changed number of replicas: one alone takes it all; during a rollout each in proportion to its size.
pub(crate) fn scale(
    deployment: &Deployment,
    new: Option<&Arc<ReplicaSet>>,
    old: &[&Arc<ReplicaSet>],
) -> Sizes {
    let set_size =
        |set: &ReplicaSet, size: i32| Sizes::from([(model::name(&set.metadata).to_owned(), size)]);
    let mut active: Vec<&Arc<ReplicaSet>> = old
        .iter()
        .copied()
        .chain(new)
        .filter(|set| set.replicas() > 0)
        .collect();
    let single = match active.as_slice() {
        [] => new.or_else(|| old.last().copied()),
        [only] => Some(*only),
        _ => None,
    };
    if let Some(single) = single {
        return if single.replicas() == deployment.replicas() {
            Sizes::new()
        } else {
            set_size(single, deployment.replicas())
        };
    }
    if new.is_some_and(|new| is_saturated(deployment, new)) {
        return old
            .iter()
            .filter(|set| set.replicas() > 0)
            .map(|set| (model::name(&set.metadata).to_owned(), 0))
            .collect();
    }
    if deployment.recreates() {
        return Sizes::new();
    }
    let total: i32 = active.iter().map(|set| set.replicas()).sum();
    let most = if deployment.replicas() > 0 {
        deployment
            .replicas()
            .saturating_add(limits(deployment).surge)
    } else {
        0
    };
    let to_add = most - total;
    // The larger first; of equals the newer when growing and the older when shrinking.
    active.sort_by(|left, right| {
        let by_age = if to_add > 0 {
            age(right).cmp(&age(left))
        } else {
            age(left).cmp(&age(right))
        };
        right.replicas().cmp(&left.replicas()).then(by_age)
    });
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::new();
    for set in &active {
        let share = share(deployment, set, to_add, added);
        added += share;
        sizes.push(set.replicas() + share);
    }
    // What rounding left over goes to the largest.
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    (active.iter().zip(sizes))
        .filter(|(set, size)| set.replicas() != *size)
        .map(|(set, size)| (model::name(&set.metadata).to_owned(), size))
        .collect()
}

fn share(deployment: &Deployment, set: &ReplicaSet, to_add: i32, added: i32) -> i32 {
    if set.replicas() == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = if deployment.replicas() == 0 {
        -set.replicas()
    } else {
        let most = i64::from(
            deployment
                .replicas()
                .saturating_add(limits(deployment).surge),
        );
        let before = model::annotation(&set.metadata, MAXIMUM)
            .and_then(|text| text.parse().ok())
            .filter(|most: &i64| *most > 0);
        let before = before
            .unwrap_or_else(|| i64::from(deployment.status.replicas.unwrap_or(0)))
            .max(1);
        let size = (2 * i64::from(set.replicas()) * most + before) / (2 * before);
        i32::try_from(size).unwrap_or(i32::MAX) - set.replicas()
    };
    let allowed = to_add - added;
    if to_add > 0 {
        fraction.min(allowed)
    } else {
        fraction.max(allowed)
    }
}

fn is_saturated(deployment: &Deployment, new: &ReplicaSet) -> bool {
    new.replicas() == deployment.replicas()
        && desired(new) == Some(deployment.replicas())
        && new.status.available_replicas.unwrap_or(0) == deployment.replicas()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn deployment(replicas: i32, surge: Value, unavailable: Value) -> Deployment {
        let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}});
        serde_json::from_value(json!({"spec": {"replicas": replicas, "strategy": strategy}}))
            .expect("a deployment")
    }

    fn set(name: &str, size: i32, available: i32, most: i32) -> Arc<ReplicaSet> {
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "annotations": {DESIRED: "10", MAXIMUM: most.to_string()}},
                "spec": {"replicas": size}, "status": {"replicas": size, "availableReplicas": available},
            }))
            .expect("a set"),
        )
    }

    #[test]
    fn percentages_round_up_for_the_surge_and_down_for_what_may_be_missing() {
        for (replicas, surge, unavailable, expected) in [
            (10, json!("25%"), json!("25%"), (3, 2)),
            (3, json!("25%"), json!("25%"), (1, 0)),
            (4, json!(0), json!("10%"), (0, 1)),
            (4, json!(2), json!(9), (2, 4)),
            (0, json!("25%"), json!("25%"), (0, 0)),
        ] {
            let limits = limits(&deployment(replicas, surge.clone(), unavailable.clone()));
            assert_eq!(
                (limits.surge, limits.unavailable),
                expected,
                "{replicas} {surge} {unavailable}"
            );
        }
    }

    #[test]
    fn the_new_set_grows_within_the_surge() {
        let deployment = deployment(10, json!(3), json!(2));
        for (all, size, expected) in [
            (10, 0, 3),
            (13, 3, 3),
            (11, 3, 5),
            (3, 3, 10),
            (12, 12, 10),
            (0, 0, 10),
        ] {
            assert_eq!(
                new_size(&deployment, all, size),
                expected,
                "{size} of {all}"
            );
        }
    }

    #[test]
    fn old_sets_shrink_only_as_far_as_availability_allows() {
        let deployment = deployment(10, json!(3), json!(2));
        for (old, new, expected) in [
            (set("old", 10, 10, 13), set("new", 3, 0, 13), Some(8)),
            (set("old", 8, 8, 13), set("new", 5, 0, 13), None),
            (set("old", 8, 8, 13), set("new", 5, 3, 13), Some(5)),
            (set("old", 10, 4, 13), set("new", 3, 0, 13), Some(8)),
            (set("old", 2, 2, 13), set("new", 10, 10, 13), Some(0)),
        ] {
            let sizes = shrink_old(&deployment, Some(&new), &[&old]);
            assert_eq!(
                sizes.get("old").copied(),
                expected,
                "{:?} {:?}",
                old.spec.replicas,
                new.spec.replicas
            );
        }
    }

    #[test]
    fn scaling_during_a_rollout_keeps_the_proportions() {
        let (old, new) = (set("old", 8, 8, 13), set("new", 5, 5, 13));
        let sizes = scale(&deployment(20, json!(3), json!(2)), Some(&new), &[&old]);
        assert_eq!(sizes.values().sum::<i32>(), 23);
        assert!(sizes["old"] > 8 && sizes["new"] > 5, "{sizes:?}");
        let sizes = scale(&deployment(0, json!(3), json!(2)), Some(&new), &[&old]);
        assert_eq!(sizes, Sizes::from([("new".into(), 0), ("old".into(), 0)]));
    }

    #[test]
    fn a_set_alone_takes_the_whole_number() {
        let new = set("new", 10, 10, 13);
        let deployment = deployment(4, json!(3), json!(2));
        assert!(was_scaled(&deployment, [&new].into_iter()));
        assert_eq!(
            scale(&deployment, Some(&new), &[]),
            Sizes::from([("new".into(), 4)])
        );
    }

    /// The whole way, with pods that become available at once: it ends, and never leaves the limits.
    #[test]
    fn a_rollout_comes_to_its_end_within_the_limits() {
        for (replicas, surge, unavailable) in
            [(10, 3, 2), (3, 1, 0), (5, 0, 1), (1, 1, 0), (7, 7, 7)]
        {
            let deployment = deployment(replicas, json!(surge), json!(unavailable));
            let limits = limits(&deployment);
            let (mut old, mut new) = (replicas, 0);
            let mut rounds = 0;
            while (old, new) != (0, replicas) {
                let size = new_size(&deployment, old + new, new);
                let changed = size != new;
                // First nothing of it is available, then all.
                let fresh = set("new", size, new, 13);
                new = size;
                let shrunk = shrink_old(&deployment, Some(&fresh), &[&set("old", old, old, 13)]);
                old = shrunk.get("old").copied().unwrap_or(old);
                if !changed && shrunk.is_empty() {
                    let ready = set("new", new, new, 13);
                    old = shrink_old(&deployment, Some(&ready), &[&set("old", old, old, 13)])
                        .get("old")
                        .copied()
                        .unwrap_or(old);
                }
                assert!(
                    old + new <= replicas + limits.surge,
                    "{old} + {new} of {replicas}"
                );
                assert!(
                    old + new >= replicas - limits.unavailable,
                    "{old} + {new} of {replicas}"
                );
                rounds += 1;
                assert!(
                    rounds < 100,
                    "no end for {replicas} {surge} {unavailable}: {old} {new}"
                );
            }
        }
    }
}
