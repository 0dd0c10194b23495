//! Talking to criu, the program that saves and restores trees of processes.
//!
//! It is run as `criu swrk <descriptor>`: it serves one request on a packet socket, and asks back on the way (hooks, the
//! terminal's master). The command line of criu can do neither of both, and could not tell us the restored process before
//! it runs. The restored process becomes our child (`rst_sibling`).

use std::ffi::{CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::unistd::Pid;
use oci_spec::runtime::Spec;
use prost::Message;

use super::birth::Newborn;
use crate::error::{Failure, OrFail, Step, chain};
use crate::hooks::wait_readable;
use crate::message::{Channel, Report, receive_packet, send_packet};
use crate::sys::{self, Fork};

pub(super) mod external;
pub(super) mod wire;

use wire::{Features, Request, Response, ask};

/// Something with criu failed.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// It is not installed, or not where it was said to be.
    #[error(
        "checkpoint and restore need criu, and there is no program {program:?}{}",
        hint(program)
    )]
    Missing {
        /// Its name or path.
        program: PathBuf,
    },
    /// It cannot be run.
    #[error("run {program}: {what}", program = program.display())]
    Start {
        /// Its path.
        program: PathBuf,
        /// What was tried.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// Its images, or its log.
    #[error("{what} {path}", path = path.display())]
    Files {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The conversation with it.
    #[error("talk to criu")]
    Talk(#[source] io::Error),
    /// It said something else than its protocol knows.
    #[error("understand what criu says")]
    Protocol(#[source] prost::DecodeError),
    /// It could not do what it was asked.
    #[error("criu failed: type {what} errno {errno}{}; log file: {}", told(reason), log.display())]
    Failed {
        /// `DUMP`, `PRE_DUMP`, `RESTORE`.
        what: &'static str,
        /// criu's error number, or zero.
        errno: i32,
        /// The last error in its log, or its message.
        reason: Option<String>,
        /// Its log.
        log: PathBuf,
    },
    /// It ended without a word.
    #[error("criu ended during {what} ({status}){}; log file: {}", told(reason), log.display())]
    Died {
        /// `DUMP`, `PRE_DUMP`, `RESTORE`.
        what: &'static str,
        /// How it ended.
        status: String,
        /// The last error in its log.
        reason: Option<String>,
        /// Its log.
        log: PathBuf,
    },
    /// It, or the kernel, is not able to.
    #[error("criu or this kernel has no {feature}, which {wanted_by} needs")]
    Lacks {
        /// criu's name of it.
        feature: &'static str,
        /// A flag.
        wanted_by: &'static str,
    },
    /// What the flags say is not possible.
    #[error("{what}")]
    Invalid {
        /// Why not.
        what: String,
    },
}

fn hint(program: &Path) -> &'static str {
    if program.as_os_str().as_bytes().contains(&b'/') {
        ""
    } else {
        " in $PATH"
    }
}

fn told(reason: &Option<String>) -> String {
    reason
        .as_ref()
        .map_or_else(String::new, |reason| format!(": {reason}"))
}

/// How criu treats control groups; see criu(8), `--manage-cgroups`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupsMode {
    /// Not at all.
    Ignore,
    /// Restores limits of groups that it makes.
    Soft,
    /// Restores the limits of all groups.
    Full,
    /// Restores them, and demands that no group existed before.
    Strict,
}

impl CgroupsMode {
    fn number(self) -> i32 {
        match self {
            Self::Ignore => 0,
            Self::Soft => 3,
            Self::Full => 4,
            Self::Strict => 5,
        }
    }
}

/// What checkpoint and restore have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CriuOptions {
    /// The program, by path or name; `criu` by default.
    pub program: Option<PathBuf>,
    /// The directory of the images.
    pub images: PathBuf,
    /// The directory of criu's log and other files; by default that of the images.
    pub work: Option<PathBuf>,
    /// Connections over TCP may be open.
    pub tcp_established: bool,
    /// Unix sockets may lead out of the container.
    pub ext_unix_sk: bool,
    /// The container may belong to a session of the caller's.
    pub shell_job: bool,
    /// File locks may be held.
    pub file_locks: bool,
    /// Files may be open that have no name any more but another one (hard links).
    pub link_remap: bool,
    /// The network namespace is made, but what is in it is not saved or restored.
    pub empty_network: bool,
    /// What is in later images already is thrown out of former ones.
    pub auto_dedup: bool,
    /// Memory is sent on demand.
    pub lazy_pages: bool,
    /// How control groups are treated; criu's default if not given.
    pub cgroups: Option<CgroupsMode>,
}

/// Directories that exist.
pub(super) struct Files<'a> {
    pub images: &'a Path,
    pub work: &'a Path,
    /// Its log.
    pub log: PathBuf,
}

