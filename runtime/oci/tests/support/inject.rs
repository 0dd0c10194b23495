//! Makes one system call of a program fail: the n-th of all that it and its children make, in the order they make them.
//!
//! A tracer stops every process at every call; the chosen one is not made, only answered with the error. Or the tracer only
//! tells which paths a call names, before it is made and when it is over, while the process stands still ([`watch`]).

use std::collections::BTreeSet;
use std::io::{Read, Seek};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Event, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Calls that cannot fail for a reason of the outside, whose failure changes nothing (close), or whose failure is the
/// allocator's and the thread's to handle.
const SPARED: [i64; 28] = [
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_set_tid_address,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_arch_prctl,
    libc::SYS_futex,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
];

/// How it went.
#[derive(Debug)]
pub struct Outcome {
    /// The program's exit code; 128 and the signal.
    pub code: i32,
    /// Calls that could have failed.
    pub calls: usize,
    /// The call that did: its number in the kernel's table.
    pub failed: Option<i64>,
    /// What it printed to standard output.
    pub printed: String,
    /// What it printed to standard error.
    pub said: String,
    /// Processes that were alive after the program's end; those of a container that came to be, or left ones.
    pub left: Vec<Pid>,
}

/// What is done at the chosen call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// It fails with this error.
    Error(i32),
    /// The program is killed before it makes it. Not its children.
    Kill,
}

/// When somebody who watches may act: a process of the program stands still.
#[derive(Debug)]
pub enum Moment<'a> {
    /// Before a call that names paths.
    Before(Pid, &'a [PathBuf]),
    /// After any call.
    After(Pid),
}

type Watch<'a> = &'a mut dyn FnMut(Moment<'_>);

struct Tracer<'a> {
    program: &'a Path,
    watch: Option<Watch<'a>>,
    main: Pid,
    /// Being in a call whose result is to be the error.
    pending: BTreeSet<Pid>,
    inside: BTreeSet<Pid>,
    traced: BTreeSet<Pid>,
    /// Processes that run something else than the program: hooks.
    foreign: BTreeSet<Pid>,
    started: bool,
    at: Option<usize>,
    blow: Blow,
    outcome: Outcome,
}

/// Runs `command` with the call number `at` (from 0) struck; with `None` only counts.
pub fn run(command: &Command, at: Option<usize>, blow: Blow) -> Outcome {
    let program = PathBuf::from(command.get_program());
    trace(command, &program, at, blow, None)
}

/// Runs `command`, and tells of every call that `program`, which it is or becomes, and its children make.
pub fn watch(command: &Command, program: &Path, watch: Watch<'_>) -> Outcome {
    trace(command, program, None, Blow::Kill, Some(watch))
}

fn trace<'a>(
    command: &Command,
    program: &'a Path,
    at: Option<usize>,
    blow: Blow,
    watch: Option<Watch<'a>>,
) -> Outcome {
    // It stops itself, so that the tracer misses nothing.
    let mut stopped = Command::new("/bin/sh");
    stopped.args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""]);
    stopped.arg(command.get_program()).args(command.get_args());
    // cargo's list of directories: looking for libraries there is no step of the program.
    stopped.env_remove("LD_LIBRARY_PATH");
    if let Some(directory) = command.get_current_dir() {
        stopped.current_dir(directory);
    }
    let null = || std::process::Stdio::null();
    let mut printed = tempfile::tempfile().expect("a file for its output");
    let mut said = tempfile::tempfile().expect("a file for its messages");
    #[expect(
        clippy::zombie_processes,
        reason = "the tracer waits for it, as for every process it traces"
    )]
    let child: Child = stopped
        .stdin(null())
        .stdout(printed.try_clone().expect("a descriptor"))
        .stderr(said.try_clone().expect("a descriptor"))
        .spawn()
        .expect("start the program");
    let main = Pid::from_raw(child.id().cast_signed());
    let stop = waitpid(main, Some(WaitPidFlag::WUNTRACED)).expect("wait for the stop");
    assert!(
        matches!(stop, WaitStatus::Stopped(_, Signal::SIGSTOP)),
        "{stop:?}"
    );
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(main, options).expect("trace the program");
    kill(main, Signal::SIGCONT).expect("let the program go on");
    let mut tracer = Tracer {
        program,
        watch,
        main,
        pending: BTreeSet::new(),
        inside: BTreeSet::new(),
        traced: BTreeSet::from([main]),
        foreign: BTreeSet::new(),
        started: false,
        at,
        blow,
        outcome: Outcome {
            code: -1,
            calls: 0,
            failed: None,
            printed: String::new(),
            said: String::new(),
            left: Vec::new(),
        },
    };
    tracer.attend();
    let mut outcome = tracer.outcome;
    for (file, text) in [
        (&mut printed, &mut outcome.printed),
        (&mut said, &mut outcome.said),
    ] {
        file.rewind().expect("rewind");
        file.read_to_string(text).expect("what it printed");
    }
    outcome
}

