//! An ordinary user's containers. The user has no name and no rights; what it owns is a directory with a bundle and a copy
//! of the runtime.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{self, Case, Done};

const USER: u32 = 12_345;

/// A container of the user's.
struct Rootless {
    case: Case,
    config: Value,
}

fn give(path: &Path) {
    for entry in std::fs::read_dir(path).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            give(&entry.path());
        }
    }
    chown(path, Some(USER), Some(USER)).unwrap();
}

impl Rootless {
    /// As `spec --rootless` writes it, with this script.
    fn new(script: &str) -> Self {
        let case = Case::new("true");
        // Its own command line is not used: the tests talk to the runtime as the user.
        // By a process of its own: a descriptor of ours, open for writing while another test forks, would keep the copy
        // from being executed (ETXTBSY).
        let copied = Command::new("cp")
            .args([support::runtime(), case.path("knarr-oci")])
            .status();
        assert!(copied.unwrap().success());
        std::fs::create_dir(case.path("run")).unwrap();
        give(&case.path("."));
        let mut this = Self {
            case,
            config: Value::Null,
        };
        let spec = this.verb(&["spec", "--rootless"]);
        assert_eq!(spec.code, 0, "{spec:?}");
        let text = std::fs::read(this.case.bundle().join("config.json")).unwrap();
        this.config = serde_json::from_slice(&text).unwrap();
        this.config["process"]["terminal"] = json!(false);
        this.config["process"]["args"] = json!(["/bin/sh", "-c", script]);
        this.config["process"]["env"] = json!(["PATH=/bin"]);
        this
    }

    fn program(&self) -> PathBuf {
        self.case.path("knarr-oci")
    }

    fn command(&self, args: &[&str]) -> Command {
        if self.config.is_object() {
            let path = self.case.bundle().join("config.json");
            std::fs::write(path, self.config.to_string()).unwrap();
        }
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "12345", "--regid", "12345", "--clear-groups"])
            .arg(self.program())
            .args(args)
            .env("XDG_RUNTIME_DIR", self.case.path("run"))
            .current_dir(self.case.bundle())
            .stdin(Stdio::null());
        command
    }

    fn finish(&self, mut command: Command) -> Done {
        let open = |name: &str| std::fs::File::create(self.case.path(name)).unwrap();
        let status = command
            .stdout(open("out"))
            .stderr(open("err"))
            .status()
            .expect("setpriv is installed");
        let read = |name: &str| std::fs::read_to_string(self.case.path(name)).unwrap();
        Done {
            code: status.code().unwrap_or(-1),
            out: read("out"),
            err: read("err"),
        }
    }

    fn verb(&self, args: &[&str]) -> Done {
        self.finish(self.command(args))
    }

    fn run(&self) -> Done {
        self.verb(&["run", &self.case.id])
    }

    fn state_exists(&self) -> bool {
        self.case.path("run/knarr-oci").join(&self.case.id).exists()
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        if self.state_exists() {
            self.verb(&["delete", "--force", &self.case.id]);
        }
    }
}

#[test]
fn the_example_runs_with_a_single_mapping() {
    let container = Rootless::new(
        "id -u; cat /proc/self/uid_map /proc/self/setgroups; stat -c %u /data; echo 1 > /dev/null; test -e /sys/class",
    );
    let done = container.run();
    assert_eq!(done.code, 0, "{done:?}");
    let words: Vec<&str> = done.out.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "12345", "1", "deny", "0"], "{done:?}");
    assert!(!container.state_exists());
}

#[test]
fn a_container_goes_through_its_states() {
    let container = Rootless::new("sleep 1000");
    let id = container.case.id.clone();
    let created = container.verb(&["create", &id]);
    assert_eq!(created.code, 0, "{created:?}");
    assert!(container.state_exists());
    let started = container.verb(&["start", &id]);
    assert_eq!(started.code, 0, "{started:?}");
    let inside = container.verb(&[
        "exec",
        &id,
        "/bin/sh",
        "-c",
        "id -u; echo $$; cat /proc/1/comm",
    ]);
    assert_eq!(inside.code, 0, "{inside:?}");
    let words: Vec<&str> = inside.out.split_whitespace().collect();
    assert_eq!((words[0], words[2]), ("0", "sleep"), "{inside:?}");
    assert!(
        words[1].parse::<u32>().unwrap() < 100,
        "in its PID namespace: {inside:?}"
    );
    let failing = container.verb(&["exec", &id, "/bin/sh", "-c", "exit 7"]);
    assert_eq!(failing.code, 7, "{failing:?}");
    let killed = container.verb(&["kill", &id, "KILL"]);
    assert_eq!(killed.code, 0, "{killed:?}");
    support::wait(|| {
        let state = container.verb(&["state", &id]);
        if state.out.contains("stopped") {
            Ok(())
        } else {
            Err(format!("{state:?}"))
        }
    });
    let deleted = container.verb(&["delete", &id]);
    assert_eq!(deleted.code, 0, "{deleted:?}");
    assert!(!container.state_exists());
}

