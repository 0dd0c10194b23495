//! Where a test runs: namespaces, a directory and cgroups of its own, and an engine that has the image.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use knarr_engine::types::{
    ContainerConfig, ContainerId, ContainerState, ContainerStatus, SandboxConfig, SandboxId,
};
use knarr_engine::{Engine, EngineConfig, NetworkConfig};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

pub const DEADLINE: Duration = Duration::from_secs(30);
pub const IMAGE: &str = "knarr.local/busybox:1";
/// See [`Machine::import_with_volumes`].
pub const VOLUMES: &str = "knarr.local/volumes:1";

/// Runs a test on a thread in namespaces of its own, with an engine that has the image.
pub fn in_machine<F: Future<Output = ()>>(test: impl FnOnce(Machine) -> F + Send + 'static) {
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

pub struct Machine {
    pub dir: tempfile::TempDir,
    pub group: String,
    pub engine: Option<Engine>,
    /// How long shims may take to answer, from the next [`reopen`](Self::reopen) on.
    pub patience: Duration,
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
        let patience = DEADLINE;
        let engine = open(dir.path(), patience).await;
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
            patience,
        }
    }

    pub fn engine(&self) -> &Engine {
        self.engine
            .as_ref()
            .expect("taken only while it is replaced")
    }

    /// Imports the same image with three volumes, of which `/home` has a file in it.
    pub fn import_with_volumes(&self) {
        let script = r#"
            set -eu; cd "$1"; mkdir volumes; tar -C volumes -xf busybox.tar; cd volumes
            mkdir -p root/home; touch root/home/of-the-image; chown 7:8 root/home; chmod 2750 root/home
            tar -C root --numeric-owner -cf volumes.tar home
            layer=$(sha256sum volumes.tar | cut -d' ' -f1)
            volumes='"config":{"Volumes":{"/home":{},"/srv":{},"new/":{}},'
            sed -i "s|\"config\":{|$volumes|; s|\"]}}$|\",\"sha256:$layer\"]}}|" [0-9a-f]*.json
            sed -i 's|busybox:1|volumes:1|; s|"layer.tar"|"layer.tar","volumes.tar"|' manifest.json
            tar -cf ../volumes.tar manifest.json [0-9a-f]*.json layer.tar volumes.tar
        "#;
        let status = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(self.dir.path())
            .status();
        assert!(status.unwrap().success());
        let archive = self.dir.path().join("volumes.tar");
        self.engine()
            .image_store()
            .import_path(&archive, None)
            .unwrap();
    }

    /// As after a crash of the program: another engine takes over.
    pub async fn reopen(&mut self) {
        // Like a program that ended: nothing of the first one is left when the second one starts.
        drop(self.engine.take());
        self.engine = Some(open(self.dir.path(), self.patience).await);
    }

    pub fn sandbox(&self, name: &str) -> SandboxConfig {
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

    pub async fn run(&self, name: &str, script: &str) -> (SandboxId, ContainerId) {
        let sandbox = self.engine().run_sandbox(self.sandbox(name)).await.unwrap();
        let container = self.start(&sandbox, shell(script)).await;
        (sandbox, container)
    }

    pub async fn start(&self, sandbox: &SandboxId, config: ContainerConfig) -> ContainerId {
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

    pub async fn exited(&self, id: &ContainerId) -> ContainerStatus {
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

    pub async fn log(&self, id: &ContainerId) -> String {
        let status = self.engine().container_status(id).await.unwrap();
        std::fs::read_to_string(status.log_path).unwrap()
    }

    /// The process that looks after a running container: its parent.
    pub async fn shim_of(&self, id: &ContainerId) -> i32 {
        let status = self.engine().container_status(id).await.unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", status.pid.unwrap())).unwrap();
        let behind_name = stat.rsplit(')').next().unwrap();
        behind_name
            .split_whitespace()
            .nth(1)
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Removes all sandboxes and checks that nothing is left.
    pub async fn finish(self) {
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

pub async fn open(dir: &Path, patience: Duration) -> Engine {
    let mut config = EngineConfig::new(dir.join("data"), dir.join("run"), shim());
    config.patience = patience;
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
pub fn shim() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let shim = own.parent().unwrap().parent().unwrap().join("knarr-shim");
    assert!(
        shim.exists(),
        "{} is missing: cargo build -p knarr-shim",
        shim.display()
    );
    shim
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

pub fn shell(script: &str) -> ContainerConfig {
    ContainerConfig {
        name: "main".into(),
        image_id: IMAGE.into(),
        image_ref: IMAGE.into(),
        command: vec!["sh".into(), "-c".into(), script.into()],
        log_path: "main/0.log".into(),
        ..Default::default()
    }
}
