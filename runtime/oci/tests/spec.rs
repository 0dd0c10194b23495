//! Fields of the runtime specification that engines set rarely: each seen to work, or refused with a clear word.

use std::io::{IoSliceMut, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use libseccomp::{ScmpNotifReq, ScmpNotifResp};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use serde_json::{Value, json};

use crate::support::{self, Case, Done};

/// It must fail at create, say `why`, and leave nothing.
fn refused(case: &Case, why: &str) -> Done {
    let done = case.create();
    assert_ne!(done.code, 0, "{done:?}");
    assert!(
        done.err.to_lowercase().contains(&why.to_lowercase()),
        "{why:?} is not in {done:?}"
    );
    case.assert_nothing_left();
    done
}

fn owned(case: &Case, name: &str, uid: u32) -> std::path::PathBuf {
    let path = case.path("source");
    std::fs::create_dir_all(&path).unwrap();
    std::fs::write(path.join(name), "x").unwrap();
    std::os::unix::fs::chown(path.join(name), Some(uid), Some(uid)).unwrap();
    path
}

#[test]
fn a_mount_has_its_ids_mapped_as_it_says() {
    let mut case = Case::new("stat -c '%u %g' /data/f; touch /data/new");
    case.config["process"]["capabilities"]["effective"] = json!(["CAP_DAC_OVERRIDE"]);
    let source = owned(&case, "f", 3);
    case.add_mount(json!({
        "destination": "/data", "type": "bind", "source": source, "options": ["rbind", "ridmap"],
        "uidMappings": [{ "containerID": 0, "hostID": 7000, "size": 10 }],
        "gidMappings": [{ "containerID": 0, "hostID": 8000, "size": 10 }],
    }));
    let done = case.run();
    assert_eq!(done.out, "7003 8003\n", "{done:?}");
    case.assert_nothing_left();
}

#[test]
fn a_mount_takes_over_the_mapping_of_the_user_namespace() {
    let mut case =
        Case::new("stat -c '%u %g' /data/f; stat -c %u /data/new 2>&1; touch /data/made");
    case.linux()["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "user" }));
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    case.linux()["uidMappings"] = map.clone();
    case.linux()["gidMappings"] = map;
    let source = owned(&case, "f", 3);
    case.add_mount(json!({ "destination": "/data", "type": "bind", "source": source, "options": ["bind", "idmap"] }));
    std::fs::set_permissions(
        case.path(""),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let done = case.run();
    assert!(done.out.starts_with("3 3\n"), "{done:?}");
    // What root inside makes belongs to root on the disk.
    let made = std::fs::metadata(source.join("made")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), 0);
}

#[test]
fn an_idmap_without_any_mapping_is_refused() {
    let mut case = Case::new("true");
    let source = owned(&case, "f", 0);
    case.add_mount(json!({ "destination": "/data", "type": "bind", "source": source, "options": ["bind", "idmap"] }));
    refused(&case, "map");
    let last = case.config["mounts"].as_array_mut().unwrap().last_mut();
    let map = json!([{ "containerID": 0, "hostID": 1, "size": 1 }]);
    last.unwrap()["uidMappings"] = map;
    refused(&case, "mappings");
}

/// An agent that takes one listener, answers its first question with errno 95, and tells what it was sent.
fn agent(case: &Case) -> (std::path::PathBuf, JoinHandle<Value>) {
    let path = case.path("agent.sock");
    drop(std::fs::remove_file(&path));
    let socket = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = socket.accept().unwrap();
        let mut buffer = vec![0; 1 << 16];
        let mut space = nix::cmsg_space!([RawFd; 2]);
        let (length, fds) = {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let message = recvmsg::<()>(
                stream.as_raw_fd(),
                &mut slices,
                Some(&mut space),
                MsgFlags::MSG_CMSG_CLOEXEC,
            )
            .unwrap();
            let fds: Vec<RawFd> = message
                .cmsgs()
                .unwrap()
                .flat_map(|part| match part {
                    ControlMessageOwned::ScmRights(fds) => fds,
                    _ => Vec::new(),
                })
                .collect();
            (message.bytes, fds)
        };
        buffer.truncate(length);
        stream.read_to_end(&mut buffer).unwrap();
        let state: Value = serde_json::from_slice(&buffer).unwrap();
        let request = ScmpNotifReq::receive(fds[0]).unwrap();
        ScmpNotifResp::new_error(request.id, -95, libseccomp::ScmpNotifRespFlags::empty())
            .respond(fds[0])
            .unwrap();
        nix::unistd::close(fds[0]).unwrap();
        state
    });
    (path, thread)
}

