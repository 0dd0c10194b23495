//! A directory tree that is written by descriptor: no path leads out of its root, whatever links are in it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Paths as in a chroot, and never through the kernel's magic links. Source: openat2(2), Linux 5.6.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Links on one path, as many as the kernel follows. Source: path_resolution(7).
const MAX_LINKS: usize = 40;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What is at a name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Existing {
    Nothing,
    Directory,
    Whiteout,
    Other,
}

/// The tree, and the directory used last, since archives go directory by directory.
pub(super) struct Tree {
    root: Rc<OwnedFd>,
    /// Directories that we made because something is in them, not because the archive has them.
    implicit: BTreeSet<PathBuf>,
    last: Option<(PathBuf, Rc<OwnedFd>)>,
}

/// A name in an open directory.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) dir: Rc<OwnedFd>,
    pub(super) name: PathBuf,
}

impl Tree {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root: Rc::new(root),
            // The root, too, until its entry comes.
            implicit: BTreeSet::from([PathBuf::new()]),
            last: None,
        }
    }

    pub(super) fn root(&self) -> Rc<OwnedFd> {
        Rc::clone(&self.root)
    }

    /// The place of a path from [`inside`]; missing directories on the way are made (root's, 0755).
    pub(super) fn place(&mut self, path: &Path) -> io::Result<Place> {
        let (dir, name) = split(path)?;
        Ok(Place {
            dir: self.directory(dir)?,
            name: name.to_owned(),
        })
    }

    /// The place of a path of which all directories exist.
    pub(super) fn existing(&self, path: &Path) -> io::Result<Place> {
        let (dir, name) = split(path)?;
        Ok(Place {
            dir: Rc::new(self.open(dir)?),
            name: name.to_owned(),
        })
    }

    fn directory(&mut self, path: &Path) -> io::Result<Rc<OwnedFd>> {
        if path.as_os_str().is_empty() {
            return Ok(self.root());
        }
        if let Some((last, dir)) = &self.last
            && last == path
        {
            return Ok(Rc::clone(dir));
        }
        let dir = match self.open(path) {
            Err(err) if is_missing(&err) => self.make(path)?,
            other => other?,
        };
        let dir = Rc::new(dir);
        self.last = Some((path.to_owned(), Rc::clone(&dir)));
        Ok(dir)
    }

    /// The archive has an entry for this directory after all.
    pub(super) fn is_explicit(&mut self, path: &Path) {
        self.implicit.remove(path);
    }

    /// The directories that the archive has no entry for.
    pub(super) fn into_implicit(self) -> BTreeSet<PathBuf> {
        self.implicit
    }

    fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        if path.as_os_str().is_empty() {
            return self.root.try_clone();
        }
        Ok(rustix::fs::openat2(
            &*self.root,
            path,
            DIRECTORY,
            Mode::empty(),
            INSIDE,
        )?)
    }

    /// Opens a directory of which something is missing, and makes that: also where a link leads that has no target yet.
    fn make(&mut self, path: &Path) -> io::Result<OwnedFd> {
        let mut to_go: Vec<OsString> = backwards(path);
        // Where we are, without any link, and the directories on the way.
        let mut at = PathBuf::new();
        let mut way = vec![self.root()];
        let mut links = 0;
        while let Some(name) = to_go.pop() {
            if name == ".." {
                // The root is above itself, as in a chroot.
                if at.pop() {
                    way.pop();
                }
                continue;
            }
            let parent = Rc::clone(way.last().expect("the root is always there"));
            let place = Place::new(parent, &name);
            let dir = match place.existing()? {
                Existing::Directory => place.open_directory()?,
                Existing::Nothing => {
                    self.implicit.insert(at.join(&name));
                    place.make_directory(0o755, false)?
                }
                // A whiteout and, after it, something below: the directory is a new one.
                Existing::Whiteout => {
                    place.unlink()?;
                    place.make_directory(0o755, true)?
                }
                Existing::Other => {
                    let target = place.link_target()?;
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    if target.is_absolute() {
                        at.clear();
                        way.truncate(1);
                    }
                    to_go.extend(backwards(&target));
                    continue;
                }
            };
            at.push(&name);
            way.push(Rc::new(dir.into()));
        }
        way.last().expect("the root is always there").try_clone()
    }

    /// Removes what is at a place, whatever it is.
    pub(super) fn remove(&mut self, place: &Place, existing: Existing) -> io::Result<()> {
        // The descriptor kept may lie below.
        self.last = None;
        match existing {
            Existing::Nothing => Ok(()),
            Existing::Directory => Ok(knarr_tree::remove_at(
                place.dir.as_fd(),
                place.name.as_os_str(),
            )?),
            Existing::Whiteout | Existing::Other => place.unlink(),
        }
    }
}

