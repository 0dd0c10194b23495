//! Limits that are seen to bite, asked for through Podman: with cgroup v1 as with v2.

use std::process::Command;

use super::podman::Podman;
use super::{finish, is_ours, is_v2, limit_file};

/// `podman run --rm` of a shell script, with its output.
fn run(podman: &Podman, flags: &[&str], script: &str) -> String {
    let fixed = ["run", "--rm"];
    let command = ["localhost/box", "sh", "-c", script];
    podman.ok(&[&fixed[..], flags, &command[..]].concat())
}

/// The number after `key` in the output.
fn count(output: &str, key: &str) -> u64 {
    let words: Vec<&str> = output.split_whitespace().collect();
    let pair = words.windows(2).find(|pair| pair[0] == key);
    let pair = pair.unwrap_or_else(|| panic!("no {key} in {output}"));
    pair[1].parse().expect("a number")
}

#[test]
fn memory_beyond_the_limit_ends_the_container() {
    let podman = Podman::start("limit-memory");
    let flags = ["--memory", "32m", "--memory-swap", "32m"];
    let command = ["localhost/box", "tail", "/dev/zero"];
    // Not Podman's word OOMKilled: conmon does not see the event from inside a simulated machine, whatever the runtime.
    let killed = podman.run(&[&["run", "--rm"], &flags[..], &command[..]].concat());
    assert_eq!(killed.code, 137, "{killed:?}");
    // The shell is small and lives on to tell.
    let file = limit_file("memory/memory.oom_control", "memory.events");
    let script = format!("tail /dev/zero; echo ended $?; cat /sys/fs/cgroup/{file}");
    let seen = run(&podman, &flags, &script);
    assert_eq!(count(&seen, "ended"), 137, "{seen}");
    assert_eq!(count(&seen, "oom_kill"), 1, "{seen}");
}

#[test]
fn a_process_beyond_the_limit_is_not_forked() {
    let podman = Podman::start("limit-pids");
    let file = limit_file("pids/pids.events", "pids.events");
    // The subshell ends with the fork that fails. Without a free number only what the shell does itself can look.
    let script = format!(
        "(i=0; while [ $i -lt 40 ]; do sleep 600 & i=$((i+1)); done) 2>&1
         while read -r line; do echo \"$line\"; done < /sys/fs/cgroup/{file}"
    );
    let seen = run(&podman, &["--pids-limit", "20"], &script);
    assert!(seen.contains("can't fork"), "{seen}");
    assert!(count(&seen, "max") > 0, "{seen}");
}

#[test]
fn more_processor_time_than_the_limit_is_throttled() {
    let podman = Podman::start("limit-cpu");
    let file = limit_file("cpu/cpu.stat", "cpu.stat");
    let key = limit_file("throttled_time", "throttled_usec");
    // Each look takes some of its time.
    let script = format!(
        "cd /sys/fs/cgroup; i=0; until grep -q '^{key} [1-9]' {file} || [ $i = 2000 ]; do i=$((i+1)); done; cat {file}"
    );
    let seen = run(&podman, &["--cpus", "0.1"], &script);
    assert!(count(&seen, "nr_throttled") > 0, "{seen}");
    assert!(count(&seen, key) > 0, "{seen}");
}

#[test]
fn every_other_limit_is_in_the_container_s_group() {
    let podman = Podman::start("limit-all");
    let allowed = "grep Cpus_allowed_list /proc/self/status | tail -c 2";
    assert_eq!(run(&podman, &["--cpuset-cpus", "0"], allowed), "0");
    let flags = [
        "--memory",
        "32m",
        "--memory-swap",
        "48m",
        "--memory-reservation",
        "16m",
        "--cpu-shares",
        "512",
        "--cpu-period",
        "50000",
        "--cpu-quota",
        "20000",
        "--cpuset-mems",
        "0",
    ];
    let files = limit_file(
        "memory/memory.limit_in_bytes memory/memory.memsw.limit_in_bytes memory/memory.soft_limit_in_bytes \
         cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpuset/cpuset.mems cpu/cpu.shares",
        "memory.max memory.swap.max memory.low cpu.max cpuset.mems cpu.weight",
    );
    let seen = run(&podman, &flags, &format!("cd /sys/fs/cgroup; cat {files}"));
    let words: Vec<&str> = seen.split_whitespace().collect();
    let (swap, weight) = if is_v2() {
        // Swap alone; and the curve that leaves 1024 shares at the usual 100, where others draw a line.
        ("16777216", if is_ours() { "59" } else { words[6] })
    } else {
        ("50331648", "512")
    };
    let wanted = ["33554432", swap, "16777216", "20000", "50000", "0", weight];
    assert_eq!(words, wanted);
    if is_v2() {
        let conf = ["--cgroup-conf", "memory.high=25165824"];
        let seen = run(&podman, &conf, "cat /sys/fs/cgroup/memory.high");
        assert_eq!(seen, "25165824");
    }
}

/// A disk to write to.
struct Disk {
    path: String,
    /// What a loop device of our own is on.
    file: Option<tempfile::NamedTempFile>,
}

impl Disk {
    /// The one that `CALLERS_DISK` names, as the virtual machine has one to spare; else a loop device.
    fn find() -> Self {
        if let Ok(path) = std::env::var("CALLERS_DISK") {
            return Self { path, file: None };
        }
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(64 << 20).expect("make it long");
        let mut command = Command::new("losetup");
        let made = finish(command.args(["--find", "--show"]).arg(file.path()));
        Self {
            path: made.ok(&["losetup"]).trim().to_owned(),
            file: Some(file),
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.file.is_some() {
            let done = finish(Command::new("losetup").args(["--detach", &self.path]));
            if done.code != 0 {
                eprintln!("detach {}: {done:?}", self.path);
            }
        }
    }
}

#[test]
fn writing_to_a_disk_is_as_slow_as_the_limit_says() {
    const SIZE: u64 = 4 << 20;
    let device = Disk::find();
    let disk = &device.path;
    let podman = Podman::start("limit-io");
    let files = limit_file(
        "blkio/blkio.throttle.write_bps_device blkio/blkio.throttle.io_service_bytes",
        "io.max io.stat",
    );
    let write = format!(
        "read -r begin idle < /proc/uptime
         dd if=/dev/zero of={disk} oflag=direct bs=65536 count={} 2>/dev/null || exit 9
         read -r end idle < /proc/uptime
         echo begin $begin end $end; cd /sys/fs/cgroup; cat {files}",
        SIZE / 65536
    );
    let seconds = |output: &str| {
        let words: Vec<&str> = output.split_whitespace().collect();
        let second = |at: usize| words[at].parse::<f64>().expect("seconds");
        second(3) - second(1)
    };
    let free = run(&podman, &["--device", disk], &write);
    let rate = format!("{disk}:1mb");
    let flags = ["--device", disk, "--device-write-bps", &rate];
    let held = run(&podman, &flags, &write);
    assert!(held.contains("1048576"), "{held}");
    assert!(held.contains(&SIZE.to_string()), "{held}");
    // Four seconds of writing, less what the kernel lets through at once.
    assert!(seconds(&held) > 2.5, "{held}");
    assert!(seconds(&free) < seconds(&held) / 2.0, "{free}, then {held}");
}
