//! OpenAPI documents: version 3 per group and version, version 2 of everything, in JSON and in gnostic's protobuf.
//!
//! Made from the definitions that build.rs packed, when somebody asks, once for a table of resources (`cache`).
//! kubectl reads from them the fields of a kind (`explain`), how lists merge (`apply`, `edit`), and whether the server
//! validates fields (`create --validate`, by a query parameter of `PATCH`).

pub mod cache;
mod gnostic;
mod paths;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::sync::Arc;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::resource::{Resource, Verb};

static PACKED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/definitions.z"));

/// What clients ask for to get version 2 in protobuf.
pub const V2_PROTOBUF_ACCEPT: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// What they get: the same, as a media type that can be parsed (kube-openapi, `handler`).
pub const V2_PROTOBUF_CONTENT_TYPE: &str =
    "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

const COMPONENT: &str = "#/components/schemas/";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.";

/// The document of version 2, as JSON.
pub fn v2(resources: &[Arc<Resource>]) -> Vec<u8> {
    serde_json::to_vec(&v2_document(resources)).expect("a JSON value always serialises")
}

/// The document of version 2 in protobuf, for [`V2_PROTOBUF_ACCEPT`]; it is sent as [`V2_PROTOBUF_CONTENT_TYPE`].
pub fn v2_protobuf(resources: &[Arc<Resource>]) -> Vec<u8> {
    gnostic::document(&v2_document(resources))
}

/// The index of the documents of version 3.
pub fn v3_index(resources: &[Arc<Resource>]) -> Vec<u8> {
    let definitions = Definitions::unpack();
    let mut paths = Map::new();
    for (name, group, version) in documents(resources) {
        let document = definitions.v3(resources, &group, &version);
        let hash = hex::encode_upper(&Sha256::digest(&document)[..]);
        let url = format!("/openapi/v3/{name}?hash={hash}");
        paths.insert(name, json!({ "serverRelativeURL": url }));
    }
    serde_json::to_vec(&json!({ "paths": paths })).expect("a JSON value always serialises")
}

/// One document of version 3; `name` is `api/v1` or `apis/<group>/<version>`.
pub fn v3(resources: &[Arc<Resource>], name: &str) -> Option<Vec<u8>> {
    let (_, group, version) = documents(resources)
        .into_iter()
        .find(|(found, _, _)| found == name)?;
    Some(Definitions::unpack().v3(resources, &group, &version))
}

/// Whether there is a document of version 3 of this name.
pub fn has_v3(resources: &[Arc<Resource>], name: &str) -> bool {
    documents(resources).iter().any(|(found, ..)| found == name)
}

/// The entity tag of a document.
pub fn etag(document: &[u8]) -> String {
    format!("\"{}\"", hex::encode_upper(&Sha256::digest(document)[..]))
}

/// The documents' names with their groups and versions.
fn documents(resources: &[Arc<Resource>]) -> Vec<(String, String, String)> {
    let mut found: Vec<(String, String, String)> = Vec::new();
    for resource in resources {
        let (group, version) = (&resource.gvk.group, &resource.gvk.version);
        if !found.iter().any(|(_, g, v)| g == group && v == version) {
            let name = format!(
                "{}{}",
                if group.is_empty() { "api" } else { "apis/" },
                resource.gvk.api_version_path()
            );
            found.push((name, group.clone(), version.clone()));
        }
    }
    found
}

trait ApiVersionPath {
    /// `/v1` for the core group, `group/version` for the others.
    fn api_version_path(&self) -> String;
}

impl ApiVersionPath for crate::resource::GroupVersionKind {
    fn api_version_path(&self) -> String {
        if self.group.is_empty() {
            format!("/{}", self.version)
        } else {
            self.api_version()
        }
    }
}

/// The definitions as text: unpacked, not parsed further than to their names.
struct Definitions {
    text: String,
}

impl Definitions {
    fn unpack() -> Self {
        let mut text = String::new();
        flate2::read::DeflateDecoder::new(PACKED)
            .read_to_string(&mut text)
            .expect("build.rs wrote valid deflated text");
        Self { text }
    }

    fn by_name(&self) -> BTreeMap<&str, &RawValue> {
        serde_json::from_str(&self.text).expect("build.rs wrote a JSON object")
    }