#[test]
fn more_ids_come_from_the_helpers() {
    let mut container = Rootless::new("cat /proc/self/uid_map /proc/self/gid_map; id -u");
    let map = json!([
        { "containerID": 0, "hostID": USER, "size": 1 },
        { "containerID": 1, "hostID": 700_000, "size": 1000 },
    ]);
    container.config["linux"]["uidMappings"] = map.clone();
    container.config["linux"]["gidMappings"] = map;
    container.config["process"]["user"] = json!({ "uid": 33, "gid": 33, "additionalGids": [44] });
    // They look up who the user is and what it was given: in a mount namespace of the test's own.
    let files = [
        (
            "passwd",
            "root:x:0:0::/:/bin/sh\nordinary:x:12345:12345::/:/bin/sh\n",
        ),
        ("group", "root:x:0:\nordinary:x:12345:\n"),
        ("subuid", "ordinary:700000:1000\n"),
        ("subgid", "ordinary:700000:1000\n"),
    ];
    let etc = container.case.path("etc");
    std::fs::create_dir(&etc).unwrap();
    for (name, text) in files {
        std::fs::write(etc.join(name), text).unwrap();
    }
    let script = format!("mount --bind {} /etc && exec \"$@\"", etc.display());
    let plain = container.command(&["run", &container.case.id]);
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", &script, "sh"])
        .arg(plain.get_program())
        .args(plain.get_args())
        .env("XDG_RUNTIME_DIR", container.case.path("run"))
        .current_dir(container.case.bundle())
        .stdin(Stdio::null());
    let done = container.finish(command);
    assert_eq!(done.code, 0, "{done:?}");
    let words: Vec<&str> = done.out.split_whitespace().collect();
    let once = ["0", "12345", "1", "1", "700000", "1000"];
    assert_eq!(words[..6], once, "{done:?}");
    assert_eq!(words[6..12], once, "{done:?}");
    assert_eq!(words[12], "33", "{done:?}");
}

#[test]
fn ids_that_were_not_given_are_refused_with_the_helper_s_words() {
    let mut container = Rootless::new("true");
    container.config["linux"]["uidMappings"] =
        json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
    let done = container.run();
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.err.contains("newuidmap"), "{done:?}");
    assert!(!container.state_exists());
}

#[test]
fn sysfs_without_a_network_namespace_is_the_host_s() {
    let mut container = Rootless::new("test -d /sys/class && ! touch /sys/x");
    for mount in container.config["mounts"].as_array_mut().unwrap() {
        if mount["destination"] == "/sys" {
            *mount = json!({
                "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"],
            });
        }
    }
    let done = container.run();
    assert_eq!(done.code, 0, "{done:?}");
}

#[test]
fn limits_that_nobody_could_enforce_and_missing_rights_are_errors() {
    let mut container = Rootless::new("true");
    container.config["linux"]["resources"] = json!({ "pids": { "limit": 5 } });
    let done = container.run();
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.err.contains("linux.resources"), "{done:?}");
    assert!(!container.state_exists());

    let mut container = Rootless::new("true");
    // Such rules are what engines always give; without rights to make nodes they hold anyway.
    container.config["linux"]["resources"] =
        json!({ "devices": [{ "allow": false, "access": "rwm" }] });
    let done = container.run();
    assert_eq!(done.code, 0, "{done:?}");
    let done = container.verb(&["--rootless=false", "run", &container.case.id]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.err.contains("cgroup"), "{done:?}");

    let kinds = container.config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap();
    kinds.retain(|kind| kind["type"] != "user");
    let done = container.run();
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.err.contains("user namespace"), "{done:?}");
    assert!(!container.state_exists());
}

#[test]
fn a_users_descriptors_survive_the_copy_of_the_runtime() {
    // An ordinary user's runtime executes itself once more, and what was left open for it must be open then.
    let rootless = Rootless::new("cat <&3; echo $LISTEN_FDS");
    let given = rootless.case.path("given");
    std::fs::write(&given, "from outside\n").unwrap();
    let inner = rootless.command(&["run", &rootless.case.id]);
    let mut shell = Command::new("sh");
    shell
        .args([
            "-c",
            "exec 3<\"$0\"; export LISTEN_FDS=1 LISTEN_PID=$$; exec \"$@\"",
        ])
        .arg(&given)
        .arg(inner.get_program())
        .args(inner.get_args())
        .env("XDG_RUNTIME_DIR", rootless.case.path("run"))
        .current_dir(rootless.case.bundle())
        .stdin(Stdio::null());
    let done = rootless.finish(shell);
    assert_eq!(done.out, "from outside\n1\n", "{done:?}");
}
