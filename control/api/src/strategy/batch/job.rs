//! Jobs.

use serde_json::{Value, json};

use super::{job_spec, job_status, job_update, print};
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::{self, object_at, text};
use crate::strategy::pod::warnings;
use crate::strategy::validation::{Errors, dns_label, items, label_selector, selector_matches};
use crate::strategy::warnings::go_list;
use crate::strategy::workload::{default_template, labels_from_template};
use crate::strategy::{Column, Context, Strategy};

/// Jobs.
pub struct Job;

/// The label that selects the pods of a job.
const UID: &str = "batch.kubernetes.io/controller-uid";
/// The labels with the job's uid and with its name, the older name of each first.
const UID_LABELS: [&str; 2] = ["controller-uid", UID];
const NAME_LABELS: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];

/// The counts of a status that Go leaves out when they are zero.
const OPTIONAL_COUNTS: [&str; 3] = ["active", "succeeded", "failed"];

/// Whether a condition of the job is `True`.
pub(super) fn is(job: &Value, condition: &str) -> bool {
    items(&job["status"]["conditions"])
        .any(|(_, entry)| entry["type"] == condition && entry["status"] == "True")
}

/// Gives a job's pods its uid and name as labels, and lets it select them by its uid; labels that are there stay.
///
/// A job whose own labels contradict is refused by [`generated_selector`].
fn generate_selector(job: &mut Value) {
    let name = job["metadata"]["name"].clone();
    let uid = job["metadata"]["uid"].clone();
    let uid = if uid.is_null() { "".into() } else { uid };
    let template = &mut job["spec"]["template"];
    object_at(template, "metadata");
    let labels = object_at(&mut template["metadata"], "labels");
    for (keys, value) in [(NAME_LABELS, &name), (UID_LABELS, &uid)] {
        for key in keys {
            labels.entry(key).or_insert_with(|| value.clone());
        }
    }
    object_at(&mut job["spec"], "selector");
    object_at(&mut job["spec"]["selector"], "matchLabels")
        .entry(UID)
        .or_insert(uid);
}

/// Mistakes in the labels and the selector of a job that does not choose them itself.
///
/// `prefixed` is whether the labels with a prefix are demanded too: jobs from before them have none.
fn generated_selector(errors: &mut Errors, job: &Value, prefixed: bool) {
    let (spec, meta) = (&job["spec"], &job["metadata"]);
    if spec["manualSelector"] == true || spec["selector"].is_null() {
        return;
    }
    if text(&meta["uid"]).is_empty() {
        errors.required("metadata.uid", "");
    }
    let labels = &spec["template"]["metadata"]["labels"];
    let mut expected = json!({});
    for (number, (key, value)) in UID_LABELS
        .map(|key| (key, &meta["uid"]))
        .into_iter()
        .chain(NAME_LABELS.map(|key| (key, &meta["name"])))
        .enumerate()
    {
        if number % 2 == 1 && !prefixed {
            continue;
        }
        expected[key] = value.clone();
        let at = format!("spec.template.metadata.labels[{key}]");
        match labels.get(key) {
            None => errors.required(at, &format!("must be '{}'", text(value))),
            Some(label) if label != value => {
                errors.add(at, labels, &format!("must be '{}'", text(value)));
            }
            Some(_) => {}
        }
    }
    if !selector_matches(&spec["selector"], &expected) {
        errors.add(
            "spec.selector",
            &spec["selector"],
            "`selector` not auto-generated",
        );
    }
}

/// Mistakes in a job, new or not.
fn validate(job: &Value, prefixed: bool) -> Errors {
    let mut errors = Errors::default();
    let spec = &job["spec"];
    generated_selector(&mut errors, job, prefixed);
    job_spec::validate(&mut errors, "spec", spec);
    let selector = &spec["selector"];
    let labels = &spec["template"]["metadata"]["labels"];
    if selector.is_null() {
        errors.required("spec.selector", "");
    } else {
        label_selector(&mut errors, "spec.selector", selector);
    }
    if selector.is_null() || !selector_matches(selector, labels) {
        let shown = if labels.is_null() { &json!({}) } else { labels };
        errors.add(
            "spec.template.metadata.labels",
            shown,
            "`selector` does not match template `labels`",
        );
    }
    let completions = spec["completions"].as_i64().unwrap_or(0);
    if spec["completionMode"] == "Indexed" && completions > 0 {
        // The index is a part of each pod's host name, of which the last is the longest.
        let name = text(&job["metadata"]["name"]);
        let host = format!("{name}-{}", completions - 1);
        if !dns_label(&host).is_empty() {
            let detail = format!("will not able to create pod with invalid DNS label: {host}");
            errors.add("metadata.name", &job["metadata"]["name"], &detail);
        }
    }
    errors
}

