//! Two machines on one wire, each a network namespace with a pod network of its own, and an API that lists them as Nodes.

#[path = "../../../tests/support/netns.rs"]
mod netns;

use std::convert::Infallible;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use ipnet::IpNet;
use knarr_network::{Network, NetworkConfig, run_in};
use knarr_route::{Change, Kernel, KernelError, NodeInfo, RouteConfig, plan, run, wanted};
use netns::{on_machine, sh};
use nix::sched::{CloneFlags, setns};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(5);

/// Runs asynchronous work on a thread inside a network namespace.
fn on<T: Send + 'static, F: Future<Output = T>>(
    pin: &Path,
    work: impl FnOnce() -> F + Send + 'static,
) -> T {
    let file = fs::File::open(pin).unwrap();
    let thread = thread::spawn(move || {
        setns(file.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work())
    });
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Two machines, `a` at 192.168.7.1 and `b` at 192.168.7.2.
fn wired(test: impl FnOnce(&Path, [PathBuf; 2]) + Send + 'static) {
    on_machine(async move |dir| {
        let pins = ["a", "b"].map(|name| {
            let pin = dir.join(name);
            fs::write(&pin, "").unwrap();
            sh(&format!(
                "unshare --net={} ip link set lo up",
                pin.display()
            ));
            pin
        });
        let [a, b] = pins.each_ref().map(|pin| pin.display().to_string());
        sh(&format!(
            "ip link add wan0 type veth peer name wan1
             ip link set wan0 netns {a}; ip link set wan1 netns {b}
             nsenter --net={a} sh -ec 'ip link set wan0 up; ip addr add 192.168.7.1/24 dev wan0'
             nsenter --net={b} sh -ec 'ip link set wan1 up; ip addr add 192.168.7.2/24 dev wan1'"
        ));
        test(&dir, pins);
    });
}

fn nodes() -> std::collections::BTreeMap<String, NodeInfo> {
    let node = |cidr: &str, ip: &str| NodeInfo {
        pod_cidrs: vec![cidr.parse().unwrap()],
        ips: vec![ip.parse().unwrap()],
        ..NodeInfo::default()
    };
    [
        ("a".to_owned(), node("10.42.0.0/24", "192.168.7.1")),
        ("b".to_owned(), node("10.42.1.0/24", "192.168.7.2")),
    ]
    .into()
}

/// A pod of a machine, with a server on port 80 that tells each client its address.
fn pod(machine: &Path, dir: &Path, cidr: &str) -> (PathBuf, IpAddr) {
    let pin = dir.join(format!("pod-{}", cidr.replace('/', "-")));
    let state = dir.join(format!("state-{}", cidr.replace('/', "-")));
    let cidr = cidr.parse().unwrap();
    let at = pin.clone();
    let ip = on(machine, async move || {
        let config = NetworkConfig::new(cidr, "10.42.0.0/16".parse().unwrap(), state);
        let network = Network::open(config).await.unwrap();
        let ip = network.attach("pod", &at, &[]).await.unwrap().ips[0];
        let listener = run_in(&at, || TcpListener::bind("0.0.0.0:80").unwrap())
            .await
            .unwrap();
        thread::spawn(move || {
            while let Ok((mut stream, peer)) = listener.accept() {
                let _ = write!(stream, "{}", peer.ip());
            }
        });
        ip
    });
    (pin, ip)
}

fn ask(from: &Path, to: IpAddr) -> String {
    on(from, async move || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, 80), DEADLINE).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    })
}

fn set(to: IpNet, gateway: IpAddr, had: Option<IpAddr>) -> Change {
    Change::Set { to, gateway, had }
}

fn reconcile(machine: &Path, own: &'static str) -> Vec<Change> {
    on(machine, async move || {
        let kernel = Kernel::open().unwrap();
        let cluster = ["10.42.0.0/16".parse().unwrap()];
        let (wanted, refused) = wanted(own, &cluster, &nodes());
        assert!(refused.is_empty(), "{refused:?}");
        let changes = plan(&kernel.list().await.unwrap(), &wanted);
        for change in &changes {
            kernel.apply(*change).await.unwrap();
        }
        changes
    })
}

#[test]
fn pods_of_different_nodes_reach_each_other_with_their_own_addresses() {
    wired(|dir, [a, b]| {
        let (pod_a, ip_a) = pod(&a, dir, "10.42.0.0/24");
        let (pod_b, ip_b) = pod(&b, dir, "10.42.1.0/24");
        assert_eq!(reconcile(&a, "a").len(), 1);
        assert_eq!(reconcile(&b, "b").len(), 1);
        assert_eq!(ask(&pod_a, ip_b), ip_a.to_string());
        assert_eq!(ask(&pod_b, ip_a), ip_b.to_string());
        assert_eq!(ask(&a, ip_b), "192.168.7.1");
        assert!(reconcile(&a, "a").is_empty(), "nothing is left to do");
    });
}

