//! The engine's end of a shim: starting it, calling it, hearing from it, giving it up.
//!
//! A shim is another process: it can be stopped, or wait for a disk that is gone. So every call has a deadline, and nothing here
//! makes one pod wait for the shim of another.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use knarr_shim::protocol::{
    self, Call, Exit, Failure, MAX_MESSAGE, Message, Reply, Request, VERSION,
};
use knarr_shim::socket;
use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

/// Why a shim did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// It could not be started.
    #[error("start {program}", program = program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// It could not be reached.
    #[error("connect to the shim at {socket}", socket = socket.display())]
    Connect {
        /// Its socket.
        socket: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The call could not be sent.
    #[error("call the shim")]
    Send {
        /// The system's error.
        source: io::Error,
    },
    /// It did not answer in time.
    #[error("the shim has not answered for {after:?}")]
    Silent {
        /// How long it was waited for.
        after: Duration,
    },
    /// It ended before it answered.
    #[error("the shim is gone")]
    Gone,
    /// It refused.
    #[error(transparent)]
    Refused(#[from] Failure),
    /// It answered something else than was asked.
    #[error("the shim's answer makes no sense")]
    Answer,
}

/// What a shim tells without being asked.
#[derive(Debug)]
pub enum Notice {
    /// A container ended.
    Exited(String, Exit),
    /// The connection is over: the shim ended.
    Gone,
}

/// What is known of a sandbox's shim.
#[derive(Clone)]
pub(crate) enum Link {
    /// It is not known yet whether it is there: it has not answered since this program started.
    Silent,
    /// It answers.
    Up(Arc<Shim>),
    /// There is none.
    Down,
}

/// How much longer than others a call may take that has the shim make something.
const MAKING: u32 = 4;

/// How often a shim is tried again that accepts no connection: its queue holds a few, and is full when it is stopped.
const RETRY: Duration = Duration::from_secs(1);

type Answer = Result<(Reply, Vec<OwnedFd>), ShimError>;

struct Waiting {
    replies: HashMap<u64, oneshot::Sender<Answer>>,
    processes: HashMap<String, oneshot::Sender<i32>>,
    gone: bool,
}

/// A connection to one shim.
pub struct Shim {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    waiting: Mutex<Waiting>,
    /// How long an answer may take.
    patience: Duration,
}

/// Starts a shim that listens at `socket`; it goes on when this program ends.
///
/// # Errors
///
/// If the socket cannot be made or the program cannot be started.
pub fn start(program: &Path, socket: &Path, state: &Path, log: &Path) -> Result<(), ShimError> {
    let failed = |source: io::Error| ShimError::Start {
        program: program.to_owned(),
        source,
    };
    let address = Address::of(socket).map_err(failed)?;
    let listener = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| failed(error.into()))?;
    rustix::net::bind(&listener, &address.short).map_err(|error| failed(error.into()))?;
    rustix::net::listen(&listener, 4).map_err(|error| failed(error.into()))?;
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .map_err(failed)?;
    let mut child = tokio::process::Command::new(program)
        .arg(state)
        .env_clear()
        .stdin(Stdio::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::from(log))
        .current_dir("/")
        .spawn()
        .map_err(failed)?;
    // Reaps it; how it ended is told by its socket.
    tokio::spawn(async move { child.wait().await });
    Ok(())
}

/// A socket's address. The kernel takes no path of more than 107 bytes (unix(7)), so a long one goes through a descriptor of
/// its directory.
struct Address {
    short: SocketAddrUnix,
    /// Has to stay open until the address has been used.
    _directory: Option<OwnedFd>,
}

impl Address {
    fn of(socket: &Path) -> io::Result<Self> {
        use rustix::fs::{Mode, OFlags};
        match SocketAddrUnix::new(socket) {
            Err(rustix::io::Errno::NAMETOOLONG) => {}
            short => {
                return Ok(Self {
                    short: short?,
                    _directory: None,
                });
            }
        }
        let (Some(parent), Some(name)) = (socket.parent(), socket.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent, flags, Mode::empty())?;
        let through = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        Ok(Self {
            short: SocketAddrUnix::new(through.join(name))?,
            _directory: Some(directory),
        })
    }
}

