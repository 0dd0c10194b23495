//! What clients and load balancers outside of the cluster see, and the node itself.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, TcpStream};

use knarr_network::run_in;
use knarr_proxy::objects::TrafficPolicy;

use crate::machine::{
    CLUSTER_IP, DEADLINE, EXTERNAL_IP, NODE_PORT, answers, ask, eventually, on_machine, refuses,
    service,
};
use crate::netns::sh;

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
