//! The settings of one process, applied by itself before it becomes the user's program. For create and exec alike.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use nix::unistd::Pid;
use oci_spec::runtime::{
    ExecCPUAffinity, IOPriorityClass, LinuxMemoryPolicy, LinuxPersonality, LinuxPersonalityDomain,
    LinuxSchedulerFlag, LinuxSchedulerPolicy, MemoryPolicyFlagType, MemoryPolicyModeType,
    PosixRlimitType, Process, Scheduler,
};

use crate::capability::{SYS_ADMIN, Wanted};
use crate::error::{Failure, OrFail, Step};
use crate::message::{Channel, Report};
use crate::runtime::ListenFds;
use crate::seccomp::Program;
use crate::sys::{self, SchedAttr};

/// Standard streams of a new process.
#[derive(Debug, Default)]
pub enum Stdio {
    /// The caller's own.
    #[default]
    Inherit,
    /// These.
    Fds {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// A new terminal, whose master comes back to the caller.
    Terminal,
    /// The same for a caller that copies to and from streams of its own: lines end as the program has written them, because
    /// those streams are no terminal, or one that ends lines by itself. As with runc in the foreground.
    Copied,
}

impl Stdio {
    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal | Self::Copied)
    }
}

/// All that a new process needs besides its [`Process`].
pub(crate) struct Settings<'a> {
    pub process: &'a Process,
    pub stdio: &'a Stdio,
    pub seccomp: Option<&'a Program>,
    pub personality: Option<&'a LinuxPersonality>,
    pub memory_policy: Option<&'a LinuxMemoryPolicy>,
    /// Descriptors from 3 up that the program inherits.
    pub preserve_fds: u32,
    /// Which of these are for socket activation.
    pub listen: Option<&'a ListenFds>,
    /// The name of a session keyring to make.
    pub keyring: Option<String>,
    /// The AppArmor profile.
    pub apparmor: Option<&'a str>,
    /// The processors of an exec; a container's first process has none (config.md, "execCPUAffinity").
    pub affinity: Option<&'a ExecCPUAffinity>,
}

/// A process that has all but its last privileges and its program.
pub(crate) struct Armed<'a> {
    settings: &'a Settings<'a>,
    wanted: Wanted,
    program: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    /// Privilege held on to for the seccomp filter.
    keep: u64,
}

