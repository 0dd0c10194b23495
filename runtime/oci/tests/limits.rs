//! Limits as the kernel has them, from the configuration and after updates.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Case, Done, group_file, is_ours};

fn memory(case: &Case, file: &str) -> String {
    group_file(&case.id, "memory", file)
}

fn cpu(case: &Case, file: &str) -> String {
    group_file(&case.id, "cpu", file)
}

fn update(case: &Case, resources: &serde_json::Value) -> Done {
    let path = case.path("resources.json");
    std::fs::write(&path, resources.to_string()).unwrap();
    case.verb(&["update", "--resources", path.to_str().unwrap(), &case.id])
}

#[test]
fn every_limit_of_the_configuration_is_in_the_kernel() {
    let mut case = Case::new("sleep 1000");
    let resources = &mut case.linux()["resources"];
    resources["memory"] = json!({
        "limit": 67_108_864, "swap": 134_217_728, "reservation": 33_554_432, "swappiness": 0, "disableOOMKiller": true,
    });
    resources["cpu"] = json!({
        "shares": 512, "quota": 20_000, "period": 40_000, "burst": 10_000, "cpus": "0", "mems": "0",
    });
    resources["pids"] = json!({ "limit": 33 });
    resources["devices"] = json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 10, "minor": 200, "access": "rw" },
    ]);
    case.start();
    assert_eq!(memory(&case, "memory.limit_in_bytes"), "67108864");
    assert_eq!(memory(&case, "memory.memsw.limit_in_bytes"), "134217728");
    assert_eq!(memory(&case, "memory.soft_limit_in_bytes"), "33554432");
    assert_eq!(memory(&case, "memory.swappiness"), "0");
    assert!(memory(&case, "memory.oom_control").contains("oom_kill_disable 1"));
    assert_eq!(cpu(&case, "cpu.shares"), "512");
    assert_eq!(cpu(&case, "cpu.cfs_quota_us"), "20000");
    assert_eq!(cpu(&case, "cpu.cfs_period_us"), "40000");
    assert_eq!(cpu(&case, "cpu.cfs_burst_us"), "10000");
    assert_eq!(group_file(&case.id, "cpuset", "cpuset.cpus"), "0");
    assert_eq!(group_file(&case.id, "cpuset", "cpuset.mems"), "0");
    assert_eq!(group_file(&case.id, "pids", "pids.max"), "33");
    let devices = group_file(&case.id, "devices", "devices.list");
    assert!(devices.contains("c 10:200 rw"), "{devices}");
    assert!(!devices.contains("a *:*"), "{devices}");
}

#[test]
fn an_idle_group_has_no_shares() {
    let mut case = Case::new("sleep 1000");
    case.linux()["resources"]["cpu"] = json!({ "idle": 1, "shares": 512 });
    case.start();
    assert_eq!(cpu(&case, "cpu.idle"), "1");
    assert_ne!(cpu(&case, "cpu.shares"), "512");
}

#[test]
fn an_update_is_counted_from_what_was_set_before() {
    let mut case = Case::new("sleep 1000");
    case.linux()["resources"]["memory"] = json!({ "limit": 67_108_864, "swap": 134_217_728 });
    case.linux()["resources"]["cpu"] =
        json!({ "quota": 100_000, "period": 100_000, "burst": 50_000 });
    case.start();
    // Each of these is refused in the one order of writes, and taken in the other.
    for cpu in [
        json!({ "quota": 1_000, "period": 1_000, "burst": 500 }),
        json!({ "quota": 500_000, "period": 1_000_000, "burst": 400_000 }),
    ] {
        let done = update(&case, &json!({ "cpu": cpu }));
        assert_eq!(done.code, 0, "{done:?}");
    }
    assert_eq!(cpu(&case, "cpu.cfs_period_us"), "1000000");
    assert_eq!(cpu(&case, "cpu.cfs_burst_us"), "400000");
    let done = update(&case, &json!({ "memory": { "limit": 100_663_296 } }));
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(memory(&case, "memory.limit_in_bytes"), "100663296");
    assert_eq!(memory(&case, "memory.memsw.limit_in_bytes"), "134217728");
    // Above memory and swap together, both of which were told before.
    let done = update(&case, &json!({ "memory": { "limit": 268_435_456 } }));
    assert_ne!(done.code, 0, "{done:?}");
    let done = update(&case, &json!({ "memory": { "limit": -1 } }));
    assert_eq!(done.code, 0, "{done:?}");
    assert!(memory(&case, "memory.memsw.limit_in_bytes").len() > 15);
}

