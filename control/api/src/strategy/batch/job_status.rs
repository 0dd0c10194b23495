//! What a controller may report of a job.
//!
//! Another program than Kubernetes' own may run a job (`spec.managedBy`), so its report is checked: the conditions agree with
//! each other and with the times and counts, and what is final stays. A rule is asked only about what a request changes, as
//! the spec may have changed in between.

use serde_json::Value;

use super::indexes;
use super::job::is;
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::{Errors, IMMUTABLE, items};

/// Refuses a set of conditions as a whole, which is not shown.
fn conditions(errors: &mut Errors, detail: &str) {
    errors.0.push(FieldError {
        reason: "FieldValueInvalid",
        field: "status.conditions".to_owned(),
        message: format!("Invalid value: {detail}"),
    });
}

fn is_finished(job: &Value) -> bool {
    is(job, "Complete") || is(job, "Failed")
}

/// Mistakes in a new status.
pub(super) fn validate_update(job: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let status = &job["status"];
    for field in ["active", "succeeded", "failed", "ready", "terminating"] {
        errors.not_negative(format!("status.{field}"), &status[field]);
    }
    uncounted(&mut errors, &status["uncountedTerminatedPods"]);
    final_conditions(&mut errors, job, old);
    agreement(&mut errors, job, old);
    times(&mut errors, job, old);
    counts(&mut errors, job, old);
    index_lists(&mut errors, job, old);
    errors.0
}

/// Pods are listed by their uid, once.
fn uncounted(errors: &mut Errors, lists: &Value) {
    let mut seen: Vec<&str> = Vec::new();
    for list in ["succeeded", "failed"] {
        for (index, uid) in items(&lists[list]) {
            let at = format!("status.uncountedTerminatedPods.{list}[{index}]");
            match text(uid) {
                "" => errors.add(at, uid, "must not be empty"),
                known if seen.contains(&known) => errors.0.push(FieldError::duplicate(at, uid)),
                new => seen.push(new),
            }
        }
    }
}

/// A condition that ends a job stays.
fn final_conditions(errors: &mut Errors, job: &Value, old: &Value) {
    for condition in ["Failed", "Complete", "FailureTarget"] {
        if is(old, condition) && !is(job, condition) {
            conditions(
                errors,
                &format!("cannot disable the terminal {condition}=True condition"),
            );
        }
    }
    if is(old, "SuccessCriteriaMet") && !is(job, "SuccessCriteriaMet") {
        conditions(
            errors,
            "cannot disable the SuccessCriteriaMet=True condition",
        );
    }
    if is(old, "Complete") && !is(old, "SuccessCriteriaMet") && is(job, "SuccessCriteriaMet") {
        conditions(
            errors,
            "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions",
        );
    }
}

/// The conditions do not contradict each other.
fn agreement(errors: &mut Errors, job: &Value, old: &Value) {
    let [complete, failed, target, met] =
        ["Complete", "Failed", "FailureTarget", "SuccessCriteriaMet"].map(|name| {
            let now = is(job, name);
            (now, now != is(old, name))
        });
    let lists = job["status"]["failedIndexes"] != old["status"]["failedIndexes"];
    for (changed, wrong, detail) in [
        (
            complete.1 || failed.1,
            complete.0 && failed.0,
            "cannot set Complete=True and Failed=true conditions",
        ),
        (
            complete.1 || target.1,
            complete.0 && target.0,
            "cannot set Complete=True and FailureTarget=true conditions",
        ),
        (
            failed.1 || lists,
            failed.0 && !target.0,
            "cannot set Failed=True condition without the FailureTarget=true condition",
        ),
        (
            complete.1 || met.1,
            complete.0 && !met.0,
            "cannot set Complete=True condition without the SuccessCriteriaMet=true condition",
        ),
        (
            true,
            met.0 && failed.0,
            "cannot set SuccessCriteriaMet=True and Failed=true conditions",
        ),
        (
            true,
            met.0 && target.0,
            "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions",
        ),
        (
            !job["spec"]["successPolicy"].is_null(),
            complete.0 && !met.0,
            "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True",
        ),
    ] {
        if changed && wrong {
            conditions(errors, detail);
        }
    }
}

