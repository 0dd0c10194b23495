//! Pods and runtime states for the unit tests.

pub(crate) mod fake;
pub(crate) mod process;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use knarr_engine::types::{
    ContainerConfig, ContainerId, ContainerState, ContainerStatus, SandboxConfig, SandboxId,
    SandboxState, SandboxStatus,
};
use serde_json::{Value, json};

use crate::config::KubeletConfig;
use crate::ctx::{Ctx, Machine};
use crate::events::Events;
use crate::identity::Identity;
use crate::objects::Objects;
use crate::services::Services;
use crate::volumes::TokenCache;
use fake::{FakeApi, FakeRuntime};

/// The settings of a node whose directories are below this one.
pub(crate) fn config(directory: &Path) -> KubeletConfig {
    let key = rcgen::KeyPair::generate().expect("a key");
    let certificate = rcgen::CertificateParams::default()
        .self_signed(&key)
        .expect("a certificate");
    let serving =
        Identity::from_pem(&certificate.pem(), &key.serialize_pem()).expect("an identity");
    let mut config = KubeletConfig::new(
        "node".into(),
        [192, 168, 0, 1].into(),
        directory.join("node"),
        serving,
        String::new(),
    );
    config.log_root = directory.join("log");
    std::fs::create_dir_all(config.log_root.join("containers")).expect("made");
    config
}

/// The agent's shared parts, and what writes its events.
pub(crate) fn ctx(
    directory: &Path,
    runtime: Arc<FakeRuntime>,
    api: &FakeApi,
) -> (Arc<Ctx>, impl Future<Output = ()> + Send + use<>) {
    let client = api.client();
    let (events, write) = Events::new(client.clone(), "node".into());
    let ctx = Arc::new(Ctx {
        config: config(directory),
        objects: Objects::new(client.clone()),
        services: Services::new(),
        tokens: TokenCache::default(),
        machine: Machine {
            cpus: 2,
            memory_bytes: 1 << 30,
        },
        client,
        runtime,
        events,
    });
    (ctx, write)
}

/// A moment that the tests count from.
pub(crate) fn t0() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// `t0` and some seconds.
pub(crate) fn at(seconds: u64) -> SystemTime {
    t0() + Duration::from_secs(seconds)
}

/// A pod with this specification.
pub(crate) fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 1},
        "spec": spec,
    }))
    .expect("a pod")
}

/// A sandbox that containers can run in.
pub(crate) fn sandbox(attempt: u32) -> SandboxStatus {
    SandboxStatus {
        id: SandboxId(format!("s{attempt}")),
        config: SandboxConfig {
            uid: "u".into(),
            attempt,
            ..SandboxConfig::default()
        },
        state: SandboxState::Ready,
        created_at: t0(),
        ips: vec![[10, 42, 0, 5].into()],
    }
}

/// A container in sandbox 0.
pub(crate) fn container(
    name: &str,
    attempt: u32,
    state: ContainerState,
    exit_code: i32,
) -> ContainerStatus {
    let ended = state == ContainerState::Exited;
    ContainerStatus {
        id: ContainerId(format!("{name}-{attempt}")),
        sandbox_id: SandboxId("s0".into()),
        config: ContainerConfig {
            name: name.into(),
            attempt,
            image_ref: "busybox".into(),
            ..ContainerConfig::default()
        },
        state,
        created_at: at(u64::from(attempt)),
        started_at: (state != ContainerState::Created).then(|| at(u64::from(attempt))),
        finished_at: ended.then(|| at(u64::from(attempt) + 1)),
        exit_code,
        reason: match (ended, exit_code) {
            (false, _) => String::new(),
            (true, 0) => "Completed".into(),
            (true, _) => "Error".into(),
        },
        message: String::new(),
        image_digest_ref: "busybox@sha256:0".into(),
        pid: None,
        log_path: PathBuf::new(),
    }
}

/// Runs a test in a mount namespace that dies with it.
pub(crate) fn in_mount_namespace(test: impl FnOnce() + Send) {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test mounts and must run as root"
    );
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).expect("a mount namespace");
            mount(
                None::<&str>,
                "/",
                None::<&str>,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                None::<&str>,
            )
            .expect("a private one");
            test();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}
