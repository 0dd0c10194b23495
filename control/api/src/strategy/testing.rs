//! What the tables of tests of the strategies share: an object, one change to it, and the mistakes that come of it.

use serde_json::{Value, json};

use super::{Context, Strategy};
use crate::kinds::gvk;
use crate::resource::Subresource;
use crate::schema::Schemas;
use crate::status::FieldError;

/// The object with the values at some pointers (`/spec/replicas`) replaced, or removed where the new one is null.
pub fn with(object: &Value, changes: &[(&str, Value)]) -> Value {
    let mut object = object.clone();
    for (pointer, value) in changes {
        let (parents, last) = pointer.rsplit_once('/').expect("a pointer starts with /");
        let mut at = &mut object;
        for part in parents.split('/').skip(1) {
            at = match part.parse::<usize>() {
                Ok(index) => &mut at[index],
                Err(_) => &mut at[part.replace("~1", "/")],
            };
        }
        match last.parse::<usize>() {
            Ok(index) => at[index] = value.clone(),
            Err(_) if value.is_null() => {
                at.as_object_mut().expect("an object").remove(last);
            }
            Err(_) => at[last.replace("~1", "/")] = value.clone(),
        }
    }
    object
}

/// The mistakes as lines: `spec.replicas: Invalid value: -1: must be greater than or equal to 0`.
pub fn lines(errors: &[FieldError]) -> Vec<String> {
    let line = |error: &FieldError| format!("{}: {}", error.field, error.message);
    errors.iter().map(line).collect()
}

/// An object as it is after a create: defaults, then what the strategy prepares.
pub fn created(strategy: &impl Strategy, api: &str, kind: &str, mut object: Value) -> Value {
    Schemas::builtin().apply_defaults(&gvk(api, kind), &mut object);
    strategy.default(&mut object);
    strategy.prepare_for_create(&Context::component("test"), &mut object);
    object
}

/// An object as an update leaves it before it is validated.
pub fn updated(
    strategy: &impl Strategy,
    sub: Option<Subresource>,
    mut object: Value,
    old: &Value,
) -> Value {
    strategy.prepare_for_update(&Context::component("test"), sub, &mut object, old);
    object
}

/// Checks each row of a table: one change to a good object, and the one line that it is refused with.
pub fn each_is_refused(
    rows: &[(&str, Value, &str)],
    good: &Value,
    check: impl Fn(&Value) -> Vec<FieldError>,
) {
    assert_eq!(lines(&check(good)), Vec::<String>::new(), "the good one");
    for (pointer, value, line) in rows {
        let bad = with(good, &[(pointer, value.clone())]);
        let got = lines(&check(&bad));
        assert!(
            got.iter().any(|got| got == line),
            "{pointer} = {value} gives\n{got:#?}\nwithout\n{line}"
        );
    }
}

/// A template that every workload accepts, with the labels `a=b`.
pub fn template(restart_policy: &str) -> Value {
    json!({
        "metadata": { "labels": { "a": "b" } },
        "spec": { "restartPolicy": restart_policy, "containers": [{ "name": "c", "image": "i:1" }] },
    })
}
