//! Services on the real kernel: each case is a machine of its own, with pods made by knarr-network.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use knarr_network::{Network, NetworkConfig, run_in};
use knarr_proxy::objects::{
    Protocol, Service, ServiceKey, ServicePort, Slice, SliceEndpoint, SlicePort, TrafficPolicy,
};
use knarr_proxy::{Feed, ProxyConfig, cleanup, run};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(5);

/// Runs an asynchronous test on a machine of its own.
fn on_machine<F: Future<Output = ()>>(test: impl FnOnce(Machine) -> F + Send + 'static) {
    let machine = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("needs root");
        let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
        sh("ip link set lo up");
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let outside = outside(dir.path());
            let config = NetworkConfig::new(
                "10.42.0.0/24".parse().unwrap(),
                "10.42.0.0/16".parse().unwrap(),
                dir.path().join("network"),
            );
            let network = Network::open(config).await.unwrap();
            test(Machine {
                dir: dir.path().to_owned(),
                outside,
                network,
                feed: Feed::new(),
            })
            .await;
        });
    });
    if let Err(panic) = machine.join() {
        std::panic::resume_unwind(panic);
    }
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

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

struct Machine {
    dir: PathBuf,
    outside: PathBuf,
    network: Network,
    feed: Feed,
}

/// A proxy that runs until it is stopped.
struct Running {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

impl Machine {
    /// A pod whose servers on port 80 (TCP and UDP) answer with its address and the client's.
    async fn pod(&self, name: &str) -> Pod {
        let pin = self.dir.join(name);
        let network = self.network.attach(name, &pin, &[]).await.unwrap();
        let ip = network.ips[0];
        let servers = move || {
            (
                TcpListener::bind("0.0.0.0:80").unwrap(),
                UdpSocket::bind("0.0.0.0:80").unwrap(),
            )
        };
        let (tcp, udp) = run_in(&pin, servers).await.unwrap();
        thread::spawn(move || {
            while let Ok((mut stream, peer)) = tcp.accept() {
                let _ = write!(stream, "{ip} {}", peer.ip());
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{ip} {}", peer.ip()).as_bytes(), peer);
            }
        });
        Pod { pin, ip }
    }

    fn proxy(&self) -> Running {
        let stop = CancellationToken::new();
        let config = ProxyConfig {
            node_name: "here".to_owned(),
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
            own_addresses: vec!["10.43.0.10".parse().unwrap()],
        };
        self.feed.set_synced();
        let run = run(self.feed.clone(), config, stop.clone());
        let task = tokio::spawn(async move { run.await.unwrap() });
        Running { stop, task }
    }

    fn endpoints(&self, pods: &[(IpAddr, &str)]) {
        self.feed.set_slice(slice(pods));
    }
}

struct Pod {
    pin: PathBuf,
    ip: IpAddr,
}

fn key() -> ServiceKey {
    ServiceKey::new("default", "web")
}

fn service() -> Service {
    let port = |protocol, name: &str| ServicePort {
        name: name.to_owned(),
        protocol,
        port: 8000,
        node_port: Some(30080),
    };
    Service {
        key: key(),
        cluster_ips: vec!["10.43.0.5".parse().unwrap()],
        external_ips: vec!["192.168.99.9".parse().unwrap()],
        ports: vec![port(Protocol::Tcp, "t"), port(Protocol::Udp, "u")],
        ..Service::default()
    }
}

fn slice(pods: &[(IpAddr, &str)]) -> Slice {
    let port = |protocol, name: &str| SlicePort {
        name: name.to_owned(),
        protocol,
        port: 80,
    };
    let endpoint = |(ip, node): &(IpAddr, &str)| SliceEndpoint {
        ip: *ip,
        ready: true,
        serving: true,
        terminating: false,
        hostname: None,
        node: Some((*node).to_owned()),
    };
    Slice {
        service: key(),
        name: "web-1".to_owned(),
        ports: vec![port(Protocol::Tcp, "t"), port(Protocol::Udp, "u")],
        endpoints: pods.iter().map(endpoint).collect(),
    }
}

const CLUSTER_IP: &str = "10.43.0.5:8000";
const EXTERNAL_IP: &str = "192.168.99.9:8000";
const NODE_PORT: &str = "192.168.7.1:30080";

/// Connects from a namespace (`None`: the machine itself); the answer is the pod's address and the client's as the pod saw it.
async fn ask(from: Option<&Path>, to: &str) -> io::Result<(IpAddr, IpAddr)> {
    let to: SocketAddr = to.parse().unwrap();
    let ask = move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_millis(700))?;
        stream.set_read_timeout(Some(DEADLINE))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (pod, client) = answer.split_once(' ').unwrap();
        Ok((pod.parse().unwrap(), client.parse().unwrap()))
    };
    match from {
        Some(pin) => run_in(pin, ask).await.unwrap(),
        None => tokio::task::spawn_blocking(ask).await.unwrap(),
    }
}

