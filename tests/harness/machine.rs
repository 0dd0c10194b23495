//! A simulated machine: PID, network, mount, UTS, IPC and cgroup namespaces of its own, that die with the test.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// What makes a new set of namespaces into a machine; `$1` is its address with prefix, `$2` its directory, `$3` its name,
/// `$4` the size of its disk, or nothing for a directory on the disk of the real machine.
///
/// `cat` is PID 1: it ends when the test ends, however that ends, and the kernel then kills all that runs inside.
const SETUP: &str = r#"
set -e
address=$1 dir=$2 name=$3 disk=$4
hostname "$name"
ip link set lo up
ip link add eth0 type veth peer name wire0
ip address add "$address" dev eth0
ip link set eth0 up
ip link set wire0 up
controllers=$(awk '!/^#/ && $4 == 1 { print $1 }' /proc/cgroups)
hierarchies=$(awk '$0 ~ / - cgroup / { print $5 }' /proc/self/mountinfo)
names=
for at in $hierarchies; do names="$names $(basename "$at")"; done
umount -R /sys/fs/cgroup
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
for one in $names; do
  mkdir -p "/sys/fs/cgroup/$one"
  case $one in
    systemd) mount -t cgroup -o none,name=systemd cgroup "/sys/fs/cgroup/$one" ;;
    *) mount -t cgroup -o "$one" cgroup "/sys/fs/cgroup/$one" ;;
  esac
done
if [ -z "$names" ]; then mount -t cgroup2 cgroup2 /sys/fs/cgroup; fi
mkdir -p "$dir/run" "$dir/log" "$dir/data"
if [ -n "$disk" ]; then mount -t tmpfs -o "mode=755,size=$disk" data "$dir/data"; fi
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 shm /dev/shm
mkdir -p /var/log/pods /var/log/containers /var/lib/knarr /run/knarr
mount --bind "$dir/log" /var/log
mount --bind "$dir/data" /var/lib/knarr
echo ready
exec cat
"#;

/// What a machine's data directory is on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// An empty file system in memory: how full the real disk is does not put the node under pressure.
    Memory,
    /// A directory on the real disk, for measurements.
    #[allow(
        dead_code,
        reason = "the harness is compiled into each program that tests"
    )]
    Real,
}

/// A simulated machine.
pub struct Machine {
    name: String,
    address: String,
    dir: tempfile::TempDir,
    unshare: Child,
    /// Closing it ends the machine.
    _lifeline: ChildStdin,
    init: u32,
    groups: Vec<PathBuf>,
    /// With cgroup v2, where its processes start.
    leaf: Option<PathBuf>,
}

