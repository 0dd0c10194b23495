//! The control plane: keys, store, API server, scheduler, controllers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use knarr_api::pki::{self, Pki, Purpose};
use knarr_api::{ApiServer, ApiServerConfig, UserInfo};
use knarr_store::RedbStore;
use tokio::net::TcpListener;

use crate::config::Config;
use crate::node::Identity;
use crate::run::Parts;

/// A running control plane.
pub struct Server {
    api: ApiServer,
    pki: Pki,
    node_ip: IpAddr,
}

/// Starts the control plane; when this returns, requests are answered.
///
/// # Errors
///
/// If a file cannot be read or written, or the address is taken.
pub async fn start(config: &Config, parts: &mut Parts) -> anyhow::Result<Server> {
    let dir = config.data_dir.join("server");
    std::fs::create_dir_all(dir.join("db")).with_context(|| format!("create {}", dir.display()))?;
    let node_ip = crate::node::address(config)?;
    let advertise_ip = if config.listen.ip().is_unspecified() {
        node_ip
    } else {
        config.listen.ip()
    };

    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("listen on {}", config.listen))?;
    let port = listener
        .local_addr()
        .context("ask for our own port")?
        .port();
    let pki = Pki::open(&dir.join("tls")).context("open the cluster's keys")?;
    let store =
        RedbStore::open(&dir.join("db").join("state.redb")).context("open the cluster's store")?;
    let api_config = ApiServerConfig {
        advertise: SocketAddr::new(advertise_ip, port),
        hosts: vec![config.node_name.clone(), node_ip.to_string()],
        service_cidr: config.service_cidr.into(),
        cluster_domain: config.cluster_domain.clone(),
        ..ApiServerConfig::default()
    };
    let api = ApiServer::open(api_config, Arc::new(store), &pki)
        .await
        .context("open the API server")?;
    write_kubeconfig(config, &pki, port)?;
    {
        let (api, stop) = (api.clone(), parts.stop_token());
        parts.spawn("API server", async move { api.serve(listener, stop).await });
    }
    let client = |user: &str| kube::Client::new(api.local(UserInfo::component(user)), "default");
    parts.spawn(
        "scheduler",
        knarr_scheduler::run(
            client("system:kube-scheduler"),
            knarr_scheduler::Config::default(),
            parts.stop_token(),
        ),
    );
    let controllers = knarr_controllers::Config {
        ca_certificate_pem: pki.ca_cert_pem().to_owned(),
        ca_key_pem: Some(pki.ca_key_pem().to_owned()),
        cluster_cidrs: vec![(
            config.cluster_cidr.network().into(),
            config.cluster_cidr.prefix_len(),
        )],
        node_grace: Duration::from_secs(40),
        ..knarr_controllers::Config::default()
    };
    parts.spawn(
        "controllers",
        knarr_controllers::run(
            client("system:kube-controller-manager"),
            controllers,
            parts.stop_token(),
        ),
    );
    tracing::info!(address = %config.listen, kubeconfig = %config.kubeconfig.display(), "the API server is ready");
    Ok(Server { api, pki, node_ip })
}

impl Server {
    /// The identity of the node in the same process: its certificates are issued, not asked for.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or written.
    pub fn node_identity(&self, config: &Config) -> anyhow::Result<Identity> {
        let name = format!("system:node:{}", config.node_name);
        let groups = vec!["system:nodes".to_owned()];
        let serving = Purpose::Server {
            name: name.clone(),
            groups: groups.clone(),
            hosts: vec![config.node_name.clone(), self.node_ip.to_string()],
        };
        let serving = self
            .pki
            .identity("kubelet", &serving)
            .context("issue the node's certificate")?;
        let serving = knarr_kubelet::Identity::from_pem(&serving.cert_pem, &serving.key_pem)
            .context("use the node's certificate")?;
        let client = kube::Client::new(self.api.local(UserInfo::new(name, groups)), "default");
        Ok(Identity {
            client,
            ca_cert_pem: self.pki.ca_cert_pem().to_owned(),
            serving,
            renew: None,
        })
    }
}

fn write_kubeconfig(config: &Config, pki: &Pki, port: u16) -> anyhow::Result<()> {
    let admin = Purpose::Client {
        user: "kubernetes-admin".to_owned(),
        groups: vec!["system:masters".to_owned()],
    };
    let admin = pki
        .identity("admin", &admin)
        .context("issue the administrator's certificate")?;
    let host = match config.listen.ip() {
        ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
        IpAddr::V6(ip) => format!("[{ip}]"),
        IpAddr::V4(ip) => ip.to_string(),
    };
    let server = format!("https://{host}:{port}");
    let text = pki::kubeconfig(
        "knarr",
        &server,
        pki.ca_cert_pem(),
        "kubernetes-admin",
        &admin,
    );
    if let Some(parent) = config.kubeconfig.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    pki::write(&config.kubeconfig, &text, 0o600).context("write the administrator's kubeconfig")
}
