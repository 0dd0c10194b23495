//! Services as environment variables (`enableServiceLinks`).

use std::collections::{BTreeMap, HashMap};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use parking_lot::RwLock;
use tokio::sync::watch;

/// One port of a service, as its variables show it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Port {
    name: String,
    port: i32,
    protocol: String,
}

/// What a service's variables are made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    address: String,
    ports: Vec<Port>,
}

type Links = BTreeMap<String, Link>;

/// The services of all namespaces, reduced to what their variables need.
pub(crate) struct Services {
    by_namespace: RwLock<HashMap<String, Links>>,
    synced: watch::Sender<bool>,
}

impl Services {
    pub(crate) fn new() -> Self {
        Self {
            by_namespace: RwLock::default(),
            synced: watch::channel(false).0,
        }
    }

    /// Keeps the services current until dropped.
    pub(crate) async fn follow(&self, client: Client) {
        let stream =
            watcher(Api::<Service>::all(client), watcher::Config::default()).default_backoff();
        let mut stream = std::pin::pin!(stream);
        let mut fresh: HashMap<String, Links> = HashMap::new();
        while let Some(event) = stream.next().await {
            match event {
                Ok(watcher::Event::Init) => fresh.clear(),
                Ok(watcher::Event::InitApply(service)) => insert(&mut fresh, &service),
                Ok(watcher::Event::InitDone) => {
                    *self.by_namespace.write() = std::mem::take(&mut fresh);
                    self.synced.send_replace(true);
                }
                Ok(watcher::Event::Apply(service)) => {
                    insert(&mut self.by_namespace.write(), &service)
                }
                Ok(watcher::Event::Delete(service)) => {
                    let meta = service.metadata;
                    let mut all = self.by_namespace.write();
                    if let Some(links) = all.get_mut(meta.namespace.as_deref().unwrap_or_default())
                    {
                        links.remove(meta.name.as_deref().unwrap_or_default());
                    }
                }
                Err(error) => {
                    tracing::warn!(
                        error = crate::runtime::chain(&error),
                        "watch of services interrupted"
                    );
                }
            }
        }
    }

    /// The variables of a pod in `namespace`: always those of `default/kubernetes`, and, where the pod asks for
    /// them, those of its own namespace.
    pub(crate) async fn variables(&self, namespace: &str, links: bool) -> BTreeMap<String, String> {
        // A pod started before the first list would miss its services for all its life. The sender lives in `self`.
        let _synced = self.synced.subscribe().wait_for(|s| *s).await.is_ok();
        let all = self.by_namespace.read();
        let mut variables = BTreeMap::new();
        if let Some(master) = all.get("default").and_then(|l| l.get("kubernetes")) {
            variables.extend(render("kubernetes", master));
        }
        if links {
            for (name, link) in all.get(namespace).into_iter().flatten() {
                variables.extend(render(name, link));
            }
        }
        variables
    }
}

fn insert(all: &mut HashMap<String, Links>, service: &Service) {
    let namespace = service.metadata.namespace.clone().unwrap_or_default();
    let name = service.metadata.name.clone().unwrap_or_default();
    let links = all.entry(namespace).or_default();
    let spec = service.spec.as_ref();
    let address = spec
        .and_then(|s| s.cluster_ip.as_deref())
        .filter(|a| !a.is_empty() && *a != "None");
    match (address, spec) {
        (Some(address), Some(spec)) => {
            let ports = spec
                .ports
                .iter()
                .flatten()
                .map(|p| Port {
                    name: p.name.clone().unwrap_or_default(),
                    port: p.port,
                    protocol: p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                })
                .collect();
            links.insert(
                name,
                Link {
                    address: address.to_owned(),
                    ports,
                },
            );
        }
        _ => {
            links.remove(&name);
        }
    }
}

/// Source: kubernetes, pkg/kubelet/envvars/envvars.go.
fn render(name: &str, link: &Link) -> BTreeMap<String, String> {
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let prefix = upper(name);
    let address = &link.address;
    let host = if address.contains(':') {
        format!("[{address}]")
    } else {
        address.clone()
    };
    let mut out = BTreeMap::new();
    let Some(first) = link.ports.first() else {
        return out;
    };
    out.insert(format!("{prefix}_SERVICE_HOST"), address.clone());
    out.insert(format!("{prefix}_SERVICE_PORT"), first.port.to_string());
    for (index, port) in link.ports.iter().enumerate() {
        if !port.name.is_empty() {
            out.insert(
                format!("{prefix}_SERVICE_PORT_{}", upper(&port.name)),
                port.port.to_string(),
            );
        }
        let protocol = port.protocol.to_lowercase();
        let url = format!("{protocol}://{host}:{}", port.port);
        if index == 0 {
            out.insert(format!("{prefix}_PORT"), url.clone());
        }
        let own = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        out.insert(format!("{own}_PROTO"), protocol);
        out.insert(format!("{own}_PORT"), port.port.to_string());
        out.insert(format!("{own}_ADDR"), address.clone());
        out.insert(own, url);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_becomes_docker_style_variables() {
        let link = Link {
            address: "10.0.0.11".into(),
            ports: vec![Port {
                name: "main-port".into(),
                port: 6379,
                protocol: "TCP".into(),
            }],
        };
        let got: Vec<String> = render("redis-primary", &link)
            .into_iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect();
        assert_eq!(
            got,
            [
                "REDIS_PRIMARY_PORT=tcp://10.0.0.11:6379",
                "REDIS_PRIMARY_PORT_6379_TCP=tcp://10.0.0.11:6379",
                "REDIS_PRIMARY_PORT_6379_TCP_ADDR=10.0.0.11",
                "REDIS_PRIMARY_PORT_6379_TCP_PORT=6379",
                "REDIS_PRIMARY_PORT_6379_TCP_PROTO=tcp",
                "REDIS_PRIMARY_SERVICE_HOST=10.0.0.11",
                "REDIS_PRIMARY_SERVICE_PORT=6379",
                "REDIS_PRIMARY_SERVICE_PORT_MAIN_PORT=6379",
            ]
        );
    }
}
