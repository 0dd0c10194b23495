//! A one-machine cluster: `knarr up` in a simulated machine, and the stock kubectl to drive it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Disk, Machine, wait_until};

/// The programs under test: `$KNARR_BIN_DIR`, else the release build.
pub fn program(name: &str) -> PathBuf {
    let dir = std::env::var_os("KNARR_BIN_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/release"),
        PathBuf::from,
    );
    let path = dir.join(name);
    assert!(
        path.exists(),
        "{} is missing: run scripts/build first",
        path.display()
    );
    path
}

/// Which kubectl to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kubectl {
    /// The machine's own, 1.32.
    Installed,
    /// `$KNARR_KUBECTL_NEW`, 1.37.
    New,
}

impl Kubectl {
    fn path(self) -> PathBuf {
        match self {
            Self::Installed => "kubectl".into(),
            Self::New => std::env::var_os("KNARR_KUBECTL_NEW")
                .expect("KNARR_KUBECTL_NEW is not set: KNARR_KUBECTL_NEW=$(scripts/kubectl 1.37)")
                .into(),
        }
    }
}

/// `knarr up` in a machine of its own.
pub struct Cluster {
    machine: Machine,
    /// Behind a lock, so that tests may restart it while others of their parts use the cluster.
    knarr: Mutex<Option<Child>>,
}

impl Cluster {
    /// Starts a cluster and waits until its node is Ready.
    pub fn start(name: &str) -> Self {
        Self::start_after(name, "true")
    }

    /// [`Cluster::start`] in a machine that a script prepared.
    pub fn start_after(name: &str, script: &str) -> Self {
        let cluster = Self::stopped(name);
        cluster.machine.sh_ok(script);
        cluster.up();
        cluster.wait_ready();
        cluster
    }

    /// [`Cluster::start`] by a shell, which executes `"$@"` in a state of the test's choice.
    pub fn start_by(name: &str, script: &str) -> Self {
        let cluster = Self::stopped(name);
        cluster.launch(
            cluster
                .machine
                .command("sh")
                .args(["-c", script, "sh"])
                .arg(program("knarr"))
                .arg("up"),
        );
        cluster.wait_ready();
        cluster
    }

