//! The expressions of the few rules which the program `nft` cannot write, each named and numbered as in nf_tables.h.

use knarr_network::nfnl::Attributes;

use crate::batch::put_value;
use crate::frontend::Family;
use crate::maps::{Lane, Map, digit};

/// The first of the sixteen 4-byte registers of a rule (`NFT_REG32_00`).
pub(crate) const REG: u32 = 8;

/// Writes a register's number as the kernel tells it back: the first quarter of a 16-byte register has that one's number (`NFT_REG_1` and
/// so on).
fn put_register<'a, 'b>(
    expression: &'a mut Attributes<'b>,
    kind: u16,
    register: u32,
) -> &'a mut Attributes<'b> {
    let index = register - REG;
    let number = if index.is_multiple_of(4) {
        1 + index / 4
    } else {
        register
    };
    expression.number(kind, number)
}

/// Where the fields of a frontend's key are: an address, then others of one register each.
pub(crate) struct Fields {
    words: u32,
}

impl Fields {
    pub(crate) fn start(family: Family) -> Self {
        Self {
            words: match family {
                Family::V4 => 1,
                Family::V6 => 4,
            },
        }
    }

    pub(crate) fn address(&self) -> u32 {
        REG
    }

    pub(crate) fn after_address(&self, index: u32) -> u32 {
        REG + self.words + index
    }
}

#[derive(Clone, Copy)]
pub(crate) enum CtAddress {
    Source,
    Destination,
}

/// The expressions of one rule, each named and numbered as in nf_tables.h.
pub(crate) struct Rule<'a, 'b>(pub(crate) &'a mut Attributes<'b>);

impl Rule<'_, '_> {
    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.0.nested(1, |expression| {
            expression.text(1, name).nested(2, fill);
        });
    }

    fn meta(&mut self, register: u32, key: u32) {
        self.expression("meta", |e| {
            put_register(e, 1, register).number(2, key);
        });
    }

    /// `meta l4proto`.
    pub(crate) fn protocol(&mut self, register: u32) {
        self.meta(register, 16);
    }

    /// `meta nfproto ipv4`.
    pub(crate) fn only(&mut self, family: Family) {
        self.meta(REG, 15);
        let number = match family {
            Family::V4 => 2_u8,
            Family::V6 => 10,
        };
        self.expression("cmp", |e| {
            put_register(e, 1, REG).number(2, 0);
            put_value(e, 3, &[number]);
        });
    }

    fn payload(&mut self, register: u32, base: u32, offset: u32, len: u32) {
        self.expression("payload", |e| {
            put_register(e, 1, register)
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
            put_register(e, 1, register).number(2, key).bytes(3, &[0]);
        });
    }

    pub(crate) fn ct_address(&mut self, register: u32, family: Family, which: CtAddress) {
        let key = match (family, which) {
            (Family::V4, CtAddress::Source) => 19,
            (Family::V4, CtAddress::Destination) => 20,
            (Family::V6, CtAddress::Source) => 21,
            (Family::V6, CtAddress::Destination) => 22,
        };
        self.ct(register, key);
    }

    /// `ct original proto-dst`.
    pub(crate) fn ct_port(&mut self, register: u32) {
        self.ct(register, 12);
    }

    /// `vmap @map`.
    pub(crate) fn lookup_verdict(&mut self, map: &str, key: u32) {
        self.expression("lookup", |e| {
            // Register 0 is the verdict.
            put_register(e.text(1, map), 2, key).number(3, 0);
        });
    }

    /// The key of a frontend in the registers from the first on; returns the register after it.
    fn frontend(&mut self, lane: Lane) -> u32 {
        let fields = Fields::start(lane.family);
        let after_address = if lane.on_node {
            REG
        } else {
            fields.after_address(0)
        };
        if !lane.on_node {
            self.destination(REG, lane.family);
        }
        self.protocol(after_address);
        self.destination_port(after_address + 1);
        after_address + 2
    }

    /// `meta priority set 0 dnat to daddr . l4proto . dport . numgen random mod N map @endpoints`.
    pub(crate) fn balance(&mut self, lane: Lane, count: u32) {
        let family = lane.family;
        self.expression("immediate", |e| {
            put_register(e, 1, REG);
            put_value(e, 2, &0_u32.to_ne_bytes());
        });
        self.expression("meta", |e| {
            // Key 2 is the priority, attribute 3 the register that it is set from.
            put_register(e.number(2, 2), 3, REG);
        });
        let index = self.frontend(lane);
        self.expression("numgen", |e| {
            put_register(e, 1, index)
                .number(2, count)
                .number(3, 1)
                .number(4, 0);
        });
        let map = Map::Endpoints(lane).name();
        self.expression("lookup", |e| {
            put_register(e.text(1, &map), 2, REG);
            put_register(e, 3, REG);
        });
        let port = Fields::start(family).after_address(0);
        self.expression("nat", |e| {
            // Type 1 is destination.
            e.number(1, 1)
                .number(2, if family == Family::V4 { 2 } else { 10 });
            put_register(e, 3, REG);
            put_register(e, 5, port);
        });
    }

    /// `drop`.
    pub(crate) fn drop(&mut self) {
        self.expression("immediate", |e| {
            // Register 0 is the verdict, verdict 0 is to drop.
            e.number(1, 0).nested(2, |data| {
                data.nested(2, |verdict| {
                    verdict.number(1, 0);
                });
            });
        });
    }

    /// `update @affinity { client . address . protocol . port timeout T : endpoint }`.
    pub(crate) fn remember(&mut self, family: Family, seconds: u32) {
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
            e.text(1, &map).number(3, 1);
            put_register(e, 4, key);
            put_register(e, 5, data).bytes(6, &milliseconds.to_be_bytes());
        });
    }
}
