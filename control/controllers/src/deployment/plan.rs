//! What a deployment needs next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DeploymentStatus;

use super::revision::{self, REVISION, Revisions, annotations, number};
use super::rolling::{Sizes, limits, new_size, scale, shrink_old, was_scaled};
use super::status::{self, PROGRESSING, condition, counts, deadline, is_complete, progress};
use crate::model::{self, Deployment, ReplicaSet, Selector, controller_of, is_deleting};

/// A deployment, the replica sets that are or could be its own, and whether pods of old ones still run.
pub(crate) struct Observed<'a> {
    pub deployment: &'a Deployment,
    pub sets: &'a [Arc<ReplicaSet>],
    /// Whether a pod of a replica set other than the named one has not ended yet; asked only for `Recreate`.
    pub old_pods_run: &'a dyn Fn(Option<&ReplicaSet>) -> bool,
}

/// What to do, in this order.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    /// Take an orphan in.
    Adopt(String),
    /// Let a replica set go whose labels no longer match.
    Release(String),
    /// Make the replica set of the present template.
    Create {
        replicas: i32,
        annotations: BTreeMap<String, String>,
        hash: String,
    },
    /// Change the size of a replica set.
    Scale { name: String, from: i32, to: i32 },
    /// Change annotations and `minReadySeconds` of the present replica set.
    Annotate {
        name: String,
        annotations: BTreeMap<String, String>,
    },
    /// Remove a replica set that is too old to keep.
    Delete(String),
    /// Write the number of the present revision on the deployment.
    SetRevision(String),
    /// Write the status.
    Status(DeploymentStatus),
    /// Look again then.
    Wait(Duration),
}

/// Decides. Nothing at all is what a deployment at rest gets.
pub(crate) fn plan(observed: &Observed<'_>, now: Timestamp) -> Vec<Action> {
    let deployment = observed.deployment;
    let (mut actions, own) = claims(deployment, observed.sets);
    let revisions = revision::sort(deployment, &own);
    let mut planner = Planner {
        observed,
        own: &own,
        revisions: &revisions,
        now,
        status: deployment.status.clone(),
        actions: Vec::new(),
    };
    if is_deleting(&deployment.metadata) {
        planner.finish(Report::Counts);
        actions.append(&mut planner.actions);
        return actions;
    }
    planner.pause_conditions();
    if deployment.spec.paused == Some(true) || was_scaled(deployment, own.iter()) {
        planner.rename(false);
        let sizes = scale(deployment, revisions.new, &revisions.old);
        planner.resize(&sizes);
        if deployment.spec.paused == Some(true) {
            planner.clean_up();
        }
        planner.finish(Report::Counts);
    } else if deployment.recreates() {
        planner.recreate();
    } else {
        planner.roll();
    }
    actions.append(&mut planner.actions);
    actions
}

/// What the status tells.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Report {
    Counts,
    Progress,
}

struct Planner<'a> {
    observed: &'a Observed<'a>,
    own: &'a [Arc<ReplicaSet>],
    revisions: &'a Revisions<'a>,
    now: Timestamp,
    /// The status so far: conditions come before the counts.
    status: DeploymentStatus,
    actions: Vec<Action>,
}