    fn v3(&self, resources: &[Arc<Resource>], group: &str, version: &str) -> Vec<u8> {
        let definitions = self.by_name();
        let own: Vec<&Arc<Resource>> = resources
            .iter()
            .filter(|r| r.gvk.group == group && r.gvk.version == version)
            .collect();
        let mut made = Map::new();
        let mut paths = Map::new();
        for resource in &own {
            paths::add(&mut paths, resource, paths::Version::Three);
            if let Some(definition) = &resource.definition {
                made.insert(
                    definition_name(resource).to_owned(),
                    Value::clone(definition),
                );
            }
            if resource.verbs.contains(&Verb::List) {
                let (name, list) = list_definition(resource);
                made.insert(name, list);
            }
        }
        let roots =
            serde_json::to_string(&(&made, &paths)).expect("a JSON value always serialises");
        let mut schemas: BTreeMap<&str, Raw> = BTreeMap::new();
        for name in reachable(&definitions, &roots) {
            schemas.insert(name, Raw::Text(definitions[name]));
        }
        for (name, list) in &made {
            schemas.insert(name, Raw::Made(list));
        }
        let document = Document {
            openapi: "3.0.0",
            info: json!({ "title": "Kubernetes", "version": "v1.37.0" }),
            paths,
            components: Components { schemas },
        };
        serde_json::to_vec(&document).expect("a JSON value always serialises")
    }
}

#[derive(serde::Serialize)]
struct Document<'a> {
    openapi: &'static str,
    info: Value,
    paths: Map<String, Value>,
    components: Components<'a>,
}

#[derive(serde::Serialize)]
struct Components<'a> {
    schemas: BTreeMap<&'a str, Raw<'a>>,
}

#[derive(serde::Serialize)]
#[serde(untagged)]
enum Raw<'a> {
    Text(&'a RawValue),
    Made(&'a Value),
}

/// The definitions that a text refers to, directly or through others.
fn reachable<'a>(definitions: &BTreeMap<&'a str, &'a RawValue>, text: &str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut queue: Vec<String> = references(text).map(str::to_owned).collect();
    while let Some(name) = queue.pop() {
        if let Some((name, definition)) = definitions.get_key_value(name.as_str())
            && found.insert(*name)
        {
            queue.extend(references(definition.get()).map(str::to_owned));
        }
    }
    found
}

fn references(text: &str) -> impl Iterator<Item = &str> {
    text.split(COMPONENT)
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
}

/// The name of a kind's definition: `io.k8s.api.core.v1.Pod`.
fn definition_name(resource: &Resource) -> &str {
    &resource.schema.root().name
}

/// The definition of the list of a kind.
fn list_definition(resource: &Resource) -> (String, Value) {
    let item = definition_name(resource);
    let kind = &resource.gvk.kind;
    let list = json!({
        "description": format!("{kind}List is a list of {kind} objects."),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": { "type": "string", "description": "APIVersion defines the versioned schema of this representation of an object." },
            "kind": { "type": "string", "description": "Kind is a string value representing the REST resource this object represents." },
            "metadata": { "allOf": [{ "$ref": format!("{COMPONENT}{META}ListMeta") }], "default": {}, "description": "Standard list metadata." },
            "items": { "type": "array", "description": "The list's items.", "items": { "allOf": [{ "$ref": format!("{COMPONENT}{item}") }], "default": {} } },
        },
        "x-kubernetes-group-version-kind": [{
            "group": resource.gvk.group, "version": resource.gvk.version, "kind": format!("{kind}List"),
        }],
    });
    (format!("{item}List"), list)
}

