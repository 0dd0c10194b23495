//! Which resources the server has, for controllers that work on all of them.

use std::sync::Arc;

use kube::Client;
use kube::core::Request;

/// A resource in the version that its group prefers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resource {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

impl Resource {
    /// `v1`, or `group/version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `pods`, or `deployments.apps`.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Whether the resource knows a verb.
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }

    /// Requests for objects of a namespace, or of the cluster if that is empty.
    pub fn requests(&self, namespace: &str) -> Request {
        let root = if self.group.is_empty() {
            "/api"
        } else {
            "/apis"
        };
        let version = self.api_version();
        let plural = &self.plural;
        Request::new(if namespace.is_empty() {
            format!("{root}/{version}/{plural}")
        } else {
            format!("{root}/{version}/namespaces/{namespace}/{plural}")
        })
    }

    /// The same for the dynamic API of the client.
    pub fn to_api(&self) -> kube::core::ApiResource {
        kube::core::ApiResource {
            group: self.group.clone(),
            version: self.version.clone(),
            api_version: self.api_version(),
            kind: self.kind.clone(),
            plural: self.plural.clone(),
        }
    }
}

/// Every resource that can be deleted, listed and watched, except for events, which go by themselves.
pub(crate) async fn discover(client: &Client) -> Result<Vec<Arc<Resource>>, kube::Error> {
    let mut found = Vec::new();
    let core = client.list_core_api_resources("v1").await?;
    add(&mut found, "", "v1", core.resources);
    for group in client.list_api_groups().await?.groups {
        let Some(version) = group
            .preferred_version
            .or_else(|| group.versions.first().cloned())
        else {
            continue;
        };
        let list = client
            .list_api_group_resources(&version.group_version)
            .await?;
        add(&mut found, &group.name, &version.version, list.resources);
    }
    Ok(found)
}

fn add(
    found: &mut Vec<Arc<Resource>>,
    group: &str,
    version: &str,
    resources: Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource>,
) {
    for resource in resources {
        let of_use = ["delete", "list", "watch"]
            .iter()
            .all(|verb| resource.verbs.iter().any(|known| known == verb));
        if of_use && !resource.name.contains('/') {
            found.push(Arc::new(Resource {
                group: group.to_owned(),
                version: version.to_owned(),
                kind: resource.kind,
                plural: resource.name,
                namespaced: resource.namespaced,
                verbs: resource.verbs,
            }));
        }
    }
}