/// The paths that a call names, by the numbers of the arguments that hold them.
fn paths(pid: Pid, registers: &libc::user_regs_struct) -> Vec<PathBuf> {
    let places: &[usize] = match registers.orig_rax.cast_signed() {
        libc::SYS_open
        | libc::SYS_stat
        | libc::SYS_lstat
        | libc::SYS_access
        | libc::SYS_chdir
        | libc::SYS_chroot
        | libc::SYS_mkdir
        | libc::SYS_rmdir
        | libc::SYS_unlink
        | libc::SYS_readlink
        | libc::SYS_mknod
        | libc::SYS_chmod
        | libc::SYS_chown
        | libc::SYS_lchown
        | libc::SYS_statfs
        | libc::SYS_umount2 => &[0],
        libc::SYS_mount
        | libc::SYS_pivot_root
        | libc::SYS_rename
        | libc::SYS_link
        | libc::SYS_symlink => &[0, 1],
        libc::SYS_openat
        | libc::SYS_openat2
        | libc::SYS_newfstatat
        | libc::SYS_statx
        | libc::SYS_faccessat
        | libc::SYS_faccessat2
        | libc::SYS_mkdirat
        | libc::SYS_mknodat
        | libc::SYS_fchownat
        | libc::SYS_fchmodat
        | libc::SYS_unlinkat
        | libc::SYS_readlinkat
        | libc::SYS_open_tree
        | libc::SYS_mount_setattr => &[1],
        libc::SYS_move_mount | libc::SYS_renameat2 | libc::SYS_linkat => &[1, 3],
        libc::SYS_symlinkat => &[0, 2],
        _ => &[],
    };
    let arguments = [
        registers.rdi,
        registers.rsi,
        registers.rdx,
        registers.r10,
        registers.r8,
        registers.r9,
    ];
    if places.is_empty() {
        return Vec::new();
    }
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("its memory");
    let read = |place: &usize| {
        let mut text = vec![0; libc::PATH_MAX as usize];
        // Shorter at the end of a mapping, and nothing at all for a null pointer.
        let length = memory.read_at(&mut text, arguments[*place]).unwrap_or(0);
        let end = text[..length].iter().position(|byte| *byte == 0);
        text.truncate(end.unwrap_or(length));
        PathBuf::from(std::ffi::OsString::from_vec(text))
    };
    places.iter().map(read).collect()
}

