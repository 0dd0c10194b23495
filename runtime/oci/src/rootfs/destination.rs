//! Where a mount or a file may come: found or made inside the root, and never in a procfs.

use std::ffi::{CStr, OsString};
use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use pathrs::InodeType;

use super::{PROC_MAGIC, Rootfs, path_error};
use crate::error::{Failure, OrFail, Step};
use crate::sys;

impl Rootfs {
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
    pub(super) fn check_proc(
        &self,
        target: BorrowedFd<'_>,
        path: &Path,
        typ: &CStr,
    ) -> Result<(), Failure> {
        if typ == c"proc" && normal(path) == Path::new("/proc") {
            return Ok(());
        }
        self.refuse_in_proc(target, path)
    }

    pub(super) fn check_bind(
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
}

/// Without `.` and `..`, as text: for comparison with well-known paths only.
pub(super) fn normal(path: &Path) -> PathBuf {
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