impl Planner<'_> {
    fn deployment(&self) -> &Deployment {
        self.observed.deployment
    }

    /// A pause stops the clock of the progress deadline, and going on starts it anew.
    fn pause_conditions(&mut self) {
        if deadline(self.deployment()).is_none() {
            return;
        }
        let reason = status::find(&self.status, PROGRESSING)
            .and_then(|condition| condition.reason.as_deref());
        if reason == Some("ProgressDeadlineExceeded") {
            return;
        }
        let was_paused = reason == Some("DeploymentPaused");
        let paused = self.deployment().spec.paused == Some(true);
        if paused && !was_paused {
            status::set(
                &mut self.status,
                condition(
                    PROGRESSING,
                    "Unknown",
                    "DeploymentPaused",
                    "Deployment is paused",
                    self.now,
                ),
            );
        } else if !paused && was_paused {
            status::set(
                &mut self.status,
                condition(
                    PROGRESSING,
                    "Unknown",
                    "DeploymentResumed",
                    "Deployment is resumed",
                    self.now,
                ),
            );
        }
    }

    /// Brings revision numbers up to date, and makes the present replica set if there is none and `make` says so. Answers whether
    /// the replica set was (or has to be) changed first.
    fn rename(&mut self, make: bool) -> bool {
        let deployment = self.observed.deployment;
        let highest = self
            .revisions
            .old
            .iter()
            .map(|set| number(set))
            .max()
            .unwrap_or(0);
        let due = highest + 1;
        let Some(new) = self.revisions.new else {
            if make {
                self.make(due);
            }
            return make;
        };
        let wanted = annotations(deployment, Some(new), due);
        let min_ready = deployment.spec.min_ready_seconds.unwrap_or(0)
            != new.spec.min_ready_seconds.unwrap_or(0);
        if new.metadata.annotations.clone().unwrap_or_default() != wanted || min_ready {
            self.actions.push(Action::Annotate {
                name: model::name(&new.metadata).to_owned(),
                annotations: wanted.clone(),
            });
        }
        if let Some(revision) = wanted.get(REVISION) {
            self.set_revision(revision);
        }
        if deadline(deployment).is_some() && status::find(&self.status, PROGRESSING).is_none() {
            let message = format!("Found new replica set {:?}", model::name(&new.metadata));
            status::set(
                &mut self.status,
                condition(PROGRESSING, "True", "FoundNewReplicaSet", message, self.now),
            );
        }
        false
    }

    fn make(&mut self, due: i64) {
        let deployment = self.observed.deployment;
        let all: i32 = self.revisions.old.iter().map(|set| set.replicas()).sum();
        let replicas = new_size(deployment, all, 0);
        let hash = deployment
            .spec
            .template
            .hash(deployment.status.collision_count);
        let mut annotations = annotations(deployment, None, due);
        annotations.extend(size_annotations(deployment));
        self.actions.push(Action::Create {
            replicas,
            annotations,
            hash: hash.clone(),
        });
        self.set_revision(&due.to_string());
        if deadline(deployment).is_some() {
            let message = format!(
                "Created new replica set {:?}",
                format!("{}-{hash}", model::name(&deployment.metadata))
            );
            status::set(
                &mut self.status,
                condition(
                    PROGRESSING,
                    "True",
                    "NewReplicaSetCreated",
                    message,
                    self.now,
                ),
            );
        }
    }

    fn set_revision(&mut self, revision: &str) {
        if model::annotation(&self.deployment().metadata, REVISION) != Some(revision) {
            self.actions.push(Action::SetRevision(revision.to_owned()));
        }
    }

    fn resize(&mut self, sizes: &Sizes) -> bool {
        let mut changed = false;
        for set in self.own {
            let name = model::name(&set.metadata);
            if let Some(size) = sizes.get(name) {
                self.actions.push(Action::Scale {
                    name: name.to_owned(),
                    from: set.replicas(),
                    to: *size,
                });
                changed = true;
            }
        }
        // Where sizes stay the annotations still have to tell of the new number, or the next run would scale again.
        for set in self.own.iter().filter(|set| set.replicas() > 0) {
            let name = model::name(&set.metadata);
            let stale = size_annotations(self.deployment())
                .iter()
                .any(|(key, value)| model::annotation(&set.metadata, key) != Some(value));
            if stale && !sizes.contains_key(name) {
                self.actions.push(Action::Scale {
                    name: name.to_owned(),
                    from: set.replicas(),
                    to: set.replicas(),
                });
            }
        }
        changed
    }

    fn roll(&mut self) {
        if self.rename(true) {
            return self.finish(Report::Progress);
        }
        let deployment = self.observed.deployment;
        let new = self.revisions.new;
        let all: i32 = self.own.iter().map(|set| set.replicas()).sum();
        let grown = new
            .map(|new| (new, new_size(deployment, all, new.replicas())))
            .filter(|(new, size)| new.replicas() != *size);
        let sizes = match grown {
            Some((new, size)) => Sizes::from([(model::name(&new.metadata).to_owned(), size)]),
            None => shrink_old(deployment, new.map(|new| &**new), &self.revisions.old),
        };
        if !self.resize(&sizes) && is_complete(deployment, &deployment.status) {
            self.clean_up();
        }
        self.finish(Report::Progress);
    }

    fn recreate(&mut self) {
        let deployment = self.observed.deployment;
        let new = self.revisions.new;
        self.rename(false);
        let zeros: Sizes = (self.revisions.old.iter().filter(|set| set.replicas() > 0))
            .map(|set| (model::name(&set.metadata).to_owned(), 0))
            .collect();
        if self.resize(&zeros) || (self.observed.old_pods_run)(new.map(|new| &**new)) {
            return self.finish(Report::Progress);
        }
        match new {
            None => {
                self.rename(true);
            }
            Some(new) if new.replicas() != deployment.replicas() => {
                self.resize(&Sizes::from([(
                    model::name(&new.metadata).to_owned(),
                    deployment.replicas(),
                )]));
            }
            Some(_) if is_complete(deployment, &deployment.status) => self.clean_up(),
            Some(_) => {}
        }
        self.finish(Report::Progress);
    }

    /// Old replica sets beyond the history go, the oldest revision first, once they are empty.
    fn clean_up(&mut self) {
        let Some(limit) = self
            .deployment()
            .spec
            .revision_history_limit
            .filter(|limit| *limit != i32::MAX)
        else {
            return;
        };
        let mut kept: Vec<_> = self
            .revisions
            .old
            .iter()
            .filter(|set| !is_deleting(&set.metadata))
            .collect();
        let surplus = kept
            .len()
            .saturating_sub(usize::try_from(limit).unwrap_or(0));
        kept.sort_by_key(|set| number(set));
        for set in kept.into_iter().take(surplus) {
            let is_empty = set.status.replicas == 0 && set.replicas() == 0;
            if is_empty && set.metadata.generation <= set.status.observed_generation {
                self.actions
                    .push(Action::Delete(model::name(&set.metadata).to_owned()));
            }
        }
    }

    fn finish(&mut self, report: Report) {
        let deployment = self.observed.deployment;
        let new = self.revisions.new.map(|new| &**new);
        let staged = Deployment {
            status: DeploymentStatus {
                conditions: self.status.conditions.clone(),
                ..deployment.status.clone()
            },
            ..deployment.clone()
        };
        let mut status = counts(&staged, self.own, new, self.now);
        if report == Report::Progress {
            progress(&staged, &mut status, new, &self.revisions.old, self.now);
        }
        let again = status::check_again(deployment, &status, self.now);
        if !status::same(&status, &deployment.status) {
            self.actions.push(Action::Status(status));
        }
        self.actions.extend(
            again
                .filter(|_| deployment.spec.paused != Some(true))
                .map(Action::Wait),
        );
    }
}

