//! The data directory's limits: a disk that gets full, and history that is gone.

use crate::harness::{Cluster, program};

/// Fills the disk of the data directory to its last byte.
fn fill(cluster: &Cluster) {
    cluster.machine().sh_ok(
        "dd if=/dev/zero of=/var/lib/knarr/filler bs=64k status=none 2>/dev/null; \
         dd if=/dev/zero bs=512 status=none 2>/dev/null >> /var/lib/knarr/filler; \
         test $(stat -f -c %a /var/lib/knarr) = 0",
    );
}

fn names(cluster: &Cluster, kind: &str) -> Vec<String> {
    cluster
        .kubectl(&["get", kind, "-o", "jsonpath={.items[*].metadata.name}"])
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_full_disk_refuses_writes_disturbs_nobody_and_recovers() {
    // A data directory on a disk of its own, as small as a pod's files allow.
    let cluster = Cluster::start_after("full", "mount -t tmpfs -o size=64m small /var/lib/knarr");
    cluster.deploy("web", 2);
    cluster.kubectl(&[
        "expose",
        "deployment",
        "web",
        "--port=80",
        "--target-port=8080",
    ]);
    let pods = names(&cluster, "pods");
    let address = cluster.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    let answers = || {
        cluster.machine().sh_ok(&format!(
            "curl --silent --fail --max-time 5 --retry 3 http://{address}/"
        ))
    };
    answers();

    let large = cluster.machine().dir().join("large");
    std::fs::write(&large, "x".repeat(700_000)).expect("write a file");
    let from = format!("--from-file={}", large.display());
    fill(&cluster);
    // The store's file may have room inside; what is acknowledged counts, until a write is refused.
    let mut acknowledged = Vec::new();
    let refusal = loop {
        let name = format!("map-{}", acknowledged.len());
        match cluster.try_kubectl(&["create", "configmap", &name, &from]) {
            Ok(_) => acknowledged.push(name),
            Err(said) => break said,
        }
        assert!(
            acknowledged.len() < 100,
            "nothing is refused on a full disk"
        );
    };
    assert!(refusal.contains("no space left"), "{refusal}");
    // Reads go on, and so does everything that runs.
    assert_eq!(names(&cluster, "pods"), pods);
    let mut maps = names(&cluster, "configmaps");
    maps.retain(|name| name.starts_with("map-"));
    maps.sort();
    acknowledged.sort();
    assert_eq!(maps, acknowledged);
    assert!(pods.contains(&answers().trim().to_owned()));
    assert_eq!(cluster.kubectl(&["get", "--raw", "/healthz"]), "ok");
    let manifest = format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"again"}},"data":{{"large":"{}"}}}}"#,
        "x".repeat(700_000)
    );
    std::fs::write(&large, manifest).expect("write a file");
    let refusal = cluster.kubectl_fails(&["create", "-f", large.to_str().expect("UTF-8")]);
    assert!(
        refusal.contains("Error from server (InsufficientStorage)"),
        "{refusal}"
    );

    // Room again: everything works at once, and after a kill -9 all that was acknowledged is there.
    cluster.machine().sh_ok("rm /var/lib/knarr/filler");
    cluster.kubectl(&["create", "configmap", "after", &from]);
    cluster.kubectl(&["scale", "deployment/web", "--replicas=3"]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    cluster.kill();
    cluster.up();
    cluster.wait_ready();
    let after = names(&cluster, "configmaps");
    for name in acknowledged.iter().map(String::as_str).chain(["after"]) {
        assert!(
            after.iter().any(|is| is == name),
            "{name} is not in {after:?}"
        );
    }
    let restarts = cluster.kubectl(&[
        "get",
        "pods",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[0].restartCount}",
    ]);
    assert_eq!(restarts, "0 0 0");
}

