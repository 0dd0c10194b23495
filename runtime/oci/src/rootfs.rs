//! The container's file tree: root, mounts, devices, masked and read-only paths. Runs inside the container's process.
//!
//! Every destination is resolved inside the root by `pathrs` (openat2 with `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`) to a
//! descriptor, and every mount is attached to that descriptor: a symlink in the image, or one swapped in by another
//! container that shares a directory, never leads out, and there is no path to race for.

use std::cell::RefCell;
use std::ffi::{CStr, CString, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use oci_spec::runtime::{Mount, Spec};
use pathrs::flags::OpenFlags;
use pathrs::{InodeType, RootRef};

use crate::error::{Failure, OrFail, Step};
use crate::mount::{self, Options};
use crate::sys::{self, MountAttr};

mod cgroup;
mod copy;
mod device;
mod hold;

pub(crate) use cgroup::by_directory;
pub(crate) use device::{Nodes, setup_devices};

/// statfs(2) types.
const PROC_MAGIC: i64 = 0x9fa0;
const DEVPTS_MAGIC: i64 = 0x1cd1;
const MOUNT_ATTR_RDONLY: u64 = 1;

/// An open root, already a mount of its own.
#[derive(Debug)]
pub(crate) struct Rootfs {
    fd: OwnedFd,
    held: hold::Held,
    /// Mounts to be made read-only when all that belongs into them is there.
    unsealed: RefCell<Vec<OwnedFd>>,
}

/// What a mount needs besides the configuration.
pub(crate) struct MountContext<'a> {
    /// Bind sources that the maker opened, because this process may not be able to (user namespace, id-mapped mounts);
    /// same order as the mounts.
    pub sources: &'a [Option<OwnedFd>],
    /// The container's cgroup, for mounts of type `cgroup`.
    pub cgroup: &'a crate::cgroup::GroupRecord,
    /// Whether a cgroup namespace hides what lies above it.
    pub cgroup_namespace: bool,
    /// The SELinux label of new file systems (`linux.mountLabel`).
    pub label: Option<&'a str>,
    /// The bundle: relative sources of bind mounts count from it.
    pub bundle: &'a Path,
}

/// An error of `pathrs` as the kernel's.
pub(crate) fn path_error(error: pathrs::error::Error) -> io::Error {
    use pathrs::error::ErrorKind;
    match error.kind() {
        ErrorKind::OsError(Some(errno)) => io::Error::from_raw_os_error(errno),
        ErrorKind::SafetyViolation => io::Error::from_raw_os_error(libc::EXDEV),
        ErrorKind::InvalidArgument => io::Error::from_raw_os_error(libc::EINVAL),
        ErrorKind::NotImplemented | ErrorKind::NotSupported => {
            io::Error::from_raw_os_error(libc::ENOSYS)
        }
        _ => io::Error::other(error.to_string()),
    }
}

