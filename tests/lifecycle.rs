//! How pods end, are refused and start anew, where only the whole shows it.

use crate::harness::{Cluster, busybox_image, hello_image};

/// The script of a container that ends at once when it is asked to.
const WAITS: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

/// A pod of the busybox image on this machine; `container` and `spec` are JSON objects without their braces.
fn pod(name: &str, script: &str, container: &str, spec: &str) -> String {
    let list = |more: &str| {
        if more.is_empty() {
            String::new()
        } else {
            format!(", {more}")
        }
    };
    format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}"}}, "spec": {{
            "terminationGracePeriodSeconds": 2, "containers": [{{"name": "c", "image": "knarr.local/busybox:1",
            "imagePullPolicy": "Never", "command": ["sh", "-c", "{script}"]{}}}]{}}}}}"#,
        list(container),
        list(spec),
    )
}

fn cluster(name: &str) -> Cluster {
    let cluster = Cluster::start(name);
    cluster.import(&busybox_image());
    cluster
}

fn expect_event(cluster: &Cluster, pod: &str, wanted: &str) {
    cluster.wait(&format!("an event {wanted:?} of {pod}"), || {
        let selector = format!("--field-selector=involvedObject.name={pod}");
        let path = "-o=jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}";
        let events = cluster.try_kubectl(&["get", "events", &selector, path])?;
        if events.lines().any(|event| event == wanted) {
            Ok(())
        } else {
            Err(events)
        }
    });
}

#[test]
fn a_pod_past_its_deadline_has_ended_and_one_that_does_not_fit_is_refused() {
    let cluster = cluster("deadline");
    // It runs before its time is up, however slow the machine is.
    cluster.apply(&pod("late", WAITS, "", r#""activeDeadlineSeconds": 600"#));
    cluster.wait_for("pod/late", "{.status.phase}", "Running");
    let deadline = r#"{"spec": {"activeDeadlineSeconds": 2}}"#;
    cluster.kubectl(&["patch", "pod/late", "-p", deadline]);
    cluster.wait_for("pod/late", "{.status.phase}", "Failed");
    let path = "{.status.reason} {.status.message} {.status.containerStatuses[0].ready} \
                {.status.containerStatuses[0].state.terminated.exitCode}";
    cluster.wait_for(
        "pod/late",
        path,
        "DeadlineExceeded Pod was active on the node longer than the specified deadline false 0",
    );
    let node = cluster.kubectl(&["get", "node", "-o=jsonpath={.items[0].metadata.name}"]);
    let node = node.trim();
    let on_node = |spec: &str| format!(r#""nodeName": "{node}"{spec}"#);
    cluster.apply(&pod(
        "selector",
        WAITS,
        "",
        &on_node(r#", "nodeSelector": {"no": "way"}"#),
    ));
    let asks = r#""resources": {"requests": {"cpu": "64"}}"#;
    cluster.apply(&pod("large", WAITS, asks, &on_node("")));
    for (name, reason, message) in [
        (
            "selector",
            "NodeAffinity",
            "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
        ),
        (
            "large",
            "OutOfcpu",
            "Node didn't have enough resource: cpu, requested: 64000, used: 0, capacity: ",
        ),
    ] {
        let object = format!("pod/{name}");
        cluster.wait_for(
            &object,
            "{.status.phase} {.status.reason}",
            &format!("Failed {reason}"),
        );
        let told = cluster.kubectl(&["get", &object, "-o=jsonpath={.status.message}"]);
        let expected = format!("Pod was rejected: {message}");
        assert!(told.starts_with(&expected), "{told}");
        let line = cluster.kubectl(&["get", &object, "--no-headers"]);
        assert!(line.contains(reason), "{line}");
    }
    cluster.kubectl(&["delete", "pod", "--all", "--timeout=30s"]);
}

#[test]
fn a_pod_with_a_host_port_survives_the_end_of_its_shim() {
    let cluster = cluster("shim");
    let port = r#""ports": [{"containerPort": 80, "hostPort": 18080}]"#;
    cluster.apply(&pod("ports", WAITS, port, ""));
    cluster.wait_for("pod/ports", "{.status.phase}", "Running");
    let id = "{.status.containerStatuses[0].containerID}";
    let before = cluster.kubectl(&["get", "pod/ports", &format!("-o=jsonpath={id}")]);
    cluster.machine().sh_ok("kill -9 $(pidof knarr-shim)");
    let path = "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}";
    cluster.wait_for("pod/ports", path, "1 true");
    let after = cluster.kubectl(&["get", "pod/ports", &format!("-o=jsonpath={id}")]);
    assert_ne!(before, after);
    expect_event(
        &cluster,
        "ports",
        "SandboxChanged: Pod sandbox changed, it will be killed and re-created.",
    );
    cluster.kubectl(&["delete", "pod", "ports", "--timeout=30s"]);
}

#[test]
fn another_image_restarts_its_container_alone() {
    let cluster = cluster("image");
    cluster.import(&hello_image("v1"));
    cluster.import(&hello_image("v2"));
    let container = |name: &str| {
        format!(
            r#"{{"name": "{name}", "image": "knarr.local/hello:v1", "imagePullPolicy": "Never",
            "env": [{{"name": "PORT", "value": "80{}"}}]}}"#,
            name.len()
        )
    };
    cluster.apply(&format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "changed"}}, "spec": {{
            "terminationGracePeriodSeconds": 1, "restartPolicy": "Never", "containers": [{}]}}}}"#,
        container("c")
    ));
    cluster.wait_for("pod/changed", "{.status.phase}", "Running");
    cluster.kubectl(&["set", "image", "pod/changed", "c=knarr.local/hello:v2"]);
    let path = "{.status.containerStatuses[0].image} {.status.containerStatuses[0].restartCount} {.status.phase}";
    cluster.wait_for("pod/changed", path, "knarr.local/hello:v2 1 Running");
    let killing = "Killing: Container c definition changed, will be restarted";
    expect_event(&cluster, "changed", killing);
}

