use knarr_engine::types::ContainerState::{Created, Exited, Running};
use knarr_engine::types::SandboxState;
use serde_json::json;

use super::*;
use crate::memory::{Backoff, Condemned, ContainerMemory, PullFailure};
use crate::testing::{at, container, pod, sandbox, t0};

fn start(name: &str, attempt: u32) -> Action {
    Action::Start {
        container: name.into(),
        attempt,
    }
}

fn seen(containers: Vec<ContainerStatus>) -> Observed {
    let mut observed = Observed {
        sandboxes: vec![sandbox(0)],
        containers,
    };
    observed
        .containers
        .sort_by_key(|c| std::cmp::Reverse(c.config.attempt));
    observed
}

fn actions(spec: serde_json::Value, observed: &Observed, memory: &Memory) -> Vec<Action> {
    plan(&pod(spec), observed, memory, t0()).actions
}

fn one() -> serde_json::Value {
    json!({"containers": [{"name": "a"}]})
}

#[test]
fn a_new_pod_gets_its_sandbox_first() {
    let nothing = Observed::default();
    assert_eq!(
        actions(one(), &nothing, &Memory::default()),
        [Action::CreateSandbox { attempt: 0 }]
    );
    let busy = Memory {
        creating_sandbox: true,
        ..Memory::default()
    };
    assert_eq!(actions(one(), &nothing, &busy), []);
}

fn release(id: &str, remove: bool) -> Action {
    Action::ReleaseSandbox {
        id: SandboxId(id.into()),
        remove,
    }
}

#[test]
fn a_dead_sandbox_gives_back_what_it_holds_before_it_is_replaced() {
    let mut observed = seen(vec![container("a", 0, Exited, 137)]);
    observed.sandboxes[0].state = SandboxState::NotReady;
    let mut memory = Memory::default();
    let go = |memory: &Memory| plan(&pod(one()), &observed, memory, t0());
    assert_eq!(go(&memory).actions, [release("s0", false)]);
    memory.releasing.insert(SandboxId("s0".into()));
    assert_eq!(go(&memory), Plan::default());
    // What could not be stopped is tried again later, and nothing is made beside it.
    memory.releasing.clear();
    memory.release_retry_at = Some(at(2));
    assert_eq!(
        go(&memory),
        Plan {
            actions: vec![],
            wake_at: Some(at(2))
        }
    );
    memory.release_retry_at = None;
    memory.released.insert(SandboxId("s0".into()));
    assert_eq!(go(&memory).actions, [Action::CreateSandbox { attempt: 1 }]);
    memory.creating_sandbox = true;
    assert_eq!(go(&memory), Plan::default());
}

#[test]
fn old_sandboxes_go_once_nothing_of_theirs_is_kept() {
    let mut old = sandbox(0);
    old.state = SandboxState::NotReady;
    let mut here = container("a", 2, Running, 0);
    here.sandbox_id = SandboxId("s1".into());
    let mut observed = seen(vec![here, container("a", 1, Exited, 137)]);
    observed.sandboxes = vec![sandbox(1), old];
    let go = |observed: &Observed, memory: &Memory| actions(one(), observed, memory);
    let mut memory = Memory::default();
    // Its container shows the last state and the log of before.
    assert_eq!(go(&observed, &memory), [release("s0", false)]);
    memory.released.insert(SandboxId("s0".into()));
    assert_eq!(go(&observed, &memory), []);
    observed.containers.pop();
    assert_eq!(go(&observed, &memory), [release("s0", true)]);
    // One that claims to be ready beside a newer one is stopped as well.
    observed.sandboxes[1].state = SandboxState::Ready;
    assert_eq!(go(&observed, &Memory::default()), [release("s0", true)]);
}

