//! Revisions of a deployment: which replica set is the present one, and what its annotations say.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{self, Deployment, LAST_APPLIED, ReplicaSet};

/// The number of a revision, on the deployment and on its replica sets.
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
/// Earlier numbers of a replica set that a rollback made the newest again.
pub(crate) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// How many replicas the deployment wanted when it last scaled the replica set.
pub(crate) const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
/// How many it could have had at most, the surge included.
pub(crate) const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";

/// The longest text of [`REVISION_HISTORY`].
const HISTORY_LENGTH: usize = 2000;

/// The replica sets of a deployment, the oldest first, and which of them is its present one.
pub(crate) struct Revisions<'a> {
    pub new: Option<&'a Arc<ReplicaSet>>,
    pub old: Vec<&'a Arc<ReplicaSet>>,
}

/// Finds the present replica set: of those with the deployment's template the oldest, so that the choice never wavers.
pub(crate) fn sort<'a>(deployment: &Deployment, sets: &'a [Arc<ReplicaSet>]) -> Revisions<'a> {
    let mut sorted: Vec<_> = sets.iter().collect();
    sorted.sort_by(|left, right| age(left).cmp(&age(right)));
    let new = sorted
        .iter()
        .position(|set| set.spec.template.same_pods(&deployment.spec.template))
        .map(|at| sorted.remove(at));
    Revisions { new, old: sorted }
}

/// Orders by creation, then name.
pub(crate) fn age(set: &ReplicaSet) -> (Option<jiff::Timestamp>, &str) {
    (
        set.metadata.creation_timestamp.as_ref().map(|time| time.0),
        model::name(&set.metadata),
    )
}

/// The number of a replica set's revision; 0 if it has none.
pub(crate) fn number(set: &ReplicaSet) -> i64 {
    model::annotation(&set.metadata, REVISION)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// The annotations that a new replica set takes over from its deployment.
fn inherited(deployment: &Deployment) -> impl Iterator<Item = (&String, &String)> {
    const OWN: [&str; 6] = [
        LAST_APPLIED,
        REVISION,
        REVISION_HISTORY,
        DESIRED,
        MAXIMUM,
        "deprecated.deployment.rollback.to",
    ];
    deployment
        .metadata
        .annotations
        .iter()
        .flatten()
        .filter(|(key, _)| !OWN.contains(&key.as_str()))
}

/// The annotations of the present replica set as they should be; `revision` is the number that is due.
pub(crate) fn annotations(
    deployment: &Deployment,
    set: Option<&ReplicaSet>,
    revision: i64,
) -> BTreeMap<String, String> {
    let mut annotations = set
        .and_then(|set| set.metadata.annotations.clone())
        .unwrap_or_default();
    annotations.extend(inherited(deployment).map(|(key, value)| (key.clone(), value.clone())));
    let before = annotations.get(REVISION).cloned();
    let before_number = before
        .as_deref()
        .and_then(|text| text.parse::<i64>().ok())
        .unwrap_or(0);
    if before_number < revision {
        annotations.insert(REVISION.into(), revision.to_string());
        if let Some(before) = before {
            let history = annotations
                .get(REVISION_HISTORY)
                .cloned()
                .unwrap_or_default();
            annotations.insert(REVISION_HISTORY.into(), append(&history, &before));
        }
    }
    annotations
}

/// Adds a number to the history, dropping the oldest where it grows too long.
fn append(history: &str, number: &str) -> String {
    let mut numbers: Vec<_> = history
        .split(',')
        .filter(|text| !text.is_empty())
        .chain([number])
        .collect();
    while numbers.len() > 1
        && numbers.iter().map(|text| text.len() + 1).sum::<usize>() > HISTORY_LENGTH
    {
        numbers.remove(0);
    }
    numbers.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_rollback_gets_a_new_number_and_remembers_the_old_one() {
        let deployment: Deployment = serde_json::from_value(json!({"metadata": {"annotations": {"note": "x", REVISION: "3", LAST_APPLIED: "{}"}}, "spec": {}})).expect("a deployment");
        let set: ReplicaSet = serde_json::from_value(json!({"metadata": {"annotations": {REVISION: "1", REVISION_HISTORY: "0"}}, "spec": {}})).expect("a set");
        let annotations = annotations(&deployment, Some(&set), 4);
        assert_eq!(annotations.get(REVISION).map(String::as_str), Some("4"));
        assert_eq!(
            annotations.get(REVISION_HISTORY).map(String::as_str),
            Some("0,1")
        );
        assert_eq!(annotations.get("note").map(String::as_str), Some("x"));
        assert!(!annotations.contains_key(LAST_APPLIED));
    }
}
