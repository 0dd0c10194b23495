//! How many requests of a priority level may run, and how many may wait.

use serde_json::{Value, json};

use super::conditions;
use crate::resource::Subresource;
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::Errors;
use crate::strategy::{Column, Strategy};
use crate::table;

/// How many requests of a level may run, and how many may wait.
pub struct PriorityLevelConfiguration;

const MOST_QUEUES: i64 = 10_000_000;

/// How many bits of a request's hash choose the queues of its flow.
const HASH_BITS: f64 = 60.0;

impl Strategy for PriorityLevelConfiguration {
    fn has_status(&self) -> bool {
        true
    }

    fn require_resource_version(&self) -> bool {
        true
    }

    fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let (name, spec) = (text(&object["metadata"]["name"]), &object["spec"]);
        let kind = &spec["type"];
        if (name == "exempt") != (kind == "Exempt") {
            let detail = "type must be 'Exempt' if and only if name is 'exempt'";
            errors.add("spec.type", &text(kind).into(), detail);
        }
        let (limited, exempt) = (&spec["limited"], &spec["exempt"]);
        match text(kind) {
            "Exempt" => {
                if !limited.is_null() {
                    let detail = "must be nil if the type is not Limited";
                    errors.0.push(FieldError::forbidden("spec.limited", detail));
                }
                shares(&mut errors, "spec.exempt", exempt);
            }
            "Limited" => {
                if !exempt.is_null() {
                    let detail = "must be nil if the type is Limited";
                    errors.0.push(FieldError::forbidden("spec.exempt", detail));
                }
                if limited.is_null() {
                    errors.required("spec.limited", "must not be empty when type is Limited");
                } else {
                    limits(&mut errors, "spec.limited", limited);
                }
            }
            _ => errors.one_of("spec.type", kind, &["Exempt", "Limited"]),
        }
        let fixed = json!({ "type": "Limited", "limited": {
            "nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": { "type": "Reject" } } });
        if name == "catch-all" && fixed != *spec {
            errors.add(
                "spec",
                spec,
                "spec of 'catch-all' must equal the fixed value",
            );
        }
        conditions(&mut errors, object);
        errors.0
    }

    fn validate_update(
        &self,
        sub: Option<Subresource>,
        object: &Value,
        _: &Value,
    ) -> Vec<FieldError> {
        if sub != Some(Subresource::Status) {
            return self.validate(object);
        }
        let mut errors = Errors::default();
        conditions(&mut errors, object);
        errors.0
    }

    fn columns(&self) -> Vec<Column> {
        table::columns("Name Type NominalConcurrencyShares Queues HandSize QueueLengthLimit Age")
    }

    fn cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        let (spec, limited) = (&object["spec"], &object["spec"]["limited"]);
        let shown = |value: &Value| {
            if value.is_null() {
                "<none>".into()
            } else {
                value.clone()
            }
        };
        let queuing = &limited["limitResponse"]["queuing"];
        vec![
            table::name(object),
            text(&spec["type"]).into(),
            shown(&limited["nominalConcurrencyShares"]),
            shown(&queuing["queues"]),
            shown(&queuing["handSize"]),
            shown(&queuing["queueLengthLimit"]),
            table::age(object, now),
        ]
    }
}

/// How much of the server a level may use, and how much of that it lends.
fn shares(errors: &mut Errors, at: &str, level: &Value) {
    let shares = &level["nominalConcurrencyShares"];
    if shares.as_i64().is_some_and(|shares| shares < 0) {
        errors.add(
            format!("{at}.nominalConcurrencyShares"),
            shares,
            "must be a non-negative integer",
        );
    }
    let percent = &level["lendablePercent"];
    if percent
        .as_i64()
        .is_some_and(|percent| !(0..=100).contains(&percent))
    {
        errors.add(
            format!("{at}.lendablePercent"),
            percent,
            "must be between 0 and 100, inclusive",
        );
    }
}

