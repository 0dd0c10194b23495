//! Interfaces, addresses and routes, through rtnetlink.
//!
//! Everything here runs on a thread that may wait on the kernel (see `netns`), each with a small runtime of its own: the
//! kernel does the work inside `sendmsg`, and some of it (removing an interface) takes milliseconds.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteScope};
use nix::errno::Errno;
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth,
    RouteMessageBuilder,
};

use crate::NetworkConfig;

/// A request that the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No netlink socket or runtime could be made.
    #[error("open a netlink socket")]
    Socket(#[source] io::Error),
    /// A request failed.
    #[error("{what}")]
    Request {
        /// What was asked.
        what: String,
        /// The cause.
        source: rtnetlink::Error,
    },
    /// An interface that was just made is not there.
    #[error("interface {name} is gone")]
    Gone {
        /// Its name.
        name: String,
    },
    /// There is an interface of the bridge's name which is something else.
    #[error("{name} exists and is not a bridge")]
    NotABridge {
        /// Its name.
        name: String,
    },
}

fn failed(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> LinkError {
    let what = what.into();
    move |source| LinkError::Request { what, source }
}

fn errno(err: &rtnetlink::Error) -> Option<Errno> {
    match err {
        rtnetlink::Error::NetlinkError(message) => {
            Some(Errno::from_raw(message.raw_code().unsigned_abs() as i32))
        }
        _ => None,
    }
}

/// The node's side of all veth pairs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bridge {
    pub(crate) index: u32,
    /// The MTU of everything on it.
    pub(crate) mtu: u32,
}

/// A runtime on the calling thread, with rtnetlink sockets of the namespaces that the thread was in when each was opened.
pub(crate) struct Netlink {
    runtime: tokio::runtime::Runtime,
}

impl Netlink {
    pub(crate) fn new() -> Result<Self, LinkError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(LinkError::Socket)?;
        Ok(Self { runtime })
    }

    /// Opens a socket in the namespace that the thread is in now.
    pub(crate) fn socket(&self) -> Result<Handle, LinkError> {
        let _inside = self.runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection().map_err(LinkError::Socket)?;
        self.runtime.spawn(connection);
        Ok(handle)
    }

    pub(crate) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }
}

/// Makes the bridge if it is not there, with `gateway` as its one IPv4 address.
pub(crate) fn prepare_bridge(config: &NetworkConfig, gateway: IpAddr) -> Result<Bridge, LinkError> {
    let netlink = Netlink::new()?;
    let handle = netlink.socket()?;
    netlink.run(async {
        let mtu = match config.mtu {
            Some(mtu) => mtu,
            None => outside_mtu(&handle).await?.unwrap_or(1500),
        };
        let name = config.bridge.as_str();
        let index = match find(&handle, name).await? {
            Some(link) if is_bridge(&link) => link.header.index,
            Some(_) => {
                return Err(LinkError::NotABridge {
                    name: name.to_owned(),
                });
            }
            None => {
                // An address of its own: otherwise the bridge takes the lowest of its ports', and pods' ARP caches go stale.
                let message = LinkBridge::new(name).address(hardware_address(gateway));
                handle
                    .link()
                    .add(message.build())
                    .execute()
                    .await
                    .map_err(failed(format!("add bridge {name}")))?;
                find(&handle, name)
                    .await?
                    .ok_or_else(|| LinkError::Gone {
                        name: name.to_owned(),
                    })?
                    .header
                    .index
            }
        };
        set_gateway(&handle, index, gateway, config.pod_cidr.prefix_len()).await?;
        handle
            .link()
            .change(LinkUnspec::new_with_index(index).mtu(mtu).up().build())
            .execute()
            .await
            .map_err(failed(format!("set {name} up")))?;
        Ok(Bridge { index, mtu })
    })
}

/// Gives the interface `gateway`, and takes its other addresses of that family (the node's range was another once).
async fn set_gateway(
    handle: &Handle,
    index: u32,
    gateway: IpAddr,
    prefix: u8,
) -> Result<(), LinkError> {
    let mut addresses = handle
        .address()
        .get()
        .set_link_index_filter(index)
        .execute();
    let mut there = false;
    let mut others = Vec::new();
    while let Some(message) = addresses
        .try_next()
        .await
        .map_err(failed("list addresses"))?
    {
        let Some(ip) = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            })
        else {
            continue;
        };
        if ip == gateway && message.header.prefix_len == prefix {
            there = true;
        } else if ip.is_ipv4() == gateway.is_ipv4() && message.header.prefix_len == prefix {
            // Only what looks like ours: the cluster DNS address is a /32 on the same bridge.
            others.push(message);
        }
    }
    if !there {
        handle
            .address()
            .add(index, gateway, prefix)
            .execute()
            .await
            .map_err(failed(format!("add address {gateway}/{prefix}")))?;
    }
    for message in others {
        handle
            .address()
            .del(message)
            .execute()
            .await
            .map_err(failed("remove an old address"))?;
    }
    Ok(())
}

