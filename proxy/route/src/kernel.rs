//! The node's routing table, through rtnetlink.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol,
};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::task::JoinHandle;

use crate::plan::Change;

/// Marks routes as ours (`RTA_PROTOCOL`; rtnetlink(7) leaves the numbers above 4 to whoever wants them): `K`.
const PROTOCOL: u8 = b'K';

/// Why the routing table could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No netlink socket could be opened.
    #[error("open a netlink socket")]
    Socket(#[source] io::Error),
    /// The routes could not be read.
    #[error("list routes")]
    List(#[source] rtnetlink::Error),
    /// A route could not be made.
    #[error("route {to} through {gateway}")]
    Set {
        /// The range.
        to: IpNet,
        /// Through whom.
        gateway: IpAddr,
        /// The cause.
        source: rtnetlink::Error,
    },
    /// Somebody else has made a route to the range, which is theirs to keep.
    #[error(
        "a route to {to} is there already, and not ours; this one would lead through {gateway}"
    )]
    Taken {
        /// The range.
        to: IpNet,
        /// Through whom ours would lead.
        gateway: IpAddr,
    },
    /// A route could not be removed.
    #[error("remove the route to {to}")]
    Remove {
        /// The range.
        to: IpNet,
        /// The cause.
        source: rtnetlink::Error,
    },
}

/// Our routes in the namespace of the thread that opened this.
pub struct Kernel {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Kernel {
    /// Opens a netlink socket.
    ///
    /// # Errors
    ///
    /// If there is none to be had.
    pub fn open() -> Result<Self, KernelError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(KernelError::Socket)?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// Our routes: ranges, and through whom they lead.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub async fn list(&self) -> Result<BTreeMap<IpNet, IpAddr>, KernelError> {
        let mut ours = BTreeMap::new();
        let four = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let six = RouteMessageBuilder::<Ipv6Addr>::new().build();
        for family in [four, six] {
            let mut routes = self.handle.route().get(family).execute();
            while let Some(route) = routes.try_next().await.map_err(KernelError::List)? {
                ours.extend(parse(&route));
            }
        }
        Ok(ours)
    }

    /// Carries out one change.
    ///
    /// # Errors
    ///
    /// If the kernel refuses: a gateway which is no neighbour, say.
    pub async fn apply(&self, change: Change) -> Result<(), KernelError> {
        match change {
            Change::Set { to, gateway, had } => {
                let request = self.handle.route().add(message(to, gateway));
                // The kernel would replace anybody's route; so only where ours is the one in the way.
                let request = match had {
                    Some(_) => request.replace(),
                    None => request,
                };
                request.execute().await.map_err(|source| match source {
                    rtnetlink::Error::NetlinkError(ref told)
                        if told.raw_code() == -nix::libc::EEXIST =>
                    {
                        KernelError::Taken { to, gateway }
                    }
                    source => KernelError::Set {
                        to,
                        gateway,
                        source,
                    },
                })
            }
            Change::Remove { to, gateway } => {
                let request = self.handle.route().del(message(to, gateway));
                let source = request.execute().await;
                source.map_err(|source| KernelError::Remove { to, source })
            }
        }
    }
}

fn message(to: IpNet, gateway: IpAddr) -> RouteMessage {
    let protocol = RouteProtocol::Other(PROTOCOL);
    match (to.addr(), gateway) {
        (IpAddr::V4(to_ip), IpAddr::V4(gateway)) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(to_ip, to.prefix_len())
            .gateway(gateway)
            .protocol(protocol)
            .build(),
        (IpAddr::V6(to_ip), IpAddr::V6(gateway)) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(to_ip, to.prefix_len())
            .gateway(gateway)
            .protocol(protocol)
            .build(),
        // `wanted` pairs families; the kernel would refuse this.
        (_, _) => RouteMessageBuilder::<Ipv4Addr>::new()
            .protocol(protocol)
            .build(),
    }
}

fn parse(route: &RouteMessage) -> Option<(IpNet, IpAddr)> {
    let header = &route.header;
    let ours = header.protocol == RouteProtocol::Other(PROTOCOL);
    if !ours || header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    };
    let attributes = &route.attributes;
    let to = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    })?;
    let gateway = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        _ => None,
    })?;
    Some((
        IpNet::new(to, header.destination_prefix_length).ok()?,
        gateway,
    ))
}
