//! What the OCI validation suite (opencontainers/runtime-tools) checks and the other test programs do not.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::support::{Case, is_ours, wait};

fn pid(case: &Case) -> i64 {
    case.state()["pid"].as_i64().expect("pid")
}

fn assert_refused(case: &Case, args: &[&str]) {
    let done = case.verb(args);
    assert_eq!(done.code, 1, "{args:?}: {done:?}");
    assert!(!done.err.is_empty(), "{args:?}: without a word");
}

#[test]
fn the_pid_file_holds_the_pid_of_the_state_and_nothing_else() {
    for verb in [&["create"][..], &["run", "--detach"]] {
        let case = Case::new("sleep 1000");
        let file = case.path("pid");
        let flag = ["--pid-file", file.to_str().unwrap(), &case.id];
        let status = case
            .runtime(&[verb, &flag].concat())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{verb:?}");
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text, pid(&case).to_string(), "{verb:?}");
        let done = case.verb(&["kill", &case.id, "KILL"]);
        assert_eq!(done.code, 0, "{verb:?}: {done:?}");
        case.wait_status("stopped");
        assert_eq!(case.verb(&["delete", &case.id]).code, 0);
        case.assert_nothing_left();
    }
}

#[test]
fn an_operation_in_the_wrong_state_is_an_error_and_changes_nothing() {
    let case = Case::new("echo started >> /data/log; sleep 1000");
    let log = || std::fs::read_to_string(case.rootfs().join("data/log")).unwrap_or_default();
    for verb in ["state", "create", "start", "kill", "delete"] {
        assert_refused(&case, &[verb]);
    }
    // There is none.
    for verb in ["state", "start", "kill", "delete"] {
        assert_refused(&case, &[verb, &case.id]);
    }
    // Created.
    assert_eq!(case.create().code, 0);
    let first = pid(&case);
    assert_eq!(log(), "", "the program waits for start");
    if is_ours() {
        assert_refused(&case, &["delete", &case.id]);
    }
    assert_ne!(case.create().code, 0, "the id is taken");
    assert_eq!((case.status().as_str(), pid(&case)), ("created", first));
    // Running.
    assert_eq!(case.verb(&["start", &case.id]).code, 0);
    wait(|| match log().as_str() {
        "started\n" => Ok(()),
        other => Err(other.to_owned()),
    });
    assert_refused(&case, &["start", &case.id]);
    assert_refused(&case, &["delete", &case.id]);
    assert_eq!((case.status().as_str(), pid(&case)), ("running", first));
    // Stopped.
    assert_eq!(case.verb(&["kill", &case.id, "KILL"]).code, 0);
    case.wait_status("stopped");
    assert_refused(&case, &["start", &case.id]);
    assert_refused(&case, &["kill", &case.id, "KILL"]);
    assert_eq!(case.status(), "stopped");
    assert_eq!(log(), "started\n", "once");
    assert_eq!(case.verb(&["delete", &case.id]).code, 0);
    case.assert_nothing_left();
}

#[test]
fn a_created_container_can_be_killed() {
    let case = Case::new("true");
    assert_eq!(case.create().code, 0);
    let done = case.verb(&["kill", &case.id, "KILL"]);
    assert_eq!(done.code, 0, "{done:?}");
    case.wait_status("stopped");
    assert_eq!(case.verb(&["delete", &case.id]).code, 0);
    case.assert_nothing_left();
}

#[test]
fn the_program_gets_the_signal_that_is_sent() {
    let case = Case::new(
        "trap 'echo usr1' USR1; trap 'echo term; exit' TERM; echo ready; while :; do sleep 0.01; done",
    );
    case.start();
    let until = |wanted: &str| {
        wait(|| match case.output() {
            out if out == wanted => Ok(()),
            out => Err(out),
        });
    };
    until("ready\n");
    assert_eq!(case.verb(&["kill", &case.id, "USR1"]).code, 0);
    until("ready\nusr1\n");
    assert_eq!(case.verb(&["kill", &case.id]).code, 0, "TERM by default");
    until("ready\nusr1\nterm\n");
    case.wait_status("stopped");
}

