//! Making a container: everything up to the wait for start.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::Mode;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxIdMapping, Process, Spec};

use super::mapping;
use super::prepare::{Prepared, Reserved, Unfinished};
#[cfg(any(test, fuzzing))]
use super::prepare::{group_owner, new_record, refuse_limits};
use super::{Created, Io, Runtime, Waiting};
use crate::cgroup;
use crate::error::CreateError;
use crate::hooks;
use crate::id::ContainerId;
use crate::idmap::{Mapper, Wanted};
use crate::init::{self, Place, Plan, Role, Start};
use crate::label;
use crate::message::{Channel, Report};
use crate::mount::Options;
use crate::namespace::{Kind, NamespaceSet};
use crate::netdev;
use crate::process::{self, Settings};
use crate::rdt;
use crate::rootfs::{self, Rootfs};
use crate::seccomp::Program;
use crate::state::{ProcStat, Record, StateDir, Status};
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

/// Who lets a created container's program run.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Starter {
    /// Whoever calls [`Runtime::start`].
    Anyone,
    /// The caller of [`Runtime::create_to_start`].
    Maker,
}

impl Runtime {
    /// Does everything up to (not including) exec of the user's process, which waits for [`Runtime::start`].
    ///
    /// # Errors
    ///
    /// See [`CreateError`]; nothing is left behind then.
    pub fn create(
        &self,
        id: &ContainerId,
        bundle: &Path,
        spec: &Spec,
        io: impl Into<Io>,
    ) -> Result<Created, CreateError> {
        self.make(id, bundle, spec, io.into(), Starter::Anyone)
    }

    /// The same for a caller that starts the container right away, with [`Runtime::start_new`]. Unless there are hooks, nobody
    /// else can, and if the caller ends before it has, so does the process.
    ///
    /// # Errors
    ///
    /// As [`Runtime::create`].
    pub fn create_to_start(
        &self,
        id: &ContainerId,
        bundle: &Path,
        spec: &Spec,
        io: impl Into<Io>,
    ) -> Result<Created, CreateError> {
        self.make(id, bundle, spec, io.into(), Starter::Maker)
    }

