//! containerd, through `ctr` and its shim for runc.

use std::process::{Child, Stdio};

use super::{Done, Host, finish, is_ours, limit_file, runtime, wait_until};

/// A daemon with root, state and socket in its machine, which it ends with.
struct Containerd {
    host: Host,
    daemon: Child,
}

impl Containerd {
    fn start(name: &str) -> Self {
        let host = Host::start(name);
        let config = host.path("containerd.toml");
        let text = format!(
            "version = 2\nroot = \"{0}/containerd\"\nstate = \"/run/containerd\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\n  address = \"/run/containerd/containerd.sock\"\n",
            host.machine.dir().display()
        );
        std::fs::write(&config, text).expect("write the settings");
        let log = std::fs::File::create(host.path("containerd.log")).expect("log");
        let daemon = host
            .machine
            .command("containerd")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start containerd");
        let containerd = Self { host, daemon };
        wait_until("containerd to answer", || {
            let done = containerd.ctr(&["version"]);
            if done.code == 0 {
                Ok(())
            } else {
                Err(done.err)
            }
        });
        containerd
    }

    fn ctr(&self, args: &[&str]) -> Done {
        let mut command = self.host.machine.command("ctr");
        command.args(["--address", "/run/containerd/containerd.sock"]);
        finish(command.args(args))
    }

    fn ok(&self, args: &[&str]) -> String {
        self.ctr(args).ok(args)
    }

    /// `ctr run` on the directory of busybox.
    fn run(&self, flags: &[&str], id: &str, command: &[&str]) -> Done {
        let (runtime, rootfs) = (runtime(), self.host.path("rootfs"));
        let path = runtime.to_str().expect("path");
        let fixed = ["run", "--env", "PATH=/bin", "--runc-binary", path];
        let named = ["--rootfs", rootfs.to_str().expect("path"), id];
        self.ctr(&[&fixed[..], flags, &named[..], command].concat())
    }

    fn status(&self, id: &str) -> String {
        let tasks = self.ok(&["tasks", "ls"]);
        let line = tasks.lines().find(|line| line.starts_with(id));
        line.and_then(|line| line.split_whitespace().nth(2))
            .unwrap_or("GONE")
            .to_owned()
    }

    fn wait_status(&self, id: &str, wanted: &str) {
        wait_until(wanted, || {
            let now = self.status(id);
            if now == wanted { Ok(()) } else { Err(now) }
        });
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // This is nsenter, which has become containerd's parent; the daemon itself dies with its machine.
        let ended = self.daemon.kill().and_then(|()| self.daemon.wait());
        if let Err(error) = ended {
            eprintln!("stop containerd: {error}");
        }
    }
}

#[test]
fn containerd_runs_a_task_and_tells_its_exit_code() {
    let containerd = Containerd::start("ctrd-run");
    let run = |flags: &[&str], command: &[&str]| {
        containerd.run(&[&["--rm"], flags].concat(), "one", command)
    };
    assert_eq!(run(&[], &["echo", "hello"]).ok(&["run"]), "hello");
    assert_eq!(run(&[], &["sh", "-c", "exit 7"]).code, 7);
    assert_eq!(run(&["--cwd", "/tmp"], &["pwd"]).ok(&["--cwd"]), "/tmp");
    assert_eq!(
        run(&["--env", "A=b"], &["sh", "-c", "echo $A"]).ok(&["--env"]),
        "b"
    );
    assert_eq!(
        run(&["--seccomp"], &["grep", "^Seccomp:", "/proc/self/status"]).ok(&["--seccomp"]),
        "Seccomp:\t2"
    );
    assert_ne!(run(&["--read-only"], &["touch", "/new"]).code, 0);
    let missing = run(&[], &["/bin/nowhere"]);
    assert_ne!(missing.code, 0);
    if is_ours() {
        // containerd has read it from the JSON log.
        assert!(missing.err.contains("/bin/nowhere"), "{missing:?}");
    }
    assert_eq!(containerd.ok(&["tasks", "ls", "-q"]), "");
    assert_eq!(containerd.host.sh("find /run/containerd -name one"), "");
}

#[test]
fn containerd_execs_pauses_updates_and_kills() {
    let containerd = Containerd::start("ctrd-life");
    let limits = ["-d", "--memory-limit", "33554432", "--cpus", "0.5"];
    containerd
        .run(&limits, "one", &["sleep", "600"])
        .ok(&limits);
    let files = limit_file(
        "memory/default/one/memory.limit_in_bytes cpu/default/one/cpu.cfs_quota_us",
        "default/one/memory.max default/one/cpu.max",
    );
    let limits = containerd
        .host
        .sh(&format!("cd /sys/fs/cgroup; cat {files}"));
    let limits: Vec<&str> = limits.split_whitespace().take(2).collect();
    assert_eq!(limits, ["33554432", "50000"]);
    let exec = |args: &[&str]| {
        let fixed = ["tasks", "exec", "--exec-id", "more"];
        containerd.ctr(&[&fixed[..], args].concat())
    };
    assert_eq!(exec(&["one", "echo", "inside"]).ok(&["exec"]), "inside");
    assert_eq!(exec(&["one", "sh", "-c", "exit 9"]).code, 9);
    assert_eq!(exec(&["--cwd", "/tmp", "one", "pwd"]).ok(&["exec"]), "/tmp");
    assert_ne!(exec(&["one", "/bin/nowhere"]).code, 0);

    containerd.ok(&["tasks", "pause", "one"]);
    assert_eq!(containerd.status("one"), "PAUSED");
    containerd.ok(&["tasks", "resume", "one"]);
    assert_eq!(containerd.status("one"), "RUNNING");
    let ps = containerd.ok(&["tasks", "ps", "one"]);
    assert_eq!(ps.lines().count(), 2, "{ps}");
    let metrics = containerd.ok(&["tasks", "metrics", "one"]);
    assert!(metrics.contains("memory"), "{metrics}");

    containerd.ok(&["tasks", "kill", "--signal", "SIGTERM", "one"]);
    // As PID 1 it is deaf to a signal that it does not handle.
    assert_eq!(containerd.status("one"), "RUNNING");
    containerd.ok(&["tasks", "kill", "--signal", "SIGKILL", "one"]);
    containerd.wait_status("one", "STOPPED");
    containerd.ok(&["tasks", "delete", "one"]);
    containerd.ok(&["containers", "delete", "one"]);
    assert_eq!(containerd.ok(&["tasks", "ls", "-q"]), "");
}
