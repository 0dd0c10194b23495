//! Waiting for a process in the foreground: passes on signals and terminal, reaps orphans.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Context as _;
use knarr_oci::Created;
use knarr_oci::sys;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{read, write};

/// All that can be passed on becomes readable here. Before the container is made, so that nothing is lost; its process
/// unblocks them for itself.
pub(super) fn block_signals() -> anyhow::Result<SignalFd> {
    let mut set = SigSet::all();
    // These tell of mistakes of our own.
    for own in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGILL,
        Signal::SIGFPE,
        Signal::SIGTTOU,
        Signal::SIGTTIN,
    ] {
        set.remove(own);
    }
    set.thread_block().context("block signals")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("open a signalfd")
}

/// Waits until the process has ended; its exit code, or 128 and its signal.
pub(super) fn until_exit(created: Created, signals: &SignalFd) -> anyhow::Result<u8> {
    let terminal = created.terminal.as_ref().map(Proxy::start).transpose()?;
    let mut output_open = terminal.is_some();
    let mut input_open = terminal.is_some();
    loop {
        if let Some(code) = pass_signals(signals, &created, terminal.as_ref())? {
            if let Some(proxy) = &terminal {
                proxy.drain();
            }
            return Ok(code);
        }
        let stdin = io::stdin();
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if let Some(proxy) = &terminal {
            let when = |open| {
                if open {
                    PollFlags::POLLIN
                } else {
                    PollFlags::empty()
                }
            };
            fds.push(PollFd::new(proxy.master.as_fd(), when(output_open)));
            if input_open {
                fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
            }
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for the container"),
        }
        let ready = |index: usize| fds.get(index).and_then(PollFd::any) == Some(true);
        if let Some(proxy) = &terminal {
            if output_open && ready(1) {
                output_open = copy(proxy.master.as_fd(), io::stdout().as_fd());
            }
            if input_open && ready(2) {
                input_open = copy(stdin.as_fd(), proxy.master.as_fd());
            }
        }
    }
}

/// Takes all pending signals; gives the exit code once the process has been reaped.
fn pass_signals(
    signals: &SignalFd,
    created: &Created,
    proxy: Option<&Proxy>,
) -> anyhow::Result<Option<u8>> {
    while let Some(info) = signals.read_signal().context("read a signal")? {
        match Signal::try_from(info.ssi_signo as i32) {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(created)? {
                    return Ok(Some(code));
                }
            }
            Ok(Signal::SIGWINCH) => proxy.iter().for_each(|proxy| proxy.resize()),
            // What Go's runtime uses for itself, and what a broken output causes here.
            Ok(Signal::SIGURG | Signal::SIGPIPE) => {}
            _ => match sys::pidfd_send_signal(created.pidfd.as_fd(), info.ssi_signo as i32) {
                Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => {}
                done => done.context("pass on a signal")?,
            },
        }
    }
    reap(created)
}

/// Reaps whatever has ended: as subreaper we also get the container's orphans.
fn reap(created: &Created) -> anyhow::Result<Option<u8>> {
    loop {
        let code = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == created.pid => code,
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == created.pid => 128 + signal as i32,
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("reap a process"),
        };
        return Ok(Some(u8::try_from(code).unwrap_or(255)));
    }
}

/// Our terminal, in raw mode, and the container's.
struct Proxy<'a> {
    master: &'a OwnedFd,
    before: Option<Termios>,
}

impl<'a> Proxy<'a> {
    fn start(master: &'a OwnedFd) -> anyhow::Result<Self> {
        let stdin = io::stdin();
        let mut before = None;
        if stdin.is_terminal() {
            let saved = tcgetattr(&stdin).context("read the terminal's mode")?;
            let mut raw = saved.clone();
            cfmakeraw(&mut raw);
            // It goes on to begin lines where they begin: the container's does not (`Stdio::Copied`).
            raw.output_flags |= OutputFlags::OPOST;
            tcsetattr(&stdin, SetArg::TCSANOW, &raw).context("set the terminal to raw mode")?;
            before = Some(saved);
        }
        let proxy = Self { master, before };
        proxy.resize();
        Ok(proxy)
    }

    /// If ours is no terminal, the container's keeps its size.
    fn resize(&self) {
        if let Ok((rows, columns)) = sys::window_size(io::stdin().as_fd()) {
            let _closed = sys::set_window_size(self.master.as_fd(), rows, columns);
        }
    }

    /// What was written before the end, and not read yet.
    fn drain(&self) {
        loop {
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::ZERO) {
                Ok(count) if count > 0 && copy(self.master.as_fd(), io::stdout().as_fd()) => {}
                _ => return,
            }
        }
    }
}

impl Drop for Proxy<'_> {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _closed = tcsetattr(io::stdin(), SetArg::TCSANOW, before);
        }
    }
}

/// Copies what is there; false at the end of either side (a terminal's master says `EIO` then).
fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> bool {
    let mut buffer = [0; 8192];
    let Ok(length @ 1..) = read(from, &mut buffer) else {
        return false;
    };
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        match write(to, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
    true
}
