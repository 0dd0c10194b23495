//! A directory tree that is written by descriptor: no path leads out of its root, whatever links are in it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Paths as in a chroot, and never through the kernel's magic links. Source: openat2(2), Linux 5.6.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

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
            Err(err) if err.kind() == io::ErrorKind::NotFound => self.make(path)?,
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

    fn make(&mut self, path: &Path) -> io::Result<OwnedFd> {
        let mut at = PathBuf::new();
        let mut parent = self.root();
        for component in path.components() {
            at.push(component);
            match self.open(&at) {
                Ok(dir) => parent = Rc::new(dir),
                Err(err) if err.kind() == io::ErrorKind::NotFound => {
                    let place = Place::new(parent, component.as_os_str());
                    parent = Rc::new(place.make_directory(0o755, false)?.into());
                    self.implicit.insert(at.clone());
                }
                Err(err) if err.kind() == io::ErrorKind::NotADirectory => {
                    // A whiteout and, after it, something below: the directory is a new one.
                    let place = Place::new(parent, component.as_os_str());
                    if place.existing()? != Existing::Whiteout {
                        return Err(err);
                    }
                    place.unlink()?;
                    parent = Rc::new(place.make_directory(0o755, true)?.into());
                }
                Err(err) => return Err(err),
            }
        }
        self.open(path)
    }

    /// Removes what is at a place, whatever it is.
    pub(super) fn remove(&mut self, place: &Place, existing: Existing) -> io::Result<()> {
        // The descriptor kept may lie below.
        self.last = None;
        match existing {
            Existing::Nothing => Ok(()),
            Existing::Directory => {
                let parent = pathrs::Root::from_fd(place.dir.try_clone()?);
                parent.remove_all(&place.name).map_err(io::Error::other)
            }
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

    /// Makes a directory; an opaque one hides what lower layers have at its path.
    pub(super) fn make_directory(&self, mode: u32, opaque: bool) -> io::Result<File> {
        rustix::fs::mkdirat(&*self.dir, &self.name, Mode::from_raw_mode(mode))?;
        let dir = self.open_directory()?;
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

/// A path of an archive as one below the root: absolute paths begin there; `None` for one that climbs.
///
/// The root itself is the empty path.
pub(super) fn inside(path: &Path) -> Option<PathBuf> {
    let mut below = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => below.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(below)
}

fn split(path: &Path) -> io::Result<(&Path, &Path)> {
    match (path.parent(), path.file_name()) {
        (Some(dir), Some(name)) => Ok((dir, Path::new(name))),
        _ => Err(io::ErrorKind::InvalidFilename.into()),
    }
}
