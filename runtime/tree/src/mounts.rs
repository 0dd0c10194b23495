//! What is mounted in a directory, and how it goes.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, openat, openat2, statx,
};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change};

const MOUNTS: &str = "/proc/thread-self/mountinfo";

/// Why something is still mounted.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// The kernel does not tell what is mounted where.
    #[error("read /proc/thread-self/mountinfo")]
    Mounts {
        /// Why.
        source: io::Error,
    },
    /// The directory cannot be opened.
    #[error("open {path:?}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("unmount {path:?}")]
    Unmount {
        /// Where it is mounted.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be reached: something else covers it, or a link is in the place of one of its parents.
    #[error("{path:?} is mounted, and out of reach")]
    Hidden {
        /// Where it is mounted.
        path: PathBuf,
    },
}

/// Whether something is mounted on just this path, a bind mount of the same file system included.
///
/// # Errors
///
/// The path cannot be looked at; `NotFound` if there is nothing.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    let stat = statx(
        CWD,
        path,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::BASIC_STATS,
    )?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Takes away all that is mounted on a directory or below, and nothing that is mounted elsewhere. No directory is fine.
///
/// What still has files open there goes on using them.
///
/// # Errors
///
/// Something is still mounted.
pub fn unmount_below(directory: &Path) -> Result<(), UnmountError> {
    loop {
        let Some(open) = open_directory(directory)? else {
            return Ok(());
        };
        // As the kernel names it now, whatever links lead to it and whatever was moved since.
        let own = fs::read_link(descriptor(open.as_fd())).map_err(|source| UnmountError::Open {
            path: directory.to_owned(),
            source,
        })?;
        let text = fs::read(MOUNTS).map_err(|source| UnmountError::Mounts { source })?;
        let mut below = parse(&text);
        below.retain(|mount| mount.path.starts_with(&own));
        let Some(first) = below.first() else {
            return Ok(());
        };
        let hidden = first.path.clone();
        let mut any = false;
        // Later mounts may lie on earlier ones. What is mounted inside another one goes with it.
        for mount in below.iter().rev().filter(|mount| !inside(mount, &below)) {
            any |= detach(open.as_fd(), &own, mount)?;
        }
        if !any {
            return Err(UnmountError::Hidden { path: hidden });
        }
    }
}

/// Takes away all that is mounted on just this path, with what is mounted inside; nothing there is fine.
///
/// # Errors
///
/// The kernel refuses.
pub fn unmount(path: &Path) -> Result<(), UnmountError> {
    let failed = |source: Errno| UnmountError::Unmount {
        path: path.to_owned(),
        source: source.into(),
    };
    loop {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = match openat(CWD, path, flags, Mode::empty()) {
            Ok(open) => open,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let stat =
            statx(&open, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map_err(failed)?;
        if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Ok(());
        }
        match take_away(open.as_fd()) {
            Ok(()) => {}
            // Unmounted meanwhile by others, or no mount of ours to see.
            Err(Errno::INVAL) if !is_mount_point(path).unwrap_or(false) => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
    }
}

/// One line of mountinfo.
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    id: u64,
    parent: u64,
    path: PathBuf,
}

/// Whether the mount lies inside another one of the list, not on top of it.
fn inside(mount: &Mounted, all: &[Mounted]) -> bool {
    all.iter()
        .any(|parent| parent.id == mount.parent && parent.path != mount.path)
}

/// Unmounts this very mount, if it is what is found at its path; returns whether it was.
fn detach(directory: BorrowedFd<'_>, own: &Path, mount: &Mounted) -> Result<bool, UnmountError> {
    let failed = |source: Errno| UnmountError::Unmount {
        path: mount.path.clone(),
        source: source.into(),
    };
    let relative = mount.path.strip_prefix(own).unwrap_or(Path::new(""));
    let found = if relative.as_os_str().is_empty() {
        openat(
            directory,
            ".",
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        )
    } else {
        open_below(directory, relative)
    };
    let found = match found {
        Ok(found) => found,
        // A link, or a directory that was moved: whoever can write there has changed it since.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    let stat = statx(&found, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).map_err(failed)?;
    if stat.stx_mnt_id != mount.id {
        return Ok(false);
    }
    take_away(found.as_fd()).map_err(failed).map(|()| true)
}

/// Unmounts what the descriptor is the root of.
///
/// A mount that shares its events with others would have what is mounted inside it unmounted there, too: the bind mount of a host's
/// directory, that of the directory itself. So it is taken out of its group first. Source: mount_namespaces(7), "Propagation types".
fn take_away(mount: BorrowedFd<'_>) -> Result<(), Errno> {
    let place = descriptor(mount);
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change(&place, private)?;
    // The path is one of the kernel's links, which leads to the mount itself; it must be followed.
    rustix::mount::unmount(&place, UnmountFlags::DETACH)
}

fn descriptor(of: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", of.as_raw_fd()))
}

fn open_directory(path: &Path) -> Result<Option<OwnedFd>, UnmountError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(CWD, path, flags, Mode::empty()) {
        Ok(open) => Ok(Some(open)),
        // Neither has anything mounted below: no name at all, or a file or link of this name.
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(UnmountError::Open {
            path: path.to_owned(),
            source: error.into(),
        }),
    }
}

/// Opens a path of which no part is a link.
fn open_below(directory: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(directory, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            done => return done,
        }
    }
}

