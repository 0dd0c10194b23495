//! What the hooks of many kinds do alike.

use serde_json::{Map, Value, json};

use crate::resource::Subresource;

/// A map to write fields into; made where there is none.
pub fn object_at<'a>(object: &'a mut Value, field: &str) -> &'a mut Map<String, Value> {
    let slot = &mut object[field];
    if !slot.is_object() {
        *slot = json!({});
    }
    slot.as_object_mut().expect("it was just made one")
}

/// A new object starts at generation 1.
pub fn first_generation(object: &mut Value) {
    object["metadata"]["generation"] = 1.into();
}

/// Copies a top-level field from the old object, or removes it where the old one has none.
pub fn keep(object: &mut Value, old: &Value, field: &str) {
    match old.get(field) {
        Some(value) => object[field] = value.clone(),
        None => {
            object.as_object_mut().map(|fields| fields.remove(field));
        }
    }
}

/// An update of `status` changes nothing else (but metadata that the generic path allows); an update of the object leaves
/// the status alone and raises the generation if the spec changed.
pub fn split_update(
    subresource: Option<Subresource>,
    object: &mut Value,
    old: &Value,
    generation: bool,
) {
    if subresource == Some(Subresource::Status) {
        keep(object, old, "spec");
        for field in ["deletionTimestamp", "ownerReferences"] {
            keep_meta(object, old, field);
        }
    } else {
        keep(object, old, "status");
    }
    if generation {
        bump_generation(object, old);
    }
}

fn keep_meta(object: &mut Value, old: &Value, field: &str) {
    match old["metadata"].get(field) {
        Some(value) => object["metadata"][field] = value.clone(),
        None => {
            object["metadata"]
                .as_object_mut()
                .map(|fields| fields.remove(field));
        }
    }
}

/// Raises `metadata.generation` if the spec is another than before.
pub fn bump_generation(object: &mut Value, old: &Value) {
    let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
    let changed = object["spec"] != old["spec"];
    object["metadata"]["generation"] = (before + i64::from(changed)).into();
}

/// A field as text; empty if it is none.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A scalar at a path as a field selector shows it.
pub fn selectable(object: &Value, path: &[&str]) -> String {
    match path.iter().fold(object, |value, field| &value[*field]) {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// `a=b,c in (d,e)`: a label selector as kubectl prints it; `<none>` for an empty one.
pub fn selector_text(selector: &Value) -> String {
    let mut parts = map_parts(&selector["matchLabels"]);
    for (_, requirement) in super::validation::items(&selector["matchExpressions"]) {
        let key = text(&requirement["key"]);
        let mut values: Vec<&str> = super::validation::items(&requirement["values"])
            .map(|(_, value)| text(value))
            .collect();
        values.sort_unstable();
        parts.push(match text(&requirement["operator"]) {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    parts.sort();
    none_if_empty(parts.join(","))
}

fn map_parts(map: &Value) -> Vec<String> {
    map.as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", text(value)))
        .collect()
}

/// `a=b,c=d`, or `<none>`.
pub fn map_text(map: &Value) -> String {
    none_if_empty(map_parts(map).join(","))
}

/// `<none>` in place of nothing.
pub fn none_if_empty(text: String) -> String {
    if text.is_empty() {
        "<none>".to_owned()
    } else {
        text
    }
}

/// The names and images of a pod template's containers, as `-o wide` shows them.
pub fn containers_text(template: &Value) -> (String, String) {
    let list = || super::validation::items(&template["spec"]["containers"]);
    let join = |field: &str| {
        list()
            .map(|(_, c)| text(&c[field]))
            .collect::<Vec<_>>()
            .join(",")
    };
    (join("name"), join("image"))
}
