//! DNS on the wire: each case is a machine of its own (a network namespace), with real sockets and busybox's `nslookup`.

#[path = "../../../tests/support/netns.rs"]
mod netns;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use hickory_server::proto::op::{Edns, Message, MessageType, Query, ResponseCode};
use hickory_server::proto::rr::rdata::A;
use hickory_server::proto::rr::{Name, RData, Record, RecordType};
use knarr_dns::{DnsConfig, cleanup, run};
use knarr_network::{Network, NetworkConfig, run_in};
use knarr_proxy::objects::{Service, ServiceKey, Slice, SliceEndpoint};
use knarr_proxy::{Feed, ProxyConfig};
use netns::{on_machine, sh};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(5);

const SERVER: &str = "10.43.0.10:53";

/// Runs a test on a machine with a DNS server, which is told about other name servers by `resolv_conf`.
fn with_dns<F: Future<Output = ()>>(
    resolv_conf: &str,
    test: impl FnOnce(Feed) -> F + Send + 'static,
) {
    let resolv_conf = resolv_conf.to_owned();
    on_machine(async move |dir| {
        sh("ip addr add 192.0.2.53/32 dev lo; ip addr add 192.0.2.54/32 dev lo");
        let path = dir.join("resolv.conf");
        fs::write(&path, resolv_conf).unwrap();
        let mut config = DnsConfig::new("10.43.0.10".parse().unwrap(), "cluster.local");
        config.service_cidrs = vec!["10.43.0.0/16".parse().unwrap()];
        config.resolv_conf = path;
        let feed = feed();
        let stop = CancellationToken::new();
        let dns = tokio::spawn(run(feed.clone(), config, stop.clone()));
        feed.set_synced();
        let start = Instant::now();
        while ask("dns-version.cluster.local.", RecordType::TXT)
            .await
            .is_none()
        {
            assert!(start.elapsed() < DEADLINE, "no answer");
        }
        test(feed).await;
        stop.cancel();
        dns.await.unwrap().unwrap();
    });
}

fn feed() -> Feed {
    let feed = Feed::new();
    feed.set_service(service("web", Some("10.43.0.5")));
    feed.set_service(service("many", None));
    let mut alias = service("alias", None);
    (alias.headless, alias.external_name) = (false, Some("www.example.org".to_owned()));
    feed.set_service(alias);
    feed.set_slice(Slice {
        service: ServiceKey::new("shop", "many"),
        name: "many-1".to_owned(),
        ports: Vec::new(),
        endpoints: (1..=100)
            .map(|n| SliceEndpoint {
                ip: IpAddr::from([10, 42, 0, n]),
                ready: true,
                serving: true,
                terminating: false,
                hostname: None,
                node: None,
            })
            .collect(),
    });
    feed
}

fn service(name: &str, ip: Option<&str>) -> Service {
    Service {
        key: ServiceKey::new("shop", name),
        cluster_ips: ip.map(|ip| ip.parse().unwrap()).into_iter().collect(),
        headless: ip.is_none(),
        ..Service::default()
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn ask(name: &str, kind: RecordType) -> Option<Message> {
    exchange(question(name, kind)).await
}

async fn exchange(question: Message) -> Option<Message> {
    let ask = move || {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(3)))
            .unwrap();
        socket.connect(SERVER).ok()?;
        socket.send(&question.to_vec().unwrap()).ok()?;
        let mut buffer = [0; 4096];
        let n = socket.recv(&mut buffer).ok()?;
        Message::from_vec(&buffer[..n]).ok()
    };
    tokio::task::spawn_blocking(ask).await.unwrap()
}

async fn ask_tcp(name: &str, kind: RecordType) -> Message {
    let question = question(name, kind).to_vec().unwrap();
    let ask = move || {
        let mut stream = TcpStream::connect(SERVER).unwrap();
        stream
            .write_all(&u16::try_from(question.len()).unwrap().to_be_bytes())
            .unwrap();
        stream.write_all(&question).unwrap();
        let mut len = [0; 2];
        stream.read_exact(&mut len).unwrap();
        let mut buffer = vec![0; usize::from(u16::from_be_bytes(len))];
        stream.read_exact(&mut buffer).unwrap();
        Message::from_vec(&buffer).unwrap()
    };
    tokio::task::spawn_blocking(ask).await.unwrap()
}

fn data(message: &Message) -> Vec<String> {
    message
        .answers
        .iter()
        .map(|record| record.data.to_string())
        .collect()
}

