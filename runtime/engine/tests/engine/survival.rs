//! What outlives the engine, and what does not outlive its shim.

use knarr_engine::types::SandboxState;

use super::machine::in_machine;

#[test]
fn another_engine_takes_up_what_runs_and_hears_of_what_ended() {
    in_machine(|mut machine| async move {
        let (_, runs) = machine.run("runs", "exec sleep 1000").await;
        let (_, ends) = machine
            .run("ends", "until [ -e /tmp/go ]; do sleep 0.02; done; exit 5")
            .await;
        let before = machine.engine().container_status(&runs).await.unwrap();
        machine
            .engine()
            .exec_sync(&ends, vec!["touch".into(), "/tmp/go".into()], None)
            .await
            .unwrap();
        machine.exited(&ends).await;
        machine.reopen().await;
        assert_eq!(
            machine.engine().container_status(&runs).await.unwrap(),
            before
        );
        assert_eq!(machine.exited(&ends).await.exit_code, 5);
        let output = machine
            .engine()
            .exec_sync(&runs, vec!["echo".into(), "here".into()], None)
            .await
            .unwrap();
        assert_eq!(output.stdout, b"here\n");
        machine.finish().await;
    });
}

#[test]
fn a_shim_that_dies_takes_its_containers_along_and_leaves_nothing() {
    in_machine(|machine| async move {
        let (sandbox, container) = machine.run("shim", "exec sleep 1000").await;
        let shim = machine.shim_of(&container).await;
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(shim),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
        let status = machine.exited(&container).await;
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (137, "ContainerStatusUnknown")
        );
        assert_eq!(
            machine
                .engine()
                .sandbox_status(&sandbox)
                .await
                .unwrap()
                .state,
            SandboxState::NotReady
        );
        machine.finish().await;
    });
}
