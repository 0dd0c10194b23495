//! One group in all hierarchies that count: made, limited, removed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use super::file::{Performer, read};
use super::members::{children, wait_for};
use super::{CgroupError, Layout, OomEvents, Stats, devices, stats, v1, v2};

/// One group, as it is kept in a container's state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Path from the hierarchies' roots.
    pub path: PathBuf,
    /// The group's directory per controller (v1), or under the empty name (v2).
    pub directories: BTreeMap<String, PathBuf>,
    /// Directories that we made, parents before children: the ones to remove.
    pub made: Vec<PathBuf>,
}

/// One group in all hierarchies that count.
#[derive(Clone, Debug)]
pub struct Group {
    pub(super) record: GroupRecord,
    pub(super) unified: bool,
}

impl Group {
    /// Makes the group `path` (from the roots), and its parents, where they are missing.
    ///
    /// On v1 in the hierarchies that a container always gets, and those which `resources` needs.
    /// On v2 every controller that exists is enabled on the way down.
    ///
    /// # Errors
    ///
    /// See [`CgroupError`]; what was made before is removed again.
    pub fn create(
        layout: &Layout,
        path: &Path,
        resources: Option<&LinuxResources>,
    ) -> Result<Self, CgroupError> {
        Self::create_with(layout, path, resources, &[])
    }