fn v2_document(resources: &[Arc<Resource>]) -> Value {
    let unpacked = Definitions::unpack();
    let definitions = unpacked.by_name();
    let mut made = Map::new();
    let mut paths = Map::new();
    for resource in resources {
        paths::add(&mut paths, resource, paths::Version::Two);
        if let Some(definition) = &resource.definition {
            let mut definition = Value::clone(definition);
            for_version_two(&mut definition);
            made.insert(definition_name(resource).to_owned(), definition);
        }
        if resource.verbs.contains(&Verb::List) {
            let (name, list) = list_definition(resource);
            made.insert(name, list);
        }
    }
    // Paths of version 2 refer to definitions, not to components; the kinds are all reachable from their lists or by name.
    let mut roots = serde_json::to_string(&made).expect("a JSON value always serialises");
    for resource in resources {
        roots.push_str(&format!("{COMPONENT}{}\"", definition_name(resource)));
    }
    for name in ["DeleteOptions", "Status", "Patch"] {
        roots.push_str(&format!("{COMPONENT}{META}{name}\""));
    }
    for name in [
        "autoscaling.v1.Scale",
        "policy.v1.Eviction",
        "core.v1.Binding",
        "authentication.v1.TokenRequest",
    ] {
        roots.push_str(&format!("{COMPONENT}io.k8s.api.{name}\""));
    }
    for name in reachable(&definitions, &roots) {
        let definition =
            serde_json::from_str(definitions[name].get()).expect("build.rs wrote JSON");
        made.insert(name.to_owned(), definition);
    }
    made.values_mut().for_each(refer_to_definitions);
    json!({
        "swagger": "2.0",
        "info": { "title": "Kubernetes", "version": "v1.37.0" },
        "paths": paths,
        "definitions": made,
    })
}

/// Leaves out what version 2 cannot say of a custom resource, as kube-apiserver does (`ToStructuralOpenAPIV2`).
fn for_version_two(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    // A reference is none of the user's: what they write is structural.
    if fields
        .get("allOf")
        .is_some_and(|all| all[0]["$ref"].is_string())
    {
        return;
    }
    if fields.get("nullable") == Some(&Value::Bool(true)) {
        fields.retain(|name, _| name == "description" || name.starts_with("x-kubernetes-"));
        return;
    }
    for name in [
        "allOf",
        "anyOf",
        "oneOf",
        "not",
        "nullable",
        "x-kubernetes-validations",
    ] {
        fields.remove(name);
    }
    if fields.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true)) {
        fields.remove("items");
        fields.remove("properties");
    }
    if let Some(properties) = fields.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(for_version_two);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get_mut(name) {
            for_version_two(inner);
        }
    }
}

/// References in the form of version 2.
fn refer_to_definitions(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(refer_to_definitions),
        Value::Object(fields) => {
            if let Some(reference) = fields.get("allOf").and_then(|all| all[0]["$ref"].as_str()) {
                let reference = reference.replace(COMPONENT, "#/definitions/");
                fields.remove("allOf");
                fields.remove("default");
                fields.insert("$ref".to_owned(), reference.into());
            } else if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                let reference = reference.replace(COMPONENT, "#/definitions/");
                fields.insert("$ref".to_owned(), reference.into());
            } else {
                fields.values_mut().for_each(refer_to_definitions);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_of_a_document_is_defined_in_it() {
        let resources = crate::kinds::builtin().resources;
        for (name, _, _) in documents(&resources) {
            let document = v3(&resources, &name).expect("a document of the index");
            let text = String::from_utf8(document).expect("UTF-8");
            let parsed: Value = serde_json::from_str(&text).expect("JSON");
            for reference in references(&text) {
                assert!(
                    parsed["components"]["schemas"].get(reference).is_some(),
                    "{name}: {reference}"
                );
            }
        }
        let text = String::from_utf8(v2(&resources)).expect("UTF-8");
        let parsed: Value = serde_json::from_str(&text).expect("JSON");
        for reference in text
            .split("#/definitions/")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
        {
            assert!(
                parsed["definitions"].get(reference).is_some(),
                "v2: {reference}"
            );
        }
    }

    #[test]
    fn kubectl_finds_what_it_looks_for() {
        let resources = crate::kinds::builtin().resources;
        let document: Value =
            serde_json::from_slice(&v3(&resources, "api/v1").expect("core")).expect("JSON");
        let pod = &document["components"]["schemas"]["io.k8s.api.core.v1.Pod"];
        assert_eq!(pod["x-kubernetes-group-version-kind"][0]["kind"], "Pod");
        assert!(pod.get("required").is_none());
        let spec = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"]["properties"];
        assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(
            spec["volumes"]["x-kubernetes-patch-strategy"],
            "merge,retainKeys"
        );
        assert_eq!(spec["nodeSelector"]["x-kubernetes-map-type"], "atomic");
        let reference = &document["components"]["schemas"]["io.k8s.api.core.v1.ObjectReference"];
        assert_eq!(reference["x-kubernetes-map-type"], "atomic");
        let patch = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");
        let parameters = patch["parameters"].as_array().expect("parameters");
        assert!(parameters.iter().any(|p| p["name"] == "fieldValidation"));
    }
}
