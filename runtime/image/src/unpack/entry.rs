//! Writes the entries of one archive into its tree, with owner, mode, times and attributes.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::UnpackError;
use super::tree::{self, Existing, Place, Tree};
use crate::archive::{Entry, Kind, Piece, Reader};
use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Bookkeeping of AUFS, on which the format was modelled: no files of the image.
const AUFS: &[u8] = b".wh..wh.";

/// The state of one layer's unpacking.
pub(super) struct Writer {
    tree: Tree,
    /// Directories get their times last, since whatever is made in them changes those.
    directory_times: Vec<(PathBuf, Timestamps)>,
    /// Bytes of content that are left to the whole layer. The archive's own length bounds nothing: the holes of a sparse
    /// file take no place in it, and there may be eight exabytes of them.
    left: u64,
    limit: u64,
}

/// What the archive says about an entry beside its content.
struct Attributes {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    times: Timestamps,
    xattrs: Vec<(String, Vec<u8>)>,
}

impl Writer {
    /// For a layer of at most `limit` bytes of content.
    pub(super) fn new(root: std::os::fd::OwnedFd, limit: u64) -> Self {
        Self {
            tree: Tree::new(root),
            directory_times: Vec::new(),
            left: limit,
            limit,
        }
    }

    fn count(&mut self, bytes: u64) -> Result<(), UnpackError> {
        self.left = self
            .left
            .checked_sub(bytes)
            .ok_or(UnpackError::TooManyBytes { limit: self.limit })?;
        Ok(())
    }

    /// Makes one entry; `archive` is where its content comes from.
    pub(super) fn write(
        &mut self,
        entry: &Entry,
        archive: &mut Reader<impl Read>,
    ) -> Result<(), UnpackError> {
        let raw = Path::new(OsStr::from_bytes(&entry.path));
        let path = tree::inside(raw).ok_or_else(|| escape(raw))?;
        let attributes = Attributes::of(entry).map_err(UnpackError::Archive)?;
        // Before the first byte is written: a file of holes is as long as its header says.
        self.count(entry.size)?;
        let failed = |source| UnpackError::Entry {
            path: path.clone(),
            source,
        };
        if path.as_os_str().is_empty() {
            self.tree.is_explicit(&path);
            let root = self.tree.root();
            // The descriptor of the root is O_PATH; this one is for attributes.
            let dir = File::from(
                rustix::fs::openat(
                    &*root,
                    ".",
                    rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
                    Mode::empty(),
                )
                .map_err(|err| failed(err.into()))?,
            );
            return attributes.apply(&dir).map_err(failed);
        }
        let place = self.tree.place(&path).map_err(failed)?;
        let name = place.name.as_os_str().as_bytes();
        if name == OPAQUE {
            let open = rustix::fs::openat(
                &*place.dir,
                ".",
                rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
                Mode::empty(),
            );
            return open
                .map_err(Into::into)
                .and_then(tree::make_opaque)
                .map_err(failed);
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            let hidden = PathBuf::from(std::ffi::OsStr::from_bytes(hidden));
            if tree::inside(&hidden).as_deref() != Some(&hidden) || hidden.as_os_str().is_empty() {
                return Err(escape(raw));
            }
            return whiteout(&Place {
                dir: place.dir,
                name: hidden,
            })
            .map_err(failed);
        }
        self.make(entry, archive, &path, &place, &attributes)
    }

