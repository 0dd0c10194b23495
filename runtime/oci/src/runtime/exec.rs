//! One more process in a running container.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, PathBuf};

use nix::sched::{CloneFlags, setns};
use nix::unistd::Pid;
use oci_spec::runtime::{ExecCPUAffinity, Process, Spec};

use super::birth::{Newborn, clone_in};
use super::check::check_process;
use super::create::{finish, is_ordinary_user};
use super::{Created, Io, Runtime, status_of};
use crate::cgroup::{Group, GroupRecord};
use crate::error::{CreateError, ExecError, Failure, OrFail, StateError, Step};
use crate::hooks;
use crate::id::ContainerId;
use crate::init::command_name;
use crate::message::{Channel, Report};
use crate::namespace::Kind;
use crate::process::{Settings, set_affinity};
use crate::rdt::Class;
use crate::rootfs::path_error;
use crate::state::{State, Status};
use crate::sys::{self, Fork};

/// Where and when one more process may run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecOptions {
    /// In a paused container too; the process then waits for its resumption.
    pub ignore_paused: bool,
    /// In groups below the container's, which must exist.
    pub groups: Vec<SubGroup>,
}

/// A group below a container's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubGroup {
    /// The v1 controllers that it is meant for; all if there are none.
    pub controllers: Vec<String>,
    /// Its path from the container's group.
    pub path: PathBuf,
}

/// What the new process needs.
struct Plan<'a> {
    settings: Settings<'a>,
    /// The container's first process.
    init: &'a OwnedFd,
    /// Namespaces to enter together.
    namespaces: CloneFlags,
    /// Whether the PID namespace is entered with them, by a second process.
    pid_namespace: bool,
    user_namespace: bool,
    /// The container's root, if entering its namespaces does not lead there.
    root: Option<OwnedFd>,
    entrances: &'a [OwnedFd],
}

impl Runtime {
    /// Runs one more process in a container: a child of the caller, in the container's namespaces and group.
    ///
    /// Returns when its program has been executed, or could not be.
    ///
    /// # Errors
    ///
    /// See [`CreateError`]; nothing is left behind then.
    pub fn exec(
        &self,
        id: &ContainerId,
        process: &Process,
        io: impl Into<Io>,
    ) -> Result<Created, ExecError> {
        self.exec_with(id, process, io, &ExecOptions::default())
    }

    /// The same, in a paused container or a group below the container's.
    ///
    /// # Errors
    ///
    /// As [`Runtime::exec`], and if such a group does not exist.
    pub fn exec_with(
        &self,
        id: &ContainerId,
        process: &Process,
        io: impl Into<Io>,
        options: &ExecOptions,
    ) -> Result<Created, ExecError> {
        let spec = self.config(id).map_err(CreateError::NotRunning)?;
        self.exec_configured(id, &spec, process, io, options)
    }

    /// The same for who has read the container's configuration already ([`Runtime::config`]).
    ///
    /// # Errors
    ///
    /// As [`Runtime::exec_with`].
    pub fn exec_configured(
        &self,
        id: &ContainerId,
        spec: &Spec,
        process: &Process,
        io: impl Into<Io>,
        options: &ExecOptions,
    ) -> Result<Created, ExecError> {
        let io = io.into();
        check_process(process)?;
        let dir = self.dir(id);
        let record = dir.read_record(id).map_err(CreateError::NotRunning)?;
        let status = status_of(&dir, &record).map_err(CreateError::NotRunning)?;
        match status {
            Status::Running | Status::Created => {}
            Status::Paused if options.ignore_paused => {}
            Status::Paused => return Err(CreateError::Paused),
            Status::Creating | Status::Stopped => {
                return Err(CreateError::NotRunning(StateError::WrongStatus {
                    id: id.to_string(),
                    status,
                }));
            }
        }
        let init = sys::pidfd_open(Pid::from_raw(record.pid))
            .map_err(CreateError::system("open the container"))?;
        let (namespaces, pid_namespace) = listed(spec)?;
        let profile = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.seccomp().as_ref());
        let seccomp = profile
            .map(|profile| self.seccomp_cache().compile(profile))
            .transpose();
        let seccomp = seccomp.map_err(CreateError::Seccomp)?;
        let group = Group::from_record(below(record.cgroup.clone(), &options.groups)?);
        let group_fd = group.unified_fd().map_err(CreateError::Cgroup)?;
        let entrances = match group_fd {
            Some(_) => Vec::new(),
            None => group.entrances().map_err(CreateError::Cgroup)?,
        };
        let plan = Plan {
            settings: Settings {
                keyring: None,
                affinity: process.exec_cpu_affinity().as_ref(),
                ..self.settings(process, spec, &io, seccomp.as_ref(), id)
            },
            init: &init,
            namespaces,
            pid_namespace: pid_namespace && is_ordinary_user(),
            root: match namespaces.contains(CloneFlags::CLONE_NEWNS) {
                true => None,
                false => {
                    let path = format!("/proc/{}/root", record.pid);
                    let opened = crate::rootfs::open_path(std::path::Path::new(&path));
                    Some(opened.map_err(CreateError::system(format!("open {path}")))?)
                }
            },
            user_namespace: namespaces.contains(CloneFlags::CLONE_NEWUSER),
            entrances: &entrances,
        };
        let (channel, theirs) =
            Channel::pair().map_err(CreateError::system("make a socket pair"))?;
        // Only who has rights over the user namespace may enter the PID namespace: an ordinary user has them inside.
        let later = pid_namespace && is_ordinary_user();
        // It enters the group on the processors that are named for that, and so it is born there.
        let aside = Aside::step(plan.settings.affinity)?;
        let forked = clone_in(
            (pid_namespace && !later).then_some(&init),
            CloneFlags::empty(),
            group_fd.as_ref(),
        )?;
        let mut newborn = match forked {
            Fork::Child => {
                drop(channel);
                plan.run(theirs)
            }
            Fork::Parent { pid, pidfd } => Newborn {
                pid,
                pidfd: Some(pidfd),
            },
        };
        drop(theirs);
        drop(aside);
        let state = hooks::state_for(&record, record.pid, status);
        let (terminal, warnings) = attend(
            &channel,
            process,
            spec,
            &state,
            record.rdt.as_ref(),
            &mut newborn,
        )?;
        let pidfd = newborn.pidfd.take().expect("taken once");
        Ok(Created {
            pid: newborn.pid,
            pidfd,
            terminal,
            warnings,
            waiting: None,
        })
    }
}

