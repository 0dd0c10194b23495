//! The first process of a container, from its birth by clone3 to the user's program. All of this runs inside it.
//!
//! Any failure goes to the maker as a [`Failure`]; the process then ends, and its namespaces and mounts with it.

use std::convert::Infallible;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{SockFlag, accept4};
use nix::sys::stat::Mode;
use oci_spec::runtime::{LinuxTimeOffset, Spec};
use pathrs::flags::OpenFlags;
use pathrs::procfs::{ProcfsBase, ProcfsHandle, ProcfsHandleBuilder};

use crate::cgroup::GroupRecord;
use crate::error::{Failure, OrFail, Step};
use crate::hooks::{self, Env, Surroundings};
use crate::message::{Channel, Report};
use crate::namespace::{Kind, NamespaceSet};
use crate::process::{Armed, Settings};
use crate::rootfs::{MountContext, Nodes, Rootfs, path_error, setup_devices};
use crate::state::{State, Status};
use crate::sys::{self, Fork};

/// What the maker has prepared.
pub(crate) struct Plan<'a> {
    pub spec: &'a Spec,
    pub settings: Settings<'a>,
    pub namespaces: &'a NamespaceSet,
    pub bundle: &'a Path,
    pub rootfs: &'a Path,
    /// The root as it is attached in the host's mount namespace, for a container without one of its own.
    pub host_root: Option<&'a OwnedFd>,
    /// What it needs besides; `None` if it is to be given through the channel.
    pub place: Option<&'a Place>,
    /// Whether that place's start is [`Start::FromMaker`].
    pub started_by_maker: bool,
    /// Namespaces that the process makes by itself, while its maker makes its place.
    pub late: CloneFlags,
    /// Opened sources of bind mounts, in the order of the mounts.
    pub sources: &'a [Option<OwnedFd>],
    pub pivot: bool,
    /// The SELinux label of new file systems.
    pub mount_label: Option<&'a str>,
    /// Whether the maker is an ordinary user.
    pub rootless: bool,
    /// For hooks that run in here.
    pub state: &'a State,
}

/// Where a process belongs, and where it waits.
#[derive(Debug)]
pub(crate) struct Place {
    pub group: GroupRecord,
    /// Files to write `0` to; empty if the process was made inside its group.
    pub entrances: Vec<OwnedFd>,
    pub start: Start,
}

/// How a process learns that it may go on.
#[derive(Debug)]
pub(crate) enum Start {
    /// From whoever connects to this listening socket.
    AtSocket(OwnedFd),
    /// From its maker.
    FromMaker(Channel),
}

impl Start {
    fn socket(&self) -> BorrowedFd<'_> {
        match self {
            Self::AtSocket(listener) => listener.as_fd(),
            Self::FromMaker(channel) => channel.as_fd(),
        }
    }
}

impl Place {
    /// To a process that was made before it.
    pub fn give(&self, channel: &Channel) -> io::Result<()> {
        let text = serde_json::to_vec(&self.group)?;
        let entrances = self.entrances.iter().map(AsFd::as_fd);
        let fds: Vec<_> = [self.start.socket()].into_iter().chain(entrances).collect();
        channel.give(&text, &fds)
    }

    fn take(channel: &Channel, started_by_maker: bool) -> io::Result<Self> {
        let (text, fds) = channel.take()?;
        let mut fds = fds.into_iter();
        let socket = fds.next().ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            group: serde_json::from_slice(&text)?,
            entrances: fds.collect(),
            start: if started_by_maker {
                Start::FromMaker(Channel::from_fd(socket))
            } else {
                Start::AtSocket(socket)
            },
        })
    }

    fn enter(&self) -> Result<(), Failure> {
        for entrance in &self.entrances {
            nix::unistd::write(entrance, b"0")
                .map(drop)
                .or_fail(Step::Cgroup, || "enter the cgroup")?;
        }
        Ok(())
    }
}

/// Which process [`Plan::run`] runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// In its new namespaces already.
    Init,
    /// In none yet: it enters the user namespace that is given by path, makes the real one as its sibling, and ends.
    Intermediate(CloneFlags),
}

/// Runs the process to its end: never returns.
pub(crate) fn run(plan: &Plan<'_>, role: Role, channel: Channel) -> ! {
    sys::never_return(|| match plan.run(role, &channel) {
        Ok(never) => never,
        Err(None) => sys::exit_now(0),
        Err(Some(failure)) => {
            // If the maker is gone there is nobody to tell.
            let _untold = channel.report(&Report::Failed(failure));
            sys::exit_now(1)
        }
    })
}

fn hide() -> Result<(), Failure> {
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0)
        .map(drop)
        .or_fail(Step::Privileges, || "hide from ptrace")
}