impl<'a> Settings<'a> {
    /// Standard streams: `terminal` if the process has one.
    pub fn connect_stdio(&self, terminal: Option<&OwnedFd>) -> Result<(), Failure> {
        let what = || "set up standard streams";
        match (self.stdio, terminal) {
            (_, Some(terminal)) => {
                sys::set_controlling_terminal(terminal.as_fd())
                    .or_fail(Step::Terminal, || "take the terminal")?;
                (0..3)
                    .try_for_each(|target| sys::dup_to(terminal.as_fd(), target))
                    .or_fail(Step::Terminal, what)
            }
            (
                Stdio::Fds {
                    stdin,
                    stdout,
                    stderr,
                },
                None,
            ) => {
                // Copies above the standard three first: one of the given may be one of those.
                let copies = [stdin, stdout, stderr].map(|fd| sys::inherited_fd(fd.as_raw_fd()));
                for (target, copy) in copies.into_iter().enumerate() {
                    let copy = copy.or_fail(Step::Terminal, what)?;
                    sys::dup_to(copy.as_fd(), target as RawFd).or_fail(Step::Terminal, what)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Size and owner of a new terminal; opens its slave.
    pub fn open_slave(&self, master: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
        let slave = sys::pty_peer(master).or_fail(Step::Terminal, || "open the terminal")?;
        if matches!(self.stdio, Stdio::Copied) {
            use nix::sys::termios::{OutputFlags, SetArg, tcgetattr, tcsetattr};
            let what = || "set the terminal's mode";
            let mut mode = tcgetattr(&slave).or_fail(Step::Terminal, what)?;
            mode.output_flags.remove(OutputFlags::ONLCR);
            tcsetattr(&slave, SetArg::TCSANOW, &mode).or_fail(Step::Terminal, what)?;
        }
        if let Some(size) = self.process.console_size() {
            let clamp = |value: u64| u16::try_from(value).unwrap_or(u16::MAX);
            sys::set_window_size(master, clamp(size.height()), clamp(size.width()))
                .or_fail(Step::Terminal, || "set the terminal's size")?;
        }
        let owner = nix::unistd::Uid::from_raw(self.process.user().uid());
        match nix::unistd::fchown(&slave, Some(owner), None) {
            // An id that the user namespace does not map, or a filesystem that refuses: the terminal works for root.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::EPERM | nix::Error::EROFS) => Ok(slave),
            Err(error) => Err(error).or_fail(Step::Terminal, || "give the terminal to its user"),
        }
    }

    /// Becomes the user, with its capabilities, in its directory, and finds its program.
    pub fn arm(&'a self, channel: &Channel) -> Result<Armed<'a>, Failure> {
        let process = self.process;
        sys::reset_signals().or_fail(Step::Privileges, || "reset signals")?;
        self.schedule(channel)?;
        if let Some(name) = &self.keyring {
            self.join_keyring(name, channel)?;
        }
        self.label()?;
        for warning in raise_limits(process, Pid::from_raw(0))? {
            channel
                .report(&Report::Warning(warning))
                .or_fail(Step::Channel, || "report a warning")?;
        }
        let early = enter_directory(process);
        let nnp = process.no_new_privileges() == Some(true);
        if nnp {
            sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)
                .map(drop)
                .or_fail(Step::Privileges, || "set no_new_privs")?;
        }
        let held = sys::capget()
            .or_fail(Step::Privileges, || "read capabilities")?
            .permitted;
        let (wanted, warnings) = Wanted::from_spec(process.capabilities().as_ref()).limit_to(held);
        for warning in warnings {
            channel
                .report(&Report::Warning(warning))
                .or_fail(Step::Channel, || "report a warning")?;
        }
        wanted.drop_bounding()?;
        give_streams_to(process.user().uid())?;
        become_user(process)?;
        let keep = if self.seccomp.is_some() && !nnp {
            SYS_ADMIN & held
        } else {
            0
        };
        wanted.apply(keep)?;
        // As root a directory can be closed that the user may enter (a network file system), and the other way round.
        if early.is_err() {
            enter_directory(process)?;
        }
        check_directory()?;
        let mut env = environment(process)?;
        if let Some(listen) = self.listen {
            announce(listen, &mut env)?;
        }
        let args = strings(process.args().as_deref().unwrap_or_default())?;
        // Without a process in the configuration there is nothing to find: start refuses then.
        let program = if args.is_empty() {
            CString::default()
        } else {
            find_program(process, &env)?
        };
        Ok(Armed {
            settings: self,
            wanted,
            program,
            args,
            env,
            keep,
        })
    }

    fn schedule(&self, channel: &Channel) -> Result<(), Failure> {
        // Which processors our caller happens to run on is no matter of the container's: its group says where it may run.
        // Where a filter forbids it, it can run nevertheless.
        if self.affinity.is_none()
            && let Err(error) = sys::any_processor()
        {
            let warning = format!("the processors of the caller remain the container's: {error}");
            channel
                .report(&Report::Warning(warning))
                .or_fail(Step::Channel, || "report a warning")?;
        }
        if let Some(scheduler) = self.process.scheduler() {
            set_scheduler(scheduler)?;
        }
        if let Some(priority) = self.process.io_priority() {
            let class = match priority.class() {
                IOPriorityClass::IoprioClassRt => 1,
                IOPriorityClass::IoprioClassBe => 2,
                IOPriorityClass::IoprioClassIdle => 3,
            };
            let level = u16::try_from(priority.priority())
                .ok()
                .filter(|level| *level < 8);
            let level = level
                .ok_or_else(|| Failure::new(Step::Limits, "ioPriority.priority is not 0 to 7"))?;
            sys::ioprio_set(class, level).or_fail(Step::Limits, || "set ioPriority")?;
        }
        if let Some(personality) = self.personality {
            set_personality(personality)?;
        }
        if let Some(policy) = self.memory_policy {
            set_memory_policy(policy)?;
        }
        Ok(())
    }

    fn join_keyring(&self, name: &str, channel: &Channel) -> Result<(), Failure> {
        let name =
            CString::new(name).map_err(|_| Failure::new(Step::Privileges, "keyring name"))?;
        match sys::join_session_keyring(&name) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                Ok(())
            }
            // The container shares the caller's keyring then: tell, but a full quota must not keep containers from running.
            Err(error) if error.raw_os_error() == Some(libc::EDQUOT) => {
                let text = "no session keyring of its own: the quota on keys is used up".to_owned();
                channel
                    .report(&Report::Warning(text))
                    .or_fail(Step::Channel, || "report a warning")
            }
            done => done.or_fail(Step::Privileges, || "make a session keyring"),
        }
    }

    fn label(&self) -> Result<(), Failure> {
        let given = |label: &Option<String>| label.clone().filter(|label| !label.is_empty());
        let writes = [
            (
                self.apparmor.map(|profile| format!("exec {profile}")),
                "attr/apparmor/exec",
                "AppArmor profile",
            ),
            (
                given(self.process.selinux_label()),
                "attr/exec",
                "SELinux label",
            ),
        ];
        for (value, file, what) in writes {
            let Some(value) = value else { continue };
            write_proc_self(file, &value)
                .or_fail(Step::Label, || format!("set the {what} {value:?}"))?;
        }
        Ok(())
    }
}

impl Armed<'_> {
    /// Its environment.
    pub fn env(&self) -> &[CString] {
        &self.env
    }

    /// Gives up the last privileges and becomes the user's program. `program` comes back only as a failure.
    pub fn execute(self, channel: &Channel) -> Result<Infallible, Failure> {
        let first = 3u32
            .checked_add(self.settings.preserve_fds)
            .ok_or_else(|| {
                Failure::new(Step::Command, "more descriptors to preserve than can be")
            })?;
        sys::close_range_cloexec(first).or_fail(Step::Command, || "close descriptors")?;
        for fd in 3..first {
            keep_open(fd as RawFd)?;
        }
        if let Some(list) = self
            .settings
            .affinity
            .and_then(|affinity| affinity.cpu_affinity_final().as_deref())
            .filter(|list| !list.is_empty())
        {
            set_affinity(list)?;
        }
        set_limits(self.settings.process)?;
        // As few system calls as possible from here on: the filter may forbid any of them.
        if let Some(program) = self.settings.seccomp {
            let listener = sys::seccomp_set_filter(program.instructions(), program.flags())
                .or_fail(Step::Seccomp, || "install the seccomp filter")?;
            if let Some(listener) = listener {
                channel
                    .announce(listener.as_raw_fd())
                    .or_fail(Step::Seccomp, || "hand over the seccomp listener")?;
                channel
                    .wait()
                    .or_fail(Step::Seccomp, || "wait for the seccomp agent")?;
            }
            if self.keep != 0 {
                self.wanted.apply(0)?;
            }
        }
        let error = sys::execve(&self.program, &self.args, &self.env);
        let shown = self.program.to_string_lossy().into_owned();
        Err(error).or_fail(Step::Execute, || format!("execute {shown}"))
    }
}

/// Raises hard limits where that is wanted, which takes `CAP_SYS_RESOURCE`, so it comes before privileges are dropped.
/// Without it they stay where they are, with a warning each. Lowering waits for [`set_limits`].
pub(crate) fn raise_limits(process: &Process, pid: Pid) -> Result<Vec<String>, Failure> {
    let mut warnings = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        let what = || format!("raise {}", limit.typ());
        let resource = resource(limit.typ());
        let (soft, hard) = sys::prlimit(pid, resource, None).or_fail(Step::Limits, what)?;
        if limit.hard() <= hard {
            continue;
        }
        match sys::prlimit(pid, resource, Some((soft, limit.hard()))) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                warnings.push(format!(
                    "{} stays at {hard}: not permitted to raise it",
                    limit.typ()
                ));
            }
            done => drop(done.or_fail(Step::Limits, what)?),
        }
    }
    Ok(warnings)
}

