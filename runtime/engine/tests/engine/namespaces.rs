//! Pods whose namespaces are shared: among their containers, or with the host.

use std::path::Path;
use std::time::{Duration, Instant};

use knarr_engine::types::{
    ContainerId, ContainerState, NamespaceMode, Namespaces, SandboxConfig, SandboxState,
};

use super::machine::{DEADLINE, Machine, in_machine, shell};

/// The processes that a container sees: id and command line.
async fn processes(machine: &Machine, container: &ContainerId) -> Vec<(i32, String)> {
    let script =
        "for p in /proc/[0-9]*; do echo \"${p#/proc/} $(tr '\\0' ' ' < $p/cmdline)\"; done";
    let command = ["sh", "-c", script].map(String::from).to_vec();
    let output = machine
        .engine()
        .exec_sync(container, command, Some(DEADLINE))
        .await
        .unwrap();
    let mut list: Vec<_> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(pid, line)| (pid.parse().unwrap(), line.trim_end().to_owned()))
        .collect();
    list.sort();
    list
}

fn shared_pids(machine: &Machine, name: &str) -> SandboxConfig {
    SandboxConfig {
        namespaces: Namespaces {
            pid: NamespaceMode::Pod,
            ..Default::default()
        },
        ..machine.sandbox(name)
    }
}

#[test]
fn containers_that_share_their_processes_see_each_other_under_one_that_reaps() {
    in_machine(|mut machine| async move {
        let config = shared_pids(&machine, "share");
        let sandbox = machine.engine().run_sandbox(config).await.unwrap();
        let first = machine.start(&sandbox, shell("exec sleep 1001")).await;
        // It leaves an orphan and another one that ends, and then ends itself.
        let script = "sleep 1002 & (sleep 0 &); until [ -e /tmp/go ]; do sleep 0.02; done; exit 9";
        let second = machine.start(&sandbox, shell(script)).await;
        machine.reopen().await;
        let all = processes(&machine, &first).await;
        let commands: Vec<_> = all.iter().map(|(_, line)| line.as_str()).collect();
        assert_eq!(all[0], (1, "/pause".to_owned()), "{all:?}");
        assert!(commands.contains(&"sleep 1001"), "{all:?}");
        assert!(commands.contains(&"sleep 1002"), "{all:?}");
        // One that has ended has no command line, and the first process takes it away.
        let start = Instant::now();
        while processes(&machine, &first)
            .await
            .iter()
            .any(|(_, line)| line.is_empty())
        {
            assert!(start.elapsed() < DEADLINE, "an orphan is not reaped");
        }

        let run = |script: &str| {
            let command = ["sh", "-c", script].map(String::from).to_vec();
            machine.engine().exec_sync(&first, command, Some(DEADLINE))
        };
        let status = run("cat /proc/1/status").await.unwrap().stdout;
        let status = String::from_utf8(status).unwrap();
        for line in [
            "Uid:\t65535\t65535\t65535\t65535",
            "CapInh:\t0000000000000000",
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "CapBnd:\t0000000000000000",
            "NoNewPrivs:\t1",
        ] {
            assert!(status.contains(line), "{line}: {status}");
        }
        // From outside, as root: it holds nothing, and its root is empty.
        let pid = machine
            .engine()
            .container_status(&first)
            .await
            .unwrap()
            .pid
            .unwrap();
        let pause = first_process(pid);
        let count = |path: &str| {
            std::fs::read_dir(format!("/proc/{pause}/{path}"))
                .unwrap()
                .count()
        };
        assert_eq!((count("fd"), count("root")), (0, 0));
        for kind in ["net", "ipc", "uts"] {
            let of = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
            assert_eq!(of(pause), of(pid), "{kind}");
        }
        let kind = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
        assert_ne!(kind(pause), kind(std::process::id() as i32));
        for signal in ["HUP", "USR1", "QUIT", "KILL"] {
            run(&format!("kill -{signal} 1")).await.unwrap();
        }

        let go = ["touch", "/tmp/go"].map(String::from).to_vec();
        machine.engine().exec_sync(&second, go, None).await.unwrap();
        assert_eq!(machine.exited(&second).await.exit_code, 9);
        let left = processes(&machine, &first).await;
        assert!(
            !left.iter().any(|(_, line)| line == "sleep 1002"),
            "an ended container's process is left: {left:?}"
        );
        assert_eq!(
            machine
                .engine()
                .container_status(&first)
                .await
                .unwrap()
                .state,
            ContainerState::Running
        );
        machine
            .engine()
            .stop_container(&first, Duration::from_millis(300))
            .await
            .unwrap();
        let code = machine.exited(&first).await.exit_code;
        assert_eq!(code, 143, "SIGTERM ends a process that is not the first");
        machine.finish().await;
        assert!(!Path::new(&format!("/proc/{pause}")).exists());
    });
}

