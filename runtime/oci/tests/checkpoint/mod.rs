//! Checkpoint and restore: our side with a simulated criu, and all of it where a criu works on this machine.
//!
//! `KNARR_CRIU` names a criu to try instead of the one in `$PATH`.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::process::Command;

use serde_json::{Value, json};

mod fake;
mod real;

use fake::wire::ask;
use fake::{Fake, Mode};

use crate::support::{self, Case, Done, is_ours, wait};

const SLEEP: &[&str] = &["/bin/sleep", "1000"];

/// Runs a verb with a criu, its output in files, because a restored container keeps it.
fn verb(case: &Case, criu: &str, args: &[&str]) -> Done {
    let all = [&["--criu", criu], args].concat();
    let mut command = case.runtime(&all);
    let file = |name: &str| fs::File::create(case.path(name)).expect("output file");
    let status = command
        .stdout(file("verb-out"))
        .stderr(file("verb-err"))
        .status()
        .expect("run the runtime");
    let read = |name: &str| fs::read_to_string(case.path(name)).expect("output");
    Done {
        code: status.code().unwrap_or(-1),
        out: read("verb-out"),
        err: read("verb-err"),
    }
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// A hook that writes its state to a file.
fn hook(case: &Case, name: &str) -> Value {
    let path = case.path(name);
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", format!("cat > {}", path.display())] }])
}

fn told(case: &Case, name: &str) -> Value {
    let text =
        fs::read_to_string(case.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    serde_json::from_str(&text).expect("a state")
}

fn is_running(pid: &str) -> bool {
    // Where the fake made none there is no number.
    let path = std::path::Path::new("/proc").join(pid).join("stat");
    let stat = fs::read_to_string(path).unwrap_or_default();
    !pid.is_empty() && !stat.is_empty() && !stat.contains(") Z")
}

#[test]
fn without_criu_the_error_says_so_and_nothing_happens() {
    if !is_ours() {
        return;
    }
    let case = Case::command(SLEEP);
    case.start();
    let done = verb(&case, "/nowhere/criu", &["checkpoint", &case.id]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.err.contains("no program \"/nowhere/criu\""),
        "{done:?}"
    );
    assert_eq!(case.status(), "running");
    let done = verb(&case, "no-such-criu", &["restore", "--detach", "other"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.err.contains("\"no-such-criu\" in $PATH"), "{done:?}");
    assert!(!case.path("state").join("other").exists());
}

#[test]
fn what_does_not_run_is_not_saved() {
    if !is_ours() {
        return;
    }
    let case = Case::command(SLEEP);
    let fake = Fake::new(&case, Mode::Works);
    let done = verb(&case, text(&fake.program), &["checkpoint", &case.id]);
    assert!(done.err.contains("container does not exist"), "{done:?}");
    assert_eq!(case.create().code, 0);
    let done = verb(&case, text(&fake.program), &["checkpoint", &case.id]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.err
            .contains("cannot checkpoint a container that is created"),
        "{done:?}"
    );
    assert_eq!(case.status(), "created");
    assert!(fake.requests().is_empty());
}

#[test]
fn a_checkpoint_tells_criu_all_and_ends_the_container() {
    if !is_ours() {
        return;
    }
    let mut case = Case::command(SLEEP);
    fs::write(case.path("bound"), "text").unwrap();
    fs::create_dir_all(case.rootfs().join("var")).unwrap();
    std::os::unix::fs::symlink("/data", case.rootfs().join("var/link")).unwrap();
    let source = case.path("bound");
    case.add_mount(json!({ "destination": "/var/link/file", "type": "bind", "source": source, "options": ["rbind"] }));
    case.config["hooks"] = json!({ "poststop": hook(&case, "poststop") });
    case.start();
    let pid = case.state()["pid"].as_i64().unwrap();
    let fake = Fake::new(&case, Mode::Works);
    let (images, work) = (case.path("images"), case.path("work"));
    let done = verb(
        &case,
        text(&fake.program),
        &[
            "checkpoint",
            "--image-path",
            text(&images),
            "--work-path",
            text(&work),
            "--tcp-established",
            "--tcp-skip-in-flight",
            "--ext-unix-sk",
            "--shell-job",
            "--file-locks",
            "--link-remap",
            "--page-server",
            "127.0.0.1:27000",
            "--manage-cgroups-mode",
            "strict",
            "--empty-ns",
            "network",
            "--auto-dedup",
            &case.id,
        ],
    );
    assert_eq!(done.code, 0, "{done:?}");
    let requests = fake.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].kind, ask::DUMP);
    let options = requests[0].opts.clone().unwrap();
    assert_eq!(i64::from(options.pid()), pid);
    assert_eq!(options.root(), text(&case.rootfs()));
    assert_eq!(options.log_file(), "dump.log");
    for flag in [
        options.tcp_established,
        options.tcp_skip_in_flight,
        options.ext_unix_sk,
        options.shell_job,
        options.file_locks,
        options.link_remap,
        options.auto_dedup,
        options.orphan_pts_master,
        options.notify_scripts,
    ] {
        assert_eq!(flag, Some(true), "{options:?}");
    }
    assert_eq!(options.leave_running, Some(false));
    assert_eq!(options.manage_cgroups_mode, Some(5));
    assert_eq!(options.empty_ns, Some(0x4000_0000));
    let server = options.ps.clone().unwrap();
    assert_eq!((server.address(), server.port()), ("127.0.0.1", 27000));
    let group = options.freeze_cgroup();
    assert!(group.ends_with(&case.id), "{group}");
    let mounts: Vec<(&str, &str)> = options
        .ext_mnt
        .iter()
        .map(|one| (one.key.as_str(), one.val.as_str()))
        .collect();
    // The place in the container is without symbolic links; the name is the configuration's.
    assert!(
        mounts.contains(&("/data/file", "/var/link/file")),
        "{mounts:?}"
    );
    assert!(mounts.contains(&("/proc/keys", "/dev/null")), "{mounts:?}");
    assert!(!mounts.iter().any(|(key, _)| *key == "/sys/firmware"));
    let list: Vec<String> =
        serde_json::from_slice(&fs::read(images.join("descriptors.json")).unwrap()).unwrap();
    assert_eq!(list.len(), 3);
    // The streams of this container are files of the host.
    assert!(list[1].starts_with("file["), "{list:?}");
    assert!(options.external.contains(&list[1]), "{options:?}");
    // The hook runs when it is gone.
    assert_eq!(told(&case, "poststop")["status"], "stopped");
    case.assert_nothing_left();
}

#[test]
fn a_container_goes_on_after_a_dump_that_is_to_leave_it_or_comes_before() {
    if !is_ours() {
        return;
    }
    let case = Case::command(SLEEP);
    case.start();
    let fake = Fake::new(&case, Mode::Works);
    let images = case.path("images/one");
    let run = |args: &[&str]| verb(&case, text(&fake.program), &[args, &[&case.id]].concat());
    let done = run(&["checkpoint", "--pre-dump", "--image-path", text(&images)]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(case.status(), "running");
    assert!(!images.join("descriptors.json").exists());
    let second = case.path("images/two");
    let parent = ["checkpoint", "--image-path", text(&second), "--parent-path"];
    let done = run(&[&parent[..], &["../three"]].concat());
    assert!(done.err.contains("no directory"), "{done:?}");
    let done = run(&[&parent[..], &[text(&images)]].concat());
    assert!(done.err.contains("relative"), "{done:?}");
    fs::create_dir_all(&second).unwrap();
    // Podman gives a flag twice where it exports.
    let twice = ["../one", "--leave-running", "--leave-running"];
    let done = run(&[&parent[..], &twice[..]].concat());
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(case.status(), "running");
    let requests = fake.requests();
    let kinds: Vec<i32> = requests.iter().map(|request| request.kind).collect();
    assert_eq!(
        kinds,
        [
            ask::FEATURE_CHECK,
            ask::PRE_DUMP,
            ask::FEATURE_CHECK,
            ask::DUMP
        ]
    );
    let before = requests[1].opts.as_ref().unwrap();
    assert_eq!(before.track_mem, Some(true));
    let after = requests[3].opts.as_ref().unwrap();
    assert_eq!(after.parent_img(), "../one");
    assert_eq!(after.leave_running, Some(true));
}

#[test]
fn what_criu_is_not_able_to_do_is_an_error_before_anything_is_done() {
    if !is_ours() {
        return;
    }
    let case = Case::command(SLEEP);
    case.start();
    let fake = Fake::new(&case, Mode::Poor);
    let run = |args: &[&str]| verb(&case, text(&fake.program), &[args, &[&case.id]].concat());
    let done = run(&["checkpoint", "--lazy-pages"]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        done.err
            .contains("has no lazy_pages, which --lazy-pages needs"),
        "{done:?}"
    );
    let done = run(&["checkpoint", "--pre-dump"]);
    assert!(done.err.contains("has no mem_track"), "{done:?}");
    let done = run(&["checkpoint", "--lazy-pages", "--status-fd", "99"]);
    assert!(done.err.contains("--status-fd 99"), "{done:?}");
    let done = run(&["checkpoint", "--page-server", "nowhere"]);
    assert!(done.err.contains("ADDRESS:PORT"), "{done:?}");
    assert_eq!(case.status(), "running");
    assert!(
        fake.requests()
            .iter()
            .all(|request| request.kind == ask::FEATURE_CHECK)
    );
}

#[test]
fn a_checkpoint_that_criu_refuses_names_the_log_and_leaves_the_container() {
    if !is_ours() {
        return;
    }
    let case = Case::command(SLEEP);
    case.start();
    let fake = Fake::new(&case, Mode::Refuses);
    let work = case.path("work");
    let done = verb(
        &case,
        text(&fake.program),
        &["checkpoint", "--work-path", text(&work), &case.id],
    );
    assert_eq!(done.code, 1, "{done:?}");
    let expected = format!(
        "criu failed: type DUMP errno 17: Error (criu/fake.c:7): it does not want to; log file: {}/dump.log",
        work.display()
    );
    assert!(done.err.contains(&expected), "{done:?}");
    assert_eq!(case.status(), "running");
}

#[test]
fn a_restored_container_is_a_full_one() {
    if !is_ours() {
        return;
    }
    let mut case = Case::command(SLEEP);
    case.config["annotations"] =
        json!({ "org.example": "kept", "org.criu.config": "/some/criu.conf" });
    case.config["hooks"] = json!({
        "prestart": hook(&case, "prestart"),
        "createRuntime": hook(&case, "createRuntime"),
        "poststop": hook(&case, "poststop"),
    });
    let images = case.path("images");
    fs::create_dir_all(&images).unwrap();
    fs::write(
        images.join("descriptors.json"),
        r#"["/dev/null","pipe:[5]","file[1f:2a]"]"#,
    )
    .unwrap();
    // Places that this rootfs has not yet.
    let bound = case.path("bound");
    fs::write(&bound, "text").unwrap();
    case.add_mount(json!({ "destination": "/new/file", "type": "bind", "source": bound, "options": ["rbind"] }));
    let fake = Fake::new(&case, Mode::Works);
    let pid_file = case.path("pid");
    let done = verb(
        &case,
        text(&fake.program),
        &[
            "restore",
            "--detach",
            "--image-path",
            text(&images),
            "--pid-file",
            text(&pid_file),
            "--lsm-profile",
            "apparmor:other",
            "--lsm-mount-context",
            "context",
            "--manage-cgroups-mode",
            "ignore",
            "--no-pivot",
            // As containerd writes it.
            "-no-subreaper",
            &case.id,
        ],
    );
    assert_eq!(done.code, 0, "{done:?}");
    let pid = fake.seen("pid");
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), pid);
    let state = case.state();
    assert_eq!(state["status"], "running");
    assert_eq!(state["pid"].to_string(), pid);
    assert_eq!(state["annotations"]["org.example"], "kept");
    // It is in the container's own group, where criu was put.
    assert!(fake.seen("cgroup").contains(&case.id));
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(own.contains(&case.id), "{own}");
    assert!(fake.seen("root").contains("bin"), "{}", fake.seen("root"));
    assert!(case.rootfs().join("new/file").is_file());

    let requests = fake.requests();
    let options = requests[0].opts.clone().unwrap();
    assert_eq!(requests[0].kind, ask::RESTORE);
    assert_eq!(options.rst_sibling, Some(true));
    assert_eq!(options.log_file(), "restore.log");
    assert_eq!(options.lsm_profile(), "apparmor:other");
    assert_eq!(options.lsm_mount_context(), "context");
    assert_eq!(options.manage_cgroups_mode, Some(0));
    assert_eq!(options.config_file(), "/some/criu.conf");
    let mounts: Vec<(&str, &str)> = options
        .ext_mnt
        .iter()
        .map(|one| (one.key.as_str(), one.val.as_str()))
        .collect();
    assert!(
        mounts.contains(&("/new/file", text(&case.path("bound")))),
        "{mounts:?}"
    );
    assert!(mounts.contains(&("/dev/null", "/dev/null")), "{mounts:?}");
    assert!(
        options
            .cg_root
            .iter()
            .any(|root| root.path.ends_with(&case.id)),
        "{options:?}"
    );
    let passed = fake.seen("passed");
    let keys: Vec<&str> = passed
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert_eq!(keys, ["pipe:[5]", "file[1f:2a]"]);
    assert!(
        passed.contains("verb-out") && passed.contains("verb-err"),
        "{passed}"
    );

    for (name, status) in [("prestart", "created"), ("createRuntime", "creating")] {
        let state = told(&case, name);
        assert_eq!(state["pid"].to_string(), pid, "{name}");
        assert_eq!(state["status"], status);
    }
    assert!(!case.path("state").join(&case.id).join("criu-root").exists());

    let again = verb(
        &case,
        text(&fake.program),
        &["restore", "--image-path", text(&images), &case.id],
    );
    assert!(again.err.contains("exists already"), "{again:?}");
    assert_eq!(case.status(), "running");
    assert_eq!(
        case.verb(&["update", "--pids-limit", "33", &case.id]).code,
        0
    );
    assert_eq!(case.verb(&["pause", &case.id]).code, 0);
    assert_eq!(case.status(), "paused");
    assert_eq!(case.verb(&["resume", &case.id]).code, 0);
    let stats = case.verb(&["events", "--stats", &case.id]);
    assert!(stats.out.contains("\"pids\""), "{stats:?}");
    assert_eq!(case.verb(&["kill", &case.id, "KILL"]).code, 0);
    case.wait_status("stopped");
    assert_eq!(case.verb(&["delete", &case.id]).code, 0);
    assert_eq!(told(&case, "poststop")["status"], "stopped");
    case.assert_nothing_left();
}

