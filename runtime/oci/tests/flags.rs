//! Flags that callers give rarely: each seen to have its effect.

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::{Case, group_file, is_ours, wait};

const SLEEP: &[&str] = &["/bin/sleep", "600"];

/// Runs a verb with descriptor 3 open on a file that holds `text`.
fn with_descriptor(case: &Case, args: &[&str], text: &str) -> std::process::ExitStatus {
    let given = case.path("given");
    std::fs::write(&given, text).unwrap();
    let command = case.runtime(args);
    Command::new("sh")
        .args(["-c", "exec 3<\"$0\"; exec \"$@\""])
        .arg(&given)
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(case.bundle())
        .stdin(Stdio::null())
        .stdout(File::create(case.path("out")).unwrap())
        // Not a pipe: the container keeps it.
        .stderr(File::create(case.path("err")).unwrap())
        .status()
        .unwrap()
}

#[test]
fn create_and_run_pass_descriptors_on() {
    for flags in [&["run"][..], &["create"]] {
        for (passed, wanted) in [("1", "from outside"), ("0", "")] {
            let case = Case::new("cat <&3");
            let args = [flags, &["--preserve-fds", passed, &case.id]].concat();
            let done = with_descriptor(&case, &args, "from outside");
            if flags == ["create"] {
                assert!(done.success(), "{done:?}");
                assert_eq!(case.verb(&["start", &case.id]).code, 0);
                case.wait_status("stopped");
            }
            assert_eq!(case.output(), wanted, "{flags:?} {passed}: {done:?}");
        }
    }
}

#[test]
fn without_pivot_the_root_is_the_containers_too() {
    for verb in ["create", "run"] {
        let case = Case::new("ls -d /data; ls -d /root /usr 2>/dev/null; echo end");
        let status = case
            .runtime(&[verb, "--no-pivot", &case.id])
            .stdout(File::create(case.path("out")).unwrap())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{verb}");
        if verb == "create" {
            assert_eq!(case.verb(&["start", &case.id]).code, 0);
            case.wait_status("stopped");
        }
        assert_eq!(case.output(), "/data\nend\n", "{verb}");
        case.verb(&["delete", "--force", &case.id]);
        case.assert_nothing_left();
    }
}

#[test]
fn a_session_keyring_is_made_unless_that_is_refused() {
    for verb in ["create", "run"] {
        for (flag, made) in [(None, true), (Some("--no-new-keyring"), false)] {
            let mut case = Case::new("cat /proc/keys");
            case.linux()["maskedPaths"] = json!([]);
            let args = [&[verb][..], flag.as_slice(), &[&case.id]].concat();
            let status = case
                .runtime(&args)
                .stdout(File::create(case.path("out")).unwrap())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            assert!(status.success(), "{args:?}");
            if verb == "create" {
                assert_eq!(case.verb(&["start", &case.id]).code, 0);
                case.wait_status("stopped");
            }
            let own = format!("_ses.{}:", case.id);
            let out = case.output();
            assert_eq!(out.contains(&own), made, "{args:?}: {out}");
        }
    }
}

#[test]
fn a_detached_run_sends_its_terminal_to_the_console_socket() {
    let mut case = Case::new("test -t 0 && echo a terminal");
    case.config["process"]["terminal"] = json!(true);
    let path = case.path("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let socket = path.to_str().unwrap();
    let done = case.verb(&["run", "--detach", "--console-socket", socket, &case.id]);
    assert_eq!(done.code, 0, "{done:?}");
    let (stream, _) = listener.accept().unwrap();
    let master = receive_fd(&stream);
    let mut text = Vec::new();
    let mut file = File::from(master);
    let mut buffer = [0; 256];
    // The end of the last slave is reported as EIO.
    while let Ok(length @ 1..) = file.read(&mut buffer) {
        text.extend_from_slice(&buffer[..length]);
    }
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("a terminal"), "{text:?}");
}

