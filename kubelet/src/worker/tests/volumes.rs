//! The volumes of a pod, as its task makes them.

use super::*;

/// Mounts of this thread, and of those that it starts, end with it.
fn own_mounts() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    unshare(CloneFlags::CLONE_NEWNS).expect("the test mounts and must run as root");
    let (none, all) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
    mount(none, "/", none, all, none).expect("private mounts");
}

#[tokio::test]
async fn a_path_inside_a_volume_is_refused_and_a_new_annotation_lets_its_pod_start() {
    own_mounts();
    let spec = json!({
        "volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [{"name": "a", "image": "busybox",
            "env": [{"name": "PATH_INSIDE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.annotations['inside']"}}}],
            "volumeMounts": [{"name": "v", "mountPath": "/v", "subPathExpr": "$(PATH_INSIDE)"}]}],
    });
    let pod = Running::start(spec, FakeRuntime::new(), FakeApi::new(&[]));
    let refused = |message: &'static str| {
        move |told: &Told| {
            let waiting = &told.status["containerStatuses"][0]["state"]["waiting"];
            let event = format!("Failed: Error: {message}");
            waiting["reason"] == "CreateContainerConfigError"
                && waiting["message"] == message
                && told.events.contains(&event)
        }
    };
    let annotate = |value: &str| {
        pod.input.send_modify(|input| {
            let mut changed = (*input.pod).clone();
            let annotations = changed.metadata.annotations.get_or_insert_default();
            annotations.insert("inside".to_owned(), value.to_owned());
            input.pod = Arc::new(changed);
        });
    };
    let words = "missing value for PATH_INSIDE";
    pod.api.wait(words, refused(words)).await;
    for (value, words) in [
        ("/tmp", "error SubPath `/tmp` must not be an absolute path"),
        (
            "a/..",
            "unable to provision SubPath `a/..`: must not contain '..'",
        ),
    ] {
        annotate(value);
        pod.api.wait(words, refused(words)).await;
    }
    annotate("a/b");
    pod.api
        .wait("running", |t| t.status["phase"] == "Running")
        .await;
    let volume = pod
        .ctx
        .config
        .pod_dir("u")
        .join("volumes/kubernetes.io~empty-dir/v");
    assert!(volume.join("a/b").is_dir());
    pod.task.abort();
}

/// A sandbox that was there before this process: after a reboot or a kill its volumes are not.
#[tokio::test]
async fn volumes_are_there_again_before_a_container_starts() {
    own_mounts();
    let spec = json!({
        "volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}],
        "containers": [{"name": "a", "image": "busybox", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
    });
    let pod = Running::start(spec, FakeRuntime::new(), FakeApi::new(&[]));
    pod.api
        .wait("running", |t| t.status["phase"] == "Running")
        .await;
    let volume = pod
        .ctx
        .config
        .pod_dir("u")
        .join("volumes/kubernetes.io~empty-dir/v");
    assert!(knarr_tree::is_mount_point(&volume).expect("made"));
    knarr_tree::unmount(&volume).expect("unmounted");
    pod.ctx.tokens.forget("u");
    pod.runtime.end("a", 1);
    pod.api
        .wait("a restart", |t| {
            t.status["containerStatuses"][0]["restartCount"] == 1
        })
        .await;
    assert!(knarr_tree::is_mount_point(&volume).expect("there"));
    knarr_tree::unmount(&volume).expect("unmounted");
    pod.task.abort();
}
