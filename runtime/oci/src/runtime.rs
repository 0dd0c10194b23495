//! The life cycle of containers, as operations on a state directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIntelRdt, LinuxResources, Spec};

use crate::cgroup::systemd::{self, Systemd, SystemdError};
use crate::cgroup::{self, CgroupError, Group, Layout, Stats};
use crate::error::{ControlError, CreateError, StateError};
use crate::hooks::{self, HookError};
use crate::id::ContainerId;
use crate::message::Channel;
use crate::process::Stdio;
use crate::rdt::{self, Class, RdtStats};
use crate::state::{ProcStat, Record, State, StateDir, Status};
use crate::sys;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

mod birth;
pub(crate) mod check;
mod checkpoint;
mod create;
mod criu;
mod exec;
mod mapping;
mod prepare;
mod restore;
mod scope;
mod start;

pub use checkpoint::{CheckpointError, CheckpointOptions, PageServer};
pub use criu::{CgroupsMode, CriuError, CriuOptions};
pub use exec::{ExecOptions, SubGroup};
pub use restore::{RestoreError, RestoreOptions};

/// How control groups are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CgroupManager {
    /// By writing to the cgroup file systems.
    #[default]
    Cgroupfs,
    /// By asking systemd, which [`RuntimeOptions::systemd`] can talk to.
    Systemd,
    /// Containers get no group; limits are an error then.
    Disabled,
}

/// Settings of a [`Runtime`] that are the same for all its containers.
#[derive(Clone, Debug, Default)]
pub struct RuntimeOptions {
    /// How control groups are made.
    pub cgroup_manager: CgroupManager,
    /// Who talks to systemd; also used for containers that were made with it, whatever the manager is now.
    pub systemd: Option<&'static dyn Systemd>,
    /// Whether a container may go without a cgroup where none may be made; by default if the caller is not root.
    pub rootless: Option<bool>,
    /// Use chroot where pivot_root is not possible (an initramfs as root).
    pub no_pivot: bool,
    /// Leave processes in the caller's session keyring.
    pub no_new_keyring: bool,
    /// Where compiled seccomp filters are kept; `<root>/.seccomp` by default.
    pub seccomp_cache: Option<PathBuf>,
}

/// Containers below one root directory, which holds a directory per container.
///
/// The caller must have one thread: children are made by copying this process. It is the parent of the processes made, and
/// reaps them.
#[derive(Clone, Debug)]
pub struct Runtime {
    root: PathBuf,
    options: RuntimeOptions,
}

/// Descriptors that a new process is born with.
#[derive(Debug, Default)]
pub struct Io {
    /// Standard streams.
    pub stdio: Stdio,
    /// How many descriptors the process inherits from the caller, by the same numbers: from 3 up, or after those of `listen`.
    /// All of them are the caller's own.
    pub preserve_fds: u32,
    /// Those of socket activation, from 3 up.
    pub listen: Option<ListenFds>,
}

/// Descriptors of socket activation, of which a program learns by its environment (sd_listen_fds(3)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenFds {
    /// How many there are.
    pub count: u32,
    /// What they are called, with colons in between.
    pub names: Option<Vec<u8>>,
}

impl Io {
    /// How many descriptors from 3 up are kept.
    pub(crate) fn kept(&self) -> u32 {
        let listen = self.listen.as_ref().map_or(0, |listen| listen.count);
        listen.saturating_add(self.preserve_fds)
    }
}

impl From<Stdio> for Io {
    fn from(stdio: Stdio) -> Self {
        Self {
            stdio,
            preserve_fds: 0,
            listen: None,
        }
    }
}

/// A process that was made: the first of a container, which waits for start, or one more, which runs.
#[derive(Debug)]
pub struct Created {
    /// Its id in our PID namespace. It is a child of the caller.
    pub pid: Pid,
    /// Its descriptor.
    pub pidfd: OwnedFd,
    /// The master of its terminal, with [`Stdio::Terminal`].
    pub terminal: Option<OwnedFd>,
    /// What could not be done and need not be, for the log.
    pub warnings: Vec<String>,
    /// Of [`Runtime::create_to_start`].
    waiting: Option<Waiting>,
}

/// A first process that its maker is going to start.
#[derive(Debug)]
struct Waiting {
    channel: Channel,
    record: Record,
}