impl Rootfs {
    /// Cuts this mount namespace off the host's, and makes the root a mount of its own in it.
    ///
    /// `propagation` is `linux.rootfsPropagation`; by default the host's mounts still arrive in bind mounts of the container,
    /// and nothing goes back.
    pub fn attach(path: &Path, propagation: Option<&str>) -> Result<Self, Failure> {
        let (flag, recursive) = match propagation {
            None | Some("") => (libc::MS_SLAVE, true),
            Some(word) => mount::propagation(word).ok_or_else(|| {
                Failure::new(Step::Rootfs, format!("unknown rootfsPropagation {word:?}"))
            })?,
        };
        let shared = flag == libc::MS_SHARED;
        // Unbindable would keep us from binding the rootfs: that one is set at the end.
        let first = if flag == libc::MS_UNBINDABLE {
            libc::MS_PRIVATE
        } else {
            flag
        };
        let attr = MountAttr {
            propagation: first,
            ..MountAttr::default()
        };
        sys::mount_setattr(AT_FDCWD, c"/", recursive || !shared, &attr)
            .or_fail(Step::Rootfs, || "set the propagation of the host's mounts")?;
        let text = sys::c_path(path).or_fail(Step::Rootfs, || "the rootfs path")?;
        let fd = sys::open_tree_clone(AT_FDCWD, &text, true).or_fail(Step::Rootfs, || {
            format!("open the rootfs {}", path.display())
        })?;
        if shared {
            // pivot_root refuses a root that is shared, or whose parent is, and our mounts must not appear on the host.
            // The root becomes shared at the end, in a new peer group.
            let attr = MountAttr {
                propagation: libc::MS_PRIVATE,
                ..MountAttr::default()
            };
            sys::mount_setattr(fd.as_fd(), c"", false, &attr)
                .or_fail(Step::Rootfs, || "make the rootfs private")?;
            path.ancestors()
                .find_map(|above| {
                    let above = sys::c_path(above).ok()?;
                    sys::mount_setattr(AT_FDCWD, &above, false, &attr).ok()
                })
                .ok_or_else(|| {
                    Failure::new(Step::Rootfs, "make the mount above the rootfs private")
                })?;
        }
        let target =
            open_path(path).or_fail(Step::Rootfs, || format!("open {}", path.display()))?;
        sys::move_mount(fd.as_fd(), target.as_fd()).or_fail(Step::Rootfs, || {
            format!("mount the rootfs {}", path.display())
        })?;
        Ok(Self::of(fd))
    }

    fn of(fd: OwnedFd) -> Self {
        Self {
            fd,
            held: hold::Held::default(),
            unsealed: RefCell::default(),
        }
    }

    /// For a container without a mount namespace of its own: makes the root a mount of its own where it is, so that all
    /// that comes on top goes with it in the end ([`unmount_from_host`]).
    pub fn attach_on_host(path: &Path) -> Result<OwnedFd, Failure> {
        let what = || format!("mount the rootfs {} on the host", path.display());
        let tree = open_tree(path, true)?;
        let attr = MountAttr {
            propagation: libc::MS_PRIVATE,
            ..MountAttr::default()
        };
        sys::mount_setattr(tree.as_fd(), c"", true, &attr).or_fail(Step::Rootfs, what)?;
        let target = open_path(path).or_fail(Step::Rootfs, what)?;
        sys::move_mount(tree.as_fd(), target.as_fd()).or_fail(Step::Rootfs, what)?;
        Ok(tree)
    }

    /// Takes a root that is attached already.
    pub fn attached(fd: &OwnedFd) -> Result<Self, Failure> {
        let fd = fd
            .try_clone()
            .or_fail(Step::Rootfs, || "copy the root's descriptor")?;
        Ok(Self::of(fd))
    }

    /// A look at its directory.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Makes this root the root of the process, without touching the host's tree.
    pub fn enter_on_host(&self) -> Result<(), Failure> {
        enter_root(self.fd.as_fd()).or_fail(Step::Rootfs, || "chroot")
    }