fn receive_fd(socket: &std::os::unix::net::UnixStream) -> std::os::fd::OwnedFd {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::os::fd::{AsRawFd, FromRawFd};
    let mut buffer = [0; 64];
    let mut control = nix::cmsg_space!(i32);
    let mut slices = [std::io::IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::empty(),
    )
    .unwrap();
    let fds = message.cmsgs().unwrap().find_map(|part| match part {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel made the descriptor for this message, and it is taken once.
    #[expect(unsafe_code, reason = "a descriptor comes as a number")]
    unsafe {
        std::os::fd::OwnedFd::from_raw_fd(fds.expect("a descriptor"))
    }
}

#[test]
fn run_keeps_the_container_if_that_is_wanted() {
    if !is_ours() {
        return; // Debian's runc and crun are older than the flag.
    }
    let case = Case::new("exit 3");
    let done = case.verb(&["run", "--keep", &case.id]);
    assert_eq!(done.code, 3, "{done:?}");
    assert_eq!(case.status(), "stopped");
    assert_eq!(case.verb(&["delete", &case.id]).code, 0);
    case.assert_nothing_left();
}

#[test]
fn run_adopts_orphans_unless_that_is_refused() {
    // The inner shell ends at once, and leaves a process that tells its new parent.
    let script = "sh -c '(until [ -e /data/go ]; do sleep 0.01; done
                   exec sh -c \"grep PPid /proc/\\$\\$/status > /data/new; ln /data/new /data/out\") &'
                  touch /data/go; until [ -e /data/out ]; do sleep 0.01; done; cat /data/out";
    for (flag, adopted) in [(None, true), (Some("--no-subreaper"), false)] {
        let mut case = Case::new(script);
        // In a namespace of its own the orphans would be the first process's.
        case.linux()["namespaces"]
            .as_array_mut()
            .unwrap()
            .retain(|namespace| namespace["type"] != "pid");
        let args = [&["run"][..], flag.as_slice(), &[&case.id]].concat();
        let run = case.runtime(&args).stdout(Stdio::piped()).spawn().unwrap();
        let of_run = format!("PPid:\t{}\n", run.id());
        let done = run.wait_with_output().unwrap();
        let out = String::from_utf8(done.stdout).unwrap();
        assert!(out.starts_with("PPid:\t"), "{out}");
        assert_eq!(out == of_run, adopted, "{flag:?}: {out}, not {of_run}");
        case.assert_nothing_left();
    }
}

#[test]
fn update_takes_the_rare_limits_too() {
    let mut case = Case::command(SLEEP);
    case.linux()["resources"]["memory"] =
        json!({ "useHierarchy": true, "checkBeforeUpdate": true });
    case.start();
    let file = |controller: &str, name: &str| group_file(&case.id, controller, name);
    assert_eq!(file("memory", "memory.use_hierarchy"), "1");
    let update = |args: &[&str]| case.verb(&[&["update"][..], args, &[&case.id]].concat());
    for args in [
        &[
            "--cpu-period",
            "50000",
            "--cpu-quota",
            "25000",
            "--cpu-burst",
            "10000",
        ][..],
        &["--memory", "64m", "--memory-swap", "128m"],
        &["--cpu-idle", "1"],
    ] {
        let done = update(args);
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
    }
    assert_eq!(file("cpu", "cpu.cfs_burst_us"), "10000");
    assert_eq!(file("memory", "memory.memsw.limit_in_bytes"), "134217728");
    assert_eq!(file("cpu", "cpu.idle"), "1");
    let done = update(&["--kernel-memory-tcp", "1000000"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.err.contains("no effect"), "{done:?}");
}

#[test]
fn update_sets_what_this_kernel_has_and_names_what_it_has_not() {
    let case = Case::command(SLEEP);
    case.start();
    let group = |controller: &str| {
        let of = format!("/sys/fs/cgroup/{controller}/{}", case.id);
        std::path::PathBuf::from(of)
    };
    for (args, files, controller, value, field) in [
        (
            &["--blkio-weight", "300"][..],
            &["blkio.bfq.weight", "blkio.weight"][..],
            "blkio",
            "300",
            "blockIO.weight",
        ),
        (
            &["--cpu-rt-period", "900000"],
            &["cpu.rt_period_us"],
            "cpu",
            "900000",
            "realtimePeriod",
        ),
        (
            &["--cpu-rt-runtime", "0"],
            &["cpu.rt_runtime_us"],
            "cpu",
            "0",
            "realtimeRuntime",
        ),
    ] {
        let done = case.verb(&[&["update"][..], args, &[&case.id]].concat());
        let found = files
            .iter()
            .find(|file| group(controller).join(file).exists());
        match found {
            Some(file) => {
                assert_eq!(done.code, 0, "{args:?}: {done:?}");
                assert_eq!(group_file(&case.id, controller, file), value, "{args:?}");
            }
            None => {
                assert_eq!(done.code, 1, "{args:?}: {done:?}");
                assert!(done.err.contains(field), "{args:?}: {done:?}");
            }
        }
    }
}

#[test]
fn the_place_of_criu_may_be_given() {
    let case = Case::command(&["/bin/true"]);
    let done = case.verb(&["--criu", "/nowhere/criu", "run", &case.id]);
    assert_eq!(done.code, 0, "{done:?}");
    wait(|| match case.verb(&["list", "-q"]).out {
        none if none.is_empty() => Ok(()),
        some => Err(some),
    });
}
