//! Fields of `process` that the kernel tells about, and the rest of `linux` that belongs to a process.

use serde_json::json;

use crate::support::{Case, is_ours};

#[test]
fn scheduler_priority_affinity_and_score_hold() {
    let mut case = Case::new(
        "set -- $(cat /proc/self/stat); shift 40; echo policy=$1
         echo score=$(cat /proc/self/oom_score_adj)
         echo io=$(busybox ionice)
         grep Cpus_allowed_list /proc/self/status",
    );
    case.config["process"]["oomScoreAdj"] = json!(100);
    case.config["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 });
    case.config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 0 });
    case.config["process"]["execCPUAffinity"] = json!({ "initial": "0", "final": "0" });
    let done = case.run();
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.out.contains("score=100"), "{done:?}");
    if is_ours() {
        assert!(done.out.contains("policy=3"), "{done:?}");
        assert!(done.out.contains("io=idle"), "{done:?}");
    }
}

#[test]
fn an_exec_runs_on_the_processors_it_says() {
    if !is_ours() {
        return; // runc has it since 1.3.
    }
    let mut case = Case::new("sleep 600");
    case.config["process"]["execCPUAffinity"] = json!({ "initial": "0", "final": "0" });
    case.start();
    let done = case.verb(&[
        "exec",
        &case.id,
        "grep",
        "Cpus_allowed_list",
        "/proc/self/status",
    ]);
    assert!(done.out.ends_with("\t0\n"), "{done:?}");
}

#[test]
fn personality_and_memory_policy_hold() {
    if !is_ours() {
        return; // The memory policy is new in 1.3.
    }
    let mut case = Case::new("busybox uname -m; grep -c 'bind:0' /proc/self/numa_maps");
    case.linux()["personality"] = json!({ "domain": "LINUX32" });
    case.linux()["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "0" });
    let done = case.run();
    assert!(done.out.starts_with("i686\n"), "{done:?}");
    let bound: u32 = done
        .out
        .lines()
        .nth(1)
        .and_then(|line| line.parse().ok())
        .expect("a number");
    assert!(bound > 0, "{done:?}");
}

#[test]
fn annotations_are_in_the_state() {
    let mut case = Case::new("sleep 600");
    case.config["annotations"] = json!({ "org.example.key": "value" });
    case.start();
    assert_eq!(case.state()["annotations"]["org.example.key"], "value");
}
