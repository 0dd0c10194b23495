//! `kubectl logs`.

use super::{BOTH, Running, has, shell, start, web};

#[test]
fn logs_are_followed_cut_stamped_and_kept_for_one_restart() {
    let cluster = start("logs");
    cluster.apply(&shell(
        "follow",
        "echo one; until [ -e /tmp/go ]; do sleep 0.05; done; echo two; echo three >&2",
    ));
    cluster.wait_for("pod/follow", "{.status.phase}", "Running");
    let mut following: Vec<_> = BOTH
        .into_iter()
        .map(|which| Running::start(&cluster, which, &["logs", "-f", "follow"]))
        .collect();
    for one in &mut following {
        one.expect("one");
    }
    cluster.kubectl(&["exec", "follow", "--", "touch", "/tmp/go"]);
    for one in following {
        // It ends by itself when the container has ended, with everything.
        let mut lines: Vec<_> = one.end().lines().map(str::to_owned).collect();
        lines.sort();
        assert_eq!(lines, ["one", "three", "two"]);
    }
    for which in BOTH {
        let logs = |args: &[&str]| cluster.kubectl_with(which, &[&["logs"], args].concat());
        assert_eq!(logs(&["follow", "--tail=2"]).lines().count(), 2);
        assert_eq!(logs(&["follow", "--tail=0"]), "");
        assert_eq!(logs(&["follow", "--limit-bytes=3"]), "one");
        assert_eq!(
            logs(&["follow", "--since=1h", "-c", "main"])
                .lines()
                .count(),
            3
        );
        assert_eq!(logs(&["follow", "--since-time=2099-01-01T00:00:00Z"]), "");
        for line in logs(&["follow", "--timestamps"]).lines() {
            let (stamp, text) = line.split_once(' ').expect("a stamp and a text");
            assert!(
                stamp.ends_with('Z')
                    && stamp.contains('.')
                    && ["one", "two", "three"].contains(&text),
                "{line}"
            );
        }
        assert_eq!(
            logs(&["-l", "app=follow", "--prefix"])
                .lines()
                .filter(|line| line.starts_with("[pod/follow/main] "))
                .count(),
            3
        );
        assert_eq!(logs(&["follow", "--all-containers"]).lines().count(), 3);
    }
    has(
        &cluster.kubectl_fails(&["logs", "follow", "-c", "absent"]),
        &["container absent is not valid for pod follow"],
    );
    has(
        &cluster.kubectl_fails(&["logs", "follow", "--previous"]),
        &[r#"previous terminated container "main" in pod "follow" not found"#],
    );
    has(
        &cluster.kubectl_fails(&["logs", "absent"]),
        &[r#"pods "absent" not found"#],
    );

    cluster.apply(&web(1, ""));
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    cluster.kubectl(&["logs", "deployment/web", "--since=1h"]);
    cluster.apply(&shell("again", "n=$(cat /keep/n 2>/dev/null || echo 0); echo run $n; echo $((n+1)) > /keep/n; [ $n -gt 0 ] && exec sleep 1000; exit 1")
        .replace("restartPolicy: Never", "restartPolicy: Always\n  volumes: [{name: keep, emptyDir: {}}]")
        .replace("    command:", "    volumeMounts: [{name: keep, mountPath: /keep}]\n    command:"));
    cluster.wait_for("pod/again", "{.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].state.running.startedAt.x}", "1 ");
    cluster.wait("the log of the second run", || {
        let log = cluster.try_kubectl(&["logs", "again"])?;
        if log == "run 1\n" { Ok(()) } else { Err(log) }
    });
    assert_eq!(cluster.kubectl(&["logs", "again", "-p"]), "run 0\n");
}
