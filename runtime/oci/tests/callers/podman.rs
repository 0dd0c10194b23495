//! Podman.

use super::{Done, Host, finish, is_ours, limit_file, runtime, wait_until};
use serde_json::Value;

pub struct Podman {
    host: Host,
}

impl Podman {
    pub fn start(name: &str) -> Self {
        let podman = Self {
            host: Host::start(name),
        };
        let archive = podman.host.path("rootfs.tar");
        podman.ok(&[
            "import",
            "-q",
            archive.to_str().expect("path"),
            "localhost/box",
        ]);
        podman
    }

    /// `podman`, with storage, state and settings in the machine's directory.
    pub fn run(&self, args: &[&str]) -> Done {
        let mut command = self.host.machine.command("podman");
        command
            .env("CONTAINERS_CONF", self.host.path("containers.conf"))
            .arg("--root")
            .arg(self.host.path("storage"))
            .args(["--runroot", "/run/podman", "--tmpdir", "/run/libpod"])
            .args(["--storage-driver", "overlay", "--runtime"])
            .arg(runtime())
            .args(args);
        finish(&mut command)
    }

    pub fn ok(&self, args: &[&str]) -> String {
        self.run(args).ok(args)
    }

    /// One value of `inspect`, by Go template.
    pub fn inspect(&self, name: &str, template: &str) -> String {
        self.ok(&["inspect", "-f", template, name])
    }

    fn wait_inspect(&self, name: &str, template: &str, wanted: &str) {
        wait_until(&format!("{template} of {name}"), || {
            let now = self.inspect(name, template);
            if now == wanted {
                Ok(())
            } else {
                Err(format!("{now}, not {wanted}"))
            }
        });
    }
}

#[test]
fn podman_runs_a_container_and_tells_its_exit_code() {
    let podman = Podman::start("podman-run");
    let out = podman.ok(&["run", "--rm", "localhost/box", "echo", "hello"]);
    assert_eq!(out, "hello");
    let failed = podman.run(&["run", "--rm", "localhost/box", "sh", "-c", "exit 7"]);
    assert_eq!(failed.code, 7, "{failed:?}");
    let killed = podman.run(&[
        "run",
        "--rm",
        "localhost/box",
        "sh",
        "-c",
        "kill -9 $$; sleep 9",
    ]);
    assert!(matches!(killed.code, 0 | 137), "{killed:?}");
    // Podman tells these two apart by the runtime's words in the log.
    let missing = podman.run(&["run", "--rm", "localhost/box", "/bin/nowhere"]);
    assert_eq!(missing.code, 127, "{missing:?}");
    let directory = podman.run(&["run", "--rm", "localhost/box", "/etc"]);
    assert_eq!(directory.code, 126, "{directory:?}");
    // Nothing is left of any of them.
    assert_eq!(podman.ok(&["ps", "-aq"]), "");
    let left = podman
        .host
        .sh("find /sys/fs/cgroup -path '*libpod_parent/libpod-*' -type d");
    assert_eq!(left, "");
}

#[test]
fn podman_passes_terminal_standard_input_and_rootfs() {
    let podman = Podman::start("podman-tty");
    let tty = podman.ok(&[
        "run",
        "--rm",
        "-t",
        "localhost/box",
        "sh",
        "-c",
        "tty; stty size",
    ]);
    assert!(tty.contains("/dev/pts/0"), "{tty}");
    let mut command = podman.host.machine.command("sh");
    let rootfs = podman.host.path("rootfs");
    let script = format!(
        "echo from-outside | podman --root {0}/storage --runroot /run/podman --tmpdir /run/libpod --storage-driver overlay \
         --runtime {1} run --rm -i --rootfs {2} cat",
        podman.host.machine.dir().display(),
        runtime().display(),
        rootfs.display(),
    );
    command
        .env("CONTAINERS_CONF", podman.host.path("containers.conf"))
        .args(["-c", &script]);
    assert_eq!(finish(&mut command).ok(&[&script]), "from-outside");
}