#[test]
fn an_update_leaves_devices_alone_and_warns_of_what_has_no_effect() {
    let mut case = Case::new("sleep 1000");
    case.linux()["resources"]["devices"] = json!([
        { "allow": false, "access": "rwm" },
        { "allow": true, "type": "c", "major": 10, "minor": 200, "access": "rw" },
    ]);
    case.start();
    let done = update(
        &case,
        &json!({
            "devices": [{ "allow": false, "access": "rwm" }], "memory": { "kernel": 1_000_000 }, "pids": { "limit": 9 },
        }),
    );
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.err
            .contains("linux.resources.memory.kernel is ignored"),
        "{done:?}"
    );
    assert_eq!(group_file(&case.id, "pids", "pids.max"), "9");
    let devices = group_file(&case.id, "devices", "devices.list");
    assert!(devices.contains("c 10:200 rw"), "{devices}");
}

#[test]
fn what_the_host_cannot_do_is_an_error_that_names_the_field() {
    for (resources, field) in [
        (
            json!({ "unified": { "memory.high": "1000000" } }),
            "unified",
        ),
        (
            json!({ "hugepageLimits": [{ "pageSize": "3MB", "limit": 3_145_728 }] }),
            "hugepageLimits",
        ),
    ] {
        let mut case = Case::new("true");
        case.config["linux"]["resources"] = resources;
        let done = case.run();
        assert_ne!(done.code, 0, "{done:?}");
        assert!(done.err.contains(field), "{done:?}");
        case.assert_nothing_left();
    }
}

/// A directory with what the kernel has in its resctrl file system.
fn simulated_resctrl(case: &Case) -> PathBuf {
    let directory = case.path("resctrl");
    for name in ["info/L3", "info/MB", "info/L3_MON", "mon_groups"] {
        std::fs::create_dir_all(directory.join(name)).unwrap();
    }
    for (name, text) in [
        ("schemata", "L3:0=fff\nMB:0=100\n"),
        ("info/L3/cbm_mask", "fff\n"),
        ("info/L3/min_cbm_bits", "1\n"),
        ("info/L3/num_closids", "16\n"),
        ("info/MB/bandwidth_gran", "10\n"),
        ("info/MB/delay_linear", "1\n"),
        ("info/MB/min_bandwidth", "10\n"),
        ("info/MB/num_closids", "8\n"),
        ("info/L3_MON/mon_features", "llc_occupancy\n"),
    ] {
        std::fs::write(directory.join(name), text).unwrap();
    }
    directory
}

/// Runs a verb where that directory is mounted in resctrl's place, which this kernel need not have.
fn with_resctrl(case: &Case, args: &[&str]) -> Done {
    let script = "mount -t tmpfs none $1 && mkdir $1/cgroup $1/resctrl && mount --rbind /sys/fs/cgroup $1/cgroup && \
        mount --bind $2 $1/resctrl && mount --rbind $1 /sys/fs && shift 2 && exec \"$@\"";
    let verb = case.runtime(args);
    let place = case.path("fs");
    std::fs::create_dir_all(&place).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]);
    command.arg(place).arg(case.path("resctrl"));
    command.arg(verb.get_program()).args(verb.get_args());
    let file = |name: &str| std::fs::File::create(case.path(name)).unwrap();
    // A container keeps them.
    let streams = command.stdin(Stdio::null()).stdout(file("rdt-out"));
    let streams = streams.stderr(file("rdt-err")).current_dir(case.bundle());
    let status = streams.status().unwrap();
    let read = |name: &str| std::fs::read_to_string(case.path(name)).unwrap();
    Done {
        code: status.code().unwrap_or(-1),
        out: read("rdt-out"),
        err: read("rdt-err"),
    }
}

