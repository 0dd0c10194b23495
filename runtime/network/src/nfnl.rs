//! nfnetlink, as much of it as set elements, chains and a few rules need: encoding into one buffer, and reading dumps.
//!
//! `netlink-packet-netfilter` has these messages too, as trees of vectors which are measured again on every level when
//! they are written, and without `numgen`, `nat` and `ct`. Here an element is some 80 bytes appended to a buffer.
//! Source of layouts and numbers: Linux, include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h.

use std::io;
use std::os::fd::AsFd;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
/// Make it, if it is not there.
pub const CREATE: u16 = 0x400;
/// Put a rule at the end of its chain.
pub const APPEND: u16 = 0x800;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_HEADER: usize = 16;
pub(crate) const NFGEN_HEADER: usize = 4;

const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NESTED: u16 = 1 << 15;
const TYPE_MASK: u16 = 0x3fff;

/// `NFPROTO_INET`, the family of our table.
pub const INET: u8 = 1;
/// nf_tables among the subsystems of nfnetlink.
pub const SUBSYS_NFTABLES: u16 = 10;
/// Connection tracking among them.
pub const SUBSYS_CONNTRACK: u16 = 1;

const GETGEN: u16 = 16;
/// Set in a dump's messages if what they are about changed while they were made.
const NLM_F_DUMP_INTR: u16 = 0x10;

/// How long, in milliseconds, the kernel has to answer: it does while it is asked.
const PATIENCE: u16 = 5000;

/// A buffer of netlink messages.
#[derive(Debug, Default)]
pub struct Messages {
    buffer: Vec<u8>,
    sequence: u32,
}

impl Messages {
    /// Appends one message of `subsystem`; `fill` writes its attributes.
    pub fn push(
        &mut self,
        subsystem: u16,
        kind: u16,
        flags: u16,
        family: u8,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        self.message((subsystem << 8) | kind, flags, family, 0, fill);
    }

    /// Starts a transaction: the messages up to [`commit`](Self::commit) take effect together or not at all.
    pub fn begin(&mut self) {
        self.message(BATCH_BEGIN, 0, 0, SUBSYS_NFTABLES, |_| {});
    }

    /// Ends a transaction.
    pub fn commit(&mut self) {
        self.message(BATCH_END, 0, 0, SUBSYS_NFTABLES, |_| {});
    }

    /// The number of the message pushed last, by which an error names it.
    pub fn sequence(&self) -> u32 {
        self.sequence
    }