    fn make(
        &self,
        id: &ContainerId,
        bundle: &Path,
        spec: &Spec,
        io: Io,
        starter: Starter,
    ) -> Result<Created, CreateError> {
        check(spec)?;
        // Hooks may ask for the state, and it is by its socket that a container is told to be created.
        let hooked = spec.hooks().is_some();
        let starter = if hooked { Starter::Anyone } else { starter };
        let mut stand_in = Process::default();
        stand_in.set_args(None);
        let process = spec.process().as_ref().unwrap_or(&stand_in);
        let bundle = fs::canonicalize(bundle).map_err(|source| CreateError::StateFile {
            what: "find the bundle",
            path: bundle.to_owned(),
            source,
        })?;
        let rootfs = find_rootfs(spec, &bundle)?;
        let linux = spec
            .linux()
            .as_ref()
            .ok_or_else(|| CreateError::invalid("linux is missing"))?;
        let namespaces = NamespaceSet::open(linux.namespaces().as_deref().unwrap_or_default())
            .map_err(CreateError::Namespace)?;
        check_namespaces(spec, &namespaces)?;
        netdev::check(spec, &namespaces)?;

        let mut reserved = self.reserve(id, &bundle, &rootfs, spec, &namespaces)?;
        let resources = linux.resources().as_ref();
        let seccomp = linux
            .seccomp()
            .as_ref()
            .map(|profile| self.seccomp_cache().compile(profile))
            .transpose();
        let seccomp = seccomp.map_err(CreateError::Seccomp)?;
        let sources = open_sources(spec, &namespaces, &bundle)?;
        let state = hooks::state_for(&reserved.record, 0, Status::Creating);
        let mut plan = Plan {
            spec,
            settings: self.settings(process, spec, &io, seccomp.as_ref(), id),
            namespaces: &namespaces,
            bundle: &bundle,
            rootfs: &rootfs,
            host_root: None,
            place: None,
            started_by_maker: starter == Starter::Maker,
            late: CloneFlags::empty(),
            sources: &sources,
            pivot: !self.options.no_pivot,
            mount_label: label::of_mounts(spec),
            rootless: is_ordinary_user(),
            state: &state,
        };
        let early = if goes_ahead(&reserved, &namespaces) {
            plan.late = namespaces.new_flags() & !by_itself() & !CloneFlags::CLONE_NEWPID;
            let (channel, newborn) = spawn(&plan, None)?;
            reserved.unfinished.process = Some(newborn);
            Some(channel)
        } else {
            None
        };

        let Prepared {
            mut unfinished,
            dir,
            group,
            mut record,
            without_group,
            holder,
        } = self.prepare(reserved, id, spec, &namespaces)?;
        let group_fd = group.unified_fd().map_err(CreateError::Cgroup)?;
        let (start, waiting) = match starter {
            Starter::Anyone => {
                let listener = listen_in(&dir).map_err(state_file("listen in", dir.path()))?;
                (Start::AtSocket(listener), None)
            }
            Starter::Maker => {
                let pair = Channel::pair();
                let (ours, theirs) = pair.map_err(CreateError::system("make a socket pair"))?;
                (Start::FromMaker(theirs), Some(ours))
            }
        };
        let place = Place {
            group: group.record().clone(),
            entrances: match group_fd {
                Some(_) => Vec::new(),
                None => group.entrances().map_err(CreateError::Cgroup)?,
            },
            start,
        };
        let host_root = if namespaces.contains(Kind::Mount) {
            None
        } else {
            let root = Rootfs::attach_on_host(&rootfs)
                .map_err(|failure| CreateError::from_failure(failure, ""))?;
            unfinished.mounted = Some(rootfs.clone());
            record.mounted_on_host = true;
            // Not before: what another has mounted there must never be taken away.
            dir.write_record(&record)
                .map_err(state_file("write state.json in", dir.path()))?;
            Some(root)
        };
        let channel = match early {
            Some(channel) => {
                match place.give(&channel) {
                    // It has ended already, and has said why: that is read below.
                    Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                    done => done.map_err(CreateError::system("talk to the container's process"))?,
                }
                channel
            }
            None => {
                plan.host_root = host_root.as_ref();
                plan.place = Some(&place);
                let (channel, newborn) = spawn(&plan, group_fd.as_ref())?;
                unfinished.process = Some(newborn);
                channel
            }
        };
        // The process works by itself from here on, so what nobody reads before it is ready is written meanwhile.
        dir.write_config(spec)
            .map_err(state_file("write config.json in", dir.path()))?;
        let ahead = if namespaces.joined(Kind::User).is_none() {
            let first = unfinished.process.as_ref().expect("set above").pid;
            let ahead = Record {
                pid: first.as_raw(),
                start_time: start_time(first)?,
                ..record.clone()
            };
            dir.prepare_record(&ahead)
                .map_err(state_file("write state.json in", dir.path()))?;
            Some(ahead)
        } else {
            // Another process will be the container's.
            None
        };
        let mut born = Birth {
            terminal: None,
            warnings: resources.map_or_else(Vec::new, |resources| {
                cgroup::ignored(resources, group.is_unified())
            }),
        };
        born.warnings.extend(label::mount_warning(spec));
        if without_group {
            let text = "the container has no cgroup of its own: this user may make none";
            born.warnings.push(text.to_owned());
        }
        let attended = self.attend(
            &plan,
            &channel,
            &mut unfinished,
            &mut born,
            &mut record,
            &dir,
        );
        let pid = match attended {
            Err(error) if error.is_hook() => {
                // Destroyed first (runtime.md, "Lifecycle", steps 12 and 13). The failure to tell is the first one.
                drop(unfinished);
                let _untold = hooks::after_end(spec, &record);
                return Err(error);
            }
            done => done?,
        };
        if let Some(class) = &record.rdt {
            class.add(pid).map_err(CreateError::Rdt)?;
        }
        finish(process, pid, &mut born.warnings)?;
        let (record, written) = match ahead {
            // For the hooks.
            _ if record.pid == pid.as_raw() => (record, Ok(())),
            Some(ahead) if ahead.pid == pid.as_raw() => (ahead, dir.publish_record()),
            _ => {
                record.pid = pid.as_raw();
                record.start_time = start_time(pid)?;
                let written = dir.write_record(&record);
                (record, written)
            }
        };
        written.map_err(state_file("write state.json in", dir.path()))?;

        drop(holder);
        Ok(Created {
            pid,
            pidfd: unfinished.keep(),
            terminal: born.terminal,
            warnings: born.warnings,
            waiting: waiting.map(|channel| Waiting { channel, record }),
        })
    }

