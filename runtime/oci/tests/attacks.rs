//! Known attacks on container runtimes, tried: each test does what its CVE describes, and looks at what was touched.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::prey::{Witness, plant, prey, without_mount};
use crate::support::{self, Case, is_ours};

#[test]
fn the_runtime_is_not_overwritten_through_proc_exe() {
    // CVE-2019-5736. The container may trace processes, which is more than the attack had; it opens every program that
    // enters it, and writes through the descriptor.
    let mut case = Case::new(
        "while true; do for p in /proc/[0-9]*; do \
           test \"$(readlink $p/exe)\" = /bin/busybox && continue; \
           ( exec 9<$p/exe && echo >> /data/opened && echo x > /proc/self/fd/9 && echo >> /data/won ); \
         done; done",
    );
    for set in ["bounding", "effective", "permitted"] {
        let set = &mut case.config["process"]["capabilities"][set];
        set.as_array_mut().unwrap().push(json!("CAP_SYS_PTRACE"));
    }
    // A copy, so that a success of the attack does not spoil the other tests.
    let program = case.path("runtime");
    std::fs::copy(support::runtime(), &program).unwrap();
    let before = std::fs::read(&program).unwrap();
    let verb = |args: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("--root").arg(case.path("state")).args(args);
        let streams = command.stdin(Stdio::null()).stdout(Stdio::null());
        streams.stderr(Stdio::null()).current_dir(case.bundle());
        command.status().unwrap()
    };
    drop(case.runtime(&[]));
    assert!(verb(&["create", &case.id]).success());
    assert!(verb(&["start", &case.id]).success());
    for round in 0..40 {
        let program = ["/bin/true", "/proc/self/exe"][round % 2];
        // The second one may fail, as far as the runtime is linked to libraries that the image has not.
        let status = verb(&["exec", &case.id, program, "--version"]);
        assert!(
            status.success() || program != "/bin/true",
            "round {round}: {status}"
        );
    }
    assert!(verb(&["delete", "--force", &case.id]).success());
    assert!(!case.rootfs().join("data/won").exists(), "the attack wrote");
    assert!(
        std::fs::read(&program).unwrap() == before,
        "the program has changed"
    );
}

#[test]
fn descriptors_of_the_caller_and_the_runtime_do_not_reach_the_container() {
    // CVE-2024-21626, the leak: the runtime's caller itself has the host's root open.
    let case = Case::new("ls /proc/self/fd; ls -d /proc/self/fd/9/ 2> /dev/null; sleep 1000");
    let leaky = |args: &[&str]| {
        let plain = case.runtime(args);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec 9</; exec 8</etc; exec \"$0\" \"$@\""]);
        command.arg(plain.get_program()).args(plain.get_args());
        command.current_dir(case.bundle()).stdin(Stdio::null());
        command
    };
    let out = std::fs::File::create(case.path("out")).unwrap();
    let mut create = leaky(&["create", &case.id]);
    assert!(
        create
            .stdout(out)
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(case.verb(&["start", &case.id]).code, 0);
    // The fourth is the directory that ls reads.
    support::wait(|| match case.output() {
        seen if seen == "0\n1\n2\n3\n" => Ok(()),
        seen => Err(format!("descriptors inside: {seen:?}")),
    });
    let exec = leaky(&["exec", &case.id, "ls", "/proc/self/fd"])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&exec.stdout),
        "0\n1\n2\n3\n",
        "{exec:?}"
    );
}

#[test]
fn no_descriptor_serves_as_a_working_directory_outside() {
    // CVE-2024-21626, the escape: for create and for exec, through every descriptor that the runtime may have open.
    let look =
        "ls -a . .. ../.. ../../.. ../../../.. 2> /dev/null; cat ../config.json ../../config.json";
    let running = Case::new("sleep 1000");
    running.start();
    for fd in 0..24 {
        for cwd in [
            format!("/proc/self/fd/{fd}"),
            format!("/proc/self/fd/{fd}/.."),
        ] {
            let mut case = Case::new(look);
            case.config["process"]["cwd"] = json!(cwd);
            let exec = running.verb(&["exec", "--cwd", &cwd, &running.id, "sh", "-c", look]);
            for done in [case.run(), exec] {
                assert!(
                    !done.out.contains("config.json") && !done.out.contains("ociVersion"),
                    "{cwd}: {done:?}"
                );
            }
        }
    }
}

