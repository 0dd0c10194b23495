//! Services, service accounts, configuration maps.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;

use super::{namespace, resource};
use crate::cache::{Cached, IndexKey};

/// A service.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Service {
    /// Its metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is wanted.
    #[serde(default)]
    pub spec: ServiceSpec,
}
resource!(
    Service,
    "",
    "v1",
    "Service",
    "services",
    NamespaceResourceScope
);

/// What is wanted of a service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// Labels of the pods behind it; without one somebody else keeps its endpoints.
    pub selector: BTreeMap<String, String>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Its address, or `None` for a headless service.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// Families of its addresses.
    pub ip_families: Vec<String>,
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
    #[serde(rename = "type")]
    pub type_: Option<String>,
    /// Whether pods count as ready even if they are not.
    pub publish_not_ready_addresses: bool,
}

/// A port of a service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    /// Its name.
    pub name: Option<String>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Option<String>,
    /// What is spoken there.
    pub app_protocol: Option<String>,
    /// Its number.
    pub port: i32,
    /// The port of the pods, by number or by name.
    pub target_port: Option<IntOrString>,
}

impl Service {
    /// Whether it has no address of its own.
    pub fn is_headless(&self) -> bool {
        self.spec.cluster_ip.as_deref() == Some("None")
    }

    /// Whether its endpoints are found by a selector.
    pub fn selects(&self) -> bool {
        !self.spec.selector.is_empty() && self.spec.type_.as_deref() != Some("ExternalName")
    }
}

impl Cached for Service {
    fn trim(&mut self) {
        self.metadata.managed_fields = None;
        self.metadata.annotations = None;
    }

    /// A service is found by one pair of its selector, so that a pod's change looks only at services that
    /// share a label with it.
    fn index(&self, add: &mut dyn FnMut(IndexKey)) {
        if self.selects()
            && let Some((key, value)) = self.spec.selector.iter().next()
        {
            add(IndexKey::label(namespace(&self.metadata), key, value));
        }
    }
}

/// A service account; only its name matters here.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ServiceAccount {
    /// Its metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
}
resource!(
    ServiceAccount,
    "",
    "v1",
    "ServiceAccount",
    "serviceaccounts",
    NamespaceResourceScope
);

impl Cached for ServiceAccount {
    fn trim(&mut self) {
        self.metadata.managed_fields = None;
    }
}

/// A configuration map.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ConfigMap {
    /// Its metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Its content.
    #[serde(default)]
    pub data: BTreeMap<String, String>,
}
resource!(
    ConfigMap,
    "",
    "v1",
    "ConfigMap",
    "configmaps",
    NamespaceResourceScope
);

impl Cached for ConfigMap {
    fn trim(&mut self) {
        self.metadata.managed_fields = None;
    }
}
