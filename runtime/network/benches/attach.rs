//! How long a pod's network takes to make and to remove, one at a time and many at once. Runs in namespaces of its own.
//!
//! `cargo bench -p knarr-network`. Budget: 3 ms to make one.

use std::time::{Duration, Instant};

use knarr_network::{Network, NetworkConfig};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const PODS: usize = 100;

fn main() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("needs root");
    let private = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("mounts of our own");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(measure());
}

async fn measure() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = NetworkConfig::new(
        "10.42.0.0/22".parse().expect("a range"),
        "10.42.0.0/16".parse().expect("a range"),
        dir.path().join("network"),
    );
    let network = Network::open(config).await.expect("a network");
    let names: Vec<String> = (0..PODS).map(|n| format!("pod-{n}")).collect();
    let (mut made, mut removed) = (Vec::new(), Vec::new());
    for name in &names {
        let start = Instant::now();
        network
            .attach(name, &dir.path().join(name), &[])
            .await
            .expect("a pod");
        made.push(start.elapsed());
    }
    for name in &names {
        let start = Instant::now();
        network.detach(name).await.expect("no pod");
        removed.push(start.elapsed());
    }
    println!(
        "one at a time: make {}, remove {}",
        quantiles(made),
        quantiles(removed)
    );

    let start = Instant::now();
    let all = names.iter().map(|name| {
        let pin = dir.path().join(name);
        let network = network.clone();
        async move { network.attach(name, &pin, &[]).await.expect("a pod") }
    });
    futures::future::join_all(all).await;
    let made = start.elapsed();
    let start = Instant::now();
    futures::future::join_all(names.iter().map(|name| network.detach(name))).await;
    println!(
        "{PODS} at once: make {}, remove {}",
        ms(made),
        ms(start.elapsed())
    );
}

fn quantiles(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    format!("p50 {} p99 {}", ms(at(50)), ms(at(99)))
}

fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