#[test]
fn symlinks_at_mount_destinations_stay_in_the_root() {
    // CVE-2024-45310, CVE-2021-30465: files and directories, existing and missing, in the middle and at the end.
    let mut case = Case::new("true");
    let prey = prey(&case);
    let climbing = Path::new("../../../../../../../..").join(prey.strip_prefix("/").unwrap());
    for (name, target) in [("absolute", &prey), ("climbing", &climbing)] {
        plant(&case, name, target);
        plant(&case, &format!("{name}-file"), target.join("file"));
        plant(&case, &format!("{name}-missing"), target.join("missing"));
        let tmpfs =
            |place: String| json!({ "destination": place, "type": "tmpfs", "source": "tmpfs" });
        let file = |place: String| json!({ "destination": place, "type": "bind", "source": "/etc/hostname", "options": ["bind"] });
        for mount in [
            tmpfs(format!("/{name}/new/directory")),
            tmpfs(format!("/{name}")),
            file(format!("/{name}/new-file")),
            file(format!("/{name}-missing")),
        ] {
            case.add_mount(mount);
        }
    }
    let before = Witness::of(&prey);
    case.run();
    assert_eq!(Witness::of(&prey), before);
}

#[test]
fn a_symlink_at_dev_makes_nothing_on_the_host() {
    // CVE-2026-41579, CVE-2026-47766: the image's /dev leads out; links and nodes were made, and ptmx removed, there.
    for climb in ["", "../../../../../../../.."] {
        let mut case = Case::new("true");
        let prey = prey(&case);
        without_mount(&mut case, "/dev");
        let target = match climb {
            "" => prey.clone(),
            climb => Path::new(climb).join(prey.strip_prefix("/").unwrap()),
        };
        plant(&case, "dev", target);
        case.linux()["devices"] = json!([{ "path": "/dev/file", "type": "c", "major": 1, "minor": 3, "uid": 7, "gid": 7 }]);
        let before = Witness::of(&prey);
        case.run();
        assert_eq!(Witness::of(&prey), before);
    }
}

