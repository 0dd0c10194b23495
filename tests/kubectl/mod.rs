//! Every verb of the stock kubectl that people use, with its flags, and what it prints.

mod apply;
mod get;
mod life;
mod logs;
mod patch;
mod rollout;
mod server;
mod watch;

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::harness::{Cluster, DEADLINE, Kubectl, busybox_image, hello_image};

const BOTH: [Kubectl; 2] = [Kubectl::Installed, Kubectl::New];

/// A Deployment of one pod that ends at once on SIGTERM; `container` is more of its container, in YAML's flow style.
fn web(replicas: u32, container: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: web, labels: {{app: web}}}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: web}}}}\n  template:\n    metadata: {{labels: {{app: web}}}}\n    spec:\n      containers:\n      \
         - {{name: web, image: 'knarr.local/hello:v1'{container}}}\n"
    )
}

/// A pod with one busybox container `main` that runs a script.
fn shell(name: &str, script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  restartPolicy: Never\n  containers:\n  \
         - name: main\n    image: knarr.local/busybox:1\n    command: [sh, -c, \"{script}\"]\n"
    )
}

fn start(name: &str) -> Cluster {
    let cluster = Cluster::start(name);
    cluster.import(&hello_image("v1"));
    cluster.import(&hello_image("v2"));
    cluster.import(&busybox_image());
    cluster
}

/// Parts that must all be in a text.
#[track_caller]
fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

/// A kubectl that goes on: its lines are read one at a time, and it dies with the test.
struct Running<'a> {
    cluster: &'a Cluster,
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl<'a> Running<'a> {
    fn start(cluster: &'a Cluster, which: Kubectl, args: &[&str]) -> Self {
        let mut child = cluster
            .kubectl_command(which)
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("run kubectl");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            cluster,
            child,
            lines,
            seen: Vec::new(),
        }
    }

    /// Waits for a line with this in it.
    fn expect(&mut self, part: &str) {
        let end = std::time::Instant::now() + DEADLINE;
        loop {
            match self
                .lines
                .recv_timeout(end.saturating_duration_since(std::time::Instant::now()))
            {
                Ok(line) => {
                    self.seen.push(line);
                    if self.seen.last().is_some_and(|line| line.contains(part)) {
                        return;
                    }
                }
                Err(error) => self.cluster.fail(&format!(
                    "no line with {part:?} ({error}): {:#?}",
                    self.seen
                )),
            }
        }
    }

    /// Sends kubectl a signal.
    fn signal(&self, signal: Signal) {
        // `nsenter` forked before it became kubectl; the child is the one to signal.
        let children = format!("/proc/{0}/task/{0}/children", self.child.id());
        let pid = std::fs::read_to_string(children)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        if let Some(pid) = pid {
            nix::sys::signal::kill(Pid::from_raw(pid), signal).expect("signal kubectl");
        }
        if signal != Signal::SIGSTOP {
            // `nsenter` stops when its child does, and has to go on with it.
            let nsenter = Pid::from_raw(self.child.id().try_into().expect("a pid"));
            nix::sys::signal::kill(nsenter, Signal::SIGCONT).expect("signal nsenter");
        }
    }

    /// Waits for its end; all that it printed.
    fn end(mut self) -> String {
        let status = self.child.wait().expect("wait for kubectl");
        self.seen.extend(self.lines.iter());
        assert!(status.success(), "{status}: {:#?}", self.seen);
        self.seen.join("\n")
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Without its reader kubectl would end at its next line only.
            self.signal(Signal::SIGKILL);
            self.child.wait().expect("wait for kubectl");
        }
    }
}
