//! The engine's end of a shim: starting it, calling it, hearing from it.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
    /// Connects to a shim; what it tells unasked goes to `notices`, with `name`.
    ///
    /// # Errors
    ///
    /// If there is none, or it speaks another version.
    pub async fn connect<N: Clone + Send + Sync + 'static>(
        socket: &Path,
        name: N,
        notices: mpsc::UnboundedSender<(N, Notice)>,
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
        rustix::net::connect(&fd, &address.short).map_err(|error| failed(error.into()))?;
        let shim = Arc::new(Self {
            socket: crate::sys::watch(fd).map_err(failed)?,
            next: AtomicU64::new(0),
            waiting: Mutex::new(Waiting {
                replies: HashMap::new(),
                processes: HashMap::new(),
                gone: false,
            }),
        });
        tokio::spawn(listen(shim.clone(), name, notices));
        match shim.call(Call::Hello { version: VERSION }).await? {
            Reply::Hello { .. } => Ok(shim),
            _ => Err(ShimError::Answer),
        }
    }

    /// Calls the shim.
    ///
    /// # Errors
    ///
    /// If it cannot be reached, ends, or refuses.
    pub async fn call(&self, call: Call) -> Result<Reply, ShimError> {
        Ok(self.call_with(call, &[]).await?.0)
    }

    /// Calls the shim, with descriptors there and back.
    ///
    /// # Errors
    ///
    /// As [`Shim::call`].
    pub async fn call_with(&self, call: Call, fds: &[BorrowedFd<'_>]) -> Answer {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
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

    /// All containers of the shim.
    ///
    /// # Errors
    ///
    /// As [`Shim::call`].
    pub async fn list(&self) -> Result<Vec<protocol::Container>, ShimError> {
        match self.call(Call::List).await? {
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
