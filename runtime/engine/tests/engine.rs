//! The engine on a real kernel: each test in mount and network namespaces and cgroups of its own.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use knarr_engine::types::{
    ContainerConfig, ContainerId, ContainerState, ContainerStatus, LinuxResources, Mount,
    NamespaceMode, Namespaces, SandboxConfig, SandboxId, SandboxState, SecurityContext,
    TerminalSize,
};
use knarr_engine::{Engine, EngineConfig, EngineError, ExecRequest, NetworkConfig};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const DEADLINE: Duration = Duration::from_secs(30);
const IMAGE: &str = "knarr.local/busybox:1";

/// Runs a test on a thread in namespaces of its own, with an engine that has the image.
fn in_machine<F: Future<Output = ()>>(test: impl FnOnce(Machine) -> F + Send + 'static) {
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_FS)
            .expect("must run as root");
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .unwrap();
        assert!(
            Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status()
                .unwrap()
                .success()
        );
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { test(Machine::new().await).await });
    })
    .join()
    .unwrap();
}

struct Machine {
    dir: tempfile::TempDir,
    group: String,
    engine: Option<Engine>,
}

impl Machine {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let group = format!(
            "knarr-engine-{}-{}",
            std::process::id(),
            dir.path()
                .file_name()
                .unwrap()
                .to_string_lossy()
                .trim_start_matches('.')
        );
        let engine = open(dir.path()).await;
        let archive = dir.path().join("busybox.tar");
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/harness/busybox-image"
        );
        assert!(
            Command::new(script)
                .arg(&archive)
                .status()
                .unwrap()
                .success()
        );
        engine.image_store().import_path(&archive, None).unwrap();
        Self {
            dir,
            group,
            engine: Some(engine),
        }
    }

    fn engine(&self) -> &Engine {
        self.engine
            .as_ref()
            .expect("taken only while it is replaced")
    }

    /// As after a crash of the program: another engine takes over.
    async fn reopen(&mut self) {
        // Like a program that ended: nothing of the first one is left when the second one starts.
        drop(self.engine.take());
        self.engine = Some(open(self.dir.path()).await);
    }

    fn sandbox(&self, name: &str) -> SandboxConfig {
        SandboxConfig {
            name: name.into(),
            namespace: "default".into(),
            uid: format!("uid-{name}"),
            hostname: name.into(),
            log_directory: self.dir.path().join("log").join(name),
            cgroup_parent: format!("{}/pod-{name}", self.group),
            ..Default::default()
        }
    }

    async fn run(&self, name: &str, script: &str) -> (SandboxId, ContainerId) {
        let sandbox = self.engine().run_sandbox(self.sandbox(name)).await.unwrap();
        let container = self.start(&sandbox, shell(script)).await;
        (sandbox, container)
    }

    async fn start(&self, sandbox: &SandboxId, config: ContainerConfig) -> ContainerId {
        let container = self
            .engine()
            .create_container(sandbox, config)
            .await
            .unwrap_or_else(|e| panic!("{}", chain(&e)));
        self.engine()
            .start_container(&container)
            .await
            .unwrap_or_else(|e| panic!("{}", chain(&e)));
        container
    }

    async fn exited(&self, id: &ContainerId) -> ContainerStatus {
        let start = Instant::now();
        loop {
            let status = self.engine().container_status(id).await.unwrap();
            if status.state == ContainerState::Exited {
                return status;
            }
            assert!(start.elapsed() < DEADLINE, "still {:?}", status.state);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn log(&self, id: &ContainerId) -> String {
        let status = self.engine().container_status(id).await.unwrap();
        std::fs::read_to_string(status.log_path).unwrap()
    }

    /// Removes all sandboxes and checks that nothing is left.
    async fn finish(self) {
        for sandbox in self.engine().list_sandboxes().await {
            self.engine()
                .remove_sandbox(&sandbox.id)
                .await
                .unwrap_or_else(|e| panic!("{}", chain(&e)));
        }
        let dir = self.dir.path();
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let left: Vec<_> = mounts
            .lines()
            .filter(|line| line.contains(dir.to_str().unwrap()))
            .collect();
        assert!(left.is_empty(), "mounts are left: {left:#?}");
        for below in ["data/sandboxes", "data/containers", "run/sandboxes"] {
            let names: Vec<_> = std::fs::read_dir(dir.join(below))
                .unwrap()
                .flatten()
                .map(|e| e.path())
                .collect();
            assert!(names.is_empty(), "left: {names:?}");
        }
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let group = hierarchy.path().join(&self.group);
            if group.exists() {
                // The parent of the pods' groups stands for the kubelet's QoS group: not the engine's to remove.
                std::fs::remove_dir(&group)
                    .unwrap_or_else(|error| panic!("{}: {error}", group.display()));
            }
        }
    }
}

/// A test that failed takes its shims, containers, mounts and groups with it; after [`Machine::finish`] there are none.
impl Drop for Machine {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        // The engine's own tasks end with the thread; what is done here must not need them.
        let groups = || {
            let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten();
            hierarchies
                .flatten()
                .map(|hierarchy| hierarchy.path().join(&self.group))
                .filter(|group| group.exists())
        };
        let start = Instant::now();
        kill_by_argument(&self.dir.path().join("run/oci"));
        for group in groups() {
            // The members of a group in one hierarchy are those in the others: each kill is tried until all are gone.
            while start.elapsed() < DEADLINE && remove_group(&group).is_err() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// Kills the shims: the processes with this path as their one argument.
fn kill_by_argument(argument: &Path) {
    use std::os::unix::ffi::OsStrExt;
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        if line.split(|byte| *byte == 0).nth(1) == Some(argument.as_os_str().as_bytes()) {
            kill(pid);
        }
    }
}

fn kill(pid: i32) {
    // One that has ended meanwhile is what is wanted.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .ok();
}

/// Kills what is in a group and in those below it, and removes them.
fn remove_group(group: &Path) -> std::io::Result<()> {
    for below in std::fs::read_dir(group)?.flatten() {
        if below.path().is_dir() {
            remove_group(&below.path())?;
        }
    }
    let members = std::fs::read_to_string(group.join("cgroup.procs"))?;
    members
        .lines()
        .filter_map(|pid| pid.parse().ok())
        .for_each(kill);
    std::fs::remove_dir(group)
}

async fn open(dir: &Path) -> Engine {
    let config = EngineConfig::new(dir.join("data"), dir.join("run"), shim());
    let engine = Engine::open(config)
        .await
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    let network = NetworkConfig::new(
        "10.42.7.0/24".parse().unwrap(),
        "10.42.0.0/16".parse().unwrap(),
        dir.join("data/network"),
    );
    engine
        .configure_network(network)
        .await
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    engine
}

/// `knarr-shim`, which cargo builds beside the tests.
fn shim() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let shim = own.parent().unwrap().parent().unwrap().join("knarr-shim");
    assert!(
        shim.exists(),
        "{} is missing: cargo build -p knarr-shim",
        shim.display()
    );
    shim
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

fn shell(script: &str) -> ContainerConfig {
    ContainerConfig {
        name: "main".into(),
        image_id: IMAGE.into(),
        image_ref: IMAGE.into(),
        command: vec!["sh".into(), "-c".into(), script.into()],
        log_path: "main/0.log".into(),
        ..Default::default()
    }
}

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
        let pid = machine
            .engine()
            .container_status(&container)
            .await
            .unwrap()
            .pid
            .unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let shim: i32 = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap();
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
