//! Pods and runtime states for the unit tests.

pub(crate) mod fake;

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use knarr_engine::types::{
    ContainerConfig, ContainerId, ContainerState, ContainerStatus, SandboxConfig, SandboxId,
    SandboxState, SandboxStatus,
};
use serde_json::{Value, json};

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