    /// The same, and on v1 in these hierarchies, too, if the host has them.
    pub(crate) fn create_with(
        layout: &Layout,
        path: &Path,
        resources: Option<&LinuxResources>,
        more: &[&'static str],
    ) -> Result<Self, CgroupError> {
        let relative = relative(path)?;
        let mut group = Self {
            record: GroupRecord {
                path: Path::new("/").join(&relative),
                ..GroupRecord::default()
            },
            unified: layout.is_unified(),
        };
        let made = match layout.unified_root() {
            Some(root) if layout.is_unified() => v2::create(&mut group.record, root, &relative),
            _ => v1::create(&mut group.record, layout, &relative, resources, more),
        };
        match made {
            Ok(()) => Ok(group),
            Err(error) => {
                for directory in group.record.made.iter().rev() {
                    // Only clean-up of what is empty and ours: the first error is the one to tell.
                    let _left = fs::remove_dir(directory);
                }
                Err(error)
            }
        }
    }

    /// Whether a container can have it for itself: a group that was there before may hold processes, or be frozen.
    ///
    /// # Errors
    ///
    /// [`CgroupError::NotEmpty`] and [`CgroupError::Frozen`], or if its files cannot be read.
    pub(crate) fn check_unused(&self) -> Result<(), CgroupError> {
        let found = |directory: &&PathBuf| !self.record.made.contains(directory);
        if !self.distinct().any(|directory| found(&directory)) {
            return Ok(());
        }
        let path = || self.record.path.clone();
        let count = self.processes()?.len();
        if count > 0 {
            return Err(CgroupError::NotEmpty {
                path: path(),
                count,
            });
        }
        let Some(directory) = self.directory("freezer") else {
            return Ok(());
        };
        let frozen = if self.unified {
            // Not what the events say, which is about processes.
            read(&directory.join("cgroup.freeze"))?.trim() == "1"
        } else {
            read(&directory.join("freezer.state"))?.trim() != "THAWED"
        };
        if frozen {
            return Err(CgroupError::Frozen { path: path() });
        }
        Ok(())
    }

    /// What [`Group::create_with`] is about to make, for a state file that is written before: whoever finds that after a crash
    /// knows what to remove.
    ///
    /// # Errors
    ///
    /// If `path` is none, or a controller is missing.
    pub(crate) fn announce(
        layout: &Layout,
        path: &Path,
        resources: Option<&LinuxResources>,
        more: &[&'static str],
    ) -> Result<GroupRecord, CgroupError> {
        let relative = relative(path)?;
        let roots: Vec<(&str, &Path)> = if layout.is_unified() {
            layout.hierarchies().collect()
        } else {
            let wanted = v1::controllers(layout, resources, more)?.into_iter();
            wanted
                .filter_map(|controller| Some((controller, layout.v1_root(controller)?)))
                .collect()
        };
        let mut record = GroupRecord {
            path: Path::new("/").join(&relative),
            ..GroupRecord::default()
        };
        for (controller, root) in roots {
            let mut directory = root.to_owned();
            for component in relative.components() {
                directory.push(component);
                if !record.made.contains(&directory) && !directory.exists() {
                    record.made.push(directory.clone());
                }
            }
            record.directories.insert(controller.to_owned(), directory);
        }
        Ok(record)
    }

    /// The group that a state file describes, or any existing group at `path` (then nothing of it is ours to remove).
    pub fn open(layout: &Layout, path: &Path) -> Result<Self, CgroupError> {
        let relative = relative(path)?;
        let mut record = GroupRecord {
            path: Path::new("/").join(&relative),
            ..GroupRecord::default()
        };
        for (controller, root) in layout.hierarchies() {
            let directory = root.join(&relative);
            if directory.is_dir() {
                record.directories.insert(controller.to_owned(), directory);
            }
        }
        Ok(Self {
            record,
            unified: layout.is_unified(),
        })
    }

    /// From a state file.
    pub fn from_record(record: GroupRecord) -> Self {
        let unified = record.directories.contains_key("");
        Self { record, unified }
    }

    /// For a state file.
    pub fn record(&self) -> &GroupRecord {
        &self.record
    }

    /// Path from the hierarchies' roots.
    pub fn path(&self) -> &Path {
        &self.record.path
    }

    /// Whether the host is pure cgroup v2.
    pub fn is_unified(&self) -> bool {
        self.unified
    }

    /// The directory of a controller's group: on v1 its own, on v2 the one of all.
    pub fn directory(&self, controller: &str) -> Option<&Path> {
        self.record
            .directories
            .get(if self.unified { "" } else { controller })
            .map(PathBuf::as_path)
    }

    /// Sets limits. Fields that are not given stay as they are.
    ///
    /// # Errors
    ///
    /// The first value that the kernel refuses, or a controller that this host has not.
    pub fn apply(
        &mut self,
        layout: &Layout,
        resources: &LinuxResources,
    ) -> Result<(), CgroupError> {
        let mut performer = Performer::default();
        if self.unified {
            let directory = self.record.directories.get("").cloned().unwrap_or_default();
            v2::check_usage(&directory, resources)?;
            for write in v2::plan(resources)? {
                performer.perform(&directory, &write)?;
            }
            if let Some(rules) = resources
                .devices()
                .as_deref()
                .filter(|rules| !rules.is_empty())
            {
                devices::install(&directory, rules)?;
            }
            return Ok(());
        }
        let current = |file: &str| {
            let directory = self.record.directories.get("memory")?;
            fs::read_to_string(directory.join(file))
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        for write in v1::plan(resources, &current)? {
            if !self.record.directories.contains_key(write.controller) {
                v1::add(&mut self.record, layout, &write)?;
            }
            let directory = &self.record.directories[write.controller];
            performer.perform(directory, &write)?;
        }
        Ok(())
    }

    /// Gives the group, on v2, to the user who is root inside: then the container can divide it further
    /// (runtime-spec, config-linux.md, "Cgroup ownership").
    ///
    /// # Errors
    ///
    /// If an owner cannot be set; a file that this kernel has not is none.
    pub fn give_to(&self, user: nix::unistd::Uid) -> Result<(), CgroupError> {
        let Some(directory) = self.record.directories.get("") else {
            return Ok(());
        };
        // One name a line, since Linux 4.15.
        let listed = fs::read_to_string("/sys/kernel/cgroup/delegate");
        let names = listed.unwrap_or_else(|_| {
            "cgroup.procs\ncgroup.threads\ncgroup.subtree_control\n".to_owned()
        });
        for path in
            std::iter::once(directory.clone()).chain(names.lines().map(|name| directory.join(name)))
        {
            match nix::unistd::chown(&path, Some(user), None) {
                Err(nix::Error::ENOENT) => {}
                done => done.map_err(|errno| CgroupError::Write {
                    path,
                    value: format!("owner {user}"),
                    source: errno.into(),
                })?,
            }
        }
        Ok(())
    }

    /// What was used so far.
    ///
    /// # Errors
    ///
    /// If a file cannot be read; controllers that the host has not give zeros.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        stats::read(self)
    }

    /// The text of a controller's file, if the host has it: for who shows more than [`Stats`].
    pub fn text(&self, controller: &str, file: &str) -> Option<String> {
        fs::read_to_string(self.directory(controller)?.join(file)).ok()
    }

    /// Out-of-memory kills, as events.
    ///
    /// # Errors
    ///
    /// If the host has no memory controller.
    pub fn oom_events(&self) -> Result<OomEvents, CgroupError> {
        OomEvents::open(self)
    }

    /// Removes what [`Group::create`] made of it, and groups that its processes made below, if all are empty.
    ///
    /// Parents that we made go too, unless something else lives in them by now.
    ///
    /// # Errors
    ///
    /// If a process is still in it after ten seconds.
    pub fn remove(&self) -> Result<(), CgroupError> {
        for (index, directory) in self.record.made.iter().enumerate().rev() {
            let leaf = self
                .record
                .directories
                .values()
                .any(|leaf| leaf == directory);
            debug_assert!(index < self.record.made.len());
            if leaf {
                remove_tree(directory)?;
            } else {
                // Someone else's group in a parent of ours keeps that parent.
                let _used = fs::remove_dir(directory);
            }
        }
        Ok(())
    }

    /// The group's directories, each once (several v1 controllers can share one).
    pub(super) fn distinct(&self) -> impl Iterator<Item = &PathBuf> {
        let mut seen: Vec<&PathBuf> = self.record.directories.values().collect();
        seen.sort_unstable();
        seen.dedup();
        seen.into_iter()
    }
}

/// The path without its leading slash; `..` is refused, because it would leave what is ours.
pub(super) fn relative(path: &Path) -> Result<PathBuf, CgroupError> {
    let mut relative = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => relative.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(CgroupError::InvalidPath {
                    path: path.to_owned(),
                });
            }
        }
    }
    if relative.as_os_str().is_empty() {
        return Err(CgroupError::InvalidPath {
            path: path.to_owned(),
        });
    }
    Ok(relative)
}

