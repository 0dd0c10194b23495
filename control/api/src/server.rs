//! The API server as the rest of the program sees it.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ipnet::IpNet;
use knarr_store::{Store, StoreError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::auth::UserInfo;
use crate::auth::authorize::{Authorizer, MASTERS};
use crate::auth::secrets;
use crate::auth::token::{KeyError, Tokens};
use crate::http::local::LocalService;
use crate::http::seat::Seats;
use crate::http::serve::{self, TlsError};
use crate::http::{Metrics, Nodes};
use crate::kinds;
use crate::openapi::cache::Documents;
use crate::pki::renewal::{Renewal, Shown};
use crate::pki::{Pki, PkiError, Purpose};
use crate::registry::{Registry, custom, defaults, expiry, policy, services};
use crate::status::ApiError;
use crate::supervise::supervised;

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
    /// How many requests that read are carried out at once (`--max-requests-inflight`); 0 for any number.
    pub max_reading: usize,
    /// The same for those that change something (`--max-mutating-requests-inflight`).
    pub max_changing: usize,
    /// How many connections there may be; more wait to be accepted.
    pub max_connections: usize,
    /// How long a client may take for each of: the TLS handshake, its first request, the head of a request.
    pub head_timeout: Duration,
    /// What the program was built from.
    pub build: crate::Build,
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
            max_reading: 400,
            max_changing: 200,
            max_connections: 10_000,
            head_timeout: Duration::from_secs(30),
            build: crate::Build::default(),
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

/// Tells how other parts of the program do, by name.
pub(crate) type Parts = Box<dyn Fn() -> Vec<(String, Result<(), String>)> + Send + Sync>;

/// What every request may use.
pub struct Inner {
    pub(crate) config: ApiServerConfig,
    pub(crate) registry: Arc<Registry>,
    pub(crate) tokens: Tokens,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) nodes: Nodes,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) seats: Seats,
    /// How the other parts of the program do, if somebody says so.
    pub(crate) parts: OnceLock<Parts>,
    pub(crate) documents: Documents,
    pub(crate) ca_cert_pem: String,
    /// Ends watches and upgraded connections.
    pub(crate) stop: CancellationToken,
}

/// The API server. Clones are the same server.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
    tls: Arc<rustls::ServerConfig>,
    renewal: Arc<Renewal>,
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
        let (keys, renewal) = (pki, Renewal::new(pki.clone()));
        let tls = |source| OpenError::Tls { source };
        let shown = |name: &str, purpose: Purpose| {
            let pki = |source| OpenError::Pki { source };
            let shown = Shown::new(&keys.identity(name, &purpose).map_err(pki)?);
            let shown = shown.map_err(tls)?;
            let later = shown.clone();
            renewal
                .keep(name, purpose, move |identity| Ok(later.replace(identity)?))
                .map_err(pki)?;
            Ok(shown)
        };
        let serving = shown(
            "apiserver",
            serving(&config, registry.services.first_address()),
        )?;
        let client = shown(
            "apiserver-kubelet-client",
            Purpose::Client {
                user: "kube-apiserver-kubelet-client".to_owned(),
                groups: vec![MASTERS.to_owned()],
            },
        )?;
        let mut metrics = Metrics::default();
        let inner = Inner {
            tokens: Tokens::new(pki, &config.cluster_domain)
                .map_err(|source| OpenError::Key { source })?,
            nodes: Nodes::new(pki.ca_cert_pem(), client).map_err(tls)?,
            authorizer: registry.authorizer.clone(),
            registry: Arc::new(registry),
            seats: Seats::new(config.max_reading, config.max_changing, metrics.registry()),
            parts: OnceLock::new(),
            documents: Documents::default(),
            metrics: Arc::new(metrics),
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
        let mut served = custom::Served::default();
        let defined = inner.registry.serve_definitions(&mut served).await;
        defined.map_err(|source| OpenError::Defaults { source })?;
        let policy = inner.registry.ensure_policy().await;
        policy.map_err(|source| OpenError::Defaults { source })?;
        let (registry, stop) = (Arc::downgrade(&inner.registry), inner.stop.clone());
        tokio::spawn(supervised("the cluster's own objects", move || {
            let (address, port) = (advertise.ip(), advertise.port());
            defaults::keep(registry.clone(), address, port, stop.clone())
        }));
        let (registry, stop) = (Arc::downgrade(&inner.registry), inner.stop.clone());
        tokio::spawn(supervised("custom resources", move || {
            custom::keep(registry.clone(), stop.clone())
        }));
        let (registry, stop) = (Arc::downgrade(&inner.registry), inner.stop.clone());
        tokio::spawn(supervised("aggregated roles", move || {
            policy::keep(registry.clone(), stop.clone())
        }));
        let (registry, stop) = (Arc::downgrade(&inner.registry), inner.stop.clone());
        tokio::spawn(supervised("allocations of services", move || {
            services::keep(registry.clone(), stop.clone())
        }));
        if let Some(events) = inner.registry.collection("events") {
            let registry = Arc::downgrade(&inner.registry);
            let (events, stop) = (events.clone(), inner.stop.clone());
            let ttl = inner.config.event_ttl;
            tokio::spawn(supervised("expiry of events", move || {
                expiry::run(registry.clone(), events.clone(), ttl, stop.clone())
            }));
        }
        let tls = serve::tls(pki, serving).map_err(tls)?;
        let inner = Arc::new(inner);
        let (server, stop) = (Arc::downgrade(&inner), inner.stop.clone());
        tokio::spawn(supervised("tokens of secrets", move || {
            secrets::run(server.clone(), stop.clone())
        }));
        Ok(Self {
            inner,
            tls,
            renewal: Arc::new(renewal),
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

    /// Lets `/healthz` tell how other parts of the program do: a check for each, by name. The first call counts.
    pub fn tell_of(
        &self,
        parts: impl Fn() -> Vec<(String, Result<(), String>)> + Send + Sync + 'static,
    ) {
        self.inner.parts.get_or_init(|| Box::new(parts));
    }

    /// The certificates that [`Renewal::run`] keeps valid: the server's own, and what is added.
    pub fn certificates(&self) -> &Arc<Renewal> {
        &self.renewal
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