    fn message(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        self.sequence += 1;
        let start = self.buffer.len();
        self.buffer.extend(0_u32.to_ne_bytes());
        self.buffer.extend(kind.to_ne_bytes());
        self.buffer.extend((flags | NLM_F_REQUEST).to_ne_bytes());
        self.buffer.extend(self.sequence.to_ne_bytes());
        self.buffer.extend(0_u32.to_ne_bytes());
        self.buffer.extend([family, 0]);
        self.buffer.extend(resource.to_be_bytes());
        fill(&mut Attributes(&mut self.buffer));
        let len = u32::try_from(self.buffer.len() - start).expect("messages are short");
        self.buffer[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }
}

/// The attributes of a message, or of an attribute.
pub struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    /// Bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.nest(kind, |inner| inner.0.extend_from_slice(value))
    }

    /// A number in network byte order.
    pub fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A string with its final zero.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.nest(kind, |inner| {
            inner.0.extend_from_slice(value.as_bytes());
            inner.0.push(0);
        })
    }

    /// Attributes in an attribute.
    pub fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        self.nest(kind | NESTED, fill)
    }

    /// How long all messages are so far: the next attributes go there.
    pub fn position(&self) -> usize {
        self.0.len()
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        let start = self.0.len();
        self.0.extend([0, 0]);
        self.0.extend(kind.to_ne_bytes());
        fill(&mut Attributes(self.0));
        let len = u16::try_from(self.0.len() - start).expect("attributes are kept under 64 KiB");
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// What the kernel said against a message.
#[derive(Debug)]
pub struct Refusal {
    /// The message's number.
    pub sequence: u32,
    /// Why.
    pub error: io::Error,
}

/// A netlink socket of the netfilter family, in the network namespace of the thread that opened it.
pub struct Netfilter {
    socket: Socket,
    port: u32,
}

impl Netfilter {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// If there is no such socket to be had.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        // Errors without a copy of the message that they are about.
        socket.set_cap_ack(true)?;
        Ok(Self { socket, port })
    }

    /// The socket's address, by which notifications name who made a change.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// The number of the last transaction of nf_tables, anybody's, in this namespace.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn generation(&self) -> io::Result<u32> {
        let mut messages = Messages::default();
        messages.push(SUBSYS_NFTABLES, GETGEN, 0, 0, |_| {});
        self.socket.send(&messages.buffer, 0)?;
        self.wait()?;
        let mut generation = None;
        self.receive(|message| {
            let attributes = message.payload.get(NFGEN_HEADER..).unwrap_or(&[]);
            // NFTA_GEN_ID
            generation = attribute(attributes, 1).and_then(|id| id.first_chunk().copied());
            true
        })?;
        let generation = generation.ok_or(io::ErrorKind::InvalidData)?;
        Ok(u32::from_be_bytes(generation))
    }

    /// Sends messages at once; returns what the kernel refused. It has done all the work when this returns.
    ///
    /// # Errors
    ///
    /// If they could not be sent, or the answers not be read.
    pub fn send(&self, messages: &Messages) -> io::Result<Vec<Refusal>> {
        // One transaction must be one send; the default limit would allow some 2,000 elements.
        let room = messages.buffer.len() * 2 + 65_536;
        setsockopt(&self.socket.as_fd(), sockopt::SndBufForce, &room)?;
        let sent = self.socket.send(&messages.buffer, 0)?;
        if sent != messages.buffer.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let mut refusals = Vec::new();
        self.receive(|message| {
            if message.kind == NLMSG_ERROR
                && let Some(code) = message.error()
                && code != 0
            {
                refusals.push(Refusal {
                    sequence: message.sequence,
                    error: io::Error::from_raw_os_error(-code),
                });
            }
            true
        })?;
        Ok(refusals)
    }

    /// Asks for all objects of a kind; `each` sees the attributes of every one.
    ///
    /// # Errors
    ///
    /// `Interrupted` if somebody changed the objects meanwhile, so that some may be missing or twice; else what the kernel said.
    pub fn dump(
        &self,
        subsystem: u16,
        kind: u16,
        family: u8,
        fill: impl FnOnce(&mut Attributes<'_>),
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let mut messages = Messages::default();
        messages.push(subsystem, kind, NLM_F_DUMP, family, fill);
        self.socket.send(&messages.buffer, 0)?;
        let mut failed = None;
        let mut done = false;
        while !done {
            self.wait()?;
            // The kernel fills one buffer at a time, each when we have read the one before.
            self.receive(|message| {
                if message.flags & NLM_F_DUMP_INTR != 0 {
                    failed = Some(io::ErrorKind::Interrupted.into());
                }
                match message.kind {
                    NLMSG_DONE => done = true,
                    NLMSG_ERROR => {
                        done = true;
                        let code = message.error().unwrap_or(0);
                        failed = Some(io::Error::from_raw_os_error(-code));
                    }
                    _ => each(message.payload.get(NFGEN_HEADER..).unwrap_or(&[])),
                }
                !done
            })?;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Waits until there is something to read.
    fn wait(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(PATIENCE)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            // An interruption is as good as a message: there will be another look.
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Reads messages until there are no more, or `each` has had enough.
    fn receive(&self, mut each: impl FnMut(Message<'_>) -> bool) -> io::Result<()> {
        // The kernel makes as much of a dump at a time as the reader has room for, at most 32 KiB; and for each part it walks
        // the set from its beginning. With small parts, reading a large set would take quadratic time.
        let mut bytes = Vec::with_capacity(65_536);
        loop {
            bytes.clear();
            match self.socket.recv(&mut bytes, 0) {
                Ok(_) => {}
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(err) => return Err(err),
            }
            let mut rest = bytes.as_slice();
            while let Some(message) = Message::read(&mut rest) {
                if !each(message) {
                    return Ok(());
                }
            }
        }
    }
}

/// A message that the kernel sent.
pub(crate) struct Message<'a> {
    /// Its type: the subsystem in the upper eight bits, or a control message.
    pub(crate) kind: u16,
    flags: u16,
    sequence: u32,
    /// What follows the netlink header.
    pub(crate) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// Takes the first message off a buffer.
    pub(crate) fn read(rest: &mut &'a [u8]) -> Option<Self> {
        let header = rest.first_chunk::<NLMSG_HEADER>()?;
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let message = Self {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            payload: rest.get(NLMSG_HEADER..len)?,
        };
        *rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    }

    fn error(&self) -> Option<i32> {
        self.payload
            .first_chunk()
            .map(|code| i32::from_ne_bytes(*code))
    }
}

/// Attributes that the kernel sent: their kinds and contents.
pub fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = rest.first_chunk::<4>()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// The attributes that `fill` writes, as they stand in a message.
pub fn encode(fill: impl FnOnce(&mut Attributes<'_>)) -> Vec<u8> {
    let mut buffer = Vec::new();
    fill(&mut Attributes(&mut buffer));
    buffer
}

/// Attributes that [`encode`] wrote: their kinds, whether they are nests, and contents. (The kernel does not mark all of its own nests.)
pub fn nested_attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, bool, &[u8])> {
    std::iter::from_fn(move || {
        let is_nest =
            rest.get(2..4)? == (u16::from_ne_bytes([rest[2], rest[3]]) | NESTED).to_ne_bytes();
        let (kind, value) = attributes(rest).next()?;
        rest = rest
            .get((4 + value.len()).next_multiple_of(4)..)
            .unwrap_or(&[]);
        Some((kind, is_nest, value))
    })
}

/// The content of the first attribute of that kind.
pub fn attribute(within: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(within).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// A string attribute without its final zero.
pub fn text(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
}