#[test]
fn a_container_with_another_image_gives_way_to_a_new_one_whatever_its_policy() {
    for policy in ["Always", "OnFailure", "Never"] {
        let spec = |image: &str| json!({"restartPolicy": policy, "containers": [{"name": "a", "image": image}, {"name": "b", "image": "busybox"}]});
        let running = seen(vec![
            container("a", 0, Running, 0),
            container("b", 0, Running, 0),
        ]);
        let mut memory = Memory::default();
        memory.container_mut("a").image = Some("busybox".into());
        memory.container_mut("a").backoff = Some(Backoff {
            delay: Duration::from_secs(300),
            since: t0(),
        });
        assert_eq!(actions(spec("busybox"), &running, &memory), [], "{policy}");
        let stop = Action::Stop {
            id: ContainerId("a-0".into()),
            container: "a".into(),
            message: "Container a definition changed, will be restarted".into(),
            grace: None,
            replaced: true,
        };
        assert_eq!(
            actions(spec("busybox:2"), &running, &memory),
            [stop],
            "{policy}"
        );
        memory.container_mut("a").replaced = Some(ContainerId("a-0".into()));
        memory.stopping.insert(ContainerId("a-0".into()));
        assert_eq!(
            actions(spec("busybox:2"), &running, &memory),
            [],
            "{policy}"
        );
        let ended = seen(vec![
            container("a", 0, Exited, 143),
            container("b", 0, Running, 0),
        ]);
        assert_eq!(
            actions(spec("busybox:2"), &ended, &memory),
            [start("a", 1)],
            "{policy}"
        );
        assert_eq!(
            outcome(&pod(spec("busybox:2")), &ended, &memory),
            Outcome::Open
        );
    }
}

#[test]
fn another_image_is_pulled_without_the_delay_of_the_one_that_failed() {
    let spec = |image: &str| json!({"containers": [{"name": "a", "image": image}]});
    let mut memory = Memory::default();
    memory.container_mut("a").image = Some("nowhere/x".into());
    memory.container_mut("a").pull = Some(PullFailure {
        message: "no such host".into(),
        at: t0(),
        backoff: Backoff {
            delay: Duration::from_secs(300),
            since: t0(),
        },
    });
    let go = |image| plan(&pod(spec(image)), &seen(vec![]), &memory, at(10)).actions;
    let back_off = Action::PullBackOff {
        container: "a".into(),
    };
    assert_eq!(go("nowhere/x"), [back_off]);
    assert_eq!(go("busybox"), [start("a", 0)]);
}

#[test]
fn an_init_container_keeps_the_image_that_it_began_with_and_a_sidecar_does_not() {
    let spec = json!({
        "initContainers": [{"name": "s", "image": "new", "restartPolicy": "Always"}, {"name": "i", "image": "new"}],
        "containers": [{"name": "a"}],
    });
    let observed = seen(vec![
        container("s", 0, Running, 0),
        container("i", 0, Running, 0),
    ]);
    let mut memory = Memory::default();
    memory.container_mut("s").started = true;
    let got = actions(spec, &observed, &memory);
    assert!(
        matches!(&got[..], [Action::Stop { container, replaced: true, .. }] if container == "s"),
        "{got:?}"
    );
}

#[test]
fn a_pod_that_the_node_does_not_take_ends_without_a_container() {
    let rejection = Rejection {
        reason: "OutOfcpu".into(),
        message: "why".into(),
    };
    let mut memory = Memory {
        rejected: Some(rejection.clone()),
        ..Memory::default()
    };
    let nothing = Observed::default();
    let ending = Ending::Rejected(rejection);
    assert_eq!(
        actions(one(), &nothing, &memory),
        [Action::KillPod {
            ending: ending.clone()
        }]
    );
    (memory.ending, memory.killed) = (Some(ending), true);
    assert_eq!(actions(one(), &nothing, &memory), [Action::Park]);
}

#[test]
fn containers_start_one_after_the_other() {
    let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    assert_eq!(
        actions(spec.clone(), &seen(vec![]), &Memory::default()),
        [start("a", 0)]
    );
    let busy = Memory {
        starting: Some("a".into()),
        ..Memory::default()
    };
    assert_eq!(actions(spec.clone(), &seen(vec![]), &busy), []);
    let observed = seen(vec![container("a", 0, Running, 0)]);
    assert_eq!(
        actions(spec.clone(), &observed, &Memory::default()),
        [start("b", 0)]
    );
    let observed = seen(vec![
        container("a", 0, Running, 0),
        container("b", 0, Running, 0),
    ]);
    assert_eq!(
        plan(&pod(spec), &observed, &Memory::default(), t0()),
        Plan::default()
    );
}

