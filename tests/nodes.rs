//! The two halves as processes of their own, on two machines.

use std::process::{Child, Command, Stdio};

use crate::harness::{Cluster, Disk, Machine, busybox_image, hello_image, program, wait_until};

/// A program that ends with the test.
struct Daemon(Child);

impl Daemon {
    fn start(machine: &Machine, args: &[&str]) -> Self {
        let log = std::fs::File::create(machine.dir().join("knarr.log")).expect("create the log");
        let child = machine
            .command(program("knarr"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicate"))
            .stderr(log)
            .spawn()
            .expect("start knarr");
        Self(child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Its machine ends right after; this only spares it the wait.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn kubectl(server: &Machine, args: &[&str]) -> Result<String, String> {
    let mut command: Command = server.command("kubectl");
    let output = command
        .env("KUBECONFIG", "/var/lib/knarr/admin.kubeconfig")
        .args(args)
        .output()
        .expect("run kubectl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(text)
    } else {
        Err(text + &String::from_utf8_lossy(&output.stderr))
    }
}

fn logs(machines: &[&Machine]) -> String {
    let log = |machine: &&Machine| {
        std::fs::read_to_string(machine.dir().join("knarr.log")).unwrap_or_default()
    };
    machines.iter().map(log).collect::<Vec<_>>().join("\n---\n")
}

#[test]
fn a_server_and_a_node_on_two_machines_run_pods_that_reach_services() {
    let server = Machine::start("one", "192.168.77.2/24", Disk::Memory);
    let worker = Machine::start("two", "192.168.77.3/24", Disk::Memory);
    server.connect(&worker);
    // A node beside the server too, so that packets cross from one machine to the other.
    let _up = Daemon::start(&server, &["up"]);
    let attempt =
        || -> Result<(), String> { kubectl(&server, &["get", "--raw", "/readyz"]).map(drop) };
    wait_until("the server", attempt);
    let token = server
        .command(program("knarr"))
        .args(["token", "create"])
        .output()
        .expect("run knarr token");
    assert!(
        token.status.success(),
        "{}",
        String::from_utf8_lossy(&token.stderr)
    );
    let token = String::from_utf8(token.stdout).expect("UTF-8");
    let wrong = token.trim().replacen("K10", "K10ff", 1);
    let refused = worker
        .command(program("knarr"))
        .args([
            "node",
            "--server",
            "https://192.168.77.2:6443",
            "--token",
            &wrong,
        ])
        .output()
        .expect("run knarr node");
    assert!(
        !refused.status.success(),
        "a token for another CA was taken"
    );

    let _node = Daemon::start(
        &worker,
        &[
            "node",
            "--server",
            "https://192.168.77.2:6443",
            "--token",
            token.trim(),
        ],
    );
    wait_until("two Ready nodes", || {
        let nodes = kubectl(&server, &["get", "nodes", "--no-headers"])?;
        if nodes.matches(" Ready ").count() == 2 {
            Ok(())
        } else {
            Err(format!("{nodes}\n{}", logs(&[&server, &worker])))
        }
    });
    for machine in [&server, &worker] {
        for image in [hello_image("v1"), busybox_image()] {
            let output = machine
                .command(program("knarr"))
                .args(["image", "import"])
                .arg(image)
                .output()
                .expect("run knarr image");
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    kubectl(
        &server,
        &[
            "create",
            "deployment",
            "web",
            "--image=knarr.local/hello:v1",
            "--replicas=4",
        ],
    )
    .unwrap();
    kubectl(
        &server,
        &["rollout", "status", "deployment/web", "--timeout=60s"],
    )
    .unwrap_or_else(|error| panic!("{error}\n{}", logs(&[&server, &worker])));
    let nodes = kubectl(
        &server,
        &["get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"],
    )
    .unwrap();
    assert!(nodes.contains("one") && nodes.contains("two"), "{nodes}");
    kubectl(
        &server,
        &[
            "expose",
            "deployment",
            "web",
            "--port=80",
            "--target-port=8080",
        ],
    )
    .unwrap();
    let address = kubectl(
        &server,
        &["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"],
    )
    .unwrap();
    for machine in [&server, &worker] {
        wait_until("all four pods to answer", || {
            let routes = format!(
                "{}
{}",
                server.sh_ok("ip route"),
                worker.sh_ok("ip route")
            );
            let script = format!(
                "for i in $(seq 60); do curl --silent --fail --max-time 5 http://{address}/ || exit 1; done | sort -u | wc -l"
            );
            let output = machine.sh(&script);
            let count = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            if count == "4" {
                Ok(())
            } else {
                Err(format!(
                    "{count}
{routes}"
                ))
            }
        });
    }
    // The API server reaches the kubelet of the other machine.
    let pod = kubectl(
        &server,
        &[
            "get",
            "pods",
            "-o",
            "jsonpath={.items[?(@.spec.nodeName==\"two\")].metadata.name}",
        ],
    )
    .unwrap();
    let pod = pod.split_whitespace().next().expect("a pod on two");
    kubectl(&server, &["logs", pod]).unwrap();
    let version = kubectl(
        &server,
        &[
            "get",
            "node",
            "two",
            "-o",
            "jsonpath={.status.nodeInfo.kubeletVersion}",
        ],
    )
    .unwrap();
    assert!(version.starts_with("v1.37"), "{version}");
}

/// What a caller may leave to `knarr`: its mask of file modes, ignored and blocked signals, an open descriptor, a directory that
/// is gone, no standard input, a low priority, memory without a random layout.
const CALLER: &str = "umask 077
mkdir /run/gone; cd /run/gone; rmdir /run/gone
exec 7</dev/zero <&-
exec setarch -R nice -n 5 env --ignore-signal=CHLD --ignore-signal=HUP --ignore-signal=USR1 --block-signal=TERM --block-signal=CHLD \"$@\"";

#[test]
fn pods_are_what_they_are_whoever_started_knarr() {
    let cluster = Cluster::start_by("caller", CALLER);
    cluster.import(&busybox_image());
    cluster.apply(
        "apiVersion: v1
kind: ConfigMap
metadata: {name: words}
data: {word: read}
---
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  restartPolicy: Never
  securityContext: {runAsUser: 1000}
  containers:
  - name: main
    image: knarr.local/busybox:1
    command:
    - sh
    - -c
    - |
      cat /words/word; echo
      stat -c '%a %n' /etc/hosts /etc/hostname /etc/resolv.conf /work
      umask; pwd; cut -d' ' -f19 /proc/self/stat; cat /proc/self/personality
      grep -E '^Sig(Blk|Ign)' /proc/self/status
      exit 3
    volumeMounts: [{name: words, mountPath: /words}, {name: work, mountPath: /work}]
  volumes: [{name: words, configMap: {name: words}}, {name: work, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: long}
spec:
  containers: [{name: main, image: knarr.local/busybox:1, command: [sleep, '1000']}]
",
    );
    cluster.wait("the pod's end", || {
        let path =
            "jsonpath={.status.phase} {.status.containerStatuses[0].state.terminated.exitCode}";
        match cluster.try_kubectl(&["get", "pod", "pod", "-o", path])? {
            ended if ended == "Failed 3" => Ok(()),
            other => Err(other),
        }
    });
    assert_eq!(
        cluster.kubectl(&["logs", "pod"]),
        "read
644 /etc/hosts
644 /etc/hostname
644 /etc/resolv.conf
777 /work
0022
/
0
00000000
SigBlk:\t0000000000000000
SigIgn:\t0000000000000000
"
    );
    cluster.kubectl(&["wait", "pod/long", "--for=condition=Ready", "--timeout=60s"]);
    // The pod outlives `knarr`; whoever waits for the descriptor to be closed does not wait for the pod.
    let held = "for shim in $(pidof knarr-shim); do ls -l /proc/$shim/fd; done | grep -c /dev/zero";
    assert_eq!(cluster.machine().sh(held).stdout, b"0\n");
    cluster.end(nix::sys::signal::Signal::SIGTERM);
}
