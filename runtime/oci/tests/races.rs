//! Attacks on container runtimes that have to win a race: a name changes between what the runtime checks and what it uses.
//!
//! Each race is run twice: against a neighbour that exchanges names ten thousand times without a look, and against one that
//! does it between any two system calls (see `race`). Every one of these tests fails if the code that it is about checks a
//! path, and then uses the path once more.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

#[cfg(target_arch = "x86_64")]
use crate::support::inject;
use crate::support::prey::{Witness, prey, without_mount};
use crate::support::race::{self, Swapper};
use crate::support::{self, Case, Done};

/// One change of the configuration that touches the swapped path.
type Touch = fn(&mut Case);

/// Runs containers while `one` and `other` are swapped, each with another of the changes.
fn race(case: &mut Case, one: &Path, other: &Path, touches: &[Touch]) {
    let prey = case.path("prey");
    let before = Witness::of(&prey);
    let plain = case.config.clone();
    let mut succeeded = 0;
    let mut look = |what: &str, done: &Done| {
        succeeded += usize::from(done.code == 0);
        assert!(!done.out.contains("ESCAPED"), "{what}: {done:?}");
        assert_eq!(Witness::of(&prey), before, "{what}: {done:?}");
    };
    Swapper::start(one.to_owned(), other.to_owned()).against(touches.len() * 4, |cycle| {
        case.config = plain.clone();
        touches[cycle % touches.len()](case);
        look(&format!("cycle {cycle}"), &case.run());
    });
    #[cfg(target_arch = "x86_64")]
    for (index, touch) in touches.iter().enumerate() {
        case.config = plain.clone();
        touch(case);
        race::at_every_step(one, other, |what, stepper| {
            [one, other].into_iter().for_each(clear);
            let done = traced(&case.runtime(&["run", &case.id]), stepper);
            look(&format!("change {index}, {what}"), &done);
        });
    }
    case.assert_nothing_left();
    // A race that never lets a container come to be would show nothing.
    assert!(succeeded > 0, "no container ran");
}

/// Runs a command that is, or becomes, the runtime, step by step.
#[cfg(target_arch = "x86_64")]
fn traced(command: &Command, stepper: &mut race::Stepper) -> Done {
    let outcome = inject::watch(command, &support::runtime(), &mut |moment| {
        stepper.step(&moment);
    });
    Done {
        code: outcome.code,
        out: outcome.printed,
        err: outcome.said,
    }
}

/// A mount that the container's own list has to have.
fn add_counted(case: &mut Case, mount: Value) {
    case.add_mount(mount);
    let env = case.config["process"]["env"].as_array_mut().unwrap();
    env.push(json!("MORE=1"));
}

/// A directory that the container shares with an attacker, and a link to the host's that is exchanged with it.
fn shared_directory(case: &Case) -> (PathBuf, PathBuf) {
    let prey = prey(case);
    std::fs::write(prey.join("marker"), "").unwrap();
    std::fs::create_dir(prey.join("made")).unwrap();
    let (place, link) = (case.rootfs().join("data/x"), case.rootfs().join("data/y"));
    std::fs::create_dir_all(place.join("sub")).unwrap();
    std::fs::write(place.join("file"), "").unwrap();
    symlink(&prey, &link).unwrap();
    (place, link)
}

/// Takes away what a container before this one has had made at either name, so that it is made again.
#[cfg(target_arch = "x86_64")]
fn clear(place: &Path) {
    if place.is_symlink() || !place.is_dir() {
        return;
    }
    for name in ["new", "new-file", "made"] {
        let path = place.join(name);
        let done = if path.is_dir() {
            std::fs::remove_dir_all(path)
        } else {
            std::fs::remove_file(path)
        };
        match done {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            done => done.unwrap(),
        }
    }
}

/// A container that tells if one of its mounts is missing: what was led out is in none of its places, and gone with the
/// host's tree. And the names to exchange.
fn counting_mounts() -> (Case, PathBuf, PathBuf) {
    let mut case = Case::new("wc -l < /proc/self/mountinfo");
    let base = case.run().out;
    case.config["process"]["args"][2] = json!(
        "test -e /data/x/marker && echo ESCAPED; n=$(wc -l < /proc/self/mountinfo); \
         test $n -ge $((BASE + MORE)) || echo ESCAPED: $n mounts; true"
    );
    let env = case.config["process"]["env"].as_array_mut().unwrap();
    env.push(json!(format!("BASE={}", base.trim())));
    let (place, link) = shared_directory(&case);
    (case, place, link)
}

