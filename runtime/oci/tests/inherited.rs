//! What the runtime's caller leaves to it: signals, masks, descriptors, limits, directory. Nothing of it may break a verb, and
//! nothing but what is meant for it may reach a container.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use serde_json::json;

use crate::support::{self, Case, DEADLINE, Done, is_ours};

const SLEEP: &[&str] = &["/bin/sleep", "1000"];

/// Puts the process that becomes `command` into a state of the test's choice.
fn starting(mut command: Command, state: fn() -> io::Result<()>) -> Command {
    #[expect(unsafe_code, reason = "the state is set between fork and exec")]
    // SAFETY: every state of these tests is made by system calls alone, on numbers and constants.
    unsafe {
        command.pre_exec(state);
    }
    command
}

/// Runs a command to its end, which comes soon.
fn soon(mut command: Command) -> Done {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("run the runtime");
    let end = Instant::now() + DEADLINE;
    while child.try_wait().expect("wait").is_none() {
        if Instant::now() > end {
            child.kill().expect("kill");
            panic!("{command:?} hangs");
        }
        std::thread::yield_now();
    }
    support::finish(child.wait_with_output().expect("output"))
}

fn ignore_all() -> io::Result<()> {
    // One by one, because some belong to libc, and two to nobody.
    for number in 1..=64 {
        #[expect(unsafe_code, reason = "a disposition that every caller may have")]
        // SAFETY: ignoring a signal runs no code.
        unsafe {
            nix::libc::signal(number, nix::libc::SIG_IGN);
        }
    }
    Ok(())
}

fn block_all() -> io::Result<()> {
    Ok(sigprocmask(
        SigmaskHow::SIG_SETMASK,
        Some(&SigSet::all()),
        None,
    )?)
}

#[test]
fn a_caller_may_ignore_and_block_every_signal() {
    for state in [ignore_all, block_all] {
        let mut case = Case::new("exit 5");
        case.config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/true" }], "createContainer": [{ "path": "/bin/true" }] });
        let done = soon(starting(case.runtime(&["run", &case.id]), state));
        assert_eq!(done.code, 5, "{done:?}");
        case.assert_nothing_left();

        case.config["process"]["args"] = json!(SLEEP);
        let (out, err) = (case.path("out"), case.path("err"));
        let mut create = starting(case.runtime(&["create", &case.id]), state);
        let create = create
            .stdout(std::fs::File::create(out).unwrap())
            .stderr(std::fs::File::create(err).unwrap());
        assert!(create.status().unwrap().success());
        let start = soon(starting(case.runtime(&["start", &case.id]), state));
        assert_eq!(start.code, 0, "{start:?}");
        let exec = ["exec", &case.id, "/bin/sh", "-c", "exit 6"];
        let done = soon(starting(case.runtime(&exec), state));
        assert_eq!(done.code, 6, "{done:?}");
        let kill = soon(starting(case.runtime(&["kill", &case.id, "KILL"]), state));
        assert_eq!(kill.code, 0, "{kill:?}");
        case.wait_status("stopped");
    }
}

#[test]
fn a_container_is_born_with_no_signal_ignored_or_blocked() {
    let signals = ["/bin/grep", "-E", "^Sig(Blk|Ign):", "/proc/self/status"];
    let none = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n";
    for state in [ignore_all, block_all] {
        let mut case = Case::command(&signals);
        // A first process ignores what it has no handler for, and the kernel says so of no other.
        let done = soon(starting(case.runtime(&["run", &case.id]), state));
        assert_eq!(done.out, none, "{done:?}");
        case.config["process"]["args"] = json!(SLEEP);
        case.start();
        let exec = [&["exec", &case.id], &signals[..]].concat();
        let done = soon(starting(case.runtime(&exec), state));
        assert_eq!(done.out, none, "{done:?}");
    }
}

/// What a process holds open: one line each, but for the directory that `ls` reads.
const HELD: &str =
    "for f in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do readlink /proc/$$/fd/$f; done";

