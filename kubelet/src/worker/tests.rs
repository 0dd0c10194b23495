//! A pod's task as a whole, against a runtime and an API server in memory.

use serde_json::{Value, json};

use super::*;
use crate::objects::{Kind, Reference};
use crate::testing::fake::{FakeApi, FakeRuntime, Told};

struct Running {
    api: FakeApi,
    runtime: Arc<FakeRuntime>,
    input: watch::Sender<Input>,
    ctx: Arc<Ctx>,
    task: tokio::task::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Running {
    fn start(spec: Value, runtime: FakeRuntime, api: FakeApi) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let runtime = Arc::new(runtime);
        let (ctx, write) = crate::testing::ctx(directory.path(), runtime.clone(), &api);
        tokio::spawn(write);
        tokio::spawn({
            let ctx = ctx.clone();
            async move { ctx.services.follow(ctx.client.clone()).await }
        });
        let pod = Arc::new(crate::testing::pod(spec));
        let (input, receiver) = watch::channel(Input { pod, gone: false });
        let wake = Arc::new(Notify::new());
        // Events reach the task as the manager would bring them.
        let mut events = crate::runtime::Runtime::events(runtime.as_ref());
        let nudge = input.clone();
        tokio::spawn(async move {
            while events.recv().await.is_ok() {
                nudge.send_modify(|_| {});
            }
        });
        let worker = Worker::new(Start {
            ctx: ctx.clone(),
            input: receiver,
            wake,
            existing: Existing::default(),
            rejected: None,
        });
        Self {
            api,
            runtime,
            input,
            ctx,
            task: tokio::spawn(worker.run()),
            _directory: directory,
        }
    }

    fn delete(&self) {
        self.input.send_modify(|input| {
            let mut pod = (*input.pod).clone();
            pod.metadata.deletion_timestamp = Some(status::time(SystemTime::now()));
            pod.metadata.deletion_grace_period_seconds = Some(1);
            input.pod = Arc::new(pod);
        });
    }
}

mod volumes;

/// Waits until a file holds a text.
async fn wait_content(path: &std::path::Path, wanted: &str) {
    let read = || std::fs::read_to_string(path);
    let holds = async {
        while read().ok().as_deref() != Some(wanted) {
            // Only for the file system, which tells nobody.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(10), holds).await;
    assert!(
        done.is_ok(),
        "{} holds {:?}, not {wanted:?}",
        path.display(),
        read()
    );
}

fn waiting_reason(told: &Told) -> &str {
    told.status["containerStatuses"][0]["state"]["waiting"]["reason"]
        .as_str()
        .unwrap_or_default()
}

#[tokio::test]
async fn a_pod_runs_crashes_runs_again_and_is_deleted() {
    let spec = json!({"containers": [{"name": "a", "image": "busybox", "command": ["x", "$(GREETING)"],
        "env": [{"name": "GREETING", "value": "hello"}]}]});
    let pod = Running::start(spec, FakeRuntime::new(), FakeApi::new(&[]));
    let told = pod
        .api
        .wait("running", |t| t.status["phase"] == "Running")
        .await;
    assert_eq!(told.status["podIP"], "10.42.0.7");
    assert_eq!(told.status["containerStatuses"][0]["ready"], true);
    assert_eq!(
        pod.runtime.config("a").expect("created").command,
        ["x", "hello"]
    );
    pod.runtime.end("a", 1);
    let told = pod
        .api
        .wait("a restart", |t| {
            t.status["containerStatuses"][0]["restartCount"] == 1
        })
        .await;
    assert_eq!(
        told.status["containerStatuses"][0]["lastState"]["terminated"]["exitCode"],
        1
    );
    pod.runtime.end("a", 1);
    let told = pod
        .api
        .wait("a crash loop", |t| waiting_reason(t) == "CrashLoopBackOff")
        .await;
    assert_eq!(
        told.status["containerStatuses"][0]["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=a pod=p_ns(u)"
    );
    pod.delete();
    let told = pod.api.wait("the deletion", |t| t.deleted.is_some()).await;
    assert_eq!(
        told.deleted,
        Some(json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "u"}}))
    );
    assert_eq!(
        told.status["containerStatuses"][0]["state"]["terminated"]["exitCode"],
        1
    );
    pod.task.await.expect("the task ended");
    assert_eq!(pod.runtime.counts(), (0, 0));
    let events = pod
        .api
        .wait("events", |t| {
            t.events.iter().any(|e| e.starts_with("BackOff"))
        })
        .await
        .events;
    for expected in [
        "Pulled: ",
        "Created: Container created",
        "Started: Container started",
    ] {
        assert!(
            events.iter().any(|e| e.starts_with(expected)),
            "{expected} in {events:?}"
        );
    }
}

