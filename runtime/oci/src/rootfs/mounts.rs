//! The mounts of the configuration: made detached, then attached to a destination that is a descriptor.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use oci_spec::runtime::Mount;
use pathrs::InodeType;
use pathrs::flags::OpenFlags;

use super::destination::normal;
use super::{MOUNT_ATTR_RDONLY, Rootfs, copy, metadata, path_error};
use crate::error::{Failure, OrFail, Step};
use crate::mount::Options;
use crate::sys::{self, MountAttr};

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

impl Rootfs {
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
pub(super) fn new_filesystem(
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
pub(super) fn apply_attributes(mount: BorrowedFd<'_>, options: &Options) -> Result<(), Failure> {
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
