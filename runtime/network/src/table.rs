//! Tables of nf_tables that are ours: what is in them, and word of whoever else changes them.
//!
//! A table can lose its rules and keep its chains (`nft flush table`), lose its elements, or go altogether (`nft flush ruleset`, which
//! a restart of Debian's `nftables.service` does). So what a table has is read, never assumed: [`structure`] sums up all but the elements, and
//! [`TableWatch`] tells at once when somebody else made a change.

use std::collections::BTreeMap;
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{AsyncSocket, AsyncSocketExt, Socket, SocketAddr, TokioSocket};
use socket2::{SockFilter, SockRef};

use crate::nfnl::{self, INET, Message, NFGEN_HEADER, Netfilter, SUBSYS_NFTABLES};

const GETTABLE: u16 = 1;
const GETCHAIN: u16 = 4;
const GETRULE: u16 = 7;

/// `NFNLGRP_NFTABLES`: every change of a ruleset.
const GROUP_NFTABLES: u32 = 7;

/// More than one message of the kernel has.
const MOST: usize = 65_536;

/// How often an inconsistent dump is tried again before somebody else's changes count as endless.
const TRIES: usize = 20;
/// How often something is made before who else changes the ruleset has to be waited for.
const MAKES: usize = 3;

/// The chains and rules of a table of family `inet`, as the kernel has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Structure {
    /// The table's flags (`dormant`).
    pub flags: Vec<u8>,
    /// The chains by name.
    pub chains: BTreeMap<String, ChainContent>,
}

/// One chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChainContent {
    /// Where it is hooked in, its type, policy and flags, each as the kernel's attribute; empty for a chain that is only jumped to.
    pub base: Vec<(u16, Vec<u8>)>,
    /// The expressions of its rules (`NFTA_RULE_EXPRESSIONS`), in order.
    pub rules: Vec<Vec<u8>>,
}

impl Structure {
    /// A number that differs, as good as always, if anything of the chains that `of` selects differs. It lasts as long as the table.
    pub fn digest(&self, of: impl Fn(&str) -> bool) -> u64 {
        let mut digest = Digest::default();
        digest.add(&self.flags);
        for (name, chain) in self.chains.iter().filter(|(name, _)| of(name)) {
            digest.add(name.as_bytes());
            for (kind, value) in &chain.base {
                digest.add(&kind.to_ne_bytes());
                digest.add(value);
            }
            for rule in &chain.rules {
                digest.add(rule);
            }
        }
        digest.0
    }
}

/// FNV-1a over delimited parts: against accidents, not against forgers, who could as well change the rules.
pub struct Digest(pub u64);