#[test]
fn podman_execs_pauses_counts_and_stops() {
    let podman = Podman::start("podman-life");
    podman.ok(&[
        "run",
        "-d",
        "--name",
        "one",
        "--memory",
        "64m",
        "localhost/box",
        "sh",
        "-c",
        "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done",
    ]);
    wait_until("the first line of the log", || {
        let log = podman.ok(&["logs", "one"]);
        if log == "ready" { Ok(()) } else { Err(log) }
    });
    let exec = |args: &[&str]| {
        let mut all = vec!["exec"];
        all.extend(args);
        podman.run(&all)
    };
    let seen = exec(&["-e", "A=b", "-w", "/tmp", "one", "sh", "-c", "echo $A $PWD"]).ok(&["exec"]);
    assert_eq!(seen, "b /tmp");
    assert_eq!(exec(&["one", "sh", "-c", "exit 9"]).code, 9);
    assert_eq!(exec(&["one", "/bin/nowhere"]).code, 127);
    assert_eq!(exec(&["one", "/etc"]).code, 126);
    assert_eq!(
        exec(&["--user", "7:8", "one", "id", "-u"]).ok(&["exec"]),
        "7"
    );
    assert!(
        exec(&["-t", "one", "tty"])
            .ok(&["exec"])
            .contains("/dev/pts/")
    );

    podman.ok(&["pause", "one"]);
    assert_eq!(podman.inspect("one", "{{.State.Status}}"), "paused");
    let file = limit_file(
        "freezer/*/libpod-*/freezer.state",
        "*/libpod-*/cgroup.events",
    );
    let frozen = podman.host.sh(&format!("cat /sys/fs/cgroup/{file}"));
    assert!(
        frozen.contains("FROZEN") || frozen.contains("frozen 1"),
        "{frozen}"
    );
    assert_ne!(
        exec(&["one", "true"]).code,
        0,
        "exec into a paused container"
    );
    podman.ok(&["unpause", "one"]);
    assert_eq!(podman.inspect("one", "{{.State.Status}}"), "running");

    let stats = ["stats", "--no-stream", "--format", "json", "one"];
    let stats = podman.run(&stats).json(&stats);
    assert_eq!(stats[0]["name"], "one", "{stats}");
    assert_ne!(stats[0]["pids"], "0", "{stats}");
    let top = podman.ok(&["top", "one", "pid", "args"]);
    assert!(top.contains("sh -c"), "{top}");
    podman.ok(&["update", "--memory", "128m", "one"]);
    let file = limit_file("memory/memory.limit_in_bytes", "memory.max");
    let limit = exec(&["one", "cat", &format!("/sys/fs/cgroup/{file}")]);
    assert_eq!(limit.ok(&["exec"]), "134217728");

    podman.ok(&["stop", "-t", "10", "one"]);
    assert_eq!(podman.inspect("one", "{{.State.ExitCode}}"), "3");
    assert!(podman.ok(&["logs", "one"]).ends_with("bye"));
    podman.ok(&["start", "one"]);
    assert_eq!(podman.inspect("one", "{{.State.Status}}"), "running");
    podman.ok(&["kill", "-s", "KILL", "one"]);
    podman.wait_inspect("one", "{{.State.Status}}", "exited");
    assert_eq!(podman.inspect("one", "{{.State.ExitCode}}"), "137");
    podman.ok(&["rm", "one"]);
    podman.ok(&[
        "run",
        "-d",
        "--name",
        "two",
        "localhost/box",
        "sleep",
        "600",
    ]);
    podman.ok(&["rm", "-f", "-t", "0", "two"]);
    assert_eq!(podman.ok(&["ps", "-aq"]), "");
}

#[test]
fn podman_sets_limits_and_rights() {
    let podman = Podman::start("podman-rights");
    let run = |flags: &[&str], script: &str| {
        let mut args = vec!["run", "--rm"];
        args.extend(flags);
        args.extend(["localhost/box", "sh", "-c", script]);
        podman.run(&args)
    };
    let ok = |flags: &[&str], script: &str| run(flags, script).ok(flags);

    assert_eq!(ok(&["--init"], "cat /proc/1/comm"), "podman-init");
    let written = run(&["--read-only", "--read-only-tmpfs=false"], "touch /new");
    assert_ne!(written.code, 0);
    assert!(written.err.contains("Read-only file system"), "{written:?}");
    ok(&["--read-only", "--tmpfs", "/tmp"], "touch /tmp/new");
    assert_eq!(
        ok(
            &["--ulimit", "nofile=99:100", "--ulimit", "nproc=4096:4096"],
            "ulimit -n; ulimit -Hn"
        ),
        "99\n100"
    );
    let sysctl = ["--sysctl", "kernel.msgmax=9000"];
    assert_eq!(ok(&sysctl, "cat /proc/sys/kernel/msgmax"), "9000");

    let profile = podman.host.path("seccomp.json");
    let text = r#"{ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }] }"#;
    std::fs::write(&profile, text).expect("write the profile");
    let option = format!("seccomp={}", profile.display());
    let denied = run(&["--security-opt", &option], "mkdir /tmp/x");
    assert!(denied.err.contains("Operation not supported"), "{denied:?}");
    ok(&["--security-opt", "seccomp=unconfined"], "mkdir /tmp/x");
    assert_eq!(ok(&[], "grep ^Seccomp: /proc/self/status | tail -c 2"), "2");
    let option = ["--security-opt", "no-new-privileges"];
    assert_eq!(
        ok(&option, "grep NoNewPrivs /proc/self/status | tail -c 2"),
        "1"
    );
    let caps = ["--cap-drop", "all", "--cap-add", "chown"];
    assert_eq!(
        ok(&caps, "grep CapEff /proc/self/status | tail -c 17"),
        "0000000000000001"
    );

    let limits = ["--memory", "32m", "--pids-limit", "50", "--cpus", "0.5"];
    let files = limit_file(
        "memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us",
        "memory.max pids.max cpu.max",
    );
    let seen = ok(&limits, &format!("cd /sys/fs/cgroup; cat {files}"));
    let seen: Vec<&str> = seen.split_whitespace().take(3).collect();
    assert_eq!(seen, ["33554432", "50", "50000"]);

    let hidden = [
        "--hostname",
        "called",
        "--dns",
        "192.0.2.1",
        "--user",
        "7:8",
        "--workdir",
        "/tmp",
    ];
    assert_eq!(
        ok(&hidden, "hostname; id -u; id -g; pwd"),
        "called\n7\n8\n/tmp"
    );
    assert_eq!(
        ok(
            &["--device", "/dev/full"],
            "test -c /dev/full && echo there"
        ),
        "there"
    );
    let volume = format!("{}:/host:ro", podman.host.path("rootfs").display());
    assert_eq!(
        ok(
            &["-v", &volume],
            "test -f /host/etc/passwd && ! touch /host/x && echo ro"
        ),
        "ro"
    );
    assert!(ok(&["--privileged"], "grep CapEff /proc/self/status").contains("ffffff"));
    assert_eq!(
        ok(&["--oom-score-adj", "100"], "cat /proc/self/oom_score_adj"),
        "100"
    );
    assert_eq!(
        ok(&["--network", "host"], "ip -o link show eth0 | wc -l"),
        "1"
    );
    assert_eq!(ok(&["--network", "none"], "ip -o link | wc -l"), "1");
}

