//! Strategic merge patches: merges that know which lists are maps in disguise.
//!
//! Source: apimachinery `util/strategicpatch` (its directives and its rules of order).

use serde_json::{Map, Value};

use crate::schema::{Field, Schema, Shape};
use crate::status::ApiError;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

/// Applies `patch` to `original`, an object of the kind that the schema describes; without one every list is replaced.
///
/// # Errors
///
/// 400 for a patch with wrong directives, 500 as kube-apiserver for one that does not keep its own order.
pub fn merge(schema: Option<&Schema>, original: &Value, patch: &Value) -> Result<Value, ApiError> {
    let (Value::Object(original), Value::Object(patch)) = (original, patch) else {
        return Err(bad("the patch is not an object".into()));
    };
    let shape = schema.map_or(Shape::Any, |schema| Shape::Object(schema.root_id()));
    Merge { schema }
        .map(original.clone(), patch, &shape)
        .map(Value::Object)
}

fn bad(message: String) -> ApiError {
    ApiError::bad_request(message)
}

struct Merge<'a> {
    schema: Option<&'a Schema>,
}

/// How the items of a list are found: by a key, or by themselves where it is empty.
type Key<'a> = &'a str;

impl<'a> Merge<'a> {
    fn field(&self, shape: &Shape, name: &str) -> Option<&'a Field> {
        match shape {
            Shape::Object(id) => self.schema?.get(*id).field(name),
            _ => None,
        }
    }

    fn child(&self, shape: &Shape, name: &str) -> Shape {
        match shape {
            Shape::Map(of) => (**of).clone(),
            _ => self
                .field(shape, name)
                .map_or(Shape::Any, |field| field.shape.clone()),
        }
    }

    fn map(
        &self,
        mut original: Map<String, Value>,
        patch: &Map<String, Value>,
        shape: &Shape,
    ) -> Result<Map<String, Value>, ApiError> {
        match patch
            .get(DIRECTIVE)
            .map(|directive| directive.as_str().unwrap_or_default())
        {
            None | Some("merge") => {}
            Some("replace") => return Ok(clean_map(patch)),
            Some("delete") => return Ok(Map::new()),
            Some(other) => return Err(bad(format!("unknown patch type found: {other}"))),
        }
        if let Some(keys) = patch.get(RETAIN_KEYS) {
            retain(&mut original, patch, keys)?;
        }
        for (name, list) in patch
            .iter()
            .filter_map(|(key, v)| Some((key.strip_prefix(DELETE_PRIMITIVES)?, v)))
        {
            let gone = as_list(list, DELETE_PRIMITIVES)?;
            if let Some(Value::Array(items)) = original.get_mut(name) {
                items.retain(|item| !gone.contains(item));
            }
        }
        for (name, order) in patch
            .iter()
            .filter_map(|(key, v)| Some((key.strip_prefix(SET_ORDER)?, v)))
        {
            self.ordered(
                &mut original,
                patch,
                shape,
                name,
                as_list(order, SET_ORDER)?,
            )?;
        }
        for (name, value) in patch {
            if name.starts_with('$') && is_directive(name)
                || patch.contains_key(&format!("{SET_ORDER}{name}"))
            {
                continue;
            }
            if value.is_null() {
                original.remove(name);
                continue;
            }
            let merged = match (original.remove(name), value) {
                (Some(Value::Object(old)), Value::Object(new)) => {
                    Value::Object(self.map(old, new, &self.child(shape, name))?)
                }
                (Some(Value::Array(old)), Value::Array(new)) => {
                    Value::Array(self.list(old, new, self.field(shape, name))?)
                }
                (_, new) => clean(new),
            };
            original.insert(name.clone(), merged);
        }
        Ok(original)
    }

    /// Merges a list whose order the patch dictates.
    fn ordered(
        &self,
        original: &mut Map<String, Value>,
        patch: &Map<String, Value>,
        shape: &Shape,
        name: &str,
        order: &[Value],
    ) -> Result<(), ApiError> {
        let field = self.field(shape, name);
        let key = field.map_or("", |field| &*field.merge_key);
        let old = match original.get(name) {
            Some(Value::Array(items)) => Some(items.clone()),
            _ => None,
        };
        let new = match patch.get(name) {
            Some(Value::Array(items)) => Some(items),
            Some(Value::Null) => {
                original.remove(name);
                return Ok(());
            }
            Some(other) => {
                return Err(bad(format!(
                    "the order of {name:?} is given, but {other} is no list"
                )));
            }
            None => None,
        };
        if let Some(new) = new {
            matches_order(new, order, key)?;
        }
        let merged = match (&old, new) {
            (None, None) => return Ok(()),
            (Some(old), None) => old.clone(),
            // A new list is taken as it is: two items of one key (a port in two protocols) both stay.
            (None, Some(new)) => new
                .iter()
                .filter(|item| !is_marked(item))
                .map(clean)
                .collect(),
            (Some(old), Some(new)) => self.list(old.clone(), new, field)?,
        };
        let sorted = normalize(merged, order, &old.unwrap_or_default(), key);
        original.insert(name.to_owned(), Value::Array(sorted));
        Ok(())
    }

    fn list(
        &self,
        original: Vec<Value>,
        patch: &[Value],
        field: Option<&'a Field>,
    ) -> Result<Vec<Value>, ApiError> {
        let Some(field) = field.filter(|field| field.merge) else {
            return Ok(patch.iter().map(clean).collect());
        };
        let Shape::List(item) = &field.shape else {
            return Ok(patch.to_vec());
        };
        let key: Key<'_> = &field.merge_key;
        if key.is_empty() {
            let mut merged = original.clone();
            for value in patch {
                if !merged.contains(value) {
                    merged.push(value.clone());
                }
            }
            return Ok(normalize(merged, patch, &original, key));
        }
        let mut merged = original.clone();
        let mut rest = Vec::new();
        let mut replace = false;
        for value in patch {
            let Value::Object(entry) = value else {
                return Err(bad(format!(
                    "the list {:?} of the patch has an item that is no object",
                    field.name
                )));
            };
            match entry
                .get(DIRECTIVE)
                .map(|directive| directive.as_str().unwrap_or_default())
            {
                None => rest.push(value.clone()),
                Some("delete") => {
                    let wanted = entry.get(key).ok_or_else(|| no_key(value, key))?;
                    merged.retain(|item| item.get(key) != Some(wanted));
                }
                Some("replace") => replace = true,
                Some("merge") => {
                    return Err(bad(
                        "merging lists cannot yet be specified in the patch".into()
                    ));
                }
                Some(other) => return Err(bad(format!("unknown patch type found: {other}"))),
            }
        }
        if replace {
            return Ok(rest.iter().map(clean).collect());
        }
        for value in &rest {
            let wanted = value.get(key).ok_or_else(|| no_key(value, key))?;
            let found = merged.iter_mut().find(|item| item.get(key) == Some(wanted));
            match (found, value) {
                (Some(slot @ Value::Object(_)), Value::Object(entry)) => {
                    let Value::Object(old) = slot.take() else {
                        continue;
                    };
                    *slot = Value::Object(self.map(old, entry, item)?);
                }
                _ => merged.push(clean(value)),
            }
        }
        Ok(normalize(merged, &rest, &original, key))
    }
}

