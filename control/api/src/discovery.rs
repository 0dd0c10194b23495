//! Discovery: which groups, versions and resources there are, in the legacy and the aggregated form.

use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::resource::{Resource, Scope, Subresource, Verb};

/// `GET /api`; `server` is the address that clients of any network should use, `host:port`.
pub fn api_versions(server: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": server }],
    })
}

/// `GET /apis`.
pub fn api_groups(resources: &[Arc<Resource>]) -> Value {
    let groups: Vec<Value> = groups(resources)
        .into_iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, versions)| group_body(group, &versions))
        .collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// `GET /apis/<group>`, if there is such a group.
pub fn api_group(resources: &[Arc<Resource>], group: &str) -> Option<Value> {
    let (name, versions) = groups(resources)
        .into_iter()
        .find(|(name, _)| *name == group)?;
    let mut body = group_body(name, &versions);
    body["kind"] = "APIGroup".into();
    body["apiVersion"] = "v1".into();
    Some(body)
}

fn group_body(group: &str, versions: &[&str]) -> Value {
    let entry = |version: &&str| json!({ "groupVersion": format!("{group}/{version}"), "version": version });
    json!({
        "name": group,
        "versions": versions.iter().map(entry).collect::<Vec<_>>(),
        "preferredVersion": entry(&versions[0]),
    })
}

/// The groups in order of appearance, the core group first, each with its versions.
fn groups(resources: &[Arc<Resource>]) -> Vec<(&str, Vec<&str>)> {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    for resource in resources {
        let (group, version) = (resource.gvk.group.as_str(), resource.gvk.version.as_str());
        match found.iter_mut().find(|(name, _)| *name == group) {
            Some((_, versions)) if versions.contains(&version) => {}
            Some((_, versions)) => versions.push(version),
            None => found.push((group, vec![version])),
        }
    }
    found.sort_by_key(|(group, _)| !group.is_empty());
    found
}

/// `GET /api/v1` or `/apis/<group>/<version>`, if there are such resources.
pub fn api_resources(resources: &[Arc<Resource>], group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for resource in of(resources, group, version) {
        let mut entry = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.scope == Scope::Namespaced,
            "kind": resource.gvk.kind,
            "verbs": verbs(&resource.verbs),
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        if is_stored(resource) {
            entry["storageVersionHash"] = storage_hash(resource).into();
        }
        list.push(entry);
        for subresource in &resource.subresources {
            let face = subresource_face(*subresource, resource);
            let mut entry = json!({
                "name": format!("{}/{}", resource.plural, face.name),
                "singularName": "",
                "namespaced": resource.scope == Scope::Namespaced,
                "kind": face.kind,
                "verbs": face.verbs,
            });
            if let Some((group, version)) = face.group_version {
                entry["group"] = group.into();
                entry["version"] = version.into();
            }
            list.push(entry);
        }
    }
    if list.is_empty() {
        return None;
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    list.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    Some(
        json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list }),
    )
}

fn of<'a>(
    resources: &'a [Arc<Resource>],
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'a Arc<Resource>> {
    resources
        .iter()
        .filter(move |r| r.gvk.group == group && r.gvk.version == version)
}

/// The aggregated form (`apidiscovery.k8s.io`): `GET /api` where `core`, else `GET /apis`; `version` is `v2` or `v2beta1`.
pub fn aggregated(resources: &[Arc<Resource>], core: bool, version: &str) -> Value {
    let items: Vec<Value> = groups(resources)
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .into_iter()
                .map(|version| {
                    let list: Vec<Value> = of(resources, group, version)
                        .map(|r| aggregated_resource(r))
                        .collect();
                    json!({ "version": version, "freshness": "Current", "resources": list })
                })
                .collect();
            let metadata = if group.is_empty() {
                json!({})
            } else {
                json!({ "name": group })
            };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(resource: &Resource) -> Value {
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": {
            "group": resource.gvk.group, "version": resource.gvk.version, "kind": resource.gvk.kind,
        },
        "scope": if resource.scope == Scope::Namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": verbs(&resource.verbs),
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    let subresources: Vec<Value> = resource
        .subresources
        .iter()
        .map(|subresource| {
            let face = subresource_face(*subresource, resource);
            let (group, version) = face
                .group_version
                .unwrap_or((&resource.gvk.group, &resource.gvk.version));
            json!({
                "subresource": face.name,
                "responseKind": { "group": group, "version": version, "kind": face.kind },
                "verbs": face.verbs,
            })
        })
        .collect();
    if !subresources.is_empty() {
        entry["subresources"] = subresources.into();
    }
    entry
}

