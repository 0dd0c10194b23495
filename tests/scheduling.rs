//! Where pods go, and what they are told that go nowhere.

use crate::harness::{Cluster, busybox_image};

/// A pod that wants so much CPU, by YAML's flow style; `spec` is more of it.
fn pod(name: &str, cpu: &str, spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  terminationGracePeriodSeconds: 2\n{spec}  \
         containers:\n  - name: main\n    image: knarr.local/busybox:1\n    command: [sh, -c, 'trap \"exit 0\" TERM; while true; do sleep 0.1; done']\n    \
         resources: {{requests: {{cpu: '{cpu}'}}}}\n"
    )
}

/// Waits until a pod is told why it has no node: by its condition, and by an event.
fn refused(cluster: &Cluster, name: &str, message: &str) {
    let path = "{.status.conditions[?(@.type=='PodScheduled')].message}";
    cluster.wait_for(&format!("pod/{name}"), path, message);
    let selector = format!("reason=FailedScheduling,involvedObject.name={name}");
    cluster.wait("the event", || {
        let args = ["get", "events", "-o", "jsonpath={.items[*].message}"];
        let said = cluster.try_kubectl(&[&args[..], &["--field-selector", &selector]].concat())?;
        if said.contains(message) {
            Ok(())
        } else {
            Err(said)
        }
    });
}

#[test]
fn a_dearer_pod_takes_the_place_of_cheaper_ones() {
    let cluster = Cluster::start("dear");
    cluster.import(&busybox_image());
    let allocatable = cluster.kubectl(&[
        "get",
        "node",
        "dear",
        "-o",
        "jsonpath={.status.allocatable.cpu}",
    ]);
    let cpus: u32 = allocatable.parse().expect("whole CPUs");
    let most = format!("{}m", cpus * 1000 - 100);
    cluster.apply(&pod("cheap", &most, ""));
    cluster.apply(&pod("bystander", "10m", ""));
    for name in ["cheap", "bystander"] {
        cluster.wait_for(&format!("pod/{name}"), "{.status.phase}", "Running");
    }
    // One of the same priority has to wait, and is told so in kube-scheduler's words.
    cluster.apply(&pod("equal", "200m", ""));
    let lacking = "0/1 nodes are available: 1 Insufficient cpu.";
    refused(
        &cluster,
        "equal",
        &format!(
            "{lacking} preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod."
        ),
    );
    cluster.kubectl(&["delete", "pod", "equal"]);
    cluster.apply(&pod("picky", "10m", "  nodeSelector: {disk: ssd}\n"));
    refused(
        &cluster,
        "picky",
        "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. preemption: 0/1 nodes are available: \
         1 Preemption is not helpful for scheduling.",
    );

    let critical = "  priorityClassName: system-node-critical\n";
    let huge = pod("huge", &format!("{}", cpus + 1), critical);
    cluster.apply(&huge);
    refused(
        &cluster,
        "huge",
        &format!("{lacking} preemption: 0/1 nodes are available: 1 Insufficient cpu."),
    );
    cluster.apply(&pod("dear", "200m", critical));
    cluster.wait_for("pod/dear", "{.status.phase}", "Running");
    let uid = cluster.kubectl(&["get", "pod", "dear", "-o", "jsonpath={.metadata.uid}"]);
    let events = cluster.kubectl(&[
        "get",
        "events",
        "-o",
        "jsonpath={range .items[*]}{.involvedObject.name}: {.reason}: {.message}{'\\n'}{end}",
    ]);
    for line in [
        format!("cheap: Preempted: Preempted by pod {uid} on node dear\n"),
        format!("dear: FailedScheduling: {lacking}\n"),
        "dear: Scheduled: Successfully assigned default/dear to dear\n".to_owned(),
    ] {
        assert!(events.contains(&line), "{line} is not in\n{events}");
    }
    assert!(!events.contains("bystander: Preempted"), "{events}");
    let gone = cluster.kubectl_fails(&["get", "pod", "cheap"]);
    assert!(gone.contains("not found"), "{gone}");
    cluster.wait_for("pod/bystander", "{.status.phase}", "Running");
    let nominated = cluster.kubectl(&[
        "get",
        "pod",
        "dear",
        "-o",
        "jsonpath={.status.nominatedNodeName}",
    ]);
    assert_eq!(nominated, "", "it has its node now");
}
