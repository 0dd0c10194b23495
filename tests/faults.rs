//! `kill -9` at random moments under load: nothing acknowledged is lost, no container is disturbed, nothing leaks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::{Rng, SeedableRng};

use crate::harness::Cluster;

const KILLS: usize = 20;

/// Names the moments of the kills; set it to what a failing test printed to have them again.
const SEED: &str = "KNARR_FAULTS_SEED";

/// The moments of the kills, from the seed of the environment or a new one, which is printed.
fn moments() -> rand::rngs::StdRng {
    let seed = match std::env::var(SEED) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|error| panic!("{SEED}={text}: {error}")),
        Err(_) => rand::random(),
    };
    println!("{SEED}={seed}");
    rand::rngs::StdRng::seed_from_u64(seed)
}

/// Container ids and the host's process ids of all running pods that carry a label.
fn processes(cluster: &Cluster) -> BTreeMap<String, String> {
    // The demo server knows its pod's name; its process is found by its environment.
    let script = "for p in /proc/[0-9]*; do \
                    [ \"$(tr '\\0' '\\n' < $p/cmdline 2>/dev/null | head -1)\" = /hello-server ] || continue; \
                    echo \"$(tr '\\0' '\\n' < $p/environ | sed -n s/^HOSTNAME=//p) ${p#/proc/}\"; \
                  done";
    cluster
        .machine()
        .sh_ok(script)
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(pod, pid)| (pod.to_owned(), pid.to_owned()))
        .collect()
}

/// Everything of the machine that belongs to pods: mounts, groups, links, directories, processes. The machine's PID 1 reaps
/// nothing, so orphans that have ended stay as zombies there and do not count.
fn remains(cluster: &Cluster) -> String {
    let script = "grep -E ' /run/knarr/sandboxes| /var/lib/knarr/(containers|node/pods)' /proc/self/mountinfo; \
                  find /sys/fs/cgroup -type d -path '*kubepods*pod*'; \
                  ip -o link | grep -vE ': (lo|eth0|wire0|knarr0)[:@]'; \
                  ls /run/knarr/sandboxes /var/lib/knarr/containers /var/lib/knarr/node/pods 2>/dev/null | grep -v ':$' | grep .; \
                  ps -e -o stat=,args= | grep -E 'knarr-shim|hello-server' | grep -v -e grep -e '^Z'; true";
    cluster.machine().sh_ok(script)
}

#[test]
fn kill_9_under_load_loses_nothing_and_leaks_nothing() {
    let cluster = Cluster::start("kill9");
    cluster.deploy("steady", 3);
    let steady = processes(&cluster);
    assert_eq!(steady.len(), 3, "{steady:?}");

    let mut moments = moments();
    let mut acknowledged = BTreeSet::new();
    for round in 0..KILLS {
        let moment = Duration::from_millis(moments.random_range(50..900));
        println!("round {round}: killed after {moment:?}");
        let stop = AtomicBool::new(false);
        let written = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let cluster = &cluster;
            let (stop, written) = (&stop, &written);
            scope.spawn(move || {
                for n in 0.. {
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    let name = format!("map-{round}-{n}");
                    if cluster.try_kubectl(&["create", "configmap", &name]).is_ok() {
                        written.lock().expect("no panic").push(name);
                    }
                }
            });
            scope.spawn(move || {
                // Pods come and go meanwhile; requests fail while the server is down, that is the point.
                for n in 0.. {
                    if stop.load(Ordering::Acquire) {
                        break;
                    }
                    let name = format!("churn-{round}-{n}");
                    cluster
                        .try_kubectl(&[
                            "run",
                            &name,
                            "--image=knarr.local/hello:v1",
                            "-l",
                            "churn=yes",
                        ])
                        .ok();
                    if n % 2 == 1 {
                        cluster
                            .try_kubectl(&["delete", "pod", &name, "--wait=false"])
                            .ok();
                    }
                }
            });
            // A random moment: the sleep is the fault's timing, nothing is waited for.
            std::thread::sleep(moment);
            cluster.kill_9();
            stop.store(true, Ordering::Release);
        });
        acknowledged.extend(written.into_inner().expect("no panic"));
        cluster.forget();
        cluster.up();
        cluster.wait_ready();
        let listed = cluster.kubectl(&[
            "get",
            "configmaps",
            "-o",
            "jsonpath={.items[*].metadata.name}",
        ]);
        let listed: BTreeSet<String> = listed.split_whitespace().map(str::to_owned).collect();
        let lost: Vec<_> = acknowledged.difference(&listed).collect();
        assert!(
            lost.is_empty(),
            "round {round}: acknowledged and lost: {lost:?}"
        );
        let now = processes(&cluster);
        for (pod, pid) in &steady {
            assert_eq!(
                now.get(pod),
                Some(pid),
                "round {round}: {pod} is another process; all: {now:?}"
            );
        }
    }

    let restarts = cluster.kubectl(&[
        "get",
        "pods",
        "-l",
        "app=steady",
        "-o",
        "jsonpath={.items[*].status.containerStatuses[0].restartCount}",
    ]);
    assert_eq!(restarts, "0 0 0");
    cluster.kubectl(&["delete", "deployment", "steady"]);
    cluster.kubectl(&["delete", "pods", "--all", "--timeout=60s"]);
    cluster.wait("everything to be gone", || {
        let left = remains(&cluster);
        if left.trim().is_empty() {
            Ok(())
        } else {
            Err(left)
        }
    });
}

