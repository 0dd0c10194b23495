//! What people and programs know from runc, and what no field or flag says.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{self, Case, Done, is_ours, wait};

/// Runs a verb under a shell that does `first` before it becomes the runtime.
fn after(first: &str, case: &Case, args: &[&str]) -> Command {
    let command = case.runtime(args);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &format!("{first}; exec \"$@\""), "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(case.bundle())
        .stdin(Stdio::null());
    shell
}

fn said(output: std::process::Output) -> Done {
    Done {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[test]
fn an_ordinary_user_opens_its_standard_streams_by_name() {
    let write = "echo out >/dev/stdout && echo err >/dev/stderr";
    let user = json!({ "uid": 1000, "gid": 1000 });
    // Pipes of the caller.
    let mut case = Case::new(write);
    case.config["process"]["user"] = user.clone();
    let done = case.run();
    assert_eq!((done.code, done.out.as_str()), (0, "out\n"), "{done:?}");
    assert_eq!(done.err, "err\n", "{done:?}");
    // Files of the caller, and one more process.
    let mut case = Case::new(&format!("{write} && sleep 600"));
    case.config["process"]["user"] = user;
    let input = case.path("in");
    std::fs::write(&input, "").unwrap();
    let mut create = case.runtime(&["create", &case.id]);
    let status = create
        .stdin(File::open(&input).unwrap())
        .stdout(File::create(case.path("out")).unwrap())
        .stderr(File::create(case.path("err")).unwrap())
        .status();
    assert!(status.unwrap().success());
    assert_eq!(case.verb(&["start", &case.id]).code, 0);
    wait(|| match case.output().as_str() {
        "out\n" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    if is_ours() {
        // A file that is only read was not made for the container.
        assert_eq!(std::fs::metadata(&input).unwrap().uid(), 0);
    }
    let done = case.verb(&["exec", &case.id, "sh", "-c", write]);
    assert_eq!((done.code, done.out.as_str()), (0, "out\n"), "{done:?}");
}

#[test]
fn a_container_that_waits_holds_nothing_of_the_host() {
    let case = Case::new("sleep 600");
    let foreign = case.path("foreign");
    std::fs::write(&foreign, "").unwrap();
    let first = format!("exec 7<{}", foreign.display());
    let status = after(&first, &case, &["create", &case.id])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(status.unwrap().success());
    let descriptors = format!("/proc/{}/fd", case.state()["pid"]);
    for entry in std::fs::read_dir(descriptors).unwrap() {
        let target = std::fs::read_link(entry.unwrap().path()).unwrap();
        let text = target.to_str().unwrap();
        let of_ipc = ["/dev/null", "socket:", "pipe:", "anon_inode:"];
        let of_runc = !is_ours() && (text.contains("runc") || text.contains("exec.fifo"));
        assert!(
            of_runc || of_ipc.iter().any(|start| text.starts_with(start)),
            "{text}"
        );
    }
}

#[test]
fn a_group_in_which_others_live_is_refused() {
    let first = Case::new("sleep 600");
    first.start();
    let mut second = Case::new("sleep 600");
    second.linux()["cgroupsPath"] = json!(format!("/{}", first.id));
    let done = second.run();
    if !is_ours() && done.code == 0 {
        return; // Before 1.2, runc warns only; crun does not care.
    }
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.err.contains("container's cgroup is not empty"),
        "{done:?}"
    );
    second.assert_nothing_left();
    assert_eq!(first.status(), "running");
    // A group that nobody uses is taken as it is, and stays.
    let mut third = Case::new("true");
    third.linux()["cgroupsPath"] = json!(format!("/{}/below", first.id));
    assert_eq!(third.run().code, 0);
}

#[test]
fn a_frozen_group_is_refused() {
    if !is_ours() {
        return; // Some of the others wait for ever.
    }
    let case = Case::new("true");
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let root = Path::new("/sys/fs/cgroup").join(if unified { "" } else { "freezer" });
    let group = root.join(&case.id);
    std::fs::create_dir(&group).unwrap();
    let (file, frozen) = match unified {
        true => ("cgroup.freeze", "1"),
        false => ("freezer.state", "FROZEN"),
    };
    std::fs::write(group.join(file), frozen).unwrap();
    let done = case.run();
    let left = case.groups();
    std::fs::remove_dir(&group).unwrap();
    assert_eq!(done.code, 1, "{done:?}");
    let words = "container's cgroup unexpectedly frozen";
    assert!(done.err.contains(words), "{done:?}");
    // What was there before is left as it was, and nothing else.
    assert_eq!(left, [group]);
}

#[test]
fn a_process_that_names_no_user_is_roots() {
    let mut case = Case::new("id -u; id -g; sleep 600");
    let process = case.config["process"].as_object_mut().unwrap();
    process.remove("user");
    case.start();
    wait(|| match case.output().as_str() {
        "0\n0\n" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let path = case.path("process.json");
    for (user, wanted) in [
        (json!(null), "uid=0 gid=0"),
        (json!({ "uid": 7 }), "uid=7 gid=0"),
    ] {
        let mut process = json!({ "args": ["id"], "cwd": "/", "env": ["PATH=/bin"] });
        if !user.is_null() {
            process["user"] = user;
        }
        std::fs::write(&path, process.to_string()).unwrap();
        let done = case.verb(&["exec", "--process", path.to_str().unwrap(), &case.id]);
        assert_eq!(done.code, 0, "{done:?}");
        let ids = done.out.replace("(root)", "");
        assert!(ids.starts_with(wanted), "{done:?}");
    }
}

#[test]
fn a_container_runs_on_all_processors_of_its_group_wherever_the_runtime_runs() {
    let show = ["grep", "Cpus_allowed_list", "/proc/self/status"];
    let all = said(
        Command::new("busybox")
            .args(["grep", "Cpus_allowed_list", "/proc/1/status"])
            .output()
            .unwrap(),
    );
    let mut case = Case::new("grep Cpus_allowed_list /proc/self/status; sleep 600");
    // That is about exec only.
    case.config["process"]["execCPUAffinity"] = json!({ "initial": "0", "final": "0" });
    let status = after(
        "taskset -pc 0 $$ >/dev/null",
        &case,
        &["run", "--detach", &case.id],
    )
    .stdout(File::create(case.path("out")).unwrap())
    .stderr(Stdio::null())
    .status();
    assert!(status.unwrap().success());
    if !is_ours() {
        return; // New in runc 1.3.3 and crun 1.26.
    }
    wait(|| match case.output() {
        now if now == all.out => Ok(()),
        now => Err(format!("{now:?}, not {:?}", all.out)),
    });
    let exec = [&["exec", &case.id][..], &show].concat();
    assert!(case.verb(&exec).out.ends_with("\t0\n"));
    // Without words about processors, an exec runs on all of them, too.
    let path = case.path("process.json");
    let process = json!({ "args": show, "cwd": "/", "env": ["PATH=/bin"] });
    std::fs::write(&path, process.to_string()).unwrap();
    let exec = ["exec", "--process", path.to_str().unwrap(), &case.id];
    let done = said(
        after("taskset -pc 0 $$ >/dev/null", &case, &exec)
            .output()
            .unwrap(),
    );
    assert_eq!(done.out, all.out, "{done:?}");
}

#[test]
fn capabilities_of_an_exec_are_ambient_where_some_are_inheritable() {
    let mut case = Case::new("sleep 600");
    case.config["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    let sets = &mut case.config["process"]["capabilities"];
    sets["inheritable"] = json!(["CAP_CHOWN", "CAP_KILL"]);
    case.start();
    let ambient = |case: &Case, cap: &[&str]| {
        let show = ["grep", "CapAmb", "/proc/self/status"];
        case.verb(&[&["exec"], cap, &[&case.id], &show].concat())
    };
    assert!(ambient(&case, &[]).out.ends_with("\t0000000000000000\n"));
    if !is_ours() {
        return; // crun has it otherwise.
    }
    let done = ambient(&case, &["--cap", "CAP_KILL"]);
    assert!(done.out.ends_with("\t0000000000000020\n"), "{done:?}");
    // What is not inheritable cannot be ambient, and that is told.
    let done = ambient(&case, &["--cap", "CAP_SETUID"]);
    assert!(done.out.ends_with("\t0000000000000000\n"), "{done:?}");
    let warning = "can't raise ambient capability CAP_SETUID: ";
    assert!(done.err.contains(warning), "{done:?}");
}

#[test]
fn a_program_that_is_not_there_is_told_apart_from_one_that_cannot_run() {
    let case = Case::command(&["nowhere"]);
    let done = case.run();
    let words = "exec: \"nowhere\": executable file not found in $PATH";
    assert!(done.err.contains(words), "{done:?}");
    // Told once.
    assert!(!is_ours() || !done.err.contains("os error"), "{done:?}");
    let case = Case::command(&["/script"]);
    let path = case.rootfs().join("script");
    std::fs::write(&path, "#!/nowhere\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, mode).unwrap();
    let done = case.run();
    let words = "exec /script: no such file or directory";
    assert!(done.err.contains(words) || !is_ours(), "{done:?}");
    case.assert_nothing_left();
}

#[test]
fn an_exec_that_is_refused_says_why_in_runcs_words() {
    let case = Case::new("sleep 600");
    case.start();
    let done = case.verb(&["exec", "--cgroup", "..", &case.id, "true"]);
    assert_eq!(done.code, if is_ours() { 255 } else { done.code });
    assert!(
        !is_ours() || done.err.contains(".. is not a sub cgroup path"),
        "{done:?}"
    );
    assert_eq!(case.verb(&["pause", &case.id]).code, 0);
    let done = case.verb(&["exec", &case.id, "true"]);
    assert_ne!(done.code, 0, "{done:?}");
    let words = "cannot exec in a paused container";
    assert!(!is_ours() || done.err.contains(words), "{done:?}");
    assert_eq!(case.verb(&["resume", &case.id]).code, 0);
}

#[test]
fn debug_lines_without_a_log_have_the_level_that_people_look_for() {
    let case = Case::new("true");
    let done = case.verb(&["--debug", "run", &case.id]);
    assert!(!is_ours() || done.err.contains("level=debug"), "{done:?}");
    let quiet = case.verb(&["run", &case.id]);
    assert_eq!((quiet.code, quiet.err.as_str()), (0, ""), "{quiet:?}");
}

#[test]
fn the_example_has_a_cgroup_namespace_only_on_v2() {
    let case = Case::new("true");
    let bundle = case.path("example");
    std::fs::create_dir(&bundle).unwrap();
    let done = case.verb(&["spec", "--bundle", bundle.to_str().unwrap()]);
    assert_eq!(done.code, 0, "{done:?}");
    let text = std::fs::read(bundle.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&text).unwrap();
    let kinds = config["linux"]["namespaces"].as_array().unwrap();
    let found = kinds.iter().any(|kind| kind["type"] == "cgroup");
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    assert_eq!(found, unified, "{kinds:?}");
}

#[test]
fn a_container_that_sees_groups_sees_its_cpuset() {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        return; // v2 has all of it in one place.
    }
    for (options, systemd) in [(&["ro"][..], false), (&[], true)] {
        let mut case = Case::new("cat /sys/fs/cgroup/cpuset/cpuset.cpus /proc/self/cgroup");
        case.add_mount(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": options,
        }));
        let done = case.run();
        let cpus = std::fs::read_to_string("/sys/fs/cgroup/cpuset/cpuset.cpus").unwrap();
        assert!(done.out.starts_with(&cpus), "{done:?}");
        let in_group = |hierarchy: &str| {
            let wanted = format!(":{hierarchy}:/{}", case.id);
            done.out.lines().any(|line| line.ends_with(&wanted))
        };
        assert!(in_group("cpuset"), "{done:?}");
        if is_ours() && Path::new("/sys/fs/cgroup/systemd").exists() {
            assert_eq!(in_group("name=systemd"), systemd, "{done:?}");
        }
        case.assert_nothing_left();
    }
}

#[test]
fn lines_on_a_terminal_end_as_the_program_has_written_them() {
    if !is_ours() {
        return; // runc wants a terminal of its own for that.
    }
    let mut case = Case::new("tty; echo end");
    case.config["process"]["terminal"] = json!(true);
    let done = case.run();
    assert_eq!(done.out, "/dev/pts/0\nend\n", "{done:?}");
}

#[test]
fn a_hook_that_fails_is_named_and_its_output_told_there_and_nowhere_else() {
    let fails = "echo spoken; echo cause >&2; test $0 = good";
    let mut case = Case::new("echo program");
    for (kind, runs) in [
        ("prestart", false),
        ("createRuntime", false),
        ("createContainer", false),
        ("startContainer", false),
        ("poststart", true),
    ] {
        let hook = |name: &str| json!({ "path": "/bin/sh", "args": ["sh", "-c", fails, name], "env": ["PATH=/bin"] });
        case.config["hooks"] = json!({ kind: [hook("good"), hook("bad")] });
        let done = case.run();
        assert_eq!(done.code, 1, "{kind}: {done:?}");
        let named = format!("error running {kind} hook #1: ");
        if is_ours() {
            assert!(done.err.contains(&named), "{kind}: {done:?}");
            assert!(
                done.err.contains("stdout: spoken, stderr: cause"),
                "{kind}: {done:?}"
            );
            assert!(!done.out.contains("spoken"), "{kind}: {done:?}");
        }
        assert!(runs || !done.out.contains("program"), "{kind}: {done:?}");
        case.assert_nothing_left();
    }
    // One that goes well says nothing to anyone.
    case.config["hooks"] = json!({ "createRuntime": [
        { "path": "/bin/sh", "args": ["sh", "-c", "echo spoken; echo cause >&2"] },
    ] });
    let done = case.run();
    assert_eq!(done.out, "program\n", "{done:?}");
    assert!(!is_ours() || done.err.is_empty(), "{done:?}");
}

#[test]
fn a_hook_without_an_environment_has_that_of_where_it_runs() {
    let mut case = Case::new("cat /data/inside");
    let (host, bundle) = (case.path("host"), case.path("bundle-of-hook"));
    let script = |text: String| json!([{ "path": "/bin/sh", "args": ["sh", "-c", text] }]);
    case.config["process"]["env"] = json!(["PATH=/bin", "OF_THE_PROCESS=1"]);
    case.config["hooks"] = json!({
        "createRuntime": script(format!("echo $OF_THE_CALLER >{}", host.display())),
        // Its working directory is the root, before that is the root.
        "createContainer": script(format!("env >./data/hook; pwd >{}", bundle.display())),
        "startContainer": script("echo $OF_THE_PROCESS$OF_THE_CALLER >/data/inside".to_owned()),
    });
    let output = case
        .runtime(&["run", &case.id])
        .env("OF_THE_CALLER", "2")
        .output();
    let done = said(output.unwrap());
    if !is_ours() {
        return; // crun gives them nothing.
    }
    assert_eq!(done.out, "1\n", "{done:?}");
    assert_eq!(std::fs::read_to_string(host).unwrap(), "2\n");
    let inside = std::fs::read_to_string(case.rootfs().join("data/hook")).unwrap();
    assert!(!inside.contains("OF_THE"), "{inside}");
    let root = std::fs::read_to_string(bundle).unwrap();
    assert_eq!(
        Path::new(root.trim()),
        case.rootfs().canonicalize().unwrap()
    );
}

#[test]
fn events_and_processes_look_as_their_readers_expect() {
    let case = Case::new("sleep 600");
    case.start();
    let done = case.verb(&["events", "--stats", &case.id]);
    let start = format!("{{\"type\":\"stats\",\"id\":\"{}\",\"data\":{{", case.id);
    assert!(done.out.starts_with(&start), "{done:?}");
    let event: Value = serde_json::from_str(&done.out).unwrap();
    for (pointer, least) in [
        ("/data/memory/raw/pgfault", 1),
        ("/data/memory/usage/limit", 1 << 62),
        ("/data/memory/usage/usage", 1),
        ("/data/pids/current", 1),
        ("/data/cpu/usage/total", 1),
    ] {
        let number = event.pointer(pointer).and_then(Value::as_u64);
        assert!(
            number.is_some_and(|number| number >= least),
            "{pointer}: {event}"
        );
    }
    if std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .any(|path| path.join("ps").exists())
    {
        let done = case.verb(&["ps", &case.id]);
        let mut lines = done.out.lines();
        let title: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(
            title,
            ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
        );
        assert!(lines.any(|line| line.ends_with("sleep 600")), "{done:?}");
    }
}

#[test]
fn what_is_mounted_over_a_link_that_leads_nowhere_is_mounted_where_it_leads() {
    let mut case = Case::new("cat /etc/resolv.conf /run/resolve/stub; cat /tmp/way/on/file");
    let root = case.rootfs();
    std::os::unix::fs::symlink("../run/resolve/stub", root.join("etc/resolv.conf")).unwrap();
    std::os::unix::fs::symlink("/tmp/way", root.join("etc/way")).unwrap();
    let source = case.path("source");
    std::fs::write(&source, "content\n").unwrap();
    for destination in ["/etc/resolv.conf", "/etc/way/on/file"] {
        case.add_mount(json!({
            "destination": destination, "type": "bind", "source": source, "options": ["bind", "ro"],
        }));
    }
    let done = case.run();
    assert_eq!(done.out, "content\n".repeat(3), "{done:?}");
    // Inside of the root only: the host has got nothing.
    assert!(!Path::new("/run/resolve").exists() && !Path::new("/tmp/way").exists());
    assert!(root.join("run/resolve/stub").exists());
}

#[test]
fn a_tmpfs_has_the_mode_of_what_it_covers_and_is_read_only_when_all_is_in_it() {
    let mut case = Case::new(
        "stat -c %a /covers /given /tmp/new; grep -c ' /sealed .*\\bro\\b' /proc/mounts; touch /sealed/x; cat /sealed/file
         grep -c ' /dev tmpfs ro' /proc/mounts; echo x >/dev/null; echo end",
    );
    for (name, mode) in [("covers", 0o2710), ("given", 0o710), ("sealed", 0o755)] {
        let path = case.rootfs().join(name);
        std::fs::create_dir(&path).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&path, mode).unwrap();
    }
    let source = case.path("source");
    std::fs::write(&source, "content\n").unwrap();
    for (destination, options) in [
        ("/covers", &["nosuid"][..]),
        ("/given", &["mode=1500"]),
        ("/tmp/new", &[]),
        ("/sealed", &["ro"]),
    ] {
        case.add_mount(json!({
            "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": options,
        }));
    }
    case.add_mount(json!({
        "destination": "/sealed/file", "type": "bind", "source": source, "options": ["bind"],
    }));
    let mounts = case.config["mounts"].as_array_mut().unwrap();
    let dev = mounts
        .iter_mut()
        .find(|mount| mount["destination"] == "/dev");
    let options = dev.unwrap()["options"].as_array_mut().unwrap();
    options.push(json!("ro"));
    let done = case.run();
    let wanted = "2710\n1500\n1777\n1\ncontent\n1\nend\n";
    assert!(!is_ours() || done.out == wanted, "{done:?}");
    assert!(
        !is_ours() || done.err.contains("Read-only file system"),
        "{done:?}"
    );
}

#[test]
fn a_kill_without_a_pid_namespace_reaches_what_the_first_process_leaves_behind() {
    if !is_ours() {
        return; // crun, and runc before 1.2, want --all for it.
    }
    for first in ["there", "gone", "moved"] {
        let mut case = Case::new("sleep 600 & sleep 600 & echo ready; exec sleep 600");
        let namespaces = case.linux()["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
        case.start();
        wait(|| match case.output().as_str() {
            "ready\n" => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let pid = case.state()["pid"].as_i64().unwrap();
        if first == "gone" {
            let pid = nix::unistd::Pid::from_raw(pid as i32);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
            case.wait_status("stopped");
        }
        if first == "moved" {
            // As one could that may write to the host's groups.
            for group in case.groups() {
                let above = group.parent().unwrap().join("cgroup.procs");
                std::fs::write(above, pid.to_string()).unwrap();
            }
        }
        let done = case.verb(&["kill", &case.id, "KILL"]);
        assert_eq!(done.code, 0, "{done:?}");
        let groups = case.groups();
        let group = groups
            .iter()
            .find(|group| group.join("tasks").exists() || group.join("cgroup.procs").exists());
        let file = group.unwrap().join("cgroup.procs");
        wait(|| match std::fs::read_to_string(&file).unwrap() {
            none if none.is_empty() => Ok(()),
            left => Err(left),
        });
        case.wait_status("stopped");
        let done = case.verb(&["kill", &case.id, "KILL"]);
        assert!(done.err.contains("container not running"), "{done:?}");
    }
}

#[test]
fn without_pivot_nothing_of_the_hosts_procfs_can_be_mounted() {
    let mut case = Case::new(
        "busybox unshare -Urpfm sh -c 'busybox mount -t proc none /proc && echo bare'; echo end",
    );
    let mounts = case.config["linux"]["namespaces"].as_array_mut().unwrap();
    assert!(mounts.iter().any(|namespace| namespace["type"] == "pid"));
    let sets = &mut case.config["process"]["capabilities"];
    for set in ["bounding", "permitted", "effective"] {
        sets[set]
            .as_array_mut()
            .unwrap()
            .extend([json!("CAP_SETFCAP")]);
    }
    let done = case.verb(&["run", "--no-pivot", &case.id]);
    assert_eq!(done.out, "end\n", "{done:?}");
    assert!(
        done.err.contains("ermission denied") || done.err.contains("not permitted"),
        "{done:?}"
    );
    // The host has kept its own.
    assert!(Path::new("/proc/self/status").exists() && Path::new("/sys/kernel").exists());
}

#[test]
fn an_exec_enters_every_kind_of_namespace() {
    let mut case = Case::new("sleep 600");
    for kind in ["cgroup", "time", "user"] {
        let namespaces = case.linux()["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({ "type": kind }));
    }
    case.linux()["timeOffsets"] = json!({ "boottime": { "secs": 1337, "nanosecs": 7 } });
    let map = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
    case.linux()["uidMappings"] = map.clone();
    case.linux()["gidMappings"] = map;
    case.start();
    let pid = case.state()["pid"].to_string();
    let list = "cd /proc/self/ns && for kind in cgroup ipc mnt net pid time user uts; do readlink $kind; done";
    let inside = case.verb(&["exec", &case.id, "sh", "-c", list]);
    let outside = said(
        Command::new("sh")
            .args(["-c", &list.replace("self", &pid)])
            .output()
            .unwrap(),
    );
    assert_eq!(outside.out.lines().count(), 8, "{outside:?}");
    if is_ours() {
        assert_eq!(inside.out, outside.out, "{inside:?}");
    }
}

#[test]
fn a_container_in_the_user_and_pid_namespace_of_another_is_known_by_its_own_process() {
    let with_user = |case: &mut Case| {
        let namespaces = case.linux()["namespaces"].as_array_mut().unwrap();
        namespaces.push(json!({ "type": "user" }));
    };
    let mut first = Case::new("sleep 600");
    with_user(&mut first);
    let map = json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
    first.linux()["uidMappings"] = map.clone();
    first.linux()["gidMappings"] = map;
    first.start();
    let first_pid = first.state()["pid"].clone();
    let mut second = Case::new("exec sleep 777");
    with_user(&mut second);
    for namespace in second.linux()["namespaces"].as_array_mut().unwrap() {
        let name = match namespace["type"].as_str().unwrap() {
            "mount" => continue,
            "network" => "net",
            name => name,
        };
        namespace["path"] = json!(format!("/proc/{first_pid}/ns/{name}"));
    }
    second.start();
    let pid = second.state()["pid"].clone();
    wait(|| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        match String::from_utf8_lossy(&command).contains("777") {
            true => Ok(()),
            false => Err(format!("{pid} is {command:?}")),
        }
    });
    let done = second.verb(&["exec", &second.id, "ps"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.out.contains("sleep 600") && done.out.contains("sleep 777"),
        "{done:?}"
    );
    assert_eq!(second.verb(&["kill", &second.id, "KILL"]).code, 0);
    second.wait_status("stopped");
    assert_eq!(first.status(), "running");
}

#[test]
fn a_container_goes_without_a_group_if_that_is_wanted() {
    if !is_ours() {
        return; // runc has no such flag.
    }
    let mut case = Case::new("echo ready; sleep 600");
    let disabled = |case: &Case, verb: &[&str]| {
        let mut command = case.runtime(verb);
        let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let out = File::create(case.path("out")).unwrap();
        command = Command::new(command.get_program());
        let flags = ["--cgroup-manager", "disabled"];
        command.args(flags).args(args).current_dir(case.bundle());
        let err = case.path("err");
        let streams = command.stdin(Stdio::null()).stdout(out);
        let status = streams.stderr(File::create(&err).unwrap()).status();
        (
            status.unwrap().code(),
            std::fs::read_to_string(err).unwrap(),
        )
    };
    let (code, err) = disabled(&case, &["run", "--detach", &case.id]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(case.groups(), Vec::<std::path::PathBuf>::new());
    wait(|| match case.output().as_str() {
        "ready\n" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // The other verbs find that out for themselves.
    assert_eq!(case.verb(&["exec", &case.id, "true"]).code, 0);
    assert_eq!(case.verb(&["pause", &case.id]).code, 1);
    assert_eq!(case.verb(&["kill", &case.id, "KILL"]).code, 0);
    case.wait_status("stopped");
    assert_eq!(case.verb(&["delete", &case.id]).code, 0);
    // Limits that nobody could hold it to are an error.
    case.linux()["resources"]["pids"] = json!({ "limit": 7 });
    let (code, err) = disabled(&case, &["run", &case.id]);
    assert_eq!(code, Some(1));
    assert!(err.contains("linux.resources has limits"), "{err}");
    case.assert_nothing_left();
}

#[test]
fn root_of_a_user_namespace_runs_containers_as_podman_does_for_an_ordinary_user() {
    if !is_ours() {
        return; // Debian's crun refuses hybrid cgroups.
    }
    let mut case = Case::new("sleep 600");
    for name in ["bundle", "bundle/rootfs", ""] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(case.path(name), mode).unwrap();
    }
    case.linux().as_object_mut().unwrap().remove("cgroupsPath");
    for mount in case.config["mounts"].as_array_mut().unwrap() {
        let options = mount["options"].as_array_mut().unwrap();
        options.retain(|option| option != "gid=5");
    }
    // Writes the configuration.
    drop(case.runtime(&[]));
    // As Podman does it: an ordinary user becomes root of a user namespace with mounts of its own, and calls from there.
    let dir = case.path("");
    let script = format!(
        "run() {{ {0} --root {1}/state \"$@\"; }}
         run run --detach one >{1}/out 2>{1}/err && run exec one echo more && run kill one KILL
         code=$?; run delete --force one; cat {1}/err >&2; exit $code",
        support::runtime().display(),
        dir.display()
    );
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .args(["unshare", "--user", "--map-root-user", "--mount"])
        .args(["sh", "-c", &script])
        .current_dir(case.bundle())
        .stdin(Stdio::null())
        .output();
    let done = said(output.unwrap());
    assert_eq!((done.code, done.out.as_str()), (0, "more\n"), "{done:?}");
    assert_eq!(done.err, "", "{done:?}");
}
