//! What people see of a container's output, its last words, and sessions with it: with the old kubectl (SPDY) and the new one
//! (WebSocket).

use std::process::Stdio;

use crate::harness::{Cluster, Kubectl};

const BUSYBOX: &str = "knarr.local/busybox:1";

fn cluster(name: &str) -> Cluster {
    let cluster = Cluster::start(name);
    cluster.import(&crate::harness::busybox_image());
    cluster
}

/// A pod with one container `c` that runs a script.
fn pod(name: &str, policy: &str, container: &str, script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: {policy}\n  containers:\n  \
         - name: c\n    image: {BUSYBOX}\n    command: [sh, -c, {script:?}]\n{container}"
    )
}

#[test]
fn last_words_and_logs_have_the_exact_bytes() {
    let cluster = cluster("words");
    let fallback = "    terminationMessagePolicy: FallbackToLogsOnError\n";
    let line = |size: usize| {
        format!("echo start; head -c {size} /dev/zero | tr '\\0' y; echo END; exit 2")
    };
    for (name, script) in [
        ("long", line(8000)),
        ("split", line(17000)),
        ("bare", "printf DONE; exit 2".to_owned()),
    ] {
        cluster.apply(&pod(name, "Never", fallback, &script));
    }
    let message = "{.status.containerStatuses[0].state.terminated.message}";
    for (name, expected) in [
        ("long", "y".repeat(2044) + "END\n"),
        ("split", "y".repeat(2044) + "END\n"),
        ("bare", "DONE".to_owned()),
    ] {
        cluster.wait_for(&format!("pod/{name}"), "{.status.phase}", "Failed");
        let path = format!("jsonpath={message}");
        let told = cluster.kubectl(&["get", "pod", name, "-o", &path]);
        assert_eq!(told, expected, "{name}");
    }
    assert_eq!(cluster.kubectl(&["logs", "bare"]), "DONE");
    assert_eq!(cluster.kubectl(&["logs", "-f", "bare"]), "DONE");
    assert_eq!(cluster.kubectl(&["logs", "split"]).len(), 6 + 17000 + 4);
}

#[test]
fn sessions_with_containers_that_do_not_run_are_refused_in_the_known_words() {
    let cluster = cluster("waiting");
    cluster.apply(&pod("crashes", "Always", "", "exit 1"));
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: waits}\nspec: {containers: [{name: c, image: 'knarr.local/none:1', imagePullPolicy: Never}]}",
    );
    let reason = "{.status.containerStatuses[0].state.waiting.reason}";
    cluster.wait_for("pod/waits", reason, "ErrImageNeverPull");
    cluster.wait_for("pod/crashes", reason, "CrashLoopBackOff");
    for which in [Kubectl::Installed, Kubectl::New] {
        for name in ["waits", "crashes"] {
            let output = cluster
                .kubectl_command(which)
                .args(["exec", name, "--", "true"])
                .output()
                .expect("run kubectl");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            let words = "unable to upgrade connection: container not found (\"c\")\n";
            assert!(
                text.starts_with("error: ") && text.ends_with(words),
                "{name}: {text}"
            );
            assert_eq!(
                text.matches("unable to upgrade").count(),
                1,
                "{name}: {text}"
            );
            assert!(!output.status.success());
        }
    }
}

#[test]
fn run_prints_output_once_and_ends_with_the_containers_code() {
    let cluster = cluster("once");
    for (number, which) in [Kubectl::Installed, Kubectl::New].into_iter().enumerate() {
        for (script, out) in [
            ("sleep 1.5; echo once; exit 2", "once\n"),
            ("printf quick; exit 2", "quick"),
        ] {
            let name = format!("run-{number}-{}", out.len());
            let output = cluster
                .kubectl_command(which)
                .args(["run", &name, "--image", BUSYBOX, "--restart=Never"])
                .args(["-i", "--rm", "--", "sh", "-c", script])
                .stdin(Stdio::null())
                .output()
                .expect("run kubectl");
            let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{name}: {stdout}{stderr}");
            // A newer kubectl has printed the log already when it hears that it came late, and prints it once more
            // (<https://github.com/kubernetes/kubectl/issues/1848>).
            let warned = stderr.contains("couldn't attach");
            assert!(
                !warned || which == Kubectl::New && out == "quick",
                "{name}: {stderr}"
            );
            // Once more, unless the log was not there yet the first time.
            let times = if warned { 1..=2 } else { 1..=1 };
            let printed = stdout.matches(out.trim()).count();
            assert!(times.contains(&printed), "{name}: {stdout}{stderr}");
        }
    }
}

#[test]
fn a_pod_is_asked_through_the_proxy_at_its_port_or_at_80() {
    let cluster = cluster("proxied");
    let serve = |port: u16| {
        format!("mkdir /www; echo at {port} > /www/index.html; exec httpd -f -p {port} -h /www")
    };
    cluster.apply(&pod("plain", "Always", "", &serve(80)));
    let port = "    ports: [{containerPort: 8080}]\n";
    cluster.apply(&pod("named", "Always", port, &serve(8080)));
    for (name, port) in [("plain", 80), ("named", 8080)] {
        cluster.wait_for(&format!("pod/{name}"), "{.status.phase}", "Running");
        let path = format!("/api/v1/namespaces/default/pods/{name}/proxy/index.html");
        cluster.wait("an answer", || {
            let answer = cluster.try_kubectl(&["get", "--raw", &path])?;
            if answer == format!("at {port}\n") {
                Ok(())
            } else {
                Err(answer)
            }
        });
    }
    let closed = cluster.kubectl_fails(&[
        "get",
        "--raw",
        "/api/v1/namespaces/default/pods/plain:81/proxy/",
    ]);
    assert!(
        closed.contains("error trying to reach service: dial tcp ")
            && closed.contains(":81: connect: connection refused"),
        "{closed}"
    );
}