#[test]
fn an_exit_while_knarr_is_down_is_reported_with_its_code() {
    let cluster = Cluster::start("missed");
    cluster.import(&crate::harness::busybox_image());
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: later}\nspec:\n  restartPolicy: Never\n  containers:\n  \
                    - name: main\n    image: knarr.local/busybox:1\n    \
                    command: [sh, -c, 'until [ -e /tmp/go ]; do sleep 0.1; done; exit 42']\n    \
                    volumeMounts: [{name: tmp, mountPath: /tmp}]\n  volumes: [{name: tmp, hostPath: {path: /run}}]\n";
    cluster.apply(manifest);
    cluster.wait_for("pod/later", "{.status.phase}", "Running");
    cluster.kill();
    cluster.machine().sh_ok("touch /run/go");
    crate::harness::wait_until("the process to end", || {
        let processes = cluster.machine().sh_ok("ps -e -o args=");
        if processes.contains("until [ -e") {
            Err(processes)
        } else {
            Ok(())
        }
    });
    cluster.up();
    cluster.wait_ready();
    cluster.wait_for(
        "pod/later",
        "{.status.containerStatuses[0].state.terminated.exitCode}",
        "42",
    );
    cluster.wait_for("pod/later", "{.status.phase}", "Failed");
}

#[test]
fn containers_go_on_when_knarr_is_told_to_stop_and_are_taken_up_again() {
    let cluster = Cluster::start("outlive");
    cluster.deploy("web", 2);
    let before = processes(&cluster);
    assert_eq!(before.len(), 2);
    cluster.end(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(processes(&cluster), before);
    cluster.up();
    cluster.wait_ready();
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    assert_eq!(processes(&cluster), before);
}

#[test]
fn with_kill_pods_on_exit_nothing_of_them_is_left() {
    let cluster = Cluster::start("demo");
    cluster.deploy("web", 2);
    assert_eq!(processes(&cluster).len(), 2);
    // The setting may come with a later start than the pods.
    cluster.end(nix::sys::signal::Signal::SIGTERM);
    cluster.up_with(&["--kill-pods-on-exit"]);
    cluster.wait_ready();
    cluster.end(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(processes(&cluster).len(), 0);
    assert_eq!(remains(&cluster), "");
    let groups = cluster
        .machine()
        .sh_ok("find /sys/fs/cgroup -type d -name 'kubepods*'");
    assert_eq!(groups, "");
}
