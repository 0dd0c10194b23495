//! Who is attached to a container: copies of its output, one socket a stream, at the pace of the slowest.
//!
//! A client that is slow slows the container down, as with containerd: what it has not taken yet is kept here, and its stream is
//! not read until it has. So nobody loses output, and what is kept is at most one reading of the stream, or, once the container
//! has ended, what a pipe holds.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::log::Stream;

/// One client's receiver of one stream.
struct Receiver {
    /// What it is called in the epoll set.
    number: u32,
    stream: Stream,
    socket: OwnedFd,
    /// What the client has not taken yet.
    pending: Vec<u8>,
    /// Nothing more is to come: it goes once all is taken.
    last: bool,
    gone: bool,
}

impl Receiver {
    /// Sends what it can of `bytes` and keeps the rest.
    fn send(&mut self, bytes: &[u8]) {
        if !self.pending.is_empty() {
            self.pending.extend_from_slice(bytes);
            return;
        }
        let sent = self.write(bytes);
        self.pending.extend_from_slice(&bytes[sent..]);
    }

    /// Sends what waits.
    fn flush(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let sent = self.write(&pending);
        self.pending.extend_from_slice(&pending[sent..]);
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut sent = 0;
        while sent < bytes.len() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&self.socket, &bytes[sent..], flags) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return sent,
                Err(_) => {
                    self.gone = true;
                    return bytes.len();
                }
            }
        }
        sent
    }
}

/// A socket whose place in the epoll set has to change.
#[derive(Debug, PartialEq, Eq)]
pub struct Wish {
    /// What it is called there.
    pub number: u32,
    /// Whether to be told when it takes more.
    pub writable: bool,
}

/// The clients of one container.
#[derive(Default)]
pub struct Clients(Vec<Receiver>);

impl Clients {
    /// Whether one of them has this number.
    pub fn has(&self, number: u32) -> bool {
        self.0.iter().any(|receiver| receiver.number == number)
    }

    /// The socket of this number.
    pub fn socket(&self, number: u32) -> Option<&OwnedFd> {
        let receiver = self.0.iter().find(|receiver| receiver.number == number)?;
        Some(&receiver.socket)
    }

    /// Another client of a stream.
    pub fn add(&mut self, number: u32, stream: Stream, socket: OwnedFd) {
        self.0.push(Receiver {
            number,
            stream,
            socket,
            pending: Vec::new(),
            last: false,
            gone: false,
        });
    }

    /// Removes one that has hung up.
    pub fn remove(&mut self, number: u32) {
        self.0.retain(|receiver| receiver.number != number);
    }

    /// Whether somebody has not taken all of a stream yet.
    pub fn blocked(&self, stream: Stream) -> bool {
        self.0
            .iter()
            .any(|receiver| receiver.stream == stream && !receiver.pending.is_empty())
    }

    /// Gives a piece of a stream to all who want it; returns whose sockets are full from now on.
    pub fn send(&mut self, stream: Stream, bytes: &[u8]) -> Vec<Wish> {
        let mut wishes = Vec::new();
        for receiver in self
            .0
            .iter_mut()
            .filter(|receiver| receiver.stream == stream)
        {
            let waited = !receiver.pending.is_empty();
            receiver.send(bytes);
            if !waited && !receiver.pending.is_empty() {
                wishes.push(Wish {
                    number: receiver.number,
                    writable: true,
                });
            }
        }
        self.sweep();
        wishes
    }

    /// Sends on to one whose socket takes more; returns a wish if all is sent.
    pub fn flush(&mut self, number: u32) -> Option<Wish> {
        let receiver = self
            .0
            .iter_mut()
            .find(|receiver| receiver.number == number)?;
        receiver.flush();
        let done = receiver.pending.is_empty();
        self.sweep();
        (done && self.has(number)).then_some(Wish {
            number,
            writable: false,
        })
    }

    /// Nothing more comes on a stream: who has all of it sees the end, the others once they have.
    pub fn end(&mut self, stream: Stream) {
        for receiver in self
            .0
            .iter_mut()
            .filter(|receiver| receiver.stream == stream)
        {
            receiver.last = true;
        }
        self.sweep();
    }

    /// Closing the descriptor takes it out of the epoll set, and is the end that the client sees.
    fn sweep(&mut self) {
        self.0.retain(|receiver| {
            let all_taken = receiver.last && receiver.pending.is_empty();
            !(receiver.gone || all_taken)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn pair() -> (OwnedFd, std::os::unix::net::UnixStream) {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        (ours.into(), theirs)
    }

    #[test]
    fn a_slow_client_gets_everything_and_then_the_end() {
        let mut clients = Clients::default();
        let (socket, mut client) = pair();
        clients.add(7, Stream::Stdout, socket);
        let piece: Vec<u8> = (0..16 * 1024).map(|n| (n % 251) as u8).collect();
        let mut sent = 0;
        let mut wishes = Vec::new();
        while !clients.blocked(Stream::Stdout) {
            wishes.extend(clients.send(Stream::Stdout, &piece));
            sent += 1;
        }
        assert_eq!(
            wishes,
            [Wish {
                number: 7,
                writable: true
            }]
        );
        assert!(!clients.blocked(Stream::Stderr));
        // The container ends meanwhile: what its pipe still held is kept too.
        assert!(clients.send(Stream::Stdout, &piece).is_empty());
        sent += 1;
        clients.end(Stream::Stdout);
        let mut got = vec![0; piece.len() * sent];
        let (half, rest) = got.split_at_mut(piece.len() * sent / 2);
        client.read_exact(half).unwrap();
        let mut quiet = None;
        let mut read = 0;
        while clients.has(7) {
            quiet = clients.flush(7);
            if clients.has(7) {
                read += client.read(&mut rest[read..]).unwrap();
            }
        }
        assert_eq!(quiet, None, "it has gone, so nobody watches it");
        client.read_exact(&mut rest[read..]).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "the end");
        assert!(got.chunks(piece.len()).all(|chunk| chunk == piece));
    }

    #[test]
    fn who_wants_one_stream_keeps_it_when_the_other_is_not_wanted() {
        let mut clients = Clients::default();
        let (stdout, mut client) = pair();
        let (stderr, unwanted) = pair();
        clients.add(1, Stream::Stdout, stdout);
        clients.add(2, Stream::Stderr, stderr);
        drop(unwanted);
        clients.send(Stream::Stderr, b"nobody hears this");
        assert!(!clients.has(2));
        clients.send(Stream::Stdout, b"heard");
        clients.end(Stream::Stdout);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "heard");
    }
}