impl Place {
    fn new(dir: Rc<OwnedFd>, name: &OsStr) -> Self {
        let name = PathBuf::from(name);
        Self { dir, name }
    }

    fn stat(&self) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&*self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(err) => Err(err.into()),
        }
    }

    pub(super) fn existing(&self) -> io::Result<Existing> {
        Ok(match self.stat()? {
            None => Existing::Nothing,
            Some(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Existing::Directory,
                FileType::CharacterDevice if stat.st_rdev == 0 => Existing::Whiteout,
                _ => Existing::Other,
            },
        })
    }

    pub(super) fn unlink(&self) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(
            &*self.dir,
            &self.name,
            AtFlags::empty(),
        )?)
    }

    /// What the entry here is.
    pub(super) fn kind(&self) -> io::Result<FileType> {
        let stat = rustix::fs::statat(&*self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    }

    /// Whether the other place is this very one, by whatever path it was found.
    pub(super) fn is_same(&self, other: &Self) -> io::Result<bool> {
        let (one, two) = (
            rustix::fs::fstat(&*self.dir)?,
            rustix::fs::fstat(&*other.dir)?,
        );
        Ok(self.name == other.name && (one.st_dev, one.st_ino) == (two.st_dev, two.st_ino))
    }

    /// Where the link here leads; anything else is no directory.
    fn link_target(&self) -> io::Result<PathBuf> {
        match rustix::fs::readlinkat(&*self.dir, &self.name, Vec::new()) {
            Ok(target) => Ok(PathBuf::from(OsString::from_vec(target.into_bytes()))),
            Err(Errno::INVAL) => Err(Errno::NOTDIR.into()),
            Err(err) => Err(err.into()),
        }
    }

    /// Makes a directory; an opaque one hides what lower layers have at its path.
    pub(super) fn make_directory(&self, mode: u32, opaque: bool) -> io::Result<File> {
        rustix::fs::mkdirat(&*self.dir, &self.name, Mode::from_raw_mode(0o700))?;
        let dir = self.open_directory()?;
        // Set, not asked for: the umask of whoever started us does not count.
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode))?;
        if opaque {
            make_opaque(&dir)?;
        }
        Ok(dir)
    }

    pub(super) fn open_directory(&self) -> io::Result<File> {
        Ok(rustix::fs::openat(
            &*self.dir,
            &self.name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?
        .into())
    }

    pub(super) fn create_file(&self) -> io::Result<File> {
        Ok(rustix::fs::openat(
            &*self.dir,
            &self.name,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o600),
        )?
        .into())
    }

    /// A path for calls that know no descriptors: only its last name is looked up, in our directory.
    pub(super) fn proc_path(&self) -> PathBuf {
        Path::new(&format!("/proc/self/fd/{}", self.dir.as_raw_fd())).join(&self.name)
    }
}

/// Hides what lower layers have in this directory. Source: overlayfs.rst, "whiteouts and opaque directories".
pub(super) fn make_opaque(dir: impl AsFd) -> io::Result<()> {
    Ok(rustix::fs::fsetxattr(
        dir,
        "trusted.overlay.opaque",
        b"y",
        rustix::fs::XattrFlags::empty(),
    )?)
}

/// A path of an archive as one below the root: absolute paths begin there; `None` for one that climbs above it.
///
/// `..` takes away the name before it, whatever that is: so do Docker and containerd. The root itself is the empty path.
pub(super) fn inside(path: &Path) -> Option<PathBuf> {
    let mut below = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => below.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir if below.pop() => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(below)
}

/// The names of a path, the first one last.
fn backwards(path: &Path) -> Vec<OsString> {
    let names = path.components().rev();
    names
        .filter(|component| matches!(component, Component::Normal(_) | Component::ParentDir))
        .map(|component| component.as_os_str().to_owned())
        .collect()
}

/// Whether a path has a gap that may be filled: nothing, a whiteout, or a link to either.
fn is_missing(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn split(path: &Path) -> io::Result<(&Path, &Path)> {
    match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) => Ok((dir, Path::new(name))),
        _ => Err(io::ErrorKind::InvalidFilename.into()),
    }
}