#[test]
fn a_container_has_a_class_for_caches_and_bandwidth() {
    if !is_ours() {
        return;
    }
    let mut case = Case::new("sleep 1000");
    let resctrl = simulated_resctrl(&case);
    case.linux()["intelRdt"] = json!({ "l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=50", "enableMonitoring": true, "enableCMT": true });
    // The kernel would make it with the class.
    std::fs::create_dir_all(resctrl.join(&case.id).join("mon_groups")).unwrap();
    let read = |name: &str| {
        let path = resctrl.join(&case.id).join(name);
        std::fs::read_to_string(path).unwrap_or_default()
    };
    let monitor = format!("mon_groups/{}/tasks", case.id);
    let run = |args: &[&str]| {
        let done = with_resctrl(&case, args);
        assert_eq!(done.code, 0, "{args:?}: {done:?}");
    };
    run(&["create", &case.id]);
    let pid = case.state()["pid"].to_string();
    assert_eq!(read("schemata"), "L3:0=f\nMB:0=50\n");
    assert_eq!((read("tasks"), read(&monitor)), (pid.clone(), pid));
    run(&["start", &case.id]);
    let pid_file = case.path("exec.pid");
    let flags = ["exec", "--detach", "--pid-file", pid_file.to_str().unwrap()];
    run(&[&flags[..], &[&case.id, "sleep", "1000"]].concat());
    let one_more = std::fs::read_to_string(pid_file).unwrap();
    assert_eq!(
        (read("tasks"), read(&monitor)),
        (one_more.clone(), one_more)
    );
    run(&[
        "update",
        "--mem-bw-schema",
        "MB:0=20",
        "--l3-cache-schema",
        "L3:0=1",
        &case.id,
    ]);
    assert_eq!(read("schemata"), "L3:0=1\nMB:0=20\n");
    let data = format!("mon_groups/{}/mon_data/mon_L3_00", case.id);
    let data = resctrl.join(&case.id).join(data);
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("llc_occupancy"), "4096\n").unwrap();
    let events = with_resctrl(&case, &["events", "--stats", &case.id]);
    let event: Value = serde_json::from_str(&events.out).unwrap();
    let rdt = &event["data"]["intel_rdt"];
    assert_eq!(rdt["l3_cache_info"]["num_closids"], 16, "{events:?}");
    assert_eq!(rdt["l3_cache_schema_root"], "L3:0=fff");
    assert_eq!(rdt["l3_cache_schema"], "L3:0=1");
    assert_eq!(rdt["mem_bw_schema"], "MB:0=20");
    assert_eq!(rdt["cmt_stats"], json!([{ "llc_occupancy": 4096 }]));
    run(&["delete", "--force", &case.id]);
    assert!(!resctrl.join(&case.id).exists());
    case.assert_nothing_left();
}

#[test]
fn a_class_that_a_failed_create_has_made_is_removed_by_any_name() {
    if !is_ours() {
        return;
    }
    let mut case = Case::new("true");
    let resctrl = simulated_resctrl(&case);
    case.config["hooks"] = json!({ "createRuntime": [{ "path": "/bin/false" }] });
    for rdt in [
        json!({ "schemata": ["L3:0=f"] }),
        json!({ "closID": "/", "enableMonitoring": true }),
        json!({ "closID": "gold", "schemata": ["L3:0=f"] }),
    ] {
        case.linux()["intelRdt"] = rdt;
        let done = with_resctrl(&case, &["create", &case.id]);
        assert!(done.err.contains("/bin/false"), "{done:?}");
        for left in [case.id.as_str(), "gold"] {
            assert!(!resctrl.join(left).exists(), "{left}");
            assert!(!resctrl.join("mon_groups").join(left).exists(), "{left}");
        }
        case.assert_nothing_left();
    }
}

