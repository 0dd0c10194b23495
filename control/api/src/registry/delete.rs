//! Deletion: preconditions, grace, finalizers (apiserver `registry/rest/delete.go`, `registry/generic/registry/store.go`).

use std::sync::Arc;

use bytes::Bytes;
use knarr_store::{Compare, Op, TxnOutcome};
use serde_json::{Value, json};

use super::entry::{self, Entry};
use super::operation::{Action, Operation};
use super::services::Allocation;
use super::write::{RETRIES, Target, Tried};
use super::{Registry, meta};
use crate::status::{ApiError, FieldError};
use crate::strategy::Context;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What becomes of the objects that the deleted one owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They lose their owner and stay.
    Orphan,
    /// They are deleted afterwards.
    Background,
    /// They are deleted before.
    Foreground,
}

/// `DeleteOptions`, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteRequest {
    /// The grace period in seconds.
    pub grace: Option<i64>,
    /// What becomes of what the object owns.
    pub propagation: Option<Propagation>,
    /// The uid that the object must have.
    pub uid: Option<String>,
    /// The resourceVersion that the object must have.
    pub version: Option<String>,
    /// `orphanDependents: false` was asked for: the answer is 202 while the object is still there.
    pub no_orphans: bool,
}

impl DeleteRequest {
    /// From a `DeleteOptions` object.
    ///
    /// # Errors
    ///
    /// 422 for options that exclude each other or are unknown.
    pub fn parse(options: &Value) -> Result<Self, ApiError> {
        let invalid = |error| {
            Err(ApiError::invalid(
                "meta.k8s.io",
                "DeleteOptions",
                "",
                &[error],
            ))
        };
        let orphan = options["orphanDependents"].as_bool();
        let policy = options["propagationPolicy"].as_str();
        if orphan.is_some() && policy.is_some() {
            return invalid(FieldError::invalid(
                "propagationPolicy",
                &options["propagationPolicy"],
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        let propagation = match policy {
            None => orphan.map(|orphan| {
                if orphan {
                    Propagation::Orphan
                } else {
                    Propagation::Background
                }
            }),
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(_) => {
                return invalid(FieldError::not_supported(
                    "propagationPolicy",
                    &options["propagationPolicy"],
                    &["Background", "Foreground", "Orphan"],
                ));
            }
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok(Self {
            // None is too short to be one: kube-apiserver takes less than nothing as a second.
            grace: options["gracePeriodSeconds"]
                .as_i64()
                .map(|seconds| if seconds < 0 { 1 } else { seconds }),
            propagation,
            uid: text(&options["preconditions"]["uid"]),
            version: text(&options["preconditions"]["resourceVersion"]),
            no_orphans: orphan == Some(false),
        })
    }

    /// The `DeleteOptions` that say this, without kind and version.
    fn to_options(&self) -> Value {
        let mut options = json!({});
        if let Some(grace) = self.grace {
            options["gracePeriodSeconds"] = grace.into();
        }
        match self.propagation {
            _ if self.no_orphans => options["orphanDependents"] = false.into(),
            None => {}
            Some(Propagation::Orphan) => options["propagationPolicy"] = "Orphan".into(),
            Some(Propagation::Background) => options["propagationPolicy"] = "Background".into(),
            Some(Propagation::Foreground) => options["propagationPolicy"] = "Foreground".into(),
        }
        if let Some(uid) = &self.uid {
            options["preconditions"]["uid"] = (&**uid).into();
        }
        if let Some(version) = &self.version {
            options["preconditions"]["resourceVersion"] = (&**version).into();
        }
        options
    }
}

/// What became of a deletion.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// The object as it is, or was last.
    pub object: Bytes,
    /// Its uid.
    pub uid: String,
    /// Whether it is gone.
    pub gone: bool,
}

/// The next step of a deletion.
enum Step {
    /// Leave it: it is being deleted already.
    Nothing,
    /// Write this state of it.
    Mark(Value),
    /// Remove it.
    Remove,
}

impl Registry {
    /// Deletes an object, or starts to.
    ///
    /// # Errors
    ///
    /// 404, 409 for a precondition that does not hold.
    pub async fn delete(
        &self,
        target: &Target,
        request: &DeleteRequest,
        ctx: &Context,
    ) -> Result<Deleted, ApiError> {
        let mut operation = Operation::new(Action::Delete, target, ctx);
        operation.options = Some(request.to_options());
        let mut present = target.collection.get(&target.key());
        for _ in 0..RETRIES {
            let entry = present.ok_or_else(|| target.not_found())?;
            operation.old = Some(entry.parse());
            match self
                .delete_from(target, request, &entry, &mut operation)
                .await?
            {
                Tried::Done(deleted) => return Ok(deleted),
                Tried::Beaten(by) => present = by,
            }
        }
        Err(target.modified())
    }

    async fn delete_from(
        &self,
        target: &Target,
        request: &DeleteRequest,
        present: &Arc<Entry>,
        operation: &mut Operation,
    ) -> Result<Tried<Deleted>, ApiError> {
        self.mutate(operation).await?;
        check(target, request, present)?;
        self.judge(operation).await?;
        let ctx = &operation.context;
        let old = operation.old.take().unwrap_or_else(|| present.parse());
        let step = step(target, request, &old, ctx)?;
        let uid = present.uid.to_string();
        let store_key = target.collection.store_key(&present.key);
        let compare = Compare::ModRevision(store_key.clone(), present.revision);
        let mut allocation = Allocation::default();
        let (op, value, gone) = match step {
            Step::Nothing => {
                return Ok(Tried::Done(Deleted {
                    object: present.object.clone(),
                    uid,
                    gone: false,
                }));
            }
            Step::Remove => {
                allocation = self.services.release(target, &old);
                (Op::Delete(store_key), None, true)
            }
            Step::Mark(object) => {
                let value: Bytes = entry::encode(&object).into();
                (Op::Put(store_key, value.clone()), Some(value), false)
            }
        };
        if ctx.dry_run {
            let object = value.map_or_else(
                || present.object.clone(),
                |value| entry::splice(&value, present.revision),
            );
            return Ok(Tried::Done(Deleted { object, uid, gone }));
        }
        let (compares, ops) = allocation.with(compare, op);
        match self.commit(compares.clone(), ops).await? {
            TxnOutcome::Conflict(now) => self.beaten(target, present, &compares, now).await,
            TxnOutcome::Committed(revision) => {
                let object = value.map_or_else(
                    || present.object.clone(),
                    |value| entry::splice(&value, revision),
                );
                Ok(Tried::Done(Deleted { object, uid, gone }))
            }
        }
    }
}

fn check(target: &Target, request: &DeleteRequest, present: &Entry) -> Result<(), ApiError> {
    if let Some(uid) = &request.uid
        && **uid != *present.uid
    {
        return Err(target.conflict(&format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            present.uid
        )));
    }
    if let Some(version) = &request.version
        && *version != present.revision.to_string()
    {
        return Err(target.conflict(&format!(
            "Precondition failed: ResourceVersion in precondition: {version}, ResourceVersion in object meta: {}",
            present.revision
        )));
    }
    Ok(())
}

/// Decides; knows only the object and the request.
fn step(
    target: &Target,
    request: &DeleteRequest,
    old: &Value,
    ctx: &Context,
) -> Result<Step, ApiError> {
    let mut object = old.clone();
    meta::metadata(&mut object).remove("resourceVersion");
    let finalizers = wanted_finalizers(old, request.propagation);
    let strategy = &target.resource.strategy;
    if strategy.is_emptied_first() {
        if !meta::is_terminating(old) {
            meta::set_finalizers(&mut object, &finalizers);
            object["metadata"]["deletionTimestamp"] = (&*ctx.now).into();
            object["status"]["phase"] = "Terminating".into();
            return Ok(Step::Mark(object));
        }
        if strategy.holds(old) {
            return Ok(Step::Nothing);
        }
    }
    let changed = finalizers
        .iter()
        .map(String::as_str)
        .ne(meta::finalizers(old));
    meta::set_finalizers(&mut object, &finalizers);
    let grace = target
        .resource
        .strategy
        .graceful_deletion_seconds(old, request.grace);
    let was_terminating = meta::is_terminating(old);
    let old_grace = old["metadata"]["deletionGracePeriodSeconds"]
        .as_i64()
        .unwrap_or(0);
    match grace {
        Some(grace) if grace > 0 => {
            if was_terminating {
                // A shorter grace moves the end forward; a longer one, or none asked for, changes nothing.
                let shorter = request.grace.is_some_and(|asked| asked < old_grace);
                if !shorter {
                    return Ok(if changed {
                        Step::Mark(object)
                    } else {
                        Step::Nothing
                    });
                }
                let begun = deletion_begun(old, old_grace);
                set_deadline(
                    &mut object,
                    begun.unwrap_or_else(jiff::Timestamp::now),
                    grace,
                );
            } else {
                set_deadline(&mut object, jiff::Timestamp::now(), grace);
                raise_generation(&mut object);
            }
            return Ok(Step::Mark(object));
        }
        _ => {}
    }
    if finalizers.is_empty() {
        return Ok(Step::Remove);
    }
    if was_terminating && !changed && old_grace == 0 {
        return Ok(Step::Nothing);
    }
    if !was_terminating {
        raise_generation(&mut object);
        set_deadline(&mut object, jiff::Timestamp::now(), 0);
    } else {
        object["metadata"]["deletionGracePeriodSeconds"] = 0.into();
    }
    Ok(Step::Mark(object))
}

fn deletion_begun(old: &Value, grace: i64) -> Option<jiff::Timestamp> {
    let end: jiff::Timestamp = meta::text(old, "deletionTimestamp").parse().ok()?;
    end.checked_sub(jiff::SignedDuration::from_secs(grace)).ok()
}

fn set_deadline(object: &mut Value, from: jiff::Timestamp, grace: i64) {
    let end = from
        .checked_add(jiff::SignedDuration::from_secs(grace))
        .unwrap_or(jiff::Timestamp::MAX);
    object["metadata"]["deletionTimestamp"] = meta::timestamp(end).into();
    object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
}

/// The deletion is a change of what is wanted, so controllers see a new generation (where the kind has one).
fn raise_generation(object: &mut Value) {
    if let Some(generation) = object["metadata"]["generation"].as_i64()
        && generation > 0
    {
        object["metadata"]["generation"] = (generation + 1).into();
    }
}

fn wanted_finalizers(old: &Value, propagation: Option<Propagation>) -> Vec<String> {
    let mut wanted: Vec<String> = meta::finalizers(old)
        .into_iter()
        .map(str::to_owned)
        .collect();
    if let Some(propagation) = propagation {
        let keep = match propagation {
            Propagation::Orphan => Some(ORPHAN),
            Propagation::Foreground => Some(FOREGROUND),
            Propagation::Background => None,
        };
        wanted.retain(|f| !matches!(&**f, ORPHAN | FOREGROUND) || Some(&**f) == keep);
        if let Some(keep) = keep
            && !wanted.iter().any(|f| f == keep)
        {
            wanted.push(keep.to_owned());
        }
    }
    wanted
}

/// The fields of `Status.details` for a deleted object.
pub fn success(target: &Target, deleted: &Deleted) -> Value {
    let mut details =
        json!({ "name": target.name, "kind": target.resource.plural, "uid": deleted.uid });
    if !target.resource.gvk.group.is_empty() {
        details["group"] = (&*target.resource.gvk.group).into();
    }
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}

/// The name of an object, for a deletion of many.
pub fn of_entry(target: &Target, entry: &Entry) -> Target {
    Target {
        namespace: entry.namespace().to_owned(),
        name: entry.name().to_owned(),
        ..target.clone()
    }
}

/// Whether a write to this object still makes sense (it may have been removed meanwhile).
pub fn is_missing(error: &ApiError) -> bool {
    error.code == 404
}
