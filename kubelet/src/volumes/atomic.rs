//! Directories whose content changes as a whole.
//!
//! Files live in a hidden, timestamped directory; `..data` is a link to it, and what the user sees are links through
//! `..data`. Replacing `..data` by rename shows all new files at once. The layout is that of kubernetes,
//! pkg/volume/util/atomic_writer.go, which programs in containers watch for.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use jiff::Zoned;
use nix::fcntl::{Flock, FlockArg};

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
/// `group` owns the files and may read them (`fsGroup`). Whenever an earlier writer was killed, the directory is whole again afterwards,
/// and has nothing of what that one was at.
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
    // One that was given up by whoever waited for it may still be at work.
    let lock = fs::File::open(directory).map_err(at(directory))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, error)| at(directory)(error.into()))?;
    let data = directory.join(DATA);
    let changed = !same(&data, payload, group);
    if changed {
        let fresh = write_fresh(directory, payload, group)?;
        let link = directory.join(DATA_NEW);
        knarr_tree::remove(&link).map_err(|error| at(&link)(error.into()))?;
        symlink_of(&fresh, &link, group)?;
        fs::rename(&link, &data).map_err(at(&data))?;
        step();
    }
    let current = fs::read_link(&data).map_err(at(&data))?;
    show(directory, payload, group)?;
    tidy(directory, payload, current.as_os_str())?;
    Ok(changed)
}

/// Writes the payload to a new hidden directory, and returns its name.
fn write_fresh(
    directory: &Path,
    payload: &Payload,
    group: Option<u32>,
) -> Result<PathBuf, WriteError> {
    let stamp = Zoned::now().strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    let fresh = PathBuf::from(format!("{stamp}.{}", rand::random::<u32>()));
    let target = directory.join(&fresh);
    make_directory(&target, group)?;
    for (path, file) in payload {
        let place = target.join(path);
        let mut parents: Vec<_> = path.ancestors().skip(1).collect();
        // The last one is the target itself.
        parents.pop();
        for parent in parents.into_iter().rev() {
            let parent = target.join(parent);
            if !parent.is_dir() {
                make_directory(&parent, group)?;
            }
        }
        fs::write(&place, &file.content).map_err(at(&place))?;
        step();
        own(&place, effective_mode(file.mode, group), file.owner, group)?;
    }
    Ok(fresh)
}

/// Nothing. The tests end a writer here, as a kill would.
#[cfg(not(test))]
fn step() {}
#[cfg(test)]
use tests::step;

/// Readable to all, and what is made inside belongs to the volume's group (kubernetes, pkg/volume/volume_linux.go).
fn make_directory(path: &Path, group: Option<u32>) -> Result<(), WriteError> {
    fs::create_dir(path).map_err(at(path))?;
    step();
    let mode = if group.is_some() { 0o2755 } else { 0o755 };
    own(path, mode, None, group)
}

fn symlink_of(target: &Path, link: &Path, group: Option<u32>) -> Result<(), WriteError> {
    symlink(target, link).map_err(at(link))?;
    step();
    if group.is_some() {
        std::os::unix::fs::lchown(link, None, group).map_err(at(link))?;
    }
    Ok(())
}

fn effective_mode(mode: u32, group: Option<u32>) -> u32 {
    if group.is_some() { mode | 0o440 } else { mode }
}

/// Gives a file or directory its owners and its mode, whatever the process's umask.
fn own(path: &Path, mode: u32, owner: Option<u32>, group: Option<u32>) -> Result<(), WriteError> {
    if owner.is_some() || group.is_some() {
        std::os::unix::fs::lchown(path, owner, group).map_err(at(path))?;
        step();
    }
    // Last: a change of owner may clear bits.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at(path))?;
    step();
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
            let equal = fs::metadata(&path).is_ok_and(|found| {
                found.mode() & 0o7777 == effective_mode(file.mode, group)
                    && found.uid() == file.owner.unwrap_or(0)
                    && found.gid() == group.unwrap_or(0)
            }) && fs::read(&path).is_ok_and(|c| c == file.content);
            if !equal {
                return false;
            }
            found += 1;
        }
    }
    found == payload.len()
}

/// The first component of each path: what the user sees in the directory.
fn firsts(payload: &Payload) -> BTreeSet<&OsStr> {
    payload.keys().filter_map(|p| p.iter().next()).collect()
}

/// Links each first path component to the same one below `..data`.
fn show(directory: &Path, payload: &Payload, group: Option<u32>) -> Result<(), WriteError> {
    for first in firsts(payload) {
        let link = directory.join(first);
        let target = Path::new(DATA).join(first);
        if fs::read_link(&link).is_ok_and(|found| found == target) {
            continue;
        }
        knarr_tree::remove(&link).map_err(|error| at(&link)(error.into()))?;
        symlink_of(&target, &link, group)?;
    }
    Ok(())
}

