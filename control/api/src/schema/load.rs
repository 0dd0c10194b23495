//! Unpacks the table of types that build.rs makes.

use std::collections::{HashMap, HashSet};
use std::io::Read as _;
use std::sync::Arc;

use super::{Field, FieldDefault, ListType, Reading, Rule, Schema, Schemas, Shape, Type, TypeId};
use crate::resource::GroupVersionKind;

static TABLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/types.z"));

pub fn builtin() -> Schemas {
    let mut text = String::new();
    flate2::read::DeflateDecoder::new(TABLE)
        .read_to_string(&mut text)
        .expect("build.rs wrote valid deflated text");
    parse(&text)
}

/// Words that many fields share are kept once.
#[derive(Default)]
struct Words(HashSet<Arc<str>>);

impl Words {
    fn keep(&mut self, word: &str) -> Arc<str> {
        if let Some(kept) = self.0.get(word) {
            return kept.clone();
        }
        let kept: Arc<str> = word.into();
        self.0.insert(kept.clone());
        kept
    }
}

/// Lines starting with `T` open a type; the lines up to the next are its fields.
fn parse(text: &str) -> Schemas {
    let mut ids = HashMap::new();
    let mut kinds = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("T\t")) {
        let mut words = line.split('\t').skip(1);
        let mut word = || words.next().unwrap_or_default();
        let (name, group, version, kind) = (word(), word(), word(), word());
        let id = TypeId(u32::try_from(ids.len()).expect("few types"));
        ids.insert(name, id);
        if !kind.is_empty() {
            kinds.push(([group, version, kind], id));
        } else if name == "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions" {
            kinds.push((["", "v1", "DeleteOptions"], id));
        }
    }
    let mut kept = Words::default();
    let mut types: Vec<Type> = Vec::with_capacity(ids.len());
    let mut fields = Vec::new();
    let (mut name, mut atomic) = ("", false);
    for line in text.lines().chain(["T\t"]) {
        if let Some(head) = line.strip_prefix("T\t") {
            if !name.is_empty() {
                fields.sort_by(|a: &Field, b: &Field| a.name.cmp(&b.name));
                types.push(Type {
                    name: name.into(),
                    atomic,
                    reading: Reading::Strict,
                    fields: std::mem::take(&mut fields).into_boxed_slice(),
                });
            }
            let mut words = head.split('\t');
            name = words.next().unwrap_or_default();
            atomic = words.nth(3) == Some("a");
        } else {
            fields.push(field(line, &ids, &mut kept));
        }
    }
    let types: Arc<[Type]> = types.into();
    let mut schemas = Schemas::default();
    for ([group, version, kind], root) in kinds {
        let gvk = GroupVersionKind {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
        };
        let types = types.clone();
        schemas.insert(gvk, Schema { types, root });
    }
    schemas
}

fn field(line: &str, ids: &HashMap<&str, TypeId>, kept: &mut Words) -> Field {
    let mut words = line.split('\t');
    let mut word = || words.next().unwrap_or_default();
    let (name, shape_word, required, list, keys) = (word(), word(), word(), word(), word());
    let (strategy, merge_key, default) = (word(), word(), word());
    let (shape, default) = (shape(shape_word, ids), default_of(default));
    let by_value = required.contains('r')
        || !required.contains('p') && is_struct_value(name, &shape, &default);
    Field {
        name: kept.keep(name),
        atomic: matches!(shape, Shape::Map(_)) && list == "a",
        shape,
        required: required.contains('r'),
        by_value,
        list: match list {
            "m" => ListType::Map,
            "s" => ListType::Set,
            _ => ListType::Atomic,
        },
        keys: keys
            .split(',')
            .filter(|key| !key.is_empty())
            .map(|key| kept.keep(key))
            .collect(),
        merge: strategy.split(',').any(|s| s == "merge"),
        retain_keys: strategy.split(',').any(|s| s == "retainKeys"),
        merge_key: kept.keep(merge_key),
        default,
    }
}

/// Whether a field that may be left out of JSON is a struct in Go and no pointer: such a field has a default of `{}`, and
/// `metadata`, `spec` and `status` are of that kind everywhere.
fn is_struct_value(name: &str, shape: &Shape, default: &FieldDefault) -> bool {
    let usual = matches!(name, "metadata" | "spec" | "status");
    let defaulted = matches!(default, FieldDefault::Missing(value) if value.is_object());
    matches!(shape, Shape::Object(_)) && (usual || defaulted)
}

fn shape(word: &str, ids: &HashMap<&str, TypeId>) -> Shape {
    if let Some(item) = word.strip_prefix("[]") {
        return Shape::List(Box::new(shape(item, ids)));
    }
    if let Some(value) = word.strip_prefix("{}") {
        return Shape::Map(Box::new(shape(value, ids)));
    }
    if let Some(name) = word.strip_prefix('@') {
        return ids.get(name).map_or(Shape::Any, |id| Shape::Object(*id));
    }
    match word {
        "s" => Shape::String,
        "i" => Shape::Int32,
        "l" => Shape::Int64,
        "n" => Shape::Number,
        "b" => Shape::Bool,
        "t" => Shape::Time,
        "m" => Shape::MicroTime,
        "y" => Shape::Bytes,
        "q" => Shape::Quantity,
        "o" => Shape::IntOrString,
        _ => Shape::Any,
    }
}

fn default_of(word: &str) -> FieldDefault {
    let Some(mode) = word.chars().next() else {
        return FieldDefault::None;
    };
    let text = &word[1..];
    let rule = match text {
        "@imagePullPolicy" => Some(Rule::ImagePullPolicy),
        "@emptyDir" => Some(Rule::EmptyDir),
        "@targetPort" => Some(Rule::TargetPort),
        "@rollingUpdate" => Some(Rule::RollingUpdate),
        "@rollingUpdateIfUntyped" => Some(Rule::RollingUpdateIfUntyped),
        "@subjectGroup" => Some(Rule::SubjectGroup),
        _ => None,
    };
    if let Some(rule) = rule {
        return FieldDefault::Rule(rule);
    }
    let value = serde_json::from_str(text).expect("build.rs checked the defaults");
    if mode == '?' {
        FieldDefault::Zero(value)
    } else {
        FieldDefault::Missing(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_of_the_table_is_known() {
        let schemas = builtin();
        let pod = schemas
            .find(&crate::kinds::gvk("v1", "Pod"))
            .expect("pods have a schema");
        let spec = pod.root().field("spec").expect("a pod has a spec");
        let Shape::Object(id) = spec.shape else {
            panic!("spec is {:?}", spec.shape)
        };
        let spec = pod.get(id);
        assert_eq!(spec.go_type(), "v1.PodSpec");
        let containers = spec.field("containers").expect("containers");
        assert!(containers.merge && containers.required && containers.list == ListType::Map);
        assert_eq!(&*containers.merge_key, "name");
        assert!(spec.field("volumes").expect("volumes").retain_keys);
        assert!(spec.field("nodeSelector").expect("nodeSelector").atomic);
        let references = spec.field("imagePullSecrets").expect("imagePullSecrets");
        let Shape::List(item) = &references.shape else {
            panic!("imagePullSecrets is {:?}", references.shape)
        };
        let Shape::Object(reference) = **item else {
            panic!("an item of imagePullSecrets is {item:?}")
        };
        assert!(pod.get(reference).atomic && !spec.atomic);
    }
}