#[test]
fn swapped_directories_for_mounts_never_lead_out() {
    let (mut case, place, link) = counting_mounts();
    let touches: [Touch; 5] = [
        |case| {
            add_counted(
                case,
                json!({ "destination": "/data/x", "type": "tmpfs", "source": "tmpfs" }),
            )
        },
        |case| {
            add_counted(
                case,
                json!({ "destination": "/data/x/sub", "type": "tmpfs", "source": "tmpfs" }),
            )
        },
        |case| {
            add_counted(
                case,
                json!({ "destination": "/data/x/new", "type": "tmpfs", "source": "tmpfs" }),
            )
        },
        |case| {
            add_counted(
                case,
                json!({ "destination": "/data/x/new/deep/er", "type": "tmpfs", "source": "tmpfs" }),
            )
        },
        |case| {
            add_counted(
                case,
                json!({ "destination": "/data/x", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }),
            )
        },
    ];
    race(&mut case, &place, &link, &touches);
}

#[test]
fn swapped_files_for_mounts_never_lead_out() {
    let (mut case, place, link) = counting_mounts();
    let touches: [Touch; 2] = [
        |case| {
            add_counted(
                case,
                json!({ "destination": "/data/x/new-file", "type": "bind", "source": "/etc/hostname", "options": ["bind"] }),
            )
        },
        |case| {
            add_counted(
                case,
                json!({ "destination": "/data/x/file", "type": "bind", "source": "/etc/hostname", "options": ["bind", "ro"] }),
            )
        },
    ];
    race(&mut case, &place, &link, &touches);
}

#[test]
fn what_is_made_in_a_swapped_directory_is_never_made_outside() {
    let mut case = Case::new("test -e /data/x/marker && echo ESCAPED; true");
    let (place, link) = shared_directory(&case);
    let touches: [Touch; 3] = [
        |case| case.linux()["devices"] = json!([{ "path": "/data/x/made/null", "type": "c", "major": 1, "minor": 3, "uid": 7, "gid": 7 }]),
        |case| case.config["process"]["cwd"] = json!("/data/x/made/cwd"),
        |case| {
            case.linux()["maskedPaths"] = json!(["/data/x/file", "/data/x/sub"]);
            case.linux()["readonlyPaths"] = json!(["/data/x"]);
        },
    ];
    race(&mut case, &place, &link, &touches);
}