fn asking(case: &mut Case) {
    let path = case.path("agent.sock");
    case.linux()["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": path,
        "listenerMetadata": "who I am",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
    });
}

#[test]
fn a_seccomp_agent_is_asked_and_its_answer_counts() {
    for nnp in [true, false] {
        let mut case = Case::new("mkdir /tmp/x; sleep 1000");
        case.config["process"]["noNewPrivileges"] = json!(nnp);
        case.config["annotations"] = json!({ "org.example": "yes" });
        asking(&mut case);
        let (_, thread) = agent(&case);
        case.start();
        let told = thread.join().unwrap();
        let pid = case.state()["pid"].clone();
        assert_eq!(told["fds"], json!(["seccompFd"]), "{told}");
        assert_eq!(told["metadata"], "who I am", "{told}");
        assert_eq!(told["pid"], pid, "{told}");
        assert_eq!(told["state"]["id"], json!(case.id), "{told}");
        assert_eq!(told["state"]["pid"], pid, "{told}");
        assert_eq!(told["state"]["annotations"]["org.example"], "yes", "{told}");
        support::wait(
            || match std::fs::read_to_string(case.path("err")).unwrap() {
                text if text.contains("not supported") => Ok(()),
                text => Err(text),
            },
        );
        // One more process has a filter, and so a listener, of its own.
        let (_, thread) = agent(&case);
        let done = case.verb(&["exec", &case.id, "/bin/mkdir", "/tmp/y"]);
        assert!(done.err.contains("not supported"), "{done:?}");
        let more = thread.join().unwrap();
        assert_ne!(more["pid"], pid, "{more}");
        assert_eq!(more["state"]["status"], "running", "{more}");
        case.verb(&["delete", "--force", &case.id]);
        case.assert_nothing_left();
    }
}

#[test]
fn without_its_seccomp_agent_a_container_does_not_start() {
    let mut case = Case::new("echo ran");
    asking(&mut case);
    let done = case.run();
    assert_ne!(done.code, 0, "{done:?}");
    assert_eq!(done.out, "", "{done:?}");
    assert!(
        done.err.contains("agent.sock") || done.err.contains("seccomp"),
        "{done:?}"
    );
    case.linux()["seccomp"]
        .as_object_mut()
        .unwrap()
        .remove("listenerPath");
    refused(&case, "listener");
}