#[test]
fn init_containers_run_in_order_and_to_their_end() {
    let spec =
        json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]});
    let rows: [(Vec<ContainerStatus>, Vec<Action>); 6] = [
        (vec![], vec![start("i", 0)]),
        (vec![container("i", 0, Running, 0)], vec![]),
        (vec![container("i", 0, Exited, 0)], vec![start("j", 0)]),
        (vec![container("i", 0, Exited, 1)], vec![start("i", 1)]),
        (
            vec![container("i", 0, Exited, 0), container("j", 0, Exited, 0)],
            vec![start("a", 0)],
        ),
        (
            vec![
                container("i", 0, Exited, 0),
                container("j", 0, Exited, 0),
                container("a", 0, Running, 0),
            ],
            vec![],
        ),
    ];
    for (containers, expected) in rows {
        let observed = seen(containers);
        assert_eq!(
            actions(spec.clone(), &observed, &Memory::default()),
            expected,
            "{observed:?}"
        );
    }
}

#[test]
fn a_failed_init_container_ends_a_pod_that_never_restarts() {
    let spec = json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let observed = seen(vec![container("i", 0, Exited, 1)]);
    assert_eq!(
        actions(spec.clone(), &observed, &Memory::default()),
        [Action::KillPod {
            ending: Ending::Completed
        }]
    );
    assert_eq!(
        outcome(&pod(spec), &observed, &Memory::default()),
        Outcome::Failed
    );
}

#[test]
fn a_sidecar_lets_the_next_one_start_once_it_is_started_and_is_restarted() {
    let spec = json!({
        "initContainers": [{"name": "s", "restartPolicy": "Always"}],
        "containers": [{"name": "a"}],
    });
    let observed = seen(vec![container("s", 0, Running, 0)]);
    assert_eq!(actions(spec.clone(), &observed, &Memory::default()), []);
    let mut memory = Memory::default();
    memory.container_mut("s").started = true;
    assert_eq!(actions(spec.clone(), &observed, &memory), [start("a", 0)]);
    let observed = seen(vec![
        container("s", 0, Exited, 1),
        container("a", 0, Running, 0),
    ]);
    assert_eq!(actions(spec, &observed, &memory), [start("s", 1)]);
}

#[test]
fn restart_policies_decide_what_follows_an_end() {
    let done = Action::KillPod {
        ending: Ending::Completed,
    };
    for (policy, exit_code, expected) in [
        ("Always", 0, start("a", 1)),
        ("Always", 1, start("a", 1)),
        ("OnFailure", 0, done.clone()),
        ("OnFailure", 1, start("a", 1)),
        ("Never", 0, done.clone()),
        ("Never", 1, done.clone()),
    ] {
        let spec = json!({"restartPolicy": policy, "containers": [{"name": "a"}]});
        let observed = seen(vec![container("a", 0, Exited, exit_code)]);
        assert_eq!(
            actions(spec, &observed, &Memory::default()),
            [expected],
            "{policy} {exit_code}"
        );
    }
}

#[test]
fn a_crashing_container_waits() {
    // Ended at 1 s; the delay of 10 s holds until 11 s.
    let observed = seen(vec![container("a", 0, Exited, 1)]);
    let backoff = Some(Backoff {
        delay: Duration::from_secs(10),
        since: t0(),
    });
    let mut memory = Memory::default();
    memory.containers.insert(
        "a".into(),
        ContainerMemory {
            backoff,
            ..ContainerMemory::default()
        },
    );
    let waiting = plan(&pod(one()), &observed, &memory, at(5));
    let crash_loop = Action::CrashLoop {
        container: "a".into(),
        delay: Duration::from_secs(10),
    };
    assert_eq!(
        waiting,
        Plan {
            actions: vec![crash_loop],
            wake_at: Some(at(11))
        }
    );
    assert_eq!(
        plan(&pod(one()), &observed, &memory, at(11)).actions,
        [start("a", 1)]
    );
}

#[test]
fn a_failed_pull_shows_its_error_then_backs_off_then_is_tried_again() {
    let mut memory = Memory::default();
    memory.container_mut("a").pull = Some(PullFailure {
        message: "no such host".into(),
        at: t0(),
        backoff: Backoff {
            delay: Duration::from_secs(10),
            since: t0(),
        },
    });
    let go = |seconds| plan(&pod(one()), &seen(vec![]), &memory, at(seconds));
    assert_eq!(
        go(1),
        Plan {
            actions: vec![],
            wake_at: Some(at(3))
        }
    );
    let back_off = Action::PullBackOff {
        container: "a".into(),
    };
    assert_eq!(
        go(4),
        Plan {
            actions: vec![back_off],
            wake_at: Some(at(10))
        }
    );
    assert_eq!(go(10).actions, [start("a", 0)]);
}

