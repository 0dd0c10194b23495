//! With a criu that works.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use super::{text, verb};
use crate::support::{Case, is_ours, wait};

/// The criu of this machine, if it works with this kernel.
fn criu() -> Option<PathBuf> {
    let named = std::env::var_os("KNARR_CRIU").map(PathBuf::from);
    let program = named.unwrap_or_else(|| "criu".into());
    let checked = Command::new(&program).arg("check").output();
    let works = checked.is_ok_and(|output| output.status.success());
    if !works {
        eprintln!("no criu that works here: only our side of it is tested");
    }
    works.then_some(program)
}

const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 0.01; done";

fn count(case: &Case) -> u64 {
    let text = fs::read_to_string(case.rootfs().join("tmp/count")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// Waits until it counts on from `from`; gives where it is.
fn counts_on(case: &Case, from: u64) -> u64 {
    wait(|| match count(case) {
        now if now > from => Ok(()),
        now => Err(format!("it counts {now}, not more than {from}")),
    });
    count(case)
}

#[test]
fn a_container_goes_on_where_it_was_saved() {
    let (true, Some(criu)) = (is_ours(), criu()) else {
        return;
    };
    let criu = text(&criu);
    let mut case = Case::new(COUNT);
    let bound = case.path("bound");
    fs::write(&bound, "from the host").unwrap();
    case.add_mount(json!({ "destination": "/etc/bound", "type": "bind", "source": bound, "options": ["rbind", "ro"] }));
    case.add_mount(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] }));
    case.linux()["resources"]["memory"] = json!({ "limit": 64 << 20 });
    case.start();
    let mut at = counts_on(&case, 10);
    for round in 0..2 {
        let images = case.path(&format!("images{round}"));
        let done = verb(
            &case,
            criu,
            &["checkpoint", "--image-path", text(&images), &case.id],
        );
        assert_eq!(done.code, 0, "{done:?}");
        assert!(images.join("dump.log").exists());
        case.assert_nothing_left();
        let stopped = count(&case);
        assert!(stopped >= at);
        let done = verb(
            &case,
            criu,
            &[
                "restore",
                "--detach",
                "--image-path",
                text(&images),
                &case.id,
            ],
        );
        assert_eq!(done.code, 0, "{done:?}");
        at = counts_on(&case, stopped);
        // From where it was, not from the start.
        assert!(at > stopped, "{at} after {stopped}");
    }
    assert_eq!(case.status(), "running");
    let inside = case.verb(&[
        "exec",
        &case.id,
        "sh",
        "-c",
        "cat /etc/bound; hostname; cat /proc/1/comm; cat /proc/keys | wc -c",
    ]);
    assert_eq!(inside.out, "from the hostinside\nsh\n0\n", "{inside:?}");
    assert_eq!(case.verb(&["pause", &case.id]).code, 0);
    assert_eq!(case.status(), "paused");
    assert_eq!(case.verb(&["resume", &case.id]).code, 0);
    assert_eq!(
        case.verb(&["update", "--memory", "33554432", &case.id])
            .code,
        0
    );
    let stats = case.verb(&["events", "--stats", &case.id]);
    assert!(stats.out.contains("33554432"), "{stats:?}");
    assert_eq!(case.verb(&["kill", &case.id, "KILL"]).code, 0);
    case.wait_status("stopped");
    assert_eq!(case.verb(&["delete", &case.id]).code, 0);
    case.assert_nothing_left();
}

#[test]
fn memory_is_saved_ahead_and_the_container_goes_on() {
    let (true, Some(criu)) = (is_ours(), criu()) else {
        return;
    };
    let criu = text(&criu);
    let case = Case::new(COUNT);
    case.start();
    let at = counts_on(&case, 3);
    let (first, second) = (case.path("images/1"), case.path("images/2"));
    let checkpoint = |args: &[&str]| {
        let done = verb(&case, criu, &[&["checkpoint"], args, &[&case.id]].concat());
        // Some kernels are built without what tracks changes of memory.
        let poor = done.err.contains("has no mem_track");
        assert!(done.code == 0 || poor, "{done:?}");
        !poor
    };
    if checkpoint(&["--pre-dump", "--image-path", text(&first)]) {
        assert_eq!(case.status(), "running");
        fs::create_dir_all(&second).unwrap();
        assert!(checkpoint(&[
            "--image-path",
            text(&second),
            "--parent-path",
            "../1",
            "--leave-running"
        ]));
        assert!(second.join("parent").is_symlink());
    } else {
        assert!(checkpoint(&[
            "--image-path",
            text(&second),
            "--leave-running"
        ]));
    }
    assert_eq!(case.status(), "running");
    counts_on(&case, at);
}

#[test]
fn a_terminal_is_saved_and_restored() {
    let (true, Some(criu)) = (is_ours(), criu()) else {
        return;
    };
    let criu = text(&criu);
    let mut case = Case::new("while read line; do echo got $line; done");
    case.config["process"]["terminal"] = json!(true);
    let start = |verb_args: &[&str]| {
        let socket = case.path("console");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let flags = ["--console-socket", text(&socket), &case.id];
        let done = verb(&case, criu, &[verb_args, &flags[..]].concat());
        assert_eq!(done.code, 0, "{done:?}");
        let (stream, _) = listener.accept().unwrap();
        let fd = super::receive_fd(std::os::fd::AsRawFd::as_raw_fd(&stream));
        fs::remove_file(&socket).unwrap();
        let master = knarr_oci::sys::inherited_fd(fd).unwrap();
        nix::unistd::close(fd).unwrap();
        fs::File::from(master)
    };
    let ask = |master: &mut fs::File, word: &str| {
        use std::io::{Read, Write};
        writeln!(master, "{word}").unwrap();
        let (mut seen, mut buffer) = (String::new(), [0; 256]);
        while !seen.contains(&format!("got {word}")) {
            let length = master.read(&mut buffer).unwrap();
            assert!(length > 0, "{seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
    };
    let mut master = start(&["run", "--detach"]);
    ask(&mut master, "before");
    let images = case.path("images");
    let done = verb(
        &case,
        criu,
        &["checkpoint", "--image-path", text(&images), &case.id],
    );
    assert_eq!(done.code, 0, "{done:?}");
    drop(master);
    let mut master = start(&["restore", "--detach", "--image-path", text(&images)]);
    ask(&mut master, "after");
}