#[test]
fn a_pre_stop_hook_runs_once_though_the_agent_is_killed_in_it() {
    let cluster = cluster("hook");
    let hook = r#""lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", "echo ran >> /out/hook; sleep 3"]}}},
        "volumeMounts": [{"name": "out", "mountPath": "/out"}]"#;
    let volume = r#""terminationGracePeriodSeconds": 8, "volumes": [{"name": "out", "hostPath": {"path": "/tmp/knarr-hook", "type": "DirectoryOrCreate"}}]"#;
    let manifest =
        pod("hooked", WAITS, hook, volume).replace(r#""terminationGracePeriodSeconds": 2, "#, "");
    cluster.apply(&manifest);
    cluster.wait_for("pod/hooked", "{.status.phase}", "Running");
    cluster.kubectl(&["delete", "pod", "hooked", "--wait=false"]);
    let lines = || {
        cluster
            .machine()
            .sh_ok("cat /tmp/knarr-hook/hook 2>/dev/null | wc -l")
    };
    cluster.wait("the hook to begin", || match lines().trim() {
        "1" => Ok(()),
        other => Err(other.to_owned()),
    });
    cluster.kill();
    cluster.up();
    cluster.wait("the pod to go", || {
        match cluster.try_kubectl(&["get", "pod", "hooked"]) {
            Err(error) if error.contains("NotFound") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(lines().trim(), "1");
    cluster.machine().sh_ok("rm -r /tmp/knarr-hook");
}

#[test]
fn probes_ask_as_kubernetes_does_and_the_downward_api_falls_back_to_the_node() {
    let cluster = cluster("asks");
    let probe = |path: &str| {
        format!(
            r#""readinessProbe": {{"httpGet": {{"port": 8080, "path": "{path}"}}, "periodSeconds": 1, "failureThreshold": 1}}"#
        )
    };
    let files = "mkdir -p '/tmp/w/a b'; echo ok > '/tmp/w/a b/ok'; exec httpd -f -p 8080 -h /tmp/w";
    cluster.apply(&pod("space", files, &probe("/a b/ok"), ""));
    // Answers /away with a redirect to another host, /redir with one to /bad here, and everything else with 500.
    let script = r#"printf '%s\\n' 'read -r m p v' 'case $p in /redir) l=/bad;; /away) l=http://192.0.2.1/;; *) printf \"HTTP/1.1 500 Bad\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n\"; exit;; esac' 'printf \"HTTP/1.1 302 Found\\r\\nLocation: $l\\r\\nContent-Length: 0\\r\\nConnection: close\\r\\n\\r\\n\"' > /tmp/h; while :; do nc -l -p 8080 -e sh /tmp/h; done"#;
    cluster.apply(&pod("redirect", script, &probe("/redir"), ""));
    cluster.apply(&pod("away", script, &probe("/away"), ""));
    let ready = "{.status.containerStatuses[0].ready}";
    cluster.wait_for("pod/space", ready, "true");
    cluster.wait_for("pod/away", ready, "true");
    expect_event(
        &cluster,
        "away",
        "ProbeWarning: Readiness probe warning: Probe terminated redirects, Response body: ",
    );
    let failed = "Unhealthy: Readiness probe failed: HTTP probe failed with statuscode: 500";
    expect_event(&cluster, "redirect", failed);
    cluster.wait_for("pod/redirect", ready, "false");

    let fields = r#""resources": {"limits": {"memory": "0"}}, "env": [
        {"name": "D_EPH", "valueFrom": {"resourceFieldRef": {"resource": "limits.ephemeral-storage", "divisor": "1Ki"}}},
        {"name": "D_MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Ki"}}},
        {"name": "D_CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
        "volumeMounts": [{"name": "pod", "mountPath": "/pod"}]"#;
    let volume = r#""restartPolicy": "Never", "volumes": [{"name": "pod", "downwardAPI": {"items": [{"path": "a", "fieldRef": {"fieldPath": "metadata.annotations"}}]}}]"#;
    let manifest = pod(
        "downward",
        "echo $D_EPH $D_MEM $D_CPU; grep ^esc /pod/a",
        fields,
        volume,
    )
    .replace(
        r#""name": "downward"}"#,
        r#""name": "downward", "annotations": {"esc": "bell\u0007 nbsp\u00a0 zwsp\u200b"}}"#,
    );
    cluster.apply(&manifest);
    cluster.wait_for("pod/downward", "{.status.phase}", "Succeeded");
    let allocatable = cluster.kubectl(&[
        "get",
        "node",
        "-o=jsonpath={.items[0].status.allocatable.ephemeral-storage} {.items[0].status.allocatable.memory} {.items[0].status.allocatable.cpu}",
    ]);
    // The node tells sizes in the largest unit that leaves a whole number.
    let kibibytes = |size: &str| match size.split_at(size.len().saturating_sub(2)) {
        (number, "Ki") => number.to_owned(),
        (number, "Mi") => (number.parse::<u64>().unwrap() << 10).to_string(),
        (number, "Gi") => (number.parse::<u64>().unwrap() << 20).to_string(),
        _ => size.to_owned(),
    };
    let allocatable: Vec<String> = allocatable.split_whitespace().map(kibibytes).collect();
    let log = cluster.kubectl(&["logs", "downward"]);
    let quoted = r#"esc="bell\a nbsp\u00a0 zwsp\u200b""#;
    assert_eq!(log, format!("{}\n{quoted}\n", allocatable.join(" ")));
}

#[test]
fn rotated_logs_go_with_their_pod_and_of_two_pods_of_one_name_the_new_one_answers() {
    let cluster = cluster("names");
    let stubborn = "trap '' TERM; echo old > /tmp/who; while :; do sleep 0.1; done";
    cluster.apply(&pod("twin", stubborn, "", "").replace(r#"Seconds": 2"#, r#"Seconds": 20"#));
    cluster.wait_for("pod/twin", "{.status.phase}", "Running");
    let logs = "ls /var/log/pods/default_twin_*/c/";
    cluster.machine().sh_ok(
        "for d in /var/log/pods/default_twin_*/c; do touch $d/0.log.20261130-000000.gz; done",
    );
    cluster.kubectl(&[
        "delete",
        "pod",
        "twin",
        "--force",
        "--grace-period=0",
        "--wait=false",
    ]);
    cluster.wait("the name to be free", || {
        match cluster.try_kubectl(&["get", "pod", "twin"]) {
            Err(error) if error.contains("NotFound") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    cluster.apply(&pod(
        "twin",
        "echo new > /tmp/who; while :; do sleep 0.1; done",
        "",
        "",
    ));
    cluster.wait_for("pod/twin", "{.status.phase}", "Running");
    for _ in 0..5 {
        cluster.wait("the new pod to answer", || {
            match cluster
                .try_kubectl(&["exec", "twin", "--", "cat", "/tmp/who"])?
                .trim()
            {
                "new" => Ok(()),
                "old" => cluster.fail("the old pod answers"),
                other => Err(other.to_owned()),
            }
        });
    }
    cluster.kubectl(&["delete", "pod", "twin", "--timeout=60s"]);
    cluster.wait("all logs to go", || {
        let left = cluster
            .machine()
            .sh_ok(&format!("{logs} 2>/dev/null || true"));
        if left.trim().is_empty() {
            Ok(())
        } else {
            Err(left)
        }
    });
}