#[test]
fn what_cannot_be_made_is_tried_again_later() {
    let mut memory = Memory::default();
    memory.container_mut("a").retry_at = Some(at(10));
    assert_eq!(
        plan(&pod(one()), &seen(vec![]), &memory, t0()),
        Plan {
            actions: vec![],
            wake_at: Some(at(10))
        }
    );
}

#[test]
fn a_container_that_was_never_started_is_made_anew() {
    let observed = seen(vec![container("a", 3, Created, 0)]);
    let remove = Action::Remove {
        id: ContainerId("a-3".into()),
    };
    assert_eq!(
        actions(one(), &observed, &Memory::default()),
        [remove, start("a", 3)]
    );
}

#[test]
fn a_condemned_container_is_stopped_once() {
    let observed = seen(vec![container("a", 0, Running, 0)]);
    let mut memory = Memory::default();
    memory.container_mut("a").condemned = Some(Condemned {
        message: "why".into(),
        grace: None,
    });
    let stop = Action::Stop {
        id: ContainerId("a-0".into()),
        container: "a".into(),
        message: "why".into(),
        grace: None,
        replaced: false,
    };
    assert_eq!(actions(one(), &observed, &memory), [stop]);
    memory.stopping.insert(ContainerId("a-0".into()));
    assert_eq!(actions(one(), &observed, &memory), []);
}

#[test]
fn only_the_newest_dead_container_and_its_predecessor_are_kept() {
    let all = (0..4)
        .map(|n| container("a", n, Exited, 1))
        .chain([container("a", 4, Running, 0)])
        .collect();
    let remove = |n: u32| Action::Remove {
        id: ContainerId(format!("a-{n}")),
    };
    assert_eq!(
        actions(one(), &seen(all), &Memory::default()),
        [remove(2), remove(1), remove(0)]
    );
}

#[test]
fn a_deleted_pod_is_stopped_then_cleaned_up() {
    let mut deleted = pod(one());
    deleted.metadata.deletion_timestamp = Some(crate::status::time(t0()));
    let observed = seen(vec![container("a", 0, Running, 0)]);
    let mut memory = Memory {
        starting: Some("a".into()),
        ..Memory::default()
    };
    let go = |memory: &Memory| plan(&deleted, &observed, memory, t0()).actions;
    assert_eq!(go(&memory), [Action::Cancel]);
    memory.starting = None;
    assert_eq!(
        go(&memory),
        [Action::KillPod {
            ending: Ending::Deleted
        }]
    );
    memory.ending = Some(Ending::Deleted);
    memory.killing = true;
    assert_eq!(go(&memory), []);
    memory.killing = false;
    memory.killed = true;
    assert_eq!(go(&memory), [Action::CleanUp]);
}

#[test]
fn a_completed_pod_is_parked_until_it_is_deleted() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a"}]});
    let observed = seen(vec![container("a", 0, Exited, 0)]);
    let mut memory = Memory {
        ending: Some(Ending::Completed),
        killed: true,
        ..Memory::default()
    };
    assert_eq!(actions(spec.clone(), &observed, &memory), [Action::Park]);
    memory.parked = true;
    assert_eq!(actions(spec.clone(), &observed, &memory), []);
    let mut deleted = pod(spec);
    deleted.metadata.deletion_timestamp = Some(crate::status::time(t0()));
    assert_eq!(
        plan(&deleted, &observed, &memory, t0()).actions,
        [Action::CleanUp]
    );
}

#[test]
fn a_pod_past_its_deadline_fails() {
    let spec = json!({"activeDeadlineSeconds": 5, "containers": [{"name": "a"}]});
    let observed = seen(vec![container("a", 0, Running, 0)]);
    let memory = Memory {
        start_time: Some(t0()),
        ..Memory::default()
    };
    let before = plan(&pod(spec.clone()), &observed, &memory, at(4));
    assert_eq!(
        before,
        Plan {
            actions: vec![],
            wake_at: Some(at(5))
        }
    );
    let after = plan(&pod(spec), &observed, &memory, at(5)).actions;
    assert!(
        matches!(
            &after[..],
            [Action::KillPod {
                ending: Ending::Failed {
                    reason: "DeadlineExceeded",
                    ..
                }
            }]
        ),
        "{after:?}"
    );
}
