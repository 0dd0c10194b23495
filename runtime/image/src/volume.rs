//! Copies a directory of a container's root to where it can be written apart from it: what an image has at a `VOLUME`.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use crate::error::{At, FileError};

/// Inside a root, with the image's links as in a chroot.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
/// Below a directory that is being copied: its links are copied, not followed.
const BELOW: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// Copies what is at `path` inside `root` into the empty directory `to`: everything with owners, modes, times, attributes and hard links,
/// and those of the directory itself on `to`. Nothing there leaves `to` as it is.
///
/// # Errors
///
/// It is no directory, or something cannot be read or written.
pub fn copy_directory(root: &Path, path: &Path, to: &Path) -> Result<(), FileError> {
    let shown = root.join(path.strip_prefix("/").unwrap_or(path));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let base = rustix::fs::open(root, flags, Mode::empty()).at("open", root)?;
    let inside = path.strip_prefix("/").unwrap_or(path);
    let inside = if inside.as_os_str().is_empty() {
        Path::new(".")
    } else {
        inside
    };
    let from = match rustix::fs::openat2(&base, inside, flags, Mode::empty(), INSIDE) {
        Ok(from) => from,
        Err(Errno::NOENT) => return Ok(()),
        Err(err) => return Err(err).at("open", &shown),
    };
    let target = rustix::fs::open(to, flags, Mode::empty()).at("open", to)?;
    let copy = Copy {
        from,
        to: target,
        links: BTreeMap::new(),
    };
    copy.run().at("copy", &shown)
}

/// One copy under way. Directories are opened by their path below the two roots, so that a deep tree takes no more descriptors than a flat one.
struct Copy {
    from: OwnedFd,
    to: OwnedFd,
    /// Where a file with several names was copied to first, by device and inode.
    links: BTreeMap<(u64, u64), PathBuf>,
}

impl Copy {
    fn run(mut self) -> io::Result<()> {
        let mut to_go = vec![PathBuf::new()];
        // Each before those in it; their attributes are set in the opposite order, times last of all.
        let mut directories = Vec::new();
        while let Some(path) = to_go.pop() {
            let from = open(&self.from, &path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            let to = open(&self.to, &path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            let mut dir = Dir::read_from(&from)?;
            while let Some(entry) = dir.read() {
                let entry = entry?;
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                let below = path.join(path_of(name));
                if self.entry(&from, &to, name, &below)? == FileType::Directory {
                    to_go.push(below);
                }
            }
            directories.push(path);
        }
        for path in directories.into_iter().rev() {
            let from = open(&self.from, &path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            let to = open(&self.to, &path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            attributes(&from, &to)?;
        }
        Ok(())
    }

    /// Copies one entry, of a directory only the name.
    fn entry(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        path: &Path,
    ) -> io::Result<FileType> {
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Directory {
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            return Ok(kind);
        }
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                let parent = first.parent().unwrap_or(Path::new(""));
                let dir = open(&self.to, parent, OFlags::PATH | OFlags::DIRECTORY)?;
                let first = first.file_name().expect("it has a name");
                rustix::fs::linkat(&dir, first, to, name, AtFlags::empty())?;
                return Ok(kind);
            }
            self.links.insert(inode, path.to_owned());
        }
        match kind {
            FileType::RegularFile => {
                let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source = File::from(rustix::fs::openat(from, name, read, Mode::empty())?);
                let make = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mode = Mode::RUSR | Mode::WUSR;
                let target = File::from(rustix::fs::openat(to, name, make, mode)?);
                content(&source, &target, stat.st_size.cast_unsigned())?;
                attributes(source.as_fd(), target.as_fd())?;
                return Ok(kind);
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(&target, to, name)?;
            }
            _ => rustix::fs::mknodat(to, name, kind, Mode::RUSR, stat.st_rdev)?,
        }
        attributes_at((from, name), (to, name), &stat)?;
        Ok(kind)
    }
}

fn path_of(name: &CStr) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()))
}

fn open(base: &OwnedFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(
        base,
        path,
        flags,
        Mode::empty(),
        BELOW,
    )?)
}