#[test]
fn podman_maps_users() {
    let podman = Podman::start("podman-userns");
    let flags = [
        "run",
        "--rm",
        "--uidmap",
        "0:100000:1000",
        "--gidmap",
        "0:200000:1000",
    ];
    let script = [
        "localhost/box",
        "sh",
        "-c",
        "id -u; cat /proc/self/uid_map /proc/self/gid_map",
    ];
    let seen = podman.ok(&[&flags[..], &script[..]].concat());
    let words: Vec<&str> = seen.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "1000", "0", "200000", "1000"]);
    // Who reads /etc/subuid for the user "containers" needs one; the machine has its own /etc for that.
    podman.host.sh(
        "cp -r /etc $1/etc; echo containers:300000:65536 > $1/etc/subuid
         cp $1/etc/subuid $1/etc/subgid; mount --bind $1/etc /etc",
    );
    let seen = podman.ok(&[
        "run",
        "--rm",
        "--userns=auto:size=1024",
        "localhost/box",
        "cat",
        "/proc/self/uid_map",
    ]);
    let words: Vec<&str> = seen.split_whitespace().collect();
    assert_eq!(words, ["0", "300000", "1024"]);
}

#[test]
fn podman_makes_pods() {
    let podman = Podman::start("podman-pod");
    podman.ok(&[
        "pod",
        "create",
        "--name",
        "pod",
        "--network",
        "none",
        "--share",
        "ipc,net,uts,pid",
    ]);
    podman.ok(&[
        "run",
        "-d",
        "--pod",
        "pod",
        "--name",
        "first",
        "localhost/box",
        "sleep",
        "600",
    ]);
    let seen = podman.ok(&[
        "run",
        "--rm",
        "--pod",
        "pod",
        "localhost/box",
        "ps",
        "-o",
        "args",
    ]);
    assert!(
        seen.contains("sleep 600"),
        "the pod shares its PID namespace: {seen}"
    );
    let args = ["pod", "inspect", "pod"];
    let pod: Value = podman.run(&args).json(&args);
    assert_eq!(pod["State"], "Running", "{pod}");
    podman.ok(&["pod", "pause", "pod"]);
    podman.ok(&["pod", "unpause", "pod"]);
    podman.ok(&["pod", "stop", "-t", "0", "pod"]);
    podman.ok(&["pod", "rm", "-f", "-t", "0", "pod"]);
    assert_eq!(podman.ok(&["ps", "-aq"]), "");
}

#[test]
fn podman_asks_a_container_for_its_health() {
    let podman = Podman::start("podman-health");
    podman.ok(&[
        "run",
        "-d",
        "--name",
        "ill",
        "--health-cmd",
        "test -e /well",
        "--health-interval",
        "disable",
        "--health-retries",
        "1",
        "localhost/box",
        "sleep",
        "600",
    ]);
    assert_eq!(podman.run(&["healthcheck", "run", "ill"]).code, 1);
    podman.ok(&["exec", "ill", "touch", "/well"]);
    podman.ok(&["healthcheck", "run", "ill"]);
    let status = podman.inspect("ill", "{{.State.Health.Status}}");
    assert_eq!(status, "healthy");
    podman.ok(&["rm", "-f", "-t", "0", "ill"]);
}

#[test]
fn podman_shows_the_words_of_the_runtime() {
    let podman = Podman::start("podman-words");
    let version = podman.ok(&["info", "-f", "{{.Host.OCIRuntime.Version}}"]);
    if is_ours() {
        assert!(version.starts_with("knarr-oci version "), "{version}");
    }
    let refused = podman.run(&[
        "run",
        "--rm",
        "--security-opt",
        "seccomp=unconfined",
        "--sysctl",
        "kernel.msgmax=nonsense",
        "localhost/box",
        "true",
    ]);
    assert_ne!(refused.code, 0);
    assert!(refused.err.contains("msgmax") || !is_ours(), "{refused:?}");
}
