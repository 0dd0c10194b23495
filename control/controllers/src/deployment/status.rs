//! The status of a deployment: counts, and how its rollout goes.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::rolling::limits;
use crate::model::{self, Deployment, ReplicaSet};

/// The types of conditions.
pub(crate) const AVAILABLE: &str = "Available";
pub(crate) const PROGRESSING: &str = "Progressing";
pub(crate) const FAILURE: &str = "ReplicaFailure";

const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const NO_DEADLINE: i32 = i32::MAX;

/// The deadline for progress, if there is one.
pub(crate) fn deadline(deployment: &Deployment) -> Option<i32> {
    deployment
        .spec
        .progress_deadline_seconds
        .filter(|seconds| *seconds != NO_DEADLINE)
}

/// A condition of now.
pub(crate) fn condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: impl Into<String>,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(kind.to_owned()),
        status: Some(status.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.into()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// The condition of a type.
pub(crate) fn find<'a>(
    status: &'a DeploymentStatus,
    kind: &str,
) -> Option<&'a DeploymentCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_.as_deref() == Some(kind))
}

/// Puts a condition in, unless one of the same status and reason stands; a change of the reason alone is no transition.
pub(crate) fn set(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    let kind = condition.type_.clone().unwrap_or_default();
    if let Some(known) = find(status, &kind) {
        if known.status == condition.status && known.reason == condition.reason {
            return;
        }
        if known.status == condition.status {
            condition
                .last_transition_time
                .clone_from(&known.last_transition_time);
        }
    }
    remove(status, &kind);
    status.conditions.get_or_insert_default().push(condition);
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_.as_deref() != Some(kind));
    }
}

/// The counts, and whether enough pods are available.
pub(crate) fn counts(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    new: Option<&ReplicaSet>,
    now: Timestamp,
) -> DeploymentStatus {
    let sum = |count: fn(&ReplicaSet) -> i32| sets.iter().map(|set| count(set)).sum::<i32>();
    let available = sum(|set| set.status.available_replicas.unwrap_or(0));
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(sum(|set| set.status.replicas)),
        updated_replicas: Some(new.map_or(0, |set| set.status.replicas)),
        ready_replicas: Some(sum(|set| set.status.ready_replicas.unwrap_or(0))),
        available_replicas: Some(available),
        unavailable_replicas: Some((sum(ReplicaSet::replicas) - available).max(0)),
        terminating_replicas: Some(sum(|set| set.status.terminating_replicas.unwrap_or(0))),
        collision_count: deployment.status.collision_count,
        conditions: deployment.status.conditions.clone(),
    };
    let enough = available >= deployment.replicas() - limits(deployment).unavailable;
    set(
        &mut status,
        if enough {
            condition(
                AVAILABLE,
                "True",
                "MinimumReplicasAvailable",
                "Deployment has minimum availability.",
                now,
            )
        } else {
            condition(
                AVAILABLE,
                "False",
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.",
                now,
            )
        },
    );
    status
}

/// Adds how the rollout goes. `name` is the present replica set's.
pub(crate) fn progress(
    deployment: &Deployment,
    status: &mut DeploymentStatus,
    new: Option<&ReplicaSet>,
    old: &[&Arc<ReplicaSet>],
    now: Timestamp,
) {
    let whose = new.map_or_else(
        || format!("Deployment {:?}", model::name(&deployment.metadata)),
        |set| format!("ReplicaSet {:?}", model::name(&set.metadata)),
    );
    if deadline(deployment).is_none() {
        remove(status, PROGRESSING);
    }
    let current = find(status, PROGRESSING).cloned();
    let reason = current
        .as_ref()
        .and_then(|condition| condition.reason.as_deref());
    let was_complete =
        status.replicas == status.updated_replicas && reason == Some(NEW_SET_AVAILABLE);
    if deadline(deployment).is_some() && !was_complete {
        if is_complete(deployment, status) {
            set(
                status,
                condition(
                    PROGRESSING,
                    "True",
                    NEW_SET_AVAILABLE,
                    format!("{whose} has successfully progressed."),
                    now,
                ),
            );
        } else if progressed(&deployment.status, status) {
            let mut fresh = condition(
                PROGRESSING,
                "True",
                "ReplicaSetUpdated",
                format!("{whose} is progressing."),
                now,
            );
            if let Some(current) = current
                .as_ref()
                .filter(|condition| condition.status.as_deref() == Some("True"))
            {
                fresh
                    .last_transition_time
                    .clone_from(&current.last_transition_time);
            }
            // Even the same reason is written anew: the time of its update is what the deadline counts from.
            remove(status, PROGRESSING);
            status.conditions.get_or_insert_default().push(fresh);
        } else if has_timed_out(deployment, status, now) {
            set(
                status,
                condition(
                    PROGRESSING,
                    "False",
                    TIMED_OUT,
                    format!("{whose} has timed out progressing."),
                    now,
                ),
            );
        }
    }
    match failure(new, old) {
        Some((reason, message)) => set(status, condition(FAILURE, "True", &reason, message, now)),
        None => remove(status, FAILURE),
    }
}

/// The trouble of the present replica set, or of an old one.
fn failure(new: Option<&ReplicaSet>, old: &[&Arc<ReplicaSet>]) -> Option<(String, String)> {
    (new.into_iter().chain(old.iter().map(|set| &***set)))
        .flat_map(|set| set.status.conditions.iter().flatten())
        .find(|condition| {
            condition.type_.as_deref() == Some(FAILURE)
                && condition.status.as_deref() == Some("True")
        })
        .map(|condition| {
            (
                condition.reason.clone().unwrap_or_default(),
                condition.message.clone().unwrap_or_default(),
            )
        })
}

