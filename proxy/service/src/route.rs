//! A way to the service addresses, for the node's own connections.
//!
//! The kernel looks for a route before the rules show a connection another destination; on a machine without a default
//! route, services would be unreachable from the node itself (not from its pods). There, a route is added that leads nowhere
//! (to `lo`): no packet ever takes it, since what has no endpoint is refused. A route that is there is never replaced.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::{Handle, RouteMessageBuilder};

/// Why there is no way to the service addresses.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// No netlink socket could be opened.
    #[error("open a netlink socket")]
    Socket(#[source] io::Error),
    /// The route could not be added.
    #[error("add a route to {to}")]
    Add {
        /// The range.
        to: IpNet,
        /// The cause.
        source: rtnetlink::Error,
    },
}

/// Adds routes to those ranges which have none.
pub async fn ensure(ranges: &[IpNet]) -> Result<(), RouteError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(RouteError::Socket)?;
    let connection = tokio::spawn(connection);
    let mut outcome = Ok(());
    for range in ranges {
        if !is_reachable(&handle, *range).await {
            let added = add(&handle, *range).await;
            outcome = outcome.and(added.map_err(|source| RouteError::Add { to: *range, source }));
        }
    }
    connection.abort();
    outcome
}

/// Whether the kernel knows any way to the first address.
async fn is_reachable(handle: &Handle, range: IpNet) -> bool {
    let question = match range.network() {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(ip, 32)
            .build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(ip, 128)
            .build(),
    };
    let mut answers = handle.route().get(question).execute();
    matches!(answers.try_next().await, Ok(Some(_)))
}

async fn add(handle: &Handle, range: IpNet) -> Result<(), rtnetlink::Error> {
    // The loopback interface is a namespace's first.
    let lo = 1;
    let route = match range.network() {
        IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(ip, range.prefix_len())
            .output_interface(lo)
            .scope(rtnetlink::packet_route::route::RouteScope::Link)
            .build(),
        IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(ip, range.prefix_len())
            .output_interface(lo)
            .build(),
    };
    // Not in the place of another: somebody who makes a range unreachable means it.
    handle.route().add(route).execute().await
}
