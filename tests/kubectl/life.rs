//! `kubectl run`, `expose`, `wait`, `delete`, `cordon`, `drain` and `taint`.

use super::{BOTH, Running, has, shell, start, web};

#[test]
fn run_expose_wait_delete_and_drain() {
    let cluster = start("life");
    let slow = "trap 'echo asked; sleep 1; exit 0' TERM; while true; do sleep 0.1; done";
    for which in BOTH {
        let run = |args: &[&str]| cluster.kubectl_with(which, args);
        has(
            &run(&[
                "run",
                "web",
                "--image=knarr.local/hello:v1",
                "--port=8080",
                "--labels=app=web,tier=front",
                "--env=A=b",
            ]),
            &["pod/web created"],
        );
        run(&["wait", "pod/web", "--for=condition=Ready", "--timeout=60s"]);
        has(
            &run(&[
                "expose",
                "pod",
                "web",
                "--port=80",
                "--target-port=8080",
                "--type=NodePort",
            ]),
            &["service/web exposed"],
        );
        let address = run(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"]);
        cluster.wait("the service to answer", || {
            let output = cluster.machine().sh(&format!(
                "curl --silent --fail --max-time 5 http://{address}/"
            ));
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            if text.trim() == "web" {
                Ok(())
            } else {
                Err(text)
            }
        });
        assert_eq!(
            run(&[
                "run",
                "once",
                "--image=knarr.local/busybox:1",
                "--restart=Never",
                "--rm",
                "-i",
                "--quiet",
                "--command",
                "--",
                "echo",
                "hello"
            ])
            .lines()
            .next(),
            Some("hello")
        );
        run(&["wait", "pod/once", "--for=delete", "--timeout=60s"]);

        // The grace period: asked with SIGTERM, waited for, gone; meanwhile Terminating.
        cluster.apply(&shell("slow", slow));
        cluster.wait_for("pod/slow", "{.status.phase}", "Running");
        let mut log = Running::start(&cluster, which, &["logs", "-f", "slow"]);
        has(
            &run(&["delete", "pod", "slow", "--grace-period=20", "--wait=false"]),
            &[r#"pod "slow" deleted"#],
        );
        log.expect("asked");
        has(&run(&["get", "pod", "slow"]), &["Terminating"]);
        assert_eq!(
            run(&[
                "get",
                "pod",
                "slow",
                "-o",
                "jsonpath={.metadata.deletionGracePeriodSeconds}"
            ]),
            "20"
        );
        run(&["wait", "pod/slow", "--for=delete", "--timeout=60s"]);
        log.end();

        // Asked nicely it would take ten minutes: whoever is done within one has not waited.
        let stubborn = shell("stubborn", "trap : TERM; while true; do sleep 0.1; done").replacen(
            "spec:\n",
            "spec:\n  terminationGracePeriodSeconds: 600\n",
            1,
        );
        cluster.apply(&stubborn);
        cluster.wait_for("pod/stubborn", "{.status.phase}", "Running");
        run(&["delete", "pod", "stubborn", "--force", "--timeout=60s"]);
        cluster.wait("the end of its process", || {
            let processes = cluster.machine().sh_ok("ps -e -o args=");
            if processes.contains("trap : TERM") {
                Err(processes)
            } else {
                Ok(())
            }
        });
        has(
            &cluster.kubectl_fails(&["delete", "pod", "absent"]),
            &[r#"pods "absent" not found"#],
        );
        run(&["delete", "pod", "absent", "--ignore-not-found"]);
        run(&["delete", "pods,services", "-l", "app=web", "--timeout=60s"]);
        assert_eq!(run(&["get", "pods", "-o", "name"]), "");

        // Owners: orphans stay, the foreground waits.
        cluster.apply(&web(1, ""));
        run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
        run(&["delete", "deployment", "web", "--cascade=orphan"]);
        cluster.wait("an orphan", || {
            let owners = cluster.try_kubectl(&[
                "get",
                "rs",
                "-o",
                "jsonpath={.items[*].metadata.ownerReferences}",
            ])?;
            if owners.is_empty() {
                Ok(())
            } else {
                Err(owners)
            }
        });
        assert_eq!(run(&["get", "rs,pods", "-o", "name"]).lines().count(), 2);
        run(&[
            "delete",
            "rs",
            "--all",
            "--cascade=foreground",
            "--timeout=60s",
        ]);
        assert_eq!(run(&["get", "rs,pods", "-o", "name"]), "");

        // Nothing is put on a node that is cordoned, and a drain evicts what is there.
        cluster.apply(&web(1, ""));
        run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
        run(&["cordon", "life"]);
        has(&run(&["get", "nodes"]), &["Ready,SchedulingDisabled"]);
        has(
            &run(&["drain", "life", "--timeout=60s"]),
            &["evicted", "drained"],
        );
        cluster.wait("the pod to wait for a node", || {
            let events = cluster.try_kubectl(&[
                "get",
                "events",
                "--field-selector",
                "reason=FailedScheduling",
            ])?;
            let pods = cluster.try_kubectl(&["get", "pods"])?;
            if events.contains("1 node(s) were unschedulable") && pods.contains("Pending") {
                Ok(())
            } else {
                Err(events + &pods)
            }
        });
        run(&["uncordon", "life"]);
        run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
        run(&["taint", "node", "life", "dedicated=x:NoExecute"]);
        cluster.wait("the pod to be evicted", || {
            let pods = cluster.try_kubectl(&["get", "pods"])?;
            if pods.contains("Running") {
                Err(pods)
            } else {
                Ok(())
            }
        });
        run(&["taint", "node", "life", "dedicated-"]);
        run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
        run(&["delete", "deployment", "web", "--timeout=60s"]);
        run(&[
            "wait",
            "pods",
            "-l",
            "app=web",
            "--for=delete",
            "--timeout=60s",
        ]);
    }
}