    fn make(
        &mut self,
        entry: &Entry,
        archive: &mut Reader<impl Read>,
        path: &Path,
        place: &Place,
        attributes: &Attributes,
    ) -> Result<(), UnpackError> {
        let failed = |source| UnpackError::Entry {
            path: path.to_owned(),
            source,
        };
        let existing = place.existing().map_err(failed)?;
        if entry.kind == Kind::Directory {
            let dir = match existing {
                Existing::Directory => place.open_directory(),
                Existing::Nothing => place.make_directory(0o700, false),
                Existing::Whiteout | Existing::Other => self
                    .tree
                    .remove(place, existing)
                    .and_then(|()| place.make_directory(0o700, existing == Existing::Whiteout)),
            };
            self.tree.is_explicit(path);
            self.directory_times
                .push((path.to_owned(), attributes.times.clone()));
            return dir.and_then(|dir| attributes.apply(&dir)).map_err(failed);
        }
        // A hard link to itself must not remove what it links to.
        let target = match entry.kind {
            Kind::HardLink => Some(self.link_target(entry, path)?),
            // Before what is there is removed.
            Kind::Other(letter) => {
                return Err(UnpackError::UnknownType {
                    path: path.to_owned(),
                    kind: letter,
                });
            }
            _ => None,
        };
        if let Some(target) = &target
            && target.is_same(place).map_err(failed)?
        {
            return Err(failed(io::Error::new(
                io::ErrorKind::InvalidData,
                "a hard link to itself",
            )));
        }
        if existing != Existing::Nothing {
            self.tree.remove(place, existing).map_err(failed)?;
        }
        let made = match (entry.kind, target) {
            (Kind::File, _) => {
                let mut file = place.create_file().map_err(failed)?;
                copy(archive, &mut file, path)?;
                attributes.apply(&file)
            }
            (_, Some(target)) => hard_link(&target, place, attributes),
            (Kind::Symlink, _) => symlink(entry, place, attributes),
            _ => node(entry, place, attributes),
        };
        made.map_err(failed)
    }

    fn link_target(&self, entry: &Entry, path: &Path) -> Result<Place, UnpackError> {
        let failed = |source| UnpackError::Entry {
            path: path.to_owned(),
            source,
        };
        let target = link_name(entry).map_err(failed)?;
        let below = tree::inside(target).ok_or_else(|| escape(target))?;
        self.tree.existing(&below).map_err(failed)
    }

    /// Sets the times of directories, of two entries for one those of the last, and returns those that the archive has no entry for.
    pub(super) fn finish(self) -> Result<BTreeSet<PathBuf>, UnpackError> {
        for (path, times) in self.directory_times {
            let set = self.tree.existing(&path).and_then(|place| {
                // It may have been replaced since.
                match place.existing()? {
                    Existing::Directory => {
                        rustix::fs::utimensat(
                            &*place.dir,
                            &place.name,
                            &times,
                            AtFlags::SYMLINK_NOFOLLOW,
                        )?;
                    }
                    Existing::Nothing | Existing::Whiteout | Existing::Other => {}
                }
                Ok(())
            });
            match set {
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                Err(err) if err.kind() == io::ErrorKind::NotADirectory => {}
                other => other.map_err(|source| UnpackError::Entry { path, source })?,
            }
        }
        Ok(self.tree.into_implicit())
    }
}

impl Attributes {
    fn of(entry: &Entry) -> io::Result<Self> {
        let id = |id: i64| {
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an owner out of range"))
        };
        let (seconds, nanos) = entry.modified;
        let modified = Timespec {
            tv_sec: seconds,
            tv_nsec: nanos.into(),
        };
        let xattrs = entry.xattrs.iter();
        Ok(Self {
            uid: Uid::from_raw(id(entry.uid)?),
            gid: Gid::from_raw(id(entry.gid)?),
            mode: Mode::from_raw_mode(entry.mode),
            times: Timestamps {
                last_access: modified,
                last_modification: modified,
            },
            xattrs: xattrs
                .filter(|(name, _)| is_attribute_of_an_image(name))
                .cloned()
                .collect(),
        })
    }

    /// Sets all on an open file or directory. Mode after owner, which clears set-user-id; capabilities after both.
    fn apply(&self, file: &File) -> io::Result<()> {
        rustix::fs::fchown(file, Some(self.uid), Some(self.gid))?;
        rustix::fs::fchmod(file, self.mode)?;
        for (name, value) in &self.xattrs {
            ignore_unsupported(
                name,
                rustix::fs::fsetxattr(file.as_fd(), name.as_str(), value, XattrFlags::empty()),
            )?;
        }
        Ok(rustix::fs::futimens(file, &self.times)?)
    }

