//! The container's file tree: root, mounts, devices, masked and read-only paths. Runs inside the container's process.
//!
//! Every destination is resolved inside the root by `pathrs` (openat2 with `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS`) to a
//! descriptor, and every mount is attached to that descriptor: a symlink in the image, or one swapped in by another
//! container that shares a directory, never leads out, and there is no path to race for.

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::fcntl::AT_FDCWD;
use oci_spec::runtime::Spec;
use pathrs::RootRef;
use pathrs::flags::OpenFlags;

use crate::error::{Failure, OrFail, Step};
use crate::mount;
use crate::sys::{self, MountAttr};

mod cgroup;
mod copy;
mod destination;
mod device;
mod hold;
mod mounts;
mod protect;

pub(crate) use cgroup::by_directory;
pub(crate) use device::{Nodes, setup_devices};
pub(crate) use mounts::{MountContext, bind_source, open_tree};

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
            cover_host_files()?;
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

/// Takes the host's procfs and sysfs out of this mount namespace, but for those below our root, the working directory.
///
/// After chroot(2) they are still there, out of sight; and a process with a user namespace of its own may mount them anew,
/// without what we mask, as long as an unmasked one is there (fs/namespace.c, `mnt_already_visible`). As with runc.
fn cover_host_files() -> Result<(), Failure> {
    use nix::mount::{MntFlags, MsFlags, umount2};
    let what = || "take the host's procfs and sysfs away";
    let own = std::env::current_dir().or_fail(Step::Rootfs, what)?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").or_fail(Step::Rootfs, what)?;
    for point in crate::cgroup::mount_points(&mounts, &["proc", "sysfs"]) {
        if point.starts_with(&own) {
            continue;
        }
        match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // Under another mount that went just now.
            Ok(()) | Err(nix::Error::ENOENT) => {}
            // It is not for us to unmount: then it is hidden.
            Err(nix::Error::EINVAL | nix::Error::EPERM) => {
                let tmpfs = Some("tmpfs");
                nix::mount::mount(tmpfs, &point, tmpfs, MsFlags::empty(), None::<&str>)
                    .or_fail(Step::Rootfs, what)?;
            }
            Err(error) => Err(error).or_fail(Step::Rootfs, what)?,
        }
    }
    Ok(())
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

/// Whether a file is the character device of this number.
fn is_char_device(meta: &fs::Metadata, major: u32, minor: u32) -> bool {
    meta.file_type().is_char_device() && meta.rdev() == libc::makedev(major, minor)
}
