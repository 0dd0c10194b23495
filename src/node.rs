//! The node: container engine, kubelet, service proxy, routes, DNS.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;

use anyhow::{Context, bail};
use futures::future::BoxFuture;
use knarr_engine::{Engine, EngineConfig};
use knarr_kubelet::KubeletConfig;
use nix::net::if_::InterfaceFlags;

use crate::config::Config;
use crate::run::Parts;

/// With what a node joins a cluster elsewhere.
pub struct Join {
    /// The API server's URL.
    pub server: String,
    /// The join token; needed the first time only.
    pub token: Option<String>,
}

/// Who the node is to the API server, and to those who talk to the node.
pub struct Identity {
    /// Acts as `system:node:<name>`.
    pub client: kube::Client,
    /// The cluster's CA, PEM.
    pub ca_cert_pem: String,
    /// The kubelet's serving certificate.
    pub serving: knarr_kubelet::Identity,
    /// Keeps the certificates fresh, where they were asked for.
    pub renew: Option<BoxFuture<'static, ()>>,
}

/// Joins the cluster, or takes up the certificates of an earlier time.
///
/// # Errors
///
/// If the token or the server is not what it should be.
pub async fn join(config: &Config, join: Join) -> anyhow::Result<Identity> {
    let joined = knarr_kubelet::bootstrap(knarr_kubelet::Join {
        server: join.server,
        token: join.token,
        node_name: config.node_name.clone(),
        node_ips: vec![address(config)?],
        node_dir: config.data_dir.join("node"),
    })
    .await
    .context("join the cluster")?;
    let renew = joined.renew();
    Ok(Identity {
        client: joined.client,
        ca_cert_pem: joined.ca,
        serving: joined.serving,
        renew: Some(Box::pin(renew)),
    })
}

/// Starts the parts of a node.
///
/// # Errors
///
/// If the container engine cannot be opened.
pub async fn start(config: &Config, identity: Identity, parts: &mut Parts) -> anyhow::Result<()> {
    let node_ip = address(config)?;
    let engine = EngineConfig::new(config.data_dir.clone(), config.run_dir.clone(), shim()?);
    let engine = Engine::open(engine)
        .await
        .context("open the container engine")?;
    let client = identity.client;

    let mut kubelet = KubeletConfig::new(
        config.node_name.clone(),
        node_ip,
        config.data_dir.join("node"),
        identity.serving,
        identity.ca_cert_pem,
    );
    kubelet.log_root = config.log_dir.clone();
    kubelet.listen = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), config.kubelet_port);
    kubelet.cluster_dns = vec![config.cluster_dns];
    kubelet.cluster_domain = config.cluster_domain.clone();
    kubelet.cluster_cidr = Some(config.cluster_cidr.into());
    kubelet.pod_pids_limit = config.pod_pids_limit;
    kubelet.kill_pods_on_exit = config.kill_pods_on_exit;
    {
        let (client, stop, clean) = (client.clone(), parts.stop_token(), config.kill_pods_on_exit);
        // Not started again after a panic: it holds the engine and the state of every pod. The pods go on under their shims,
        // and the next process takes them up.
        parts.spawn("kubelet", async move {
            knarr_kubelet::run(kubelet, client, engine.clone(), stop).await?;
            // Without pods nothing needs their bridge.
            if clean {
                engine.release_network().await;
                knarr_network::cleanup("knarr0")
                    .await
                    .context("remove the pod network")?
            }
            anyhow::Ok(())
        });
    }

    let feed = knarr_proxy::Feed::new();
    {
        let (feed, client) = (feed.clone(), client.clone());
        parts.restart("service watch", move |stop| {
            let (feed, client) = (feed.clone(), client.clone());
            async move { feed.run(client, stop).await }
        });
    }
    let proxy = knarr_proxy::ProxyConfig {
        node_name: config.node_name.clone(),
        cluster_cidrs: vec![config.cluster_cidr.into()],
        service_cidrs: vec![config.service_cidr.into()],
        own_addresses: vec![config.cluster_dns],
    };
    {
        let (feed, clean) = (feed.clone(), config.kill_pods_on_exit);
        parts.restart("service proxy", move |stop| {
            let (feed, proxy) = (feed.clone(), proxy.clone());
            async move {
                knarr_proxy::run(feed, proxy, stop).await;
                // Pods that go on running keep their services; without pods nothing needs the rules.
                if clean {
                    knarr_proxy::cleanup().await
                } else {
                    Ok(())
                }
            }
        });
    }
    let mut dns = knarr_dns::DnsConfig::new(config.cluster_dns, config.cluster_domain.clone());
    dns.service_cidrs = vec![config.service_cidr.into()];
    {
        let clean = config.kill_pods_on_exit;
        parts.restart("DNS", move |stop| {
            let (feed, dns) = (feed.clone(), dns.clone());
            async move {
                let address = dns.address;
                knarr_dns::run(feed, dns, stop).await?;
                if clean {
                    knarr_dns::cleanup(address).await
                } else {
                    Ok(())
                }
            }
        });
    }
    let route = knarr_route::RouteConfig {
        node_name: config.node_name.clone(),
        cluster_cidrs: vec![config.cluster_cidr.into()],
    };
    parts.restart("route keeper", move |stop| {
        knarr_route::run(client.clone(), route.clone(), stop)
    });
    if let Some(renew) = identity.renew {
        let stop = parts.stop_token();
        parts.spawn("certificate renewal", async move {
            // Dropping a renewal midway loses nothing: it is taken up at the next start.
            stop.run_until_cancelled_owned(renew).await;
            anyhow::Ok(())
        });
    }
    Ok(())
}

/// The program `knarr-shim`, which lies beside this one.
fn shim() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    let shim = own.with_file_name("knarr-shim");
    if !shim.exists() {
        bail!(
            "{} is missing: knarr-shim belongs beside knarr",
            shim.display()
        );
    }
    Ok(shim)
}

/// This node's address: as configured, else the one that the default route starts from, else the first that other machines can
/// reach.
///
/// # Errors
///
/// If the machine has no such address.
pub fn address(config: &Config) -> anyhow::Result<IpAddr> {
    if let Some(address) = config.node_ip {
        return Ok(address);
    }
    // Connecting a datagram socket sends nothing: it only asks the kernel for a route. Source: RFC 5737 (the address).
    let routed = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    if let Ok(routed) = routed
        && !routed.ip().is_loopback()
    {
        return Ok(routed.ip());
    }
    let interfaces = nix::ifaddrs::getifaddrs().context("list this machine's addresses")?;
    for interface in interfaces {
        let up = interface.flags.contains(InterfaceFlags::IFF_UP)
            && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK);
        let address = interface
            .address
            .as_ref()
            .and_then(|address| address.as_sockaddr_in())
            .map(|a| a.ip());
        if let Some(address) = address
            && up
            && !config.cluster_cidr.contains(&address)
            && !address.is_link_local()
        {
            return Ok(address.into());
        }
    }
    bail!("this machine has no address that others can reach: give one with --node-ip")
}