/// The annotations with which a replica set remembers the size of its deployment.
pub(crate) fn size_annotations(deployment: &Deployment) -> [(String, String); 2] {
    let most = deployment
        .replicas()
        .saturating_add(limits(deployment).surge);
    [
        (revision::DESIRED.into(), deployment.replicas().to_string()),
        (revision::MAXIMUM.into(), most.to_string()),
    ]
}

fn claims(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
) -> (Vec<Action>, Vec<Arc<ReplicaSet>>) {
    let selector = Selector(&deployment.spec.selector);
    let mut actions = Vec::new();
    let mut own = Vec::new();
    for set in sets {
        let matches = !selector.is_empty() && selector.matches(set.metadata.labels.as_ref());
        let name = || model::name(&set.metadata).to_owned();
        match controller_of(&set.metadata) {
            None if matches
                && !is_deleting(&set.metadata)
                && !is_deleting(&deployment.metadata) =>
            {
                actions.push(Action::Adopt(name()));
                own.push(set.clone());
            }
            Some(owner) if owner.uid == model::uid(&deployment.metadata) && matches => {
                own.push(set.clone())
            }
            Some(owner)
                if owner.uid == model::uid(&deployment.metadata)
                    && !is_deleting(&deployment.metadata) =>
            {
                actions.push(Action::Release(name()))
            }
            _ => {}
        }
    }
    (actions, own)
}

#[cfg(test)]
mod tests;
