//! What is written is read again: for generated objects of every kind, and byte by byte for one pod.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Map, Value, json};

use super::numbers::{self, Message};
use super::*;
use crate::kinds::gvk;
use crate::resource::GroupVersionKind;
use crate::schema::{Schema, Schemas, Shape, TypeId};

/// A field whose content is a message or text.
fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).unwrap();
    assert!(number < 16 && length < 0x80);
    [&[number << 3 | 2, length], content].concat()
}

/// A body of the kind with this message.
fn body_of(api_version: &[u8], kind: &[u8], message: &[u8]) -> Vec<u8> {
    let meta = [bytes(1, api_version), bytes(2, kind)].concat();
    [MAGIC, &bytes(1, &meta), &bytes(2, message)].concat()
}

/// Makes values of the schemas' types. Shrinking a seed says nothing, so a failure prints the object.
struct Maker<'a> {
    schema: &'a Schema,
    random: StdRng,
}

impl Maker<'_> {
    fn object(&mut self, id: TypeId, depth: usize) -> Value {
        let mut object = Map::new();
        let message = numbers::message(&self.schema.get(id).name).expect("it has a message");
        self.fill(id, message, depth, &mut object);
        object.into()
    }

    fn fill(
        &mut self,
        id: TypeId,
        message: &Message,
        depth: usize,
        object: &mut Map<String, Value>,
    ) {
        // Wide at the top, narrow below, so that objects stay small but every field has its turn.
        let chance = [0.9, 0.6, 0.4].get(depth).copied().unwrap_or(0.25);
        for numbered in message.fields() {
            if let Some(inline) = numbered.inline() {
                self.fill(id, inline, depth, object);
                continue;
            }
            let schema = self.schema;
            let Some(field) = schema.get(id).field(numbered.name) else {
                continue;
            };
            if self.random.random_bool(chance) && depth < 12 {
                let value = self.value(&field.shape, numbered.zero_is_absent, depth);
                object.insert(numbered.name.to_owned(), value);
            }
        }
    }

    /// Zero values only where they do not mean that the field is absent; lists and maps are never empty.
    fn value(&mut self, shape: &Shape, marked: bool, depth: usize) -> Value {
        let random = &mut self.random;
        match shape {
            Shape::String if !marked && random.random_bool(0.1) => "".into(),
            Shape::String => ["a", "ä€", "x\"y\n", "long".repeat(50).as_str()]
                .choose(random)
                .copied()
                .unwrap()
                .into(),
            Shape::Int32 | Shape::Int64 if !marked && random.random_bool(0.1) => 0.into(),
            Shape::Int32 => (*[1, 127, 128, -1, i32::MAX, i32::MIN]
                .choose(random)
                .unwrap())
            .into(),
            Shape::Int64 => (*[1, 300, -1, i64::MAX, i64::MIN].choose(random).unwrap()).into(),
            Shape::Number => 1.5.into(),
            Shape::Bool => (marked || random.random()).into(),
            Shape::Time => {
                let seconds = random.random_range(-1_000_000_000..4_000_000_000);
                let time = jiff::Timestamp::from_second(seconds).unwrap();
                time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into()
            }
            Shape::MicroTime => {
                let micros = random.random_range(0..4_000_000_000_000_000);
                let time = jiff::Timestamp::from_microsecond(micros).unwrap();
                time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string().into()
            }
            Shape::Bytes => ["AA==", "aGVsbG8=", "/+8="]
                .choose(random)
                .copied()
                .unwrap()
                .into(),
            Shape::Quantity => ["0", "100m", "1500Mi"]
                .choose(random)
                .copied()
                .unwrap()
                .into(),
            Shape::IntOrString => match random.random_range(0..3) {
                0 => 0.into(),
                1 => random.random::<i32>().into(),
                _ => "25%".into(),
            },
            Shape::Any => json!({ "f:metadata": { ".": {}, "n": [1, null, "é"] } }),
            Shape::Object(id) => self.object(*id, depth + 1),
            Shape::List(item) => {
                let count = random.random_range(1..=2);
                (0..count).map(|_| self.value(item, false, depth)).collect()
            }
            Shape::Map(item) => {
                let keys = ["", "k", "a.b/c"];
                let count = random.random_range(1..=3);
                let entries = keys[..count].iter();
                let entries: BTreeMap<_, _> = entries
                    .map(|key| ((*key).to_owned(), self.value(item, false, depth)))
                    .collect();
                json!(entries)
            }
        }
    }
}

/// The kinds that have messages, always in the same order.
fn kinds() -> Vec<GroupVersionKind> {
    let schemas = Schemas::builtin();
    let kinds = schemas.kinds.iter().filter(|(_, schema)| encodes(schema));
    let mut kinds: Vec<_> = kinds.map(|(gvk, _)| gvk.clone()).collect();
    kinds.sort_by_key(|gvk| (gvk.api_version(), gvk.kind.clone()));
    kinds
}