/// This process on other processors for a moment, because a child is born where its maker runs.
struct Aside(nix::sched::CpuSet);

impl Aside {
    /// Where `execCPUAffinity.initial` says; `None` if it says nothing.
    fn step(affinity: Option<&ExecCPUAffinity>) -> Result<Option<Self>, CreateError> {
        let list = affinity.and_then(|affinity| affinity.initial().as_deref());
        let Some(list) = list.filter(|list| !list.is_empty()) else {
            return Ok(None);
        };
        let before = nix::sched::sched_getaffinity(Pid::from_raw(0))
            .map_err(io::Error::from)
            .map_err(CreateError::system("read our own processors"))?;
        set_affinity(list).map_err(|failure| CreateError::from_failure(failure, ""))?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Back to where it was allowed to run a moment ago; nothing depends on it but speed.
        let _stays = nix::sched::sched_setaffinity(Pid::from_raw(0), &self.0);
    }
}

/// The container's group, with the directories of the groups below it in place of its own.
fn below(mut record: GroupRecord, groups: &[SubGroup]) -> Result<GroupRecord, CreateError> {
    for group in groups {
        let mut found = false;
        // v2 has one directory, whose name is empty.
        for (controller, directory) in &mut record.directories {
            let meant = group.controllers.is_empty() || group.controllers.contains(controller);
            if !meant {
                continue;
            }
            let path = group.path.strip_prefix("/").unwrap_or(&group.path);
            if path
                .components()
                .any(|part| !matches!(part, Component::Normal(_) | Component::CurDir))
            {
                return Err(CreateError::invalid(format!(
                    "{} is not a sub cgroup path of the container's",
                    group.path.display()
                )));
            }
            let wanted = directory.join(path);
            if !wanted.is_dir() {
                let what = format!("enter the cgroup {}", wanted.display());
                return Err(CreateError::system(what)(io::ErrorKind::NotFound.into()));
            }
            *directory = wanted;
            found = true;
        }
        if !found {
            return Err(CreateError::invalid(format!(
                "the container has no cgroup of the controllers {}",
                group.controllers.join(",")
            )));
        }
    }
    Ok(record)
}

/// The namespaces that the container has of its own or joined, without the PID namespace, which concerns children only.
fn listed(spec: &Spec) -> Result<(CloneFlags, bool), CreateError> {
    let linux = spec
        .linux()
        .as_ref()
        .ok_or_else(|| CreateError::invalid("linux is missing"))?;
    let kinds = linux.namespaces().iter().flatten();
    let all = kinds.fold(CloneFlags::empty(), |all, namespace| {
        all | Kind::from_spec(namespace.typ()).flag()
    });
    Ok((
        // Not by `&` and `!`, which forgets the flag of time namespaces: nix does not know it.
        all.difference(CloneFlags::CLONE_NEWPID),
        all.contains(CloneFlags::CLONE_NEWPID),
    ))
}