/// Runs `test` in a network namespace of its own, which ends with the thread.
fn in_netns(test: impl FnOnce() + Send + 'static) {
    let body = move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        test();
    };
    if let Err(panic) = std::thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(line: &str) -> String {
    let args = line.split_whitespace();
    let done = std::process::Command::new("ip")
        .args(args)
        .output()
        .unwrap();
    assert!(done.status.success(), "ip {line}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn network_devices_move_in_with_name_and_addresses() {
    in_netns(|| {
        ip("link add one mtu 1400 address 02:00:00:00:00:07 type veth peer name two");
        ip("addr add 10.1.2.3/24 dev one");
        ip("addr add 10.9.9.9/24 scope link dev one");
        ip("addr add fd00::7/64 nodad dev one");
        ip("link set one up");
        let mut case = Case::new("ip addr show eth7; ip link show two");
        case.linux()["netDevices"] = json!({ "one": { "name": "eth7" }, "two": {} });
        let done = case.run();
        for part in [
            "eth7@two",
            "mtu 1400",
            "02:00:00:00:00:07",
            "10.1.2.3/24",
            "fd00::7/64",
            "UP",
        ] {
            assert!(done.out.contains(part), "{part} is not in {done:?}");
        }
        assert!(!done.out.contains("10.9.9.9"), "only global ones: {done:?}");
        case.assert_nothing_left();
    });
}

#[test]
fn the_kernel_names_a_network_device_by_a_template() {
    in_netns(|| {
        ip("link add one type veth peer name two");
        let mut case = Case::new("ip -o link");
        case.linux()["netDevices"] = json!({ "one": { "name": "net%d" } });
        let done = case.run();
        assert!(done.out.contains("net0@"), "{done:?}");
    });
}

#[test]
fn network_devices_that_cannot_move_are_an_error() {
    in_netns(|| {
        let mut case = Case::new("true");
        case.linux()["netDevices"] = json!({ "nowhere": {} });
        refused(&case, "nowhere");
        ip("link add one type veth peer name two");
        // The loopback device is there already.
        case.linux()["netDevices"] = json!({ "one": { "name": "lo" } });
        refused(&case, "exist");
        assert!(ip("-o link").contains("one@"), "it stays where it was");
        case.linux()["netDevices"] = json!({ "one": {} });
        case.linux()["namespaces"]
            .as_array_mut()
            .unwrap()
            .retain(|namespace| namespace["type"] != "network");
        refused(&case, "network namespace");
    });
}

/// Hooks that append to a log in the rootfs: what `jq`-less shells can tell of their state.
fn logging(case: &Case, name: &str, end: &str) -> Value {
    let log = case.rootfs().join("data/log");
    let script = format!(
        "state=$(cat); s=${{state#*\\\"status\\\":\\\"}}; echo {name} ${{s%%\\\"*}} >> {}; {end}",
        log.display()
    );
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"], "timeout": 10 })
}

fn log(case: &Case) -> Vec<String> {
    let text = std::fs::read_to_string(case.rootfs().join("data/log")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn hooks_are_told_the_state_of_the_moment() {
    let mut case = Case::new("true");
    let inside = json!([{
        "path": "/bin/sh", "env": ["PATH=/bin"],
        "args": ["sh", "-c", "state=$(cat); s=${state#*\\\"status\\\":\\\"}; p=${state#*\\\"pid\\\":}; echo startContainer ${s%%\\\"*} ${p%%,*} >> /data/log"],
    }]);
    case.config["hooks"] = json!({
        "prestart": [logging(&case, "prestart", "true")],
        "createRuntime": [logging(&case, "createRuntime", "true")],
        "createContainer": [logging(&case, "createContainer", "true")],
        "startContainer": inside,
        "poststop": [logging(&case, "poststop", "false"), logging(&case, "second", "true")],
    });
    let done = case.run();
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.err.contains("/bin/sh ended"), "the warning: {done:?}");
    assert_eq!(
        log(&case),
        [
            "prestart created",
            "createRuntime creating",
            "createContainer creating",
            "startContainer created 1",
            "poststop stopped",
            "second stopped",
        ]
    );
}

#[test]
fn a_hook_that_asks_for_the_state_is_told_that_the_container_is_not_started() {
    let mut case = Case::new("true");
    let ask = case.runtime(&["state", &case.id]);
    let words: Vec<_> = [ask.get_program()]
        .into_iter()
        .chain(ask.get_args())
        .collect();
    let script = format!(
        "{} | grep '\"status\"' >> {}",
        words.join(std::ffi::OsStr::new(" ")).display(),
        case.rootfs().join("data/log").display()
    );
    case.config["hooks"] = json!({ "createRuntime": [{
        "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"], "timeout": 10,
    }]});
    let done = case.run();
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(log(&case), ["  \"status\": \"created\","]);
}

#[test]
fn a_hook_that_fails_ends_the_container_and_only_poststop_hooks_follow() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let mut case = Case::new("echo ran >> /data/log");
        case.config["hooks"] = json!({
            kind: [logging(&case, "first", "exit 3"), logging(&case, "never", "true")],
            "poststop": [logging(&case, "poststop", "true")],
        });
        refused(&case, "3");
        assert_eq!(log(&case).len(), 2, "{kind}: {:?}", log(&case));
        assert_eq!(log(&case)[1], "poststop stopped", "{kind}");
        assert_ne!(case.verb(&["state", &case.id]).code, 0, "{kind}");
    }
    for (kind, hook) in [
        ("startContainer", json!({ "path": "/bin/false" })),
        ("poststart", json!({ "path": "/bin/false" })),
    ] {
        let mut case = Case::new("sleep 1000");
        case.config["hooks"] =
            json!({ kind: [hook], "poststop": [logging(&case, "poststop", "true")] });
        let done = case.create();
        assert_eq!(done.code, 0, "{kind}: {done:?}");
        let done = case.verb(&["start", &case.id]);
        assert_ne!(done.code, 0, "{kind}: {done:?}");
        assert_eq!(log(&case), ["poststop stopped"], "{kind}");
        case.assert_nothing_left();
    }
}