impl Machine {
    /// Starts a machine with this host name and this address on its `eth0`, such as `192.168.77.2/24`.
    pub fn start(name: &str, address: &str, disk: Disk) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test simulates machines with namespaces and must run as root"
        );
        let dir = tempfile::Builder::new()
            .prefix("knarr-")
            .tempdir()
            .expect("a temporary directory");
        let group = format!(
            "knarr-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let groups = make_groups(&group);
        let enter: String = groups
            .iter()
            .map(|path| format!("echo $$ > {}/cgroup.procs\n", path.display()))
            .collect();
        let script = format!(
            "set -e\n{enter}exec unshare --mount --net --pid --cgroup --uts --ipc --fork --kill-child=KILL \
             --mount-proc --propagation private sh -c \"$0\" setup \"$@\""
        );
        let mut unshare = Command::new("sh")
            .args(["-c", &script, SETUP, address])
            .arg(dir.path())
            .arg(name)
            .arg(match disk {
                Disk::Memory => "4g",
                Disk::Real => "",
            })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start sh");
        let lifeline = unshare.stdin.take().expect("stdin is a pipe");
        let mut line = String::new();
        BufReader::new(unshare.stdout.take().expect("stdout is a pipe"))
            .read_line(&mut line)
            .expect("read from the machine");
        assert_eq!(line, "ready\n", "the machine {name} did not start");
        let children = format!("/proc/{0}/task/{0}/children", unshare.id());
        let init = fs::read_to_string(&children)
            .expect("unshare is there")
            .trim()
            .parse()
            .expect("unshare has one child");
        let leaf = match &*groups {
            [group] if group.join("cgroup.controllers").exists() => {
                Some(share_out(group, &[unshare.id(), init]))
            }
            _ => None,
        };
        Self {
            name: name.to_owned(),
            address: address.to_owned(),
            dir,
            unshare,
            _lifeline: lifeline,
            init,
            groups,
            leaf,
        }
    }

    /// A directory that the machine and the test share, under the same path.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The machine's cgroups, one for each hierarchy of the host.
    pub fn groups(&self) -> &[PathBuf] {
        &self.groups
    }

    /// A command that will run inside the machine.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = match &self.leaf {
            Some(leaf) => {
                let mut join = Command::new("sh");
                join.args(["-c", r#"echo $$ > "$0/cgroup.procs" && exec nsenter "$@""#])
                    .arg(leaf);
                join
            }
            None => Command::new("nsenter"),
        };
        command
            .args(["--target", &self.init.to_string()])
            .args([
                "--mount", "--net", "--pid", "--cgroup", "--uts", "--ipc", "--",
            ])
            .arg(program.as_ref())
            .env("HOME", self.dir.path());
        command
    }

    /// Runs a shell script inside the machine.
    pub fn sh(&self, script: &str) -> Output {
        self.command("sh")
            .args(["-c", script])
            .output()
            .expect("run nsenter")
    }

    /// Runs a shell script inside the machine and returns what it printed; panics if it fails.
    pub fn sh_ok(&self, script: &str) -> String {
        let output = self.sh(script);
        assert!(
            output.status.success(),
            "{script}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// Puts two machines on one network: a cable between their `eth0`.
    pub fn connect(&self, other: &Self) {
        for machine in [self, other] {
            machine.sh_ok("ip link delete eth0");
        }
        let status = Command::new("nsenter")
            .args(["--target", &self.init.to_string(), "--net", "--"])
            .args([
                "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0",
            ])
            .args(["netns", &other.init.to_string()])
            .status()
            .expect("run nsenter");
        assert!(status.success(), "connect {} and {}", self.name, other.name);
        for machine in [self, other] {
            machine.sh_ok(&format!(
                "ip address add {} dev eth0 && ip link set eth0 up",
                machine.address
            ));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Everything inside dies with PID 1; the kernel frees the namespaces and their mounts.
        if let Err(error) = self
            .unshare
            .kill()
            .and_then(|()| self.unshare.wait().map(drop))
        {
            eprintln!("stop the machine {}: {error}", self.name);
        }
        for group in &self.groups {
            remove_group(group);
        }
    }
}

/// A new group of this name in every v1 hierarchy and, where it is the only one, the v2 hierarchy, with all its controllers.
fn make_groups(name: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    let at = |kind: &str| -> Vec<PathBuf> {
        mounts
            .lines()
            .filter(|line| line.contains(&format!(" - {kind} ")))
            .filter_map(|line| line.split(' ').nth(4))
            .map(PathBuf::from)
            .collect()
    };
    let mut hierarchies = at("cgroup");
    if hierarchies.is_empty() {
        hierarchies = at("cgroup2");
        for hierarchy in &hierarchies {
            enable_controllers(hierarchy);
        }
    }
    hierarchies
        .into_iter()
        .map(|hierarchy| {
            let group = hierarchy.join(name);
            fs::create_dir(&group)
                .unwrap_or_else(|error| panic!("create {}: {error}", group.display()));
            // A cpuset group takes no process before it has CPUs and memory nodes.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if group.join(file).exists() && hierarchy.ends_with("cpuset") {
                    let value =
                        fs::read_to_string(hierarchy.join(file)).expect("read the parent's cpuset");
                    fs::write(group.join(file), value).expect("write the cpuset");
                }
            }
            group
        })
        .collect()
}

/// Moves the processes of a v2 group into one below it, which it returns, and gives that and all others the controllers: only a
/// group without processes of its own has controllers for those below.
fn share_out(group: &Path, processes: &[u32]) -> PathBuf {
    let leaf = group.join("machine");
    fs::create_dir(&leaf).expect("make the group of the machine's own processes");
    for process in processes {
        fs::write(leaf.join("cgroup.procs"), process.to_string()).expect("move the process");
    }
    enable_controllers(group);
    leaf
}

/// Gives the groups below `hierarchy` all the controllers there are.
fn enable_controllers(hierarchy: &Path) {
    let controllers =
        fs::read_to_string(hierarchy.join("cgroup.controllers")).expect("read the controllers");
    for controller in controllers.split_whitespace() {
        let enabled = fs::write(
            hierarchy.join("cgroup.subtree_control"),
            format!("+{controller}"),
        );
        // Inside a container the group may have processes, and then no controllers for those below: a machine without limits.
        if let Err(error) = enabled {
            eprintln!("enable {controller} in {}: {error}", hierarchy.display());
        }
    }
}

/// Removes a group and those below; its processes are dying, so a busy group is waited for.
fn remove_group(group: &Path) {
    let Ok(entries) = fs::read_dir(group) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    super::wait_until(
        &format!("{} to be empty", group.display()),
        || match fs::remove_dir(group) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.to_string()),
        },
    );
}