    pub fn root(&self) -> RootRef<'_> {
        RootRef::from_fd(self.fd.as_fd())
    }

    /// An `O_PATH` descriptor of what `path` leads to inside the root.
    pub fn resolve(&self, path: &Path) -> io::Result<OwnedFd> {
        sys::open_in_root(self.fd.as_fd(), sys::c_path(path)?.as_c_str(), libc::O_PATH)
    }

    /// All mounts of the configuration, in order.
    pub fn mount_all(&self, mounts: &[Mount], context: &MountContext<'_>) -> Result<(), Failure> {
        for (index, mount) in mounts.iter().enumerate() {
            let source = context.sources.get(index).and_then(Option::as_ref);
            self.mount(mount, source, context)
                .map_err(|failure| Failure {
                    what: format!("mount {}: {}", mount.destination().display(), failure.what),
                    ..failure
                })?;
        }
        Ok(())
    }

    fn mount(
        &self,
        mount: &Mount,
        source: Option<&OwnedFd>,
        context: &MountContext<'_>,
    ) -> Result<(), Failure> {
        let words = mount.options().as_deref().unwrap_or_default();
        let options =
            Options::parse(words).map_err(|error| Failure::new(Step::Mount, error.to_string()))?;
        let destination = mount.destination();
        let typ = mount.typ().as_deref();
        if options.remount {
            let target = self
                .resolve(destination)
                .or_fail(Step::Mount, || "resolve the destination")?;
            return apply_attributes(target.as_fd(), &options);
        }
        if options.is_bind(typ) {
            return self.bind(mount, &options, source, context);
        }
        match typ {
            Some("cgroup" | "cgroup2") => self.mount_cgroup(destination, &options, context),
            typ => {
                let name = typ.unwrap_or("none");
                let name = CString::new(name)
                    .map_err(|_| Failure::new(Step::Mount, format!("file system type {name:?}")))?;
                let source = mount.source().as_deref();
                let mut options = options;
                let tmpfs = name.as_c_str() == c"tmpfs";
                // Nodes, terminal and other mounts come into these first.
                let sealed = (tmpfs || normal(destination) == Path::new("/dev"))
                    && options.attr.set & MOUNT_ATTR_RDONLY != 0;
                if sealed {
                    options.attr.set &= !MOUNT_ATTR_RDONLY;
                }
                if tmpfs {
                    self.inherit_mode(destination, &mut options);
                }
                let new = match new_filesystem(&name, source, &options, context.label) {
                    // Only who owns the network namespace may mount it: then the host's is shown, as crun and runc's
                    // example for users do.
                    Err(failure) if name.as_c_str() == c"sysfs" && failure.is(libc::EPERM) => {
                        let tree = open_tree(Path::new("/sys"), true)?;
                        apply_attributes(tree.as_fd(), &options)?;
                        tree
                    }
                    made => made?,
                };
                let target = if matches!(name.as_bytes(), b"proc" | b"sysfs") {
                    self.plain_directory(destination)?
                } else {
                    self.destination(destination, true)?
                };
                self.check_proc(target.as_fd(), destination, &name)?;
                if options.copy_up && tmpfs {
                    self.copy_up(&new, target, destination, &options)?;
                } else {
                    self.place(new.as_fd(), target.as_fd())?;
                    apply_rest(new.as_fd(), &options)?;
                }
                if sealed {
                    let later = new.try_clone();
                    let later = later.or_fail(Step::Mount, || "hold on to the mount")?;
                    self.unsealed.borrow_mut().push(later);
                }
                self.held.keep(destination, new);
                Ok(())
            }
        }
    }

    /// A tmpfs over a directory has that one's mode if it asks for none, as with crun and runc: over `/run` not everybody may
    /// write.
    fn inherit_mode(&self, destination: &Path, options: &mut Options) {
        if options
            .data
            .iter()
            .any(|(key, _)| key.as_c_str() == c"mode")
        {
            return;
        }
        // Where there is no directory, tmpfs has a default.
        let found = self.resolve(destination);
        let Ok(found) = found.and_then(|fd| metadata(fd.as_fd())) else {
            return;
        };
        if found.is_dir() {
            let mode = CString::new(format!("{:o}", found.mode & 0o7777)).expect("digits");
            options.data.push((c"mode".to_owned(), Some(mode)));
        }
    }

    /// Makes the mounts read-only that have been kept writable till now.
    pub fn seal_mounts(&self) -> Result<(), Failure> {
        let attr = MountAttr {
            set: MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        self.unsealed.borrow().iter().try_for_each(|mount| {
            sys::mount_setattr(mount.as_fd(), c"", false, &attr)
                .or_fail(Step::Mount, || "make a mount read-only")
        })
    }

    fn bind(
        &self,
        mount: &Mount,
        options: &Options,
        source: Option<&OwnedFd>,
        context: &MountContext<'_>,
    ) -> Result<(), Failure> {
        let recursive = options
            .bind
            .unwrap_or(mount.typ().as_deref() == Some("rbind"));
        let own;
        let tree = if let Some(tree) = source {
            tree
        } else {
            let path = bind_source(mount, context.bundle)?;
            if options.copy_symlink && path.is_symlink() {
                return self.copy_link(&path, mount.destination());
            }
            own = open_tree(&path, recursive)?;
            &own
        };
        let meta = metadata(tree.as_fd()).or_fail(Step::Mount, || "look at the source")?;
        let target = self.destination(mount.destination(), meta.is_dir())?;
        self.check_bind(target.as_fd(), mount.destination(), tree.as_fd())?;
        self.place(tree.as_fd(), target.as_fd())?;
        apply_attributes(tree.as_fd(), options)?;
        let held = tree
            .try_clone()
            .or_fail(Step::Mount, || "hold on to the mount")?;
        self.held.keep(mount.destination(), held);
        Ok(())
    }

    fn place(&self, mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Failure> {
        sys::move_mount(mount, target).or_fail(Step::Mount, || "attach it")
    }

    fn copy_link(&self, source: &Path, destination: &Path) -> Result<(), Failure> {
        let link = fs::read_link(source)
            .or_fail(Step::Mount, || format!("read link {}", source.display()))?;
        if let Some(parent) = destination.parent() {
            self.make_directories(parent)?;
        }
        match self
            .root()
            .create(destination, &InodeType::Symlink(link.clone()))
            .map_err(path_error)
        {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let there = self.root().readlink(destination).map_err(path_error);
                match there {
                    Ok(there) if there == link => Ok(()),
                    _ => Err(Failure::new(
                        Step::Mount,
                        "another file is where the symlink should be",
                    )),
                }
            }
            done => done.or_fail(Step::Mount, || "make the symlink"),
        }
    }

    /// A new tmpfs gets a copy of what it covers, before anybody sees it.
    fn copy_up(
        &self,
        new: &OwnedFd,
        target: OwnedFd,
        path: &Path,
        options: &Options,
    ) -> Result<(), Failure> {
        let below = self
            .root()
            .open_subpath(
                path,
                OpenFlags::O_RDONLY | OpenFlags::O_DIRECTORY | OpenFlags::O_CLOEXEC,
            )
            .map_err(path_error)
            .or_fail(Step::Mount, || "open what it covers")?;
        self.place(new.as_fd(), target.as_fd())?;
        copy::tree(below.as_fd(), new.as_fd()).or_fail(Step::Mount, || "copy what it covers")?;
        apply_attributes(new.as_fd(), options)
    }

    /// The destination, made if it is missing: a directory or an empty file.
    pub fn destination(&self, path: &Path, directory: bool) -> Result<OwnedFd, Failure> {
        match self.resolve(path) {
            Ok(fd) => return Ok(fd),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).or_fail(Step::Mount, || "resolve the destination"),
        }
        if let Some(made) = self.make_last(path, directory) {
            return Ok(made);
        }
        let path = &self.without_links(path);
        if directory {
            return self.make_directories(path);
        }
        if let Some(parent) = path.parent() {
            self.make_directories(parent)?;
        }
        let kind = InodeType::File(fs::Permissions::from_mode(0o755));
        self.root()
            .create(path, &kind)
            .map_err(path_error)
            .or_fail(Step::Mount, || "make the destination")?;
        self.resolve(path)
            .or_fail(Step::Mount, || "resolve the destination")
    }

    /// Where a path leads whose last links lead nowhere: images have such links (`/etc/resolv.conf`), and what they lead to is
    /// made. A path in the root without links, if nobody changes it meanwhile; whoever does so does not leave the root
    /// either, for each step is taken from there again.
    fn without_links(&self, path: &Path) -> PathBuf {
        let split = |path: &Path| -> Vec<OsString> {
            let parts = path.components().rev();
            parts.map(|part| part.as_os_str().to_owned()).collect()
        };
        let mut rest = split(path);
        let (mut real, mut links) = (PathBuf::from("/"), 0);
        while let Some(part) = rest.pop() {
            match part.as_encoded_bytes() {
                b"/" => real = PathBuf::from("/"),
                b"." => {}
                b".." => {
                    real.pop();
                }
                _ => {
                    let next = real.join(&part);
                    match self.root().readlink(&next) {
                        // As many as the kernel follows.
                        Ok(to) if links < 40 => {
                            links += 1;
                            rest.extend(split(&to));
                        }
                        // No link, or nothing there yet.
                        _ => real = next,
                    }
                }
            }
        }
        real
    }

    /// The usual case, in three calls: only the last component is missing. It is made and opened by its name in the
    /// directory, never following a link. Anything else is left to `pathrs`.
    fn make_last(&self, path: &Path, directory: bool) -> Option<OwnedFd> {
        use nix::fcntl::{OFlag, openat};
        use nix::sys::stat::{Mode, mkdirat};
        let (parent, name) = (self.resolve(path.parent()?).ok()?, path.file_name()?);
        let mode = Mode::from_bits_truncate(0o755);
        let mut flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        if directory {
            mkdirat(&parent, name, mode).ok()?;
            flags |= OFlag::O_DIRECTORY;
        } else {
            let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
            openat(&parent, name, create, mode).ok()?;
        }
        openat(&parent, name, flags, Mode::empty()).ok()
    }

    pub fn make_directories(&self, path: &Path) -> Result<OwnedFd, Failure> {
        let what = || format!("make directory {}", path.display());
        match self.resolve(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mode = fs::Permissions::from_mode(0o755);
                let made = self.root().mkdir_all(path, &mode).map_err(path_error);
                made.map(OwnedFd::from).or_fail(Step::Mount, what)
            }
            found => found.or_fail(Step::Mount, what),
        }
    }

    /// Only procfs may cover `/proc`, and nothing may cover what lies in a procfs, but for files that report numbers
    /// (CVE-2019-16884, CVE-2019-19921: faked files there fool the runtime and security modules).
    fn check_proc(&self, target: BorrowedFd<'_>, path: &Path, typ: &CStr) -> Result<(), Failure> {
        if typ == c"proc" && normal(path) == Path::new("/proc") {
            return Ok(());
        }
        self.refuse_in_proc(target, path)
    }

    fn check_bind(
        &self,
        target: BorrowedFd<'_>,
        path: &Path,
        source: BorrowedFd<'_>,
    ) -> Result<(), Failure> {
        let magic = sys::filesystem_magic(source).or_fail(Step::Mount, || "look at the source")?;
        if normal(path) == Path::new("/proc") && magic == PROC_MAGIC {
            return Ok(());
        }
        self.refuse_in_proc(target, path)
    }

    fn refuse_in_proc(&self, target: BorrowedFd<'_>, path: &Path) -> Result<(), Failure> {
        const ALLOWED: [&str; 12] = [
            "cpuinfo",
            "diskstats",
            "meminfo",
            "stat",
            "swaps",
            "uptime",
            "loadavg",
            "slabinfo",
            "net/dev",
            "sys/kernel/ns_last_pid",
            "sys/crypto/fips_enabled",
            "scsi",
        ];
        let magic =
            sys::filesystem_magic(target).or_fail(Step::Mount, || "look at the destination")?;
        let path = normal(path);
        if magic != PROC_MAGIC && path != Path::new("/proc") {
            return Ok(());
        }
        match path.strip_prefix("/proc") {
            Ok(inside) if ALLOWED.iter().any(|name| inside == Path::new(name)) => Ok(()),
            _ => Err(Failure::new(
                Step::Mount,
                "nothing may be mounted over or inside of proc",
            )),
        }
    }

    /// Makes a path inside the root read-only; a missing one is left alone, as the specification says.
    pub fn make_read_only(&self, path: &Path) -> Result<(), Failure> {
        let what = || format!("make {} read-only", path.display());
        let target = match self.resolve_held(path) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
                return Ok(());
            }
            found => found.or_fail(Step::Protect, what)?,
        };
        let tree = sys::open_tree_clone(target.as_fd(), c"", true).or_fail(Step::Protect, what)?;
        let attr = MountAttr {
            set: MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        sys::mount_setattr(tree.as_fd(), c"", true, &attr).or_fail(Step::Protect, what)?;
        sys::move_mount(tree.as_fd(), target.as_fd()).or_fail(Step::Protect, what)
    }

    /// Hides paths: directories under an empty read-only tmpfs, files under `/dev/null` (the host's, checked).
    pub fn mask(&self, paths: &[String]) -> Result<(), Failure> {
        let mut null: Option<OwnedFd> = None;
        let mut empty: Option<OwnedFd> = None;
        for path in paths {
            let what = || format!("mask {path}");
            let target = match self.resolve_held(Path::new(path)) {
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) =>
                {
                    continue;
                }
                found => found.or_fail(Step::Protect, what)?,
            };
            if metadata(target.as_fd())
                .or_fail(Step::Protect, what)?
                .is_dir()
            {
                let cover = match &empty {
                    // A copy of the first one, which is attached by now: older kernels copy only attached mounts.
                    Some(first) => sys::open_tree_clone(first.as_fd(), c"", false)
                        .or_fail(Step::Protect, what)?,
                    None => empty_directory().or_fail(Step::Protect, what)?,
                };
                sys::move_mount(cover.as_fd(), target.as_fd()).or_fail(Step::Protect, what)?;
                empty.get_or_insert(cover);
            } else {
                let null = match &null {
                    Some(null) => null,
                    None => null.insert(device::host_null().or_fail(Step::Protect, what)?),
                };
                let cover =
                    sys::open_tree_clone(null.as_fd(), c"", false).or_fail(Step::Protect, what)?;
                sys::move_mount(cover.as_fd(), target.as_fd()).or_fail(Step::Protect, what)?;
            }
        }
        Ok(())
    }

    /// Makes the root itself read-only, not what is mounted below it.
    pub fn seal_root(&self) -> Result<(), Failure> {
        let attr = MountAttr {
            set: MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        sys::mount_setattr(self.fd.as_fd(), c"", false, &attr)
            .or_fail(Step::Rootfs, || "make the root read-only")
    }

    /// Makes this root the root of the process, and drops the host's tree.
    pub fn enter(&self, spec: &Spec, pivot: bool) -> Result<(), Failure> {
        nix::unistd::fchdir(&self.fd).or_fail(Step::Rootfs, || "enter the root")?;
        let word = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.rootfs_propagation().as_deref())
            .unwrap_or_default();
        if pivot {
            // Both on the same directory: the old root ends up on top of the new one, to be lifted off.
            nix::unistd::pivot_root(".", ".").or_fail(Step::Rootfs, || "pivot_root")?;
            if mount::propagation(word).is_some_and(|(flag, _)| flag == libc::MS_SHARED) {
                // What is lifted off here must not be unmounted on the host.
                let attr = MountAttr {
                    propagation: libc::MS_SLAVE,
                    ..MountAttr::default()
                };
                sys::mount_setattr(AT_FDCWD, c".", true, &attr)
                    .or_fail(Step::Rootfs, || "cut off the old root")?;
            }
            nix::mount::umount2(".", nix::mount::MntFlags::MNT_DETACH)
                .or_fail(Step::Rootfs, || "drop the old root")?;
        } else {
            let root = open_path(Path::new("/")).or_fail(Step::Rootfs, || "open the old root")?;
            sys::move_mount(self.fd.as_fd(), root.as_fd())
                .or_fail(Step::Rootfs, || "move the root")?;
            nix::unistd::chroot(".").or_fail(Step::Rootfs, || "chroot")?;
        }
        nix::unistd::chdir("/").or_fail(Step::Rootfs, || "enter the new root")?;
        if let Some((flag, recursive)) = mount::propagation(word) {
            let attr = MountAttr {
                propagation: flag,
                ..MountAttr::default()
            };
            sys::mount_setattr(AT_FDCWD, c"/", recursive, &attr)
                .or_fail(Step::Rootfs, || "set rootfsPropagation")?;
        }
        Ok(())
    }

    /// See [`open_ptmx`].
    pub fn open_ptmx(&self) -> Result<OwnedFd, Failure> {
        open_ptmx(self.root())
    }

    /// Puts a terminal at /dev/console, and nowhere else: an image's symlink there is refused (CVE-2025-52565).
    pub fn bind_console(&self, terminal: BorrowedFd<'_>) -> Result<(), Failure> {
        let what = || "bind the terminal to /dev/console";
        let target = hold::file_in(self.device_directory()?.as_fd(), "console")
            .or_fail(Step::Terminal, || "find a place for /dev/console")?;
        let tree = sys::open_tree_clone(terminal, c"", false).or_fail(Step::Terminal, what)?;
        sys::move_mount(tree.as_fd(), target.as_fd()).or_fail(Step::Terminal, what)
    }
}

