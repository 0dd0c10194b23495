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
use oci_spec::runtime::{LinuxIdMapping, LinuxResources, Process, Spec};

use super::mapping;
use super::scope::Holder;
use super::{CgroupManager, Created, Io, Runtime};
use crate::cgroup::systemd::{Scope, Systemd, Unit};
use crate::cgroup::{self, Group, GroupRecord, Layout};
use crate::error::CreateError;
use crate::hooks;
use crate::id::ContainerId;
use crate::idmap::{Mapper, Wanted};
use crate::init::{self, Plan, Role};
use crate::label;
use crate::message::{Channel, Report};
use crate::mount::Options;
use crate::namespace::{Kind, NamespaceSet};
use crate::netdev;
use crate::process::{self, Settings};
use crate::rootfs::{self, Rootfs};
use crate::seccomp::Program;
use crate::state::{OCI_VERSION, ProcStat, Record, StateDir, Status, now};
use crate::sys::{self, Fork};

/// Removes what was made so far, unless the container comes to be.
struct Unfinished {
    dir: Option<StateDir>,
    scope: Option<(&'static dyn Systemd, Scope)>,
    group: Option<Group>,
    /// Where a root is attached on the host.
    mounted: Option<PathBuf>,
    /// Last to be made, first to go.
    process: Option<Newborn>,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Already on the way out with an error, which is the one to tell.
        drop(self.process.take());
        if let Some(path) = self.mounted.take() {
            let _kept = rootfs::unmount_from_host(&path);
        }
        if let Some(group) = self.group.take() {
            let _kept = group.kill_all();
            if let Some((systemd, scope)) = self.scope.take() {
                let _kept = systemd.stop(&scope);
            }
            let _kept = group.remove();
        }
        if let Some((systemd, scope)) = self.scope.take() {
            let _kept = systemd.stop(&scope);
        }
        if let Some(dir) = self.dir.take() {
            let _kept = dir.remove();
        }
    }
}

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
        let io = io.into();
        check(spec)?;
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

        let mut unfinished = Unfinished {
            dir: None,
            scope: None,
            group: None,
            mounted: None,
            process: None,
        };
        let dir = self.dir(id);
        match dir.create(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(CreateError::Exists { id: id.to_string() });
            }
            done => done.map_err(state_file("create", dir.path()))?,
        }
        unfinished.dir = Some(dir.clone());

        let seccomp = linux
            .seccomp()
            .as_ref()
            .map(|profile| self.seccomp_cache().compile(profile))
            .transpose();
        let seccomp = seccomp.map_err(CreateError::Seccomp)?;
        let layout = Layout::detect().map_err(CreateError::Cgroup)?;
        let resources = linux.resources().as_ref();
        let holder = match self.options.cgroup_manager {
            CgroupManager::Systemd => Some(self.start_scope(id, spec, &layout, &mut unfinished)?),
            CgroupManager::Cgroupfs => None,
        };
        let group_path = match (&holder, linux.cgroups_path()) {
            (Some(holder), _) => holder.group.clone(),
            (None, Some(path)) => path.clone(),
            (None, None) => PathBuf::from(id.as_str()),
        };
        let may_go_without = self.may_go_without_group() && holder.is_none();
        let made = match Group::create(&layout, &group_path, resources) {
            Err(error) if may_go_without && error.is_denied() => None,
            made => Some(made.map_err(CreateError::Cgroup)?),
        };
        let without_group = made.is_none();
        let mut group = made.unwrap_or_else(|| Group::from_record(GroupRecord::default()));
        unfinished.group = Some(group.clone());
        if let Some(resources) = resources {
            if without_group {
                refuse_limits(resources)?;
            } else {
                let mut limits = resources.clone();
                if is_ordinary_user() {
                    // It may load no device program into a group that was delegated to it, and needs none: nodes that it
                    // cannot make or open stay out of its reach.
                    limits.set_devices(None);
                }
                let applied = group.apply(&layout, &limits).map_err(CreateError::Cgroup);
                unfinished.group = Some(group.clone());
                applied?;
            }
        }
        if let Some(owner) = group_owner(spec, &namespaces) {
            group.give_to(owner).map_err(CreateError::Cgroup)?;
        }

        let mut record = new_record(id, spec, &bundle, &rootfs, &group, &namespaces);
        record.scope = unfinished.scope.as_ref().map(|(_, scope)| scope.clone());
        dir.write_config(spec)
            .map_err(state_file("write config.json in", dir.path()))?;
        // Before there is a process: whoever finds this after a crash knows which group to remove.
        dir.write_record(&record)
            .map_err(state_file("write state.json in", dir.path()))?;
        let listener = listen_in(&dir).map_err(state_file("listen in", dir.path()))?;
        let sources = open_sources(spec, &namespaces, &bundle)?;
        let group_fd = group.unified_fd().map_err(CreateError::Cgroup)?;
        let entrances = match group_fd {
            Some(_) => Vec::new(),
            None => group.entrances().map_err(CreateError::Cgroup)?,
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
        let state = hooks::state_for(&record, 0, Status::Creating);
        let plan = Plan {
            spec,
            settings: self.settings(process, spec, &io, seccomp.as_ref(), id),
            namespaces: &namespaces,
            bundle: &bundle,
            rootfs: &rootfs,
            host_root: host_root.as_ref(),
            entrances: &entrances,
            group: group.record(),
            sources: &sources,
            listener: &listener,
            pivot: !self.options.no_pivot,
            mount_label: label::of_mounts(spec),
            rootless: is_ordinary_user(),
            state: &state,
        };
        let (channel, newborn) = spawn(&plan, group_fd.as_ref())?;
        unfinished.process = Some(newborn);
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
        finish(process, pid, &mut born.warnings)?;
        record.pid = pid.as_raw();
        record.start_time = start_time(pid)?;
        dir.write_record(&record)
            .map_err(state_file("write state.json in", dir.path()))?;

        let mut newborn = unfinished.process.take().expect("set above");
        let pidfd = newborn.pidfd.take().expect("taken once");
        drop(holder);
        unfinished.scope = None;
        unfinished.group = None;
        unfinished.dir = None;
        unfinished.mounted = None;
        Ok(Created {
            pid,
            pidfd,
            terminal: born.terminal,
            warnings: born.warnings,
        })
    }

    /// Whether a group that may not be made is no failure.
    fn may_go_without_group(&self) -> bool {
        self.options.rootless.unwrap_or_else(is_ordinary_user)
    }

    /// Has systemd make the container's scope.
    fn start_scope(
        &self,
        id: &ContainerId,
        spec: &Spec,
        layout: &Layout,
        unfinished: &mut Unfinished,
    ) -> Result<Holder, CreateError> {
        let linux = spec.linux().as_ref();
        let path = linux.and_then(|linux| linux.cgroups_path().as_ref());
        let path = path.map_or_else(|| "".into(), |path| path.to_string_lossy());
        let resources = linux.and_then(|linux| linux.resources().clone());
        let annotations = spec.annotations().iter().flatten();
        let annotations = annotations
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let user = is_ordinary_user();
        let unit = Unit::new(
            id.as_str(),
            &path,
            &resources.unwrap_or_default(),
            &annotations,
            layout.is_unified(),
            user,
        )
        .map_err(CreateError::Systemd)?;
        let systemd = self.systemd().map_err(CreateError::Systemd)?;
        let holder = Holder::start(systemd, &unit).map_err(CreateError::Systemd)?;
        unfinished.scope = Some((systemd, unit.scope));
        Ok(holder)
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
                    let hooks = plan.spec.hooks().iter().flat_map(hooks::before_pivot);
                    for (hook, status) in hooks {
                        let state = hooks::state_for(record, pid.as_raw(), status);
                        hooks::run_all(std::slice::from_ref(hook), &state)
                            .map_err(CreateError::Hook)?;
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
fn check(spec: &Spec) -> Result<(), CreateError> {
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
    let unsupported = |what: &str| Err(CreateError::Unsupported { what: what.into() });
    if linux.intel_rdt().is_some() {
        return unsupported("linux.intelRdt");
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

fn check_namespaces(spec: &Spec, namespaces: &NamespaceSet) -> Result<(), CreateError> {
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

fn find_rootfs(spec: &Spec, bundle: &Path) -> Result<PathBuf, CreateError> {
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

fn new_record(
    id: &ContainerId,
    spec: &Spec,
    bundle: &Path,
    rootfs: &Path,
    group: &Group,
    namespaces: &NamespaceSet,
) -> Record {
    let has = |list: Option<&Vec<_>>| {
        list.is_some_and(|list: &Vec<oci_spec::runtime::Hook>| !list.is_empty())
    };
    let hooks = spec.hooks().as_ref();
    Record {
        oci_version: OCI_VERSION.to_owned(),
        id: id.to_string(),
        bundle: bundle.to_owned(),
        rootfs: rootfs.to_owned(),
        created: now(),
        annotations: spec
            .annotations()
            .iter()
            .flatten()
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
        pid: 0,
        start_time: 0,
        cgroup: group.record().clone(),
        scope: None,
        own_pid_namespace: namespaces.is_new(Kind::Pid),
        mounted_on_host: false,
        no_process: spec.process().is_none(),
        poststart: has(hooks.and_then(|hooks| hooks.poststart().as_ref())),
        poststop: has(hooks.and_then(|hooks| hooks.poststop().as_ref())),
    }
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
    let group = Group::from_record(GroupRecord::default());
    Ok(new_record(
        id,
        spec,
        bundle,
        &bundle.join("rootfs"),
        &group,
        &namespaces,
    ))
}

/// Makes the process; in the parent, gives the end of the channel and the child.
fn spawn(plan: &Plan<'_>, group: Option<&OwnedFd>) -> Result<(Channel, Newborn), CreateError> {
    let (ours, theirs) = Channel::pair().map_err(CreateError::system("make a socket pair"))?;
    // These two are made later, by the process itself: see init.
    let late = CloneFlags::CLONE_NEWCGROUP | Kind::Time.flag();
    let flags = plan.namespaces.new_flags() & !late;
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

/// Without a group there are no limits; device rules are the exception, because a user's container cannot make devices.
fn refuse_limits(resources: &LinuxResources) -> Result<(), CreateError> {
    let mut rest = resources.clone();
    rest.set_devices(None);
    let value =
        serde_json::to_value(&rest).map_err(|error| CreateError::invalid(error.to_string()))?;
    if says_something(&value) {
        return Err(CreateError::invalid(
            "linux.resources has limits, and this user may make no cgroup that could have them",
        ));
    }
    Ok(())
}

/// Whether anything in it is more than empty.
fn says_something(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::Null => false,
        serde_json::Value::Array(list) => list.iter().any(says_something),
        serde_json::Value::Object(map) => map.values().any(says_something),
        _ => true,
    }
}

/// To whom the container's group is given: the user who is root inside, if the container sees its groups as its own and may
/// write to them (runtime-spec, config-linux.md, "Cgroup ownership").
fn group_owner(spec: &Spec, namespaces: &NamespaceSet) -> Option<nix::unistd::Uid> {
    let own = namespaces.is_new(Kind::User) && namespaces.is_new(Kind::Cgroup);
    let writable = spec.mounts().iter().flatten().any(|mount| {
        matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"))
            && !mount.options().iter().flatten().any(|word| word == "ro")
    });
    let maps = spec.linux().as_ref()?.uid_mappings().as_ref()?;
    let root = maps
        .iter()
        .find(|map| map.container_id() == 0 && map.size() > 0)?;
    (own && writable).then(|| nix::unistd::Uid::from_raw(root.host_id()))
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
