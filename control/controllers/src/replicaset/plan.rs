//! What a replica set needs: pods to make, to delete, to take in or to let go, and its status.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::rank::rank;
use crate::model::{self, Pod, ReplicaSet, Selector, controller_of, is_deleting};

/// How many pods are made or deleted in one go. Source: kubernetes, `replicaset.BurstReplicas`.
pub(crate) const BURST: usize = 500;

/// The condition that says that pods cannot be made or deleted.
pub(crate) const REPLICA_FAILURE: &str = "ReplicaFailure";

/// A replica set and the pods that are or could be its own.
pub(crate) struct Observed<'a> {
    pub set: &'a ReplicaSet,
    /// Pods that it owns, and orphans that its selector matches.
    pub pods: &'a [Arc<Pod>],
    /// The active pods of all replica sets of the same owner.
    pub related: &'a [Arc<Pod>],
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Take an orphan in.
    Adopt(Box<str>),
    /// Let a pod go whose labels no longer match.
    Release(Box<str>),
    /// Make so many pods.
    Create(usize),
    /// Delete these pods.
    Delete(Vec<Box<str>>),
}

/// Decides what to do about the pods.
pub(crate) fn plan(observed: &Observed<'_>, now: Timestamp) -> Vec<Action> {
    let set = observed.set;
    if is_deleting(&set.metadata) {
        return Vec::new();
    }
    let mut actions = claims(set, observed.pods);
    let mut active: Vec<_> = members(set, observed.pods)
        .filter(|pod| pod.is_active())
        .cloned()
        .collect();
    let wanted = usize::try_from(set.replicas()).unwrap_or(0);
    if active.len() < wanted {
        actions.push(Action::Create((wanted - active.len()).min(BURST)));
    } else if active.len() > wanted {
        let surplus = (active.len() - wanted).min(BURST);
        rank(&mut active, observed.related, now);
        actions.push(Action::Delete(
            active[..surplus]
                .iter()
                .map(|pod| model::name(&pod.metadata).into())
                .collect(),
        ));
    }
    actions
}

fn claims(set: &ReplicaSet, pods: &[Arc<Pod>]) -> Vec<Action> {
    let selector = Selector(&set.spec.selector);
    let mut actions = Vec::new();
    for pod in pods {
        let name = || model::name(&pod.metadata).into();
        match controller_of(&pod.metadata) {
            None if may_adopt(set, pod) => actions.push(Action::Adopt(name())),
            Some(owner)
                if owner.uid == model::uid(&set.metadata)
                    && !selector.matches(pod.metadata.labels.as_ref()) =>
            {
                actions.push(Action::Release(name()));
            }
            _ => {}
        }
    }
    actions
}

fn may_adopt(set: &ReplicaSet, pod: &Pod) -> bool {
    let selector = Selector(&set.spec.selector);
    !selector.is_empty() && pod.is_active() && selector.matches(pod.metadata.labels.as_ref())
}

/// The pods that count as its own: those it controls and those it is about to adopt, without those it lets go.
fn members<'a>(set: &'a ReplicaSet, pods: &'a [Arc<Pod>]) -> impl Iterator<Item = &'a Arc<Pod>> {
    let selector = Selector(&set.spec.selector);
    pods.iter()
        .filter(move |pod| match controller_of(&pod.metadata) {
            None => may_adopt(set, pod),
            Some(owner) => {
                owner.uid == model::uid(&set.metadata)
                    && selector.matches(pod.metadata.labels.as_ref())
            }
        })
}

/// The status, given what came of the attempt to make or delete pods.
pub(crate) fn status(
    observed: &Observed<'_>,
    failure: Option<(&str, &str)>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let set = observed.set;
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    let template_labels = set.spec.template.labels();
    let mut status = ReplicaSetStatus {
        observed_generation: set.metadata.generation,
        conditions: set.status.conditions.clone(),
        ..ReplicaSetStatus::default()
    };
    let (mut labelled, mut ready, mut available, mut terminating) = (0, 0, 0, 0);
    for pod in members(set, observed.pods) {
        if pod.is_active() {
            let labels = pod.metadata.labels.as_ref();
            status.replicas += 1;
            labelled += i32::from(
                template_labels
                    .iter()
                    .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value)),
            );
            ready += i32::from(pod.is_ready());
            available += i32::from(pod.is_available(min_ready, now));
        } else if !pod.is_terminal() {
            terminating += 1;
        }
    }
    status.fully_labeled_replicas = Some(labelled);
    status.ready_replicas = Some(ready);
    status.available_replicas = Some(available);
    status.terminating_replicas = Some(terminating);
    set_failure(&mut status, failure, now);
    status
}

fn set_failure(status: &mut ReplicaSetStatus, failure: Option<(&str, &str)>, now: Timestamp) {
    let mut conditions = status.conditions.take().unwrap_or_default();
    let known = conditions
        .iter()
        .any(|condition| condition.type_.as_deref() == Some(REPLICA_FAILURE));
    match failure {
        Some((reason, message)) if !known => conditions.push(ReplicaSetCondition {
            type_: Some(REPLICA_FAILURE.into()),
            status: Some("True".into()),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: Some(Time(now)),
        }),
        None if known => {
            conditions.retain(|condition| condition.type_.as_deref() != Some(REPLICA_FAILURE))
        }
        _ => {}
    }
    status.conditions = (!conditions.is_empty()).then_some(conditions);
}