/// Changes the root of this process.
pub(crate) fn enter_root(root: BorrowedFd<'_>) -> io::Result<()> {
    nix::unistd::fchdir(root)?;
    nix::unistd::chroot(".")?;
    Ok(nix::unistd::chdir("/")?)
}

/// Takes away what [`Rootfs::attach_on_host`] has attached, with all on top of it.
pub(crate) fn unmount_from_host(path: &Path) -> io::Result<()> {
    use nix::mount::{MntFlags, umount2};
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // Somebody was faster.
        Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        done => Ok(done?),
    }
}

/// Opens the multiplexer of the container's own devpts, and checks that it is one (CVE-2025-52565).
pub(crate) fn open_ptmx(root: RootRef<'_>) -> Result<OwnedFd, Failure> {
    let what = || "open /dev/pts/ptmx of the container";
    let flags = OpenFlags::O_RDWR | OpenFlags::O_NOCTTY | OpenFlags::O_CLOEXEC;
    let file = root
        .open_subpath("/dev/pts/ptmx", flags)
        .map_err(path_error)
        .or_fail(Step::Terminal, what)?;
    let meta = file.metadata().or_fail(Step::Terminal, what)?;
    let magic = sys::filesystem_magic(file.as_fd()).or_fail(Step::Terminal, what)?;
    if magic != DEVPTS_MAGIC || !is_char_device(&meta, 5, 2) {
        return Err(Failure::new(
            Step::Terminal,
            "/dev/pts/ptmx is not the container's own",
        ));
    }
    Ok(file.into())
}