    /// The settings of a process of this container.
    pub(super) fn settings<'a>(
        &self,
        process: &'a Process,
        spec: &'a Spec,
        io: &'a Io,
        seccomp: Option<&'a Program>,
        id: &ContainerId,
    ) -> Settings<'a> {
        let linux = spec.linux().as_ref();
        Settings {
            process,
            stdio: &io.stdio,
            seccomp,
            personality: linux.and_then(|linux| linux.personality().as_ref()),
            memory_policy: linux.and_then(|linux| linux.memory_policy().as_ref()),
            preserve_fds: io.preserve_fds,
            keyring: (!self.options.no_new_keyring).then(|| format!("_ses.{id}")),
            apparmor: label::apparmor(process),
            affinity: None,
        }
    }

    /// Answers the process until it is ready.
    fn attend(
        &self,
        plan: &Plan<'_>,
        channel: &Channel,
        unfinished: &mut Unfinished,
        born: &mut Birth,
        record: &mut Record,
        dir: &StateDir,
    ) -> Result<Pid, CreateError> {
        let command = init::command_name(plan.settings.process);
        let talk = || CreateError::system("talk to the container's process");
        loop {
            let pid = unfinished
                .process
                .as_ref()
                .map_or(Pid::from_raw(0), |process| process.pid);
            match channel.next().map_err(talk())? {
                Report::Sibling(real) => {
                    let pid = Pid::from_raw(real);
                    let pidfd = sys::pidfd_open(pid)
                        .map_err(CreateError::system("open the container's process"))?;
                    // The intermediate one ends by itself; being reaped is all it waits for.
                    unfinished.process = Some(Newborn {
                        pid,
                        pidfd: Some(pidfd),
                    });
                }
                Report::Mounted => {
                    record.pid = pid.as_raw();
                    record.start_time = start_time(pid)?;
                    dir.write_record(record)
                        .map_err(state_file("write state.json in", dir.path()))?;
                    for place in plan.spec.hooks().iter().flat_map(hooks::before_pivot) {
                        let state = hooks::state_for(record, pid.as_raw(), place.status);
                        place.run(&state).map_err(CreateError::Hook)?;
                    }
                    channel.go().map_err(talk())?;
                }
                Report::Network => {
                    let path = format!("/proc/{pid}/ns/net");
                    let namespace = fs::File::open(&path)
                        .map_err(CreateError::system(format!("open {path}")))?;
                    netdev::move_all(&netdev::wanted(plan.spec), &namespace.into())?;
                    channel.go().map_err(talk())?;
                }
                Report::Terminal(master) => born.terminal = Some(master),
                // The filter is installed after start.
                Report::SeccompListener(_) => {
                    return Err(talk()(io::ErrorKind::InvalidData.into()));
                }
                Report::Warning(text) => born.warnings.push(text),
                Report::Ready => return Ok(pid),
                Report::Failed(failure) => {
                    return Err(CreateError::from_failure(failure, &command));
                }
                Report::Gone => {
                    let status = unfinished
                        .process
                        .as_mut()
                        .and_then(Newborn::reap)
                        .unwrap_or_default();
                    let stats = unfinished
                        .group
                        .as_ref()
                        .and_then(|group| group.stats().ok());
                    if let Some(stats) = stats.filter(|stats| stats.memory.oom_kills > 0) {
                        return Err(CreateError::OutOfMemory {
                            limit: stats.memory.limit,
                        });
                    }
                    return Err(CreateError::Died { status });
                }
            }
        }
    }
}