impl CriuOptions {
    /// Finds the program.
    pub(super) fn find(&self) -> Result<PathBuf, CriuError> {
        let name = self.program.clone().unwrap_or_else(|| "criu".into());
        let fits = |path: &Path| {
            path.is_file() && sys::c_path(path).is_ok_and(|path| sys::may_execute(&path).is_ok())
        };
        let found = if name.as_os_str().as_bytes().contains(&b'/') {
            Some(name.clone()).filter(|path| fits(path))
        } else {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let mut all = std::env::split_paths(&path).map(|directory| directory.join(&name));
            all.find(|path| fits(path))
        };
        found.ok_or(CriuError::Missing { program: name })
    }

    /// Looks at the directories; with `make` that of the images is made where it is missing.
    pub(super) fn files(&self, make: bool, log: &str) -> Result<Files<'_>, CriuError> {
        let (images, work) = (
            self.images.as_path(),
            self.work.as_ref().unwrap_or(&self.images),
        );
        for (path, make) in [(images, make), (work, self.work.is_some())] {
            if make {
                let mut builder = fs::DirBuilder::new();
                let made = builder.recursive(true).mode(0o700).create(path);
                made.map_err(files("create", path))?;
            }
            let meta = fs::metadata(path).map_err(files("open", path))?;
            if !meta.is_dir() {
                return Err(files("open", path)(io::ErrorKind::NotADirectory.into()));
            }
        }
        Ok(Files {
            images,
            work,
            log: work.join(log),
        })
    }

    /// What every request to save or restore says.
    pub(super) fn request(&self, session: &Session, spec: &Spec) -> wire::Options {
        let name = session.log.file_name().unwrap_or_default();
        wire::Options {
            images_dir_fd: session.images,
            work_dir_fd: Some(session.work),
            log_level: Some(4),
            log_file: Some(name.to_string_lossy().into_owned()),
            notify_scripts: Some(true),
            tcp_established: Some(self.tcp_established),
            ext_unix_sk: Some(self.ext_unix_sk),
            shell_job: Some(self.shell_job),
            file_locks: Some(self.file_locks),
            link_remap: self.link_remap.then_some(true),
            auto_dedup: Some(self.auto_dedup),
            lazy_pages: Some(self.lazy_pages),
            orphan_pts_master: Some(true),
            manage_cgroups: Some(true),
            manage_cgroups_mode: self.cgroups.map(CgroupsMode::number),
            empty_ns: self
                .empty_network
                .then_some(CloneFlags::CLONE_NEWNET.bits() as u32),
            config_file: configuration(spec),
            ..wire::Options::default()
        }
    }
}

/// criu's own configuration file: the annotation names one, or none if it is empty; by default the one that criu's
/// documentation names for runtimes, if it is there.
fn configuration(spec: &Spec) -> Option<String> {
    const DEFAULT: &str = "/etc/criu/runc.conf";
    let named = spec
        .annotations()
        .as_ref()
        .and_then(|all| all.get("org.criu.config"));
    match named {
        Some(path) => Some(path.clone()).filter(|path| !path.is_empty()),
        None => Path::new(DEFAULT).exists().then(|| DEFAULT.to_owned()),
    }
}

pub(super) fn files<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> CriuError + 'a {
    move |source| CriuError::Files {
        what,
        path: path.to_owned(),
        source,
    }
}

/// A criu that waits for its request. Ended when it is dropped.
pub(super) struct Session {
    socket: OwnedFd,
    process: Newborn,
    /// Numbers in its process.
    images: RawFd,
    work: RawFd,
    log: PathBuf,
}

/// How long criu may take to end after its last word.
const PATIENCE: Duration = Duration::from_secs(10);

impl Session {
    /// Runs the program; it inherits `keep` besides the standard streams. `setup` is done by its process before, in a mount
    /// namespace of its own, which ends with it.
    pub fn start(
        program: &Path,
        files: &Files<'_>,
        keep: &[RawFd],
        setup: impl FnOnce() -> Result<(), Failure>,
    ) -> Result<Self, CriuError> {
        let start = |what: &str, source| CriuError::Start {
            program: program.to_owned(),
            what: what.to_owned(),
            source,
        };
        let (told, tell) = Channel::pair().map_err(|error| start("make a socket pair", error))?;
        let flags = CloneFlags::CLONE_NEWNS.bits() as u32;
        let forked =
            sys::clone3(flags.into(), None).map_err(|error| start("make its process", error))?;
        let process = match forked {
            Fork::Child => sys::never_return(|| {
                let failure = become_criu(program, files, keep, &tell, setup);
                // If the maker is gone there is nobody to tell.
                let _untold = tell.report(&Report::Failed(failure));
                sys::exit_now(1)
            }),
            Fork::Parent { pid, pidfd } => Newborn {
                pid,
                pidfd: Some(pidfd),
            },
        };
        drop(tell);
        let failed = |failure: Failure| {
            let source = match failure.errno {
                0 => io::ErrorKind::Other.into(),
                errno => io::Error::from_raw_os_error(errno),
            };
            start(&failure.what, source)
        };
        let socket = match told.next().map_err(CriuError::Talk)? {
            Report::Terminal(socket) => socket,
            Report::Failed(failure) => return Err(failed(failure)),
            _ => return Err(CriuError::Talk(io::ErrorKind::UnexpectedEof.into())),
        };
        let mut numbers = [0; 2];
        for number in &mut numbers {
            match told.next().map_err(CriuError::Talk)? {
                Report::Sibling(raw) => *number = raw,
                _ => return Err(CriuError::Talk(io::ErrorKind::UnexpectedEof.into())),
            }
        }
        match told.next().map_err(CriuError::Talk)? {
            Report::Gone => {}
            Report::Failed(failure) => return Err(failed(failure)),
            _ => return Err(CriuError::Talk(io::ErrorKind::InvalidData.into())),
        }
        let [images, work] = numbers;
        Ok(Self {
            socket,
            process,
            images,
            work,
            log: files.log.clone(),
        })
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        self.process.pid
    }

