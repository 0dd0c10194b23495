//! Cron jobs.

use jiff::tz::TimeZone;
use serde_json::Value;

use super::{job, job_spec, schedule};
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{containers_text, selector_text, text};
use crate::strategy::validation::{Errors, items};
use crate::strategy::workload::default_template;
use crate::strategy::{Column, Strategy};
use crate::table;

/// Cron jobs.
pub struct CronJob;

/// The longest name: that of a job, less the 11 characters of time that each of its jobs gets.
const LONGEST_NAME: usize = 52;

/// A time zone by its name, spelled as the time zone database does.
pub(super) fn zone(name: &str) -> Option<TimeZone> {
    let zone = TimeZone::get(name).ok()?;
    (name == "UTC" || zone.iana_name() == Some(name)).then_some(zone)
}

fn time_zone(errors: &mut Errors, value: &Value) {
    let at = "spec.timeZone";
    let name = text(value);
    let unknown = format!("unknown time zone {name}");
    let good = |c: char| c.is_ascii_alphanumeric() || ".-_+".contains(c);
    let is_part = |part: &str| {
        (1..=14).contains(&part.len())
            && !matches!(part, "." | "..")
            && !part.starts_with('-')
            && part.chars().all(good)
    };
    if name.is_empty() {
        errors.add(at, value, "timeZone must be nil or non-empty string");
    } else if !name.split('/').all(is_part) {
        errors.add(at, value, &unknown);
    } else {
        if name.eq_ignore_ascii_case("Local") {
            errors.add(
                at,
                value,
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
            );
        }
        if name != "Local" && zone(name).is_none() {
            errors.add(at, value, &unknown);
        }
    }
}

/// Mistakes in the schedule; `zoned` is whether it may name a time zone itself, as old ones may.
fn schedule_errors(errors: &mut Errors, spec: &Value, zoned: bool) {
    let at = "spec.schedule";
    let value = &spec["schedule"];
    let schedule = text(value);
    if schedule.is_empty() {
        errors.required(at, "");
        return;
    }
    if let Err(wrong) = schedule::check(schedule) {
        errors.add(at, value, &wrong);
    }
    if !schedule.contains("TZ") {
        return;
    }
    if !zoned {
        errors.add(
            at,
            value,
            "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        );
    } else if !spec["timeZone"].is_null() {
        errors.add(
            at,
            value,
            "cannot use both timeZone field and TZ or CRON_TZ in schedule",
        );
    }
}

fn validate(spec: &Value, old: Option<&Value>) -> Errors {
    let mut errors = Errors::default();
    let zoned = old.is_some_and(|old| text(&old["schedule"]).contains("TZ"));
    schedule_errors(&mut errors, spec, zoned);
    let zone = &spec["timeZone"];
    if !zone.is_null() && old.is_none_or(|old| old["timeZone"] != *zone) {
        time_zone(&mut errors, zone);
    }
    for field in [
        "startingDeadlineSeconds",
        "successfulJobsHistoryLimit",
        "failedJobsHistoryLimit",
    ] {
        errors.not_negative(format!("spec.{field}"), &spec[field]);
    }
    let policy = &spec["concurrencyPolicy"];
    if text(policy).is_empty() {
        errors.required("spec.concurrencyPolicy", "");
    } else {
        let known = ["Allow", "Forbid", "Replace"];
        errors.one_of("spec.concurrencyPolicy", policy, &known);
    }
    let job = &spec["jobTemplate"]["spec"];
    job_spec::validate(&mut errors, "spec.jobTemplate.spec", job);
    if !job["selector"].is_null() {
        errors.add(
            "spec.jobTemplate.spec.selector",
            &job["selector"],
            "`selector` will be auto-generated",
        );
    }
    if job["manualSelector"] == true {
        errors.0.push(FieldError::not_supported(
            "spec.jobTemplate.spec.manualSelector",
            &job["manualSelector"],
            &["nil", "false"],
        ));
    }
    errors
}

impl Strategy for CronJob {
    fn has_status(&self) -> bool {
        true
    }

    fn default(&self, object: &mut Value) {
        let job = object
            .get_mut("spec")
            .and_then(|spec| spec.get_mut("jobTemplate"))
            .and_then(|template| template.get_mut("spec"));
        if let Some(job) = job {
            default_template(job);
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = validate(&object["spec"], None);
        let name = &object["metadata"]["name"];
        if text(name).len() > LONGEST_NAME {
            let detail = format!("must be no more than {LONGEST_NAME} bytes");
            errors.add("metadata.name", name, &detail);
        }
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        if sub == Some(Subresource::Status) {
            return Vec::new();
        }
        let mut errors = validate(&object["spec"], Some(&old["spec"]));
        if object["spec"]["jobTemplate"] == old["spec"]["jobTemplate"] {
            // A template from before a rule stays as it is.
            let at = "spec.jobTemplate.spec.template.spec.";
            errors.0.retain(|error| !error.field.starts_with(at));
        }
        errors.0
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = Vec::new();
        let generation = |object: &Value| object["metadata"]["generation"].clone();
        if old.is_none() {
            warnings.extend(job::name_warning(object));
        }
        if old.is_none_or(|old| generation(old) != generation(object)) {
            let job = &object["spec"]["jobTemplate"]["spec"];
            warnings.extend(job::spec_warnings("spec.jobTemplate.spec", job));
        }
        if old.is_some() && text(&object["spec"]["schedule"]).contains("TZ") {
            warnings.push("cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details".to_owned());
        }
        warnings
    }

    fn columns(&self) -> Vec<Column> {
        let names = "Name Schedule Timezone Suspend Active# Last_Schedule Age Containers* Images* Selector*";
        let mut columns = table::columns(names);
        columns[3].kind = "boolean".to_owned();
        columns
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let job = &spec["jobTemplate"]["spec"];
        let (names, images) = containers_text(&job["template"]);
        let suspend = spec["suspend"].as_bool();
        let last = status["lastScheduleTime"].as_str();
        vec![
            table::name(object),
            text(&spec["schedule"]).into(),
            spec["timeZone"].as_str().unwrap_or("<none>").into(),
            suspend
                .map_or("<unset>", |suspend| if suspend { "True" } else { "False" })
                .into(),
            items(&status["active"]).count().into(),
            last.map_or("<none>".to_owned(), |last| table::since(Some(last), now))
                .into(),
            table::age(object, now),
            names.into(),
            images.into(),
            selector_text(&job["selector"]).into(),
        ]
    }
}