/// Whether two statuses say the same; the API drops zeros, so absent and zero are one.
pub(crate) fn same(left: &ReplicaSetStatus, right: &ReplicaSetStatus) -> bool {
    let zero = |value: Option<i32>| value.unwrap_or(0);
    left.replicas == right.replicas
        && zero(left.fully_labeled_replicas) == zero(right.fully_labeled_replicas)
        && zero(left.ready_replicas) == zero(right.ready_replicas)
        && zero(left.available_replicas) == zero(right.available_replicas)
        && zero(left.terminating_replicas) == zero(right.terminating_replicas)
        && left.observed_generation == right.observed_generation
        && left.conditions.as_deref().unwrap_or_default()
            == right.conditions.as_deref().unwrap_or_default()
}

/// When the next ready pod becomes available by the mere passing of time.
pub(crate) fn next_available(observed: &Observed<'_>, now: Timestamp) -> Option<Duration> {
    let min_ready = observed
        .set
        .spec
        .min_ready_seconds
        .filter(|seconds| *seconds > 0)?;
    members(observed.set, observed.pods)
        .filter(|pod| pod.is_active() && !pod.is_available(min_ready, now))
        .filter_map(|pod| {
            pod.ready_since()?
                .checked_add(jiff::SignedDuration::from_secs(min_ready.into()))
                .ok()
        })
        .map(|at| {
            Duration::try_from(at.duration_since(now)).unwrap_or_default()
                + Duration::from_millis(10)
        })
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "set", "generation": 2},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}}}},
        }))
        .expect("a replica set")
    }

    fn pod(name: &str, owner: Option<&str>, label: &str, phase: &str) -> Arc<Pod> {
        let owners: Vec<_> = owner
            .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": uid, "controller": true}))
            .into_iter()
            .collect();
        let pod = json!({"metadata": {"name": name, "uid": name, "labels": {"app": label}, "ownerReferences": owners}, "status": {"phase": phase}});
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    fn planned(replicas: i32, pods: &[Arc<Pod>]) -> Vec<Action> {
        plan(
            &Observed {
                set: &set(replicas),
                pods,
                related: &[],
            },
            Timestamp::UNIX_EPOCH,
        )
    }

    #[test]
    fn missing_pods_are_made_and_surplus_ones_deleted() {
        let own = pod("a", Some("set"), "web", "Running");
        let ended = pod("b", Some("set"), "web", "Failed");
        let pending = pod("c", Some("set"), "web", "Pending");
        for (replicas, pods, expected) in [
            (3, vec![], vec![Action::Create(3)]),
            (1, vec![own.clone()], vec![]),
            (2, vec![own.clone(), ended.clone()], vec![Action::Create(1)]),
            (
                1,
                vec![own.clone(), pending.clone()],
                vec![Action::Delete(vec!["c".into()])],
            ),
            (
                0,
                vec![own.clone(), ended],
                vec![Action::Delete(vec!["a".into()])],
            ),
        ] {
            assert_eq!(
                planned(replicas, &pods),
                expected,
                "{replicas} replicas, {} pods",
                pods.len()
            );
        }
    }

    #[test]
    fn orphans_that_match_are_adopted_and_strangers_released() {
        assert_eq!(
            planned(1, &[pod("a", None, "web", "Running")]),
            [Action::Adopt("a".into())]
        );
        assert_eq!(
            planned(1, &[pod("a", None, "web", "Failed")]),
            [Action::Create(1)]
        );
        assert_eq!(
            planned(1, &[pod("a", Some("set"), "db", "Running")]),
            [Action::Release("a".into()), Action::Create(1)]
        );
        assert_eq!(
            planned(1, &[pod("a", Some("other"), "web", "Running")]),
            [Action::Create(1)]
        );
    }

    #[test]
    fn the_status_counts_and_comes_to_rest() {
        let mut set = set(2);
        let pods = [
            pod("a", Some("set"), "web", "Running"),
            pod("b", Some("set"), "web", "Succeeded"),
        ];
        let first = status(
            &Observed {
                set: &set,
                pods: &pods,
                related: &[],
            },
            None,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(
            (
                first.replicas,
                first.ready_replicas,
                first.observed_generation
            ),
            (1, Some(0), Some(2))
        );
        assert!(!same(&first, &set.status));
        set.status = first.clone();
        assert!(same(
            &first,
            &status(
                &Observed {
                    set: &set,
                    pods: &pods,
                    related: &[]
                },
                None,
                Timestamp::UNIX_EPOCH
            )
        ));
    }

    #[test]
    fn a_failure_becomes_a_condition_until_it_is_over() {
        let mut set = set(2);
        set.status = status(
            &Observed {
                set: &set,
                pods: &[],
                related: &[],
            },
            Some(("FailedCreate", "no")),
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(set.status.conditions.as_ref().map(Vec::len), Some(1));
        let healed = status(
            &Observed {
                set: &set,
                pods: &[],
                related: &[],
            },
            None,
            Timestamp::UNIX_EPOCH,
        );
        assert_eq!(healed.conditions, None);
    }
}
