//! The table in the kernel: made, read back, changed. Everything here may wait on the kernel.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use crate::conntrack;
use crate::frontend::Family;
use crate::nfnl::{self, APPEND, Attributes, CREATE, INET, Messages, Netfilter, SUBSYS_NFTABLES};
use crate::objects::Protocol;
use crate::ruleset::{Bytes, Chain, Changes, Data, Lane, Map, Memory, Ruleset, digit};
use crate::skeleton::{self, Ranges, TABLE};

const NEWCHAIN: u16 = 3;
const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const NEWSETELEM: u16 = 12;
const GETSETELEM: u16 = 13;
const DELSETELEM: u16 = 14;

/// How many bytes of elements go into one message: an attribute's length has 16 bits, and an element some 120 bytes at most.
const LIST_BYTES: usize = 60_000;

/// What went wrong with the table.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No netlink socket could be opened.
    #[error("open a netfilter socket")]
    Socket(#[source] io::Error),
    /// The program `nft` could not be run.
    #[error("run nft (package nftables)")]
    Run(#[source] io::Error),
    /// It refused the skeleton.
    #[error("nft refused the table: {output}")]
    Skeleton {
        /// What it said.
        output: String,
    },
    /// The kernel could not be asked.
    #[error("read {what}")]
    Read {
        /// What was asked for.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// A transaction could not be sent.
    #[error("send a transaction")]
    Send(#[source] io::Error),
    /// The kernel refused a transaction.
    #[error("the kernel refused to {what}")]
    Refused {
        /// The part that it refused.
        what: String,
        /// Its reason.
        source: io::Error,
    },
}

/// The table, and what is in it.
pub struct Kernel {
    netfilter: Netfilter,
    chains: HashSet<Chain>,
    /// What is in its maps.
    pub ruleset: Ruleset,
}

impl Kernel {
    /// Takes over the table, if it is there and of our making, or else makes it anew.
    ///
    /// # Errors
    ///
    /// What went wrong; the table may be there without any services.
    pub fn open(ranges: &Ranges) -> Result<Self, KernelError> {
        let netfilter = Netfilter::open().map_err(KernelError::Socket)?;
        let script = skeleton::script(ranges);
        let marker = skeleton::marker(&script);
        let mut names = chain_names(&netfilter)?;
        if !names.contains(&marker) {
            nft(&script)?;
            let mut batch = Batch::new();
            for family in [Family::V4, Family::V6] {
                batch.learning_rules(family);
            }
            batch.chain(&marker);
            batch.send(&netfilter)?;
            names = chain_names(&netfilter)?;
        }
        let chains = names.iter().filter_map(|name| Chain::parse(name)).collect();
        let mut elements = Vec::new();
        for map in Map::all() {
            read_map(&netfilter, &map.name(), |element| {
                elements.extend(element.parse(map))
            })?;
        }
        let (ruleset, changes) = Ruleset::adopt(elements);
        let mut kernel = Self {
            netfilter,
            chains,
            ruleset,
        };
        kernel.apply(&changes)?;
        Ok(kernel)
    }

    /// Whether the table is in the kernel and of our making.
    ///
    /// # Errors
    ///
    /// If the kernel cannot be asked.
    pub fn is_there(ranges: &Ranges) -> Result<bool, KernelError> {
        let netfilter = Netfilter::open().map_err(KernelError::Socket)?;
        let marker = skeleton::marker(&skeleton::script(ranges));
        Ok(chain_names(&netfilter)?.contains(&marker))
    }

    /// Removes the table, and nothing else.
    ///
    /// # Errors
    ///
    /// If `nft` refuses.
    pub fn remove() -> Result<(), KernelError> {
        nft(&format!(
            "add table inet {TABLE}\ndelete table inet {TABLE}\n"
        ))
    }

    /// Carries out changes that were made to `ruleset`, in one transaction.
    ///
    /// # Errors
    ///
    /// What the kernel refused. Then nothing was done, and `ruleset` is no longer what the kernel has:
    /// the table is to be opened again.
    pub fn apply(&mut self, changes: &Changes) -> Result<(), KernelError> {
        if !changes.is_empty() {
            let mut batch = Batch::new();
            let mut removed: BTreeMap<Map, Vec<Bytes>> = BTreeMap::new();
            for (map, key) in changes.removed() {
                removed.entry(map).or_default().push(key);
            }
            let mut added: BTreeMap<Map, Vec<(Bytes, Data)>> = BTreeMap::new();
            let mut new_chains = BTreeSet::new();
            for (map, key, data) in changes.added() {
                if let Data::Goto(chain) = data
                    && chain != Chain::Refuse
                    && !self.chains.contains(&chain)
                {
                    new_chains.insert(chain);
                }
                added.entry(map).or_default().push((key, data));
            }
            for chain in &new_chains {
                batch.made_chain(*chain);
            }
            for (map, keys) in removed {
                batch.elements(DELSETELEM, &map.name(), &keys, |element, key| {
                    put_value(element, 1, key.as_slice());
                });
            }
            for (map, elements) in added {
                batch.elements(
                    NEWSETELEM,
                    &map.name(),
                    &elements,
                    |element, (key, data)| {
                        put_value(element, 1, key.as_slice());
                        put_data(element, data);
                    },
                );
            }
            batch.send(&self.netfilter)?;
            self.chains.extend(new_chains);
        }
        if changes.stale_memories {
            self.forget_memories()?;
        }
        self.forget_flows(changes)
    }

    /// Makes clients forget endpoints that they may no longer have.
    fn forget_memories(&self) -> Result<(), KernelError> {
        for family in [Family::V4, Family::V6] {
            if !self
                .chains
                .iter()
                .any(|c| matches!(c, Chain::Remember(f, _) if *f == family))
            {
                continue;
            }
            let name = format!("affinity{}", digit(family));
            let mut wrong = Vec::new();
            read_map(&self.netfilter, &name, |element| {
                let Some(key) = element.value(1) else { return };
                let memory = element
                    .value(2)
                    .and_then(Bytes::from_slice)
                    .and_then(|data| Memory::parse(family, key, &data));
                if memory.is_none_or(|memory| !self.ruleset.holds(&memory)) {
                    wrong.push(key.to_vec());
                }
            })?;
            // One at a time: any of them may have timed out meanwhile, and that must not keep the others.
            for key in wrong {
                let mut batch = Batch::new();
                batch.elements(DELSETELEM, &name, &[key], |element, key| {
                    put_value(element, 1, key)
                });
                match batch.send(&self.netfilter) {
                    Err(KernelError::Refused { source, .. })
                        if source.kind() == io::ErrorKind::NotFound => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    /// Makes the kernel forget UDP flows that lead to endpoints which are no more.
    fn forget_flows(&self, changes: &Changes) -> Result<(), KernelError> {
        let udp: BTreeSet<_> = changes
            .stale
            .iter()
            .filter(|frontend| frontend.protocol == Protocol::Udp)
            .copied()
            .collect();
        if udp.is_empty() {
            return Ok(());
        }
        conntrack::forget(&self.netfilter, &udp, &self.ruleset).map_err(|source| {
            KernelError::Read {
                what: "tracked connections".to_owned(),
                source,
            }
        })
    }
}

fn chain_names(netfilter: &Netfilter) -> Result<HashSet<String>, KernelError> {
    let mut names = HashSet::new();
    netfilter
        .dump(
            SUBSYS_NFTABLES,
            GETCHAIN,
            INET,
            |_| {},
            |chain| {
                let table = nfnl::attribute(chain, 1).and_then(nfnl::text);
                let name = nfnl::attribute(chain, 3).and_then(nfnl::text);
                if let (Some(TABLE), Some(name)) = (table, name) {
                    names.insert(name.to_owned());
                }
            },
        )
        .map_err(|source| KernelError::Read {
            what: "chains".to_owned(),
            source,
        })?;
    Ok(names)
}

fn read_map(
    netfilter: &Netfilter,
    name: &str,
    mut each: impl FnMut(Element<'_>),
) -> Result<(), KernelError> {
    netfilter
        .dump(
            SUBSYS_NFTABLES,
            GETSETELEM,
            INET,
            |message| {
                message.text(1, TABLE).text(2, name);
            },
            |message| {
                let list = nfnl::attribute(message, 3).unwrap_or(&[]);
                for (_, element) in nfnl::attributes(list) {
                    each(Element(element));
                }
            },
        )
        .map_err(|source| KernelError::Read {
            what: format!("map {name}"),
            source,
        })
}

/// An element as the kernel sent it.
struct Element<'a>(&'a [u8]);

impl<'a> Element<'a> {
    /// The value in `NFTA_SET_ELEM_KEY` (1) or `NFTA_SET_ELEM_DATA` (2).
    fn value(&self, kind: u16) -> Option<&'a [u8]> {
        nfnl::attribute(nfnl::attribute(self.0, kind)?, 1)
    }

    fn parse(&self, map: Map) -> Option<(Map, Bytes, Data)> {
        let key = Bytes::from_slice(self.value(1)?)?;
        let data = match map {
            Map::External(_) | Map::Hairpin(_) => Data::Nothing,
            Map::Endpoints(_) => Data::Endpoint(Bytes::from_slice(self.value(2)?)?),
            Map::Services(_) | Map::Affine(_) => {
                let verdict = nfnl::attribute(nfnl::attribute(self.0, 2)?, 2)?;
                match nfnl::attribute(verdict, 2).and_then(nfnl::text) {
                    None => Data::Drop,
                    Some("refuse") => Data::Goto(Chain::Refuse),
                    Some(name) => Data::Goto(Chain::parse(name)?),
                }
            }
        };
        Some((map, key, data))
    }
}

/// `NFTA_DATA_VALUE` in an attribute.
fn put_value(within: &mut Attributes<'_>, kind: u16, value: &[u8]) {
    within.nested(kind, |data| {
        data.bytes(1, value);
    });
}

fn put_data(element: &mut Attributes<'_>, data: &Data) {
    const GOTO: u32 = -4_i32 as u32;
    const DROP: u32 = 0;
    let mut verdict = |code: u32, chain: Option<String>| {
        element.nested(2, |data| {
            data.nested(2, |verdict| {
                verdict.number(1, code);
                if let Some(chain) = chain {
                    verdict.text(2, &chain);
                }
            });
        });
    };
    match data {
        Data::Nothing => {}
        Data::Endpoint(value) => put_value(element, 2, value.as_slice()),
        Data::Goto(chain) => verdict(GOTO, Some(chain.name())),
        Data::Drop => verdict(DROP, None),
    }
}

/// A transaction, with a note on each message for errors.
struct Batch {
    messages: Messages,
    notes: Vec<(u32, String)>,
}

impl Batch {
    fn new() -> Self {
        let mut messages = Messages::default();
        messages.begin();
        Self {
            messages,
            notes: Vec::new(),
        }
    }

    fn note(&mut self, what: String) {
        self.notes.push((self.messages.sequence(), what));
    }

    fn elements<T>(
        &mut self,
        kind: u16,
        map: &str,
        mut elements: &[T],
        put: impl Fn(&mut Attributes<'_>, &T),
    ) {
        let flags = if kind == NEWSETELEM { CREATE } else { 0 };
        while !elements.is_empty() {
            self.messages
                .push(SUBSYS_NFTABLES, kind, flags, INET, |message| {
                    message.text(1, TABLE).text(2, map).nested(3, |list| {
                        let start = list.position();
                        while let Some((element, rest)) = elements.split_first() {
                            list.nested(1, |attributes| put(attributes, element));
                            elements = rest;
                            if list.position() - start > LIST_BYTES {
                                break;
                            }
                        }
                    });
                });
            let verb = if kind == NEWSETELEM { "add" } else { "remove" };
            self.note(format!("{verb} elements of {map}"));
        }
    }

    fn chain(&mut self, name: &str) {
        self.messages
            .push(SUBSYS_NFTABLES, NEWCHAIN, CREATE, INET, |message| {
                message.text(1, TABLE).text(3, name);
            });
        self.note(format!("add chain {name}"));
    }

    fn rule(&mut self, chain: &str, expressions: impl FnOnce(&mut Rule<'_, '_>)) {
        self.messages
            .push(SUBSYS_NFTABLES, NEWRULE, CREATE | APPEND, INET, |message| {
                message
                    .text(1, TABLE)
                    .text(2, chain)
                    .nested(4, |list| expressions(&mut Rule(list)));
            });
        self.note(format!("add a rule to {chain}"));
    }

    /// A chain that is made when first needed, with its one rule.
    fn made_chain(&mut self, chain: Chain) {
        let name = chain.name();
        self.chain(&name);
        match chain {
            Chain::Balance(lane, count) => self.rule(&name, |rule| rule.balance(lane, count)),
            Chain::Remember(family, seconds) => {
                self.rule(&name, |rule| rule.remember(family, seconds));
            }
            Chain::Refuse => {}
        }
    }

    /// `ct original daddr . l4proto . ct original proto-dst vmap @affine…`: `nft` has no type for the last.
    fn learning_rules(&mut self, family: Family) {
        let f = digit(family);
        self.rule("learned", |rule| {
            let fields = Fields::start(family);
            rule.ct_address(fields.address(), family, CtAddress::Destination);
            rule.protocol(fields.after_address(0));
            rule.ct_port(fields.after_address(1));
            rule.lookup_verdict(&format!("affine{f}"), fields.address());
        });
        self.rule("learned_port", |rule| {
            rule.only(family);
            rule.protocol(REG);
            rule.ct_port(REG + 1);
            rule.lookup_verdict(&format!("affine_port{f}"), REG);
        });
    }

    fn send(mut self, netfilter: &Netfilter) -> Result<(), KernelError> {
        self.messages.commit();
        let refusals = netfilter.send(&self.messages).map_err(KernelError::Send)?;
        let Some(first) = refusals.into_iter().next() else {
            return Ok(());
        };
        let note = self
            .notes
            .iter()
            .find(|(sequence, _)| *sequence == first.sequence);
        Err(KernelError::Refused {
            what: note.map_or_else(|| "commit".to_owned(), |(_, what)| what.clone()),
            source: first.error,
        })
    }
}

/// The first of the sixteen 4-byte registers of a rule (`NFT_REG32_00`).
const REG: u32 = 8;

/// Where the fields of a frontend's key are: an address, then others of one register each.
struct Fields {
    words: u32,
}

impl Fields {
    fn start(family: Family) -> Self {
        Self {
            words: match family {
                Family::V4 => 1,
                Family::V6 => 4,
            },
        }
    }

    fn address(&self) -> u32 {
        REG
    }

    fn after_address(&self, index: u32) -> u32 {
        REG + self.words + index
    }
}

#[derive(Clone, Copy)]
enum CtAddress {
    Source,
    Destination,
}

/// The expressions of one rule, each named and numbered as in nf_tables.h.
struct Rule<'a, 'b>(&'a mut Attributes<'b>);

impl Rule<'_, '_> {
    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.0.nested(1, |expression| {
            expression.text(1, name).nested(2, fill);
        });
    }

    fn meta(&mut self, register: u32, key: u32) {
        self.expression("meta", |e| {
            e.number(1, register).number(2, key);
        });
    }

    /// `meta l4proto`.
    fn protocol(&mut self, register: u32) {
        self.meta(register, 16);
    }

    /// `meta nfproto ipv4`.
    fn only(&mut self, family: Family) {
        self.meta(REG, 15);
        let number = match family {
            Family::V4 => 2_u8,
            Family::V6 => 10,
        };
        self.expression("cmp", |e| {
            e.number(1, REG).number(2, 0);
            put_value(e, 3, &[number]);
        });
    }

    fn payload(&mut self, register: u32, base: u32, offset: u32, len: u32) {
        self.expression("payload", |e| {
            e.number(1, register)
                .number(2, base)
                .number(3, offset)
                .number(4, len);
        });
    }

    /// `ip daddr`, `ip6 daddr`.
    fn destination(&mut self, register: u32, family: Family) {
        match family {
            Family::V4 => self.payload(register, 1, 16, 4),
            Family::V6 => self.payload(register, 1, 24, 16),
        }
    }

    /// `th dport`.
    fn destination_port(&mut self, register: u32) {
        self.payload(register, 2, 2, 2);
    }

    fn ct(&mut self, register: u32, key: u32) {
        self.expression("ct", |e| {
            // Direction 0 is the original one.
            e.number(1, register).number(2, key).bytes(3, &[0]);
        });
    }

    fn ct_address(&mut self, register: u32, family: Family, which: CtAddress) {
        let key = match (family, which) {
            (Family::V4, CtAddress::Source) => 19,
            (Family::V4, CtAddress::Destination) => 20,
            (Family::V6, CtAddress::Source) => 21,
            (Family::V6, CtAddress::Destination) => 22,
        };
        self.ct(register, key);
    }

    /// `ct original proto-dst`.
    fn ct_port(&mut self, register: u32) {
        self.ct(register, 12);
    }

    /// `vmap @map`.
    fn lookup_verdict(&mut self, map: &str, key: u32) {
        self.expression("lookup", |e| {
            // Register 0 is the verdict.
            e.text(1, map).number(2, key).number(3, 0);
        });
    }

    /// `dnat to daddr . l4proto . dport . numgen random mod N map @endpoints`.
    fn balance(&mut self, lane: Lane, count: u32) {
        let family = lane.family;
        let key = if lane.on_node {
            REG
        } else {
            Fields::start(family).after_address(0)
        };
        if !lane.on_node {
            self.destination(REG, family);
        }
        self.protocol(key);
        self.destination_port(key + 1);
        self.expression("numgen", |e| {
            e.number(1, key + 2)
                .number(2, count)
                .number(3, 1)
                .number(4, 0);
        });
        let map = Map::Endpoints(lane).name();
        self.expression("lookup", |e| {
            e.text(1, &map).number(2, REG).number(3, REG);
        });
        let port = Fields::start(family).after_address(0);
        self.expression("nat", |e| {
            // Type 1 is destination.
            e.number(1, 1)
                .number(2, if family == Family::V4 { 2 } else { 10 })
                .number(3, REG)
                .number(5, port);
        });
    }

    /// `update @affinity { client . address . protocol . port timeout T : endpoint }`.
    fn remember(&mut self, family: Family, seconds: u32) {
        let words = Fields::start(family).words;
        let key = REG;
        self.ct_address(key, family, CtAddress::Source);
        self.ct_address(key + words, family, CtAddress::Destination);
        self.protocol(key + 2 * words);
        self.ct_port(key + 2 * words + 1);
        let data = key + 2 * words + 2;
        self.destination(data, family);
        self.destination_port(data + words);
        let map = format!("affinity{}", digit(family));
        let milliseconds = u64::from(seconds) * 1000;
        self.expression("dynset", |e| {
            // Operation 1 is update.
            e.text(1, &map)
                .number(3, 1)
                .number(4, key)
                .number(5, data)
                .bytes(6, &milliseconds.to_be_bytes());
        });
    }
}

fn nft(script: &str) -> Result<(), KernelError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(KernelError::Run)?;
    let mut stdin = child.stdin.take().expect("stdin is a pipe");
    // A refusal can close the pipe early; then its words matter more than the broken pipe.
    let sent = stdin.write_all(script.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().map_err(KernelError::Run)?;
    if !output.status.success() {
        return Err(KernelError::Skeleton {
            output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    sent.map_err(KernelError::Run)
}

/// The family number of an address in netlink messages.
pub(crate) fn family_number(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 2 } else { 10 }
}