/// Whether every wanted pod is of the present replica set, available, and no other is left.
pub(crate) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Some(deployment.replicas());
    status.updated_replicas.or(Some(0)) == wanted
        && status.replicas.or(Some(0)) == wanted
        && status.available_replicas.or(Some(0)) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn progressed(before: &DeploymentStatus, now: &DeploymentStatus) -> bool {
    let count = |value: Option<i32>| value.unwrap_or(0);
    let old = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(now.updated_replicas) > count(before.updated_replicas)
        || old(now) < old(before)
        || count(now.ready_replicas) > count(before.ready_replicas)
        || count(now.available_replicas) > count(before.available_replicas)
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    match find(status, PROGRESSING)
        .map(|condition| (condition.reason.as_deref(), due(deployment, condition)))
    {
        None | Some((Some(NEW_SET_AVAILABLE), _)) => false,
        Some((Some(TIMED_OUT), _)) => true,
        Some((_, due)) => due.is_some_and(|due| due < now),
    }
}

fn due(deployment: &Deployment, condition: &DeploymentCondition) -> Option<Timestamp> {
    let since = condition
        .last_update_time
        .as_ref()
        .or(condition.last_transition_time.as_ref())?;
    since
        .0
        .checked_add(SignedDuration::from_secs(deadline(deployment)?.into()))
        .ok()
}

/// When the deadline has to be looked at again; `None` if nothing is on its way or it has passed.
pub(crate) fn check_again(
    deployment: &Deployment,
    status: &DeploymentStatus,
    now: Timestamp,
) -> Option<Duration> {
    let condition = find(status, PROGRESSING)?;
    if is_complete(deployment, status) || condition.reason.as_deref() == Some(TIMED_OUT) {
        return None;
    }
    let left = due(deployment, condition)?.duration_since(now);
    // The times in the API are whole seconds.
    Some(Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1))
}

/// Whether two statuses say the same; the API drops zeros, so absent and zero are one.
pub(crate) fn same(left: &DeploymentStatus, right: &DeploymentStatus) -> bool {
    let zero = |value: Option<i32>| value.unwrap_or(0);
    zero(left.replicas) == zero(right.replicas)
        && zero(left.updated_replicas) == zero(right.updated_replicas)
        && zero(left.ready_replicas) == zero(right.ready_replicas)
        && zero(left.available_replicas) == zero(right.available_replicas)
        && zero(left.unavailable_replicas) == zero(right.unavailable_replicas)
        && zero(left.terminating_replicas) == zero(right.terminating_replicas)
        && left.collision_count == right.collision_count
        && left.observed_generation == right.observed_generation
        && left.conditions.as_deref().unwrap_or_default()
            == right.conditions.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn deployment(status: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({"metadata": {"name": "web", "generation": 1}, "spec": {"replicas": 2, "progressDeadlineSeconds": 60}, "status": status})).expect("a deployment")
    }

    fn set_of(available: i32) -> Arc<ReplicaSet> {
        Arc::new(
            serde_json::from_value(
                json!({"metadata": {"name": "web-1"}, "spec": {"replicas": 2},
            "status": {"replicas": 2, "readyReplicas": available, "availableReplicas": available}}),
            )
            .expect("a set"),
        )
    }

    fn reason(status: &DeploymentStatus, kind: &str) -> String {
        find(status, kind)
            .and_then(|condition| condition.reason.clone())
            .unwrap_or_default()
    }

    fn at(deployment: &Deployment, available: i32, seconds: i64) -> DeploymentStatus {
        let now = Timestamp::from_second(seconds).expect("a time");
        let sets = [set_of(available)];
        let mut status = counts(deployment, &sets, Some(&sets[0]), now);
        progress(deployment, &mut status, Some(&sets[0]), &[], now);
        status
    }

    #[test]
    fn a_rollout_progresses_completes_and_stays_complete() {
        let mut deployment = deployment(json!({}));
        deployment.status = at(&deployment, 0, 0);
        assert_eq!(reason(&deployment.status, PROGRESSING), "ReplicaSetUpdated");
        assert_eq!(
            reason(&deployment.status, AVAILABLE),
            "MinimumReplicasUnavailable"
        );
        deployment.status = at(&deployment, 2, 10);
        assert_eq!(reason(&deployment.status, PROGRESSING), NEW_SET_AVAILABLE);
        assert_eq!(
            reason(&deployment.status, AVAILABLE),
            "MinimumReplicasAvailable"
        );
        // A pod that falls ill later is no failed rollout.
        deployment.status = at(&deployment, 1, 1000);
        assert_eq!(reason(&deployment.status, PROGRESSING), NEW_SET_AVAILABLE);
        assert!(
            same(&deployment.status, &at(&deployment, 1, 2000)),
            "it comes to rest"
        );
    }

    #[test]
    fn without_progress_the_deadline_passes() {
        let mut deployment = deployment(json!({}));
        deployment.status = at(&deployment, 0, 0);
        deployment.status = at(&deployment, 0, 50);
        assert_eq!(reason(&deployment.status, PROGRESSING), "ReplicaSetUpdated");
        let now = Timestamp::from_second(50).expect("a time");
        assert_eq!(
            check_again(&deployment, &deployment.status, now),
            Some(Duration::from_secs(11))
        );
        deployment.status = at(&deployment, 0, 61);
        assert_eq!(reason(&deployment.status, PROGRESSING), TIMED_OUT);
        assert_eq!(check_again(&deployment, &deployment.status, now), None);
    }
}
