//! Mistakes in the spec of a job, alone or in the template of a cron job.

use serde_json::Value;

use super::policies;
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::pod::spec::validate_template;
use crate::strategy::validation::{Errors, subdomain};

/// The longest lists of indexes that a status may have to hold.
const MOST_INDEXES: i64 = 100_000;
/// The limits of jobs with more completions than that, whose failures are counted for each index.
const MOST_AT_ONCE: i64 = 10_000;

const MANAGED_BY_LENGTH: usize = 63;
const PATH_CHARACTERS: &str =
    r"Invalid path (regex used for validation is '[A-Za-z0-9/\-._~%!$&'()*+,;=:]+')";

/// Mistakes in `spec`; `at` is its path.
pub(super) fn validate(errors: &mut Errors, at: &str, spec: &Value) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        errors.not_negative(format!("{at}.{field}"), &spec[field]);
    }
    if !spec["maxFailedIndexes"].is_null() && spec["backoffLimitPerIndex"].is_null() {
        errors.required(
            format!("{at}.backoffLimitPerIndex"),
            "when maxFailedIndexes is specified",
        );
    }
    if !spec["managedBy"].is_null() {
        managed_by(errors, &format!("{at}.managedBy"), &spec["managedBy"]);
    }
    completion_mode(errors, at, spec);
    if !spec["podFailurePolicy"].is_null() {
        policies::pod_failure(errors, &format!("{at}.podFailurePolicy"), spec);
    }
    if !spec["successPolicy"].is_null() {
        let path = format!("{at}.successPolicy");
        if spec["completionMode"] == "Indexed" {
            policies::success(errors, &path, spec);
        } else {
            errors.add(
                path,
                &spec["successPolicy"],
                "requires indexed completion mode",
            );
        }
    }
    if !spec["podReplacementPolicy"].is_null() {
        let both: &[&str] = &["Failed", "TerminatingOrFailed"];
        let supported = if spec["podFailurePolicy"].is_null() {
            both
        } else {
            &both[..1]
        };
        errors.one_of(
            format!("{at}.podReplacementPolicy"),
            &spec["podReplacementPolicy"],
            supported,
        );
    }
    let template = &spec["template"];
    validate_template(errors, &format!("{at}.template"), template);
    let policy = &template["spec"]["restartPolicy"];
    let path = format!("{at}.template.spec.restartPolicy");
    match text(policy) {
        "" | "Always" => errors.required(path, r#"valid values: "OnFailure", "Never""#),
        "OnFailure" if !spec["podFailurePolicy"].is_null() => errors.add(
            path,
            policy,
            r#"only "Never" is supported when podFailurePolicy is specified"#,
        ),
        _ => errors.one_of(path, policy, &["OnFailure", "Never"]),
    }
}

/// The name of a controller with the domain of its maker: `example.com/mycontroller`.
fn managed_by(errors: &mut Errors, at: &str, value: &Value) {
    let name = text(value);
    match name.split_once('/') {
        _ if name.is_empty() => errors.required(at, ""),
        Some((domain, path)) if !domain.is_empty() && !path.is_empty() => {
            errors.invalid(at, domain, subdomain(domain));
            let good = |c: char| c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:/%".contains(c);
            if !path.chars().all(good) {
                errors.add(at, &path.into(), PATH_CHARACTERS);
            }
        }
        _ => errors.add(
            at,
            value,
            "must be a domain-prefixed path (such as \"acme.io/foo\")",
        ),
    }
    if name.len() > MANAGED_BY_LENGTH {
        errors
            .0
            .push(FieldError::too_long(at, MANAGED_BY_LENGTH, "bytes"));
    }
}

/// What the completion mode demands and forbids.
fn completion_mode(errors: &mut Errors, at: &str, spec: &Value) {
    let mode = &spec["completionMode"];
    if !mode.is_null() {
        let path = format!("{at}.completionMode");
        errors.one_of(path, mode, &["NonIndexed", "Indexed"]);
    }
    if mode == "Indexed" {
        indexed(errors, at, spec);
    } else if matches!(text(mode), "" | "NonIndexed") {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if !spec[field].is_null() {
                let path = format!("{at}.{field}");
                errors.add(path, &spec[field], "requires indexed completion mode");
            }
        }
    }
}

fn indexed(errors: &mut Errors, at: &str, spec: &Value) {
    let number = |field: &str| spec[field].as_i64();
    let mut at_most = |field: &str, limit: i64, suffix: &str| {
        if number(field).is_some_and(|n| n > limit) {
            errors.add(
                format!("{at}.{field}"),
                &spec[field],
                &format!("must be less than or equal to {limit}{suffix}"),
            );
        }
    };
    at_most(
        "parallelism",
        MOST_INDEXES,
        " when completion mode is Indexed",
    );
    at_most("maxFailedIndexes", MOST_INDEXES, "");
    let many = number("completions").is_some_and(|n| n > MOST_INDEXES);
    let per_index = number("backoffLimitPerIndex").is_some();
    if many && per_index {
        let suffix = " when completions are above 100000 and used with backoff limit per index";
        at_most("parallelism", MOST_AT_ONCE, suffix);
        at_most("maxFailedIndexes", MOST_AT_ONCE, suffix);
    }
    match (number("completions"), number("maxFailedIndexes")) {
        (None, _) => errors.required(
            format!("{at}.completions"),
            "when completion mode is Indexed",
        ),
        (Some(completions), Some(failed)) if failed > completions => errors.add(
            format!("{at}.maxFailedIndexes"),
            &failed.into(),
            "must be less than or equal to completions",
        ),
        (Some(_), None) if many && per_index => errors.required(
            format!("{at}.maxFailedIndexes"),
            "must be specified when completions is above 100000",
        ),
        _ => {}
    }
}