    /// As [`Attributes::apply`], for what cannot be opened; a symbolic link has no mode.
    fn apply_at(&self, place: &Place, kind: FileType) -> io::Result<()> {
        rustix::fs::chownat(
            &*place.dir,
            &place.name,
            Some(self.uid),
            Some(self.gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
        if kind != FileType::Symlink {
            // We have just made it and nobody else is in this tree, so it is no link.
            rustix::fs::chmodat(&*place.dir, &place.name, self.mode, AtFlags::empty())?;
        }
        for (name, value) in &self.xattrs {
            ignore_unsupported(
                name,
                rustix::fs::lsetxattr(place.proc_path(), name.as_str(), value, XattrFlags::empty()),
            )?;
        }
        Ok(rustix::fs::utimensat(
            &*place.dir,
            &place.name,
            &self.times,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }
}

/// Whether the attribute is the image's to set: those of overlayfs would let it rearrange other layers.
fn is_attribute_of_an_image(name: &str) -> bool {
    !name.starts_with("trusted.overlay.") && !name.starts_with("user.overlay.")
}

fn ignore_unsupported(name: &str, result: rustix::io::Result<()>) -> io::Result<()> {
    use rustix::io::Errno;
    match result {
        // The file system cannot hold it (`user.*` on a link or device, SELinux labels); Docker goes on, too.
        Err(err @ (Errno::NOTSUP | Errno::PERM)) => {
            tracing::debug!(attribute = name, error = %err, "attribute left out");
            Ok(())
        }
        other => Ok(other?),
    }
}

/// Hides a lower layer's file. What the same layer has there stays: a whiteout is about lower layers only.
fn whiteout(place: &Place) -> io::Result<()> {
    match place.existing()? {
        Existing::Nothing => Ok(rustix::fs::mknodat(
            &*place.dir,
            &place.name,
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        )?),
        Existing::Directory => tree::make_opaque(place.open_directory()?),
        Existing::Whiteout | Existing::Other => Ok(()),
    }
}

/// Writes a file's content; holes stay holes.
fn copy(archive: &mut Reader<impl Read>, file: &mut File, path: &Path) -> Result<(), UnpackError> {
    let failed = |source| UnpackError::Entry {
        path: path.to_owned(),
        source,
    };
    let mut buffer = vec![0; 64 * 1024];
    let (mut length, mut ends_in_hole) = (0_u64, false);
    loop {
        match archive.piece(&mut buffer).map_err(UnpackError::Archive)? {
            Piece::Data(n) => {
                file.write_all(&buffer[..n]).map_err(failed)?;
                length += n as u64;
                ends_in_hole = false;
            }
            Piece::Hole(n) => {
                length += n;
                file.seek(io::SeekFrom::Start(length)).map_err(failed)?;
                ends_in_hole = true;
            }
            Piece::End if ends_in_hole => return file.set_len(length).map_err(failed),
            Piece::End => return Ok(()),
        }
    }
}

/// A further name. The attributes are those of the entry that comes last, as containerd sets them.
fn hard_link(target: &Place, place: &Place, attributes: &Attributes) -> io::Result<()> {
    rustix::fs::linkat(
        &*target.dir,
        &target.name,
        &*place.dir,
        &place.name,
        AtFlags::empty(),
    )?;
    attributes.apply_at(place, place.kind()?)
}

fn symlink(entry: &Entry, place: &Place, attributes: &Attributes) -> io::Result<()> {
    // Its target may be anything: it is only ever followed inside a root.
    rustix::fs::symlinkat(link_name(entry)?, &*place.dir, &place.name)?;
    attributes.apply_at(place, FileType::Symlink)
}

fn node(entry: &Entry, place: &Place, attributes: &Attributes) -> io::Result<()> {
    let kind = match entry.kind {
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let number = |number: i64| {
        u32::try_from(number)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a device out of range"))
    };
    let device = match kind {
        FileType::Fifo => 0,
        _ => rustix::fs::makedev(number(entry.device.0)?, number(entry.device.1)?),
    };
    rustix::fs::mknodat(&*place.dir, &place.name, kind, attributes.mode, device)?;
    attributes.apply_at(place, kind)
}

fn link_name(entry: &Entry) -> io::Result<&Path> {
    if entry.link.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a link without a target",
        ));
    }
    Ok(Path::new(OsStr::from_bytes(&entry.link)))
}

fn escape(path: &Path) -> UnpackError {
    UnpackError::Escape {
        path: path.display().to_string(),
    }
}
