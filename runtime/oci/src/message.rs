//! What a container's process and its maker say to each other before the user's program runs.
//!
//! A `SOCK_SEQPACKET` pair: one message per packet, so no framing is needed, and the end of the stream says that the
//! process is gone (or has become the user's program: the socket is close-on-exec).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg,
    sendmsg, socketpair,
};

use crate::error::{Failure, Step};

/// From the container's process to its maker.
#[derive(Debug)]
pub enum Report {
    /// The sibling that an intermediate process has made, by its id in the maker's PID namespace.
    Sibling(i32),
    /// A descriptor of that sibling, where ids count in a PID namespace of the sender's: there they mean other processes.
    Born(OwnedFd),
    /// Namespaces and mounts exist, `pivot_root` has not happened: time for the maker's hooks. It answers with a go.
    Mounted,
    /// The network namespace exists: time to move devices into it. The maker answers with a go.
    Network,
    /// The master of the container's terminal.
    Terminal(OwnedFd),
    /// The number of the listener of a seccomp filter that notifies, in the sender. Only [`Channel::announce`] sends it.
    SeccompListener(RawFd),
    /// Something that the spec allows to go on after.
    Warning(String),
    /// All is done but the wait for start.
    Ready,
    /// It ends because of this.
    Failed(Failure),
    /// The socket was closed.
    Gone,
}

/// One end of the conversation.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The longest message; a longer text is cut.
const LIMIT: usize = 4096;

/// The most descriptors of one [`Channel::give`]: there are fewer hierarchies of control groups.
const GIFTS: usize = 64;