/// Sets all limits as wanted, as far as the hard limits allow. Last, because a low limit on descriptors would hinder us.
fn set_limits(process: &Process) -> Result<(), Failure> {
    for limit in process.rlimits().iter().flatten() {
        let what = || format!("set {}", limit.typ());
        let (own, resource) = (Pid::from_raw(0), resource(limit.typ()));
        let (_, hard) = sys::prlimit(own, resource, None).or_fail(Step::Limits, what)?;
        let hard = hard.min(limit.hard());
        sys::prlimit(own, resource, Some((limit.soft().min(hard), hard)))
            .map(drop)
            .or_fail(Step::Limits, what)?;
    }
    Ok(())
}

fn keep_open(fd: RawFd) -> Result<(), Failure> {
    match sys::clear_cloexec(fd) {
        Ok(()) => Ok(()),
        Err(error) => Err(error).or_fail(Step::Command, || {
            format!("keep descriptor {fd}, which is to be preserved")
        }),
    }
}

/// Writes to a file of this process in the host's procfs, through a handle that nothing can be mounted over.
pub(crate) fn write_proc_self(file: &str, value: &str) -> io::Result<()> {
    use pathrs::flags::OpenFlags;
    use pathrs::procfs::{ProcfsBase, ProcfsHandle};
    use std::io::Write;
    let flags = OpenFlags::O_WRONLY | OpenFlags::O_CLOEXEC;
    let proc = ProcfsHandle::new().map_err(crate::rootfs::path_error)?;
    let mut file = proc
        .open(ProcfsBase::ProcSelf, file, flags)
        .map_err(crate::rootfs::path_error)?;
    file.write_all(value.as_bytes())
}

