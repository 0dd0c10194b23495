//! The loop: one epoll set over the listener, the engine's connections, the containers' output and the children's ends.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use knarr_oci::{Runtime, RuntimeOptions};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::attached::Wish;
use crate::container::{Container, Left};
use crate::log::Stream;
use crate::protocol::{MAX_MESSAGE, Message, Request};
use crate::socket;

mod call;
mod create;
mod ends;

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
    Attached(u32),
}

impl Source {
    fn pack(self) -> EventData {
        EventData::new_u64(match self {
            Self::Listener => 0,
            Self::Children => 1,
            Self::Client(n) => 2 << 32 | u64::from(n),
            Self::Output(n, Stream::Stdout) => 3 << 32 | u64::from(n),
            Self::Output(n, Stream::Stderr) => 4 << 32 | u64::from(n),
            Self::Attached(n) => 5 << 32 | u64::from(n),
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
            5 => Self::Attached(number),
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
                    Some(Source::Attached(client)) => self.serve_attached(client, flags),
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
        let mut wishes = Vec::new();
        match container.pump(stream, &mut wishes) {
            Left::Open => {}
            Left::Ended => {
                if stream == Stream::Stdout
                    && let Some(terminal) = &container.terminal
                {
                    // The master stays for as long as the container does, but has nothing more to say.
                    epoll::delete(&self.epoll, terminal).ok();
                }
            }
            Left::Blocked => {
                // Taken out rather than watched for nothing: the end of a pipe is always reported.
                if let Some(source) = container.source(stream) {
                    epoll::delete(&self.epoll, source).ok();
                    container.paused[stream as usize] = true;
                }
            }
        }
        self.heed(number, wishes);
    }

    /// Changes what clients' sockets are watched for.
    fn heed(&mut self, number: u32, wishes: Vec<Wish>) {
        let Some(container) = self.containers.get_mut(&number) else {
            return;
        };
        for Wish { number, writable } in wishes {
            let Some(socket) = container.clients.socket(number) else {
                continue;
            };
            let interest = if writable {
                EventFlags::RDHUP | EventFlags::OUT
            } else {
                EventFlags::RDHUP
            };
            let source = Source::Attached(number).pack();
            if let Err(error) = epoll::modify(&self.epoll, socket, source, interest) {
                // Nobody would hear that it takes more, and its container would wait for ever.
                eprintln!("knarr-shim: watch an attached client: {error}");
                container.clients.remove(number);
            }
        }
    }

    /// A client that is attached to a container takes more, or has hung up.
    fn serve_attached(&mut self, client: u32, flags: EventFlags) {
        let found = self
            .containers
            .iter_mut()
            .find(|(_, container)| container.clients.has(client));
        let Some((&number, container)) = found else {
            return;
        };
        if flags.intersects(EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP) {
            container.clients.remove(client);
        } else if let Some(wish) = container.clients.flush(client) {
            self.heed(number, vec![wish]);
        }
        self.resume(number);
    }

    /// Reads the streams again that no client holds up any more, or whose container has ended.
    fn resume(&mut self, number: u32) {
        let Some(container) = self.containers.get_mut(&number) else {
            return;
        };
        for stream in [Stream::Stdout, Stream::Stderr] {
            let held = container.exit.is_none() && container.clients.blocked(stream);
            if !container.paused[stream as usize] || held {
                continue;
            }
            container.paused[stream as usize] = false;
            let Some(source) = container.source(stream) else {
                continue;
            };
            let what = Source::Output(number, stream).pack();
            if let Err(error) = epoll::add(&self.epoll, source, what, EventFlags::IN) {
                eprintln!(
                    "knarr-shim: watch the output of {} again: {error}",
                    container.what.container
                );
            }
        }
    }
}

/// The listening socket, which the engine passes as standard input; what is left there is `/dev/null`.
fn take_stdin() -> io::Result<OwnedFd> {
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(listener)
}
