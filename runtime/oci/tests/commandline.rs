//! The command line as runc's callers know it. `OCI_RUNTIME` names another runtime for the same cases.

use std::io::{BufRead, BufReader, IoSliceMut};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

use crate::support::{Case, group_file, is_ours, wait};

const SLEEP: &[&str] = &["/bin/sleep", "600"];

/// Makes the group `name` below that of a container, in each hierarchy.
fn group_below(case: &Case, name: &str) {
    for group in case.groups() {
        std::fs::create_dir(group.join(name)).expect("create a group");
        if group.starts_with("/sys/fs/cgroup/cpuset") {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let value = std::fs::read_to_string(group.join(file)).expect("read");
                std::fs::write(group.join(name).join(file), value).expect("write");
            }
        }
    }
}

#[test]
fn version_and_features_are_in_the_form_that_callers_parse() {
    let case = Case::command(SLEEP);
    for flag in ["--version", "-v"] {
        let done = case.verb(&[flag]);
        assert_eq!(done.code, 0, "{done:?}");
        let mut lines = done.out.lines();
        let first: Vec<&str> = lines.next().expect("a line").split(' ').collect();
        assert_eq!(first[1], "version", "{done:?}");
        assert!(lines.any(|line| line.starts_with("spec: 1.")), "{done:?}");
    }
    if !is_ours() {
        return;
    }
    let done = case.verb(&["features"]);
    let features: Value = serde_json::from_str(&done.out).expect("JSON");
    assert_eq!(features["ociVersionMax"], "1.3.0");
    assert!(
        features["linux"]["namespaces"]
            .as_array()
            .expect("list")
            .contains(&json!("time"))
    );
    let hooks = features["hooks"].as_array().expect("list");
    assert_eq!(hooks.len(), 6, "{hooks:?}");
    let checkpoint = &features["annotations"]["org.opencontainers.runc.checkpoint.enabled"];
    assert_eq!(checkpoint, "true");
}

#[test]
fn a_wrong_command_line_is_1_and_a_failed_exec_255() {
    let case = Case::command(SLEEP);
    for wrong in [
        &["start"][..],
        &["no-such-verb"],
        &["delete", "--no-such-flag", "x"],
        &["start", "nobody"],
    ] {
        let done = case.verb(wrong);
        assert_eq!(done.code, 1, "{wrong:?}: {done:?}");
        assert!(!done.err.is_empty() || !is_ours(), "{wrong:?}");
    }
    assert_eq!(case.verb(&["--help"]).code, 0);
    assert_ne!(case.verb(&["exec", "nobody", "true"]).code, 0);
    case.start();
    assert_eq!(case.verb(&["exec", &case.id, "/bin/nowhere"]).code, 255);
    assert_eq!(case.verb(&["kill", &case.id, "NOSUCHSIGNAL"]).code, 1);
}

#[test]
fn a_wrong_command_line_is_in_the_log_of_the_caller() {
    let case = Case::command(SLEEP);
    let log = case.path("log.json");
    let told = |args: &[&str]| {
        let _gone = std::fs::remove_file(&log);
        let flags = ["--log", log.to_str().unwrap(), "--log-format", "json"];
        let done = case.verb(&[&flags[..], args].concat());
        assert_eq!(done.code, 1, "{args:?}: {done:?}");
        assert!(!done.err.is_empty(), "{args:?}");
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 1, "{args:?}: {text}");
        assert_eq!(lines[0]["level"], "error");
        lines[0]["msg"].as_str().unwrap().to_owned()
    };
    // An unknown flag, a missing id, a value that is none, and an id that is none.
    let unknown = told(&["create", "--no-such-flag", &case.id]);
    assert!(unknown.contains("no-such-flag"), "{unknown}");
    let missing = told(&["start"]);
    if is_ours() {
        assert!(
            missing.contains("required") && missing.contains("<ID>"),
            "{missing}"
        );
        let value = told(&["update", "--pids-limit", "many", &case.id]);
        assert!(value.contains("many"), "{value}");
        let id = told(&["state", "../x"]);
        assert!(id.contains("../x") && !id.contains("For more"), "{id}");
    }
    // What is asked for is no error; and flags before the verb that are wrong say nothing of a log.
    let _gone = std::fs::remove_file(&log);
    let flags = ["--log", log.to_str().unwrap()];
    assert_eq!(
        case.verb(&[&flags[..], &["run", "--help"]].concat()).code,
        0
    );
    let done = case.verb(&[&flags[..], &["--no-such-flag", "state", "x"]].concat());
    assert_eq!(done.code, 1, "{done:?}");
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    assert_eq!(text, "");
}