fn enter_directory(process: &Process) -> Result<(), Failure> {
    let cwd = process.cwd();
    nix::unistd::chdir(cwd.as_path()).or_fail(Step::WorkingDirectory, || {
        format!("enter {}", cwd.display())
    })
}

/// A directory outside of the root has no absolute name (CVE-2024-21626: cwd through a leaked descriptor).
fn check_directory() -> Result<(), Failure> {
    let cwd = sys::getcwd().or_fail(Step::WorkingDirectory, || "tell the working directory")?;
    if cwd.first() != Some(&b'/') {
        return Err(Failure::new(
            Step::WorkingDirectory,
            "it lies outside of the container's root",
        ));
    }
    Ok(())
}

/// Lets the user open its standard streams by name (`/dev/stdout`): pipes, sockets and files of our caller are the
/// caller's. Only the user changes, as with runc; devices (a terminal, `/dev/null`) and files that are only read stay as
/// they are, for those are not made for the container.
fn give_streams_to(uid: u32) -> Result<(), Failure> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::stat::{SFlag, fstat};
    let what = || "give the standard streams to the user";
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let status = match fstat(stream) {
            // A caller may leave it closed.
            Err(nix::Error::EBADF) => continue,
            done => done.or_fail(Step::User, what)?,
        };
        let kind = SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT;
        let flags = fcntl(stream, FcntlArg::F_GETFL).or_fail(Step::User, what)?;
        let only_read = OFlag::from_bits_truncate(flags) & OFlag::O_ACCMODE == OFlag::O_RDONLY;
        let not_ours =
            kind == SFlag::S_IFCHR || kind == SFlag::S_IFBLK || kind == SFlag::S_IFREG && only_read;
        if status.st_uid == uid || not_ours {
            continue;
        }
        match nix::unistd::fchown(stream, Some(nix::unistd::Uid::from_raw(uid)), None) {
            // The user namespace does not map its owner, or its file system is read-only: then who made it has to care.
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::EPERM | nix::Error::EROFS) => {}
            Err(error) => Err(error).or_fail(Step::User, what)?,
        }
    }
    Ok(())
}