#[test]
fn descriptors_of_the_runtimes_own_are_passed_to_nobody() {
    // Podman sets LISTEN_PID to 1, and names the descriptors by --preserve-fds.
    for pid in ["1", "", "nobody"] {
        let mut case = Case::new(HELD);
        let mut run = case.runtime(&["run", &case.id]);
        run.env("LISTEN_FDS", "6").env("LISTEN_PID", pid);
        let done = soon(run);
        assert_eq!((done.code, done.out.lines().count()), (1, 3), "{done:?}");
        case.config["process"]["args"] = json!(SLEEP);
        case.start();
        let mut exec = case.runtime(&["exec", &case.id, "/bin/sh", "-c", HELD]);
        exec.env("LISTEN_FDS", "6").env("LISTEN_PID", pid);
        let done = soon(exec);
        assert_eq!(done.out.lines().count(), 3, "{done:?}");
    }
    let case = Case::new(HELD);
    let done = case.verb(&["run", "--preserve-fds", "3", &case.id]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(
        !is_ours() || done.err.contains("descriptor 3 is not open"),
        "{done:?}"
    );
    case.assert_nothing_left();
    // Descriptor 4 is the caller's, and 3 is not.
    let mut gap = Command::new("sh");
    let command = case.runtime(&["run", "--preserve-fds", "2", &case.id]);
    gap.args(["-c", "exec 4</dev/zero; exec \"$@\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    let done = soon(gap);
    assert_eq!((done.code, done.out.as_str()), (1, ""), "{done:?}");
    case.assert_nothing_left();
}

/// A command of the runtime with descriptors open on files that hold their number, for socket activation as far as `count` says.
fn activated(case: &Case, open: &[u32], count: &str, args: &[&str]) -> Command {
    let mut script = String::new();
    for number in open {
        let path = case.path(&format!("given{number}"));
        std::fs::write(&path, format!("{number}\n")).unwrap();
        script += &format!("exec {number}<{}; ", path.display());
    }
    script += &format!("export LISTEN_FDS={count} LISTEN_PID=$$; exec \"$@\"");
    let command = case.runtime(args);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", &script, "sh"])
        .arg(command.get_program())
        .args(command.get_args())
        .env("LISTEN_FDNAMES", "web:mail")
        .current_dir(case.bundle())
        .stdin(Stdio::null());
    shell
}

#[test]
fn sockets_that_a_caller_passes_arrive_and_are_announced() {
    let script = "echo $LISTEN_FDS $LISTEN_PID $LISTEN_FDNAMES; cat <&3; cat <&4; cat <&5";
    let mut case = Case::new(script);
    let env = case.config["process"]["env"].as_array_mut().unwrap();
    env.extend([json!("LISTEN_PID=77"), json!("LISTEN_FDS=9")]);
    let run = ["run", "--preserve-fds", "1", &case.id];
    let done = soon(activated(&case, &[3, 4, 5], "2", &run));
    assert_eq!(done.out, "2 1 web:mail\n3\n4\n5\n", "{done:?}");
    // Fewer than it says: whose would the others be?
    let done = soon(activated(&case, &[3, 4, 5], "3", &run));
    assert_eq!((done.code, done.out.as_str()), (1, ""), "{done:?}");
    case.assert_nothing_left();

    case.config["process"]["args"] = json!(SLEEP);
    case.start();
    let exec = [
        "exec",
        &case.id,
        "/bin/sh",
        "-c",
        "test $LISTEN_PID = $$ && cat <&3",
    ];
    let done = soon(activated(&case, &[3], "1", &exec));
    assert_eq!((done.code, done.out.as_str()), (0, "3\n"), "{done:?}");
}

#[test]
fn hooks_get_no_descriptors() {
    let mut case = Case::new("true");
    let out = case.path("held");
    let hook = json!([{ "path": "/bin/sh", "args": ["sh", "-c", format!("ls /proc/self/fd >> {}", out.display())] }]);
    case.config["hooks"] = json!({ "createRuntime": hook, "createContainer": hook, "poststart": hook, "poststop": hook });
    let done = soon(activated(&case, &[3, 4], "1", &["run", &case.id]));
    assert_eq!(done.code, 0, "{done:?}");
    // Its own directory, and `ls` has that one open.
    assert_eq!(
        std::fs::read_to_string(out).unwrap(),
        "0\n1\n2\n3\n".repeat(4)
    );
}

fn mode(path: impl AsRef<Path>) -> u32 {
    let path = path.as_ref();
    let meta =
        std::fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    meta.permissions().mode() & 0o7777
}

fn mask(bits: u32) -> io::Result<()> {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(bits));
    Ok(())
}

#[test]
fn what_is_made_for_a_container_has_usual_modes_whatever_the_callers_mask() {
    for state in [
        (|| mask(0o077)) as fn() -> io::Result<()>,
        || mask(0o777),
        || mask(0),
    ] {
        let script =
            "umask; stat -c %a /data/made /data/made/deep /work /dev/null /dev/pts/ptmx /data/file";
        let mut case = Case::new(script);
        case.config["process"]["cwd"] = json!("/work");
        std::fs::write(case.path("file"), "").unwrap();
        case.add_mount(json!({ "destination": "/data/made/deep", "type": "tmpfs", "source": "tmpfs", "options": ["mode=0750"] }));
        case.add_mount(json!({ "destination": "/data/file", "type": "bind", "source": case.path("file"), "options": ["bind"] }));
        let by_hook = case.path("by-hook");
        case.config["hooks"] = json!({ "createContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", format!("> {}", by_hook.display())] }] });
        let done = soon(starting(case.runtime(&["run", "--keep", &case.id]), state));
        assert_eq!(done.out, "0022\n755\n750\n755\n666\n666\n644\n", "{done:?}");
        assert_eq!(mode(by_hook), 0o644);
        assert_eq!(mode(case.rootfs().join("data/made")), 0o755);
        assert_eq!(mode(case.path("state").join(&case.id)), 0o711);
        for group in case.groups() {
            assert_eq!(mode(&group), 0o755, "{}", group.display());
        }
        assert_eq!(case.verb(&["delete", &case.id]).code, 0);

        case.config["process"]["args"] = json!(SLEEP);
        case.config["process"]["user"]["umask"] = json!(0o027);
        case.start();
        let exec = ["exec", &case.id, "/bin/sh", "-c", "umask"];
        let done = soon(starting(case.runtime(&exec), state));
        assert_eq!(done.out, "0027\n", "{done:?}");
    }
}