/// What discovery says of a subresource.
struct Face<'a> {
    name: &'static str,
    kind: &'a str,
    /// Where it is not that of the resource.
    group_version: Option<(&'static str, &'static str)>,
    verbs: &'static [&'static str],
}

fn subresource_face(subresource: Subresource, resource: &Resource) -> Face<'_> {
    const OBJECT: &[&str] = &["get", "patch", "update"];
    const STREAM: &[&str] = &["create", "get"];
    const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
    const CREATE: &[&str] = &["create"];
    let own = resource.gvk.kind.as_str();
    let face = |kind, group_version, verbs| Face {
        name: subresource.name(),
        kind,
        group_version,
        verbs,
    };
    match subresource {
        Subresource::Status => face(own, None, OBJECT),
        Subresource::Scale => face("Scale", Some(("autoscaling", "v1")), OBJECT),
        Subresource::Log => face(own, None, &["get"]),
        Subresource::Exec => face("PodExecOptions", None, STREAM),
        Subresource::Attach => face("PodAttachOptions", None, STREAM),
        Subresource::PortForward => face("PodPortForwardOptions", None, STREAM),
        Subresource::Proxy => {
            let kind = match own {
                "Node" => "NodeProxyOptions",
                "Service" => "ServiceProxyOptions",
                _ => "PodProxyOptions",
            };
            face(kind, None, PROXY)
        }
        Subresource::Binding => face("Binding", None, CREATE),
        Subresource::Eviction => face("Eviction", Some(("policy", "v1")), CREATE),
        Subresource::EphemeralContainers => face(own, None, OBJECT),
        Subresource::Resize => face(own, None, OBJECT),
        Subresource::Token => face(
            "TokenRequest",
            Some(("authentication.k8s.io", "v1")),
            CREATE,
        ),
        Subresource::Approval => face(own, None, OBJECT),
        Subresource::Finalize => face(own, None, &["update"]),
    }
}

fn is_stored(resource: &Resource) -> bool {
    resource.verbs.contains(&Verb::Get)
}

/// A stable word for how a resource is stored, so that clients may see a migration.
fn storage_hash(resource: &Resource) -> String {
    use base64::Engine as _;
    let stored = resource.storage_version.as_ref().unwrap_or(&resource.gvk);
    let text = format!("{}/{}/{}", stored.group, stored.version, stored.kind);
    base64::engine::general_purpose::STANDARD.encode(&Sha256::digest(text)[..8])
}

fn verbs(verbs: &[Verb]) -> Vec<&'static str> {
    verbs.iter().map(|verb| verb_name(*verb)).collect()
}

/// A verb in the words of discovery and authorization.
pub fn verb_name(verb: Verb) -> &'static str {
    match verb {
        Verb::Create => "create",
        Verb::Delete => "delete",
        Verb::DeleteCollection => "deletecollection",
        Verb::Get => "get",
        Verb::List => "list",
        Verb::Patch => "patch",
        Verb::Update => "update",
        Verb::Watch => "watch",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_name_the_same_resources() {
        let resources = crate::kinds::builtin().resources;
        let legacy = api_resources(&resources, "apps", "v1").expect("apps/v1");
        let names: Vec<&str> = legacy["resources"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|r| r["name"].as_str())
            .collect();
        assert_eq!(
            names,
            [
                "controllerrevisions",
                "daemonsets",
                "daemonsets/status",
                "deployments",
                "deployments/scale",
                "deployments/status",
                "replicasets",
                "replicasets/scale",
                "replicasets/status",
                "statefulsets",
                "statefulsets/scale",
                "statefulsets/status"
            ]
        );
        assert_eq!(legacy["resources"][4]["group"], "autoscaling");
        let aggregated = aggregated(&resources, false, "v2");
        let apps = aggregated["items"]
            .as_array()
            .expect("a list")
            .iter()
            .find(|g| g["metadata"]["name"] == "apps");
        assert_eq!(
            apps.expect("apps")["versions"][0]["resources"][2]["subresources"][0]["responseKind"]["kind"],
            "Scale"
        );
        assert!(api_resources(&resources, "apps", "v2").is_none());
    }
}