#[test]
fn a_hook_that_takes_too_long_is_killed() {
    let mut case = Case::new("true");
    case.config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1 }] });
    refused(&case, "1 s");
    case.config["hooks"] = json!({ "createRuntime": [{ "path": "bin/true" }] });
    refused(&case, "absolute");
}

#[test]
fn only_start_needs_a_process() {
    let mut case = Case::new("true");
    case.config.as_object_mut().unwrap().remove("process");
    let done = case.create();
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(case.status(), "created");
    // The error is told, and the container ends; the validation suite wants no other exit code.
    let done = case.verb(&["start", &case.id]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.err.contains("no process"), "{done:?}");
    case.wait_status("stopped");
    assert_ne!(case.verb(&["start", &case.id]).code, 0);
    assert_eq!(case.verb(&["delete", &case.id]).code, 0);
    case.assert_nothing_left();
    assert_ne!(case.run().code, 0, "there is nothing to run");
    case.assert_nothing_left();
}

#[test]
fn a_shared_root_is_a_peer_group_of_its_own() {
    for (word, wanted) in [
        ("shared", "shared:"),
        ("rshared", "shared:"),
        ("unbindable", "unbindable"),
        ("private", " - "),
    ] {
        let mut case = Case::new("grep ' / / ' /proc/self/mountinfo; cat /proc/self/mountinfo");
        case.linux()["rootfsPropagation"] = json!(word);
        let done = case.run();
        let root = done.out.lines().find(|line| line.contains(" / rw"));
        assert!(
            root.is_some_and(|line| line.contains(wanted)),
            "{word}: {done:?}"
        );
        case.assert_nothing_left();
    }
}

#[test]
fn scheduler_flags_have_the_names_of_the_specification() {
    let mut case = Case::new("grep policy /proc/self/sched");
    case.config["process"]["scheduler"] =
        json!({ "policy": "SCHED_BATCH", "nice": 3, "flags": ["SCHED_FLAG_RESET_ON_FORK"] });
    case.config["process"]["args"] = json!(["/bin/grep", "policy", "/proc/self/sched"]);
    let done = case.run();
    assert!(done.out.trim_end().ends_with(" 3"), "{done:?}");
}

#[test]
fn flags_that_only_mount_2_knows_are_no_error() {
    let mut case = Case::new("grep ' /data ' /proc/self/mountinfo");
    case.add_mount(json!({ "destination": "/data", "type": "tmpfs", "source": "tmpfs", "options": ["iversion", "acl", "dirsync", "rnoexec"] }));
    let done = case.run();
    assert!(done.out.contains("noexec"), "{done:?}");
    assert!(done.out.contains("dirsync"), "{done:?}");
}

