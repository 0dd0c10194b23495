//! The table in the kernel: taken over, made anew, and mended when somebody else has changed it.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use knarr_network::nfnl::Netfilter;
use knarr_network::run_in;

use crate::machine::{
    CLUSTER_IP, EXTERNAL_IP, Machine, NODE_PORT, answers, ask, eventually, key, on_machine,
    refuses, service,
};
use crate::netns::sh;

/// The number of the machine's last nf_tables transaction.
fn generation() -> u32 {
    Netfilter::open().unwrap().generation().unwrap()
}

fn table() -> String {
    sh("nft list table inet knarr")
}

/// The words of the table in alphabetical order, because elements have none; but for the chain that says what it was made from.
fn words() -> Vec<String> {
    let table = table();
    let words = table.split([' ', '\t', '\n', ',', '{', '}']);
    let mut words: Vec<String> = words
        .filter(|word| !word.is_empty() && !word.starts_with("made-from-"))
        .map(ToOwned::to_owned)
        .collect();
    words.sort();
    words
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
        let (before, transactions) = (table(), generation());

        // Nothing changed: not one transaction.
        let proxy = machine.proxy();
        answers(None, CLUSTER_IP).await;
        proxy.stop().await;
        assert_eq!(
            generation(),
            transactions,
            "the same table was written again"
        );
        assert_eq!(table(), before);

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
            nft add chain inet knarr theirs
            nft add element inet knarr affine4 '{ 10.43.0.97 . tcp . 80 : goto theirs }'
            nft add table inet other; nft add chain inet other mine");
        let proxy = machine.proxy();
        refuses(None, "10.43.0.6:8000").await;
        eventually(|| async {
            let table = table();
            let left = ["10.43.0.99", "10.43.0.98", "10.43.0.97"]
                .into_iter()
                .any(|text| table.contains(text));
            match left || table.contains(&format!(": {} ", a.ip)) {
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

/// A machine whose service has two endpoints, which everybody reaches.
async fn served(machine: &Machine) -> BTreeSet<IpAddr> {
    let (a, b) = (machine.pod("a").await, machine.pod("b").await);
    machine.feed.set_service(service());
    machine.endpoints(&[(a.ip, "here"), (b.ip, "here")]);
    [a.ip, b.ip].into()
}

/// Waits until both endpoints answer at every address of the service.
async fn all_answer(machine: &Machine, pods: &BTreeSet<IpAddr>) {
    for (from, to) in [
        (None, CLUSTER_IP),
        (Some(machine.outside.as_path()), EXTERNAL_IP),
        (Some(machine.outside.as_path()), NODE_PORT),
    ] {
        eventually(|| async {
            let mut seen = BTreeSet::new();
            for _ in 0..30 {
                let (pod, _) = ask(from, to).await.map_err(|err| format!("{to}: {err}"))?;
                seen.insert(pod);
            }
            (seen == *pods)
                .then_some(())
                .ok_or(format!("{to}: {seen:?}"))
        })
        .await;
    }
}

#[test]
fn what_others_do_to_the_table_is_mended_at_once() {
    on_machine(async |machine| {
        let pods = served(&machine).await;
        let proxy = machine.proxy();
        all_answer(&machine, &pods).await;
        let whole = words();
        for harm in [
            "nft delete table inet knarr",
            "nft flush ruleset",
            "nft flush table inet knarr",
            "nft flush chain inet knarr lb4-2",
            "nft flush chain inet knarr prerouting",
            "nft add rule inet knarr lb4-2 accept",
            "nft insert rule inet knarr services accept",
            "nft 'chain inet knarr prerouting { policy drop; }'",
            "nft 'add table inet knarr { flags dormant; }'",
            "nft flush map inet knarr endpoints4",
            "nft flush map inet knarr services_port4",
            "nft flush map inet knarr lb4",
            "nft flush map inet knarr lb4; nft add element inet knarr lb4 '{ 0 : accept, 0xffffffff : accept, 2 : accept }'",
        ] {
            sh(harm);
            all_answer(&machine, &pods).await;
            refuses(Some(&machine.outside), "192.168.7.1:30081").await;
            refuses(None, "10.43.0.5:1").await;
            eventually(|| async {
                let now = words();
                (now == whole)
                    .then_some(())
                    .ok_or(format!("after {harm}: {now:?}"))
            })
            .await;
        }
        proxy.stop().await;
    });
}

#[test]
fn rules_that_were_flushed_come_back_without_a_loss_of_elements() {
    on_machine(async |machine| {
        let pods = served(&machine).await;
        let mut service = service();
        service.affinity = Some(100);
        machine.feed.set_service(service);
        let proxy = machine.proxy();
        answers(None, CLUSTER_IP).await;
        let (first, _) = ask(Some(&machine.outside), NODE_PORT).await.unwrap();
        sh("nft flush table inet knarr");
        // The client's memory is an element that only a packet makes.
        eventually(|| async {
            match ask(Some(&machine.outside), NODE_PORT).await {
                Ok(_) => Ok(()),
                Err(error) => Err(error.to_string()),
            }
        })
        .await;
        for _ in 0..10 {
            let (pod, _) = ask(Some(&machine.outside), NODE_PORT).await.unwrap();
            assert_eq!(pod, first, "of {pods:?}");
        }
        proxy.stop().await;
    });
}

#[test]
fn no_packet_leaves_untranslated_because_its_endpoint_went() {
    on_machine(async |machine| {
        let a = machine.pod("a").await;
        let client = machine.pod("client").await;
        machine.feed.set_service(service());
        machine.endpoints(&[(a.ip, "here")]);
        let proxy = machine.proxy();
        answers(None, CLUSTER_IP).await;
        proxy.stop().await;
        // As the kernel's maps are for a moment if a packet reads the number before a change, and the endpoint after it.
        sh("nft flush map inet knarr endpoints4");
        let socket = run_in(&client.pin, || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(5)))
                .unwrap();
            socket.send_to(b"?", CLUSTER_IP).unwrap();
            socket
        })
        .await
        .unwrap();
        let flows = sh("conntrack -L -p udp 2>/dev/null || true");
        assert!(!flows.contains("dport=8000"), "pinned: {flows}");
        let proxy = machine.proxy();
        answers(None, CLUSTER_IP).await;
        let answer = tokio::task::spawn_blocking(move || {
            socket.send_to(b"?", CLUSTER_IP)?;
            let mut buffer = [0; 64];
            socket.recv(&mut buffer)
        });
        answer
            .await
            .unwrap()
            .expect("the same flow is translated now");
        proxy.stop().await;
    });
}

#[test]
fn without_nft_the_proxy_waits_for_it() {
    on_machine(async |machine| {
        let pods = served(&machine).await;
        // On this machine alone: its mounts are its own.
        let nft = sh("command -v nft");
        let nothing = machine.dir.join("no-program");
        std::fs::write(&nothing, "").unwrap();
        sh(&format!("mount --bind {} {nft}", nothing.display()));
        let proxy = machine.proxy();
        let stuck = tokio::time::timeout(Duration::from_secs(2), async {
            answers(None, CLUSTER_IP).await;
        });
        assert!(stuck.await.is_err());
        assert!(!proxy.task.is_finished(), "the proxy ended");
        sh(&format!("umount {nft}"));
        all_answer(&machine, &pods).await;
        machine.feed.remove_service(&key());
        refuses(None, CLUSTER_IP).await;
        proxy.stop().await;
    });
}