#[test]
fn containerd_can_tell_that_a_container_is_gone() {
    let case = Case::command(SLEEP);
    let gone = case.verb(&["delete", &case.id]);
    assert_eq!(gone.code, 1);
    assert!(gone.err.contains("does not exist"), "{gone:?}");
    assert_eq!(
        case.verb(&["delete", "--force", &case.id]).code,
        0,
        "force wants no container"
    );
    case.start();
    assert_eq!(case.verb(&["kill", &case.id, "KILL"]).code, 0);
    case.wait_status("stopped");
    let stopped = case.verb(&["kill", &case.id, "TERM"]);
    assert_eq!(stopped.code, 1);
    if is_ours() {
        // containerd's shim looks for these words (pkg/process/utils.go, checkKillError).
        assert!(gone.err.contains("container does not exist"), "{gone:?}");
        assert!(stopped.err.contains("container not running"), "{stopped:?}");
    }
    assert_eq!(case.verb(&["delete", &case.id]).code, 0);
    case.assert_nothing_left();
}

#[test]
fn list_and_ps_print_tables_and_json() {
    let case = Case::command(SLEEP);
    case.start();
    let pid = case.state()["pid"].as_i64().expect("pid");
    assert_eq!(case.verb(&["list", "-q"]).out.trim(), case.id);
    let table = case.verb(&["list"]).out;
    let line = table.lines().nth(1).expect("a line");
    for part in [&case.id, &pid.to_string(), "running"] {
        assert!(line.contains(part), "{table}");
    }
    let list: Value = serde_json::from_str(&case.verb(&["list", "-f", "json"]).out).expect("JSON");
    assert_eq!(list[0]["id"], case.id.as_str());
    assert_eq!(list[0]["pid"], pid);

    let ps = case.verb(&["ps", "-f", "json", &case.id]);
    assert_eq!(
        serde_json::from_str::<Value>(&ps.out).expect("JSON"),
        json!([pid])
    );
    let ps = case.verb(&["ps", &case.id]).out;
    assert!(
        ps.lines().next().expect("title").contains("PID") || !is_ours(),
        "{ps}"
    );
    assert!(ps.contains(&pid.to_string()), "{ps}");
    if is_ours() {
        let ps = case.verb(&["ps", &case.id, "-e", "-o", "pid,comm"]).out;
        let words: Vec<&str> = ps.split_whitespace().collect();
        assert_eq!(words, ["PID", "COMMAND", &pid.to_string(), "sleep"]);
        assert_eq!(case.verb(&["ps", &case.id, "--no-such-option"]).code, 1);
    }
}

#[test]
fn exec_takes_every_flag_for_the_process() {
    let case = Case::command(SLEEP);
    case.start();
    let exec = |flags: &[&str], script: &str| {
        let all = [&["exec"][..], flags, &[&case.id, "/bin/sh", "-c", script]].concat();
        let done = case.verb(&all);
        assert_eq!(done.code, 0, "{flags:?}: {done:?}");
        done.out.trim().to_owned()
    };
    assert_eq!(exec(&["--cwd", "/tmp"], "pwd"), "/tmp");
    assert_eq!(exec(&["--no-subreaper"], "pwd"), "/");
    assert_eq!(exec(&["--env", "A=b", "-e", "C=d"], "echo $A$C"), "bd");
    assert_eq!(exec(&["--user", "7:8"], "id -u; id -g"), "7\n8");
    assert_eq!(
        exec(&["-u", "7", "-g", "9", "--additional-gids", "11"], "id -G").replace("0 ", ""),
        "9 11"
    );
    assert!(exec(&["--tty"], "tty").contains("/dev/pts/"));
    let caps = exec(&["--cap", "CAP_SYS_ADMIN"], "grep CapEff /proc/self/status");
    let mask = u64::from_str_radix(caps.rsplit('\t').next().expect("a mask"), 16).expect("hex");
    assert_ne!(mask & (1 << 21), 0, "{caps}");
    assert!(exec(&["--no-new-privs"], "grep NoNewPrivs /proc/self/status").ends_with('1'));
    // Without AppArmor and SELinux in the kernel both are refused, but known.
    for flag in ["--apparmor", "--process-label"] {
        let done = case.verb(&["exec", flag, "none", &case.id, "true"]);
        assert!(!done.err.contains("unexpected argument"), "{done:?}");
    }
}

