//! Talking to what runs: exec, attach, and connections into a pod's network.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use knarr_shim::protocol::{Call, Reply};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use serde_json::json;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::engine::{Engine, new_id};
use crate::error::EngineError;
use crate::record;
use crate::sandbox::blocking;
use crate::shim::{Shim, ShimError};
use crate::types::{ContainerId, ExecOutput, NamespaceMode, SandboxId, TerminalSize};

/// The most that `exec_sync` keeps of each stream, in bytes. Source: CRI, containerd's `ExecSyncResponse` limit.
const MAX_OUTPUT: u64 = 16 << 20;

/// How long the caller of a command that took too long waits for it to be killed.
const KILL_MOMENT: Duration = Duration::from_secs(1);

/// What an exec is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// Whether its stdin is written to.
    pub stdin: bool,
    /// Whether its stdout is read.
    pub stdout: bool,
    /// Whether its stderr is read; a terminal has none.
    pub stderr: bool,
}

/// A pipe, socket or terminal of a session, without ever blocking a thread.
struct Stream(AsyncFd<OwnedFd>);

impl Stream {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self(crate::sys::watch(fd)?))
    }
}

/// What a session's process writes.
pub struct SessionReader(Arc<Stream>);

/// What a session's process reads; dropping it closes its stdin, unless that is a terminal.
pub struct SessionWriter(Arc<Stream>);

impl AsyncRead for SessionReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.0.poll_read_ready(cx))?;
            let unfilled = buf.initialize_unfilled();
            match guard.try_io(|fd| Ok(rustix::io::read(fd.as_fd(), &mut *unfilled)?)) {
                Ok(Ok(length)) => {
                    buf.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // A terminal says EIO once its last other end is closed.
                Ok(Err(error))
                    if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) =>
                {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for SessionWriter {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.0.poll_write_ready(cx))?;
            match guard.try_io(|fd| Ok(rustix::io::write(fd.as_fd(), bytes)?)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A pipe is closed by dropping it; there is nothing to flush.
        Poll::Ready(Ok(()))
    }
}

/// What [`Session::wait`] waits for.
enum End {
    Process(oneshot::Receiver<i32>),
    Container(tokio::sync::watch::Receiver<bool>),
    Known(i32),
}

/// A running exec or attach.
pub struct Session {
    /// Its stdin, if it was asked for.
    pub stdin: Option<SessionWriter>,
    /// Its stdout, or terminal.
    pub stdout: Option<SessionReader>,
    /// Its stderr.
    pub stderr: Option<SessionReader>,
    shim: Arc<Shim>,
    engine: Engine,
    container: ContainerId,
    exec: Option<String>,
    terminal: Option<Arc<Stream>>,
    end: End,
}

impl Session {
    /// Tells the terminal its size; without a terminal nothing happens.
    ///
    /// # Errors
    ///
    /// If the terminal is gone.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), EngineError> {
        match (&self.terminal, &self.exec) {
            (Some(terminal), _) => knarr_oci::sys::set_window_size(
                terminal.0.get_ref().as_fd(),
                size.height,
                size.width,
            )
            .map_err(|source| EngineError::System {
                what: "resize the terminal".into(),
                source,
            }),
            (None, Some(_)) => Ok(()),
            (None, None) => {
                let call = Call::Resize {
                    container: self.container.0.clone(),
                    width: size.width,
                    height: size.height,
                };
                match self.shim.call(call).await {
                    Ok(_) | Err(ShimError::Refused(_)) => Ok(()),
                    Err(error) => Err(error.into()),
                }
            }
        }
    }

    /// The exit code, once the process (of an attach: the container) has ended. May be dropped and called again.
    ///
    /// # Errors
    ///
    /// If the shim is gone.
    pub async fn wait(&mut self) -> Result<i32, EngineError> {
        let code = match &mut self.end {
            End::Known(code) => *code,
            End::Process(receiver) => receiver.await.map_err(|_| ShimError::Gone)?,
            End::Container(ended) => {
                // The sender lives as long as the container; its end means that it was removed.
                let _ = ended.wait_for(|ended| *ended).await;
                self.engine
                    .container_status(&self.container)
                    .await?
                    .exit_code
            }
        };
        self.end = End::Known(code);
        Ok(code)
    }

    /// Kills an exec's process; an attach's container is left alone.
    ///
    /// # Errors
    ///
    /// If the shim is gone.
    pub async fn kill(&self) -> Result<(), EngineError> {
        match &self.exec {
            Some(exec) => Ok(kill_exec(&self.shim, exec.clone()).await?),
            None => Ok(()),
        }
    }
}