/// The host's id of the first process in the PID namespace of `pid`.
fn first_process(pid: i32) -> i32 {
    let namespace = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .find(|other| {
            let status = std::fs::read_to_string(format!("/proc/{other}/status"));
            let first = status.is_ok_and(|text| {
                text.lines()
                    .any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
            });
            first && namespace(*other) == namespace(pid)
        })
        .expect("a first process")
}

#[test]
fn a_pod_ends_with_the_first_of_its_shared_processes() {
    in_machine(|machine| async move {
        let config = shared_pids(&machine, "first");
        let sandbox = machine.engine().run_sandbox(config).await.unwrap();
        let container = machine.start(&sandbox, shell("exec sleep 1000")).await;
        let kill = ["kill", "1"].map(String::from).to_vec();
        // It may be gone before its own end is told.
        drop(machine.engine().exec_sync(&container, kill, None).await);
        let status = machine.exited(&container).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
        let start = Instant::now();
        loop {
            let status = machine.engine().sandbox_status(&sandbox).await.unwrap();
            if status.state == SandboxState::NotReady {
                break;
            }
            assert!(start.elapsed() < DEADLINE, "still {:?}", status.state);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        machine.finish().await;
    });
}

fn has_process(command_line: &[u8]) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == command_line)
    })
}

#[test]
fn a_container_in_the_hosts_namespaces_sees_the_host() {
    in_machine(|machine| async move {
        let config = SandboxConfig {
            namespaces: Namespaces {
                pid: NamespaceMode::Node,
                ipc: NamespaceMode::Node,
                ..Default::default()
            },
            ..machine.sandbox("hostpid")
        };
        let sandbox = machine.engine().run_sandbox(config).await.unwrap();
        let script = "sleep 1003 & readlink /proc/self/ns/pid; readlink /proc/self/ns/ipc; exit 4";
        let container = machine.start(&sandbox, shell(script)).await;
        assert_eq!(machine.exited(&container).await.exit_code, 4);
        let log = machine.log(&container).await;
        for kind in ["pid", "ipc"] {
            let own = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
            assert!(log.contains(own.to_str().unwrap()), "{own:?}: {log}");
        }
        // What it left behind in the host's namespace was killed with it.
        let start = Instant::now();
        while has_process(b"sleep\x001003\0") {
            assert!(start.elapsed() < DEADLINE, "an orphan is left");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        machine.finish().await;
    });
}

#[test]
fn a_pod_on_the_hosts_network_has_the_hosts_name_and_links() {
    in_machine(|machine| async move {
        let namespaces = Namespaces {
            network: NamespaceMode::Node,
            ..Default::default()
        };
        let config = SandboxConfig {
            namespaces,
            hostname: String::new(),
            ..machine.sandbox("host")
        };
        let sandbox = machine.engine().run_sandbox(config).await.unwrap();
        let container = machine
            .start(&sandbox, shell("ls /sys/class/net /proc/sys/net/ipv4/conf"))
            .await;
        machine.exited(&container).await;
        let log = machine.log(&container).await;
        assert!(log.contains("knarr0"), "{log}");
        machine.finish().await;
    });
}
