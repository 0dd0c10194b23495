//! The loop on a table in memory, which refuses what a test says.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;

use super::*;
use crate::maps::{Bytes, Data, Map};
use crate::objects::{Protocol, ServicePort};

/// The kernel's elements, and the service addresses that it refuses.
#[derive(Default)]
struct World {
    elements: HashMap<(Map, Bytes), Data>,
    refuses: Vec<IpAddr>,
    opened: usize,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::default();
}

struct Fake {
    ruleset: Ruleset,
}

impl Table for Fake {
    fn open(_: &Ranges, _: Option<Self>) -> Result<Opened<Self>, KernelError> {
        WORLD.with_borrow_mut(|world| {
            world.opened += 1;
            let elements = world.elements.iter();
            let (ruleset, changes) = Ruleset::adopt(elements.map(|((m, k), d)| (*m, *k, *d)));
            assert!(changes.is_empty(), "the loop left rubbish");
            Ok(Opened {
                table: Self { ruleset },
                repaired: false,
            })
        })
    }

    fn ruleset(&mut self) -> &mut Ruleset {
        &mut self.ruleset
    }

    fn apply(&mut self, changes: &Changes) -> Result<(), KernelError> {
        WORLD.with_borrow_mut(|world| {
            let refused = |(map, key, _): (Map, Bytes, Data)| {
                let address = key.as_slice().first_chunk::<4>();
                matches!(map, Map::Services(_))
                    && address.is_some_and(|ip| world.refuses.contains(&IpAddr::from(*ip)))
            };
            if changes.added().any(refused) {
                return Err(KernelError::Refused {
                    what: "add elements of services4".to_owned(),
                    source: io::ErrorKind::InvalidInput.into(),
                });
            }
            for (map, key, _) in changes.removed() {
                world.elements.remove(&(map, key));
            }
            for (map, key, data) in changes.added() {
                world.elements.insert((map, key), data);
            }
            Ok(())
        })
    }

    fn is_untouched(&self) -> Result<bool, KernelError> {
        Ok(true)
    }
}

fn service(name: &str, ip: [u8; 4]) -> crate::objects::Service {
    crate::objects::Service {
        key: ServiceKey::new("default", name),
        cluster_ips: vec![ip.into()],
        ports: vec![ServicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        }],
        ..crate::objects::Service::default()
    }
}

/// The addresses that lead somewhere.
fn programmed() -> BTreeSet<IpAddr> {
    WORLD.with_borrow(|world| {
        let services = world
            .elements
            .keys()
            .filter(|(map, _)| matches!(map, Map::Services(_)));
        services
            .map(|(_, key)| IpAddr::from(*key.as_slice().first_chunk::<4>().unwrap()))
            .collect()
    })
}

fn refuse(refuses: &[[u8; 4]]) {
    WORLD.with_borrow_mut(|world| {
        world.refuses = refuses.iter().map(|ip| IpAddr::from(*ip)).collect();
    });
}

fn ips(ips: &[[u8; 4]]) -> BTreeSet<IpAddr> {
    ips.iter().map(|ip| IpAddr::from(*ip)).collect()
}

const A: [u8; 4] = [10, 43, 0, 1];
const B: [u8; 4] = [10, 43, 0, 2];
const C: [u8; 4] = [10, 43, 0, 3];

#[test]
fn a_service_that_the_kernel_refuses_costs_itself_only() {
    let feed = Feed::new();
    for (name, ip) in [("a", A), ("b", B), ("c", C)] {
        feed.set_service(service(name, ip));
    }
    refuse(&[B]);
    let mut proxy = Proxy::<Fake>::new(feed.clone(), ProxyConfig::default());
    proxy.work(Work::Reopen).unwrap();
    assert_eq!(programmed(), ips(&[A, C]));

    // A change of another does not try it again, a look at the table does.
    let opened = WORLD.with_borrow(|world| world.opened);
    feed.set_service(service("a", [10, 43, 0, 9]));
    let keys = |name: &str| BTreeSet::from([ServiceKey::new("default", name)]);
    proxy.work(Work::Update(keys("a"))).unwrap();
    assert_eq!(programmed(), ips(&[[10, 43, 0, 9], C]));
    assert_eq!(WORLD.with_borrow(|world| world.opened), opened);
    refuse(&[]);
    proxy.work(Work::Check).unwrap();
    assert_eq!(programmed(), ips(&[[10, 43, 0, 9], B, C]));

    // One that was served and is changed to what is refused is not served any more; the loop asks for a new start.
    refuse(&[A]);
    feed.set_service(service("b", A));
    assert!(proxy.work(Work::Update(keys("b"))).is_err());
    proxy.work(Work::Reopen).unwrap();
    assert_eq!(programmed(), ips(&[[10, 43, 0, 9], C]));
}
