//! One container: its output on the way to the log and to whoever is attached, and its end.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;

use crate::log::{Log, Stream};
use crate::protocol::{Create, Exit};

/// How much is read from a container at once; the bound of what one wake-up costs.
const CHUNK: usize = 16 * 1024;
/// How many chunks one wake-up takes before others get their turn.
const CHUNKS: usize = 16;

/// A socket that gets a copy of the output.
struct Attached {
    stdout: OwnedFd,
    stderr: OwnedFd,
}

/// What is left of an output stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// More may come.
    Open,
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
    log: Log,
    attached: Vec<Attached>,
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
            log,
            attached: Vec::new(),
        }
    }

    fn source(&self, stream: Stream) -> Option<&OwnedFd> {
        match stream {
            Stream::Stdout => self.stdout.as_ref().or(self.terminal.as_ref()),
            Stream::Stderr => self.stderr.as_ref(),
        }
    }

    /// Reads what there is of a stream, at most a bounded amount, into the log and the attached sockets.
    pub fn pump(&mut self, stream: Stream) -> Left {
        let mut buffer = [0; CHUNK];
        for _ in 0..CHUNKS {
            let Some(source) = self.source(stream) else {
                return Left::Ended;
            };
            match rustix::io::read(source, &mut buffer) {
                Ok(0) => return self.ended(stream),
                // A terminal says EIO once its last other end is closed.
                Err(Errno::IO) => return self.ended(stream),
                Ok(length) => self.take(stream, &buffer[..length]),
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

    fn take(&mut self, stream: Stream, bytes: &[u8]) {
        if let Err(error) = self.log.take(stream, bytes) {
            // The container must not hang because the disk is full: the text is lost, and this says so.
            eprintln!("knarr-shim: write {}: {error}", self.what.log.display());
        }
        self.attached.retain(|attached| {
            let socket = match stream {
                Stream::Stdout => &attached.stdout,
                Stream::Stderr => &attached.stderr,
            };
            // A client that does not keep up is dropped: its buffer is the socket's, never ours.
            rustix::net::send(
                socket,
                bytes,
                rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT,
            )
            .is_ok_and(|sent| sent == bytes.len())
        });
    }

    fn ended(&mut self, stream: Stream) -> Left {
        if let Err(error) = self.log.finish(stream) {
            eprintln!("knarr-shim: write {}: {error}", self.what.log.display());
        }
        match stream {
            Stream::Stdout => self.stdout = None,
            Stream::Stderr => self.stderr = None,
        }
        Left::Ended
    }

    /// Copies the output from now on to a pair of sockets.
    pub fn attach(&mut self, stdout: OwnedFd, stderr: OwnedFd) {
        self.attached.push(Attached { stdout, stderr });
    }

    /// Opens the log anew.
    ///
    /// # Errors
    ///
    /// What open(2) says.
    pub fn reopen_log(&mut self) -> io::Result<()> {
        self.log.reopen()
    }

    /// Puts the end on record: durable before anybody hears of it.
    ///
    /// # Errors
    ///
    /// If the record cannot be written.
    pub fn record(&mut self, exit: Exit) -> io::Result<()> {
        // What the container wrote before it ended belongs into the log before its end is known.
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.pump(stream);
        }
        self.attached.clear();
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