#[test]
fn a_restore_tells_criu_what_a_checkpoint_tells_it() {
    if !is_ours() {
        return;
    }
    let case = Case::command(SLEEP);
    let images = case.path("images");
    fs::create_dir_all(&images).unwrap();
    let flags = [
        "--tcp-established",
        "--ext-unix-sk",
        "--shell-job",
        "--file-locks",
        "--link-remap",
        "--lazy-pages",
        "--auto-dedup",
        "--empty-ns",
        "network",
    ];
    let restore = ["restore", "--detach", "--image-path", text(&images)];
    let told = |fake: &Fake| {
        let options = fake.requests().pop().unwrap().opts.unwrap();
        let flags = [
            options.tcp_established,
            options.ext_unix_sk,
            options.shell_job,
            options.file_locks,
            options.link_remap,
            options.lazy_pages,
            options.auto_dedup,
        ];
        (flags, options.empty_ns)
    };
    let fake = Fake::new(&case, Mode::Works);
    let run = |args: &[&str]| verb(&case, text(&fake.program), &[args, &[&case.id]].concat());
    let done = run(&[&restore[..], &flags[..]].concat());
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(told(&fake), ([Some(true); 7], Some(0x4000_0000)));
    assert_eq!(case.verb(&["delete", "--force", &case.id]).code, 0);
    // None of them is told unasked.
    assert_eq!(run(&restore).code, 0);
    let (flags, empty) = told(&fake);
    assert!(!flags.contains(&Some(true)), "{flags:?}");
    assert_ne!(empty, Some(0x4000_0000));
}