fn no_key(value: &Value, key: &str) -> ApiError {
    bad(format!(
        "map: {} does not contain declared merge key: {key}",
        go_text(value)
    ))
}

/// Whether an item of a patch is no element, but says what becomes of elements.
fn is_marked(item: &Value) -> bool {
    item.get(DIRECTIVE).is_some()
}

/// Refuses a patch whose elements do not stand, in their order, in the order that it dictates.
///
/// Elements are found by their merge key alone, so that of two that share it one would overwrite the other. Deletions and
/// other directives are no elements, and an empty list agrees with every order. The answer is 500 without a reason, as
/// kube-apiserver's. Source: apimachinery `util/strategicpatch`, `validatePatchWithSetOrderList`.
fn matches_order(patch: &[Value], order: &[Value], key: Key<'_>) -> Result<(), ApiError> {
    if patch.is_empty() || order.is_empty() {
        return Ok(());
    }
    let same = |left: &Value, right: &Value| -> Result<bool, ApiError> {
        if key.is_empty() {
            return Ok(left == right);
        }
        let of = |item: &'_ Value| item.get(key).cloned().ok_or_else(|| no_key(item, key));
        Ok(of(left)? == of(right)?)
    };
    let mut places = order.iter();
    for element in patch.iter().filter(|item| !is_marked(item)) {
        loop {
            let Some(place) = places.next() else {
                let message = format!(
                    "The order in patch list:\n{}\n doesn't match {} list:\n{}\n",
                    go_list(patch),
                    SET_ORDER.trim_end_matches('/'),
                    go_list(order)
                );
                return Err(ApiError::new(500, "", message));
            };
            if same(element, place)? {
                break;
            }
        }
    }
    Ok(())
}

