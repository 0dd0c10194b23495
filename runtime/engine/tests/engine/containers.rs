//! Containers and what runs in them.

use std::time::{Duration, Instant};

use knarr_engine::types::{
    ContainerConfig, ContainerState, LinuxResources, Mount, PortMapping, Protocol, SandboxConfig,
    SandboxState, SecurityContext, TerminalSize,
};
use knarr_engine::{EngineError, ExecRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::machine::{DEADLINE, VOLUMES, chain, in_machine, shell};

#[test]
fn a_container_runs_in_its_pod_writes_its_log_and_ends_with_its_code() {
    in_machine(|machine| async move {
        let (sandbox, container) = machine
            .run(
                "first",
                "hostname; ip -4 -o addr show eth0; echo bad >&2; cat /etc/hostname; exit 3",
            )
            .await;
        let status = machine.exited(&container).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"));
        let ip = machine.engine().sandbox_status(&sandbox).await.unwrap().ips[0];
        let log = machine.log(&container).await;
        assert!(log.contains(" stdout F first\n"), "{log}");
        assert!(log.contains(" stderr F bad\n"), "{log}");
        assert!(log.contains(&ip.to_string()), "{ip} is not in {log}");
        machine.engine().stop_sandbox(&sandbox).await.unwrap();
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

#[test]
fn volumes_of_an_image_are_writable_directories_of_each_container() {
    in_machine(|machine| async move {
        machine.import_with_volumes();
        let sandbox = machine
            .engine()
            .run_sandbox(machine.sandbox("volumes"))
            .await
            .unwrap();
        let host = machine.dir.path().join("host");
        std::fs::create_dir(&host).unwrap();
        let config = |script: &str| ContainerConfig {
            image_id: VOLUMES.into(),
            image_ref: VOLUMES.into(),
            security: SecurityContext {
                readonly_rootfs: true,
                ..Default::default()
            },
            ..shell(script)
        };
        let script = "ls -A /home /new /srv; stat -c '%a %u:%g' /home /new; echo x > /home/x && echo y > /new/y && touch /srv/z; \
                      touch /etc/no 2>/dev/null || echo read-only";
        // The second container sees nothing of the first.
        for name in ["first", "second"] {
            let container = ContainerConfig {
                name: name.into(),
                log_path: format!("{name}/0.log").into(),
                mounts: vec![Mount {
                    host_path: host.clone(),
                    container_path: "/srv/".into(),
                    ..Default::default()
                }],
                ..config(script)
            };
            let container = machine.start(&sandbox, container).await;
            assert_eq!(machine.exited(&container).await.exit_code, 0);
            let log = machine.log(&container).await;
            let lines: Vec<_> = log
                .lines()
                .filter_map(|line| line.split(" F ").nth(1))
                .collect();
            let before = if name == "first" { vec![] } else { vec!["z"] };
            let mut want = vec!["/home:", "of-the-image", "", "/new:", "", "/srv:"];
            want.extend(before);
            want.extend(["2750 7:8", "755 0:0", "read-only"]);
            assert_eq!(lines, want, "{log}");
            let volumes = machine
                .dir
                .path()
                .join("data/containers")
                .join(&container.0)
                .join("volumes");
            assert_eq!(std::fs::read_dir(&volumes).unwrap().count(), 2);
            machine.engine().remove_container(&container).await.unwrap();
            assert!(!volumes.exists());
        }
        assert!(host.join("z").exists());
        machine.finish().await;
    });
}

#[test]
fn a_stubborn_container_is_killed_after_its_grace_period_and_a_polite_one_is_not() {
    in_machine(|machine| async move {
        let (_, polite) = machine
            .run("polite", "trap 'exit 7' TERM; while :; do sleep 0.05; done")
            .await;
        let (_, stubborn) = machine
            .run("stubborn", "trap '' TERM; while :; do sleep 0.05; done")
            .await;
        // The trap is set once the shell runs its loop.
        machine
            .engine()
            .exec_sync(&polite, vec!["true".into()], None)
            .await
            .unwrap();
        machine
            .engine()
            .stop_container(&polite, DEADLINE)
            .await
            .unwrap();
        let status = machine.exited(&polite).await;
        assert!(
            status.exit_code == 7 || status.exit_code == 143,
            "{status:?}"
        );
        let start = Instant::now();
        machine
            .engine()
            .stop_container(&stubborn, Duration::from_millis(300))
            .await
            .unwrap();
        assert!(start.elapsed() >= Duration::from_millis(300));
        assert_eq!(machine.exited(&stubborn).await.exit_code, 137);
        machine.finish().await;
    });
}

#[test]
fn commands_run_inside_with_and_without_a_terminal() {
    in_machine(|machine| async move {
        let (_, container) = machine.run("exec", "exec sleep 1000").await;
        let run = |script: &str| {
            machine.engine().exec_sync(
                &container,
                vec!["sh".into(), "-c".into(), script.into()],
                Some(DEADLINE),
            )
        };
        let output = run("echo out; echo err >&2; exit 4").await.unwrap();
        assert_eq!(
            (output.exit_code, &output.stdout[..], &output.stderr[..]),
            (4, &b"out\n"[..], &b"err\n"[..])
        );
        let absent = machine
            .engine()
            .exec_sync(&container, vec!["absent".into()], None)
            .await
            .unwrap_err();
        assert!(
            chain(&absent).contains("executable file not found"),
            "{}",
            chain(&absent)
        );
        let slow = machine
            .engine()
            .exec_sync(
                &container,
                vec!["sleep".into(), "1000".into()],
                Some(Duration::from_millis(100)),
            )
            .await
            .unwrap_err();
        assert!(matches!(slow, EngineError::Timeout { .. }), "{slow:?}");

        let request = ExecRequest {
            command: vec!["cat".into()],
            stdin: true,
            stdout: true,
            ..Default::default()
        };
        let mut cat = machine.engine().exec(&container, request).await.unwrap();
        let mut stdin = cat.stdin.take().unwrap();
        stdin.write_all(b"through").await.unwrap();
        drop(stdin);
        let mut text = String::new();
        cat.stdout
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .await
            .unwrap();
        assert_eq!((text.as_str(), cat.wait().await.unwrap()), ("through", 0));

        let command = ["sh", "-c", "tty; stty size; read line; stty size"]
            .map(String::from)
            .to_vec();
        let request = ExecRequest {
            command,
            tty: true,
            stdin: true,
            stdout: true,
            ..Default::default()
        };
        let mut terminal = machine.engine().exec(&container, request).await.unwrap();
        terminal
            .resize(TerminalSize {
                width: 90,
                height: 33,
            })
            .await
            .unwrap();
        terminal
            .stdin
            .as_mut()
            .unwrap()
            .write_all(b"\n")
            .await
            .unwrap();
        let mut text = String::new();
        terminal
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .await
            .unwrap();
        assert!(
            text.contains("/dev/pts/") && text.contains("33 90"),
            "{text}"
        );
        assert_eq!(terminal.wait().await.unwrap(), 0);
        machine.finish().await;
    });
}

#[test]
fn a_mistake_in_a_container_is_told_and_leaves_nothing() {
    in_machine(|machine| async move {
        let sandbox = machine
            .engine()
            .run_sandbox(machine.sandbox("mistakes"))
            .await
            .unwrap();
        let create = |config| machine.engine().create_container(&sandbox, config);
        let error = create(ContainerConfig {
            image_id: "absent:1".into(),
            ..shell("true")
        })
        .await
        .unwrap_err();
        assert!(error.is_not_found(), "{error:?}");
        let security = SecurityContext {
            add_capabilities: vec!["NONSENSE".into()],
            ..Default::default()
        };
        let error = create(ContainerConfig {
            security,
            ..shell("true")
        })
        .await
        .unwrap_err();
        assert!(chain(&error).contains("NONSENSE"), "{}", chain(&error));
        machine.finish().await;
    });
}

#[test]
fn what_cannot_be_started_is_told_by_start_also_after_a_restart() {
    const CREATE: &str = "failed to create container task: OCI runtime create failed: \
                          unable to start container process: ";
    in_machine(|mut machine| async move {
        let sandbox = machine
            .engine()
            .run_sandbox(machine.sandbox("unstartable"))
            .await
            .unwrap();
        let script = machine.dir.path().join("script");
        std::fs::write(&script, "#!/no-interpreter\n").unwrap();
        std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let mount = Mount {
            host_path: script,
            container_path: "/script".into(),
            ..Default::default()
        };
        let with = |command: &str| ContainerConfig {
            command: vec![command.to_owned()],
            mounts: vec![mount.clone()],
            ..shell("true")
        };
        let init = format!("{CREATE}error during container init: exec: ");
        let cases = [
            (
                with("/nope"),
                format!("{init}\"/nope\": stat /nope: no such file or directory"),
            ),
            (
                with("nope"),
                format!("{init}\"nope\": executable file not found in $PATH"),
            ),
            (
                with("/etc/passwd"),
                format!("{init}\"/etc/passwd\": permission denied"),
            ),
            (
                with("/etc"),
                format!("{init}\"/etc\": is a directory: permission denied"),
            ),
            (
                ContainerConfig {
                    working_dir: Some("/script/x".into()),
                    ..with("true")
                },
                CREATE.to_owned(),
            ),
            (
                with("/script"),
                "OCI runtime start failed: exec /script: no such file or directory".to_owned(),
            ),
        ];
        for (config, reason) in cases {
            let container = machine
                .engine()
                .create_container(&sandbox, config)
                .await
                .unwrap_or_else(|e| panic!("{reason}: {}", chain(&e)));
            // A crash here changes nothing.
            machine.reopen().await;
            let before = machine.engine().container_status(&container).await.unwrap();
            assert_eq!(before.state, ContainerState::Created, "{reason}");
            let error = machine
                .engine()
                .start_container(&container)
                .await
                .unwrap_err();
            assert!(matches!(error, EngineError::Start { .. }), "{error:?}");
            assert!(chain(&error).contains(&reason), "{}", chain(&error));
            machine.reopen().await;
            let status = machine.exited(&container).await;
            assert_eq!(
                (status.exit_code, status.reason.as_str(), status.started_at),
                (128, "StartError", None)
            );
            assert_eq!(status.message, chain(&error));
        }
        machine.finish().await;
    });
}

#[test]
fn too_much_memory_is_an_oom_kill() {
    in_machine(|machine| async move {
        let sandbox = machine
            .engine()
            .run_sandbox(machine.sandbox("oom"))
            .await
            .unwrap();
        let resources = LinuxResources {
            memory_limit: Some(16 << 20),
            ..Default::default()
        };
        let container = machine
            .start(
                &sandbox,
                ContainerConfig {
                    resources,
                    ..shell("tail /dev/zero")
                },
            )
            .await;
        let status = machine.exited(&container).await;
        assert_eq!(
            (status.exit_code, status.reason.as_str()),
            (137, "OOMKilled")
        );
        machine.finish().await;
    });
}

/// The process that waits for a container's first one: its shim.
fn parent(pid: i32) -> nix::unistd::Pid {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit(')').next().unwrap();
    let parent = after_name.split_whitespace().nth(1).unwrap();
    nix::unistd::Pid::from_raw(parent.parse().unwrap())
}

#[test]
fn stopping_a_container_whose_process_has_just_ended_is_no_error() {
    use nix::sys::signal::{Signal, kill};
    in_machine(|machine| async move {
        let (_, container) = machine.run("ended", "exec sleep 1000").await;
        let status = machine.engine().container_status(&container).await.unwrap();
        let pid = status.pid.unwrap();
        let shim = parent(pid);
        // The shim finds the call first, and then that the process has ended.
        kill(shim, Signal::SIGSTOP).unwrap();
        let stop = machine
            .engine()
            .stop_container(&container, Duration::from_secs(20));
        let end = async {
            kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
            let path = format!("/proc/{pid}/stat");
            let start = Instant::now();
            while !std::fs::read_to_string(&path).unwrap().contains(") Z ") {
                assert!(start.elapsed() < DEADLINE, "the process does not end");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            kill(shim, Signal::SIGCONT).unwrap();
        };
        let (stopped, ()) = tokio::join!(stop, end);
        stopped.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert_eq!(machine.exited(&container).await.exit_code, 137);
        machine.finish().await;
    });
}

#[test]
fn a_stopped_sandbox_gives_its_ports_to_the_next_one_of_its_pod_and_goes_without_it() {
    use nix::sys::signal::{Signal, kill};
    in_machine(|machine| async move {
        let config = |attempt| SandboxConfig {
            attempt,
            port_mappings: vec![PortMapping {
                protocol: Protocol::Tcp,
                container_port: 80,
                host_port: 8080,
                host_ip: None,
            }],
            ..machine.sandbox("ports")
        };
        let engine = machine.engine();
        let first = engine.run_sandbox(config(0)).await.unwrap();
        let lost = machine.start(&first, shell("exec sleep 1000")).await;
        let pid = engine.container_status(&lost).await.unwrap().pid.unwrap();
        kill(parent(pid), Signal::SIGKILL).unwrap();
        machine.exited(&lost).await;
        let taken = engine.run_sandbox(config(1)).await.unwrap_err();
        assert!(chain(&taken).contains("8080"), "{}", chain(&taken));
        engine.stop_sandbox(&first).await.unwrap();
        let second = engine.run_sandbox(config(1)).await.unwrap();
        let runs = machine.start(&second, shell("exec sleep 1000")).await;
        engine.remove_sandbox(&first).await.unwrap();
        let status = engine.container_status(&runs).await.unwrap();
        assert_eq!(status.state, ContainerState::Running);
        let sandbox = engine.sandbox_status(&second).await.unwrap();
        assert_eq!(sandbox.state, SandboxState::Ready);
        machine.finish().await;
    });
}
