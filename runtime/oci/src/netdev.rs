//! Network devices of the host that move into the container's network namespace.
//!
//! The kernel takes a device along with its hardware address, MTU and the like, under a new name if one is asked for; what
//! it drops are addresses and the state "up", so these are given back. The device never comes back: its namespace's end
//! destroys it, or returns it to the first namespace if it is a physical one.
//!
//! Source: OCI runtime-spec 1.3, config-linux.md, "Network Devices"; rtnetlink(7).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL,
    NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, Nla, NlasIterator, Parseable, parse_string,
};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{LinkFlags, LinkHeader};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily as Family, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};
use oci_spec::runtime::Spec;

use crate::error::CreateError;
use crate::namespace::{Kind, NamespaceSet};

/// The longest name of a device (`IFNAMSIZ`, with its NUL).
const NAME_LIMIT: usize = 16;

/// The devices to move, with their new names, in order of their old ones.
pub(crate) fn wanted(spec: &Spec) -> BTreeMap<&str, &str> {
    let devices = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.net_devices().as_ref());
    devices
        .into_iter()
        .flatten()
        .map(|(name, device)| {
            let new = device.name().as_deref().filter(|new| !new.is_empty());
            (name.as_str(), new.unwrap_or(name))
        })
        .collect()
}

/// What can be known to be wrong before anything is made.
pub(crate) fn check(spec: &Spec, namespaces: &NamespaceSet) -> Result<(), CreateError> {
    let devices = wanted(spec);
    if devices.is_empty() {
        return Ok(());
    }
    if !namespaces.contains(Kind::Network) {
        return Err(CreateError::invalid(
            "netDevices without a network namespace",
        ));
    }
    let mut seen = HashSet::new();
    for name in devices.iter().flat_map(|(old, new)| [old, new]) {
        let bad = |c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace();
        if name.is_empty()
            || name.len() >= NAME_LIMIT
            || [".", ".."].contains(name)
            || name.contains(bad)
        {
            return Err(CreateError::invalid(format!(
                "netDevices: {name:?} is no name of a device"
            )));
        }
    }
    match devices
        .values()
        .find(|new| !new.contains('%') && !seen.insert(**new))
    {
        Some(new) => Err(CreateError::invalid(format!(
            "netDevices: two devices would be named {new}"
        ))),
        None => Ok(()),
    }
}

/// Moves all devices into `target`, a network namespace.
pub(crate) fn move_all(
    devices: &BTreeMap<&str, &str>,
    target: &OwnedFd,
) -> Result<(), CreateError> {
    let open = || CreateError::system("open netlink sockets");
    let own = OwnedFd::from(fs::File::open("/proc/self/ns/net").map_err(open())?);
    let identity = |fd: &OwnedFd| {
        let stat = nix::sys::stat::fstat(fd)
            .map_err(io::Error::from)
            .map_err(open())?;
        Ok((stat.st_dev, stat.st_ino))
    };
    if identity(&own)? == identity(target)? {
        return Err(CreateError::invalid(
            "netDevices with the runtime's own network namespace",
        ));
    }
    let mut here = Netlink::open().map_err(open())?;
    let mut there = Netlink::open_in(target, &own).map_err(open())?;
    for (name, new) in devices {
        move_one(&mut here, &mut there, target, name, new)?;
    }
    Ok(())
}

