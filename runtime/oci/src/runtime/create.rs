//! Making a container: everything up to the wait for start.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{OFlag, open};
use nix::sched::CloneFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket,
};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use oci_spec::runtime::{Process, Spec};

use super::birth::{Newborn, by_itself, spawn};
use super::check::{check, check_namespaces, find_rootfs};
use super::prepare::{Prepared, Reserved, Unfinished};
use super::{Created, Io, Runtime, Waiting};
use crate::cgroup;
use crate::error::CreateError;
use crate::hooks;
use crate::id::ContainerId;
use crate::idmap::{Mapper, Wanted};
use crate::init::{self, Place, Plan, Start};
use crate::label;
use crate::message::{Channel, Report};
use crate::mount::Options;
use crate::namespace::{Kind, NamespaceSet};
use crate::netdev;
use crate::process::Settings;
use crate::rootfs::{self, Rootfs};
use crate::seccomp::Program;
use crate::state::{ProcStat, Record, StateDir, Status};

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
        // Root of a user namespace knows: Podman and Buildah do not ask for one then.
        if without_group && is_ordinary_user() {
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
            preserve_fds: io.kept(),
            listen: io.listen.as_ref(),
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
                Report::Born(pidfd) => {
                    let pid = process_of(&pidfd)
                        .map_err(CreateError::system("tell the container's process"))?;
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
                Report::SeccompListener(_) | Report::Sibling(_) => {
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

/// Whether the process is made before its group and makes its namespaces by itself, so that neither waits for the other. On
/// v2 it is born in its group, and where a user namespace, the host's mounts or systemd come into it, the order matters.
fn goes_ahead(reserved: &Reserved, namespaces: &NamespaceSet) -> bool {
    !reserved.is_held()
        && !reserved.layout.is_unified()
        && !namespaces.contains(Kind::User)
        && namespaces.contains(Kind::Mount)
        && !is_ordinary_user()
}

/// Whether the caller has not the rights of root: not outside, and not in a user namespace that it lives in.
pub(super) fn is_ordinary_user() -> bool {
    !nix::unistd::geteuid().is_root()
}

/// The id, in our PID namespace, of the process that a descriptor means (pidfd_open(2), `/proc/self/fdinfo`).
fn process_of(pidfd: &OwnedFd) -> io::Result<Pid> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Pid:"));
    let pid = lines.find_map(|number| number.trim().parse().ok());
    // 0 is a process of which nothing is seen here, -1 one that has ended.
    let pid = pid.filter(|pid| *pid > 0);
    pid.map(Pid::from_raw)
        .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))
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
