//! The verbs of the life cycle.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use knarr_oci::{ContainerId, CreateError, Created, Io, Runtime, StartError};
use oci_spec::runtime;

use super::{Context, attend, descriptors, parse_id};

/// A container's id.
#[derive(Debug, Args)]
pub(super) struct Id {
    /// The container.
    #[arg(value_parser = parse_id)]
    pub id: ContainerId,
}

/// Making a container.
#[derive(Debug, Args)]
pub(super) struct Create {
    /// The bundle: a directory with config.json.
    #[arg(long, short, default_value = ".", value_name = "DIR")]
    pub bundle: PathBuf,
    /// Socket to which the terminal's master is sent.
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// Socket to which a descriptor of the process (pidfd) is sent.
    #[arg(long, value_name = "SOCKET")]
    pub pidfd_socket: Option<PathBuf>,
    /// File to which the process id is written.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Use chroot instead of pivot_root (a root in an initramfs).
    #[arg(long)]
    pub no_pivot: bool,
    /// Do not make a session keyring.
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Descriptors from 3 up to pass to the container.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub preserve_fds: u32,
    /// The container's new name.
    #[arg(value_parser = parse_id)]
    pub id: ContainerId,
}

/// Making, starting and waiting.
#[derive(Debug, Args)]
pub(super) struct Run {
    #[command(flatten)]
    pub create: Create,
    /// Do not wait for its end.
    #[arg(long, short)]
    pub detach: bool,
    /// Do not delete it after its end.
    #[arg(long)]
    pub keep: bool,
    /// Do not adopt orphaned processes of the container.
    #[arg(long)]
    pub no_subreaper: bool,
}

/// Sending a signal.
#[derive(Debug, Args)]
pub(super) struct Kill {
    /// To all of its processes.
    #[arg(long, short)]
    pub all: bool,
    /// The container.
    #[arg(value_parser = parse_id)]
    pub id: ContainerId,
    /// By name or number.
    #[arg(default_value = "SIGTERM")]
    pub signal: String,
}

/// Removing.
#[derive(Debug, Args)]
pub(super) struct Delete {
    /// Kill it first if it is not stopped; no error if there is none.
    #[arg(long, short)]
    pub force: bool,
    /// The container.
    #[arg(value_parser = parse_id)]
    pub id: ContainerId,
}

/// `create`.
pub(super) fn create(context: &Context, args: &Create) -> anyhow::Result<u8> {
    make(context, args, true, Runtime::create)?;
    Ok(0)
}

/// Makes the container; with `detached` its terminal goes to the console socket.
fn make(
    context: &Context,
    args: &Create,
    detached: bool,
    create: fn(&Runtime, &ContainerId, &Path, &runtime::Spec, Io) -> Result<Created, CreateError>,
) -> anyhow::Result<Created> {
    let loaded = knarr_oci::spec::load(&args.bundle.join("config.json"))?;
    loaded
        .warnings
        .iter()
        .for_each(|warning| context.log.warn(warning));
    let spec = loaded.value;
    let terminal = spec.process().as_ref().and_then(runtime::Process::terminal) == Some(true);
    let io = descriptors::io(
        context,
        terminal,
        args.console_socket.as_deref(),
        detached,
        args.preserve_fds,
    )?;
    let mut created = create(&context.runtime, &args.id, &args.bundle, &spec, io)?;
    created
        .warnings
        .iter()
        .for_each(|warning| context.log.warn(warning));
    context.log.debug(&format!(
        "created container {} with process {}",
        args.id, created.pid
    ));
    let handed = hand_over(
        &mut created,
        &Receivers {
            terminal: args.console_socket.as_deref(),
            pidfd: args.pidfd_socket.as_deref(),
            pid: args.pid_file.as_deref(),
            kind: "standard",
        },
    );
    if let Err(error) = handed {
        context
            .runtime
            .delete(&args.id, true)
            .context("delete the container after a failure")?;
        return Err(error);
    }
    Ok(created)
}

/// Who is told of a new process.
pub(super) struct Receivers<'a> {
    /// Socket for the terminal's master.
    pub terminal: Option<&'a Path>,
    /// Socket for the process's descriptor.
    pub pidfd: Option<&'a Path>,
    /// File for its id.
    pub pid: Option<&'a Path>,
    /// What comes along with the descriptor; runc says `standard` or `setns`.
    pub kind: &'a str,
}