fn become_user(process: &Process) -> Result<(), Failure> {
    let user = process.user();
    let mask = user.umask().unwrap_or(sys::MODE_MASK);
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mask));
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    match sys::setgroups(groups) {
        // A user namespace can forbid it; then only asking for groups is a failure.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && groups.is_empty() => {}
        done => done.or_fail(Step::User, || "set additional groups")?,
    }
    sys::setresgid(user.gid()).or_fail(Step::User, || format!("become group {}", user.gid()))?;
    if user.uid() != 0 {
        sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0)
            .map(drop)
            .or_fail(Step::User, || "keep capabilities")?;
    }
    sys::setresuid(user.uid()).or_fail(Step::User, || format!("become user {}", user.uid()))
}

pub(crate) fn strings(list: &[String]) -> Result<Vec<CString>, Failure> {
    let convert = |text: &String| {
        CString::new(text.as_str())
            .map_err(|_| Failure::new(Step::Command, format!("{text:?} holds a NUL")))
    };
    list.iter().map(convert).collect()
}

/// The environment as given, each name once (the last one counts), and `HOME` if nobody set it.
pub(crate) fn environment(process: &Process) -> Result<Vec<CString>, Failure> {
    let given = process.env().as_deref().unwrap_or_default();
    let name = |pair: &String| {
        pair.split_once('=')
            .map_or_else(|| pair.clone(), |(name, _)| name.to_owned())
    };
    let mut chosen: Vec<&String> = Vec::with_capacity(given.len());
    for pair in given {
        match chosen.iter().position(|old| name(old) == name(pair)) {
            Some(index) => chosen[index] = pair,
            None => chosen.push(pair),
        }
    }
    let mut env = strings(&chosen.into_iter().cloned().collect::<Vec<_>>())?;
    if !env
        .iter()
        .any(|pair| pair.as_bytes().starts_with(b"HOME=") && pair.as_bytes().len() > 5)
    {
        env.retain(|pair| pair.as_bytes() != b"HOME=");
        let home = home(process.user().uid()).unwrap_or_else(|| "/".to_owned());
        env.extend(strings(&[format!("HOME={home}")])?);
    }
    Ok(env)
}

/// Tells the program of its descriptors, in words that are meant for it: with its id in the PID namespace that it lives in.
/// What the configuration says of others is gone.
fn announce(listen: &ListenFds, env: &mut Vec<CString>) -> Result<(), Failure> {
    let own = nix::unistd::getpid();
    env.retain(|pair| !pair.as_bytes().starts_with(b"LISTEN_"));
    let names = listen.names.as_ref();
    let names = names.map(|names| [b"LISTEN_FDNAMES=", &names[..]].concat());
    let numbers = [
        format!("LISTEN_FDS={}", listen.count).into_bytes(),
        format!("LISTEN_PID={own}").into_bytes(),
    ];
    for pair in numbers.into_iter().chain(names) {
        let pair = CString::new(pair).map_err(|_| Failure::new(Step::Command, "it holds a NUL"))?;
        env.push(pair);
    }
    Ok(())
}

