use knarr_engine::types::ContainerState::{Exited, Running};
use serde_json::{Value, json};

use super::*;
use crate::memory::Waiting;
use crate::testing::{at, container, pod, sandbox, t0};

fn status(spec: Value, observed: &Observed, memory: &Memory) -> PodStatus {
    let facts = Facts {
        termination_message: &|s| (s.exit_code == 3).then(|| "last words".to_owned()),
    };
    build(
        &pod(spec),
        observed,
        memory,
        None,
        &[[192, 168, 0, 1].into()],
        &facts,
        at(100),
    )
}

fn json_of(status: &impl serde::Serialize) -> Value {
    serde_json::to_value(status).expect("json")
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> &'a PodCondition {
    status
        .conditions
        .iter()
        .flatten()
        .find(|c| c.type_ == kind)
        .expect("the condition")
}

#[test]
fn a_pod_without_containers_yet_is_pending() {
    let observed = Observed {
        sandboxes: vec![sandbox(0)],
        containers: vec![],
    };
    let memory = Memory {
        start_time: Some(t0()),
        ..Memory::default()
    };
    let got = status(
        json!({"containers": [{"name": "a", "image": "busybox"}]}),
        &observed,
        &memory,
    );
    assert_eq!(got.phase.as_deref(), Some("Pending"));
    assert_eq!(
        json_of(&got.container_statuses),
        json!([{
            "name": "a", "image": "busybox", "imageID": "", "ready": false, "started": false, "restartCount": 0,
            "lastState": {}, "state": {"waiting": {"reason": "ContainerCreating"}},
        }])
    );
    assert_eq!(got.pod_ip.as_deref(), Some("10.42.0.5"));
    assert_eq!(got.host_ip.as_deref(), Some("192.168.0.1"));
    assert_eq!(condition(&got, "PodReadyToStartContainers").status, "True");
    assert_eq!(
        condition(&got, "Ready").message.as_deref(),
        Some("containers with unready status: [a]")
    );
}

#[test]
fn a_running_container_is_ready_when_its_probes_say_so() {
    let observed = Observed {
        sandboxes: vec![sandbox(0)],
        containers: vec![container("a", 0, Running, 0)],
    };
    let mut memory = Memory::default();
    let spec = json!({"containers": [{"name": "a"}]});
    assert_eq!(
        condition(&status(spec.clone(), &observed, &memory), "Ready").status,
        "False"
    );
    let remembered = memory.container_mut("a");
    (remembered.started, remembered.ready) = (true, true);
    let got = status(spec, &observed, &memory);
    assert_eq!(got.phase.as_deref(), Some("Running"));
    for kind in ["Ready", "ContainersReady", "Initialized", "PodScheduled"] {
        assert_eq!(condition(&got, kind).status, "True", "{kind}");
    }
    let own = json_of(&got.container_statuses.as_ref().expect("statuses")[0]);
    assert_eq!(own["containerID"], "knarr://a-0");
    assert_eq!(
        own["state"],
        json!({"running": {"startedAt": "2027-01-15T08:00:00Z"}})
    );
    assert_eq!(own["ready"], true);
}

