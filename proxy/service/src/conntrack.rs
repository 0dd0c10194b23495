//! Tracked UDP flows that go where they no longer should.
//!
//! The kernel translates every packet of a known flow as it did the first. A TCP connection to an endpoint that is gone ends by itself; a UDP
//! client that keeps sending from one port would be heard by nobody, for as long as it goes on.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use knarr_network::nfnl::{self, Messages, Netfilter, SUBSYS_CONNTRACK};

use crate::frontend::{Audience, Endpoint, Family, Frontend, Place};
use crate::kernel::family_number;
use crate::objects::Protocol;
use crate::ruleset::Ruleset;

const CT_GET: u16 = 1;
const CT_DELETE: u16 = 2;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;

const UDP: u8 = 17;

/// One flow.
struct Flow {
    /// Where its packets are addressed.
    to: Endpoint,
    /// Where its answers come from: the endpoint.
    answers: Endpoint,
    /// What names it to the kernel: the original tuple and the id, as they came.
    original: Vec<u8>,
    id: Vec<u8>,
}

/// Deletes flows to one of `frontends` that lead to no endpoint which it has now.
pub fn forget(
    netfilter: &Netfilter,
    frontends: &BTreeSet<Frontend>,
    ruleset: &Ruleset,
) -> io::Result<()> {
    let families: BTreeSet<Family> = frontends.iter().map(|f| f.place.family()).collect();
    for family in families {
        let number = match family {
            Family::V4 => 2,
            Family::V6 => 10,
        };
        let mut stale = Vec::new();
        netfilter.dump(
            SUBSYS_CONNTRACK,
            CT_GET,
            number,
            |_| {},
            |message| {
                if let Some(flow) = parse(message)
                    && is_stale(&flow, frontends, ruleset)
                {
                    stale.push(flow);
                }
            },
        )?;
        for flow in stale {
            let mut messages = Messages::default();
            messages.push(
                SUBSYS_CONNTRACK,
                CT_DELETE,
                0,
                family_number(flow.to.ip),
                |message| {
                    message.nested(TUPLE_ORIGINAL, |tuple| {
                        for (kind, value) in nfnl::attributes(&flow.original) {
                            tuple.nested(kind, |inner| {
                                for (kind, value) in nfnl::attributes(value) {
                                    inner.bytes(kind, value);
                                }
                            });
                        }
                    });
                    message.bytes(ID, &flow.id);
                },
            );
            for refusal in netfilter.send(&messages)? {
                // Gone by itself in the meantime.
                if refusal.error.kind() != io::ErrorKind::NotFound {
                    return Err(refusal.error);
                }
            }
        }
    }
    Ok(())
}

fn is_stale(flow: &Flow, frontends: &BTreeSet<Frontend>, ruleset: &Ruleset) -> bool {
    let mut ours = false;
    for place in [
        Place::Address(flow.to.ip),
        Place::Node(Family::of(flow.to.ip)),
    ] {
        for audience in [Audience::Everyone, Audience::Outside] {
            let frontend = Frontend {
                place,
                protocol: Protocol::Udp,
                port: flow.to.port,
                audience,
            };
            if ruleset.endpoints(&frontend).contains(&flow.answers) {
                return false;
            }
            ours |= frontends.contains(&frontend);
        }
    }
    ours
}

fn parse(message: &[u8]) -> Option<Flow> {
    let original = nfnl::attribute(message, TUPLE_ORIGINAL)?;
    let reply = nfnl::attribute(message, TUPLE_REPLY)?;
    let (protocol, _, to) = tuple(original)?;
    if protocol != UDP {
        return None;
    }
    let (_, answers, _) = tuple(reply)?;
    Some(Flow {
        to,
        answers,
        original: original.to_vec(),
        id: nfnl::attribute(message, ID)?.to_vec(),
    })
}

/// The protocol, source and destination of a tuple (`CTA_TUPLE_IP`, `CTA_TUPLE_PROTO`).
fn tuple(tuple: &[u8]) -> Option<(u8, Endpoint, Endpoint)> {
    let ip = nfnl::attribute(tuple, 1)?;
    let proto = nfnl::attribute(tuple, 2)?;
    let address = |v4: u16, v6: u16| -> Option<IpAddr> {
        if let Some(value) = nfnl::attribute(ip, v4) {
            return Some(Ipv4Addr::from(*value.first_chunk::<4>()?).into());
        }
        Some(Ipv6Addr::from(*nfnl::attribute(ip, v6)?.first_chunk::<16>()?).into())
    };
    let port = |kind: u16| -> Option<u16> {
        Some(u16::from_be_bytes(
            *nfnl::attribute(proto, kind)?.first_chunk()?,
        ))
    };
    let protocol = *nfnl::attribute(proto, 1)?.first()?;
    let source = Endpoint {
        ip: address(1, 3)?,
        port: port(2)?,
    };
    let destination = Endpoint {
        ip: address(2, 4)?,
        port: port(3)?,
    };
    Some((protocol, source, destination))
}
