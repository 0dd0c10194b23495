//! The resources that an established definition serves, one a version.

use std::sync::Arc;

use serde_json::{Value, json};

use super::custom::Custom;
use super::definition::storage_version;
use crate::registry::ownership::Reset;
use crate::resource::{GroupVersionKind, Resource, Scope, Subresource, Verb};
use crate::status::FieldError;
use crate::strategy::common::text;
use crate::strategy::validation::items;

/// Why a definition cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// No version is the one in which objects are stored.
    #[error("no version is marked as storage version")]
    NoStorageVersion,
    /// Objects would have to be converted by a webhook, which nobody here calls.
    #[error("conversion by webhooks between {versions} versions is not supported")]
    WebhookConversion {
        /// How many versions there are.
        versions: usize,
    },
    /// The schema of a version is none.
    #[error("schema of version {version}: {}", messages(.errors))]
    Schema {
        /// The version.
        version: String,
        /// What is wrong.
        errors: Vec<FieldError>,
    },
}

fn messages(errors: &[FieldError]) -> String {
    let lines: Vec<String> = errors
        .iter()
        .map(|error| format!("{}: {}", error.field, error.message))
        .collect();
    lines.join(", ")
}

const VERBS: [Verb; 8] = [
    Verb::Create,
    Verb::Delete,
    Verb::DeleteCollection,
    Verb::Get,
    Verb::List,
    Verb::Patch,
    Verb::Update,
    Verb::Watch,
];

/// The resources of a definition: those of the served versions, with the names that it was given
/// (`status.acceptedNames`).
///
/// A storage version that is not served has no resource; the others name it as theirs all the same.
///
/// # Errors
///
/// Why it cannot be served. A definition that passed validation fails only for conversion by webhook.
pub fn resources(crd: &Value) -> Result<Vec<Resource>, DefinitionError> {
    let spec = &crd["spec"];
    let (group, versions) = (text(&spec["group"]), &spec["versions"]);
    let storage = storage_version(crd).ok_or(DefinitionError::NoStorageVersion)?;
    let count = items(versions).count();
    if spec["conversion"]["strategy"] == "Webhook" && count > 1 {
        return Err(DefinitionError::WebhookConversion { versions: count });
    }
    let names = &crd["status"]["acceptedNames"];
    let list = |field: &str| -> Vec<String> {
        let names = items(&names[field]).map(|(_, name)| text(name).to_owned());
        names.collect()
    };
    let (plural, kind) = (text(&names["plural"]), text(&names["kind"]));
    let gvk = |version: &str| GroupVersionKind {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
    };
    let served = items(versions).filter(|(_, version)| version["served"] == true);
    served
        .map(|(index, version)| {
            let name = text(&version["name"]);
            let path = format!("spec.versions[{index}].schema.openAPIV3Schema");
            let structural =
                super::parse(&version["schema"]["openAPIV3Schema"], &path).map_err(|errors| {
                    DefinitionError::Schema {
                        version: name.to_owned(),
                        errors,
                    }
                })?;
            let gvk = gvk(name);
            let schema = super::compile(&structural, &definition_name(&gvk));
            let mut subresources = Vec::new();
            if !version["subresources"]["scale"].is_null() {
                subresources.push(Subresource::Scale);
            }
            if !version["subresources"]["status"].is_null() {
                subresources.push(Subresource::Status);
            }
            let stored = GroupVersionKind {
                version: storage.to_owned(),
                ..gvk.clone()
            };
            Ok(Resource {
                reset: Reset::of(&schema, &subresources),
                definition: Some(Arc::new(definition(
                    &gvk,
                    &version["schema"]["openAPIV3Schema"],
                ))),
                plural: plural.to_owned(),
                singular: text(&names["singular"]).to_owned(),
                short_names: list("shortNames"),
                categories: list("categories"),
                scope: if spec["scope"] == "Namespaced" {
                    Scope::Namespaced
                } else {
                    Scope::Cluster
                },
                verbs: VERBS.to_vec(),
                subresources,
                storage_prefix: format!("{group}/{plural}"),
                storage_version: (name != storage).then_some(stored),
                schema,
                strategy: Arc::new(Custom::new(&gvk, version, structural)),
                gvk,
            })
        })
        .collect()
}

/// What OpenAPI documents say of a kind: its schema, with the fields that every object has.
fn definition(gvk: &GroupVersionKind, schema: &Value) -> Value {
    let mut definition = match schema {
        Value::Object(_) => schema.clone(),
        _ => json!({ "type": "object" }),
    };
    let text = |what: &str| json!({ "type": "string", "description": what });
    let metadata = json!({
        "description": "Standard object's metadata. More info: https://git.k8s.io/community/contributors/devel/sig-architecture/api-conventions.md#metadata",
        "allOf": [{ "$ref": "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta" }],
    });
    definition["properties"]["apiVersion"] =
        text("APIVersion defines the versioned schema of this representation of an object.");
    definition["properties"]["kind"] =
        text("Kind is a string value representing the REST resource this object represents.");
    definition["properties"]["metadata"] = metadata;
    definition["x-kubernetes-group-version-kind"] =
        json!([{ "group": gvk.group, "version": gvk.version, "kind": gvk.kind }]);
    definition
}

/// The name of a kind's definition in OpenAPI: `com.example.v1.Widget`.
fn definition_name(gvk: &GroupVersionKind) -> String {
    let mut parts: Vec<&str> = gvk.group.split('.').rev().collect();
    parts.extend([gvk.version.as_str(), gvk.kind.as_str()]);
    parts.join(".")
}