#[test]
fn what_the_kernel_lacks_is_refused_by_name() {
    let mut case = Case::new("true");
    for (at, field, value, word) in [
        ("process", "selinuxLabel", json!("a:b:c:d"), "SELinux"),
        (
            "linux",
            "memoryPolicy",
            json!({ "mode": "MPOL_BIND", "nodes": "900" }),
            "memory policy",
        ),
    ] {
        case.config[at][field] = value;
        refused(&case, word);
        case.config[at].as_object_mut().unwrap().remove(field);
    }
}

#[test]
fn a_mount_label_is_told_and_left_out_where_the_kernel_lacks_selinux() {
    if std::path::Path::new("/sys/fs/selinux").exists() {
        return; // Then it has an effect, or is an error.
    }
    let mut case = Case::new("echo ran");
    case.linux()["mountLabel"] = json!("a:b:c:d");
    let done = case.run();
    assert_eq!((done.code, done.out.as_str()), (0, "ran\n"), "{done:?}");
    assert!(done.err.contains("mountLabel"), "the warning: {done:?}");
}

#[test]
fn an_apparmor_profile_is_refused_where_it_cannot_be_applied() {
    let mut case = Case::new("echo ran");
    for nothing in [Value::Null, json!(""), json!("unconfined")] {
        case.config["process"]["apparmorProfile"] = nothing.clone();
        let done = case.run();
        assert_eq!(
            (done.code, done.out.as_str()),
            (0, "ran\n"),
            "{nothing}: {done:?}"
        );
    }
    // Where the kernel has AppArmor, it is not loaded.
    case.config["process"]["apparmorProfile"] = json!("knarr-test-profile");
    refused(&case, "knarr-test-profile");
    let process = case.config["process"].as_object_mut().unwrap();
    process.remove("apparmorProfile");
    process.insert("args".into(), json!(["/bin/sleep", "1000"]));
    case.start();
    let exec = |profile: &str| case.verb(&["exec", "--apparmor", profile, &case.id, "true"]);
    assert_eq!(exec("unconfined").code, 0);
    let done = exec("knarr-test-profile");
    assert_eq!(done.code, 255, "{done:?}");
    assert!(done.err.contains("apparmor profile"), "{done:?}");
}

/// Each field of a configuration that may be absent, with a place for it: null wherever runc takes it, which is everywhere, and
/// empty where runc takes that for absent.
#[test]
fn what_is_null_or_empty_is_absent() {
    let absent: &[(&str, &[&str], bool)] = &[
        // Place, fields, and whether they may be empty strings as well.
        ("", &["hostname", "domainname"], true),
        (
            "",
            &["hooks", "annotations", "solaris", "windows", "vm"],
            false,
        ),
        ("/process", &["apparmorProfile", "selinuxLabel"], true),
        (
            "/process",
            &[
                "terminal",
                "consoleSize",
                "user",
                "rlimits",
                "noNewPrivileges",
                "oomScoreAdj",
                "scheduler",
                "ioPriority",
                "capabilities",
                "execCPUAffinity",
            ],
            false,
        ),
        ("/root", &["readonly"], false),
        (
            "/linux",
            &["cgroupsPath", "mountLabel", "rootfsPropagation"],
            true,
        ),
        (
            "/linux",
            &[
                "resources",
                "devices",
                "sysctl",
                "uidMappings",
                "gidMappings",
                "seccomp",
                "intelRdt",
                "personality",
                "maskedPaths",
                "readonlyPaths",
                "timeOffsets",
                "netDevices",
                "memoryPolicy",
            ],
            false,
        ),
    ];
    for (place, fields, empty) in absent {
        let values = [Some(Value::Null), empty.then(|| json!(""))];
        for value in values.iter().flatten() {
            let mut case = Case::new("echo ran");
            let object = case.config.pointer_mut(place).unwrap();
            for field in *fields {
                object[*field] = value.clone();
            }
            let done = case.run();
            assert_eq!(
                (done.code, done.out.as_str()),
                (0, "ran\n"),
                "{place} {fields:?} {value}: {done:?}"
            );
        }
    }
}

