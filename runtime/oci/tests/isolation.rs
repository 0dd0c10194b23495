//! What a container can see and do: namespaces, mounts, devices, rights, limits.

use serde_json::json;

use crate::support::{self, Case, group_file, is_ours};

#[test]
fn it_sees_only_its_own_processes_host_name_and_interfaces() {
    let done = Case::new("echo $$; hostname; ip -o link | wc -l; ip -o link show lo").run();
    let lines: Vec<&str> = done.out.lines().collect();
    assert_eq!(&lines[..3], ["1", "inside", "1"], "{done:?}");
    assert!(lines[3].contains("UP"), "loopback is up: {done:?}");
}

#[test]
fn it_sees_only_its_own_mounts() {
    let case = Case::new("cat /proc/self/mountinfo");
    let done = case.run();
    let host = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        done.out.lines().count() < 20 && done.out.lines().count() > 5,
        "{done:?}"
    );
    assert!(!done.out.contains("/sys/fs/cgroup"), "{done:?}");
    assert!(
        !host.contains(case.bundle().to_str().unwrap()),
        "nothing of it shows on the host"
    );
}

#[test]
fn namespaces_of_another_container_are_joined_by_path() {
    let first = Case::new("echo first > /dev/shm/file; sleep 1000");
    first.start();
    let pid = first.state()["pid"].as_i64().unwrap();
    let mut second = Case::new(
        "hostname; ps | grep -c 'sleep 1000'; readlink /proc/self/ns/net; readlink /proc/1/ns/net; cat /proc/sys/kernel/ns_last_pid > /dev/null",
    );
    second.config["hostname"] = json!("");
    second.linux()["namespaces"] = json!([
        { "type": "pid", "path": format!("/proc/{pid}/ns/pid") },
        { "type": "network", "path": format!("/proc/{pid}/ns/net") },
        { "type": "ipc", "path": format!("/proc/{pid}/ns/ipc") },
        { "type": "uts", "path": format!("/proc/{pid}/ns/uts") },
        { "type": "mount" },
    ]);
    let done = second.run();
    let lines: Vec<&str> = done.out.lines().collect();
    assert_eq!(lines[0], "inside", "{done:?}");
    assert_ne!(lines[1], "0", "{done:?}");
    assert_eq!(
        first.status(),
        "running",
        "the end of the second harms the first not"
    );
    second.assert_nothing_left();
}

#[test]
fn masked_paths_are_empty_and_readonly_paths_refuse() {
    let done = Case::new(
        "wc -c < /proc/keys; wc -c < /proc/timer_list; ls /sys/firmware | wc -l; echo 1 > /proc/sys/kernel/domainname; echo $?; touch /etc/x && echo writable",
    )
    .run();
    let lines: Vec<&str> = done.out.lines().collect();
    assert_eq!(lines, ["0", "0", "0", "1", "writable"], "{done:?}");
}

#[test]
fn a_readonly_root_refuses_but_its_mounts_do_not() {
    let mut case = Case::new("touch /x; touch /dev/shm/y && echo ok");
    case.config["root"]["readonly"] = json!(true);
    let done = case.run();
    assert_eq!(done.out, "ok\n", "{done:?}");
    assert!(done.err.contains("Read-only"), "{done:?}");
}