/// What a container has besides its state: for monitoring.
#[derive(Clone, Debug)]
pub struct Details {
    /// Its state.
    pub state: State,
    /// Its group.
    pub cgroup: Group,
}

impl Runtime {
    /// Nothing is read or made yet.
    pub fn new(root: PathBuf, options: RuntimeOptions) -> Self {
        Self { root, options }
    }

    /// The directory that holds a directory per container.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn dir(&self, id: &ContainerId) -> StateDir {
        StateDir::new(&self.root, id)
    }

    /// The state of a container, as it is now.
    ///
    /// # Errors
    ///
    /// If there is none, or its files cannot be read.
    pub fn state(&self, id: &ContainerId) -> Result<State, StateError> {
        let dir = self.dir(id);
        let record = dir.read_record(id)?;
        let status = status_of(&dir, &record)?;
        let pid = if status == Status::Stopped {
            0
        } else {
            record.pid
        };
        Ok(hooks::state_for(&record, pid, status))
    }

    /// The state and the group of a container.
    ///
    /// # Errors
    ///
    /// As [`Runtime::state`].
    pub fn details(&self, id: &ContainerId) -> Result<Details, StateError> {
        let record = self.dir(id).read_record(id)?;
        Ok(Details {
            state: self.state(id)?,
            cgroup: Group::from_record(record.cgroup),
        })
    }

    /// The configuration with which a container was created.
    ///
    /// # Errors
    ///
    /// As [`Runtime::state`].
    pub fn config(&self, id: &ContainerId) -> Result<Spec, StateError> {
        self.dir(id).read_config(id)
    }

    /// The states of all containers, by id. One that is deleted meanwhile is left out.
    ///
    /// # Errors
    ///
    /// If the directory or a state cannot be read.
    pub fn list(&self) -> Result<Vec<State>, StateError> {
        let failed = |source| StateError::Read {
            path: self.root.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut states = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let Some(Ok(id)) = name.to_str().map(ContainerId::parse) else {
                continue;
            };
            match self.state(&id) {
                Ok(state) => states.push(state),
                Err(StateError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        states.sort_by(|one, two| one.id.cmp(&two.id));
        Ok(states)
    }

    /// Sends a signal to the first process, or to all in the container.
    ///
    /// # Errors
    ///
    /// If it is neither created nor running.
    pub fn kill(&self, id: &ContainerId, signal: Signal, all: bool) -> Result<(), ControlError> {
        self.kill_number(id, signal as i32, all)
    }

    /// Like [`Runtime::kill`] with the signal's number, which may be a real-time one.
    ///
    /// # Errors
    ///
    /// As [`Runtime::kill`].
    pub fn kill_number(
        &self,
        id: &ContainerId,
        signal: i32,
        all: bool,
    ) -> Result<(), ControlError> {
        let dir = self.dir(id);
        let record = dir.read_record(id).map_err(ControlError::State)?;
        let status = status_of(&dir, &record).map_err(ControlError::State)?;
        if all {
            return signal_all(&record, signal);
        }
        if signal == libc::SIGKILL && !record.own_pid_namespace && status != Status::Creating {
            // Its other processes would live on without the first one, and maybe do so already. As with runc.
            let group = Group::from_record(record.cgroup.clone());
            let members = group.processes().map_err(ControlError::Cgroup)?;
            group.kill_all().map_err(ControlError::Cgroup)?;
            // One with the rights to do so may have left its group: then it is still to be killed.
            let first_too = members.contains(&Pid::from_raw(record.pid));
            if first_too || status == Status::Stopped && !members.is_empty() {
                return Ok(());
            }
        }
        if status == Status::Stopped || status == Status::Creating {
            return Err(ControlError::WrongStatus {
                verb: "kill",
                status,
            });
        }
        let failed = |source| ControlError::System {
            what: format!("send signal {signal}"),
            source,
        };
        let pidfd = sys::pidfd_open(Pid::from_raw(record.pid)).map_err(failed)?;
        // Between the look at the state and this the process may have gone and its id be another's.
        if !is_alive(&record).map_err(failed)? {
            return Err(ControlError::WrongStatus {
                verb: "kill",
                status: Status::Stopped,
            });
        }
        sys::pidfd_send_signal(pidfd.as_fd(), signal).map_err(failed)?;
        if signal == libc::SIGKILL && status == Status::Paused {
            // A frozen process dies only when it is thawed (v1).
            Group::from_record(record.cgroup)
                .thaw()
                .map_err(ControlError::Cgroup)?;
        }
        Ok(())
    }

    /// Removes all that is left of a container: group, state, and with `force` its processes.
    ///
    /// Gives the failures of poststop hooks, which keep nothing from being removed.
    ///
    /// # Errors
    ///
    /// If it is not stopped (without `force`), or something cannot be removed.
    pub fn delete(&self, id: &ContainerId, force: bool) -> Result<Vec<HookError>, ControlError> {
        let dir = self.dir(id);
        let record = match dir.read_record(id) {
            Ok(record) => record,
            // A half-made directory has nothing else to remove.
            Err(StateError::NotFound { .. }) if force => {
                remove_state(&dir)?;
                return Ok(Vec::new());
            }
            Err(error) => return Err(ControlError::State(error)),
        };
        let status = status_of(&dir, &record).map_err(ControlError::State)?;
        let group = Group::from_record(record.cgroup.clone());
        if status != Status::Stopped {
            if !force {
                return Err(ControlError::WrongStatus {
                    verb: "delete",
                    status,
                });
            }
            end_init(&record)?;
        }
        // In a PID namespace of its own nothing outlives the first process.
        if !record.own_pid_namespace || record.pid == 0 {
            group.kill_all().map_err(ControlError::Cgroup)?;
        }
        if record.mounted_on_host {
            let failed = |source| ControlError::System {
                what: format!("unmount {}", record.rootfs.display()),
                source,
            };
            crate::rootfs::unmount_from_host(&record.rootfs).map_err(failed)?;
        }
        if let Some(scope) = &record.scope {
            let stopped = self.systemd().and_then(|systemd| systemd.stop(scope));
            stopped.map_err(ControlError::Systemd)?;
        }
        group.remove().map_err(ControlError::Cgroup)?;
        if let Some(class) = &record.rdt {
            class.remove().map_err(ControlError::Rdt)?;
        }
        let mut failures = Vec::new();
        if record.poststop
            && let Ok(spec) = dir.read_config(id)
        {
            failures = hooks::after_end(&spec, &record);
        }
        remove_state(&dir)?;
        Ok(failures)
    }

    /// Stops all processes of a container as they are.
    ///
    /// # Errors
    ///
    /// If it does not run.
    pub fn pause(&self, id: &ContainerId) -> Result<(), ControlError> {
        let (group, status) = self.group(id)?;
        if !matches!(status, Status::Running | Status::Created) {
            return Err(ControlError::WrongStatus {
                verb: "pause",
                status,
            });
        }
        group.freeze().map_err(ControlError::Cgroup)
    }

    /// Lets them go on.
    ///
    /// # Errors
    ///
    /// If it is not paused.
    pub fn resume(&self, id: &ContainerId) -> Result<(), ControlError> {
        let (group, status) = self.group(id)?;
        if status != Status::Paused {
            return Err(ControlError::WrongStatus {
                verb: "resume",
                status,
            });
        }
        group.thaw().map_err(ControlError::Cgroup)
    }

    /// Changes limits; what is not given stays. Gives warnings about fields that have no effect here.
    ///
    /// # Errors
    ///
    /// If it is stopped, or the kernel refuses a value.
    pub fn update(
        &self,
        id: &ContainerId,
        resources: &LinuxResources,
    ) -> Result<Vec<String>, ControlError> {
        let (dir, mut record) = self.to_update(id)?;
        let layout = Layout::detect().map_err(ControlError::Cgroup)?;
        let mut group = Group::from_record(record.cgroup.clone());
        let mut spec = dir.read_config(id).map_err(ControlError::State)?;
        let old = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.resources().clone());
        let old = old.unwrap_or_default();
        let wanted = cgroup::to_write(&old, resources).map_err(ControlError::Cgroup)?;
        if let Some(scope) = &record.scope {
            let properties = systemd::limits(&wanted, group.is_unified());
            let set = self
                .systemd()
                .and_then(|systemd| systemd.set(scope, &properties));
            set.map_err(ControlError::Systemd)?;
        }
        let done = group.apply(&layout, &wanted).map_err(ControlError::Cgroup);
        // A limit may have brought a hierarchy more.
        if *group.record() != record.cgroup {
            record.cgroup = group.record().clone();
            let what = "write the state".to_owned();
            dir.write_record(&record)
                .map_err(|source| ControlError::System { what, source })?;
        }
        done?;
        // The next update counts from here.
        let now = cgroup::merge(&old, resources).map_err(ControlError::Cgroup)?;
        if let Some(linux) = spec.linux_mut() {
            linux.set_resources(Some(now));
        }
        let what = "write the configuration".to_owned();
        dir.replace_config(&spec)
            .map_err(|source| ControlError::System { what, source })?;
        Ok(cgroup::ignored(resources, group.is_unified()))
    }

    fn to_update(&self, id: &ContainerId) -> Result<(StateDir, Record), ControlError> {
        let dir = self.dir(id);
        let record = dir.read_record(id).map_err(ControlError::State)?;
        let status = status_of(&dir, &record).map_err(ControlError::State)?;
        if status == Status::Stopped {
            return Err(ControlError::WrongStatus {
                verb: "update",
                status,
            });
        }
        Ok((dir, record))
    }

    /// Changes its share of caches and of memory bandwidth; what is not given stays. A container without a class gets one.
    ///
    /// # Errors
    ///
    /// If it is stopped, or the kernel has no Intel RDT or refuses a value. A container that had no class has none then, and
    /// may be given one by the next call.
    pub fn update_rdt(&self, id: &ContainerId, wanted: &LinuxIntelRdt) -> Result<(), ControlError> {
        let (dir, mut record) = self.to_update(id)?;
        let publish = |record: &Record| {
            let what = "write the state".to_owned();
            dir.write_record(record)
                .map_err(|source| ControlError::System { what, source })
        };
        if let Some(class) = &record.rdt {
            return change_class(class, wanted, &record);
        }
        let class = rdt::Resctrl::find()
            .and_then(|resctrl| resctrl.plan(id.as_str(), wanted))
            .map_err(ControlError::Rdt)?;
        record.rdt = Some(class.clone());
        // Before it is made: whoever deletes the container knows of it.
        publish(&record)?;
        let done = change_class(&class, wanted, &record);
        if done.is_err() && class.remove().is_ok() {
            record.rdt = None;
            publish(&record)?;
        }
        done
    }

    /// The ids of all processes of a container, in our PID namespace.
    ///
    /// # Errors
    ///
    /// If there is no such container.
    pub fn pids(&self, id: &ContainerId) -> Result<Vec<Pid>, ControlError> {
        let (group, _) = self.group(id)?;
        group.processes().map_err(ControlError::Cgroup)
    }

    /// What a container has used.
    ///
    /// # Errors
    ///
    /// If there is no such container.
    pub fn stats(&self, id: &ContainerId) -> Result<Stats, ControlError> {
        let (group, _) = self.group(id)?;
        group.stats().map_err(ControlError::Cgroup)
    }

    /// What a container has used of caches and memory bandwidth; `None` if it has no class for these.
    ///
    /// # Errors
    ///
    /// If there is no such container, or its class cannot be read.
    pub fn rdt_stats(&self, id: &ContainerId) -> Result<Option<RdtStats>, ControlError> {
        let record = self.dir(id).read_record(id).map_err(ControlError::State)?;
        let stats = record.rdt.as_ref().map(Class::stats).transpose();
        stats.map_err(ControlError::Rdt)
    }

    fn group(&self, id: &ContainerId) -> Result<(Group, Status), ControlError> {
        let dir = self.dir(id);
        let record = dir.read_record(id).map_err(ControlError::State)?;
        let status = status_of(&dir, &record).map_err(ControlError::State)?;
        Ok((Group::from_record(record.cgroup), status))
    }

    fn systemd(&self) -> Result<&'static dyn Systemd, SystemdError> {
        self.options.systemd.ok_or(SystemdError::Unavailable)
    }

    fn seccomp_cache(&self) -> crate::seccomp::Cache {
        let directory = self
            .options
            .seccomp_cache
            .clone()
            .unwrap_or_else(|| self.root.join(".seccomp"));
        crate::seccomp::Cache::new(directory)
    }
}

