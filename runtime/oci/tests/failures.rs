//! Every step of create fails once, or is the last that the runtime does: nothing may be left of it.
//!
//! No list of steps: a tracer (see `inject`) strikes one system call after the other, of the runtime and of the process
//! that it makes, in the order in which they make them.

use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::inject::{self, Blow};
use crate::support::{self, Case, is_ours};

/// As many points as the runtime is killed at, evenly spread; `FAILURE_POINTS` asks for more or fewer.
const POINTS: usize = 40;

/// The configuration that takes most of the steps there are.
fn rich() -> Case {
    let mut case = Case::new("sleep 1000");
    std::fs::create_dir(case.path("source")).unwrap();
    std::fs::create_dir(case.rootfs().join("data/up")).unwrap();
    std::fs::write(case.rootfs().join("data/up/file"), "text").unwrap();
    let source = case.path("source");
    case.add_mount(json!({ "destination": "/data/new/bind", "type": "bind", "source": source, "options": ["rbind", "ro", "rprivate"] }));
    case.add_mount(json!({ "destination": "/data/up", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }));
    case.add_mount(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] }));
    case.config["hooks"] = json!({
        "createRuntime": [{ "path": "/bin/true" }],
        "createContainer": [{ "path": "/bin/true" }],
    });
    case.config["process"]["rlimits"] =
        json!([{ "type": "RLIMIT_NOFILE", "soft": 99, "hard": 100 }]);
    case.config["process"]["oomScoreAdj"] = json!(100);
    case.config["process"]["user"] = json!({ "uid": 5, "gid": 6, "additionalGids": [7] });
    case.config["domainname"] = json!("domain");
    let linux = case.linux();
    for kind in ["cgroup", "time"] {
        linux["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "type": kind }));
    }
    linux["timeOffsets"] = json!({ "boottime": { "secs": 5, "nanosecs": 1 } });
    linux["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    linux["devices"] =
        json!([{ "path": "/dev/given", "type": "c", "major": 1, "minor": 3, "uid": 5, "gid": 6 }]);
    linux["resources"]["memory"] = json!({ "limit": 64 << 20 });
    linux["resources"]["pids"] = json!({ "limit": 55 });
    linux["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }],
    });
    case
}

fn with_user_namespace() -> Case {
    let mut case = Case::new("sleep 1000");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(case.path(""), mode).unwrap();
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    let linux = case.linux();
    linux["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "user" }));
    linux["uidMappings"] = map.clone();
    linux["gidMappings"] = map;
    case
}

fn create(case: &Case) -> Command {
    case.runtime(&["create", &case.id])
}

fn asked(name: &str) -> Option<usize> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// Strikes `case`'s create at every call with an error, and looks for what is left. `FAILURE_ERROR` is another errno.
fn fail_everywhere(case: &Case) {
    let errno = asked("FAILURE_ERROR").map_or(libc::EIO, |errno| errno as i32);
    let whole = inject::run(&create(case), None, Blow::Error(errno));
    assert_eq!((whole.code, whole.left.len()), (0, 1), "{whole:?}");
    forget(case);
    let (mut failed, mut survived) = (0, Vec::new());
    // To the end: until a run makes no call any more that is left to strike.
    for point in 0.. {
        // The same id each time: what is left of the last one would be in the way.
        let outcome = inject::run(&create(case), Some(point), Blow::Error(errno));
        if outcome.failed.is_none() {
            assert_eq!((outcome.code, outcome.left.len()), (0, 1), "{outcome:?}");
            forget(case);
            break;
        }
        if outcome.code == 0 {
            // The call was not needed: then the container must be whole.
            // What fails in its wait for start comes after create, and ends it.
            let waiting = outcome.failed == Some(libc::SYS_poll);
            let status = case.status();
            assert!(status == "created" || waiting, "{status} after {outcome:?}");
            survived.push(outcome.failed);
            forget(case);
        } else {
            failed += 1;
            assert!(outcome.left.is_empty(), "processes are left: {outcome:?}");
            nothing_left(case, &outcome);
            anew(case);
        }
    }
    println!(
        "{} calls: {failed} points failed, survived: {survived:?}",
        whole.calls
    );
    // The number of calls varies a little.
    let struck = failed + survived.len();
    assert!(struck + 10 > whole.calls, "{struck} of {}", whole.calls);
    assert!(
        failed >= survived.len(),
        "failed {failed}, survived {survived:?}"
    );
    case.start();
    forget(case);
}

/// Every create is the first one: without a state directory, a compiled filter, and places for the mounts.
fn anew(case: &Case) {
    for made in [case.path("state"), case.rootfs().join("data/new")] {
        match std::fs::remove_dir_all(made) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
    }
}

fn forget(case: &Case) {
    let done = case.verb(&["delete", "--force", &case.id]);
    assert_eq!(done.code, 0, "{done:?}");
    case.assert_nothing_left();
    anew(case);
}

/// At once, without waiting: the runtime's exit says that it is done.
fn nothing_left(case: &Case, outcome: &inject::Outcome) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let state = case.path("state").join(&case.id);
    assert!(
        case.groups().is_empty()
            && !mounts.contains(case.path("").to_str().unwrap())
            && !state.exists(),
        "groups {:?}, state {}, after {outcome:?}",
        case.groups(),
        state.exists()
    );
}

#[test]
fn a_failure_at_any_step_of_create_leaves_nothing() {
    fail_everywhere(&rich());
}

#[test]
fn a_failure_at_any_step_in_a_user_namespace_leaves_nothing() {
    fail_everywhere(&with_user_namespace());
}

#[test]
fn a_runtime_killed_at_any_step_leaves_nothing_that_delete_cannot_remove() {
    if !is_ours() {
        return;
    }
    let case = rich();
    let whole = inject::run(&create(&case), None, Blow::Kill);
    forget(&case);
    let tried = whole.calls.min(asked("FAILURE_POINTS").unwrap_or(POINTS));
    for point in (0..tried).map(|index| index * whole.calls / tried) {
        let outcome = inject::run(&create(&case), Some(point), Blow::Kill);
        // The number of calls varies a little: the last points may not be reached.
        assert!(
            outcome.code == 128 + 9 || outcome.failed.is_none(),
            "{outcome:?}"
        );
        let mut delete = case.runtime(&["delete", "--force", &case.id]);
        let done = delete.stdin(Stdio::null()).output().unwrap();
        assert!(done.status.success(), "{outcome:?}: {done:?}");
        nothing_left(&case, &outcome);
        for pid in &outcome.left {
            support::wait(|| match nix::sys::signal::kill(*pid, None) {
                Err(nix::Error::ESRCH) => Ok(()),
                alive => Err(format!(
                    "process {pid} is left ({alive:?}) after {outcome:?}"
                )),
            });
        }
        anew(&case);
    }
}
