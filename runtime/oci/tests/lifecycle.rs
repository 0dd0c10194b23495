//! The life cycle as seen from the command line: verbs, exit codes, states, and that nothing is left behind.

use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use serde_json::json;

use crate::support::{self, Case, DEADLINE, is_ours, wait};

#[test]
fn run_gives_the_exit_code_and_leaves_nothing() {
    let case = Case::new("echo hello; exit 7");
    let done = case.run();
    assert_eq!((done.code, done.out.as_str()), (7, "hello\n"), "{done:?}");
    case.assert_nothing_left();
}

#[test]
fn run_gives_128_and_the_signal() {
    let case = Case::new("exec sleep 1000");
    let mut run = case.runtime(&["run", &case.id]).spawn().unwrap();
    wait(|| {
        let state = case.verb(&["state", &case.id]);
        if state.out.contains("\"running\"") {
            Ok(())
        } else {
            Err(format!("{state:?}"))
        }
    });
    assert_eq!(case.verb(&["kill", &case.id, "9"]).code, 0);
    assert_eq!(run.wait().unwrap().code(), Some(137));
    case.assert_nothing_left();
}

#[test]
fn a_container_goes_through_its_states() {
    let case = Case::new("sleep 1000");
    let created = case.create();
    assert_eq!(created.code, 0, "{created:?}");
    let state = case.state();
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], json!(case.id));
    let pid = state["pid"].as_i64().expect("pid");
    assert!(std::fs::metadata(format!("/proc/{pid}")).is_ok());
    assert_ne!(case.create().code, 0, "the id is taken");
    assert_eq!(
        case.status(),
        "created",
        "the second create must not harm the first"
    );
    let started = case.verb(&["start", &case.id]);
    assert_eq!(started.code, 0, "{started:?}");
    assert_eq!(case.status(), "running");
    assert_ne!(case.verb(&["start", &case.id]).code, 0, "started already");
    assert_ne!(case.verb(&["delete", &case.id]).code, 0, "it runs");
    assert!(case.verb(&["list", "-q"]).out.contains(&case.id));
    let killed = case.verb(&["kill", &case.id, "KILL"]);
    assert_eq!(killed.code, 0, "{killed:?}");
    case.wait_status("stopped");
    assert_ne!(
        case.verb(&["kill", &case.id, "KILL"]).code,
        0,
        "it is stopped"
    );
    let deleted = case.verb(&["delete", &case.id]);
    assert_eq!(deleted.code, 0, "{deleted:?}");
    assert_ne!(case.verb(&["state", &case.id]).code, 0, "it is gone");
    case.assert_nothing_left();
}

#[test]
fn delete_of_a_created_container_needs_force() {
    let case = Case::new("sleep 1000");
    assert_eq!(case.create().code, 0);
    if is_ours() {
        // Runtime-spec, runtime.md, "Delete": an error unless stopped. runc and crun kill it.
        assert_ne!(case.verb(&["delete", &case.id]).code, 0);
        assert_eq!(case.status(), "created");
    }
    assert_eq!(case.verb(&["delete", "--force", &case.id]).code, 0);
    assert_eq!(
        case.verb(&["delete", "--force", &case.id]).code,
        0,
        "no container, but force"
    );
    case.assert_nothing_left();
}

#[test]
fn exec_runs_in_the_same_namespaces_and_group() {
    let case = Case::new("sleep 1000");
    case.start();
    let done = case.verb(&[
        "exec",
        &case.id,
        "/bin/sh",
        "-c",
        "hostname; ps | grep -c 'sleep 1000'; exit 5",
    ]);
    assert_eq!(done.code, 5, "{done:?}");
    assert!(done.out.starts_with("inside\n"), "{done:?}");
    let groups = case.verb(&["exec", &case.id, "/bin/cat", "/proc/self/cgroup"]);
    assert!(
        groups
            .out
            .lines()
            .any(|line| line.contains("pids") && line.ends_with(&case.id)),
        "{groups:?}"
    );
    let env = case.verb(&[
        "exec",
        "--env",
        "A=b",
        "--cwd",
        "/tmp",
        "--user",
        "7:8",
        &case.id,
        "sh",
        "-c",
        "pwd; echo $A; id",
    ]);
    assert!(env.out.contains("/tmp\nb\nuid=7 gid=8"), "{env:?}");
    let missing = case.verb(&["exec", &case.id, "no-such-program"]);
    assert_ne!(missing.code, 0);
    assert!(missing.err.contains("executable file"), "{missing:?}");
    case.verb(&["delete", "--force", &case.id]);
    case.assert_nothing_left();
}