#[test]
fn exec_passes_descriptors_on() {
    let case = Case::command(SLEEP);
    case.start();
    let given = case.path("given");
    std::fs::write(&given, "from outside").expect("write");
    let command = case.runtime(&[
        "exec",
        "--preserve-fds",
        "1",
        &case.id,
        "/bin/cat",
        "/proc/self/fd/3",
    ]);
    let done = std::process::Command::new("sh")
        .args(["-c", "exec 3<\"$0\"; exec \"$@\""])
        .arg(&given)
        .arg(command.get_program())
        .args(command.get_args())
        .output()
        .expect("run sh");
    assert_eq!(
        String::from_utf8_lossy(&done.stdout),
        "from outside",
        "{done:?}"
    );
}

#[test]
fn exec_enters_a_group_below_the_containers() {
    let case = Case::command(SLEEP);
    case.start();
    group_below(&case, "below");
    let groups = |flag: &str| {
        let done = case.verb(&[
            "exec",
            "--cgroup",
            flag,
            &case.id,
            "/bin/cat",
            "/proc/self/cgroup",
        ]);
        assert_eq!(done.code, 0, "{flag}: {done:?}");
        done.out
    };
    let of = |text: &str, controller: &str| {
        let line = text
            .lines()
            .find(|line| line.split(':').nth(1) == Some(controller));
        line.expect("the controller").to_owned()
    };
    if is_ours() {
        let seen = groups("below");
        assert!(of(&seen, "pids").ends_with("/below"), "{seen}");
        assert!(of(&seen, "memory").ends_with("/below"), "{seen}");
    }
    let seen = groups("pids:below");
    assert!(of(&seen, "pids").ends_with("/below"), "{seen}");
    assert!(!of(&seen, "memory").ends_with("/below"), "{seen}");
    for bad in ["nowhere", "../..", "pids:/..", "nosuch:below", ":below"] {
        let done = case.verb(&["exec", "--cgroup", bad, &case.id, "true"]);
        assert_ne!(done.code, 0, "{bad}: {done:?}");
    }
    assert_eq!(case.verb(&["delete", "-f", &case.id]).code, 0);
    case.assert_nothing_left();
}

