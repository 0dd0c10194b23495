//! Patches: RFC 6902, RFC 7386, and Kubernetes' strategic merge ([`crate::schema::Schemas::strategic_merge`]).

pub(crate) mod strategic;

use serde_json::{Value, json};

use crate::status::ApiError;

/// More operations than this are refused (apiserver `maxJSONPatchOperations`).
const MAX_OPERATIONS: usize = 10_000;

/// Applies a JSON patch (RFC 6902).
///
/// # Errors
///
/// 400 for a patch that cannot be read, 413 for one that is too long, 422 for one that does not apply.
pub fn json_patch(original: &Value, patch: &[u8]) -> Result<Value, ApiError> {
    let operations: json_patch::Patch =
        serde_json::from_slice(patch).map_err(|err| ApiError::bad_request(err.to_string()))?;
    if operations.0.len() > MAX_OPERATIONS {
        let message = format!(
            "Request entity too large: The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.0.len()
        );
        return Err(ApiError::new(413, "RequestEntityTooLarge", message));
    }
    let mut patched = original.clone();
    json_patch::patch(&mut patched, &operations).map_err(|err| ApiError {
        code: 422,
        reason: "Invalid",
        // Not as a cause: kubectl would print a cause in place of the message, after the name of a field that it has not.
        message: format!("the server rejected our request due to an error in our request: {err}"),
        details: json!({}),
    })?;
    Ok(patched)
}

/// Applies a merge patch (RFC 7386).
pub fn merge_patch(original: &Value, patch: &Value) -> Value {
    let mut merged = original.clone();
    json_patch::merge(&mut merged, patch);
    merged
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_patch_that_does_not_apply_is_422_and_one_that_cannot_be_read_400() {
        let object = json!({ "a": 1 });
        let failing = br#"[{"op":"test","path":"/a","value":2}]"#;
        assert_eq!(
            json_patch(&object, failing)
                .expect_err("the test fails")
                .code,
            422
        );
        assert_eq!(
            json_patch(&object, br#"{"a":2}"#)
                .expect_err("no list")
                .code,
            400
        );
        assert_eq!(json_patch(&object, b"[").expect_err("no JSON").code, 400);
        let good =
            br#"[{"op":"replace","path":"/a","value":2},{"op":"add","path":"/b","value":[]}]"#;
        assert_eq!(
            json_patch(&object, good).expect("applies"),
            json!({ "a": 2, "b": [] })
        );
    }

    pub(crate) fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-c]{0,2}".prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map("[a-d]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_merge_patch_applied_twice_is_as_once(original in value(), patch in value()) {
            let once = merge_patch(&original, &patch);
            prop_assert_eq!(merge_patch(&once, &patch), once);
        }

        #[test]
        fn an_empty_merge_patch_changes_nothing(fields in proptest::collection::btree_map("[a-d]", value(), 0..4)) {
            let original = Value::Object(fields.into_iter().collect());
            prop_assert_eq!(merge_patch(&original, &json!({})), original);
        }
    }
}