#[test]
fn a_swapped_dev_never_leads_out() {
    let mut case = Case::new("true");
    let prey = prey(&case);
    without_mount(&mut case, "/dev");
    let link = case.rootfs().join("dev-link");
    symlink(&prey, &link).unwrap();
    let touches: [Touch; 4] = [
        |_| {},
        |case| case.add_mount(json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs" })),
        |case| {
            case.add_mount(json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs" }))
        },
        |case| case.linux()["devices"] = json!([{ "path": "/dev/file", "type": "c", "major": 1, "minor": 3, "uid": 7, "gid": 7 }]),
    ];
    let dev = case.rootfs().join("dev");
    race(&mut case, &dev, &link, &touches);
}

#[test]
fn swapped_devices_mask_nothing_and_write_nothing() {
    // CVE-2025-31133: the image has a good null device, which now and then is a link to a file of its own, or the host's.
    // A mask is the null device and nothing else.
    for host in [false, true] {
        let mut case = Case::new(
            "for f in /proc/version /proc/keys; do \
               seen=$(stat -L -c %t:%T $f); test $seen = 1:3 || echo ESCAPED: $f is $seen; \
             done; true",
        );
        let prey = prey(&case);
        without_mount(&mut case, "/dev");
        case.linux()["maskedPaths"] = json!(["/proc/version", "/proc/keys"]);
        let null = case.rootfs().join("dev/null");
        let link = case.rootfs().join("dev/link");
        let mode = Mode::from_bits_truncate(0o666);
        mknod(&null, SFlag::S_IFCHR, mode, makedev(1, 3)).unwrap();
        std::fs::write(case.rootfs().join("data/loot"), "the image's\n").unwrap();
        let target = if host {
            prey.join("null")
        } else {
            "/data/loot".into()
        };
        symlink(target, &link).unwrap();
        let touches: [Touch; 3] = [
            |_| {},
            |case| case.linux()["devices"] = json!([{ "path": "/dev/link", "type": "c", "major": 1, "minor": 3, "uid": 7, "gid": 7 }]),
            |case| case.linux()["devices"] = json!([{ "path": "/dev/null", "type": "c", "major": 1, "minor": 3, "uid": 7, "gid": 7 }]),
        ];
        let loot = Witness::of(&case.rootfs().join("data/loot"));
        race(&mut case, &null, &link, &touches);
        assert_eq!(Witness::of(&case.rootfs().join("data/loot")), loot);
    }
}

#[test]
fn a_swapped_proc_keeps_its_masks() {
    // CVE-2019-19921, CVE-2025-52881: wherever the procfs ends up, its masked files stay masked.
    let mut case = Case::new(
        "for d in /proc /other; do test -n \"$(cat $d/version)\" && echo ESCAPED; test -e $d/1 && echo h > $d/sys/kernel/domainname && echo ESCAPED; done; true",
    );
    let prey = prey(&case);
    case.linux()["maskedPaths"] = json!(["/proc/version", "/proc/keys"]);
    case.linux()["sysctl"] = json!({ "net.ipv4.ip_forward": "1", "net.ipv4.ip_default_ttl": "77" });
    let proc = case.rootfs().join("proc");
    let other = case.rootfs().join("other");
    // What a parameter's value would be written to.
    let fake = other.join("sys/net/ipv4");
    std::fs::create_dir_all(&fake).unwrap();
    std::fs::write(fake.join("ip_forward"), "the image's\n").unwrap();
    symlink(prey.join("file"), fake.join("ip_default_ttl")).unwrap();
    let touches: [Touch; 1] = [|_| {}];
    race(&mut case, &proc, &other, &touches);
    // The directory is at either name.
    let fake = [proc, other].map(|at| at.join("sys/net/ipv4/ip_forward"));
    let fake = fake.iter().find(|at| at.exists()).unwrap();
    assert_eq!(std::fs::read_to_string(fake).unwrap(), "the image's\n");
}

#[test]
fn a_proc_swapped_with_a_symlink_never_leads_out() {
    // CVE-2019-19921, CVE-2025-52881: for a link to another directory of the image, and to one on the host. A container that
    // runs has its procfs in the directory that was at /proc, and nowhere else. Which may change its name between two looks
    // at it, but not each time.
    for host in [false, true] {
        let mut case = Case::new(
            "for d in /proc /proc-link; do test -n \"$(cat $d/version)\" && echo ESCAPED unmasked; done; \
             i=0; until test -e /proc/1 || test -e /proc-link/1; do \
               i=$((i+1)); test $i = 64 && echo ESCAPED outside && break; \
             done; \
             test ! -e /data/1 || echo ESCAPED aside; true",
        );
        let prey = prey(&case);
        case.linux()["maskedPaths"] = json!(["/proc/version", "/proc/keys"]);
        case.linux()["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
        let link = case.rootfs().join("proc-link");
        symlink(if host { prey } else { "/data".into() }, &link).unwrap();
        let touches: [Touch; 1] = [|_| {}];
        let proc = case.rootfs().join("proc");
        race(&mut case, &proc, &link, &touches);
    }
}

#[test]
fn a_swapped_console_is_never_mounted_elsewhere() {
    // CVE-2025-52565, with the last component swapped: for a link to a file of the image, and to one on the host.
    for host in [false, true] {
        let mut case = Case::new("true");
        let prey = prey(&case);
        without_mount(&mut case, "/dev");
        case.add_mount(json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"] }));
        case.config["process"]["terminal"] = json!(true);
        std::fs::write(case.rootfs().join("data/target"), "").unwrap();
        let (console, link) = (
            case.rootfs().join("dev/console"),
            case.rootfs().join("dev/link"),
        );
        std::fs::write(&console, "").unwrap();
        let target = if host {
            prey.join("console")
        } else {
            "/data/target".into()
        };
        symlink(target, &link).unwrap();
        let socket = case.path("console.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let flags = ["create", "--console-socket", socket.to_str().unwrap()];
        let before = Witness::of(&prey);
        let (mut succeeded, mut last) = (0, None);
        let mut look = |what: &str, done: Done| {
            if done.code == 0 {
                succeeded += 1;
                let mounts = format!("/proc/{}/mountinfo", case.state()["pid"]);
                let mounts = std::fs::read_to_string(mounts).unwrap();
                assert!(!mounts.contains("/data/target"), "{what}: {mounts}");
                // The mount goes where the file goes on which it lies.
                let there = ["console", "link"].map(|name| format!(" /dev/{name} "));
                assert!(
                    there.iter().any(|place| mounts.contains(place)),
                    "{what}: {mounts}"
                );
                drop(listener.accept().expect("the terminal was sent"));
            }
            last = Some(done);
            let gone = case.verb(&["delete", "--force", &case.id]);
            assert_eq!(gone.code, 0, "{gone:?}");
            assert_eq!(Witness::of(&prey), before, "{what}: {last:?}");
        };
        let args = [&flags[..], &[&case.id]].concat();
        Swapper::start(console.clone(), link.clone()).against(12, |cycle| {
            look(&format!("cycle {cycle}"), case.verb(&args))
        });
        #[cfg(target_arch = "x86_64")]
        race::at_every_step(&console, &link, |what, stepper| {
            look(what, traced(&case.runtime(&args), stepper));
        });
        assert!(succeeded > 0, "no container was made: {last:?}");
        case.assert_nothing_left();
    }
}

#[test]
fn a_swapped_destination_never_covers_a_part_of_proc() {
    // CVE-2019-16884, where the destination becomes a link into procfs only now and then.
    let mut case = Case::new(
        "for d in /proc /proc/sys /proc/self/attr; do test -e $d/marker && echo ESCAPED; done; true",
    );
    let volume = prey(&case);
    std::fs::write(volume.join("marker"), "").unwrap();
    let (place, link) = (case.rootfs().join("data/x"), case.rootfs().join("data/y"));
    std::fs::create_dir(&place).unwrap();
    symlink("/proc/sys", &link).unwrap();
    let touches: [Touch; 3] = [
        |case| {
            case.add_mount(json!({ "destination": "/data/x", "type": "tmpfs", "source": "tmpfs" }));
            // The container looks for what is missing under it.
            let args = &mut case.config["process"]["args"][2];
            *args = json!("test -e /proc/sys/kernel/domainname || echo ESCAPED; true");
        },
        |case| {
            let volume = case.path("prey");
            case.add_mount(json!({ "destination": "/data/x", "type": "bind", "source": volume, "options": ["rbind"] }));
        },
        |case| {
            let volume = case.path("prey");
            case.add_mount(json!({ "destination": "/data/x/kernel", "type": "bind", "source": volume, "options": ["rbind"] }));
        },
    ];
    race(&mut case, &place, &link, &touches);
}

#[test]
fn swapped_files_of_the_image_are_never_written_as_kernel_parameters() {
    // CVE-2025-52881: without a procfs the names lead to files of the image, and now and then to the host's.
    let mut case = Case::new("true");
    let prey = prey(&case);
    without_mount(&mut case, "/proc");
    let place = case.rootfs().join("proc/sys/net/ipv4");
    let link = case.rootfs().join("proc/sys/net/link");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("ip_forward"), "the image's\n").unwrap();
    symlink(prey.join("sys/net/ipv4"), &link).unwrap();
    case.linux()["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    let touches: [Touch; 1] = [|_| {}];
    race(&mut case, &place, &link, &touches);
    // The directory is at either name.
    let content = [place, link].map(|path| std::fs::read_to_string(path.join("ip_forward")));
    assert!(
        content
            .iter()
            .any(|text| text.as_ref().is_ok_and(|text| text == "the image's\n")),
        "{content:?}"
    );
}

#[test]
fn a_swapped_working_directory_of_exec_stays_inside() {
    // CVE-2024-21626, where the directory becomes a link to a descriptor only now and then. The runtime's caller has a
    // directory of the host open.
    let case = Case::new("sleep 1000");
    let (place, link) = (case.rootfs().join("data/x"), case.rootfs().join("data/y"));
    std::fs::create_dir(&place).unwrap();
    symlink("/proc/self/fd/9", &link).unwrap();
    case.start();
    let look = "cat config.json ../config.json; echo looked";
    let plain = case.runtime(&["exec", "--cwd", "/data/x", &case.id, "sh", "-c", look]);
    let mut leaky = Command::new("/bin/sh");
    leaky.args(["-c", "exec 9<.; exec \"$0\" \"$@\""]);
    leaky.arg(plain.get_program()).args(plain.get_args());
    leaky.current_dir(case.bundle()).stdin(Stdio::null());
    let mut succeeded = 0;
    let mut check = |what: &str, done: &Done| {
        succeeded += usize::from(done.out.contains("looked"));
        assert!(!done.out.contains("ociVersion"), "{what}: {done:?}");
    };
    Swapper::start(place.clone(), link.clone()).against(24, |cycle| {
        let done = support::finish(leaky.output().expect("run the runtime"));
        check(&format!("cycle {cycle}"), &done);
    });
    #[cfg(target_arch = "x86_64")]
    race::at_every_step(&place, &link, |what, stepper| {
        check(what, &traced(&leaky, stepper));
    });
    assert!(succeeded > 0, "no process ran");
}