#[test]
fn exec_in_a_paused_container_waits_only_if_that_is_wanted() {
    let case = Case::command(SLEEP);
    case.start();
    assert_eq!(case.verb(&["pause", &case.id]).code, 0);
    let refused = case.verb(&["exec", &case.id, "true"]);
    assert_eq!(refused.code, 255, "{refused:?}");
    assert!(refused.err.contains("paused"), "{refused:?}");
    let mut waiting = case
        .runtime(&["exec", "--ignore-paused", &case.id, "/bin/echo", "resumed"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("start");
    wait(|| {
        let tasks = group_file(&case.id, "freezer", "cgroup.procs");
        if tasks.lines().count() == 2 {
            Ok(())
        } else {
            Err(tasks)
        }
    });
    assert!(waiting.try_wait().expect("ask").is_none(), "it waits");
    assert_eq!(case.verb(&["resume", &case.id]).code, 0);
    let done = waiting.wait_with_output().expect("wait");
    assert_eq!(String::from_utf8_lossy(&done.stdout), "resumed\n");
}

/// The text and the descriptor that come to a socket.
fn receive(listener: &UnixListener) -> (String, OwnedFd) {
    use std::os::fd::AsRawFd;
    let (stream, _) = listener.accept().expect("accept");
    let mut text = [0; 64];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut slices = [IoSliceMut::new(&mut text)];
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut slices,
        Some(&mut space),
        MsgFlags::empty(),
    )
    .expect("receive");
    let length = message.bytes;
    let fd = message
        .cmsgs()
        .expect("control messages")
        .find_map(|control| match control {
            ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
            _ => None,
        });
    // SAFETY: the kernel has just made it for us.
    #[expect(unsafe_code, reason = "a descriptor comes as a number")]
    let fd = unsafe { OwnedFd::from_raw_fd(fd.expect("a descriptor")) };
    (String::from_utf8_lossy(&text[..length]).into_owned(), fd)
}

#[test]
fn a_descriptor_of_the_process_is_sent_to_the_pidfd_socket() {
    if !is_ours() {
        return; // runc has it since 1.2.
    }
    let case = Case::command(SLEEP);
    let path = case.path("pidfd.sock");
    let listener = UnixListener::bind(&path).expect("bind");
    let socket = path.to_str().expect("path");
    // The container keeps what it is given as standard output.
    let created = case
        .runtime(&["run", "--detach", "--pidfd-socket", socket, &case.id])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("run");
    assert!(created.success(), "{created}");
    let (text, pidfd) = receive(&listener);
    assert_eq!(text, "standard");
    use std::os::fd::AsRawFd;
    let info = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let info = std::fs::read_to_string(info).expect("fdinfo");
    let pid = format!("Pid:\t{}", case.state()["pid"]);
    assert!(info.contains(&pid), "{info}, not {pid}");
    let done = case.verb(&["exec", "--pidfd-socket", socket, &case.id, "true"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(receive(&listener).0, "setns");
}

#[test]
fn update_takes_flags_with_units_and_a_document_from_standard_input() {
    let case = Case::command(SLEEP);
    case.start();
    let ok = |args: &[&str]| {
        let done = case.verb(&[&["update"][..], args, &[&case.id]].concat());
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
    };
    ok(&["--memory", "64m", "--memory-reservation", "32M"]);
    assert_eq!(
        group_file(&case.id, "memory", "memory.limit_in_bytes"),
        "67108864"
    );
    assert_eq!(
        group_file(&case.id, "memory", "memory.soft_limit_in_bytes"),
        "33554432"
    );
    ok(&[
        "--pids-limit",
        "99",
        "--cpu-share",
        "512",
        "--cpu-period",
        "50000",
        "--cpu-quota",
        "25000",
    ]);
    assert_eq!(group_file(&case.id, "pids", "pids.max"), "99");
    assert_eq!(group_file(&case.id, "cpu", "cpu.shares"), "512");
    assert_eq!(group_file(&case.id, "cpu", "cpu.cfs_quota_us"), "25000");
    ok(&["--cpuset-cpus", "0", "--cpuset-mems", "0"]);
    assert_eq!(group_file(&case.id, "cpuset", "cpuset.cpus"), "0");
    ok(&["--memory", "-1"]);

    let text = case.path("resources.json");
    std::fs::write(&text, r#"{ "pids": { "limit": 77 } }"#).expect("write");
    let file = std::fs::File::open(&text).expect("open");
    let status = case
        .runtime(&["update", "-r", "-", &case.id])
        .stdin(file)
        .status()
        .expect("run");
    assert!(status.success());
    assert_eq!(group_file(&case.id, "pids", "pids.max"), "77");
    ok(&["--kernel-memory", "1000000"]);
    let done = case.verb(&["update", "--memory", "much", &case.id]);
    assert_ne!(done.code, 0, "{done:?}");
}

#[test]
fn events_stream_numbers_and_the_lack_of_memory() {
    // Whom the kernel kills is said: the container's first process stays, to be killed by us.
    let mut case = Case::new(
        "while [ ! -e /go ]; do sleep 0.1; done; \
         head -c 50m /dev/zero | (echo 1000 >/proc/self/oom_score_adj; exec tail); sleep 600",
    );
    case.linux()["resources"]["memory"] = json!({ "limit": 16 << 20, "swap": 16 << 20 });
    case.start();
    let stats = case.verb(&["events", "--stats", &case.id]);
    let stats: Value = serde_json::from_str(&stats.out).expect("JSON");
    assert_eq!(stats["type"], "stats");
    assert_eq!(stats["data"]["memory"]["usage"]["limit"], 16 << 20);
    let mut events = case
        .runtime(&["events", "--interval", "100ms", &case.id])
        .stdout(Stdio::piped())
        .spawn()
        .expect("start");
    let out = BufReader::new(events.stdout.take().expect("a pipe"));
    let mut seen = Vec::new();
    for line in out.lines() {
        let event: Value = serde_json::from_str(&line.expect("read")).expect("JSON");
        if event["type"] == "stats" && seen.is_empty() {
            std::fs::write(case.rootfs().join("go"), "").expect("write");
        }
        seen.push(event["type"].as_str().expect("type").to_owned());
        if event["type"] == "oom" {
            assert_eq!(case.verb(&["kill", &case.id, "KILL"]).code, 0);
            break;
        }
    }
    assert_eq!(seen.last().map(String::as_str), Some("oom"), "{seen:?}");
    // It ends with the container.
    wait(|| match events.try_wait().expect("ask") {
        Some(_) => Ok(()),
        None => Err("events goes on after the container's end".into()),
    });
    case.wait_status("stopped");
    assert_eq!(case.verb(&["events", "--stats", &case.id]).code, 1);
}

#[test]
fn spec_writes_an_example_that_runs() {
    for rootless in [false, true] {
        let case = Case::command(SLEEP);
        let bundle = case.path("example");
        std::fs::create_dir(&bundle).expect("bundle");
        std::os::unix::fs::symlink(case.rootfs(), bundle.join("rootfs")).expect("rootfs");
        let path = bundle.to_str().expect("path");
        let mut args = vec!["spec", "--bundle", path];
        args.extend(rootless.then_some("--rootless"));
        assert_eq!(case.verb(&args).code, 0);
        assert_eq!(case.verb(&args).code, 1, "never over one that is there");
        let file = bundle.join("config.json");
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(&file).expect("read")).expect("JSON");
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/bin/echo", "hello"]);
        config["linux"]["cgroupsPath"] = json!(format!("/{}", case.id));
        if !rootless {
            std::fs::write(&file, config.to_string()).expect("write");
            let done = case.verb(&["run", "--bundle", path, &case.id]);
            assert_eq!((done.code, done.out.as_str()), (0, "hello\n"), "{done:?}");
        } else {
            assert_eq!(config["linux"]["uidMappings"][0]["size"], 1);
        }
    }
}

#[test]
fn the_log_has_debug_lines_on_request_and_both_formats() {
    let case = Case::command(&["/bin/true"]);
    let log = case.path("log");
    let path = log.to_str().expect("path");
    let done = case.verb(&[
        "--debug",
        "--log",
        path,
        "--log-format",
        "json",
        "run",
        &case.id,
    ]);
    assert_eq!(done.code, 0, "{done:?}");
    let text = std::fs::read_to_string(&log).expect("log");
    let first: Value = serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
    for key in ["level", "msg", "time"] {
        assert!(first[key].is_string(), "{first}");
    }
    std::fs::remove_file(&log).expect("remove");
    assert_eq!(
        case.verb(&["--log", path, "--log-format", "text", "state", "nobody"])
            .code,
        1
    );
    let text = std::fs::read_to_string(&log).expect("log");
    assert!(text.contains("does not exist"), "{text}");
    assert_eq!(
        case.verb(&["--log-format", "nonsense", "state", "nobody"])
            .code,
        1
    );
    assert_eq!(case.verb(&["--rootless", "nonsense", "list"]).code, 1);
    assert_eq!(case.verb(&["--rootless", "false", "list"]).code, 0);
}

#[test]
fn completion_is_printed_for_each_shell() {
    if !is_ours() {
        return;
    }
    let case = Case::command(SLEEP);
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let done = case.verb(&["completion", shell]);
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.out.contains("console-socket"), "{shell}");
    }
}