#[test]
fn exec_takes_a_process_file_and_writes_a_pid_file() {
    let case = Case::new("sleep 1000");
    case.start();
    let process = json!({ "user": { "uid": 3, "gid": 4 }, "cwd": "/", "args": ["/bin/sleep", "500"], "env": ["PATH=/bin"] });
    let (file, pid_file) = (case.path("process.json"), case.path("pid"));
    std::fs::write(&file, process.to_string()).unwrap();
    let mut command = case.runtime(&[
        "exec",
        "--detach",
        "--process",
        file.to_str().unwrap(),
        "--pid-file",
        pid_file.to_str().unwrap(),
        &case.id,
    ]);
    let status = command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(
        status.lines().any(|line| line.starts_with("Uid:\t3\t3")),
        "{status}"
    );
    let listed = case.verb(&["ps", "--format", "json", &case.id]);
    assert!(listed.out.contains(&pid), "{listed:?}");
    case.verb(&["delete", "--force", &case.id]);
    wait(|| {
        if std::fs::metadata(format!("/proc/{pid}/exe")).is_err() {
            Ok(())
        } else {
            Err("exec lives on".into())
        }
    });
    case.assert_nothing_left();
}

#[test]
fn a_missing_command_is_known_at_create_and_leaves_nothing() {
    let case = Case::command(&["no-such-program"]);
    let done = case.create();
    assert_ne!(done.code, 0, "{done:?}");
    assert!(
        done.err.contains("executable file") && done.err.contains("not found in $PATH"),
        "{done:?}"
    );
    case.assert_nothing_left();
    let case = Case::command(&["/etc"]);
    let done = case.run();
    assert_ne!(done.code, 0);
    assert!(
        done.err.contains("permission denied") || done.err.contains("directory"),
        "{done:?}"
    );
    case.assert_nothing_left();
}

#[test]
fn every_failed_create_leaves_nothing() {
    type Spoil = fn(&mut Case);
    let spoilers: [(&str, Spoil); 10] = [
        ("twice", |case| {
            case.linux()["namespaces"]
                .as_array_mut()
                .unwrap()
                .push(json!({ "type": "pid" }))
        }),
        ("no namespace file", |case| {
            case.linux()["namespaces"][0] = json!({ "type": "pid", "path": "/nowhere" })
        }),
        ("wrong namespace", |case| {
            case.linux()["namespaces"][0] = json!({ "type": "pid", "path": "/proc/self/ns/net" });
        }),
        ("no file system", |case| {
            case.add_mount(json!({ "destination": "/data", "type": "nosuchfs", "source": "x" }));
        }),
        ("no source", |case| {
            case.add_mount(
                json!({ "destination": "/data", "source": "/no/such/path", "options": ["bind"] }),
            );
        }),
        ("mount in proc", |case| {
            case.add_mount(
                json!({ "destination": "/proc/self/attr", "source": "/tmp", "options": ["bind"] }),
            );
        }),
        ("no rootfs", |case| {
            case.config["root"]["path"] = json!("nowhere")
        }),
        ("limit refused", |case| {
            case.linux()["resources"]["pids"] = json!({ "limit": 1_i64 << 40 })
        }),
        ("sysctl of the host", |case| {
            case.linux()["sysctl"] = json!({ "kernel.panic": "1" })
        }),
        ("hook", |case| {
            case.config["hooks"] = json!({ "createContainer": [{ "path": "/bin/false" }] });
        }),
    ];
    for (name, spoil) in spoilers {
        let mut case = Case::new("true");
        spoil(&mut case);
        let done = case.create();
        assert_ne!(done.code, 0, "{name}: {done:?}");
        assert!(!done.err.is_empty(), "{name}: without a word");
        case.assert_nothing_left();
    }
}

#[test]
fn pause_and_resume_freeze_and_thaw() {
    let case = Case::new("while :; do echo x; sleep 0.01; done");
    case.start();
    wait(|| {
        if case.output().is_empty() {
            Err("no output".into())
        } else {
            Ok(())
        }
    });
    assert_eq!(case.verb(&["pause", &case.id]).code, 0);
    assert_eq!(case.status(), "paused");
    let before = case.output().len();
    assert_ne!(
        case.verb(&["exec", &case.id, "true"]).code,
        0,
        "it is paused"
    );
    assert_eq!(
        case.output().len(),
        before,
        "a paused container writes nothing"
    );
    assert_eq!(case.verb(&["resume", &case.id]).code, 0);
    assert_eq!(case.status(), "running");
    wait(|| {
        if case.output().len() > before {
            Ok(())
        } else {
            Err("no more output".into())
        }
    });
    assert_eq!(case.verb(&["pause", &case.id]).code, 0);
    assert_eq!(
        case.verb(&["delete", "--force", &case.id]).code,
        0,
        "deleting a paused container"
    );
    case.assert_nothing_left();
}

