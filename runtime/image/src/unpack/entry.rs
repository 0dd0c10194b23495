//! Writes the entries of one archive into its tree, with owner, mode, times and attributes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use tar::EntryType;

use super::UnpackError;
use super::tree::{self, Existing, Place, Tree};

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
    /// file take no place in it, and come out as zeros, up to eight exabytes of them.
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

    /// Reads on to the end of an entry.
    pub(super) fn skip(
        &mut self,
        entry: &mut tar::Entry<'_, impl Read>,
    ) -> Result<(), UnpackError> {
        let skipped = io::copy(
            &mut entry.take(self.left.saturating_add(1)),
            &mut io::sink(),
        );
        self.count(skipped.map_err(UnpackError::Archive)?)
    }

    fn count(&mut self, bytes: u64) -> Result<(), UnpackError> {
        self.left = self
            .left
            .checked_sub(bytes)
            .ok_or(UnpackError::TooManyBytes { limit: self.limit })?;
        Ok(())
    }

    pub(super) fn write(
        &mut self,
        entry: &mut tar::Entry<'_, impl Read>,
    ) -> Result<(), UnpackError> {
        let raw = entry.path().map_err(UnpackError::Archive)?.into_owned();
        if entry.header().entry_type() == EntryType::XGlobalHeader {
            return Ok(());
        }
        let path = tree::inside(&raw).ok_or_else(|| escape(&raw))?;
        let attributes = Attributes::of(entry).map_err(UnpackError::Archive)?;
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
                return Err(escape(&raw));
            }
            return whiteout(&Place {
                dir: place.dir,
                name: hidden,
            })
            .map_err(failed);
        }
        self.make(entry, &path, &place, &attributes)
    }

    fn make(
        &mut self,
        entry: &mut tar::Entry<'_, impl Read>,
        path: &Path,
        place: &Place,
        attributes: &Attributes,
    ) -> Result<(), UnpackError> {
        let failed = |source| UnpackError::Entry {
            path: path.to_owned(),
            source,
        };
        let kind = entry.header().entry_type();
        let existing = place.existing().map_err(failed)?;
        if kind == EntryType::Directory {
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
        let target = match kind {
            EntryType::Link => Some(self.link_target(entry, path)?),
            _ => None,
        };
        if existing != Existing::Nothing {
            self.tree.remove(place, existing).map_err(failed)?;
        }
        let made = match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut file = place.create_file().map_err(failed)?;
                self.copy(entry, &mut file, path)?;
                attributes.apply(&file)
            }
            EntryType::Link => {
                let target = target.expect("found above for this type");
                rustix::fs::linkat(
                    &*target.dir,
                    &target.name,
                    &*place.dir,
                    &place.name,
                    AtFlags::empty(),
                )
                .map_err(Into::into)
            }
            EntryType::Symlink => symlink(entry, place, attributes),
            EntryType::Char | EntryType::Block | EntryType::Fifo => node(entry, place, attributes),
            _ => {
                return Err(UnpackError::UnknownType {
                    path: path.to_owned(),
                    kind: kind.as_byte(),
                });
            }
        };
        made.map_err(failed)
    }

    fn copy(
        &mut self,
        entry: &mut tar::Entry<'_, impl Read>,
        file: &mut File,
        path: &Path,
    ) -> Result<(), UnpackError> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match entry.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => {
                    self.count(n as u64)?;
                    io::Write::write_all(file, &buffer[..n]).map_err(|source| {
                        UnpackError::Entry {
                            path: path.to_owned(),
                            source,
                        }
                    })?;
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(UnpackError::Archive(err)),
            }
        }
    }

    fn link_target(
        &self,
        entry: &tar::Entry<'_, impl Read>,
        path: &Path,
    ) -> Result<Place, UnpackError> {
        let failed = |source| UnpackError::Entry {
            path: path.to_owned(),
            source,
        };
        let target = link_name(entry).map_err(failed)?;
        let below = tree::inside(&target).ok_or_else(|| escape(&target))?;
        if below == path {
            return Err(failed(io::Error::new(
                io::ErrorKind::InvalidData,
                "a hard link to itself",
            )));
        }
        self.tree.existing(&below).map_err(failed)
    }

    /// Sets the times of directories, the deepest first, and returns those that the archive has no entry for.
    pub(super) fn finish(mut self) -> Result<BTreeSet<PathBuf>, UnpackError> {
        while let Some((path, times)) = self.directory_times.pop() {
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
    fn of(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<Self> {
        let id = |id: u64| {
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an owner out of range"))
        };
        let header = entry.header();
        let uid = Uid::from_raw(id(header.uid()?)?);
        let gid = Gid::from_raw(id(header.gid()?)?);
        let mode = Mode::from_raw_mode(header.mode()? & 0o7777);
        let mut modified = Timespec {
            // Times before 1970 wrap around in the header's unsigned field.
            tv_sec: header.mtime()?.cast_signed(),
            tv_nsec: 0,
        };
        let mut xattrs = Vec::new();
        if let Some(extensions) = entry.pax_extensions()? {
            for extension in extensions {
                let extension = extension?;
                let Ok(key) = extension.key() else { continue };
                if key == "mtime" {
                    modified = extension
                        .value()
                        .ok()
                        .and_then(pax_time)
                        .unwrap_or(modified);
                } else if let Some(name) = key.strip_prefix("SCHILY.xattr.")
                    && is_attribute_of_an_image(name)
                {
                    xattrs.push((name.to_owned(), extension.value_bytes().to_owned()));
                }
            }
        }
        Ok(Self {
            uid,
            gid,
            mode,
            times: Timestamps {
                last_access: modified,
                last_modification: modified,
            },
            xattrs,
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

/// `<seconds>[.<fraction>]`, as in pax(1).
fn pax_time(text: &str) -> Option<Timespec> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let tv_sec: i64 = seconds.parse().ok()?;
    if tv_sec < 0 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        // Fractions of times before 1970 count backwards; nobody has them.
        return Some(Timespec { tv_sec, tv_nsec: 0 });
    }
    let nanos: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    Some(Timespec {
        tv_sec,
        tv_nsec: nanos.parse().ok()?,
    })
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

fn symlink(
    entry: &tar::Entry<'_, impl Read>,
    place: &Place,
    attributes: &Attributes,
) -> io::Result<()> {
    // Its target may be anything: it is only ever followed inside a root.
    rustix::fs::symlinkat(&link_name(entry)?, &*place.dir, &place.name)?;
    attributes.apply_at(place, FileType::Symlink)
}

fn node(
    entry: &tar::Entry<'_, impl Read>,
    place: &Place,
    attributes: &Attributes,
) -> io::Result<()> {
    let header = entry.header();
    let kind = match header.entry_type() {
        EntryType::Char => FileType::CharacterDevice,
        EntryType::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let device = match kind {
        FileType::Fifo => 0,
        _ => rustix::fs::makedev(
            header.device_major()?.unwrap_or(0),
            header.device_minor()?.unwrap_or(0),
        ),
    };
    rustix::fs::mknodat(&*place.dir, &place.name, kind, attributes.mode, device)?;
    attributes.apply_at(place, kind)
}

fn link_name(entry: &tar::Entry<'_, impl Read>) -> io::Result<PathBuf> {
    match entry.link_name()? {
        Some(target) => Ok(target.into_owned()),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a link without a target",
        )),
    }
}

fn escape(path: &Path) -> UnpackError {
    UnpackError::Escape {
        path: path.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_pax_headers_keep_their_fraction() {
        let table = [
            ("12", Some((12, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("12.1234567891", Some((12, 123_456_789))),
            ("-3.5", Some((-3, 0))),
            ("x", None),
        ];
        for (text, want) in table {
            let got = pax_time(text).map(|time| (time.tv_sec, time.tv_nsec));
            assert_eq!(got, want, "{text}");
        }
    }
}
