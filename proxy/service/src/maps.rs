//! The maps, sets and chains that the skeleton leaves to be filled, and how frontends and endpoints are written in them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::frontend::{Audience, Endpoint, Family, Frontend, Place};
use crate::objects::Protocol;

/// The kinds of frontend that have maps and chains of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    /// Whether the frontends are ports on any address of the node.
    pub on_node: bool,
    /// Who connects.
    pub audience: Audience,
    /// The address family.
    pub family: Family,
}

impl Lane {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let audiences = [Audience::Everyone, Audience::Outside];
        [Family::V4, Family::V6]
            .into_iter()
            .flat_map(move |family| {
                audiences.into_iter().flat_map(move |audience| {
                    [false, true].map(|on_node| Self {
                        on_node,
                        audience,
                        family,
                    })
                })
            })
    }

    /// The lane of a frontend.
    pub fn of(frontend: &Frontend) -> Self {
        Self {
            on_node: matches!(frontend.place, Place::Node(_)),
            audience: frontend.audience,
            family: frontend.place.family(),
        }
    }

    /// The name of the map from a number of endpoints to the chain that picks one of them.
    pub fn balancers(self) -> String {
        format!("lb{}", self.suffix())
    }

    /// What the names of its maps and chains end with: `4`, `_port4`, `_outside6`, …
    pub fn suffix(self) -> String {
        let outside = match self.audience {
            Audience::Everyone => "",
            Audience::Outside => "_outside",
        };
        let port = if self.on_node { "_port" } else { "" };
        format!("{outside}{port}{}", digit(self.family))
    }
}

/// `4` or `6`.
pub fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

/// A map or set of the skeleton that we fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Map {
    /// Frontend to number of endpoints, or to [`REJECT`] or [`DROP`].
    Services(Lane),
    /// Frontend and index to endpoint.
    Endpoints(Lane),
    /// Frontends whose clients are masqueraded. (Those of audience `Everyone`.)
    External(Lane),
    /// Frontends whose clients are remembered, to the chain that does so.
    Affine(Lane),
    /// Endpoints of this node, as source and destination.
    Hairpin(Family),
    /// Frontends that not every client may use.
    Firewalled(Family),
    /// Those frontends, with the clients that may.
    Admitted(Family),
}

impl Map {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let everyone = |lane: &Lane| lane.audience == Audience::Everyone;
        Lane::all()
            .flat_map(|lane| [Self::Services(lane), Self::Endpoints(lane)])
            .chain(
                Lane::all()
                    .filter(everyone)
                    .flat_map(|lane| [Self::External(lane), Self::Affine(lane)]),
            )
            .chain([Family::V4, Family::V6].into_iter().flat_map(|family| {
                [
                    Self::Hairpin(family),
                    Self::Firewalled(family),
                    Self::Admitted(family),
                ]
            }))
    }

    /// Its name.
    pub fn name(self) -> String {
        match self {
            Self::Services(lane) => format!("services{}", lane.suffix()),
            Self::Endpoints(lane) => format!("endpoints{}", lane.suffix()),
            Self::External(lane) => format!("external{}", lane.suffix()),
            Self::Affine(lane) => format!("affine{}", lane.suffix()),
            Self::Hairpin(family) => format!("hairpin{}", digit(family)),
            Self::Firewalled(family) => format!("firewalled{}", digit(family)),
            Self::Admitted(family) => format!("admitted{}", digit(family)),
        }
    }
}

/// A chain that rules or maps jump to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Chain {
    /// Sends a connection to one of that many endpoints, or drops it if that went a moment ago. Made when first needed, and kept.
    Balance(Lane, u32),
    /// Remembers the endpoint of a client for that many seconds. Made when first needed, and kept.
    Remember(Family, u32),
}

impl Chain {
    /// Its name.
    pub fn name(self) -> String {
        match self {
            Self::Balance(lane, n) => format!("lb{}-{n}", lane.suffix()),
            Self::Remember(family, seconds) => format!("remember{}-{seconds}", digit(family)),
        }
    }

    /// The chain of that name, if it is one that is made when needed.
    pub fn parse(name: &str) -> Option<Self> {
        let (kind, number) = name.rsplit_once('-')?;
        let number = number.parse().ok()?;
        if let Some(suffix) = kind.strip_prefix("lb") {
            let lane = Lane::all().find(|lane| lane.suffix() == suffix)?;
            return Some(Self::Balance(lane, number));
        }
        let family = match kind.strip_prefix("remember")? {
            "4" => Family::V4,
            "6" => Family::V6,
            _ => return None,
        };
        Some(Self::Remember(family, number))
    }
}

/// Bytes as the kernel's registers have them: every field starts on a multiple of four.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bytes {
    len: u8,
    bytes: [u8; Self::MOST],
}

impl Bytes {
    /// IPv6 address twice, protocol and port.
    const MOST: usize = 40;

    fn new() -> Self {
        Self {
            len: 0,
            bytes: [0; Self::MOST],
        }
    }

    /// The bytes that the kernel gave; `None` if there are more than we ever wrote.
    pub fn from_slice(slice: &[u8]) -> Option<Self> {
        (slice.len() <= Self::MOST).then(|| Self::new().and(slice))
    }

    fn and(mut self, field: &[u8]) -> Self {
        let start = usize::from(self.len);
        self.bytes[start..start + field.len()].copy_from_slice(field);
        self.len += u8::try_from(field.len().next_multiple_of(4)).expect("fields are short");
        self
    }