#[test]
fn hooks_run_in_order_with_the_state() {
    let mut case = Case::new("echo container >> /data/log");
    let log = case.rootfs().join("data/log");
    let hook = |name: &str| {
        let script = format!("cat > /dev/null; echo {name} >> {}", log.display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"], "timeout": 10 }])
    };
    case.config["hooks"] = json!({
        "prestart": hook("prestart"), "createRuntime": hook("createRuntime"), "createContainer": hook("createContainer"),
        "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", "echo startContainer >> /data/log"], "env": ["PATH=/bin"] }],
        "poststop": hook("poststop"),
    });
    let done = case.run();
    assert_eq!(done.code, 0, "{done:?}");
    let lines = std::fs::read_to_string(&log).unwrap();
    let wanted = [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "container",
        "poststop",
    ];
    assert_eq!(lines.lines().collect::<Vec<_>>(), wanted);
    case.assert_nothing_left();
}

#[test]
fn a_terminal_is_sent_to_the_console_socket() {
    let mut case = Case::new("tty; stty size; test -t 0 && echo terminal; ls -l /dev/console");
    case.config["process"]["terminal"] = json!(true);
    case.config["process"]["consoleSize"] = json!({ "height": 33, "width": 77 });
    let socket = case.path("console.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let done = case.verb(&[
        "create",
        "--console-socket",
        socket.to_str().unwrap(),
        &case.id,
    ]);
    assert_eq!(done.code, 0, "{done:?}");
    let (stream, _) = listener.accept().unwrap();
    let master = receive_fd(stream.as_raw_fd());
    assert_eq!(case.verb(&["start", &case.id]).code, 0);
    let mut text = Vec::new();
    let mut file = std::fs::File::from(master);
    let mut buffer = [0; 1024];
    // The end of the last slave is reported as EIO.
    while let Ok(length @ 1..) = file.read(&mut buffer) {
        text.extend_from_slice(&buffer[..length]);
    }
    let text = String::from_utf8_lossy(&text);
    assert!(
        text.contains("/dev/pts/0") && text.contains("33 77") && text.contains("terminal"),
        "{text:?}"
    );
    assert!(text.contains("/dev/console"), "{text:?}");
}

fn receive_fd(socket: i32) -> OwnedFd {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut buffer = [0; 64];
    let mut control = nix::cmsg_space!(i32);
    let mut slices = [std::io::IoSliceMut::new(&mut buffer)];
    let message =
        recvmsg::<()>(socket, &mut slices, Some(&mut control), MsgFlags::empty()).unwrap();
    for part in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(fds) = part {
            #[expect(
                unsafe_code,
                reason = "the descriptor has just been received, and nothing else owns it"
            )]
            // SAFETY: the kernel made the descriptor for this message, and it is taken once.
            return unsafe { OwnedFd::from_raw_fd(fds[0]) };
        }
    }
    panic!("no descriptor within {DEADLINE:?}");
}

#[test]
fn errors_are_logged_as_json_for_the_callers() {
    let case = Case::command(&["no-such-program"]);
    let log = case.path("log.json");
    let mut command = case.runtime(&[]);
    command.args([
        "--log",
        log.to_str().unwrap(),
        "--log-format",
        "json",
        "create",
        &case.id,
    ]);
    assert!(!command.output().unwrap().status.success());
    let text = std::fs::read_to_string(&log).unwrap();
    let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(
        line["msg"].as_str().unwrap().contains("executable file"),
        "{line}"
    );
}

#[test]
fn ids_that_are_paths_are_refused() {
    let case = Case::new("true");
    for id in ["../x", "a/b", ".."] {
        assert_ne!(case.verb(&["create", id]).code, 0, "{id}");
    }
}

#[test]
fn limits_can_be_updated_and_usage_reported() {
    let case = Case::new("sleep 1000");
    case.start();
    let done = case.verb(&[
        "update",
        "--pids-limit",
        "77",
        "--memory",
        "67108864",
        "--cpu-share",
        "300",
        &case.id,
    ]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(support::group_file(&case.id, "pids", "pids.max"), "77");
    assert_eq!(
        support::group_file(&case.id, "memory", "memory.limit_in_bytes"),
        "67108864"
    );
    assert_eq!(support::group_file(&case.id, "cpu", "cpu.shares"), "300");
    let stats = case.verb(&["events", "--stats", &case.id]);
    let event: serde_json::Value = serde_json::from_str(&stats.out).unwrap();
    assert_eq!(event["type"], "stats");
    assert_eq!(event["data"]["pids"]["limit"], 77, "{event}");
    assert_eq!(
        event["data"]["memory"]["usage"]["limit"], 67_108_864,
        "{event}"
    );
}
