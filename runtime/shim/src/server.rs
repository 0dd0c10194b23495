//! The loop: one epoll set over the listener, the engine's connections, the containers' output and the children's ends.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use knarr_oci::error::{StartError, chain};
use knarr_oci::{ContainerId, Runtime, RuntimeOptions, Stdio};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType};
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::pipe::PipeFlags;

use crate::container::{Container, Left};
use crate::log::{Log, Stream};
use crate::pause;
use crate::protocol::{
    self, Call, Create, Exit, Failure, MAX_MESSAGE, Message, Reply, Request, VERSION,
};
use crate::socket;
use crate::words;

/// Messages that may wait for a connection that does not read; one that lets more wait is closed and starts anew.
const BACKLOG: usize = 1024;

/// Why the shim could not go on.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct ServeError {
    what: &'static str,
    source: io::Error,
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> ServeError {
    move |source| ServeError {
        what,
        source: source.into(),
    }
}

/// What an event of the epoll set is about; packed into its 64 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Listener,
    Children,
    Client(u32),
    Output(u32, Stream),
}

impl Source {
    fn pack(self) -> EventData {
        EventData::new_u64(match self {
            Self::Listener => 0,
            Self::Children => 1,
            Self::Client(n) => 2 << 32 | u64::from(n),
            Self::Output(n, Stream::Stdout) => 3 << 32 | u64::from(n),
            Self::Output(n, Stream::Stderr) => 4 << 32 | u64::from(n),
        })
    }

    fn unpack(data: u64) -> Option<Self> {
        let number = data as u32;
        Some(match data >> 32 {
            0 if number == 0 => Self::Listener,
            0 => Self::Children,
            2 => Self::Client(number),
            3 => Self::Output(number, Stream::Stdout),
            4 => Self::Output(number, Stream::Stderr),
            _ => return None,
        })
    }
}

struct Client {
    socket: OwnedFd,
    waiting: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
}

struct Exec {
    name: String,
    client: u32,
}

/// How long nothing happens before the memory that the last requests needed is given back: reading a configuration takes
/// a megabyte, and a pod that runs for months needs none of it. Not at once, since requests come in rows.
const QUIET: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

struct Server {
    epoll: OwnedFd,
    listener: OwnedFd,
    children: SignalFd,
    runtime: Runtime,
    next: u32,
    clients: BTreeMap<u32, Client>,
    containers: BTreeMap<u32, Container>,
    execs: BTreeMap<i32, Exec>,
    /// Requests were served since the free memory was given back.
    worked: bool,
    /// The first process of the PID namespace that the containers share, if they do.
    pause: Option<Pid>,
    over: bool,
}

/// Serves until the engine says that it is over.
///
/// `state` is the directory of knarr-oci's state.
///
/// # Errors
///
/// If the loop cannot be set up, or epoll fails.
pub fn serve(state: PathBuf) -> Result<(), ServeError> {
    nix::sys::prctl::set_child_subreaper(true).map_err(failed("become a subreaper"))?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().map_err(failed("block SIGCHLD"))?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let children = SignalFd::with_flags(&children, flags).map_err(failed("make a signalfd"))?;
    let listener = take_stdin().map_err(failed("find the listening socket as standard input"))?;
    // The engine's terminal and its signals are not the pod's business.
    nix::unistd::setsid().map_err(failed("start a session"))?;
    let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(failed("make an epoll set"))?;
    epoll::add(&epoll, &listener, Source::Listener.pack(), EventFlags::IN)
        .map_err(failed("watch the listener"))?;
    epoll::add(&epoll, &children, Source::Children.pack(), EventFlags::IN)
        .map_err(failed("watch the children"))?;
    let mut server = Server {
        epoll,
        listener,
        children,
        runtime: Runtime::new(state, RuntimeOptions::default()),
        next: 0,
        clients: BTreeMap::new(),
        containers: BTreeMap::new(),
        execs: BTreeMap::new(),
        worked: false,
        pause: None,
        over: false,
    };
    server.run()
}