/// Without `.` and `..`, as text: for comparison with well-known paths only.
fn normal(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

pub(crate) fn open_path(path: &Path) -> io::Result<OwnedFd> {
    use nix::fcntl::{OFlag, open};
    Ok(open(
        path,
        OFlag::O_PATH | OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    )?)
}

fn metadata(fd: BorrowedFd<'_>) -> io::Result<FileKind> {
    let stat = nix::sys::stat::fstat(fd)?;
    Ok(FileKind {
        mode: stat.st_mode,
        device: stat.st_rdev,
    })
}

/// The type of a file and its device number.
pub(crate) struct FileKind {
    mode: u32,
    device: u64,
}

impl FileKind {
    fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }
}

/// The host path of a bind mount.
pub(crate) fn bind_source(mount: &Mount, bundle: &Path) -> Result<PathBuf, Failure> {
    match mount.source() {
        Some(source) => Ok(bundle.join(source)),
        None => Err(Failure::new(Step::Mount, "a bind mount without source")),
    }
}

/// A detached copy of the tree at a host path.
pub(crate) fn open_tree(path: &Path, recursive: bool) -> Result<OwnedFd, Failure> {
    let text = sys::c_path(path).or_fail(Step::Mount, || "the source")?;
    sys::open_tree_clone(AT_FDCWD, &text, recursive)
        .or_fail(Step::Mount, || format!("open source {}", path.display()))
}