/// Removes all but the links to the payload, `..data` and the `current` directory that this leads to: what was shown before, and what
/// a writer that was killed has left.
fn tidy(directory: &Path, payload: &Payload, current: &OsStr) -> Result<(), WriteError> {
    let firsts = firsts(payload);
    for entry in fs::read_dir(directory).map_err(at(directory))? {
        let name = entry.map_err(at(directory))?.file_name();
        if name != DATA && name != current && !firsts.contains(name.as_os_str()) {
            let path = directory.join(&name);
            knarr_tree::remove(&path).map_err(|error| at(&path)(error.into()))?;
            step();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// How many more steps a writer of this thread takes before it is killed.
        static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
    }

    pub(super) fn step() {
        if let Some(left) = LEFT.get() {
            LEFT.set(left.checked_sub(1));
            assert_ne!(left, 0, "killed");
        }
    }

    /// Writes until the end of the given step; returns whether it came that far.
    fn killed_after(steps: usize, write: impl FnOnce()) -> bool {
        LEFT.set(Some(steps));
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(write));
        LEFT.set(None);
        ended.is_err()
    }

    /// Everything in the directory: names, and contents or where links lead.
    fn seen(directory: &Path) -> Vec<(String, String)> {
        let mut all: Vec<_> = fs::read_dir(directory)
            .expect("list")
            .map(|entry| {
                let entry = entry.expect("entry");
                let name = entry.file_name().to_string_lossy().into_owned();
                let path = entry.path();
                match fs::read_link(&path) {
                    Ok(target) => (name, target.display().to_string()),
                    Err(_) => (
                        "hidden".to_owned(),
                        fs::read_dir(path).expect("list").count().to_string(),
                    ),
                }
            })
            .filter(|(name, _)| name != DATA)
            .collect();
        all.sort();
        all
    }

    #[test]
    fn a_writer_killed_at_any_step_leaves_a_directory_that_the_next_one_makes_whole() {
        let (old, new) = (
            payload(&[("a", "1"), ("d/e/b", "2"), ("gone", "x")]),
            payload(&[("a", "3"), ("d/e/c", "4"), ("new", "y")]),
        );
        let shown = |path: &Path, payload: &Payload| {
            payload.iter().all(|(name, file)| {
                fs::read(path.join(name)).is_ok_and(|found| found == file.content)
            })
        };
        for first in [true, false] {
            for group in [None, Some(1234)] {
                let mut steps = 0;
                loop {
                    let dir = tempfile::tempdir().expect("a directory");
                    let path = dir.path();
                    if !first {
                        write(path, &old, group).expect("the old one");
                    }
                    let killed = killed_after(steps, || {
                        write(path, &new, group).expect("not killed");
                    });
                    if !first && killed {
                        let current = path.join(DATA);
                        assert!(
                            shown(&current, &old) || shown(&current, &new),
                            "whole at any time, step {steps}"
                        );
                    }
                    write(path, &new, group).expect("the next one");
                    assert!(shown(path, &new), "step {steps}");
                    let links = ["a", "d", "new"].map(|n| (n.to_owned(), format!("..data/{n}")));
                    let mut expected = links.to_vec();
                    expected.push(("hidden".to_owned(), "3".to_owned()));
                    expected.sort();
                    assert_eq!(seen(path), expected, "step {steps}");
                    // And it may be killed once more, and the volume go back to what it was.
                    killed_after(steps, || {
                        write(path, &old, group).expect("not killed");
                    });
                    write(path, &old, group).expect("back");
                    assert!(shown(path, &old) && !path.join("new").exists());
                    assert!(!write(path, &old, group).expect("same"));
                    if !killed {
                        assert!(steps > 10, "{steps} steps only");
                        break;
                    }
                    steps += 1;
                }
            }
        }
    }

    #[test]
    fn modes_and_owners_are_those_of_kubernetes_whatever_the_umask() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path();
        let mut files = payload(&[("d/a", "1"), ("b", "2")]);
        files.get_mut(Path::new("b")).expect("b").mode = 0o400;
        let found = |name: &str| {
            let meta = fs::metadata(path.join(name)).expect("there");
            (meta.mode() & 0o7777, meta.uid(), meta.gid())
        };
        write(path, &files, None).expect("written");
        assert_eq!(found("..data/"), (0o755, 0, 0));
        assert_eq!(found("d"), (0o755, 0, 0));
        assert_eq!(found("d/a"), (0o640, 0, 0));
        assert_eq!(found("b"), (0o400, 0, 0));
        files.get_mut(Path::new("d/a")).expect("a").owner = Some(7);
        assert!(write(path, &files, Some(55)).expect("other owners"));
        assert_eq!(found("..data/"), (0o2755, 0, 55));
        assert_eq!(found("d"), (0o2755, 0, 55));
        assert_eq!(found("d/a"), (0o640, 7, 55));
        assert_eq!(found("b"), (0o440, 0, 55));
    }

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
