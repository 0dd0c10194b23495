//! A pod's task as a whole, against a runtime and an API server in memory.

use serde_json::{Value, json};

use super::*;
use crate::config::KubeletConfig;
use crate::ctx::Machine;
use crate::events::Events;
use crate::identity::Identity;
use crate::objects::{Kind, Objects, Reference};
use crate::services::Services;
use crate::testing::fake::{FakeApi, FakeRuntime, Told};
use crate::volumes::TokenCache;

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
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::default()
            .self_signed(&key)
            .expect("a certificate");
        let serving =
            Identity::from_pem(&certificate.pem(), &key.serialize_pem()).expect("an identity");
        let mut config = KubeletConfig::new(
            "node".into(),
            [192, 168, 0, 1].into(),
            directory.path().join("node"),
            serving,
            String::new(),
        );
        config.log_root = directory.path().join("log");
        std::fs::create_dir_all(config.log_root.join("containers")).expect("made");
        let runtime = Arc::new(runtime);
        let client = api.client();
        let (events, write) = Events::new(client.clone(), "node".into());
        tokio::spawn(write);
        let ctx = Arc::new(Ctx {
            config,
            objects: Objects::new(client.clone()),
            services: Services::new(),
            tokens: TokenCache::default(),
            machine: Machine {
                cpus: 2,
                memory_bytes: 1 << 30,
            },
            client,
            runtime: runtime.clone(),
            events,
        });
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
            sandboxes: vec![],
            containers: vec![],
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
