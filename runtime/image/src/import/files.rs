//! The files of a layout or archive, wherever they come from.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::ImportError;
use crate::archive::{Kind, Piece, Reader};
use crate::error::{At, FileError};
use crate::{files, unpack};

/// The files of a layout or archive, on disk.
pub(super) struct Files {
    pub(super) by_name: BTreeMap<String, PathBuf>,
    /// Whether the files are ours to move.
    pub(super) ours: Option<TempDir>,
}

impl Files {
    /// Those of a directory.
    pub(super) fn list(dir: &Path) -> Result<Self, FileError> {
        let mut by_name = BTreeMap::new();
        list_files(dir, "", &mut by_name)?;
        Ok(Self {
            by_name,
            ours: None,
        })
    }

    /// Writes the archive's files under names of ours; its own are only kept in mind.
    pub(super) fn extract(
        archive: impl Read,
        dir: TempDir,
        limit: u64,
    ) -> Result<Self, ImportError> {
        let archive = unpack::decompress(archive).map_err(ImportError::Archive)?;
        let mut archive = Reader::new(archive.take(limit));
        let mut by_name = BTreeMap::new();
        let mut links = Vec::new();
        let mut count = 0_u64;
        let mut left = limit;
        while let Some(entry) = archive.next().map_err(ImportError::Archive)? {
            let name = plain_name(&path_of(&entry.path));
            match entry.kind {
                Kind::File => {
                    // Holes take no place in the archive, so its length does not bound them.
                    left = left.checked_sub(entry.size).ok_or_else(|| {
                        ImportError::Archive(io::Error::new(
                            io::ErrorKind::FileTooLarge,
                            format!("the archive has over {limit} bytes"),
                        ))
                    })?;
                    let path = dir.path().join(count.to_string());
                    count += 1;
                    let mut file = File::create(&path).at("create", &path)?;
                    extract(&mut archive, &mut file, &path)?;
                    by_name.insert(name, path);
                }
                // Older archives have equal layers once, and links to them.
                Kind::Symlink | Kind::HardLink => links.push((name, path_of(&entry.link))),
                _ => {}
            }
        }
        for (name, target) in links {
            let beside = Path::new(&name).parent().unwrap_or(Path::new(""));
            for target in [plain_name(&beside.join(&target)), plain_name(&target)] {
                if let Some(path) = by_name.get(&target).cloned() {
                    by_name.insert(name.clone(), path);
                    break;
                }
            }
        }
        Ok(Self {
            by_name,
            ours: Some(dir),
        })
    }
}

fn path_of(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

/// Writes the content of an archive's file.
fn extract(
    archive: &mut Reader<impl Read>,
    file: &mut File,
    path: &Path,
) -> Result<(), ImportError> {
    let mut buffer = vec![0; 128 * 1024];
    let mut length = 0;
    loop {
        match archive.piece(&mut buffer).map_err(ImportError::Archive)? {
            Piece::Data(n) => {
                file.write_all(&buffer[..n]).at("write", path)?;
                length += n as u64;
            }
            Piece::Hole(n) => {
                length += n;
                file.set_len(length).at("write", path)?;
                file.seek(io::SeekFrom::Start(length)).at("write", path)?;
            }
            Piece::End => return Ok(()),
        }
    }
}

/// A path as a key: no `.`, no `..`, no leading slash. It is never used to open anything.
pub(super) fn plain_name(path: &Path) -> String {
    use std::path::Component;
    let mut parts: Vec<std::borrow::Cow<'_, str>> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy()),
            Component::ParentDir => {
                parts.pop();
            }
            _ => {}
        }
    }
    parts.join("/")
}

/// The regular files below a directory. Links are not followed: a layout has none.
fn list_files(
    dir: &Path,
    prefix: &str,
    files: &mut BTreeMap<String, PathBuf>,
) -> Result<(), FileError> {
    for name in files::names_in(dir)? {
        let path = dir.join(&name);
        let below = format!("{prefix}{name}");
        let kind = fs::symlink_metadata(&path).at("stat", &path)?;
        // `blobs/sha256/<hex>` is as deep as it gets.
        if kind.is_dir() && prefix.matches('/').count() < 3 {
            list_files(&path, &format!("{below}/"), files)?;
        } else if kind.is_file() {
            files.insert(below, path);
        }
    }
    Ok(())
}

/// Copies all that is left; an error of the source is the archive's.
pub(super) fn copy(from: &mut impl Read, to: &mut File, path: &Path) -> Result<(), ImportError> {
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => io::Write::write_all(to, &buffer[..n]).at("write", path)?,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(ImportError::Archive(err)),
        }
    }
}
