//! The pod template of a workload, kept as text.

use std::fmt;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The label that tells the pods of one revision from those of another.
pub const HASH_LABEL: &str = "pod-template-hash";

/// A pod template.
///
/// Decoded it would be the largest part of the cache, and nobody reads it except to compare it and to make a pod from
/// it, so it is kept as its canonical JSON (keys sorted, empty members dropped) with a digest of that.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    json: Box<str>,
    digest: u64,
}

impl Template {
    /// Takes a template as the API writes it.
    pub fn new(value: &Value) -> Self {
        let mut plain = value.clone();
        if let Some(labels) = plain
            .pointer_mut("/metadata/labels")
            .and_then(Value::as_object_mut)
        {
            labels.remove(HASH_LABEL);
        }
        prune(&mut plain);
        Self {
            json: value.to_string().into(),
            digest: fnv64(canonical(&plain).as_bytes()),
        }
    }

    /// The template as a value.
    pub fn value(&self) -> Value {
        serde_json::from_str(&self.json).expect("the text was written by serde_json")
    }

    /// The labels of the pods.
    pub fn labels(&self) -> std::collections::BTreeMap<String, String> {
        #[derive(Deserialize, Default)]
        struct Metadata {
            #[serde(default)]
            labels: std::collections::BTreeMap<String, String>,
        }
        #[derive(Deserialize)]
        struct Outer {
            #[serde(default)]
            metadata: Metadata,
        }
        serde_json::from_str::<Outer>(&self.json)
            .map(|outer| outer.metadata.labels)
            .unwrap_or_default()
    }

    /// Whether two templates ask for the same pods, apart from [`HASH_LABEL`].
    ///
    /// Where the texts differ they are compared once more as types, since a quantity or an absent default may be written in two ways.
    pub fn same_pods(&self, other: &Self) -> bool {
        self.digest == other.digest || self.typed().is_some_and(|this| Some(this) == other.typed())
    }

    fn typed(&self) -> Option<PodTemplateSpec> {
        let mut value = self.value();
        if let Some(labels) = value
            .pointer_mut("/metadata/labels")
            .and_then(Value::as_object_mut)
        {
            labels.remove(HASH_LABEL);
        }
        prune(&mut value);
        serde_json::from_value(value).ok()
    }

    /// The value of [`HASH_LABEL`] for this template; `collisions` is how many names were found taken before.
    ///
    /// Any stable hash will do; the alphabet is that of Kubernetes, which has no vowels and so spells no words.
    pub fn hash(&self, collisions: Option<i32>) -> String {
        let seed = self.digest
            ^ u64::from(collisions.unwrap_or(0).unsigned_abs()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let short = (seed ^ (seed >> 32)) as u32;
        safe_encode(&short.to_string())
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.json)
    }
}

impl Default for Template {
    fn default() -> Self {
        Self::new(&Value::Object(serde_json::Map::new()))
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(|value| Self::new(&value))
    }
}

/// Text of a value with sorted keys, whichever map `serde_json` was built with.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut members: Vec<_> = map.iter().collect();
            members.sort_by_key(|(key, _)| *key);
            let members: Vec<_> = members
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), canonical(value)))
                .collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(list) => format!(
            "[{}]",
            list.iter().map(canonical).collect::<Vec<_>>().join(",")
        ),
        other => other.to_string(),
    }
}

/// Drops nulls and empty lists and objects that are members of objects: the API means the same without them, except for
/// volumes such as `emptyDir: {}`, where all that matters is that both templates lose it alike.
fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(prune);
            map.retain(|key, value| match value {
                Value::Null => false,
                Value::Object(inner) => !inner.is_empty() || key == "emptyDir",
                Value::Array(inner) => !inner.is_empty(),
                _ => true,
            });
        }
        Value::Array(list) => list.iter_mut().for_each(prune),
        _ => {}
    }
}

/// FNV-1a: stable over releases and machines, unlike the standard library's hasher.
fn fnv64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Writes a text with characters that are safe in names. Source: apimachinery, `rand.SafeEncodeString`.
fn safe_encode(text: &str) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    text.bytes()
        .map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn template(image: &str, hash: Option<&str>) -> Template {
        let mut labels = json!({"app": "web"});
        if let Some(hash) = hash {
            labels[HASH_LABEL] = json!(hash);
        }
        Template::new(
            &json!({"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": image}]}}),
        )
    }

    #[test]
    fn the_hash_label_does_not_make_templates_differ() {
        assert!(template("a", None).same_pods(&template("a", Some("x7"))));
        assert!(!template("a", None).same_pods(&template("b", None)));
    }

    #[test]
    fn null_and_empty_members_do_not_make_templates_differ() {
        let full = Template::new(
            &json!({"metadata": {"creationTimestamp": null, "annotations": {}}, "spec": {"volumes": [], "containers": []}}),
        );
        assert!(full.same_pods(&Template::new(&json!({"spec": {}}))));
    }

    #[test]
    fn quantities_in_two_spellings_are_told_apart_only_by_text() {
        let volume = |dir: Value| {
            Template::new(
                &json!({"spec": {"containers": [], "volumes": [{"name": "v", "emptyDir": dir}]}}),
            )
        };
        assert!(volume(json!({})).same_pods(&volume(json!({}))));
    }

    #[test]
    fn the_hash_is_stable_safe_and_changes_with_collisions() {
        let first = template("a", None).hash(None);
        assert_eq!(first, template("a", Some("x")).hash(None));
        assert_ne!(first, template("a", None).hash(Some(1)));
        assert!(
            first
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()),
            "{first}"
        );
    }
}