/// Makes `eth0` in the namespace `pod` and `name` outside as a port of the bridge, up.
pub(crate) async fn add_pair(
    host: &Handle,
    bridge: Bridge,
    name: &str,
    ip: IpAddr,
    pod: BorrowedFd<'_>,
) -> Result<(), LinkError> {
    // Not up yet: the kernel refuses that (`ENOTCONN`) until both halves know each other.
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name("eth0")
        .mtu(bridge.mtu)
        .address(hardware_address(ip))
        .setns_by_fd(pod.as_raw_fd())
        .build();
    let message = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(name)
        .mtu(bridge.mtu)
        .controller(bridge.index)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .up()
        .build();
    host.link()
        .add(message)
        .execute()
        .await
        .map_err(failed(format!("add veth pair {name}")))?;
    // With `br_netfilter`, a connection of a pod to itself through a service is turned around inside the bridge.
    let index = find(host, name)
        .await?
        .ok_or_else(|| LinkError::Gone {
            name: name.to_owned(),
        })?
        .header
        .index;
    host.link()
        .set_port(LinkBridgePort::new(index).hairpin(true).build())
        .execute()
        .await
        .map_err(failed(format!("set {name} to hairpin mode")))
}

/// Inside a pod: both interfaces up, the address on `eth0`, the default route through `gateway`.
pub(crate) async fn configure_pod(
    pod: &Handle,
    ip: IpAddr,
    gateway: IpAddr,
) -> Result<(), LinkError> {
    // The loopback interface is a namespace's first.
    pod.link()
        .change(LinkUnspec::new_with_index(1).up().build())
        .execute()
        .await
        .map_err(failed("set lo up"))?;
    let eth0 = find(pod, "eth0")
        .await?
        .ok_or_else(|| LinkError::Gone {
            name: "eth0".to_owned(),
        })?
        .header
        .index;
    pod.link()
        .change(LinkUnspec::new_with_index(eth0).up().build())
        .execute()
        .await
        .map_err(failed("set eth0 up"))?;
    let host_prefix = IpNet::from(ip).prefix_len();
    pod.address()
        .add(eth0, ip, host_prefix)
        .execute()
        .await
        .map_err(failed(format!("add address {ip}")))?;
    for route in pod_routes(eth0, gateway) {
        pod.route()
            .add(route)
            .execute()
            .await
            .map_err(failed(format!("add a route through {gateway}")))?;
    }
    Ok(())
}

fn pod_routes(eth0: u32, gateway: IpAddr) -> Vec<RouteMessage> {
    match gateway {
        IpAddr::V4(gateway) => vec![
            RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(gateway, 32)
                .output_interface(eth0)
                .scope(RouteScope::Link)
                .build(),
            RouteMessageBuilder::<Ipv4Addr>::new()
                .gateway(gateway)
                .output_interface(eth0)
                .build(),
        ],
        IpAddr::V6(gateway) => vec![
            RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(gateway, 128)
                .output_interface(eth0)
                .build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .gateway(gateway)
                .output_interface(eth0)
                .build(),
        ],
    }
}

/// Removes an interface, if it is there; a veth's other half goes with it.
pub(crate) async fn remove(host: &Handle, name: &str) -> Result<(), LinkError> {
    let message = LinkUnspec::new_with_name(name).build();
    match host.link().del_with_message(message).execute().await {
        Err(err) if errno(&err) == Some(Errno::ENODEV) => Ok(()),
        other => other.map_err(failed(format!("remove interface {name}"))),
    }
}

/// The names of the bridge's ports.
pub(crate) async fn ports(host: &Handle, bridge: Bridge) -> Result<Vec<String>, LinkError> {
    let mut links = host.link().get().execute();
    let mut names = Vec::new();
    while let Some(link) = links.try_next().await.map_err(failed("list interfaces"))? {
        let on_bridge = link
            .attributes
            .contains(&LinkAttribute::Controller(bridge.index));
        let name = link
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name.clone()),
                _ => None,
            });
        if let (true, Some(name)) = (on_bridge, name) {
            names.push(name);
        }
    }
    Ok(names)
}

async fn find(handle: &Handle, name: &str) -> Result<Option<LinkMessage>, LinkError> {
    let mut links = handle.link().get().match_name(name).execute();
    match links.try_next().await {
        Ok(link) => Ok(link),
        Err(err) if errno(&err) == Some(Errno::ENODEV) => Ok(None),
        Err(err) => Err(failed(format!("look up interface {name}"))(err)),
    }
}

fn is_bridge(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| {
        matches!(attribute, LinkAttribute::LinkInfo(infos)
            if infos.contains(&LinkInfo::Kind(InfoKind::Bridge)))
    })
}

/// The MTU of the interface that the IPv4 default route of the main table leads to.
async fn outside_mtu(handle: &Handle) -> Result<Option<u32>, LinkError> {
    let any = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let mut routes = handle.route().get(any).execute();
    let mut outside = None;
    while let Some(route) = routes.try_next().await.map_err(failed("list routes"))? {
        let is_default = route.header.destination_prefix_length == 0
            && route.header.table == RouteHeader::RT_TABLE_MAIN;
        if is_default && outside.is_none() {
            outside = route
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                });
        }
    }
    let Some(index) = outside else {
        return Ok(None);
    };
    let mut links = handle.link().get().match_index(index).execute();
    let link = links
        .try_next()
        .await
        .map_err(failed("look up the outside interface"))?;
    Ok(link.and_then(|link| {
        link.attributes
            .iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            })
    }))
}

/// A hardware address that follows from the IP address: who gets an address again
/// gets its neighbours' ARP entries right too. (`0a:58` and the IPv4 address, as CNI's bridge plugin does.)
fn hardware_address(ip: IpAddr) -> Vec<u8> {
    let tail = match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => {
            let o = ip.octets();
            [o[12], o[13], o[14], o[15]]
        }
    };
    [&[0x0a, 0x58], tail.as_slice()].concat()
}
