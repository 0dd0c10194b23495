//! The table of jobs.

use serde_json::Value;

use super::job::is;
use crate::strategy::Column;
use crate::strategy::common::{containers_text, selector_text, text};
use crate::table::{self, human_duration, since};

pub(super) fn columns() -> Vec<Column> {
    table::columns("Name Status Completions Duration Age Containers* Images* Selector*")
}

pub(super) fn cells(job: &Value, now: jiff::Timestamp) -> Vec<Value> {
    let (names, images) = containers_text(&job["spec"]["template"]);
    vec![
        table::name(job),
        state(job).into(),
        completions(job).into(),
        duration(&job["status"], now).into(),
        table::age(job, now),
        names.into(),
        images.into(),
        selector_text(&job["spec"]["selector"]).into(),
    ]
}

/// The status of a job in one word.
fn state(job: &Value) -> &'static str {
    let terminating = !job["metadata"]["deletionTimestamp"].is_null();
    match () {
        () if is(job, "Complete") => "Complete",
        () if is(job, "Failed") => "Failed",
        () if terminating => "Terminating",
        () if is(job, "Suspended") => "Suspended",
        () if is(job, "FailureTarget") => "FailureTarget",
        () => "Running",
    }
}

/// `2/5`; `0/1 of 3` for a job of three pods that needs no certain number of successes.
fn completions(job: &Value) -> String {
    let (spec, status) = (&job["spec"], &job["status"]);
    let succeeded = status["succeeded"].as_i64().unwrap_or(0);
    let parallelism = spec["parallelism"].as_i64().unwrap_or(0);
    match spec["completions"].as_i64() {
        Some(wanted) => format!("{succeeded}/{wanted}"),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        None => format!("{succeeded}/1"),
    }
}

/// How long a job has run, or took; empty for one that did not start.
fn duration(status: &Value, now: jiff::Timestamp) -> String {
    let time = |field: &str| text(&status[field]).parse::<jiff::Timestamp>().ok();
    match (time("startTime"), time("completionTime")) {
        (None, _) => String::new(),
        (Some(_), None) => since(status["startTime"].as_str(), now),
        (Some(start), Some(end)) => human_duration(end.as_second() - start.as_second()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_job_is_shown_by_its_state_its_successes_and_its_duration() {
        let now: jiff::Timestamp = "2026-01-01T00:01:00Z".parse().expect("a time");
        let start = "2026-01-01T00:00:00Z";
        let condition = |kind: &str| json!([{ "type": kind, "status": "True" }]);
        let end = "2026-01-01T00:00:05Z";
        #[rustfmt::skip] // A table.
        let rows = [
            (json!({ "spec": { "completions": 5 }, "status": {} }), ["Running", "0/5", ""]),
            (json!({ "spec": { "parallelism": 3 }, "status": { "startTime": start, "succeeded": 1 } }), ["Running", "1/1 of 3", "60s"]),
            (json!({ "spec": { "parallelism": 1 }, "status": { "conditions": condition("Suspended") } }), ["Suspended", "0/1", ""]),
            (json!({ "spec": {}, "status": { "startTime": start, "completionTime": end, "conditions": condition("Complete") } }), ["Complete", "0/1", "5s"]),
            (json!({ "spec": {}, "metadata": { "deletionTimestamp": start } }), ["Terminating", "0/1", ""]),
        ];
        for (job, expected) in rows {
            assert_eq!(cells(&job, now)[1..4], expected.map(Value::from), "{job}");
        }
    }
}
