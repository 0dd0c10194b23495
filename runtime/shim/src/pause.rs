//! The first process of a PID namespace that a pod's containers share: it reaps, and is there.
//!
//! Kubernetes shows it as `/pause`. It is this program, executed anew by the shim inside the namespace, so that nothing of the
//! shim's is in its memory. The containers see it, so it has nothing that is of use to them: the pod's own namespaces, an empty
//! root, no descriptors, no capabilities, a user that is nobody's. It ends on `SIGTERM` and `SIGINT`, as Kubernetes' pause does,
//! and when the shim ends; whatever else runs in the namespace ends with it (pid_namespaces(7)).

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use knarr_oci::cgroup::{Group, Layout};
use knarr_oci::sys::{self, CapSets, Fork};
use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, pivot_root};
use rustix::pipe::PipeFlags;

use crate::protocol::SharePids;

/// The name under which this program is such a process.
pub const NAME: &str = "/pause";

/// Kubernetes' own pause image runs as this user.
const NOBODY: u32 = 65535;

/// What is left of memory goes to the containers before this, as with containerd (`defaultSandboxOOMAdj`).
const OOM_SCORE: &str = "-998";

/// What it says when all is done; anything else is why not.
const READY: &str = "ready";

/// Why there is no such process.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// A system call.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// Its group.
    #[error("the group of the pod's first process")]
    Cgroup(#[from] knarr_oci::cgroup::CgroupError),
    /// It could not do what it should.
    #[error("the pod's first process: {reason}")]
    Settle {
        /// What it said.
        reason: String,
    },
}

fn failed<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> PauseError {
    move |source| PauseError::System {
        what,
        source: source.into(),
    }
}

/// Makes the namespace and its first process, a child of this one; gives also the namespace.
pub fn start(wanted: &SharePids) -> Result<(Pid, OwnedFd), PauseError> {
    let mut namespaces = Vec::new();
    for (path, kind) in [
        (&wanted.network, CloneFlags::CLONE_NEWNET),
        (&wanted.ipc, CloneFlags::CLONE_NEWIPC),
        (&wanted.uts, CloneFlags::CLONE_NEWUTS),
    ] {
        if let Some(path) = path {
            namespaces.push((
                File::open(path).map_err(failed("open a namespace of the pod"))?,
                kind,
            ));
        }
    }
    let group = Group::create(&Layout::detect()?, &wanted.cgroup, None)?;
    let program = File::open("/proc/self/exe").map_err(failed("open our own program"))?;
    let (hold, go) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a pipe"))?;
    let (told, tell) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed("make a pipe"))?;
    let flags = CloneFlags::CLONE_NEWPID.bits();
    let pid = match sys::clone3(u64::from(flags.unsigned_abs()), None)
        .map_err(failed("make a PID namespace"))?
    {
        Fork::Parent { pid, .. } => pid,
        Fork::Child => {
            let error = become_pause(namespaces, &program, &hold, &tell);
            // If the shim is gone there is nobody to tell.
            let _untold = rustix::io::write(&tell, error.to_string().as_bytes());
            sys::exit_now(1)
        }
    };
    drop((tell, hold));
    let settled = settled(pid, &group, go, told);
    if settled.is_err() {
        // It is our child and not reaped, so the id is its own.
        let _gone = nix::sys::signal::kill(pid, Signal::SIGKILL);
        let _reaped = waitpid(pid, None);
    }
    Ok((pid, settled?))
}

fn settled(pid: Pid, group: &Group, go: OwnedFd, told: OwnedFd) -> Result<OwnedFd, PauseError> {
    group.add(pid)?;
    match std::fs::write(format!("/proc/{pid}/oom_score_adj"), OOM_SCORE) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            eprintln!("knarr-shim: {NAME} may be killed for lack of memory: {error}");
        }
        done => done.map_err(failed("protect the pod's first process"))?,
    }
    drop(go);
    let mut answer = String::new();
    File::from(told)
        .read_to_string(&mut answer)
        .map_err(failed("hear from the pod's first process"))?;
    if answer != READY {
        return Err(PauseError::Settle { reason: answer });
    }
    let namespace = File::open(format!("/proc/{pid}/ns/pid"))
        .map_err(failed("open the pod's PID namespace"))?;
    Ok(namespace.into())
}

/// In the child: enters the pod's namespaces and executes this program anew. Returns only on failure.
fn become_pause(
    namespaces: Vec<(File, CloneFlags)>,
    program: &File,
    hold: &OwnedFd,
    tell: &OwnedFd,
) -> io::Error {
    let ready = || -> io::Result<()> {
        for (namespace, kind) in namespaces {
            setns(namespace, kind)?;
        }
        rustix::stdio::dup2_stdin(hold)?;
        rustix::stdio::dup2_stdout(tell)?;
        rustix::stdio::dup2_stderr(tell)?;
        sys::close_range_cloexec(3)
    };
    match ready() {
        Ok(()) => {
            let name = CString::new(NAME).expect("a constant without NUL");
            sys::fexecve(program.as_fd(), &[name], &[])
        }
        Err(error) => error,
    }
}

/// The life of the process: never returns while it is needed.
pub fn run() -> std::process::ExitCode {
    match settle() {
        Ok(signals) => {
            wait(&signals);
            std::process::ExitCode::SUCCESS
        }
        Err(error) => {
            // If the shim is gone there is nobody to tell.
            let _untold = write!(io::stdout(), "{}", knarr_oci::error::chain(&error));
            std::process::ExitCode::FAILURE
        }
    }
}

/// Gives everything up, and says so.
fn settle() -> Result<SigSet, PauseError> {
    // Closed once this process is in its group.
    io::stdin()
        .read_to_end(&mut Vec::new())
        .map_err(failed("wait for the shim"))?;
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        signals.add(signal);
    }
    signals.thread_set_mask().map_err(failed("block signals"))?;
    nix::unistd::setsid().map_err(failed("start a session"))?;
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP)
        .map_err(failed("make namespaces"))?;
    empty_root().map_err(failed("enter an empty root"))?;
    give_up_privileges().map_err(failed("give up privileges"))?;
    let mut stdout = io::stdout();
    stdout
        .write_all(READY.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(failed("report to be ready"))?;
    for descriptor in 0..3 {
        nix::unistd::close(descriptor).map_err(failed("close descriptors"))?;
    }
    Ok(signals)
}

fn empty_root() -> nix::Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Some directory that every host has; nobody else sees what is mounted here.
    mount(
        Some("pause"),
        "/proc",
        Some("tmpfs"),
        flags,
        Some("size=4k"),
    )?;
    chdir("/proc")?;
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    chdir("/")
}

fn give_up_privileges() -> io::Result<()> {
    for capability in 0..64 {
        match sys::prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            // Beyond the last capability of this kernel.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            dropped => dropped?,
        };
    }
    sys::setgroups(&[])?;
    sys::setresgid(NOBODY)?;
    sys::setresuid(NOBODY)?;
    sys::capset(CapSets::default())?;
    nix::sys::prctl::set_no_new_privs()?;
    nix::sys::prctl::set_dumpable(false)?;
    // After the change of user, which clears it. Should the shim have ended before, then telling it fails.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    Ok(())
}

fn wait(signals: &SigSet) {
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => reap(),
            Ok(_) => return,
            // Interrupted.
            Err(_) => {}
        }
    }
}

fn reap() {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => return,
            Ok(_) => {}
        }
    }
}