fn move_one(
    here: &mut Netlink,
    there: &mut Netlink,
    target: &OwnedFd,
    name: &str,
    new: &str,
) -> Result<(), CreateError> {
    let failed = |what: &str| CreateError::system(format!("network device {name}: {what}"));
    let index = here.link(name).map_err(failed("find it"))?;
    let addresses = here
        .addresses(index)
        .map_err(failed("read its addresses"))?;
    let before = there
        .links()
        .map_err(failed("look at the container's devices"))?;
    // Looked at first, because the kernel moves before it renames, and the device would be lost with the namespace.
    if before.values().any(|there| there == new) {
        let error = io::Error::from_raw_os_error(libc::EEXIST);
        return Err(failed(&format!("move it into the container as {new}"))(
            error,
        ));
    }
    let mut request = Link::default();
    request.header.index = index;
    let target = target.as_raw_fd().to_ne_bytes().to_vec();
    request.attributes = vec![
        DefaultNla::new(libc::IFLA_NET_NS_FD, target),
        name_attribute(new),
    ];
    here.change(Message::SetLink(request), 0)
        .map_err(failed(&format!("move it into the container as {new}")))?;
    // By its name, unless the kernel was to choose one: then it is the one that was not there before.
    let after = there
        .links()
        .map_err(failed("look at the container's devices"))?;
    let found = after.into_iter().find(|(index, name)| {
        if new.contains('%') {
            !before.contains_key(index)
        } else {
            name == new
        }
    });
    let (index, _) = found
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
        .map_err(failed("find it in the container"))?;
    for mut address in addresses {
        address.header.index = index;
        there
            .change(Message::NewAddress(address), NLM_F_CREATE | NLM_F_EXCL)
            .map_err(failed("give back an address"))?;
    }
    let mut up = Link::default();
    up.header.index = index;
    up.header.flags = LinkFlags::Up;
    up.header.change_mask = LinkFlags::Up;
    there
        .change(Message::SetLink(up), 0)
        .map_err(failed("bring it up"))
}

/// What is said on the socket. The crate has a type for it too, but that one knows all that a network stack has, which
/// would be a sixth of this program; of links we need no more than the name.
#[derive(Debug)]
enum Message {
    GetLink(Link),
    SetLink(Link),
    NewLink(Link),
    GetAddress(AddressMessage),
    NewAddress(AddressMessage),
    Other(u16),
}

/// A device, with its attributes as they are.
#[derive(Debug, Default)]
struct Link {
    header: LinkHeader,
    attributes: Vec<DefaultNla>,
}

/// Names end with NUL.
fn name_attribute(name: &str) -> DefaultNla {
    DefaultNla::new(libc::IFLA_IFNAME, [name.as_bytes(), &[0]].concat())
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        match self {
            Self::GetLink(_) => libc::RTM_GETLINK,
            Self::SetLink(_) => libc::RTM_SETLINK,
            Self::NewLink(_) => libc::RTM_NEWLINK,
            Self::GetAddress(_) => libc::RTM_GETADDR,
            Self::NewAddress(_) => libc::RTM_NEWADDR,
            Self::Other(typ) => *typ,
        }
    }

    fn buffer_len(&self) -> usize {
        match self {
            Self::GetLink(link) | Self::SetLink(link) | Self::NewLink(link) => {
                link.header.buffer_len() + link.attributes.as_slice().buffer_len()
            }
            Self::GetAddress(address) | Self::NewAddress(address) => address.buffer_len(),
            Self::Other(_) => 0,
        }
    }

    fn serialize(&self, buffer: &mut [u8]) {
        match self {
            Self::GetLink(link) | Self::SetLink(link) | Self::NewLink(link) => {
                link.header.emit(buffer);
                let attributes = &mut buffer[link.header.buffer_len()..];
                link.attributes.as_slice().emit(attributes);
            }
            Self::GetAddress(address) | Self::NewAddress(address) => address.emit(buffer),
            Self::Other(_) => {}
        }
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        match header.message_type {
            libc::RTM_NEWLINK => {
                let header = LinkHeader::parse(payload)?;
                let attributes = payload.get(header.buffer_len()..).unwrap_or_default();
                let attributes = NlasIterator::new(attributes)
                    .map(|attribute| DefaultNla::parse(&attribute?))
                    .collect::<Result<_, _>>()?;
                Ok(Self::NewLink(Link { header, attributes }))
            }
            libc::RTM_NEWADDR => AddressMessage::parse(payload).map(Self::NewAddress),
            typ => Ok(Self::Other(typ)),
        }
    }
}