impl Server {
    fn run(&mut self) -> Result<(), ServeError> {
        let mut space = [MaybeUninit::uninit(); 32];
        while !self.over {
            let quiet = self.worked.then_some(&QUIET);
            let events = match epoll::wait(&self.epoll, &mut space, quiet) {
                Ok(([], _)) => {
                    knarr_oci::sys::release_free_memory();
                    self.worked = false;
                    continue;
                }
                Ok((events, _)) => events,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(failed("wait for events")(error)),
            };
            for event in events.iter() {
                let flags = event.flags;
                match Source::unpack(event.data.u64()) {
                    Some(Source::Listener) => self.accept(),
                    Some(Source::Children) => self.reap(),
                    Some(Source::Client(client)) => self.serve_client(client, flags),
                    Some(Source::Output(container, stream)) => self.pump(container, stream),
                    None => {}
                }
            }
        }
        Ok(())
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next
    }

    fn accept(&mut self) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = match rustix::net::accept_with(&self.listener, flags) {
            Ok(socket) => socket,
            Err(error) => return eprintln!("knarr-shim: accept: {error}"),
        };
        let number = self.number();
        if let Err(error) = epoll::add(
            &self.epoll,
            &socket,
            Source::Client(number).pack(),
            EventFlags::IN,
        ) {
            return eprintln!("knarr-shim: watch a connection: {error}");
        }
        self.clients.insert(
            number,
            Client {
                socket,
                waiting: VecDeque::new(),
            },
        );
    }

    fn serve_client(&mut self, number: u32, flags: EventFlags) {
        if flags.contains(EventFlags::OUT) {
            self.flush(number);
        }
        if !flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            return;
        }
        let mut buffer = vec![0; MAX_MESSAGE];
        let Some(client) = self.clients.get(&number) else {
            return;
        };
        let (length, fds) = match socket::receive(&client.socket, &mut buffer) {
            Ok((0, _)) => return self.hang_up(number),
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => return self.hang_up(number),
        };
        self.worked = true;
        match serde_json::from_slice::<Request>(&buffer[..length]) {
            Ok(request) => {
                let (result, fds) = match self.call(number, request.call, fds) {
                    Ok((reply, fds)) => (Ok(reply), fds),
                    Err(failure) => (Err(failure), Vec::new()),
                };
                self.send(
                    number,
                    &Message::Reply {
                        number: request.number,
                        result,
                    },
                    fds,
                );
            }
            Err(error) => {
                eprintln!("knarr-shim: a request that makes no sense: {error}");
                self.hang_up(number);
            }
        }
    }

    fn hang_up(&mut self, number: u32) {
        // Closing the descriptor takes it out of the epoll set.
        self.clients.remove(&number);
    }

    fn send(&mut self, number: u32, message: &Message, fds: Vec<OwnedFd>) {
        let packet = serde_json::to_vec(message).expect("our own messages always serialise");
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        client.waiting.push_back((packet, fds));
        if client.waiting.len() > BACKLOG {
            return self.hang_up(number);
        }
        self.flush(number);
    }

    fn flush(&mut self, number: u32) {
        let Some(client) = self.clients.get_mut(&number) else {
            return;
        };
        while let Some((packet, fds)) = client.waiting.front() {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match socket::send(&client.socket, packet, &borrowed) {
                Ok(()) => {
                    client.waiting.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.hang_up(number),
            }
        }
        let interest = if client.waiting.is_empty() {
            EventFlags::IN
        } else {
            EventFlags::IN | EventFlags::OUT
        };
        if epoll::modify(
            &self.epoll,
            &client.socket,
            Source::Client(number).pack(),
            interest,
        )
        .is_err()
        {
            self.hang_up(number);
        }
    }

    fn announce(&mut self, message: &Message) {
        for number in self.clients.keys().copied().collect::<Vec<_>>() {
            self.send(number, message, Vec::new());
        }
    }

    fn pump(&mut self, number: u32, stream: Stream) {
        let Some(container) = self.containers.get_mut(&number) else {
            return;
        };
        if container.pump(stream) == Left::Ended
            && stream == Stream::Stdout
            && let Some(terminal) = &container.terminal
        {
            // The master stays for as long as the container does, but has nothing more to say.
            epoll::delete(&self.epoll, terminal).ok();
        }
    }

    /// Takes leave of every child that ended: containers, execs, and orphans whose parents in the pod ended before.
    fn reap(&mut self) {
        while let Ok(Some(_)) = self.children.read_signal() {}
        loop {
            let (pid, code) = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if self.pause == Some(pid) {
                // The kernel has ended all that was in the namespace and let us see each end before this one.
                self.pause = None;
                self.over = true;
                continue;
            }
            if let Some(exec) = self.execs.remove(&pid.as_raw()) {
                self.send(
                    exec.client,
                    &Message::ProcessExited {
                        exec: exec.name,
                        code,
                    },
                    Vec::new(),
                );
                continue;
            }
            let ended = self
                .containers
                .iter()
                .find(|(_, c)| c.pid == pid.as_raw() && c.exit.is_none());
            let Some((&number, container)) = ended else {
                continue;
            };
            let oom_killed = code == 137 && self.was_oom_killed(&container.what.container);
            if !container.own_pids {
                self.kill_rest(&container.what.container);
            }
            let Some(container) = self.containers.get_mut(&number) else {
                continue;
            };
            let exit = Exit {
                code,
                oom_killed,
                at: SystemTime::now(),
                start_error: container.start_error.clone(),
            };
            if let Err(error) = container.record(exit.clone()) {
                // The engine hears it all the same; only a crash of both before it writes it down would lose it.
                eprintln!(
                    "knarr-shim: record the end of {}: {error}",
                    container.what.container
                );
            }
            let message = Message::Exited {
                container: container.what.container.clone(),
                exit,
            };
            self.announce(&message);
        }
    }

    /// Kills what a container leaves behind in a PID namespace that is not its own, where the kernel does not.
    fn kill_rest(&self, container: &str) {
        let Ok(id) = ContainerId::parse(container) else {
            return;
        };
        if let Err(error) = self.runtime.kill(&id, Signal::SIGKILL, true) {
            eprintln!(
                "knarr-shim: kill the rest of {container}: {}",
                chain(&error)
            );
        }
    }

    fn was_oom_killed(&self, container: &str) -> bool {
        let Ok(id) = ContainerId::parse(container) else {
            return false;
        };
        let kills = self
            .runtime
            .details(&id)
            .map_err(|error| chain(&error))
            .and_then(|details| {
                details
                    .cgroup
                    .stats()
                    .map(|stats| stats.memory.oom_kills)
                    .map_err(|error| chain(&error))
            });
        match kills {
            Ok(count) => count > 0,
            Err(error) => {
                eprintln!("knarr-shim: read the memory group of {container}: {error}");
                false
            }
        }
    }

    fn find(&mut self, id: &str) -> Result<&mut Container, Failure> {
        let found = self
            .containers
            .values_mut()
            .find(|container| container.what.container == id);
        found.ok_or_else(|| not_found(format!("container {id} does not exist")))
    }

    fn call(
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
                    self.runtime
                        .kill_number(&id, signal, all)
                        .map_err(|error| refuse(chain(&error)))?;
                }
                done
            }
            Call::Attach { container } => self.attach(&container, fds),
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

    fn create(&mut self, create: Create) -> Result<i32, Failure> {
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
        container: &str,
        fds: Vec<OwnedFd>,
    ) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        let container = self.find(container)?;
        let [stdout, stderr] = <[OwnedFd; 2]>::try_from(fds).map_err(|fds| {
            refuse(format!(
                "{} descriptors came with an attach, not 2",
                fds.len()
            ))
        })?;
        let stdin = match &container.stdin {
            Some(stdin) => vec![
                stdin
                    .try_clone()
                    .map_err(|error| refuse(error.to_string()))?,
            ],
            None => Vec::new(),
        };
        if container.exit.is_none() {
            container.attach(stdout, stderr);
        }
        Ok((Reply::Done, stdin))
    }
}

/// The listening socket, which the engine passes as standard input; what is left there is `/dev/null`.
fn take_stdin() -> io::Result<OwnedFd> {
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(listener)
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

fn parse(id: &str) -> Result<ContainerId, Failure> {
    ContainerId::parse(id).map_err(|error| refuse(error.to_string()))
}

fn refuse(message: String) -> Failure {
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

fn refuse_errno(error: Errno) -> Failure {
    refuse(error.to_string())
}