#[test]
fn a_container_without_a_class_gets_one_by_update() {
    if !is_ours() {
        return;
    }
    let case = Case::new("sleep 1000");
    let resctrl = simulated_resctrl(&case);
    case.start();
    let wanted = ["update", "--l3-cache-schema", "L3:0=f", &case.id];
    let without = case.verb(&wanted);
    if !Path::new("/sys/fs/resctrl/schemata").exists() {
        assert_eq!(without.code, 1);
        assert!(without.err.contains("resctrl"), "{without:?}");
        let mut other = Case::new("true");
        other.linux()["intelRdt"] = json!({ "closID": "x" });
        let done = other.run();
        assert_eq!(done.code, 1);
        assert!(
            done.err.contains("intelRdt") && done.err.contains("resctrl"),
            "{done:?}"
        );
        other.assert_nothing_left();
    }
    let done = with_resctrl(&case, &wanted);
    assert_eq!(done.code, 0, "{done:?}");
    let class = resctrl.join(&case.id);
    let read = |name: &str| std::fs::read_to_string(class.join(name)).unwrap();
    assert_eq!(read("schemata"), "L3:0=f\n");
    assert_eq!(read("tasks"), case.state()["pid"].to_string());
    assert_eq!(
        with_resctrl(&case, &["delete", "--force", &case.id]).code,
        0
    );
    assert!(!class.exists());
}

#[test]
fn a_first_update_of_a_class_that_fails_half_way_can_be_done_again() {
    if !is_ours() {
        return;
    }
    let case = Case::new("sleep 1000");
    let resctrl = simulated_resctrl(&case);
    case.start();
    let class = resctrl.join(&case.id);
    let update = |value: &str| {
        let wanted = ["update", "--l3-cache-schema", value, &case.id];
        with_resctrl(&case, &wanted)
    };
    let has_it = |value: &str| {
        let read = |name: &str| std::fs::read_to_string(class.join(name)).unwrap();
        assert_eq!(read("schemata"), format!("{value}\n"));
        assert_eq!(read("tasks"), case.state()["pid"].to_string());
    };
    // What cannot be written: the limits, and then the list of processes.
    for file in ["schemata", "tasks"] {
        std::fs::create_dir_all(class.join(file)).unwrap();
        let refused = update("L3:0=f");
        assert_ne!(refused.code, 0, "{refused:?}");
        assert!(refused.err.contains(file), "{refused:?}");
        assert!(!class.exists(), "a class without its container");
    }
    let events = with_resctrl(&case, &["events", "--stats", &case.id]);
    let event: Value = serde_json::from_str(&events.out).unwrap();
    assert_eq!(event["data"]["intel_rdt"], json!({}), "{events:?}");
    let done = update("L3:0=f");
    assert_eq!(done.code, 0, "{done:?}");
    has_it("L3:0=f");
    // Killed before it had made what it had written down.
    std::fs::remove_dir_all(&class).unwrap();
    let done = update("L3:0=3");
    assert_eq!(done.code, 0, "{done:?}");
    has_it("L3:0=3");
    // Killed before it had put the processes in.
    std::fs::remove_file(class.join("tasks")).unwrap();
    let done = update("L3:0=1");
    assert_eq!(done.code, 0, "{done:?}");
    has_it("L3:0=1");
    let delete = with_resctrl(&case, &["delete", "--force", &case.id]);
    assert_eq!(delete.code, 0, "{delete:?}");
    assert!(!class.exists());
    case.assert_nothing_left();
}

#[test]
fn what_an_update_says_is_null_stays_as_it_is() {
    let mut case = Case::command(&["/bin/sleep", "1000"]);
    case.linux()["resources"]["pids"] = json!({ "limit": 33 });
    case.start();
    let done = update(
        &case,
        &json!({ "pids": { "limit": null }, "cpu": { "shares": null, "cpus": "" }, "devices": null }),
    );
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(group_file(&case.id, "pids", "pids.max"), "33");
}