/// A detached mount of a new file system.
fn new_filesystem(
    name: &CStr,
    source: Option<&Path>,
    options: &Options,
    label: Option<&str>,
) -> Result<OwnedFd, Failure> {
    let shown = name.to_string_lossy();
    let fs = sys::fsopen(name).or_fail(Step::Mount, || format!("file system {shown}"))?;
    let bare = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    // Flags of mount(2) that fsconfig(2) does not know: a file system without such a key needs none.
    let old = |key: &CStr| ["iversion", "acl", "noacl"].contains(&&*key.to_string_lossy());
    if let Some(source) = source.and_then(|source| sys::c_path(source).ok())
        && !source.is_empty()
    {
        sys::fsconfig_string(fs.as_fd(), c"source", &source)
            .or_fail(Step::Mount, || format!("source of {shown}"))?;
    }
    for (key, value) in &options.data {
        // mqueue takes no options at all, and devpts forgot this one with Linux 4.7.
        if key.as_c_str() == c"newinstance" {
            continue;
        }
        let done = match value {
            Some(value) => sys::fsconfig_string(fs.as_fd(), key, value),
            None => sys::fsconfig_flag(fs.as_fd(), key),
        };
        match done {
            Err(error) if bare(&error) && (name == c"mqueue" || old(key)) => {}
            done => done.or_fail(Step::Mount, || {
                format!("option {:?} of {shown}", key.to_string_lossy())
            })?,
        }
    }
    // These have labels of their own, for each file.
    let own = [c"proc", c"sysfs", c"mqueue"].contains(&name);
    if let Some(label) = label.filter(|_| !own) {
        let text = CString::new(label).map_err(|_| Failure::new(Step::Mount, "mountLabel"))?;
        sys::fsconfig_string(fs.as_fd(), c"context", &text)
            .or_fail(Step::Mount, || format!("mountLabel {label} for {shown}"))?;
    }
    sys::fsconfig_create(fs.as_fd()).or_fail(Step::Mount, || format!("make {shown}"))?;
    // With the attributes that were asked for at once, so that no moment is without them.
    let late = if options.copy_up {
        MOUNT_ATTR_RDONLY
    } else {
        0
    };
    sys::fsmount(fs.as_fd(), options.attr.set & !late)
        .or_fail(Step::Mount, || format!("mount {shown}"))
}