/// A finished job has started, a complete one has a time of completion, and neither time moves.
fn times(errors: &mut Errors, job: &Value, old: &Value) {
    let (status, before) = (&job["status"], &old["status"]);
    let (start, end) = (&status["startTime"], &status["completionTime"]);
    let (starts_anew, ends_anew) = (
        *start != before["startTime"],
        *end != before["completionTime"],
    );
    let completes = is(job, "Complete") != is(old, "Complete");
    if completes || ends_anew {
        if !end.is_null() && !is(job, "Complete") {
            errors.add(
                "status.completionTime",
                end,
                "cannot set completionTime when there is no Complete=True condition",
            );
        }
        if end.is_null() && is(job, "Complete") {
            errors.required(
                "status.completionTime",
                "completionTime is required for Complete jobs",
            );
        }
    }
    let time = |value: &Value| text(value).parse::<jiff::Timestamp>().ok();
    if (starts_anew || ends_anew)
        && let (Some(start), Some(end_time)) = (time(start), time(end))
        && end_time < start
    {
        errors.add(
            "status.completionTime",
            end,
            "must be equal to or after `startTime`",
        );
    }
    if ends_anew && !end.is_null() && !before["completionTime"].is_null() {
        errors.add("status.completionTime", end, IMMUTABLE);
    }
    if start.is_null() && is_finished(job) && (starts_anew || is_finished(old) != is_finished(job))
    {
        errors.required("status.startTime", "startTime is required for finished job");
    }
    if starts_anew && !before["startTime"].is_null() && job["spec"]["suspend"] != true {
        errors.required(
            "status.startTime",
            "startTime cannot be removed for unsuspended job",
        );
    }
}

/// A finished job has no pods left, and pods that ended stay counted.
fn counts(errors: &mut Errors, job: &Value, old: &Value) {
    let (status, before) = (&job["status"], &old["status"]);
    let number = |status: &Value, field: &str| status[field].as_i64().unwrap_or(0);
    let finishes = is_finished(job) != is_finished(old);
    for field in ["active", "terminating"] {
        let asked = finishes || status[field] != before[field];
        if asked && is_finished(job) && number(status, field) > 0 {
            let detail = format!("{field}>0 is invalid for finished job");
            errors.add(format!("status.{field}"), &status[field], &detail);
        }
    }
    let uncounted = &status["uncountedTerminatedPods"];
    let lists = ["succeeded", "failed"];
    if (finishes || *uncounted != before["uncountedTerminatedPods"])
        && is_finished(job)
        && lists
            .iter()
            .any(|list| items(&uncounted[*list]).next().is_some())
    {
        errors.add(
            "status.uncountedTerminatedPods",
            uncounted,
            "must be empty for finished job",
        );
    }
    if (status["ready"] != before["ready"] || status["active"] != before["active"])
        && number(status, "ready") > number(status, "active")
    {
        errors.add(
            "status.ready",
            &status["ready"],
            "cannot set more ready pods than active",
        );
    }
    let spec = &job["spec"];
    // An elastic job counts the successes of the indexes that it still has.
    let elastic = spec["completionMode"] == "Indexed" && spec["completions"] == spec["parallelism"];
    for (field, fixed) in [("failed", true), ("succeeded", !elastic)] {
        let count = number(status, field);
        if fixed && count < number(before, field) {
            let detail = format!("cannot decrease the {field} counter");
            errors.add(format!("status.{field}"), &count.into(), &detail);
        }
    }
}

/// The lists of indexes are those of an indexed job, and no index is in both.
fn index_lists(errors: &mut Errors, job: &Value, old: &Value) {
    let (spec, status) = (&job["spec"], &job["status"]);
    let (completed, failed) = (&status["completedIndexes"], &status["failedIndexes"]);
    let completed_anew = text(completed) != text(&old["status"]["completedIndexes"]);
    let failed_anew = *failed != old["status"]["failedIndexes"];
    let completions = spec["completions"].as_i64();
    let per_index = !spec["backoffLimitPerIndex"].is_null();
    let mut wrong = |field: &str, value: &Value, detail: &str| {
        errors.add(format!("status.{field}"), value, detail);
    };
    if completed_anew {
        if let Some(Err(error)) = completions.map(|n| indexes::count(text(completed), n)) {
            let detail = format!("error parsing completedIndexes: {error}");
            wrong("completedIndexes", completed, &detail);
        }
        if !text(completed).is_empty() && spec["completionMode"] != "Indexed" {
            wrong(
                "completedIndexes",
                completed,
                "cannot set non-empty completedIndexes when non-indexed completion mode",
            );
        }
    }
    if failed_anew && !failed.is_null() {
        if let Some(Err(error)) = completions
            .filter(|_| per_index)
            .map(|n| indexes::count(text(failed), n))
        {
            let detail = format!("error parsing failedIndexes: {error}");
            wrong("failedIndexes", failed, &detail);
        }
        if !per_index {
            wrong(
                "failedIndexes",
                failed,
                "cannot set non-null failedIndexes when backoffLimitPerIndex is null",
            );
        }
    }
    if (completed_anew || failed_anew)
        && let Some(index) =
            completions.and_then(|n| indexes::overlap(text(completed), text(failed), n))
    {
        let detail = format!("failedIndexes and completedIndexes overlap at index: {index}");
        wrong("failedIndexes", failed, &detail);
    }
}