    /// Asks, answers what it asks back, and gives its answer. `notified` is told the name of a stage, the process that
    /// criu names, and a descriptor that came along.
    pub fn ask<E: From<CriuError>>(
        &mut self,
        request: &Request,
        mut notified: impl FnMut(&str, i32, Option<OwnedFd>) -> Result<(), E>,
    ) -> Result<Response, E> {
        let what = name(request.kind);
        self.send(request)?;
        let mut refused = None;
        loop {
            let (answer, fd) = match self.receive() {
                Ok(Some(received)) => received,
                // It ended, or could not go on, because of us.
                Ok(None) | Err(_) if refused.is_some() => break,
                Ok(None) => {
                    return Err(E::from(CriuError::Died {
                        what,
                        status: self.end(),
                        reason: last_error(&self.log),
                        log: self.log.clone(),
                    }));
                }
                Err(error) => return Err(error.into()),
            };
            if answer.kind == ask::NOTIFY && answer.success {
                let notify = answer.notify.unwrap_or_default();
                let told = notified(notify.script(), notify.pid.unwrap_or_default(), fd);
                let reply = Request {
                    kind: ask::NOTIFY,
                    notify_success: Some(told.is_ok()),
                    ..Request::default()
                };
                if let Err(error) = told {
                    refused.get_or_insert(error);
                }
                match self.send(&reply) {
                    Err(_) if refused.is_some() => break,
                    sent => sent?,
                }
                continue;
            }
            if refused.is_some() {
                break;
            }
            return self.judge(answer, what).map_err(E::from);
        }
        Err(refused.expect("only then it is left"))
    }

    fn judge(&mut self, answer: Response, what: &'static str) -> Result<Response, CriuError> {
        if answer.success {
            return Ok(answer);
        }
        // What it has to say is in its log when it has ended.
        self.end();
        Err(CriuError::Failed {
            what,
            errno: answer.cr_errno.unwrap_or_default(),
            reason: last_error(&self.log).or(answer.cr_errmsg),
            log: self.log.clone(),
        })
    }

    /// Whether criu and the kernel can do this.
    pub fn features(&mut self, wanted: Features) -> Result<Features, CriuError> {
        let request = Request {
            kind: ask::FEATURE_CHECK,
            features: Some(wanted),
            ..Request::default()
        };
        let answer = self.ask(&request, |_, _, _| Ok::<_, CriuError>(()))?;
        Ok(answer.features.unwrap_or_default())
    }

    /// Lets it end by itself, which it does when nobody talks to it any more; after a while it is killed.
    pub fn finish(mut self) {
        self.end();
    }

    fn end(&mut self) -> String {
        // It may have ended already.
        let _closed =
            nix::sys::socket::shutdown(self.socket.as_raw_fd(), nix::sys::socket::Shutdown::Write);
        if let Some(pidfd) = &self.process.pidfd {
            // If that fails it is killed at once.
            let _ended = wait_readable(pidfd.as_fd(), PATIENCE);
        }
        self.process.reap().unwrap_or_default()
    }

    fn send(&self, request: &Request) -> Result<(), CriuError> {
        send_packet(self.socket.as_fd(), &request.encode_to_vec()).map_err(CriuError::Talk)
    }