impl Plan<'_> {
    /// `Err(None)`: an intermediate process has done its work.
    fn run(&self, role: Role, channel: &Channel) -> Result<Infallible, Option<Failure>> {
        // Nobody inside may look into this process (memory, descriptors, its program) before it is the user's.
        // An ordinary user is the one exception: he could not write our mappings then, so it waits for these.
        if !self.mapped_by_user() {
            hide()?;
        }
        nix::sys::stat::umask(Mode::empty());
        // Never dropped: its descriptors are closed by number below.
        let taken;
        let place: &Place = match self.place {
            Some(place) => place,
            None => {
                self.make_namespaces()?;
                let place = Place::take(channel, self.started_by_maker)
                    .or_fail(Step::Channel, || "wait for the cgroup")?;
                taken = ManuallyDrop::new(place);
                &taken
            }
        };
        place.enter()?;
        if let Some(user) = self
            .namespaces
            .joined(Kind::User)
            .filter(|_| role != Role::Init)
        {
            setns(user, CloneFlags::CLONE_NEWUSER)
                .or_fail(Step::Namespace, || "enter the user namespace")?;
        }
        if let Role::Intermediate(flags) = role {
            let flags = (flags | CloneFlags::CLONE_PARENT).bits();
            match sys::clone3(flags as u32 as u64, None)
                .or_fail(Step::Namespace, || "make namespaces")?
            {
                Fork::Child => {}
                Fork::Parent { pidfd, .. } => {
                    channel
                        .report(&Report::Born(pidfd))
                        .or_fail(Step::Channel, || "report the process")?;
                    return Err(None);
                }
            }
        }
        let (rootfs, terminal) = self.build(place, channel)?;
        let armed = self.become_process(&rootfs, terminal.as_ref(), channel)?;
        drop(rootfs);
        drop(terminal);
        // It may wait for long, and whoever can look into it must not find groups or files of the host.
        let first = 3u32.saturating_add(self.settings.preserve_fds);
        sys::close_all_but(first, &[place.start.socket(), channel.as_fd()])
            .or_fail(Step::Channel, || "close descriptors")?;
        channel
            .report(&Report::Ready)
            .or_fail(Step::Channel, || "report to be ready")?;
        Err(Some(self.wait_and_execute(armed, &place.start)?))
    }

    fn mapped_by_user(&self) -> bool {
        self.rootless && self.namespaces.is_new(Kind::User)
    }

    /// Those that do not depend on its place.
    fn make_namespaces(&self) -> Result<(), Failure> {
        unshare(self.late).or_fail(Step::Namespace, || "make namespaces")?;
        if self.late.contains(CloneFlags::CLONE_NEWNET) {
            sys::loopback_up().or_fail(Step::Namespace, || "bring up the loopback interface")?;
        }
        Ok(())
    }

    /// Namespaces, mounts, devices, the new root.
    fn build(
        &self,
        place: &Place,
        channel: &Channel,
    ) -> Result<(Rootfs, Option<OwnedFd>), Failure> {
        nix::unistd::setsid()
            .map(drop)
            .or_fail(Step::Namespace, || "start a session")?;
        self.enter_namespaces(channel)?;
        let propagation = self.linux().rootfs_propagation().as_deref();
        let rootfs = match self.host_root {
            Some(root) => Rootfs::attached(root)?,
            None => Rootfs::attach(self.rootfs, propagation)?,
        };
        let mounts = self.spec.mounts().as_deref().unwrap_or_default();
        let context = MountContext {
            sources: self.sources,
            cgroup: &place.group,
            cgroup_namespace: self.namespaces.is_new(Kind::Cgroup),
            label: self.mount_label,
            bundle: self.bundle,
        };
        rootfs.mount_all(mounts, &context)?;
        let dev_is_bound = mounts.iter().any(|mount| {
            mount.destination() == Path::new("/dev")
                && (mount.typ().as_deref() == Some("bind")
                    || mount
                        .options()
                        .iter()
                        .flatten()
                        .any(|option| option == "bind" || option == "rbind"))
        });
        if !dev_is_bound {
            let nodes = if self.namespaces.contains(Kind::User) {
                Nodes::Bind
            } else {
                Nodes::Make
            };
            setup_devices(
                &rootfs,
                self.linux().devices().as_deref().unwrap_or_default(),
                nodes,
            )?;
        }
        let cwd = self.settings.process.cwd();
        if cwd != Path::new("/") && rootfs.resolve(cwd).is_err() {
            rootfs.make_directories(cwd)?;
        }
        let terminal = self.open_terminal(&rootfs, channel)?;
        self.run_hooks_before_pivot(&rootfs, channel)?;
        self.protect(&rootfs)?;
        match self.host_root {
            Some(_) => rootfs.enter_on_host()?,
            None => rootfs.enter(self.spec, self.pivot)?,
        }
        Ok((rootfs, terminal))
    }

    fn linux(&self) -> &oci_spec::runtime::Linux {
        self.spec
            .linux()
            .as_ref()
            .expect("checked before the process was made")
    }

    fn enter_namespaces(&self, channel: &Channel) -> Result<(), Failure> {
        let joined = self
            .namespaces
            .all_joined()
            .filter(|(kind, _)| !matches!(kind, Kind::User | Kind::Pid));
        for (kind, fd) in joined {
            setns(fd, kind.flag())
                .or_fail(Step::Namespace, || format!("enter the {kind:?} namespace"))?;
        }
        if self.namespaces.is_new(Kind::Time) {
            unshare(Kind::Time.flag()).or_fail(Step::Namespace, || "make a time namespace")?;
            if let Some(offsets) = self
                .linux()
                .time_offsets()
                .as_ref()
                .filter(|offsets| !offsets.is_empty())
            {
                crate::process::write_proc_self("timens_offsets", &time_offsets(offsets))
                    .or_fail(Step::Namespace, || "set time offsets")?;
            }
        }
        if self.namespaces.is_new(Kind::User) {
            channel
                .wait()
                .or_fail(Step::Namespace, || "wait for the user mappings")?;
            hide()?;
        }
        if self.namespaces.contains(Kind::User) {
            // What is made from here on belongs to root inside, unless nobody is root there.
            let unmapped = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
            for done in [sys::setresgid(0), sys::setresuid(0)] {
                match done {
                    Err(error) if unmapped(&error) => {}
                    done => done.or_fail(Step::User, || "become root of the user namespace")?,
                }
            }
        }
        if self.namespaces.is_new(Kind::Cgroup) {
            // Only now that the process is in its group: that one becomes the root of the view.
            unshare(CloneFlags::CLONE_NEWCGROUP)
                .or_fail(Step::Namespace, || "make a cgroup namespace")?;
        }
        if self.namespaces.is_new(Kind::Network) && !self.late.contains(Kind::Network.flag()) {
            sys::loopback_up().or_fail(Step::Namespace, || "bring up the loopback interface")?;
        }
        if !crate::netdev::wanted(self.spec).is_empty() {
            channel
                .report(&Report::Network)
                .or_fail(Step::Channel, || "report the network namespace")?;
            channel
                .wait()
                .or_fail(Step::Channel, || "wait for network devices")?;
        }
        let named = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
        if let Some(name) = named(self.spec.hostname()) {
            nix::unistd::sethostname(name).or_fail(Step::Hostname, || "set the host name")?;
        }
        if let Some(name) = named(self.spec.domainname()) {
            sys::setdomainname(name.as_bytes())
                .or_fail(Step::Hostname, || "set the domain name")?;
        }
        Ok(())
    }

    fn open_terminal(
        &self,
        rootfs: &Rootfs,
        channel: &Channel,
    ) -> Result<Option<OwnedFd>, Failure> {
        if !self.settings.stdio.is_terminal() {
            return Ok(None);
        }
        let master = rootfs.open_ptmx()?;
        let slave = self.settings.open_slave(master.as_fd())?;
        rootfs.bind_console(slave.as_fd())?;
        channel
            .report(&Report::Terminal(master))
            .or_fail(Step::Terminal, || "hand over the terminal")?;
        Ok(Some(slave))
    }

    fn run_hooks_before_pivot(&self, rootfs: &Rootfs, channel: &Channel) -> Result<(), Failure> {
        let Some(all) = self.spec.hooks() else {
            return Ok(());
        };
        if hooks::before_pivot(all).next().is_some() {
            channel
                .report(&Report::Mounted)
                .or_fail(Step::Channel, || "report the mounts")?;
            channel
                .wait()
                .or_fail(Step::Channel, || "wait for the hooks")?;
        }
        // Whatever they make has usual modes: no mask is for what the specification gives a mode.
        let mask = nix::sys::stat::umask(Mode::from_bits_truncate(sys::MODE_MASK));
        let done = self.run_hooks(
            all.create_container().as_deref(),
            Status::Creating,
            "createContainer",
            &Surroundings {
                env: Env::Empty,
                // The host's root is still the root: this is where they find the container's, as with runc.
                directory: Some(rootfs.as_fd()),
            },
        );
        nix::sys::stat::umask(mask);
        done
    }

    fn run_hooks(
        &self,
        list: Option<&[oci_spec::runtime::Hook]>,
        status: Status,
        kind: &'static str,
        surroundings: &Surroundings<'_>,
    ) -> Result<(), Failure> {
        let list = list.unwrap_or_default();
        // The process id as it is seen in here (runtime.md, "State").
        let state = State {
            pid: nix::unistd::getpid().as_raw(),
            status,
            ..self.state.clone()
        };
        hooks::run_all(kind, list, &state, surroundings)
            .map_err(|error| Failure::new(Step::Hook, crate::error::chain(&error)))
    }

    /// Kernel parameters, read-only and masked paths, the read-only root.
    fn protect(&self, rootfs: &Rootfs) -> Result<(), Failure> {
        let linux = self.linux();
        if let Some(parameters) = linux
            .sysctl()
            .as_ref()
            .filter(|parameters| !parameters.is_empty())
        {
            let proc = ProcfsHandleBuilder::new()
                .unmasked()
                .build()
                .map_err(path_error)
                .or_fail(Step::Sysctl, || "open procfs")?;
            for (name, value) in parameters {
                set_parameter(&proc, name, value)
                    .or_fail(Step::Sysctl, || format!("set {name} to {value:?}"))?;
            }
        }
        for path in linux.readonly_paths().iter().flatten() {
            rootfs.make_read_only(Path::new(path))?;
        }
        rootfs.mask(linux.masked_paths().as_deref().unwrap_or_default())?;
        if self
            .spec
            .root()
            .as_ref()
            .and_then(oci_spec::runtime::Root::readonly)
            == Some(true)
        {
            rootfs.seal_root()?;
        }
        rootfs.seal_mounts()
    }

    fn become_process<'b>(
        &'b self,
        _root: &Rootfs,
        terminal: Option<&OwnedFd>,
        channel: &Channel,
    ) -> Result<Armed<'b>, Failure> {
        self.settings.connect_stdio(terminal)?;
        self.settings.arm(channel)
    }

    /// Sleeps until it may start, and tells who starts it if the program cannot be executed. If it can, the connection just
    /// closes.
    fn wait_and_execute(&self, armed: Armed<'_>, start: &Start) -> Result<Failure, Failure> {
        let accepted;
        let starter = match start {
            Start::FromMaker(channel) => channel,
            Start::AtSocket(listener) => {
                accepted = accept(listener).or_fail(Step::Channel, || "wait for start")?;
                &accepted
            }
        };
        if starter.wait().is_err() {
            return Err(Failure::new(Step::Channel, "start went away"));
        }
        let hooks = self
            .spec
            .hooks()
            .as_ref()
            .and_then(|hooks| hooks.start_container().as_deref());
        let surroundings = Surroundings {
            env: Env::These(armed.env()),
            directory: None,
        };
        let done = self
            .run_hooks(hooks, Status::Created, "startContainer", &surroundings)
            .and_then(|()| armed.execute(starter));
        let failure = match done {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        // If start was killed meanwhile, nobody is left to tell.
        let _untold = starter.report(&Report::Failed(failure.clone()));
        Ok(failure)
    }
}