impl Tracer<'_> {
    fn attend(&mut self) {
        let end = Instant::now() + super::DEADLINE;
        let mut over: Option<Instant> = None;
        // Only what this thread traces and has started: the other tests of this program have children, too.
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | WaitPidFlag::WNOHANG;
        while !self.traced.is_empty() {
            match waitpid(None, Some(flags)) {
                Ok(WaitStatus::StillAlive) => {
                    // Children end right after the program, or wait for start.
                    if over.is_some_and(|over| over.elapsed() > Duration::from_millis(50)) {
                        return self.let_go();
                    }
                    assert!(
                        Instant::now() < end,
                        "it hangs after {:?}: {}",
                        self.outcome,
                        self.places()
                    );
                    std::thread::yield_now();
                }
                Ok(WaitStatus::Exited(pid, code)) => self.ended(pid, code, &mut over),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    self.ended(pid, 128 + signal as i32, &mut over);
                }
                Ok(status) => self.stopped(status),
                Err(Errno::EINTR) => {}
                Err(error) => panic!("wait: {error}, with {:?} left", self.traced),
            }
        }
    }

    /// Where the processes are, for the report of a hang.
    fn places(&self) -> String {
        let read = |pid: &Pid, file: &str| {
            std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
        };
        let place = |pid| {
            format!(
                "{pid} in {} call {}",
                read(pid, "wchan"),
                read(pid, "syscall")
            )
        };
        self.traced.iter().map(place).collect()
    }

    fn ended(&mut self, pid: Pid, code: i32, over: &mut Option<Instant>) {
        self.traced.remove(&pid);
        if pid == self.main {
            self.outcome.code = code;
            *over = Some(Instant::now());
        }
    }

    fn stopped(&mut self, status: WaitStatus) {
        let pid = status.pid().expect("a stop has a process");
        self.traced.insert(pid);
        let mut signal = None;
        match status {
            WaitStatus::PtraceSyscall(_) => self.call(pid),
            WaitStatus::PtraceEvent(_, _, event) if event == Event::PTRACE_EVENT_EXEC as i32 => {
                // The program itself may come back from a read-only mount, where it has another name.
                let file =
                    |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
                let exe = file(format!("/proc/{pid}/exe").as_ref());
                if exe.is_ok_and(|exe| file(self.program).is_ok_and(|ours| ours == exe)) {
                    self.started = true;
                    self.foreign.remove(&pid);
                } else {
                    self.foreign.insert(pid);
                }
            }
            WaitStatus::Stopped(_, got) if got != Signal::SIGSTOP && got != Signal::SIGTRAP => {
                signal = Some(got);
            }
            _ => {}
        }
        // It may have been killed in the meantime: its end is reported next.
        match ptrace::syscall(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => panic!("continue {pid}: {error}"),
        }
    }

    /// At the entry of a call and at its exit, in turn.
    fn call(&mut self, pid: Pid) {
        let Ok(mut registers) = ptrace::getregs(pid) else {
            return;
        };
        if !self.inside.insert(pid) {
            self.inside.remove(&pid);
            if let Some(watch) = &mut self.watch {
                watch(Moment::After(pid));
            }
            if self.pending.remove(&pid)
                && let Blow::Error(errno) = self.blow
            {
                registers.rax = i64::from(-errno).cast_unsigned();
                ptrace::setregs(pid, registers).expect("change the result");
            }
            return;
        }
        let number = registers.orig_rax.cast_signed();
        if !self.started || self.foreign.contains(&pid) || SPARED.contains(&number) {
            return;
        }
        if let Some(watch) = &mut self.watch {
            let paths = paths(pid, &registers);
            if !paths.is_empty() {
                watch(Moment::Before(pid, &paths));
            }
        }
        let index = self.outcome.calls;
        self.outcome.calls += 1;
        if self.at != Some(index) {
            return;
        }
        self.outcome.failed = Some(number);
        if self.blow == Blow::Kill {
            kill(self.main, Signal::SIGKILL).expect("kill the program");
            return;
        }
        self.pending.insert(pid);
        registers.orig_rax = u64::MAX;
        ptrace::setregs(pid, registers).expect("skip the call");
    }

    /// What still lives is no longer traced. Whoever stops first goes on first: another may be waiting for it, as a process
    /// does for the one that it makes with vfork(2).
    fn let_go(&mut self) {
        let end = Instant::now() + super::DEADLINE;
        let mut waiting = std::mem::take(&mut self.traced);
        for pid in &waiting {
            match ptrace::interrupt(*pid) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => panic!("stop {pid}: {error}"),
            }
        }
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD | WaitPidFlag::WNOHANG;
        while !waiting.is_empty() {
            match waitpid(None, Some(flags)) {
                Ok(WaitStatus::StillAlive) => {
                    assert!(Instant::now() < end, "{waiting:?} do not stop");
                    std::thread::yield_now();
                }
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => {
                    waiting.remove(&pid);
                }
                Ok(status) => {
                    let pid = status.pid().expect("a stop has a process");
                    waiting.remove(&pid);
                    self.outcome.left.push(pid);
                    let made = [
                        Event::PTRACE_EVENT_CLONE as i32,
                        Event::PTRACE_EVENT_FORK as i32,
                        Event::PTRACE_EVENT_VFORK as i32,
                    ];
                    if let WaitStatus::PtraceEvent(_, _, event) = status
                        && made.contains(&event)
                        && let Ok(child) = ptrace::getevent(pid)
                    {
                        let child = Pid::from_raw(child as i32);
                        if !self.outcome.left.contains(&child) {
                            waiting.insert(child);
                        }
                    }
                    let signal = match status {
                        WaitStatus::Stopped(_, got)
                            if got != Signal::SIGSTOP && got != Signal::SIGTRAP =>
                        {
                            Some(got)
                        }
                        _ => None,
                    };
                    match ptrace::detach(pid, signal) {
                        Ok(()) | Err(Errno::ESRCH) => {}
                        Err(error) => panic!("let go of {pid}: {error}"),
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::ECHILD) => break,
                Err(error) => panic!("wait: {error}, with {waiting:?} left"),
            }
        }
    }
}
