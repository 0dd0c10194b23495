//! Functions on URLs, addresses and networks (apiserver, `pkg/cel/library/{urls,ip,cidr}.go`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::super::eval::{Outcome, no_overload};
use super::super::url::{self, Url};
use super::super::value::{Key, Val};

/// Calls a function; nothing for one that is not here.
pub fn call(name: &str, arguments: &[Val]) -> Option<Outcome> {
    match arguments {
        [Val::String(text), ..] => made(name, text),
        [Val::Url(url)] => of_url(name, url),
        [Val::Ip(address)] => of_address(name, *address),
        [Val::Cidr(network), rest @ ..] => of_network(name, network, rest),
        _ => None,
    }
}

fn made(name: &str, text: &str) -> Option<Outcome> {
    Some(match name {
        "url" => url::parse(text)
            .map(|url| Val::Url(Arc::new(url)))
            .ok_or_else(|| {
                format!("URL parse error during conversion from string: {text:?}").into()
            }),
        "isURL" => Ok(url::parse(text).is_some().into()),
        "ip" => address(text).map(Val::Ip).ok_or_else(|| {
            format!("IP Address {text:?} parse error during conversion from string").into()
        }),
        "isIP" => Ok(address(text).is_some().into()),
        "ip.isCanonical" => match address(text) {
            Some(address) => Ok((address.to_string() == text).into()),
            None => {
                Err(format!("IP Address {text:?} parse error during conversion from string").into())
            }
        },
        "cidr" => network(text).map(Val::Cidr).ok_or_else(|| {
            format!("network address parse error during conversion from string: {text:?}").into()
        }),
        "isCIDR" => Ok(network(text).is_some().into()),
        _ => return None,
    })
}

/// An address; one of IPv4 in the form of IPv6 is refused, as is a zone.
fn address(text: &str) -> Option<IpAddr> {
    let address: IpAddr = text.parse().ok()?;
    match address {
        IpAddr::V6(six) if six.to_ipv4_mapped().is_some() => None,
        address => Some(address),
    }
}

fn network(text: &str) -> Option<IpNet> {
    let (host, _) = text.split_once('/')?;
    address(host)?;
    text.parse().ok()
}

fn of_url(name: &str, url: &Url) -> Option<Outcome> {
    Some(Ok(match name {
        "getScheme" => url.scheme.as_str().into(),
        "getHost" => url.host.as_str().into(),
        "getHostname" => url.hostname().into(),
        "getPort" => url.port().into(),
        "getEscapedPath" => url.path.as_str().into(),
        "getQuery" => {
            let mut query: BTreeMap<Key, Vec<Val>> = BTreeMap::new();
            for (name, value) in url.parameters() {
                let key = Key::String(name.into());
                query.entry(key).or_default().push(value.into());
            }
            let fields = query
                .into_iter()
                .map(|(key, values)| (key, values.into_iter().collect()));
            Val::Map(Arc::new(fields.collect()))
        }
        _ => return None,
    }))
}

fn of_address(name: &str, address: IpAddr) -> Option<Outcome> {
    let link_local = match address {
        IpAddr::V4(four) => four.is_link_local(),
        IpAddr::V6(six) => six.is_unicast_link_local(),
    };
    let link_local_multicast = match address {
        IpAddr::V4(four) => four.octets()[..3] == [224, 0, 0],
        IpAddr::V6(six) => six.segments()[0] & 0xff0f == 0xff02,
    };
    let broadcast = matches!(address, IpAddr::V4(four) if four.is_broadcast());
    Some(Ok(match name {
        "family" => Val::Int(if address.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => address.is_unspecified().into(),
        "isLoopback" => address.is_loopback().into(),
        "isLinkLocalUnicast" => link_local.into(),
        "isLinkLocalMulticast" => link_local_multicast.into(),
        "isGlobalUnicast" => (!broadcast
            && !address.is_unspecified()
            && !address.is_loopback()
            && !address.is_multicast()
            && !link_local)
            .into(),
        _ => return None,
    }))
}

fn of_network(name: &str, own: &IpNet, rest: &[Val]) -> Option<Outcome> {
    Some(match (name, rest) {
        ("containsIP", [Val::Ip(address)]) => Ok(own.contains(address).into()),
        ("containsIP", [Val::String(text)]) => match address(text) {
            Some(address) => Ok(own.contains(&address).into()),
            None => {
                Err(format!("IP Address {text:?} parse error during conversion from string").into())
            }
        },
        ("containsCIDR", [Val::Cidr(other)]) => Ok(within(own, other).into()),
        ("containsCIDR", [Val::String(text)]) => match network(text) {
            Some(other) => Ok(within(own, &other).into()),
            None => Err(format!(
                "network address parse error during conversion from string: {text:?}"
            )
            .into()),
        },
        ("ip", []) => Ok(Val::Ip(own.addr())),
        ("masked", []) => Ok(Val::Cidr(own.trunc())),
        ("prefixLength", []) => Ok(Val::Int(own.prefix_len().into())),
        ("containsIP" | "containsCIDR", _) => Err(no_overload()),
        _ => return None,
    })
}

fn within(own: &IpNet, other: &IpNet) -> bool {
    own.prefix_len() <= other.prefix_len() && own.contains(&other.addr())
}