/// Sleeps until somebody connects.
fn accept(listener: &OwnedFd) -> io::Result<Channel> {
    loop {
        match poll(
            &mut [PollFd::new(listener.as_fd(), PollFlags::POLLIN)],
            PollTimeout::NONE,
        ) {
            Ok(_) => break,
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let raw = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    Ok(Channel::from_fd(sys::received_fd(raw)))
}

/// Only what belongs to a namespace of the container is reachable through the handle's own procfs, and no name can
/// lead out of `/proc/sys`.
fn set_parameter(proc: &ProcfsHandle, name: &str, value: &str) -> io::Result<()> {
    use std::io::Write;
    let path = if name.contains('/') {
        name.to_owned()
    } else {
        name.replace('.', "/")
    };
    if Path::new(&path)
        .components()
        .any(|part| !matches!(part, std::path::Component::Normal(_)))
    {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let path = Path::new("sys").join(path);
    let mut file = proc
        .open(
            ProcfsBase::ProcRoot,
            path,
            OpenFlags::O_WRONLY | OpenFlags::O_CLOEXEC,
        )
        .map_err(path_error)?;
    file.write_all(value.as_bytes())
}

/// The lines of `/proc/self/timens_offsets` (time_namespaces(7)).
fn time_offsets(offsets: &std::collections::HashMap<String, LinuxTimeOffset>) -> String {
    let lines = offsets.iter().map(|(clock, offset)| {
        format!(
            "{clock} {} {}\n",
            offset.secs().unwrap_or(0),
            offset.nanosecs().unwrap_or(0)
        )
    });
    lines.collect()
}

/// The program's name for messages.
pub(crate) fn command_name(process: &oci_spec::runtime::Process) -> String {
    process
        .args()
        .as_ref()
        .and_then(|args| args.first())
        .cloned()
        .unwrap_or_default()
}