/// The mounts in the order of mountinfo (proc_pid_mountinfo(5)); lines that make no sense are none.
fn parse(text: &[u8]) -> Vec<Mounted> {
    let line = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
        let (id, parent) = (number()?, number()?);
        let path = unescape(fields.nth(2)?);
        Some(Mounted { id, parent, path })
    };
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// Undoes the octal escapes of space, tab, newline and backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) => {
                out.push(value);
                rest = &after[3..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// Runs a test in a mount namespace that dies with it.
    pub(crate) fn in_mount_namespace(test: impl FnOnce() + Send) {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test mounts and must run as root"
        );
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
                change(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE);
                test();
            });
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    fn change(path: &Path, flags: MsFlags) {
        mount(None::<&str>, path, None::<&str>, flags, None::<&str>).unwrap();
    }

    pub(crate) fn bind(source: &Path, target: &Path) {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount(Some(source), target, None::<&str>, flags, None::<&str>).unwrap();
    }

    fn mounted_below(directory: &Path) -> Vec<PathBuf> {
        let own = fs::canonicalize(directory).unwrap();
        let mut found: Vec<_> = parse(&fs::read(MOUNTS).unwrap())
            .into_iter()
            .map(|mount| mount.path)
            .filter(|path| path.starts_with(&own))
            .collect();
        found.sort();
        found
    }

    #[test]
    fn mounts_go_whatever_their_names_and_whatever_leads_to_them() {
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let odd = std::ffi::OsStr::from_bytes(b"a b\tc\nd\\040\xff#");
            let (real, host) = (dir.path().join("real"), dir.path().join("host"));
            fs::create_dir_all(host.join("inner")).unwrap();
            fs::create_dir(&real).unwrap();
            symlink(&real, dir.path().join("link")).unwrap();
            let pod = dir.path().join("link").join(odd);
            for place in ["one", "two", "tw"] {
                fs::create_dir_all(pod.join(place)).unwrap();
            }
            // Twice at one place, one within another, and a neighbour whose name begins alike.
            bind(&host, &pod.join("one"));
            bind(&host, &pod.join("one/inner"));
            bind(&host, &pod.join("two"));
            bind(&host, &pod.join("two"));
            let neighbour = pod.join("tw");
            bind(&host, &neighbour);
            assert_eq!(mounted_below(&real).len(), 5);
            unmount_below(&pod.join("two")).unwrap();
            assert_eq!(mounted_below(&real).len(), 3, "the neighbours stay");
            assert!(is_mount_point(&neighbour).unwrap());
            unmount_below(&pod).unwrap();
            assert_eq!(mounted_below(&real), [""; 0].map(PathBuf::from));
            assert!(!is_mount_point(&neighbour).unwrap());
            unmount_below(&pod).unwrap();
            unmount_below(&pod.join("absent")).unwrap();
        });
    }

    #[test]
    fn what_the_host_has_mounted_in_a_directory_stays_when_a_bind_mount_of_it_goes() {
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let (pod, host) = (dir.path().join("pod"), dir.path().join("host"));
            fs::create_dir_all(pod.join("place")).unwrap();
            fs::create_dir_all(pod.join("other")).unwrap();
            fs::create_dir_all(&host).unwrap();
            // As systemd has it: what is mounted in a directory is mounted in all bind mounts of it, and unmounted with them.
            mount(
                Some("t"),
                &host,
                Some("tmpfs"),
                MsFlags::empty(),
                None::<&str>,
            )
            .unwrap();
            change(&host, MsFlags::MS_SHARED);
            for inner in ["inner", "later"] {
                fs::create_dir(host.join(inner)).unwrap();
            }
            mount(
                Some("t"),
                &host.join("inner"),
                Some("tmpfs"),
                MsFlags::empty(),
                None::<&str>,
            )
            .unwrap();
            bind(&host, &pod.join("place"));
            bind(&host, &pod.join("other"));
            mount(
                Some("t"),
                &host.join("later"),
                Some("tmpfs"),
                MsFlags::empty(),
                None::<&str>,
            )
            .unwrap();
            assert_eq!(mounted_below(&pod).len(), 6);
            unmount_below(&pod.join("place")).unwrap();
            unmount(&pod.join("other")).unwrap();
            assert_eq!(mounted_below(&pod), [""; 0].map(PathBuf::from));
            assert!(is_mount_point(&host.join("inner")).unwrap());
            assert!(is_mount_point(&host.join("later")).unwrap());
        });
    }

    #[test]
    fn a_mount_is_found_where_it_was_moved_and_a_link_in_its_old_place_leads_nowhere() {
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let (pod, host) = (dir.path().join("pod"), dir.path().join("host"));
            fs::create_dir_all(pod.join("a/place")).unwrap();
            fs::create_dir_all(host.join("place")).unwrap();
            bind(&host, &pod.join("a/place"));
            bind(&host, &host.join("place"));
            fs::rename(pod.join("a"), pod.join("b")).unwrap();
            symlink(&host, pod.join("a")).unwrap();
            unmount_below(&pod).unwrap();
            assert_eq!(mounted_below(&pod), [""; 0].map(PathBuf::from));
            assert!(
                is_mount_point(&host.join("place")).unwrap(),
                "the host's own stays"
            );
        });
    }

    #[test]
    fn lines_of_mountinfo_are_read() {
        let text = b"36 35 98:0 /mnt1 /a\\040b/c rw,noatime master:1 - ext3 /dev/root rw\n\
                     37 36 0:5 / /plain\\134\\012\xfe rw - tmpfs t rw\nnonsense\n\n";
        let expected =
            [(36, 35, &b"/a b/c"[..]), (37, 36, b"/plain\\\n\xfe")].map(|(id, parent, path)| {
                Mounted {
                    id,
                    parent,
                    path: std::ffi::OsStr::from_bytes(path).into(),
                }
            });
        assert_eq!(parse(text), expected);
    }
}
