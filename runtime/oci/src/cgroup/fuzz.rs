//! What the fuzzer calls of control groups: everything between a text and a write, and nothing that touches a file.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;

use super::group::relative;
use super::layout::Layout;
use super::members::processes_in;
use super::systemd::{self, Unit};
use super::{CgroupError, Write1, devices, events, ignored, merge, stats, to_write};
use super::{v1, v2};

/// From limits to writes, at creation and at an update.
pub(crate) fn resources(old: &LinuxResources, new: &LinuxResources) {
    for unified in [false, true] {
        ignored(new, unified);
        systemd::limits(new, unified);
    }
    let merged = merge(old, new).expect("two sets of limits make one");
    assert_eq!(
        merge(&merged, new).expect("again"),
        merged,
        "the same update twice is the same as once"
    );
    let written = to_write(old, new).expect("two sets of limits make one");
    for resources in [new, &merged, &written] {
        for current in [None, Some(0), Some(i64::MAX)] {
            check(v1::plan(resources, &|_| current));
        }
        check(v2::plan(resources));
        devices::program(resources.devices().as_deref().unwrap_or_default());
    }
}

/// No name of a file leads out of the group.
fn check(plan: Result<Vec<Write1>, CgroupError>) {
    for write in plan.into_iter().flatten() {
        let otherwise = write.otherwise.iter().map(|(file, _)| file);
        for file in std::iter::once(&write.file).chain(otherwise) {
            assert!(!file.contains('/'), "{file:?}");
        }
    }
}

/// Where a group is: what `cgroupsPath` says, for both ways of making one.
pub(crate) fn path(text: &str, resources: &LinuxResources, annotations: &BTreeMap<String, String>) {
    let stays_below = |path: &Path| {
        let mut parts = path.components();
        assert!(
            parts.all(|part| matches!(part, Component::Normal(_) | Component::RootDir)),
            "{path:?}"
        );
    };
    if let Ok(path) = relative(Path::new(text)) {
        assert!(path.is_relative(), "{path:?}");
        stays_below(&path);
    }
    for (unified, user) in [(false, false), (true, true)] {
        if let Ok(unit) = Unit::new("id", text, resources, annotations, unified, user) {
            let group = unit.group(Path::new("/manager"));
            assert!(group.starts_with("/manager"), "{group:?}");
            stays_below(&group);
        }
    }
}

/// `/proc/self/mountinfo`.
pub(crate) fn mountinfo(text: &str) {
    let layout = Layout::parse(text);
    // Written as the kernel would, it is read as the same.
    let mut again = String::new();
    let mut line = |root: &Path, rest: &str| {
        again.push_str("1 2 0:3 / ");
        for byte in root.as_os_str().as_bytes() {
            if byte.is_ascii_graphic() && *byte != b'\\' {
                again.push(char::from(*byte));
            } else {
                write!(again, "\\{byte:03o}").expect("a string takes all");
            }
        }
        again.push_str(rest);
        again.push('\n');
    };
    if let Some(root) = layout.unified_root() {
        line(root, " rw - cgroup2 cgroup2 rw");
    }
    for (controller, root) in layout.hierarchies().filter(|(name, _)| !name.is_empty()) {
        line(root, &format!(" rw - cgroup cgroup {controller},rw"));
    }
    assert_eq!(Layout::parse(&again), layout, "{again}");
}

/// The files of a group, each after a line `== name`, as either version's.
pub(crate) fn files(text: &str) {
    let mut files: HashMap<&str, String> = HashMap::new();
    let mut name = "";
    for line in text.split_inclusive('\n') {
        match line.strip_prefix("== ") {
            Some(next) => name = next.trim_end(),
            None => files.entry(name).or_default().push_str(line),
        }
    }
    let read = |_: &str, file: &str| files.get(file).cloned();
    let unified = stats::unified(&read);
    let legacy = stats::legacy(&read);
    for stats in [unified, legacy] {
        assert!(stats.memory.working_set <= stats.memory.usage);
    }
    for (name, file) in [
        ("memory.events", unified.memory.oom_kills),
        ("memory.oom_control", legacy.memory.oom_kills),
    ] {
        let text = files.get(name).map_or("", String::as_str);
        assert_eq!(events::kills(text), file, "two readers, one number");
    }
    let processes = files.get("cgroup.procs").map_or("", String::as_str);
    // A number that is no process's must not become a group of processes, or all, for kill(2).
    let pids: Vec<Pid> = processes_in(processes).collect();
    assert!(pids.iter().all(|pid| pid.as_raw() > 0), "{pids:?}");
}
