//! Making a container, with pipes or a terminal that the loop reads.

use std::os::fd::OwnedFd;

use knarr_oci::Stdio;
use knarr_oci::error::chain;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use rustix::event::epoll::{self, EventFlags};
use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

use super::call::{parse, refuse, refuse_errno};
use super::{Server, Source};
use crate::container::Container;
use crate::log::{Log, Stream};
use crate::protocol::{Create, Failure};
use crate::words;

impl Server {
    pub(super) fn create(&mut self, create: Create) -> Result<i32, Failure> {
        if self.find(&create.container).is_ok() {
            return Err(refuse(format!(
                "container {} exists already",
                create.container
            )));
        }
        let id = parse(&create.container)?;
        let config = create.bundle.join("config.json");
        // The kubelet writes nothing that it would warn of.
        let mut spec = knarr_oci::spec::load(&config)
            .map_err(|error| refuse(chain(&error)))?
            .value;
        if let Some(target) = &create.pids_of {
            let target = self.find(target)?;
            if target.exit.is_some() {
                return Err(refuse(format!(
                    "container {} is not running",
                    target.what.container
                )));
            }
            // Our child and not reaped, so the id is its own until we return to the loop.
            enter_pids(&mut spec, target.pid);
        }
        let log = Log::open(&create.log, create.rotation)
            .map_err(|error| refuse(format!("open the log {}: {error}", create.log.display())))?;
        let number = self.number();
        let mut container = Container::new(create.clone(), 0, log);
        container.own_pids = has_own_pids(&spec);
        let stdio = if create.terminal {
            Stdio::Terminal
        } else {
            let (stdout, stdout_child) = pipe()?;
            let (stderr, stderr_child) = pipe()?;
            let stdin_child = if create.stdin {
                let (child, ours) =
                    rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(refuse_errno)?;
                container.stdin = Some(ours);
                child
            } else {
                rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(refuse_errno)?
            };
            container.stdout = Some(stdout);
            container.stderr = Some(stderr);
            Stdio::Fds {
                stdin: stdin_child,
                stdout: stdout_child,
                stderr: stderr_child,
            }
        };
        let created = self
            .runtime
            .create(&id, &create.bundle, &spec, stdio)
            .map_err(|error| Failure {
                task: true,
                ..refuse(words::not_created(&error))
            })?;
        for warning in &created.warnings {
            eprintln!("knarr-shim: create {}: {warning}", create.container);
        }
        container.pid = created.pid.as_raw();
        if let Some(terminal) = created.terminal {
            rustix::io::ioctl_fionbio(&terminal, true).map_err(refuse_errno)?;
            if create.stdin {
                container.stdin = Some(
                    terminal
                        .try_clone()
                        .map_err(|error| refuse(error.to_string()))?,
                );
            }
            container.terminal = Some(terminal);
        }
        let outputs = [
            (
                container.stdout.as_ref().or(container.terminal.as_ref()),
                Stream::Stdout,
            ),
            (container.stderr.as_ref(), Stream::Stderr),
        ];
        for (fd, stream) in outputs {
            if let Some(fd) = fd {
                epoll::add(
                    &self.epoll,
                    fd,
                    Source::Output(number, stream).pack(),
                    EventFlags::IN,
                )
                .map_err(refuse_errno)?;
            }
        }
        let pid = container.pid;
        self.containers.insert(number, container);
        Ok(pid)
    }
}

/// Whether the container's first process is the first of its PID namespace.
fn has_own_pids(spec: &oci_spec::runtime::Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|l| l.namespaces().as_ref());
    namespaces
        .into_iter()
        .flatten()
        .any(|namespace| namespace.typ() == LinuxNamespaceType::Pid && namespace.path().is_none())
}

/// Replaces the container's PID namespace by that of a process.
fn enter_pids(spec: &mut oci_spec::runtime::Spec, pid: i32) {
    let Some(linux) = spec.linux_mut() else {
        return;
    };
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Pid);
    let mut of_process = LinuxNamespace::default();
    of_process
        .set_typ(LinuxNamespaceType::Pid)
        .set_path(Some(format!("/proc/{pid}/ns/pid").into()));
    namespaces.push(of_process);
    linux.set_namespaces(Some(namespaces));
}

/// A pipe that the shim reads without ever waiting; the writing end is the container's.
fn pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(refuse_errno)?;
    rustix::io::ioctl_fionbio(&ours, true).map_err(refuse_errno)?;
    Ok((ours, theirs))
}
