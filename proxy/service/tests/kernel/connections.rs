//! Connections to services and their endpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use knarr_network::run_in;
use knarr_proxy::{ProxyConfig, cleanup, run};
use tokio_util::sync::CancellationToken;

use crate::machine::{
    CLUSTER_IP, DEADLINE, EXTERNAL_IP, NODE_PORT, answers, ask, eventually, key, on_machine,
    refuses, service,
};
use crate::netns::sh;

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
        proxy.await.unwrap();
    });
}
