//! A range of addresses that is dealt out in equal parts.

use std::collections::HashSet;
use std::net::IpAddr;

/// The length of a node's part: 256 addresses of IPv4, a /64 of IPv6. Source: kubernetes, `NodeCIDRMaskSizeIPv4`.
const V4_PART: u8 = 24;
const V6_PART: u8 = 64;

/// A range, and which of its parts are taken.
#[derive(Debug)]
pub(crate) struct Range {
    base: u128,
    is_v4: bool,
    part: u8,
    parts: u128,
    taken: HashSet<u128>,
    /// Where the search begins, so that a part that was just given back is not given out again at once.
    next: u128,
}

impl Range {
    /// A range of which nothing is taken; one smaller than a node's part is a single part.
    pub fn new(address: IpAddr, prefix: u8) -> Self {
        let (bits, width, part) = match address {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32, V4_PART),
            IpAddr::V6(v6) => (u128::from(v6), 128, V6_PART),
        };
        let part = part.max(prefix);
        let host_bits = u32::from(width - prefix);
        let base = bits
            .checked_shr(host_bits)
            .and_then(|net| net.checked_shl(host_bits))
            .unwrap_or(0);
        Self {
            base,
            is_v4: address.is_ipv4(),
            part,
            parts: 1 << u32::from((part - prefix).min(64)),
            taken: HashSet::new(),
            next: 0,
        }
    }

    /// Notes that a part is in use; one of another range is no concern of this.
    pub fn take(&mut self, part: &str) {
        if let Some(index) = self.index(part) {
            self.taken.insert(index);
        }
    }

    /// Gives a part back.
    pub fn give_back(&mut self, part: &str) {
        if let Some(index) = self.index(part) {
            self.taken.remove(&index);
        }
    }

    /// Deals out a part; `None` if all are taken.
    pub fn deal(&mut self) -> Option<String> {
        if self.taken.len() as u128 >= self.parts {
            return None;
        }
        let mut index = self.next;
        while self.taken.contains(&index) {
            index = (index + 1) % self.parts;
        }
        self.taken.insert(index);
        self.next = (index + 1) % self.parts;
        let bits = self.base + (index << self.step());
        let address: IpAddr = match u32::try_from(bits) {
            Ok(bits) if self.is_v4 => IpAddr::V4(bits.into()),
            _ => IpAddr::V6(bits.into()),
        };
        Some(format!("{address}/{}", self.part))
    }

    fn step(&self) -> u32 {
        u32::from(if self.is_v4 { 32 } else { 128 } - self.part)
    }

    fn index(&self, part: &str) -> Option<u128> {
        let (address, _) = part.split_once('/')?;
        let bits = match address.parse().ok()? {
            IpAddr::V4(v4) if self.is_v4 => u128::from(u32::from(v4)),
            IpAddr::V6(v6) if !self.is_v4 => u128::from(v6),
            _ => return None,
        };
        let index = bits.checked_sub(self.base)? >> self.step();
        (index < self.parts).then_some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        let (address, prefix) = text.split_once('/').expect("a range");
        Range::new(
            address.parse().expect("an address"),
            prefix.parse().expect("a length"),
        )
    }

    #[test]
    fn every_node_gets_a_part_of_its_own() {
        let mut v4 = range("10.42.0.0/16");
        v4.take("10.42.1.0/24");
        v4.take("192.168.0.0/24");
        assert_eq!(v4.deal().as_deref(), Some("10.42.0.0/24"));
        assert_eq!(v4.deal().as_deref(), Some("10.42.2.0/24"));
        v4.give_back("10.42.0.0/24");
        assert_eq!(
            v4.deal().as_deref(),
            Some("10.42.3.0/24"),
            "an old part rests for as long as there are others"
        );
        let mut v6 = range("fd00:42::/56");
        assert_eq!(v6.deal().as_deref(), Some("fd00:42::/64"));
        assert_eq!(v6.deal().as_deref(), Some("fd00:42:0:1::/64"));
    }

    #[test]
    fn a_range_ends() {
        let mut range = range("10.0.0.0/23");
        assert_eq!(
            [range.deal(), range.deal(), range.deal()].map(|part| part.is_some()),
            [true, true, false]
        );
        range.give_back("10.0.0.0/24");
        assert_eq!(range.deal().as_deref(), Some("10.0.0.0/24"));
    }

    #[test]
    fn a_small_range_is_one_part() {
        assert_eq!(
            range("10.0.0.128/25").deal().as_deref(),
            Some("10.0.0.128/25")
        );
        assert_eq!(range("fd00::/120").deal().as_deref(), Some("fd00::/120"));
    }
}