fn go_list(items: &[Value]) -> String {
    let items: Vec<String> = items.iter().map(go_text).collect();
    format!("[{}]", items.join(" "))
}

/// A value as Go's `%v` prints it, which the API's messages about patches do.
fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => go_list(items),
        Value::Object(fields) => {
            let sorted: std::collections::BTreeMap<_, _> = fields.iter().collect();
            let fields: Vec<String> = sorted
                .into_iter()
                .map(|(name, value)| format!("{name}:{}", go_text(value)))
                .collect();
            format!("map[{}]", fields.join(" "))
        }
        other => other.to_string(),
    }
}

fn as_list<'v>(value: &'v Value, directive: &str) -> Result<&'v [Value], ApiError> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| {
        bad(format!(
            "invalid patch format of {}: {value} is not a list",
            directive.trim_end_matches('/')
        ))
    })
}

fn is_directive(name: &str) -> bool {
    name == DIRECTIVE
        || name == RETAIN_KEYS
        || name.starts_with(DELETE_PRIMITIVES)
        || name.starts_with(SET_ORDER)
}

/// Drops the keys that the patch does not retain; what it sets, it must retain.
fn retain(
    original: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    keys: &Value,
) -> Result<(), ApiError> {
    let keys = as_list(keys, RETAIN_KEYS)?;
    let kept = |name: &str| keys.iter().any(|key| key.as_str() == Some(name));
    if patch
        .iter()
        .any(|(name, value)| !is_directive(name) && !value.is_null() && !kept(name))
    {
        return Err(bad(
            "invalid patch format of $retainKeys: the patch sets a key that it does not retain"
                .into(),
        ));
    }
    original.retain(|name, _| kept(name));
    Ok(())
}

/// A patch's value as an object's: without directives, and without nulls in maps, which only delete.
fn clean(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(clean_map(fields)),
        Value::Array(items) => Value::Array(
            items
                .iter()
                .filter(|item| item.get(DIRECTIVE).is_none_or(|d| d == "merge"))
                .map(clean)
                .collect(),
        ),
        other => other.clone(),
    }
}

fn clean_map(fields: &Map<String, Value>) -> Map<String, Value> {
    fields
        .iter()
        .filter(|(name, value)| !is_directive(name) && !value.is_null())
        .map(|(name, value)| (name.clone(), clean(value)))
        .collect()
}

fn position(list: &[Value], item: &Value, key: Key<'_>) -> Option<usize> {
    if key.is_empty() {
        return list.iter().position(|other| other == item);
    }
    let wanted = item.get(key)?;
    list.iter().position(|other| other.get(key) == Some(wanted))
}