impl Default for Digest {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Digest {
    /// Adds one part.
    pub fn add(&mut self, part: &[u8]) {
        let length = part.len().to_le_bytes();
        for byte in length.iter().chain(part) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// Reads the chains and rules of a table; `None` if there is no such table.
///
/// # Errors
///
/// If the kernel cannot be asked.
pub fn structure(netfilter: &Netfilter, table: &str) -> io::Result<Option<Structure>> {
    consistent(|| read_structure(netfilter, table))
}

/// Repeats what read several dumps until nobody changed anything meanwhile.
///
/// # Errors
///
/// What `read` fails with; `Interrupted` if somebody changes the ruleset without end.
pub fn consistent<T>(mut read: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut tries = 0;
    loop {
        match read() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted && tries < TRIES => tries += 1,
            other => return other,
        }
    }
}

/// Makes something of the ruleset and reads what the kernel made of it, until nobody else changed anything in between: else
/// what somebody else did would pass for ours. `make` commits exactly `transactions`. `None` if somebody else always came between.
///
/// # Errors
///
/// What `make` fails with, and `failed` of what asking the kernel for the generation fails with.
pub fn undisturbed<T, E>(
    netfilter: &Netfilter,
    transactions: u32,
    failed: impl Fn(io::Error) -> E,
    mut make: impl FnMut() -> Result<T, E>,
) -> Result<Option<T>, E> {
    for _ in 0..MAKES {
        let before = netfilter.generation().map_err(&failed)?;
        let made = make()?;
        let now = netfilter.generation().map_err(&failed)?;
        if now == before.wrapping_add(transactions) {
            return Ok(Some(made));
        }
    }
    Ok(None)
}

fn read_structure(netfilter: &Netfilter, table: &str) -> io::Result<Option<Structure>> {
    let generation = netfilter.generation()?;
    let is_ours = |object: &[u8]| nfnl::attribute(object, 1).and_then(nfnl::text) == Some(table);
    let mut found = None;
    netfilter.dump(
        SUBSYS_NFTABLES,
        GETTABLE,
        INET,
        |_| {},
        |object| {
            if is_ours(object) {
                let flags = nfnl::attribute(object, 2).unwrap_or_default().to_vec();
                found = Some(Structure {
                    flags,
                    ..Structure::default()
                });
            }
        },
    )?;
    let Some(mut structure) = found else {
        return Ok(None);
    };
    netfilter.dump(
        SUBSYS_NFTABLES,
        GETCHAIN,
        INET,
        |_| {},
        |chain| {
            let name = nfnl::attribute(chain, 3).and_then(nfnl::text);
            if let Some(name) = name.filter(|_| is_ours(chain)) {
                // NFTA_CHAIN_HOOK, _POLICY, _TYPE and _FLAGS; the others are names, handles and counts.
                let base = nfnl::attributes(chain).filter(|(kind, _)| [4, 5, 7, 10].contains(kind));
                let base = base.map(|(kind, value)| (kind, value.to_vec())).collect();
                structure.chains.entry(name.to_owned()).or_default().base = base;
            }
        },
    )?;
    netfilter.dump(
        SUBSYS_NFTABLES,
        GETRULE,
        INET,
        |message| {
            message.text(1, table);
        },
        |rule| {
            let chain = nfnl::attribute(rule, 2).and_then(nfnl::text);
            if let Some(chain) = chain.filter(|_| is_ours(rule)) {
                let expressions = nfnl::attribute(rule, 4).unwrap_or_default().to_vec();
                let content = structure.chains.entry(chain.to_owned()).or_default();
                content.rules.push(expressions);
            }
        },
    )?;
    // The kernel marks a dump that was interrupted, not a change between two of them.
    if netfilter.generation()? != generation {
        return Err(io::ErrorKind::Interrupted.into());
    }
    Ok(Some(structure))
}

/// Tells when somebody changed a table of family `inet`.
pub struct TableWatch {
    socket: TokioSocket,
    table: &'static str,
}

impl TableWatch {
    /// Begins to watch `table` in the network namespace of the calling thread. Changes that came through the netlink socket with the
    /// address `but` are left out in the kernel: their maker pays nothing for being watched.
    ///
    /// # Errors
    ///
    /// If the kernel has no such socket.
    pub fn open(table: &'static str, but: Option<u32>) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
        if let Some(port) = but {
            SockRef::from(socket.socket_ref()).attach_filter(&all_but(port))?;
        }
        socket.socket_mut().add_membership(GROUP_NFTABLES)?;
        Ok(Self { socket, table })
    }

    /// Waits until the table was changed. Several changes that came meanwhile count as one. Dropping the future loses nothing.
    ///
    /// # Errors
    ///
    /// If the socket fails.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut bytes = Vec::with_capacity(MOST);
            let first = self.socket.recv(&mut bytes).await;
            let first = self.take(first, &bytes)?;
            if first | self.drain()? {
                return Ok(());
            }
        }
    }

    /// Reads all that has come besides; whether the table is among it.
    fn drain(&self) -> io::Result<bool> {
        let socket: &Socket = self.socket.socket_ref();
        let mut changed = false;
        let mut bytes = Vec::with_capacity(MOST);
        loop {
            bytes.clear();
            let next = socket.recv(&mut bytes, 0);
            if let Err(error) = &next
                && error.kind() == io::ErrorKind::WouldBlock
            {
                return Ok(changed);
            }
            changed |= self.take(next.map(|_| ()), &bytes)?;
        }
    }

    /// Whether what was received is about the table.
    fn take(&self, received: io::Result<()>, mut bytes: &[u8]) -> io::Result<bool> {
        match received {
            Ok(()) => {}
            // More came than the socket holds: it may have been the table.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => return Ok(true),
            Err(error) => return Err(error),
        }
        let messages = std::iter::from_fn(|| Message::read(&mut bytes));
        Ok(messages
            .filter(|message| is_about(message, self.table))
            .count()
            > 0)
    }
}

fn is_about(message: &Message<'_>, table: &str) -> bool {
    // The first attribute of every object of nf_tables is its table's name; a generation (`NFT_MSG_NEWGEN`) has none.
    message.kind >> 8 == SUBSYS_NFTABLES
        && message.payload.first() == Some(&INET)
        && message
            .payload
            .get(NFGEN_HEADER..)
            .and_then(|attributes| nfnl::attribute(attributes, 1))
            .and_then(nfnl::text)
            == Some(table)
}

/// A socket filter that drops messages whose `nlmsg_pid`, the address of who made the change, is `port`.
fn all_but(port: u32) -> [SockFilter; 4] {
    // bpf(4): BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K. The filter reads numbers in network byte order.
    const LOAD: u16 = 0x20;
    const IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const NLMSG_PID: u32 = 12;
    let port = u32::from_be_bytes(port.to_ne_bytes());
    [
        SockFilter::new(LOAD, 0, 0, NLMSG_PID),
        SockFilter::new(IF_EQUAL, 0, 1, port),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}
