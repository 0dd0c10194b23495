//! Transactions: elements, chains and rules as nfnetlink messages. Numbers are those of nf_tables.h.

use knarr_network::nfnl::{
    self, APPEND, Attributes, CREATE, INET, Messages, Netfilter, SUBSYS_NFTABLES,
};
use knarr_network::table::ChainContent;

use crate::frontend::Family;
use crate::kernel::KernelError;
use crate::maps::{Chain, Data, Lane, digit};
use crate::rule::{CtAddress, Fields, REG, Rule};
use crate::skeleton::TABLE;

const NEWCHAIN: u16 = 3;
const DELCHAIN: u16 = 5;
const NEWRULE: u16 = 6;
const DELRULE: u16 = 8;
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

    /// Whether nothing is in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.notes.is_empty()
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

    /// Removes a chain that nothing leads to.
    pub(crate) fn remove_chain(&mut self, name: &str) {
        self.messages
            .push(SUBSYS_NFTABLES, DELCHAIN, 0, INET, |message| {
                message.text(1, TABLE).text(3, name);
            });
        self.note(format!("remove chain {name}"));
    }

    /// Removes all rules of a chain.
    fn flush(&mut self, chain: &str) {
        self.messages
            .push(SUBSYS_NFTABLES, DELRULE, 0, INET, |message| {
                message.text(1, TABLE).text(2, chain);
            });
        self.note(format!("remove the rules of {chain}"));
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

    /// A chain that is made when first needed, with its rules and the element that leads to it.
    pub(crate) fn made_chain(&mut self, chain: Chain) {
        self.chain(&chain.name());
        self.made_rules(chain);
        if let Chain::Balance(lane, count) = chain {
            self.mend_balancer(lane, count, false);
        }
    }

    /// Gives such a chain its rules again.
    pub(crate) fn mend_chain(&mut self, chain: Chain) {
        self.flush(&chain.name());
        self.made_rules(chain);
    }

    /// Makes the element that leads to the chain of so many endpoints, in the place of another if there is one.
    pub(crate) fn mend_balancer(&mut self, lane: Lane, count: u32, replace: bool) {
        let name = Chain::Balance(lane, count).name();
        let key = [count.to_ne_bytes()];
        if replace {
            self.elements(DELSETELEM, &lane.balancers(), &key, |element, key| {
                put_value(element, 1, key);
            });
        }
        self.elements(NEWSETELEM, &lane.balancers(), &key, |element, key| {
            put_value(element, 1, key);
            put_goto(element, &name);
        });
    }

    fn made_rules(&mut self, chain: Chain) {
        for rule in 0..rules_of(chain) {
            self.rule(&chain.name(), |expressions| {
                write_rule(chain, rule, expressions)
            });
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

/// How many rules a chain that is made when needed has.
fn rules_of(chain: Chain) -> usize {
    match chain {
        Chain::Balance(..) => 2,
        Chain::Remember(..) => 1,
    }
}

fn write_rule(chain: Chain, index: usize, rule: &mut Rule<'_, '_>) {
    match (chain, index) {
        (Chain::Balance(lane, count), 0) => rule.balance(lane, count),
        (Chain::Balance(..), _) => rule.drop(),
        (Chain::Remember(family, seconds), _) => rule.remember(family, seconds),
    }
}

/// Whether a chain in the kernel has the rules that [`Batch::made_chain`] gives it.
pub(crate) fn has_rules(chain: Chain, content: &ChainContent) -> bool {
    content.rules.len() == rules_of(chain)
        && content.rules.iter().enumerate().all(|(index, has)| {
            let wanted = nfnl::encode(|list| write_rule(chain, index, &mut Rule(list)));
            nfnl::attributes(has).count() == nfnl::attributes(&wanted).count()
                && nfnl::attributes(has)
                    .zip(nfnl::attributes(&wanted))
                    .all(|((_, has), (_, wanted))| covers(has, wanted))
        })
}

/// Whether what the kernel tells of an expression has all that we wrote of it. It adds attributes that were left out.
fn covers(has: &[u8], wanted: &[u8]) -> bool {
    nfnl::nested_attributes(wanted).all(|(kind, is_nest, wanted)| {
        nfnl::attribute(has, kind).is_some_and(|has| match is_nest {
            true => covers(has, wanted),
            false => has == wanted,
        })
    })
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
        Data::Nothing | Data::Until(_) | Data::Foreign => {}
        Data::Endpoint(value) => put_value(element, 2, value.as_slice()),
        // In the byte order of the machine, as the packet's priority.
        Data::Count(count) => put_value(element, 2, &count.to_ne_bytes()),
        Data::Goto(chain) => put_goto(element, &chain.name()),
    }
}