/// Waits until `check` has nothing to object to.
async fn eventually<F: Future<Output = Result<(), String>>>(mut check: impl FnMut() -> F) {
    let start = Instant::now();
    loop {
        match check().await {
            Ok(()) => return,
            Err(last) if start.elapsed() > DEADLINE => {
                panic!("still {last}, with\n{}", sh("nft list table inet knarr"))
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn answers(from: Option<&Path>, to: &str) {
    eventually(|| async {
        ask(from, to)
            .await
            .map(|_| ())
            .map_err(|err| format!("{to}: {err}"))
    })
    .await;
}

async fn refuses(from: Option<&Path>, to: &str) {
    eventually(|| async {
        match ask(from, to).await {
            Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            other => Err(format!("{to}: {other:?}")),
        }
    })
    .await;
}

#[test]
fn connections_are_balanced_over_all_endpoints_from_everywhere() {
    on_machine(async |machine| {
        let (a, b, c) = (
            machine.pod("a").await,
            machine.pod("b").await,
            machine.pod("c").await,
        );
        let client = machine.pod("client").await;
        machine.feed.set_service(service());
        machine.endpoints(&[(a.ip, "here"), (b.ip, "here"), (c.ip, "here")]);
        let proxy = machine.proxy();
        answers(None, CLUSTER_IP).await;

        for (from, to) in [
            (None, CLUSTER_IP),
            (Some(&client.pin), CLUSTER_IP),
            (Some(&machine.outside), EXTERNAL_IP),
            (None, NODE_PORT),
            (None, "127.0.0.1:30080"),
            (Some(&machine.outside), NODE_PORT),
            (Some(&client.pin), NODE_PORT),
        ] {
            let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
            for _ in 0..60 {
                let (pod, _) = ask(from.map(PathBuf::as_path), to).await.unwrap();
                *counts.entry(pod).or_default() += 1;
            }
            assert_eq!(counts.len(), 3, "{from:?} to {to}: {counts:?}");
            assert!(
                counts.values().all(|n| *n > 5),
                "{from:?} to {to}: {counts:?}"
            );
        }
        let (_, seen) = ask(Some(&client.pin), CLUSTER_IP).await.unwrap();
        assert_eq!(seen, client.ip, "a cluster address keeps the client's");
        let (_, seen) = ask(Some(&machine.outside), NODE_PORT).await.unwrap();
        assert_eq!(
            seen,
            machine.network.gateway(),
            "a node port hides the client's"
        );
        proxy.stop().await;
    });
}

#[test]
fn a_pod_reaches_itself_with_and_without_bridge_netfilter() {
    on_machine(async |machine| {
        let (a, b) = (machine.pod("a").await, machine.pod("b").await);
        machine.feed.set_service(service());
        machine.endpoints(&[(a.ip, "here"), (b.ip, "here")]);
        let proxy = machine.proxy();
        answers(None, CLUSTER_IP).await;
        for call in ["0", "1"] {
            let file = "/proc/sys/net/bridge/bridge-nf-call-iptables";
            if Path::new(file).exists() {
                fs::write(file, call).unwrap();
            }
            let mut seen = BTreeSet::new();
            for _ in 0..30 {
                seen.insert(ask(Some(&a.pin), CLUSTER_IP).await.unwrap());
            }
            let gateway = machine.network.gateway();
            assert_eq!(
                seen,
                BTreeSet::from([(a.ip, gateway), (b.ip, a.ip)]),
                "with {call}"
            );
        }
        proxy.stop().await;
    });
}

#[test]
fn endpoints_come_and_go_and_without_any_connections_are_refused() {
    on_machine(async |machine| {
        let (a, b) = (machine.pod("a").await, machine.pod("b").await);
        machine.feed.set_service(service());
        let proxy = machine.proxy();
        for to in [CLUSTER_IP, EXTERNAL_IP, NODE_PORT] {
            refuses(None, to).await;
            refuses(Some(&a.pin), to).await;
            refuses(Some(&machine.outside), to).await;
        }
        refuses(Some(&a.pin), "10.43.0.5:1").await;
        refuses(Some(&a.pin), "10.43.77.77:80").await;

        machine.endpoints(&[(a.ip, "here"), (b.ip, "here")]);
        answers(Some(&machine.outside), NODE_PORT).await;
        machine.endpoints(&[(b.ip, "here")]);
        eventually(|| async {
            for _ in 0..20 {
                let (pod, _) = ask(None, CLUSTER_IP).await.map_err(|err| err.to_string())?;
                if pod != b.ip {
                    return Err(format!("answered by {pod}"));
                }
            }
            Ok(())
        })
        .await;
        machine.feed.remove_service(&key());
        refuses(None, CLUSTER_IP).await;
        refuses(None, NODE_PORT).await;
        let table = sh("nft list table inet knarr");
        let elements = table.matches("elements = {").count();
        let fixed = table.matches("goto refuse, ").count();
        assert_eq!(elements, fixed, "left over:\n{table}");
        proxy.stop().await;
        sh("nft list table inet knarr");
        cleanup().await.unwrap();
        assert!(!sh("nft list ruleset").contains("inet knarr {"));
    });
}

#[test]
fn a_client_keeps_its_endpoint_until_that_is_gone() {
    on_machine(async |machine| {
        let (a, b, c) = (
            machine.pod("a").await,
            machine.pod("b").await,
            machine.pod("c").await,
        );
        let client = machine.pod("client").await;
        let mut service = service();
        service.affinity = Some(100);
        machine.feed.set_service(service.clone());
        machine.endpoints(&[(a.ip, "here"), (b.ip, "here"), (c.ip, "here")]);
        let proxy = machine.proxy();
        answers(None, CLUSTER_IP).await;
        for (from, to) in [(&client.pin, CLUSTER_IP), (&machine.outside, NODE_PORT)] {
            let (first, _) = ask(Some(from), to).await.unwrap();
            for _ in 0..20 {
                assert_eq!(ask(Some(from), to).await.unwrap().0, first, "{to}");
            }
        }
        let (first, _) = ask(Some(&client.pin), CLUSTER_IP).await.unwrap();
        let others: Vec<_> = [a.ip, b.ip, c.ip]
            .into_iter()
            .filter(|ip| *ip != first)
            .collect();
        machine.endpoints(&[(others[0], "here"), (others[1], "here")]);
        eventually(|| async {
            match ask(Some(&client.pin), CLUSTER_IP).await {
                Ok((pod, _)) if pod != first => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        // A restart remembers too.
        let (now, _) = ask(Some(&client.pin), CLUSTER_IP).await.unwrap();
        proxy.stop().await;
        let proxy = machine.proxy();
        machine.endpoints(&[(others[0], "here"), (others[1], "here"), (first, "here")]);
        for _ in 0..10 {
            assert_eq!(ask(Some(&client.pin), CLUSTER_IP).await.unwrap().0, now);
        }
        // A short memory forgets.
        service.affinity = Some(1);
        machine.feed.set_service(service);
        eventually(|| async {
            let table = sh("nft list table inet knarr");
            if table.contains("goto remember4-1\n")
                || table.contains("goto remember4-1,")
                || table.contains("goto remember4-1 }")
            {
                Ok(())
            } else {
                Err("the old timeout".to_owned())
            }
        })
        .await;
        let mut seen = BTreeSet::new();
        let start = Instant::now();
        while seen.len() < 2 {
            assert!(start.elapsed() < Duration::from_secs(20), "always {seen:?}");
            seen.insert(ask(Some(&client.pin), CLUSTER_IP).await.unwrap().0);
            tokio::time::sleep(Duration::from_millis(1100)).await;
        }
        proxy.stop().await;
    });
}

#[test]
fn a_restart_changes_only_what_changed_meanwhile() {
    on_machine(async |machine| {
        let (a, b) = (machine.pod("a").await, machine.pod("b").await);
        machine.feed.set_service(service());
        machine.endpoints(&[(a.ip, "here"), (b.ip, "here")]);
        let proxy = machine.proxy();
        answers(None, CLUSTER_IP).await;
        proxy.stop().await;
        let before = sh("nft list table inet knarr");

        // Nothing changed: not one transaction.
        let generation =
            || sh("nft -j list ruleset >/dev/null; nft --debug=netlink list ruleset | md5sum");
        let _ = generation();
        let proxy = machine.proxy();
        answers(None, CLUSTER_IP).await;
        proxy.stop().await;
        assert_eq!(sh("nft list table inet knarr"), before);

        // One endpoint went, a service came, an element is not ours.
        machine.endpoints(&[(b.ip, "here")]);
        let mut other = service();
        other.key.name = "other".to_owned();
        other.cluster_ips = vec!["10.43.0.6".parse().unwrap()];
        other.external_ips.clear();
        other.ports.truncate(1);
        other.ports[0].node_port = None;
        machine.feed.set_service(other);
        sh("nft add element inet knarr endpoints4 '{ 10.43.0.99 . tcp . 80 . 0 : 10.42.0.99 . 80 }'
            nft add element inet knarr services4 '{ 10.43.0.98 . tcp . 80 : 0:2 }'
            nft add table inet other; nft add chain inet other mine");
        let proxy = machine.proxy();
        refuses(None, "10.43.0.6:8000").await;
        eventually(|| async {
            let table = sh("nft list table inet knarr");
            match table.contains("10.43.0.99")
                || table.contains("10.43.0.98")
                || table.contains(&format!(": {} ", a.ip))
            {
                true => Err("left over".to_owned()),
                false => Ok(()),
            }
        })
        .await;
        assert_eq!(ask(None, CLUSTER_IP).await.unwrap().0, b.ip);
        sh("nft list chain inet other mine");
        proxy.stop().await;
    });
}

#[test]
fn local_policies_keep_the_clients_address_and_the_node() {
    on_machine(async |machine| {
        let a = machine.pod("a").await;
        let elsewhere: IpAddr = "10.42.1.7".parse().unwrap();
        let mut service = service();
        service.external_policy = TrafficPolicy::Local;
        machine.feed.set_service(service.clone());
        machine.endpoints(&[(a.ip, "here"), (elsewhere, "there")]);
        let proxy = machine.proxy();
        answers(Some(&machine.outside), NODE_PORT).await;
        for to in [NODE_PORT, EXTERNAL_IP] {
            for _ in 0..10 {
                let (pod, client) = ask(Some(&machine.outside), to).await.unwrap();
                assert_eq!((pod, client.to_string().as_str()), (a.ip, "192.168.7.2"));
            }
        }
        machine.endpoints(&[(elsewhere, "there")]);
        eventually(|| async {
            match ask(Some(&machine.outside), NODE_PORT).await {
                Err(err) if err.kind() == io::ErrorKind::TimedOut => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        proxy.stop().await;
    });
}

#[test]
fn load_balancers_are_told_whether_the_node_has_endpoints() {
    on_machine(async |machine| {
        let a = machine.pod("a").await;
        let mut service = service();
        service.external_policy = TrafficPolicy::Local;
        service.health_port = Some(32000);
        machine.feed.set_service(service.clone());
        machine.endpoints(&[(a.ip, "here")]);
        let proxy = machine.proxy();
        let told = async |wanted: &str| {
            eventually(|| async {
                let pin = machine.outside.clone();
                let ask = || {
                    let mut stream = TcpStream::connect_timeout(
                        &"192.168.7.1:32000".parse().unwrap(),
                        DEADLINE,
                    )?;
                    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer)?;
                    Ok::<_, io::Error>(answer)
                };
                let answer = run_in(&pin, ask).await.unwrap();
                let answer = answer.unwrap_or_else(|error| error.to_string());
                if answer.contains(wanted) {
                    Ok(())
                } else {
                    Err(answer)
                }
            })
            .await;
        };
        told("200 OK").await;
        told("\"localEndpoints\": 1,").await;
        machine.endpoints(&[("10.42.1.7".parse().unwrap(), "there")]);
        told("503 Service Unavailable").await;
        service.external_policy = TrafficPolicy::Cluster;
        machine.feed.set_service(service);
        told("refused").await;
        proxy.stop().await;
    });
}

#[test]
fn a_load_balancer_admits_only_its_source_ranges() {
    on_machine(async |machine| {
        let a = machine.pod("a").await;
        let mut service = service();
        service.load_balancer_ips = vec!["192.168.99.10".parse().unwrap()];
        let balancer = "192.168.99.10:8000";
        let ranges = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        machine.endpoints(&[(a.ip, "here")]);
        let mut proxy = machine.proxy();
        let dropped = async || {
            eventually(|| async {
                match ask(Some(&machine.outside), balancer).await {
                    Err(err) if err.kind() == io::ErrorKind::TimedOut => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
        };
        for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
            service.external_policy = policy;
            service.source_ranges = ranges(&["10.0.0.0/8", "10.42.0.0/16", "192.168.7.4/31"]);
            machine.feed.set_service(service.clone());
            dropped().await;
            // Pods are in the ranges; the service's other addresses are open to all.
            answers(Some(&a.pin), balancer).await;
            answers(Some(&machine.outside), EXTERNAL_IP).await;
            answers(Some(&machine.outside), NODE_PORT).await;
            // A restart finds it all, and says nothing new.
            proxy.stop().await;
            let before = sh("nft list table inet knarr");
            proxy = machine.proxy();
            dropped().await;
            assert_eq!(sh("nft list table inet knarr"), before);
            // A wider range that overlaps what was there, and none.
            service.source_ranges = ranges(&["10.0.0.0/8", "192.168.7.0/29"]);
            machine.feed.set_service(service.clone());
            answers(Some(&machine.outside), balancer).await;
            service.source_ranges.clear();
            machine.feed.set_service(service.clone());
            eventually(|| async {
                let table =
                    sh("nft list set inet knarr firewalled4; nft list set inet knarr admitted4");
                if table.contains("elements") {
                    Err(table)
                } else {
                    Ok(())
                }
            })
            .await;
            answers(Some(&machine.outside), balancer).await;
        }
        proxy.stop().await;
    });
}

#[test]
fn a_udp_client_is_sent_on_when_its_endpoint_goes() {
    on_machine(async |machine| {
        let (a, b) = (machine.pod("a").await, machine.pod("b").await);
        let client = machine.pod("client").await;
        machine.feed.set_service(service());
        machine.endpoints(&[(a.ip, "here")]);
        let proxy = machine.proxy();
        answers(None, CLUSTER_IP).await;
        let socket = run_in(&client.pin, || UdpSocket::bind("0.0.0.0:0").unwrap())
            .await
            .unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        let socket = std::sync::Arc::new(socket);
        let ask = async || {
            let socket = socket.clone();
            let ask = move || {
                socket.send_to(b"?", CLUSTER_IP)?;
                let mut buffer = [0; 64];
                let n = socket.recv(&mut buffer)?;
                let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                io::Result::Ok(text.split(' ').next().unwrap().parse::<IpAddr>().unwrap())
            };
            tokio::task::spawn_blocking(ask).await.unwrap()
        };
        assert_eq!(ask().await.unwrap(), a.ip);
        machine.endpoints(&[(b.ip, "here")]);
        eventually(async || match ask().await {
            Ok(ip) if ip == b.ip => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        proxy.stop().await;
    });
}

#[test]
fn a_table_that_somebody_removed_comes_back_with_the_next_change() {
    on_machine(async |machine| {
        let (a, b) = (machine.pod("a").await, machine.pod("b").await);
        machine.feed.set_service(service());
        machine.endpoints(&[(a.ip, "here")]);
        let proxy = machine.proxy();
        answers(None, CLUSTER_IP).await;
        sh("nft delete table inet knarr");
        machine.endpoints(&[(b.ip, "here")]);
        answers(None, CLUSTER_IP).await;
        proxy.stop().await;
    });
}

#[test]
fn the_node_reaches_services_without_a_default_route() {
    on_machine(async |machine| {
        sh("ip route del default");
        let (a, b) = (machine.pod("a").await, machine.pod("b").await);
        machine.feed.set_service(service());
        machine.endpoints(&[(a.ip, "here"), (b.ip, "here")]);
        let proxy = machine.proxy();
        answers(None, CLUSTER_IP).await;
        answers(Some(&a.pin), CLUSTER_IP).await;
        refuses(None, "10.43.0.99:80").await;
        proxy.stop().await;
    });
}

#[test]
fn services_have_ipv6_addresses_too() {
    on_machine(async |machine| {
        sh("for n in 2 3; do ip addr add fd00:42::$n/128 dev lo; done");
        for ip in ["fd00:42::2", "fd00:42::3"] {
            let server = TcpListener::bind((ip, 80)).unwrap();
            thread::spawn(move || {
                while let Ok((mut stream, peer)) = server.accept() {
                    let _ = write!(stream, "{ip} {}", peer.ip());
                }
            });
        }
        let mut service = service();
        service.cluster_ips = vec!["fd00:43::5".parse().unwrap()];
        service.external_ips = vec!["fd00:99::9".parse().unwrap()];
        service.affinity = Some(100);
        machine.feed.set_service(service.clone());
        let endpoints = ["fd00:42::2", "fd00:42::3"].map(|ip| (ip.parse().unwrap(), "here"));
        machine.endpoints(&endpoints);
        let stop = CancellationToken::new();
        let config = ProxyConfig {
            node_name: "here".to_owned(),
            cluster_cidrs: vec!["fd00:42::/64".parse().unwrap()],
            service_cidrs: vec!["fd00:43::/112".parse().unwrap()],
            own_addresses: Vec::new(),
        };
        machine.feed.set_synced();
        let proxy = tokio::spawn(run(machine.feed.clone(), config, stop.clone()));
        answers(None, "[fd00:43::5]:8000").await;
        let (first, _) = ask(None, "[fd00:43::5]:8000").await.unwrap();
        for _ in 0..20 {
            assert_eq!(ask(None, "[fd00:43::5]:8000").await.unwrap().0, first);
        }
        service.affinity = None;
        machine.feed.set_service(service);
        let mut seen = BTreeSet::new();
        let start = Instant::now();
        while seen.len() < 2 {
            assert!(start.elapsed() < DEADLINE, "always {seen:?}");
            seen.extend(ask(None, "[fd00:43::5]:8000").await.map(|(ip, _)| ip));
        }
        answers(None, "[fd00:42::2]:30080").await;
        refuses(None, "[fd00:43::6]:8000").await;
        stop.cancel();
        proxy.await.unwrap().unwrap();
    });
}
