//! The paths of a resource, in either version of OpenAPI.

use serde_json::{Map, Value, json};

use super::{COMPONENT, META, definition_name};
use crate::resource::{Resource, Scope, Subresource, Verb};

/// A version of OpenAPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Swagger 2.0.
    Two,
    /// OpenAPI 3.0.
    Three,
}

const PATCHES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// Adds every path of a resource and its subresources.
pub fn add(paths: &mut Map<String, Value>, resource: &Resource, version: Version) {
    let gvk = &resource.gvk;
    let prefix = if gvk.group.is_empty() {
        format!("/api/{}", gvk.version)
    } else {
        format!("/apis/{}/{}", gvk.group, gvk.version)
    };
    let namespaced = resource.scope == Scope::Namespaced;
    let collection = if namespaced {
        format!("{prefix}/namespaces/{{namespace}}/{}", resource.plural)
    } else {
        format!("{prefix}/{}", resource.plural)
    };
    let writer = Writer { resource, version };
    let has = |verb| resource.verbs.contains(&verb);
    let mut item = Map::new();
    for (verb, method, action) in [
        (Verb::List, "get", "list"),
        (Verb::Create, "post", "post"),
        (Verb::DeleteCollection, "delete", "deletecollection"),
    ] {
        if has(verb) {
            item.insert(method.to_owned(), writer.operation(action, None));
        }
    }
    writer.finish(paths, &collection, item);
    if namespaced && has(Verb::List) {
        let mut item = Map::new();
        item.insert("get".to_owned(), writer.operation("list", None));
        writer.finish(paths, &format!("{prefix}/{}", resource.plural), item);
    }
    let mut item = Map::new();
    for (verb, method, action) in [
        (Verb::Get, "get", "get"),
        (Verb::Update, "put", "put"),
        (Verb::Patch, "patch", "patch"),
        (Verb::Delete, "delete", "delete"),
    ] {
        if has(verb) {
            item.insert(method.to_owned(), writer.operation(action, None));
        }
    }
    writer.finish(paths, &format!("{collection}/{{name}}"), item);
    for subresource in &resource.subresources {
        let Some((name, methods, kind)) = face(*subresource) else {
            continue;
        };
        let mut item = Map::new();
        for (method, action) in methods {
            item.insert((*method).to_owned(), writer.operation(action, kind));
        }
        writer.finish(paths, &format!("{collection}/{{name}}/{name}"), item);
    }
}

type Methods = &'static [(&'static str, &'static str)];
/// A definition's name, with its group, version and kind.
type Other = (&'static str, [&'static str; 3]);

/// The subresources whose bodies are objects; streams have no schema.
fn face(subresource: Subresource) -> Option<(&'static str, Methods, Option<Other>)> {
    const OBJECT: Methods = &[("get", "get"), ("put", "put"), ("patch", "patch")];
    const CREATE: Methods = &[("post", "post")];
    Some(match subresource {
        Subresource::Status => ("status", OBJECT, None),
        Subresource::Approval => ("approval", OBJECT, None),
        Subresource::EphemeralContainers => ("ephemeralcontainers", OBJECT, None),
        Subresource::Resize => ("resize", OBJECT, None),
        Subresource::Finalize => ("finalize", &[("put", "put")], None),
        Subresource::Scale => (
            "scale",
            OBJECT,
            Some((
                "io.k8s.api.autoscaling.v1.Scale",
                ["autoscaling", "v1", "Scale"],
            )),
        ),
        Subresource::Binding => (
            "binding",
            CREATE,
            Some(("io.k8s.api.core.v1.Binding", ["", "v1", "Binding"])),
        ),
        Subresource::Eviction => (
            "eviction",
            CREATE,
            Some((
                "io.k8s.api.policy.v1.Eviction",
                ["policy", "v1", "Eviction"],
            )),
        ),
        Subresource::Token => (
            "token",
            CREATE,
            Some((
                "io.k8s.api.authentication.v1.TokenRequest",
                ["authentication.k8s.io", "v1", "TokenRequest"],
            )),
        ),
        Subresource::Log
        | Subresource::Exec
        | Subresource::Attach
        | Subresource::PortForward
        | Subresource::Proxy => {
            return None;
        }
    })
}

struct Writer<'a> {
    resource: &'a Resource,
    version: Version,
}