#[test]
fn numbers_that_are_null_are_absent() {
    let mut case = Case::new("cat /data/n");
    std::fs::write(case.rootfs().join("data/n"), "ran\n").unwrap();
    case.config["process"]["user"] =
        json!({ "uid": null, "gid": null, "umask": null, "additionalGids": null });
    case.config["process"]["consoleSize"] = json!({ "height": null, "width": null });
    case.linux()["resources"] = json!({
        "pids": { "limit": null },
        "memory": { "limit": null, "reservation": null, "swap": null, "swappiness": null, "disableOOMKiller": null, "checkBeforeUpdate": null },
        "cpu": { "shares": null, "quota": null, "period": null, "cpus": "", "mems": "", "idle": null },
        "devices": [{ "allow": false, "type": "", "major": null, "minor": null, "access": "rwm" }],
        "hugepageLimits": null,
        "network": { "classID": null, "priorities": null },
        "blockIO": { "weight": null, "weightDevice": null },
        "unified": null,
        "rdma": null,
    });
    case.linux()["maskedPaths"] = json!([""]);
    case.linux()["readonlyPaths"] = json!([""]);
    case.linux()["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": null, "architectures": null, "flags": null,
        "listenerPath": "", "listenerMetadata": "",
        "syscalls": [{ "names": ["kexec_load"], "action": "SCMP_ACT_ERRNO", "errnoRet": null, "args": [{ "index": null, "value": null, "valueTwo": null, "op": "SCMP_CMP_EQ" }] }],
    });
    case.add_mount(json!({ "destination": "/tmp", "type": "tmpfs", "source": "", "options": null, "uidMappings": null }));
    case.add_mount(json!({ "destination": "/data", "type": "", "source": case.rootfs().join("data"), "options": ["bind"] }));
    let done = case.run();
    assert_eq!((done.code, done.out.as_str()), (0, "ran\n"), "{done:?}");
    // What is wrong beside a null is told as it is.
    case.config["process"]["user"]["uid"] = json!("root");
    refused(&case, "invalid type: string \"root\"");
}

#[test]
fn a_bind_mount_of_nothing_is_refused() {
    let mut case = Case::new("true");
    for source in [Value::Null, json!("")] {
        case.add_mount(json!({ "destination": "/data", "type": "bind", "source": source, "options": ["bind"] }));
        refused(&case, "without source");
    }
}

#[test]
fn a_container_may_share_every_namespace_of_the_host() {
    let script = "readlink /proc/self/ns/mnt; ls /data; cat /masked/f; touch /marked; echo $?";
    let mut case = Case::new(&format!("{script}; sleep 1000"));
    case.config.as_object_mut().unwrap().remove("hostname");
    case.linux()["namespaces"] = json!([]);
    std::fs::create_dir(case.rootfs().join("masked")).unwrap();
    std::fs::write(case.rootfs().join("masked/f"), "secret").unwrap();
    case.linux()["maskedPaths"] = json!(["/masked"]);
    let source = owned(&case, "f", 0);
    case.add_mount(
        json!({ "destination": "/data", "type": "bind", "source": source, "options": ["bind"] }),
    );
    case.start();
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    support::wait(|| {
        let out = case.output();
        if out.lines().count() == 3 {
            Ok(())
        } else {
            Err(out)
        }
    });
    let out = case.output();
    assert_eq!(out, format!("{}\nf\n0\n", own.display()), "{out}");
    assert!(case.rootfs().join("marked").exists());
    let done = case.verb(&["exec", &case.id, "/bin/ls", "/data"]);
    assert_eq!(done.out, "f\n", "{done:?}");
    let done = case.verb(&["delete", "--force", &case.id]);
    assert_eq!(done.code, 0, "{done:?}");
    case.assert_nothing_left();
    // Nor after a failure half way.
    case.add_mount(json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nonsense"] }));
    refused(&case, "nonsense");
}
