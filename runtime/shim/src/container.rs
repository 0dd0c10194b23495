//! One container: its output on the way to the log and to whoever is attached, and its end.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;

use crate::attached::{Clients, Wish};
use crate::log::{Log, Stream};
use crate::protocol::{Create, Exit};

/// How much is read from a container at once; the bound of what one wake-up costs.
const CHUNK: usize = 16 * 1024;
/// How many chunks one wake-up takes before others get their turn.
const CHUNKS: usize = 16;

/// How often what is left in an ended container's pipes is asked for. They hold a megabyte at most, unless root has raised the
/// kernel's limit; a process that has escaped and goes on writing is not waited for.
const LAST_ROUNDS: usize = 64;

/// What is left of an output stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// More may come.
    Open,
    /// It is not read until a client has taken what was read before.
    Blocked,
    /// It has ended.
    Ended,
}

/// A container as the shim holds it.
pub struct Container {
    pub what: Create,
    pub pid: i32,
    pub started: bool,
    /// Whether it has a PID namespace of its own, so that nothing in it outlives its first process.
    pub own_pids: bool,
    pub exit: Option<Exit>,
    /// Why its program could not be executed; its end is about to be noticed then.
    pub start_error: Option<String>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub stdin: Option<OwnedFd>,
    /// The terminal's master, kept for its size and its input as long as the container is there.
    pub terminal: Option<OwnedFd>,
    /// Who gets a copy of the output.
    pub clients: Clients,
    /// The streams that are not watched, because a client is slow.
    pub paused: [bool; 2],
    log: Log,
}

impl Container {
    /// A container that has just been made.
    pub fn new(what: Create, pid: i32, log: Log) -> Self {
        Self {
            what,
            pid,
            started: false,
            own_pids: true,
            exit: None,
            start_error: None,
            stdout: None,
            stderr: None,
            stdin: None,
            terminal: None,
            clients: Clients::default(),
            paused: [false; 2],
            log,
        }
    }

    /// What a stream is read from, while it is.
    pub fn source(&self, stream: Stream) -> Option<&OwnedFd> {
        match stream {
            Stream::Stdout => self.stdout.as_ref().or(self.terminal.as_ref()),
            Stream::Stderr => self.stderr.as_ref(),
        }
    }

    /// Reads what there is of a stream, at most a bounded amount, into the log and the clients' sockets. What those have to be
    /// watched for goes to `wishes`.
    ///
    /// A container that has ended cannot be slowed down any more, and its log is to be whole: it is read however slow a client is.
    pub fn pump(&mut self, stream: Stream, wishes: &mut Vec<Wish>) -> Left {
        self.pump_until(stream, self.exit.is_some(), wishes)
    }

    fn pump_until(&mut self, stream: Stream, over: bool, wishes: &mut Vec<Wish>) -> Left {
        let mut buffer = [0; CHUNK];
        for _ in 0..CHUNKS {
            let Some(source) = self.source(stream) else {
                return Left::Ended;
            };
            if !over && self.clients.blocked(stream) {
                return Left::Blocked;
            }
            match rustix::io::read(source, &mut buffer) {
                Ok(0) => return self.ended(stream),
                // A terminal says EIO once its last other end is closed.
                Err(Errno::IO) => return self.ended(stream),
                Ok(length) => {
                    let bytes = &buffer[..length];
                    if let Err(error) = self.log.take(stream, bytes) {
                        // The container must not hang because the disk is full: the text is lost, and this says so.
                        eprintln!("knarr-shim: write {}: {error}", self.what.log.display());
                    }
                    wishes.extend(self.clients.send(stream, bytes));
                }
                Err(Errno::AGAIN) => return Left::Open,
                Err(Errno::INTR) => {}
                Err(error) => {
                    eprintln!(
                        "knarr-shim: read the output of {}: {error}",
                        self.what.container
                    );
                    return self.ended(stream);
                }
            }
        }
        Left::Open
    }

    fn ended(&mut self, stream: Stream) -> Left {
        if let Err(error) = self.log.finish(stream) {
            eprintln!("knarr-shim: write {}: {error}", self.what.log.display());
        }
        match stream {
            Stream::Stdout => self.stdout = None,
            Stream::Stderr => self.stderr = None,
        }
        self.clients.end(stream);
        Left::Ended
    }

    /// Opens the log anew.
    ///
    /// # Errors
    ///
    /// What open(2) says.
    pub fn reopen_log(&mut self) -> io::Result<()> {
        self.log.reopen()
    }

    /// Puts the end on record: durable before anybody hears of it. What clients' sockets have to be watched for goes to `wishes`.
    ///
    /// # Errors
    ///
    /// If the record cannot be written.
    pub fn record(&mut self, exit: Exit, wishes: &mut Vec<Wish>) -> io::Result<()> {
        // What the container wrote before it ended belongs into the log before its end is known. The pipes are full when there
        // is more than one round can read; they are empty when the last round brought less.
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut size = None;
            for _ in 0..LAST_ROUNDS {
                let left = self.pump_until(stream, true, wishes);
                let now = Some(self.log.written());
                if left == Left::Ended || now == size {
                    break;
                }
                size = now;
            }
            self.clients.end(stream);
        }
        self.stdin = None;
        let result = write_durably(&self.what.bundle, &exit);
        self.exit = Some(exit);
        result
    }
}

fn write_durably(bundle: &Path, exit: &Exit) -> io::Result<()> {
    let temporary = bundle.join("exit.json.tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(exit)?)?;
    file.sync_data()?;
    std::fs::rename(&temporary, bundle.join(Exit::FILE))?;
    rustix::fs::fsync(File::open(bundle)?.as_fd())?;
    Ok(())
}