#[test]
fn a_start_on_a_full_disk_serves_reads_and_disturbs_nobody() {
    let cluster = Cluster::start_after("refill", "mount -t tmpfs -o size=64m small /var/lib/knarr");
    cluster.deploy("web", 2);
    cluster.kubectl(&[
        "expose",
        "deployment",
        "web",
        "--port=80",
        "--target-port=8080",
    ]);
    let address = cluster.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    let pods = names(&cluster, "pods");
    let answers = || {
        let get = format!("curl --silent --fail --max-time 5 --retry 3 http://{address}/");
        cluster.machine().sh_ok(&get)
    };
    answers();
    cluster.kill();
    fill(&cluster);
    cluster.up();
    cluster.wait("the server to be ready", || {
        cluster.try_kubectl(&["get", "--raw", "/readyz"])
    });
    assert_eq!(names(&cluster, "pods"), pods);
    assert!(pods.contains(&answers().trim().to_owned()));
    let refusal = cluster.kubectl_fails(&["create", "configmap", "late", "--from-literal=a=b"]);
    assert!(
        refusal.contains("no space left") || refusal.contains("InsufficientStorage"),
        "{refusal}"
    );

    // Room again: the node reports itself, and nothing of what ran was touched.
    cluster.machine().sh_ok("rm /var/lib/knarr/filler");
    cluster.wait_ready();
    cluster.kubectl(&["scale", "deployment/web", "--replicas=3"]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let restarts = cluster.kubectl(&[
        "get",
        "pods",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[0].restartCount}",
    ]);
    assert_eq!(restarts, "0 0 0");
    let now = names(&cluster, "pods");
    assert!(
        pods.iter().all(|pod| now.contains(pod)),
        "{pods:?}, now {now:?}"
    );

    // A first start that has no room for anything says so, and ends.
    cluster.kill();
    cluster
        .machine()
        .sh_ok("mount -t tmpfs -o size=64k tiny /mnt");
    let output = cluster
        .machine()
        .command(program("knarr"))
        .args(["up", "--data-dir", "/mnt", "--run-dir", "/run/other"])
        .output()
        .expect("run knarr up");
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{said}");
    // Whether a file or the store was refused first.
    assert!(said.to_lowercase().contains("no space left"), "{said}");
}

#[test]
fn a_disk_that_cannot_flush_ends_the_program_and_loses_nothing() {
    let cluster = Cluster::start("flush");
    let create = |n: u32| {
        let name = format!("map-{n}");
        cluster.try_kubectl(&["create", "configmap", &name, "--from-literal=a=b"])
    };
    for n in 0..5 {
        create(n).expect("it is created");
    }
    let version = |name: &str| -> u64 {
        let path = "jsonpath={.metadata.resourceVersion}";
        let version = cluster.kubectl(&["get", "configmap", name, "-o", path]);
        version.parse().expect("a number")
    };
    let newest = version("map-4");
    // From here on every flush fails, as it does once the kernel could not write a page.
    let mut strace = cluster
        .machine()
        .command("sh")
        .arg("-c")
        .arg(
            "exec strace --follow-forks --trace=fdatasync --inject=fdatasync:error=EIO \
             --attach=$(pgrep -x knarr) --output=/dev/null 2>&1",
        )
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("start strace");
    {
        use std::io::BufRead as _;
        let said = std::io::BufReader::new(strace.stdout.take().expect("a pipe"));
        let attached = said
            .lines()
            .map_while(Result::ok)
            .find(|line| line.contains("attached"));
        attached.expect("strace follows knarr");
    }
    let mut unknown = Vec::new();
    let mut n = 5;
    let said = loop {
        assert!(n < 100, "nothing failed");
        unknown.push(format!("map-{n}"));
        match create(n) {
            // It was written before strace stopped the thread that flushes.
            Ok(_) => drop(unknown.pop()),
            Err(said) => break said,
        }
        n += 1;
    };
    assert!(
        said.contains("not known")
            || said.contains("the server is shutting down")
            || said.contains("refused"),
        "{said}"
    );
    let (status, log) = cluster.outcome();
    assert_eq!(status.code(), Some(1), "{log}");
    let last = log.lines().rev().find(|line| line.starts_with("knarr: "));
    let last = last.unwrap_or_else(|| panic!("no message in\n{log}"));
    assert!(
        last.contains("the store failed")
            && last.contains("commit to /var/lib/knarr/server/db/state.redb"),
        "{last}"
    );
    strace.wait().expect("strace ends with what it follows");

    cluster.up();
    cluster.wait_ready();
    let maps = names(&cluster, "configmaps");
    for name in (0..n).map(|n| format!("map-{n}")) {
        assert!(
            maps.contains(&name) || unknown.contains(&name),
            "{name} is not in {maps:?}"
        );
    }
    cluster.kubectl(&["create", "configmap", "after"]);
    assert!(version("after") > newest);
}