#[test]
fn only_our_routes_are_removed() {
    wired(|_, [a, _]| {
        on(&a, async || {
            sh("ip route add 10.42.8.0/24 via 192.168.7.2");
            let kernel = Kernel::open().unwrap();
            let (to, gateway) = (
                "10.42.9.0/24".parse().unwrap(),
                "192.168.7.2".parse().unwrap(),
            );
            kernel.apply(set(to, gateway, None)).await.unwrap();
            let moved = "192.168.7.3".parse().unwrap();
            let change = set(to, moved, Some(gateway));
            kernel.apply(change).await.unwrap();
            // Somebody's own route stays what it is, even where we want another.
            let theirs = "10.42.8.0/24".parse().unwrap();
            match kernel.apply(set(theirs, moved, None)).await {
                Err(KernelError::Taken { to, .. }) => assert_eq!(to, theirs),
                other => panic!("{other:?}"),
            }
            assert!(sh("ip route").contains("10.42.8.0/24 via 192.168.7.2"));
            assert_eq!(kernel.list().await.unwrap(), [(to, moved)].into());
            for change in plan(&kernel.list().await.unwrap(), &Default::default()) {
                kernel.apply(change).await.unwrap();
            }
            let table = sh("ip route");
            assert!(
                table.contains("10.42.8.0/24") && !table.contains("10.42.9.0/24"),
                "{table}"
            );
            let far = "172.16.0.1".parse().unwrap();
            kernel
                .apply(set(to, far, None))
                .await
                .expect_err("no neighbour");
        });
    });
}

/// A client of an API that answers every list with `list`, and its first watch with the lines that come.
fn client(list: String, lines: UnboundedReceiver<String>) -> kube::Client {
    let lines = Arc::new(Mutex::new(Some(lines)));
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let is_watch = request.uri().query().unwrap_or("").contains("watch=");
        let body: UnsyncBoxBody<Bytes, Infallible> = if is_watch {
            match lines.lock().unwrap().take() {
                Some(lines) => {
                    let frames = UnboundedReceiverStream::new(lines)
                        .map(|line| Ok(Frame::data(Bytes::from(line + "\n"))));
                    StreamBody::new(frames).boxed_unsync()
                }
                None => StreamBody::new(futures::stream::pending()).boxed_unsync(),
            }
        } else {
            Full::new(Bytes::from(list.clone())).boxed_unsync()
        };
        async move { Ok::<_, Infallible>(http::Response::new(body)) }
    });
    kube::Client::new(service, "default")
}

fn node_json(name: &str, cidr: &str, ip: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Node","metadata":{{"name":"{name}","resourceVersion":"2"}},
        "spec":{{"podCIDR":"{cidr}","podCIDRs":["{cidr}"]}},
        "status":{{"addresses":[{{"type":"Hostname","address":"{name}"}},{{"type":"InternalIP","address":"{ip}"}}]}}}}"#
    )
    .replace('\n', "")
}

#[test]
fn routes_follow_the_nodes_of_the_api() {
    wired(|_, [a, _]| {
        on(&a, async || {
            let list = format!(
                r#"{{"apiVersion":"v1","kind":"NodeList","metadata":{{"resourceVersion":"1"}},"items":[{},{}]}}"#,
                node_json("a", "10.42.0.0/24", "192.168.7.1"),
                node_json("b", "10.42.1.0/24", "192.168.7.2"),
            );
            // From before: a node that is no more.
            let kernel = Kernel::open().unwrap();
            let (to, gateway) = (
                "10.42.9.0/24".parse().unwrap(),
                "192.168.7.2".parse().unwrap(),
            );
            kernel.apply(set(to, gateway, None)).await.unwrap();

            let (lines, receiver) = tokio::sync::mpsc::unbounded_channel();
            let stop = CancellationToken::new();
            let config = RouteConfig {
                node_name: "a".to_owned(),
                cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            };
            let running = tokio::spawn(run(client(list, receiver), config, stop.clone()));
            let become_ = async |wanted: &[(&str, &str)]| {
                let wanted: std::collections::BTreeMap<IpNet, IpAddr> = wanted
                    .iter()
                    .map(|(to, gateway)| (to.parse().unwrap(), gateway.parse().unwrap()))
                    .collect();
                let start = Instant::now();
                loop {
                    let now = kernel.list().await.unwrap();
                    if now == wanted {
                        return;
                    }
                    assert!(start.elapsed() < DEADLINE, "{now:?} is not {wanted:?}");
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            become_(&[("10.42.1.0/24", "192.168.7.2")]).await;
            let event =
                |kind: &str, node: String| format!(r#"{{"type":"{kind}","object":{node}}}"#);
            lines
                .send(event(
                    "ADDED",
                    node_json("c", "10.42.2.0/24", "192.168.7.3"),
                ))
                .unwrap();
            become_(&[
                ("10.42.1.0/24", "192.168.7.2"),
                ("10.42.2.0/24", "192.168.7.3"),
            ])
            .await;
            lines
                .send(event(
                    "MODIFIED",
                    node_json("c", "10.42.2.0/24", "192.168.7.4"),
                ))
                .unwrap();
            become_(&[
                ("10.42.1.0/24", "192.168.7.2"),
                ("10.42.2.0/24", "192.168.7.4"),
            ])
            .await;
            lines
                .send(event(
                    "DELETED",
                    node_json("b", "10.42.1.0/24", "192.168.7.2"),
                ))
                .unwrap();
            become_(&[("10.42.2.0/24", "192.168.7.4")]).await;
            stop.cancel();
            running.await.unwrap().unwrap();
            become_(&[("10.42.2.0/24", "192.168.7.4")]).await;
        });
    });
}
