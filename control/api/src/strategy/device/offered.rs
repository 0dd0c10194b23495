//! One device of a slice.

use serde_json::{Map, Value};

use super::slice::{WHERE, counters, places};
use super::{key_and_value, size};
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::fields::required_text;
use crate::strategy::validation::{Errors, dns_label, items};

const MOST_ATTRIBUTES: usize = 32;

const MOST_TAINTS: usize = 16;

const LONGEST_VALUE: usize = 64;

/// Mistakes in a device; where `chooses_nodes`, each device of the slice says itself on which nodes it is.
pub(super) fn validate(errors: &mut Errors, at: &str, device: &Value, chooses_nodes: bool) {
    required_text(errors, &format!("{at}.name"), &device["name"], dns_label);
    let attributes = || device["attributes"].as_object().into_iter().flatten();
    let capacities = device["capacity"].as_object().map_or(0, Map::len);
    let all = attributes().count() + capacities;
    if all > MOST_ATTRIBUTES {
        let detail = format!(
            "the total number of attributes and capacities must not exceed {MOST_ATTRIBUTES}"
        );
        errors.add(at, &all.into(), &detail);
    }
    for (name, value) in attributes() {
        attribute(errors, &format!("{at}.attributes[{name}]"), value);
    }
    size(
        errors,
        &format!("{at}.taints"),
        &device["taints"],
        MOST_TAINTS,
    );
    for (index, taint) in items(&device["taints"]) {
        let at = format!("{at}.taints[{index}]");
        if text(&taint["key"]).is_empty() {
            errors.required(format!("{at}.key"), "");
        }
        key_and_value(errors, &at, taint);
        match text(&taint["effect"]) {
            "" => errors.required(format!("{at}.effect"), ""),
            _ => errors.one_of(
                format!("{at}.effect"),
                &taint["effect"],
                &["NoExecute", "NoSchedule", "None"],
            ),
        }
    }
    for (index, consumed) in items(&device["consumesCounters"]) {
        counters(
            errors,
            &format!("{at}.consumesCounters[{index}]"),
            consumed,
            "counterSet",
        );
    }
    let fields = &WHERE[..3];
    if chooses_nodes {
        let given = places(errors, at, device, fields, "must not be empty");
        let one = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
        match given.len() {
            0 => errors.required(at, one),
            1 => {}
            _ => errors.add(at, &format!("{{{}}}", given.join(", ")).into(), one),
        }
    } else if fields.iter().any(|field| !device[*field].is_null()) {
        let detail = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in the ResourceSlice spec";
        errors.add(at, &Value::Null, detail);
    }
}

fn attribute(errors: &mut Errors, at: &str, attribute: &Value) {
    let values = attribute.as_object().map_or(0, Map::len);
    if values != 1 {
        let shown = if values == 0 {
            &Value::from("")
        } else {
            attribute
        };
        errors.add(at, shown, "exactly one value must be specified");
    }
    for (kind, list) in [("string", "strings"), ("version", "versions")] {
        let single = [(format!("{at}.{kind}"), &attribute[kind])];
        let several =
            items(&attribute[list]).map(|(index, value)| (format!("{at}.{list}[{index}]"), value));
        for (at, value) in single
            .into_iter()
            .chain(several)
            .filter(|(_, value)| !value.is_null())
        {
            if kind == "version" && !is_version(text(value)) {
                let detail = "must be a string compatible with semver.org spec 2.0.0";
                errors.add(&at, value, detail);
            }
            if text(value).len() > LONGEST_VALUE {
                errors
                    .0
                    .push(FieldError::too_long(at, LONGEST_VALUE, "bytes"));
            }
        }
    }
}

/// Whether a text is a semantic version: three numbers, then perhaps a pre-release and a build.
fn is_version(version: &str) -> bool {
    let number = |part: &str| {
        part == "0"
            || !part.starts_with('0')
                && !part.is_empty()
                && part.bytes().all(|c| c.is_ascii_digit())
    };
    let word = |part: &str| {
        !part.is_empty() && part.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    let digits = |part: &str| part.bytes().all(|c| c.is_ascii_digit());
    let (rest, build) = version
        .split_once('+')
        .map_or((version, None), |(rest, build)| (rest, Some(build)));
    let (core, release) = rest
        .split_once('-')
        .map_or((rest, None), |(core, release)| (core, Some(release)));
    core.split('.').count() == 3
        && core.split('.').all(number)
        && release.is_none_or(|text| {
            text.split('.')
                .all(|part| word(part) && (!digits(part) || number(part)))
        })
        && build.is_none_or(|text| text.split('.').all(word))
}