/// The warnings about the spec of a job at `at`.
pub(super) fn spec_warnings(at: &str, spec: &Value) -> Vec<String> {
    let mut all = Vec::new();
    let above = |field: &str, limit: i64| spec[field].as_i64().is_some_and(|n| n > limit);
    if spec["completionMode"] == "Indexed"
        && above("completions", 100_000)
        && above("parallelism", 10_000)
    {
        all.push(format!("{at}: In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, a Kubernetes cluster might not be able to track completedIndexes"));
    }
    warnings::of_template(&mut all, &format!("{at}.template."), &spec["template"]);
    all
}

/// The warning about a name that is no DNS label, which pods' host names have to be.
pub(super) fn name_warning(object: &Value) -> Option<String> {
    let wrong = dns_label(text(&object["metadata"]["name"]));
    (!wrong.is_empty()).then(|| format!("metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended: {}", go_list(&wrong)))
}

impl Strategy for Job {
    fn has_status(&self) -> bool {
        true
    }

    fn default(&self, object: &mut Value) {
        default_template(&mut object["spec"]);
        labels_from_template(object);
        let spec = object_at(object, "spec");
        if !spec.contains_key("parallelism") && !spec.contains_key("completions") {
            spec.insert("completions".to_owned(), 1.into());
        }
        let replacement = if spec.contains_key("podFailurePolicy") {
            "Failed"
        } else {
            "TerminatingOrFailed"
        };
        for (field, value) in [
            ("parallelism", json!(1)),
            ("backoffLimit", json!(6)),
            ("completionMode", json!("NonIndexed")),
            ("suspend", json!(false)),
            ("manualSelector", json!(false)),
            ("podReplacementPolicy", json!(replacement)),
        ] {
            spec.entry(field).or_insert(value);
        }
    }

    fn prepare_for_create(&self, _: &Context, object: &mut Value) {
        if object["spec"]["manualSelector"] != true {
            generate_selector(object);
        }
        // Its feature gate, WorkloadWithJob, is off.
        object_at(object, "spec").remove("scheduling");
        object["status"] = json!({});
        common::first_generation(object);
    }

    fn prepare_for_update(
        &self,
        _: &Context,
        sub: Option<Subresource>,
        object: &mut Value,
        old: &Value,
    ) {
        if old["spec"]["scheduling"].is_null() {
            object_at(object, "spec").remove("scheduling");
        }
        common::split_update(sub, object, old, true);
        if sub == Some(Subresource::Status)
            && let Some(status) = object["status"].as_object_mut()
        {
            status.retain(|field, value| *value != 0 || !OPTIONAL_COUNTS.contains(&field.as_str()));
        }
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        validate(object, true).0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        old: &Value,
    ) -> Vec<FieldError> {
        if sub == Some(Subresource::Status) {
            return job_status::validate_update(object, old);
        }
        let labels = &old["spec"]["template"]["metadata"]["labels"];
        let prefixed = !labels[UID_LABELS[1]].is_null() && !labels[NAME_LABELS[1]].is_null();
        let mut errors = validate(object, prefixed);
        if object["spec"]["template"] == old["spec"]["template"] {
            // A template from before a rule stays as it is.
            errors
                .0
                .retain(|error| !error.field.starts_with("spec.template.spec."));
        }
        job_update::validate(&mut errors, object, old);
        errors.0
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let generation = |object: &Value| object["metadata"]["generation"].clone();
        match old {
            Some(old) if generation(old) == generation(object) => Vec::new(),
            Some(_) => spec_warnings("spec", &object["spec"]),
            None => name_warning(object)
                .into_iter()
                .chain(spec_warnings("spec", &object["spec"]))
                .collect(),
        }
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let succeeded = object["status"]["succeeded"].as_i64().unwrap_or(0);
        vec![("status.successful", succeeded.to_string())]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["status.successful"]
    }

    fn columns(&self) -> Vec<Column> {
        print::columns()
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        print::cells(object, now)
    }
}
