//! Jobs and cron jobs, a table for what a spec may say, what may change, and what may be reported.

use serde_json::{Value, json};

use super::{CronJob, Job};
use crate::resource::Subresource;
use crate::strategy::Strategy as _;
use crate::strategy::testing::{created, each_is_refused, lines, template, updated, with};

const STATUS: Option<Subresource> = Some(Subresource::Status);

fn job(spec: &[(&str, Value)]) -> Value {
    let object = json!({ "metadata": { "name": "j", "uid": "u" }, "spec": { "template": template("Never") } });
    created(&Job, "batch/v1", "Job", with(&object, spec))
}

fn indexed() -> Value {
    job(&[
        ("/spec/completionMode", json!("Indexed")),
        ("/spec/completions", json!(5)),
        ("/spec/parallelism", json!(5)),
        ("/spec/backoffLimitPerIndex", json!(1)),
    ])
}

fn none() -> Vec<String> {
    Vec::new()
}

#[test]
fn a_job_gets_what_kubernetes_gives_it() {
    let object = job(&[]);
    let labels = json!({ "a": "b", "controller-uid": "u", "batch.kubernetes.io/controller-uid": "u", "job-name": "j", "batch.kubernetes.io/job-name": "j" });
    assert_eq!(object["spec"]["template"]["metadata"]["labels"], labels);
    assert_eq!(
        object["spec"]["selector"],
        json!({ "matchLabels": { "batch.kubernetes.io/controller-uid": "u" } })
    );
    assert_eq!(object["metadata"]["labels"], json!({ "a": "b" }));
    for (field, value) in [
        ("completions", json!(1)),
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
    ] {
        assert_eq!(object["spec"][field], value, "{field}");
    }
    assert!(job(&[("/spec/parallelism", json!(2))])["spec"]["completions"].is_null());
    let policy = json!({ "rules": [{ "action": "Ignore", "onPodConditions": [{ "type": "X" }] }] });
    let with_policy = job(&[("/spec/podFailurePolicy", policy)]);
    assert_eq!(with_policy["spec"]["podReplacementPolicy"], "Failed");
    assert_eq!(lines(&Job.validate(&with_policy)), none());
}

