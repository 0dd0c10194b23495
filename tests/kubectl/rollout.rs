//! `kubectl rollout`.

use super::{BOTH, has, start, web};

#[test]
fn a_rollout_has_a_history_and_can_be_paused_undone_and_stuck() {
    let cluster = start("history");
    cluster.apply(&web(2, ""));
    cluster.kubectl(&[
        "annotate",
        "deployment/web",
        "kubernetes.io/change-cause=first",
    ]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    cluster.kubectl(&["set", "image", "deployment/web", "web=knarr.local/hello:v2"]);
    cluster.kubectl(&[
        "annotate",
        "deployment/web",
        "kubernetes.io/change-cause=second",
        "--overwrite",
    ]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    for which in BOTH {
        cluster.wait("the causes", || {
            let history = cluster.kubectl_with(which, &["rollout", "history", "deployment/web"]);
            if history.contains("first") && history.contains("second") {
                Ok(())
            } else {
                Err(history)
            }
        });
    }
    has(
        &cluster.kubectl(&["rollout", "history", "deployment/web", "--revision=1"]),
        &["with revision #1", "knarr.local/hello:v1"],
    );
    let rolled = cluster.kubectl(&["rollout", "undo", "deployment/web", "--to-revision=1"]);
    has(&rolled, &["deployment.apps/web rolled back"]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let history = cluster.kubectl(&["rollout", "history", "deployment/web"]);
    has(&history, &["\n2 ", "\n3 "]);
    assert!(!history.contains("\n1 "), "{history}");
    has(
        &cluster.kubectl_fails(&["rollout", "undo", "deployment/web", "--to-revision=17"]),
        &["unable to find specified revision 17"],
    );

    cluster.kubectl(&["rollout", "pause", "deployment/web"]);
    cluster.kubectl(&["set", "image", "deployment/web", "web=knarr.local/hello:v2"]);
    cluster.wait_for(
        "deployment/web",
        "{.status.updatedReplicas}{.status.conditions[?(@.type==\"Progressing\")].reason}",
        "DeploymentPaused",
    );
    has(
        &cluster.kubectl_fails(&["rollout", "restart", "deployment/web"]),
        &["can't restart paused deployment"],
    );
    cluster.kubectl(&["rollout", "resume", "deployment/web"]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);

    // An image that is not there: the old pods stay, and the rollout says that it is stuck.
    cluster.kubectl(&[
        "patch",
        "deployment",
        "web",
        "-p",
        r#"{"spec":{"progressDeadlineSeconds":2}}"#,
    ]);
    cluster.kubectl(&["set", "image", "deployment/web", "web=127.0.0.1:1/none:1"]);
    has(
        &cluster.kubectl_fails(&["rollout", "status", "deployment/web", "--timeout=60s"]),
        &["exceeded its progress deadline"],
    );
    cluster.wait_for("deployment/web", "{.status.availableReplicas}", "2");
    cluster.kubectl(&["rollout", "undo", "deployment/web"]);
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
}
