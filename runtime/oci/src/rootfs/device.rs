//! Device nodes and the links in /dev.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, SFlag, mknodat};
use nix::unistd::{Gid, Uid, fchownat};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};

use super::hold::file_in;
use super::{Rootfs, is_char_device, metadata};
use crate::error::{Failure, OrFail, Step};
use crate::sys;

/// What every container has (runtime-spec, config-linux.md, "Default Devices").
const DEFAULTS: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// And these links.
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Whether nodes can be made, or the host's must be bound: a user namespace may not make any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nodes {
    /// Made with mknod(2).
    Make,
    /// The host's, bound.
    Bind,
}

/// The default devices and links, and the ones given.
pub(crate) fn setup_devices(
    rootfs: &Rootfs,
    given: &[LinuxDevice],
    nodes: Nodes,
) -> Result<(), Failure> {
    let dev = rootfs.device_directory()?;
    for (name, major, minor) in DEFAULTS {
        let path = Path::new("/dev").join(name);
        if given.iter().any(|device| *device.path() == path) {
            continue;
        }
        let wanted = Node {
            kind: SFlag::S_IFCHR,
            number: libc::makedev(major, minor),
            mode: 0o666,
            owner: None,
        };
        // What an image has at the place of a default device stays.
        node(dev.as_fd(), name, &path, &wanted, nodes, Existing::Keep)?;
    }
    for device in given {
        extra(rootfs, device, nodes)?;
    }
    for (name, target) in LINKS {
        link(dev.as_fd(), name, target)?;
    }
    // The container's own multiplexer, unless the mounts brought something else.
    if rootfs.resolve(Path::new("/dev/pts/ptmx")).is_ok() {
        link(dev.as_fd(), "ptmx", "pts/ptmx")?;
    }
    if rootfs.resolve(Path::new("/proc/kcore")).is_ok() {
        link(dev.as_fd(), "core", "/proc/kcore")?;
    }
    Ok(())
}

fn link(dev: BorrowedFd<'_>, name: &str, target: &str) -> Result<(), Failure> {
    match nix::unistd::symlinkat(target, dev, name) {
        Ok(()) | Err(nix::Error::EEXIST) => Ok(()),
        Err(error) => Err(error).or_fail(Step::Device, || format!("link /dev/{name}")),
    }
}

struct Node {
    kind: SFlag,
    number: u64,
    mode: u32,
    owner: Option<(u32, u32)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    Keep,
    MustMatch,
}

fn extra(rootfs: &Rootfs, device: &LinuxDevice, nodes: Nodes) -> Result<(), Failure> {
    let path = device.path();
    let what = || format!("device {}", path.display());
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => SFlag::S_IFCHR,
        LinuxDeviceType::B => SFlag::S_IFBLK,
        LinuxDeviceType::P => SFlag::S_IFIFO,
        LinuxDeviceType::A => {
            return Err(Failure::new(
                Step::Device,
                format!("{}: type a names no device", what()),
            ));
        }
    };
    let number = |value: i64| u32::try_from(value).map_err(|_| Failure::new(Step::Device, what()));
    let number = if kind == SFlag::S_IFIFO {
        0
    } else {
        libc::makedev(number(device.major())?, number(device.minor())?)
    };
    let (Some(parent), Some(name)) = (
        path.parent(),
        path.file_name().and_then(|name| name.to_str()),
    ) else {
        return Err(Failure::new(Step::Device, what()));
    };
    let owner = Some((device.uid().unwrap_or(0), device.gid().unwrap_or(0)));
    let wanted = Node {
        kind,
        number,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        owner,
    };
    let parent = rootfs.make_directories(parent)?;
    node(
        parent.as_fd(),
        name,
        path,
        &wanted,
        nodes,
        Existing::MustMatch,
    )
}

fn node(
    parent: BorrowedFd<'_>,
    name: &str,
    path: &Path,
    wanted: &Node,
    nodes: Nodes,
    existing: Existing,
) -> Result<(), Failure> {
    let what = || format!("make device {}", path.display());
    if nodes == Nodes::Bind {
        return bind(parent, name, path);
    }
    let mode = Mode::from_bits_truncate(wanted.mode);
    match mknodat(parent, name, wanted.kind, mode, wanted.number) {
        Ok(()) => {}
        Err(nix::Error::EEXIST) if existing == Existing::Keep => return Ok(()),
        Err(nix::Error::EEXIST) => {
            let there = open_node(parent, name).or_fail(Step::Device, what)?;
            let meta = metadata(there.as_fd()).or_fail(Step::Device, what)?;
            if meta.mode & libc::S_IFMT != wanted.kind.bits() || meta.device != wanted.number {
                return Err(Failure::new(
                    Step::Device,
                    format!("{}: another file is there", what()),
                ));
            }
        }
        // Without the right to make nodes (as in a user namespace that was entered by path), the host's will do.
        Err(nix::Error::EPERM) => return bind(parent, name, path),
        Err(error) => return Err(error).or_fail(Step::Device, what),
    }
    if let Some((uid, gid)) = wanted.owner.filter(|owner| *owner != (0, 0)) {
        // The node itself, looked at again: the name may belong to another file by now.
        let there = open_node(parent, name).or_fail(Step::Device, what)?;
        let meta = metadata(there.as_fd()).or_fail(Step::Device, what)?;
        if meta.mode & libc::S_IFMT != wanted.kind.bits() || meta.device != wanted.number {
            return Err(Failure::new(
                Step::Device,
                format!("{}: another file took its place", what()),
            ));
        }
        fchownat(
            &there,
            "",
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::AT_EMPTY_PATH,
        )
        .or_fail(Step::Device, what)?;
    }
    Ok(())
}

fn open_node(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

fn bind(parent: BorrowedFd<'_>, name: &str, path: &Path) -> Result<(), Failure> {
    let what = || format!("bind the host's {}", path.display());
    let text = sys::c_path(path).or_fail(Step::Device, what)?;
    let tree = sys::open_tree_clone(AT_FDCWD, &text, false).or_fail(Step::Device, what)?;
    let target = file_in(parent, name).or_fail(Step::Device, what)?;
    sys::move_mount(tree.as_fd(), target.as_fd()).or_fail(Step::Device, what)
}

/// The host's null device, which covers masked files: ours to open, so the container has no part in it (CVE-2025-31133).
pub(super) fn host_null() -> io::Result<OwnedFd> {
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open("/dev/null")?;
    if !is_char_device(&file.metadata()?, 1, 3) {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    Ok(file.into())
}