fn close_streams() -> io::Result<()> {
    for number in 0..3 {
        nix::unistd::close(number)?;
    }
    Ok(())
}

#[test]
fn closed_standard_streams_are_the_null_device_inside() {
    // The shell keeps the standard output that it had as number 10 while it writes to the file.
    let held = "for f in 0 10 2; do echo $f $(readlink /proc/$$/fd/$f); done > /data/held; exit 5";
    let case = Case::new(held);
    let done = soon(starting(case.runtime(&["run", &case.id]), close_streams));
    assert_eq!(done.code, 5, "{done:?}");
    let held = std::fs::read_to_string(case.rootfs().join("data/held")).unwrap();
    assert_eq!(held, "0 /dev/null\n10 /dev/null\n2 /dev/null\n");
}

fn to_a_directory_that_is_gone() -> io::Result<()> {
    let name = c"/tmp/oci-case-gone";
    match nix::unistd::mkdir(name, nix::sys::stat::Mode::S_IRWXU) {
        Ok(()) | Err(nix::Error::EEXIST) => {}
        Err(error) => return Err(error.into()),
    }
    nix::unistd::chdir(name)?;
    match nix::unistd::unlinkat(
        nix::fcntl::AT_FDCWD,
        name,
        nix::unistd::UnlinkatFlags::RemoveDir,
    ) {
        Ok(()) | Err(nix::Error::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[test]
fn a_caller_may_be_in_a_directory_that_is_gone() {
    let mut case = Case::new("pwd; exit 5");
    case.config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/true" }] });
    let bundle = case.bundle();
    let args = ["run", "--bundle", bundle.to_str().unwrap(), &case.id];
    let done = soon(starting(case.runtime(&args), to_a_directory_that_is_gone));
    assert_eq!((done.code, done.out.as_str()), (5, "/\n"), "{done:?}");
    // And where the bundle would be looked for, it says so.
    let done = soon(starting(
        case.runtime(&["run", &case.id]),
        to_a_directory_that_is_gone,
    ));
    assert_eq!((done.code, done.out.as_str()), (1, ""), "{done:?}");
    case.assert_nothing_left();
}
