//! Bundles with a busybox rootfs, and a runtime to run them: ours, or the one that `OCI_RUNTIME` names (crun, runc).

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

#[cfg(target_arch = "x86_64")]
pub mod inject;
pub mod prey;
pub mod race;

/// How long a condition may take to come true.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// One container to be: a bundle, a state directory, an id. Deleted by force at the end.
pub struct Case {
    dir: tempfile::TempDir,
    pub id: String,
    pub config: Value,
}

/// What a command has printed, and its exit code (128 and its signal).
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// The program under test.
pub fn runtime() -> PathBuf {
    std::env::var_os("OCI_RUNTIME")
        .map_or_else(|| env!("CARGO_BIN_EXE_knarr-oci").into(), PathBuf::from)
}

/// Whether it is ours: for what the others do otherwise.
pub fn is_ours() -> bool {
    std::env::var_os("OCI_RUNTIME").is_none()
}

const APPLETS: [&str; 30] = [
    "sh", "true", "false", "ls", "cat", "sleep", "id", "mount", "ps", "hostname", "env", "kill",
    "mknod", "echo", "dd", "head", "ip", "stat", "ln", "tty", "stty", "touch", "chmod", "grep",
    "test", "mkdir", "pwd", "readlink", "tail", "wc",
];

impl Case {
    /// A container that runs `script` in a shell, configured as engines do.
    pub fn new(script: &str) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!(
            "oci-case-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = tempfile::tempdir().expect("temporary directory");
        let rootfs = dir.path().join("bundle/rootfs");
        for name in ["bin", "etc", "tmp", "proc", "dev", "sys", "data"] {
            std::fs::create_dir_all(rootfs.join(name)).expect("rootfs directory");
        }
        std::fs::copy("/bin/busybox", rootfs.join("bin/busybox"))
            .expect("busybox-static is installed");
        for applet in APPLETS {
            symlink("busybox", rootfs.join("bin").join(applet)).expect("applet");
        }
        let config = config(&["/bin/sh", "-c", script], &id);
        Self { dir, id, config }
    }

    /// The same with the command given.
    pub fn command(args: &[&str]) -> Self {
        let mut case = Self::new("");
        case.config["process"]["args"] = json!(args);
        case
    }

    pub fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    pub fn rootfs(&self) -> PathBuf {
        self.bundle().join("rootfs")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command of the runtime, with its state in this case's directory.
    pub fn runtime(&self, args: &[&str]) -> Command {
        let text = serde_json::to_string_pretty(&self.config).expect("config");
        // A runtime in the background may be reading it.
        std::fs::write(self.bundle().join("config.new"), text).expect("write config.json");
        std::fs::rename(
            self.bundle().join("config.new"),
            self.bundle().join("config.json"),
        )
        .expect("rename");
        let mut command = Command::new(runtime());
        command
            .arg("--root")
            .arg(self.path("state"))
            .args(args)
            .current_dir(self.bundle())
            .stdin(Stdio::null());
        command
    }

    pub fn verb(&self, args: &[&str]) -> Done {
        finish(self.runtime(args).output().expect("run the runtime"))
    }

    /// `run` in the foreground.
    pub fn run(&self) -> Done {
        self.verb(&["run", &self.id])
    }

    /// `create` with output to a file, because the container keeps it.
    pub fn create(&self) -> Done {
        let mut command = self.runtime(&["create", &self.id]);
        let out = std::fs::File::create(self.path("out")).expect("output file");
        let err = std::fs::File::create(self.path("err")).expect("output file");
        let status = command
            .stdout(out)
            .stderr(err)
            .status()
            .expect("run the runtime");
        Done {
            code: code(status),
            out: self.output(),
            err: self.read("err"),
        }
    }

    /// `create` and `start`.
    pub fn start(&self) {
        let created = self.create();
        assert_eq!(created.code, 0, "{created:?}");
        let started = self.verb(&["start", &self.id]);
        assert_eq!(started.code, 0, "{started:?}");
    }

    pub fn output(&self) -> String {
        self.read("out")
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub fn state(&self) -> Value {
        let done = self.verb(&["state", &self.id]);
        assert_eq!(done.code, 0, "{done:?}");
        serde_json::from_str(&done.out).expect("state is JSON")
    }

    pub fn status(&self) -> String {
        self.state()["status"].as_str().expect("status").to_owned()
    }

    /// Waits for a status, and says which was seen last.
    pub fn wait_status(&self, wanted: &str) {
        wait(|| {
            let now = self.status();
            if now == wanted {
                Ok(())
            } else {
                Err(format!("status {now}, not {wanted}"))
            }
        });
    }

    /// Groups of this container that exist.
    pub fn groups(&self) -> Vec<PathBuf> {
        let roots = std::fs::read_dir("/sys/fs/cgroup")
            .expect("cgroups")
            .flatten()
            .map(|entry| entry.path());
        let roots = roots.chain([PathBuf::from("/sys/fs/cgroup")]);
        roots
            .map(|root| root.join(&self.id))
            .filter(|path| path.is_dir())
            .collect()
    }

    /// Asserts that nothing is left of it.
    pub fn assert_nothing_left(&self) {
        wait(|| {
            let groups = self.groups();
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
            let path = self.dir.path().to_str().expect("path");
            let mounted = mounts.lines().any(|line| line.contains(path));
            let state = self.path("state").join(&self.id);
            if groups.is_empty() && !mounted && !state.exists() {
                Ok(())
            } else {
                Err(format!(
                    "groups {groups:?}, mounted: {mounted}, state: {}",
                    state.exists()
                ))
            }
        });
    }

    pub fn linux(&mut self) -> &mut Value {
        &mut self.config["linux"]
    }

    pub fn add_mount(&mut self, mount: Value) {
        self.config["mounts"]
            .as_array_mut()
            .expect("mounts")
            .push(mount);
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        // Most cases have deleted it: only for those that failed half way.
        let _none = self.verb(&["delete", "--force", &self.id]);
    }
}

fn code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// What a command has printed, as text.
pub fn finish(output: Output) -> Done {
    Done {
        code: code(output.status),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Asks until the answer is yes, and panics with the last no.
pub fn wait(mut ask: impl FnMut() -> Result<(), String>) {
    let end = Instant::now() + DEADLINE;
    loop {
        match ask() {
            Ok(()) => return,
            Err(last) if Instant::now() > end => panic!("{last}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}

/// The group's file of a v1 host's controller.
pub fn group_file(id: &str, controller: &str, file: &str) -> String {
    let path = Path::new("/sys/fs/cgroup")
        .join(controller)
        .join(id)
        .join(file);
    std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
        .trim()
        .to_owned()
}

fn config(args: &[&str], id: &str) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_KILL",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETUID",
        "CAP_SETGID"
    ]);
    let mount = |destination: &str, typ: &str, options: &[&str]| json!({ "destination": destination, "type": typ, "source": typ, "options": options });
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/bin", "TERM=xterm"],
            "cwd": "/",
            "capabilities": { "bounding": capabilities, "effective": capabilities, "permitted": capabilities },
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": false },
        "hostname": "inside",
        "mounts": [
            mount("/proc", "proc", &[]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/acpi", "/sys/firmware", "/nowhere"],
            "readonlyPaths": ["/proc/bus", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
