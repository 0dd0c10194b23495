//! Patches: RFC 6902, RFC 7386, and Kubernetes' strategic merge ([`strategic::merge`]).

pub mod strategic;

use json_patch::PatchOperation;
use json_patch::jsonptr::{Pointer, PointerBuf, Token};
use serde_json::{Value, json};

use crate::status::ApiError;

/// More operations than this are refused (apiserver `maxJSONPatchOperations`).
const MAX_OPERATIONS: usize = 10_000;

/// Applies a JSON patch (RFC 6902), with the two liberties of kube-apiserver's library (evanphx/json-patch 4).
///
/// A negative index counts from the end of its list (for `add` from behind the end), and a `test` against null passes where
/// the object has no such field.
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
    let refused = |err: &dyn std::fmt::Display| ApiError {
        code: 422,
        reason: "Invalid",
        // Not as a cause: kubectl would print a cause in place of the message, after the name of a field that it has not.
        message: format!("the server rejected our request due to an error in our request: {err}"),
        details: json!({}),
    };
    let mut patched = original.clone();
    for mut operation in operations.0 {
        if !resolve(&patched, &mut operation) {
            json_patch::patch(&mut patched, &[operation]).map_err(|err| refused(&err))?;
        }
    }
    Ok(patched)
}

/// Gives the negative indices of an operation the values that they have in `document`; whether the operation is a test that
/// has passed by this: null is as good as absent.
fn resolve(document: &Value, operation: &mut PatchOperation) -> bool {
    let at = |pointer: &mut PointerBuf, extra| {
        if let Some(resolved) = absolute(document, pointer, extra) {
            *pointer = resolved;
        }
    };
    match operation {
        PatchOperation::Add(add) => at(&mut add.path, 1),
        PatchOperation::Remove(remove) => at(&mut remove.path, 0),
        PatchOperation::Replace(replace) => at(&mut replace.path, 0),
        PatchOperation::Move(moved) => {
            at(&mut moved.from, 0);
            // The list is one shorter by then, if it is the same one.
            let shrinks = moved.from.parent() == moved.path.parent();
            at(&mut moved.path, usize::from(!shrinks));
        }
        PatchOperation::Copy(copy) => {
            at(&mut copy.from, 0);
            at(&mut copy.path, 1);
        }
        PatchOperation::Test(test) => {
            at(&mut test.path, 0);
            let Some((parent, field)) = test.path.split_back() else {
                return false;
            };
            let object = parent.resolve(document).ok().and_then(Value::as_object);
            return test.value.is_null()
                && object.is_some_and(|fields| !fields.contains_key(&*field.decoded()));
        }
    }
    false
}

/// A pointer without negative indices, if it has any that mean something; `extra` is how many more places than items the
/// list at its end has.
fn absolute(document: &Value, pointer: &Pointer, extra: usize) -> Option<PointerBuf> {
    let mut found = false;
    let mut here = Some(document);
    let count = pointer.count();
    let mut resolved = PointerBuf::new();
    for (index, token) in pointer.tokens().enumerate() {
        let text = token.decoded().into_owned();
        let text = match (here, text.strip_prefix('-').map(str::parse::<usize>)) {
            (Some(Value::Array(items)), Some(Ok(back))) if back > 0 => {
                let places = items.len() + if index + 1 == count { extra } else { 0 };
                found = true;
                places.checked_sub(back)?.to_string()
            }
            _ => text,
        };
        here = match here {
            Some(Value::Array(items)) => text.parse().ok().and_then(|at: usize| items.get(at)),
            Some(Value::Object(fields)) => fields.get(&text),
            _ => None,
        };
        resolved.push_back(Token::new(text));
    }
    found.then_some(resolved)
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

    #[test]
    fn a_negative_index_counts_from_the_end() {
        let document = json!({ "l": ["a", "b", "c"], "o": [{ "x": [1, 2] }] });
        #[rustfmt::skip] // One operation a line.
        let cases = [
            (json!({ "op": "replace", "path": "/l/-1", "value": "z" }), Some(json!(["a", "b", "z"]))),
            (json!({ "op": "replace", "path": "/l/-3", "value": "z" }), Some(json!(["z", "b", "c"]))),
            (json!({ "op": "replace", "path": "/l/-4", "value": "z" }), None),
            (json!({ "op": "remove", "path": "/l/-1" }), Some(json!(["a", "b"]))),
            (json!({ "op": "remove", "path": "/l/-4" }), None),
            (json!({ "op": "add", "path": "/l/-1", "value": "z" }), Some(json!(["a", "b", "c", "z"]))),
            (json!({ "op": "add", "path": "/l/-4", "value": "z" }), Some(json!(["z", "a", "b", "c"]))),
            (json!({ "op": "add", "path": "/l/-5", "value": "z" }), None),
            (json!({ "op": "add", "path": "/l/-", "value": "z" }), Some(json!(["a", "b", "c", "z"]))),
            (json!({ "op": "test", "path": "/l/-2", "value": "b" }), Some(json!(["a", "b", "c"]))),
            (json!({ "op": "test", "path": "/l/-2", "value": "a" }), None),
            (json!({ "op": "copy", "from": "/l/-1", "path": "/l/0" }), Some(json!(["c", "a", "b", "c"]))),
            (json!({ "op": "move", "from": "/l/0", "path": "/l/-1" }), Some(json!(["b", "c", "a"]))),
            (json!({ "op": "move", "from": "/l/-1", "path": "/l/0" }), Some(json!(["c", "a", "b"]))),
            (json!({ "op": "copy", "from": "/o/-1/x/-1", "path": "/l/0" }), Some(json!([2, "a", "b", "c"]))),
        ];
        for (operation, wanted) in cases {
            let patched = json_patch(&document, json!([operation]).to_string().as_bytes());
            let list = patched.as_ref().ok().map(|document| document["l"].clone());
            assert_eq!(list, wanted, "{operation}: {patched:?}");
        }
        // An object's key is not an index.
        let keys = br#"[{"op":"replace","path":"/a/-1","value":2}]"#;
        assert_eq!(
            json_patch(&json!({ "a": { "-1": 1 } }), keys).expect("applies"),
            json!({ "a": { "-1": 2 } })
        );
    }

    #[test]
    fn a_test_against_null_passes_where_nothing_is() {
        let document = json!({ "labels": { "a": "1" }, "l": [] });
        let test = |path: &str, value: Value| {
            let patch = json!([{ "op": "test", "path": path, "value": value },
                               { "op": "add", "path": "/labels/x", "value": "y" }]);
            json_patch(&document, patch.to_string().as_bytes()).is_ok()
        };
        assert!(test("/labels/missing", Value::Null));
        assert!(!test("/labels/missing", json!("")));
        assert!(!test("/labels/a", Value::Null));
        assert!(!test("/missing/b", Value::Null), "its parent must be there");
        assert!(!test("/l/0", Value::Null), "a list has no missing items");
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