/// What comes out of the birth of a process.
struct Birth {
    terminal: Option<OwnedFd>,
    warnings: Vec<String>,
}

pub(super) fn state_file<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> CreateError + 'a {
    move |source| CreateError::StateFile {
        what,
        path: path.to_owned(),
        source,
    }
}

/// What must be there, and what cannot be done, before anything is made.
pub(super) fn check(spec: &Spec) -> Result<(), CreateError> {
    if !spec.version().starts_with("1.") {
        return Err(CreateError::invalid(format!(
            "ociVersion {:?} is not 1.x",
            spec.version()
        )));
    }
    // Only start needs a process (config.md, "Process").
    if let Some(process) = spec.process() {
        check_process(process)?;
    }
    let linux = spec
        .linux()
        .as_ref()
        .ok_or_else(|| CreateError::invalid("linux is missing"))?;
    if let Some(rdt) = linux.intel_rdt() {
        rdt::check(rdt).map_err(CreateError::Rdt)?;
    }
    for mount in spec.mounts().iter().flatten() {
        let options = Options::parse(mount.options().as_deref().unwrap_or_default())
            .map_err(|error| CreateError::invalid(error.to_string()))?;
        if let Some((key, _)) = options.data.iter().find(|(key, _)| {
            let key = key.to_bytes();
            key == b"idmap" || key == b"ridmap"
        }) {
            // crun's own notation: as a file system's option it would be lost on a bind mount.
            return Err(CreateError::invalid(format!(
                "mount option {}= (use uidMappings and gidMappings)",
                key.to_string_lossy()
            )));
        }
        if mount.destination().as_os_str().is_empty() {
            return Err(CreateError::invalid("a mount without destination"));
        }
    }
    Ok(())
}

pub(crate) fn check_process(process: &Process) -> Result<(), CreateError> {
    if process.args().as_ref().is_none_or(Vec::is_empty) {
        return Err(CreateError::invalid("process.args is empty"));
    }
    if !process.cwd().is_absolute() {
        return Err(CreateError::invalid(format!(
            "process.cwd {:?} is not absolute",
            process.cwd()
        )));
    }
    let mut seen = Vec::new();
    for limit in process.rlimits().iter().flatten() {
        if seen.contains(&limit.typ()) {
            return Err(CreateError::invalid(format!(
                "process.rlimits holds {} twice",
                limit.typ()
            )));
        }
        seen.push(limit.typ());
        if limit.soft() > limit.hard() {
            return Err(CreateError::invalid(format!(
                "process.rlimits: {} soft above hard",
                limit.typ()
            )));
        }
    }
    Ok(())
}

