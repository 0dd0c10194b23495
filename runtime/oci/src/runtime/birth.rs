//! Processes that are born in their namespaces, and do not outlive a failure.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::mapping;
use crate::error::CreateError;
use crate::init::{self, Plan, Role};
use crate::message::Channel;
use crate::namespace::Kind;
use crate::process;
use crate::sys::{self, Fork};

/// A child that is killed and reaped unless it is taken.
pub(super) struct Newborn {
    pub pid: Pid,
    pub pidfd: Option<OwnedFd>,
}

impl Newborn {
    /// How it ended, if it ends without having told why.
    pub fn reap(&mut self) -> Option<String> {
        let pidfd = self.pidfd.take()?;
        // It may have ended already: then there is nothing to kill.
        let _ended = sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL);
        loop {
            match waitid(Id::PIDFd(pidfd.as_fd()), WaitPidFlag::WEXITED) {
                Err(nix::Error::EINTR) => {}
                Ok(WaitStatus::Exited(_, code)) => return Some(format!("exit status {code}")),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Some(format!("signal {signal}")),
                _ => return Some("unknown".to_owned()),
            }
        }
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        self.reap();
    }
}

/// These two are made later, by the process itself: see init.
pub(super) fn by_itself() -> CloneFlags {
    CloneFlags::CLONE_NEWCGROUP | Kind::Time.flag()
}

/// Makes the process; in the parent, gives the end of the channel and the child.
pub(super) fn spawn(
    plan: &Plan<'_>,
    group: Option<&OwnedFd>,
) -> Result<(Channel, Newborn), CreateError> {
    let (ours, theirs) = Channel::pair().map_err(CreateError::system("make a socket pair"))?;
    let flags = plan.namespaces.new_flags() & !by_itself() & !plan.late;
    let (role, now) = if plan.namespaces.joined(Kind::User).is_some() {
        (Role::Intermediate(flags), CloneFlags::empty())
    } else {
        (Role::Init, flags)
    };
    let joined_pid = plan.namespaces.joined(Kind::Pid);
    let forked = clone_in(joined_pid, now, group)?;
    match forked {
        Fork::Child => {
            drop(ours);
            init::run(plan, role, theirs)
        }
        Fork::Parent { pid, pidfd } => {
            drop(theirs);
            let newborn = Newborn {
                pid,
                pidfd: Some(pidfd),
            };
            if plan.namespaces.is_new(Kind::User) {
                mapping::write(plan.spec, pid)?;
                // Inside, it could not raise them any more; if we cannot either, it says so.
                drop(process::raise_limits(plan.settings.process, pid));
                ours.go()
                    .map_err(CreateError::system("talk to the container's process"))?;
            }
            Ok((ours, newborn))
        }
    }
}

/// Makes a process that is born in a PID namespace. Entering one only concerns children, so the caller itself stays where
/// it is, and that is why no second process is needed.
pub(super) fn clone_in(
    pid_namespace: Option<&OwnedFd>,
    flags: CloneFlags,
    group: Option<&OwnedFd>,
) -> Result<Fork, CreateError> {
    let clone = || {
        let flags = u64::from(flags.bits() as u32);
        sys::clone3(flags, group.map(AsFd::as_fd)).map_err(CreateError::system("clone3"))
    };
    let Some(namespace) = pid_namespace else {
        return clone();
    };
    let own = fs::File::open("/proc/self/ns/pid")
        .map_err(CreateError::system("open our own PID namespace"))?;
    setns(namespace, CloneFlags::CLONE_NEWPID)
        .map_err(io::Error::from)
        .map_err(CreateError::system("enter the PID namespace"))?;
    let made = clone();
    if matches!(made, Ok(Fork::Child)) {
        return made;
    }
    match setns(own, CloneFlags::CLONE_NEWPID) {
        // Root of a user namespace has no rights over the host's PID namespace (Podman of an ordinary user). Our next
        // children are born in the container's then; these are hooks only, and they are told its processes in the state.
        Err(nix::Error::EPERM) => {}
        done => done
            .map_err(io::Error::from)
            .map_err(CreateError::system("return to our own PID namespace"))?,
    }
    made
}