#[test]
fn kill_all_reaches_every_process() {
    let case = Case::new(
        "sh -c 'trap \"echo child\" USR1; echo ready; while :; do sleep 0.01; done' &
         trap 'echo main' USR1; echo ready; while :; do sleep 0.01; done",
    );
    case.start();
    let count = |word: &str| case.output().lines().filter(|line| *line == word).count();
    let until = |what: &dyn Fn() -> bool| {
        wait(|| if what() { Ok(()) } else { Err(case.output()) });
    };
    until(&|| count("ready") == 2);
    assert_eq!(case.verb(&["kill", &case.id, "USR1"]).code, 0);
    until(&|| count("main") == 1);
    assert_eq!(count("child"), 0, "only the first process");
    assert_eq!(case.verb(&["kill", "--all", &case.id, "USR1"]).code, 0);
    until(&|| count("main") == 2 && count("child") == 1);
}

#[test]
fn the_configuration_counts_as_it_was_at_create() {
    let mut case = Case::new("echo first");
    assert_eq!(case.create().code, 0);
    case.config["process"]["args"] = json!(["/bin/echo", "second"]);
    case.config["hooks"] = json!({ "poststart": [{ "path": "/bin/false" }] });
    // Every verb of a case writes its configuration first.
    let done = case.verb(&["start", &case.id]);
    assert_eq!(done.code, 0, "{done:?}");
    case.wait_status("stopped");
    assert_eq!(case.output(), "first\n");
}

#[test]
fn what_nobody_knows_is_no_error_but_a_version_that_is_none_is() {
    let mut case = Case::new("echo ran");
    case.config["unknown"] = json!({ "some": ["thing"] });
    case.config["process"]["unknown"] = json!(true);
    case.config["linux"]["unknown"] = json!("x");
    case.config["annotations"] = json!({ format!("org.{}", case.id): "", "run.oci.unknown": "1" });
    for (other, section) in [
        (
            "solaris",
            json!({ "milestone": "svc:/milestone/container:default" }),
        ),
        ("windows", json!({ "layerFolders": ["C:\\\\layer"] })),
        ("vm", json!({ "kernel": { "path": "/vmlinuz" } })),
        ("zos", json!({})),
        ("freebsd", json!({})),
    ] {
        case.config[other] = section;
    }
    let done = case.run();
    assert_eq!((done.code, done.out.as_str()), (0, "ran\n"), "{done:?}");
    for version in ["invalid", "2.0.0", ""] {
        case.config["ociVersion"] = json!(version);
        let done = case.create();
        assert_ne!(done.code, 0, "{version}: {done:?}");
        assert!(done.err.contains("ersion"), "{version}: {done:?}");
        case.assert_nothing_left();
    }
}

#[test]
fn limits_that_cannot_be_are_refused() {
    let limit =
        |typ: &str, soft: u64, hard: u64| json!({ "type": typ, "soft": soft, "hard": hard });
    let file = "RLIMIT_NOFILE";
    for (list, word) in [
        (json!([limit("RLIMIT_TEST", 1, 1)]), "RLIMIT_TEST"),
        (json!([limit(file, 5, 5), limit(file, 6, 6)]), file),
        (json!([limit(file, 9, 8)]), file),
    ] {
        let mut case = Case::new("true");
        case.config["process"]["rlimits"] = list;
        let done = case.create();
        assert_ne!(done.code, 0, "{word}: {done:?}");
        assert!(done.err.contains(word), "{word}: {done:?}");
        case.assert_nothing_left();
    }
}

/// Appends its name, and what the container's process runs, to `data/log`.
fn hook(case: &Case, name: &str) -> Value {
    let log = case.rootfs().join("data/log");
    let script = format!(
        "state=$(cat); pid=${{state#*\\\"pid\\\":}}; exe=$(readlink /proc/${{pid%%,*}}/exe); echo {name} ${{exe##*/}} >> {}",
        log.display()
    );
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] })
}