/// The home directory in the container's `/etc/passwd`; a file of the image, so its size is bounded, and it may be a FIFO
/// or a terminal, for which nobody waits.
fn home(uid: u32) -> Option<String> {
    use std::io::Read;
    use std::os::unix::fs::OpenOptionsExt;
    let mut text = Vec::new();
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open("/etc/passwd")
        .ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    file.take(1 << 20).read_to_end(&mut text).ok()?;
    home_in(&String::from_utf8_lossy(&text), uid)
}

pub(crate) fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let id: u32 = fields.nth(2)?.parse().ok()?;
        let home = fields.nth(2)?;
        (id == uid && !home.is_empty()).then(|| home.to_owned())
    })
}

/// Finds the program now, so that a wrong name is known at create.
fn find_program(process: &Process, env: &[CString]) -> Result<CString, Failure> {
    let missing = || Failure {
        step: Step::Command,
        errno: libc::ENOENT,
        what: "no program is given".into(),
    };
    let name = process
        .args()
        .as_ref()
        .and_then(|args| args.first())
        .ok_or_else(missing)?;
    let text =
        |path: &str| CString::new(path).map_err(|_| Failure::new(Step::Command, "it holds a NUL"));
    let fail = |error: io::Error| {
        let errno = error.raw_os_error().unwrap_or(libc::ENOENT);
        Failure {
            step: Step::Command,
            errno,
            what: format!("find {name}"),
        }
    };
    if name.is_empty() {
        return Err(missing());
    }
    if name.contains('/') {
        let path = text(name)?;
        executable(&path).map_err(fail)?;
        return Ok(path);
    }
    let search = env
        .iter()
        .find_map(|pair| pair.as_bytes().strip_prefix(b"PATH="))
        .unwrap_or_default();
    let mut denied = None;
    for directory in search.split(|byte| *byte == b':') {
        // An empty entry means the working directory, as everywhere.
        let directory = if directory.is_empty() {
            &b"."[..]
        } else {
            directory
        };
        let candidate = std::path::Path::new(std::ffi::OsStr::from_bytes(directory)).join(name);
        let Ok(path) = sys::c_path(&candidate) else {
            continue;
        };
        match executable(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => denied = Some(error),
            Err(_) => {}
        }
    }
    Err(fail(denied.unwrap_or_else(|| {
        io::Error::from_raw_os_error(libc::ENOENT)
    })))
}

fn executable(path: &std::ffi::CStr) -> io::Result<()> {
    sys::may_execute(path)?;
    match nix::sys::stat::stat(path)?.st_mode & libc::S_IFMT {
        libc::S_IFREG => Ok(()),
        libc::S_IFDIR => Err(io::Error::from_raw_os_error(libc::EISDIR)),
        _ => Err(io::Error::from_raw_os_error(libc::EACCES)),
    }
}

fn set_scheduler(scheduler: &Scheduler) -> Result<(), Failure> {
    let attr = scheduling(scheduler)?;
    sys::sched_setattr(&attr).or_fail(Step::Limits, || "set the scheduler")
}

pub(crate) fn scheduling(scheduler: &Scheduler) -> Result<SchedAttr, Failure> {
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    let attr = SchedAttr {
        policy,
        flags: scheduler
            .flags()
            .iter()
            .flatten()
            .map(flag)
            .fold(0, |all, flag| all | flag),
        nice: scheduler.nice().unwrap_or(0),
        priority: u32::try_from(scheduler.priority().unwrap_or(0))
            .map_err(|_| Failure::new(Step::Limits, "scheduler.priority is negative"))?,
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
        ..SchedAttr::default()
    };
    Ok(attr)
}

fn set_personality(personality: &LinuxPersonality) -> Result<(), Failure> {
    if personality
        .flags()
        .as_ref()
        .is_some_and(|flags| !flags.is_empty())
    {
        return Err(Failure::new(
            Step::Limits,
            "personality flags are not supported by the specification",
        ));
    }
    let domain = match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    };
    nix::sys::personality::set(nix::sys::personality::Persona::from_bits_retain(domain))
        .map(drop)
        .or_fail(Step::Limits, || "set the personality")
}

