//! Who has which address of the pod CIDR; values only.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Why an address could not be given.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The range has no room for a gateway and a pod.
    #[error("{cidr} is too small for pods")]
    TooSmall {
        /// The range.
        cidr: IpNet,
    },
    /// Every address is in use.
    #[error("no address of {cidr} is free")]
    Exhausted {
        /// The range.
        cidr: IpNet,
    },
}

/// The addresses of one range: the first is the gateway's, the last (IPv4's broadcast) nobody's.
///
/// Addresses are given round robin, so that one which was given back rests as long as possible: connections to its last
/// holder die out before another pod gets it.
#[derive(Debug)]
pub struct Pool {
    cidr: IpNet,
    /// The host parts that may be given: `first..=last_usable`, as offsets from the network address.
    first: u128,
    last_usable: u128,
    /// The offset given last.
    cursor: u128,
    used: BTreeSet<u128>,
}

impl Pool {
    /// An empty pool, which goes on after `last`, the address given last.
    pub fn new(cidr: IpNet, last: Option<IpAddr>) -> Result<Self, PoolError> {
        let bits = u32::from(cidr.max_prefix_len() - cidr.prefix_len());
        // 2^64 addresses are enough; a wider range is used only in part.
        let size = 1_u128 << bits.min(64);
        if size < 4 {
            return Err(PoolError::TooSmall { cidr });
        }
        let mut pool = Self {
            cidr,
            first: 2,
            last_usable: size - 2,
            cursor: 1,
            used: BTreeSet::new(),
        };
        if let Some(offset) = last.and_then(|ip| pool.offset(ip)) {
            pool.cursor = offset;
        }
        Ok(pool)
    }

    /// The gateway's address: the first of the range.
    pub fn gateway(&self) -> IpAddr {
        self.address(1)
    }

    /// Takes the next free address.
    pub fn take(&mut self) -> Result<IpAddr, PoolError> {
        let after = self.cursor.clamp(self.first - 1, self.last_usable);
        let free = (after + 1..=self.last_usable)
            .chain(self.first..=after)
            .find(|offset| !self.used.contains(offset));
        let offset = free.ok_or(PoolError::Exhausted { cidr: self.cidr })?;
        self.used.insert(offset);
        self.cursor = offset;
        Ok(self.address(offset))
    }

    /// Marks an address as in use. One outside the range (it was another once) needs no mark.
    pub fn hold(&mut self, ip: IpAddr) {
        if let Some(offset) = self.offset(ip) {
            self.used.insert(offset);
        }
    }

    /// Gives an address back.
    pub fn release(&mut self, ip: IpAddr) {
        if let Some(offset) = self.offset(ip) {
            self.used.remove(&offset);
        }
    }

    fn offset(&self, ip: IpAddr) -> Option<u128> {
        self.cidr
            .contains(&ip)
            .then(|| number(ip) - number(self.cidr.network()))
    }

    fn address(&self, offset: u128) -> IpAddr {
        match self.cidr.network() {
            IpAddr::V4(ip) => {
                let offset = u32::try_from(offset).expect("an IPv4 range has at most 32 host bits");
                IpAddr::V4(Ipv4Addr::from(u32::from(ip) + offset))
            }
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) + offset)),
        }
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cidr: &str, last: Option<&str>) -> Pool {
        let last = last.map(|ip| ip.parse().unwrap());
        Pool::new(cidr.parse().unwrap(), last).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_are_given_once_and_neither_network_gateway_nor_broadcast() {
        let mut pool = pool("10.42.0.0/29", None);
        let given: Vec<_> = std::iter::from_fn(|| pool.take().ok()).collect();
        let wanted: Vec<_> = (2..=6).map(|n| ip(&format!("10.42.0.{n}"))).collect();
        assert_eq!(given, wanted);
        assert_eq!(pool.gateway(), ip("10.42.0.1"));
        assert!(matches!(pool.take(), Err(PoolError::Exhausted { .. })));
    }

    #[test]
    fn a_released_address_waits_until_all_others_had_their_turn() {
        let mut pool = pool("10.42.0.0/29", None);
        let first = pool.take().unwrap();
        pool.release(first);
        let next: Vec<_> = (0..5).map(|_| pool.take().unwrap()).collect();
        assert_eq!(next[4], first);
    }

    #[test]
    fn the_round_goes_on_after_a_restart() {
        let mut pool = pool("10.42.0.0/24", Some("10.42.0.9"));
        pool.hold(ip("10.42.0.10"));
        assert_eq!(pool.take().unwrap(), ip("10.42.0.11"));
    }

    #[test]
    fn addresses_of_an_earlier_range_do_not_matter() {
        let mut pool = pool("10.42.1.0/24", Some("10.42.0.9"));
        pool.hold(ip("10.42.0.2"));
        assert_eq!(pool.take().unwrap(), ip("10.42.1.2"));
        pool.release(ip("10.42.0.2"));
    }

    #[test]
    fn a_range_without_room_is_refused_and_ipv6_counts_too() {
        assert!(Pool::new("10.42.0.0/31".parse().unwrap(), None).is_err());
        let mut six = pool("fd00:42::/64", None);
        assert_eq!(six.take().unwrap(), ip("fd00:42::2"));
    }
}