fn limits(errors: &mut Errors, at: &str, level: &Value) {
    shares(errors, at, level);
    let percent = &level["borrowingLimitPercent"];
    if percent.as_i64().is_some_and(|percent| percent < 0) {
        let detail = "if specified, must be a non-negative integer";
        errors.add(format!("{at}.borrowingLimitPercent"), percent, detail);
    }
    let (at, response) = (format!("{at}.limitResponse"), &level["limitResponse"]);
    let queuing = &response["queuing"];
    let place = format!("{at}.queuing");
    match text(&response["type"]) {
        "Reject" if !queuing.is_null() => {
            let detail = "must be nil if limited.limitResponse.type is not Limited";
            errors.0.push(FieldError::forbidden(place, detail));
        }
        "Reject" => {}
        "Queue" if queuing.is_null() => {
            errors.required(
                place,
                "must not be empty if limited.limitResponse.type is Limited",
            );
        }
        "Queue" => queues(errors, &place, queuing),
        _ => errors.one_of(
            format!("{at}.type"),
            &response["type"],
            &["Queue", "Reject"],
        ),
    }
}

fn queues(errors: &mut Errors, at: &str, queuing: &Value) {
    let number = |field: &str| queuing[field].as_i64().unwrap_or(0);
    let mut refuse = |field: &str, detail: &str| {
        errors.add(format!("{at}.{field}"), &number(field).into(), detail)
    };
    if number("queueLengthLimit") <= 0 {
        refuse("queueLengthLimit", "must be positive");
    }
    let (queues, hand) = (number("queues"), number("handSize"));
    if queues <= 0 {
        refuse("queues", "must be positive");
    } else if queues > MOST_QUEUES {
        refuse("queues", &format!("must not be greater than {MOST_QUEUES}"));
    }
    if hand <= 0 {
        refuse("handSize", "must be positive");
    } else if hand > queues {
        refuse(
            "handSize",
            &format!("should not be greater than queues ({queues})"),
        );
    } else if ((queues as f64).log2() * hand as f64).ceil() > HASH_BITS {
        let detail = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"
        );
        refuse("handSize", &detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::fields::tests::{check_new, check_update};

    fn level() -> Value {
        let queuing = json!({ "queues": 64, "handSize": 8, "queueLengthLimit": 50 });
        json!({ "metadata": { "name": "a" }, "spec": { "type": "Limited", "limited": {
            "nominalConcurrencyShares": 30, "lendablePercent": 0, "limitResponse": { "type": "Queue", "queuing": queuing } } } })
    }

    #[test]
    #[rustfmt::skip] // One mistake a line.
    fn a_level_says_how_many_requests_run_and_wait() {
        let (queuing, at) = ("/spec/limited/limitResponse/queuing", "spec.limited.limitResponse.queuing");
        check_new(&PriorityLevelConfiguration, &level(), &[
            ("/spec/type", json!("Exempt"), &["spec.type: Invalid value: \"Exempt\": type must be 'Exempt' if and only if name is 'exempt'", "spec.limited: Forbidden: must be nil if the type is not Limited"]),
            ("/spec/limited", Value::Null, &["spec.limited: Required value: must not be empty when type is Limited"]),
            ("/spec/limited/nominalConcurrencyShares", json!(-1), &["spec.limited.nominalConcurrencyShares: Invalid value: -1: must be a non-negative integer"]),
            ("/spec/limited/lendablePercent", json!(101), &["spec.limited.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive"]),
            ("/spec/limited/limitResponse/type", json!("Reject"), &[&format!("{at}: Forbidden: must be nil if limited.limitResponse.type is not Limited")]),
            (&format!("{queuing}/queueLengthLimit"), json!(0), &[&format!("{at}.queueLengthLimit: Invalid value: 0: must be positive")]),
            (&format!("{queuing}/handSize"), json!(65), &[&format!("{at}.handSize: Invalid value: 65: should not be greater than queues (64)")]),
            (&format!("{queuing}/handSize"), json!(11), &[&format!("{at}.handSize: Invalid value: 11: required entropy bits of deckSize 64 and handSize 11 should not be greater than 60")]),
        ]);
        check_update(&PriorityLevelConfiguration, &level(), &[
            ("/spec/limited/lendablePercent", json!(101), &["spec.limited.lendablePercent: Invalid value: 101: must be between 0 and 100, inclusive"]),
        ]);
    }
}