/// Gives a class other limits, and puts all processes of the container in: an update before may have ended half way.
fn change_class(
    class: &Class,
    wanted: &LinuxIntelRdt,
    record: &Record,
) -> Result<(), ControlError> {
    class.change(wanted).map_err(ControlError::Rdt)?;
    let group = Group::from_record(record.cgroup.clone());
    for pid in group.processes().map_err(ControlError::Cgroup)? {
        class.add_process(pid).map_err(ControlError::Rdt)?;
    }
    Ok(())
}

fn remove_state(dir: &StateDir) -> Result<(), ControlError> {
    let what = format!("remove {}", dir.path().display());
    dir.remove()
        .map_err(|source| ControlError::System { what, source })
}

/// Whether its first process is there and has not ended; a zombie has.
fn is_alive(record: &Record) -> io::Result<bool> {
    let stat = ProcStat::read(record.pid)?;
    Ok(stat.is_some_and(|stat| {
        stat.start_time == record.start_time && !matches!(stat.state, b'Z' | b'X')
    }))
}

fn status_of(dir: &StateDir, record: &Record) -> Result<Status, StateError> {
    if record.pid == 0 {
        return Ok(Status::Creating);
    }
    let failed = |source| StateError::Read {
        path: format!("/proc/{}/stat", record.pid).into(),
        source,
    };
    if !is_alive(record).map_err(failed)? {
        return Ok(Status::Stopped);
    }
    if Group::from_record(record.cgroup.clone())
        .is_frozen()
        .unwrap_or(false)
    {
        return Ok(Status::Paused);
    }
    Ok(if dir.socket().exists() {
        Status::Created
    } else {
        Status::Running
    })
}