/// Makes `root/relative` and what is missing above it, and notes what was made, also if it fails half way.
pub(super) fn make_directories(
    root: &Path,
    relative: &Path,
    made: &mut Vec<PathBuf>,
    each: &mut dyn FnMut(&Path, bool) -> Result<(), CgroupError>,
) -> Result<PathBuf, CgroupError> {
    let leaf = root.join(relative);
    // A parent that another container's deletion removes between two steps is made again.
    'again: for _attempt in 0..16 {
        let mut directory = root.to_owned();
        for component in relative.components() {
            directory.push(component);
            match fs::create_dir(&directory) {
                Ok(()) => {
                    if !made.contains(&directory) {
                        made.push(directory.clone());
                    }
                    each(&directory, directory == leaf)?;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    each(&directory, directory == leaf)?
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && directory != root => {
                    continue 'again;
                }
                Err(source) => {
                    return Err(CgroupError::Create {
                        path: directory,
                        source,
                    });
                }
            }
        }
        return Ok(leaf);
    }
    Err(CgroupError::Create {
        path: leaf,
        source: io::ErrorKind::NotFound.into(),
    })
}

/// A group can be removed a moment after its last process was killed: the kernel says `EBUSY` till then.
fn remove_tree(directory: &Path) -> Result<(), CgroupError> {
    let mut result = Ok(());
    let waited = wait_for(directory, "the end of all processes", || {
        match fs::remove_dir(directory) {
            Ok(()) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(source) => {
                result = Err(CgroupError::Remove {
                    path: directory.to_owned(),
                    source,
                });
                return Ok(true);
            }
        }
        for child in children(directory) {
            remove_tree(&child)?;
        }
        Ok(false)
    });
    waited.and(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_path_never_leaves_its_hierarchy() {
        assert!(relative(Path::new("/a/../../b")).is_err());
        assert!(relative(Path::new("/")).is_err());
        assert_eq!(relative(Path::new("/a/./b")).unwrap(), Path::new("a/b"));
        assert_eq!(relative(Path::new("a")).unwrap(), Path::new("a"));
    }
}
