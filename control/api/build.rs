//! Makes the schemas of the built-in kinds from `k8s-openapi` and `src/schema/facts.txt`.
//!
//! Two files come out, both deflated: `types.z`, a line-based table for decoding, defaulting and merging, and
//! `definitions.z`, the JSON definitions with descriptions and extensions, from which OpenAPI documents are made.

#[path = "build/facts.rs"]
mod facts;
#[path = "build/roots.rs"]
mod roots;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

use facts::{Facts, Field};
use serde_json::{Map, Value, json};

const PREFIX: &str = "#/$defs/";
const MAP_TYPE: &str = "x-kubernetes-map-type";
const FACTS: &str = "src/schema/facts.txt";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed={FACTS}");
    let text = std::fs::read_to_string(FACTS).expect("facts.txt is part of the crate");
    let facts = facts::parse(&text);

    let mut generator = schemars::generate::SchemaSettings::draft2020_12().into_generator();
    let kinds = roots::define(&mut generator);
    let mut definitions = generator.take_definitions(true);
    for (name, definition) in &mut definitions {
        tidy(definition);
        if name.ends_with("intstr.IntOrString") {
            *definition = json!({ "description": definition["description"], "type": "string", "format": "int-or-string" });
        } else if name.ends_with("resource.Quantity") {
            *definition = json!({ "description": definition["description"], "type": "string" });
        }
    }
    for (name, [group, version, kind]) in &kinds {
        let definition = definitions.get_mut(name).expect("a kind has a definition");
        definition["x-kubernetes-group-version-kind"] =
            json!([{ "group": group, "version": version, "kind": kind }]);
    }
    let used = facts.check(&definitions);
    write("types.z", types(&definitions, &facts).as_bytes());
    for (name, fields) in &used {
        for field in fields {
            let definition = &mut definitions[name.as_str()];
            if facts.is_atomic(name) {
                definition[MAP_TYPE] = "atomic".into();
            }
            if let Some(property) = definition["properties"].get_mut(&field.name) {
                extend(property, field);
            }
        }
    }
    let mut definitions = Value::Object(definitions);
    refer_to_components(&mut definitions);
    write(
        "definitions.z",
        &serde_json::to_vec(&definitions).expect("JSON serialises"),
    );
}

/// Drops what `k8s-openapi` says and Kubernetes does not: that `metadata` is required.
fn tidy(definition: &mut Value) {
    if let Some(required) = definition.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| name != "metadata");
        if required.is_empty() {
            definition
                .as_object_mut()
                .expect("a definition is an object")
                .remove("required");
        }
    }
}

/// The extensions of OpenAPI that say how a field merges.
fn extend(property: &mut Value, field: &Field) {
    let is_list = property["type"] == "array";
    let mut put = |key: &str, value: Value| property[key] = value;
    match field.list.as_str() {
        "atomic" if !is_list => put(MAP_TYPE, "atomic".into()),
        "" => {}
        "map" => {
            put("x-kubernetes-list-type", "map".into());
            put("x-kubernetes-list-map-keys", json!(field.keys));
        }
        other => put("x-kubernetes-list-type", other.into()),
    }
    if !field.strategy.is_empty() {
        put(
            "x-kubernetes-patch-strategy",
            field.strategy.as_str().into(),
        );
    }
    if !field.merge_key.is_empty() {
        put(
            "x-kubernetes-patch-merge-key",
            field.merge_key.as_str().into(),
        );
    }
}

/// References in OpenAPI 3's form: to components, and inside `allOf` where something stands beside them.
fn refer_to_components(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(refer_to_components),
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                let reference =
                    json!({ "$ref": reference.replace(PREFIX, "#/components/schemas/") });
                fields.remove("$ref");
                if fields.is_empty() {
                    *value = reference;
                } else {
                    fields.insert("allOf".to_owned(), json!([reference]));
                }
            } else {
                fields.values_mut().for_each(refer_to_components);
            }
        }
        _ => {}
    }
}

/// The table of types; `src/schema/load.rs` reads it.
fn types(definitions: &Map<String, Value>, facts: &Facts) -> String {
    let mut out = String::new();
    for (name, definition) in definitions {
        let Some(properties) = definition.get("properties").and_then(Value::as_object) else {
            continue;
        };
        let kind = &definition["x-kubernetes-group-version-kind"][0];
        let text = |key: &str| kind[key].as_str().unwrap_or_default();
        writeln!(
            out,
            "T\t{name}\t{}\t{}\t{}\t{}",
            text("group"),
            text("version"),
            text("kind"),
            if facts.is_atomic(name) { "a" } else { "" },
        )
        .expect("a String takes all");
        let required = definition["required"].as_array();
        for (field, property) in properties {
            let fact = facts.field(name, field);
            writeln!(
                out,
                "{field}\t{}\t{}{}\t{}\t{}\t{}\t{}\t{}",
                shape(property, definitions),
                if required.is_some_and(|list| list.iter().any(|name| name == field)) {
                    "r"
                } else {
                    ""
                },
                if fact.pointer { "p" } else { "" },
                fact.list.get(..1).unwrap_or_default(),
                fact.keys.join(","),
                fact.strategy,
                fact.merge_key,
                fact.default,
            )
            .expect("a String takes all");
        }
    }
    out
}

/// A property's type as a short word: `s`, `i`, `[]@io.k8s.api.core.v1.Container`, `{}s`, …
fn shape(property: &Value, definitions: &Map<String, Value>) -> String {
    if let Some(reference) = property.get("$ref").and_then(Value::as_str) {
        let name = reference.trim_start_matches(PREFIX);
        return match name.rsplit('.').next() {
            Some("IntOrString") => "o".into(),
            Some("Quantity") => "q".into(),
            Some("Time") => "t".into(),
            Some("MicroTime") => "m".into(),
            _ if definitions[name].get("properties").is_some() => format!("@{name}"),
            _ => "*".into(),
        };
    }
    match (property["type"].as_str(), property["format"].as_str()) {
        (Some("string"), Some("byte")) => "y".into(),
        (Some("string"), _) => "s".into(),
        (Some("integer"), Some("int64")) => "l".into(),
        (Some("integer"), _) => "i".into(),
        (Some("number"), _) => "n".into(),
        (Some("boolean"), _) => "b".into(),
        (Some("array"), _) => format!("[]{}", shape(&property["items"], definitions)),
        (Some("object"), _) => match property.get("additionalProperties") {
            Some(values) => format!("{{}}{}", shape(values, definitions)),
            None => "*".into(),
        },
        _ => "*".into(),
    }
}

fn write(name: &str, content: &[u8]) {
    let path = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join(name);
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(content).expect("a Vec takes all");
    std::fs::write(&path, encoder.finish().expect("a Vec takes all")).expect("OUT_DIR is writable");
}
