//! One object as the cache holds it: its encoded bytes, and the little that selectors need.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bytes::Bytes;
use knarr_store::{KeyValue, Revision};
use serde::Deserialize;
use serde_json::Value;

use crate::strategy::Strategy;

/// The end of a watch frame, behind the object.
const FRAME_END: &[u8] = b"}\n";

/// What happened to an object, in the words of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeType {
    /// It is new, to this watcher at least.
    Added,
    /// It changed.
    Modified,
    /// It is gone, from this watcher's view at least.
    Deleted,
}

impl ChangeType {
    /// The start of a watch frame, up to the object.
    pub fn frame_start(self) -> &'static [u8] {
        match self {
            Self::Added => br#"{"type":"ADDED","object":"#,
            Self::Modified => br#"{"type":"MODIFIED","object":"#,
            Self::Deleted => br#"{"type":"DELETED","object":"#,
        }
    }
}

/// One object: immutable, shared by the cache, lists and watchers.
#[derive(Debug)]
pub struct Entry {
    /// The key below the collection's prefix: `namespace/name`, or `name`.
    pub key: Box<str>,
    /// The object's JSON with `metadata.resourceVersion`.
    pub object: Bytes,
    /// The revision of its last change.
    pub revision: Revision,
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// `metadata.labels`.
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// The kind's selectable fields, in the order of `Strategy::selectable_field_names`.
    pub fields: Box<[(&'static str, Box<str>)]>,
}

#[derive(Deserialize, Default)]
struct Light<'a> {
    #[serde(borrow, default)]
    metadata: LightMeta<'a>,
}

#[derive(Deserialize, Default)]
struct LightMeta<'a> {
    #[serde(borrow, default)]
    uid: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    labels: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
}

impl Entry {
    /// The entry of a stored object and its watch frame; entry and frame share their bytes.
    ///
    /// # Errors
    ///
    /// If the value is not JSON.
    pub fn new(
        key: &str,
        kv: &KeyValue,
        strategy: &dyn Strategy,
        change: ChangeType,
    ) -> Result<(Self, Bytes), serde_json::Error> {
        let light: Light<'_> = serde_json::from_slice(&kv.value)?;
        let fields = if strategy.selectable_field_names().is_empty() {
            Box::default()
        } else {
            let object: Value = serde_json::from_slice(&kv.value)?;
            strategy
                .selectable_fields(&object)
                .into_iter()
                .map(|(name, value)| (name, value.into_boxed_str()))
                .collect()
        };
        let frame = frame(change, &kv.value, kv.mod_revision);
        let object = frame.slice(change.frame_start().len()..frame.len() - FRAME_END.len());
        let entry = Self {
            key: key.into(),
            object,
            revision: kv.mod_revision,
            uid: light.metadata.uid.unwrap_or_default().into(),
            labels: light
                .metadata
                .labels
                .unwrap_or_default()
                .into_iter()
                .map(|(k, v)| (k.into(), v.into()))
                .collect(),
            fields,
        };
        Ok((entry, frame))
    }

    /// `metadata.namespace`; empty for objects of the cluster.
    pub fn namespace(&self) -> &str {
        self.key
            .split_once('/')
            .map_or("", |(namespace, _)| namespace)
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.key
            .split_once('/')
            .map_or(&*self.key, |(_, name)| name)
    }

    /// The value of a selectable field; empty if it has none.
    pub fn field(&self, name: &str) -> &str {
        let of_name = self.fields.iter().find(|(field, _)| *field == name);
        of_name.map_or("", |(_, value)| value)
    }

    /// The object, parsed anew.
    pub fn parse(&self) -> Value {
        serde_json::from_slice(&self.object).expect("the entry was made from valid JSON")
    }

    /// A watch frame of the object as it was, at a later revision: what a watcher gets that no longer sees it.
    pub fn frame_at(&self, change: ChangeType, revision: Revision) -> Bytes {
        if revision == self.revision {
            let mut frame = Vec::with_capacity(self.object.len() + 32);
            frame.extend_from_slice(change.frame_start());
            frame.extend_from_slice(&self.object);
            frame.extend_from_slice(FRAME_END);
            return frame.into();
        }
        let was = format!("\"resourceVersion\":\"{}\"", self.revision);
        let at = metadata_start(&self.object).expect("the entry was made with metadata");
        let mut frame = Vec::with_capacity(self.object.len() + 40);
        frame.extend_from_slice(change.frame_start());
        frame.extend_from_slice(&self.object[..at]);
        frame.extend_from_slice(format!("\"resourceVersion\":\"{revision}\"").as_bytes());
        frame.extend_from_slice(&self.object[at + was.len()..]);
        frame.extend_from_slice(FRAME_END);
        frame.into()
    }
}

/// Encodes an object for the store: `kind`, `apiVersion` and `metadata` first, no `metadata.resourceVersion`.
///
/// Metadata stands near the start so that the revision is spliced in after a short scan.
pub fn encode(object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    out.push(b'{');
    for key in ["kind", "apiVersion", "metadata"] {
        if let Some(value) = object.get(key) {
            put(&mut out, key, value);
        }
    }
    for (key, value) in object.as_object().into_iter().flatten() {
        if !matches!(key.as_str(), "kind" | "apiVersion" | "metadata") {
            put(&mut out, key, value);
        }
    }
    out.push(b'}');
    out
}