    /// Waits for a word or its end; false if the end came first. What it has half made may keep its socket open.
    fn has_spoken(&self) -> Result<bool, CriuError> {
        let mut fds = vec![PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let pidfd = self.process.pidfd.as_ref();
        fds.extend(pidfd.map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        loop {
            match poll(&mut fds, PollTimeout::NONE) {
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(CriuError::Talk(error.into())),
                Ok(_) => return Ok(fds[0].any() == Some(true)),
            }
        }
    }

    /// An answer and a descriptor; nothing if it has ended.
    fn receive(&self) -> Result<Option<(Response, Option<OwnedFd>)>, CriuError> {
        if !self.has_spoken()? {
            return Ok(None);
        }
        let (packet, fd) = receive_packet(self.socket.as_fd()).map_err(CriuError::Talk)?;
        if packet.is_empty() {
            return Ok(None);
        }
        let response = Response::decode(packet.as_slice()).map_err(CriuError::Protocol)?;
        Ok(Some((response, fd)))
    }
}

fn name(kind: i32) -> &'static str {
    match kind {
        ask::DUMP => "DUMP",
        ask::PRE_DUMP => "PRE_DUMP",
        ask::RESTORE => "RESTORE",
        ask::FEATURE_CHECK => "FEATURE_CHECK",
        _ => "NOTIFY",
    }
}

/// In the new process: comes back only with a failure.
///
/// criu takes the numbers of directories for those of the process that made its socket, and mounts below them. So that is
/// this process, and it opens them in the mount namespace in which criu will be.
fn become_criu(
    program: &Path,
    files: &Files<'_>,
    keep: &[RawFd],
    tell: &Channel,
    setup: impl FnOnce() -> Result<(), Failure>,
) -> Failure {
    let tried = || -> Result<Failure, Failure> {
        setup()?;
        sys::reset_signals().or_fail(Step::Command, || "reset signals")?;
        sys::close_range_cloexec(3).or_fail(Step::Command, || "close descriptors")?;
        let (socket, theirs) = Channel::pair().or_fail(Step::Command, || "make a socket pair")?;
        let socket = socket.into_fd().into_raw_fd();
        let report = |report| tell.report(&report).or_fail(Step::Channel, || "report");
        report(Report::Terminal(theirs.into_fd()))?;
        let mut kept = vec![socket];
        for path in [files.images, files.work] {
            let directory = fs::File::open(path)
                .or_fail(Step::Command, || format!("open {}", path.display()))?;
            let number = directory.into_raw_fd();
            report(Report::Sibling(number))?;
            kept.push(number);
        }
        for fd in keep.iter().chain(&kept) {
            sys::clear_cloexec(*fd).or_fail(Step::Command, || "keep a descriptor")?;
        }
        let text = |text: &OsStr| {
            CString::new(text.as_bytes()).map_err(|_| Failure::new(Step::Command, "a NUL byte"))
        };
        let path = text(program.as_os_str())?;
        let args = [
            path.clone(),
            c"swrk".to_owned(),
            text(socket.to_string().as_ref())?,
        ];
        let env = std::env::vars_os().map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            text(&name)
        });
        let env = env.collect::<Result<Vec<_>, _>>()?;
        let error = sys::execve(&path, &args, &env);
        Ok(Failure {
            step: Step::Command,
            errno: error.raw_os_error().unwrap_or_default(),
            what: "execute it".to_owned(),
        })
    };
    tried().unwrap_or_else(|failure| failure)
}

/// The last line of a log that criu marks as an error, without its time.
fn last_error(log: &Path) -> Option<String> {
    // At most as much of the end as holds a few hundred lines.
    const TAIL: u64 = 64 << 10;
    let read = || -> io::Result<Vec<u8>> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = match read() {
        Ok(bytes) => bytes,
        Err(error) => return Some(format!("its log cannot be read ({})", chain(&error))),
    };
    error_line(&String::from_utf8_lossy(&bytes))
}

fn error_line(text: &str) -> Option<String> {
    let line = text.lines().rev().find(|line| line.contains("Error ("))?;
    let start = line.find("Error (")?;
    Some(line[start..].trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_log_is_found() {
        let log = "(00.000001) Version: 4.2\n(00.1)  7: Error (criu/mount.c:12): first\n(00.2) Error (criu/cr-dump.c:9): Dumping FAILED.\n(00.3) done\n";
        assert_eq!(
            error_line(log).unwrap(),
            "Error (criu/cr-dump.c:9): Dumping FAILED."
        );
        assert_eq!(error_line("(00.1) all well\n"), None);
    }

    #[test]
    fn a_program_is_looked_for_in_the_path_or_where_it_is_said_to_be() {
        let options = |program: &str| CriuOptions {
            program: Some(program.into()),
            ..CriuOptions::default()
        };
        assert_eq!(options("/bin/sh").find().unwrap(), PathBuf::from("/bin/sh"));
        assert!(options("sh").find().unwrap().is_absolute());
        let error = options("no-such-criu").find().unwrap_err().to_string();
        assert_eq!(
            error,
            "checkpoint and restore need criu, and there is no program \"no-such-criu\" in $PATH"
        );
        // No program, though it exists.
        assert!(options("/etc/passwd").find().is_err());
    }
}