/// The bytes of a file. Holes stay holes, where the file system tells of them.
fn content(mut from: &File, mut to: &File, size: u64) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            // One that knows no holes.
            Err(Errno::INVAL | Errno::NOTSUP) => at,
            Err(err) => return Err(err.into()),
        };
        let end = match rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(data)) {
            Ok(end) => end,
            Err(Errno::INVAL | Errno::NOTSUP) => size,
            Err(err) => return Err(err.into()),
        };
        from.seek(SeekFrom::Start(data))?;
        to.seek(SeekFrom::Start(data))?;
        let copied = io::copy(&mut from.take(end.saturating_sub(data)), &mut to)?;
        if copied == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        at = data + copied;
    }
    to.flush()?;
    to.set_len(size)
}

/// Owner, attributes, mode and times, in an order in which none undoes another.
fn attributes(from: impl AsFd, to: impl AsFd) -> io::Result<()> {
    let stat = rustix::fs::fstat(&from)?;
    rustix::fs::fchown(
        &to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    rustix::fs::fchmod(&to, mode(&stat))?;
    let list = |buffer: &mut [u8]| rustix::fs::flistxattr(&from, buffer);
    for name in names(list)? {
        let value = |buffer: &mut [u8]| rustix::fs::fgetxattr(&from, &*name, buffer);
        let value = whole(value)?;
        unless_unsupported(rustix::fs::fsetxattr(
            &to,
            &*name,
            &value,
            XattrFlags::empty(),
        ))?;
    }
    Ok(rustix::fs::futimens(&to, &times(&stat))?)
}

/// As [`attributes`], for what cannot be opened.
fn attributes_at(
    (from, name): (&OwnedFd, &CStr),
    (to, target): (&OwnedFd, &CStr),
    stat: &Stat,
) -> io::Result<()> {
    let no_follow = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(
        to,
        target,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
        no_follow,
    )?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        // We have just made it where nobody else writes, so it is no link.
        rustix::fs::chmodat(to, target, mode(stat), AtFlags::empty())?;
    }
    let path = |dir: &OwnedFd, name: &CStr| {
        PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(path_of(name))
    };
    let (from, proc_to) = (path(from, name), path(to, target));
    let list = |buffer: &mut [u8]| rustix::fs::llistxattr(&from, buffer);
    for name in names(list)? {
        let value = |buffer: &mut [u8]| rustix::fs::lgetxattr(&from, &*name, buffer);
        let value = whole(value)?;
        unless_unsupported(rustix::fs::lsetxattr(
            &proc_to,
            &*name,
            &value,
            XattrFlags::empty(),
        ))?;
    }
    Ok(rustix::fs::utimensat(to, target, &times(stat), no_follow)?)
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn times(stat: &Stat) -> Timestamps {
    let time = |tv_sec, nanos: u64| Timespec {
        tv_sec,
        tv_nsec: nanos.cast_signed(),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// The attributes to copy. The label is that of where the copy is, as with containerd; overlayfs' own it does not show.
fn names(list: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Vec<CString>> {
    let list = match whole(list) {
        Err(err) if err.raw_os_error() == Some(Errno::NOTSUP.raw_os_error()) => return Ok(vec![]),
        other => other?,
    };
    let names = list.split_inclusive(|byte| *byte == 0);
    Ok(names
        .filter_map(|name| CString::from_vec_with_nul(name.to_owned()).ok())
        .filter(|name| &**name != c"security.selinux")
        .collect())
}

/// All that a call has to say, which may grow between two calls.
fn whole(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Vec<u8>> {
    // The most that the kernel returns. Source: Linux, limits.h, XATTR_SIZE_MAX and XATTR_LIST_MAX.
    let mut buffer = vec![0; 64 << 10];
    let length = call(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

fn unless_unsupported(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::NOTSUP) => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};

    #[test]
    fn a_copy_has_everything_that_the_directory_has() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let data = root.join("var/data");
        fs::create_dir_all(data.join("sub/deep")).unwrap();
        // The way there leads over a link that is absolute inside the root.
        symlink("/var", root.join("link")).unwrap();
        fs::write(data.join("file"), "content").unwrap();
        chown(data.join("file"), Some(11), Some(12)).unwrap();
        let set_mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        set_mode(&data.join("file"), 0o4750);
        fs::hard_link(data.join("file"), data.join("sub/deep/again")).unwrap();
        symlink("/etc/passwd", data.join("sub/link")).unwrap();
        let sparse = File::create(data.join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        let mut writer = &sparse;
        writer.seek(SeekFrom::Start(512 << 20)).unwrap();
        writer.write_all(b"middle").unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            data.join("fifo"),
            FileType::Fifo,
            Mode::RUSR,
            0,
        )
        .unwrap();
        rustix::fs::setxattr(data.join("sub"), "trusted.x", b"1", XattrFlags::empty()).unwrap();
        chown(&data, Some(1000), Some(1001)).unwrap();
        set_mode(&data, 0o2770);
        set_mode(&data.join("sub"), 0o500);
        let old = Timestamps {
            last_access: Timespec {
                tv_sec: 5,
                tv_nsec: 7,
            },
            last_modification: Timespec {
                tv_sec: 6,
                tv_nsec: 8,
            },
        };
        rustix::fs::utimensat(rustix::fs::CWD, data.join("sub"), &old, AtFlags::empty()).unwrap();

        let to = dir.path().join("to");
        fs::create_dir(&to).unwrap();
        copy_directory(&root, Path::new("/link/data"), &to).unwrap();
        let stat = |path: &str| fs::symlink_metadata(to.join(path)).unwrap();
        assert_eq!(
            (stat("").uid(), stat("").gid(), stat("").mode() & 0o7777),
            (1000, 1001, 0o2770)
        );
        let file = stat("file");
        assert_eq!(
            (file.uid(), file.gid(), file.mode() & 0o7777),
            (11, 12, 0o4750)
        );
        assert_eq!(fs::read(to.join("file")).unwrap(), b"content");
        assert_eq!(file.ino(), stat("sub/deep/again").ino());
        assert_eq!(
            fs::read_link(to.join("sub/link")).unwrap(),
            Path::new("/etc/passwd")
        );
        assert!(stat("fifo").file_type().is_fifo());
        assert_eq!(
            (stat("sub").mode() & 0o7777, stat("sub").mtime()),
            (0o500, 6)
        );
        let mut value = [0; 4];
        let length = rustix::fs::getxattr(to.join("sub"), "trusted.x", &mut value).unwrap();
        assert_eq!(&value[..length], b"1");
        assert_eq!(stat("sparse").len(), 1 << 30);
        assert!(
            stat("sparse").blocks() * 512 < 1 << 20,
            "{}",
            stat("sparse").blocks()
        );
        let mut copied = File::open(to.join("sparse")).unwrap();
        copied.seek(SeekFrom::Start(512 << 20)).unwrap();
        let mut middle = [0; 6];
        copied.read_exact(&mut middle).unwrap();
        assert_eq!(&middle, b"middle");
    }

    #[test]
    fn nothing_is_copied_from_outside_and_a_file_is_no_volume() {
        let dir = tempfile::tempdir().unwrap();
        let (root, to) = (dir.path().join("root"), dir.path().join("to"));
        fs::create_dir_all(&root).unwrap();
        fs::create_dir(&to).unwrap();
        fs::create_dir(dir.path().join("secret")).unwrap();
        fs::write(dir.path().join("secret/x"), "").unwrap();
        symlink("../secret", root.join("climb")).unwrap();
        for path in ["/climb", "/../secret", "/nothing", "/nothing/below"] {
            copy_directory(&root, Path::new(path), &to).unwrap();
            assert_eq!(fs::read_dir(&to).unwrap().count(), 0, "{path}");
        }
        fs::write(root.join("file"), "").unwrap();
        let err = copy_directory(&root, Path::new("/file"), &to).unwrap_err();
        assert_eq!(err.source.kind(), io::ErrorKind::NotADirectory);
    }
}
