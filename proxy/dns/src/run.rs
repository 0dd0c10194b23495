//! Sockets, and the address that they are on.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use hickory_server::Server;
use hickory_server::proto::ProtoError;
use hickory_server::proto::rr::Name;
use ipnet::IpNet;
use knarr_proxy::Feed;
use netlink_packet_route::address::{AddressMessage, AddressScope};
use tokio::net::{TcpListener, UdpSocket};
use tokio_util::sync::CancellationToken;

use crate::forward::Forwarder;
use crate::serve::Handler;
use crate::zone::Zone;

/// The index of the loopback interface: it is a namespace's first.
const LO: u32 = 1;

/// How long a TCP client may be silent.
const TCP_SILENCE: Duration = Duration::from_secs(10);

/// How many answers may wait for a slow TCP client.
const TCP_ANSWERS: usize = 32;

/// How long after a failure the sockets are tried again: something else may have the port for a while.
const RETRY: Duration = Duration::from_secs(5);

/// What the DNS of one node needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    /// The cluster's DNS address, the same on every node.
    pub address: IpAddr,
    /// Its port: 53.
    pub port: u16,
    /// The cluster's domain: `cluster.local`.
    pub domain: String,
    /// The cluster's service addresses, about which nobody else is asked.
    pub service_cidrs: Vec<IpNet>,
    /// Where the node's name servers are listed.
    pub resolv_conf: PathBuf,
}

impl DnsConfig {
    /// DNS on port 53 of `address`, with the name servers of `/etc/resolv.conf`.
    pub fn new(address: IpAddr, domain: impl Into<String>) -> Self {
        Self {
            address,
            port: 53,
            domain: domain.into(),
            service_cidrs: Vec::new(),
            resolv_conf: "/etc/resolv.conf".into(),
        }
    }
}

/// Why the DNS ended.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// The cluster's domain is no domain name.
    #[error("cluster domain {domain:?} is not a domain name")]
    Domain {
        /// The domain.
        domain: String,
        /// The cause.
        source: ProtoError,
    },
    /// The kernel could not be asked for an address.
    #[error("open a netlink socket")]
    Netlink(#[source] io::Error),
    /// The address could not be put on the loopback interface.
    #[error("add {address} to lo")]
    Address {
        /// The address.
        address: IpAddr,
        /// The cause.
        source: rtnetlink::Error,
    },
    /// The address could not be taken from the loopback interface.
    #[error("remove {address} from lo")]
    Remove {
        /// The address.
        address: IpAddr,
        /// The cause.
        source: rtnetlink::Error,
    },
    /// The port could not be opened.
    #[error("listen on {address}")]
    Listen {
        /// Address and port.
        address: SocketAddr,
        /// The cause.
        source: io::Error,
    },
}

/// Answers until stopped.
///
/// The address stays on the loopback interface, as the containers do that know it.
///
/// # Errors
///
/// Only for a domain that is none: what else fails is logged and tried again.
pub async fn run(feed: Feed, config: DnsConfig, stop: CancellationToken) -> Result<(), DnsError> {
    let domain = Name::from_ascii(format!("{}.", config.domain.trim_end_matches('.'))).map_err(
        |source| DnsError::Domain {
            domain: config.domain.clone(),
            source,
        },
    )?;
    let zone = Arc::new(Zone::new(
        domain,
        feed.clone(),
        config.address,
        config.service_cidrs.clone(),
    ));
    let forwarder = Arc::new(Forwarder::new(config.resolv_conf.clone(), config.address));
    let mut changes = feed.subscribe();
    tokio::select! {
        // Not before: "no such name" would be a lie that clients remember.
        () = feed.synced() => {}
        () = stop.cancelled() => return Ok(()),
    }
    zone.refresh(zone.all());
    let handler = Handler {
        zone: Arc::clone(&zone),
        forwarder,
    };
    let follow = async {
        loop {
            zone.refresh(changes.next().await);
        }
    };
    tokio::select! {
        // All of these may be dropped anywhere: a question unanswered is asked again.
        () = stop.cancelled() => Ok(()),
        () = follow => Ok(()),
        () = serve(&config, &handler) => Ok(()),
    }
}

/// Takes the address from the loopback interface, when no container needs it any more.
///
/// # Errors
///
/// If the kernel refuses.
pub async fn cleanup(address: IpAddr) -> Result<(), DnsError> {
    let (connection, netlink, _) = rtnetlink::new_connection().map_err(DnsError::Netlink)?;
    let connection = tokio::spawn(connection);
    let outcome = async {
        match find_address(&netlink, address).await? {
            Some(message) => netlink.address().del(message).execute().await,
            None => Ok(()),
        }
    }
    .await;
    connection.abort();
    outcome.map_err(|source| DnsError::Remove { address, source })
}

async fn serve(config: &DnsConfig, handler: &Handler) {
    loop {
        match listen(config).await {
            Ok((udp, tcp)) => {
                let mut server = Server::new(handler.clone());
                server.register_socket(udp);
                server.register_listener(tcp, TCP_SILENCE, TCP_ANSWERS);
                tracing::info!(address = %config.address, "cluster DNS answers");
                if let Err(error) = server.block_until_done().await {
                    tracing::warn!(%error, "cluster DNS starts over");
                }
            }
            Err(error) => warn(&error),
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn warn(error: &DnsError) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(error, "cluster DNS is tried again");
}

async fn listen(config: &DnsConfig) -> Result<(UdpSocket, TcpListener), DnsError> {
    if !config.address.is_loopback() {
        add_address(config.address).await?;
    }
    let address = SocketAddr::new(config.address, config.port);
    let failed = |source| DnsError::Listen { address, source };
    let udp = UdpSocket::bind(address).await.map_err(failed)?;
    let tcp = TcpListener::bind(address).await.map_err(failed)?;
    Ok((udp, tcp))
}

/// Puts the address on `lo`, where it is this node's own and nobody else on the wire sees it.
async fn add_address(address: IpAddr) -> Result<(), DnsError> {
    let (connection, netlink, _) = rtnetlink::new_connection().map_err(DnsError::Netlink)?;
    let connection = tokio::spawn(connection);
    let outcome = async {
        if find_address(&netlink, address).await?.is_some() {
            return Ok(());
        }
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let mut request = netlink.address().add(LO, address, prefix);
        // Scope host: never chosen as the source of connections to other machines.
        request.message_mut().header.scope = AddressScope::Host;
        request.execute().await
    }
    .await;
    connection.abort();
    outcome.map_err(|source| DnsError::Address { address, source })
}

async fn find_address(
    netlink: &rtnetlink::Handle,
    address: IpAddr,
) -> Result<Option<AddressMessage>, rtnetlink::Error> {
    let mut found = netlink
        .address()
        .get()
        .set_link_index_filter(LO)
        .set_address_filter(address)
        .execute();
    found.try_next().await
}
