//! Podman, Buildah and containerd from Debian, driving the runtime as they do in the field.
//!
//! Each test has a machine of its own: namespaces, cgroups and directories that end with it. `OCI_RUNTIME` names another
//! runtime (crun, runc) for the same cases: one that fails there too is suspect.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

mod buildah;
mod containerd;
mod limits;
#[path = "../../../../tests/harness/machine.rs"]
#[expect(
    dead_code,
    reason = "the tests of the whole also connect machines to each other"
)]
mod machine;
mod podman;

use machine::Machine;

/// How long a condition may take to come true; callers are slow on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// Settings of Podman and Buildah: nothing of the host's, limits that this host can give, no network but loopback.
const CONTAINERS_CONF: &str = r#"
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
netns = "none"
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
"#;

/// The program under test.
fn runtime() -> PathBuf {
    std::env::var_os("OCI_RUNTIME")
        .map_or_else(|| env!("CARGO_BIN_EXE_knarr-oci").into(), PathBuf::from)
}

/// Whether it is ours: for what the others do otherwise.
fn is_ours() -> bool {
    runtime().file_name() == Some("knarr-oci".as_ref())
}

/// Whether the host has cgroup v2 and nothing else.
fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// A limit's file in the groups' file system: by its path from the hierarchies of v1, or by its name in v2.
fn limit_file<'a>(v1: &'a str, v2: &'a str) -> &'a str {
    if is_v2() { v2 } else { v1 }
}

/// A machine with a root file system of busybox, as directory and as archive.
struct Host {
    machine: Machine,
}

/// What a command has printed, and whether it went well.
#[derive(Debug)]
struct Done {
    code: i32,
    out: String,
    err: String,
}

impl Host {
    fn start(name: &str) -> Self {
        let machine = Machine::start(name, "192.168.80.2/24", machine::Disk::Real);
        let dir = machine.dir();
        let rootfs = dir.join("rootfs");
        for name in ["bin", "etc", "tmp", "proc", "dev", "sys", "run", "var"] {
            std::fs::create_dir_all(rootfs.join(name)).expect("rootfs directory");
        }
        std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).expect("busybox-static");
        std::fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").expect("passwd");
        std::fs::write(rootfs.join("etc/group"), "root:x:0:\n").expect("group");
        let host = Self { machine };
        // Not by a script: three hundred processes are most of a test's time where the processor is emulated.
        let applets = finish(Command::new("/bin/busybox").arg("--list")).ok(&["--list"]);
        for applet in applets.lines().filter(|name| *name != "busybox") {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).expect("applet");
        }
        host.sh(r#"tar -C "$1/rootfs" -cf "$1/rootfs.tar" ."#);
        std::fs::write(host.path("containers.conf"), CONTAINERS_CONF).expect("containers.conf");
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.machine.dir().join(name)
    }

    /// A shell script in the machine, with its directory as `$1`.
    fn sh(&self, script: &str) -> String {
        let mut command = self.machine.command("sh");
        command.args(["-ec", script, "sh"]).arg(self.machine.dir());
        let done = finish(&mut command);
        assert_eq!(done.code, 0, "{script}: {done:?}");
        done.out
    }
}

fn finish(command: &mut Command) -> Done {
    use std::os::unix::process::ExitStatusExt;
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Done {
        code,
        out: String::from_utf8_lossy(&stdout).into_owned(),
        err: String::from_utf8_lossy(&stderr).into_owned(),
    }
}

impl Done {
    /// What it printed, if it went well; panics otherwise.
    fn ok(self, what: &[&str]) -> String {
        assert_eq!(self.code, 0, "{what:?}: {}{}", self.out, self.err);
        self.out.trim().to_owned()
    }

    fn json(self, what: &[&str]) -> Value {
        let text = self.ok(what);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{what:?}: {error}: {text}"))
    }
}

/// Asks until the answer is yes, and panics with the last no.
fn wait_until(what: &str, mut ask: impl FnMut() -> Result<(), String>) {
    let end = Instant::now() + DEADLINE;
    loop {
        match ask() {
            Ok(()) => return,
            Err(last) if Instant::now() > end => panic!("waiting for {what}: {last}"),
            // The callers are processes of their own that want the processor.
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
