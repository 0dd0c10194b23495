//! The table in the kernel: made, read back, changed. Everything here may wait on the kernel.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::net::IpAddr;

use knarr_network::nfnl::{self, INET, Netfilter, SUBSYS_NFTABLES};
use knarr_network::nft::{self, NftError};
use knarr_network::table::{Structure, consistent};

use crate::batch::{self, Batch, DELSETELEM, KEY_END, NEWSETELEM, put_data, put_end, put_value};
use crate::conntrack;
use crate::constant;
use crate::frontend::Family;
use crate::maps::{Bytes, Chain, DROP, Data, Lane, Map, Memory, REJECT, digit};
use crate::objects::Protocol;
use crate::ruleset::{Changes, Ruleset};
use crate::skeleton::{Ranges, TABLE};

const GETSETELEM: u16 = 13;

/// What went wrong with the table.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// No netlink socket could be opened.
    #[error("open a netfilter socket")]
    Socket(#[source] io::Error),
    /// The constant part could not be written.
    #[error("write the table")]
    Skeleton(#[source] NftError),
    /// The kernel could not be asked.
    #[error("read {what}")]
    Read {
        /// What was asked for.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// There was a fault in the program.
    #[error("the work on the table panicked")]
    Panicked,
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
    /// The ruleset's generation when the table was read.
    generation: u32,
    /// How many transactions of ours came since.
    sent: Cell<u32>,
}

/// A table that was taken over.
pub struct Opened<T = Kernel> {
    /// The table.
    pub table: T,
    /// Whether its constant part was not as it should be.
    pub repaired: bool,
}

impl Kernel {
    /// Takes over the table, if it is there and of our making, or else makes it anew.
    ///
    /// # Errors
    ///
    /// What went wrong; the table may be there without any services.
    pub fn open(ranges: &Ranges) -> Result<Self, KernelError> {
        Ok(Self::reopen(ranges, None)?.table)
    }

    /// The same through the socket of `before`, a table that was open already.
    ///
    /// # Errors
    ///
    /// As [`Self::open`].
    pub(crate) fn reopen(
        ranges: &Ranges,
        before: Option<Self>,
    ) -> Result<Opened<Self>, KernelError> {
        let netfilter = match before {
            Some(kernel) => kernel.netfilter,
            None => Netfilter::open().map_err(KernelError::Socket)?,
        };
        let read = |what: &str, source| KernelError::Read {
            what: what.to_owned(),
            source,
        };
        // Before the reading: a change in its midst is seen by the next check.
        let now = || {
            netfilter
                .generation()
                .map_err(|e| read("the generation", e))
        };
        let mut generation = now()?;
        let mut structure = constant::intact(&netfilter, ranges)?;
        let mut repaired = structure.is_none();
        if repaired {
            constant::make(&netfilter, ranges)?;
            generation = now()?;
            structure = constant::intact(&netfilter, ranges)?;
        }
        let structure = structure.ok_or_else(|| {
            read(
                "the table that was just made",
                std::io::ErrorKind::NotFound.into(),
            )
        })?;
        let mut kernel = Self {
            netfilter,
            chains: HashSet::new(),
            ruleset: Ruleset::default(),
            generation,
            sent: Cell::new(0),
        };
        repaired |= kernel.adopt_chains(&structure)?;
        let elements = consistent(|| {
            let mut elements = Vec::new();
            for map in Map::all() {
                dump_map(&kernel.netfilter, &map.name(), |element| {
                    elements.extend(element.parse(map))
                })?;
            }
            Ok(elements)
        });
        let (ruleset, changes) = Ruleset::adopt(elements.map_err(|e| read("the maps", e))?);
        kernel.ruleset = ruleset;
        kernel.apply(&changes)?;
        repaired |= !changes.is_empty();
        Ok(Opened {
            table: kernel,
            repaired,
        })
    }

    /// Takes over the chains that are made when needed, with the elements that lead to them, and mends what is not right with them.
    /// Returns whether anything was.
    fn adopt_chains(&mut self, structure: &Structure) -> Result<bool, KernelError> {
        let mut batch = Batch::new();
        for (name, content) in &structure.chains {
            let Some(chain) = Chain::parse(name) else {
                continue;
            };
            if !batch::has_rules(chain, content) {
                batch.mend_chain(chain);
            }
            self.chains.insert(chain);
        }
        for lane in Lane::all() {
            let found = read_map(&self.netfilter, &lane.balancers(), |element| {
                let count = u32::from_ne_bytes(*element.value(1)?.first_chunk()?);
                Some((count, element.chain().map(ToOwned::to_owned)))
            })?;
            let found: HashMap<u32, Option<String>> = found.into_iter().collect();
            for chain in &self.chains {
                let Chain::Balance(of, count) = *chain else {
                    continue;
                };
                if of != lane {
                    continue;
                }
                match found.get(&count) {
                    Some(Some(to)) if *to == chain.name() => {}
                    other => batch.mend_balancer(lane, count, other.is_some()),
                }
            }
        }
        if batch.is_empty() {
            return Ok(false);
        }
        self.send(batch)?;
        Ok(true)
    }

    /// The address of the socket that changes come through.
    pub(crate) fn port(&self) -> u32 {
        self.netfilter.port()
    }

    /// Whether nobody else changed any table of this namespace since this one was read.
    pub(crate) fn is_untouched(&self) -> Result<bool, KernelError> {
        let now = self.netfilter.generation();
        let now = now.map_err(|source| KernelError::Read {
            what: "the generation".to_owned(),
            source,
        })?;
        Ok(now == self.generation.wrapping_add(self.sent.get()))
    }

    fn send(&self, batch: Batch) -> Result<(), KernelError> {
        batch.send(&self.netfilter)?;
        self.sent.set(self.sent.get().wrapping_add(1));
        Ok(())
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
            let mut removed: BTreeMap<Map, Vec<(Bytes, Data)>> = BTreeMap::new();
            for (map, key, data) in changes.removed() {
                removed.entry(map).or_default().push((key, data));
            }
            let mut added: BTreeMap<Map, Vec<(Bytes, Data)>> = BTreeMap::new();
            let mut new_chains = BTreeSet::new();
            for (map, key, data) in changes.added() {
                let chain = match (map, data) {
                    (_, Data::Goto(chain)) => Some(chain),
                    (Map::Services(lane), Data::Count(count))
                        if count != REJECT && count != DROP =>
                    {
                        Some(Chain::Balance(lane, count))
                    }
                    _ => None,
                };
                new_chains.extend(chain.filter(|chain| !self.chains.contains(chain)));
                added.entry(map).or_default().push((key, data));
            }
            for chain in &new_chains {
                batch.made_chain(*chain);
            }
            for (map, elements) in removed {
                batch.elements(
                    DELSETELEM,
                    &map.name(),
                    &elements,
                    |element, (key, data)| {
                        put_value(element, 1, key.as_slice());
                        put_end(element, data);
                    },
                );
            }
            for (map, elements) in added {
                batch.elements(
                    NEWSETELEM,
                    &map.name(),
                    &elements,
                    |element, (key, data)| {
                        put_value(element, 1, key.as_slice());
                        put_end(element, data);
                        put_data(element, data);
                    },
                );
            }
            self.send(batch)?;
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
            let wrong = read_map(&self.netfilter, &name, |element| {
                let key = element.value(1)?;
                let memory = element
                    .value(2)
                    .and_then(Bytes::from_slice)
                    .and_then(|data| Memory::parse(family, key, &data));
                memory
                    .is_none_or(|memory| !self.ruleset.holds(&memory))
                    .then(|| key.to_vec())
            })?;
            // One at a time: any of them may have timed out meanwhile, and that must not keep the others.
            for key in wrong {
                let mut batch = Batch::new();
                batch.elements(DELSETELEM, &name, &[key], |element, key| {
                    put_value(element, 1, key)
                });
                match self.send(batch) {
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

/// What `each` makes of the elements of a map.
pub(crate) fn read_map<T>(
    netfilter: &Netfilter,
    name: &str,
    mut each: impl FnMut(Element<'_>) -> Option<T>,
) -> Result<Vec<T>, KernelError> {
    let read = consistent(|| {
        let mut found = Vec::new();
        dump_map(netfilter, name, |element| found.extend(each(element)))?;
        Ok(found)
    });
    read.map_err(|source| KernelError::Read {
        what: format!("map {name}"),
        source,
    })
}

fn dump_map(
    netfilter: &Netfilter,
    name: &str,
    mut each: impl FnMut(Element<'_>),
) -> io::Result<()> {
    netfilter.dump(
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
}

/// An element as the kernel sent it.
pub(crate) struct Element<'a>(&'a [u8]);

impl<'a> Element<'a> {
    /// The value in `NFTA_SET_ELEM_KEY` (1), `NFTA_SET_ELEM_DATA` (2) or [`KEY_END`].
    pub(crate) fn value(&self, kind: u16) -> Option<&'a [u8]> {
        nfnl::attribute(nfnl::attribute(self.0, kind)?, 1)
    }

    /// The verdict that it leads to (`NFTA_VERDICT_CODE`).
    pub(crate) fn verdict(&self) -> Option<i32> {
        let verdict = nfnl::attribute(nfnl::attribute(self.0, 2)?, 2)?;
        let code = nfnl::attribute(verdict, 1)?;
        Some(i32::from_be_bytes(*code.first_chunk()?))
    }

    /// The chain that it leads to.
    pub(crate) fn chain(&self) -> Option<&'a str> {
        let verdict = nfnl::attribute(nfnl::attribute(self.0, 2)?, 2)?;
        nfnl::attribute(verdict, 2).and_then(nfnl::text)
    }

    /// The element, with [`Data::Foreign`] if we never wrote such a one; `None` if it has not even a key like ours.
    fn parse(&self, map: Map) -> Option<(Map, Bytes, Data)> {
        let key = Bytes::from_slice(self.value(1)?)?;
        let until = || Bytes::from_slice(self.value(KEY_END)?).map(Data::Until);
        let data = match map {
            Map::External(_) | Map::Hairpin(_) | Map::Firewalled(_) => Some(Data::Nothing),
            Map::Admitted(_) => until(),
            Map::Endpoints(_) => self
                .value(2)
                .and_then(Bytes::from_slice)
                .map(Data::Endpoint),
            Map::Services(_) => self
                .value(2)
                .and_then(<[u8]>::first_chunk)
                .map(|count| Data::Count(u32::from_ne_bytes(*count))),
            Map::Affine(_) => self.chain().and_then(Chain::parse).map(Data::Goto),
        };
        Some((map, key, data.unwrap_or(Data::Foreign)))
    }
}

pub(crate) fn nft(script: &str) -> Result<(), KernelError> {
    nft::run(script).map_err(KernelError::Skeleton)
}

/// The family number of an address in netlink messages.
pub(crate) fn family_number(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 2 } else { 10 }
}
