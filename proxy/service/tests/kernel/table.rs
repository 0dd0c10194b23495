//! The table in the kernel: taken over, and made anew.

use crate::machine::{CLUSTER_IP, answers, ask, eventually, on_machine, refuses, service};
use crate::netns::sh;

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
