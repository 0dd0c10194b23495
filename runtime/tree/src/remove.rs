//! The removal itself.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom, openat,
    openat2, renameat_with, seek, unlinkat,
};
use rustix::io::Errno;

/// How many directories deep the removal goes, each with a descriptor; what lies deeper is moved up first.
const DEPTH: usize = 64;
/// How often a directory that somebody fills meanwhile is gone through.
const ROUNDS: usize = 32;
/// The room for the names of a directory that are read at once.
const BUFFER: usize = 8192;

/// Why a tree is still there, at least in part.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Something is mounted there; what is behind it was not touched.
    #[error("{path:?} is a mount point")]
    Mounted {
        /// Where.
        path: PathBuf,
    },
    /// The system refused.
    #[error("remove {path:?}")]
    Io {
        /// What was to be removed.
        path: PathBuf,
        /// Why it was not.
        source: io::Error,
    },
}

impl RemoveError {
    fn io(path: &OsStr, source: impl Into<io::Error>) -> Self {
        Self::Io {
            path: path.into(),
            source: source.into(),
        }
    }

    /// The same error, told from a directory further up.
    fn below(mut self, directory: &OsStr) -> Self {
        let (Self::Mounted { path } | Self::Io { path, .. }) = &mut self;
        *path = Path::new(directory).join(&*path);
        self
    }
}