fn put(out: &mut Vec<u8>, key: &str, value: &Value) {
    if out.len() > 1 {
        out.push(b',');
    }
    serde_json::to_writer(&mut *out, key).expect("writing to memory cannot fail");
    out.push(b':');
    if key == "metadata"
        && let Some(fields) = value.as_object()
        && fields.contains_key("resourceVersion")
    {
        let mut fields = fields.clone();
        fields.remove("resourceVersion");
        serde_json::to_writer(out, &fields).expect("writing to memory cannot fail");
    } else {
        serde_json::to_writer(out, value).expect("writing to memory cannot fail");
    }
}

/// A stored value with its resourceVersion.
pub fn splice(value: &[u8], revision: Revision) -> Bytes {
    let mut out = Vec::with_capacity(value.len() + 40);
    splice_into(&mut out, value, revision);
    out.into()
}

/// A whole watch frame of a stored value.
pub fn frame(change: ChangeType, value: &[u8], revision: Revision) -> Bytes {
    let mut out = Vec::with_capacity(value.len() + 72);
    out.extend_from_slice(change.frame_start());
    splice_into(&mut out, value, revision);
    out.extend_from_slice(FRAME_END);
    out.into()
}

fn splice_into(out: &mut Vec<u8>, value: &[u8], revision: Revision) {
    let Some(at) = metadata_start(value) else {
        out.extend_from_slice(value);
        return;
    };
    out.extend_from_slice(&value[..at]);
    out.extend_from_slice(format!("\"resourceVersion\":\"{revision}\"").as_bytes());
    if value[at..].iter().find(|b| !b.is_ascii_whitespace()) != Some(&b'}') {
        out.push(b',');
    }
    out.extend_from_slice(&value[at..]);
}

/// The offset behind the `{` of the top level's `metadata`.
fn metadata_start(json: &[u8]) -> Option<usize> {
    let mut at = skip_space(json, 0);
    if json.get(at) != Some(&b'{') {
        return None;
    }
    at += 1;
    loop {
        at = skip_space(json, at);
        if json.get(at) != Some(&b'"') {
            return None;
        }
        let key_start = at;
        at = skip_value(json, at);
        let is_metadata = &json[key_start..at] == b"\"metadata\"";
        at = skip_space(json, at);
        if json.get(at) != Some(&b':') {
            return None;
        }
        at = skip_space(json, at + 1);
        if is_metadata {
            return (json.get(at) == Some(&b'{')).then_some(at + 1);
        }
        at = skip_space(json, skip_value(json, at));
        if json.get(at) != Some(&b',') {
            return None;
        }
        at += 1;
    }
}

fn skip_space(json: &[u8], mut at: usize) -> usize {
    while json.get(at).is_some_and(u8::is_ascii_whitespace) {
        at += 1;
    }
    at
}

/// The offset behind the value at `at`; the text is known to be JSON.
fn skip_value(json: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => {
                at += 1;
                while let Some(byte) = json.get(at) {
                    match byte {
                        b'\\' => at += 1,
                        b'"' => break,
                        _ => {}
                    }
                    at += 1;
                }
                if depth == 0 {
                    return at + 1;
                }
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return at,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            b',' if depth == 0 => return at,
            _ => {}
        }
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_revision_is_spliced_into_the_objects_own_metadata() {
        let spliced = splice(
            br#"{"data":{"metadata":{"a":"}"}}, "metadata" : {"name":"x"}}"#,
            7,
        );
        let value: Value = serde_json::from_slice(&spliced).unwrap();
        assert_eq!(
            value["metadata"],
            json!({ "name": "x", "resourceVersion": "7" })
        );
        assert_eq!(value["data"]["metadata"], json!({ "a": "}" }));
        let empty = splice(br#"{"metadata":{}}"#, 7);
        assert_eq!(&*empty, br#"{"metadata":{"resourceVersion":"7"}}"#);
    }

    #[test]
    fn what_is_stored_has_no_revision_and_its_head_first() {
        let object = json!({ "apiVersion": "v1", "data": {}, "kind": "ConfigMap",
            "metadata": { "name": "x", "resourceVersion": "3" } });
        let stored = encode(&object);
        assert_eq!(
            stored,
            br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"x"},"data":{}}"#
        );
    }

    #[test]
    fn a_frame_at_a_later_revision_changes_only_the_revision() {
        let kv = KeyValue {
            key: "/registry/configmaps/a/b".into(),
            value: Bytes::from_static(br#"{"metadata":{"name":"b","uid":"u"},"x":[1]}"#),
            create_revision: 2,
            mod_revision: 2,
        };
        let (entry, _) = Entry::new("a/b", &kv, &Plain, ChangeType::Added).unwrap();
        assert_eq!(
            &*entry.frame_at(ChangeType::Deleted, 12345),
            b"{\"type\":\"DELETED\",\"object\":{\"metadata\":{\"resourceVersion\":\"12345\",\"name\":\"b\",\"uid\":\"u\"},\"x\":[1]}}\n"
        );
        assert_eq!(
            (entry.namespace(), entry.name(), &*entry.uid),
            ("a", "b", "u")
        );
    }

    struct Plain;
    impl Strategy for Plain {}
}