fn made(gvk: &GroupVersionKind, seed: u64) -> Value {
    let schemas = Schemas::builtin();
    let schema = schemas.find(gvk).unwrap();
    let random = StdRng::seed_from_u64(seed);
    let mut object = Maker { schema, random }.object(schema.root_id(), 0);
    object["apiVersion"] = gvk.api_version().into();
    object["kind"] = (&*gvk.kind).into();
    object
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn an_object_of_any_kind_survives_its_encoding(
        gvk in proptest::sample::select(kinds()),
        seed: u64,
    ) {
        let object = made(&gvk, seed);
        let schemas = Schemas::builtin();
        let body = encode(schemas.find(&gvk), &gvk, &object).expect("it has an encoding");
        let read = decode(schemas.find(&gvk), &gvk, &body).expect("it is read");
        prop_assert_eq!(read, object);
    }

    #[test]
    fn broken_bodies_are_refused_or_read_but_never_panic(
        seed: u64,
        at in any::<prop::sample::Index>(),
        byte: u8,
    ) {
        let gvk = gvk("v1", "Pod");
        let schemas = Schemas::builtin();
        let mut body = encode(schemas.find(&gvk), &gvk, &made(&gvk, seed)).unwrap();
        let at = at.index(body.len());
        body[at] = byte;
        let _ = decode(schemas.find(&gvk), &gvk, &body);
    }
}

#[test]
fn a_pod_is_written_byte_by_byte_as_kubernetes_writes_it() {
    let object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "p", "labels": { "k": "v" }, "creationTimestamp": "1970-01-01T00:00:05Z" },
        "spec": {
            "volumes": [{ "name": "v", "emptyDir": {} }],
            "containers": [{
                "name": "c",
                "image": "i",
                "resources": { "limits": { "cpu": "100m" } },
                "livenessProbe": { "httpGet": { "port": 80 }, "periodSeconds": 300 },
            }],
            "terminationGracePeriodSeconds": 0,
        },
    });
    let label = bytes(11, &[bytes(1, b"k"), bytes(2, b"v")].concat());
    let metadata = [bytes(1, b"p"), bytes(8, &[1 << 3, 5]), label].concat();
    let volume = [bytes(1, b"v"), bytes(2, &bytes(2, &[]))].concat();
    let cpu = [bytes(1, b"cpu"), bytes(2, &bytes(1, b"100m"))].concat();
    let port = bytes(2, &[1 << 3, 0, 2 << 3, 80]);
    // The handler stands inline in JSON. 300 takes two bytes: its lower seven bits come first.
    let probe = [bytes(1, &bytes(2, &port)), vec![4 << 3, 0xac, 0x02]].concat();
    let container = [
        bytes(1, b"c"),
        bytes(2, b"i"),
        bytes(8, &bytes(1, &cpu)),
        bytes(10, &probe),
    ]
    .concat();
    let spec = [bytes(1, &volume), bytes(2, &container), vec![4 << 3, 0]].concat();
    let pod = [bytes(1, &metadata), bytes(2, &spec)].concat();
    let gvk = gvk("v1", "Pod");
    let written = encode(Schemas::builtin().find(&gvk), &gvk, &object).unwrap();
    assert_eq!(written, body_of(b"v1", b"Pod", &pod));
}

#[test]
fn lists_hold_their_metadata_and_the_items_messages() {
    let gvk = gvk("v1", "Namespace");
    let list = GroupVersionKind {
        kind: "NamespaceList".to_owned(),
        ..gvk.clone()
    };
    let metadata = json!({ "resourceVersion": "7", "remainingItemCount": 2 });
    let item = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "n" } });
    let schemas = Schemas::builtin();
    let written = encode_list(schemas.find(&gvk), &list, &metadata, [&item, &item]).unwrap();
    let list_meta = [bytes(2, b"7"), vec![4 << 3, 2]].concat();
    let item_message = bytes(2, &bytes(1, &bytes(1, b"n")));
    let message = [bytes(1, &list_meta), item_message.clone(), item_message].concat();
    assert_eq!(written, body_of(b"v1", b"NamespaceList", &message));
    let partial = encode_partial_list(&metadata, [&item, &item]).unwrap();
    assert_eq!(
        partial,
        body_of(b"meta.k8s.io/v1", b"PartialObjectMetadataList", &message)
    );
}

#[test]
fn a_watch_frame_is_an_event_behind_its_length() {
    let frame = watch_frame("ADDED", b"k8s\0");
    let event = [bytes(1, b"ADDED"), bytes(2, &bytes(1, b"k8s\0"))].concat();
    assert_eq!(frame, [&[0, 0, 0, 15][..], &event].concat());
}

#[test]
fn what_has_no_encoding_says_why() {
    let crontab = gvk("example.com/v1", "CronTab");
    let error = encode(None, &crontab, &json!({})).unwrap_err();
    assert_eq!(error.to_string(), "kind CronTab has no protobuf encoding");
    let pod = |spec: Value| json!({ "apiVersion": "v1", "kind": "Pod", "spec": spec });
    let error = encode_by_kind(&pod(json!({ "newer": 1 }))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "field newer of PodSpec has no number in protobuf"
    );
    let error = encode_by_kind(&pod(json!({ "priority": "high" }))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "field priority is not the Int32 that its schema says"
    );
}