#[test]
fn a_symlink_at_the_console_is_refused() {
    // CVE-2025-52565, CVE-2026-88264: the terminal would be mounted, and a file made, where the image wants it.
    for target in ["/proc/sys/kernel/hostname", "/data/fresh", "prey"] {
        let mut case = Case::new("true");
        let prey = prey(&case);
        without_mount(&mut case, "/dev");
        case.add_mount(json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"] }));
        let target = if target == "prey" {
            prey.join("fresh")
        } else {
            target.into()
        };
        plant(&case, "dev/console", target);
        case.config["process"]["terminal"] = json!(true);
        let socket = case.path("console.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        let before = Witness::of(&prey);
        let done = case.verb(&[
            "create",
            "--console-socket",
            socket.to_str().unwrap(),
            &case.id,
        ]);
        if is_ours() {
            assert_ne!(done.code, 0, "{done:?}");
        }
        assert_eq!(Witness::of(&prey), before);
        assert!(!case.rootfs().join("data/fresh").exists());
    }
}

#[test]
fn an_image_cannot_choose_what_masks_a_file() {
    // CVE-2025-31133, CVE-2026-88265: the image's /dev/null is a link to a file of procfs, or to one of the host.
    for target in ["/proc/sys/kernel/core_pattern", "prey"] {
        let mut case = Case::new(
            "stat -L -c %t:%T /proc/version; cat /proc/version; echo x > /proc/version; echo done",
        );
        let prey = prey(&case);
        without_mount(&mut case, "/dev");
        plant(
            &case,
            "dev/null",
            if target == "prey" {
                prey.join("null")
            } else {
                target.into()
            },
        );
        case.linux()["maskedPaths"]
            .as_array_mut()
            .unwrap()
            .push(json!("/proc/version"));
        let before = Witness::of(&prey);
        let done = case.run();
        if is_ours() {
            assert_eq!(done.out, "1:3\ndone\n", "{done:?}");
        }
        assert_eq!(Witness::of(&prey), before);
    }
}

#[test]
fn nothing_is_mounted_over_proc_nor_into_it() {
    // CVE-2019-16884: an image's volume at /proc fools what the runtime writes there.
    let places = [
        "/proc",
        "/proc/",
        "/proc/../proc",
        "/proc/self/attr",
        "/proc/self/../sys",
        "/proc/sys/kernel",
        "/proc/1",
        "/linked",
        "/linked/self/attr",
        "/proc/self/cwd/proc/self",
    ];
    for place in places {
        for typ in ["bind", "tmpfs"] {
            let mut case = Case::new("echo ran");
            let fake = case.path("fake");
            std::fs::create_dir(&fake).unwrap();
            plant(&case, "linked", "/proc");
            let mount = json!({ "destination": place, "type": typ, "source": fake, "options": if typ == "bind" { vec!["rbind"] } else { vec![] } });
            case.add_mount(mount);
            let done = case.run();
            assert_ne!(done.code, 0, "{typ} at {place}: {done:?}");
            assert_eq!(std::fs::read_dir(&fake).unwrap().count(), 0);
            case.assert_nothing_left();
        }
    }
}

#[test]
fn procfs_and_sysfs_are_mounted_where_they_belong_only() {
    // CVE-2019-19921: with /proc a link into a volume, the masks can be led elsewhere.
    for place in ["proc", "sys"] {
        let case = Case::new("echo ran");
        let prey = prey(&case);
        plant(&case, place, "/data");
        let done = case.run();
        assert_ne!(done.code, 0, "{place}: {done:?}");
        std::fs::remove_file(case.rootfs().join(place)).unwrap();
        plant(&case, place, &prey);
        let before = Witness::of(&prey);
        assert_ne!(case.run().code, 0);
        assert_eq!(Witness::of(&prey), before);
        case.assert_nothing_left();
    }
}

#[test]
fn kernel_parameters_are_not_written_to_files_of_the_image() {
    // CVE-2025-52881: no procfs at /proc, but files of the same names, which lead to the host.
    let mut case = Case::new("echo ran");
    let prey = prey(&case);
    without_mount(&mut case, "/proc");
    std::fs::create_dir_all(case.rootfs().join("proc/sys/net/ipv4")).unwrap();
    std::fs::write(
        case.rootfs().join("proc/sys/net/ipv4/ip_forward"),
        "the image's\n",
    )
    .unwrap();
    plant(&case, "proc/sys/net/ipv4/ip_default_ttl", prey.join("file"));
    case.linux()["sysctl"] = json!({ "net.ipv4.ip_forward": "1", "net.ipv4.ip_default_ttl": "77" });
    let before = (Witness::of(&prey), Witness::of(&case.rootfs().join("proc")));
    let done = case.run();
    if is_ours() {
        assert_eq!((done.code, done.out.as_str()), (0, "ran\n"), "{done:?}");
    }
    assert_eq!(
        (Witness::of(&prey), Witness::of(&case.rootfs().join("proc"))),
        before
    );
}

#[test]
fn names_of_kernel_parameters_cannot_climb_out_of_a_namespace() {
    let pattern = || std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let before = pattern();
    for name in [
        "net/../kernel/core_pattern",
        "net.ipv4/../../kernel/core_pattern",
        "kernel.core_pattern",
        "net//../kernel/core_pattern",
        "/kernel/core_pattern",
        "net/../../sysrq-trigger",
        "fs.mqueue./../../kernel/core_pattern",
        "",
    ] {
        let mut case = Case::new("echo ran");
        case.linux()["sysctl"] = json!({ name: before.trim() });
        let done = case.run();
        assert_ne!(done.code, 0, "{name:?}: {done:?}");
        case.assert_nothing_left();
    }
    assert_eq!(pattern(), before);
}

#[test]
fn capabilities_are_not_inherited_unasked() {
    // CVE-2022-27650 (and CVE-2022-24769): a non-empty inheritable set, for which nobody has asked.
    let case = Case::new("sleep 1000");
    case.start();
    let script = ["sh", "-c", "grep -E 'CapInh|CapAmb' /proc/self/status"];
    for flags in [
        &[][..],
        &["--cap", "CAP_NET_RAW"][..],
        &["--cap", "CAP_NET_RAW", "--user", "5:5"][..],
    ] {
        let done = case.verb(&[&["exec"][..], flags, &[&case.id], &script].concat());
        let mut lines = done.out.lines().map(|line| line.split_whitespace().last());
        assert_eq!(
            lines.next(),
            Some(Some("0000000000000000")),
            "{flags:?}: {done:?}"
        );
    }
    let generated = Case::new("");
    let directory = generated.path("new");
    std::fs::create_dir(&directory).unwrap();
    let done = generated.verb(&["spec", "--bundle", directory.to_str().unwrap()]);
    assert_eq!(done.code, 0, "{done:?}");
    let text = std::fs::read(directory.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&text).unwrap();
    let sets = &config["process"]["capabilities"];
    assert!(
        sets["inheritable"].as_array().is_none_or(Vec::is_empty),
        "{sets}"
    );
}

#[test]
fn an_id_cannot_leave_the_state_directory() {
    let case = Case::new("true");
    let victim = case.path("victim");
    std::fs::create_dir_all(case.path("state/inner")).unwrap();
    std::fs::create_dir(&victim).unwrap();
    for name in ["state.json", "config.json", "start.sock"] {
        std::fs::write(victim.join(name), "{}").unwrap();
    }
    let before = Witness::of(&victim);
    let whole = victim.to_str().unwrap();
    for id in [
        "../victim",
        "inner/../../victim",
        whole,
        "..",
        ".",
        "",
        "inner/",
        "a/b",
        "a\nb",
    ] {
        for verb in [
            &["create"][..],
            &["run"],
            &["state"],
            &["start"],
            &["kill"],
            &["delete"],
            &["delete", "--force"],
            &["exec"],
        ] {
            let mut args = verb.to_vec();
            args.push("--");
            args.push(id);
            if verb[0] == "exec" {
                args.push("true");
            }
            let done = case.verb(&args);
            // As with runc: deleting by force what is not there is no failure.
            assert!(
                done.code != 0 || verb == ["delete", "--force"],
                "{verb:?} {id:?}: {done:?}"
            );
            assert_eq!(Witness::of(&victim), before, "{verb:?} {id:?}");
        }
    }
}

#[test]
fn a_cgroup_path_cannot_leave_the_hierarchy() {
    for path in [
        "/../../../../tmp",
        "..",
        "../x",
        "/a/../../x",
        "a/../../../../../tmp/x",
    ] {
        let mut case = Case::new("echo ran");
        let path = format!("{path}/{}", case.id);
        case.linux()["cgroupsPath"] = json!(path);
        let done = case.run();
        if is_ours() {
            assert_ne!(done.code, 0, "{path}: {done:?}");
        }
        assert!(!Path::new("/tmp").join(&case.id).exists());
        assert!(!Path::new("/sys/fs").join(&case.id).exists());
        case.assert_nothing_left();
    }
}

#[test]
fn a_fifo_in_the_image_holds_nobody_up() {
    // Opened for reading it would wait for a writer for ever.
    let mut case = Case::new("echo $HOME");
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o644);
    nix::unistd::mkfifo(&case.rootfs().join("etc/passwd"), mode).unwrap();
    std::fs::create_dir(case.rootfs().join("data/up")).unwrap();
    nix::unistd::mkfifo(&case.rootfs().join("data/up/fifo"), mode).unwrap();
    case.add_mount(json!({ "destination": "/data/up", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }));
    assert_eq!(case.run().out, "/\n");
}