impl Shim {
    /// Connects to a shim; what it tells unasked goes to `notices`, with `name`. `patience` is how long an answer may take; the
    /// first one is waited for as long as the caller likes.
    ///
    /// # Errors
    ///
    /// If there is none, or it speaks another version.
    pub async fn connect<N: Clone + Send + Sync + 'static>(
        socket: &Path,
        name: N,
        notices: mpsc::UnboundedSender<(N, Notice)>,
        patience: Duration,
    ) -> Result<Arc<Self>, ShimError> {
        let failed = |source: io::Error| ShimError::Connect {
            socket: socket.to_owned(),
            source,
        };
        let address = Address::of(socket).map_err(failed)?;
        let fd = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .map_err(|error| failed(error.into()))?;
        loop {
            match rustix::net::connect(&fd, &address.short) {
                Ok(()) => break,
                Err(rustix::io::Errno::AGAIN) => tokio::time::sleep(RETRY).await,
                Err(error) => return Err(failed(error.into())),
            }
        }
        let shim = Arc::new(Self {
            socket: crate::sys::watch(fd).map_err(failed)?,
            next: AtomicU64::new(0),
            waiting: Mutex::new(Waiting {
                replies: HashMap::new(),
                processes: HashMap::new(),
                gone: false,
            }),
            patience,
        });
        tokio::spawn(listen(shim.clone(), name, notices));
        let hello = Call::Hello { version: VERSION };
        match shim.answer(shim.number(), hello, &[]).await?.0 {
            Reply::Hello { .. } => Ok(shim),
            _ => Err(ShimError::Answer),
        }
    }

    /// Calls the shim.
    ///
    /// # Errors
    ///
    /// If it cannot be reached, does not answer in time, ends, or refuses.
    pub async fn call(&self, call: Call) -> Result<Reply, ShimError> {
        Ok(self.call_with(call, &[]).await?.0)
    }

    /// Calls the shim, with descriptors there and back.
    ///
    /// # Errors
    ///
    /// As [`Shim::call`].
    pub async fn call_with(&self, call: Call, fds: &[BorrowedFd<'_>]) -> Answer {
        let after = match &call {
            Call::SharePids(_) | Call::Create(_) | Call::Start { .. } | Call::Exec { .. } => {
                self.patience * MAKING
            }
            _ => self.patience,
        };
        let number = self.number();
        let answer = tokio::time::timeout(after, self.answer(number, call, fds)).await;
        answer.unwrap_or_else(|_| {
            // An answer that comes late is dropped, and with it the descriptors that it brings.
            self.waiting.lock().replies.remove(&number);
            Err(ShimError::Silent { after })
        })
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    async fn answer(&self, number: u64, call: Call, fds: &[BorrowedFd<'_>]) -> Answer {
        let (sender, receiver) = oneshot::channel();
        {
            let mut waiting = self.waiting.lock();
            if waiting.gone {
                return Err(ShimError::Gone);
            }
            waiting.replies.insert(number, sender);
        }
        let packet = serde_json::to_vec(&Request { number, call })
            .expect("our own requests always serialise");
        let sent = self
            .socket
            .async_io(tokio::io::Interest::WRITABLE, |fd| {
                socket::send(fd.as_fd(), &packet, fds)
            })
            .await;
        if let Err(source) = sent {
            self.waiting.lock().replies.remove(&number);
            return Err(ShimError::Send { source });
        }
        receiver.await.map_err(|_| ShimError::Gone)?
    }

    /// All containers, however long the shim takes to answer.
    ///
    /// # Errors
    ///
    /// As [`Shim::call`], but for the time.
    pub async fn first_list(&self) -> Result<Vec<protocol::Container>, ShimError> {
        match self.answer(self.number(), Call::List, &[]).await?.0 {
            Reply::Containers(list) => Ok(list),
            _ => Err(ShimError::Answer),
        }
    }

    /// The end of an exec's process; to be asked for before the exec, so that none is missed.
    pub fn process_end(&self, exec: &str) -> oneshot::Receiver<i32> {
        let (sender, receiver) = oneshot::channel();
        self.waiting
            .lock()
            .processes
            .insert(exec.to_owned(), sender);
        receiver
    }

    /// Nobody waits for this exec any more.
    pub fn forget_process(&self, exec: &str) {
        self.waiting.lock().processes.remove(exec);
    }

    fn hear(&self, message: Message, fds: Vec<OwnedFd>) -> Option<Notice> {
        match message {
            Message::Reply { number, result } => {
                let sender = self.waiting.lock().replies.remove(&number);
                if let Some(sender) = sender {
                    // A caller that has gone away needs no answer.
                    let _ =
                        sender.send(result.map(|reply| (reply, fds)).map_err(ShimError::Refused));
                }
                None
            }
            Message::ProcessExited { exec, code } => {
                let sender = self.waiting.lock().processes.remove(&exec);
                if let Some(sender) = sender {
                    let _ = sender.send(code);
                }
                None
            }
            Message::Exited { container, exit } => Some(Notice::Exited(container, exit)),
        }
    }
}

/// Reads until the shim's end.
async fn listen<N: Clone>(shim: Arc<Shim>, name: N, notices: mpsc::UnboundedSender<(N, Notice)>) {
    let mut buffer = vec![0; MAX_MESSAGE];
    loop {
        let received = shim
            .socket
            .async_io(tokio::io::Interest::READABLE, |fd| {
                socket::receive(fd.as_fd(), &mut buffer)
            })
            .await;
        let notice = match received {
            Ok((length, fds)) if length > 0 => match serde_json::from_slice(&buffer[..length]) {
                Ok(message) => shim.hear(message, fds),
                Err(error) => {
                    tracing::error!(%error, "a shim's message makes no sense");
                    None
                }
            },
            _ => {
                let mut waiting = shim.waiting.lock();
                waiting.gone = true;
                // Dropping the senders tells every caller.
                waiting.replies.clear();
                waiting.processes.clear();
                drop(waiting);
                let _ = notices.send((name, Notice::Gone));
                return;
            }
        };
        if let Some(notice) = notice
            && notices.send((name.clone(), notice)).is_err()
        {
            return;
        }
    }
}

/// Kills the shim that writes to `log`, though it may be stopped, and waits until it has ended. None there is fine.
///
/// It is known by its log, which is its standard error: its id is on no record, and would not be enough, because ids are reused.
///
/// # Errors
///
/// If it cannot be killed, or has not ended after `patience`.
pub fn kill(log: &Path, patience: Duration) -> io::Result<()> {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    use std::os::unix::fs::MetadataExt;
    let identity =
        |path: &Path| std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    let wanted = match identity(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let end = Instant::now() + patience;
    for process in std::fs::read_dir("/proc")?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // What has ended meanwhile, or has no standard error, is not the shim.
        let stderr = process.path().join("fd/2");
        let writes_there = || identity(&stderr).is_ok_and(|found| found == wanted);
        if !writes_there() {
            continue;
        }
        let Some(pid) = Pid::from_raw(pid) else {
            continue;
        };
        let descriptor = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => continue,
            other => other?,
        };
        // Looked at again: from here on it is surely the process of the descriptor.
        if !writes_there() {
            continue;
        }
        match pidfd_send_signal(&descriptor, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
        wait_for_end(&descriptor, end)?;
    }
    Ok(())
}

/// Waits until the process of a pidfd has ended.
fn wait_for_end(process: &OwnedFd, end: Instant) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut polled = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut polled, Some(&left)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_may_be_deep() {
        let dir = tempfile::tempdir().unwrap();
        for depth in [1, 200] {
            let deep = dir.path().join("d".repeat(depth));
            std::fs::create_dir(&deep).unwrap();
            let place = deep.join("shim.sock");
            let socket = || {
                let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
                rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).unwrap()
            };
            let (listener, client) = (socket(), socket());
            rustix::net::bind(&listener, &Address::of(&place).unwrap().short).unwrap();
            rustix::net::listen(&listener, 1).unwrap();
            rustix::net::connect(&client, &Address::of(&place).unwrap().short).unwrap();
            assert!(place.exists());
        }
        assert!(Address::of(&dir.path().join("n".repeat(300)).join("shim.sock")).is_err());
    }
}