/// A name server on 192.0.2.53 that knows one name, and long answers only over TCP.
fn upstream() {
    fn answer(bytes: &[u8], tcp: bool) -> Vec<u8> {
        let mut message = Message::from_vec(bytes).unwrap();
        message.metadata.message_type = MessageType::Response;
        let name = message.queries[0].name().clone();
        let record = |n| Record::from_rdata(name.clone(), 60, RData::A(A::new(203, 0, 113, n)));
        match name.to_ascii().as_str() {
            "www.example.org." => {
                message.add_answer(record(7));
            }
            "long.example.org." if tcp => {
                message.add_answers((1..100).map(record));
            }
            "long.example.org." => message.metadata.truncation = true,
            _ => message.metadata.response_code = ResponseCode::NXDomain,
        }
        message.to_vec().unwrap()
    }
    let udp = UdpSocket::bind("192.0.2.53:53").unwrap();
    let tcp = TcpListener::bind("192.0.2.53:53").unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((n, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(&answer(&buffer[..n], false), peer);
        }
    });
    thread::spawn(move || {
        while let Ok((mut stream, _)) = tcp.accept() {
            let mut len = [0; 2];
            stream.read_exact(&mut len).unwrap();
            let mut buffer = vec![0; usize::from(u16::from_be_bytes(len))];
            stream.read_exact(&mut buffer).unwrap();
            let answer = answer(&buffer, true);
            let len = u16::try_from(answer.len()).unwrap().to_be_bytes();
            stream
                .write_all(&[&len, answer.as_slice()].concat())
                .unwrap();
        }
    });
}

#[test]
fn names_of_the_cluster_over_udp_and_tcp() {
    with_dns("", async |feed| {
        let answer = ask("web.shop.svc.cluster.local.", RecordType::A)
            .await
            .unwrap();
        assert_eq!(data(&answer), ["10.43.0.5"]);
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
        let answer = ask_tcp("Web.Shop.svc.cluster.local.", RecordType::A).await;
        assert_eq!(data(&answer), ["10.43.0.5"]);
        let answer = ask("web.shop.svc.cluster.local.", RecordType::AAAA)
            .await
            .unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
        let answer = ask("none.shop.svc.cluster.local.", RecordType::A)
            .await
            .unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);

        let looked_up = tokio::task::spawn_blocking(|| {
            sh(
                "busybox nslookup web.shop.svc.cluster.local 10.43.0.10; busybox nslookup 10.43.0.5 10.43.0.10",
            )
        });
        let text = looked_up.await.unwrap();
        assert!(
            text.contains("10.43.0.5") && text.contains("= web.shop.svc.cluster.local"),
            "{text}"
        );

        feed.set_service(service("new", Some("10.43.0.6")));
        let answer = ask("new.shop.svc.cluster.local.", RecordType::A)
            .await
            .unwrap();
        assert_eq!(data(&answer), ["10.43.0.6"]);
        feed.remove_service(&ServiceKey::new("shop", "new"));
        let answer = ask("new.shop.svc.cluster.local.", RecordType::A)
            .await
            .unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    });
}

#[test]
fn long_answers_are_cut_for_udp_and_whole_over_tcp() {
    with_dns("", async |_| {
        let name = "many.shop.svc.cluster.local.";
        let answer = ask(name, RecordType::A).await.unwrap();
        assert!(answer.metadata.truncation && answer.answers.len() < 100);
        let mut with_edns = question(name, RecordType::A);
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        with_edns.set_edns(edns);
        let longer = exchange(with_edns).await.unwrap();
        assert!(longer.answers.len() > answer.answers.len() && longer.edns.is_some());
        assert_eq!(ask_tcp(name, RecordType::A).await.answers.len(), 100);
    });
}

#[test]
fn other_names_are_asked_of_the_nodes_name_servers() {
    // Ourselves first, then one that is not there.
    with_dns(
        "nameserver 10.43.0.10\nnameserver 192.0.2.54\nnameserver 192.0.2.53\n",
        async |_| {
            upstream();
            let answer = ask("www.example.org.", RecordType::A).await.unwrap();
            assert_eq!(data(&answer), ["203.0.113.7"]);
            assert!(!answer.metadata.authoritative);
            let answer = ask("none.example.org.", RecordType::A).await.unwrap();
            assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
            let answer = ask("alias.shop.svc.cluster.local.", RecordType::A)
                .await
                .unwrap();
            assert_eq!(data(&answer), ["www.example.org.", "203.0.113.7"]);
            let answer = ask("long.example.org.", RecordType::A).await.unwrap();
            assert!(answer.metadata.truncation);
            assert_eq!(
                ask_tcp("long.example.org.", RecordType::A)
                    .await
                    .answers
                    .len(),
                99
            );
        },
    );
}

