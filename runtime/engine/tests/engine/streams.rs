//! What is attached to a container, and the log beside it.

use std::time::{Duration, Instant};

use knarr_engine::types::{ContainerConfig, ContainerId};
use knarr_engine::{ExecRequest, Session};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::machine::{DEADLINE, Machine, in_machine, shell};

const READING: ExecRequest = ExecRequest {
    command: Vec::new(),
    tty: false,
    stdin: false,
    stdout: true,
    stderr: true,
};

async fn attach(machine: &Machine, id: &ContainerId, request: ExecRequest) -> Session {
    machine.engine().attach(id, request).await.unwrap()
}

/// A container that waits for a line before it runs `script`, so that nothing is written before somebody is attached.
async fn waiting(machine: &Machine, script: &str, config: ContainerConfig) -> ContainerId {
    let sandbox = machine
        .engine()
        .run_sandbox(machine.sandbox("attached"))
        .await;
    let command = shell(&format!("read line; {script}")).command;
    let config = ContainerConfig {
        command,
        stdin: true,
        ..config
    };
    machine.start(&sandbox.unwrap(), config).await
}

async fn go(machine: &Machine, id: &ContainerId) {
    let request = ExecRequest {
        stdin: true,
        ..ExecRequest::default()
    };
    let mut stdin = attach(machine, id, request).await.stdin.take().unwrap();
    stdin.write_all(b"go\n").await.unwrap();
}

async fn rest(session: &mut Session) -> (Vec<u8>, Vec<u8>) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let read = async {
        if let Some(reader) = &mut session.stdout {
            reader.read_to_end(&mut stdout).await.unwrap();
        }
        if let Some(reader) = &mut session.stderr {
            reader.read_to_end(&mut stderr).await.unwrap();
        }
    };
    tokio::time::timeout(DEADLINE, read).await.expect("an end");
    (stdout, stderr)
}

const MUCH: usize = 3 << 20;

#[test]
fn a_slow_client_gets_all_output_and_so_does_the_log() {
    in_machine(|machine| async move {
        let script = format!("head -c {MUCH} /dev/zero | tr '\\0' y; printf END; exit 3");
        let id = waiting(&machine, &script, shell("")).await;
        let mut slow = attach(&machine, &id, READING).await;
        let mut second = attach(&machine, &id, READING).await;
        go(&machine, &id).await;
        // Long enough for all that fits into sockets and pipes; the rest waits in the container.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let running = machine.engine().container_status(&id).await.unwrap();
        assert_eq!(running.finished_at, None, "it was not slowed down");
        let (first, second) = tokio::join!(rest(&mut slow), rest(&mut second));
        for (stdout, stderr) in [first, second] {
            assert_eq!((stdout.len(), stderr.len()), (MUCH + 3, 0));
            assert!(stdout.ends_with(b"yEND"));
        }
        assert_eq!(machine.exited(&id).await.exit_code, 3);
        let log = machine.log(&id).await;
        let texts = log.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap());
        assert_eq!(texts.map(str::len).sum::<usize>(), MUCH + 3);
        // The line was not ended, and the log says so.
        assert!(log.lines().all(|line| line.contains(" stdout P ")));
        machine.finish().await;
    });
}

#[test]
fn clients_that_leave_hold_nobody_up() {
    in_machine(|machine| async move {
        let script = format!("echo bad >&2; head -c {MUCH} /dev/zero | tr '\\0' y");
        let id = waiting(&machine, &script, shell("")).await;
        let leaves = attach(&machine, &id, READING).await;
        // Wants one stream: that the other has no reader is not its end.
        let request = ExecRequest {
            stderr: false,
            ..READING
        };
        let mut one = attach(&machine, &id, request).await;
        go(&machine, &id).await;
        let mut first = vec![0; 64 * 1024];
        let reader = one.stdout.as_mut().unwrap();
        tokio::time::timeout(DEADLINE, reader.read_exact(&mut first))
            .await
            .unwrap()
            .unwrap();
        drop(leaves);
        let (stdout, _) = rest(&mut one).await;
        assert_eq!(first.len() + stdout.len(), MUCH);
        machine.exited(&id).await;
        let log = machine.log(&id).await;
        let stdout = log.lines().filter(|line| line.contains(" stdout "));
        let texts = stdout.map(|line| line.splitn(4, ' ').nth(3).unwrap().len());
        assert_eq!(texts.sum::<usize>(), MUCH);
        machine.finish().await;
    });
}

