//! How long the kernel's table takes: all of it, one change, and after a restart. Runs in a network namespace of its own.
//!
//! `cargo bench -p knarr-proxy [-- <services>…]`; without numbers 100, 1,000 and 10,000 services of five endpoints each.
//! Budgets (for 10,000): all within 0.3 s, one change within 1 ms at the 99th percentile.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use knarr_proxy::frontend::{self, Node};
use knarr_proxy::objects::{
    Protocol, Service, ServiceKey, ServicePort, Slice, SliceEndpoint, SlicePort,
};
use knarr_proxy::ruleset::Changes;
use knarr_proxy::{Kernel, Ranges};
use nix::sched::{CloneFlags, unshare};

const ENDPOINTS: u32 = 5;
const CHANGES: usize = 2000;

fn main() {
    unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
    let given: Vec<u32> = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let sizes = if given.is_empty() {
        vec![100, 1_000, 10_000]
    } else {
        given
    };
    for size in sizes {
        measure(size);
    }
}

fn measure(size: u32) {
    let node = Node {
        name: "here".to_owned(),
        ..Node::default()
    };
    let ranges = Ranges {
        pods: vec!["10.0.0.0/9".parse().unwrap()],
        services: vec!["10.128.0.0/9".parse().unwrap()],
    };
    let services: Vec<(Service, Slice)> = (0..size).map(|n| (service(n), slice(n, 0))).collect();

    let start = Instant::now();
    let mut kernel = Kernel::open(&ranges).expect("an empty table");
    let opened = start.elapsed();
    let mut changes = Changes::default();
    for (service, slice) in &services {
        let plan = frontend::plan(&node, service, [slice].into_iter());
        kernel.ruleset.update(&service.key, plan, &mut changes);
    }
    let planned = start.elapsed();
    kernel.apply(&changes).expect("all services");
    let all = start.elapsed();

    let mut times = Vec::with_capacity(CHANGES);
    for n in 0..CHANGES {
        // Some service loses an endpoint, and gets it back with the next change.
        let number = (n as u32 / 2).wrapping_mul(7919) % size;
        let (service, _) = &services[number as usize];
        let slice = slice(number, 1 - n as u32 % 2);
        let start = Instant::now();
        let mut changes = Changes::default();
        let plan = frontend::plan(&node, service, [&slice].into_iter());
        kernel.ruleset.update(&service.key, plan, &mut changes);
        kernel.apply(&changes).expect("one change");
        times.push(start.elapsed());
    }
    times.sort();

    drop(kernel);
    let start = Instant::now();
    let mut kernel = Kernel::open(&ranges).expect("the same table");
    let mut changes = Changes::default();
    for (service, slice) in &services {
        let plan = frontend::plan(&node, service, [slice].into_iter());
        kernel.ruleset.update(&service.key, plan, &mut changes);
    }
    kernel.ruleset.remove_unclaimed(&mut changes);
    kernel.apply(&changes).expect("what is missing");
    let restart = start.elapsed();

    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!(
        "{size:>6} services: all {} (table {}, plans {}, kernel {}); one change p50 {} p99 {} max {}; restart {}",
        ms(all),
        ms(opened),
        ms(planned - opened),
        ms(all - planned),
        ms(at(50)),
        ms(at(99)),
        ms(at(100)),
        ms(restart),
    );
    drop(kernel);
    knarr_proxy::Kernel::remove().expect("the table is removed");
}

fn ms(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1000.0)
}

fn service(n: u32) -> Service {
    Service {
        key: ServiceKey::new("default", format!("service-{n}")),
        cluster_ips: vec![IpAddr::V4(Ipv4Addr::from(0x0a80_0000 + n))],
        ports: vec![ServicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        }],
        ..Service::default()
    }
}

fn slice(n: u32, without: u32) -> Slice {
    Slice {
        service: ServiceKey::new("default", format!("service-{n}")),
        name: format!("service-{n}-1"),
        ports: vec![SlicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: (without..ENDPOINTS)
            .map(|e| SliceEndpoint {
                ip: IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n * ENDPOINTS + e)),
                ready: true,
                serving: true,
                terminating: false,
                hostname: None,
                node: Some("elsewhere".to_owned()),
            })
            .collect(),
    }
}