impl From<RemoveError> for io::Error {
    fn from(error: RemoveError) -> Self {
        let kind = match &error {
            RemoveError::Mounted { .. } => io::ErrorKind::ResourceBusy,
            RemoveError::Io { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

/// Removes a file, or a directory with all that is in it; nothing there is fine.
///
/// Symbolic links are removed, never followed, but for those among the parents of `path`.
///
/// # Errors
///
/// Something is mounted at `path` or below, or the system refuses. Part of the tree may be gone then; nothing outside of it is.
pub fn remove(path: &Path) -> Result<(), RemoveError> {
    remove_path(path, None)
}

/// Removes a directory as [`remove`] does, and of all that is in it the file `last` at the end: as long as something could not be
/// removed, it is there.
///
/// # Errors
///
/// As [`remove`].
pub fn remove_with_last(path: &Path, last: &str) -> Result<(), RemoveError> {
    let last = CString::new(last).map_err(|error| RemoveError::io(path.as_os_str(), error))?;
    remove_path(path, Some(&last))
}

fn remove_path(path: &Path, last: Option<&CStr>) -> Result<(), RemoveError> {
    let failed = |source: io::Error| RemoveError::io(path.as_os_str(), source);
    let name = path
        .file_name()
        .ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = match openat(CWD, parent, flags, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed(error.into())),
    };
    Removal::run(directory.as_fd(), name, last).map_err(|error| error.below(parent.as_os_str()))
}

/// Removes what `directory` has under the name, as [`remove`] does.
///
/// # Errors
///
/// As [`remove`]; its paths begin with the name.
pub fn remove_at(directory: BorrowedFd<'_>, name: &OsStr) -> Result<(), RemoveError> {
    Removal::run(directory, name, None)
}

/// The removal of one tree.
struct Removal {
    /// How many directories were moved up.
    moved: usize,
}

impl Removal {
    fn run(parent: BorrowedFd<'_>, name: &OsStr, last: Option<&CStr>) -> Result<(), RemoveError> {
        let plain = CString::new(name.as_bytes()).ok().filter(|plain| {
            !matches!(plain.to_bytes(), b"" | b"." | b"..") && !plain.to_bytes().contains(&b'/')
        });
        let Some(plain) = plain else {
            return Err(RemoveError::io(name, io::ErrorKind::InvalidInput));
        };
        Removal { moved: 0 }.entry(parent, &plain, true, last, None)
    }

    /// Removes one entry of `directory`; `top` is the uppermost directory of the tree, `None` for that one itself.
    ///
    /// Whether it is a directory may change between two looks at it; each system call only does what is right for what it finds.
    fn entry(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        mut is_directory: bool,
        last: Option<&CStr>,
        top: Option<(BorrowedFd<'_>, usize)>,
    ) -> Result<(), RemoveError> {
        let shown = OsStr::from_bytes(name.to_bytes());
        for _ in 0..ROUNDS {
            if is_directory {
                match open_inside(directory, name) {
                    Ok(inside) if self.directory(directory, name, &inside, last, top)? => {
                        return Ok(());
                    }
                    Ok(_) => is_directory = false,
                    Err(Errno::NOENT) => return Ok(()),
                    Err(Errno::NOTDIR | Errno::LOOP) => is_directory = false,
                    Err(Errno::XDEV) => return Err(RemoveError::Mounted { path: shown.into() }),
                    Err(error) => return Err(RemoveError::io(shown, error)),
                }
            } else {
                match unlinkat(directory, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => return Ok(()),
                    Err(Errno::ISDIR) => is_directory = true,
                    // The kernel removes no name that something is mounted on.
                    Err(Errno::BUSY) => return Err(RemoveError::Mounted { path: shown.into() }),
                    Err(error) => return Err(RemoveError::io(shown, error)),
                }
            }
        }
        Err(RemoveError::io(shown, Errno::BUSY))
    }

    /// Removes the directory `name` of `directory`, which is open as `inside`. Returns whether it has: something else may have come in
    /// its place.
    fn directory(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        inside: &OwnedFd,
        last: Option<&CStr>,
        top: Option<(BorrowedFd<'_>, usize)>,
    ) -> Result<bool, RemoveError> {
        let shown = OsStr::from_bytes(name.to_bytes());
        let (uppermost, depth) = top.unwrap_or((inside.as_fd(), 0));
        if depth == DEPTH {
            return self
                .move_up(directory, name, uppermost)
                .map(|()| true)
                .map_err(|error| RemoveError::io(shown, error));
        }
        let mut filled = 0;
        while filled < ROUNDS {
            let moved = self.moved;
            self.content(inside, last, (uppermost, depth + 1))
                .map_err(|error| error.below(shown))?;
            // Not while there is something to go through that lay too deep.
            if let Some(last) = last.filter(|_| self.moved == moved) {
                self.entry(inside.as_fd(), last, false, None, Some((uppermost, DEPTH)))
                    .map_err(|error| error.below(shown))?;
            }
            match unlinkat(directory, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => return Ok(true),
                Err(Errno::NOTDIR) => return Ok(false),
                // Filled meanwhile, by us or by others: once more.
                Err(Errno::NOTEMPTY | Errno::EXIST) if self.moved > moved => {}
                Err(Errno::NOTEMPTY | Errno::EXIST) => filled += 1,
                Err(Errno::BUSY) => return Err(RemoveError::Mounted { path: shown.into() }),
                Err(error) => return Err(RemoveError::io(shown, error)),
            }
            seek(inside, SeekFrom::Start(0)).map_err(|error| RemoveError::io(shown, error))?;
        }
        Err(RemoveError::io(shown, Errno::NOTEMPTY))
    }

    /// Removes what is in a directory, but for `last`.
    fn content(
        &mut self,
        inside: &OwnedFd,
        last: Option<&CStr>,
        top: (BorrowedFd<'_>, usize),
    ) -> Result<(), RemoveError> {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        let mut entries = RawDir::new(inside, &mut buffer);
        while let Some(entry) = entries.next() {
            // Told of the directory itself, by who called.
            let entry = entry.map_err(|error| RemoveError::io(OsStr::new(""), error))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") || last == Some(name) {
                continue;
            }
            let is_directory = entry.file_type() == FileType::Directory;
            self.entry(inside.as_fd(), name, is_directory, None, Some(top))?;
        }
        Ok(())
    }

    /// Moves a directory that lies too deep right below the uppermost one, whose turn comes again.
    fn move_up(
        &mut self,
        directory: BorrowedFd<'_>,
        name: &CStr,
        uppermost: BorrowedFd<'_>,
    ) -> Result<(), Errno> {
        for _ in 0..ROUNDS {
            self.moved += 1;
            let place = format!(".removed-{}", self.moved);
            match renameat_with(directory, name, uppermost, place, RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                Err(Errno::NOENT) => return Ok(()),
                done => return done,
            }
        }
        Err(Errno::EXIST)
    }
}

/// Opens the directory `name` of `directory` itself, not what a link or a mount puts in its place.
fn open_inside(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_XDEV
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS;
    loop {
        // `EAGAIN`: something was renamed or mounted somewhere meanwhile. Source: openat2(2), Linux 5.6.
        match openat2(directory, name, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::mkdirat;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::mounts::tests::{bind, in_mount_namespace};

    #[test]
    fn a_file_a_link_and_a_tree_go_and_nothing_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, kept) = (dir.path().join("tree"), dir.path().join("kept"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::create_dir_all(&kept).unwrap();
        fs::write(kept.join("precious"), "x").unwrap();
        for n in 0..500 {
            fs::write(tree.join(format!("a/a rather long name of a file {n}")), "").unwrap();
        }
        symlink(&kept, tree.join("a/b/link")).unwrap();
        symlink(&kept, dir.path().join("link")).unwrap();
        remove(&tree).unwrap();
        remove(&tree).unwrap();
        remove(&tree.join("below")).unwrap();
        remove(&dir.path().join("link")).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left, ["kept"]);
        remove(&kept.join("precious")).unwrap();
        assert!(!kept.join("precious").exists());
        for bad in ["/", "..", "a/..", ""] {
            assert!(remove(Path::new(bad)).is_err(), "{bad}");
        }
    }

    /// Bind mounts of the same file system look like plain directories to whoever compares device numbers.
    #[test]
    fn what_is_mounted_in_a_tree_stays_whole() {
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let (tree, host) = (dir.path().join("tree"), dir.path().join("host"));
            fs::create_dir_all(tree.join("a/place")).unwrap();
            fs::write(tree.join("a/file"), "").unwrap();
            fs::create_dir_all(&host).unwrap();
            fs::write(host.join("precious"), "x").unwrap();

            bind(&host, &tree.join("a/place"));
            let error = remove(&tree).unwrap_err();
            assert!(
                matches!(&error, RemoveError::Mounted { path } if *path == tree.join("a/place")),
                "{error:?}"
            );
            assert_eq!(fs::read(host.join("precious")).unwrap(), b"x");
            assert!(tree.exists());
            crate::unmount_below(&tree).unwrap();

            fs::write(tree.join("a/file"), "").unwrap();
            bind(&host.join("precious"), &tree.join("a/file"));
            let error = remove(&tree).unwrap_err();
            assert!(matches!(error, RemoveError::Mounted { .. }), "{error:?}");
            assert_eq!(fs::read(host.join("precious")).unwrap(), b"x");
            crate::unmount_below(&tree).unwrap();

            bind(&host, &tree);
            let error = remove(&tree).unwrap_err();
            assert!(matches!(error, RemoveError::Mounted { .. }), "{error:?}");
            crate::unmount_below(&tree).unwrap();
            remove(&tree).unwrap();
            assert_eq!(fs::read(host.join("precious")).unwrap(), b"x");
            assert!(!tree.exists());
        });
    }

    #[test]
    fn the_last_one_stays_as_long_as_anything_does() {
        in_mount_namespace(|| {
            let dir = tempfile::tempdir().unwrap();
            let (tree, host) = (dir.path().join("tree"), dir.path().join("host"));
            fs::create_dir_all(&host).unwrap();
            for (n, place) in ["0", "place", "zzz"].into_iter().enumerate() {
                fs::create_dir_all(tree.join(place)).unwrap();
                fs::write(tree.join("record.json"), n.to_string()).unwrap();
                bind(&host, &tree.join(place));
                remove_with_last(&tree, "record.json").unwrap_err();
                assert_eq!(
                    fs::read(tree.join("record.json")).unwrap(),
                    [b'0' + n as u8]
                );
                crate::unmount_below(&tree).unwrap();
                remove_with_last(&tree, "record.json").unwrap();
                assert!(!tree.exists());
                remove_with_last(&tree, "record.json").unwrap();
            }
        });
    }

    /// A container makes more directories within each other than a process has descriptors.
    #[test]
    fn a_tree_may_be_deeper_than_there_are_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir(&tree).unwrap();
        let open = |directory: BorrowedFd<'_>, name: &CStr| open_inside(directory, name).unwrap();
        let mut at: OwnedFd = fs::File::open(&tree).unwrap().into();
        for n in 0..2000 {
            mkdirat(&at, c"d", Mode::from_raw_mode(0o755)).unwrap();
            if n % 500 == 0 {
                mkdirat(&at, c".removed-1", Mode::from_raw_mode(0o755)).unwrap();
            }
            at = open(at.as_fd(), c"d");
        }
        remove(&tree).unwrap();
        assert!(!tree.exists());
    }

    /// Somebody puts a link to the host's files in a directory's place, again and again, while it is removed. They may win each
    /// time until the removal gives up; once they stop, it succeeds.
    #[test]
    fn a_link_put_in_a_directorys_place_is_never_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, host) = (dir.path().join("tree"), dir.path().join("host"));
        fs::create_dir_all(host.join("inner")).unwrap();
        fs::write(host.join("inner/precious"), "x").unwrap();
        let (outer, other) = (tree.join("outer"), tree.join("other"));
        for _ in 0..300 {
            fs::create_dir_all(outer.join("inner/more")).unwrap();
            fs::write(outer.join("inner/precious"), "").unwrap();
            symlink(&host, &other).unwrap();
            let stop = AtomicBool::new(false);
            let swap = || renameat_with(CWD, &outer, CWD, &other, RenameFlags::EXCHANGE);
            let removed = std::thread::scope(|scope| {
                // Until one of the two is gone.
                scope.spawn(|| while swap().is_ok() && !stop.load(Ordering::Relaxed) {});
                let removed = remove(&tree);
                stop.store(true, Ordering::Relaxed);
                removed
            });
            if let Err(error) = removed {
                let busy = matches!(&error, RemoveError::Io { source, .. }
                    if source.kind() == io::ErrorKind::ResourceBusy);
                assert!(busy, "{error:?}");
                remove(&tree).unwrap();
            }
            assert!(!tree.exists());
        }
        assert_eq!(fs::read(host.join("inner/precious")).unwrap(), b"x");
    }
}