#[test]
fn a_client_that_reads_nothing_holds_its_container_up_until_it_leaves() {
    in_machine(|machine| async move {
        let script = format!("head -c {MUCH} /dev/zero | tr '\\0' y");
        let id = waiting(&machine, &script, shell("")).await;
        let stuck = attach(&machine, &id, READING).await;
        go(&machine, &id).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        // What others ask for goes on meanwhile.
        let output = machine
            .engine()
            .exec_sync(&id, vec!["echo".into(), "here".into()], None)
            .await
            .unwrap();
        assert_eq!(output.stdout, b"here\n");
        drop(stuck);
        machine.exited(&id).await;
        machine.finish().await;
    });
}

#[test]
fn input_for_one_client_ends_with_it() {
    in_machine(|machine| async move {
        for once in [true, false] {
            let config = ContainerConfig {
                stdin_once: once,
                ..shell("")
            };
            let sandbox = machine.engine().run_sandbox(machine.sandbox("once")).await;
            let sandbox = sandbox.unwrap();
            let config = ContainerConfig {
                command: shell("cat; echo over").command,
                stdin: true,
                ..config
            };
            let id = machine.start(&sandbox, config).await;
            // Who only looks does not count.
            drop(attach(&machine, &id, READING).await);
            let request = ExecRequest {
                stdin: true,
                ..READING
            };
            let mut session = attach(&machine, &id, request.clone()).await;
            // It is there before anything is said: attached later, it might hear the end alone.
            let mut second = attach(&machine, &id, request.clone()).await;
            assert_eq!(second.stdin.is_none(), once, "somebody else has it");
            session
                .stdin
                .as_mut()
                .unwrap()
                .write_all(b"typed\n")
                .await
                .unwrap();
            if once {
                drop(session.stdin.take());
                let (stdout, _) = rest(&mut session).await;
                assert_eq!(stdout, b"typed\nover\n");
                assert_eq!(rest(&mut second).await.0, b"typed\nover\n");
                machine.exited(&id).await;
                assert!(machine.engine().attach(&id, READING).await.is_err());
            } else {
                drop(second);
                let mut read = [0; 6];
                let stdout = session.stdout.as_mut().unwrap();
                tokio::time::timeout(DEADLINE, stdout.read_exact(&mut read))
                    .await
                    .unwrap()
                    .unwrap();
                drop(session);
                let mut session = attach(&machine, &id, request).await;
                session
                    .stdin
                    .as_mut()
                    .unwrap()
                    .write_all(b"again\n")
                    .await
                    .unwrap();
                let stdout = session.stdout.as_mut().unwrap();
                tokio::time::timeout(DEADLINE, stdout.read_exact(&mut read))
                    .await
                    .unwrap()
                    .unwrap();
                assert_eq!(&read, b"again\n");
            }
            machine.engine().remove_sandbox(&sandbox).await.unwrap();
        }
        machine.finish().await;
    });
}

#[test]
fn clients_of_a_silent_container_leave_no_descriptors_behind() {
    in_machine(|machine| async move {
        let (_, id) = machine.run("silent", "exec sleep 1000").await;
        let shim = machine.shim_of(&id).await;
        let open = || {
            std::fs::read_dir(format!("/proc/{shim}/fd"))
                .unwrap()
                .count()
        };
        drop(attach(&machine, &id, READING).await);
        let start = Instant::now();
        let before = open();
        for _ in 0..20 {
            drop(attach(&machine, &id, READING).await);
        }
        while open() > before {
            assert!(start.elapsed() < DEADLINE, "{before} became {}", open());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        machine.finish().await;
    });
}
