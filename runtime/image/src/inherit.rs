//! Directories that a layer has only because something is in them.
//!
//! Some builders leave out the entry of `tmp/` and write only `tmp/file`. The directory then belongs to a lower layer, and its owner and
//! mode are to be seen there; but overlayfs shows those of the topmost layer that has the name. Layers are unpacked independently of each
//! other, so this is settled per image: the container's writable directory, which is above them all, gets such directories with the
//! attributes they should have.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{At, FileError};

/// A directory as an image should have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Attributes {
    fn of(stat: &rustix::fs::Stat) -> Self {
        Self {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
        }
    }
}

/// One layer, as far as this matters.
pub(crate) struct Layer<'a> {
    pub(crate) root: &'a Path,
    /// Directories that its archive has no entry for.
    pub(crate) implicit: &'a [PathBuf],
}

/// What one layer has at a path.
enum Seen {
    Nothing,
    /// Something that hides whatever is below.
    End,
    Directory {
        attributes: Attributes,
        opaque: bool,
    },
}

/// The directories whose attributes a lower layer determines, and all above them; sorted, so that parents come first. The root, which is
/// the empty path, is always among them, if a layer has an entry for it. `layers`: the lowest first.
pub(crate) fn inherited(layers: &[Layer<'_>]) -> Result<BTreeMap<PathBuf, Attributes>, FileError> {
    let mut inherited = BTreeMap::new();
    let is_root = |path: &PathBuf| path.as_os_str().is_empty();
    let has_root = |layer: &&Layer<'_>| !layer.implicit.iter().any(is_root);
    if let Some(layer) = layers.iter().rev().find(has_root) {
        let stat = rustix::fs::stat(layer.root).at("stat", layer.root)?;
        inherited.insert(PathBuf::new(), Attributes::of(&stat));
    }
    // The lowest layer has nobody to inherit from.
    for path in layers.iter().skip(1).flat_map(|layer| layer.implicit) {
        if is_root(path) || inherited.contains_key(path) || !shows_implicit(layers, path)? {
            continue;
        }
        let Some(attributes) = explicit(layers, path)? else {
            continue;
        };
        inherited.insert(path.clone(), attributes);
        for parent in path.ancestors().skip(1) {
            if parent.as_os_str().is_empty() || inherited.contains_key(parent) {
                break;
            }
            if let Some(attributes) = explicit(layers, parent)? {
                inherited.insert(parent.to_owned(), attributes);
            }
        }
    }
    Ok(inherited)
}

/// Whether overlayfs would show attributes that no archive asked for.
fn shows_implicit(layers: &[Layer<'_>], path: &Path) -> Result<bool, FileError> {
    for layer in layers.iter().rev() {
        match look(layer.root, path)? {
            Seen::Nothing => {}
            Seen::End => return Ok(false),
            Seen::Directory { .. } => return Ok(layer.implicit.iter().any(|p| p == path)),
        }
    }
    Ok(false)
}

/// The attributes in the topmost layer whose archive has them; else those of the topmost directory.
fn explicit(layers: &[Layer<'_>], path: &Path) -> Result<Option<Attributes>, FileError> {
    let mut made = None;
    for layer in layers.iter().rev() {
        match look(layer.root, path)? {
            Seen::Nothing => {}
            Seen::End => break,
            Seen::Directory { attributes, opaque } => {
                if !layer.implicit.iter().any(|p| p == path) {
                    return Ok(Some(attributes));
                }
                made.get_or_insert(attributes);
                if opaque {
                    break;
                }
            }
        }
    }
    Ok(made)
}

/// Looks along the path: a whiteout, a file or an opaque directory on the way hides what is below.
fn look(root: &Path, path: &Path) -> Result<Seen, FileError> {
    let dir = File::open(root).at("open", root)?;
    let mut at = PathBuf::new();
    let mut hides = false;
    let mut found = Seen::Nothing;
    for component in path.components() {
        at.push(component);
        let open = rustix::fs::openat2(
            &dir,
            &at,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS,
        );
        let file = match open {
            Ok(file) => file,
            Err(Errno::NOENT) if hides => return Ok(Seen::End),
            Err(Errno::NOENT) => return Ok(Seen::Nothing),
            // A link on the way: another place altogether.
            Err(Errno::LOOP | Errno::NOTDIR) => return Ok(Seen::End),
            Err(err) => return Err(err).at("open", &root.join(&at)),
        };
        let stat =
            rustix::fs::statat(&file, "", AtFlags::EMPTY_PATH).at("stat", &root.join(&at))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(Seen::End);
        }
        let opaque = is_opaque(&root.join(&at))?;
        hides |= opaque;
        found = Seen::Directory {
            attributes: Attributes::of(&stat),
            opaque: hides,
        };
    }
    Ok(found)
}

/// The path has no links in it, as [`look`] has just seen, and layers do not change.
fn is_opaque(path: &Path) -> Result<bool, FileError> {
    let mut value = [0; 1];
    match rustix::fs::lgetxattr(path, "trusted.overlay.opaque", &mut value) {
        Ok(_) => Ok(value == *b"y"),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(false),
        Err(err) => Err(err).at("read the attributes of", path),
    }
}

/// Makes the directories in an empty directory of ours, which stands for the root.
pub(crate) fn make(
    directories: &BTreeMap<PathBuf, Attributes>,
    dir: &Path,
) -> Result<(), FileError> {
    for (path, attributes) in directories {
        let is_root = path.as_os_str().is_empty();
        let path = if is_root {
            dir.to_owned()
        } else {
            dir.join(path)
        };
        if !is_root {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&path)
                .at("make directory", &path)?;
        }
        std::os::unix::fs::chown(&path, Some(attributes.uid), Some(attributes.gid))
            .at("chown", &path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(attributes.mode))
            .at("chmod", &path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(root: &Path, path: &str, mode: u32) {
        let path = root.join(path);
        fs::create_dir_all(&path).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn modes(layers: &[(&Path, Vec<PathBuf>)]) -> Vec<(String, u32)> {
        let layers: Vec<_> = layers
            .iter()
            .map(|(root, implicit)| Layer { root, implicit })
            .collect();
        let inherited = inherited(&layers).unwrap();
        let shown = |path: PathBuf| path.display().to_string();
        inherited
            .into_iter()
            .map(|(path, attributes)| (shown(path), attributes.mode))
            .collect()
    }

    #[test]
    fn attributes_come_from_the_topmost_layer_that_has_an_entry() {
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let [low, middle, top] = [0, 1, 2].map(|i: usize| dirs[i].path());
        directory(low, "var", 0o751);
        directory(low, "var/tmp", 0o1777);
        directory(middle, "var", 0o750);
        directory(top, "var/tmp", 0o755);
        let root = vec![PathBuf::new()];
        let implicit = ["", "var", "var/tmp"].map(PathBuf::from).to_vec();
        let layers = [
            (low, root.clone()),
            (middle, root.clone()),
            (top, implicit.clone()),
        ];
        let wanted = [("var".to_owned(), 0o750), ("var/tmp".to_owned(), 0o1777)];
        assert_eq!(modes(&layers), wanted);
        // Nothing to do where archives are complete, or where the layer is the lowest.
        assert_eq!(modes(&[(low, root.clone()), (middle, root.clone())]), []);
        assert_eq!(modes(&[(top, implicit)]), []);
        // The root is that of the topmost layer which has one.
        directory(low, "", 0o555);
        let wanted = [(String::new(), 0o555)];
        assert_eq!(modes(&[(low, vec![]), (middle, root)]), wanted);
    }

    #[test]
    fn what_a_file_hides_is_not_inherited() {
        let dirs = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let [low, middle, top] = [0, 1, 2].map(|i: usize| dirs[i].path());
        directory(low, "a/b", 0o700);
        fs::write(middle.join("a"), "").unwrap();
        directory(top, "a/b", 0o755);
        let implicit = ["", "a", "a/b"].map(PathBuf::from).to_vec();
        let inherited = modes(&[(low, vec![]), (middle, vec![]), (top, implicit)]);
        let inherited = &inherited[1..];
        assert!(
            inherited.iter().all(|(_, mode)| *mode == 0o755),
            "{inherited:?}"
        );
    }
}