    fn stopped(name: &str) -> Self {
        Self {
            machine: Machine::start(name, "192.168.77.2/24", Disk::Memory),
            knarr: Mutex::default(),
        }
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Starts `knarr up`; its log goes to a file that a failing test prints.
    pub fn up(&self) {
        self.up_with(&[]);
    }

    /// The same, with these arguments.
    pub fn up_with(&self, args: &[&str]) {
        self.launch(self.machine.command(program("knarr")).arg("up").args(args));
    }

    fn launch(&self, command: &mut Command) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("open the log");
        let knarr = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("duplicate a descriptor"))
            .stderr(log)
            .spawn()
            .expect("start knarr up");
        *self.running() = Some(knarr);
    }

    /// Waits until the node is Ready and the default service account is there.
    pub fn wait_ready(&self) {
        wait_until("a Ready node", || {
            let text = self.try_kubectl(&["get", "nodes", "--no-headers"])?;
            if text.contains(" Ready ") {
                Ok(())
            } else {
                Err(text)
            }
        });
        wait_until("the default service account", || {
            self.try_kubectl(&["get", "serviceaccount", "default"])
                .map(drop)
        });
    }

    /// Ends `knarr` with a signal and waits for it.
    pub fn end(&self, signal: nix::sys::signal::Signal) {
        self.signal(signal);
        self.forget();
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&self) {
        self.end(nix::sys::signal::Signal::SIGKILL);
    }

    /// `kill -9` without waiting, for a moment at which others use the cluster.
    pub fn kill_9(&self) {
        self.signal(nix::sys::signal::Signal::SIGKILL);
    }

    /// Reaps the program after [`Cluster::kill_9`].
    pub fn forget(&self) {
        if let Some(mut knarr) = self.running().take() {
            knarr.wait().expect("wait for knarr");
        }
    }

    /// Waits until the program ends by itself; how it ended, and all that it has logged.
    pub fn outcome(&self) -> (std::process::ExitStatus, String) {
        let mut knarr = self.running().take().expect("it was started");
        let status = wait_until("the end of knarr", || {
            let status = knarr.try_wait().expect("ask for the end of knarr");
            status.ok_or_else(|| "it runs".to_owned())
        });
        let log = std::fs::read_to_string(self.log_path()).expect("read the log");
        (status, log)
    }

    /// Sends `knarr` a signal, without waiting for what comes of it.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let running = self.running();
        let Some(knarr) = &*running else { return };
        // `nsenter` forks before it becomes `knarr`, so its child is the one to signal.
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", knarr.id()));
        let pid = children
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or_else(|| i32::try_from(knarr.id()).expect("a pid"));
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("signal knarr");
    }

    fn running(&self) -> MutexGuard<'_, Option<Child>> {
        // A test that failed while it held the lock leaves the child as it is.
        self.knarr.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the program's log is.
    pub fn log_path(&self) -> PathBuf {
        self.machine.dir().join("knarr.log")
    }

    /// A kubectl with the administrator's kubeconfig, inside the machine.
    pub fn kubectl_command(&self, which: Kubectl) -> Command {
        let mut command = self.machine.command(which.path());
        command.env("KUBECONFIG", "/var/lib/knarr/admin.kubeconfig");
        command
    }

    /// What kubectl printed to stdout, or everything it said where it failed.
    pub fn try_kubectl(&self, args: &[&str]) -> Result<String, String> {
        result(
            &self
                .kubectl_command(Kubectl::Installed)
                .args(args)
                .output()
                .expect("run kubectl"),
        )
    }

    /// What kubectl printed; panics with the cluster's state if it fails.
    pub fn kubectl(&self, args: &[&str]) -> String {
        self.kubectl_with(Kubectl::Installed, args)
    }

    /// [`Cluster::kubectl`] with a kubectl of choice.
    pub fn kubectl_with(&self, which: Kubectl, args: &[&str]) -> String {
        let output = self
            .kubectl_command(which)
            .args(args)
            .output()
            .expect("run kubectl");
        result(&output)
            .unwrap_or_else(|error| self.fail(&format!("kubectl {}: {error}", args.join(" "))))
    }

    /// What kubectl said when it was to fail; panics if it did not.
    pub fn kubectl_fails(&self, args: &[&str]) -> String {
        match self.try_kubectl(args) {
            Ok(text) => self.fail(&format!("kubectl {} went well: {text}", args.join(" "))),
            Err(text) => text,
        }
    }

    /// Applies a manifest, client side.
    pub fn apply(&self, manifest: &str) -> String {
        self.kubectl_stdin(&["apply", "-f", "-"], manifest)
    }

    /// Runs kubectl with a text on its stdin.
    pub fn kubectl_stdin(&self, args: &[&str], stdin: &str) -> String {
        self.try_kubectl_stdin(args, stdin)
            .unwrap_or_else(|error| self.fail(&format!("kubectl {}: {error}", args.join(" "))))
    }

    /// What kubectl said about a text on its stdin when it was to fail; panics if it did not.
    pub fn kubectl_stdin_fails(&self, args: &[&str], stdin: &str) -> String {
        match self.try_kubectl_stdin(args, stdin) {
            Ok(text) => self.fail(&format!("kubectl {} went well: {text}", args.join(" "))),
            Err(text) => text,
        }
    }

    fn try_kubectl_stdin(&self, args: &[&str], stdin: &str) -> Result<String, String> {
        let mut child = self
            .kubectl_command(Kubectl::Installed)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("run kubectl");
        child
            .stdin
            .take()
            .expect("a pipe")
            .write_all(stdin.as_bytes())
            .expect("write to kubectl");
        let output = child.wait_with_output().expect("wait for kubectl");
        result(&output)
    }

    /// Imports an image archive of the repository's own.
    pub fn import(&self, archive: &Path) {
        let output = self
            .machine
            .command(program("knarr"))
            .args(["image", "import"])
            .arg(archive)
            .output()
            .expect("run knarr image import");
        if let Err(error) = result(&output) {
            self.fail(&format!(
                "knarr image import {}: {error}",
                archive.display()
            ));
        }
    }

    /// A deployment of the demo image, all of whose pods are there.
    pub fn deploy(&self, name: &str, replicas: usize) {
        self.import(&hello_image("v1"));
        self.kubectl(&[
            "create",
            "deployment",
            name,
            "--image=knarr.local/hello:v1",
            &format!("--replicas={replicas}"),
        ]);
        let deployment = format!("deployment/{name}");
        self.kubectl(&["rollout", "status", &deployment, "--timeout=60s"]);
    }

    /// Waits until a JSON path of an object has a value.
    pub fn wait_for(&self, object: &str, jsonpath: &str, wanted: &str) {
        let output = format!("jsonpath={jsonpath}");
        self.wait(&format!("{object} {jsonpath} to be {wanted:?}"), || {
            let is = self.try_kubectl(&["get", object, "-o", &output])?;
            if is == wanted { Ok(()) } else { Err(is) }
        });
    }

    /// Waits for a condition; if it does not come, panics with the cluster's state.
    pub fn wait<T>(&self, what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
        let start = std::time::Instant::now();
        loop {
            match attempt() {
                Ok(value) => return value,
                Err(last) if start.elapsed() > super::DEADLINE => {
                    self.fail(&format!("waited for {what}; last: {last}"))
                }
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(50)),
            }
        }
    }

    /// Panics with all that is needed to understand why.
    pub fn fail(&self, why: &str) -> ! {
        let state = self
            .try_kubectl(&["get", "all,events,endpointslices", "-A", "-o", "wide"])
            .unwrap_or_else(|error| error);
        let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(60)..].join("\n");
        panic!("{why}\n--- state\n{state}\n--- log\n{tail}")
    }
}

fn result(output: &Output) -> Result<String, String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    Err(format!(
        "{}: {stdout}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// The archive of the demo image `knarr.local/hello`, as `scripts/build` leaves it.
pub fn hello_image(version: &str) -> PathBuf {
    program(&format!("hello-{version}.tar"))
}

/// The archive of `knarr.local/busybox:1`, made from Debian's busybox-static.
pub fn busybox_image() -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("busybox.tar");
    if !out.exists() {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/harness/busybox-image");
        // Tests run at the same time; the script puts the whole file into place in one step.
        let output = Command::new(script)
            .arg(&out)
            .output()
            .expect("run busybox-image");
        result(&output).unwrap_or_else(|error| panic!("{script}: {error}"));
    }
    out
}
