//! Makes one system call of a program fail: the n-th of all that it and its children make, in the order they make them.
//!
//! A tracer stops every process at every call; the chosen one is not made, only answered with the error.

use std::collections::BTreeSet;
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
const SPARED: [i64; 21] = [
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

struct Tracer<'a> {
    program: &'a Path,
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
    // It stops itself, so that the tracer misses nothing.
    let mut stopped = Command::new("/bin/sh");
    stopped.args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""]);
    stopped.arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        stopped.current_dir(directory);
    }
    let null = || std::process::Stdio::null();
    #[expect(
        clippy::zombie_processes,
        reason = "the tracer waits for it, as for every process it traces"
    )]
    let child: Child = stopped
        .stdin(null())
        .stdout(null())
        .stderr(null())
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
    let program = PathBuf::from(command.get_program());
    let mut tracer = Tracer {
        program: &program,
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
            left: Vec::new(),
        },
    };
    tracer.attend();
    tracer.outcome
}

impl Tracer<'_> {
    fn attend(&mut self) {
        let end = Instant::now() + super::support::DEADLINE;
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
                // The program itself comes back under the name of its read-only mount.
                let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
                if exe.file_name() == self.program.file_name() {
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

    /// What still lives is no longer traced.
    fn let_go(&mut self) {
        for pid in std::mem::take(&mut self.traced) {
            self.outcome.left.push(pid);
            match ptrace::interrupt(pid) {
                Ok(()) => {}
                Err(Errno::ESRCH) => continue,
                Err(error) => panic!("stop {pid}: {error}"),
            }
            // Whatever it stops at: the kernel takes the request back with any stop.
            while let Err(error) = waitpid(pid, Some(WaitPidFlag::__WALL)) {
                assert_eq!(error, Errno::EINTR, "wait for the stop of {pid}");
            }
            match ptrace::detach(pid, None) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => panic!("let go of {pid}: {error}"),
            }
        }
    }
}