#[tokio::test]
async fn a_finished_pod_stays_succeeded() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "a", "image": "busybox"}]});
    let pod = Running::start(spec, FakeRuntime::new(), FakeApi::new(&[]));
    pod.api
        .wait("running", |t| t.status["phase"] == "Running")
        .await;
    pod.runtime.end("a", 0);
    let told = pod
        .api
        .wait("success", |t| t.status["phase"] == "Succeeded")
        .await;
    assert_eq!(
        told.status["containerStatuses"][0]["state"]["terminated"]["reason"],
        "Completed"
    );
    pod.delete();
    pod.api.wait("the deletion", |t| t.deleted.is_some()).await;
    pod.task.await.expect("the task ended");
}

#[tokio::test]
async fn an_image_that_cannot_be_pulled_is_told_and_its_pod_can_be_deleted() {
    let runtime = FakeRuntime::new();
    *runtime.pull_error.lock() = Some("no such host".into());
    let spec = json!({"containers": [{"name": "a", "image": "nowhere.example/x"}]});
    let pod = Running::start(spec, runtime, FakeApi::new(&[]));
    let told = pod
        .api
        .wait("the error", |t| waiting_reason(t) == "ErrImagePull")
        .await;
    assert_eq!(told.status["phase"], "Pending");
    pod.delete();
    pod.api.wait("the deletion", |t| t.deleted.is_some()).await;
    pod.task.await.expect("the task ended");
}

#[tokio::test]
async fn a_missing_config_map_keeps_a_container_from_being_made() {
    let spec = json!({"containers": [{"name": "a", "image": "busybox",
        "envFrom": [{"configMapRef": {"name": "settings"}}]}]});
    let pod = Running::start(spec, FakeRuntime::new(), FakeApi::new(&[]));
    let told = pod
        .api
        .wait("the error", |t| {
            waiting_reason(t) == "CreateContainerConfigError"
        })
        .await;
    assert_eq!(
        told.status["containerStatuses"][0]["state"]["waiting"]["message"],
        "configmap \"settings\" not found"
    );
    pod.task.abort();
}