fn set_memory_policy(policy: &LinuxMemoryPolicy) -> Result<(), Failure> {
    let mode = match policy.mode() {
        MemoryPolicyModeType::MpolDefault => 0,
        MemoryPolicyModeType::MpolPreferred => 1,
        MemoryPolicyModeType::MpolBind => 2,
        MemoryPolicyModeType::MpolInterleave => 3,
        MemoryPolicyModeType::MpolLocal => 4,
        MemoryPolicyModeType::MpolPreferredMany => 5,
        MemoryPolicyModeType::MpolWeightedInterleave => 6,
    };
    let flag = |flag: &MemoryPolicyFlagType| match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
    };
    let flags = policy
        .flags()
        .iter()
        .flatten()
        .map(flag)
        .fold(0, |all, flag| all | flag);
    let mask = match policy.nodes().as_deref() {
        Some(list) => parse_list(list)
            .ok_or_else(|| Failure::new(Step::Limits, format!("memory nodes {list:?}")))?,
        None => Vec::new(),
    };
    sys::set_mempolicy(mode | flags, &mask).or_fail(Step::Limits, || "set the memory policy")
}

/// Lets this process run on the processors of `list`, as the kernel writes it.
pub(crate) fn set_affinity(list: &str) -> Result<(), Failure> {
    let bad = || Failure::new(Step::Limits, format!("processor list {list:?}"));
    let mut set = nix::sched::CpuSet::new();
    let mask = parse_list(list).ok_or_else(bad)?;
    for cpu in (0..mask.len() * 64).filter(|cpu| mask[cpu / 64] >> (cpu % 64) & 1 == 1) {
        set.set(cpu).map_err(|_| bad())?;
    }
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
        .or_fail(Step::Limits, || format!("run on processors {list}"))
}

/// `0-2,7` as a bit mask of at most 4096 bits: neither a typing mistake nor a list that says the same again and again eats
/// the memory.
pub(crate) fn parse_list(list: &str) -> Option<Vec<u64>> {
    let mut mask = Vec::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= 4096 {
            return None;
        }
        if mask.len() <= last / 64 {
            mask.resize(last / 64 + 1, 0);
        }
        for bit in first..=last {
            mask[bit / 64] |= 1 << (bit % 64);
        }
    }
    Some(mask)
}

fn resource(limit: PosixRlimitType) -> u32 {
    match limit {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_list("0-2,7"), Some(vec![0b1000_0111]));
        assert_eq!(parse_list("65,64"), Some(vec![0, 3]));
        assert_eq!(parse_list(""), Some(Vec::new()));
        assert_eq!(parse_list("3-1"), None);
        assert_eq!(parse_list("x"), None);
        assert_eq!(parse_list("0-99999999"), None);
    }

    #[test]
    fn home_comes_from_passwd_by_uid() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad\nuser:x:1000:1000::/home/user:/bin/sh\n";
        assert_eq!(home_in(passwd, 1000).as_deref(), Some("/home/user"));
        assert_eq!(home_in(passwd, 7), None);
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let process: Process = serde_json::from_str(
            r#"{"user":{"uid":0,"gid":0},"cwd":"/","env":["A=1","HOME=/h","A=2"]}"#,
        )
        .unwrap();
        let env = environment(&process).unwrap();
        let text: Vec<_> = env.iter().map(|pair| pair.to_str().unwrap()).collect();
        assert_eq!(text, ["A=2", "HOME=/h"]);
        // An empty home is none, whatever was said before.
        let process: Process = serde_json::from_str(
            r#"{"user":{"uid":54321,"gid":0},"cwd":"/","env":["HOME=/h","HOME="]}"#,
        )
        .unwrap();
        let env = environment(&process).unwrap();
        assert_eq!(env, [c"HOME=/".to_owned()]);
    }
}
