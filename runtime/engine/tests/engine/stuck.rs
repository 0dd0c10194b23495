//! A shim that does not answer: its pod fails, and nothing else waits.

use std::time::{Duration, Instant};

use knarr_engine::types::{ContainerState, SandboxState};
use knarr_engine::{EngineError, ExecRequest};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::machine::{DEADLINE, Machine, in_machine};

/// How long shims may take to answer in these tests.
const PATIENCE: Duration = Duration::from_secs(3);

fn signal(shim: i32, signal: Signal) {
    kill(Pid::from_raw(shim), signal).unwrap();
}

async fn echo(machine: &Machine, id: &knarr_engine::types::ContainerId) {
    let output = machine
        .engine()
        .exec_sync(id, vec!["echo".into(), "here".into()], None)
        .await
        .unwrap();
    assert_eq!(output.stdout, b"here\n");
}

#[test]
fn a_shim_that_is_stopped_delays_no_other_pod_and_its_pod_can_be_removed() {
    in_machine(|mut machine| async move {
        machine.patience = PATIENCE;
        let (sandbox, stuck) = machine.run("stuck", "exec sleep 1000").await;
        let (_, well) = machine.run("well", "exec sleep 1000").await;
        let shim = machine.shim_of(&stuck).await;
        let pid = machine
            .engine()
            .container_status(&stuck)
            .await
            .unwrap()
            .pid
            .unwrap();
        signal(shim, Signal::SIGSTOP);
        let start = Instant::now();
        // More often than its queue of connections holds.
        for _ in 0..6 {
            machine.reopen().await;
            echo(&machine, &well).await;
        }
        assert!(start.elapsed() < DEADLINE, "{:?}", start.elapsed());
        let engine = machine.engine();
        assert_eq!(engine.list_containers().await.len(), 2);
        assert!(engine.container_stats(&stuck).await.unwrap().pids > 0);
        // It is not known to be gone, and it is not: what it looks after runs.
        let status = engine.sandbox_status(&sandbox).await.unwrap();
        assert_eq!(status.state, SandboxState::Ready);
        let status = engine.container_status(&stuck).await.unwrap();
        assert_eq!(status.state, ContainerState::Running);
        let request = ExecRequest {
            command: vec!["true".into()],
            ..ExecRequest::default()
        };
        let error = engine.exec(&stuck, request).await.err().unwrap();
        assert_eq!(error.to_string(), "the shim has not answered for 3s");
        engine.remove_sandbox(&sandbox).await.unwrap();
        for gone in [shim, pid] {
            let left = std::fs::read_to_string(format!("/proc/{gone}/stat")).unwrap_or_default();
            assert!(left.is_empty() || left.contains(") Z "), "{left}");
        }
        echo(&machine, &well).await;
        machine.finish().await;
    });
}

#[test]
fn a_shim_that_goes_on_is_taken_up_as_if_nothing_had_been() {
    in_machine(|mut machine| async move {
        machine.patience = PATIENCE;
        let (sandbox, id) = machine.run("pauses", "exec sleep 1000").await;
        let shim = machine.shim_of(&id).await;
        let before = machine.engine().container_status(&id).await.unwrap();
        signal(shim, Signal::SIGSTOP);
        machine.reopen().await;
        assert!(
            machine
                .engine()
                .exec_sync(&id, vec!["true".into()], Some(PATIENCE / 6))
                .await
                .is_err()
        );
        signal(shim, Signal::SIGCONT);
        echo(&machine, &id).await;
        let after = machine.engine().container_status(&id).await.unwrap();
        assert_eq!(after, before);
        let status = machine.engine().sandbox_status(&sandbox).await.unwrap();
        assert_eq!(status.state, SandboxState::Ready);
        machine.finish().await;
    });
}

#[test]
fn calls_to_a_shim_that_stops_end_in_time() {
    in_machine(|mut machine| async move {
        machine.patience = PATIENCE;
        machine.reopen().await;
        let (sandbox, id) = machine.run("stops", "exec sleep 1000").await;
        let shim = machine.shim_of(&id).await;
        signal(shim, Signal::SIGSTOP);
        // A probe ends when its own time is over.
        let start = Instant::now();
        let probe = machine
            .engine()
            .exec_sync(&id, vec!["true".into()], Some(Duration::from_millis(300)))
            .await;
        assert!(
            matches!(probe, Err(EngineError::Timeout { .. })),
            "{probe:?}"
        );
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        let attached = machine.engine().attach(&id, ExecRequest::default()).await;
        let error = attached.err().unwrap().to_string();
        assert_eq!(error, "the shim has not answered for 3s");
        // To stop the container, the shim has to go.
        machine
            .engine()
            .stop_container(&id, DEADLINE)
            .await
            .unwrap();
        assert_eq!(machine.exited(&id).await.exit_code, 137);
        let status = machine.engine().sandbox_status(&sandbox).await.unwrap();
        assert_eq!(status.state, SandboxState::NotReady);
        machine.engine().remove_container(&id).await.unwrap();
        machine.finish().await;
    });
}

#[test]
fn a_pod_whose_containers_have_ended_is_removed_though_its_shim_is_stopped() {
    in_machine(|mut machine| async move {
        machine.patience = PATIENCE;
        machine.reopen().await;
        let (sandbox, id) = machine.run("over", "sleep 0.2").await;
        let shim = machine.shim_of(&id).await;
        machine.exited(&id).await;
        signal(shim, Signal::SIGSTOP);
        machine.engine().remove_sandbox(&sandbox).await.unwrap();
        machine.finish().await;
    });
}