impl Writer<'_> {
    fn finish(&self, paths: &mut Map<String, Value>, path: &str, mut item: Map<String, Value>) {
        if item.is_empty() {
            return;
        }
        let parameters: Vec<Value> = ["name", "namespace"]
            .into_iter()
            .filter(|name| path.contains(&format!("{{{name}}}")))
            .map(|name| self.parameter(name, "path", "string"))
            .collect();
        if !parameters.is_empty() {
            item.insert("parameters".to_owned(), parameters.into());
        }
        paths.insert(path.to_owned(), Value::Object(item));
    }

    fn parameter(&self, name: &str, place: &str, kind: &str) -> Value {
        let mut parameter = json!({ "name": name, "in": place });
        if place == "path" {
            parameter["required"] = true.into();
        }
        match self.version {
            Version::Two => {
                parameter["type"] = kind.into();
                parameter["uniqueItems"] = true.into();
            }
            Version::Three => parameter["schema"] = json!({ "type": kind, "uniqueItems": true }),
        }
        parameter
    }

    fn reference(&self, definition: &str) -> Value {
        match self.version {
            Version::Two => json!({ "$ref": format!("#/definitions/{definition}") }),
            Version::Three => json!({ "$ref": format!("{COMPONENT}{definition}") }),
        }
    }

    fn operation(&self, action: &str, other: Option<Other>) -> Value {
        let own = definition_name(self.resource);
        let (definition, gvk) = match other {
            Some((name, [group, version, kind])) => (
                name,
                json!({ "group": group, "version": version, "kind": kind }),
            ),
            None => {
                let gvk = &self.resource.gvk;
                (
                    own,
                    json!({ "group": gvk.group, "version": gvk.version, "kind": gvk.kind }),
                )
            }
        };
        let mut query = vec![("pretty", "string")];
        match action {
            "list" | "deletecollection" => query.extend([
                ("allowWatchBookmarks", "boolean"),
                ("continue", "string"),
                ("fieldSelector", "string"),
                ("labelSelector", "string"),
                ("limit", "integer"),
                ("resourceVersion", "string"),
                ("resourceVersionMatch", "string"),
                ("sendInitialEvents", "boolean"),
                ("timeoutSeconds", "integer"),
                ("watch", "boolean"),
            ]),
            "post" | "put" => {
                query.extend([
                    ("dryRun", "string"),
                    ("fieldManager", "string"),
                    ("fieldValidation", "string"),
                ]);
            }
            "patch" => query.extend([
                ("dryRun", "string"),
                ("fieldManager", "string"),
                ("fieldValidation", "string"),
                ("force", "boolean"),
            ]),
            "delete" => query.extend([
                ("dryRun", "string"),
                ("gracePeriodSeconds", "integer"),
                ("propagationPolicy", "string"),
            ]),
            _ => {}
        }
        let parameters: Vec<Value> = query
            .into_iter()
            .map(|(name, kind)| self.parameter(name, "query", kind))
            .collect();
        let result = match action {
            "list" => format!("{own}List"),
            "delete" | "deletecollection" => format!("{META}Status"),
            _ => definition.to_owned(),
        };
        let body = match action {
            "post" | "put" => Some((definition.to_owned(), &["*/*"][..])),
            "patch" => Some((format!("{META}Patch"), PATCHES)),
            "delete" | "deletecollection" => Some((format!("{META}DeleteOptions"), &["*/*"][..])),
            _ => None,
        };
        let mut operation = json!({
            "parameters": parameters,
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
        });
        let mut responses = json!({ "401": { "description": "Unauthorized" } });
        match self.version {
            Version::Two => {
                responses["200"] =
                    json!({ "description": "OK", "schema": self.reference(&result) });
                operation["produces"] = json!(["application/json", "application/yaml"]);
                operation["consumes"] =
                    json!(body.as_ref().map_or(&["*/*"][..], |(_, types)| types));
            }
            Version::Three => {
                let schema = json!({ "schema": self.reference(&result) });
                responses["200"] =
                    json!({ "description": "OK", "content": { "application/json": schema } });
                if let Some((definition, types)) = body {
                    let content: Map<String, Value> = types
                        .iter()
                        .map(|kind| {
                            (
                                (*kind).to_owned(),
                                json!({ "schema": self.reference(&definition) }),
                            )
                        })
                        .collect();
                    operation["requestBody"] = json!({ "content": content });
                }
            }
        }
        operation["responses"] = responses;
        operation
    }
}
