//! The control plane: keys, store, API server, scheduler, controllers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use knarr_api::pki::{self, Pki, Purpose};
use knarr_api::{ApiServer, ApiServerConfig, UserInfo};
use knarr_controllers::Credentials;
use knarr_controllers::supervise::Health;
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
    {
        // What the file holds after a failed commit is known to the next process only.
        let (failure, stop) = (store.failure(), parts.stop_token());
        parts.spawn("store", async move {
            match stop.run_until_cancelled_owned(failure).await {
                Some(error) => Err(error),
                None => Ok(()),
            }
        });
    }
    let api_config = ApiServerConfig {
        advertise: SocketAddr::new(advertise_ip, port),
        hosts: vec![config.node_name.clone(), node_ip.to_string()],
        service_cidr: config.service_cidr.into(),
        cluster_domain: config.cluster_domain.clone(),
        max_reading: config.max_inflight.0,
        max_changing: config.max_inflight.1,
        build: knarr_api::Build {
            commit: env!("KNARR_COMMIT").to_owned(),
            tree_state: env!("KNARR_TREE_STATE").to_owned(),
            date: env!("KNARR_COMMIT_DATE").to_owned(),
            compiler: env!("KNARR_COMPILER").to_owned(),
        },
        ..ApiServerConfig::default()
    };
    let api = ApiServer::open(api_config, Arc::new(store), &pki)
        .await
        .context("open the API server")?;
    keep_kubeconfig(config, &pki, &api, port)?;
    {
        let (api, stop) = (api.clone(), parts.stop_token());
        parts.spawn("API server", async move { api.serve(listener, stop).await });
    }
    let health = Health::default();
    let told = health.clone();
    api.tell_of(move || told.checks());
    let client = |user: &str| kube::Client::new(api.local(UserInfo::component(user)), "default");
    {
        let certificates = api.certificates().clone();
        parts.restart("certificates", move |stop| {
            let certificates = certificates.clone();
            async move {
                certificates.run(stop).await;
                anyhow::Ok(())
            }
        });
    }
    let scheduler = client("system:kube-scheduler");
    let own = health.clone();
    parts.restart("scheduler", move |stop| {
        let config = knarr_scheduler::Config::default();
        knarr_scheduler::run(scheduler.clone(), config, own.clone(), stop)
    });
    let controllers = knarr_controllers::Config {
        ca_certificate_pem: pki.ca_cert_pem().to_owned(),
        ca_key_pem: Some(pki.ca_key_pem().to_owned()),
        cluster_cidrs: vec![(
            config.cluster_cidr.network().into(),
            config.cluster_cidr.prefix_len(),
        )],
        node_grace: config.node_health.grace,
        node_startup_grace: config.node_health.startup_grace,
        eviction: config.node_health.eviction,
        ..knarr_controllers::Config::default()
    };
    let accounts = api.clone();
    let manager = Credentials::new(client("system:kube-controller-manager"), move |name| {
        let account = UserInfo::service_account("kube-system", name);
        kube::Client::new(accounts.local(account), "default")
    });
    parts.restart("controllers", move |stop| {
        knarr_controllers::run(manager.clone(), controllers.clone(), health.clone(), stop)
    });
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
        let issued = self
            .pki
            .identity("kubelet", &serving)
            .context("issue the node's certificate")?;
        let identity = knarr_kubelet::Identity::from_pem(&issued.cert_pem, &issued.key_pem)
            .context("use the node's certificate")?;
        let later = identity.clone();
        self.api
            .certificates()
            .keep("kubelet", serving, move |issued| {
                Ok(later.replace(&issued.cert_pem, &issued.key_pem)?)
            })
            .context("keep the node's certificate")?;
        let client = kube::Client::new(self.api.local(UserInfo::new(name, groups)), "default");
        Ok(Identity {
            client,
            ca_cert_pem: self.pki.ca_cert_pem().to_owned(),
            serving: identity,
            renew: None,
        })
    }
}

/// Writes the administrator's kubeconfig, now and with every new certificate.
fn keep_kubeconfig(config: &Config, pki: &Pki, api: &ApiServer, port: u16) -> anyhow::Result<()> {
    let admin = Purpose::Client {
        user: "kubernetes-admin".to_owned(),
        groups: vec!["system:masters".to_owned()],
    };
    let host = match config.listen.ip() {
        ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
        IpAddr::V6(ip) => format!("[{ip}]"),
        IpAddr::V4(ip) => ip.to_string(),
    };
    let server = format!("https://{host}:{port}");
    if let Some(parent) = config.kubeconfig.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    let paths = [config.own_kubeconfig(), config.kubeconfig.clone()];
    let ca_cert_pem = pki.ca_cert_pem().to_owned();
    let write = move |admin: &pki::Identity| {
        let user = "kubernetes-admin";
        let text = pki::kubeconfig("knarr", &server, &ca_cert_pem, user, admin);
        paths
            .iter()
            .try_for_each(|path| pki::write(path, &text, 0o600))
    };
    let issued = pki
        .identity("admin", &admin)
        .context("issue the administrator's certificate")?;
    write(&issued).context("write the administrator's kubeconfig")?;
    api.certificates()
        .keep("admin", admin, move |identity| Ok(write(identity)?))
        .context("keep the administrator's certificate")?;
    Ok(())
}
