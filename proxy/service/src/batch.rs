//! Transactions: elements, chains and rules as nfnetlink messages. Numbers are those of nf_tables.h.

use crate::frontend::Family;
use crate::kernel::KernelError;
use crate::maps::{Chain, Data, digit};
use crate::nfnl::{APPEND, Attributes, CREATE, INET, Messages, Netfilter, SUBSYS_NFTABLES};
use crate::rule::{CtAddress, Fields, REG, Rule};
use crate::skeleton::TABLE;

const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
/// Adds elements.
pub(crate) const NEWSETELEM: u16 = 12;
/// Removes elements.
pub(crate) const DELSETELEM: u16 = 14;

/// `NFTA_SET_ELEM_KEY_END`.
pub(crate) const KEY_END: u16 = 10;

/// How many bytes of elements go into one message: an attribute's length has 16 bits, and an element some 120 bytes at most.
const LIST_BYTES: usize = 60_000;

/// A transaction, with a note on each message for errors.
pub(crate) struct Batch {
    messages: Messages,
    notes: Vec<(u32, String)>,
}

impl Batch {
    pub(crate) fn new() -> Self {
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

    pub(crate) fn elements<T>(
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

    pub(crate) fn chain(&mut self, name: &str) {
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
    pub(crate) fn made_chain(&mut self, chain: Chain) {
        let name = chain.name();
        self.chain(&name);
        match chain {
            Chain::Balance(lane, count) => {
                self.rule(&name, |rule| rule.balance(lane, count));
                let key = count.to_ne_bytes();
                self.elements(NEWSETELEM, &lane.balancers(), &[key], |element, key| {
                    put_value(element, 1, key);
                    put_goto(element, &name);
                });
            }
            Chain::Remember(family, seconds) => {
                self.rule(&name, |rule| rule.remember(family, seconds));
            }
        }
    }

    /// `ct original daddr . l4proto . ct original proto-dst vmap @affine…`: `nft` has no type for the last.
    pub(crate) fn learning_rules(&mut self, family: Family) {
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

    pub(crate) fn send(mut self, netfilter: &Netfilter) -> Result<(), KernelError> {
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

/// `NFTA_DATA_VALUE` in an attribute.
pub(crate) fn put_value(within: &mut Attributes<'_>, kind: u16, value: &[u8]) {
    within.nested(kind, |data| {
        data.bytes(1, value);
    });
}

/// A verdict in the data of an element.
fn put_goto(element: &mut Attributes<'_>, chain: &str) {
    const GOTO: u32 = -4_i32 as u32;
    element.nested(2, |data| {
        data.nested(2, |verdict| {
            verdict.number(1, GOTO).text(2, chain);
        });
    });
}

/// The end of the range that an element's key begins, if it is one.
pub(crate) fn put_end(element: &mut Attributes<'_>, data: &Data) {
    if let Data::Until(last) = data {
        put_value(element, KEY_END, last.as_slice());
    }
}

/// The data of an element.
pub(crate) fn put_data(element: &mut Attributes<'_>, data: &Data) {
    match data {
        Data::Nothing | Data::Until(_) => {}
        Data::Endpoint(value) => put_value(element, 2, value.as_slice()),
        // In the byte order of the machine, as the packet's priority.
        Data::Count(count) => put_value(element, 2, &count.to_ne_bytes()),
        Data::Goto(chain) => put_goto(element, &chain.name()),
    }
}
