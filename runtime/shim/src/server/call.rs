//! What the engine asks for.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use knarr_oci::error::{StartError, chain};
use knarr_oci::{ContainerId, ControlError, Status, Stdio};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::event::epoll::{self, EventFlags};
use rustix::io::Errno;

use super::{Exec, Server, Source};
use crate::container::Container;
use crate::log::Stream;
use crate::pause;
use crate::protocol::{self, Call, Failure, Reply, VERSION};
use crate::words;

impl Server {
    pub(super) fn find(&mut self, id: &str) -> Result<&mut Container, Failure> {
        let found = self
            .containers
            .values_mut()
            .find(|container| container.what.container == id);
        found.ok_or_else(|| not_found(format!("container {id} does not exist")))
    }

    pub(super) fn call(
        &mut self,
        client: u32,
        call: Call,
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        let done = Ok((Reply::Done, Vec::new()));
        match call {
            Call::Hello { version } if version == VERSION => {
                Ok((Reply::Hello { version: VERSION }, Vec::new()))
            }
            Call::Hello { version } => Err(refuse(format!(
                "version {version} of the protocol is not {VERSION}"
            ))),
            Call::SharePids(_) if self.pause.is_some() => {
                Err(refuse("the pod has a PID namespace already".to_owned()))
            }
            Call::SharePids(wanted) => {
                let (pid, namespace) =
                    pause::start(&wanted).map_err(|error| refuse(chain(&error)))?;
                self.pause = Some(pid);
                let pid = pid.as_raw();
                Ok((Reply::Created { pid }, vec![namespace]))
            }
            Call::Create(create) => Ok((
                Reply::Created {
                    pid: self.create(create)?,
                },
                Vec::new(),
            )),
            Call::Start { container } => {
                self.start(&container)?;
                done
            }
            Call::Exec {
                exec,
                container,
                process,
                terminal,
            } => self.exec(client, exec, &container, &process, terminal, fds),
            Call::SignalExec { exec, signal } => {
                let pid = self
                    .execs
                    .iter()
                    .find(|(_, e)| e.name == exec)
                    .map(|(pid, _)| *pid);
                let pid = pid.ok_or_else(|| not_found(format!("process {exec} does not exist")))?;
                // The process is our child and not yet reaped, so its id is still its own.
                let signal =
                    Signal::try_from(signal).map_err(|_| refuse(format!("no signal {signal}")))?;
                nix::sys::signal::kill(Pid::from_raw(pid), signal)
                    .map_err(|error| refuse(error.to_string()))?;
                done
            }
            Call::Signal {
                container,
                signal,
                all,
            } => {
                let ended = self.find(&container)?.exit.is_some();
                if !ended || all {
                    let id = parse(&container)?;
                    match self.runtime.kill_number(&id, signal, all) {
                        // Its first process has just ended, and this loop has not heard of it yet; or what is left of
                        // it waits for its threads. Nobody is left to be told.
                        Ok(())
                        | Err(ControlError::WrongStatus {
                            status: Status::Stopped,
                            ..
                        }) => {}
                        Err(error) => return Err(refuse(chain(&error))),
                    }
                }
                done
            }
            Call::Attach {
                container,
                take_stdin,
            } => self.attach(&container, take_stdin, fds),
            Call::Resize {
                container,
                width,
                height,
            } => {
                let container = self.find(&container)?;
                let terminal = container.terminal.as_ref().ok_or_else(|| {
                    refuse(format!(
                        "container {} has no terminal",
                        container.what.container
                    ))
                })?;
                knarr_oci::sys::set_window_size(terminal.as_fd(), height, width)
                    .map_err(|error| refuse(format!("resize the terminal: {error}")))?;
                done
            }
            Call::CloseStdin { container } => {
                self.find(&container)?.stdin = None;
                done
            }
            Call::ReopenLog { container } => {
                self.find(&container)?
                    .reopen_log()
                    .map_err(|error| refuse(format!("open the log: {error}")))?;
                done
            }
            Call::Delete { container } => {
                let found = self.find(&container)?;
                if found.exit.is_none() && found.started {
                    return Err(refuse(format!("container {container} is running")));
                }
                let id = parse(&container)?;
                for failure in self
                    .runtime
                    .delete(&id, true)
                    .map_err(|error| refuse(chain(&error)))?
                {
                    eprintln!("knarr-shim: delete {container}: {}", chain(&failure));
                }
                self.containers.retain(|_, c| c.what.container != container);
                done
            }
            Call::List => {
                let list = self
                    .containers
                    .values()
                    .map(|container| protocol::Container {
                        id: container.what.container.clone(),
                        pid: container.pid,
                        started: container.started,
                        exit: container.exit.clone(),
                    });
                Ok((Reply::Containers(list.collect()), Vec::new()))
            }
            Call::Shutdown => {
                if let Some(running) = self
                    .containers
                    .values()
                    .find(|c| c.started && c.exit.is_none())
                {
                    return Err(refuse(format!(
                        "container {} is running",
                        running.what.container
                    )));
                }
                match self.pause {
                    // Our child and not reaped, so the id is its own. It ends when all in its namespace has been reaped,
                    // by this loop, which then ends too.
                    Some(pause) => nix::sys::signal::kill(pause, Signal::SIGKILL)
                        .map_err(|error| refuse(format!("end the pod's first process: {error}")))?,
                    None => self.over = true,
                }
                done
            }
        }
    }

