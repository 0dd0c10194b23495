//! Limits as the kernel has them, from the configuration and after updates.

#[expect(dead_code, reason = "each test program uses a part of it")]
mod support;

use serde_json::json;
use support::{Case, group_file};

fn memory(case: &Case, file: &str) -> String {
    group_file(&case.id, "memory", file)
}

fn cpu(case: &Case, file: &str) -> String {
    group_file(&case.id, "cpu", file)
}

fn update(case: &Case, resources: &serde_json::Value) -> support::Done {
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