#[test]
fn without_name_servers_other_names_fail_and_nobody_is_asked() {
    with_dns("nameserver 10.43.0.10\n", async |_| {
        let before = datagrams_sent();
        let answer = ask("www.example.org.", RecordType::A).await.unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        // The question and its answer; asking itself would go round and round.
        assert_eq!(datagrams_sent() - before, 2);
    });
}

/// How many UDP datagrams this machine has sent so far (proc(5), `/proc/net/snmp`).
fn datagrams_sent() -> u64 {
    let counters = fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut rows = counters
        .lines()
        .filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
    let mut columns = names.split(' ').zip(values.split(' '));
    let (_, sent) = columns.find(|(name, _)| *name == "OutDatagrams").unwrap();
    sent.parse().unwrap()
}

#[test]
fn addresses_take_turns_in_being_the_first() {
    with_dns("", async |_| {
        let mut first = std::collections::BTreeSet::new();
        for _ in 0..40 {
            let message = ask_tcp("many.shop.svc.cluster.local.", RecordType::A).await;
            assert_eq!(message.answers.len(), 100);
            first.insert(data(&message)[0].clone());
        }
        // That forty draws of a hundred give one address happens once in 10^78.
        assert!(first.len() > 1, "always {first:?}");
    });
}

#[test]
fn a_restart_takes_the_address_again_and_cleanup_gives_it_back() {
    on_machine(async |dir| {
        let address = "10.43.0.10".parse().unwrap();
        for _ in 0..2 {
            let mut config = DnsConfig::new(address, "cluster.local");
            config.resolv_conf = dir.join("resolv.conf");
            let (feed, stop) = (feed(), CancellationToken::new());
            feed.set_synced();
            let dns = tokio::spawn(run(feed, config, stop.clone()));
            let start = Instant::now();
            while ask("web.shop.svc.cluster.local.", RecordType::A)
                .await
                .is_none()
            {
                assert!(start.elapsed() < DEADLINE, "no answer");
                assert!(!dns.is_finished(), "it ended: {:?}", dns.await);
            }
            stop.cancel();
            dns.await.unwrap().unwrap();
            // The next one finds the address there: pods' resolvers must not see it go.
            assert!(sh("ip addr show dev lo").contains("10.43.0.10/"));
        }
        for _ in 0..2 {
            cleanup(address).await.unwrap();
            assert!(!sh("ip addr show dev lo").contains("10.43.0.10"));
        }
    });
}

#[test]
fn a_pod_asks_the_node_beside_the_service_proxy() {
    with_dns("", async |feed| {
        let dir = tempfile::tempdir().unwrap();
        let cluster = "10.42.0.0/16".parse().unwrap();
        let network = NetworkConfig::new(
            "10.42.0.0/24".parse().unwrap(),
            cluster,
            dir.path().join("network"),
        );
        let network = Network::open(network).await.unwrap();
        let pin = dir.path().join("pod");
        network.attach("pod", &pin, &[]).await.unwrap();
        // Somebody made the Service that other clusters have for their DNS pods: the node still answers itself.
        feed.set_service(service("kube-dns", Some("10.43.0.10")));
        let config = ProxyConfig {
            node_name: "here".to_owned(),
            cluster_cidrs: vec![cluster],
            service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
            own_addresses: vec!["10.43.0.10".parse().unwrap()],
        };
        let stop = CancellationToken::new();
        let proxy = tokio::spawn(knarr_proxy::run(feed, config, stop.clone()));
        let start = Instant::now();
        while !sh("nft list ruleset").contains("made-from-") {
            assert!(start.elapsed() < DEADLINE, "the proxy does not come up");
            tokio::task::yield_now().await;
        }
        let text = run_in(&pin, || {
            sh("busybox nslookup web.shop.svc.cluster.local 10.43.0.10")
        });
        let text = text.await.unwrap();
        assert!(
            text.contains("Address: 10.43.0.5") || text.contains("Address 1: 10.43.0.5"),
            "{text}"
        );
        stop.cancel();
        proxy.await.unwrap();
        network.detach("pod").await.unwrap();
    });
}