/// The terminal and the process's descriptor to their sockets, the process id to its file.
pub(super) fn hand_over(created: &mut Created, to: &Receivers<'_>) -> anyhow::Result<()> {
    let send = |path: &Path, fd: BorrowedFd<'_>, text: &str| -> anyhow::Result<()> {
        let what = || format!("send {text} to {}", path.display());
        let stream = UnixStream::connect(path).with_context(what)?;
        knarr_oci::send_fd(stream.as_fd(), fd, text.as_bytes()).with_context(what)?;
        Ok(())
    };
    if let Some(path) = to.terminal
        && let Some(master) = created.terminal.take()
    {
        send(path, master.as_fd(), "/dev/ptmx")?;
    }
    if let Some(path) = to.pidfd {
        send(path, created.pidfd.as_fd(), to.kind)?;
    }
    if let Some(path) = to.pid {
        // Whoever waits for the file may read it as soon as it is there.
        let name = path.file_name().context("--pid-file names no file")?;
        let scratch = path.with_file_name(format!(".{}", name.to_string_lossy()));
        let what = || format!("write {}", path.display());
        fs::write(&scratch, created.pid.to_string()).with_context(what)?;
        fs::rename(&scratch, path).with_context(what)?;
    }
    Ok(())
}

/// `start`.
///
/// One without a process is an error, which the specification leaves to us to tell (runtime.md, "Errors"). It is told, but
/// not by the exit code: crun does so, and the OCI validation suite asks for it.
pub(super) fn start(context: &Context, args: &Id) -> anyhow::Result<u8> {
    match context.runtime.start(&args.id) {
        Err(error @ StartError::NoProcess) => context.log.error(&error.to_string()),
        done => done?,
    }
    Ok(0)
}

/// `run`.
pub(super) fn run(context: &Context, args: &Run) -> anyhow::Result<u8> {
    if !args.detach && !args.no_subreaper {
        nix::sys::prctl::set_child_subreaper(true).context("become the subreaper")?;
    }
    let signals = (!args.detach).then(attend::block_signals).transpose()?;
    let mut created = make(context, &args.create, args.detach, Runtime::create_to_start)?;
    if let Err(error) = context.runtime.start_new(&args.create.id, &mut created) {
        context
            .runtime
            .delete(&args.create.id, true)
            .context("delete the container after a failure")?;
        return Err(error.into());
    }
    let Some(signals) = signals else { return Ok(0) };
    let code = attend::until_exit(created, &signals)?;
    if !args.keep {
        for failure in context.runtime.delete(&args.create.id, true)? {
            context.log.warn(&knarr_oci::error::chain(&failure));
        }
    }
    Ok(code)
}

/// `kill`.
pub(super) fn kill(context: &Context, args: &Kill) -> anyhow::Result<u8> {
    let signal =
        signal_number(&args.signal).with_context(|| format!("unknown signal {:?}", args.signal))?;
    context.runtime.kill_number(&args.id, signal, args.all)?;
    Ok(0)
}

/// By number, by name, with or without `SIG`; real-time signals as `RTMIN+n` and `RTMAX-n`.
fn signal_number(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse() {
        return (0..=nix::libc::SIGRTMAX())
            .contains(&number)
            .then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let (min, max) = (nix::libc::SIGRTMIN(), nix::libc::SIGRTMAX());
    let offset = |rest: &str| {
        if rest.is_empty() {
            Some(0)
        } else {
            rest.parse::<i32>().ok()
        }
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return offset(rest.trim_start_matches('+'))
            .map(|offset| min + offset)
            .filter(|number| *number <= max);
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return offset(rest.trim_start_matches('-'))
            .map(|offset| max - offset)
            .filter(|number| *number >= min);
    }
    format!("SIG{name}")
        .parse::<nix::sys::signal::Signal>()
        .ok()
        .map(|signal| signal as i32)
}

/// `delete`.
pub(super) fn delete(context: &Context, args: &Delete) -> anyhow::Result<u8> {
    for failure in context.runtime.delete(&args.id, args.force)? {
        context.log.warn(&knarr_oci::error::chain(&failure));
    }
    Ok(0)
}

/// `pause`.
pub(super) fn pause(context: &Context, args: &Id) -> anyhow::Result<u8> {
    context.runtime.pause(&args.id)?;
    Ok(0)
}

/// `resume`.
pub(super) fn resume(context: &Context, args: &Id) -> anyhow::Result<u8> {
    context.runtime.resume(&args.id)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::signal_number;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(signal_number("9"), Some(9));
        assert_eq!(signal_number("KILL"), Some(9));
        assert_eq!(signal_number("sigterm"), Some(15));
        assert_eq!(signal_number("SIGRTMIN+3"), Some(nix::libc::SIGRTMIN() + 3));
        assert_eq!(signal_number("BOGUS"), None);
        assert_eq!(signal_number("1000"), None);
    }
}