pub(super) fn check_namespaces(spec: &Spec, namespaces: &NamespaceSet) -> Result<(), CreateError> {
    if is_ordinary_user() && !namespaces.contains(Kind::User) {
        return Err(CreateError::invalid(
            "an ordinary user's container needs a user namespace",
        ));
    }
    let invalid = |what: &str| Err(CreateError::invalid(what));
    let named = |name: &Option<String>| name.as_ref().is_some_and(|name| !name.is_empty());
    if (named(spec.hostname()) || named(spec.domainname())) && !namespaces.contains(Kind::Uts) {
        return invalid("hostname or domainname without a UTS namespace");
    }
    let Some(linux) = spec.linux() else {
        return Ok(());
    };
    let maps =
        |list: &Option<Vec<LinuxIdMapping>>| list.as_ref().is_some_and(|list| !list.is_empty());
    if namespaces.is_new(Kind::User) && !(maps(linux.uid_mappings()) && maps(linux.gid_mappings()))
    {
        return invalid("a new user namespace without uidMappings and gidMappings");
    }
    if linux
        .time_offsets()
        .as_ref()
        .is_some_and(|offsets| !offsets.is_empty())
        && !namespaces.is_new(Kind::Time)
    {
        return invalid("timeOffsets without a new time namespace");
    }
    for name in linux.sysctl().iter().flat_map(|all| all.keys()) {
        let path = name.replace('/', ".");
        let needed = match path.as_str() {
            name if name.starts_with("net.") => Kind::Network,
            name if name.starts_with("fs.mqueue.") => Kind::Ipc,
            name if name.starts_with("kernel.msg")
                || name.starts_with("kernel.shm")
                || name == "kernel.sem" =>
            {
                Kind::Ipc
            }
            "kernel.hostname" | "kernel.domainname" => Kind::Uts,
            _ => {
                return Err(CreateError::invalid(format!(
                    "sysctl {name} belongs to no namespace"
                )));
            }
        };
        if !namespaces.contains(needed) {
            return Err(CreateError::invalid(format!(
                "sysctl {name} without a {needed:?} namespace"
            )));
        }
    }
    Ok(())
}

pub(super) fn find_rootfs(spec: &Spec, bundle: &Path) -> Result<PathBuf, CreateError> {
    let root = spec
        .root()
        .as_ref()
        .ok_or_else(|| CreateError::invalid("root is missing"))?;
    let path = bundle.join(root.path());
    let found = fs::canonicalize(&path).map_err(|source| CreateError::StateFile {
        what: "find the rootfs",
        path: path.clone(),
        source,
    })?;
    if !found.is_dir() || found == Path::new("/") {
        return Err(CreateError::invalid(format!(
            "root.path {} is no directory of its own",
            found.display()
        )));
    }
    Ok(found)
}