#[test]
fn hooks_are_called_one_after_the_other_at_create_start_and_delete() {
    let mut case = Case::new("exec sleep 1000");
    let two = |kind: &str| {
        json!([
            hook(&case, &format!("{kind}1")),
            hook(&case, &format!("{kind}2"))
        ])
    };
    case.config["hooks"] = json!({
        "prestart": two("prestart"), "createRuntime": two("createRuntime"), "createContainer": two("createContainer"),
        "poststart": two("poststart"), "poststop": two("poststop"),
    });
    let log = || {
        let text = std::fs::read_to_string(case.rootfs().join("data/log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let names = || {
        let first = |line: &String| line.split(' ').next().unwrap().to_owned();
        log().iter().map(first).collect::<Vec<_>>()
    };
    let done = case.create();
    assert_eq!(done.code, 0, "{done:?}");
    let mut wanted = vec![
        "prestart1",
        "prestart2",
        "createRuntime1",
        "createRuntime2",
        "createContainer1",
        "createContainer2",
    ];
    assert_eq!(names(), wanted);
    let done = case.verb(&["start", &case.id]);
    assert_eq!(done.code, 0, "{done:?}");
    wanted.extend(["poststart1", "poststart2"]);
    assert_eq!(names(), wanted, "before start returns");
    if is_ours() {
        // After the user's program has been executed.
        assert_eq!(log()[6..], ["poststart1 busybox", "poststart2 busybox"]);
    }
    assert_eq!(case.verb(&["kill", &case.id, "KILL"]).code, 0);
    case.wait_status("stopped");
    assert_eq!(names(), wanted, "nothing before delete");
    assert_eq!(case.verb(&["delete", &case.id]).code, 0);
    wanted.extend(["poststop1", "poststop2"]);
    assert_eq!(names(), wanted);
}

#[test]
fn a_hook_has_the_environment_it_names_and_no_other() {
    let mut case = Case::new("true");
    let out = case.path("env");
    let script = format!("echo $0; /usr/bin/env > {}", out.display());
    case.config["hooks"] = json!({ "createRuntime": [
        { "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["A=first", "B=two=2"] },
    ] });
    let status = case
        .runtime(&["run", &case.id])
        .env("OF_THE_CALLER", "1")
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let text = std::fs::read_to_string(out).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines.contains(&"A=first") && lines.contains(&"B=two=2"),
        "{text}"
    );
    assert!(!text.contains("OF_THE_CALLER"), "{text}");
}

/// A group in every hierarchy, gone at the end.
struct Parent(Vec<PathBuf>);

impl Parent {
    fn new(name: &str) -> Self {
        let roots = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        let roots = roots.map(|entry| entry.path());
        let groups = roots
            .filter(|root| {
                root.is_dir() && !root.is_symlink() && root.join("cgroup.procs").exists()
            })
            .map(|root| root.join(name))
            .collect::<Vec<_>>();
        for group in &groups {
            std::fs::create_dir(group).expect("make a group");
        }
        Self(groups)
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        for group in &self.0 {
            if let Err(error) = std::fs::remove_dir(group) {
                eprintln!("remove {}: {error}", group.display());
            }
        }
    }
}

#[test]
fn delete_leaves_what_create_did_not_make() {
    let mut case = Case::new("sleep 1000");
    let name = format!("{}-parent", case.id);
    let parent = Parent::new(&name);
    assert!(!parent.0.is_empty());
    let source = case.path("source");
    std::fs::create_dir(&source).unwrap();
    case.add_mount(
        json!({ "destination": "/data", "type": "bind", "source": source, "options": ["bind"] }),
    );
    case.linux()["cgroupsPath"] = json!(format!("/{name}/{}", case.id));
    case.start();
    let made = |group: &&PathBuf| group.join(&case.id).is_dir();
    assert!(parent.0.iter().filter(made).count() > 0);
    let done = case.verb(&["delete", "--force", &case.id]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(parent.0.iter().filter(made).count(), 0, "its own are gone");
    assert!(
        parent.0.iter().all(|group| group.is_dir()),
        "the parents stay"
    );
    assert!(source.is_dir());
    assert!(Path::new(&case.rootfs()).is_dir());
    case.assert_nothing_left();
}
