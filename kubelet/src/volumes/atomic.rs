//! Directories whose content changes as a whole.
//!
//! Files live in a hidden, timestamped directory; `..data` is a link to it, and what the user sees are links through
//! `..data`. Replacing `..data` by rename shows all new files at once. The layout is that of kubernetes,
//! pkg/volume/util/atomic_writer.go, which programs in containers watch for.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Zoned;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// One file of the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) content: Vec<u8>,
    /// Permission bits.
    pub(crate) mode: u32,
    /// The owner, if it is not root.
    pub(crate) owner: Option<u32>,
}

/// The files by path, relative to the directory.
pub(crate) type Payload = BTreeMap<PathBuf, File>;

/// Why a directory could not be written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    /// A path leaves the directory, or would hide the writer's own files.
    #[error("invalid path {path:?}")]
    Path { path: PathBuf },
    /// The system refused.
    #[error("write {path:?}")]
    Io { path: PathBuf, source: io::Error },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> WriteError + '_ {
    |source| WriteError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Makes `directory` show `payload`, all at once; returns whether anything changed.
///
/// `group` owns the files and may read them (`fsGroup`).
pub(crate) fn write(
    directory: &Path,
    payload: &Payload,
    group: Option<u32>,
) -> Result<bool, WriteError> {
    for path in payload.keys() {
        let normal = path.components().all(|c| matches!(c, Component::Normal(_)));
        if !normal || path.as_os_str().is_empty() || path.to_string_lossy().starts_with("..") {
            return Err(WriteError::Path { path: path.clone() });
        }
    }
    let data = directory.join(DATA);
    let old = fs::read_link(&data).ok();
    if old.is_some() && same(&data, payload, group) {
        return Ok(false);
    }
    let stamp = Zoned::now().strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let fresh = format!("{stamp}.{}", rand::random::<u32>());
    let target = directory.join(&fresh);
    fs::create_dir(&target).map_err(at(&target))?;
    own(&target, 0o755, None, group)?;
    for (path, file) in payload {
        let place = target.join(path);
        for parent in path
            .ancestors()
            .skip(1)
            .filter(|p| !p.as_os_str().is_empty())
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
        {
            let parent = target.join(parent);
            if !parent.is_dir() {
                fs::create_dir(&parent).map_err(at(&parent))?;
                own(&parent, 0o755, None, group)?;
            }
        }
        fs::write(&place, &file.content).map_err(at(&place))?;
        own(&place, effective_mode(file.mode, group), file.owner, group)?;
    }
    let link = directory.join(DATA_NEW);
    match fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&link)(error)),
        _ => {}
    }
    symlink(&fresh, &link).map_err(at(&link))?;
    fs::rename(&link, &data).map_err(at(&data))?;
    show(directory, payload)?;
    if let Some(old) = old {
        let old = directory.join(old);
        fs::remove_dir_all(&old).map_err(at(&old))?;
    }
    Ok(true)
}

fn effective_mode(mode: u32, group: Option<u32>) -> u32 {
    if group.is_some() { mode | 0o440 } else { mode }
}

fn own(path: &Path, mode: u32, owner: Option<u32>, group: Option<u32>) -> Result<(), WriteError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at(path))?;
    if owner.is_some() || group.is_some() {
        std::os::unix::fs::lchown(path, owner, group).map_err(at(path))?;
        // A change of owner may clear bits.
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at(path))?;
    }
    Ok(())
}

/// Whether the files shown now are just those of the payload.
fn same(data: &Path, payload: &Payload, group: Option<u32>) -> bool {
    let mut found = 0;
    let mut pending = vec![data.to_owned()];
    while let Some(directory) = pending.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            return false;
        };
        for entry in entries {
            let Ok(entry) = entry else { return false };
            let path = entry.path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let Some(file) = path.strip_prefix(data).ok().and_then(|p| payload.get(p)) else {
                return false;
            };
            let mode = fs::metadata(&path).map(|m| m.permissions().mode() & 0o7777);
            let equal = mode.is_ok_and(|m| m == effective_mode(file.mode, group))
                && fs::read(&path).is_ok_and(|c| c == file.content);
            if !equal {
                return false;
            }
            found += 1;
        }
    }
    found == payload.len()
}

/// Links each first path component to the same one below `..data`, and removes links to what is gone.
fn show(directory: &Path, payload: &Payload) -> Result<(), WriteError> {
    let firsts: std::collections::BTreeSet<&std::ffi::OsStr> =
        payload.keys().filter_map(|p| p.iter().next()).collect();
    for first in &firsts {
        let link = directory.join(first);
        match symlink(Path::new(DATA).join(first), &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(at(&link)(error));
            }
            _ => {}
        }
    }
    for entry in fs::read_dir(directory).map_err(at(directory))? {
        let entry = entry.map_err(at(directory))?;
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with("..") && !firsts.contains(name.as_os_str()) {
            fs::remove_file(entry.path()).map_err(at(&entry.path()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, content)| {
                let file = File {
                    content: content.as_bytes().to_vec(),
                    mode: 0o640,
                    owner: None,
                };
                (PathBuf::from(path), file)
            })
            .collect()
    }

    #[test]
    fn files_appear_change_and_go_as_a_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path();
        assert!(write(path, &payload(&[("a", "1"), ("d/e/b", "2")]), None).expect("first"));
        assert!(!write(path, &payload(&[("a", "1"), ("d/e/b", "2")]), None).expect("same"));
        assert_eq!(fs::read_to_string(path.join("d/e/b")).expect("b"), "2");
        assert_eq!(
            fs::read_link(path.join("a")).expect("link"),
            Path::new("..data/a")
        );
        assert!(write(path, &payload(&[("c", "3")]), None).expect("other"));
        let mut names: Vec<String> = fs::read_dir(path)
            .expect("list")
            .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
            .filter(|n| !n.starts_with("..2"))
            .collect();
        names.sort();
        assert_eq!(names, ["..data", "c"]);
        let mode = fs::metadata(path.join("c"))
            .expect("c")
            .permissions()
            .mode()
            & 0o777;
        assert_eq!(mode, 0o640);
    }

    #[test]
    fn paths_that_leave_the_directory_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        for bad in ["../a", "/a", "a/../../b", "..data"] {
            assert!(
                write(dir.path(), &payload(&[(bad, "")]), None).is_err(),
                "{bad}"
            );
        }
    }
}