#[test]
fn a_crashing_container_waits_with_its_last_end_beside_it() {
    let observed = Observed {
        sandboxes: vec![sandbox(0)],
        containers: vec![container("a", 2, Exited, 3)],
    };
    let mut memory = Memory::default();
    memory.container_mut("a").waiting = Some(Waiting {
        reason: "CrashLoopBackOff".into(),
        message: "back-off".into(),
    });
    let got = status(json!({"containers": [{"name": "a"}]}), &observed, &memory);
    let own = json_of(&got.container_statuses.as_ref().expect("statuses")[0]);
    assert_eq!(
        own["state"]["waiting"],
        json!({"reason": "CrashLoopBackOff", "message": "back-off"})
    );
    assert_eq!(own["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(own["lastState"]["terminated"]["message"], "last words");
    assert_eq!(own["restartCount"], 2);
    assert_eq!(got.phase.as_deref(), Some("Running"));
}

#[test]
fn phases_follow_ends_and_policies() {
    for (policy, exit_code, phase, reason) in [
        ("Never", 0, "Succeeded", Some("PodCompleted")),
        ("Never", 1, "Failed", Some("PodFailed")),
        ("OnFailure", 0, "Succeeded", Some("PodCompleted")),
        ("OnFailure", 1, "Running", Some("ContainersNotReady")),
        ("Always", 0, "Running", Some("ContainersNotReady")),
    ] {
        let observed = Observed {
            sandboxes: vec![sandbox(0)],
            containers: vec![container("a", 0, Exited, exit_code)],
        };
        let spec = json!({"restartPolicy": policy, "containers": [{"name": "a"}]});
        let mut memory = Memory::default();
        if phase != "Running" {
            // A phase is terminal only once the pod's network is given back.
            let early = status(spec.clone(), &observed, &memory);
            assert_eq!(
                early.phase.as_deref(),
                Some("Running"),
                "{policy} {exit_code}"
            );
            (memory.ending, memory.killed) = (Some(Ending::Completed), true);
        }
        let got = status(spec, &observed, &memory);
        assert_eq!(got.phase.as_deref(), Some(phase), "{policy} {exit_code}");
        assert_eq!(
            condition(&got, "Ready").reason.as_deref(),
            reason,
            "{policy} {exit_code}"
        );
    }
}

#[test]
fn transition_times_stay_while_the_value_does() {
    let observed = Observed {
        sandboxes: vec![sandbox(0)],
        containers: vec![],
    };
    let spec = json!({"containers": [{"name": "a"}]});
    let first = status(spec.clone(), &observed, &Memory::default());
    let facts = Facts {
        termination_message: &|_| None,
    };
    let later = build(
        &pod(spec),
        &observed,
        &Memory::default(),
        Some(&first),
        &[],
        &facts,
        at(500),
    );
    assert_eq!(
        condition(&later, "Ready").last_transition_time,
        condition(&first, "Ready").last_transition_time
    );
}

#[test]
fn init_containers_are_ready_when_they_are_done() {
    let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let observed = Observed {
        sandboxes: vec![sandbox(0)],
        containers: vec![container("i", 0, Running, 0)],
    };
    let got = status(spec.clone(), &observed, &Memory::default());
    assert_eq!(
        condition(&got, "Initialized").message.as_deref(),
        Some("containers with incomplete status: [i]")
    );
    let waiting = json_of(&got.container_statuses.as_ref().expect("statuses")[0]);
    assert_eq!(waiting["state"]["waiting"]["reason"], "PodInitializing");
    let observed = Observed {
        sandboxes: vec![sandbox(0)],
        containers: vec![container("i", 0, Exited, 0)],
    };
    let got = status(spec, &observed, &Memory::default());
    assert_eq!(condition(&got, "Initialized").status, "True");
}

/// The states of the regular containers, as the API shows them.
fn states(status: &PodStatus) -> Vec<String> {
    let of = |state: &ApiState| match (&state.running, &state.waiting, &state.terminated) {
        (Some(_), _, _) => "running".to_owned(),
        (_, Some(waiting), _) => waiting.reason.clone().unwrap_or_default(),
        (_, _, Some(end)) => format!(
            "{} {}",
            end.reason.as_deref().unwrap_or_default(),
            end.exit_code
        ),
        _ => String::new(),
    };
    let statuses = status.container_statuses.iter().flatten();
    statuses
        .map(|s| s.state.as_ref().map(of).unwrap_or_default())
        .collect()
}

#[test]
fn a_pod_past_its_deadline_fails_when_its_containers_have_ended() {
    let spec = json!({"activeDeadlineSeconds": 2, "containers": [{"name": "a"}, {"name": "b"}]});
    let ending = Some(Ending::Failed {
        reason: "DeadlineExceeded",
        message: "too long".into(),
    });
    let ran = |state, code| {
        vec![
            container("a", 0, state, code),
            container("b", 0, state, code),
        ]
    };
    for (containers, killed, phase, reason, shown) in [
        (
            ran(Running, 0),
            false,
            "Running",
            None,
            ["running", "running"],
        ),
        (
            ran(Exited, 0),
            false,
            "Running",
            None,
            ["Completed 0", "Completed 0"],
        ),
        (
            ran(Exited, 0),
            true,
            "Failed",
            Some("DeadlineExceeded"),
            ["Completed 0", "Completed 0"],
        ),
        (
            ran(Exited, 143),
            true,
            "Failed",
            Some("DeadlineExceeded"),
            ["Error 143", "Error 143"],
        ),
        // One that never began has no end that anybody could tell.
        (
            vec![container("a", 0, Exited, 143)],
            true,
            "Failed",
            Some("DeadlineExceeded"),
            ["Error 143", "ContainerStatusUnknown 137"],
        ),
        (
            vec![],
            false,
            "Pending",
            None,
            ["ContainerCreating", "ContainerCreating"],
        ),
        (
            vec![],
            true,
            "Failed",
            Some("DeadlineExceeded"),
            ["ContainerStatusUnknown 137", "ContainerStatusUnknown 137"],
        ),
    ] {
        let observed = Observed {
            sandboxes: vec![sandbox(0)],
            containers,
        };
        let mut memory = Memory {
            ending: ending.clone(),
            killed,
            ..Memory::default()
        };
        for name in ["a", "b"] {
            let remembered = memory.container_mut(name);
            (remembered.started, remembered.ready) = (true, true);
        }
        let got = status(spec.clone(), &observed, &memory);
        assert_eq!(
            (got.phase.as_deref(), got.reason.as_deref(), states(&got)),
            (Some(phase), reason, shown.map(str::to_owned).to_vec()),
            "{observed:?} {killed}"
        );
        let message = reason.map(|_| "too long");
        assert_eq!(got.message.as_deref(), message);
        let ready = phase == "Running" && shown[0] == "running";
        let expected = if ready { "True" } else { "False" };
        assert_eq!(
            condition(&got, "Ready").status,
            expected,
            "{observed:?} {killed}"
        );
        if killed {
            assert_eq!(
                condition(&got, "Ready").reason.as_deref(),
                Some("PodFailed")
            );
            let statuses = got.container_statuses.iter().flatten();
            assert!(
                statuses
                    .clone()
                    .all(|s| !s.ready && s.started == Some(false)),
                "{got:?}"
            );
        }
    }
}

#[test]
fn a_pod_whose_sidecar_still_runs_is_not_over() {
    let spec = json!({
        "restartPolicy": "Never",
        "initContainers": [{"name": "s", "restartPolicy": "Always"}], "containers": [{"name": "a"}],
    });
    let observed = Observed {
        sandboxes: vec![sandbox(0)],
        containers: vec![container("s", 0, Running, 0), container("a", 0, Exited, 0)],
    };
    let memory = Memory {
        ending: Some(Ending::Completed),
        killing: true,
        ..Memory::default()
    };
    let got = status(spec, &observed, &memory);
    assert_eq!(got.phase.as_deref(), Some("Running"));
}

#[test]
fn a_pod_that_the_node_does_not_take_shows_why_and_no_containers() {
    let memory = Memory {
        ending: Some(Ending::Rejected(Rejection {
            reason: "OutOfcpu".into(),
            message: "Node didn't have enough resource: cpu".into(),
        })),
        killed: true,
        ..Memory::default()
    };
    let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let got = status(spec, &Observed::default(), &memory);
    assert_eq!(
        (
            got.phase.as_deref(),
            got.reason.as_deref(),
            got.message.as_deref()
        ),
        (
            Some("Failed"),
            Some("OutOfcpu"),
            Some("Pod was rejected: Node didn't have enough resource: cpu")
        )
    );
    assert_eq!(
        (&got.container_statuses, &got.init_container_statuses),
        (&None, &None)
    );
    assert_eq!(
        condition(&got, "Ready").reason.as_deref(),
        Some("PodFailed")
    );
}