    fn and_ip(self, ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(ip) => self.and(&ip.octets()),
            IpAddr::V6(ip) => self.and(&ip.octets()),
        }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for word in self.as_slice().chunks(4) {
            for byte in word {
                write!(f, "{byte:02x}")?;
            }
            write!(f, " ")?;
        }
        Ok(())
    }
}

/// Reads fields back, in the order in which they were put.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl Reader<'_> {
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let field = *self.0.first_chunk::<N>()?;
        self.0 = self.0.get(N.next_multiple_of(4)..)?;
        Some(field)
    }

    pub(crate) fn ip(&mut self, family: Family) -> Option<IpAddr> {
        match family {
            Family::V4 => self.take().map(|o: [u8; 4]| Ipv4Addr::from(o).into()),
            Family::V6 => self.take().map(|o: [u8; 16]| Ipv6Addr::from(o).into()),
        }
    }
}

/// In the place of a number of endpoints: connections are refused.
pub const REJECT: u32 = 0;

/// In the place of a number of endpoints: connections are dropped.
pub const DROP: u32 = u32::MAX;

/// What an element leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Data {
    /// Nothing: the map is a set.
    Nothing,
    /// An endpoint's address and port.
    Endpoint(Bytes),
    /// A number of endpoints, or what happens without any.
    Count(u32),
    /// A verdict: on to a chain.
    Goto(Chain),
    /// Nothing, but the key is the first of a range, and this the last.
    Until(Bytes),
    /// What we never write: an element of somebody else's, only ever to be removed.
    Foreign,
}

pub(crate) fn frontend_key(frontend: &Frontend) -> Bytes {
    let key = match frontend.place {
        Place::Address(ip) => Bytes::new().and_ip(ip),
        Place::Node(_) => Bytes::new(),
    };
    key.and(&[frontend.protocol as u8])
        .and(&frontend.port.to_be_bytes())
}

pub(crate) fn parse_frontend(lane: Lane, reader: &mut Reader<'_>) -> Option<Frontend> {
    let place = if lane.on_node {
        Place::Node(lane.family)
    } else {
        Place::Address(reader.ip(lane.family)?)
    };
    let [protocol] = reader.take()?;
    Some(Frontend {
        place,
        protocol: Protocol::from_number(protocol)?,
        port: u16::from_be_bytes(reader.take()?),
        audience: lane.audience,
    })
}

/// The element that admits clients from one address to another to a frontend.
pub(crate) fn admitted(frontend: &Frontend, first: IpAddr, last: IpAddr) -> (Map, Bytes, Data) {
    let key = frontend_key(frontend);
    let map = Map::Admitted(Family::of(first));
    (map, key.and_ip(first), Data::Until(key.and_ip(last)))
}

/// The key of the frontend and the range of clients in an element of [`Map::Admitted`].
pub(crate) fn parse_admitted(
    family: Family,
    first: &Bytes,
    last: &Bytes,
) -> Option<(Bytes, (IpAddr, IpAddr))> {
    let address = match family {
        Family::V4 => 4,
        Family::V6 => 16,
    };
    let split = |bytes: &Bytes| {
        let (frontend, client) = bytes.as_slice().split_at_checked(address + 8)?;
        Some((Bytes::from_slice(frontend)?, Reader(client).ip(family)?))
    };
    let ((frontend, first), (same, last)) = (split(first)?, split(last)?);
    (frontend == same).then_some((frontend, (first, last)))
}

pub(crate) fn endpoint_key(frontend: &Frontend, index: usize) -> Bytes {
    let index = u32::try_from(index).expect("fewer than 2^32 endpoints");
    // `numgen` leaves its number in the byte order of the machine.
    frontend_key(frontend).and(&index.to_ne_bytes())
}

/// The data of an endpoint in a map.
pub fn endpoint_data(endpoint: &Endpoint) -> Bytes {
    Bytes::new()
        .and_ip(endpoint.ip)
        .and(&endpoint.port.to_be_bytes())
}

pub(crate) fn parse_endpoint(family: Family, data: &Bytes) -> Option<Endpoint> {
    let mut reader = Reader(data.as_slice());
    Some(Endpoint {
        ip: reader.ip(family)?,
        port: u16::from_be_bytes(reader.take()?),
    })
}

/// One entry of a client's memory: `client . frontend : endpoint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// The address that the client connected to.
    pub to: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The port it connected to.
    pub port: u16,
    /// Where it is sent.
    pub endpoint: Endpoint,
}

impl Memory {
    /// Reads an element of an `affinity` map.
    pub fn parse(family: Family, key: &[u8], data: &Bytes) -> Option<Self> {
        let mut reader = Reader(key);
        let _client = reader.ip(family)?;
        Some(Self {
            to: reader.ip(family)?,
            protocol: Protocol::from_number(reader.take::<1>()?[0])?,
            port: u16::from_be_bytes(reader.take()?),
            endpoint: parse_endpoint(family, data)?,
        })
    }
}

/// The element that lets an endpoint reach itself: its address as source and destination.
pub(crate) fn hairpin(ip: IpAddr) -> (Map, Bytes) {
    let key = Bytes::new().and_ip(ip).and_ip(ip);
    (Map::Hairpin(Family::of(ip)), key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_chains_are_read_back() {
        for lane in Lane::all() {
            let chain = Chain::Balance(lane, 12);
            assert_eq!(Chain::parse(&chain.name()), Some(chain), "{}", chain.name());
        }
        let chain = Chain::Remember(Family::V6, 10_800);
        assert_eq!(Chain::parse(&chain.name()), Some(chain));
        for name in ["refuse", "services", "lb4-x", "lb5-1", "made-from-0123"] {
            assert_eq!(Chain::parse(name), None, "{name}");
        }
    }
}