/// A route netlink socket; it belongs to the namespace in which it was opened.
struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(
            Family::Netlink,
            SockType::Raw,
            flags,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// In another namespace; this thread is back in its own afterwards.
    fn open_in(target: &OwnedFd, own: &OwnedFd) -> io::Result<Self> {
        setns(target, CloneFlags::CLONE_NEWNET)?;
        let opened = Self::open();
        setns(own, CloneFlags::CLONE_NEWNET)?;
        opened
    }

    fn link(&mut self, name: &str) -> io::Result<u32> {
        let request = Link {
            attributes: vec![name_attribute(name)],
            ..Link::default()
        };
        let answers = self.ask(Message::GetLink(request), 0)?;
        let index = answers.into_iter().find_map(|answer| match answer {
            Message::NewLink(link) => Some(link.header.index),
            _ => None,
        });
        index.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// All devices: names by index.
    fn links(&mut self) -> io::Result<HashMap<u32, String>> {
        let request = Message::GetLink(Link::default());
        let answers = self.ask(request, NLM_F_DUMP)?;
        let named = answers.into_iter().filter_map(|answer| match answer {
            Message::NewLink(link) => {
                let mut attributes = link.attributes.into_iter();
                let name = attributes.find(|part| part.kind() == libc::IFLA_IFNAME)?;
                let mut bytes = vec![0; name.value_len()];
                name.emit_value(&mut bytes);
                Some((link.header.index, parse_string(&bytes).ok()?))
            }
            _ => None,
        });
        Ok(named.collect())
    }

    /// The permanent, global addresses of a device, as they can be set again.
    fn addresses(&mut self, index: u32) -> io::Result<Vec<AddressMessage>> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Unspec;
        let answers = self.ask(Message::GetAddress(request), NLM_F_DUMP)?;
        let kept = answers.into_iter().filter_map(|answer| match answer {
            Message::NewAddress(mut address)
                if address.header.index == index
                    && address.header.scope == AddressScope::Universe
                    && address.header.flags.contains(AddressHeaderFlags::Permanent) =>
            {
                // A label starts with the old name, and the lifetime is endless anyway.
                address.attributes.retain(|part| {
                    matches!(
                        part,
                        AddressAttribute::Address(_)
                            | AddressAttribute::Local(_)
                            | AddressAttribute::Broadcast(_)
                            | AddressAttribute::Flags(_)
                            | AddressAttribute::RoutePriority(_)
                            | AddressAttribute::Protocol(_)
                    )
                });
                Some(address)
            }
            _ => None,
        });
        Ok(kept.collect())
    }

    fn change(&mut self, request: Message, flags: u16) -> io::Result<()> {
        self.ask(request, NLM_F_ACK | flags).map(drop)
    }

    /// Sends a request and gives all its answers, or its error.
    fn ask(&mut self, request: Message, flags: u16) -> io::Result<Vec<Message>> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut answers = Vec::new();
        // The kernel's dumps come in parts of at most 32 KiB.
        let mut buffer = vec![0; 1 << 16];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
                let answer = NetlinkMessage::<Message>::deserialize(rest).map_err(invalid)?;
                // Parts are aligned to four bytes.
                let size = (answer.header.length as usize).next_multiple_of(4);
                rest = rest.get(size.max(4)..).unwrap_or_default();
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(inner) => {
                        answers.push(inner);
                        if flags & (NLM_F_DUMP | NLM_F_ACK) == 0 {
                            return Ok(answers);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(devices: &str) -> Result<(), CreateError> {
        let text = format!(
            r#"{{"ociVersion":"1.3.0","linux":{{"netDevices":{devices},"namespaces":[{{"type":"network"}}]}}}}"#
        );
        let spec: Spec = serde_json::from_str(&text).unwrap();
        let linux = spec.linux().as_ref().unwrap();
        let namespaces = NamespaceSet::open(linux.namespaces().as_deref().unwrap()).unwrap();
        check(&spec, &namespaces)
    }

    #[test]
    fn names_are_looked_at_before_anything_is_made() {
        assert!(verdict(r#"{"a":{"name":"b"},"c":{}}"#).is_ok());
        assert!(verdict(r#"{"a":{"name":"c"},"c":{}}"#).is_err());
        assert!(verdict(r#"{"a":{"name":"eth%d"},"c":{"name":"eth%d"}}"#).is_ok());
        assert!(verdict(r#"{"a":{"name":"x/y"}}"#).is_err());
        assert!(verdict(r#"{"a":{"name":"sixteen-letters!"}}"#).is_err());
    }
}