/// Gives the listener of a new process's seccomp filter to the agent that the configuration names.
fn tell_agent(
    config: &Spec,
    pid: Pid,
    pidfd: BorrowedFd<'_>,
    number: RawFd,
    state: &State,
) -> Result<(), CreateError> {
    let profile = config
        .linux()
        .as_ref()
        .and_then(|linux| linux.seccomp().as_ref())
        .ok_or_else(|| CreateError::invalid("a seccomp listener without a profile"))?;
    crate::seccomp::hand_over(profile, pid, pidfd, number, state).map_err(CreateError::SeccompAgent)
}

/// Every process in the group; one that ends meanwhile is no failure.
fn signal_all(record: &Record, signal: i32) -> Result<(), ControlError> {
    let group = Group::from_record(record.cgroup.clone());
    if signal == libc::SIGKILL {
        return group.kill_all().map_err(ControlError::Cgroup);
    }
    for pid in group.processes().map_err(ControlError::Cgroup)? {
        match sys::pidfd_open(pid).and_then(|pidfd| sys::pidfd_send_signal(pidfd.as_fd(), signal)) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            done => done.map_err(|source| ControlError::System {
                what: format!("send signal to {pid}"),
                source,
            })?,
        }
    }
    Ok(())
}

/// Kills the first process and waits for its end. Its parent reaps it; a zombie is enough for us.
fn end_init(record: &Record) -> Result<(), ControlError> {
    if record.pid == 0 {
        return Ok(());
    }
    let failed = |source| ControlError::System {
        what: format!("kill process {}", record.pid),
        source,
    };
    let pidfd = match sys::pidfd_open(Pid::from_raw(record.pid)) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        opened => opened.map_err(failed)?,
    };
    if !is_alive(record).map_err(failed)? {
        return Ok(());
    }
    match sys::pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
        done => done.map_err(failed)?,
    }
    // A paused one dies only when it is thawed; one without a freezer is not paused.
    let group = Group::from_record(record.cgroup.clone());
    if group.is_frozen().unwrap_or(false) {
        group.thaw().map_err(ControlError::Cgroup)?;
    }
    let ended =
        hooks::wait_readable(pidfd.as_fd(), std::time::Duration::from_secs(10)).map_err(failed)?;
    if !ended {
        let path = record.cgroup.path.clone();
        return Err(ControlError::Cgroup(CgroupError::Timeout {
            what: "the end of its first process",
            path,
        }));
    }
    Ok(())
}
