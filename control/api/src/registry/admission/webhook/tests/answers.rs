//! Answers that are valid, answers that are not, and refusals: tables.

use serde_json::{Value, json};

use super::base64;
use crate::registry::admission::webhook::review::{Role, Version, check, denial};

fn checked(version: Version, role: Role, answer: Value) -> Result<Vec<u8>, String> {
    let written = serde_json::from_value(answer).expect("a review");
    let response = check(version, "u", role, written);
    response
        .map(|response| response.patch)
        .map_err(|error| error.to_string())
}

#[test]
fn answers_are_checked_as_in_kubernetes() {
    let (patch, json_patch) = (base64("[]"), "JSONPatch");
    let answer = |response: Value| json!({ "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response });
    #[rustfmt::skip] // A table.
    let cases = [
        (Role::Mutating,   answer(json!({ "uid": "u", "allowed": true })),                        Ok("")),
        (Role::Mutating,   answer(json!({ "uid": "u", "patch": patch, "patchType": json_patch })), Ok("[]")),
        (Role::Mutating,   answer(json!({ "uid": "u", "patch": patch })),                         Err("webhook returned response.patch but not response.patchType")),
        (Role::Mutating,   answer(json!({ "uid": "u", "patchType": json_patch })),                Err("webhook returned response.patchType but not response.patch")),
        (Role::Mutating,   answer(json!({ "uid": "u", "patch": patch, "patchType": "" })),        Err("webhook returned invalid response.patchType of \"\"")),
        (Role::Mutating,   answer(json!({ "uid": "u", "patch": patch, "patchType": "Merge" })),   Err("unsupported patch type \"Merge\"")),
        (Role::Mutating,   answer(json!({ "uid": "u", "patch": "?" })),                           Err("response.patch is not base64")),
        (Role::Validating, answer(json!({ "uid": "u", "patch": patch })),                         Err("validating webhook may not return response.patch")),
        (Role::Validating, answer(json!({ "uid": "u", "patchType": json_patch })),                Err("validating webhook may not return response.patchType")),
        (Role::Validating, answer(json!({ "uid": "v" })),                                         Err("expected response.uid=\"u\", got \"v\"")),
        (Role::Validating, answer(json!({})),                                                     Err("expected response.uid=\"u\", got \"\"")),
        (Role::Validating, answer(Value::Null),                                                   Err("webhook response was absent")),
        (Role::Validating, json!({ "response": { "uid": "u" } }),                                 Err("expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /, Kind=")),
        (Role::Validating, json!({ "kind": "X", "apiVersion": "v1", "response": { "uid": "u" } }), Err("expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /v1, Kind=X")),
    ];
    for (role, answer, expected) in cases {
        let expected = expected.map(|patch| patch.as_bytes().to_vec());
        let checked = checked(Version::V1, role, answer.clone());
        assert_eq!(checked, expected.map_err(str::to_owned), "{answer}");
    }
}

#[test]
fn answers_of_v1beta1_may_lack_uid_kind_and_patch_type() {
    let answer = json!({ "response": { "allowed": true, "patch": base64("[]") } });
    let patch = |role| checked(Version::V1beta1, role, answer.clone());
    assert_eq!(patch(Role::Mutating), Ok(b"[]".to_vec()));
    assert_eq!(patch(Role::Validating), Ok(Vec::new()));
}

#[test]
fn the_first_version_that_is_known_is_used() {
    let of = |versions: &[&str]| {
        let versions: Vec<_> = versions
            .iter()
            .map(|version| (*version).to_owned())
            .collect();
        Version::of(&versions)
    };
    assert_eq!(of(&["v2", "v1beta1", "v1"]), Some(Version::V1beta1));
    assert_eq!(of(&["v1", "v1beta1"]), Some(Version::V1));
    assert_eq!(of(&["v2"]), None);
}

#[test]
fn a_refusal_has_the_code_and_the_words_of_the_webhook() {
    #[rustfmt::skip] // A table.
    let cases = [
        (Value::Null,                                               400, "",           " without explanation"),
        (json!({ "message": "no" }),                                400, "",           ": no"),
        (json!({ "reason": "Forbidden" }),                          400, "Forbidden",  ": Forbidden"),
        (json!({ "reason": "my own words" }),                       400, "",           ": my own words"),
        (json!({ "message": "no", "reason": "Invalid", "code": 422 }), 422, "Invalid", ": no"),
        (json!({ "code": 200 }),                                    400, "",           " without explanation"),
        (json!({ "code": 399 }),                                    400, "",           " without explanation"),
        (json!({ "code": 503 }),                                    503, "",           " without explanation"),
        (json!({ "code": 70_000 }),                                 400, "",           " without explanation"),
    ];
    for (status, code, reason, end) in cases {
        let refusal = denial("x", &status);
        assert_eq!((refusal.code, refusal.reason), (code, reason), "{status}");
        assert_eq!(
            refusal.message,
            format!("admission webhook \"x\" denied the request{end}")
        );
        let written = refusal.to_status();
        assert_eq!(
            written.get("reason").is_some(),
            !reason.is_empty(),
            "{written}"
        );
    }
    let details = json!({ "causes": [{ "message": "x" }] });
    assert_eq!(denial("x", &json!({ "details": details })).details, details);
}