#[test]
#[rustfmt::skip] // A table.
fn a_job_is_checked() {
    let at_least = |field: &str| format!("spec.{field}: Invalid value: -1: must be greater than or equal to 0");
    for field in ["parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"] {
        each_is_refused(&[(&format!("/spec/{field}"), json!(-1), &at_least(field))], &job(&[]), |object| Job.validate(object));
    }
    each_is_refused(&[
        ("/spec/template/metadata/labels/job-name", json!("x"), r#"spec.template.metadata.labels[job-name]: Invalid value: {"a":"b","batch.kubernetes.io/controller-uid":"u","batch.kubernetes.io/job-name":"j","controller-uid":"u","job-name":"x"}: must be 'j'"#),
        ("/spec/selector/matchLabels/x", json!("y"), r#"spec.selector: Invalid value: {"matchLabels":{"batch.kubernetes.io/controller-uid":"u","x":"y"}}: `selector` not auto-generated"#),
        ("/spec/selector", Value::Null, "spec.selector: Required value"),
        ("/spec/completionMode", json!("x"), r#"spec.completionMode: Unsupported value: "x": supported values: "NonIndexed", "Indexed""#),
        ("/spec/maxFailedIndexes", json!(1), "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified"),
        ("/spec/backoffLimitPerIndex", json!(1), "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode"),
        ("/spec/successPolicy", json!({}), "spec.successPolicy: Invalid value: {}: requires indexed completion mode"),
        ("/spec/managedBy", json!("x"), r#"spec.managedBy: Invalid value: "x": must be a domain-prefixed path (such as "acme.io/foo")"#),
        ("/spec/managedBy", json!(format!("a.io/{}", "x".repeat(60))), "spec.managedBy: Too long: may not be more than 63 bytes"),
        ("/spec/podReplacementPolicy", json!("x"), r#"spec.podReplacementPolicy: Unsupported value: "x": supported values: "Failed", "TerminatingOrFailed""#),
        ("/spec/template/spec/restartPolicy", json!("Always"), r#"spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never""#),
        ("/spec/template/spec/containers", json!([]), "spec.template.spec.containers: Required value"),
    ], &job(&[]), |object| Job.validate(object));
    each_is_refused(&[
        ("/spec/completions", Value::Null, "spec.completions: Required value: when completion mode is Indexed"),
        ("/spec/parallelism", json!(100_001), "spec.parallelism: Invalid value: 100001: must be less than or equal to 100000 when completion mode is Indexed"),
        ("/spec/maxFailedIndexes", json!(6), "spec.maxFailedIndexes: Invalid value: 6: must be less than or equal to completions"),
        ("/spec/completions", json!(100_001), "spec.maxFailedIndexes: Required value: must be specified when completions is above 100000"),
        ("/metadata/name", json!("j".repeat(62)), &format!("metadata.name: Invalid value: {0:?}: will not able to create pod with invalid DNS label: {0}-4", "j".repeat(62))),
    ], &indexed(), |object| Job.validate(object));
}

#[test]
#[rustfmt::skip] // A table.
fn the_policies_of_a_job_are_checked() {
    let rule = json!({ "action": "FailJob", "onExitCodes": { "operator": "In", "values": [1, 2], "containerName": "c" } });
    let good = with(&indexed(), &[("/spec/podFailurePolicy", json!({ "rules": [rule] })), ("/spec/podReplacementPolicy", json!("Failed"))]);
    let at = "spec.podFailurePolicy.rules";
    let codes = "/spec/podFailurePolicy/rules/0/onExitCodes";
    each_is_refused(&[
        ("/spec/podFailurePolicy/rules/0/action", json!(""), &format!(r#"{at}[0].action: Required value: valid values: ["Count" "FailIndex" "FailJob" "Ignore"]"#)),
        ("/spec/podFailurePolicy/rules/0/action", json!("x"), &format!(r#"{at}[0].action: Unsupported value: "x": supported values: "Count", "FailIndex", "FailJob", "Ignore""#)),
        (codes, Value::Null, &format!("{at}[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required")),
        ("/spec/podFailurePolicy/rules/0/onPodConditions", json!([{ "type": "X", "status": "True" }]), &format!("{at}[0]: Invalid value: specifying both OnExitCodes and OnPodConditions is not supported")),
        ("/spec/podFailurePolicy/rules/0/onPodConditions", json!([{ "type": "X", "status": "x" }]), &format!(r#"{at}[0].onPodConditions[0].status: Unsupported value: "x": supported values: "False", "True", "Unknown""#)),
        (&format!("{codes}/operator"), json!("x"), &format!(r#"{at}[0].onExitCodes.operator: Unsupported value: "x": supported values: "In", "NotIn""#)),
        (&format!("{codes}/values"), json!([]), &format!("{at}[0].onExitCodes.values: Invalid value: []: at least one value is required")),
        (&format!("{codes}/values"), json!([0]), &format!("{at}[0].onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator")),
        (&format!("{codes}/values"), json!([1, 1]), &format!("{at}[0].onExitCodes.values[1]: Duplicate value: 1")),
        (&format!("{codes}/values"), json!([2, 1]), &format!("{at}[0].onExitCodes.values: Invalid value: [2,1]: must be ordered")),
        (&format!("{codes}/containerName"), json!("x"), &format!(r#"{at}[0].onExitCodes.containerName: Invalid value: "x": must be one of the container or initContainer names in the pod template"#)),
        ("/spec/podReplacementPolicy", json!("TerminatingOrFailed"), r#"spec.podReplacementPolicy: Unsupported value: "TerminatingOrFailed": supported values: "Failed""#),
        ("/spec/template/spec/restartPolicy", json!("OnFailure"), r#"spec.template.spec.restartPolicy: Invalid value: "OnFailure": only "Never" is supported when podFailurePolicy is specified"#),
    ], &good, |object| Job.validate(object));
    let good = with(&indexed(), &[("/spec/successPolicy", json!({ "rules": [{ "succeededIndexes": "0,2-3", "succeededCount": 1 }] }))]);
    let at = "spec.successPolicy.rules";
    each_is_refused(&[
        ("/spec/successPolicy/rules", json!([]), &format!("{at}: Required value: at least one rules must be specified when the successPolicy is specified")),
        ("/spec/successPolicy/rules/0", json!({}), &format!("{at}[0]: Required value: at least one of succeededCount or succeededIndexes must be specified")),
        ("/spec/successPolicy/rules/0/succeededIndexes", json!("9"), &format!(r#"{at}[0].succeededIndexes: Invalid value: "9": error parsing succeededIndexes: too large index: "9""#)),
        ("/spec/successPolicy/rules/0/succeededCount", json!(4), &format!("{at}[0].succeededCount: Invalid value: 4: must be less than or equal to 3 (the number of indexes in the specified succeededIndexes field)")),
        ("/spec/successPolicy/rules/0/succeededCount", json!(6), &format!("{at}[0].succeededCount: Invalid value: 6: must be less than or equal to 5 (the number of specified completions)")),
    ], &good, |object| Job.validate(object));
}

#[test]
#[rustfmt::skip] // A table.
fn most_of_a_job_never_changes() {
    let good = job(&[]);
    each_is_refused(&[
        ("/spec/completions", json!(2), "spec.completions: Invalid value: 2: field is immutable"),
        ("/spec/managedBy", json!("a.io/b"), "spec.managedBy: Invalid value: \"a.io/b\": field is immutable"),
        ("/spec/completionMode", json!("Indexed"), "spec.completionMode: Invalid value: \"Indexed\": field is immutable"),
    ], &good, |object| Job.validate_update(None, object, &good));
    let image = [("/spec/template/spec/containers/0/image", json!("i:2"))];
    let fields = |new: &Value, old: &Value| -> Vec<String> { Job.validate_update(None, new, old).into_iter().map(|error| error.field).collect() };
    assert_eq!(fields(&with(&good, &image), &good), ["spec.template"]);
    let waiting = job(&[("/spec/suspend", json!(true))]);
    assert_eq!(fields(&with(&waiting, &image), &waiting), ["spec.template.spec"]);
    let steered = with(&waiting, &[
        ("/spec/template/spec/nodeSelector", json!({ "zone": "a" })),
        ("/spec/template/spec/affinity", json!({ "nodeAffinity": {} })),
        ("/spec/template/metadata/annotations", json!({ "x": "y" })),
        ("/spec/template/spec/containers/0/resources", json!({ "limits": { "cpu": "1" }, "requests": { "cpu": "1" } })),
    ]);
    assert_eq!(lines(&Job.validate_update(None, &steered, &waiting)), none());
    let running = with(&waiting, &[("/status", json!({ "startTime": "2026-01-01T00:00:00Z", "active": 1 }))]);
    assert_eq!(fields(&with(&running, &[("/spec/template/spec/nodeSelector", json!({ "zone": "a" }))]), &running), ["spec.template"]);
    let elastic = indexed();
    let grown = with(&elastic, &[("/spec/completions", json!(7)), ("/spec/parallelism", json!(7))]);
    assert_eq!(lines(&Job.validate_update(None, &grown, &elastic)), none());
    let grown = with(&elastic, &[("/spec/completions", json!(7))]);
    assert_eq!(lines(&Job.validate_update(None, &grown, &elastic)), ["spec.completions: Invalid value: 7: can only be modified in tandem with spec.parallelism"]);
}

#[test]
#[rustfmt::skip] // A table.
fn the_status_of_a_job_agrees_with_itself() {
    let start = "2026-01-01T00:00:00Z";
    let condition = |kinds: &[&str]| -> Value { kinds.iter().map(|kind| json!({ "type": kind, "status": "True" })).collect() };
    let good = with(&indexed(), &[("/status", json!({ "startTime": start, "active": 2, "failed": 1 }))]);
    each_is_refused(&[
        ("/status/active", json!(-1), "status.active: Invalid value: -1: must be greater than or equal to 0"),
        ("/status/ready", json!(3), "status.ready: Invalid value: 3: cannot set more ready pods than active"),
        ("/status/failed", json!(0), "status.failed: Invalid value: 0: cannot decrease the failed counter"),
        ("/status/conditions", condition(&["Complete", "Failed"]), "status.conditions: Invalid value: cannot set Complete=True and Failed=true conditions"),
        ("/status/conditions", condition(&["Failed"]), "status.conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition"),
        ("/status/conditions", condition(&["Complete"]), "status.conditions: Invalid value: cannot set Complete=True condition without the SuccessCriteriaMet=true condition"),
        ("/status/conditions", condition(&["Complete"]), "status.completionTime: Required value: completionTime is required for Complete jobs"),
        ("/status/conditions", condition(&["Failed"]), "status.active: Invalid value: 2: active>0 is invalid for finished job"),
        ("/status/completionTime", json!(start), &format!("status.completionTime: Invalid value: {start:?}: cannot set completionTime when there is no Complete=True condition")),
        ("/status/startTime", Value::Null, "status.startTime: Required value: startTime cannot be removed for unsuspended job"),
        ("/status/completedIndexes", json!("7"), "status.completedIndexes: Invalid value: \"7\": error parsing completedIndexes: too large index: \"7\""),
        ("/status/uncountedTerminatedPods", json!({ "failed": ["a", "a"] }), "status.uncountedTerminatedPods.failed[1]: Duplicate value: \"a\""),
    ], &good, |object| Job.validate_update(STATUS, object, &good));
    let done = with(&good, &[("/status", json!({ "startTime": start, "completionTime": start, "completedIndexes": "0-4", "conditions": condition(&["SuccessCriteriaMet", "Complete"]), "failed": 1 }))]);
    assert_eq!(lines(&Job.validate_update(STATUS, &done, &good)), none());
    each_is_refused(&[
        ("/status/conditions", json!([]), "status.conditions: Invalid value: cannot disable the terminal Complete=True condition"),
        ("/status/completionTime", json!("2026-01-01T00:00:01Z"), "status.completionTime: Invalid value: \"2026-01-01T00:00:01Z\": field is immutable"),
        ("/status/failedIndexes", json!("4"), "status.failedIndexes: Invalid value: \"4\": failedIndexes and completedIndexes overlap at index: 4"),
    ], &done, |object| Job.validate_update(STATUS, object, &done));
    let plain = with(&job(&[]), &[("/status/completedIndexes", json!("0"))]);
    assert_eq!(lines(&Job.validate_update(STATUS, &plain, &job(&[]))), ["status.completedIndexes: Invalid value: \"0\": cannot set non-empty completedIndexes when non-indexed completion mode"]);
    assert_eq!(updated(&Job, STATUS, good.clone(), &good), good);
}

fn cron_job() -> Value {
    let object = json!({ "metadata": { "name": "c" }, "spec": { "schedule": "*/5 * * * *", "jobTemplate": { "spec": { "template": template("Never") } } } });
    created(&CronJob, "batch/v1", "CronJob", object)
}

#[test]
#[rustfmt::skip] // A table.
fn a_cron_job_is_checked() {
    let good = cron_job();
    assert_eq!((&good["spec"]["successfulJobsHistoryLimit"], &good["spec"]["concurrencyPolicy"]), (&json!(3), &json!("Allow")));
    assert!(good["spec"]["jobTemplate"]["spec"]["backoffLimit"].is_null(), "a job gets it, its template does not");
    each_is_refused(&[
        ("/spec/schedule", json!(""), "spec.schedule: Required value"),
        ("/spec/schedule", json!("* * *"), "spec.schedule: Invalid value: \"* * *\": expected exactly 5 fields, found 3: [* * *]"),
        ("/spec/schedule", json!("TZ=UTC 0 * * * *"), "spec.schedule: Invalid value: \"TZ=UTC 0 * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead"),
        ("/spec/timeZone", json!(""), "spec.timeZone: Invalid value: \"\": timeZone must be nil or non-empty string"),
        ("/spec/timeZone", json!("No/Where"), "spec.timeZone: Invalid value: \"No/Where\": unknown time zone No/Where"),
        ("/spec/timeZone", json!("europe/berlin"), "spec.timeZone: Invalid value: \"europe/berlin\": unknown time zone europe/berlin"),
        ("/spec/timeZone", json!("../x"), "spec.timeZone: Invalid value: \"../x\": unknown time zone ../x"),
        ("/spec/timeZone", json!("Local"), "spec.timeZone: Invalid value: \"Local\": timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones"),
        ("/spec/startingDeadlineSeconds", json!(-1), "spec.startingDeadlineSeconds: Invalid value: -1: must be greater than or equal to 0"),
        ("/spec/failedJobsHistoryLimit", json!(-1), "spec.failedJobsHistoryLimit: Invalid value: -1: must be greater than or equal to 0"),
        ("/spec/concurrencyPolicy", json!("x"), "spec.concurrencyPolicy: Unsupported value: \"x\": supported values: \"Allow\", \"Forbid\", \"Replace\""),
        ("/spec/jobTemplate/spec/selector", json!({}), "spec.jobTemplate.spec.selector: Invalid value: {}: `selector` will be auto-generated"),
        ("/spec/jobTemplate/spec/manualSelector", json!(true), "spec.jobTemplate.spec.manualSelector: Unsupported value: true: supported values: \"nil\", \"false\""),
        ("/spec/jobTemplate/spec/completions", json!(-1), "spec.jobTemplate.spec.completions: Invalid value: -1: must be greater than or equal to 0"),
        ("/metadata/name", json!("c".repeat(53)), &format!("metadata.name: Invalid value: {:?}: must be no more than 52 bytes", "c".repeat(53))),
    ], &good, |object| CronJob.validate(object));
    for zone in ["UTC", "Europe/Berlin", "Etc/GMT+5"] {
        let zoned = with(&good, &[("/spec/timeZone", json!(zone))]);
        assert_eq!(lines(&CronJob.validate(&zoned)), none(), "{zone}");
    }
    let old = with(&good, &[("/spec/schedule", json!("TZ=UTC 0 * * * *")), ("/metadata/name", json!("c".repeat(53)))]);
    assert_eq!(lines(&CronJob.validate_update(None, &old, &old)), none());
    let cells = CronJob.cells(&good, jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(&cells[1..6], [json!("*/5 * * * *"), json!("<none>"), json!("False"), json!(0), json!("<none>")]);
}
