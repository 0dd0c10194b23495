//! The network on the real kernel: each case is a machine of its own, a thread with network and mount namespaces that end with it.

#[path = "../../../tests/support/netns.rs"]
mod netns;

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use knarr_network::nfnl::Netfilter;
use knarr_network::table::{structure, undisturbed};
use knarr_network::{AttachError, Network, NetworkConfig, PortMapping, Protocol, cleanup, run_in};
use netns::{on_machine, sh};

const DEADLINE: Duration = Duration::from_secs(5);

fn config(dir: &Path) -> NetworkConfig {
    NetworkConfig::new(
        "10.42.3.0/24".parse().unwrap(),
        "10.42.0.0/16".parse().unwrap(),
        dir.join("network"),
    )
}

fn tcp(host_port: u16, container_port: u16) -> PortMapping {
    PortMapping {
        protocol: Protocol::Tcp,
        container_port,
        host_port,
        host_ip: None,
    }
}

/// A server in a namespace, or (without a pin) on the machine itself, that tells each client its address.
async fn serve(pin: Option<&Path>, address: &str) -> u16 {
    let address: SocketAddr = address.parse().unwrap();
    let bind = move || TcpListener::bind(address).unwrap();
    let listener = match pin {
        Some(pin) => run_in(pin, bind).await.unwrap(),
        None => bind(),
    };
    let port = listener.local_addr().unwrap().port();
    let _: JoinHandle<()> = thread::spawn(move || {
        while let Ok((mut stream, peer)) = listener.accept() {
            let _ = write!(stream, "{}", peer.ip());
        }
    });
    port
}