#[test]
fn bind_mounts_follow_their_options() {
    let mut case = Case::new(
        "cat /data/f; echo no > /data/f; cat /new/file; grep ' /data ' /proc/self/mountinfo",
    );
    let source = case.path("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("f"), "from outside\n").unwrap();
    std::fs::write(case.path("single"), "one file\n").unwrap();
    case.add_mount(json!({ "destination": "/data", "type": "bind", "source": source, "options": ["rbind", "ro", "nosuid", "nodev", "noexec"] }));
    case.add_mount(json!({ "destination": "/new/file", "type": "bind", "source": case.path("single"), "options": ["bind"] }));
    let done = case.run();
    assert!(done.out.starts_with("from outside\none file\n"), "{done:?}");
    assert!(done.out.contains("ro,nosuid,nodev,noexec"), "{done:?}");
    assert_eq!(
        std::fs::read_to_string(source.join("f")).unwrap(),
        "from outside\n"
    );
}

#[test]
fn symlinks_in_the_image_never_lead_a_mount_out() {
    let mut case = Case::new("ls /data/inside");
    let outside = case.path("outside");
    std::fs::create_dir(&outside).unwrap();
    // Both an absolute link and one that climbs: they resolve inside the root.
    std::os::unix::fs::symlink(&outside, case.rootfs().join("absolute")).unwrap();
    std::os::unix::fs::symlink("../../outside", case.rootfs().join("climbing")).unwrap();
    for name in ["/absolute/a", "/climbing/b"] {
        case.add_mount(json!({ "destination": name, "type": "tmpfs", "source": "tmpfs" }));
    }
    case.run();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn tmpcopyup_copies_what_it_covers() {
    let mut case =
        Case::new("cat /data/sub/f; ls -ld /data/sub; readlink /data/link; touch /data/sub/g");
    std::fs::create_dir(case.rootfs().join("data/sub")).unwrap();
    std::fs::write(case.rootfs().join("data/sub/f"), "below\n").unwrap();
    std::os::unix::fs::symlink("/nowhere", case.rootfs().join("data/link")).unwrap();
    case.add_mount(json!({ "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }));
    let done = case.run();
    assert!(
        done.out.starts_with("below\n") && done.out.ends_with("/nowhere\n"),
        "{done:?}"
    );
    assert!(!case.rootfs().join("data/sub/g").exists());
}

#[test]
fn default_devices_and_given_ones_exist_and_others_are_denied() {
    let mut case = Case::new(
        "echo x > /dev/null && head -c 4 /dev/zero | wc -c; stat -c '%t:%T %a %u' /dev/given; readlink /dev/ptmx; readlink /dev/fd; mknod /tmp/kmsg c 1 11 && cat /tmp/kmsg; echo done",
    );
    case.linux()["devices"] = json!([{ "path": "/dev/given", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 5, "gid": 6 }]);
    for set in ["bounding", "effective", "permitted"] {
        case.config["process"]["capabilities"][set]
            .as_array_mut()
            .unwrap()
            .push(json!("CAP_MKNOD"));
    }
    let done = case.run();
    let lines: Vec<&str> = done.out.lines().collect();
    assert_eq!(
        lines,
        ["4", "1:3 640 5", "pts/ptmx", "/proc/self/fd", "done"],
        "{done:?}"
    );
    assert!(
        done.err.contains("not permitted"),
        "the group's device rules deny it: {done:?}"
    );
}

#[test]
fn capabilities_are_those_asked_for() {
    let mut case = Case::new("grep Cap /proc/self/status; grep NoNewPrivs /proc/self/status");
    case.config["process"]["capabilities"] = json!({ "bounding": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"], "inheritable": [] });
    let done = case.run();
    let value = |name: &str| {
        done.out
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
            .unwrap()
            .to_owned()
    };
    assert_eq!(value("CapBnd:"), "0000000000000021", "{done:?}");
    assert_eq!(value("CapInh:"), "0000000000000000", "{done:?}");
    assert_eq!(value("CapAmb:"), "0000000000000000", "{done:?}");
    assert_eq!(value("NoNewPrivs:"), "1", "{done:?}");
}

#[test]
fn an_ordinary_user_keeps_ambient_capabilities_only() {
    let mut case = Case::new(
        "grep -E 'CapEff|CapAmb|Groups' /proc/self/status; id -u; id -g; cat /data/secret; echo $HOME",
    );
    std::fs::write(case.rootfs().join("data/secret"), "x").unwrap();
    std::fs::set_permissions(
        case.rootfs().join("data/secret"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    std::fs::write(
        case.rootfs().join("etc/passwd"),
        "u:x:1000:1000::/home/u:/bin/sh\n",
    )
    .unwrap();
    case.config["process"]["user"] =
        json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o077 });
    let sets = json!(["CAP_NET_BIND_SERVICE"]);
    case.config["process"]["capabilities"] = json!({ "bounding": sets, "effective": sets, "permitted": sets, "inheritable": sets, "ambient": sets });
    let done = case.run();
    let lines: Vec<&str> = done.out.lines().collect();
    assert!(
        lines.iter().any(|line| line.starts_with("Groups:\t5 6")),
        "{done:?}"
    );
    assert!(
        lines.contains(&"CapEff:\t0000000000000400")
            && lines.contains(&"CapAmb:\t0000000000000400"),
        "{done:?}"
    );
    assert!(
        lines.contains(&"1000") && lines.contains(&"1001") && lines.contains(&"/home/u"),
        "{done:?}"
    );
    assert!(done.err.contains("ermission denied"), "{done:?}");
}

#[test]
fn unknown_capabilities_are_ignored() {
    let mut case = Case::new("echo ran");
    case.config["process"]["capabilities"]["bounding"]
        .as_array_mut()
        .unwrap()
        .push(json!("CAP_NO_SUCH"));
    let done = case.run();
    assert_eq!((done.code, done.out.as_str()), (0, "ran\n"), "{done:?}");
    assert!(done.err.contains("CAP_NO_SUCH"), "the warning: {done:?}");
}

#[test]
fn seccomp_denies_with_the_errno_asked_for_with_and_without_no_new_privs() {
    for nnp in [true, false] {
        let mut case = Case::new("mkdir /tmp/x; grep Seccomp: /proc/self/status");
        case.config["process"]["noNewPrivileges"] = json!(nnp);
        case.linux()["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }],
        });
        let done = case.run();
        assert!(done.err.contains("not supported"), "{done:?}");
        assert!(done.out.contains("Seccomp:\t2"), "{done:?}");
    }
}

#[test]
fn the_default_seccomp_profile_lets_a_shell_work_and_denies_unshare() {
    let mut case = Case::new(
        "ls / > /dev/null && echo works; (sleep 0.01; echo child); mount -t tmpfs x /tmp",
    );
    let profile = knarr_oci::seccomp::default_profile(&[]);
    case.linux()["seccomp"] = serde_json::to_value(profile).unwrap();
    let done = case.run();
    assert_eq!(done.out, "works\nchild\n", "{done:?}");
    assert!(done.err.contains("ermi"), "{done:?}");
}

#[test]
fn the_pids_limit_bites() {
    let mut case = Case::new("i=0; while test $i -lt 20; do sleep 5 & i=$((i+1)); done; echo all");
    case.linux()["resources"]["pids"] = json!({ "limit": 5 });
    let done = case.run();
    assert!(!done.out.contains("all"), "{done:?}");
    assert!(done.err.contains("fork"), "{done:?}");
    case.assert_nothing_left();
}

#[test]
fn too_much_memory_is_killed_with_137() {
    let mut case = Case::command(&[
        "/bin/dd",
        "if=/dev/zero",
        "of=/dev/null",
        "bs=64M",
        "count=1",
    ]);
    case.linux()["resources"]["memory"] = json!({ "limit": 16 << 20, "swap": 16 << 20 });
    let done = case.run();
    assert_eq!(done.code, 137, "{done:?}");
    case.assert_nothing_left();
}

#[test]
fn a_memory_limit_too_small_for_the_set_up_is_told() {
    let mut case = Case::new("true");
    case.linux()["resources"]["memory"] = json!({ "limit": 4096, "swap": 4096 });
    let done = case.create();
    assert_ne!(done.code, 0, "{done:?}");
    if is_ours() {
        assert!(done.err.contains("lack of memory"), "{done:?}");
    }
    case.assert_nothing_left();
}

#[test]
fn limits_are_written_to_the_group() {
    let mut case = Case::new("sleep 1000");
    case.linux()["resources"]["cpu"] =
        json!({ "shares": 512, "quota": 20000, "period": 50000, "cpus": "0" });
    case.linux()["resources"]["memory"] = json!({ "limit": 64 << 20, "reservation": 32 << 20 });
    case.start();
    let read = |controller, file| group_file(&case.id, controller, file);
    assert_eq!(read("cpu", "cpu.shares"), "512");
    assert_eq!(read("cpu", "cpu.cfs_quota_us"), "20000");
    assert_eq!(read("cpu", "cpu.cfs_period_us"), "50000");
    assert_eq!(read("cpuset", "cpuset.cpus"), "0");
    assert_eq!(
        read("memory", "memory.limit_in_bytes"),
        (64 << 20).to_string()
    );
    assert_eq!(
        read("memory", "memory.soft_limit_in_bytes"),
        (32 << 20).to_string()
    );
    case.verb(&["delete", "--force", &case.id]);
    case.assert_nothing_left();
}

#[test]
fn a_user_namespace_maps_root_to_an_ordinary_user() {
    let mut case = Case::new(
        "id -u; cat /proc/self/uid_map; touch /data/made; cat /data/f; echo x > /dev/null && echo null; exit 3",
    );
    let source = case.path("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("f"), "bound\n").unwrap();
    std::os::unix::fs::chown(&source, Some(100_000), Some(100_000)).unwrap();
    case.add_mount(
        json!({ "destination": "/data", "type": "bind", "source": source, "options": ["rbind"] }),
    );
    case.linux()["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "user" }));
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    case.linux()["uidMappings"] = map.clone();
    case.linux()["gidMappings"] = map;
    std::fs::set_permissions(
        case.path(""),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let done = case.run();
    assert_eq!(done.code, 3, "{done:?}");
    assert!(done.out.starts_with("0\n"), "{done:?}");
    assert!(done.out.contains("bound\nnull\n"), "{done:?}");
    let owner =
        std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(source.join("made")).unwrap());
    assert_eq!(owner, 100_000);
    case.assert_nothing_left();
}

#[test]
fn exec_enters_a_user_namespace_too() {
    let mut case = Case::new("sleep 1000");
    case.linux()["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "user" }));
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    case.linux()["uidMappings"] = map.clone();
    case.linux()["gidMappings"] = map;
    std::fs::set_permissions(
        case.path(""),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    case.start();
    let done = case.verb(&[
        "exec",
        &case.id,
        "sh",
        "-c",
        "id -u; cat /proc/self/uid_map",
    ]);
    assert!(
        done.out.starts_with("0\n") && done.out.contains("100000"),
        "{done:?}"
    );
}

#[test]
fn rlimits_sysctls_and_time_offsets_hold() {
    let mut case = Case::new(
        "ulimit -n; ulimit -Hn; cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax; cat /proc/self/timens_offsets; ulimit -u",
    );
    case.config["process"]["rlimits"] =
        json!([{ "type": "RLIMIT_NOFILE", "soft": 99, "hard": 100 }]);
    case.linux()["sysctl"] = json!({ "net.ipv4.ip_forward": "1", "kernel.msgmax": "4321" });
    if is_ours() {
        case.linux()["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({ "type": "time" }));
        case.linux()["timeOffsets"] = json!({ "boottime": { "secs": 5000, "nanosecs": 1 } });
    }
    let done = case.run();
    assert!(done.out.starts_with("99\n100\n1\n4321\n"), "{done:?}");
    if is_ours() {
        assert!(done.out.contains("5000"), "{done:?}");
    }
}

#[test]
fn limits_of_an_ordinary_user_hold_in_exec_too() {
    let mut case = Case::new("sleep 1000");
    case.config["process"]["user"] = json!({ "uid": 5, "gid": 6 });
    case.config["process"]["rlimits"] = json!([
        { "type": "RLIMIT_NOFILE", "soft": 4, "hard": 1 << 20 },
        { "type": "RLIMIT_NPROC", "soft": 77, "hard": 88 },
    ]);
    case.start();
    let done = case.verb(&[
        "exec",
        &case.id,
        "sh",
        "-c",
        "ulimit -n; grep processes /proc/self/limits; id -u",
    ]);
    assert!(
        done.out.starts_with("4\nMax processes") && done.out.ends_with("\n5\n"),
        "{done:?}"
    );
    assert!(
        done.out.contains(" 77 ") && done.out.contains(" 88 "),
        "{done:?}"
    );
}

#[test]
fn the_group_is_all_a_container_sees_of_cgroups() {
    let mut case = Case::new(
        "ls /sys/fs/cgroup/pids/; cat /sys/fs/cgroup/pids/pids.max; cat /proc/self/cgroup | grep pids; echo 5 > /sys/fs/cgroup/pids/pids.max",
    );
    case.add_mount(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] }));
    case.linux()["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "cgroup" }));
    case.linux()["resources"]["pids"] = json!({ "limit": 55 });
    let done = case.run();
    assert!(done.out.contains("\n55\n"), "{done:?}");
    assert!(done.out.trim_end().ends_with(":pids:/"), "{done:?}");
    assert!(done.err.contains("Read-only"), "{done:?}");
}

#[test]
fn the_working_directory_is_made_and_a_leaked_one_refused() {
    let mut case = Case::new("pwd");
    case.config["process"]["cwd"] = json!("/made/for/it");
    assert_eq!(case.run().out, "/made/for/it\n");
    // CVE-2024-21626: a descriptor of the runtime as working directory.
    for fd in 3..12 {
        let mut case = Case::new("pwd; ls");
        case.config["process"]["cwd"] = json!(format!("/proc/self/fd/{fd}"));
        let done = case.run();
        assert!(
            done.code != 0 || !done.out.contains("rootfs"),
            "{fd}: {done:?}"
        );
    }
}

#[test]
fn no_descriptor_of_the_runtime_leaks() {
    let done = Case::new("ls /proc/self/fd").run();
    // The fourth is the directory that ls reads.
    assert_eq!(
        done.out.lines().collect::<Vec<_>>(),
        ["0", "1", "2", "3"],
        "{done:?}"
    );
}

#[test]
fn the_program_of_the_runtime_cannot_be_written_from_inside() {
    // CVE-2019-5736: the image's command is the runtime itself.
    let mut case = Case::new("");
    case.config["process"]["args"] = json!(["/proc/self/exe", "--version"]);
    let before = std::fs::metadata(support::runtime()).unwrap();
    case.run();
    let after = std::fs::metadata(support::runtime()).unwrap();
    assert_eq!(
        (before.len(), before.modified().unwrap()),
        (after.len(), after.modified().unwrap())
    );
    // And while it waits inside, its program is on a read-only mount, for whoever gets hold of it.
    if is_ours() {
        let case = Case::new("sleep 1000");
        assert_eq!(case.create().code, 0);
        let exe = std::fs::File::open(format!("/proc/{}/exe", case.state()["pid"])).unwrap();
        let flags = nix::sys::statvfs::fstatvfs(&exe).unwrap().flags();
        assert!(
            flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY),
            "{flags:?}"
        );
    }
}

#[test]
fn no_signal_is_blocked_and_sigpipe_not_ignored() {
    let done = Case::new("grep -E 'SigBlk|SigIgn' /proc/self/status").run();
    let value = |name: &str| {
        let line = done
            .out
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("a line")
            .trim();
        u64::from_str_radix(line, 16).expect("a number")
    };
    assert_eq!(
        (value("SigBlk:"), value("SigIgn:") >> 12 & 1),
        (0, 0),
        "{done:?}"
    );
}