/// What [`new_filesystem`] has not set already.
fn apply_rest(mount: BorrowedFd<'_>, options: &Options) -> Result<(), Failure> {
    apply_attributes(
        mount,
        &Options {
            attr: MountAttr::default(),
            ..options.clone()
        },
    )
}

/// Attributes and propagation, in the order in which they cannot undo each other.
fn apply_attributes(mount: BorrowedFd<'_>, options: &Options) -> Result<(), Failure> {
    if options.attr.set != 0 || options.attr.clear != 0 {
        sys::mount_setattr(mount, c"", false, &options.attr)
            .or_fail(Step::Mount, || "set its attributes")?;
    }
    if options.recursive != MountAttr::default() {
        sys::mount_setattr(mount, c"", true, &options.recursive)
            .or_fail(Step::Mount, || "set the attributes of all below")?;
    }
    for (propagation, recursive) in &options.propagation {
        let attr = MountAttr {
            propagation: *propagation,
            ..MountAttr::default()
        };
        sys::mount_setattr(mount, c"", *recursive, &attr)
            .or_fail(Step::Mount, || "set its propagation")?;
    }
    Ok(())
}

/// An empty directory that stays so.
fn empty_directory() -> io::Result<OwnedFd> {
    let fs = sys::fsopen(c"tmpfs")?;
    sys::fsconfig_string(fs.as_fd(), c"nr_inodes", c"1")?;
    sys::fsconfig_string(fs.as_fd(), c"mode", c"0555")?;
    sys::fsconfig_create(fs.as_fd())?;
    // Read-only, nosuid, nodev, noexec.
    sys::fsmount(fs.as_fd(), 0xf)
}

/// Whether a file is the character device of this number.
fn is_char_device(meta: &fs::Metadata, major: u32, minor: u32) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == libc::makedev(major, minor)
}