#[tokio::test]
async fn config_maps_reach_environment_and_volumes() {
    let settings =
        json!({"metadata": {"name": "settings", "namespace": "ns"}, "data": {"COLOUR": "red"}});
    let spec = json!({
        "volumes": [{"name": "v", "configMap": {"name": "settings", "items": [{"key": "COLOUR", "path": "deep/colour"}]}}],
        "containers": [{"name": "a", "image": "busybox", "envFrom": [{"configMapRef": {"name": "settings"}}],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
    });
    let pod = Running::start(
        spec,
        FakeRuntime::new(),
        FakeApi::new(&[("settings", settings)]),
    );
    pod.api
        .wait("running", |t| t.status["phase"] == "Running")
        .await;
    let config = pod.runtime.config("a").expect("created");
    assert!(
        config.env.contains(&("COLOUR".into(), "red".into())),
        "{:?}",
        config.env
    );
    let mount = config
        .mounts
        .iter()
        .find(|m| m.container_path == std::path::Path::new("/v"))
        .expect("the mount");
    assert!(mount.readonly);
    assert_eq!(
        std::fs::read_to_string(mount.host_path.join("deep/colour")).expect("the file"),
        "red"
    );
    pod.task.abort();
}

#[tokio::test]
async fn the_logins_of_all_pull_secrets_come_with_a_pull() {
    let login = |registry: &str, user: &str| {
        let file = json!({"auths": {registry: {"username": user, "password": "x"}}}).to_string();
        k8s_openapi::ByteString(file.into_bytes())
    };
    let secret = |name: &str, registry: &str, user: &str| json!({"metadata": {"name": name, "namespace": "ns"}, "data": {".dockerconfigjson": login(registry, user)}});
    let spec = json!({
        "imagePullSecrets": [{"name": "one"}, {"name": "other"}, {"name": "two"}, {"name": "three"}],
        "containers": [{"name": "a", "image": "reg.io/team/x", "imagePullPolicy": "Always"}],
    });
    let pod = Running::start(
        spec,
        FakeRuntime::new(),
        FakeApi::new(&[
            ("one", secret("one", "reg.io", "first")),
            ("other", secret("other", "other.io", "none")),
            ("two", secret("two", "reg.io", "second")),
            ("three", secret("three", "reg.io/team", "best")),
        ]),
    );
    pod.api
        .wait("running", |t| t.status["phase"] == "Running")
        .await;
    assert_eq!(*pod.runtime.users.lock(), ["best", "first", "second"]);
    pod.task.abort();
}

#[tokio::test]
async fn a_config_map_that_changes_while_the_sandbox_is_made_reaches_its_volume() {
    let settings = |colour: &str| json!({"metadata": {"name": "settings", "namespace": "ns"}, "data": {"COLOUR": colour}});
    let spec = json!({
        "volumes": [{"name": "v", "configMap": {"name": "settings"}}],
        "containers": [{"name": "a", "image": "busybox", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
    });
    let runtime = FakeRuntime::new();
    runtime.makes_sandboxes.send_replace(false);
    let api = FakeApi::new(&[("settings", settings("red"))]);
    let pod = Running::start(spec, runtime, api);
    let volume = pod
        .ctx
        .config
        .pod_dir("u")
        .join("volumes/kubernetes.io~configmap/v");
    let file = volume.join("COLOUR");
    wait_content(&file, "red").await;
    // Another reader of the object is woken together with the pod's task.
    let woken = Arc::new(Notify::new());
    let reference = Reference {
        kind: Kind::ConfigMap,
        namespace: "ns".into(),
        name: "settings".into(),
    };
    let content = pod.ctx.objects.get(&reference, "other", &woken).await;
    assert_eq!(content.expect("known")["COLOUR"], b"red");
    pod.api.put_config_map("settings", settings("blue"));
    let waited = tokio::time::timeout(Duration::from_secs(10), woken.notified()).await;
    waited.expect("the watch tells of the change");
    // This test has one thread: the task has its turn before this one goes on, and finds no sandbox.
    for _turn in 0..32 {
        tokio::task::yield_now().await;
    }
    assert_eq!(pod.runtime.counts(), (0, 0));
    assert_eq!(std::fs::read_to_string(&file).expect("the file"), "red");
    pod.runtime.makes_sandboxes.send_replace(true);
    pod.api
        .wait("running", |t| t.status["phase"] == "Running")
        .await;
    wait_content(&file, "blue").await;
    // And so does a change when all is made.
    pod.api.put_config_map("settings", settings("green"));
    wait_content(&file, "green").await;
    pod.task.abort();
}

#[tokio::test]
async fn a_config_map_that_is_made_late_lets_its_pod_start() {
    let spec = json!({"containers": [{"name": "a", "image": "busybox",
        "envFrom": [{"configMapRef": {"name": "settings"}}]}]});
    let pod = Running::start(spec, FakeRuntime::new(), FakeApi::new(&[]));
    pod.api
        .wait("the error", |t| {
            waiting_reason(t) == "CreateContainerConfigError"
        })
        .await;
    let settings =
        json!({"metadata": {"name": "settings", "namespace": "ns"}, "data": {"COLOUR": "red"}});
    pod.api.put_config_map("settings", settings);
    pod.api
        .wait("running", |t| t.status["phase"] == "Running")
        .await;
    let env = pod.runtime.config("a").expect("created").env;
    assert!(env.contains(&("COLOUR".into(), "red".into())), "{env:?}");
    pod.task.abort();
}

#[tokio::test]
async fn a_failing_liveness_probe_restarts_its_container() {
    let spec = json!({"containers": [{"name": "a", "image": "busybox",
        "livenessProbe": {"exec": {"command": ["false"]}, "failureThreshold": 1, "periodSeconds": 1}}]});
    let pod = Running::start(spec, FakeRuntime::new(), FakeApi::new(&[]));
    let told = pod
        .api
        .wait("a restart", |t| {
            t.status["containerStatuses"][0]["restartCount"] == 1
        })
        .await;
    let events = told.events;
    assert!(
        events
            .iter()
            .any(|e| e.starts_with("Unhealthy: Liveness probe failed")),
        "{events:?}"
    );
    let killing = "Killing: Container a failed liveness probe, will be restarted";
    assert!(events.iter().any(|e| e == killing), "{events:?}");
    pod.task.abort();
}

#[tokio::test]
async fn a_pod_past_its_deadline_shows_its_containers_as_ended() {
    let spec = json!({"activeDeadlineSeconds": 1, "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "a", "image": "busybox"}]});
    let pod = Running::start(spec, FakeRuntime::new(), FakeApi::new(&[]));
    let told = pod
        .api
        .wait("the end", |t| t.status["phase"] == "Failed")
        .await;
    assert_eq!(told.status["reason"], "DeadlineExceeded");
    let own = &told.status["containerStatuses"][0];
    assert_eq!(own["state"]["terminated"]["exitCode"], 143, "{own}");
    assert_eq!(own["ready"], false);
    pod.delete();
    pod.api.wait("the deletion", |t| t.deleted.is_some()).await;
    pod.task.await.expect("the task ended");
}

#[tokio::test]
async fn what_somebody_else_made_terminal_still_shows_how_its_containers_ended() {
    let spec = json!({"containers": [{"name": "a", "image": "busybox"}]});
    let pod = Running::start(spec, FakeRuntime::new(), FakeApi::new(&[]));
    let told = pod
        .api
        .wait("running", |t| t.status["phase"] == "Running")
        .await;
    pod.input.send_modify(|input| {
        let mut pod = (*input.pod).clone();
        let mut status = told.status.clone();
        status["phase"] = json!("Failed");
        status["reason"] = json!("Evicted");
        pod.status = serde_json::from_value(status).expect("a status");
        input.pod = Arc::new(pod);
    });
    let ended = |t: &Told| !t.status["containerStatuses"][0]["state"]["terminated"].is_null();
    let told = pod.api.wait("the container's end", ended).await;
    assert_eq!(
        (&told.status["phase"], &told.status["reason"]),
        (&json!("Failed"), &json!("Evicted"))
    );
    pod.task.abort();
}

#[tokio::test]
async fn a_pod_that_loses_its_sandbox_gives_it_back_and_runs_again() {
    let spec = json!({"containers": [{"name": "a", "image": "busybox"}]});
    let pod = Running::start(spec, FakeRuntime::new(), FakeApi::new(&[]));
    pod.api
        .wait("running", |t| t.status["phase"] == "Running")
        .await;
    pod.runtime.lose_sandbox();
    pod.api
        .wait("a restart", |t| {
            t.status["containerStatuses"][0]["restartCount"] == 1
        })
        .await;
    let calls: Vec<String> = pod.runtime.calls.lock().clone();
    let about_sandboxes = |call: &&String| call.contains("_sandbox ");
    assert_eq!(
        calls.iter().filter(about_sandboxes).collect::<Vec<_>>(),
        [
            "run_sandbox sandbox-0",
            "stop_sandbox sandbox-0",
            "run_sandbox sandbox-1"
        ]
    );
    let changed = "SandboxChanged: Pod sandbox changed, it will be killed and re-created.";
    pod.api
        .wait("the event", |t| t.events.iter().any(|e| e == changed))
        .await;
    pod.task.abort();
}

#[tokio::test]
async fn another_image_restarts_its_container_and_no_other_one() {
    let spec = |image: &str| {
        json!({"restartPolicy": "Never", "containers": [
        {"name": "a", "image": image}, {"name": "b", "image": "busybox:1"}]})
    };
    let pod = Running::start(spec("busybox:1"), FakeRuntime::new(), FakeApi::new(&[]));
    pod.api
        .wait("running", |t| t.status["phase"] == "Running")
        .await;
    pod.input.send_modify(|input| {
        input.pod = Arc::new(crate::testing::pod(spec("busybox:2")));
    });
    let told = pod
        .api
        .wait("a restart", |t| {
            t.status["containerStatuses"][0]["image"] == "busybox:2"
                && !t.status["containerStatuses"][0]["state"]["running"].is_null()
        })
        .await;
    let statuses = &told.status["containerStatuses"];
    assert_eq!(statuses[0]["restartCount"], 1);
    assert_eq!(statuses[1]["restartCount"], 0);
    assert_eq!(told.status["phase"], "Running");
    let killing = "Killing: Container a definition changed, will be restarted";
    pod.api
        .wait("the event", |t| t.events.iter().any(|e| e == killing))
        .await;
    pod.task.abort();
}

/// A pod whose container has a preStop hook that takes this long.
fn with_pre_stop(takes: Duration) -> Running {
    let spec = json!({"terminationGracePeriodSeconds": 30, "containers": [{"name": "a", "image": "busybox",
        "lifecycle": {"preStop": {"exec": {"command": ["drain"]}}},
        "livenessProbe": {"exec": {"command": ["false"]}, "failureThreshold": 1, "periodSeconds": 1, "initialDelaySeconds": 2}}]});
    let runtime = FakeRuntime::new();
    *runtime.exec_takes.lock() = takes;
    Running::start(spec, runtime, FakeApi::new(&[]))
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_runs_once_though_its_container_is_stopped_again_and_again() {
    let pod = with_pre_stop(Duration::from_secs(3));
    // The probe condemns the container, …
    let begun = |t: &Told| t.events.iter().any(|e| e.starts_with("Killing"));
    pod.api.wait("the stop", begun).await;
    // … the pod is deleted, and then once more with less time.
    for grace in [20, 10] {
        pod.input.send_modify(|input| {
            let mut pod = (*input.pod).clone();
            pod.metadata.deletion_timestamp = Some(status::time(SystemTime::now()));
            pod.metadata.deletion_grace_period_seconds = Some(grace);
            input.pod = Arc::new(pod);
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    pod.api.wait("the deletion", |t| t.deleted.is_some()).await;
    assert_eq!(pod.runtime.count("exec drain"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_hook_does_not_run_again_for_the_next_agent() {
    let pod = with_pre_stop(Duration::from_secs(3));
    pod.api
        .wait("running", |t| t.status["phase"] == "Running")
        .await;
    pod.delete();
    let begun = || pod.runtime.count("exec drain") == 1;
    while !begun() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    pod.task.abort();
    let existing = Existing::of_pod(&pod.ctx, "u").await.expect("listed");
    assert_eq!(existing.containers.len(), 1);
    let next = Worker::new(Start {
        ctx: pod.ctx.clone(),
        input: pod.input.subscribe(),
        wake: Arc::new(Notify::new()),
        existing,
        rejected: None,
    });
    tokio::spawn(next.run());
    pod.api.wait("the deletion", |t| t.deleted.is_some()).await;
    assert_eq!(pod.runtime.count("exec drain"), 1);
    assert_eq!(pod.runtime.count("stop_container a-0"), 1);
}