/// Kills an exec's process; one that is not there is fine.
async fn kill_exec(shim: &Shim, exec: String) -> Result<(), ShimError> {
    let signal = nix::sys::signal::Signal::SIGKILL as i32;
    match shim.call(Call::SignalExec { exec, signal }).await {
        Ok(_) | Err(ShimError::Refused(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

impl Engine {
    /// Runs a command in a running container.
    ///
    /// # Errors
    ///
    /// `NotFound`, `State` if it does not run, or the command cannot be executed.
    pub async fn exec(
        &self,
        id: &ContainerId,
        request: ExecRequest,
    ) -> Result<Session, EngineError> {
        let container = self.container(id)?;
        let (sandbox_id, running) = {
            let record = container.record.lock();
            (
                record.sandbox_id.clone(),
                record.started_at.is_some() && record.end.is_none(),
            )
        };
        if !running {
            return Err(EngineError::State {
                what: "container",
                id: id.0.clone(),
                state: "not running",
            });
        }
        let shim = self.shim_of(&sandbox_id).await?;
        let exec = new_id();
        let process = self.write_process(id, &exec, &request).await?;
        let end = shim.process_end(&exec);
        let call = Call::Exec {
            exec: exec.clone(),
            container: id.0.clone(),
            process: process.clone(),
            terminal: request.tty,
        };
        let started = if request.tty {
            self.exec_terminal(&shim, call, &request).await
        } else {
            self.exec_pipes(&shim, call, &request).await
        };
        if let Err(error) = std::fs::remove_file(&process) {
            tracing::warn!(%error, path = %process.display(), "the description of an exec is left behind");
        }
        let (stdin, stdout, stderr, terminal) = match started {
            Ok(streams) => streams,
            Err(error) => {
                shim.forget_process(&exec);
                if matches!(error, EngineError::Shim(ShimError::Silent { .. })) {
                    // The shim may start it yet, for nobody: this waits behind it in the shim's queue.
                    tokio::spawn(async move { kill_exec(&shim, exec).await });
                }
                return Err(error);
            }
        };
        Ok(Session {
            stdin,
            stdout,
            stderr,
            shim,
            engine: self.clone(),
            container: id.clone(),
            exec: Some(exec),
            terminal,
            end: End::Process(end),
        })
    }

    /// The OCI process of an exec: the container's own, with another command.
    async fn write_process(
        &self,
        id: &ContainerId,
        exec: &str,
        request: &ExecRequest,
    ) -> Result<PathBuf, EngineError> {
        let dir = self.inner.container_dir(id);
        let name = format!("exec-{exec}.json");
        let path = dir.join(&name);
        let request = request.clone();
        blocking(move || {
            let config = dir.join("config.json");
            let failed = |source: io::Error| EngineError::System {
                what: format!("read {}", config.display()),
                source,
            };
            let text = std::fs::read(&config).map_err(failed)?;
            let spec: serde_json::Value =
                serde_json::from_slice(&text).map_err(|error| failed(error.into()))?;
            let mut process = spec["process"].clone();
            process["args"] = json!(request.command);
            process["terminal"] = request.tty.into();
            if request.tty
                && let Some(env) = process["env"].as_array_mut()
                && !env
                    .iter()
                    .any(|one| one.as_str().is_some_and(|text| text.starts_with("TERM=")))
            {
                env.push("TERM=xterm".into());
            }
            record::write(&dir, &name, &process)?;
            Ok(path)
        })
        .await
    }

    async fn exec_terminal(
        &self,
        shim: &Shim,
        call: Call,
        request: &ExecRequest,
    ) -> Result<Streams, EngineError> {
        let (reply, fds) = shim.call_with(call, &[]).await?;
        let (Reply::Process { .. }, Ok([master])) = (reply, <[OwnedFd; 1]>::try_from(fds)) else {
            return Err(ShimError::Answer.into());
        };
        let terminal = Arc::new(stream(master)?);
        let stdin = request.stdin.then(|| SessionWriter(terminal.clone()));
        let stdout = request.stdout.then(|| SessionReader(terminal.clone()));
        Ok((stdin, stdout, None, Some(terminal)))
    }

    async fn exec_pipes(
        &self,
        shim: &Shim,
        call: Call,
        request: &ExecRequest,
    ) -> Result<Streams, EngineError> {
        let null = || {
            use rustix::fs::{Mode, OFlags};
            rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        };
        let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
        let system = |error: rustix::io::Errno| EngineError::System {
            what: "make a pipe".into(),
            source: error.into(),
        };
        let (stdin_child, stdin) = if request.stdin {
            let (child, ours) = pipe().map_err(system)?;
            (child, Some(ours))
        } else {
            (null().map_err(system)?, None)
        };
        let output = |wanted: bool| -> Result<(OwnedFd, Option<OwnedFd>), EngineError> {
            if wanted {
                let (ours, child) = pipe().map_err(system)?;
                Ok((child, Some(ours)))
            } else {
                Ok((null().map_err(system)?, None))
            }
        };
        let (stdout_child, stdout) = output(request.stdout)?;
        let (stderr_child, stderr) = output(request.stderr)?;
        let fds: [BorrowedFd<'_>; 3] = [
            stdin_child.as_fd(),
            stdout_child.as_fd(),
            stderr_child.as_fd(),
        ];
        shim.call_with(call, &fds).await?;
        Ok((
            stdin
                .map(stream)
                .transpose()?
                .map(|stream| SessionWriter(Arc::new(stream))),
            stdout
                .map(stream)
                .transpose()?
                .map(|stream| SessionReader(Arc::new(stream))),
            stderr
                .map(stream)
                .transpose()?
                .map(|stream| SessionReader(Arc::new(stream))),
            None,
        ))
    }

    /// Runs a command to its end and returns what it wrote.
    ///
    /// # Errors
    ///
    /// As [`Engine::exec`]; `Timeout` if it was killed for taking too long.
    pub async fn exec_sync(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, EngineError> {
        let request = ExecRequest {
            command: command.clone(),
            stdout: true,
            stderr: true,
            ..Default::default()
        };
        let end = timeout.map(|timeout| Instant::now() + timeout);
        let mut session = match end {
            None => self.exec(id, request).await?,
            Some(end) => self.exec_until(id, request, end).await?,
        };
        let (stdout, stderr) = (session.stdout.take(), session.stderr.take());
        let run = async {
            let (code, stdout, stderr) =
                tokio::join!(session.wait(), read_up_to(stdout), read_up_to(stderr));
            Ok(ExecOutput {
                exit_code: code?,
                stdout: stdout?,
                stderr: stderr?,
            })
        };
        let outcome = match end {
            None => Some(run.await),
            // Dropping the run loses only output that nobody will see.
            Some(end) => tokio::time::timeout_at(end, run).await.ok(),
        };
        match outcome {
            Some(result) => result,
            None => {
                kill_late(session).await;
                Err(EngineError::Timeout { command })
            }
        }
    }

    /// As [`Engine::exec`], but not later than `end`: what starts later is killed.
    async fn exec_until(
        &self,
        id: &ContainerId,
        request: ExecRequest,
        end: Instant,
    ) -> Result<Session, EngineError> {
        let command = request.command.clone();
        let (engine, id) = (self.clone(), id.clone());
        // A task of its own: given up midway, nobody would know the process that the shim starts.
        let mut starting = tokio::spawn(async move { engine.exec(&id, request).await });
        match tokio::time::timeout_at(end, &mut starting).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            Err(_) => {
                tokio::spawn(async move {
                    if let Ok(Ok(session)) = starting.await {
                        kill_late(session).await;
                    }
                });
                Err(EngineError::Timeout { command })
            }
        }
    }

    /// Connects to the first process of a running container: its output from now on, and its stdin. A reader that is slow slows
    /// the container down. The stdin of a container made with `stdin_once` ends with the first session that has it.
    ///
    /// # Errors
    ///
    /// `NotFound`, or `State` if it does not run.
    pub async fn attach(
        &self,
        id: &ContainerId,
        request: ExecRequest,
    ) -> Result<Session, EngineError> {
        let container = self.container(id)?;
        let (sandbox_id, running) = {
            let record = container.record.lock();
            (
                record.sandbox_id.clone(),
                record.started_at.is_some() && record.end.is_none(),
            )
        };
        if !running {
            return Err(EngineError::State {
                what: "container",
                id: id.0.clone(),
                state: "not running",
            });
        }
        let ended = container.ended.subscribe();
        let shim = self.shim_of(&sandbox_id).await?;
        let pair = || {
            rustix::net::socketpair(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC,
                None,
            )
            .map_err(|error| EngineError::System {
                what: "make a pair of sockets".into(),
                source: error.into(),
            })
        };
        let ((stdout, stdout_shim), (stderr, stderr_shim)) = (pair()?, pair()?);
        let call = Call::Attach {
            container: id.0.clone(),
            take_stdin: request.stdin && container.record.lock().config.stdin_once,
        };
        let (_, mut fds) = shim
            .call_with(call, &[stdout_shim.as_fd(), stderr_shim.as_fd()])
            .await?;
        let stdin = match fds.pop() {
            Some(fd) if request.stdin => Some(SessionWriter(Arc::new(stream(fd)?))),
            _ => None,
        };
        let reader = |fd, wanted: bool| -> Result<Option<SessionReader>, EngineError> {
            if wanted {
                Ok(Some(SessionReader(Arc::new(stream(fd)?))))
            } else {
                Ok(None)
            }
        };
        Ok(Session {
            stdin,
            stdout: reader(stdout, request.stdout)?,
            stderr: reader(stderr, request.stderr && !request.tty)?,
            shim,
            engine: self.clone(),
            container: id.clone(),
            exec: None,
            terminal: None,
            end: End::Container(ended),
        })
    }

    /// Closes the stdin of a container, whoever is attached to it.
    ///
    /// # Errors
    ///
    /// `NotFound`, or the shim is gone.
    pub async fn close_stdin(&self, id: &ContainerId) -> Result<(), EngineError> {
        let sandbox_id = self.container(id)?.record.lock().sandbox_id.clone();
        self.shim_of(&sandbox_id)
            .await?
            .call(Call::CloseStdin {
                container: id.0.clone(),
            })
            .await?;
        Ok(())
    }

    /// Connects to a port of a pod, from inside its network namespace, so that what listens on its loopback is reached too.
    ///
    /// # Errors
    ///
    /// `NotFound`, or nothing listens.
    pub async fn port_forward(&self, id: &SandboxId, port: u16) -> Result<TcpStream, EngineError> {
        let sandbox = self.sandbox(id)?;
        let host = sandbox.record.lock().config.namespaces.network == NamespaceMode::Node;
        let netns = self.inner.run_dir(id).netns();
        let failed = move |source| EngineError::System {
            what: format!("connect to port {port} of the pod"),
            source,
        };
        let connect = move || {
            let addresses = [("127.0.0.1", port), ("::1", port)];
            let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
            for address in addresses {
                match std::net::TcpStream::connect(address) {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        };
        let stream = if host {
            blocking(connect).await
        } else {
            knarr_network::run_in(&netns, connect)
                .await
                .map_err(|error| failed(io::Error::other(error)))?
        };
        let stream = stream.map_err(&failed)?;
        stream.set_nonblocking(true).map_err(&failed)?;
        TcpStream::from_std(stream).map_err(&failed)
    }
}

/// Kills a process that took too long. Its caller waits no longer for that than a moment: the shim may take longer.
async fn kill_late(session: Session) {
    let killing = tokio::spawn(async move {
        if let Err(error) = session.kill().await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "a command that took too long could not be killed");
        }
    });
    // Goes on when it is not waited for any more.
    let _slow = tokio::time::timeout(KILL_MOMENT, killing).await;
}

type Streams = (
    Option<SessionWriter>,
    Option<SessionReader>,
    Option<SessionReader>,
    Option<Arc<Stream>>,
);

fn stream(fd: OwnedFd) -> Result<Stream, EngineError> {
    Stream::new(fd).map_err(|source| EngineError::System {
        what: "watch a stream".into(),
        source,
    })
}

async fn read_up_to(reader: Option<SessionReader>) -> Result<Vec<u8>, EngineError> {
    let Some(reader) = reader else {
        return Ok(Vec::new());
    };
    let failed = |source| EngineError::System {
        what: "read a command's output".into(),
        source,
    };
    let mut limited = reader.take(MAX_OUTPUT);
    let mut bytes = Vec::new();
    limited.read_to_end(&mut bytes).await.map_err(failed)?;
    // What is over the limit is read and dropped, so that the command does not hang on a full pipe.
    let mut rest = limited.into_inner();
    tokio::io::copy(&mut rest, &mut tokio::io::sink())
        .await
        .map_err(failed)?;
    Ok(bytes)
}