/// Answers the process until its program runs: then its end of the channel has closed without a word.
fn attend(
    channel: &Channel,
    process: &Process,
    spec: &Spec,
    state: &State,
    class: Option<&Class>,
    newborn: &mut Newborn,
) -> Result<(Option<OwnedFd>, Vec<String>), CreateError> {
    let talk = || CreateError::system("talk to the new process");
    let (mut terminal, mut warnings, mut ready) = (None, Vec::new(), false);
    loop {
        match channel.next().map_err(talk())? {
            Report::Terminal(master) => terminal = Some(master),
            Report::Warning(text) => warnings.push(text),
            Report::Ready => {
                if let Some(class) = class {
                    class.add(newborn.pid).map_err(CreateError::Rdt)?;
                }
                finish(process, newborn.pid, &mut warnings)?;
                ready = true;
                channel.go().map_err(talk())?;
            }
            Report::Failed(failure) => {
                return Err(CreateError::from_failure(failure, &command_name(process)));
            }
            Report::Gone if ready => return Ok((terminal, warnings)),
            Report::Gone => {
                return Err(CreateError::Died {
                    status: newborn.reap().unwrap_or_default(),
                });
            }
            Report::SeccompListener(number) => {
                let pidfd = newborn.pidfd.as_ref().expect("taken by the caller only");
                super::tell_agent(spec, newborn.pid, pidfd.as_fd(), number, state)?;
                channel.go().map_err(talk())?;
            }
            Report::Sibling(real) => {
                let pid = Pid::from_raw(real);
                let pidfd =
                    sys::pidfd_open(pid).map_err(CreateError::system("open the new process"))?;
                // The one that entered for it has nothing left to do.
                *newborn = Newborn {
                    pid,
                    pidfd: Some(pidfd),
                };
            }
            Report::Born(_) | Report::Mounted | Report::Network => {
                return Err(talk()(io::ErrorKind::InvalidData.into()));
            }
        }
    }
}

impl Plan<'_> {
    fn run(&self, channel: Channel) -> ! {
        sys::never_return(|| {
            let failure = match self.become_process(&channel) {
                Ok(never) => match never {},
                Err(failure) => failure,
            };
            // If the maker is gone there is nobody to tell.
            let _untold = channel.report(&Report::Failed(failure));
            sys::exit_now(1)
        })
    }

    fn become_process(&self, channel: &Channel) -> Result<Infallible, Failure> {
        // The container's processes can see this one from now on, but not look into it.
        sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).or_fail(Step::Privileges, || "hide from ptrace")?;
        for entrance in self.entrances {
            nix::unistd::write(entrance, b"0")
                .map(drop)
                .or_fail(Step::Cgroup, || "enter the cgroup")?;
        }
        let mut namespaces = self.namespaces;
        if self.pid_namespace {
            namespaces |= CloneFlags::CLONE_NEWPID;
        }
        if !namespaces.is_empty() {
            setns(self.init, namespaces)
                .or_fail(Step::Namespace, || "enter the container's namespaces")?;
        }
        if self.pid_namespace {
            // It is entered by children only, and the child is to be the caller's.
            let flags = CloneFlags::CLONE_PARENT.bits() as u32;
            match sys::clone3(flags.into(), None).or_fail(Step::Namespace, || "make the process")? {
                Fork::Child => {}
                Fork::Parent { pid, .. } => {
                    channel
                        .report(&Report::Sibling(pid.as_raw()))
                        .or_fail(Step::Channel, || "report the process")?;
                    sys::exit_now(0);
                }
            }
        }
        nix::unistd::setsid()
            .map(drop)
            .or_fail(Step::Namespace, || "start a session")?;
        if let Some(root) = &self.root {
            crate::rootfs::enter_root(root.as_fd())
                .or_fail(Step::Rootfs, || "enter the container's root")?;
        }
        if self.user_namespace {
            for done in [sys::setresgid(0), sys::setresuid(0)] {
                match done {
                    // Nobody is root in there.
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                    done => done.or_fail(Step::User, || "become root of the user namespace")?,
                }
            }
        }
        let terminal = self.open_terminal(channel)?;
        self.settings.connect_stdio(terminal.as_ref())?;
        let armed = self.settings.arm(channel)?;
        channel
            .report(&Report::Ready)
            .or_fail(Step::Channel, || "report to be ready")?;
        channel
            .wait()
            .or_fail(Step::Channel, || "wait for the word to go")?;
        armed.execute(channel)
    }

    fn open_terminal(&self, channel: &Channel) -> Result<Option<OwnedFd>, Failure> {
        if !self.settings.stdio.is_terminal() {
            return Ok(None);
        }
        let root = pathrs::Root::open("/")
            .map_err(path_error)
            .or_fail(Step::Terminal, || "open the root")?;
        let master = crate::rootfs::open_ptmx(root.as_ref())?;
        let slave = self.settings.open_slave(master.as_fd())?;
        channel
            .report(&Report::Terminal(master))
            .or_fail(Step::Terminal, || "hand over the terminal")?;
        Ok(Some(slave))
    }
}
