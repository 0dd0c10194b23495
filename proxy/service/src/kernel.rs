//! The table in the kernel: made, read back, changed. Everything here may wait on the kernel.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use crate::batch::{Batch, DELSETELEM, KEY_END, NEWSETELEM, put_data, put_end, put_value};
use crate::conntrack;
use crate::frontend::Family;
use crate::maps::{Bytes, Chain, DROP, Data, Map, Memory, REJECT, digit};
use crate::nfnl::{self, INET, Netfilter, SUBSYS_NFTABLES};
use crate::objects::Protocol;
use crate::ruleset::{Changes, Ruleset};
use crate::skeleton::{self, Ranges, TABLE};

const GETCHAIN: u16 = 4;
const GETSETELEM: u16 = 13;

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
    /// The value in `NFTA_SET_ELEM_KEY` (1), `NFTA_SET_ELEM_DATA` (2) or [`KEY_END`].
    fn value(&self, kind: u16) -> Option<&'a [u8]> {
        nfnl::attribute(nfnl::attribute(self.0, kind)?, 1)
    }

    fn parse(&self, map: Map) -> Option<(Map, Bytes, Data)> {
        let key = Bytes::from_slice(self.value(1)?)?;
        let data = match map {
            Map::External(_) | Map::Hairpin(_) | Map::Firewalled(_) => Data::Nothing,
            Map::Admitted(_) => Data::Until(Bytes::from_slice(self.value(KEY_END)?)?),
            Map::Endpoints(_) => Data::Endpoint(Bytes::from_slice(self.value(2)?)?),
            Map::Services(_) => Data::Count(u32::from_ne_bytes(*self.value(2)?.first_chunk()?)),
            Map::Affine(_) => {
                let verdict = nfnl::attribute(nfnl::attribute(self.0, 2)?, 2)?;
                let name = nfnl::attribute(verdict, 2).and_then(nfnl::text)?;
                Data::Goto(Chain::parse(name)?)
            }
        };
        Some((map, key, data))
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
