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
        let got = status(spec, &observed, &Memory::default());
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