/// The patch's items in the patch's order, the server's own in the server's; of two that the server knows, the server's
/// order decides, and an item new to it goes first.
fn normalize(
    merged: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    key: Key<'_>,
) -> Vec<Value> {
    let (mut of_patch, mut of_server): (Vec<_>, Vec<_>) = merged
        .into_iter()
        .partition(|item| position(patch_order, item, key).is_some());
    of_patch.sort_by_key(|item| position(patch_order, item, key));
    of_server.sort_by_key(|item| position(server_order, item, key));
    let mut result = Vec::with_capacity(of_patch.len() + of_server.len());
    let (mut left, mut right) = (
        of_server.into_iter().peekable(),
        of_patch.into_iter().peekable(),
    );
    while let (Some(server), Some(patch)) = (left.peek(), right.peek()) {
        let places = position(server_order, server, key).zip(position(server_order, patch, key));
        let first = if places.is_some_and(|(l, r)| l < r) {
            left.next()
        } else {
            right.next()
        };
        result.extend(first);
    }
    result.extend(left);
    result.extend(right);
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::resource::GroupVersionKind;
    use crate::schema::Schemas;

    fn pod() -> GroupVersionKind {
        GroupVersionKind {
            group: String::new(),
            version: "v1".into(),
            kind: "Pod".into(),
        }
    }

    fn patched(original: &Value, patch: &Value) -> Result<Value, ApiError> {
        merge(Schemas::builtin().find(&pod()), original, patch)
    }

    fn spec(original: Value, patch: Value) -> Value {
        let merged = patched(&json!({ "spec": original }), &json!({ "spec": patch }))
            .expect("the patch applies");
        merged["spec"].clone()
    }

    #[test]
    fn containers_merge_by_name_and_new_ones_go_first() {
        let merged = spec(
            json!({ "containers": [{ "name": "a", "image": "a:1", "tty": true }] }),
            json!({ "containers": [{ "name": "b", "image": "b:1" }, { "name": "a", "image": "a:2" }] }),
        );
        assert_eq!(
            merged["containers"],
            json!([{ "name": "b", "image": "b:1" }, { "name": "a", "image": "a:2", "tty": true }])
        );
    }

    #[test]
    fn order_is_what_the_patch_dictates() {
        let merged = spec(
            json!({ "containers": [{ "name": "a" }, { "name": "b" }, { "name": "c" }] }),
            json!({
                "$setElementOrder/containers": [{ "name": "c" }, { "name": "a" }],
                "containers": [{ "name": "b", "$patch": "delete" }, { "name": "a", "image": "x" }],
            }),
        );
        assert_eq!(
            merged["containers"],
            json!([{ "name": "c" }, { "name": "a", "image": "x" }])
        );
    }

    #[test]
    fn lists_without_a_merge_key_are_replaced() {
        let merged = spec(
            json!({ "tolerations": [{ "key": "a" }], "containers": [{ "name": "a", "args": ["1", "2"] }] }),
            json!({ "tolerations": [{ "key": "b" }], "containers": [{ "name": "a", "args": ["3"] }] }),
        );
        assert_eq!(merged["tolerations"], json!([{ "key": "b" }]));
        assert_eq!(merged["containers"][0]["args"], json!(["3"]));
    }

    #[test]
    fn directives_replace_delete_and_retain() {
        let merged = spec(
            json!({ "volumes": [{ "name": "v", "emptyDir": {} }], "nodeSelector": { "a": "1", "b": "2" },
                    "securityContext": { "runAsUser": 1 } }),
            json!({ "volumes": [{ "name": "v", "hostPath": { "path": "/" }, "$retainKeys": ["name", "hostPath"] }],
                    "nodeSelector": { "$patch": "replace", "c": "3" }, "securityContext": { "$patch": "delete" } }),
        );
        assert_eq!(
            merged,
            json!({ "volumes": [{ "name": "v", "hostPath": { "path": "/" } }], "nodeSelector": { "c": "3" },
                    "securityContext": {} })
        );
    }

    #[test]
    fn a_list_can_be_replaced_and_primitives_deleted() {
        let merged = spec(
            json!({ "containers": [{ "name": "a" }] }),
            json!({ "containers": [{ "$patch": "replace" }, { "name": "z" }] }),
        );
        assert_eq!(merged["containers"], json!([{ "name": "z" }]));
        let merged = patched(
                &json!({ "metadata": { "finalizers": ["a", "b"] } }),
                &json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"],
                                       "labels": { "x": null } } }),
            )
            .expect("applies");
        assert_eq!(
            merged,
            json!({ "metadata": { "finalizers": ["c", "b"], "labels": {} } })
        );
    }

    #[test]
    fn a_patch_that_does_not_keep_its_own_order_is_refused() {
        let ports = |patch: Value, order: Value| {
            patched(
                &json!({ "spec": { "containers": [{ "name": "c", "ports": [
                    { "containerPort": 1, "protocol": "TCP" }, { "containerPort": 2, "name": "t", "protocol": "TCP" }] }] } }),
                &json!({ "spec": { "containers": [{ "name": "c", "$setElementOrder/ports": order, "ports": patch }] } }),
            )
        };
        let order = json!([{ "containerPort": 1 }, { "containerPort": 2 }, { "containerPort": 3 }, { "containerPort": 2 }]);
        let patch = json!([{ "containerPort": 2, "protocol": "TCP" }, { "containerPort": 2, "protocol": "UDP" },
                           { "containerPort": 1 }, { "containerPort": 3 }]);
        let error = ports(patch, order.clone()).expect_err("two elements would become one");
        assert_eq!(
            error.message,
            "The order in patch list:\n[map[containerPort:2 protocol:TCP] map[containerPort:2 protocol:UDP] \
             map[containerPort:1] map[containerPort:3]]\n doesn't match $setElementOrder list:\n[map[containerPort:1] \
             map[containerPort:2] map[containerPort:3] map[containerPort:2]]\n"
        );
        #[rustfmt::skip] // One patch a line.
        let cases = [
            (json!([{ "containerPort": 3 }]), true),
            (json!([{ "containerPort": 2, "name": "u" }, { "containerPort": 3 }]), true),
            (json!([{ "containerPort": 3 }, { "containerPort": 1 }]), false),
            (json!([{ "containerPort": 4 }]), false),
            (json!([{ "containerPort": 4, "$patch": "delete" }, { "containerPort": 3 }]), true),
            (json!([]), true),
            (json!([{ "name": "x" }]), false),
            (json!("none"), false),
        ];
        for (patch, good) in cases {
            let result = ports(patch.clone(), order.clone());
            assert_eq!(result.is_ok(), good, "{patch}: {result:?}");
        }
        assert!(
            ports(json!([{ "containerPort": 9 }]), json!([])).is_ok(),
            "no order is no order"
        );
    }

    #[test]
    fn a_primitive_list_must_keep_its_order_too() {
        let finalizers = |patch: Value| {
            patched(
                &json!({ "metadata": { "finalizers": ["a", "b"] } }),
                &json!({ "metadata": { "$setElementOrder/finalizers": ["b", "a", "c"], "finalizers": patch } }),
            )
        };
        assert_eq!(
            finalizers(json!(["c"])).expect("in order")["metadata"]["finalizers"],
            json!(["b", "a", "c"])
        );
        assert_eq!(
            finalizers(json!(["c", "a"]))
                .expect_err("out of order")
                .message,
            "The order in patch list:\n[c a]\n doesn't match $setElementOrder list:\n[b a c]\n"
        );
    }

    #[test]
    fn a_new_list_keeps_two_items_of_one_key() {
        let ports = json!([{ "containerPort": 53, "protocol": "TCP" }, { "containerPort": 53, "protocol": "UDP" }]);
        let merged = spec(
            json!({ "containers": [{ "name": "c" }] }),
            json!({ "containers": [{ "name": "c", "ports": ports,
                "$setElementOrder/ports": [{ "containerPort": 53 }, { "containerPort": 53 }] }] }),
        );
        assert_eq!(merged["containers"][0]["ports"], ports);
    }

    #[test]
    fn an_item_without_its_key_is_refused() {
        let result = patched(
            &json!({ "spec": {} }),
            &json!({ "spec": { "containers": [{ "image": "x" }] } }),
        );
        assert!(result.is_ok(), "there is nothing to merge with");
        let result = patched(
            &json!({ "spec": { "containers": [] } }),
            &json!({ "spec": { "containers": [{ "image": "x" }] } }),
        );
        assert_eq!(result.expect_err("no name").code, 400);
    }

    fn containers() -> impl Strategy<Value = Value> {
        proptest::collection::btree_map("[a-e]", "[x-z]", 0..5).prop_map(|map| {
            map.into_iter()
                .map(|(name, image)| json!({ "name": name, "image": image }))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn applied_twice_is_as_once(original in containers(), patch in containers()) {
            let patch = json!({ "containers": patch });
            let once = spec(json!({ "containers": original }), patch.clone());
            prop_assert_eq!(spec(once.clone(), patch), once);
        }

        #[test]
        fn every_item_of_both_sides_is_there_once(original in containers(), patch in containers()) {
            let merged = spec(json!({ "containers": original }), json!({ "containers": patch }));
            let names = |list: &Value| -> std::collections::BTreeSet<String> {
                list.as_array().into_iter().flatten().map(|c| c["name"].to_string()).collect()
            };
            let all: std::collections::BTreeSet<_> = names(&original).union(&names(&patch)).cloned().collect();
            prop_assert_eq!(merged["containers"].as_array().map(Vec::len), Some(all.len()));
            prop_assert_eq!(names(&merged["containers"]), all);
        }
    }
}