impl Channel {
    /// Both ends, close-on-exec.
    ///
    /// # Errors
    ///
    /// The limit on descriptors.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (one, two) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        Ok((Self(one), Self(two)))
    }

    /// Takes a connected packet socket.
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Its socket.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Lets the other side go on.
    ///
    /// # Errors
    ///
    /// `EPIPE` if it is gone.
    pub fn go(&self) -> io::Result<()> {
        self.send(b"g", None)
    }

    /// Waits for [`Channel::go`].
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the other side is gone.
    pub fn wait(&self) -> io::Result<()> {
        match self.receive()?.0.first() {
            Some(b'g') => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Gives the process what was made after its birth: a text and descriptors. The other side takes it with
    /// [`Channel::take`].
    ///
    /// # Errors
    ///
    /// `EPIPE` if it is gone.
    pub fn give(&self, text: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        sendmsg::<()>(
            self.0.as_raw_fd(),
            &[IoSlice::new(text)],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }

    /// Waits for [`Channel::give`]. The text may be long.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the other side is gone, `ENOBUFS` if not all descriptors have arrived: with one
    /// that is lost, the container would be outside one of its groups.
    pub fn take(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let socket = self.0.as_raw_fd();
        // Its length first; nothing is taken by this look.
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
        let length = loop {
            match nix::sys::socket::recv(socket, &mut [], flags) {
                Ok(0) | Err(nix::Error::ECONNRESET) => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(length) => break length,
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        let mut text = vec![0; length];
        let mut control = nix::cmsg_space!([RawFd; GIFTS]);
        let mut slices = [IoSliceMut::new(&mut text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket, &mut slices, Some(&mut control), flags)?;
        let mut fds = Vec::new();
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = part {
                fds.extend(raw.into_iter().map(crate::sys::received_fd));
            }
        }
        Ok((text, fds))
    }

    /// Sends a report.
    ///
    /// # Errors
    ///
    /// `EPIPE` if the other side is gone.
    pub fn report(&self, report: &Report) -> io::Result<()> {
        match report {
            Report::Sibling(pid) => self.send(&[b"P", &pid.to_ne_bytes()[..]].concat(), None),
            Report::Born(pidfd) => self.send(b"B", Some(pidfd.as_raw_fd())),
            Report::Mounted => self.send(b"M", None),
            Report::Network => self.send(b"D", None),
            Report::Terminal(fd) => self.send(b"T", Some(fd.as_raw_fd())),
            Report::SeccompListener(number) => self.announce(*number),
            Report::Warning(text) => self.send(&[b"W", text.as_bytes()].concat(), None),
            Report::Ready => self.send(b"R", None),
            Report::Failed(failure) => {
                let errno = failure.errno.to_ne_bytes();
                self.send(
                    &[
                        b"E",
                        &[failure.step as u8][..],
                        &errno[..],
                        failure.what.as_bytes(),
                    ]
                    .concat(),
                    None,
                )
            }
            Report::Gone => Ok(()),
        }
    }

    /// Sends [`Report::SeccompListener`] by one write(2): under a filter, no other call may be possible.
    ///
    /// # Errors
    ///
    /// `EPIPE` if the other side is gone.
    pub fn announce(&self, number: RawFd) -> io::Result<()> {
        let packet = [b"N", &number.to_ne_bytes()[..]].concat();
        Ok(nix::unistd::write(&self.0, &packet).map(drop)?)
    }

    /// Waits for the next report.
    ///
    /// # Errors
    ///
    /// `InvalidData` for what no report is.
    pub fn next(&self) -> io::Result<Report> {
        let (packet, fd) = self.receive()?;
        parse(&packet, fd)
    }

    fn send(&self, bytes: &[u8], fd: Option<RawFd>) -> io::Result<()> {
        let bytes = &bytes[..bytes.len().min(LIMIT)];
        let fds: Vec<RawFd> = fd.into_iter().collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        sendmsg::<()>(
            self.0.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }

    fn receive(&self) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
        receive_packet(self.as_fd())
    }
}

/// One packet. What no report is, is an error: the sender may be a process that somebody has taken over.
pub(crate) fn parse(packet: &[u8], fd: Option<OwnedFd>) -> io::Result<Report> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match (packet.split_first(), fd) {
        (None, _) => Ok(Report::Gone),
        (Some((b'P', pid)), _) => Ok(Report::Sibling(i32::from_ne_bytes(
            pid.try_into().map_err(|_| bad())?,
        ))),
        (Some((b'B', _)), Some(pidfd)) => Ok(Report::Born(pidfd)),
        (Some((b'M', _)), _) => Ok(Report::Mounted),
        (Some((b'D', _)), _) => Ok(Report::Network),
        (Some((b'T', _)), Some(fd)) => Ok(Report::Terminal(fd)),
        (Some((b'N', number)), _) => Ok(Report::SeccompListener(RawFd::from_ne_bytes(
            number.try_into().map_err(|_| bad())?,
        ))),
        (Some((b'W', rest)), _) => Ok(Report::Warning(text(rest))),
        (Some((b'R', _)), _) => Ok(Report::Ready),
        (Some((b'E', rest)), _) => {
            let (step, rest) = rest.split_first().ok_or_else(bad)?;
            let (errno, what) = rest.split_first_chunk().ok_or_else(bad)?;
            Ok(Report::Failed(Failure {
                step: Step::from_number(*step).ok_or_else(bad)?,
                errno: i32::from_ne_bytes(*errno),
                what: text(what),
            }))
        }
        _ => Err(bad()),
    }
}

/// One packet and the descriptor that came along; an empty one if the other side is gone.
///
/// # Errors
///
/// As recvmsg(2).
pub fn receive_packet(socket: BorrowedFd<'_>) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let mut buffer = vec![0; LIMIT];
    let mut control = nix::cmsg_space!(RawFd);
    let (length, fd) = loop {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message =
            match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags) {
                Ok(message) => message,
                Err(nix::Error::EINTR) => continue,
                // The other side died with unread data of ours.
                Err(nix::Error::ECONNRESET) => break (0, None),
                Err(error) => return Err(error.into()),
            };
        let mut fd = None;
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = part {
                fd = fds.first().map(|raw| crate::sys::received_fd(*raw));
            }
        }
        break (message.bytes, fd);
    };
    buffer.truncate(length);
    Ok((buffer, fd))
}

/// Sends one packet.
///
/// # Errors
///
/// `EPIPE` if the other side is gone.
pub fn send_packet(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    let slices = [IoSlice::new(bytes)];
    sendmsg::<()>(
        socket.as_raw_fd(),
        &slices,
        &[],
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Sends `fd` over a connected stream socket, with `payload`, as console and seccomp listeners expect it. Gives how much
/// of the payload went with it.
///
/// # Errors
///
/// As sendmsg(2).
pub fn send_fd(socket: BorrowedFd<'_>, fd: BorrowedFd<'_>, payload: &[u8]) -> io::Result<usize> {
    let fds = [fd.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&fds)];
    Ok(sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(payload)],
        &control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{self, Fork};
    use nix::sys::resource::{Resource, setrlimit};
    use nix::sys::wait::{WaitStatus, waitpid};

    #[test]
    fn a_descriptor_that_does_not_arrive_is_an_error() {
        for (full, wanted) in [(false, 3), (true, libc::ENOBUFS)] {
            let (ours, theirs) = Channel::pair().unwrap();
            let null = std::fs::File::open("/dev/null").unwrap();
            ours.give(b"text", &[null.as_fd(); 3]).unwrap();
            // In a process of its own, for its limit.
            let pid = match sys::clone3(0, None).unwrap() {
                Fork::Child => sys::never_return(|| {
                    if full {
                        // All below it are taken, so there is room for this one alone.
                        let free = null.try_clone().unwrap().as_raw_fd();
                        let limit = u64::try_from(free + 1).unwrap();
                        setrlimit(Resource::RLIMIT_NOFILE, limit, limit).unwrap();
                    }
                    sys::exit_now(match theirs.take() {
                        Ok((text, fds)) if text == b"text" => i32::try_from(fds.len()).unwrap(),
                        Ok(_) => 100,
                        Err(error) => error.raw_os_error().unwrap_or(100),
                    })
                }),
                Fork::Parent { pid, .. } => pid,
            };
            let told = waitpid(pid, None).unwrap();
            assert_eq!(told, WaitStatus::Exited(pid, wanted));
        }
    }
}