#[test]
fn a_restore_finds_its_bundle_and_leaves_its_log_where_it_is_told() {
    if !is_ours() {
        return;
    }
    let case = Case::command(SLEEP);
    let (images, work) = (case.path("images"), case.path("work"));
    fs::create_dir_all(&images).unwrap();
    let fake = Fake::new(&case, Mode::Refuses);
    let bundle = case.bundle();
    let args = [
        "--criu",
        text(&fake.program),
        "restore",
        "--image-path",
        text(&images),
        "--work-path",
        text(&work),
    ];
    let done = |more: &[&str]| {
        let mut command = case.runtime(&[&args[..], more, &[&case.id]].concat());
        let output = command.current_dir("/").output().unwrap();
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let without = done(&[]);
    assert!(without.contains("config.json"), "{without}");
    assert!(fake.requests().is_empty());
    let with = done(&["--bundle", text(&bundle)]);
    let log = work.join("restore.log");
    assert!(
        with.contains(&format!("log file: {}", text(&log))),
        "{with}"
    );
    assert!(
        fs::read_to_string(log)
            .unwrap()
            .contains("does not want to")
    );
    assert!(!images.join("restore.log").exists());
    case.assert_nothing_left();
}

#[test]
fn a_restore_in_the_foreground_waits_and_gives_the_exit_code() {
    if !is_ours() {
        return;
    }
    let case = Case::command(SLEEP);
    let images = case.path("images");
    fs::create_dir_all(&images).unwrap();
    let fake = Fake::new(&case, Mode::Exits);
    let done = verb(
        &case,
        text(&fake.program),
        &["restore", "--image-path", text(&images), &case.id],
    );
    assert_eq!(done.code, 7, "{done:?}");
    case.assert_nothing_left();
}

#[test]
fn the_terminal_of_a_restored_container_goes_to_the_console_socket() {
    if !is_ours() {
        return;
    }
    let mut case = Case::command(SLEEP);
    case.config["process"]["terminal"] = json!(true);
    let images = case.path("images");
    fs::create_dir_all(&images).unwrap();
    let fake = Fake::new(&case, Mode::Terminal);
    let socket = case.path("console");
    let listener = UnixListener::bind(&socket).unwrap();
    let restore = ["restore", "--detach", "--image-path", text(&images)];
    let done = verb(
        &case,
        text(&fake.program),
        &[&restore[..], &[&case.id]].concat(),
    );
    assert!(done.err.contains("--console-socket"), "{done:?}");
    let flags = ["--console-socket", text(&socket), &case.id];
    let done = verb(
        &case,
        text(&fake.program),
        &[&restore[..], &flags[..]].concat(),
    );
    assert_eq!(done.code, 0, "{done:?}");
    let (stream, _) = listener.accept().unwrap();
    let fd = receive_fd(stream.as_raw_fd());
    let link = fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
    assert_eq!(text(&link), "/dev/ptmx");
    nix::unistd::close(fd).unwrap();
}

fn receive_fd(socket: i32) -> i32 {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut buffer = [0; 64];
    let mut control = nix::cmsg_space!(i32);
    let mut slices = [std::io::IoSliceMut::new(&mut buffer)];
    let message =
        recvmsg::<()>(socket, &mut slices, Some(&mut control), MsgFlags::empty()).unwrap();
    for part in message.cmsgs().unwrap() {
        if let ControlMessageOwned::ScmRights(fds) = part {
            return fds[0];
        }
    }
    panic!("no descriptor came");
}

#[test]
fn a_failed_restore_leaves_nothing() {
    if !is_ours() {
        return;
    }
    for mode in [Mode::Refuses, Mode::Dies] {
        let case = Case::command(SLEEP);
        let images = case.path("images");
        fs::create_dir_all(&images).unwrap();
        let fake = Fake::new(&case, mode);
        let pid_file = case.path("pid");
        let done = verb(
            &case,
            text(&fake.program),
            &[
                "restore",
                "--detach",
                "--pid-file",
                text(&pid_file),
                "--image-path",
                text(&images),
                &case.id,
            ],
        );
        assert_eq!(done.code, 1, "{mode:?}: {done:?}");
        let log = format!("log file: {}/restore.log", images.display());
        assert!(done.err.contains(&log), "{mode:?}: {done:?}");
        let why = match mode {
            Mode::Refuses => "type RESTORE errno 17: Error (criu/fake.c:7): it does not want to",
            _ => "criu ended during RESTORE (exit status 3)",
        };
        assert!(done.err.contains(why), "{done:?}");
        assert!(!pid_file.exists());
        wait(|| match is_running(&fake.seen("pid")) {
            false => Ok(()),
            true => Err(format!("{mode:?}: the process is left")),
        });
        case.assert_nothing_left();
    }
}

#[test]
fn a_hook_that_fails_ends_the_restore() {
    if !is_ours() {
        return;
    }
    let mut case = Case::command(SLEEP);
    case.config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/false" }] });
    let images = case.path("images");
    fs::create_dir_all(&images).unwrap();
    let fake = Fake::new(&case, Mode::Works);
    let done = verb(
        &case,
        text(&fake.program),
        &[
            "restore",
            "--detach",
            "--image-path",
            text(&images),
            &case.id,
        ],
    );
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.err.contains("/bin/false ended with"), "{done:?}");
    wait(|| match is_running(&fake.seen("pid")) {
        false => Ok(()),
        true => Err("the process is left".to_owned()),
    });
    case.assert_nothing_left();
}

#[test]
fn images_that_are_not_there_are_an_error() {
    if !is_ours() {
        return;
    }
    let case = Case::command(SLEEP);
    let fake = Fake::new(&case, Mode::Works);
    let done = verb(
        &case,
        text(&fake.program),
        &["restore", "--image-path", "/nowhere/images", &case.id],
    );
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.err.contains("open /nowhere/images"), "{done:?}");
    case.assert_nothing_left();
}

#[test]
fn podman_finds_what_it_asks_for() {
    if !is_ours() {
        return;
    }
    let run = |args: &[&str]| {
        let mut command = Command::new(support::runtime());
        let output = command.args(args).output().expect("run");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    assert_eq!(run(&["checkpoint", "--help"]).0, Some(0));
    let (code, text) = run(&["restore", "--lsm-mount-context"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("flag needs an argument"), "{text}");
}
