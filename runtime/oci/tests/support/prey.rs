//! What an attack on a runtime is after: a directory of the host, its witness, and images that lead there.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use super::Case;

/// A directory of the host that an attacker would like to change, with files of the names that runtimes make.
pub fn prey(case: &Case) -> PathBuf {
    let prey = case.path("prey");
    for name in ["sub", "pts", "shm", "sys/net/ipv4"] {
        std::fs::create_dir_all(prey.join(name)).unwrap();
    }
    for name in [
        "ptmx",
        "null",
        "console",
        "file",
        "fd",
        "sys/net/ipv4/ip_forward",
    ] {
        std::fs::write(prey.join(name), "the host's\n").unwrap();
    }
    prey
}

/// Takes the mounts at and below `place` out of the configuration: the image's own directory is there then.
pub fn without_mount(case: &mut Case, place: &str) {
    let mounts = case.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !Path::new(mount["destination"].as_str().unwrap()).starts_with(place));
}

/// Puts a symlink at a name of the image.
pub fn plant(case: &Case, name: &str, target: impl AsRef<Path>) {
    let path = case.rootfs().join(name);
    if path.is_dir() {
        std::fs::remove_dir(&path).unwrap();
    }
    symlink(target, path).unwrap();
}

/// All that can be told of a directory's files: nothing of it may change.
#[derive(Debug, PartialEq, Eq)]
pub struct Witness(BTreeMap<PathBuf, String>);

impl Witness {
    pub fn of(directory: &Path) -> Self {
        let mut seen = BTreeMap::new();
        look(directory, &mut seen);
        Self(seen)
    }
}

fn look(path: &Path, seen: &mut BTreeMap<PathBuf, String>) {
    let meta = path.symlink_metadata().expect("look at a file");
    let content = if meta.is_file() {
        std::fs::read(path).expect("read a file")
    } else {
        Vec::new()
    };
    let facts = format!(
        "inode {} mode {:o} owner {}:{} device {} links {} changed {}.{} content {content:?}",
        meta.ino(),
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.rdev(),
        meta.nlink(),
        meta.ctime(),
        meta.ctime_nsec(),
    );
    seen.insert(path.to_owned(), facts);
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).expect("list a directory") {
            look(&entry.expect("an entry").path(), seen);
        }
    }
}
