//! The API server as the rest of the program sees it.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use knarr_store::{Store, StoreError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::auth::UserInfo;
use crate::auth::authorize::{Authorizer, IdentityIsEnough};
use crate::auth::token::{KeyError, Tokens};
use crate::http::local::LocalService;
use crate::http::serve::{self, TlsError};
use crate::http::{Metrics, Nodes};
use crate::kinds;
use crate::pki::{Pki, PkiError, Purpose};
use crate::registry::{Registry, expiry};
use crate::status::ApiError;

/// How the server is to be.
#[derive(Clone, Debug)]
pub struct ApiServerConfig {
    /// The address at which clients inside the cluster reach it: the endpoint of `default/kubernetes`.
    pub advertise: SocketAddr,
    /// More names and addresses that its certificate covers.
    pub hosts: Vec<String>,
    /// Addresses of services.
    pub service_cidr: IpNet,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// Ports of services on nodes.
    pub node_ports: RangeInclusive<u16>,
    /// How long an event stays after its last change.
    pub event_ttl: Duration,
}

impl ApiServerConfig {
    /// `host:port` for clients.
    pub(crate) fn advertised(&self) -> String {
        self.advertise.to_string()
    }
}

impl Default for ApiServerConfig {
    /// Kubernetes' and k3s' usual ranges, on loopback.
    fn default() -> Self {
        Self {
            advertise: SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 6443),
            hosts: Vec::new(),
            service_cidr: IpNet::V4("10.43.0.0/16".parse().expect("a constant network")),
            cluster_domain: "cluster.local".to_owned(),
            node_ports: 30000..=32767,
            event_ttl: Duration::from_secs(3600),
        }
    }
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The objects cannot be read.
    #[error("read the cluster's objects")]
    Store {
        /// Why.
        source: StoreError,
    },
    /// The keys cannot be made or read.
    #[error("the server's certificates")]
    Pki {
        /// Why.
        source: PkiError,
    },
    /// The service accounts' key cannot be used.
    #[error("sign tokens")]
    Key {
        /// Why.
        source: KeyError,
    },
    /// TLS cannot be set up.
    #[error("set up TLS")]
    Tls {
        /// Why.
        source: TlsError,
    },
    /// The objects that every cluster has cannot be written.
    #[error("create the default objects")]
    Defaults {
        /// Why.
        source: ApiError,
    },
}

/// What every request may use.
pub struct Inner {
    pub(crate) config: ApiServerConfig,
    pub(crate) registry: Arc<Registry>,
    pub(crate) tokens: Tokens,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) nodes: Nodes,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) ca_cert_pem: String,
    /// Ends watches and upgraded connections.
    pub(crate) stop: CancellationToken,
}

/// The API server. Clones are the same server.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
    tls: Arc<rustls::ServerConfig>,
}

impl ApiServer {
    /// Loads the cluster's objects and creates those that every cluster has.
    ///
    /// # Errors
    ///
    /// If store or keys cannot be read or written.
    pub async fn open(
        config: ApiServerConfig,
        store: Arc<dyn Store>,
        pki: &Pki,
    ) -> Result<Self, OpenError> {
        let registry = Registry::open(
            store,
            kinds::builtin(),
            config.service_cidr,
            config.node_ports.clone(),
        )
        .await
        .map_err(|source| OpenError::Store { source })?;
        let serving = pki
            .identity(
                "apiserver",
                &serving(&config, registry.services.first_address()),
            )
            .map_err(|source| OpenError::Pki { source })?;
        let client = Purpose::Client {
            user: "kube-apiserver-kubelet-client".to_owned(),
            groups: vec!["system:masters".to_owned()],
        };
        let client = pki
            .identity("apiserver-kubelet-client", &client)
            .map_err(|source| OpenError::Pki { source })?;
        let tls = |source| OpenError::Tls { source };
        let inner = Inner {
            tokens: Tokens::new(pki, &config.cluster_domain)
                .map_err(|source| OpenError::Key { source })?,
            nodes: Nodes::new(pki.ca_cert_pem(), &client).map_err(tls)?,
            registry: Arc::new(registry),
            authorizer: Arc::new(IdentityIsEnough),
            metrics: Arc::default(),
            ca_cert_pem: pki.ca_cert_pem().to_owned(),
            stop: CancellationToken::new(),
            config,
        };
        let advertise = inner.config.advertise;
        inner
            .registry
            .ensure_defaults(advertise.ip(), advertise.port())
            .await
            .map_err(|source| OpenError::Defaults { source })?;
        if let Some(events) = inner.registry.collection("events") {
            let registry = Arc::downgrade(&inner.registry);
            tokio::spawn(expiry::run(
                registry,
                events.clone(),
                inner.config.event_ttl,
                inner.stop.clone(),
            ));
        }
        let tls = serve::tls(pki.ca_cert_pem(), &serving).map_err(tls)?;
        Ok(Self {
            inner: Arc::new(inner),
            tls,
        })
    }

    /// Serves HTTPS until `stop`; running requests have a few seconds to end, watches end at once.
    ///
    /// # Errors
    ///
    /// None so far: a listener that fails to accept is tried again.
    pub async fn serve(
        &self,
        listener: TcpListener,
        stop: CancellationToken,
    ) -> Result<(), std::io::Error> {
        serve::run(self.inner.clone(), listener, self.tls.clone(), stop).await;
        Ok(())
    }

    /// The way in for a part of this process that acts as `user`: `kube::Client::new(service, "default")` works on it.
    pub fn local(&self, user: UserInfo) -> LocalService {
        LocalService::new(self.inner.clone(), user)
    }
}

/// What the server's certificate covers.
fn serving(config: &ApiServerConfig, service: IpAddr) -> Purpose {
    let mut hosts: Vec<String> = vec![
        "kubernetes".to_owned(),
        "kubernetes.default".to_owned(),
        "kubernetes.default.svc".to_owned(),
        format!("kubernetes.default.svc.{}", config.cluster_domain),
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
        service.to_string(),
        config.advertise.ip().to_string(),
    ];
    for host in &config.hosts {
        if !hosts.contains(host) {
            hosts.push(host.clone());
        }
    }
    hosts.dedup();
    let mut seen = std::collections::HashSet::new();
    hosts.retain(|host| seen.insert(host.clone()));
    Purpose::Server {
        name: "kube-apiserver".to_owned(),
        groups: Vec::new(),
        hosts,
    }
}