/// The socket at which the process waits. Its path may be longer than a socket's name can be, so it goes through the
/// directory's descriptor.
fn listen_in(dir: &StateDir) -> io::Result<OwnedFd> {
    let directory = open(
        dir.path(),
        OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let path = format!("/proc/self/fd/{}/start.sock", directory.as_raw_fd());
    let listener = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    bind(listener.as_raw_fd(), &UnixAddr::new(path.as_str())?)?;
    listen(&listener, Backlog::new(1)?)?;
    Ok(listener)
}

/// In a user namespace the process may not reach what root can, and it may never map ids: then the maker opens the sources
/// of bind mounts.
fn open_sources(
    spec: &Spec,
    namespaces: &NamespaceSet,
    bundle: &Path,
) -> Result<Vec<Option<OwnedFd>>, CreateError> {
    let linux = spec.linux().as_ref().expect("checked before");
    // An ordinary user can mount inside only, and reaches no more from outside.
    let all = namespaces.contains(Kind::User) && !is_ordinary_user();
    let mut mapper = Mapper::default();
    let mut sources = Vec::new();
    for (index, mount) in spec.mounts().iter().flatten().enumerate() {
        let options = Options::parse(mount.options().as_deref().unwrap_or_default())
            .map_err(|error| CreateError::invalid(error.to_string()))?;
        let wanted = Wanted::of(mount, &options, linux, namespaces)?;
        let typ = mount.typ().as_deref();
        let plain = options.is_bind(typ) && !options.remount && !options.copy_symlink;
        if wanted == Wanted::Unmapped && !(all && plain) {
            continue;
        }
        let recursive = options.bind.unwrap_or(typ == Some("rbind"));
        let tree = rootfs::bind_source(mount, bundle)
            .and_then(|path| rootfs::open_tree(&path, recursive))
            .map_err(|failure| CreateError::from_failure(failure, ""))?;
        mapper.map(
            tree.as_fd(),
            &wanted,
            options.idmap == Some(true),
            namespaces,
        )?;
        sources.resize_with(index, || None);
        sources.push(Some(tree));
    }
    Ok(sources)
}

/// All that is decided from a configuration before anything is made, for the fuzzer: what comes of it is what would be
/// written to `state.json`.
#[cfg(any(test, fuzzing))]
pub(crate) fn decide(id: &ContainerId, spec: &Spec) -> Result<Record, CreateError> {
    check(spec)?;
    let linux = spec.linux().as_ref().expect("checked");
    // What is joined is opened, and nothing of this machine shall be.
    let mut list = linux.namespaces().clone().unwrap_or_default();
    for namespace in &mut list {
        namespace.set_path(None);
    }
    let namespaces = NamespaceSet::open(&list).map_err(CreateError::Namespace)?;
    check_namespaces(spec, &namespaces)?;
    netdev::check(spec, &namespaces)?;
    let bundle = Path::new("/bundle");
    for mount in spec.mounts().iter().flatten() {
        let options = Options::parse(mount.options().as_deref().unwrap_or_default())
            .map_err(|error| CreateError::invalid(error.to_string()))?;
        Wanted::of(mount, &options, linux, &namespaces)?;
        if options.is_bind(mount.typ().as_deref()) {
            rootfs::bind_source(mount, bundle)
                .map_err(|failure| CreateError::from_failure(failure, ""))?;
        }
    }
    if let Some(resources) = linux.resources() {
        // Whatever it says, it has to be able to say it.
        let _refused = refuse_limits(resources);
    }
    let _owner = group_owner(spec, &namespaces);
    Ok(new_record(
        id,
        spec,
        bundle,
        &bundle.join("rootfs"),
        &namespaces,
    ))
}

/// These two are made later, by the process itself: see init.
fn by_itself() -> CloneFlags {
    CloneFlags::CLONE_NEWCGROUP | Kind::Time.flag()
}

/// Whether the process is made before its group and makes its namespaces by itself, so that neither waits for the other. On
/// v2 it is born in its group, and where a user namespace, the host's mounts or systemd come into it, the order matters.
fn goes_ahead(reserved: &Reserved, namespaces: &NamespaceSet) -> bool {
    !reserved.is_held()
        && !reserved.layout.is_unified()
        && !namespaces.contains(Kind::User)
        && namespaces.contains(Kind::Mount)
        && !is_ordinary_user()
}

/// Makes the process; in the parent, gives the end of the channel and the child.
fn spawn(plan: &Plan<'_>, group: Option<&OwnedFd>) -> Result<(Channel, Newborn), CreateError> {
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
    setns(own, CloneFlags::CLONE_NEWPID)
        .map_err(io::Error::from)
        .map_err(CreateError::system("return to our own PID namespace"))?;
    made
}

/// Whether the caller has not the rights of root: not outside, and not in a user namespace that it lives in.
pub(super) fn is_ordinary_user() -> bool {
    !nix::unistd::geteuid().is_root()
}

pub(super) fn start_time(pid: Pid) -> Result<u64, CreateError> {
    let what = || CreateError::system(format!("read /proc/{pid}/stat"));
    let stat = ProcStat::read(pid.as_raw()).map_err(what())?;
    Ok(stat
        .ok_or_else(|| what()(io::Error::from_raw_os_error(libc::ESRCH)))?
        .start_time)
}

/// The OOM score, from outside: inside a user namespace the process could not set it.
pub(super) fn finish(
    process: &Process,
    pid: Pid,
    warnings: &mut Vec<String>,
) -> Result<(), CreateError> {
    if let Some(score) = process.oom_score_adj() {
        let path = format!("/proc/{pid}/oom_score_adj");
        match fs::write(&path, score.to_string()) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
                warnings.push(format!(
                    "oomScoreAdj {score} was not set: not permitted to lower it"
                ));
            }
            done => done.map_err(CreateError::system(format!("write {score} to {path}")))?,
        }
    }
    Ok(())
}
