//! The machine that each case runs on, and how to ask it.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use knarr_network::{Network, NetworkConfig, run_in};
use knarr_proxy::objects::{
    Protocol, Service, ServiceKey, ServicePort, Slice, SliceEndpoint, SlicePort,
};
use knarr_proxy::{Feed, ProxyConfig, run};
use tokio_util::sync::CancellationToken;

use crate::netns::{self, sh};

pub const DEADLINE: Duration = Duration::from_secs(5);

/// Runs an asynchronous test on a machine of its own.
pub fn on_machine<F: Future<Output = ()>>(test: impl FnOnce(Machine) -> F + Send + 'static) {
    netns::on_machine(async |dir| {
        let outside = outside(&dir);
        let config = NetworkConfig::new(
            "10.42.0.0/24".parse().unwrap(),
            "10.42.0.0/16".parse().unwrap(),
            dir.join("network"),
        );
        let network = Network::open(config).await.unwrap();
        test(Machine {
            dir,
            outside,
            network,
            feed: Feed::new(),
        })
        .await;
    });
}

/// Another machine on the same wire: we are 192.168.7.1, it is 192.168.7.2.
pub fn outside(dir: &Path) -> PathBuf {
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

pub struct Machine {
    pub dir: PathBuf,
    pub outside: PathBuf,
    pub network: Network,
    pub feed: Feed,
}

/// A proxy that runs until it is stopped.
pub struct Running {
    pub stop: CancellationToken,
    pub task: tokio::task::JoinHandle<()>,
}

impl Running {
    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

impl Machine {
    /// A pod whose servers on port 80 (TCP and UDP) answer with its address and the client's.
    pub async fn pod(&self, name: &str) -> Pod {
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

    pub fn proxy(&self) -> Running {
        let stop = CancellationToken::new();
        let config = ProxyConfig {
            node_name: "here".to_owned(),
            cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
            own_addresses: vec!["10.43.0.10".parse().unwrap()],
        };
        self.feed.set_synced();
        let run = run(self.feed.clone(), config, stop.clone());
        let task = tokio::spawn(run);
        Running { stop, task }
    }

    pub fn endpoints(&self, pods: &[(IpAddr, &str)]) {
        self.feed.set_slice(slice(pods));
    }
}

pub struct Pod {
    pub pin: PathBuf,
    pub ip: IpAddr,
}

pub fn key() -> ServiceKey {
    ServiceKey::new("default", "web")
}

pub fn service() -> Service {
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

pub fn slice(pods: &[(IpAddr, &str)]) -> Slice {
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

pub const CLUSTER_IP: &str = "10.43.0.5:8000";
pub const EXTERNAL_IP: &str = "192.168.99.9:8000";
pub const NODE_PORT: &str = "192.168.7.1:30080";

/// Connects from a namespace (`None`: the machine itself); the answer is the pod's address and the client's as the pod saw it.
pub async fn ask(from: Option<&Path>, to: &str) -> io::Result<(IpAddr, IpAddr)> {
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
pub async fn eventually<F: Future<Output = Result<(), String>>>(mut check: impl FnMut() -> F) {
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

pub async fn answers(from: Option<&Path>, to: &str) {
    eventually(|| async {
        ask(from, to)
            .await
            .map(|_| ())
            .map_err(|err| format!("{to}: {err}"))
    })
    .await;
}

pub async fn refuses(from: Option<&Path>, to: &str) {
    eventually(|| async {
        match ask(from, to).await {
            Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            other => Err(format!("{to}: {other:?}")),
        }
    })
    .await;
}