/// What the server at `to` says our address is.
async fn ask(pin: Option<&Path>, to: SocketAddr) -> std::io::Result<String> {
    let ask = move || {
        let mut stream = TcpStream::connect_timeout(&to, DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    match pin {
        Some(pin) => run_in(pin, ask).await.unwrap(),
        None => thread::spawn(ask).join().unwrap(),
    }
}

fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// Another machine on the same wire: we are 192.168.7.1, it is 192.168.7.2.
fn outside(dir: &Path) -> PathBuf {
    let pin = dir.join("outside");
    fs::write(&pin, "").unwrap();
    let pin_text = pin.display();
    sh(&format!(
        "unshare --net={pin_text} ip link set lo up
         ip link add wan type veth peer name wan netns {pin_text}
         ip addr add 192.168.7.1/24 dev wan; ip link set wan up
         nsenter --net={pin_text} sh -ec 'ip addr add 192.168.7.2/24 dev wan; ip link set wan up; ip route add default via 192.168.7.1'
         ip route add default via 192.168.7.2"
    ));
    pin
}

#[test]
fn pods_reach_each_other_the_node_and_themselves() {
    on_machine(async |dir| {
        let network = Network::open(config(&dir)).await.unwrap();
        let (pin_a, pin_b) = (dir.join("a/netns"), dir.join("b/netns"));
        let a = network.attach("a", &pin_a, &[]).await.unwrap();
        let b = network.attach("b", &pin_b, &[]).await.unwrap();
        assert_eq!(a.ips, ["10.42.3.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(b.ips, ["10.42.3.3".parse::<IpAddr>().unwrap()]);

        let port = serve(Some(&pin_b), "0.0.0.0:0").await;
        assert_eq!(
            ask(Some(&pin_a), at(b.ips[0], port)).await.unwrap(),
            "10.42.3.2"
        );
        assert_eq!(
            ask(Some(&pin_b), at(b.ips[0], port)).await.unwrap(),
            "10.42.3.3"
        );
        assert_eq!(ask(None, at(b.ips[0], port)).await.unwrap(), "10.42.3.1");
        let loopback = "127.0.0.1".parse().unwrap();
        assert_eq!(
            ask(Some(&pin_b), at(loopback, port)).await.unwrap(),
            "127.0.0.1"
        );

        let node = serve(None, "0.0.0.0:0").await;
        assert_eq!(
            ask(Some(&pin_a), at(network.gateway(), node))
                .await
                .unwrap(),
            "10.42.3.2"
        );
    });
}

#[test]
fn traffic_that_leaves_the_cluster_has_the_nodes_address() {
    on_machine(async |dir| {
        let outside = outside(&dir);
        let network = Network::open(config(&dir)).await.unwrap();
        let pin = dir.join("netns");
        network.attach("a", &pin, &[]).await.unwrap();
        let port = serve(Some(&outside), "0.0.0.0:0").await;
        let there = at("192.168.7.2".parse().unwrap(), port);
        assert_eq!(ask(Some(&pin), there).await.unwrap(), "192.168.7.1");
    });
}

#[test]
fn host_ports_work_from_everywhere() {
    on_machine(async |dir| {
        let outside = outside(&dir);
        let network = Network::open(config(&dir)).await.unwrap();
        let (pin, other) = (dir.join("a"), dir.join("b"));
        let mut on_one_address = tcp(8081, 80);
        on_one_address.host_ip = Some("192.168.7.1".parse().unwrap());
        network
            .attach("a", &pin, &[tcp(8080, 80), on_one_address])
            .await
            .unwrap();
        network.attach("b", &other, &[]).await.unwrap();
        serve(Some(&pin), "0.0.0.0:80").await;

        let node = "192.168.7.1".parse().unwrap();
        let loopback = "127.0.0.1".parse().unwrap();
        assert_eq!(
            ask(Some(&outside), at(node, 8080)).await.unwrap(),
            "192.168.7.2"
        );
        assert_eq!(
            ask(Some(&outside), at(node, 8081)).await.unwrap(),
            "192.168.7.2"
        );
        assert_eq!(ask(None, at(loopback, 8080)).await.unwrap(), "10.42.3.1");
        assert_eq!(ask(None, at(node, 8080)).await.unwrap(), "192.168.7.1");
        assert_eq!(
            ask(Some(&other), at(node, 8080)).await.unwrap(),
            "10.42.3.3"
        );
        assert_eq!(ask(Some(&pin), at(node, 8080)).await.unwrap(), "10.42.3.1");
        ask(None, at(loopback, 8081))
            .await
            .expect_err("the port is on another address");

        network.detach("a").await.unwrap();
        ask(None, at(node, 8080))
            .await
            .expect_err("the pod is gone");
        assert!(!sh("nft list table inet knarr_network").contains("8080"));
    });
}

#[test]
fn a_pod_does_not_reach_the_nodes_loopback_address() {
    on_machine(async |dir| {
        let network = Network::open(config(&dir)).await.unwrap();
        let pin = dir.join("a");
        network.attach("a", &pin, &[]).await.unwrap();
        let port = serve(None, "127.0.0.1:0").await;
        let ask = run_in(&pin, move || {
            // A hostile pod with NET_ADMIN routes 127.0.0.1 to the node.
            sh(
                "ip addr del 127.0.0.1/8 dev lo; sysctl -qw net.ipv4.conf.all.route_localnet=1
                ip route del local 127.0.0.0/8 dev lo table local 2>/dev/null || true
                ip route add 127.0.0.1 via 10.42.3.1 dev eth0 src 10.42.3.2",
            );
            let to = SocketAddr::from(([127, 0, 0, 1], port));
            TcpStream::connect_timeout(&to, Duration::from_millis(300))
        });
        ask.await.unwrap().expect_err("must not connect");
    });
}

#[test]
fn detach_leaves_nothing_and_may_be_repeated() {
    on_machine(async |dir| {
        let network = Network::open(config(&dir)).await.unwrap();
        let pin = dir.join("a/netns");
        network.attach("a", &pin, &[]).await.unwrap();
        assert!(matches!(
            network.attach("a", &pin, &[]).await,
            Err(AttachError::Twice { .. })
        ));
        assert!(network.get("a").is_some());
        network.detach("a").await.unwrap();
        network.detach("a").await.unwrap();
        assert!(network.get("a").is_none());
        assert_nothing_left(&dir);
        assert!(!pin.exists());
    });
}

fn assert_nothing_left(dir: &Path) {
    assert_eq!(sh("ip -br link show type veth"), "");
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let dir_text = dir.to_str().unwrap();
    assert!(!mounts.contains(dir_text), "{mounts}");
    let records = fs::read_dir(dir.join("network/sandboxes")).unwrap();
    assert_eq!(records.count(), 0);
}

#[test]
fn after_a_crash_pods_go_on_and_leftovers_are_removed() {
    on_machine(async |dir| {
        let (pin_a, pin_b) = (dir.join("a"), dir.join("b"));
        {
            let network = Network::open(config(&dir)).await.unwrap();
            network.attach("a", &pin_a, &[tcp(8080, 80)]).await.unwrap();
            network.attach("b", &pin_b, &[]).await.unwrap();
        }
        // As if killed after the record, before anything else; and an interface of unknown origin.
        let half = format!(
            r#"{{"ips":["10.42.3.4"],"netns":"{}/half","interface":"vethhalf"}}"#,
            dir.display()
        );
        fs::write(dir.join("network/sandboxes/half.json"), half).unwrap();
        sh("ip link add stray type veth peer name stray2; ip link set stray master knarr0");
        serve(Some(&pin_a), "0.0.0.0:80").await;

        let network = Network::open(config(&dir)).await.unwrap();
        let keep = BTreeSet::from(["a".to_owned()]);
        assert_eq!(network.gc(&keep).await.unwrap(), ["b", "half"]);
        let loopback = "127.0.0.1".parse().unwrap();
        assert_eq!(ask(None, at(loopback, 8080)).await.unwrap(), "10.42.3.1");
        assert_eq!(sh("ip -br link show type veth").lines().count(), 1);
        let next = network.attach("c", &dir.join("c"), &[]).await.unwrap();
        assert_eq!(next.ips, ["10.42.3.4".parse::<IpAddr>().unwrap()]);

        assert_eq!(network.gc(&BTreeSet::new()).await.unwrap(), ["a", "c"]);
        assert_nothing_left(&dir);
    });
}

#[test]
fn a_failed_attach_is_undone() {
    on_machine(async |dir| {
        let network = Network::open(config(&dir)).await.unwrap();
        fs::write(dir.join("file"), "").unwrap();
        let pin = dir.join("file/netns");
        let err = network.attach("a", &pin, &[]).await.unwrap_err();
        assert!(matches!(err, AttachError::Netns(_)), "{err:?}");
        assert!(network.get("a").is_none());
        assert!(matches!(
            network.attach("../a", &dir.join("a"), &[]).await,
            Err(AttachError::BadId { .. })
        ));
        // Two pods cannot have one host port.
        network
            .attach("b", &dir.join("b"), &[tcp(1, 2)])
            .await
            .unwrap();
        let err = network
            .attach("c", &dir.join("c"), &[tcp(1, 2)])
            .await
            .unwrap_err();
        assert!(matches!(err, AttachError::Rules(_)), "{err:?}");
        network.detach("b").await.unwrap();
        assert_nothing_left(&dir);
    });
}

#[test]
fn the_range_of_a_node_may_change() {
    on_machine(async |dir| {
        {
            let network = Network::open(config(&dir)).await.unwrap();
            network.attach("a", &dir.join("a"), &[]).await.unwrap();
        }
        let mut config = config(&dir);
        config.pod_cidr = "10.42.9.0/24".parse().unwrap();
        let network = Network::open(config).await.unwrap();
        let addresses = sh("ip -br -4 addr show knarr0");
        assert!(
            addresses.contains("10.42.9.1/24") && !addresses.contains("10.42.3.1/24"),
            "{addresses}"
        );
        network.detach("a").await.unwrap();
        assert_nothing_left(&dir);
    });
}

#[test]
fn many_pods_at_once_get_different_addresses() {
    on_machine(async |dir| {
        let network = Network::open(config(&dir)).await.unwrap();
        let names: Vec<String> = (0..30).map(|n| format!("pod-{n}")).collect();
        let start = Instant::now();
        let attach = names.iter().map(|name| {
            let pin = dir.join(name);
            let network = network.clone();
            async move { network.attach(name, &pin, &[]).await.unwrap().ips[0] }
        });
        let ips: BTreeSet<IpAddr> = futures::future::join_all(attach)
            .await
            .into_iter()
            .collect();
        assert_eq!(ips.len(), 30);
        println!("30 at once: {:?}", start.elapsed());
        let start = Instant::now();
        futures::future::join_all(names.iter().map(|name| network.detach(name))).await;
        println!("30 gone: {:?}", start.elapsed());
        assert_nothing_left(&dir);

        let mut times = Vec::new();
        for n in 0..30 {
            let start = Instant::now();
            network
                .attach(&format!("one-{n}"), &dir.join(format!("one-{n}")), &[])
                .await
                .unwrap();
            times.push(start.elapsed());
        }
        times.sort();
        println!("one at a time: p50 {:?}, max {:?}", times[15], times[29]);
        let start = Instant::now();
        network.gc(&BTreeSet::new()).await.unwrap();
        println!("30 removed one by one: {:?}", start.elapsed());
    });
}

#[test]
fn host_ports_and_masquerading_survive_who_flushes_nftables() {
    on_machine(async |dir| {
        let outside = outside(&dir);
        let network = Network::open(config(&dir)).await.unwrap();
        let (a, b) = (dir.join("a"), dir.join("b"));
        network.attach("a", &a, &[tcp(8080, 80)]).await.unwrap();
        serve(Some(&a), "0.0.0.0:80").await;
        let whole = sh("nft list table inet knarr_network");
        for harm in [
            "nft flush ruleset",
            "nft flush table inet knarr_network",
            "nft delete table inet knarr_network",
            "nft flush map inet knarr_network ports",
            "nft insert rule inet knarr_network host_ports accept",
        ] {
            sh(harm);
            let start = Instant::now();
            while sh("nft list table inet knarr_network 2>/dev/null || true") != whole {
                assert!(start.elapsed() < DEADLINE, "not mended after {harm}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            ask(Some(&outside), at("192.168.7.1".parse().unwrap(), 8080))
                .await
                .unwrap_or_else(|err| panic!("after {harm}: {err}"));
        }
        // Two that go at once: the one that is written last must not bring the other's port back.
        network.attach("b", &b, &[tcp(8081, 80)]).await.unwrap();
        let (first, second) = tokio::join!(network.detach("a"), network.detach("b"));
        first.and(second).unwrap();
        let table = sh("nft list table inet knarr_network");
        assert!(!table.contains("808"), "{table}");
    });
}

const SCRIPT: &str = "add table inet t; delete table inet t; table inet t { chain c { accept; }; }";

/// Else a rule that somebody inserts before the table is read would belong to it from then on.
#[test]
fn what_others_do_while_a_table_is_made_is_not_taken_for_ours() {
    on_machine(async |_| {
        let netfilter = Netfilter::open().unwrap();
        let calls = Cell::new(0);
        let make = |disturbed: u32| {
            calls.set(0);
            undisturbed(
                &netfilter,
                1,
                |error| error,
                || {
                    calls.set(calls.get() + 1);
                    sh(&format!("echo '{SCRIPT}' | nft -f -"));
                    if calls.get() <= disturbed {
                        sh("nft insert rule inet t c drop");
                    }
                    let structure = structure(&netfilter, "t")?;
                    Ok::<_, std::io::Error>(structure.map(|made| made.digest(|_| true)))
                },
            )
        };
        let ours = make(0).unwrap().expect("nobody else is here");
        assert_eq!(calls.get(), 1);
        assert_eq!(make(2).unwrap(), Some(ours));
        assert_eq!(calls.get(), 3);
        assert_eq!(make(u32::MAX).unwrap(), None);
    });
}

#[test]
fn all_of_it_can_be_removed() {
    on_machine(async |dir| {
        let network = Network::open(config(&dir)).await.unwrap();
        network.attach("a", &dir.join("a"), &[]).await.unwrap();
        network.gc(&BTreeSet::new()).await.unwrap();
        network.release();
        for _ in 0..2 {
            cleanup("knarr0").await.unwrap();
        }
        assert_nothing_left(&dir);
        assert_eq!(sh("nft list ruleset"), "");
        assert_eq!(sh("ip route"), "");
    });
}