    fn start(&mut self, id: &str) -> Result<(), Failure> {
        let started = self.runtime.start(&parse(id)?);
        let container = self.find(id)?;
        match started {
            Ok(()) => {
                container.started = true;
                Ok(())
            }
            Err(error) => {
                let message = words::not_started(id, &error);
                if matches!(error, StartError::Process(_)) {
                    // The process ends of it. Its record says why, whoever reads it first.
                    container.start_error = Some(message.clone());
                }
                Err(refuse(message))
            }
        }
    }

    fn exec(
        &mut self,
        client: u32,
        exec: String,
        container: &str,
        process: &Path,
        terminal: bool,
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        if self.find(container)?.exit.is_some() {
            return Err(refuse(format!("container {container} is not running")));
        }
        let id = parse(container)?;
        let text = std::fs::read(process)
            .map_err(|error| refuse(format!("read {}: {error}", process.display())))?;
        let process: oci_spec::runtime::Process = serde_json::from_slice(&text)
            .map_err(|error| refuse(format!("the process to execute: {error}")))?;
        let stdio = if terminal {
            Stdio::Terminal
        } else {
            let [stdin, stdout, stderr] = <[OwnedFd; 3]>::try_from(fds).map_err(|fds| {
                refuse(format!(
                    "{} descriptors came with an exec, not 3",
                    fds.len()
                ))
            })?;
            Stdio::Fds {
                stdin,
                stdout,
                stderr,
            }
        };
        let created = self
            .runtime
            .exec(&id, &process, stdio)
            .map_err(|error| refuse(words::not_executed(&error)))?;
        for warning in &created.warnings {
            eprintln!("knarr-shim: exec in {container}: {warning}");
        }
        let pid = created.pid.as_raw();
        self.execs.insert(pid, Exec { name: exec, client });
        Ok((
            Reply::Process { pid },
            created.terminal.into_iter().collect(),
        ))
    }

    fn attach(
        &mut self,
        id: &str,
        take_stdin: bool,
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        let [stdout, stderr] = <[OwnedFd; 2]>::try_from(fds).map_err(|fds| {
            refuse(format!(
                "{} descriptors came with an attach, not 2",
                fds.len()
            ))
        })?;
        let container = self.find(id)?;
        if container.exit.is_some() {
            return Err(refuse(format!("container {id} is not running")));
        }
        let copied = match &container.stdin {
            Some(stdin) if !take_stdin || container.terminal.is_some() => Some(
                stdin
                    .try_clone()
                    .map_err(|error| refuse(error.to_string()))?,
            ),
            _ => None,
        };
        let mut numbers = [0; 2];
        for (number, socket) in numbers.iter_mut().zip([&stdout, &stderr]) {
            *number = self.number();
            // Hanging up is always reported.
            epoll::add(
                &self.epoll,
                socket,
                Source::Attached(*number).pack(),
                EventFlags::RDHUP,
            )
            .map_err(refuse_errno)?;
        }
        let container = self.find(id)?;
        container.clients.add(numbers[0], Stream::Stdout, stdout);
        container.clients.add(numbers[1], Stream::Stderr, stderr);
        let stdin = match copied {
            None if take_stdin => container.stdin.take(),
            copied => copied,
        };
        Ok((Reply::Done, stdin.into_iter().collect()))
    }
}

pub(super) fn parse(id: &str) -> Result<ContainerId, Failure> {
    ContainerId::parse(id).map_err(|error| refuse(error.to_string()))
}

pub(super) fn refuse(message: String) -> Failure {
    Failure {
        not_found: false,
        task: false,
        message,
    }
}

fn not_found(message: String) -> Failure {
    Failure {
        not_found: true,
        ..refuse(message)
    }
}

pub(super) fn refuse_errno(error: Errno) -> Failure {
    refuse(error.to_string())
}
